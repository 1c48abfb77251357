#!/bin/sh
# Runs the end-to-end suite against a daemon binary: run.sh build/spand [pytest arguments].
# The OpenAI SDK and pytest come from PyPI into build/venv, once.
set -eu
spand=${1:?usage: run.sh path/to/spand}
shift
root=$(cd "$(dirname "$0")/../.." && pwd)
venv=$root/build/venv
stamp=$venv/.installed
if [ ! -f "$stamp" ] || ! cmp -s "$stamp" "$root/tests/e2e/requirements.txt"; then
    echo "e2e: installing $(tr '\n' ' ' <"$root/tests/e2e/requirements.txt")into build/venv"
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q --disable-pip-version-check -r "$root/tests/e2e/requirements.txt"
    cp "$root/tests/e2e/requirements.txt" "$stamp"
fi
cd "$root/tests/e2e"
SPAND=$(cd "$root" && realpath "$spand") exec "$venv/bin/python" -m pytest -q -p no:cacheprovider "$@"

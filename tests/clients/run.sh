#!/bin/sh
# Runs a client suite against a daemon of this build: run.sh SUITE [arguments of SUITE.py].
# What the suite needs comes from PyPI into build/clients/SUITE, once.
set -eu
suite=${1:?usage: run.sh SUITE [arguments]}
shift
root=$(cd "$(dirname "$0")/../.." && pwd)
here=$root/tests/clients
venv=$root/build/clients/$suite
if [ ! -f "$venv/.installed" ] || ! cmp -s "$venv/.installed" "$here/$suite.requirements.txt"; then
    echo "clients: installing for $suite: $(tr '\n' ' ' <"$here/$suite.requirements.txt")"
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q --disable-pip-version-check -r "$here/$suite.requirements.txt"
    cp "$here/$suite.requirements.txt" "$venv/.installed"
fi
cd "$here"
PYTHONPATH=$root/tests/e2e PATH=$venv/bin:$PATH exec "$venv/bin/python" "$suite.py" "$@"

#!/bin/sh
# Installs the Debian packages that are missing: deps.sh build|test.
# Says what it installs before it does; asks for sudo only when it does not run as root.
set -eu
build='gcc make pkg-config libmicrohttpd-dev libgnutls28-dev libuv1-dev libjansson-dev libpcre2-dev libutf8proc-dev libcurl4-gnutls-dev'
# CBC checks the plan search's own solver; without it spand-plan is built all the same.
test='check curl python3 python3-venv coinor-libcbc-dev openssl'
case ${1:-build} in
build) want=$build ;;
test) want="$build $test" ;;
*) echo "usage: deps.sh build|test" >&2; exit 2 ;;
esac

if ! command -v dpkg-query >/dev/null 2>&1; then
    # Another distribution: the compiler will say what is missing; name it once here.
    echo "deps: not a Debian system; make sure these are installed: $want" >&2
    exit 0
fi
missing=
for p in $want; do
    dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing="$missing $p"
done
[ -n "$missing" ] || exit 0

sudo=
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null 2>&1 || {
        echo "deps: run as root: apt-get install$missing" >&2
        exit 1
    }
    sudo=sudo
fi
echo "deps: installing$missing"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Package lists may be old or absent on a fresh machine, so they are fetched first.
if ! { $sudo apt-get update && $sudo apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1; then
    cat "$log" >&2
    echo "deps: apt-get failed" >&2
    exit 1
fi

#!/bin/sh
# Unpacks the package that `make deb` built and asks its daemon for a completion: test_deb.sh BUILD.
set -eu
build=$1
deb=$(ls "$build"/spand_*.deb)
work=$build/deb/test
pid=
trap '[ -z "$pid" ] || kill "$pid" 2>/dev/null || true' EXIT
rm -rf "$work" && mkdir -p "$work"
dpkg-deb -x "$deb" "$work"
for f in usr/bin/spand lib/systemd/system/spand.service lib/systemd/system/spand.socket etc/spand/spand.json \
    usr/lib/sysusers.d/spand.conf usr/share/doc/spand/README.md usr/share/spand/models/demo-llama/config.json; do
    [ -e "$work/$f" ] || { echo "test_deb: $f is missing" >&2; exit 1; }
done
grep -q '^ExecStart=/usr/bin/spand' "$work/lib/systemd/system/spand.service"
dpkg-deb -f "$deb" Depends | grep -q libmicrohttpd
"$work/usr/bin/spand" serve --config "$work/etc/spand/spand.json" \
    --model "$work/usr/share/spand/models/demo-llama" --port 0 >"$work/out" 2>&1 &
pid=$!
for _ in $(seq 600); do
    url=$(sed -n 's/^listening on //p' "$work/out")
    [ -z "$url" ] || break
    kill -0 "$pid" || { cat "$work/out" >&2; exit 1; }
    sleep 0.1
done
curl -sS --fail "$url/v1/completions" -H 'Content-Type: application/json' \
    -d '{"model":"demo-llama","prompt":"The","max_tokens":4}' | grep -q '"text"'
kill "$pid"
wait "$pid"
pid=
echo "test_deb: $(basename "$deb") serves"

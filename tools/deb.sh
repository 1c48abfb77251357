#!/bin/sh
# Builds the Debian package from what `make install` installs: deb.sh BUILD VERSION MAKE.
set -eu
build=$1 version=$2 make=$3
root=$build/deb/root
meta=$build/deb/meta
for tool in dpkg-deb dpkg-shlibdeps; do
    command -v $tool >/dev/null || {
        echo "deb: $tool is missing (Debian: dpkg-dev)" >&2
        exit 1
    }
done
rm -rf "$build/deb"
mkdir -p "$root/DEBIAN" "$meta/debian"
$make --no-print-directory install DESTDIR="$root" PREFIX=/usr >/dev/null
strip --strip-unneeded "$root/usr/bin/spand" "$root/usr/bin/spand-bench"

# dpkg-shlibdeps reads the packages' names from debian/control.
printf 'Source: spand\n\nPackage: spand\nArchitecture: any\n' >"$meta/debian/control"
root_abs=$(realpath "$root")
depends=$(cd "$meta" && dpkg-shlibdeps -O --ignore-missing-info "$root_abs/usr/bin/spand" "$root_abs/usr/bin/spand-bench" 2>/dev/null |
    sed -n 's/^shlibs:Depends=//p')
arch=$(dpkg --print-architecture)

cat >"$root/DEBIAN/control" <<END
Package: spand
Version: $version
Architecture: $arch
Maintainer: the spand developers <spand@localhost>
Section: net
Priority: optional
Depends: $depends
Recommends: adduser, systemd
Installed-Size: $(du -sk "$root" | cut -f1)
Description: OpenAI-compatible LLM inference daemon
 Serves Llama-family models over HTTP with continuous batching, paged and span-limited
 key-value memory, Prometheus metrics and a hardened systemd unit. A small model is
 included, so the service answers as soon as it is started.
END
printf '/etc/spand/spand.json\n' >"$root/DEBIAN/conffiles"
cat >"$root/DEBIAN/postinst" <<'END'
#!/bin/sh
set -e
if [ "$1" = configure ]; then
    command -v systemd-sysusers >/dev/null && systemd-sysusers spand.conf || true
    command -v systemd-tmpfiles >/dev/null && systemd-tmpfiles --create spand.conf || true
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload
        systemctl try-restart spand.service
    fi
fi
END
cat >"$root/DEBIAN/prerm" <<'END'
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    systemctl stop spand.socket spand.service
fi
END
cat >"$root/DEBIAN/postrm" <<'END'
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi
END
chmod 755 "$root/DEBIAN/postinst" "$root/DEBIAN/prerm" "$root/DEBIAN/postrm"
(cd "$root" && find usr lib etc -type f ! -path 'etc/*' -exec md5sum {} + >DEBIAN/md5sums)
dpkg-deb --root-owner-group -Zxz --build "$root" "$build/spand_${version}_$arch.deb"

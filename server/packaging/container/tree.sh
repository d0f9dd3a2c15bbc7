#!/bin/sh
# What the image holds, as a folder: server/packaging/container/tree.sh FOLDER
#
# Both programs are linked statically with glibc, which resolves names by files and DNS without libraries of its own since 2.34; an older one is
# refused, because its programs start and then find no host. Needs the Rust toolchain and a C compiler.
set -eu
cd "$(dirname "$0")/../../.."
folder=${1:?usage: tree.sh FOLDER}
target=$(rustc -vV | sed -n 's/^host: //p')
case $target in
    *-linux-gnu)
        version=$(getconf GNU_LIBC_VERSION | cut -d' ' -f2)
        if [ "$(printf '%s\n2.34\n' "$version" | sort -V | head -n 1)" != 2.34 ]; then
            echo "tree.sh: glibc $version is older than 2.34: static programs would resolve no names" >&2
            exit 1
        fi
        ;;
    *-linux-musl) ;;
    *) echo "tree.sh: no static programs for $target" >&2; exit 1 ;;
esac
# The flag would reach build scripts as well, which are not static, if no target were named.
RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" \
    cargo build --release --target "$target" -p sternpost-server -p sternpost-tools --bin sternpost --bin sternctl >&2
built=${CARGO_TARGET_DIR:-target}/$target/release
mkdir -p "$folder/usr/local/bin" "$folder/var/lib/sternpost" "$folder/tmp"
chmod 1777 "$folder/tmp"
for program in sternpost sternctl; do
    install -s -m 755 "$built/$program" "$folder/usr/local/bin/$program"
done
ln -f "$folder/usr/local/bin/sternpost" "$folder/usr/local/bin/etcd"
du -sh "$folder" >&2

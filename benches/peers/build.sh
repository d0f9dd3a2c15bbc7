#!/bin/sh
# Builds the real etcd, etcdctl and etcdutl, in the versions that go.mod pins, from the Go module proxy.
#
#   benches/peers/build.sh             builds what is missing, prints the folder that holds the programs
#
# The folder is $STERNPOST_PEERS, or ${XDG_CACHE_HOME:-~/.cache}/sternpost/peers. A second run is immediate: the file
# `built` there holds the checksum of go.mod and go.sum that the programs were made from. Progress goes to stderr, so that
# `PEERS=$(benches/peers/build.sh)` works. Needs Go 1.26 and, for the first run, the network; ends with 1 if it cannot build.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${STERNPOST_PEERS:-${XDG_CACHE_HOME:-$HOME/.cache}/sternpost/peers}
mkdir -p "$folder"
want=$(cat "$here/go.mod" "$here/go.sum" | sha256sum | cut -d' ' -f1)

if [ "$(cat "$folder/built" 2>/dev/null || true)" = "$want" ] &&
    [ -x "$folder/etcd" ] && [ -x "$folder/etcdctl" ] && [ -x "$folder/etcdutl" ]; then
    echo "$folder"
    exit 0
fi
if ! command -v go >/dev/null; then
    echo "peers: Go is not installed, so the real etcd cannot be built" >&2
    exit 1
fi

# Each program appears under its name only when it is complete: a reader never starts half a file.
build() {
    echo "peers: building $1 ($(cd "$here" && go list -m "$2"))" >&2
    (cd "$here" && CGO_ENABLED=0 go build -mod=readonly -trimpath -buildvcs=false -ldflags '-s -w' -o "$folder/.$1.$$" "$2") >&2
    mv "$folder/.$1.$$" "$folder/$1"
}
rm -f "$folder/built"
build etcdctl go.etcd.io/etcd/etcdctl/v3
build etcdutl go.etcd.io/etcd/etcdutl/v3
build etcd go.etcd.io/etcd/server/v3
echo "$want" >"$folder/built"
echo "$folder"

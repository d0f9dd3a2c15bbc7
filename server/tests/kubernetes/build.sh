#!/bin/sh
# Builds kube-apiserver, kube-controller-manager, kubeadm and kubectl, in the version that go.mod pins, from the Go module proxy.
#
#   server/tests/kubernetes/build.sh   builds what is missing, prints the folder that holds the programs
#
# The folder is $STERNPOST_KUBERNETES, or ${XDG_CACHE_HOME:-~/.cache}/sternpost/kubernetes. A second run is immediate: the file `built`
# there holds the checksum of go.mod and go.sum that the programs were made from. Kubernetes replaces its own parts by folders
# of its repository, which a module cannot do for another one: go.mod names the same parts as they are published. Takes about ten minutes of two
# processors and 2 GB in Go's caches; needs Go 1.26 and, for the first run, the network; ends with 1 if it cannot build.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${STERNPOST_KUBERNETES:-${XDG_CACHE_HOME:-$HOME/.cache}/sternpost/kubernetes}
mkdir -p "$folder"
want=$(cat "$here/go.mod" "$here/go.sum" | sha256sum | cut -d' ' -f1)
programs="kube-apiserver kube-controller-manager kubeadm kubectl"

is_complete() {
    [ "$(cat "$folder/built" 2>/dev/null || true)" = "$want" ] || return 1
    for program in $programs; do [ -x "$folder/$program" ] || return 1; done
}
if is_complete; then
    echo "$folder"
    exit 0
fi
if ! command -v go >/dev/null; then
    echo "kubernetes: Go is not installed, so its programs cannot be built" >&2
    exit 1
fi

# The version that the programs tell of themselves; features depend on it. Without it they call themselves v0.0.0.
version=$(cd "$here" && go list -m -f '{{.Version}}' k8s.io/kubernetes)
minor=$(echo "$version" | cut -d. -f2)
stamp=k8s.io/component-base/version
rm -f "$folder/built"
# Each program appears under its name only when it is complete: a reader never starts half a file.
for program in $programs; do
    echo "kubernetes: building $program $version" >&2
    (cd "$here" && CGO_ENABLED=0 go build -mod=readonly -trimpath -buildvcs=false \
        -ldflags "-s -w -X $stamp.gitVersion=$version -X $stamp.gitMajor=1 -X $stamp.gitMinor=$minor" \
        -o "$folder/.$program.$$" "k8s.io/kubernetes/cmd/$program") >&2
    mv "$folder/.$program.$$" "$folder/$program"
done
echo "$want" >"$folder/built"
echo "$folder"

#!/bin/sh
# Installs the clients that tests/clients.rs drives: those of Go, Python, Node, Java and Rust, and etcdctl.
#
#   server/tests/clients/install.sh    installs what is missing, prints the folder
#
# The folder is $STERNPOST_CLIENTS, or ${XDG_CACHE_HOME:-~/.cache}/sternpost/clients; etcdctl goes where benches/peers/build.sh
# puts it. Versions are pinned by the files beside this one. Each part is skipped when it was made from the files as they are
# now, and left out, with a word about it, when its runtime is missing; the tests then skip it too, or fail when
# STERNPOST_REQUIRE_CLIENTS=1. A part that fails to install ends the script with 1.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${STERNPOST_CLIENTS:-${XDG_CACHE_HOME:-$HOME/.cache}/sternpost/clients}
mkdir -p "$folder"

# stamp NAME FILES…: the checksum that the part's mark must hold.
stamp() {
    name=$1
    shift
    (cd "$here/$name" && cat "$@" "$here/install.sh") | sha256sum | cut -d' ' -f1
}
is_made() { [ "$(cat "$folder/$1.made" 2>/dev/null || true)" = "$2" ]; }
missing() { echo "clients: no $1 here, so its client is left out" >&2; }

if command -v go >/dev/null; then
    "$here/../../../benches/peers/build.sh" >/dev/null
    want=$(stamp go main.go go.mod go.sum)
    if ! is_made go "$want"; then
        echo "clients: building the Go client" >&2
        (cd "$here/go" && CGO_ENABLED=0 go build -mod=readonly -buildvcs=false -o "$folder/client-go" .) >&2
        echo "$want" >"$folder/go.made"
    fi
else
    missing go
fi

if command -v python3 >/dev/null; then
    want=$(stamp python requirements.txt client.py gateway_client.py)
    if ! is_made python "$want"; then
        echo "clients: installing the Python client" >&2
        rm -rf "$folder/python"
        python3 -m venv "$folder/python" >&2
        "$folder/python/bin/pip" install --quiet --disable-pip-version-check -r "$here/python/requirements.txt" >&2
        cp "$here/python/client.py" "$here/python/gateway_client.py" "$folder/python/"
        echo "$want" >"$folder/python.made"
    fi
else
    missing python3
fi

if command -v npm >/dev/null; then
    want=$(stamp node package.json package-lock.json client.js)
    if ! is_made node "$want"; then
        echo "clients: installing the Node client" >&2
        mkdir -p "$folder/node"
        cp "$here/node/package.json" "$here/node/package-lock.json" "$here/node/client.js" "$folder/node/"
        (cd "$folder/node" && npm ci --silent --no-audit --no-fund --ignore-scripts) >&2
        echo "$want" >"$folder/node.made"
    fi
else
    missing npm
fi

if command -v mvn >/dev/null && command -v javac >/dev/null; then
    want=$(stamp java pom.xml Main.java)
    if ! is_made java "$want"; then
        echo "clients: installing the Java client" >&2
        rm -rf "$folder/java"
        mkdir -p "$folder/java"
        mvn -q -B -f "$here/java/pom.xml" dependency:copy-dependencies -DoutputDirectory="$folder/java/lib" >&2
        javac -cp "$folder/java/lib/*" -d "$folder/java/classes" "$here/java/Main.java" >&2
        echo "$want" >"$folder/java.made"
    fi
else
    missing mvn
fi

want=$(stamp rust Cargo.toml Cargo.lock src/main.rs)
if ! is_made rust "$want"; then
    echo "clients: building the Rust client" >&2
    # etcd-client's build script wants protoc; protox is the same in Rust.
    if ! [ -x "$folder/protox/bin/protox" ]; then
        CARGO_TARGET_DIR="$folder/target" cargo install --quiet --locked --root "$folder/protox" --features bin protox@0.10.0 >&2
    fi
    (cd "$here/rust" && PROTOC="$folder/protox/bin/protox" CARGO_TARGET_DIR="$folder/target" cargo build --quiet --locked) >&2
    cp "$folder/target/debug/sternpost-client-rust" "$folder/client-rust"
    rm -rf "$folder/target"
    echo "$want" >"$folder/rust.made"
fi
echo "$folder"

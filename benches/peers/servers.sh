# What the scripts share that run etcd and sternpost in turn: sourced by them, with their arguments [KEYS] [VALUE_BYTES] [DIRECTORY].
# Sets keys, value_bytes, directory, root, peers, endpoint, ctl (etcdctl), data (a directory that goes away at the end) and server (the process).
# Needs benches/peers/build.sh and a release build.
keys=${1:-1000000}
value_bytes=${2:-256}
directory=${3:-.}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
peers=${STERNPOST_PEERS:-$HOME/.cache/sternpost/peers}
endpoint=http://127.0.0.1:23790
ctl=("$peers/etcdctl" --endpoints "$endpoint" --command-timeout 600s)
data=$(mktemp -d "$directory/peers-XXXXXX")
server=
trap '[ -z "$server" ] || kill -9 "$server" 2>/dev/null || true; rm -rf "$data"' EXIT

# Starts a server, a command with its options, on $data/d, and waits for its answer to a linearizable get.
start() {
    "$@" --data-dir "$data/d" --quota-backend-bytes 8589934592 \
        --listen-client-urls "$endpoint" --advertise-client-urls "$endpoint" > "$data/log" 2>&1 &
    server=$!
    local deadline=$((SECONDS + 300))
    until "${ctl[@]}" --dial-timeout 1s get first --keys-only > "$data/get" 2>&1; do
        [ $SECONDS -lt $deadline ] || { echo "no answer in 300 s:"; tail -5 "$data/log"; exit 1; }
    done
}

# Ends it with a signal, by default the one that asks for it.
stop() {
    kill "-${1:-TERM}" "$server"
    wait "$server" 2> /dev/null || true
    server=
}

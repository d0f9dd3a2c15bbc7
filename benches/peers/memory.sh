#!/usr/bin/env bash
# Anonymous memory of etcd and sternpost with 50,000 and with KEYS keys, each started anew behind a clean stop: at once, and once 10 s of
# random gets were answered. What a million keys take is the slope between the two. memory.sh [KEYS] [VALUE_BYTES] [DIRECTORY].
# Sternpost runs with a cache of 16 MiB, which the gets fill at either size. Needs benches/peers/build.sh and a release build.
set -euo pipefail
keys=${1:-1000000}
value_bytes=${2:-256}
directory=${3:-.}
root=$(cd "$(dirname "$0")/../.." && pwd)
peers=${STERNPOST_PEERS:-$HOME/.cache/sternpost/peers}
bench=("$root/target/release/sternctl" --endpoints http://127.0.0.1:23790 bench)
ctl=("$peers/etcdctl" --endpoints http://127.0.0.1:23790 --command-timeout 600s)
data=$(mktemp -d "$directory/memory-XXXXXX")
server=
trap '[ -z "$server" ] || kill -9 "$server" 2>/dev/null || true; rm -rf "$data"' EXIT

start() {
    "$@" --data-dir "$data/d" --quota-backend-bytes 8589934592 \
        --listen-client-urls http://127.0.0.1:23790 --advertise-client-urls http://127.0.0.1:23790 \
        > "$data/log" 2>&1 &
    server=$!
    local deadline=$((SECONDS + 300))
    until "${ctl[@]}" --dial-timeout 1s get first --keys-only > "$data/get" 2>&1; do
        [ $SECONDS -lt $deadline ] || { echo "no answer in 300 s:"; tail -5 "$data/log"; exit 1; }
    done
}

stop() {
    kill "$server"
    wait "$server" 2> /dev/null || true
    server=
}

anonymous_kib() { sed -n 's/^RssAnon:\s*\([0-9]*\) kB/\1/p' "/proc/$server/status"; }

for program in etcd sternpost; do
    case $program in
        etcd) command=("$peers/etcd") ;;
        sternpost) command=("$root/target/release/sternpost" --cache-bytes 16777216) ;;
    esac
    before=
    for count in 50000 "$keys"; do
        rm -rf "$data/d"
        start "${command[@]}"
        "${bench[@]}" put --key-space "$count" --value-size "$value_bytes" --clients 64 --conns 8 --quiet --total "$count" --sequential-keys --warm-up 0s > "$data/bench" 2>&1
        stop
        start "${command[@]}"
        started=$(anonymous_kib)
        "${bench[@]}" range --preload false --key-space "$count" --clients 64 --conns 8 --quiet --duration 10s --warm-up 0s > "$data/bench" 2>&1
        read=$(anonymous_kib)
        stop
        awk -v program="$program" -v count="$count" -v started="$started" -v read="$read" -v before="$before" 'BEGIN {
            printf "%s, %d keys: started %.1f MiB, behind gets %.1f MiB", program, count, started / 1024, read / 1024
            split(before, small, " ")
            if (small[1]) printf "; %.1f and %.1f MiB a million keys", (started - small[2]) / 1024 / (count - small[1]) * 1e6, (read - small[3]) / 1024 / (count - small[1]) * 1e6
            print "" }'
        before="$count $started $read"
    done
done

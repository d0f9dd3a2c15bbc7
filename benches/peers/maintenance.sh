#!/usr/bin/env bash
# etcd and sternpost in turn: puts at a fixed rate while a million versions are compacted (and etcd is defragmented), disk space,
# and a start after kill -9. maintenance.sh [KEYS] [VALUE_BYTES] [DIRECTORY]. Needs benches/peers/build.sh and a release build.
# KEYS keys are put in order, then as many puts to random ones of them. The disk should be otherwise idle.
set -euo pipefail
source "$(dirname "$0")/servers.sh"
rate=5000
bench=("$root/target/release/sternctl" --endpoints "$endpoint" bench put --key-space "$keys" --value-size "$value_bytes" --clients 64 --conns 8 --quiet)

milliseconds() { date +%s%3N; }

# Puts at the rate for so many seconds, and what the tool says of them.
at_rate() {
    "${bench[@]}" --rate $rate --duration "$1" --warm-up 0s 2>&1 | grep -E "count +p50|latency" | sed "s/^/  $2: /"
}

space() { echo "  disk, $1: $(du -sm "$data/d" | cut -f1) MiB"; }

for program in "$peers/etcd" "$root/target/release/sternpost"; do
    name=$(basename "$program")
    echo "$name"
    start "$program"
    "${bench[@]}" --total "$keys" --sequential-keys --warm-up 0s 2>&1 | grep "operations in" | sed 's/^/  load: /'
    "${bench[@]}" --total "$keys" --warm-up 0s 2>&1 | grep "operations in" | sed 's/^/  overwrites: /'
    space "behind the overwrites"
    at_rate 15s "puts, nothing else"
    revision=$("${ctl[@]}" get first -w json | sed 's/.*"revision":\([0-9]*\).*/\1/')
    at_rate 30s "puts, a compaction" &
    load=$!
    "${ctl[@]}" compact "$revision" > "$data/compact"
    wait $load
    space "behind the compaction"
    if [ "$name" = etcd ]; then
        at_rate 20s "puts, a defragmentation" &
        load=$!
        "${ctl[@]}" defrag > "$data/defrag"
        wait $load
        space "behind the defragmentation"
    fi
    stop KILL
    begun=$(milliseconds)
    start "$program"
    echo "  kill -9, then from exec to a get: $(($(milliseconds) - begun)) ms"
    echo "  resident: $(sed -n 's/^VmRSS:\s*//p' /proc/$server/status)"
    stop KILL
    rm -rf "$data/d"
done

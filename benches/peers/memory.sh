#!/usr/bin/env bash
# Anonymous memory of etcd and sternpost with FIRST_KEYS, 50,000, and with KEYS keys, each started anew behind a clean stop: at once, and once 10 s of
# random gets were answered. What a million keys take is the slope between the two. memory.sh [KEYS] [VALUE_BYTES] [DIRECTORY].
# Sternpost runs with a cache of 16 MiB, which 50,000 keys do not fill: FIRST_KEYS=500000 leaves it out of the slope. PROGRAMS="sternpost"
# leaves etcd out. Needs benches/peers/build.sh and a release build.
set -euo pipefail
source "$(dirname "$0")/servers.sh"
bench=("$root/target/release/sternctl" --endpoints "$endpoint" bench)

anonymous_kib() { sed -n 's/^RssAnon:\s*\([0-9]*\) kB/\1/p' "/proc/$server/status"; }

for program in ${PROGRAMS:-etcd sternpost}; do
    case $program in
        etcd) command=("$peers/etcd") ;;
        sternpost) command=("$root/target/release/sternpost" --cache-bytes 16777216) ;;
    esac
    before=
    for count in "${FIRST_KEYS:-50000}" "$keys"; do
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

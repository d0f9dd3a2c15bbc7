#!/usr/bin/env bash
# How long a member that was away needs until it has what the others have, and what clients of the leader notice of it.
#
#   benches/catch_up.sh [MIB_MISSED [BYTES_PER_SECOND [DIRECTORY [BYTES_PER_SECOND_MIN]]]]
#
# Three members; one is killed; MIB_MISSED MiB of random values of 64 KiB are put; it is started again, killed once more when half of the
# time is over that the copy takes at BYTES_PER_SECOND (0: no limit, and no second kill), and started again. Meanwhile puts of 256 bytes at a fixed
# rate go to the other two, as they did before. The rate of the copy is fixed unless BYTES_PER_SECOND_MIN is less. Printed: seconds until it has applied what the leader has, what the copy alone would
# take, and latencies of the puts before and meanwhile. In the end the members' hashes are compared.
set -euo pipefail
cd "$(dirname "$0")/.."
mib=${1:-5120}
rate=${2:-50000000}
directory=${3:-./catch-up.tmp}
least=${4:-$rate}
binary=${STERNPOST:-target/release/sternpost}
ctl=${STERNCTL:-target/release/sternctl}
puts_rate=500
cluster=c1=http://127.0.0.1:41380,c2=http://127.0.0.1:41381,c3=http://127.0.0.1:41382
both=127.0.0.1:41370,127.0.0.1:41371
declare -A pids=()

start() {
    "$binary" --name="c$1" --data-dir="$directory/c$1" --quota-backend-bytes=68719476736 \
        --listen-client-urls="http://127.0.0.1:4137$(($1 - 1))" --advertise-client-urls="http://127.0.0.1:4137$(($1 - 1))" \
        --listen-peer-urls="http://127.0.0.1:4138$(($1 - 1))" --initial-advertise-peer-urls="http://127.0.0.1:4138$(($1 - 1))" \
        --initial-cluster="$cluster" --initial-cluster-token=catch-up --state-bytes-per-second="$rate" --state-bytes-per-second-min="$least" \
        2>>"$directory/c$1.log" &
    pids[$1]=$!
}
status() { # member, field
    "$ctl" --endpoints="127.0.0.1:4137$(($1 - 1))" --command-timeout=2s -w json endpoint status 2>/dev/null |
        grep -o "\"$2\":[0-9]*" | head -1 | cut -d: -f2
}
now() { date +%s.%N; }
since() { awk "BEGIN { printf \"%.1f\", $(now) - $1 }"; }
puts() { # seconds; prints the latencies
    "$ctl" --endpoints="$both" bench put --clients 8 --conns 8 --rate "$puts_rate" --duration "${1}s" --value-size 256 "${@:2}"
}
stop() {
    kill -9 "${pids[@]}" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$directory"
}
trap stop EXIT

rm -rf "$directory" && mkdir -p "$directory"
for member in 1 2 3; do start "$member"; done
until "$ctl" --endpoints="$both" --command-timeout=1s put ready 1 >/dev/null 2>&1; do sleep 0.1; done
leader=$(status 1 leader)
for away in 3 2 1; do [ "$(status "$away" member_id)" = "$leader" ] || break; done
[ "$away" = 3 ] || both=$(echo 127.0.0.1:41370,127.0.0.1:41371,127.0.0.1:41372 | sed "s/,*127.0.0.1:4137$((away - 1))//; s/^,//")
echo "member $away goes; $mib MiB are put"
kill -9 "${pids[$away]}"; wait "${pids[$away]}" 2>/dev/null || true
"$ctl" --endpoints="$both" bench put --clients 16 --conns 4 --total $((mib * 16)) --value-size 65536 --key-space $((mib * 16)) \
    --sequential-keys >"$directory/load.txt" 2>&1 || { cat "$directory/load.txt"; exit 1; }
sleep 10 # Checkpoints of the load end.
stays=$((away == 1 ? 2 : 1))
bytes=$(du -sb "$directory/c$stays/seg" | cut -f1)
echo "state of $bytes bytes; puts before:"
puts 20

expected=$(awk "BEGIN { printf \"%.1f\", $rate ? $bytes / $rate : 0 }")
begun=$(now)
start "$away"
(while [ ! -e "$directory/done" ]; do puts 10; done) >"$directory/meanwhile.txt" 2>&1 &
load=$!
if [ "$rate" != 0 ]; then
    sleep "$(awk "BEGIN { print $bytes / $rate / 2 }")"
    kill -9 "${pids[$away]}"; wait "${pids[$away]}" 2>/dev/null || true
    echo "killed again after $(since "$begun") s"
    start "$away"
fi
while :; do
    wanted=$(status "$stays" raftAppliedIndex) && has=$(status "$away" raftAppliedIndex) || has=0
    [ "${has:-0}" -gt 0 ] && [ "${has:-0}" -ge $((wanted - puts_rate / 4)) ] && break
    sleep 0.1
done
echo "caught up after $(since "$begun") s; the copy alone takes $expected s at $rate bytes a second"
touch "$directory/done"
wait "$load"
echo "puts meanwhile, for 10 s each:"
cat "$directory/meanwhile.txt"
grep -hE 'fetched the state|fetching the state' "$directory/c$away.log" | grep -o '"msg".*'
export ETCDCTL_ENDPOINTS=127.0.0.1:41370,127.0.0.1:41371,127.0.0.1:41372
"${ETCDCTL:-$HOME/.cache/sternpost/peers/etcdctl}" --command-timeout=300s endpoint hashkv --cluster

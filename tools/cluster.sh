#!/bin/sh
# Starts three members on this machine: clients on ports 2379, 22379 and 32379, data in ./cluster.etcd or the directory given.
# Ends all three on Ctrl-C.
set -eu
directory=${1:-./cluster.etcd}
binary=${STERNPOST:-target/release/sternpost}
cluster=m1=http://127.0.0.1:2380,m2=http://127.0.0.1:22380,m3=http://127.0.0.1:32380
mkdir -p "$directory"
pids=
start() {
    "$binary" --name="$1" --data-dir="$directory/$1" \
        --listen-client-urls="http://127.0.0.1:$2" --advertise-client-urls="http://127.0.0.1:$2" \
        --listen-peer-urls="http://127.0.0.1:$3" --initial-advertise-peer-urls="http://127.0.0.1:$3" \
        --initial-cluster="$cluster" --initial-cluster-token=local --initial-cluster-state=new \
        2>"$directory/$1.log" &
    pids="$pids $!"
}
start m1 2379 2380
start m2 22379 22380
start m3 32379 32380
# shellcheck disable=SC2086
trap 'kill $pids 2>/dev/null' INT TERM
echo "three members run, their logs are $directory/m1.log and so on; ask them:"
echo "  sternctl --endpoints=127.0.0.1:2379,127.0.0.1:22379,127.0.0.1:32379 endpoint status"
wait

#!/usr/bin/env bash
# Runs `store` in a group of processes with a limit of memory, which the kernel enforces: limited.sh MIB ARGUMENTS…
# Needs root, and control groups of either version.
set -euo pipefail
mib=$1
shift
program=${STORE:-$(dirname "$0")/../../target/release/store}
if [ -d /sys/fs/cgroup/memory ]; then
    group=/sys/fs/cgroup/memory/sternpost-store-$$
    mkdir "$group"
    echo $((mib << 20)) > "$group/memory.limit_in_bytes"
else
    group=/sys/fs/cgroup/sternpost-store-$$
    mkdir "$group"
    echo $((mib << 20)) > "$group/memory.max"
fi
trap 'rmdir "$group"' EXIT
bash -c 'echo $$ > "$0/cgroup.procs" && exec "$@"' "$group" "$program" "$@"

#!/usr/bin/env bash
# The reclaim bench on a disk that reads 150 MB/s, beside 700 MB of memory: what is
# read twice is read from the disk twice. Needs root and the block device of the
# data (/tmp); where a limit can't be set, it says so and goes on without it.
#
#     bash benches/slow-disk.sh [ROWS] [runs=N] [CONTENDER]...
set -eu
cd "$(dirname "$0")/.."
memory=$((700 << 20)) reads=$((150 << 20))
cargo bench --bench reclaim --no-run

can() { # FILE VALUE: says whether it could be set.
    if (echo "$2" >"$1") 2>/dev/null; then echo "limited: $1 <- $2"; else echo "could not limit: $1 <- $2"; fi
}
group() { mkdir -p "$@" 2>/dev/null || echo "could not make the groups: $*"; }
# The device that holds the data: throttles take whole disks, not partitions.
source=$(df --output=source "${TMPDIR:-/tmp}" | tail -1)
disk=$(lsblk -no PKNAME "$source" 2>/dev/null | head -1)
device=$(lsblk -ndo MAJ:MIN "${disk:+/dev/}${disk:-$source}" 2>/dev/null | tr -d ' ')
root=/sys/fs/cgroup
if [ -e $root/cgroup.controllers ]; then
    group=$root/opsward-slow-disk
    group $group
    can $root/cgroup.subtree_control "+memory +io"
    can $group/memory.max $memory
    can $group/io.max "$device rbps=$reads"
    can $group/cgroup.procs $$
else
    group $root/memory/opsward-slow-disk $root/blkio/opsward-slow-disk
    can $root/memory/opsward-slow-disk/memory.limit_in_bytes $memory
    can $root/blkio/opsward-slow-disk/blkio.throttle.read_bps_device "$device $reads"
    can $root/memory/opsward-slow-disk/tasks $$
    can $root/blkio/opsward-slow-disk/tasks $$
fi
export SLOW_DISK=1
if [ $# = 0 ]; then set -- create-table-as pg_repack swap by-hand in-place; fi
exec cargo bench --bench reclaim -- "$@"

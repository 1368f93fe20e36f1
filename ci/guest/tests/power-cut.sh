#!/usr/bin/env bash
# Everything that a real node writes to its block device is logged (dm-log-writes) under the stamped
# exerciser. At each flush and FUA write of the log, and with any part of what was in flight, the store is opened
# as after a power cut: what the guest had flushed is there and nothing is torn.
# guests: uml
# limit: 300
. "$(dirname "$0")/lib.sh"
device_bytes=$((160 << 20))
begin
# A device with a cache, FUA and discard, and room for the log; both in memory.
memory_device() { # NAME MIB: sets `memory` to its path
	local dir=/sys/kernel/config/nullb/$1
	mkdir "$dir"
	echo 1 >"$dir/memory_backed"
	echo 1 >"$dir/discard"
	echo 1 >"$dir/cache_size"
	echo "$2" >"$dir/size"
	echo 1 >"$dir/power"
	memory=/dev/$1
}
mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config
memory_device cutdisk $((device_bytes >> 20))
disk=$memory
memory_device cutlog 1200
log=$memory
export DM_DISABLE_UDEV=1
dmsetup create cut --table "0 $((device_bytes / 512)) log-writes $disk $log"
[ "$(cat /sys/block/dm-0/queue/fua)" = 1 ] || die "the device does no FUA"

# A node on the raw device, alone, so that what it says is all that the guest has.
ln -s /dev/mapper/cut "$cluster/nodes/a1"
node_create a1 site-a ""
# Nothing may go through the page cache: a write that the device refuses would be answered as done.
for file in "/proc/${NODE_PID[a1]}"/fd/*; do
	[ "$(readlink "$file")" = /dev/mapper/cut ] || continue
	flags=$(awk '$1 == "flags:" { print $2 }' "/proc/${NODE_PID[a1]}/fdinfo/$(basename "$file")")
	[ $((8#$flags & 8#40000)) != 0 ] || die "the node uses the device without O_DIRECT: flags $flags"
done
tools volume create disk --size 24MiB --chunk 4MiB --place site-a:1
attach disk
# Marks tell how much of the history lay before: see ci/powercut/src/past.rs.
cat >"$scratch/mark" <<-EOF
	dmsetup message cut 0 mark "lines=\$(wc -l <$scratch/history)"
EOF
: >"$scratch/history"
bash "$scratch/mark"
"$bin/ukai-fsx" run "$device" --seed 1 --threads 3 --operations 500 --history "$scratch/history" \
	--on-flush "bash $scratch/mark"
front_detach disk
node_stop a1
dmsetup remove cut
# In UML each page that the allocator takes from the kernel anew is expensive.
export MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TRIM_THRESHOLD_=2000000000 MALLOC_TOP_PAD_=67108864
replay() {
	"$bin/ukai-powercut" "$log" --device-bytes $device_bytes --history "$scratch/history" --volume-bytes $((24 << 20)) \
		--chunk-bytes $((4 << 20)) --volume-id "$(tools --json volume show disk | json - 'd["id"]')" "$@"
}
replay --moments "${UKAI_MOMENTS:-80}"
# The check can fail: a disk that loses part of what it flushed does not pass.
! replay --moments 20 --canary 2>"$scratch/log/canary" || die "a lying disk passed"
tail -2 "$scratch/log/canary" | cut -c 1-160

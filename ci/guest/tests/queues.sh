#!/usr/bin/env bash
# Two queues on two CPUs: both are there, and I/O from both CPUs is right.
# guests: new
# limit: 400
. "$(dirname "$0")/lib.sh"
begin
two_nodes
volume_create disk 128MiB
attach disk --queues 2 --depth 64
name=$(basename "$device")
queues=$(ls -d "/sys/block/$name/mq/"[0-9]* | wc -l)
[ "$queues" = 2 ] || die "$queues hardware queues instead of 2"
for queue in "/sys/block/$name/mq/"[0-9]*; do say "queue $(basename "$queue"): CPUs $(cat "$queue/cpu_list")"; done
check_fio --name=both --ioengine=libaio --filename="$device" --rw=randwrite --bs=4k --iodepth=16 --numjobs=2 --size=8m \
	--offset_increment=32m --cpus_allowed=0,1 --cpus_allowed_policy=split --verify=crc32c
# The same blocks from both queues: the last word must be one of the two and the same on both copies.
fio --name=fight --filename="$device" --rw=randwrite --bs=4k --iodepth=16 --numjobs=2 --size=1m --offset=100m \
	--cpus_allowed=0,1 --cpus_allowed_policy=split --direct=1 --ioengine=io_uring --loops=4 >/dev/null
front_detach disk
expect_no_device
equal_from_each_node disk a1 b1

#!/usr/bin/env bash
# fio random writes of many sizes with verify, with flushes and FUA between them.
# guests: uml
# limit: 300
. "$(dirname "$0")/lib.sh"
begin
two_nodes
volume_create disk 256MiB
attach disk
check_fio --name=small --ioengine=libaio --filename="$device" --rw=randwrite --bs=4k --iodepth=32 --size=32m --verify=crc32c
check_fio --name=mixed --ioengine=libaio --filename="$device" --rw=randwrite --bsrange=4k-1m --blockalign=4k --iodepth=16 \
	--offset=64m --size=128m --verify=crc32c --fdatasync=16
check_fio --name=sync --ioengine=libaio --filename="$device" --rw=randwrite --bs=8k --iodepth=1 --size=4m --offset=200m \
	--sync=1 --verify=crc32c
check_fio --name=deep --ioengine=libaio --filename="$device" --rw=randrw --bs=4k --iodepth=128 --size=16m --offset=208m \
	--verify=crc32c --verify_backlog=512
front_detach disk
equal_from_each_node disk a1 b1

#!/usr/bin/env bash
# kill -9 of the front under fio verify load; started again, I/O goes on and nothing is lost.
# On a 7.x kernel, where the driver's reissue is sound; see docs/operations.md about 6.12.
# guests: new
# limit: 500
. "$(dirname "$0")/lib.sh"
begin
two_nodes
volume_create disk 128MiB
attach disk
first=$device
load_start --ioengine=libaio --filename="$device" --size=24m
for round in 1 2 3; do
	more_load 4000 "before kill $round"
	in_flight=$(awk '{ print $1 " reads and " $2 " writes" }' "/sys/block/$(basename "$first")/inflight")
	front_kill disk
	say "killed the front with about $in_flight in flight"
	attach disk
	[ "$device" = "$first" ] || die "recovered as $device instead of $first"
done
more_load 4000 "after the last recovery"
load_stop
front_detach disk
expect_no_device
equal_from_each_node disk a1 b1

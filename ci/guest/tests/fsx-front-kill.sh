#!/usr/bin/env bash
# kill -9 of the front under the stamped exerciser, and of a node meanwhile: no error, nothing wrong is
# read. On a 7.x kernel; see docs/ublk-recovery.md about 6.12.
# guests: new
# limit: 400
. "$(dirname "$0")/lib.sh"
begin
two_nodes
volume_create disk 32MiB
attach disk
first=$device
fsx_start 1
for round in 1 2 3; do
	more_load 2000 "before kill $round"
	if [ $round = 2 ]; then node_kill b1; fi
	front_kill disk
	attach disk
	[ "$device" = "$first" ] || die "recovered as $device instead of $first"
	say "front killed and back, round $round"
done
node_start b1
wait_in_sync disk 120
more_load 2000 "after the last recovery"
fsx_stop
front_detach disk
expect_no_device
equal_from_each_node disk a1 b1

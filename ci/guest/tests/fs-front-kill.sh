#!/usr/bin/env bash
# ext4 and xfs under a metadata-heavy load, three times each: the front is killed and takes its device over
# again, the load goes on; it is killed again and the device given up. On the volume attached anew
# the journal replays, what was synced is there, and fsck finds nothing.
# guests: new
# limit: 800
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/fs-lib.sh"
begin
two_nodes
volume_create disk 384MiB
attach disk
for kind in ext4 xfs; do
	make_fs $kind
	for round in 1 2 3; do
		mount "$device" /mnt/disk
		fs_load_start $round
		fs_load_runs_on "before the kill"
		front_kill disk
		attach disk
		fs_load_runs_on "after the recovery"
		front_kill disk
		fs_gone
		attach disk
		fs_check $kind
	done
done
front_detach disk
expect_no_device
equal_from_each_node disk a1 b1

#!/usr/bin/env bash
# ext4 and xfs under a metadata-heavy load, three times each: a node is killed and the load goes on; then the
# device goes as well. On the volume attached without that node the journal replays, what was synced is
# there, fsck finds nothing; and so it is from the node that was away.
# guests: uml
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
		killed=a1 other=b1
		if [ $round = 2 ]; then killed=b1 other=a1; fi
		mount "$device" /mnt/disk
		fs_load_start $round
		fs_load_runs_on "before the kill of $killed"
		node_kill $killed
		fs_load_runs_on "without $killed"
		# Not a kill under load, which 6.12 in UML answers with errors of reads: the load may not be told
		# that the front is gone before it is.
		kill -STOP "$fs_load"
		front_kill disk
		kill -CONT "$fs_load"
		fs_gone
		attach disk
		fs_check $kind
		node_start $killed
		wait_in_sync disk 120
	done
	say "$kind: three times without one node"
done
front_detach disk
expect_no_device
equal_from_each_node disk a1 b1

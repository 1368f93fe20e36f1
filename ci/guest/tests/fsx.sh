#!/usr/bin/env bash
# The stamped exerciser (reads, writes, FUA, flushes, discards, zeroes) alone with re-attaches in between,
# and with nodes killed under it.
# guests: uml
# limit: 400
. "$(dirname "$0")/lib.sh"
begin
two_nodes
volume_create disk 48MiB --chunk 4MiB
attach disk
# The command of a re-attach: detach, attach, tell the device. The front's pid is for this script.
cat >"$scratch/reattach" <<-EOF
	. ci/lib.sh
	. ci/cluster.sh
	cluster=$cluster
	front_detach_by_name() { "\$bin/ublk-front" detach disk --run-dir "\$cluster/run"; }
	front_detach_by_name >&2
	front_attach disk --frontend ublk >&2
	echo "\${FRONT_PID[disk]}" >"\$cluster/run/front-pid"
	echo "\${DEVICE[disk]}"
EOF
"$bin/ukai-fsx" run "$device" --seed 1 --threads 3 --operations 400 --reattach "bash $scratch/reattach" |
	tee "$scratch/log/fsx"
! grep -q ' 0 times attached again' "$scratch/log/fsx" || die "it was never attached again"
FRONT_PID[disk]=$(cat "$cluster/run/front-pid")

fsx_start 2
for node in b1 a1; do
	more_load 8000 "before the kill of $node"
	node_kill $node
	more_load 8000 "without $node"
	node_start $node
	wait_in_sync disk 120
	say "$node killed, restarted and in sync again, under load"
done
fsx_stop
front_detach disk
expect_no_device
equal_from_each_node disk a1 b1

#!/usr/bin/env bash
# kill -9 of the front between acknowledged writes: nothing acknowledged and flushed is lost, the
# next front serves, and the replicas are equal.
# limit: 240
. "$(dirname "$0")/lib.sh"
begin
two_nodes
volume_create disk 128MiB
attach disk
head -c $((32 << 20)) /dev/urandom >"$scratch/image"
for round in 1 2 3; do
	nbdcopy --flush "$scratch/image" "$uri"
	# Load in flight beside it when the front dies; it must see its connection end, not hang.
	fio --name=dies --ioengine=nbd --uri="$uri" --rw=randwrite --bs=4k --iodepth=32 --offset=64m --size=32m \
		--time_based --runtime=600 >"$scratch/log/dies" 2>&1 &
	load=$!
	more_load disk 1000 "before kill $round"
	front_kill disk
	wait_until 30 "fio to notice" is_gone $load || die "the client hangs after the front's death"
	wait $load 2>/dev/null && die "fio did not notice the front's death"
	attach disk
	nbdcopy "$uri" "$scratch/copy"
	cmp -n $((32 << 20)) "$scratch/copy" "$scratch/image" || die "flushed data is gone"
	say "front killed and started again, round $round"
done
front_detach disk
equal_from_each_node disk a1 b1

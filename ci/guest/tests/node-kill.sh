#!/usr/bin/env bash
# kill -9 of a node under fio verify load: no error; the node comes back in sync.
# guests: uml
# limit: 400
. "$(dirname "$0")/lib.sh"
begin
two_nodes
volume_create disk 256MiB
attach disk
load_start --ioengine=libaio --filename="$device" --size=64m
for node in b1 a1 b1; do
	more_load 8000 "before the kill of $node"
	node_kill $node
	more_load 8000 "without $node"
	node_start $node
	wait_in_sync disk 120
	say "$node killed, restarted and in sync again, under load"
done
load_stop
front_detach disk
expect_no_device
equal_from_each_node disk a1 b1

#!/usr/bin/env bash
# kill -9 of each node in turn under verified load: the client sees no error, the node comes back.
# limit: 240
. "$(dirname "$0")/lib.sh"
begin
two_nodes
volume_create disk 256MiB
attach disk
load_start --ioengine=nbd --uri="$uri" --size=64m
for node in b1 a1; do
	more_load disk 2000 "before the kill of $node"
	node_kill $node
	more_load disk 2000 "without $node"
	node_start $node
	wait_in_sync disk 120
	say "$node killed, restarted and in sync again, under load"
done
more_load disk 2000 "in the end"
load_stop
front_detach disk
equal_from_each_node disk a1 b1

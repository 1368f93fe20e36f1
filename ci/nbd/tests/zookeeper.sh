#!/usr/bin/env bash
# The same volume with its map in a ZooKeeper ensemble: the leader is killed under verified load, which
# must not notice; then the front must still learn of changes, and nodes and locations come and go.
# limit: 240
. "$(dirname "$0")/lib.sh"
begin

# Asked of the front itself: without a metadata store ukai-tools cannot know where it is.
written() {
	python3 - "$cluster/run/$1.sock" <<-'END'
		import json, socket, sys
		front = socket.socket(socket.AF_UNIX)
		front.connect(sys.argv[1])
		front.sendall(b'{"cmd": "stats"}\n')
		print(json.loads(front.makefile().readline())["write"]["count"])
	END
}

mkdir "$scratch/zk"
servers=$(ci/zk/zk.sh start "$scratch/zk" 3 $$)
export UKAI_META=zk:$servers/ukai
# The wire client logs each session; the logs of this test are long enough.
export UKAI_LOG=info,zookeeper_client=error
tools cluster init
touch "$cluster/meta.db" # founded: node_create need not
node_create a1 site-a 1GiB
node_create b1 site-b 1GiB
node_create b2 site-b 1GiB
volume_create disk 256MiB
holder=$(volume_nodes disk | grep -o "b[12]")
other=b2
[ $holder = b1 ] || other=b1
attach disk
load_start --ioengine=nbd --uri="$uri" --size=64m
more_load disk 1000 "before the leader is killed"
killed=$(ci/zk/zk.sh leader "$scratch/zk")
ci/zk/zk.sh kill "$scratch/zk" "$killed"
more_load disk 3000 "without a ZooKeeper leader"
# I8: with no ZooKeeper at all, for longer than the nodes' lease, I/O goes on.
for server in 1 2 3; do
	[ "$server" = "$killed" ] || ci/zk/zk.sh kill "$scratch/zk" "$server"
done
wait_until 60 "node a1 to fail to renew" grep -q 'cannot renew\|session ended' "$cluster/log/a1"
more_load disk 5000 "without any ZooKeeper"
for server in 1 2 3; do ci/zk/zk.sh run "$scratch/zk" "$server"; done
ci/zk/zk.sh wait "$scratch/zk"
node_kill $holder
more_load disk 1000 "without $holder"
node_start $holder
wait_in_sync disk 120
tools volume add-location disk --node $other
wait_in_sync disk 120
tools volume remove-location disk --node $holder
wait_in_sync disk 120
more_load disk 1000 "in the end"
load_stop
front_detach disk
equal_from_each_node disk a1 $other
ci/zk/zk.sh stop "$scratch/zk"

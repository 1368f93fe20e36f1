#!/usr/bin/env bash
# Rot on both nodes: a guest's reads are served from the other replica and repair what they hit; a scrub
# under load finds and repairs the rest, and nothing else; so it does with writes that a node lost; afterwards
# both replicas are the same.
# limit: 240
. "$(dirname "$0")/lib.sh"
begin
two_nodes
volume_create disk 256MiB
attach disk
guest() { qemu-io -f raw "$@" "$uri"; }
rot() { # NODE BYTE INDEX...
	say "rot on $1: $(ci/nbd/rot.py "$cluster/nodes/$1" "${@:2}") blocks of $2, of which $(($# - 2)) decay"
}
# scrub EXIT-STATUS [ARGUMENT...]: its report is in $scratch/report
scrub() {
	local expected=$1 status=0
	shift
	tools --json scrub disk "$@" >"$scratch/report" 2>"$scratch/log/scrub" || status=$?
	[ $status = "$expected" ] || die "scrub ended with $status, not $expected: $(cat "$scratch/report" "$scratch/log/scrub")"
	json "$scratch/report" '"scrub: {sectors} sectors of {chunks} chunks, {bytes_read} bytes read, bad {bad}, different {different}, unsettled {unsettled}, {seconds:.1f} s".format(**d)'
}
# counts BAD-FOUND BAD-REPAIRED: and no difference was seen
counts() {
	[ "$(json "$scratch/report" '" ".join(map(str, [d["bad"]["found"], d["bad"]["repaired"], d["different"]["found"], d["complete"]]))')" = "$1 $2 0 True" ] ||
		die "expected $1 bad, $2 repaired, no differences: $(cat "$scratch/report")"
}
pulled() { tools --json stats disk | json - 'sum(node["pulled_sectors"] for node in d["nodes"])'; }
# Chunks are closed some time after their last write, if that is flushed and the front says that it is settled.
closed() { [ "$(tools --json stats disk | json - 'sum(node["intents_open"] for node in d["nodes"])')" = 0 ]; }
closed_wait() {
	guest -c flush
	wait_until 30 "every chunk to be closed" closed || die "$(tools stats disk)"
}
pulled_at_least() { [ "$(pulled)" -ge "$1" ]; }

# Slots of 1 MiB, 256 blocks each.
guest -c 'write -P 0x5a 128M 4M' -c 'write -P 0x6b 132M 4M' -c 'write -P 0x7c 136M 4M' -c flush
scrub 0
counts 0 0
front_detach disk
scrub 0
counts 0 0

node_stop a1
node_stop b1
rot a1 0x5a 10 266 522
rot b1 0x6b 11 267 523
rot a1 0x7c 0 1 2 255 700
rot b1 0x7c 3 256
node_start a1
node_start b1
attach disk
load_start --ioengine=nbd --uri="$uri" --size=64m
more_load disk 500 "before the scrub"
scrub 6 --no-repair
counts 13 0

# All reads of a chunk go to one node: of the first two patterns one has rotted there.
before=$(pulled)
guest -c 'read -P 0x5a 128M 4M' -c 'read -P 0x6b 132M 4M' >/dev/null
[ "$(tools --json stats disk | json - 'd["front"]["read_retries"]')" -ge 3 ] || die "no read was served from the other replica"
wait_until 30 "the reads to be repaired" pulled_at_least $((before + 3)) || die "$(pulled) sectors repaired, not $((before + 3))"
say "read repair: 3 sectors"

scrub 0
counts 10 10
[ "$(json "$scratch/report" '[sorted(n["bad"]["repaired"] for n in d["nodes"])]')" != "[0, 10]" ] || die "one node alone was repaired"
scrub 0
counts 0 0
guest -c 'read -P 0x5a 128M 4M' -c 'read -P 0x6b 132M 4M' -c 'read -P 0x7c 136M 4M' >/dev/null

# The rate is a bound, by the tool's own report: whatever is above it is the last piece.
scrub 0 --range 128MiB-140MiB --rate 4MiB/s
[ "$(json "$scratch/report" 'd["rate_bytes_per_second"] * d["seconds"] <= (4 << 20) * (d["seconds"] + 1.1)')" = True ] ||
	die "faster than 4 MiB/s: $(cat "$scratch/report")"

more_load disk 500 "in the end"
load_stop
closed_wait
front_detach disk
scrub 0
counts 0 0

# A node that lost writes which it had acknowledged: a copy of the file of the running node, put in its place
# after a kill (nothing tells it apart then). Differences are rolled forward to the latest write. Neither node has
# a chunk open then: the front would reconcile it before the scrub sees it.
cp "$cluster/nodes/b1" "$cluster/nodes/copy"
attach disk
guest -c 'write -P 0x99 130M 1M' -c 'discard 140M 1M' -c flush >/dev/null
closed_wait
front_detach disk
node_kill b1
mv "$cluster/nodes/copy" "$cluster/nodes/b1"
node_start b1
attach disk
# From its first write on a front has something to tell as settled.
guest -c 'write -P 0x11 0 4k' >/dev/null
scrub 6 --no-repair
scrub 0
[ "$(json "$scratch/report" '" ".join("%s %d %d" % (n["node"], n["different"]["found"], n["different"]["repaired"]) for n in sorted(d["nodes"], key=lambda n: n["node"]))')" = "a1 0 0 b1 256 256" ] ||
	die "not what b1 lost: $(cat "$scratch/report")"
scrub 0
counts 0 0
front_detach disk
equal_from_each_node disk a1 b1

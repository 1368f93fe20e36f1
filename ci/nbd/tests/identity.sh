#!/usr/bin/env bash
# Who a node is: an older copy of a node never serves, another node at its address is not taken for it, and
# one that never comes back is forgotten and replaced, all under a running guest.
# limit: 240
. "$(dirname "$0")/lib.sh"
begin
two_nodes
volume_create disk 256MiB
attach disk
guest() { qemu-io -f raw "$@" "$uri" >/dev/null; }
is_stale() { [ "$(volume_state disk)" = "stale copies" ]; }
# run_refused NODE WORD...: it must not start, with exit status 3 and these words
run_refused() {
	local node=$1 status=0 said word
	shift
	said=$(timeout 60 "$bin/chunkstore" run "$cluster/nodes/$node" --listen "127.0.0.1:${NODE_PORT[$node]}" 2>&1) || status=$?
	[ $status = 3 ] || die "node $node ended with $status: $said"
	for word in "$@"; do
		grep -q -- "$word" <<<"$said" || die "not told $word: $said"
	done
	say "refused: ${said##*chunkstore: }"
}

# Another process on the same file.
guest -c 'write -P 0x11 0 64M' -c flush
run_refused b1 "in use"

# A backup of the stopped node, from before it took more writes, is put in its place.
node_stop b1
cp "$cluster/nodes/b1" "$cluster/nodes/backup"
wait_until 30 "b1 to be recorded stale" is_stale
node_start b1
wait_in_sync disk 60
guest -c 'write -P 0x22 0 32M' -c flush
node_kill b1
wait_until 30 "b1 to be recorded stale" is_stale
mv "$cluster/nodes/backup" "$cluster/nodes/b1"
run_refused b1 "older copy" "node forget b1" "format --force"
guest -c 'read -P 0x22 0 32M' -c 'read -P 0x11 32M 32M' -c 'write -P 0x33 16M 16M' -c flush

# A new node, empty, where the old one listened.
"$bin/chunkstore" format "$cluster/nodes/b1" --force --site site-b --name b2 >>"$cluster/log/b1"
mv "$cluster/nodes/b1" "$cluster/nodes/b2"
NODE_PORT[b2]=${NODE_PORT[b1]}
node_start b2
tools --json node ping b1 >"$scratch/log/ping" 2>&1 && die "the new node answered for the old one"
grep -q 'another node answers' "$scratch/log/ping" || die "not told WrongNode: $(cat "$scratch/log/ping")"
guest -c 'read -P 0x33 16M 16M'
is_stale || die "another node was taken for b1: $(volume_state disk)"

tools node forget b1 --dry-run
tools node forget b1
[ "$(volume_nodes disk)" = a1 ] || die "a copy is left on $(volume_nodes disk)"
! tools node forget a1 2>"$scratch/log/forget" || die "the living node was forgotten"
tools volume add-location disk --node b2
tools volume synchronize disk --wait --timeout 60
guest -c 'read -P 0x33 16M 16M' -c 'write -P 0x44 48M 1M' -c flush
[ "$(volume_nodes disk | tr '\n' ' ')" = "a1 b2 " ] || die "the copies are on $(volume_nodes disk)"
front_detach disk
tools scrub disk
equal_from_each_node disk a1 b2

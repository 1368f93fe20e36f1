#!/usr/bin/env bash
# What an outage costs: a node that comes back takes exactly what was written meanwhile (at most 5 % more),
# whether it was killed or stopped, and discards move no data.
# limit: 240
. "$(dirname "$0")/lib.sh"
begin
node_create a1 site-a 1536MiB
node_create b1 site-b 1536MiB
volume_create disk 100GiB
attach disk
is_stale() { [ "$(volume_state disk)" = "stale copies" ]; }

# guest_writes ARGUMENT...: distinct blocks at random places; prints the bytes written
guest_writes() {
	fio --name=writes --ioengine=nbd --uri="$uri" --direct=1 --rw=randwrite --iodepth=16 --randrepeat=0 \
		--output-format=json "$@" >"$scratch/log/writes" || die "fio failed: $(tail -5 "$scratch/log/writes")"
	json "$scratch/log/writes" 'sum(job["write"]["io_bytes"] for job in d["jobs"])'
}
# The node counts from its start, so all it has taken is of this outage.
counter() { # NODE NAME
	tools --json stats disk | json - "sum(n['$2'] for n in d['nodes'] if n['node'] == '$1')"
}
# comes_back NODE BYTES-WRITTEN HOW
comes_back() {
	local node=$1 written=$2 how=$3 copied zeroes
	node_start "$node"
	wait_in_sync disk 120
	zeroes=$(counter "$node" pulled_zeroes)
	copied=$((($(counter "$node" pulled_sectors) - zeroes) * 4096))
	say "$how: $written bytes written meanwhile, $copied copied, $zeroes sectors of zeros told"
	[ $copied -ge "$written" ] || die "$how: less was copied than written"
	[ $copied -le $((written + written / 20)) ] || die "$how: more was copied than written + 5 %"
}
# outage_writes: 4 KiB and 64 KiB blocks, scattered over written and unwritten places; none twice
outage_writes() {
	local small large
	small=$(guest_writes --bs=4k --offset=0 --size=512m --io_size=8m)
	large=$(guest_writes --bs=64k --offset=512m --size=512m --io_size=16m)
	echo $((small + large))
}

say "$(guest_writes --bs=1m --offset=0 --size=1g --io_size=512m) bytes written before"

node_kill b1
wait_until 30 "b1 to be recorded stale" is_stale
comes_back b1 "$(outage_writes)" "b1 killed"

node_stop a1
wait_until 30 "a1 to be recorded stale" is_stale
comes_back a1 "$(outage_writes)" "a1 stopped"

node_stop b1
wait_until 30 "b1 to be recorded stale" is_stale
bytes=$(outage_writes)
qemu-io -f raw -c 'discard 1G 1G' -c flush "$uri"
comes_back b1 "$bytes" "discards of nothing"

node_kill b1
wait_until 30 "b1 to be recorded stale" is_stale
qemu-io -f raw -c 'discard 256M 256M' -c flush "$uri"
bytes=$(guest_writes --bs=64k --offset=512m --size=512m --io_size=16m)
comes_back b1 "$bytes" "discards of data"

front_detach disk
tools scrub disk

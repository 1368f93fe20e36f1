#!/usr/bin/env bash
# A node that is full leaves its volumes' in-sync sets and the guest goes on; with the last node full the
# guest is told ENOSPC and nothing is lost; discarding makes room, and the full node comes back.
# limit: 240
. "$(dirname "$0")/lib.sh"
begin
node_create a1 site-a 384MiB
node_create b1 site-b 128MiB
volume_create disk 1GiB
attach disk
guest() { qemu-io -f raw "$@" "$uri"; }
stale() { [ "$(tools --json volume show disk | json - 'd["state"]')" = "stale copies" ]; }

# Requests that fail in qemu-io are told in its output and in its status.
guest -c 'write -P 0x11 0 192M' -c flush
wait_until 30 "b1 to be recorded stale" stale
say "b1 is full; the guest wrote on"
guest -c 'read -P 0x11 0 192M'

! guest -c 'write -P 0x22 192M 512M' >"$scratch/log/full" 2>&1 || die "512 MiB fitted into 384"
grep -q 'No space left' "$scratch/log/full" || die "not told ENOSPC: $(cat "$scratch/log/full")"
say "the last node is full; the guest was told"
guest -c 'read -P 0x11 0 192M'

guest -c 'discard 128M 896M' -c 'discard 0 64M' -c flush
wait_in_sync disk 120
guest -c 'write -P 0x33 0 16M' -c 'read -P 0x33 0 16M' -c 'read -P 0x11 64M 64M'
front_detach disk
equal_from_each_node disk a1 b1

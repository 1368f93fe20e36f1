#!/usr/bin/env bash
# Clients that speak nonsense, or vanish: each is refused, and the export goes on serving others.
# limit: 120
. "$(dirname "$0")/lib.sh"
begin
two_nodes
volume_create disk 64MiB
attach disk
head -c $((8 << 20)) /dev/urandom >"$scratch/image"
nbdcopy --flush "$scratch/image" "$uri"
python3 ci/nbd/bad_client.py "$scratch/disk.sock" disk $((64 << 20))
still_running "${FRONT_PID[disk]}" || die "the front died"
nbdcopy "$uri" "$scratch/copy"
cmp -n $((8 << 20)) "$scratch/copy" "$scratch/image"
front_detach disk

#!/usr/bin/env bash
# The export as libnbd's, QEMU's and fio's tools see it.
# limit: 240
. "$(dirname "$0")/lib.sh"
begin
two_nodes
volume_create disk 256MiB
port=$(free_ports 1)
attach disk --nbd-tcp "127.0.0.1:$port"

nbdinfo "$uri"
[ "$(nbdinfo --size "$uri")" = $((256 << 20)) ] || die "wrong size"
for what in flush fua trim zero multi-conn; do
	nbdinfo --can $what "$uri" || die "the export does not offer $what"
done
nbdinfo --is read-only "$uri" && die "the export is read-only"
nbdinfo --list "nbd+unix:///?socket=$scratch/disk.sock" | grep -qw disk || die "disk is not listed"
! nbdinfo "nbd+unix:///no-such-volume?socket=$scratch/disk.sock" 2>"$scratch/log/refused" ||
	die "an unknown export was granted"

say "nbdcopy: an image in over four connections, out over TCP"
head -c $((64 << 20)) /dev/urandom >"$scratch/image"
nbdcopy --connections=4 --flush "$scratch/image" "$uri"
nbdcopy --connections=4 "nbd://127.0.0.1:$port/disk" "$scratch/copy"
cmp -n $((64 << 20)) "$scratch/copy" "$scratch/image"

say "qemu-img: convert, compare"
truncate -s 256M "$scratch/image"
qemu-img compare -f raw -F raw "$scratch/image" "$uri"
qemu-img convert -f raw -O qcow2 "$uri" "$scratch/qcow2"
qemu-img compare -f qcow2 -F raw "$scratch/qcow2" "$uri"

say "qemu-io: patterns, FUA, discard, zeroes"
qemu-io -f raw -c 'write -P 0xaa 128M 1M' -c 'write -f -P 0xbb 130M 64k' -c 'write -P 0xcc 131M 4k' -c flush "$uri"
qemu-io -f raw -c 'discard 128M 512k' -c 'write -z 130M 4k' "$uri"
expect() { # PATTERN OFFSET LENGTH
	local out
	out=$(qemu-io -r -f raw -c "read -P $1 $2 $3" "$uri")
	[[ $out != *"verification failed"* && $out == *"read "* ]] || die "at $2: $out"
}
expect 0 128M 512k
expect 0xaa $(((128 << 20) + (512 << 10))) 512k
expect 0 130M 4k
expect 0xbb $(((130 << 20) + 4096)) 60k
expect 0xcc 131M 4k

say "fio: random writes with verify"
check_fio --name=fio --ioengine=nbd --uri="$uri" --rw=randwrite --bs=4k --iodepth=32 --offset=192m --size=16m \
	--verify=crc32c
check_fio --name=fio-mixed --ioengine=nbd --uri="$uri" --rw=randrw --bsrange=4k-256k --blockalign=4k --iodepth=8 \
	--offset=208m --size=32m --verify=crc32c --fsync=8
front_detach disk
[ ! -S "$scratch/disk.sock" ] || die "the socket was left behind"
equal_from_each_node disk a1 b1

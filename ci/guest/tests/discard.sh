#!/usr/bin/env bash
# Discard and write-zeroes: zeros are read, neighbours keep their data, space comes back.
# guests: uml
# limit: 240
. "$(dirname "$0")/lib.sh"
begin
two_nodes
volume_create disk 256MiB --chunk 4MiB
attach disk
pattern() { # MIB: that many MiB of bytes that are not zero
	head -c $(($1 << 20)) /dev/zero | tr '\0' 'x'
}
expect() { # OFFSET_MIB LENGTH_MIB CHARACTER
	dd if="$device" bs=1M skip="$1" count="$2" iflag=direct status=none |
		cmp -n $(($2 << 20)) - <(head -c $(($2 << 20)) /dev/zero | tr '\0' "$3") ||
		die "at $1 MiB: not all '$3'"
}
pattern 64 | dd of="$device" bs=1M oflag=direct iflag=fullblock status=none
sync "$device"
before=$(node_used disk)
blkdiscard -o $((8 << 20)) -l $((32 << 20)) "$device"
expect 8 32 '\0'
expect 0 8 x
expect 40 24 x
blkdiscard -z -o $((44 << 20)) -l $((4 << 20)) "$device"
expect 44 4 '\0'
expect 43 1 x
expect 48 16 x
# A piece that is no whole chunk nor slot.
blkdiscard -z -o $(((50 << 20) + 4096)) -l 12288 "$device"
dd if="$device" bs=4096 skip=$((50 * 256)) count=5 iflag=direct status=none |
	cmp - <(head -c 4096 /dev/zero | tr '\0' x; head -c 12288 /dev/zero; head -c 4096 /dev/zero | tr '\0' x) ||
	die "a partial zeroing touched its neighbours"
sync "$device"
after=$(node_used disk)
[ "$after" -le $((before - (30 << 20) * 2)) ] || die "discard of 32 MiB freed too little: $before to $after bytes in use"
say "discard freed $(((before - after) >> 20)) MiB over both copies"

mkfs.ext4 -q "$device"
mount "$device" /mnt/disk
pattern 64 >/mnt/disk/big
sync
full=$(node_used disk)
rm /mnt/disk/big
sync
fstrim /mnt/disk
umount /mnt/disk
sync "$device"
trimmed=$(node_used disk)
[ "$trimmed" -le $((full - (48 << 20) * 2)) ] || die "fstrim freed too little: $full to $trimmed"
e2fsck -fn "$device" >/dev/null
say "fstrim freed $(((full - trimmed) >> 20)) MiB"
front_detach disk
expect_no_device
equal_from_each_node disk a1 b1

#!/usr/bin/env bash
# A file system on the device: mkfs, mount, copy a tree, unmount, fsck, detach, attach, compare.
# guests: uml
# limit: 300
. "$(dirname "$0")/lib.sh"
begin
two_nodes
volume_create disk 512MiB
tree=/usr/share/doc
mkdir -p "$scratch/tree"
# About 20 MB of real small files.
find "$tree" -type f -size -64k | sort | awk "NR <= 1500" | tar cf - -T - 2>/dev/null | tar xf - -C "$scratch/tree"

attach disk
[ "$(blockdev --getss "$device")" = 4096 ] || die "logical block size is not 4096"
[ "$(blockdev --getsize64 "$device")" = $((512 << 20)) ] || die "wrong size"
mkfs.ext4 -q "$device"
mount "$device" /mnt/disk
cp -a "$scratch/tree/." /mnt/disk/
umount /mnt/disk
e2fsck -fn "$device"
front_detach disk
expect_no_device
say "ext4: $(find "$scratch/tree" -type f | wc -l) files written, unmounted clean"

attach disk --host another
e2fsck -fn "$device" >/dev/null
mount -o ro "$device" /mnt/disk
diff -r "$scratch/tree" /mnt/disk -x lost+found
umount /mnt/disk
say "ext4: all files are there on another host"

mkfs.xfs -q -f "$device"
mount "$device" /mnt/disk
cp -a "$scratch/tree/." /mnt/disk/
umount /mnt/disk
xfs_repair -n "$device" >/dev/null 2>&1 || die "xfs_repair found damage"
mount -o ro,norecovery "$device" /mnt/disk
diff -r "$scratch/tree" /mnt/disk
umount /mnt/disk
front_detach disk
expect_no_device
say "xfs: the same"

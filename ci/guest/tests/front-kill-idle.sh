#!/usr/bin/env bash
# kill -9 of an idle front and recovery of its device, also on 6.12: mounted file system, same data.
# guests: uml
# limit: 300
. "$(dirname "$0")/lib.sh"
begin
two_nodes
volume_create disk 128MiB
attach disk
first=$device
mkfs.ext4 -q "$device"
mount "$device" /mnt/disk
cp -a /usr/share/common-licenses /mnt/disk/one
sync
for round in 1 2 3; do
	front_kill disk
	attach disk
	[ "$device" = "$first" ] || die "recovered as $device instead of $first"
	echo 3 >/proc/sys/vm/drop_caches
	diff -r /usr/share/common-licenses /mnt/disk/one || die "files changed after kill $round"
	cp -a /usr/share/common-licenses "/mnt/disk/round$round"
	sync
done
umount /mnt/disk
e2fsck -fn "$device"
front_detach disk
expect_no_device
# A front that dies and is never started again must not keep the device for ever.
attach disk
front_kill disk
"$bin/ublk-front" detach disk || die "detach of a volume whose front is dead"
expect_no_device

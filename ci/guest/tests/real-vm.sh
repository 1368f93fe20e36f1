#!/usr/bin/env bash
# A real virtual machine whose disk is the device: it mounts, writes, syncs, powers off; the files
# are there for a machine on another host, and here.
# guests: uml
# limit: 400
# memory: 4G
. "$(dirname "$0")/lib.sh"
. ci/guest/disk-vm.sh
begin
two_nodes
volume_create disk 256MiB
attach disk --host hypervisor-1
mkfs.ext4 -q "$device"
disk_vm_start write "$device"
disk_vm_wait 120 written
disk_vm_end 60
front_detach disk
expect_no_device

attach disk --host hypervisor-2
disk_vm_start check "$device"
disk_vm_wait 120 checked
disk_vm_end 60
e2fsck -fn "$device"
mount -o ro "$device" /mnt/disk
for n in 1 2 3 4; do (cd "/mnt/disk/round$n" && sha256sum -c --quiet sums); done
umount /mnt/disk
front_detach disk
expect_no_device

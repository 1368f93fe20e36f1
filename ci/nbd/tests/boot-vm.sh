#!/usr/bin/env bash
# A virtual machine on the host that boots from the export: its root file system lies on the volume.
# limit: 240
. "$(dirname "$0")/lib.sh"
. ci/guest/disk-vm.sh
begin
two_nodes
volume_create root 128MiB
root=$scratch/root
mkdir -p "$root"/{bin,sbin,usr/bin,usr/sbin,proc,sys,dev}
cp /bin/busybox "$root/bin/"
cp ci/guest/init/disk-root "$root/sbin/init"
mke2fs -q -t ext4 -b 4096 -d "$root" "$scratch/root.img" 128M
attach root --host hypervisor-1
nbdcopy --flush "$scratch/root.img" "$uri"
for boot in 1 2; do
	disk_vm_start boot "$uri"
	disk_vm_wait 120 "booted from /dev/vda, boot $boot"
	disk_vm_end 60
done
front_detach root
# A third boot on "another hypervisor" finds what the first two wrote.
attach root --host hypervisor-2
disk_vm_start boot "$uri"
disk_vm_wait 120 "booted from /dev/vda, boot 3"
disk_vm_end 60
nbdcopy "$uri" "$scratch/after.img"
e2fsck -fn "$scratch/after.img"
front_detach root

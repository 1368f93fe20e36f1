#!/usr/bin/env bash
# The same virtual machine keeps running while a node is killed and comes back, and while a location
# is added and another removed: the disk moves under it.
# guests: uml
# limit: 580
# memory: 4G
. "$(dirname "$0")/lib.sh"
. ci/guest/disk-vm.sh
begin
two_nodes
volume_create disk 128MiB
node_create a2 site-a 768MiB
attach disk
mkfs.ext4 -q "$device"
disk_vm_start live "$device"
disk_vm_progress 120 2
node_kill b1
disk_vm_progress 120 2
say "the machine runs on without b1"
node_start b1
wait_in_sync disk 180
disk_vm_progress 120 2
say "b1 is back in sync"
tools volume add-location disk --node a2
tools volume synchronize disk --wait
tools volume remove-location disk --node a1
tools volume synchronize disk --wait
disk_vm_progress 120 2
tools volume map disk | tee "$scratch/log/map"
! grep -qw a1 "$scratch/log/map" || die "a1 is still in the map"
node_stop a1
disk_vm_progress 120 2
disk_vm_stop
disk_vm_wait 60 stopped
disk_vm_end 60
e2fsck -fn "$device"
front_detach disk
expect_no_device
equal_from_each_node disk a2 b1

# Sourced first by every test that runs inside a guest: a disk for the nodes and a cluster on it.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
. ci/lib.sh
. ci/cluster.sh
. ci/scenario.sh

# In a guest all ports are free.
UKAI_PORTS=7100
scratch=/mnt/ukai

scenario_end() { # STATUS
	[ "$1" = 0 ] || dmesg | tail -8 >&2
}
trap on_exit EXIT

# begin: the RAM disk with ext4, where O_DIRECT is real, and an empty cluster on it.
begin() {
	[ -b /dev/ram0 ] || modprobe brd rd_nr=1 rd_size=3145728
	mkdir -p "$scratch" /mnt/disk
	mkfs.ext4 -q -F -b 4096 /dev/ram0
	mount /dev/ram0 "$scratch"
	cluster_begin "$scratch"
}

# attach VOLUME [ARGUMENT...]: as a block device, whose path is then in `device`
attach() {
	front_attach "$1" --frontend ublk "${@:2}"
	device=${DEVICE[$1]}
	[ -b "$device" ] || die "attach said $device, which is no block device"
}

read_all() { dd if="$device" bs=1M iflag=direct status=none; }

expect_no_device() {
	local left
	left=$(ls -d /dev/ublkb* /dev/ublkc* 2>/dev/null || true)
	[ -z "$left" ] || die "left behind: $left"
}

# written: sectors of 512 bytes written to the device so far, as the kernel counts
written() { awk '{ print $7 }' "/sys/block/$(basename "$device")/stat"; }
wrote_past() { [ "$(written)" -gt "$1" ]; }

# more_load SECTORS WHEN: waits until so much more has been written
more_load() {
	local goal=$(($(written) + $1))
	wait_until 90 "$1 more sectors written $2" wrote_past $goal || die "the load stands still $2"
}

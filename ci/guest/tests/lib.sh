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
	begin_on /dev/ram0
}

begin_on() { # DEVICE
	mkdir -p "$scratch" /mnt/disk
	mkfs.ext4 -q -F -b 4096 "$1"
	mount "$1" "$scratch"
	cluster_begin "$scratch"
}

# boot_number: how often this guest has started in this test, from 1 on
boot_number() { cat /vm/boots 2>/dev/null || echo 1; }

# disk_of_test: the disk that survives resets (`# disk: SIZE` in the test's head)
disk_of_test() { if [ -b /dev/ubda ]; then echo /dev/ubda; else echo /dev/vda; fi; }

# reset_guest: the machine starts again without any warning to anything in it; the test as well, from
# its top on
reset_guest() {
	reset_prepare
	echo b >/proc/sysrq-trigger
	sleep 60
	die "the guest did not reset"
}

# reset_prepare: the next reset, whoever does it, is one that this test wants
reset_prepare() {
	echo $(($(boot_number) + 1)) >/vm/boots
	: >/vm/again
	# What lies in /vm has left the guest's memory; nothing else is synced.
	sync /vm/boots /vm/again
}

# cluster_again NODE...: after a reset, the same cluster from the disk; nodes in the order of creation
cluster_again() {
	local node
	mkdir -p "$scratch" /mnt/disk
	mount "$(disk_of_test)" "$scratch"
	cluster_begin "$scratch"
	for node in "$@"; do
		NODE_PORT[$node]=$next_port
		next_port=$((next_port + 1))
		node_start "$node"
	done
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

# fsx_start SEED ARGUMENT...: the stamped exerciser in the background, until fsx_stop
fsx_start() {
	rm -f "$scratch/fsx.stop"
	"$bin/ukai-fsx" run "$device" --seed "$1" --threads 3 --operations 10000000 --stop-file "$scratch/fsx.stop" \
		"${@:2}" >"$scratch/log/fsx" 2>&1 &
	fsx=$!
}

# fsx_stop: ends it; it must have run until now, and all that it reads at its end must be right
fsx_stop() {
	still_running "$fsx" || die "the exerciser ended by itself: $(cat "$scratch/log/fsx")"
	: >"$scratch/fsx.stop"
	wait "$fsx" || die "the exerciser found something wrong: $(cat "$scratch/log/fsx")"
	tail -1 "$scratch/log/fsx"
}

# fio_resume COMMAND...: a fio job that a trigger ended; verifies what its saved state says was written
fio_resume() {
	"$@" --verify_only --verify_fatal=1 --verify_state_load=1 --verify_state_save=0 >"$scratch/log/fio" 2>&1 || {
		tail -30 "$scratch/log/fio" >&2
		die "fio found other data than it had written"
	}
	grep -E 'read:|err=' "$scratch/log/fio" || die "fio verified nothing: $(cat "$scratch/log/fio")"
}

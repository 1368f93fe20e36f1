# File systems under a metadata-heavy load, and what they are after a crash. Sourced after lib.sh.
# shellcheck shell=bash

record=/run/fs-record

# What equal_from_each_node compares: the beginning, and where the allocation groups of xfs begin.
read_all() {
	local at
	for at in 0 96 192 288; do dd if="$device" bs=1M skip=$at count=12 iflag=direct status=none; done
}

make_fs() { # ext4|xfs
	rm -f "$record"
	case $1 in
	ext4) mkfs.ext4 -q -F "$device" ;;
	xfs) mkfs.xfs -q -f "$device" ;;
	esac
}

fs_load_start() { # SEED
	ci/guest/fs_load.py /mnt/disk "$record" "$1" >"$scratch/log/fs-load" 2>&1 &
	fs_load=$!
}

# fs_load_runs_on WHEN: the load goes on, without an error until now
fs_load_runs_on() {
	more_load "${2:-1500}" "$1"
	still_running "$fs_load" || die "the load ended $1: $(cat "$scratch/log/fs-load")"
}

# fs_gone: the device is taken away under the mounted file system, as by a crash of its machine
fs_gone() {
	"$bin/ublk-front" detach disk --run-dir "$cluster/run" >&2 || die "detach of a volume whose front is dead"
	# The load sees errors, or waits for nothing more.
	wait_until 60 "the load to see the end" is_gone "$fs_load" || die "the load goes on without a device"
	wait "$fs_load" 2>/dev/null || true
	umount /mnt/disk
	expect_no_device
}

# fs_check KIND: after fs_gone and an attach: journal replay by a mount, synced files are there, fsck is clean
fs_check() {
	dmesg --clear
	mount "$device" /mnt/disk
	dmesg | grep -qE 'recovery complete|Ending recovery' || die "$1 had nothing to replay"
	ci/guest/fs_load.py --check /mnt/disk "$record"
	umount /mnt/disk
	case $1 in
	ext4) e2fsck -fn "$device" >"$scratch/log/fsck" 2>&1 ;;
	xfs) xfs_repair -n -P "$device" >"$scratch/log/fsck" 2>&1 ;;
	esac || {
		cat "$scratch/log/fsck" >&2
		die "$1 is damaged"
	}
	say "$1: clean after a journal replay ($SECONDS s)"
}

# A small virtual machine whose disk is a UKAI volume. Sourced by tests on the host and in guests,
# after ci/lib.sh.
#
#   disk_vm_start TASK DISK     DISK is a block device, or the URI of an NBD export
#   disk_vm_wait SECONDS TEXT   until the console shows TEXT; fails at once when the machine failed
#   disk_vm_stop                asks a machine with the task `live` to end
#   disk_vm_end SECONDS         waits until it has powered off
# shellcheck shell=bash

. "$repo/ci/guest/lib.sh"

disk_vm_start() {
	local task=$1 disk=$2 kernel
	kernel=$(guest_cache)/kernels/lts
	disk_vm_dir=$(mktemp -d /tmp/ukai-disk-vm.XXXXXX)
	"$repo/ci/guest/initramfs" "$kernel" "$repo/ci/guest/init/disk-vm" "$disk_vm_dir/initrd" virtio_blk ext4
	mkfifo "$disk_vm_dir/keys"
	# Kept open for writing, or the machine's console would see the end of its input.
	exec {disk_vm_keys}<>"$disk_vm_dir/keys"
	# The volume's logical block is 4 KiB: say so, or QEMU would have to read, modify and write.
	qemu-system-x86_64 -accel tcg -cpu max,la57=off -machine q35 -m 256 -nodefaults -no-user-config \
		-display none -no-reboot -kernel "$kernel/vmlinuz" -initrd "$disk_vm_dir/initrd" \
		-append "console=ttyS0 quiet panic=-1 rdinit=/init mitigations=off tsc=reliable no_timer_check cryptomgr.notests ukai=$task" \
		-drive "if=none,id=disk,format=raw,cache=none,discard=unmap,file=$disk" \
		-device virtio-blk-pci,drive=disk,logical_block_size=4096,physical_block_size=4096 \
		-serial stdio <"$disk_vm_dir/keys" >"$disk_vm_dir/console" 2>&1 &
	disk_vm_pid=$!
}

disk_vm_says() { grep -aq "vm: $1" "$disk_vm_dir/console"; }

disk_vm_says_or_ended() {
	disk_vm_says "$1" || disk_vm_says FAILED || is_gone "$disk_vm_pid"
}

disk_vm_wait() {
	if ! wait_until "$1" "the virtual machine to say '$2'" disk_vm_says_or_ended "$2" || ! disk_vm_says "$2"; then
		tail -20 "$disk_vm_dir/console" >&2
		return 1
	fi
}

# Rounds that a machine with the task `live` has completed.
disk_vm_rounds() { grep -ac '^vm: round' "$disk_vm_dir/console" || true; }

# disk_vm_progress SECONDS COUNT: until COUNT more rounds are complete
disk_vm_progress() {
	disk_vm_wait "$1" "round $(($(disk_vm_rounds) + $2))[^0-9]"
}

disk_vm_stop() { echo stop >&"$disk_vm_keys"; }

disk_vm_end() {
	if ! wait_until "$1" "the virtual machine to power off" is_gone "$disk_vm_pid"; then
		tail -20 "$disk_vm_dir/console" >&2
		kill -KILL "$disk_vm_pid"
		return 1
	fi
	wait "$disk_vm_pid" 2>/dev/null || true
	exec {disk_vm_keys}>&-
	grep -a '^vm:' "$disk_vm_dir/console" | tail -3
	! disk_vm_says FAILED
}

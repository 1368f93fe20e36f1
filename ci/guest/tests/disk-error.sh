#!/usr/bin/env bash
# A node's device fails under load (dm-flakey): writes that it refuses are never answered as done, the other
# replica serves on; writes that it loses without a word are found by their checksums.
# guests: uml
# limit: 300
. "$(dirname "$0")/lib.sh"
begin
device_bytes=$((256 << 20))
mkdir -p /run/flakey
mount -t tmpfs -o size=600M flakey /run/flakey
export DM_DISABLE_UDEV=1
# flakey STATE: `up`, or one of error_writes, error_reads, drop_writes, from now on and for all
flakey() {
	local table="0 $((device_bytes / 512)) flakey $loop 0"
	case $1 in
	up) table+=" 1 0" ;;
	*) table+=" 0 1 1 $1" ;;
	esac
	if dmsetup status b1 >/dev/null 2>&1; then
		# Not flushing: what is under way would otherwise be waited for, and is to fail.
		dmsetup suspend --noflush b1
		dmsetup load b1 --table "$table"
		dmsetup resume b1
	else
		dmsetup create b1 --table "$table"
	fi
}
truncate -s $device_bytes /run/flakey/b1
loop=$(losetup -f --show /run/flakey/b1)
flakey up
node_create a1 site-a 768MiB
ln -s /dev/mapper/b1 "$cluster/nodes/b1"
node_create b1 site-b
volume_create disk 48MiB
attach disk

state_of() { tools --json volume show disk | json - '[n["health"] for n in d["health"] if n["node"] == "'"$1"'"]'; }
stale() { [ -n "$(state_of b1)" ] && [ "$(volume_state disk)" != "in sync" ]; }
fsx_start 1
more_load 4000 "before the errors"
flakey error_writes
wait_until 60 "b1 to be recorded stale" stale || die "b1 counts as in sync with a device that refuses writes"
more_load 4000 "with b1's device refusing writes"
say "b1 is $(volume_state disk): $(state_of b1)"
# Nothing that b1 answered after the first error may count: it comes back as a node that missed writes.
node_kill b1
flakey up
node_start b1
wait_in_sync disk 120
more_load 4000 "with b1 back"
fsx_stop
front_detach disk
equal_from_each_node disk a1 b1

# A device that loses writes without a word keeps no promise after a restart; while the node runs, what it
# reads back does not fit the checksums it knows, and the other replica answers.
attach disk
fsx_start 2
more_load 2000 "before writes are lost"
flakey drop_writes
more_load 4000 "with b1's device losing writes"
fsx_stop

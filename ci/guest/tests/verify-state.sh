#!/usr/bin/env bash
# fio saves its state and the front is killed in the same moment, under load; what fio knew to be written is
# there after a recovery, and after the device was given up and the volume attached anew.
# guests: new
# limit: 400
. "$(dirname "$0")/lib.sh"
begin
two_nodes
volume_create disk 80MiB
attach disk
job() { # NAME OFFSET_MIB ARGUMENT...
	fio --name="$1" --filename="$device" --offset="$2m" --size=32m --rw=randwrite --bs=4k --ioengine=libaio --iodepth=32 \
		--direct=1 --verify=crc32c --aux-path="$scratch" "${@:3}"
}

# killed NAME OFFSET_MIB: writes until the trigger kills the front
killed() {
	: >"$scratch/log/job"
	rm -f "$scratch/trigger"
	job "$@" --trigger-file="$scratch/trigger" --trigger="kill -KILL ${FRONT_PID[disk]}" >"$scratch/log/job" 2>&1 &
	writer=$!
	more_load 6000 "before the kill"
	: >"$scratch/trigger"
	wait_until 60 "the front to be killed" is_gone "${FRONT_PID[disk]}" || die "the trigger did not kill it"
	[ -s "$scratch/local-$1-0-verify.state" ] || die "fio saved no state"
	cp "$scratch/local-$1-0-verify.state" "$scratch/state-$1"
	wait "${FRONT_PID[disk]}" 2>/dev/null || true
	unset "FRONT_PID[disk]"
}
# What fio saved when it was told to end, and not what it saved at its end, when more may have completed.
resume() {
	cp "$scratch/state-$1" "$scratch/local-$1-0-verify.state"
	fio_resume job "$@"
}

killed recovered 0
attach disk
wait "$writer" || die "an error while the front was away: $(tail -20 "$scratch/log/job")"
resume recovered 0
say "recovered: clean"

killed renewed 40
"$bin/ublk-front" detach disk --run-dir "$cluster/run" || die "detach of a volume whose front is dead"
# Its last writes have failed, and it says so.
wait "$writer" || true
expect_no_device
attach disk
resume renewed 40
resume recovered 0
say "attached anew: clean"
front_detach disk
expect_no_device
equal_from_each_node disk a1 b1

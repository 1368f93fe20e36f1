#!/usr/bin/env bash
# The whole machine, with both nodes and the front in it, is reset without warning under load, twice.
# What a completed flush or FUA covered is there afterwards, and nothing is torn.
# guests: uml
# limit: 300
# disk: 2G
. "$(dirname "$0")/lib.sh"
history=/vm/history
flushed() { [ "$(grep -c '"kind":"flush"' $history)" -ge "$1" ]; }

# exercise SEED FLUSHES: the stamped exerciser until so many flushes are in the history; then the reset
exercise() {
	"$bin/ukai-fsx" run "$device" --seed "$1" --threads 3 --operations 1000000 --history $history \
		>"$scratch/log/fsx" 2>&1 &
	wait_until 120 "$2 flushes" flushed "$2" || die "the exerciser stands still: $(cat "$scratch/log/fsx")"
	say "reset with $(wc -l <$history) events in the history"
	reset_guest
}

state=local-dsync-0-verify.state
# Each write is durable when it is answered, so the state that fio saved at the reset names what must be there.
dsync_job() {
	fio --name=dsync --filename="$device" --offset=32m --size=24m --rw=randwrite --bs=8k --ioengine=libaio --iodepth=8 \
		--direct=1 --sync=dsync --verify=crc32c --aux-path=/vm "$@"
}

case $(boot_number) in
1)
	begin_on "$(disk_of_test)"
	two_nodes
	volume_create fsx 32MiB
	volume_create fio 64MiB
	attach fsx
	exercise 1 80
	;;
2)
	cluster_again a1 b1
	attach fsx
	"$bin/ukai-fsx" verify "$device" --history $history
	exercise 2 160
	;;
3)
	cluster_again a1 b1
	attach fsx
	"$bin/ukai-fsx" verify "$device" --history $history
	front_detach fsx
	attach fio
	reset_prepare
	dsync_job --trigger-file=/vm/trigger --trigger="sync /vm/$state; echo b >/proc/sysrq-trigger; sleep 60" \
		>"$scratch/log/fio" 2>&1 &
	more_load 8000 "before the reset"
	: >/vm/trigger
	wait $!
	die "fio did not reset the guest: $(cat "$scratch/log/fio")"
	;;
4)
	cluster_again a1 b1
	attach fio
	[ -s /vm/$state ] || die "fio saved no state"
	fio_resume dsync_job
	front_detach fio
	equal_from_each_node fsx a1 b1
	;;
esac

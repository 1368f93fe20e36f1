#!/usr/bin/env bash
# `ukai-tools bench`: a volume under a load without any device, from its attach to its detach.
# limit: 180
. "$(dirname "$0")/lib.sh"
begin
two_nodes
volume_create disk 64MiB

# bench OUT ARGUMENT...
bench() { tools --json bench --volume disk --run-dir "$scratch/run" "${@:2}" >"$scratch/$1.json" 2>"$scratch/log/bench-$1"; }
figure() { json "$scratch/$1.json" "d$2"; }
# no_errors NAME: it did something, and all of it ended well
no_errors() {
	[ "$(figure "$1" '["errors"]')" = 0 ] || die "requests of $1 failed"
	[ "$(figure "$1" '["ios"]')" -gt 0 ] || die "$1 did nothing"
}

say "what is on the volume stays, unless it is said that it need not"
attach disk
qemu-io -f raw -c 'write -P 0x5a 0 64M' -c flush "$uri" >/dev/null
front_detach disk
for what in "--read-percent 50" --fill; do
	status=0
	# shellcheck disable=SC2086 # two words
	bench refused --ios 100 $what || status=$?
	[ $status = 1 ] || die "$what ended with $status"
	grep -q -- --overwrite-data "$scratch/log/bench-refused" || die "the error does not say what to do"
	[ ! -s "$scratch/refused.json" ] || die "something was measured"
done
bench reads --duration 1s --block-size 64KiB --pattern sequential --depth 4
no_errors reads
[ "$(figure reads '["write"]["ios"]')" = 0 ] || die "reads wrote"
attach disk
qemu-io -r -f raw -c 'read -P 0x5a 0 64M' "$uri" | tee "$scratch/log/after-reads"
! grep -q 'verification failed' "$scratch/log/after-reads" || die "reads changed the data"

say "an attached volume is refused"
status=0
bench attached --ios 100 || status=$?
[ $status = 5 ] || die "bench of an attached volume ended with $status"
front_detach disk

say "reads and writes from two lanes, and everything written before"
bench mix --fill --overwrite-data --duration 1s --read-percent 50 --depth 16 --lanes 2 --pattern zipf:1.1
no_errors mix
for side in read write; do
	[ "$(figure mix "[\"$side\"][\"ios\"]")" -gt 0 ] || die "the mix has no ${side}s"
done
bench flushed --overwrite-data --ios 200 --read-percent 0 --depth 1 --fsync --seed 7
no_errors flushed
[ "$(figure flushed '["ios"]')" = 200 ] || die "it did not end after 200 requests"
tools bench --volume disk --run-dir "$scratch/run" --ios 100 | tee "$scratch/log/table"
grep -q '^read .* 100 ' "$scratch/log/table" || die "the table lacks the reads"

say "SIGINT ends a run early, with its figures"
"$bin/ukai-tools" --json bench --volume disk --run-dir "$scratch/run" --overwrite-data --read-percent 0 --duration 1h \
	>"$scratch/early.json" 2>"$scratch/log/bench-early" &
run=$!
is_presented() { "$bin/ublk-front" status disk --json --run-dir "$scratch/run" | json - '1 / (d["device"] == "bench")'; }
wait_until 30 "the run to begin" is_presented
kill -INT "$run"
wait "$run" || die "the interrupted run failed"
[ "$(figure early '["interrupted"]')" = True ] || die "it does not say that it was interrupted"

say "threads that look for a while before they sleep, at both ends"
node_stop a1
NODE_ARGUMENTS="--poll-us 200" node_start a1
bench polled --overwrite-data --ios 2000 --read-percent 50 --depth 1 --poll-us 200
no_errors polled
attach disk --poll-us 200
qemu-io -f raw -c 'write -P 0x77 0 64M' -c 'read -P 0x77 0 64M' -c flush "$uri" | tee "$scratch/log/polled"
! grep -q 'verification failed' "$scratch/log/polled" || die "a lane that polls read something else"
front_detach disk

say "the volume can be attached at once, and its replicas are equal"
equal_from_each_node disk a1 b1

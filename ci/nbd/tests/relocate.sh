#!/usr/bin/env bash
# A volume moves between nodes while its guest writes and verifies: the rate is kept, the map becomes what was asked,
# and the move survives the death of its front, of its target and of the tool; pause, resume, cancel; detached volumes.
# limit: 240
. "$(dirname "$0")/lib.sh"
begin
node_create a1 site-a 1GiB
node_create b1 site-b 1GiB
node_create b2 site-b 1GiB
tools volume create disk --size 256MiB --node a1,b1 --chunk 1MiB >/dev/null
attach disk
head -c $((64 << 20)) /dev/urandom >"$scratch/image"
nbdcopy --flush "$scratch/image" "$uri"

# guest: random I/O, verified, on the half that the image leaves free
guest() {
	load_start --ioengine=nbd --uri="$uri" --offset=96m --size=64m
	more_load disk 100 "at the start of $1"
}
nodes() { volume_nodes disk | paste -sd,; }
lies_on() { [ "$(nodes)" = "$1" ]; }
job() { tools --json job show disk | json - "$1"; }
state_is() { [ "$(job 'd["job"]["state"]')" = "$1" ]; }
copied_past() { [ "$(job 'd["progress"]["copied_bytes"]')" -gt "$1" ]; }
# begins NODES RATE ARGUMENT...: the job goes on by itself
begins() { tools relocate disk --node "$1" --rate "$2" --no-wait "${@:3}" >>"$scratch/log/relocate" || die "no job"; }
ends() { tools job watch disk >>"$scratch/log/relocate" || die "the job failed: $(tools job show disk)"; }

guest rate
began=$(date +%s%N)
tools relocate disk --node a1,b2 --rate 20MiB/s --protect "p99<=500ms|+1000%" >>"$scratch/log/relocate" ||
	die "the move failed: $(tools job show disk)"
elapsed=$((($(date +%s%N) - began) / 1000000))
copied=$(job 'd["progress"]["copied_bytes"]')
load_stop
wait_in_sync disk 30
lies_on a1,b2 || die "it lies on $(nodes)"
say "$copied bytes in $elapsed ms at 20 MiB/s: $((copied * 1000 / elapsed)) bytes per second"
[ "$copied" -ge $((64 << 20)) ] || die "less was copied than there is"
# 5 % above, and what the bucket holds at the start
[ "$copied" -le $((elapsed * 21 * 1048576 / 1000 + (4 << 20))) ] || die "the rate was not kept"

guest kill
begins a1,b1 20MiB/s
wait_until 60 "a part to be copied" copied_past $((12 << 20))
front_kill disk
wait_until 30 "fio to notice" is_gone "$load" || die "the client hangs after the front's death"
wait "$load" 2>/dev/null && die "fio did not notice the front's death"
state_is running || die "the job is $(job 'd["job"]["state"]')"
attach disk
guest again
ends
load_stop
wait_in_sync disk 30
lies_on a1,b1 || die "it lies on $(nodes)"
say "front killed in the middle of a move: the next one ended it"

guest target
begins a1,b2 20MiB/s
wait_until 60 "a part to be copied" copied_past $((12 << 20))
node_kill b2
wait_until 30 "the job to wait" eval '[ "$(job "d[\"progress\"][\"limited_by\"]")" = "waits for node b2" ]'
more_load disk 100 "while the target is away"
node_start b2
ends
load_stop
wait_in_sync disk 60
lies_on a1,b2 || die "it lies on $(nodes)"
say "target killed in the middle of a move: it went on"

guest steer
begins a1,b1 4MiB/s
tools relocate disk --node a1,b1 --no-wait >/dev/null 2>&1 && die "two jobs at a time"
wait_until 60 "a part to be copied" copied_past $((4 << 20))
tools job pause disk >/dev/null
state_is paused || die "it is not paused"
tools job set-rate disk 8MiB/s >/dev/null
tools job set-protect disk "p99<=900ms" >/dev/null
tools job resume disk >/dev/null
wait_until 60 "it to go on" copied_past $((8 << 20))
tools job list | grep -q '^disk  *running' || die "the list does not name it"
tools job cancel disk >/dev/null
tools job watch disk >/dev/null 2>&1 && die "a cancelled job is no success"
state_is cancelled || die "it is not cancelled"
load_stop
wait_in_sync disk 60
say "paused, resumed, cancelled: it lies on $(nodes)"

front_detach disk
tools relocate disk --node a1,b1 >>"$scratch/log/relocate" 2>&1 || die "the detached volume did not move"
lies_on a1,b1 || die "it lies on $(nodes)"
tools scrub disk >/dev/null || die "the replicas differ"
attach disk
nbdcopy "$uri" "$scratch/copy"
cmp -n $((64 << 20)) "$scratch/copy" "$scratch/image" || die "what was flushed is gone"
front_detach disk
equal_from_each_node disk a1 b1
say "detached volume moved; everything is where and as it should be"

#!/usr/bin/env bash
# A virtual machine moves from a host far from its data's new place to one there: the hot part is copied before, the attach
# is handed over, the copies that are too many go; then the data follows where the volume is used. Two sites, 40 ms
# apart, each with a host; nodes copy at the rate that they are run with. Needs root (ci/story/sites).
# limit: 240
if [ -z "${UKAI_SITE_A_NETNS:-}" ]; then
	exec "$(dirname "$0")/../../story/sites" --round-trip 40ms -- "$0" "$@"
fi
. "$(dirname "$0")/lib.sh"
. ci/story/lib.sh
sites_begin "$scratch"
copy_rate_mib=4
NODE_ARGUMENTS="--copy-rate ${copy_rate_mib}MiB/s"
node_create a1 site-a 512MiB
node_create b1 site-b 512MiB
node_create b2 site-b 512MiB
tools volume create disk --size 128MiB --place site-b:2 --chunk 1MiB >/dev/null

# attach_at SITE HOST: the front runs there; the NBD client is on this machine in any case
attach_at() {
	local inside=()
	[ "$1" = site-a ] || inside=(ip netns exec "${SITE_NETNS[$1]}")
	: >"$cluster/run/front-disk.out"
	setsid "${inside[@]}" "$bin/ublk-front" attach disk --run-dir "$cluster/run" --host "$2" --frontend nbd \
		--nbd-unix "$scratch/disk.sock" >"$cluster/run/front-disk.out" 2>>"$cluster/log/front-disk" &
	FRONT_PID[disk]=$!
	wait_until 60 "the front at $1" front_said_attached disk || die "no front at $1"
	uri=$(awk '$1 == "attached" { print $3; exit }' "$cluster/run/front-disk.out")
	[[ $uri == nbd+unix://* ]] || die "attach at $1 said $uri"
}
# guest SECONDS: reads the first 16 MiB, the hot part
guest() {
	fio --name=guest --ioengine=nbd --uri="$uri" --rw=randread --bs=4k --rate_iops=300 --iodepth=16 --size=16m \
		--time_based --runtime="$1" --output-format=json --output="$scratch/log/fio-$2" >/dev/null 2>&1 || die "fio at $2"
}
# p50_ms WHEN: what the guest saw then, rounded up
p50_ms() { json - 'round(d["jobs"][0]["read"]["clat_ns"]["percentile"]["50.000000"] / 1e6 + 0.5)' <"$scratch/log/fio-$1"; }
# on NODE: how many chunks lie there
on() { tools --json volume map disk | json - "sum(r['chunks'] for r in d['runs'] if any(p['node'] == '$1' for p in r['replicas']))"; }
job() { tools --json job show disk | json - "$1"; }

head -c $((32 << 20)) /dev/urandom >"$scratch/image"
attach_at site-b host-b
nbdcopy --flush "$scratch/image" "$uri"
guest 3 before
tools probe --host host-a >/dev/null
# Far reads take 40 ms at least.
target='p50-read<=20ms'
# Of the reads that it was made for all but a few are near then.
wait_until 60 "the heat to be told" eval 'tools prepare-move disk --host host-a --share 0.95 --dry-run >"$scratch/log/plan" 2>&1' ||
	die "no plan: $(cat "$scratch/log/plan")"

began=$(date +%s%N)
tools prepare-move disk --host host-a --share 0.95 --detach-from-terminal >>"$scratch/log/moves" 2>&1 || die "no job"
tools job watch disk >>"$scratch/log/moves" || die "prepare-move failed: $(tools job show disk)"
elapsed=$((($(date +%s%N) - began) / 1000000))
copied=$(job 'd["progress"]["copied_bytes"]')
# 5 % above, and what the bucket holds
[ "$copied" -le $((elapsed * copy_rate_mib * 1101 + (3 << 20))) ] || die "$copied bytes in $elapsed ms: the rate of the node was not kept"
hot=$(on a1)
[ "$hot" -ge 8 ] && [ "$hot" -le 32 ] || die "$hot chunks were copied near host-a"
[ "$(on b1)" = 128 ] && [ "$(on b2)" = 128 ] || die "something was taken away before the move"
say "prepared: $hot of 128 chunks near host-a, $copied bytes in $elapsed ms at ${copy_rate_mib} MiB/s"

front_detach disk
attach_at site-a host-a
guest 3 after
[ "$(p50_ms before)" -lt 20 ] || die "near reads took $(p50_ms before) ms: this machine is too busy to say anything"
[ "$(p50_ms after)" -lt 20 ] || die "the first seconds at host-a do not meet the target: $(p50_ms after) ms"
nbdcopy "$uri" "$scratch/copy"
cmp -n $((32 << 20)) "$scratch/copy" "$scratch/image" || die "what was flushed at host-b is not there at host-a"
say "handed over: p50 $(p50_ms before) ms at host-b, $(p50_ms after) ms at host-a at once"

tools relocate disk --host host-a --drop-surplus >>"$scratch/log/moves" || die "the surplus did not go"
wait_in_sync disk 30
[ $(($(on a1) + $(on b1) + $(on b2))) = 256 ] || die "not two copies of each chunk: $(on a1) $(on b1) $(on b2)"
[ "$(on a1)" = "$hot" ] || die "the copies near the host went"
say "surplus dropped: $(on a1) $(on b1) $(on b2) chunks on a1, b1, b2"

# Then all lies far from it: what is to follow waits for its hours, and pauses when they end.
hours() { echo "$(date -u -d "$1" +%H:%M)-$(date -u -d "$2" +%H:%M)"; }
front_detach disk
tools relocate disk --to-site site-b >>"$scratch/log/moves" 2>&1 || die "the detached volume did not move"
attach_at site-a host-a
guest 3 again
tools relocate disk --follow --target "$target" --once --quiet-hours "$(hours '+2 hours' '+3 hours')" >"$scratch/log/rest" 2>&1
grep -q 'not the time to move' "$scratch/log/rest" || die "outside of its hours: $(cat "$scratch/log/rest")"
setsid "$bin/ukai-tools" relocate disk --follow --target "$target" --rate 1MiB/s --every 1s >"$scratch/log/follow" 2>&1 &
follow=$!
wait_until 30 "a job by --follow" grep -q 'are moved towards host host-a' "$scratch/log/follow" || {
	cat "$scratch/log/follow" >&2
	die "nothing follows"
}
end_process $follow 10 || die "--follow does not end on SIGTERM"
[ "$(job 'd["job"]["state"]')" = running ] || die "the job ended with --follow"
# Its hours have ended since.
tools relocate disk --follow --target "$target" --once --quiet-hours "$(hours '+2 hours' '+3 hours')" >"$scratch/log/rest" 2>&1
grep -q 'is paused' "$scratch/log/rest" || die "$(cat "$scratch/log/rest")"
[ "$(job 'd["job"]["state"]')" = paused ] || die "it goes on outside of its hours"
tools job resume disk >/dev/null
tools job set-rate disk none >/dev/null
tools job watch disk >>"$scratch/log/moves" || die "the job of --follow failed: $(tools job show disk)"
[ "$(on a1)" -ge 8 ] || die "nothing lies near host-a"
say "followed to host-a, paused out of hours: $(on a1) chunks on a1"
front_detach disk
tools scrub disk >/dev/null || die "the replicas differ"

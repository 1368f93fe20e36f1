#!/usr/bin/env bash
# A real /dev/ublkb0 whose data lies 40 ms away (the kernel's netem, not our own link): probed, planned, moved next to
# the host by latency target under verified load; then reads do not travel any more, and one copy stays far away.
# guests: uml
# limit: 400
. "$(dirname "$0")/lib.sh"
begin
round_trip_us=40000
ip netns add far
ip link add near type veth peer name far netns far
ip addr add 10.79.0.1/24 dev near
ip -n far addr add 10.79.0.2/24 dev far
ip link set near up
ip -n far link set far up
ip -n far link set lo up
tc qdisc add dev near root netem delay $((round_trip_us / 2))us limit 10000
ip netns exec far tc qdisc add dev far root netem delay $((round_trip_us / 2))us limit 10000
SITE_NETNS=([site-b]=far) SITE_ADDRESS=([site-b]=10.79.0.2)

node_create a1 site-a 512MiB
node_create b1 site-b 512MiB
node_create b2 site-b 512MiB
tools volume create disk --size 64MiB --chunk 1MiB --place site-b:2
attach disk

# read_median_us: of single reads of 4 KiB, as the guest waits for them
read_median_us() {
	fio --name=reads --ioengine=libaio --filename="$device" --rw=randread --bs=4k --iodepth=1 --direct=1 --size=32m \
		--number_ios=100 --output-format=json --output="$scratch/log/reads.json" || die "fio failed"
	json "$scratch/log/reads.json" 'd["jobs"][0]["read"]["clat_ns"]["percentile"]["50.000000"] // 1000'
}

load_start --ioengine=libaio --filename="$device" --size=32m --rate_iops=200
more_load 8000 "far away"
before=$(read_median_us)
[ "$before" -ge $round_trip_us ] || die "reads that travel $round_trip_us us took $before us"
tools probe --host "$(hostname)" | tee "$scratch/log/probe"
awk -v least=$round_trip_us '$2 == "site-b" && $4 < least { exit 1 }' "$scratch/log/probe" ||
	die "round trips to site-b cannot be below $round_trip_us us"

wanted=(--target 'p50-read<=20ms' --copies site-b:1)
tools plan disk "${wanted[@]}"
tools relocate disk "${wanted[@]}" --rate 32MiB/s --protect 'p99<=500ms'
wait_in_sync disk 60
more_load 2000 "near"
after=$(read_median_us)
load_stop
[ "$after" -lt $round_trip_us ] || die "reads took $before us far away, and take $after us now"
say "median of reads: $before us far away, $after us after the move"
tools volume map disk --picture
front_detach disk
expect_no_device
tools scrub disk || die "the replicas differ"

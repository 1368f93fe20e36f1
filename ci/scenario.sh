# What the tests with real processes share, in guests and on the host: a cluster of two sites, the
# ends of the logs when a test fails, checks of data. Sourced after lib.sh and cluster.sh; the
# sourcing test sets `scratch` (a folder on a disk with real O_DIRECT).
# shellcheck shell=bash

on_exit() {
	local status=$?
	trap - EXIT
	if [ $status -ne 0 ]; then
		warn "--- failed with status $status; the ends of the logs:"
		tail -n 25 "$scratch"/log/* >&2 2>/dev/null || true
	fi
	cluster_end || status=1
	if declare -F scenario_end >/dev/null; then scenario_end $status; fi
	exit "$status"
}

# two_nodes [SIZE]: a1 in site-a, b1 in site-b
two_nodes() {
	node_create a1 site-a "${1:-768MiB}"
	node_create b1 site-b "${1:-768MiB}"
}

volume_create() { # NAME SIZE [ARGUMENT...]: two copies, one in each site
	local name=$1 size=$2
	shift 2
	tools volume create "$name" --size "$size" --place site-a:1,site-b:1 "$@"
}

# equal_from_each_node VOLUME NODE NODE: the bytes of the detached volume, read from each node alone,
# are equal. The front reads a chunk from one replica; only this shows that the other is as good.
# The test says how to attach and what to read: `attach` and `read_all`.
equal_from_each_node() {
	local volume=$1 node other sum sums=()
	shift
	for node in "$@"; do
		for other in "$@"; do [ "$other" = "$node" ] || node_stop "$other"; done
		attach "$volume"
		sum=$(read_all | sha256sum | cut -d' ' -f1)
		sums+=("$sum")
		say "read from $node alone: $sum"
		front_detach "$volume"
		for other in "$@"; do [ "$other" = "$node" ] || node_start "$other"; done
		settle "$volume"
	done
	[ "$(printf '%s\n' "${sums[@]}" | sort -u | wc -l)" = 1 ] || die "the replicas differ"
}

# check_fio ARGUMENT...: a fio job that must end well and verify without an error
check_fio() {
	fio --direct=1 --verify_fatal=1 --verify_state_save=0 --group_reporting "$@" >"$scratch/log/fio" 2>&1 || {
		tail -30 "$scratch/log/fio" >&2
		die "fio failed: $*"
	}
	grep -E '(read|write):|err=' "$scratch/log/fio" | head -3
}

# load_start ARGUMENT...: a fio job in the background that writes and verifies until load_stop
load_start() {
	fio --name=load --rw=randrw --bs=4k --iodepth=16 --direct=1 --verify=crc32c --verify_backlog=256 \
		--verify_fatal=1 --verify_state_save=0 --time_based --runtime=3600 "$@" >"$scratch/log/load" 2>&1 &
	load=$!
}

# load_stop: ends it; it must have run until now and must have seen no error
load_stop() {
	still_running "$load" || {
		tail -30 "$scratch/log/load" >&2
		die "the load ended by itself"
	}
	kill -INT "$load"
	wait "$load" 2>/dev/null || true
	grep -E '(read|write):' "$scratch/log/load"
	! grep -qE 'verify( type mismatch|: bad)|err=[^0 ]' "$scratch/log/load" || {
		tail -30 "$scratch/log/load" >&2
		die "the load saw an error"
	}
}

# node_used VOLUME: bytes of disk that the nodes of the volume have allocated, together
node_used() {
	local slots
	slots=$(tools --json stats "$1" | json - 'sum(node["slots_used"] for node in d["nodes"])')
	echo $((slots << 20))
}

# A small UKAI cluster of real processes on this machine, with the SQLite metadata file. Sourced by
# the demo, the tests (host and guest) and the benchmarks, after lib.sh.
#
#   cluster_begin DIR                 DIR must not be on tmpfs: nodes insist on real O_DIRECT
#   node_create NAME SITE [SIZE]      formats and starts
#   node_start|node_stop|node_kill NAME
#   front_attach VOLUME [ARGUMENT...] sets DEVICE[VOLUME]: /dev/ublkbN or an NBD URI
#   front_detach VOLUME
#   wait_in_sync VOLUME SECONDS
#   cluster_end                       stops everything that runs
#
# Sites at a distance (ci/story/sites): with SITE_NETNS[SITE] and SITE_ADDRESS[SITE] set, the nodes of SITE
# run in that network namespace and listen on that address.
# shellcheck shell=bash

# Where the programs are: UKAI_BIN, else the release build.
bin=${UKAI_BIN:-$repo/target/release}

declare -A NODE_PID NODE_PORT NODE_SITE FRONT_PID DEVICE SITE_NETNS SITE_ADDRESS

cluster_begin() {
	cluster=$1
	mkdir -p "$cluster"/{nodes,run,log}
	export UKAI_META=sqlite:$cluster/meta.db
	local program
	for program in chunkstore ublk-front ukai-tools; do
		[ -x "$bin/$program" ] || die "no $bin/$program; run cargo build --release"
	done
	next_port=${UKAI_PORTS:-$(free_ports 64)}
}

# The first node of a cluster also founds it. Without a size: $cluster/nodes/NAME is (a link to) a device.
node_create() { # NAME SITE [SIZE]
	local found=() size=()
	[ -z "${3:-}" ] || size=(--size "$3")
	[ -e "$cluster/meta.db" ] || found=(--cluster-init)
	"$bin/chunkstore" format "$cluster/nodes/$1" "${size[@]}" --site "$2" --name "$1" "${found[@]}" \
		>>"$cluster/log/$1" 2>&1 || {
		cat "$cluster/log/$1" >&2
		die "format of node $1 failed"
	}
	# A fixed address for life, like a real node's: a restart comes back where it was.
	NODE_PORT[$1]=$next_port
	NODE_SITE[$1]=$2
	next_port=$((next_port + 1))
	node_start "$1"
}

node_start() { # NAME
	local log=$cluster/log/$1 site=${NODE_SITE[$1]:-none} inside=() reached=(--unix-dir "$cluster/run/$1")
	local address=${SITE_ADDRESS[$site]:-127.0.0.1}
	[ -z "${SITE_NETNS[$site]:-}" ] || {
		inside=(ip netns exec "${SITE_NETNS[$site]}")
		# A Unix socket would be a way around the distance: the sites share the file system.
		reached=(--insecure-plaintext --host "$1")
	}
	mkdir -p "$cluster/run/$1"
	: >"$cluster/run/$1.out"
	# A session of its own: neither an interrupt from the terminal nor its end reaches the daemons.
	setsid "${inside[@]}" "$bin/chunkstore" run "$cluster/nodes/$1" --listen "$address:${NODE_PORT[$1]}" \
		"${reached[@]}" ${NODE_ARGUMENTS:-} >"$cluster/run/$1.out" 2>>"$log" &
	NODE_PID[$1]=$!
	wait_until 60 "node $1 to say ready" grep -q '^ready' "$cluster/run/$1.out" || {
		tail -20 "$log" >&2
		die "node $1 did not start"
	}
}

node_stop() { # NAME: as a service manager does
	end_process "${NODE_PID[$1]}" 30 || die "node $1 did not stop on SIGTERM"
	unset "NODE_PID[$1]"
}

node_kill() { # NAME: without any warning
	kill -KILL "${NODE_PID[$1]}"
	# bash would report the killed job on stderr when it reaps it
	wait "${NODE_PID[$1]}" 2>/dev/null || true
	unset "NODE_PID[$1]"
}

front_attach() { # VOLUME [ARGUMENT...]
	local volume=$1 out=$cluster/run/front-$1.out log=$cluster/log/front-$1
	shift
	: >"$out"
	setsid "$bin/ublk-front" attach "$volume" --run-dir "$cluster/run" "$@" >"$out" 2>>"$log" &
	FRONT_PID[$volume]=$!
	if ! wait_until 60 "front of $volume to say attached" front_said_attached "$volume" ||
		! grep -q '^attached' "$out"; then
		cat "$out" >&2
		tail -20 "$log" >&2
		die "volume $volume was not attached"
	fi
	DEVICE[$volume]=$(awk '$1 == "attached" { print $3; exit }' "$out")
}

# True also when the front ended, so that its failure is seen at once.
front_said_attached() {
	grep -q '^attached' "$cluster/run/front-$1.out" || is_gone "${FRONT_PID[$1]}"
}

front_detach() { # VOLUME
	"$bin/ublk-front" detach "$1" --run-dir "$cluster/run" >>"$cluster/log/front-$1" 2>&1 || die "detach of $1 failed; see $cluster/log/front-$1"
	wait_until 30 "front of $1 to end" is_gone "${FRONT_PID[$1]}" || die "front of $1 did not end after detach"
	wait "${FRONT_PID[$1]}" 2>/dev/null || true
	unset "FRONT_PID[$1]" "DEVICE[$1]"
}

front_kill() { # VOLUME
	kill -KILL "${FRONT_PID[$1]}"
	wait "${FRONT_PID[$1]}" 2>/dev/null || true
	unset "FRONT_PID[$1]"
}

# settle VOLUME: brings every replica of a detached volume back in sync
settle() {
	"$bin/ublk-front" settle "$1" --run-dir "$cluster/run" >>"$cluster/log/settle" 2>&1 || {
		tail -20 "$cluster/log/settle" >&2
		die "settle of $1 failed"
	}
}

tools() { "$bin/ukai-tools" "$@"; }

volume_state() { tools --json volume show "$1" | json - 'd["state"]'; }
is_in_sync() { [ "$(volume_state "$1")" = "in sync" ]; }

# wait_in_sync VOLUME SECONDS: until every replica is in sync and none is left to be deleted
wait_in_sync() {
	wait_until "$2" "volume $1 to be in sync" is_in_sync "$1" || {
		tools volume show "$1" >&2
		die "volume $1 is not in sync"
	}
}

# volume_nodes VOLUME: names of the nodes that hold its replicas, in order of site and name
volume_nodes() { tools --json volume show "$1" | json - '[n["node"] for n in d["nodes"]]'; }

cluster_end() {
	local pid
	for pid in "${FRONT_PID[@]}"; do end_process "$pid" 20 || warn "a front had to be killed"; done
	for pid in "${NODE_PID[@]}"; do end_process "$pid" 20 || warn "a node had to be killed"; done
	FRONT_PID=() NODE_PID=()
}

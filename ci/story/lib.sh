# What the story of a relocation is made of: two sites, a guest at site-a that never stops, marks in time.
# Sourced after lib.sh, cluster.sh and scenario.sh by a script that ci/story/sites runs at site-a.
#
# Everything measured goes to a folder for each volume: marks ("NAME MS" lines), what fio logged of every
# I/O, what the copies were seen to have copied. ci/story/figures.py makes figures and verdicts of it.
# shellcheck shell=bash

host=hypervisor-a
declare -A GUEST_PID

# sites_begin FOLDER: a cluster whose sites are those of ci/story/sites
sites_begin() {
	[ -n "${UKAI_SITE_A_NETNS:-}" ] || die "to be run by ci/story/sites"
	SITE_NETNS=([site-a]=$UKAI_SITE_A_NETNS [site-b]=$UKAI_SITE_B_NETNS)
	SITE_ADDRESS=([site-a]=$UKAI_SITE_A_ADDRESS [site-b]=$UKAI_SITE_B_ADDRESS)
	cluster_begin "$1"
}

now_ms() { date +%s%3N; }
# mark VOLUME NAME: it is now
mark() { echo "$2 $(now_ms)" >>"$scratch/$1/marks"; }

# attach_here VOLUME: over NBD on a Unix socket
attach_here() {
	mkdir -p "$scratch/$1"
	front_attach "$1" --frontend nbd --host $host --nbd-unix "$scratch/$1.sock"
}

# fill VOLUME MIB: every sector written, with the header that fio verifies
fill() {
	fio --name=fill --ioengine=nbd --uri="${DEVICE[$1]}" --rw=write --bs=256k --iodepth=8 --size="$2m" --end_fsync=1 \
		--verify=crc32c --verify_interval=4k --do_verify=0 --verify_state_save=0 >"$scratch/log/fill" 2>&1 || {
		tail -5 "$scratch/log/fill" >&2
		die "fill of $1 failed"
	}
}

# read_all_back VOLUME MIB: every sector has what was written to this place last, by its header and checksum
read_all_back() {
	fio --name=check --ioengine=nbd --uri="${DEVICE[$1]}" --rw=read --bs=256k --iodepth=8 --size="$2m" \
		--verify=crc32c --verify_interval=4k --verify_fatal=1 --verify_state_save=0 >"$scratch/log/check" 2>&1 || {
		tail -5 "$scratch/log/check" >&2
		die "$1 has wrong data"
	}
	say "all $2 MiB of $1 read and verified"
}

# guest_start VOLUME JOB-ARGUMENT...: fio with these jobs until guest_stop; each I/O's latency is logged
guest_start() {
	local volume=$1
	shift
	fio --ioengine=nbd --uri="${DEVICE[$volume]}" --bs=4k --direct=1 --thread --time_based --runtime=3600 \
		--verify=crc32c --verify_fatal=1 --verify_state_save=0 --rate_process=poisson \
		--write_lat_log="$scratch/$volume/guest" --log_unix_epoch=1 --disable_clat=1 --disable_slat=1 \
		--output-format=json --output="$scratch/$volume/fio.json" "$@" >"$scratch/log/guest-$volume" 2>&1 &
	GUEST_PID[$volume]=$!
}

guest_runs() { # VOLUME
	still_running "${GUEST_PID[$1]}" || {
		tail -5 "$scratch/log/guest-$1" "$scratch/$1/fio.json" >&2
		die "the guest of $1 ended by itself"
	}
}

# guest_stop VOLUME: it must have run until now, and must have seen no error
guest_stop() {
	guest_runs "$1"
	kill -INT "${GUEST_PID[$1]}"
	wait "${GUEST_PID[$1]}" || true
	unset "GUEST_PID[$1]"
}

guests_end() {
	local pid
	for pid in "${GUEST_PID[@]}"; do
		kill -KILL "$pid" 2>/dev/null || true
		wait "$pid" 2>/dev/null || true
	done
	GUEST_PID=()
}

# guest_for VOLUME SECONDS: time passes for the guest, which must live
guest_for() {
	local end=$((SECONDS + $2))
	while [ $SECONDS -lt $end ]; do
		guest_runs "$1"
		sleep 0.5
	done
}

# front_sees VOLUME: what its front has measured since it was attached; fio tells only when it ends
front_sees() {
	tools --json stats "$1" | json - '["%-6s p50 %7.2f ms   p99 %7.2f ms   (%d of them, by the front)" % (kind, d["front"][kind]["p50_us"] / 1000,
		d["front"][kind]["p99_us"] / 1000, d["front"][kind]["count"]) for kind in ("read", "write")]'
}

# score VOLUME: what the move was to bring against what it brought; only what was measured after it counts, so it may
# have to be waited for
score() {
	local file=$scratch/$1/score.json end=$((SECONDS + 20))
	while :; do
		tools --json plan --score "$1" >"$file"
		[ "$(json "$file" '"none" if d["measured"] is None else "some"')" = none ] || break
		[ $SECONDS -lt $end ] || die "the front of $1 has not told what it measured after the move"
		guest_for "$1" 2
	done
	tools plan --score "$1"
}

figures() { # WHAT VOLUME ARGUMENT...
	local what=$1 folder=$2
	shift 2
	[ "${folder:0:1}" = / ] || folder=$scratch/$folder
	python3 "$repo/ci/story/figures.py" "$what" "$folder" "$@"
}

# copies_watch VOLUME: until copies_watched, what the nodes have taken from each other, with the time. A volume's
# statistics are those of its nodes now; `census` has a copy on each.
copies_watch() {
	local volume=$1
	(
		while :; do
			echo "$(now_ms) $(tools --json stats census | json - 'sum(n["pulled_sectors"] - n["pulled_zeroes"] for n in d["nodes"])')"
			sleep 0.4
		done >>"$scratch/$volume/copied" 2>>"$scratch/log/copies"
	) &
	copies=$!
}
copies_watched() {
	kill "$copies" 2>/dev/null || true
	wait "$copies" 2>/dev/null || true
	copies=
}

# picture VOLUME WHEN: where its chunks are now, and how hot
picture() {
	tools volume map "$1" --picture
	tools volume map "$1" --json --heat >"$scratch/$1/map-$2.json"
}

# draw VOLUME: latency over time and the maps, as PNG in $out and the former in the terminal
draw() {
	local folder=$scratch/$1 begin end times width colours=0
	figures series "$1" >"$folder/series"
	figures rate "$1" >"$folder/rate"
	read -r begin end < <(figures span "$1")
	times="series='$folder/series'; copied='$folder/rate'; begin=$begin; end=$end; target_ms=$target_ms"
	gnuplot -e "$times; title='volume $1: latency that the guest at site-a sees'; png='$out/$1-latency.png'" \
		"$repo/ci/story/latency.gp"
	for when in before after; do
		figures map "$1" "$when" >"$folder/map-$when"
	done
	gnuplot -e "before='$folder/map-before'; after='$folder/map-after'; volume='$1'; png='$out/$1-map.png'" \
		"$repo/ci/story/map.gp"
	width=100
	if [ -t 1 ]; then
		colours=1
		width=$(stty size 2>/dev/null | cut -d' ' -f2)
		[ "${width:-0}" -ge 60 ] || width=100
	fi
	gnuplot -e "$times; title='volume $1, latency at site-a, ms'; columns=$width; lines=24; colours=$colours" \
		"$repo/ci/story/latency.gp"
}

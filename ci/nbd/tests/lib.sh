# Sourced first by every test of the NBD frontend on the host: a cluster in a scratch folder.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
. ci/lib.sh
. ci/cluster.sh
. ci/scenario.sh

# Not /tmp, which may be a tmpfs; and short, since paths of Unix sockets are.
scratch=$(mktemp -d "${UKAI_SCRATCH:-/var/tmp}/ukai-nbd.XXXXXX")

scenario_end() { # STATUS
	local kept=$repo/target/ci/nbd-$(basename "$0" .sh).logs
	rm -rf "$kept"
	if [ "$1" != 0 ]; then
		mkdir -p "$(dirname "$kept")"
		cp -r "$scratch/log" "$kept"
		warn "all logs: $kept"
	fi
	rm -rf "$scratch"
}
trap on_exit EXIT

begin() { cluster_begin "$scratch"; }

# attach VOLUME [ARGUMENT...]: over NBD on a Unix socket; `uri` is then its address
attach() {
	front_attach "$1" --frontend nbd --nbd-unix "$scratch/$1.sock" "${@:2}"
	uri=${DEVICE[$1]}
	[[ $uri == nbd+unix://* ]] || die "attach said $uri, which is no NBD URI"
}

read_all() { nbdcopy "$uri" -; }

# written: guest writes that the front has completed
written() { tools --json stats "$1" 2>/dev/null | json - 'd["front"]["write"]["count"]'; }
wrote_past() { [ "$(written "$1")" -gt "$2" ]; }

# more_load VOLUME WRITES WHEN: waits until so many more have been completed
more_load() {
	local goal=$(($(written "$1") + $2))
	wait_until 60 "$2 more writes $3" wrote_past "$1" $goal || die "the load stands still $3"
}

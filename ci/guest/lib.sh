# Shared by the guest scripts: where kernels are kept, and how to get Debian packages of another
# suite without touching this machine's own package state.
# shellcheck shell=bash

# Built and fetched kernels; a few dozen MB that are worth keeping between runs.
guest_cache() {
	echo "${UKAI_GUEST_CACHE:-$HOME/.cache/ukai-guest}"
}

# private_apt DIR SUITE: fills the array `apt` with options under which apt-get and apt-cache use
# SUITE, with all their state under DIR. An empty SUITE means the machine's own suites.
private_apt() {
	local dir=$1 suite=$2 mirror
	# The folders belong to root: apt's download user could not write there.
	apt=(-o APT::Sandbox::User=root)
	[ -n "$suite" ] || return 0
	mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
	# The mirror this machine already uses, so that proxies and local mirrors are honoured.
	mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' |
		grep debian | grep -v security | head -1)
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" \
		>"$dir/sources.list"
	apt+=(-o "Dir::Etc::sourcelist=$dir/sources.list" -o Dir::Etc::sourceparts=/dev/null
		-o "Dir::State::lists=$dir/lists" -o "Dir::Cache=$dir/cache")
	apt-get "${apt[@]}" -q=2 update
}

# module_files ROOT VERSION NAME: files of a module and of what it needs, in loading order.
# Prints nothing for a module that is built in or does not exist.
module_files() {
	modprobe -d "$1" -S "$2" --show-depends "$3" 2>/dev/null | awk '$1 == "insmod" { print $2 }'
}

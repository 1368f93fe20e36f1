# Shared by the scripts of ci/ and perf/: messages, waiting for conditions, ending what was started.
# shellcheck shell=bash

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { echo "$*"; }
warn() { echo "$*" >&2; }
die() {
	warn "error: $*"
	exit 1
}

# wait_until SECONDS WHAT COMMAND...: runs COMMAND until it succeeds; fails with a message.
wait_until() {
	local limit=$1 what=$2 deadline
	shift 2
	deadline=$((SECONDS + limit))
	until "$@" >/dev/null 2>&1; do
		if [ $SECONDS -ge $deadline ]; then
			warn "gave up after ${limit} s waiting for: $what"
			return 1
		fi
		sleep 0.1
	done
}

# still_running PID: true while the process exists and is no zombie.
still_running() {
	local state
	state=$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -c1) && [ -n "$state" ] && [ "$state" != Z ]
}

is_gone() { ! still_running "$1"; }

# show_threads PID: where each thread of a stuck process is, in the kernel and, with gdb, in the program
show_threads() {
	local task
	for task in /proc/"$1"/task/*; do
		echo "--- thread $(cat "$task/comm"), state and ticks: $(sed 's/.*) //' "$task/stat" | cut -d' ' -f1,12,13)"
		head -6 "$task/stack" 2>/dev/null
	done
	! command -v gdb >/dev/null || timeout 60 gdb -p "$1" -batch -ex 'thread apply all bt 14' 2>/dev/null |
		grep -E '^(Thread|#)' | cut -c1-200
}

# end_process PID [SECONDS]: TERM, then KILL if it does not end in time (and fails then).
end_process() {
	local pid=$1 limit=${2:-10}
	kill -TERM "$pid" 2>/dev/null || true
	if ! wait_until "$limit" "process $pid to end" is_gone "$pid"; then
		show_threads "$pid" >&2
		kill -KILL "$pid" 2>/dev/null || true
		wait "$pid" 2>/dev/null || true
		return 1
	fi
	wait "$pid" 2>/dev/null || true
}

# free_ports COUNT: the first of COUNT consecutive TCP ports of which none is in use now.
free_ports() {
	python3 - "$1" <<'PYTHON'
import random, socket, sys
count = int(sys.argv[1])
while True:
    base = random.randrange(20000, 30000)
    try:
        held = []
        for port in range(base, base + count):
            held.append(socket.socket())
            held[-1].bind(("127.0.0.1", port))
        print(base)
        break
    except OSError:
        pass
PYTHON
}

# json FILE-OR-'-' EXPRESSION: evaluates a Python expression over the document `d`. What a program
# printed before the document is left out.
json() {
	python3 -c '
import json, re, sys
text = (sys.stdin if sys.argv[1] == "-" else open(sys.argv[1])).read()
d = json.loads(text[re.search(r"^[{\[]", text, re.M).start():])
result = eval(sys.argv[2])
print("\n".join(map(str, result)) if isinstance(result, (list, tuple)) else result)' "$@"
}

#!/bin/bash
# Starts and stops real ZooKeeper servers on loopback, one or an ensemble, for tests and trials.
#
#   zk.sh start DIR [COUNT] [OWNER_PID]   start COUNT (1) servers with all their files in DIR; wait until
#                                         they serve; print host:port,... If OWNER_PID is given, they
#                                         are stopped when that process ends, however it ends.
#   zk.sh stop DIR                        kill all servers of DIR
#   zk.sh kill DIR N                      kill -9 server N (1..COUNT)
#   zk.sh run DIR N                       start server N again
#   zk.sh wait DIR                        wait until every running server serves
#   zk.sh leader DIR                      print the number of the server that leads
#
# Needs Debian's libzookeeper-java and a Java runtime; says so (exit 3) if they are missing.
set -euo pipefail

jar=/usr/share/java/zookeeper.jar
main=org.apache.zookeeper.server.quorum.QuorumPeerMain

die() { echo "zk.sh: $*" >&2; exit 1; }

need_packages() {
    if ! command -v java >/dev/null || [ ! -e "$jar" ]; then
        echo "zk.sh: java or $jar is missing: apt-get install libzookeeper-java default-jre-headless" >&2
        exit 3
    fi
}

# A port nobody listens on. Races with other processes are possible; `start` then tries others.
free_port() {
    local port
    for _ in $(seq 200); do
        # Below the kernel's range for outgoing connections, so that none of those takes it.
        port=$((12000 + (RANDOM * 32768 + RANDOM) % 20000))
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            echo "$port"
            return
        fi
    done
    die "no free port found"
}

client_port() { sed -n 's/^clientPort=//p' "$1/zoo.cfg"; }

# The mode a server reports (standalone, leader, follower), or nothing while it does not serve.
mode() {
    local port line
    port=$(client_port "$1")
    {
        exec 3<>"/dev/tcp/127.0.0.1/$port" || return 0
        printf srvr >&3 || return 0
        while IFS= read -r -t 2 line <&3; do
            case $line in Mode:*) echo "${line#Mode: }" ;; esac
        done
        exec 3>&-
    } 2>/dev/null || true
}

alive() { [ -s "$1/pid" ] && kill -0 "$(cat "$1/pid")" 2>/dev/null; }

run_server() {
    local dir=$1
    # setsid: a signal for the test's process group must not hit the servers.
    setsid java -Xmx256m -Xms64m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp "$jar" "$main" \
        "$dir/zoo.cfg" >>"$dir/log" 2>&1 </dev/null &
    echo $! >"$dir/pid"
}

wait_ready() {
    local dir=$1 server
    for server in "$dir"/server*; do
        alive "$server" || continue
        local ready=
        for _ in $(seq 300); do
            if [ -n "$(mode "$server")" ]; then ready=1; break; fi
            alive "$server" || return 1
            sleep 0.1
        done
        [ -n "$ready" ] || return 1
    done
}

configure() {
    local dir=$1 count=$2 n peers=
    if [ "$count" -gt 1 ]; then
        for n in $(seq "$count"); do
            peers+="server.$n=127.0.0.1:$(free_port):$(free_port)"$'\n'
        done
        peers+=$'initLimit=20\nsyncLimit=10\n'
    fi
    for n in $(seq "$count"); do
        mkdir -p "$dir/server$n/data"
        echo "$n" >"$dir/server$n/data/myid"
        cat >"$dir/server$n/zoo.cfg" <<END
tickTime=500
dataDir=$dir/server$n/data
clientPortAddress=127.0.0.1
clientPort=$(free_port)
admin.enableServer=false
4lw.commands.whitelist=srvr
maxClientCnxns=0
$peers
END
    done
}

stop_all() {
    local dir=$1 server
    for server in "$dir"/server*; do
        if alive "$server"; then kill -9 "$(cat "$server/pid")" 2>/dev/null || true; fi
        rm -f "$server/pid"
    done
}

start() {
    local dir count=${2:-1} owner=${3:-} server list=
    mkdir -p "$1"
    dir=$(realpath "$1")
    need_packages
    for attempt in 1 2 3; do
        rm -rf "$dir"/server*
        configure "$dir" "$count"
        for server in "$dir"/server*; do run_server "$server"; done
        if wait_ready "$dir"; then break; fi
        stop_all "$dir"
        [ "$attempt" -lt 3 ] || die "the servers do not start; see $dir/server*/log"
    done
    if [ -n "$owner" ]; then
        setsid bash -c 'tail --pid="$1" -f /dev/null; exec bash "$2" stop "$3"' _ "$owner" "$(realpath "$0")" "$dir" \
            >/dev/null 2>&1 </dev/null &
    fi
    for server in "$dir"/server*; do list+="127.0.0.1:$(client_port "$server"),"; done
    echo "${list%,}"
}

[ $# -ge 2 ] || { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2; }
command=$1 dir=$2
case $command in
    start) start "${@:2}" ;;
    stop) stop_all "$dir" ;;
    kill) kill -9 "$(cat "$dir/server$3/pid")"; rm -f "$dir/server$3/pid" ;;
    run) run_server "$dir/server$3" ;;
    wait) wait_ready "$dir" || die "not every server serves; see $dir/server*/log" ;;
    leader)
        for server in "$dir"/server*; do
            alive "$server" || continue
            if [ "$(mode "$server")" = leader ]; then echo "${server##*server}"; exit 0; fi
        done
        die "no server leads"
        ;;
    *) die "unknown command $command" ;;
esac

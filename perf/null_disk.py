"""The systems of perf/echo: a node on memory that answers at once, and a TCP echo of the same bytes. Servers on CPU 0, clients on 1."""
import json
import os
import resource
import statistics

from load import JOBS, Bench
from process import Daemon, Failed, run
from table import Result, verdict_of
from ukai import BIN, Cluster, missing

VOLUME_BYTES = 64 << 20
# Beside the volume: the log, and chunks that are being written anew.
NODE_BYTES = 256 << 20
CLIENT_CPU = 1
# Long enough to be awake whenever the other end answers.
POLL_US = 200

# What a request passes at each end, as perf/instructions counts it
CORES = {"read": ("node-read", "lane-read"), "write": ("node-write", "lane-write")}

POLLED = ("randread-d1", "randwrite-d1")
DEEP = ("randread-d32", "randwrite-d32", "randread-d128", "randwrite-d128")
# Of the echo's requests per second, and of its latency
LEAST, MOST = 0.8, 2.0
# Job, ours, the other, figure, what it is called, "least" or "most", limit
TARGETS = [*((job, "null-node", "echo", "iops", "ops/s", "least", LEAST) for job in DEEP),
           *((job, "null-poll", "echo-poll", "p50_us", "p50", "most", MOST) for job in POLLED)]


def core_alone(document, result, job, other):
    """Requests per second, as a part of the other's, of one that takes what the other's server does and the node's core, on a CPU that
    never waits: what is beyond it no node with these checksums and this log can do. None: the core was not timed"""
    case = CORES["read" if job.startswith("randread") else "write"][0]
    core = document["cores"].get(case)
    if not core:
        return None
    us = result.median(other, job, "server_cpu_us") + statistics.median(core)
    return 1e6 / us / result.median(other, job, "iops")


def rows(document):
    """For each target: (job, ours, the other, what, ratio or None, limit as text, the most that others took, "met", "short..." or
    "not measured")"""
    result = Result(document)
    for job, ours, other, figure, what, limit, value in TARGETS:
        ratio = result.ratio(ours, other, job, figure)
        target = f"{'>=' if limit == 'least' else '<='} {value:g}x"
        if ratio is None:
            yield job, ours, other, what, None, target, 0, "not measured"
            continue
        bound = core_alone(document, result, job, other) if what == "ops/s" else None
        others = max(share for system in (ours, other) for share in result.by_round(system, job, "other_cpu_share").values())
        yield job, ours, other, what, ratio, target, others, verdict_of(ratio, bound, limit, value, "x")


def programs_missing():
    return missing("ukai-null-node", "ukai-echo", "ukai-cores", "ukai-tools")


def on_cpu(cpu, *command):
    return ["taskset", "-c", str(cpu), *command]


class NullNode:
    def __init__(self, folder, poll_us):
        self.name = "null-poll" if poll_us else "null-node"
        self.what = f"one UKAI node on memory, over TCP, by ukai-tools bench{f', both polling for {poll_us} us' if poll_us else ''}"
        self.folder, self.poll_us = os.path.join(folder, self.name), poll_us
        self.cluster = None

    @property
    def daemons(self):
        return self.cluster.daemons if self.cluster else []

    def prepare(self):
        os.makedirs(self.folder)
        self.cluster = Cluster(self.folder)
        self.cluster.null_node("n0", NODE_BYTES, self.poll_us)
        self.cluster.volume("perf", VOLUME_BYTES, 1)
        self.client("fill").fill()

    def client(self, _job):
        bench = Bench(f"{BIN}/ukai-tools", "perf", f"{self.cluster.folder}/run", self.cluster.env)
        bench.command = [*on_cpu(CLIENT_CPU, *bench.command), "--poll-us", str(self.poll_us)]
        return bench


class EchoLoad:
    name = "ukai-echo load"

    def __init__(self, address, poll_us):
        self.command = on_cpu(CLIENT_CPU, f"{BIN}/ukai-echo", "load", "--address", address, "--poll-us", str(poll_us))

    def once(self):
        run(*self.command, "--ios", 1)

    def measure(self, job, seconds):
        direction, _, block, depth, _ = JOBS[job]
        figures = json.loads(run(*self.command, *(["--write"] if direction == "write" else []), "--depth", depth, "--block-size", block,
                                 "--seconds", seconds, seconds=seconds + 120))
        return {key: figures[key] for key in ("ios", "iops", "p50_us", "p99_us", "p999_us")}


class Echo:
    def __init__(self, folder, poll_us):
        self.name = "echo-poll" if poll_us else "echo"
        self.what = f"a TCP echo of the same bytes{f', both ends polling for {poll_us} us' if poll_us else ''}"
        self.folder, self.poll_us = folder, poll_us
        self.daemons, self.address = [], None

    def prepare(self):
        log = os.path.join(self.folder, f"{self.name}.log")
        server = Daemon(log, *on_cpu(0, f"{BIN}/ukai-echo", "serve", "--poll-us", str(self.poll_us)))
        self.daemons.append(server)
        server.wait_ready("saying ready", lambda: server.said().endswith("\n"))
        word, self.address = server.said().split()
        if word != "ready":
            raise Failed(f"ukai-echo said {server.said()}")

    def client(self, _job):
        return EchoLoad(self.address, self.poll_us)


def core_us(case, few=20_000, many=120_000):
    """CPU us of one request of 4 KiB in a core alone: in the same binary as perf/instructions counts"""
    def spent(count):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run(*on_cpu(CLIENT_CPU, f"{BIN}/ukai-cores", case, count))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (spent(many) - spent(few)) / (many - few) * 1e6

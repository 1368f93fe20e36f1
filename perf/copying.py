"""How fast data is copied from node to node when no limit is set: relocation and resync, beside what the disk and the network
of the same machine do alone."""
import datetime
import os
import re
import shutil
import signal
import subprocess
import sys

from load import Bench, Fio
from process import Daemon, Failed, Others, run
from ukai import BIN, NODE_SPARE, REPO, Cluster

MIB, SECTOR = 1 << 20, 4096
SIZE, RESYNC = 1 << 30, 512 << 20
# Of reading and writing at once
BOTH_S = 2
# Until a copy is given up
COPY_S_MAX = 300
# More is better in all of them, and a limit is the least.
LEAST = True
ROWS = {
    "copy": ("copy of a relocation without --rate, against min(raw read, loopback)", "x", 0.8),
    "copy-attached": ("the same, volume attached over NBD and idle", "x", 0.8),
    "copy-resync": (f"copy of a resync ({RESYNC // MIB} MiB missed), against the same", "x", 0.8),
    "copy-rate": ("the first, relocation", "MiB/s", None),
    "copy-attached-rate": ("the second, relocation of the attached volume", "MiB/s", None),
    "copy-resync-rate": ("the third, resync", "MiB/s", None),
    "copy-raw-read": ("raw sequential read (O_DIRECT, 1 MiB, depth 8)", "MiB/s", None),
    "copy-loopback": ("one TCP stream on the loopback, 1 MiB sends", "MiB/s", None),
    "copy-raw-both": ("raw sequential read and write of the disk at once, the slower", "MiB/s", None),
}
CASES = ("copy", "copy-attached", "copy-resync")
LINE = re.compile(r"^(\S+Z) .*node \S+(?:: comparing \d+ chunks| is in sync: \d+ chunks compared, (\d+) sectors copied)", re.M)


def rate_of(log, size):
    """MiB/s by a front's log: from when it first began to compare what the node has until it said for the last time that the
    node is in sync (flushed). The time between two batches is in it."""
    lines = [(datetime.datetime.fromisoformat(when.replace("Z", "+00:00")), sectors) for when, sectors in LINE.findall(log)]
    copied = sum(int(sectors) for _, sectors in lines if sectors) * SECTOR
    if copied != size:
        raise Failed(f"{size >> 20} MiB were to be copied, the front says {copied >> 20}: {log[-500:]}")
    return copied / MIB / (lines[-1][0] - lines[0][0]).total_seconds()


def said_by(cluster, name, *command):
    """What a program of ours said until its end"""
    program = Daemon(f"{cluster.folder}/log/{name}", f"{BIN}/ukai-tools", *command, env=cluster.env)
    try:
        status = program.process.wait(COPY_S_MAX)
    except subprocess.TimeoutExpired:
        raise Failed(f"{' '.join(command)} took more than {COPY_S_MAX} s: {program.said()[-500:]}") from None
    finally:
        program.end()
    if status:
        raise Failed(f"{' '.join(command)}: {program.said()[-500:]}")
    return program.said()


def bench(cluster, volume):
    return Bench(f"{BIN}/ukai-tools", volume, f"{cluster.folder}/run", cluster.env)


def relocations(cluster):
    """To n1 detached, and back attached: (row, MiB/s)"""
    bench(cluster, "moved").fill()
    yield "copy", rate_of(said_by(cluster, "to-n1", "relocate", "moved", "--node", "n1"), SIZE)
    front = cluster.attach("moved")
    said_by(cluster, "back", "relocate", "moved", "--node", "n0")
    yield "copy-attached", rate_of(front.said(), SIZE)
    cluster.end(front)
    run(f"{BIN}/ukai-tools", "volume", "delete", "moved", "--yes", env=cluster.env)


def resync(cluster, node):
    cluster.volume("missed", RESYNC, 2)
    bench(cluster, "missed").fill()
    cluster.end(node, first=signal.SIGKILL)
    bench(cluster, "missed").fill()
    cluster.node_run("n1", f"{cluster.folder}/nodes/n1")
    yield "copy-resync", rate_of(said_by(cluster, "resync", "volume", "synchronize", "missed", "--wait"), RESYNC)


def ours(folder):
    """row: (MiB/s, CPUs of others from the copy before it on: what prepares a copy is in it)"""
    os.makedirs(folder)
    cluster, found = Cluster(folder), {}
    try:
        cluster.node("n0", SIZE + NODE_SPARE)
        # As long as there is no other node.
        cluster.volume("moved", SIZE, 1)
        node = cluster.node("n1", SIZE + NODE_SPARE)
        for part in (relocations(cluster), resync(cluster, node)):
            while True:
                with Others() as others:
                    row, rate = next(part, (None, None))
                if row is None:
                    break
                found[row] = rate, others.share
        return found
    finally:
        cluster.stop()
        shutil.rmtree(folder)


def raw(folder):
    """The same of what is compared with"""
    os.makedirs(folder)
    found = {}
    # fio makes both as a node's file is made: allocated, not written.
    file, other = (Fio("--ioengine=io_uring", f"--filename={folder}/{name}", f"--size={SIZE}") for name in ("read", "write"))
    try:
        file.fill()
        with Others() as others:
            rate = file.read_rate()
        found["copy-raw-read"] = rate / MIB, others.share
        with Others() as others:
            rate = min(file.read_and_write_rates(other, BOTH_S))
        found["copy-raw-both"] = rate / MIB, others.share
        with Others() as others:
            rate = float(run(sys.executable, f"{REPO}/perf/stream.py", SIZE))
        found["copy-loopback"] = rate / MIB, others.share
        return found
    finally:
        shutil.rmtree(folder)


def measure(folder, rounds, sample):
    for number in range(1, rounds + 1):
        home = f"{folder}/copy-{number}"
        os.makedirs(home)
        # Neither is always the one that finds the disk busy with what was before.
        parts = [raw, ours] if number % 2 else [ours, raw]
        try:
            found = {row: figure for part in parts for row, figure in part(f"{home}/{part.__name__}").items()}
        except Failed as error:
            return {row: str(error) for row in ROWS}
        least = min(found["copy-raw-read"][0], found["copy-loopback"][0])
        for row in CASES:
            rate, others = found[row]
            sample(f"{row}-rate", number, rate, others)
            sample(row, number, rate / least, others, bound=found["copy-raw-both"][0] / least)
        for row in ("copy-raw-read", "copy-loopback", "copy-raw-both"):
            sample(row, number, *found[row])
    return {}

"""How long a user waits for a volume of 16 TiB: from the start of ublk-front until it says that it is attached."""
import os
import select
import time

from process import Daemon, Failed, Others, run
from ukai import REPO, Cluster

TIB = 1 << 40
SIZE, SMALL = 16 * TIB, 1 << 30
ROWS = {
    "attach-sqlite": ("attach of a thin volume of 16 TiB, metadata in SQLite", "ms", 100),
    "attach-sqlite-small": ("the same, 1 GiB", "ms", None),
    "attach-zk": ("attach of a thin volume of 16 TiB, metadata in ZooKeeper (one server)", "ms", 100),
    "attach-zk-small": ("the same, 1 GiB", "ms", None),
}
ZK = f"{REPO}/ci/zk/zk.sh"
# Each volume is attached for the first time, and then again.
TIMES = 2


def timed_attach(cluster, volume, log):
    """Seconds, and the front"""
    began = time.monotonic()
    front = Daemon(log, *cluster.attach_command(volume), env=cluster.env, pipe=True)
    while True:
        if not select.select([front.process.stdout], [], [], 60)[0]:
            front.end()
            raise Failed(f"{volume} was not attached within a minute")
        line = front.process.stdout.readline()
        if line.startswith(b"attached"):
            return time.monotonic() - began, front
        if not line:
            front.end()
            raise Failed(f"ublk-front ended: {front.said()[-500:]}")


def rounds_of(store, cluster, rounds, sample):
    for name in ("n0", "n1"):
        cluster.node(name, 1 << 30)
    for number in range(1, rounds + 1):
        for row, size in ((f"attach-{store}", SIZE), (f"attach-{store}-small", SMALL)):
            volume = f"v{number}-{size >> 30}"
            cluster.volume(volume, size, 2)
            for again in range(TIMES):
                with Others() as others:
                    seconds, front = timed_attach(cluster, volume, f"{cluster.folder}/log/{volume}-{again}")
                front.end()
                sample(row, number, seconds * 1e3, others.share, again=bool(again))


def measure(folder, rounds, sample):
    gaps = {}
    for store in ("sqlite", "zk"):
        home, meta, servers = f"{folder}/attach-{store}", None, f"{folder}/zk"
        os.makedirs(home)
        if store == "zk":
            try:
                meta = f"zk:{run(ZK, 'start', servers, 1, os.getpid()).strip()}/ukai"
            except Failed as error:
                gaps.update({"attach-zk": str(error), "attach-zk-small": str(error)})
                continue
        cluster = Cluster(home, meta)
        try:
            rounds_of(store, cluster, rounds, sample)
        except Failed as error:
            gaps.update({f"attach-{store}": str(error), f"attach-{store}-small": str(error)})
        finally:
            cluster.stop()
            if meta:
                run(ZK, "stop", servers)
    return gaps

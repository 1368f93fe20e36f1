"""Memory of a node by how much it stores, and of a front by how large its volume is."""
import os
import time

from nbd import READ, SECTOR, WRITE, Nbd
from process import Failed, Others, run
from ukai import Cluster

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
CHUNK = 4 * MIB
# A node keeps books by slots of 1 MiB: one sector in each makes it keep those of all, and takes little of the disk.
SLOT = MIB
CAPACITY = 80 * GIB
# From the first on the pages in memory are as many as the node ever keeps (16 MiB of them cover 4 GiB).
STORED = [16 * GIB, 32 * GIB, 64 * GIB]
DEPTH = 16
ROWS = {
    "node-memory": ("memory of a node, per TiB stored", "MiB", 128),
    "node-memory-fixed": ("beside that: caches and buffers, full", "MiB", None),
    "node-memory-empty": ("the same node with nothing stored, after its start", "MiB", None),
    "node-memory-restarted": (f"the same node with {STORED[-1] // GIB} GiB stored, after its start", "MiB", None),
    "front-memory": ("memory of a front with 1 TiB, beyond that with 64 MiB", "MiB", 16),
    "front-memory-fixed": ("the same front with 64 MiB", "MiB", None),
}


def memory_mib(daemon):
    with open(f"/proc/{daemon.pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:")) / 1024


def settled_mib(daemon):
    """Once it has not changed for three seconds"""
    last, since, began = memory_mib(daemon), time.monotonic(), time.monotonic()
    while time.monotonic() - since < 3 and time.monotonic() - began < 60:
        time.sleep(0.2)
        now = memory_mib(daemon)
        if abs(now - last) > 0.1:
            last, since = now, time.monotonic()
    return memory_mib(daemon)


class Device:
    """A sparse file as a block device: a node reserves the whole of a plain file."""

    def __init__(self, path, size):
        with open(path, "wb") as file:
            file.truncate(size)
        self.path = run("losetup", "--find", "--show", path).strip()

    def end(self):
        run("losetup", "--detach", self.path)


def line_through(points):
    """(bytes stored, MiB), by least squares: MiB per TiB, and MiB with nothing stored"""
    x0 = sum(stored for stored, _ in points) / len(points)
    y0 = sum(mib for _, mib in points) / len(points)
    slope = sum((stored - x0) * (mib - y0) for stored, mib in points) / sum((stored - x0) ** 2 for stored, _ in points)
    return slope * TIB, y0 - slope * x0


def of_node(cluster, device, number, sample):
    node = cluster.node("n0", device=device.path)
    cluster.volume("full", CAPACITY, 1)
    front = cluster.attach("full")
    empty, done, points = settled_mib(node), 0, []
    with Others() as others:
        client = Nbd(cluster.socket("full"))
        for stored in STORED:
            client.run(WRITE, range(done // SECTOR, stored // SECTOR, SLOT // SECTOR), DEPTH)
            client.flush()
            points.append((stored, settled_mib(node)))
            done = stored
        client.close()
    slope, base = line_through(points)
    told = [{"stored_gib": stored // GIB, "mib": mib} for stored, mib in points]
    sample("node-memory", number, slope, others.share, points=told)
    sample("node-memory-fixed", number, base, others.share)
    sample("node-memory-empty", number, empty, others.share)
    cluster.end(front)
    cluster.end(node)
    with Others() as others:
        again = settled_mib(cluster.node_run("n0", device.path))
    sample("node-memory-restarted", number, again, others.share)


def of_front(cluster, number, sample):
    found = []
    with Others() as others:
        for volume, size in (("small", 64 * MIB), ("large", TIB)):
            cluster.volume(volume, size, 1)
            front = cluster.attach(volume)
            client = Nbd(cluster.socket(volume))
            # Each chunk of the large one once, and as many requests to the small one.
            client.run(READ, (at % size // SECTOR for at in range(0, TIB, CHUNK)), DEPTH)
            client.close()
            found.append(settled_mib(front))
            cluster.end(front)
    sample("front-memory", number, found[1] - found[0], others.share)
    sample("front-memory-fixed", number, found[0], others.share)


def measure(folder, rounds, sample):
    for number in range(1, rounds + 1):
        home = f"{folder}/memory-{number}"
        os.makedirs(home)
        try:
            device = Device(f"{home}/device", CAPACITY)
        except Failed as error:
            return {row: f"no loop device: {error}" for row in ROWS}
        cluster = Cluster(home)
        try:
            of_node(cluster, device, number, sample)
            of_front(cluster, number, sample)
        except Failed as error:
            return {row: str(error) for row in ROWS}
        finally:
            cluster.stop()
            device.end()
            os.unlink(f"{home}/device")
    return {}

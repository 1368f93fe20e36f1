"""What a guest that writes sees when one of two nodes ends, or says nothing any more: the slowest request, the longest
time in which no request was answered."""
import os
import random
import signal
import threading
import time

from nbd import SECTOR, WRITE, Nbd
from process import Failed, Others
from ukai import Cluster

SIZE, DEPTH = 256 << 20, 8
# Of load before the node is lost, and after.
BEFORE_S, AFTER_S = 2, 8
CASES = {"failover": signal.SIGKILL, "failover-silent": signal.SIGSTOP}
ROWS = {
    "failover": ("stall of a guest's writes, two copies, one node killed (SIGKILL)", "ms", 500),
    "failover-silent": ("the same, one node silent (SIGSTOP)", "ms", 500),
}
# Of rows that no machine makes fast enough
WHY_SHORT = {
    "failover-silent": "a node that answers nothing counts as lost after 3.5 s, so that healthy ones on busy hosts never do",
}


class Load(threading.Thread):
    """Random writes until `end`"""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.client, self.is_over, self.answers, self.error = Nbd(path), False, [], None

    def sectors(self):
        numbers = random.Random(1)
        while not self.is_over:
            yield numbers.randrange(self.client.size // SECTOR)

    def run(self):
        try:
            self.answers = self.client.run(WRITE, self.sectors(), DEPTH)
            self.client.close()
        except (Failed, OSError) as error:
            self.error = error

    def end(self):
        self.is_over = True
        self.join()
        if self.error:
            raise Failed(f"the guest's load ended: {self.error}")
        return self.answers


def worst(answers):
    """Of requests answered in this order: the slowest, and the longest time without an answer, milliseconds"""
    times = [when for when, _ in answers]
    gaps = [later - earlier for earlier, later in zip(times, times[1:])]
    return max(took for _, took in answers) * 1e3, max(gaps) * 1e3


def one(folder, lost, how):
    """A cluster that loses its node of this number; all figures of the sample"""
    os.makedirs(folder)
    cluster = Cluster(folder)
    try:
        nodes = [cluster.node(name, 1 << 30) for name in ("n0", "n1")]
        cluster.volume("guest", SIZE, 2)
        cluster.attach("guest")
        load = Load(cluster.socket("guest"))
        with Others() as others:
            load.start()
            time.sleep(BEFORE_S)
            at = time.monotonic()
            os.kill(nodes[lost].pid, how)
            time.sleep(AFTER_S)
            answers = load.end()
        before = [answer for answer in answers if answer[0] < at]
        slowest, gap = worst([before[-1]] + answers[len(before):])
        slowest_before, gap_before = worst(before)
        return slowest, others.share, {"gap_ms": gap, "slowest_before_ms": slowest_before, "gap_before_ms": gap_before,
                                       "lost": f"n{lost}", "writes_per_s": len(before) / BEFORE_S}
    finally:
        for daemon in cluster.daemons:
            daemon.process.send_signal(signal.SIGCONT)
        cluster.stop()


def measure(folder, rounds, sample):
    gaps = {}
    for number in range(1, rounds + 1):
        for row, how in CASES.items():
            try:
                # Reads come from one of them; writes must not care which.
                value, others, more = one(f"{folder}/{row}-{number}", number % 2, how)
                sample(row, number, value, others, **more)
            except Failed as error:
                gaps[row] = str(error)
    return gaps

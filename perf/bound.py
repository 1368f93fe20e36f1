"""The raw prototype of UKAI's data path (perf/bound) as a system under measurement: the bound of a target that is not met."""
import os

from load import BOUND_NODE, JOBS, Bench, Fio, gap_of_copies, over_nbd
from process import Daemon, run
from ukai import BIN, missing

PROGRAM = f"{BIN}/ukai-bound"
# At the end of each node's file
LOG = 16 << 20


class Drive(Bench):
    """`ukai-bound drive`, which is to these nodes what `ukai-tools bench` is to UKAI's"""
    name = "ukai-bound drive"

    def __init__(self, sockets):
        self.command, self.env = [PROGRAM, "drive", "--unix", ",".join(sockets)], None

    def _job(self, job, seconds):
        direction, random, block, depth, _ = JOBS[job]
        return ["--rw", f"{'rand' if random else ''}{direction}", "--bs", block, "--depth", depth, "--seconds", seconds]


class Bound:
    """Nodes and, with one copy, a lane; as class Ukai."""
    standing = True

    def __init__(self, copies, folder, size, name=None):
        self.name = name or f"bound-{copies}"
        self.copies, self.folder, self.size = copies, os.path.join(folder, self.name), size
        self.in_process = copies > 1 or name == BOUND_NODE
        self.what = (f"the raw prototype of the same path ({'two nodes' if copies > 1 else 'node'}"
                     f"{' and ukai-bound drive' if self.in_process else ', lane, NBD over a Unix socket'})")
        self.daemons = []

    def missing(self):
        return missing("ukai-bound")

    def disk_bytes(self):
        return self.copies * (self.size + LOG)

    def version(self):
        return run(PROGRAM, "--version").strip()

    def prepare(self):
        os.makedirs(self.folder)
        for number in range(self.copies):
            file = os.path.join(self.folder, f"data{number}")
            # Written, as the node's log is: no write meets an unwritten extent. The data is filled by the client.
            Fio("--ioengine=io_uring", f"--filename={file}", f"--offset={self.size}", f"--size={LOG}").fill()
            # As Cluster pins UKAI's.
            self._daemon("node", "--unix", self._socket(number), "--file", file, "--log-bytes", LOG, "--cpu", number % os.cpu_count())
        Drive(self.sockets).fill()
        if not self.in_process:
            self._daemon("lane", "--unix", self._socket(0), "--nbd", self.nbd)

    @property
    def sockets(self):
        return [self._socket(number) for number in range(self.copies)]

    @property
    def nbd(self):
        return os.path.join(self.folder, "nbd")

    def _socket(self, number):
        return os.path.join(self.folder, f"node{number}")

    def _daemon(self, role, *arguments):
        log = os.path.join(self.folder, f"log{len(self.daemons)}")
        daemon = Daemon(log, PROGRAM, role, *arguments)
        self.daemons.append(daemon)
        daemon.wait_ready("saying ready", lambda: "ready" in daemon.said())

    def start(self):
        pass

    def settle(self):
        pass

    def client(self, job):
        if self.in_process:
            return Drive(self.sockets)
        return over_nbd(job, f"nbd+unix:///?socket={self.nbd}", self.size)

    def gap(self, job):
        return gap_of_copies(job, self.copies)

    def stop(self):
        while self.daemons:
            self.daemons.pop().end()

"""UKAI as a system under measurement: nodes and a front of its own on this machine."""
import os
import socket

from load import NODE, Bench, gap_of_copies, over_nbd
from process import Daemon, run, wait_until

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BIN = os.environ.get("UKAI_BIN", os.path.join(REPO, "target/release"))
# Beside the volume: the metadata log, and chunks that are being written anew.
NODE_SPARE = 1 << 30


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def missing(*names):
    """Why these programs cannot be run, or None"""
    absent = [name for name in names if not os.path.exists(f"{BIN}/{name}")]
    return f"no {BIN}/{absent[0]}: cargo build --release" if absent else None


class Cluster:
    """Nodes and fronts in a folder of their own, which must exist."""

    def __init__(self, folder, meta=None):
        self.folder, self.daemons, self.started = folder, [], 0
        self.cpus = {}
        self.env = {"UKAI_META": meta or f"sqlite:{folder}/meta.db"}
        for name in ("nodes", "run", "log"):
            os.makedirs(os.path.join(folder, name))

    def node(self, name, size=None, device=None):
        """Formats a node of site-a, a file of so many bytes or a device, and starts it"""
        data = device or f"{self.folder}/nodes/{name}"
        os.makedirs(f"{self.folder}/run/{name}")
        run(f"{BIN}/chunkstore", "format", data, *(["--size", size] if size else []), "--site", "site-a", "--name", name,
            *([] if self.daemons else ["--cluster-init"]), env=self.env)
        return self.node_run(name, data)

    def node_run(self, name, data):
        # Each node would take CPU 0 by default, as one that is alone on its machine does.
        cpu = self.cpus.setdefault(name, len(self.cpus) % os.cpu_count())
        return self._daemon(name, "ready", f"{BIN}/chunkstore", "run", data, "--listen", f"127.0.0.1:{free_port()}",
                            "--unix-dir", f"{self.folder}/run/{name}", "--cores", cpu)

    def null_node(self, name, size, poll_us):
        """A node of site-a on memory that answers at once, over TCP alone, on CPU 0"""
        return self._daemon(name, "ready", f"{BIN}/ukai-null-node", f"{self.folder}/nodes/{name}", "--meta", self.env["UKAI_META"],
                            "--site", "site-a", "--name", name, "--mib", size >> 20, "--core", 0, "--poll-us", poll_us)

    def volume(self, name, size, copies):
        run(f"{BIN}/ukai-tools", "volume", "create", name, "--size", size, "--place", f"site-a:{copies}", env=self.env)

    def attach_command(self, volume, frontend=None):
        return [f"{BIN}/ublk-front", "attach", volume, "--run-dir", f"{self.folder}/run",
                *(frontend or ("--frontend", "nbd", "--nbd-unix", self.socket(volume)))]

    def socket(self, volume):
        return f"{self.folder}/nbd-{volume}"

    def attach(self, volume, frontend=None):
        """Attaches, over NBD if not told otherwise, and looks now and then whether it is done"""
        return self._daemon(f"front-{volume}", "attached", *self.attach_command(volume, frontend))

    def _daemon(self, name, word, *command):
        # What an earlier run of the same name said is not this one's.
        self.started += 1
        daemon = Daemon(f"{self.folder}/log/{name}.{self.started}", *command, env=self.env)
        self.daemons.append(daemon)
        daemon.wait_ready(f"saying {word}", lambda: f"\n{word}" in "\n" + daemon.said())
        return daemon

    def end(self, daemon, **how):
        daemon.end(**how)
        self.daemons.remove(daemon)

    def stop(self):
        # Fronts first: they are clients of the nodes.
        while self.daemons:
            self.daemons.pop().end()


class Ukai:
    standing = True
    # The front's arguments, where not NBD
    frontend = None

    def __init__(self, copies, folder, size, name=None):
        self.name = name or f"ukai-{copies}"
        # As Ceph's client, which is in fio's process: with two copies there is no front beside the client.
        self.in_process = copies > 1 or name == NODE
        self.what = (f"UKAI, {copies} cop{'y' if copies == 1 else 'ies'}, O_DIRECT, "
                     f"{'ukai-tools bench (in-process)' if self.in_process else 'over NBD (Unix socket)'}")
        self.copies, self.folder, self.size = copies, os.path.join(folder, self.name), size
        self.cluster = self.front = None

    @property
    def daemons(self):
        return self.cluster.daemons if self.cluster else []

    def missing(self):
        return missing("chunkstore", "ublk-front", "ukai-tools")

    def disk_bytes(self):
        return self.copies * (self.size + NODE_SPARE)

    def version(self):
        return run(f"{BIN}/ukai-tools", "--version").strip()

    def prepare(self):
        os.makedirs(self.folder)
        self.cluster = Cluster(self.folder)
        for number in range(self.copies):
            self.cluster.node(f"n{number}", self.size + NODE_SPARE)
        self.cluster.volume("perf", self.size, self.copies)
        if not self.in_process:
            self.front = self.cluster.attach("perf", self.frontend)
        self.client("fill").fill()

    def start(self):
        pass

    def settle(self):
        pass

    def client(self, job):
        if self.in_process:
            return Bench(f"{BIN}/ukai-tools", "perf", f"{self.cluster.folder}/run", self.cluster.env)
        return over_nbd(job, f"nbd+unix:///?socket={self.cluster.socket('perf')}", self.size)

    def gap(self, job):
        """Why this job is not run here, or None"""
        return gap_of_copies(job, self.copies)

    def stop(self):
        if self.cluster:
            self.cluster.stop()

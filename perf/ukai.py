"""UKAI as a system under measurement: nodes and a front of its own on this machine."""
import os
import socket

from load import Fio, QemuImg, is_stride
from process import Daemon, run, wait_until

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BIN = os.environ.get("UKAI_BIN", os.path.join(REPO, "target/release"))
# Beside the volume: the metadata log, and chunks that are being written anew.
NODE_SPARE = 1 << 30


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Ukai:
    standing = True

    def __init__(self, copies, folder, size):
        self.name = f"ukai-{copies}"
        self.what = f"UKAI, {copies} cop{'y' if copies == 1 else 'ies'}, O_DIRECT, over NBD (Unix socket)"
        self.copies, self.folder, self.size = copies, os.path.join(folder, self.name), size
        self.daemons = []
        self.socket = os.path.join(self.folder, "nbd")
        self.env = {"UKAI_META": f"sqlite:{self.folder}/meta.db"}

    def missing(self):
        absent = [name for name in ("chunkstore", "ublk-front", "ukai-tools") if not os.path.exists(f"{BIN}/{name}")]
        return f"no {BIN}/{absent[0]}: cargo build --release" if absent else None

    def disk_bytes(self):
        return self.copies * (self.size + NODE_SPARE)

    def version(self):
        return run(f"{BIN}/ukai-tools", "--version").strip()

    def prepare(self):
        for name in ("nodes", "run", "log"):
            os.makedirs(os.path.join(self.folder, name))
        for number in range(self.copies):
            name = f"n{number}"
            data, sockets = f"{self.folder}/nodes/{name}", f"{self.folder}/run/{name}"
            os.makedirs(sockets)
            run(f"{BIN}/chunkstore", "format", data, "--size", self.size + NODE_SPARE, "--site", "site-a", "--name", name,
                *(["--cluster-init"] if number == 0 else []), env=self.env)
            self._daemon(name, "ready", f"{BIN}/chunkstore", "run", data, "--listen", f"127.0.0.1:{free_port()}",
                         "--unix-dir", sockets)
        run(f"{BIN}/ukai-tools", "volume", "create", "perf", "--size", self.size, "--place", f"site-a:{self.copies}",
            env=self.env)
        self._daemon("front", "attached", f"{BIN}/ublk-front", "attach", "perf", "--run-dir", f"{self.folder}/run",
                     "--frontend", "nbd", "--nbd-unix", self.socket)
        self.client("fill").fill()

    def _daemon(self, name, word, *command):
        daemon = Daemon(f"{self.folder}/log/{name}", *command, env=self.env)
        self.daemons.append(daemon)
        daemon.wait_ready(f"saying {word}", lambda: f"\n{word}" in "\n" + daemon.said())

    def start(self):
        pass

    def settle(self):
        pass

    def client(self, job):
        uri = f"nbd+unix:///?socket={self.socket}"
        return QemuImg(uri, self.size) if is_stride(job) else Fio("--ioengine=nbd", f"--uri={uri}")

    def gap(self, job):
        """Why this job is not run here, or None"""
        return "one copy is what is compared" if self.copies > 1 and is_stride(job) else None

    def stop(self):
        # The front first: it is a client of the nodes.
        while self.daemons:
            self.daemons.pop().end()

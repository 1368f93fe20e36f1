"""The systems of perf/guest, as they are started inside a guest: block devices of its kernel."""
import os
import re

from load import Fio
from peers import Loop, Raw
from process import Daemon, answers, run
from ukai import BIN, REPO, Ukai

# As deep as loop and the kernel's NBD client have theirs.
QUEUE_DEPTH = 128
NBD_DEVICE = "/dev/nbd0"


def fio(device, size=None):
    # The processor's counter: asking User-Mode Linux for the time is a system call, several per I/O would halve what is measured.
    return Fio("--ioengine=io_uring", "--clocksource=cpu", f"--filename={device}", *([f"--size={size}"] if size else []),
               sync="--fdatasync=1")


class RawInGuest(Raw):
    def client(self, job):
        return fio(self.file, self.size)


class LoopInGuest(Loop):
    what = "kernel loop device on a file, direct I/O"

    def missing(self):
        if not os.path.exists("/dev/loop-control"):
            answers("modprobe", "loop")
        return super().missing() or (None if os.path.exists("/dev/loop-control") else "this kernel has no loop device")

    def client(self, job):
        return fio(self.device)


class KernelNbd(LoopInGuest):
    """The kernel's NBD client with qemu-nbd behind it: one device of the kernel, one process."""
    name, what = "nbd", "kernel nbd + qemu-nbd on a file, cache=none, aio=io_uring"
    program, version_command = "qemu-nbd", ("qemu-nbd", "--version")

    def missing(self):
        if not os.path.exists(NBD_DEVICE):
            answers("modprobe", "nbd")
        return Raw.missing(self) or (None if os.path.exists(NBD_DEVICE) else "this kernel has no nbd device")

    def start(self):
        self.device = NBD_DEVICE
        # Verbose: else it goes into the background, out of sight.
        self._daemon("qemu-nbd", "--verbose", f"--connect={self.device}", "--format=raw", "--cache=none", "--aio=io_uring",
                     self.file).wait_ready(f"{self.device} to have a size", self.connected)

    def connected(self):
        with open(f"/sys/block/{os.path.basename(self.device)}/size") as size:
            return int(size.read()) * 512 >= self.size

    def stop(self):
        if self.daemons:
            answers("qemu-nbd", f"--disconnect={NBD_DEVICE}")
        Raw.stop(self)


class UkaiUblk(Ukai):
    def __init__(self, queues, folder, size):
        super().__init__(1, folder, size)
        self.frontend = "--frontend", "ublk", "--queues", queues, "--depth", QUEUE_DEPTH
        self.name, self.what = "ukai", f"UKAI over ublk, 1 copy on a local node, {queues} queue(s), O_DIRECT"

    def missing(self):
        return super().missing() or no_ublk()

    def client(self, job):
        return fio(re.search(r"^attached \S+ (\S+)", self.front.said(), re.M)[1])


def no_ublk():
    return None if os.path.exists("/dev/ublk-control") else "this kernel has no ublk"


class Null(Raw):
    """Devices without a disk, by ublk-front/examples/ublk-null."""
    program = os.environ.get("UKAI_NULL", os.path.join(REPO, "target/release/examples/ublk-null"))

    def __init__(self, mode, what, queues, folder, size):
        self.name, self.what, self.mode, self.queues = f"null-{mode}", f"{what}, {queues} queue(s)", mode, queues
        super().__init__(folder, size)

    def missing(self):
        if not os.path.exists(self.program):
            return f"no {self.program}: cargo build --release -p ublk-front --example ublk-null"
        return no_ublk()

    def disk_bytes(self):
        return 0

    def version(self):
        return answers(f"{BIN}/ublk-front", "--version").strip()

    def prepare(self):
        os.makedirs(self.folder)
        daemon = self._daemon(self.program, self.mode, self.size >> 20, self.queues, QUEUE_DEPTH)
        daemon.wait_ready("saying attached", lambda: "attached" in daemon.said())
        self.device = re.search(r"attached (\S+)", daemon.said())[1]

    def client(self, job):
        return fio(self.device)


def every(queues, folder, size):
    return [RawInGuest(folder, size), LoopInGuest(folder, size), KernelNbd(folder, size), UkaiUblk(queues, folder, size),
            Null("plain", "libublk's own loop that answers at once, no data", queues, folder, size),
            Null("queue", "the front's queue loop, answering at once, no data", queues, folder, size),
            Null("front", "the front's lanes on a replica in the process that answers at once", queues, folder, size)]


class Disk:
    """A file system on a disk of the guest, on which every system has its data."""
    def __init__(self, kind, folder):
        self.folder = folder
        self.device = "/dev/ram0" if kind == "ram" else next(filter(os.path.exists, ("/dev/ubda", "/dev/vda")))

    def mount(self):
        if self.device == "/dev/ram0" and not os.path.exists(self.device):
            run("modprobe", "brd", "rd_nr=1", "rd_size=3145728")
        os.makedirs(self.folder)
        run("mkfs.ext4", "-q", "-F", "-b", 4096, self.device)
        run("mount", self.device, self.folder)


def end_all():
    for daemon in list(Daemon.running):
        daemon.end()

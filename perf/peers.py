"""The systems that UKAI is compared with, each on loopback with a file of its own, from Debian packages."""
import os
import shutil
import signal
import sys

import portmap
from load import Fio, QemuImg, is_stride, over_nbd
from process import Daemon, answers, run
from ukai import free_port

FIRST_TGT_CONTROL_PORT = 17


def version_of(*command):
    said = answers(*command).strip()
    return said.splitlines()[0] if said else "unknown"


class Peer:
    """One system. `prepare` makes and fills its data, once; `standing` ones are then kept running, and idle while
    another is measured; others are started for their turn only."""
    standing = True
    # Whether the server writes to the page cache
    page_cache = False
    program = "fio"
    version_command = ("fio", "--version")

    def __init__(self, folder, size):
        self.folder, self.size = os.path.join(folder, self.name), size
        self.file = os.path.join(self.folder, "data")
        self.daemons = []

    def missing(self):
        path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
        return None if shutil.which(self.program, path=path) else f"{self.program} is not installed: ci/setup --perf"

    def disk_bytes(self):
        """How much of the disk it takes at most"""
        return self.size

    def version(self):
        return version_of(*self.version_command)

    def gap(self, job):
        return "fio can drive it" if is_stride(job) else None

    def prepare(self):
        os.makedirs(self.folder)
        # Every block is allocated and written: no peer meets an unwritten extent.
        Fio("--ioengine=io_uring", f"--filename={self.file}", f"--size={self.size}").fill()
        self.start()

    def start(self):
        pass

    def settle(self):
        """After a measurement: what the page cache still has to write would fall on whoever is measured next."""
        if self.page_cache:
            with open(self.file, "rb") as data:
                os.fsync(data)

    def stop(self):
        while self.daemons:
            self.daemons.pop().end()

    def _daemon(self, *command, env=None):
        daemon = Daemon(os.path.join(self.folder, "log"), *command, env=env)
        self.daemons.append(daemon)
        return daemon


class Raw(Peer):
    name, what = "raw", "the file itself, io_uring, O_DIRECT"

    def client(self, job):
        return Fio("--ioengine=io_uring", f"--filename={self.file}", f"--size={self.size}", sync="--fdatasync=1")


class Loop(Peer):
    name, what = "loop", "kernel loop device, direct I/O"
    program, version_command = "losetup", ("losetup", "--version")

    def start(self):
        self.device = run("losetup", "--find", "--show", "--direct-io=on", self.file).strip()

    def client(self, job):
        return Fio("--ioengine=io_uring", f"--filename={self.device}", sync="--fdatasync=1")

    def stop(self):
        # By the file, not by what `start` remembers: it may have been interrupted.
        for device in answers("losetup", "--associated", self.file, "--noheadings", "--output", "NAME").split():
            run("losetup", "--detach", device)


class NbdPeer(Peer):
    def start(self):
        socket = os.path.join(self.folder, "socket")
        self.uri = f"nbd+unix:///?socket={socket}"
        self._daemon(*self.server(socket)).wait_ready("an export", lambda: answers("nbdinfo", "--size", self.uri))

    def client(self, job):
        return over_nbd(job, self.uri, self.size)


class QemuNbd(NbdPeer):
    name, what = "qemu-nbd", "qemu-nbd, cache=none, aio=io_uring, Unix socket"
    program, version_command = "qemu-nbd", ("qemu-nbd", "--version")

    def gap(self, job):
        return None

    def server(self, socket):
        return ("qemu-nbd", "--format=raw", "--cache=none", "--aio=io_uring", "--persistent", "--shared=8",
                f"--socket={socket}", self.file)


class Nbdkit(NbdPeer):
    name, what = "nbdkit", "nbdkit file, Unix socket; PAGE CACHE: it has no O_DIRECT, reads are from memory"
    page_cache = True
    program, version_command = "nbdkit", ("nbdkit", "--version")

    def server(self, socket):
        return ("nbdkit", "--foreground", f"--unix={socket}", "file", self.file)


class Tgt(Peer):
    name, what = "tgt", "tgt, iSCSI over loopback, bstype aio (O_DIRECT); its flush is a no-op"
    program, version_command = "tgtd", ("tgtadm", "--version")
    target = "iqn.2024-01.lab.ukai:perf"
    # `tgtd` names its control socket by this number; one that is served already is left alone.
    control = FIRST_TGT_CONTROL_PORT

    def missing(self):
        return super().missing() or (None if "iscsi" in answers("qemu-img", "--help") and os.path.exists(
            "/usr/lib/x86_64-linux-gnu/qemu/block-iscsi.so") else "qemu-img has no iSCSI client: ci/setup --perf")

    def gap(self, job):
        return None if is_stride(job) else "fio of Debian has no iSCSI client and this kernel no initiator; see stride jobs"

    def start(self):
        os.makedirs("/run/tgtd", exist_ok=True)
        while os.path.exists(f"/run/tgtd/socket.{self.control}"):
            self.control += 1
        port = free_port()
        self._daemon("tgtd", "-f", "-C", self.control, "--iscsi", f"portal=127.0.0.1:{port}").wait_ready(
            "its control socket", lambda: answers(*self._admin("show", "sys")))
        run(*self._admin("new", "target", "-T", self.target))
        run(*self._admin("new", "logicalunit", "--lun", 1, "--bstype", "aio", "-b", self.file))
        run(*self._admin("bind", "target", "-I", "127.0.0.1"))
        self.uri = f"iscsi://127.0.0.1:{port}/{self.target}/1"

    def _admin(self, operation, mode, *more):
        return ("tgtadm", "-C", self.control, "--lld", "iscsi", "--op", operation, "--mode", mode,
                *(["--tid", 1] if mode != "sys" else []), *more)

    def client(self, job):
        return QemuImg(self.uri, self.size)

    def stop(self):
        while self.daemons:
            # It waits for its initiators on TERM; nothing is to be kept.
            self.daemons.pop().end(signal.SIGKILL)
            for name in (f"/run/tgtd/socket.{self.control}", f"/run/tgtd/socket.{self.control}.lock"):
                if os.path.exists(name):
                    os.remove(name)


GANESHA = """NFS_CORE_PARAM {{ Bind_addr = 127.0.0.1; NFS_Port = {nfs}; MNT_Port = {mount}; Protocols = 3; Enable_NLM = false;
	Enable_RQUOTA = false; }}
NFSv4 {{ Graceless = true; RecoveryRoot = {folder}; }}
EXPORT {{ Export_Id = 1; Path = {folder}; Pseudo = /perf; Access_Type = RW; Squash = No_root_squash; Protocols = 3;
	Transports = TCP; SecType = sys; FSAL {{ Name = VFS; }} }}
LOG {{ Default_Log_Level = EVENT; }}
"""


class Nfs(Peer):
    name, what = "nfs", "NFS-Ganesha (VFS), NFSv3 over loopback; PAGE CACHE on the server: it has no O_DIRECT"
    page_cache = True
    program, version_command = "ganesha.nfsd", ("ganesha.nfsd", "-v")

    def missing(self):
        if os.path.exists(portmap.UNIX):
            return f"a port mapper runs here already ({portmap.UNIX}), and NFSv3 needs one that knows our Ganesha"
        return super().missing() or (None if os.path.exists("/usr/lib/x86_64-linux-gnu/qemu/block-nfs.so")
                                     else "qemu-img has no NFS client: ci/setup --perf")

    def gap(self, job):
        return None if is_stride(job) else "fio of Debian has no NFS engine and this kernel no NFS; see stride jobs"

    def start(self):
        nfs, mount = free_port(), free_port()
        mapper = Daemon(os.path.join(self.folder, "portmap.log"), sys.executable, portmap.__file__, nfs, mount)
        self.daemons.append(mapper)
        mapper.wait_ready("saying ready", lambda: "ready" in mapper.said())
        config, log = os.path.join(self.folder, "ganesha.conf"), os.path.join(self.folder, "ganesha.log")
        with open(config, "w") as out:
            out.write(GANESHA.format(nfs=nfs, mount=mount, folder=self.folder))
        os.makedirs("/run/ganesha", exist_ok=True)
        server = self._daemon("ganesha.nfsd", "-F", "-f", config, "-L", log, "-p", os.path.join(self.folder, "pid"))

        def initialized():
            with open(log, errors="replace") as said:
                return "NFS SERVER INITIALIZED" in said.read()
        server.wait_ready("its export", lambda: os.path.exists(log) and initialized())

    def client(self, job):
        return QemuImg(f"nfs://127.0.0.1{self.file}", self.size)

    def stop(self):
        ours = bool(self.daemons)
        super().stop()
        if ours and os.path.exists(portmap.UNIX):
            os.remove(portmap.UNIX)

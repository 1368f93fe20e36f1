"""Ceph as a peer: a monitor, a manager and two BlueStore OSDs on files, an RBD image with two copies."""
import os
import time

from load import Fio, is_stride
from peers import Peer
from process import Daemon, answers, run, wait_until
from ukai import free_port

FSID = "11111111-2222-3333-4444-555555555555"
# Beside the data an OSD keeps its database and write-ahead log in the same file.
OSD_SPARE = 2 << 30
CONFIG = """[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]
mon_initial_members = a
public_network = 127.0.0.0/8
ms_bind_ipv6 = false
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
osd_pool_default_size = 2
osd_pool_default_min_size = 1
osd_crush_chooseleaf_type = 0
osd_pool_default_pg_autoscale_mode = off
run_dir = {folder}
log_file = {folder}/$name.log
admin_socket = {folder}/$name.asok
pid_file = {folder}/$name.pid
crash_dir = {folder}
# Direct I/O on both sides: no data cache in the OSD or in librbd.
bluestore_default_buffered_read = false
rbd_cache = false
[mon]
mon_data_avail_crit = 1
mon_data_avail_warn = 2
[mon.a]
mon_data = {folder}/mon
[mgr.x]
mgr_data = {folder}/mgr
[osd]
bluestore_block_size = {osd_size}
[osd.0]
osd_data = {folder}/osd0
[osd.1]
osd_data = {folder}/osd1
"""


class Ceph(Peer):
    name, what = "ceph", "Ceph RBD, 2 copies, two BlueStore OSDs, no caches; every write is durable"
    program, version_command = "ceph-osd", ("ceph-osd", "--version")
    # Its daemons are never idle: they would disturb the others.
    standing = False
    # Placement groups and the manager keep working for a while after they say that they are ready.
    settle_seconds = 8

    def gap(self, job):
        return "fio can drive it" if is_stride(job) else None

    def disk_bytes(self):
        return 2 * (self.size + OSD_SPARE)

    def missing(self):
        return super().missing() or (None if "rbd" in answers("fio", "--enghelp").split() else "fio has no rbd engine")

    def prepare(self):
        self.env = {"CEPH_CONF": os.path.join(self.folder, "ceph.conf")}
        for name in ("mon", "mgr", "osd0", "osd1"):
            os.makedirs(os.path.join(self.folder, name))
        v2, v1 = free_port(), free_port()
        osd_size = self.size + OSD_SPARE
        with open(self.env["CEPH_CONF"], "w") as config:
            config.write(CONFIG.format(fsid=FSID, folder=self.folder, v1=v1, v2=v2, osd_size=osd_size))
        monmap = os.path.join(self.folder, "monmap")
        run("monmaptool", "--create", "--fsid", FSID, "--addv", "a", f"[v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]", monmap)
        run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, env=self.env)
        self._start_monitor()
        for number in range(2):
            block = os.path.join(self.folder, f"osd{number}.block")
            Fio("--ioengine=io_uring", f"--filename={block}", f"--size={osd_size}").fill()
            os.symlink(block, os.path.join(self.folder, f"osd{number}", "block"))
            with open("/proc/sys/kernel/random/uuid") as random:
                uuid = random.read().strip()
            self._ceph("osd", "new", uuid, number)
            run("ceph-osd", "-i", number, "--mkfs", "--osd-uuid", uuid, env=self.env)
        self._start_osds()
        self._ceph("osd", "pool", "create", "rbd", 32, 32)
        self._ceph("osd", "pool", "application", "enable", "rbd", "rbd")
        self._wait_clean()
        run("rbd", "create", "rbd/perf", "--size", f"{self.size >> 20}M", "--image-feature", "layering", env=self.env)
        self.client("fill").fill()
        self.stop()

    def _ceph(self, *words):
        return run("ceph", *words, env=self.env)

    def _server(self, name, *command):
        self.daemons.append(Daemon(os.path.join(self.folder, f"{name}.out"), *command, env=self.env))

    def _start_monitor(self):
        self._server("mon", "ceph-mon", "-f", "-i", "a")
        wait_until("Ceph's monitor", lambda: answers("ceph", "-s", env=self.env))
        self._server("mgr", "ceph-mgr", "-f", "-i", "x")

    def _start_osds(self):
        for number in range(2):
            self._server(f"osd{number}", "ceph-osd", "-f", "-i", number)
        wait_until("Ceph's OSDs", lambda: "2 up" in answers("ceph", "osd", "stat", env=self.env))

    def _wait_clean(self):
        def clean():
            said = answers("ceph", "pg", "stat", env=self.env)
            return "32 active+clean" in said or "33 active+clean" in said
        wait_until("Ceph's placement groups", clean, 120)

    def start(self):
        self._start_monitor()
        self._start_osds()
        self._wait_clean()
        time.sleep(self.settle_seconds)

    def client(self, job):
        return Fio("--ioengine=rbd", "--clientname=admin", "--pool=rbd", "--rbdname=perf", env=self.env)

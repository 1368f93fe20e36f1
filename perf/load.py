"""Jobs and the clients that run them: fio, qemu-img bench where fio has no engine, and our own for what is in its process."""
import json
import re

from process import Failed, run

BLOCK = 4096
# A power of two times this is no cycle of the volume: the blocks of a stride are spread like random ones.
GOLDEN = 0.6180339887

# name: direction, random, block bytes, depth, a flush after each write
JOBS = {
    "randread-d1": ("read", True, BLOCK, 1, False),
    "randwrite-d1": ("write", True, BLOCK, 1, False),
    "randread-d32": ("read", True, BLOCK, 32, False),
    "randwrite-d32": ("write", True, BLOCK, 32, False),
    "read-64k-d8": ("read", False, 65536, 8, False),
    "write-64k-d8": ("write", False, 65536, 8, False),
    "fsync-d1": ("write", True, BLOCK, 1, True),
    "randread-d128": ("read", True, BLOCK, 128, False),
    "randwrite-d128": ("write", True, BLOCK, 128, False),
    # By qemu-img bench, which knows no random order: for servers that fio has no client for.
    "strideread-d32": ("read", True, BLOCK, 32, False),
    "stridewrite-d32": ("write", True, BLOCK, 32, False),
}


# What one node can do is compared with its disk only, and by these jobs only.
NODE, BOUND_NODE, NODE_JOBS = "ukai-node", "bound-node", ("randread-d128", "randwrite-d128")


def takes_part(system, job):
    of_node = system in (NODE, BOUND_NODE)
    return of_node or system == "raw" if job in NODE_JOBS else not of_node


def is_stride(job):
    return job.startswith("stride")


# Of fio, for large amounts in order
STREAM = ("--bs=1m", "--iodepth=8")


class Fio:
    """fio with one of its engines. Figures are as if the job had run without fio's start (`start_cpu`)."""
    name = "fio"

    def __init__(self, *engine, sync="--fsync=1", env=None):
        self.engine, self.sync, self.env = engine, sync, env

    def _jobs(self, arguments, seconds):
        text = run("fio", "--name=job", "--thread", "--direct=1", "--output-format=json", *self.engine, *arguments,
                   seconds=seconds, env=self.env)
        if "{" not in text:
            raise Failed(f"fio printed no result: {text[-300:]}")
        results = json.loads(text[text.index("{"):])["jobs"]
        for result in results:
            if result.get("error"):
                raise Failed(f"fio ended with error {result['error']}")
        return results

    def _run(self, arguments, seconds):
        return self._jobs(arguments, seconds)[0]

    def fill(self):
        self._run(["--rw=write", *STREAM, "--end_fsync=1"], 1200)

    def once(self):
        self._run(["--rw=read", "--bs=4k", "--number_ios=1"], 60)

    def read_rate(self):
        """Bytes/s of all of it once, in order"""
        return self._run(["--rw=read", *STREAM], 300)["read"]["bw_bytes"]

    def read_and_write_rates(self, written, seconds):
        """Bytes/s of reading this and writing the other at the same time, for so long"""
        timed = [*STREAM, "--time_based", f"--runtime={seconds}"]
        read, write = self._jobs(["--rw=read", *timed, "--name=other", "--thread", "--direct=1", *written.engine, "--rw=write", *timed],
                                 seconds + 120)
        return read["read"]["bw_bytes"], write["write"]["bw_bytes"]

    def measure(self, job, seconds):
        direction, random, block, depth, flushed = JOBS[job]
        # No ramp time: its CPU would be counted but not its I/O.
        arguments = [f"--rw={'rand' if random else ''}{direction}", f"--bs={block}", f"--iodepth={depth}", "--time_based",
                     f"--runtime={seconds}", "--norandommap", "--randrepeat=0", *([self.sync] if flushed else [])]
        result = self._run(arguments, seconds + 120)
        side = result[direction]
        latency = side["clat_ns"]["percentile"]
        # fio times the write and its flush apart; the sum of two medians is near the median of the sum, and the tail
        # is the flush's.
        flush = result["sync"]["lat_ns"].get("percentile") if flushed else None
        p50, p99, p999 = (latency[f"{point}00000"] / 1000 for point in ("50.0", "99.0", "99.9"))
        if flush:
            p50 += flush["50.000000"] / 1000
            p99, p999 = (max(own, flush[f"{point}00000"] / 1000) for own, point in ((p99, "99.0"), (p999, "99.9")))
        return {"ios": side["total_ios"], "iops": side["iops"], "p50_us": p50, "p99_us": p99, "p999_us": p999}


class QemuImg:
    """qemu-img bench: a fixed number of requests in strides over the whole volume. It reports no percentiles."""
    name = "qemu-img"

    def __init__(self, uri, size):
        self.uri, self.size = uri, size

    def _seconds(self, job, count):
        direction, _, block, depth, _ = JOBS[job]
        stride = (int(self.size // block * GOLDEN) | 1) * block
        text = run("qemu-img", "bench", "-f", "raw", "-t", "none", "-c", count, "-d", depth, "-s", block, "-S", stride,
                   *(["-w"] if direction == "write" else []), self.uri, seconds=300)
        found = re.search(r"completed in ([0-9.]+) seconds", text)
        if not found:
            raise Failed(f"qemu-img bench printed no time: {text[-200:]}")
        return max(float(found[1]), 0.001)

    def once(self):
        self._seconds("strideread-d32", 1)

    def calibrate(self, job, seconds):
        """How many requests take about that long"""
        return max(1000, int(4000 / self._seconds(job, 4000) * seconds))

    def measure(self, job, seconds, count=None):
        count = count or self.calibrate(job, seconds)
        return {"ios": count, "iops": count / self._seconds(job, count), "p50_us": None, "p99_us": None, "p999_us": None}


def over_nbd(job, uri, size):
    """The client of this job for an export of so many bytes"""
    return QemuImg(uri, size) if is_stride(job) else Fio("--ioengine=nbd", f"--uri={uri}")


def gap_of_copies(job, copies):
    """Why a system with so many copies does not run this job, or None"""
    return "one copy is what is compared" if copies > 1 and is_stride(job) else None


class Bench:
    """`ukai-tools bench`: attaches the volume in its own process, which is the front and its guest, and detaches it."""
    name = "ukai-tools bench"

    def __init__(self, program, volume, run_dir, env):
        self.command = [program, "--json", "bench", "--volume", volume, "--run-dir", run_dir, "--overwrite-data"]
        self.env = env

    def _run(self, arguments, seconds):
        result = json.loads(run(*self.command, *arguments, seconds=seconds, env=self.env))
        if result["errors"]:
            raise Failed(f"{self.name}: {result['errors']} requests failed")
        return result

    def fill(self):
        self._run(["--fill", "--ios", 1], 1200)

    def once(self):
        self._run(["--ios", 1], 60)

    def _job(self, job, seconds):
        direction, random, block, depth, _ = JOBS[job]
        return ["--read-percent", 100 if direction == "read" else 0, "--block-size", block, "--depth", depth,
                "--pattern", "random" if random else "sequential", "--duration", f"{seconds}s"]

    def measure(self, job, seconds):
        flushed = JOBS[job][4]
        result = self._run([*self._job(job, seconds), *(["--fsync"] if flushed else [])], seconds + 120)
        return {key: result[key] for key in ("ios", "iops", "p50_us", "p99_us", "p999_us")}

#!/usr/bin/env python3
"""bench.py --system NAME=URI=PID,PID... --rounds N --seconds S --out FILE

Runs fio's NBD engine against each system in turn, round after round, and writes every single
measurement with what the machine was. CPU of a system is the time of its server processes, of fio and
of the kernel's threads while it was measured; the time of all other processes says how quiet the
machine was.
"""
import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time

TICK = os.sysconf("SC_CLK_TCK")
JOBS = {
    "randread-d1": ["--rw=randread", "--iodepth=1"],
    "randwrite-d1": ["--rw=randwrite", "--iodepth=1"],
    "randread-d32": ["--rw=randread", "--iodepth=32"],
    "randwrite-d32": ["--rw=randwrite", "--iodepth=32"],
}


def processes():
    """pid -> (is a kernel thread, CPU seconds)"""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = open(f"/proc/{pid}/stat").read()
        except OSError:
            continue
        fields = stat[stat.rindex(")") + 2:].split()
        found[int(pid)] = (fields[1] == "2" or pid == "2", (int(fields[11]) + int(fields[12])) / TICK)
    return found


def cpu_between(before, after, servers):
    server = kernel = other = 0.0
    for pid, (is_kernel, seconds) in after.items():
        spent = seconds - before.get(pid, (False, 0.0))[1]
        if pid in servers:
            server += spent
        elif is_kernel:
            kernel += spent
        elif pid != os.getpid():
            other += spent
    return server, kernel, other


def fio(uri, arguments):
    command = ["fio", "--name=job", "--thread", "--ioengine=nbd", f"--uri={uri}", "--output-format=json", *arguments]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if result.returncode != 0 or "{" not in result.stdout:
        sys.exit(f"fio failed: {' '.join(command)}\n{result.stdout[-800:]}\n{result.stderr[-800:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(result.stdout[result.stdout.index("{"):])["jobs"][0], cpu


def measure(uri, servers, arguments, fio_start_cpu):
    before, began = processes(), time.monotonic()
    job, fio_cpu = fio(uri, arguments)
    wall = time.monotonic() - began
    server, kernel, other = cpu_between(before, processes(), servers)
    fio_cpu = max(0.0, fio_cpu - fio_start_cpu)
    side = job["read"] if job["read"]["total_ios"] else job["write"]
    ios = side["total_ios"]
    percentile = side["clat_ns"]["percentile"]
    return {
        "iops": side["iops"],
        "p50_us": percentile["50.000000"] / 1000,
        "p99_us": percentile["99.000000"] / 1000,
        "p999_us": percentile["99.900000"] / 1000,
        "cpu_us": (server + kernel + fio_cpu) / ios * 1e6,
        "server_cpu_us": server / ios * 1e6,
        "fio_cpu_us": fio_cpu / ios * 1e6,
        "kernel_cpu_us": kernel / ios * 1e6,
        "other_cpu_share": other / wall,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--system", action="append", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    systems = {}
    for text in options.system:
        name, rest = text.split("=", 1)
        uri, pids = rest.rsplit("=", 1)
        systems[name] = (uri, {int(pid) for pid in pids.split(",")})

    for name, (uri, _) in systems.items():
        print(f"filling {name}", flush=True)
        fio(uri, ["--rw=write", "--bs=1m", "--iodepth=8", "--end_fsync=1"])
    # What fio costs before its first I/O is no system's.
    fio_start_cpu = min(fio(uri, ["--rw=read", "--bs=4k", "--number_ios=1"])[1] for uri, _ in systems.values())
    samples = []
    for round_number in range(1, options.rounds + 1):
        for job, arguments in JOBS.items():
            for name, (uri, pids) in systems.items():
                # No ramp time: its CPU would be counted but not its I/O.
                sample = measure(uri, pids, ["--bs=4k", "--time_based", f"--runtime={options.seconds}",
                                             "--norandommap", "--randrepeat=0", *arguments], fio_start_cpu)
                samples.append({"round": round_number, "job": job, "system": name, **sample})
                print(f"round {round_number} {job:<14} {name:<9} {sample['iops']:>8.0f} IOPS  p50 {sample['p50_us']:>6.0f} us"
                      f"  p99 {sample['p99_us']:>6.0f} us  CPU {sample['cpu_us']:>6.1f} us/IO"
                      f"  others {sample['other_cpu_share']:.2f} CPUs", flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    machine = {"kernel": platform.release(), "cpus": os.cpu_count(), "commit": commit.stdout.strip()}
    with open(options.out, "w") as out:
        json.dump({"machine": machine, "seconds": options.seconds, "samples": samples}, out, indent=1)
        out.write("\n")


if __name__ == "__main__":
    main()

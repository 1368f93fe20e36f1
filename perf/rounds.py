"""Interleaved rounds over the systems of a comparison: what perf/compare and perf/guest share."""
import resource
import sys
import time

from load import takes_part
from process import Daemon, Failed, cpu_between, cpu_by_group
from table import QUIET_SHARE, aligned


def client_cpu():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(system, job, seconds):
    client = system.client(job)
    more = {}
    if hasattr(client, "calibrate"):
        more["count"] = client.calibrate(job, seconds)
    # What the client costs before its first I/O is no system's.
    spent = client_cpu()
    client.once()
    start_cpu = client_cpu() - spent
    sessions = {daemon.pid for daemon in system.daemons}
    standing = {daemon.pid for daemon in Daemon.running} - sessions
    before, spent, began = cpu_by_group(), client_cpu(), time.monotonic()
    figures = client.measure(job, seconds, **more)
    wall = time.monotonic() - began
    server, kernel, standby, other = cpu_between(before, cpu_by_group(), sessions, standing)
    of_client = max(0.0, client_cpu() - spent - start_cpu)
    ios = max(figures.pop("ios"), 1)
    return {**figures, "client": client.name, "cpu_us": (server + kernel + of_client) / ios * 1e6,
            "server_cpu_us": server / ios * 1e6, "client_cpu_us": of_client / ios * 1e6, "kernel_cpu_us": kernel / ios * 1e6,
            "standby_cpu_share": standby / wall, "other_cpu_share": other / wall}


class Rounds:
    def __init__(self, systems, jobs, numbers, seconds):
        self.systems, self.jobs, self.numbers, self.seconds = systems, jobs, numbers, seconds
        self.about = {}
        self.samples = []

    def prepare(self):
        for system in self.systems:
            about = self.about[system.name] = {"what": system.what, "version": None, "unavailable": system.missing(), "gaps": {}}
            if not about["unavailable"]:
                print(f"preparing {system.name}", flush=True)
                try:
                    about["version"] = system.version()
                    system.prepare()
                except Failed as error:
                    about["unavailable"] = str(error)
                    system.stop()
            if about["unavailable"]:
                print(f"{system.name} cannot be measured: {about['unavailable']}", flush=True)
        self.systems = [system for system in self.systems if not self.about[system.name]["unavailable"]]

    def measure(self):
        for number in self.numbers:
            standing = [system for system in self.systems if system.standing]
            # Nobody is always the first, or always after the same one that leaves the disk busy.
            first = (number - 1) % max(len(standing), 1)
            standing = standing[first:] + standing[:first]
            for job in self.jobs:
                for system in standing:
                    self.sample(number, system, job)
            for system in self.systems:
                if not system.standing:
                    self.turn(number, system)

    def turn(self, number, system):
        """A system that is started for its turn"""
        try:
            system.start()
            for job in self.jobs:
                self.sample(number, system, job)
        except Failed as error:
            print(f"round {number} {system.name}: {error}", flush=True)
            self.about[system.name]["gaps"].update({job: str(error) for job in self.jobs})
        finally:
            system.stop()

    def sample(self, number, system, job):
        if not takes_part(system.name, job):
            return
        reason = system.gap(job)
        if not reason:
            try:
                sample = measure(system, job, self.seconds)
                system.settle()
                self.samples.append({"round": number, "job": job, "system": system.name, **sample})
                p50, p99 = (aligned(sample[key], 0, 6) for key in ("p50_us", "p99_us"))
                print(f"round {number} {job:<15} {system.name:<10}{sample['iops']:>8.0f} IOPS  p50 {p50} us  p99 {p99} us  CPU "
                      f"{sample['cpu_us']:>7.1f} us/IO  others {sample['other_cpu_share']:.2f} CPUs"
                      f"{' (not quiet)' if sample['other_cpu_share'] > QUIET_SHARE else ''}", flush=True)
            except Failed as error:
                reason = str(error)
                print(f"round {number} {job} {system.name}: {reason}", flush=True)
        if reason:
            self.about[system.name]["gaps"][job] = reason

    def stop(self):
        for system in reversed(self.systems):
            try:
                system.stop()
            except Failed as error:
                print(f"{system.name}: {error}", file=sys.stderr)

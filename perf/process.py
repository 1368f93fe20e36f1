"""The machine, the processes that a measurement starts, and the CPU time of all others."""
import datetime
import os
import platform
import signal
import subprocess
import sys
import time

TICK = os.sysconf("SC_CLK_TCK")


def machine(repo):
    """What a result says of where it was measured, and of what"""
    commit = subprocess.run(["git", "-C", repo, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    with open("/proc/cpuinfo") as info:
        model = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), "unknown")
    with open("/proc/meminfo") as info:
        memory = int(info.readline().split()[1]) >> 10
    return {"kernel": platform.release(), "cpus": os.cpu_count(), "cpu": model, "memory_mib": memory,
            "commit": commit.stdout.strip(), "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}


class Failed(Exception):
    """A system could not be started, driven or stopped; the text says why."""


def run(*command, seconds=120, env=None):
    """Runs to the end and returns standard output; raises Failed with the last of what it said."""
    command = [str(word) for word in command]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False,
                                stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})})
    except FileNotFoundError:
        raise Failed(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise Failed(f"{command[0]} took more than {seconds} s") from None
    if result.returncode != 0:
        raise Failed(f"{' '.join(command)[:300]}: {(result.stderr or result.stdout).strip()[-500:]}")
    return result.stdout


def wait_until(what, condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"gave up after {seconds} s waiting for {what}")
        time.sleep(0.1)


def answers(*command, env=None):
    try:
        return run(*command, seconds=10, env=env) or " "
    except Failed:
        return ""


class Interrupts:
    """Turns SIGINT, SIGTERM and SIGHUP into SystemExit; not while a process is being started, which nobody would know of
    then, and only once, so that a second signal does not cut the cleaning short."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    held = False
    pending = None

    @classmethod
    def catch(cls):
        for each in cls.signals:
            signal.signal(each, cls.arrived)

    @classmethod
    def arrived(cls, signum, _frame):
        for each in cls.signals:
            signal.signal(each, signal.SIG_IGN)
        if cls.held:
            cls.pending = signum
        else:
            sys.exit(128 + signum)

    @classmethod
    def hold(cls):
        cls.held = True

    @classmethod
    def release(cls):
        cls.held = False
        if cls.pending:
            sys.exit(128 + cls.pending)


class Daemon:
    """A server in a session of its own: neither an interrupt from the terminal nor its end reaches it."""

    # Every one that runs, for the end of the program.
    running = []

    def __init__(self, log, *command, env=None, pipe=False):
        """With `pipe`, what it prints is to be read from `process.stdout`; else that goes into the log too."""
        self.log = log
        self.name = os.path.basename(str(command[0]))
        with open(log, "ab") as out:
            Interrupts.hold()
            try:
                self.process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL,
                                                stdout=subprocess.PIPE if pipe else out, stderr=out, start_new_session=True,
                                                env={**os.environ, **(env or {})})
                self.running.append(self)
            except FileNotFoundError:
                raise Failed(f"{command[0]} is not installed") from None
            finally:
                Interrupts.release()

    @property
    def pid(self):
        return self.process.pid

    def wait_ready(self, what, condition, seconds=60):
        def ready():
            if self.process.poll() is not None:
                raise Failed(f"{self.name} ended with {self.process.returncode}: {self.said()[-500:]}")
            return condition()
        wait_until(f"{self.name}: {what}", ready, seconds)

    def said(self):
        with open(self.log, errors="replace") as log:
            return log.read()

    def end(self, first=signal.SIGTERM, seconds=20):
        """Ends the process and what is left of its session."""
        if self.process.poll() is None:
            self.process.send_signal(first)
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()
        if self in self.running:
            self.running.remove(self)


def cpu_by_group():
    """session or "kernel" -> CPU seconds, those of reaped children included, so that a process that comes and goes
    between two looks is counted with its parent. Our own process is left out."""
    spent = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                text = stat.read()
        except OSError:
            continue
        fields = text[text.rindex(")") + 2:].split()
        if int(pid) != os.getpid():
            group = "kernel" if fields[1] == "2" or pid == "2" else int(fields[3])
            spent[group] = spent.get(group, 0.0) + sum(map(int, fields[11:15])) / TICK
    return spent


def cpu_between(before, after, measured, standing):
    """CPU seconds of the `measured` sessions, of the kernel's threads, of the `standing` sessions, of everybody else"""
    def of(spent, chosen):
        return sum(seconds for group, seconds in spent.items() if chosen(group))

    def grown(chosen):
        return max(0.0, of(after, chosen) - of(before, chosen))

    ours = measured | standing | {"kernel"}
    return (grown(lambda group: group in measured), grown(lambda group: group == "kernel"),
            grown(lambda group: group in standing), grown(lambda group: group not in ours))


class Others:
    """CPUs that others than the running daemons, their clients and the kernel's threads took while the block ran. Started
    before them or after, a daemon counts as one."""

    def __enter__(self):
        self.daemons, self.before, self.began = set(Daemon.running), cpu_by_group(), time.monotonic()
        return self

    def __exit__(self, *_):
        sessions = {daemon.pid for daemon in self.daemons | set(Daemon.running)}
        wall = time.monotonic() - self.began
        self.share = cpu_between(self.before, cpu_by_group(), sessions, set())[3] / wall

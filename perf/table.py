"""The table of targets, and every figure of a result."""
import statistics

from load import NODE

# Targets: what, our system, job, the other system (None: an absolute figure), the figure, "least" or "most", the limit
TARGETS = []
# The same, of perf/guest
GUEST_TARGETS = []


def _targets(what, ours, other, jobs, figure, limit, table=TARGETS):
    for job, value in jobs.items():
        table.append((what, ours, job, other, figure, limit, value))


ONE, TWO = "1 copy", "2 copies"
_targets(ONE, "ukai-1", "qemu-nbd", {"randread-d32": 1.0, "randwrite-d32": 1.0}, "iops", "least")
_targets(ONE, "ukai-1", "qemu-nbd", {"randread-d32": 1.3, "randwrite-d32": 1.3}, "cpu_us", "most")
_targets(ONE, "ukai-1", "qemu-nbd", {"randread-d1": 0.75, "randwrite-d1": 0.75}, "iops", "least")
_targets(ONE, "ukai-1", "tgt", {"strideread-d32": 1.5, "stridewrite-d32": 1.5}, "iops", "least")
_targets(ONE, "ukai-1", "nfs", {"strideread-d32": 1.5, "stridewrite-d32": 1.5}, "iops", "least")
_targets(TWO, "ukai-2", "raw", {"randread-d32": 0.70, "randwrite-d32": 0.40}, "iops", "least")
_targets(TWO, "ukai-2", None, {"randread-d32": 12, "randwrite-d32": 25}, "cpu_us", "most")
_targets(TWO, "ukai-2", "raw", {"randread-d1": 0.65, "randwrite-d1": 0.45}, "iops", "least")
_targets(TWO, "ukai-2", None, {"randread-d1": 75, "randwrite-d1": 150}, "cpu_us", "most")
_targets(TWO, "ukai-2", "ceph", {"randread-d1": 3, "randread-d32": 3, "randwrite-d1": 8, "randwrite-d32": 8}, "iops", "least")
_targets(TWO, "ukai-2", "ceph", {"randread-d1": 1 / 6, "randread-d32": 1 / 6, "randwrite-d1": 1 / 6,
                                 "randwrite-d32": 1 / 6}, "cpu_us", "most")
_targets(TWO, "ukai-2", "raw", {"fsync-d1": 0.4}, "iops", "least")
_targets(ONE, "ukai-1", "raw", {"read-64k-d8": 0.7, "write-64k-d8": 0.7}, "iops", "least")
# By the in-process client, which takes CPU of its own: that of the node is what is compared.
_targets("1 node", NODE, "raw", {"randread-d128": 0.85, "randwrite-d128": 0.85}, "iops", "least")
_targets("1 node", NODE, "raw", {"randread-d128": 1.25, "randwrite-d128": 1.25}, "server_cpu_us", "most")

for _other in ("nbd", "loop"):
    _targets("ublk, 1 copy", "ukai", _other, {"randread-d1": 1.0, "randwrite-d1": 1.0, "randread-d32": 1.0, "randwrite-d32": 1.0},
             "iops", "least", GUEST_TARGETS)
_targets("front alone", "null-front", "null-plain", {"randread-d32": 0.8, "randwrite-d32": 0.8}, "iops", "least", GUEST_TARGETS)

# Other processes on this share of a CPU spoil a measurement.
QUIET_SHARE = 0.1
FIGURES = ("iops", "p50_us", "p99_us", "p999_us", "cpu_us")


class Result:
    def __init__(self, document):
        self.document = document
        self.of_guest = "guest" in document["machine"]
        self.targets = GUEST_TARGETS if self.of_guest else TARGETS
        # Results of before there were two UKAI systems.
        renamed = {} if self.of_guest else {"ukai": "ukai-1"}
        self.samples = [{**sample, "system": renamed.get(sample["system"], sample["system"])} for sample in document["samples"]]
        self.systems = list(dict.fromkeys(sample["system"] for sample in self.samples))
        self.jobs = list(dict.fromkeys(sample["job"] for sample in self.samples))

    def by_round(self, system, job, figure):
        return {sample["round"]: sample[figure] for sample in self.samples
                if (sample["system"], sample["job"]) == (system, job) and sample[figure] is not None}

    def median(self, system, job, figure):
        values = self.by_round(system, job, figure)
        return statistics.median(values.values()) if values else None

    def ratio(self, ours, other, job, figure):
        """The median over the rounds of our figure to the other's in the same round"""
        # What raw takes is all its client's.
        whole = "cpu_us" if figure == "server_cpu_us" else figure
        mine, others = self.by_round(ours, job, figure), self.by_round(other, job, whole)
        ratios = [mine[number] / others[number] for number in mine if others.get(number)]
        return statistics.median(ratios) if ratios else None

    def measured(self, ours, other, job, figure):
        return self.ratio(ours, other, job, figure) if other else self.median(ours, job, figure)

    def way(self, system):
        """How its client reached it. Results of before there was `ukai-tools bench` have two copies over NBD."""
        clients = {sample.get("client", "fio") for sample in self.samples if sample["system"] == system}
        return "in-process" if "ukai-tools bench" in clients else "NBD"

    def reason(self, system, job):
        """Why there is no sample of it"""
        about = self.document.get("systems", {}).get(system)
        if about is None:
            return f"{system} was not asked for"
        if about["unavailable"] or job in about["gaps"]:
            return about["unavailable"] or about["gaps"][job]
        return f"{system}: no sample" if job in self.document["options"]["jobs"] else f"{job} was not asked for"


def aligned(value, digits=0, width=9):
    return f"{'-' if value is None else format(value, f'.{digits}f'):>{width}}"


def print_figures(result):
    print(f"\n{'job':<16}{'system':<11}{'IOPS':>9}{'p50 us':>9}{'p99 us':>9}{'p99.9 us':>9}{'CPU us/IO':>11}  others")
    for job in result.jobs:
        for system in result.systems:
            figures = [result.median(system, job, figure) for figure in FIGURES]
            if figures[0] is None:
                continue
            others = max(result.by_round(system, job, "other_cpu_share").values())
            print(f"{job:<16}{system:<11}" + "".join(aligned(figure) for figure in figures[:4]) + aligned(figures[4], 1, 11)
                  + f"{others:>8.2f}{' !' if others > QUIET_SHARE else ''}")


def verdict_of(measured, bound, limit, value, unit):
    """"met", or "short" and what of it is ours: `bound` is what the raw prototype of the same path reached, if it was measured"""
    def reaches(figure):
        return figure >= value if limit == "least" else figure <= value

    if reaches(measured):
        return "met"
    if bound is None:
        return "short"
    if reaches(bound):
        return f"short by {abs(measured / value - 1):.1%}, which is ours: the raw path reaches the target"
    ours = f"{measured / bound:.0%} of that" if limit == "least" else f"{measured / bound:.2f} times that"
    return f"short; the raw path reaches {bound:.2f}{unit}, ours {ours}"


def bound_of(ours, other):
    """The system that does nothing but what ours cannot do without, or None"""
    if ours.startswith("ukai-"):
        return ours.replace("ukai", "bound")
    # In the guest: no ublk server is faster than one without data. kernel nbd has a process to cross as well, so it says nothing there.
    return "null-plain" if (ours, other) == ("ukai", "loop") else None


def rows(result):
    """(what, job, against, figure, measured or None, the same of the raw prototype or None, limit as text, "met", "short..." or
    the reason why it was not measured)"""
    for what, ours, job, other, figure, limit, value in result.targets:
        measured = result.measured(ours, other, job, figure)
        stands_for_ours = bound_of(ours, other)
        bound = result.measured(stands_for_ours, other, job, figure) if stands_for_ours else None
        sign = ">=" if limit == "least" else "<="
        unit = "x" if other else " us"
        if measured is None:
            missing = other if other and not result.by_round(other, job, figure) else ours
            verdict = "not measured: " + result.reason(missing, job)
        else:
            verdict = verdict_of(measured, bound, limit, value, unit)
        about = {"iops": "IOPS", "cpu_us": "CPU/IO", "server_cpu_us": "node CPU"}[figure]
        way = "" if result.of_guest else f", {result.way(ours)}"
        yield what + way, job, other or "-", about, measured, bound, f"{sign} {value:.3g}{unit}", verdict


def print_targets(result):
    """Returns how many targets were missed."""
    print(f"\n{'what':<21}{'job':<16}{'against':<11}{'figure':<8}{'measured':>9}{'bound':>9}  {'target':<10} verdict")
    short = 0
    for what, job, against, about, measured, bound, limit, verdict in rows(result):
        short += verdict.startswith("short")
        print(f"{what:<21}{job:<16}{against:<11}{about:<8}{aligned(measured, 2)}{aligned(bound, 2)}  {limit:<10} {verdict}")
    return short


def print_result(document, path):
    result = Result(document)
    machine = document["machine"]
    rounds = max(sample["round"] for sample in result.samples)
    print(f"{path}: commit {machine['commit'] or 'none'}, {machine['cpus']} CPUs, Linux {machine['kernel']}, {rounds} rounds of "
          f"{document.get('options', document)['seconds']:g} s")
    if result.of_guest:
        guest = machine["guest"]
        print(f"inside {guest['what']} (Linux {guest['kernel']}, {guest['cpus']} CPUs), data on a {document['options']['disk']} disk of it: "
              "an emulated machine, only ratios count")
    for name, about in document.get("systems", {}).items():
        print(f"  {name:<11}{about['what']}" + (f"; NOT MEASURED: {about['unavailable']}" if about.get("unavailable") else ""))
    print_figures(result)
    busiest = max(sample["other_cpu_share"] for sample in result.samples)
    if busiest > QUIET_SHARE:
        print(f"warning: other processes used up to {busiest:.2f} CPUs meanwhile (more than {QUIET_SHARE}: lines with !)")
    standby = max(sample.get("standby_cpu_share", 0) for sample in result.samples)
    if standby > QUIET_SHARE:
        print(f"warning: the systems that stood by used up to {standby:.2f} CPUs meanwhile")
    return print_targets(result)

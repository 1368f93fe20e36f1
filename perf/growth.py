"""The rows of perf/scale: the parts that measure them, and what a result says of each."""
import statistics

import attach
import copying
import failover
import memory
import planner
from table import verdict_of

PARTS = {"planner": planner, "attach": attach, "failover": failover, "memory": memory, "copy": copying}


def rows(document):
    """For each row that was asked for: (row, what, unit, median or None, worst or None, target as text, the most that others took,
    "met", "short...", "" without a target, or the reason why it was not measured)"""
    for name in document["options"]["rows"]:
        # Whether more is better there
        least = getattr(PARTS[name], "LEAST", False)
        for row, (what, unit, limit) in PARTS[name].ROWS.items():
            found = [sample for sample in document["samples"] if sample["row"] == row]
            values = [sample["value"] for sample in found]
            target = "-" if limit is None else f"{'>=' if least else '<='} {limit} {unit}"
            if not values:
                yield row, what, unit, None, None, target, 0, f"not measured: {document['gaps'].get(row, 'no sample')}"
                continue
            median = statistics.median(values)
            bounds = [sample["bound"] for sample in found if "bound" in sample]
            bound = statistics.median(bounds) if bounds else None
            verdict = "" if limit is None else verdict_of(median, bound, "least" if least else "most", limit, unit)
            why = getattr(PARTS[name], "WHY_SHORT", {}).get(row)
            if why and verdict.startswith("short"):
                verdict += f": {why}"
            others = max(sample["other_cpu_share"] for sample in found)
            yield row, what, unit, median, min(values) if least else max(values), target, others, verdict

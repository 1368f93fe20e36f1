"""The rows of perf/scale: the parts that measure them, and what a result says of each."""
import statistics

import attach
import failover
import memory
import planner

PARTS = {"planner": planner, "attach": attach, "failover": failover, "memory": memory}


def rows(document):
    """For each row that was asked for: (row, what, unit, median or None, worst or None, target as text, the most that others took,
    "met", "short", "" without a target, or the reason why it was not measured)"""
    for name in document["options"]["rows"]:
        for row, (what, unit, limit) in PARTS[name].ROWS.items():
            found = [sample for sample in document["samples"] if sample["row"] == row]
            values = [sample["value"] for sample in found]
            target = "-" if limit is None else f"<= {limit} {unit}"
            if not values:
                yield row, what, unit, None, None, target, 0, f"not measured: {document['gaps'].get(row, 'no sample')}"
                continue
            median = statistics.median(values)
            verdict = "" if limit is None else "met" if median <= limit else "short"
            yield row, what, unit, median, max(values), target, max(sample["other_cpu_share"] for sample in found), verdict

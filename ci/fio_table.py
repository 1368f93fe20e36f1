#!/usr/bin/env python3
"""fio_table.py FILE...: a latency table of fio's JSON results, one row for reads and one for writes of each."""
import json
import os
import sys


def document(path):
    # fio may print messages before the JSON.
    text = open(path).read()
    return json.loads(text[text.index("{"):])


print(f"{'':<18}{'':<7}{'IOPS':>9}{'p50':>9}{'p99':>9}{'p99.9':>10}{'max':>12}")
for path in sys.argv[1:]:
    name = os.path.basename(path)
    for kind in ("read", "write"):
        jobs = [job[kind] for job in document(path)["jobs"]]
        iops = sum(job["iops"] for job in jobs)
        clat = jobs[0]["clat_ns"]
        if not jobs[0]["total_ios"]:
            continue
        percentile = {key: value / 1000 for key, value in clat["percentile"].items()}
        print(
            f"{name:<18}{kind:<7}{iops:>9.0f}{percentile['50.000000']:>9.0f}{percentile['99.000000']:>9.0f}"
            f"{percentile['99.900000']:>10.0f}{clat['max'] / 1000:>12.0f}"
        )
        name = ""

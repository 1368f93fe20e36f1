"""Rows of the list of targets that other commands than perf/compare measure, from their newest stored results."""
import glob
import json
import os

import growth
import null_disk
from table import QUIET_SHARE, Result, aligned, rows


def _of_guest(document):
    result = Result(document)
    # Of the machine around the guest; inside it there are no others.
    others = document["machine"]["other_cpu_share"]
    for what, job, against, about, measured, _, target, verdict in rows(result):
        yield f"{what}: {job}, {about} against {against}", measured, target, others, verdict


def _of_scale(document):
    for _, what, _, median, _, target, others, verdict in growth.rows(document):
        if target != "-":
            yield what, median, target, others, verdict


def _of_relocate(document):
    for figure in document["medians"]:
        # The others are predictions, and what no machine excuses.
        if "predicted" not in figure and not figure["must"]:
            verdict = "met" if abs(figure["value"]) <= figure["most"] else "short"
            yield figure["name"], figure["value"], f"<= {figure['most']:g} {figure['unit']}", 0, verdict


def _of_echo(document):
    for job, ours, other, what, measured, target, others, verdict in null_disk.rows(document):
        yield f"{ours}: {job}, {what} against {other}", measured, target, others, verdict


KINDS = {"guest": _of_guest, "scale": _of_scale, "relocate": _of_relocate, "echo": _of_echo}


def _newest(kind, folder):
    """(path, document) of the newest result; of perf/scale, which measures the rows that it is asked for, of the newest of each row"""
    wanted = set(growth.PARTS)
    for path in sorted(glob.glob(os.path.join(folder, f"{kind}-*.json")), reverse=True):
        with open(path) as file:
            document = json.load(file)
        if kind != "scale":
            yield path, document
            return
        document["options"]["rows"] = [row for row in document["options"]["rows"] if row in wanted]
        wanted.difference_update(document["options"]["rows"])
        if document["options"]["rows"]:
            yield path, document
    if 0 < len(wanted) < len(growth.PARTS):
        print(f"no result of perf/scale --rows {','.join(sorted(wanted))} yet")


def print_elsewhere(folder):
    print(f"\n{'by other commands':<76}{'measured':>9}  {'target':<12} verdict")
    for kind, rows_of in KINDS.items():
        found = list(_newest(kind, folder))
        if not found:
            print(f"no result of perf/{kind} yet")
        for path, document in found:
            print(f"perf/{kind}, {os.path.basename(path)}:")
            for what, measured, target, others, verdict in rows_of(document):
                busy = f" (others took {others:.2f} CPUs)" if others > QUIET_SHARE else ""
                print(f"  {what:<74}{aligned(measured, 2)}  {target:<12} {verdict}{busy}")

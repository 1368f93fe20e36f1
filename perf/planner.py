"""The planner on a large volume, made up by the program ukai-planner (tools/src/relocate/trial.rs)."""
import json

from process import Others, run
from ukai import BIN, missing

CHUNKS, NODES = 4_000_000, 100
CASES = {"planner": ["p99-read<=2ms"], "planner-two": ["p99-read<=2ms", "p90-write<=3ms"]}
ROWS = {
    "planner": (f"planner, {CHUNKS // 1_000_000} million chunks, {NODES} nodes", "s", 1),
    "planner-two": ("the same, two targets", "s", None),
    "planner-memory": ("memory at its peak, volume and load included", "MiB", None),
}


def measure(_folder, rounds, sample):
    reason = missing("ukai-planner")
    if reason:
        return {row: reason for row in ROWS}
    for number in range(1, rounds + 1):
        for row, targets in CASES.items():
            with Others() as others:
                plan = json.loads(run(f"{BIN}/ukai-planner", CHUNKS, NODES, *targets))
            sample(row, number, plan["seconds"], others.share, **plan)
            if row == "planner":
                sample("planner-memory", number, plan["most_kib"] / 1024, others.share)
    return {}

#!/usr/bin/env python3
"""Figures of the story (ci/story/run) from what was recorded while it ran.

figures.py show FOLDER FROM TO       latency of the guest between two marks, for people
figures.py series FOLDER             the same over time, for gnuplot: one line per second
figures.py rate FOLDER               copied MiB/s over time, for gnuplot
figures.py span FOLDER               when the move began and ended, seconds since the beginning
figures.py map FOLDER WHEN           the map of the volume then, as coloured half cells, for gnuplot
figures.py report FOLDER OUT RATE_MIB TARGET BUDGET
                                     all figures with targets and verdicts; OUT gets them as JSON
figures.py medians FOLDER OUT        the same of several runs: FOLDER has round-N.json and delay.json

FOLDER has the records of one volume; for `report`, a folder for each volume.
"""
import glob
import json
import math
import os
import platform
import statistics
import subprocess
import sys

QUANTILES = {"p50_us": 0.5, "p90_us": 0.9, "p95_us": 0.95, "p99_us": 0.99, "p999_us": 0.999}
KINDS = ("read", "write")
SECTOR_BYTES = 4096
MIB = 1 << 20
# A rate is of so long: shorter, the moments of sampling show.
RATE_SPAN_MS = 4000


def marks(folder):
    """Mark -> Unix time in ms."""
    with open(os.path.join(folder, "marks")) as lines:
        return {name: int(ms) for name, ms in (line.split() for line in lines)}


def document(folder, name):
    with open(os.path.join(folder, name)) as file:
        text = file.read()
    # fio may print messages before the JSON.
    return json.loads(text[min(at for at in map(text.find, "{[") if at >= 0):])


def guest(folder):
    """Every I/O of the guest as (ms when it ended, latency in us, kind), in order of time."""
    found = []
    for path in sorted(glob.glob(os.path.join(folder, "guest_lat.*.log"))):
        with open(path) as lines:
            for line in lines:
                ms, ns, kind, _ = line.split(",", 3)
                found.append((int(ms), int(ns) / 1000, KINDS[int(kind)]))
    return sorted(found)


def quantile(ordered, q):
    """The smallest value that at least q of all do not exceed."""
    rank = max(0, min(len(ordered) - 1, int(len(ordered) * q + 0.9999999) - 1))
    return ordered[rank]


def latency(ios, begin, end):
    """kind -> count and quantiles of the I/Os that ended in [begin, end); also of all kinds together."""
    result = {}
    for kind in (*KINDS, "all"):
        values = sorted(us for ms, us, k in ios if begin <= ms < end and kind in (k, "all"))
        if values:
            result[kind] = {"count": len(values), **{name: round(quantile(values, q), 1) for name, q in QUANTILES.items()}}
    return result


def copied(folder):
    """(ms, bytes that the nodes had taken from each other by then), while the move was watched."""
    found = []
    with open(os.path.join(folder, "copied")) as lines:
        for line in lines:
            fields = line.split()
            # The watcher may have been ended within a line.
            if len(fields) == 2:
                found.append((int(fields[0]), int(fields[1]) * SECTOR_BYTES))
    return found


def show(folder, begin, end):
    found = marks(folder)
    for kind, values in latency(guest(folder), found[begin], found[end]).items():
        if kind != "all":
            print(
                f"{kind:<6} p50 {values['p50_us'] / 1000:7.2f} ms   p99 {values['p99_us'] / 1000:7.2f} ms"
                f"   ({values['count']} of them)"
            )


def series(folder):
    """Lines of: seconds since the beginning, p50 and p99 of reads, p50 and p99 of writes (ms)."""
    begin = marks(folder)["begin"]
    buckets = {}
    for ms, us, kind in guest(folder):
        buckets.setdefault((ms - begin) // 1000, {}).setdefault(kind, []).append(us / 1000)
    for index in sorted(buckets):
        row = [f"{index + 0.5}"]
        for kind in KINDS:
            values = sorted(buckets[index].get(kind, []))
            row += [f"{quantile(values, q):.3f}" if values else "?" for q in (0.5, 0.99)]
        print(*row)


def rate(folder):
    """Lines of: seconds since the beginning, MiB/s that were copied from then on."""
    begin, seen = marks(folder)["begin"], copied(folder)
    for (ms, before), (later, after) in zip(seen, seen[1:]):
        print(f"{(ms - begin) / 1000:.2f} {(after - before) / MIB / ((later - ms) / 1000):.2f}")
    if seen:
        print(f"{(seen[-1][0] - begin) / 1000:.2f} 0")


def span(folder):
    found = marks(folder)
    print(*((found[name] - found["begin"]) / 1000 for name in ("move", "moved")))


SITES = {"site-a": (40, 130, 235), "site-b": (240, 140, 30)}
WHITE = (255, 255, 255)
# Points of a chunk in the picture, of which the last in each direction is a gap.
POINTS = 9


def draw_map(folder, when):
    """Column, row and colour of every point: a chunk is a square, its halves are its copies."""
    found = document(folder, f"map-{when}.json")
    heat = found["uses_per_s"]
    most = max([*heat, 1e-9])
    columns = 8 * math.ceil(math.sqrt(len(heat)) / 8)
    rows = math.ceil(len(heat) / columns)
    # gnuplot wants every point, row by row.
    image = [[WHITE] * (columns * POINTS) for _ in range(rows * POINTS)]
    for run in found["runs"]:
        sites = sorted(r["site"] for r in run["replicas"] if r["state"] == "in-sync")
        for chunk in range(run["first_chunk"], run["first_chunk"] + run["chunks"]):
            # Heat spans orders of magnitude; the fourth root keeps the lukewarm visible.
            light = 0.25 + 0.75 * (heat[chunk] / most) ** 0.25
            left, right = ([int(light * part) for part in SITES[site]] for site in (sites[0], sites[-1]))
            for y in range(POINTS - 1):
                for x in range(POINTS - 1):
                    colour = left if x < (POINTS - 1) // 2 else right
                    image[chunk // columns * POINTS + y][chunk % columns * POINTS + x] = colour
    for y, row in enumerate(image):
        for x, colour in enumerate(row):
            print(x, y, *colour)


def figure(name, value, unit, most, must=False, **also):
    """One figure: good if its amount is at most `most`. `must`: no busy machine excuses it. `also`: what it is of."""
    return {"name": name, "value": value, "unit": unit, "most": most, "must": must, **also}


def good(found):
    return abs(found["value"]) <= found["most"]


def number(value, unit):
    return f"{value:.2f} {unit}" if unit == "ms" else f"{value:.1f} {unit}".rstrip()


def table(found):
    """Lines for people: name, what it is of, value, target, verdict."""
    rows = []
    for one in found:
        sign = "+" if one["unit"] == "% off" and one["value"] >= 0 else ""
        of = ", ".join(f"{key} {number(one[key], 'ms')}" for key in ("predicted", "measured") if key in one)
        verdict = "ok" if good(one) else ("FAILED" if one["must"] else "MISSED")
        rows.append((one["name"], of, sign + number(one["value"], one["unit"]), f"at most {number(one['most'], one['unit'])}", verdict))
    widths = [max(len(row[n]) for row in rows) for n in range(5)]
    for name, of, value, most, verdict in rows:
        print(f"{name:<{widths[0]}}  {of:<{widths[1]}}  {value:>{widths[2]}}  {most:<{widths[3]}}  {verdict}")


def limit(text):
    """Of "p99-read<=2ms": the percentile, the kind of I/O, the figure in ms."""
    name, value = text.split("<=")
    tail, kind = name.split("-") if "-" in name else (name, "all")
    unit, factor = next((u, f) for u, f in (("us", 1e-3), ("ms", 1), ("s", 1e3)) if value.endswith(u))
    return tail, kind, float(value.removesuffix(unit)) * factor


def compared(name, predicted, measured):
    for kind in KINDS:
        for tail, most in (("p50_us", 15), ("p99_us", 25)):
            guess, truth = predicted[kind][tail] / 1000, measured[kind][tail] / 1000
            off = 100 * (guess / truth - 1)
            yield figure(f"{name}, {kind} {tail[:-3]}: prediction", off, "% off", most, predicted=guess, measured=truth)


def of_volume(folder, name, rate_mib, target, budget, most_moved):
    """Every figure of one volume."""
    found, ios, plan = marks(folder), guest(folder), document(folder, "plan.json")
    before = latency(ios, found["before"], found["planned"])
    during = latency(ios, found["move"], found["moved"])
    after = latency(ios, found["after"], found["end"])
    yield from compared(f"{name} before", plan["now"], before)
    yield from compared(f"{name} after", plan["after"], after)
    tail, kind, most = limit(target)
    yield figure(f"{name} after: {kind} {tail}, the target", after[kind][f"{tail}_us"] / 1000, "ms", most)
    # Data that is still far away would show in the median, however busy the machine is.
    yield figure(f"{name} after: {kind} p50", after[kind]["p50_us"] / 1000, "ms", most, must=True)
    _, kind, most = limit(budget)
    yield figure(f"{name} during: guest p99, the budget", during[kind]["p99_us"] / 1000, "ms", most)

    seen = copied(folder)
    begin, moved = seen[0][1], seen[-1][1] - seen[0][1]
    share = 100 * plan["chunks_moved"] / plan["chunks_total"]
    yield figure(f"{name}: copied, of the planned minimum", moved / plan["bytes_moved"], "times", 1.1, must=True)
    yield figure(f"{name}: moved of the volume", share, "%", most_moved, must=True)
    # At its fastest: it begins slowly, and slows down for the guest.
    spans = [(b - a, after - before) for n, (a, before) in enumerate(seen) for b, after in seen[n + 1:] if b - a >= RATE_SPAN_MS]
    if spans and moved / MIB >= 2 * rate_mib * RATE_SPAN_MS / 1000:
        rate_seen = max(1000 * total / span for span, total in spans) / MIB
        yield figure(f"{name}: fastest {RATE_SPAN_MS // 1000} s of the copy, {rate_mib:g} MiB/s asked", 100 * (rate_seen / rate_mib - 1), "% off", 5, rate_mib=rate_seen)
    errors = sum(1 for job in document(folder, "fio.json")["jobs"] if job["error"])
    yield figure(f"{name}: jobs that saw an error or wrong data", errors, "", 0, must=True)
    runs = document(folder, "map-after.json")["runs"]
    sites = [(run["chunks"], [r["site"] for r in run["replicas"] if r["state"] == "in-sync"]) for run in runs]
    bad = sum(chunks for chunks, where in sites if len(where) != 2 or "site-b" not in where)
    yield figure(f"{name}: chunks without two copies, one at site-b", bad, "", 0, must=True)


def report(folder, out, rate_mib, target, budget):
    """Of both volumes; fails if one fails that must not."""
    found = []
    for name, most_moved in (("vm", 100), ("zipf", 30)):
        found += of_volume(os.path.join(folder, name), name, float(rate_mib), target, budget, most_moved)
    table(found)
    with open(out, "w") as file:
        json.dump(found, file, indent=1)
    failed = [one["name"] for one in found if one["must"] and not good(one)]
    if failed:
        sys.exit(f"failed: {'; '.join(failed)}")


def medians(folder, out):
    """Of the rounds in FOLDER, with what the machine is."""
    rounds = [document(folder, os.path.basename(path)) for path in sorted(glob.glob(os.path.join(folder, "round-*.json")))]
    result = []
    for one in rounds[0]:
        same = [other for found in rounds for other in found if other["name"] == one["name"]]
        median = {key: statistics.median(o[key] for o in same) for key in ("value", "predicted", "measured", "rate_mib") if key in one}
        result.append({**one, **median})
    table(result)
    with open("/proc/cpuinfo") as lines:
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    machine = {"cpu": cpu, "cores": os.cpu_count(), "kernel": platform.release(), "commit": commit}
    with open(out, "w") as file:
        json.dump({"machine": machine, "delay": document(folder, "delay.json"), "medians": result, "rounds": rounds}, file, indent=1)
        file.write("\n")


COMMANDS = {"show": show, "series": series, "rate": rate, "span": span, "map": draw_map, "report": report, "medians": medians}


def main():
    what, *rest = sys.argv[1:]
    COMMANDS[what](*rest)


if __name__ == "__main__":
    main()

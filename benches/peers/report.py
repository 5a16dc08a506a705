"""Figures: medians with their 95 % bootstrap intervals, ratios within a round, floors."""

import random
import statistics


def middle(values, dice):
    """The median, and where it lies with 95 % by drawing anew."""
    drawn = sorted(statistics.median(dice.choices(values, k=len(values))) for _ in range(1000))
    return statistics.median(values), drawn[25], drawn[974]


def summary(report):
    """For each job and contestant the medians; for each floor the ratio reached."""
    dice = random.Random(report["seed"])
    for job in report["jobs"]:
        for case in job["cases"]:
            rounds = case["rounds"]
            if rounds:
                case["medians"] = {key: middle([one[key] for one in rounds], dice)
                                   for key in rounds[0]}
        by_label = {case["label"]: case for case in job["cases"]}
        for floor in job["floors"]:
            of, over = by_label.get(floor["of"]), by_label.get(floor["over"])
            if floor["over"] is None:
                value = of and of.get(floor["what"])
                floor["reached"] = None if value is None else [value, value, value]
                floor["met"] = None if value is None else meets(floor, value)
                continue
            if not (of and over and of["rounds"] and over["rounds"]):
                floor["reached"], floor["met"] = None, None
                continue
            ratios = [a[floor["what"]] / b[floor["what"]]
                      for a, b in zip(of["rounds"], over["rounds"]) if b[floor["what"]]]
            if not ratios:
                floor["reached"], floor["met"] = None, None
                continue
            value, low, high = middle(ratios, dice)
            floor["reached"] = [value, low, high]
            floor["met"] = meets(floor, value)


def meets(floor, value):
    return value >= floor["least"] if floor["least"] is not None else value <= floor["most"]


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def markdown(report):
    lines = ["# orlop beside its peers", "",
             f"{report['date']}; {report['machine']}; {report['rounds']} interleaved rounds of "
             f"{report['seconds']} s, seed {report['seed']}; disks of {report['mib']} MiB in "
             f"{report['file_system']}, on unix sockets. Medians, in brackets where they lie with "
             "95 %. Every contestant returned what was written to it at depths 1, 16 and 64 and "
             "reads the same bytes before it is timed, or is listed as failing; null exports keep "
             "nothing. Caches are warm unless a contestant's line says O_DIRECT. `us` is processor "
             "time of the server per request.", "",
             "| contestant | version | command | |", "|---|---|---|---|"]
    for server in report["servers"]:
        lines.append(f"| {server['name']} | {server['version']} | `{server['command']}` "
                     f"| {server['about']} |")
    lines += ["", report["load"]]
    if report["failures"]:
        lines += ["", "Failing: " + "; ".join(report["failures"]) + "."]
    for job in report["jobs"]:
        if job["x"] is not None:
            continue
        lines += ["", f"## {job['title']}", "",
                  "| contestant | requests/s | MiB/s | us | p50 us | p99 us | calls |",
                  "|---|---|---|---|---|---|---|"]
        for case in job["cases"]:
            figures = case.get("medians")
            if not figures:
                lines.append(f"| {case['label']} | fails | | | | | |")
                continue
            rate = figures["iops"]
            calls = case.get("system_calls")
            lines.append(
                f"| {case['label']} | {number(rate[0])} ({number(rate[1])}-{number(rate[2])}) "
                f"| {number(figures['mib_s'][0])} | {number(figures['server_us'][0])} "
                f"| {number(figures['p50_us'][0])} | {number(figures['p99_us'][0])} "
                f"| {'' if calls is None else f'{calls:.2f}'} |")
        lines += [""] + [floor_line(floor) for floor in job["floors"]]
    lines += curves(report)
    return "\n".join(lines) + "\n"


def floor_line(floor):
    if floor["reached"] is None:
        return f"* {floor['text']}: not measured"
    value, low, high = floor["reached"]
    verdict = "reached" if floor["met"] else "MISSED"
    return f"* {floor['text']}: **{verdict}**, {value:.2f} ({low:.2f}-{high:.2f})"


def curve_of(job):
    return job["key"].rsplit("-", 1)[0]


# What a curve tells of each contestant: what is measured, and how it is called.
TOLD = (("iops", "requests/s"), ("p50_us", "p50 us"), ("server_us", "us"),
        ("resident_mib", "MiB resident"), ("ready_ms", "ms to start"))


def curves_of(report):
    """The jobs of each curve, in order."""
    grown = {}
    for job in report["jobs"]:
        if job["x"] is not None:
            grown.setdefault(curve_of(job), []).append(job)
    return grown


def curves(report):
    lines = []
    for jobs in curves_of(report).values():
        title = jobs[0]["title"]
        heads = [name for _, name in TOLD]
        lines += ["", f"## Growth: {title}", "",
                  "| " + " | ".join(["", "contestant", *heads]) + " |",
                  "|" + "---|" * (len(heads) + 2)]
        for job in jobs:
            for case in job["cases"]:
                figures = case.get("medians")
                cells = ["fails"] + [""] * (len(TOLD) - 1)
                if figures:
                    # Only orlop says when it is ready.
                    cells = [number(figures[what][0]) if figures[what][0] else ""
                             for what, _ in TOLD]
                lines.append(f"| {job['x']} | {case['label']} | " + " | ".join(cells) + " |")
    return lines

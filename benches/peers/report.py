"""Figures: medians with their 95 % bootstrap intervals, ratios within a round, verdicts."""

import random
import statistics

from machine import told as told_machine
from sampling import lines_of

# The best of a case's rounds over its worst from which on its figures are called noisy.
NOISY = 1.5
# A point of a curve that is less than so much of the one before is a cliff.
CLIFF = 0.5
# Of fewer rounds there is no interval to judge by.
FEWEST = 3
BEHIND = ("Profiles stand with their jobs. What bounds the floors that are not reached, as far as "
          "it was measured: docs/benchmarks/README.md.")
COUNTED = {"system_calls": "calls", "syncs_per_flush": "syncs per flush",
           "file_over_blocks": "file over need"}
REACHED, OPEN, MISSED = "reached", "open", "MISSED"


def middle(values, dice):
    """The median, and where it lies with 95 % by drawing anew."""
    drawn = sorted(statistics.median(dice.choices(values, k=len(values))) for _ in range(1000))
    return statistics.median(values), drawn[25], drawn[974]


def summary(report):
    """For each job and contestant the medians, for each floor its verdict, and what is noisy."""
    dice = random.Random(report["seed"])
    report["noisy"] = []
    for job in report["jobs"]:
        for case in job["cases"]:
            rounds = case["rounds"]
            if not rounds:
                continue
            case["medians"] = {key: middle([one[key] for one in rounds], dice)
                               for key in rounds[0] if key != "round"}
            what = job["columns"][0][0]
            least, most = (pick(one[what] for one in rounds) for pick in (min, max))
            case["spread"] = most / least if least else None
            if case["spread"] and case["spread"] > NOISY:
                report["noisy"].append(f"{title_of(job)}: {case['label']} ({case['spread']:.1f})")
        by_label = {case["label"]: case for case in job["cases"]}
        for floor in job["floors"]:
            floor["reached"] = reach(floor, by_label, dice)
            floor["verdict"] = job.get("not_judged") or verdict(floor, by_label)
    report["cliffs"] = list(cliffs(report))


def reach(floor, by_label, dice):
    """What was reached, and the interval where that lies; None if it was not measured."""
    of, over = by_label.get(floor["of"]), by_label.get(floor["over"])
    if floor["over"] is None:
        value = of and of.get("counts", {}).get(floor["what"])
        return None if value is None else [value, value, value]
    if not (of and over):
        return None
    bases = {one["round"]: one[floor["what"]] for one in over["rounds"]}
    ratios = [one[floor["what"]] / bases[one["round"]] for one in of["rounds"]
              if bases.get(one["round"])]
    return list(middle(ratios, dice)) if ratios else None


def verdict(floor, by_label):
    """Missed is only what lies on the wrong side with its whole interval."""
    if floor["reached"] is None:
        return "not measured"
    _, low, high = floor["reached"]
    if floor["over"] is not None and len(by_label[floor["of"]]["rounds"]) < FEWEST:
        return OPEN
    if floor["least"] is not None:
        return REACHED if low >= floor["least"] else OPEN if high >= floor["least"] else MISSED
    return REACHED if high <= floor["most"] else OPEN if low <= floor["most"] else MISSED


def cliffs(report):
    """Where a curve of ours falls to a fraction from one point to the next, intervals and all."""
    for jobs in curves_of(report).values():
        lines = {}
        for job in jobs:
            for case in job["cases"]:
                if len(case["rounds"]) >= FEWEST and not is_peer(case["label"]):
                    lines.setdefault(case["label"], []).append((job["x"], case["medians"]["iops"]))
        for label, line in lines.items():
            for (before, high), (after, low) in zip(line, line[1:]):
                if low[2] < CLIFF * high[1]:
                    yield (f"{jobs[0]['title']}: {label} falls to {low[0] / high[0]:.2f} from "
                           f"{before} to {after}")


def is_peer(label):
    return label.startswith(("nbd", "qemu", "vhd", "bare", "loop/bare"))


def title_of(job):
    return job["title"] + ("" if job["x"] is None else f", {job['x']}")


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def tally(report):
    """How many floors have each verdict."""
    counted = {REACHED: 0, OPEN: 0, MISSED: 0}
    for job in report["jobs"]:
        for floor in job["floors"]:
            word = floor["verdict"] if floor["verdict"] in counted else "not judged"
            counted[word] = counted.get(word, 0) + 1
    return ", ".join(f"{count} {word}" for word, count in counted.items())


def setting(report):
    """Where and how it was measured, in paragraphs."""
    load = report["load_average"]
    shared = report["machine"]["processors"] / 2
    lines = [f"{report['date']}, {report['minutes']} minutes: {report['rounds']} interleaved "
             f"rounds of {report['seconds']} s ({report['growth_rounds']} of half of that for "
             f"curves), seed {report['seed']}; disks of {report['mib']} MiB in "
             f"{report['file_system']}"
             + (f", those for O_DIRECT in {report['disk_file_system']}"
                if report["disk_file_system"] else "") + "; on unix sockets.",
             f"{told_machine(report['machine'])}. Load average of one and five minutes: "
             f"{load['start']} at the start, {load['end']} at the end."]
    if load["start"][0] > shared:
        lines.append("**The machine was not idle when this began: take ratios for a hint only.**")
    lines.append(
        "Medians, in brackets where they lie with 95 %; ratios are taken within a round. A floor "
        "is reached, or MISSED, where the whole interval is on that side of it, and open where the "
        "floor lies inside, or where there were fewer than three rounds. Every contestant returned "
        "what was written to it at depths 1, 16 and 64 and reads the same bytes before it is "
        "timed, or is listed as failing; null exports keep nothing. Caches are warm unless a "
        "contestant's line says O_DIRECT. `us` is processor time of the server per request.")
    if report["noisy"]:
        lines.append(f"Noise: the best round of these is more than {NOISY} times their worst: "
                     + "; ".join(report["noisy"]) + ".")
    return lines


def markdown(report):
    lines = ["# orlop beside its peers", ""]
    for paragraph in setting(report):
        lines += [paragraph, ""]
    if report["failures"]:
        lines += ["Failing: " + "; ".join(report["failures"]) + ".", ""]
    lines += [f"## Floors: {tally(report)}", "", BEHIND, ""]
    lines += ["| check | job | floor | verdict | measured |",
              "|---|---|---|---|---|"]
    for check, job, floor in floors_of(report):
        lines.append(f"| {check} | {job['title']} | {floor['text']} | {floor['verdict']} "
                     f"| {measured(floor)} |")
    lines.append("")
    lines += [f"* {words}" for words in growth(report)]
    lines += ["", "## Contestants", "", "| contestant | version | command | |", "|---|---|---|---|"]
    for server in report["servers"]:
        lines.append(f"| {server['name']} | {server['version']} | `{server['command']}` "
                     f"| {server['about']} |")
    lines += ["", report["load"]]
    if report.get("mounts"):
        lines += ["", f"Mounts: {report['mounts']['about']}", ""]
        lines += [f"* {name}: " + ", ".join(f"`{command}`" for command in commands)
                  for name, commands in report["mounts"]["commands"].items() if commands]
    for job in report["jobs"]:
        if job["x"] is None:
            lines += table_of(job)
    return "\n".join(lines + curves(report)) + "\n"


def floors_of(report):
    """All floors in the order of the checks they stand for."""
    told = [(job["check"], job, floor) for job in report["jobs"] for floor in job["floors"]]
    return sorted(told, key=lambda one: one[0])


def growth(report):
    """The curves, as check 8 asks: whether one falls off."""
    grown = curves_of(report)
    if not grown:
        return []
    if min(report["rounds"], report["growth_rounds"]) < FEWEST:
        return [f"Check 8: not judged, in fewer than {FEWEST} rounds."]
    return [f"Check 8, cliff: {cliff}" for cliff in report["cliffs"]] or [
        f"Check 8: no curve of ours falls below {CLIFF} of the point before."]


def measured(floor):
    if floor["reached"] is None:
        return ""
    value, low, high = floor["reached"]
    return f"{value:.2f}" + (f" ({low:.2f}-{high:.2f})" if floor["over"] else "")


def table_of(job):
    counted = [what for what in COUNTED if any(what in case.get("counts", {})
                                               for case in job["cases"])]
    heads = [name for _, name in job["columns"]] + [COUNTED[what] for what in counted] + ["spread"]
    lines = ["", f"## {job['title']}", ""] + ([job["note"], ""] if job.get("note") else [])
    lines += ["| " + " | ".join(["contestant", *heads]) + " |", "|" + "---|" * (len(heads) + 1)]
    for case in job["cases"]:
        lines.append(f"| {case['label']} | " + " | ".join(cells(job, case, counted)) + " |")
    lines += [""] + [floor_line(floor) for floor in job["floors"]]
    return lines + [f"* Profile of {line}" for case in job["cases"] if "profile" in case
                    for line in lines_of(case["label"], case["profile"])]


def cells(job, case, counted=()):
    figures = case.get("medians")
    if not figures:
        return ["fails"] + [""] * (len(job["columns"]) + len(counted))
    (value, low, high), *rest = (figures[what] for what, _ in job["columns"])
    told = [f"{number(value)} ({number(low)}-{number(high)})"]
    told += [number(one[0]) if one[0] else "" for one in rest]
    counts = case.get("counts", {})
    told += [f"{counts[what]:.2f}" if what in counts else "" for what in counted]
    return told + [f"{case['spread']:.2f}" if case["spread"] else ""]


def floor_line(floor):
    return f"* {floor['text']}: **{floor['verdict']}** {measured(floor)}".rstrip()


def curve_of(job):
    return job["key"].rsplit("-", 1)[0]


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
        heads = [name for _, name in jobs[0]["columns"]] + ["spread"]
        lines += ["", f"## Growth: {jobs[0]['title']}", "",
                  "| " + " | ".join(["", "contestant", *heads]) + " |",
                  "|" + "---|" * (len(heads) + 2)]
        for job in jobs:
            for case in job["cases"]:
                lines.append(f"| {job['x']} | {case['label']} | " + " | ".join(cells(job, case))
                             + " |")
    return lines

"""One page that shows a report by itself: bars for jobs, curves for growth, drawn as SVG."""

import html
import math
import re

from report import (BEHIND, MISSED, OPEN, REACHED, cells, curves_of, floors_of, growth, is_peer,
                    measured, number, setting, tally)
from sampling import lines_of

STYLE = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --pale: #afb8c1; --ours: #1f6feb;
  --c1: #bf8700; --c2: #8250df; --c3: #2da44e; --c4: #cf222e; --c5: #57606a; --c6: #0a7ea4;
  --reached: #1a7f37; --open: #9a6700; --missed: #cf222e }
@media (prefers-color-scheme: dark) { :root { --ink: #d8dee4; --paper: #15191e; --pale: #4d5763;
  --ours: #58a6ff; --c1: #e3b341; --c2: #bc8cff; --c3: #56d364; --c4: #ff7b72; --c5: #9aa4af;
  --c6: #4cc2e0; --reached: #56d364; --open: #e3b341; --missed: #ff7b72 } }
body { font: 15px/1.5 sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em;
  color: var(--ink); background: var(--paper) }
h2 { margin-top: 2em } svg { width: 100%; height: auto } code { font-size: 85% }
figure { margin: 1em 0 } figcaption { font-weight: bold; font-size: 90% }
div { overflow-x: auto } table { border-collapse: collapse; font-size: 90% }
td, th { padding: .15em .7em; text-align: left; vertical-align: top;
  border-top: 1px solid var(--pale) }
.reached { color: var(--reached) } .open { color: var(--open) } .missed { color: var(--missed) }
text { font: 12px sans-serif; fill: var(--ink) }
"""
COLOURS = ["var(--ours)", *(f"var(--c{number})" for number in range(1, 7))]
CLASSES = {REACHED: "reached", OPEN: "open", MISSED: "missed"}
# Where what is drawn lies: x of its left and right, y of its top and bottom.
LEFT, RIGHT, TOP, BOTTOM = 80, 660, 16, 230


def text(x, y, words, anchor="start"):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(str(words))}</text>'


def figure(caption, parts, height):
    return (f"<figure><figcaption>{html.escape(caption)}</figcaption>"
            f'<svg viewBox="0 0 900 {height}" role="img">{"".join(parts)}</svg></figure>')


def bars(job, what, caption):
    """A bar for each contestant, with the interval of its median as a line."""
    cases = [case for case in job["cases"] if case.get("medians")]
    top = max((case["medians"][what][2] for case in cases), default=0) or 1
    parts, y, start, scale = [], 4, 215, 560 / top
    for case in cases:
        value, low, high = case["medians"][what]
        fill = "var(--pale)" if is_peer(case["label"]) else "var(--ours)"
        parts.append(text(start - 7, y + 14, case["label"], "end"))
        parts.append(f'<rect x="{start}" y="{y}" width="{value * scale:.1f}" height="18" '
                     f'fill="{fill}"/>')
        parts.append(f'<line x1="{start + low * scale:.1f}" x2="{start + high * scale:.1f}" '
                     f'y1="{y + 9}" y2="{y + 9}" stroke="var(--ink)"/>')
        parts.append(text(start + 7 + high * scale, y + 14, number(value)))
        y += 24
    return figure(caption, parts, y + 2) if cases else ""


def legend(labels):
    """A line for each label, beside the plot."""
    return [f'<rect x="690" y="{TOP + 20 * at}" width="12" height="12" fill="{COLOURS[at % 7]}"/>'
            + text(708, TOP + 11 + 20 * at, label) for at, label in enumerate(labels)]


def drawn(spots, colour):
    way = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    return f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"/>'


def rule(y, words):
    """A line across, with what it stands for at its left."""
    return (f'<line x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--pale)"/>'
            + text(LEFT - 8, y + 4, words, "end"))


def curve(jobs, what, caption):
    """One line for each contestant over the jobs' x, which stand at even distances."""
    lines = {}
    for job in jobs:
        for case in job["cases"]:
            if case.get("medians") and case["medians"][what][0]:
                lines.setdefault(case["label"], []).append((job["x"], case["medians"][what]))
    if not lines:
        return ""
    xs = sorted({x for line in lines.values() for x, _ in line})
    top = max(value[2] for line in lines.values() for _, value in line) or 1
    place = {x: LEFT + 20 + (RIGHT - LEFT - 40) * at / max(1, len(xs) - 1)
             for at, x in enumerate(xs)}

    def height(value):
        return BOTTOM - (BOTTOM - TOP) * value / top

    parts = [rule(height(top * part), number(top * part)) for part in (0, 0.5, 1)]
    parts += [text(place[x], BOTTOM + 18, x, "middle") for x in xs]
    for index, line in enumerate(lines.values()):
        colour = COLOURS[index % 7]
        parts.append(drawn([(place[x], height(value[0])) for x, value in line], colour))
        for x, value in line:
            parts.append(f'<line x1="{place[x]:.1f}" x2="{place[x]:.1f}" '
                         f'y1="{height(value[1]):.1f}" y2="{height(value[2]):.1f}" '
                         f'stroke="{colour}" stroke-width="4" stroke-opacity=".4"/>')
    return figure(caption, parts + legend(lines), max(BOTTOM + 26, TOP + 20 * len(lines)))


def latency(jobs):
    """Latency against throughput, a point for each depth of the queue."""
    lines = {}
    for job in jobs:
        for case in job["cases"]:
            if case.get("medians"):
                figures = case["medians"]
                lines.setdefault(case["label"], []).append(
                    (figures["iops"][0], figures["p50_us"][0], job["x"]))
    if not lines:
        return ""
    right = max(x for line in lines.values() for x, _, _ in line) or 1
    most = max(y for line in lines.values() for _, y, _ in line)
    top = math.ceil(math.log10(max(10, most)))

    def at(x, y):
        return (LEFT + (RIGHT - LEFT) * x / right,
                BOTTOM - (BOTTOM - TOP) * math.log10(max(1, y)) / top)

    parts = [rule(at(0, 10 ** power)[1], f"{10 ** power:,} us") for power in range(top + 1)]
    parts += [text(LEFT, BOTTOM + 18, "0", "middle"),
              text(RIGHT, BOTTOM + 18, f"{number(right)} requests/s", "end")]
    for index, (label, line) in enumerate(lines.items()):
        colour = COLOURS[index % 7]
        spots = [at(x, y) for x, y, _ in line]
        parts.append(drawn(spots, colour))
        for (x, y), (_, _, depth) in zip(spots, line):
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}">'
                         f"<title>{html.escape(label)}, depth {depth}</title></circle>")
    depths = ", ".join(str(job["x"]) for job in jobs)
    return figure(f"Latency (p50) against throughput; the points of a line are depths {depths}",
                  parts + legend(lines), max(BOTTOM + 26, TOP + 20 * len(lines)))


def table(heads, rows):
    """Of cells that are HTML."""
    return ("<div><table><tr>" + "".join(f"<th>{html.escape(head)}" for head in heads)
            + "".join("<tr>" + "".join(f"<td>{cell}" for cell in row) for row in rows)
            + "</table></div>")


def words(markdown):
    """A paragraph of the report as HTML: code and emphasis are all it has."""
    told = re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(markdown))
    return re.sub(r"\*\*([^*]*)\*\*", r"<b class=missed>\1</b>", told)


def judged(floor):
    verdict = floor["verdict"]
    return f"<b class={CLASSES.get(verdict, 'open')}>{html.escape(verdict)}</b>"


def head(report):
    out = ["<!doctype html><html lang=en><meta charset=utf-8>"
           "<meta name=viewport content='width=device-width'><title>orlop beside its peers</title>",
           f"<style>{STYLE}</style><h1>orlop beside its peers</h1>"]
    out += [f"<p>{words(paragraph)}" for paragraph in setting(report)]
    out += [f"<p class=missed>Fails: {html.escape(failure)}" for failure in report["failures"]]
    out.append(f"<h2>Floors: {tally(report)}</h2>")
    out.append(f"<p>{words(BEHIND)}")
    out.append(table(["check", "job", "floor", "verdict", "measured"], [
        [check, html.escape(job["title"]), html.escape(floor["text"]), judged(floor),
         measured(floor)] for check, job, floor in floors_of(report)]))
    out.append("<ul>" + "".join(f"<li>{html.escape(line)}" for line in growth(report)) + "</ul>")
    out.append("<h2>Contestants</h2>")
    out.append(table(["", "version", "command", ""], [
        [html.escape(server["name"]), html.escape(server["version"]),
         f"<code>{html.escape(server['command'])}</code>", html.escape(server["about"])]
        for server in report["servers"]]))
    out.append(f"<p>{words(report['load'])}")
    if report.get("mounts"):
        out.append(f"<p>Mounts: {words(report['mounts']['about'])}")
        out.append(table(["", "commands"], [
            [html.escape(name), "<br>".join(f"<code>{html.escape(one)}</code>" for one in commands)]
            for name, commands in report["mounts"]["commands"].items() if commands]))
    return out


def page(report):
    out = head(report)
    for job in report["jobs"]:
        if job["x"] is not None:
            continue
        out.append(f"<h2>{html.escape(job['title'])}</h2>")
        out += [f"<p>{words(job['note'])}"] if job.get("note") else []
        out += [bars(job, what, caption) for what, caption in job["plots"]]
        out.append("<ul>" + "".join(
            f"<li>{html.escape(floor['text'])}: {judged(floor)} {measured(floor)}"
            for floor in job["floors"]) + "".join(
            f"<li>Profile of {words(line)}" for case in job["cases"] if "profile" in case
            for line in lines_of(case["label"], case["profile"])) + "</ul>")
    for key, jobs in curves_of(report).items():
        out.append(f"<h2>Growth: {html.escape(jobs[0]['title'])}</h2>")
        if key == "by-depth-of-queue":
            out.append(latency(jobs))
        out += [curve(jobs, "iops", "requests/s"),
                curve(jobs, "server_us", "us of processor time per request, of the server"),
                curve(jobs, "resident_mib", "MiB resident")]
        if key in ("by-size", "by-disks", "by-layers"):
            out.append(curve(jobs, "ready_ms", "ms to start"))
        columns = jobs[0]["columns"]
        out.append(table(["", "contestant", *(name for _, name in columns), "spread"], [
            [job["x"], html.escape(case["label"]), *cells(job, case)]
            for job in jobs for case in job["cases"]]))
    return "\n".join(out) + "\n"

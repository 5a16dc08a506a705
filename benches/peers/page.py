"""One page that shows a report by itself: bars for jobs, curves for growth, drawn as SVG."""

import html
import math

from report import TOLD, curves_of, floor_line, number

COLOURS = ["#1f6feb", "#d29922", "#8250df", "#2da44e", "#cf222e", "#57606a", "#bf8700"]
STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #222 }
h2 { margin-top: 2em } svg { width: 100%; height: auto } code { font-size: 85% }
table { border-collapse: collapse } td, th { padding: .15em .7em; text-align: left }
.missed { color: #cf222e } text { font: 12px sans-serif; fill: #222 }
"""


def text(x, y, words, anchor="start"):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'


def bars(job, what, unit):
    """A bar for each contestant, with the interval of its median as a line."""
    cases = [case for case in job["cases"] if case.get("medians")]
    top = max((case["medians"][what][2] for case in cases), default=0) or 1
    parts, y = [], 8
    for case in cases:
        value, low, high = case["medians"][what]
        ours = case["label"].startswith("orlop")
        scale = 520 / top
        parts.append(text(188, y + 14, case["label"], "end"))
        parts.append(f'<rect x="195" y="{y}" width="{value * scale:.1f}" height="18" '
                     f'fill="{COLOURS[0] if ours else "#afb8c1"}"/>')
        parts.append(f'<line x1="{195 + low * scale:.1f}" x2="{195 + high * scale:.1f}" '
                     f'y1="{y + 9}" y2="{y + 9}" stroke="#222"/>')
        parts.append(text(202 + high * scale, y + 14, f"{number(value)} {unit}"))
        y += 24
    return f'<svg viewBox="0 0 860 {y + 4}" role="img">{"".join(parts)}</svg>'


def curve(jobs, what, unit):
    """One line for each contestant over the jobs' x, which is drawn by its logarithm."""
    points = {}
    for job in jobs:
        for case in job["cases"]:
            if case.get("medians"):
                points.setdefault(case["label"], []).append((job["x"], case["medians"][what]))
    if not points:
        return ""
    xs = sorted({x for line in points.values() for x, _ in line})
    top = max(value[2] for line in points.values() for _, value in line) or 1
    place = {x: 70 + 600 * at / max(1, len(xs) - 1) for at, x in enumerate(xs)}

    def height(value):
        return 230 - 210 * value / top

    parts = [f'<line x1="70" x2="670" y1="{height(0)}" y2="{height(0)}" stroke="#afb8c1"/>',
             text(62, height(top) + 4, number(top), "end"), text(62, height(0) + 4, "0", "end"),
             text(62, height(top) + 22, unit, "end")]
    parts += [text(place[x], 248, str(x), "middle") for x in xs]
    for index, (label, line) in enumerate(points.items()):
        colour = COLOURS[index % len(COLOURS)]
        way = " ".join(f"{place[x]:.1f},{height(value[0]):.1f}" for x, value in line)
        parts.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, value in line:
            parts.append(f'<line x1="{place[x]:.1f}" x2="{place[x]:.1f}" '
                         f'y1="{height(value[1]):.1f}" y2="{height(value[2]):.1f}" '
                         f'stroke="{colour}"/>')
        parts.append(f'<rect x="690" y="{20 + 20 * index}" width="12" height="12" '
                     f'fill="{colour}"/>' + text(708, 31 + 20 * index, label))
    return f'<svg viewBox="0 0 860 260" role="img">{"".join(parts)}</svg>'


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
    top = math.log10(max(10, max(y for line in lines.values() for _, y, _ in line)))

    def at(x, y):
        return 70 + 600 * x / right, 230 - 210 * math.log10(max(1, y)) / top

    parts = [text(62, 34, f"{10 ** top:.0f} us", "end"), text(62, 234, "1 us", "end"),
             text(670, 250, f"{number(right)} requests/s", "end")]
    for index, (label, line) in enumerate(lines.items()):
        colour = COLOURS[index % len(COLOURS)]
        spots = [at(x, y) for x, y, _ in line]
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for (x, y), (_, _, depth) in zip(spots, line):
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
                         + text(x + 4, y - 4, str(depth)))
        parts.append(f'<rect x="690" y="{20 + 20 * index}" width="12" height="12" '
                     f'fill="{colour}"/>' + text(708, 31 + 20 * index, label))
    return f'<svg viewBox="0 0 860 260" role="img">{"".join(parts)}</svg>'


def table_of(jobs):
    out = ["<table><tr><th><th>" + "".join(f"<th>{name}" for _, name in TOLD)]
    for job in jobs:
        for case in job["cases"]:
            figures = case.get("medians")
            cells = [f"<td>{number(figures[what][0]) if figures[what][0] else ''}"
                     for what, _ in TOLD] if figures else ["<td>fails"]
            out.append(f"<tr><td>{job['x']}<td>{html.escape(case['label'])}" + "".join(cells))
    return "".join(out) + "</table>"


def page(report):
    out = ["<!doctype html><meta charset=utf-8><title>orlop beside its peers</title>",
           f"<style>{STYLE}</style><h1>orlop beside its peers</h1>",
           f"<p>{html.escape(report['date'])}; {html.escape(report['machine'])}; "
           f"{report['rounds']} interleaved rounds of {report['seconds']} s; disks of "
           f"{report['mib']} MiB. Medians; the lines show where they lie with 95 %.</p><table>"]
    for server in report["servers"]:
        out.append(f"<tr><td>{html.escape(server['name'])}<td>{html.escape(server['version'])}"
                   f"<td><code>{html.escape(server['command'])}</code>"
                   f"<td>{html.escape(server['about'])}")
    out.append("</table>")
    for failure in report["failures"]:
        out.append(f"<p class=missed>Fails: {html.escape(failure)}</p>")
    out.append("<p>" + html.escape(report["load"]).replace("`", ""))
    for job in report["jobs"]:
        if job["x"] is not None:
            continue
        out.append(f"<h2>{html.escape(job['title'])}</h2>" + bars(job, "iops", "requests/s")
                   + bars(job, "server_us", "us of processor time per request") + "<ul>")
        for floor in job["floors"]:
            kind = "" if floor["met"] in (True, None) else " class=missed"
            line = floor_line(floor)[2:].replace("**", "")
            out.append(f"<li{kind}>{html.escape(line)}")
        out.append("</ul>")
    for key, jobs in curves_of(report).items():
        out.append(f"<h2>Growth: {html.escape(jobs[0]['title'])}</h2>"
                   + curve(jobs, "iops", "req/s") + curve(jobs, "server_us", "us each"))
        if key == "by-depth-of-queue":
            out.append("<h3>Latency against throughput</h3>" + latency(jobs))
        else:
            out.append(curve(jobs, "resident_mib", "MiB"))
        if key in ("by-size", "by-disks", "by-layers"):
            out.append(curve(jobs, "ready_ms", "ms"))
        out.append(table_of(jobs))
    return "\n".join(out) + "\n"

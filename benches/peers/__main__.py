"""Compares 'orlop serve' with other NBD servers over unix sockets, and mounts with other mounts.

First every server must return what was written to it at depths 1, 16 and 64, and read each image as
the raw content has it; one that fails is listed as failing and gets no rate. Then all contestants
of all jobs run once in each round, those of a job one after the other, in an order shuffled by
the seed. Told are medians over the rounds, the median of the ratios within a round, the processor
time of the server per request, and for each floor whether it is reached, open or missed. Written: report.json, report.md and
report.html. Needs qemu-img, nbdcopy, fio, strace for --calls, root for the suite of mounts, and the
peers that are to be seen; what is missing is named and left out.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from jobs import SUITES, short  # noqa: E402
from machine import end_well  # noqa: E402
from metadata import metadata  # noqa: E402
from page import page  # noqa: E402
from race import Peers, say  # noqa: E402
from report import markdown  # noqa: E402

SUITES = {**SUITES, "metadata": metadata}
# Seconds on a quiet machine of two cores: a run takes them beside what it measures, and more if
# what it wrote goes to the device; a case to be verified and counted; an image to be made; and a
# mount to come up.
BESIDE_S, WRITTEN_S, VERIFIED_S, IMAGE_S, MOUNTED_S = 0.3, 0.7, 1.0, 1.5, 1.0


# Programs, and the Debian packages they come from.
PROGRAMS = {"qemu-img": "qemu-utils", "qemu-storage-daemon": "qemu-utils",
            "nbdkit": "nbdkit", "nbd-server": "nbd-server", "nbdcopy": "libnbd-bin", "fio": "fio",
            "strace": "strace", "nbdfuse": "libnbd-bin", "vhdimount": "libvhdi-utils"}


def install():
    missing = sorted({of for program, of in PROGRAMS.items() if not shutil.which(program)})
    if not missing:
        return
    say(f"installing: {' '.join(missing)}")
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    for words in (["update", "-q"], ["install", "-q", "-y", "--no-install-recommends", *missing]):
        done = subprocess.run([*as_root, "apt-get", *words], stdin=subprocess.DEVNULL,
                              stdout=sys.stderr)
        if done.returncode != 0:
            say(f"apt-get {words[0]} failed: what is missing is left out")


def estimate(jobs, options, mounts):
    """Minutes that a run takes on an idle machine."""
    seconds = IMAGE_S * len({case.image for job in jobs for case in job.cases})
    for job in jobs:
        rounds = options.rounds if job.x is None else min(options.rounds, options.growth_rounds)
        each = options.seconds / (1 if job.x is None else 2) * (0 if job.key == "idle" else 1)
        each += BESIDE_S + (WRITTEN_S if job.writes() else 0)
        seconds += len(job.cases) * (rounds * each + (VERIFIED_S if job.x is None else 0))
    if mounts:
        from mounted import rings_to_be, runs
        timed, up = runs(rings_to_be(options))
        seconds += options.rounds * timed * (options.seconds / 2 + BESIDE_S) + up * MOUNTED_S
    return seconds / 60


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--orlop", default="target/release/orlop")
    parser.add_argument("--suite", action="append", choices=sorted([*SUITES, "mounts"]),
                        help="all of them unless named; may be repeated")
    parser.add_argument("--job", action="append", help="only this job; may be repeated")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--growth-rounds", type=int, default=3, help="the most for curves")
    parser.add_argument("--seconds", type=float, default=1.0,
                        help="of each; curves and mounts take half")
    parser.add_argument("--short", action="store_true",
                        help="a few jobs in a minute or two, and only the table on standard output")
    parser.add_argument("--mib", type=int, default=256, help="of each disk")
    parser.add_argument("--json", action="store_true", help="with --short: the report as JSON")
    parser.add_argument("--install", action="store_true",
                        help="install Debian's packages of what is missing first")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--calls", action="store_true",
                        help="count system calls and syncs, by strace, and how large files grow")
    parser.add_argument("--profile", action="store_true", help="sample the servers and the mounts "
                        "that a floor is about, by perf, when the rounds are over")
    parser.add_argument("--dir", default="/var/tmp", help="where the images lie")
    parser.add_argument("--disk-dir", help="where those for O_DIRECT lie, on a file system with a "
                        "device (default: $TMPDIR, target or /var/tmp, whichever is on one)")
    parser.add_argument("--mounts-dir", default="/dev/shm", help="where those of mounts lie")
    parser.add_argument("--rings", action="store_true", help="for the suite of mounts, let the "
                        "kernel offer FUSE over io_uring (enable_uring=Y) for the while")
    parser.add_argument("--out", default="docs/benchmarks", help="where the report goes")
    return parser.parse_args()


def write(report, folder):
    os.makedirs(folder, exist_ok=True)
    for name, text in (("json", json.dumps(report, indent=1) + "\n"), ("md", markdown(report)),
                       ("html", page(report))):
        with open(os.path.join(folder, f"report.{name}"), "w") as file:
            file.write(text)


def measure(peers, jobs, mounts):
    told = peers.race(jobs)
    about = None
    if mounts:
        # What `orlop bench --peers` carries along has no mounts.
        from mounted import race
        more, about, failures = race(peers.options, say)
        told += more
        peers.failures += failures
    report = peers.report(told)
    report["mounts"] = about
    return report


def main():
    options = arguments()
    if options.install:
        install()
    options.orlop = shutil.which(options.orlop) or os.path.abspath(options.orlop)
    if options.short:
        options.rounds, options.seconds, options.mib = 3, 0.5, 64
    suites = options.suite or [*SUITES, "mounts"]
    jobs = [job for name in suites if name != "mounts" for job in SUITES[name]()]
    jobs = short() if options.short else jobs
    jobs = [job for job in jobs if not options.job or job.key in options.job]
    mounts = "mounts" in suites and not options.short and not options.job
    if mounts and os.geteuid() != 0:
        say("LEFT OUT: the suite of mounts, which needs root")
        mounts = False
    say(f"{len(jobs)} jobs; about {estimate(jobs, options, mounts):.0f} minutes on an idle machine")
    end_well()
    peers = Peers(options)
    try:
        report = measure(peers, jobs, mounts)
    finally:
        peers.stop()
    if options.short:
        print(json.dumps(report, indent=1) if options.json else markdown(report))
        sys.exit(1 if report["failures"] else 0)
    write(report, options.out)
    print(markdown(report))


main()

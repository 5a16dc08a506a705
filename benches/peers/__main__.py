"""Compares 'orlop serve' with other NBD servers over unix sockets.

First every server must return what was written to it at depths 1, 16 and 64, and read each image as
the raw content has it; one that fails is listed as failing and gets no rate. Then all contestants
of all jobs run once in each round, in an order shuffled by the seed. Told are medians over the
rounds, the median of the ratios within a round, and the processor time of the server per request.
Written: report.json, report.md and report.html. Needs qemu-img, nbdcopy, fio, strace for
--calls, and the peers that are to be seen; what is missing is named and left out.
"""

import argparse
import datetime
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from images import Images  # noqa: E402
from jobs import SUITES, short  # noqa: E402
from load import Loader  # noqa: E402
from page import page  # noqa: E402
from report import markdown, summary  # noqa: E402
from servers import all_servers  # noqa: E402


def say(words):
    print(words, file=sys.stderr, flush=True)


class Peers:
    def __init__(self, options):
        self.options = options
        self.folder = tempfile.mkdtemp(prefix="orlop-peers-", dir=options.dir)
        self.servers = all_servers(options.orlop)
        self.loader = Loader(options.orlop, self.folder)
        self.images = Images(self.folder, options.mib, options.orlop, self.write_some)
        self.images.copy_out = self.copy_out
        self.window = options.mib << 20
        self.failures = []
        self.trusted = {}
        for name, server in list(self.servers.items()):
            if not server.program():
                say(f"LEFT OUT: {name}: no {server.words[0]}")
                del self.servers[name]

    def write_some(self, image, what, seed):
        """`what`: so many random pieces of 64 KiB; 0: the usual window; a list: blocks in turn."""
        running = self.loader.start(self.servers["orlop"], image)
        try:
            if isinstance(what, list):
                for block in what:
                    self.loader.bench(running.uri, "--rw", "write", "--bs", "1M", "--ops", 2,
                                      "--offset", block << 21, "--size", "2M", "--yes")
            elif what:
                self.loader.bench(running.uri, "--rw", "randwrite", "--bs", "64K", "--ops", what,
                                  "--seed", seed, "--yes")
            else:
                self.loader.bench(running.uri, "--rw", "write", "--bs", "1M", "--size",
                                  self.window, "--ops", self.options.mib, "--yes")
        finally:
            running.stop()

    def copy_out(self, image, path):
        running = self.loader.start(self.servers["orlop"], image)
        try:
            subprocess.run(["nbdcopy", running.uri, path], check=True, capture_output=True)
        finally:
            running.stop()

    def trust(self, case):
        """Whether the server returns what it is given, and reads this image as it should."""
        if case.server == "fio" or not self.servers[case.server].keeps:
            return True
        server, kind = self.servers[case.server], self.images.get(case.image).kind
        if (case.server, kind) not in self.trusted:
            self.trusted[case.server, kind] = self.keeps(server, kind)
        if not self.trusted[case.server, kind]:
            return False
        of = case.image.split("-")[1] if case.image.startswith("copy") else case.image
        wanted = self.images.sums.get(of)
        if wanted and (case.server, case.image) not in self.trusted:
            try:
                right = self.loader.content(server, self.images.get(case.image)) == wanted
            except RuntimeError as error:
                right, _ = False, say(str(error))
            if not right:
                self.failures.append(f"{case.server} reads {case.image} wrongly")
            self.trusted[case.server, case.image] = right
        return self.trusted.get((case.server, case.image), True)

    def keeps(self, server, kind):
        image = self.images.make_empty("trial") if kind != "raw" else self.images.get("raw")
        if kind == "raw":
            image = self.images.make_copy("raw-trial")
        try:
            self.loader.keeps_what_is_written(server, image)
            return True
        except RuntimeError as error:
            self.failures.append(f"{server.name} does not return what was written: {error}")
            return False
        finally:
            os.unlink(image.path)

    def run_case(self, job, case, seed):
        image = self.images.get(case.image)
        if case.renew:
            self.images.renew(image)
        if case.server == "fio":
            return self.loader.fio(image, job, self.options.seconds, self.window)
        running = self.loader.start(self.servers[case.server], image)
        try:
            if not case.renew and not case.whole:
                self.loader.warm(running.uri, self.window)
            # A curve has many points; what counts is its shape.
            seconds = self.options.seconds / (1 if job.x is None else 2)
            return self.loader.measure(running, job, case, seconds, seed, self.window)
        finally:
            running.stop()

    def calls_of(self, job, case):
        running = self.loader.start(self.servers[case.server], self.images.get(case.image))
        try:
            return self.loader.system_calls(running, job, self.window)
        except RuntimeError as error:
            say(f"{case.label}: {error}")
            return None
        finally:
            running.stop()

    def race(self, jobs):
        told = []
        for job in jobs:
            cases = [case for case in job.cases
                     if case.server == "fio" or case.server in self.servers]
            rows = [{"label": case.label, "rounds": []} for case in cases]
            say(f"verifying for: {job.title}" + ("" if job.x is None else f", {job.x}"))
            for case, row in zip(cases, rows):
                row["trusted"] = self.trust(case)
                if self.options.calls and row["trusted"] and case.server != "fio" \
                        and job.x is None and not job.writes() and job.connections == 1:
                    row["system_calls"] = self.calls_of(job, case)
            floors = [dict(vars(floor), text=floor.text()) for floor in job.floors]
            told.append({"key": job.key, "title": job.title, "x": job.x, "floors": floors,
                         "cases": rows, "load": [job.rw, job.bs, job.qd, job.connections]})
        everything = [(job, case, row) for job, entry in zip(jobs, told)
                      for case, row in zip([c for c in job.cases
                                            if c.server == "fio" or c.server in self.servers],
                                           entry["cases"]) if row["trusted"]]
        dice = random.Random(self.options.seed)
        for number in range(1, self.options.rounds + 1):
            say(f"round {number} of {self.options.rounds}")
            dice.shuffle(everything)
            for job, case, row in everything:
                if job.x is not None and number > self.options.growth_rounds:
                    continue
                try:
                    row["rounds"].append(self.run_case(job, case, number))
                except (RuntimeError, OSError) as error:
                    self.failures.append(f"{case.label}, {job.title}, round {number}: {error}")
        return told

    def report(self, told):
        probe = self.images.get("raw")
        servers = [{"name": server.name, "version": server.version(), "about": server.about(),
                    "command": " ".join(server.words).replace(
                        self.options.orlop, "orlop").replace(self.folder, "")}
                   for server in self.servers.values()]
        kind = subprocess.run(["stat", "-f", "-c", "%T", probe.path], capture_output=True, text=True)
        load = (f"Load: `orlop bench URI --rw KIND --bs SIZE --qd N --jobs N --time S --size "
                f"{self.options.mib}M --json`, one connection of simple replies unless a job says "
                "otherwise; the bare file by `fio --ioengine=io_uring --direct=1`. Nothing is "
                "flushed but where a job says so, and then by NBD's FLUSH.")
        report = {"schema_version": 1, "load": load, "date": datetime.date.today().isoformat(),
                  "machine": f"{platform.system()} {platform.release()}, "
                             f"{os.cpu_count()} processors",
                  "rounds": self.options.rounds, "seconds": self.options.seconds,
                  "seed": self.options.seed, "mib": self.options.mib,
                  "file_system": kind.stdout.strip(), "servers": servers,
                  "failures": self.failures, "jobs": told}
        summary(report)
        return report


# Programs, and the Debian packages they come from.
PROGRAMS = {"qemu-img": "qemu-utils", "qemu-storage-daemon": "qemu-utils",
            "nbdkit": "nbdkit", "nbd-server": "nbd-server", "nbdcopy": "libnbd-bin", "fio": "fio",
            "strace": "strace"}


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--orlop", default="target/release/orlop")
    parser.add_argument("--suite", action="append", choices=sorted(SUITES),
                        help="all of them unless named; may be repeated")
    parser.add_argument("--job", action="append", help="only this job; may be repeated")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--growth-rounds", type=int, default=3, help="the most for curves")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each; curves take half")
    parser.add_argument("--short", action="store_true",
                        help="a few jobs in a minute or two, and only the table on standard output")
    parser.add_argument("--mib", type=int, default=256, help="of each disk")
    parser.add_argument("--json", action="store_true", help="with --short: the report as JSON")
    parser.add_argument("--install", action="store_true",
                        help="install Debian's packages of what is missing first")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--calls", action="store_true", help="count system calls, by strace")
    parser.add_argument("--dir", default="/var/tmp", help="where the images lie")
    parser.add_argument("--out", default="docs/benchmarks", help="where the report goes")
    options = parser.parse_args()
    if options.install:
        install()
    options.orlop = shutil.which(options.orlop) or os.path.abspath(options.orlop)
    if options.short:
        options.rounds, options.seconds, options.mib = 3, 0.5, 64
    jobs = [job for name in options.suite or SUITES for job in SUITES[name]()]
    jobs = short() if options.short else jobs
    jobs = [job for job in jobs if not options.job or job.key in options.job]
    # Whoever ends this ends the servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    peers = Peers(options)
    try:
        report = peers.report(peers.race(jobs))
    finally:
        shutil.rmtree(peers.folder, ignore_errors=True)
    if options.short:
        print(json.dumps(report, indent=1) if options.json else markdown(report))
        sys.exit(1 if report["failures"] else 0)
    os.makedirs(options.out, exist_ok=True)
    with open(os.path.join(options.out, "report.json"), "w") as file:
        json.dump(report, file, indent=1)
    with open(os.path.join(options.out, "report.md"), "w") as file:
        file.write(markdown(report))
    with open(os.path.join(options.out, "report.html"), "w") as file:
        file.write(page(report))
    print(markdown(report))


main()

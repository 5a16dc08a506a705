"""The comparison itself: whom to trust, the rounds, and what they told."""

import datetime
import os
import random
import shutil
import subprocess
import sys
import tempfile

import machine
from counts import Counts
from images import Images
from load import Loader
from report import summary
from sampling import Profile, is_possible
from servers import all_servers

LOAD = (
    "Load: `orlop bench URI --rw KIND --bs SIZE --qd N --jobs N --time S --size {mib}M --seed "
    "ROUND --json`, one connection of simple replies unless a job says otherwise; random reads go "
    "on for half as long before they are timed; the bare file by "
    "`fio --ioengine=io_uring --direct=1 --norandommap --randrepeat=0`. Nothing is flushed but "
    "where a job says so, and then by NBD's FLUSH, which no server is told to ignore; what was "
    "written goes to the device before the next is timed. System calls, syncs and file sizes are "
    "counted once, by strace and stat, and not while anything is timed: system calls after four "
    "seconds of the load; syncs of orlop with `--aio threads`, since strace sees nothing that goes "
    "through a ring.")


def say(words):
    print(words, file=sys.stderr, flush=True)


class Peers:
    def __init__(self, options):
        self.options = options
        self.began, self.load_before = datetime.datetime.now(), machine.load_average()
        self.folder = tempfile.mkdtemp(prefix="orlop-peers-", dir=options.dir)
        self.servers = all_servers(options.orlop)
        self.loader = Loader(options.orlop, self.folder)
        self.images = Images(self.folder, options.mib, options.orlop, self.write_some)
        self.images.copy_out = self.copy_out
        self.disk_images = None
        self.window = options.mib << 20
        self.counts = Counts(self.loader, self.window)
        self.failures, self.trusted = [], {}
        for name, server in list(self.servers.items()):
            if not server.program():
                say(f"LEFT OUT: {name}: no {server.words[0]}")
                del self.servers[name]

    def stop(self):
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.disk_images:
            shutil.rmtree(self.disk_images.folder, ignore_errors=True)

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

    def images_of(self, job):
        if not job.on_disk:
            return self.images
        if not self.disk_images:
            folder = tempfile.mkdtemp(prefix="orlop-peers-",
                                      dir=machine.disk_folder(self.options.disk_dir))
            self.disk_images = Images(folder, self.options.mib, self.options.orlop,
                                      self.write_some)
        return self.disk_images

    def trust(self, job, case):
        """Whether the server returns what it is given, and reads this image as it should."""
        if case.server.startswith("fio") or not self.servers[case.server].keeps:
            return True
        images, server = self.images_of(job), self.servers[case.server]
        kind = images.get(case.image).kind
        if (case.server, kind) not in self.trusted:
            self.trusted[case.server, kind] = self.keeps(server, kind, images)
        if not self.trusted[case.server, kind]:
            return False
        of = case.image.split("-")[1] if case.image.startswith("copy") else case.image
        wanted, which = images.sums.get(of), (case.server, case.image, job.on_disk)
        if wanted and which not in self.trusted:
            try:
                right = self.loader.content(server, images.get(case.image)) == wanted
            except RuntimeError as error:
                right, _ = False, say(str(error))
            if not right:
                self.failures.append(f"{case.server} reads {case.image} wrongly")
            self.trusted[which] = right
        return self.trusted.get(which, True)

    def keeps(self, server, kind, images):
        if "--read-only" in server.words:
            # It takes nothing; all that it reads is compared.
            return True
        image = images.make_copy("raw-trial") if kind == "raw" else images.make_empty("trial")
        try:
            self.loader.keeps_what_is_written(server, image)
            return True
        except RuntimeError as error:
            self.failures.append(f"{server.name} does not return what was written: {error}")
            return False
        finally:
            os.unlink(image.path)

    def count(self, job, case):
        """What is counted of a case once, as far as it can be."""
        counted, images = {}, self.images_of(job)
        for what in job.counted if self.options.calls and not case.server.startswith("fio") else ():
            image = images.get(case.image)
            if case.renew:
                images.renew(image)
            try:
                counted[what] = self.counts.of(what, self.servers[case.server], image, job)
            except (RuntimeError, OSError) as error:
                self.failures.append(f"{case.label}, {job.title}, {what}: {error}")
        return counted

    def run_case(self, job, case, number):
        if job.run:
            return job.run(self, case, number)
        image = self.images_of(job).get(case.image)
        if case.renew:
            self.images_of(job).renew(image)
        try:
            if case.server.startswith("fio"):
                return self.loader.fio(image, job, self.options.seconds, self.window,
                                       in_step=case.server == "fio in step")
            return self.load_server(job, case, image, number)
        finally:
            if job.writes():
                # The next one does not pay for what this one left to the kernel.
                subprocess.run(["sync", "--data", image.path], check=True)

    def load_server(self, job, case, image, number):
        running = self.loader.start(self.servers[case.server], image)
        try:
            # A curve has many points; what counts is its shape.
            seconds = self.options.seconds / (1 if job.x is None else 2)
            if not case.renew and not case.whole and not job.on_disk:
                self.loader.warm(running.uri, self.window)
                if job.rw == "randread":
                    self.loader.settle(running, job, case, seconds / 2, self.window)
            return self.loader.measure(running, job, case, seconds, number, self.window)
        finally:
            running.stop()

    def enter(self, job):
        """A job's place in the report, and its cases that can be timed, each with its own."""
        say(f"verifying for: {job.title}" + ("" if job.x is None else f", {job.x}"))
        entry, runs = job.entry(), []
        if job.on_disk:
            entry["not_judged"] = machine.not_on_a_device(self.images_of(job).folder)
        for case in job.cases:
            if not case.server.startswith("fio") and case.server not in self.servers:
                continue
            row = {"label": case.label, "rounds": [], "trusted": self.trust(job, case)}
            entry["cases"].append(row)
            if row["trusted"]:
                row["counts"] = self.count(job, case)
                runs.append((job, case, row))
        return entry, runs

    def race(self, jobs):
        entered = [self.enter(job) for job in jobs]
        groups = [runs for _, runs in entered]
        dice = random.Random(self.options.seed)
        for number in range(1, self.options.rounds + 1):
            say(f"round {number} of {self.options.rounds}")
            dice.shuffle(groups)
            # Those that are compared run one after the other: the machine changes meanwhile.
            for job, case, row in (run for runs in groups for run in dice.sample(runs, len(runs))):
                if job.x is not None and number > self.options.growth_rounds:
                    continue
                try:
                    row["rounds"].append(dict(self.run_case(job, case, number), round=number))
                except (RuntimeError, OSError) as error:
                    self.failures.append(f"{case.label}, {job.title}, round {number}: {error}")
        if self.options.profile:
            self.profile(entered)
        return [entry for entry, _ in entered]

    def profile(self, entered):
        """Samples the servers that a floor is about, once the rounds are over."""
        if not is_possible():
            self.failures.append("no profiles: perf is missing")
            return
        say("profiles")
        for entry, runs in entered:
            for job, case, row in runs:
                server = self.servers.get(case.server)
                if not job.run and server and any(case.label == floor.of for floor in job.floors):
                    try:
                        row["profile"] = self.sample(job, case, server)
                    except (RuntimeError, OSError) as error:
                        self.failures.append(f"{case.label}, {job.title}, profile: {error}")

    def sample(self, job, case, server):
        images, seconds = self.images_of(job), self.options.seconds
        image = images.get(case.image)
        if case.renew:
            images.renew(image)
        running = self.loader.start(server, image)
        try:
            if not case.renew and not job.on_disk:
                self.loader.warm(running.uri, self.window)
                self.loader.settle(running, job, case, seconds / 2, self.window)
            whom = ["-p", str(running.processes()[0])]
            with Profile(self.folder, whom, seconds) as profile:
                told = self.loader.measure(running, job, case, seconds + 0.2, 0, self.window)
                return profile.told(told["server_us"])
        finally:
            running.stop()

    def report(self, told):
        servers = [{"name": server.name, "version": server.version(), "about": server.about(),
                    "command": " ".join(server.words).replace(
                        self.options.orlop, "orlop").replace(self.folder, "")}
                   for server in self.servers.values()]
        options = self.options
        report = {"schema_version": 2, "load": LOAD.format(mib=options.mib),
                  "date": self.began.date().isoformat(), "machine": machine.describe(),
                  "minutes": round((datetime.datetime.now() - self.began).total_seconds() / 60, 1),
                  "load_average": {"start": self.load_before, "end": machine.load_average()},
                  "rounds": options.rounds, "growth_rounds": options.growth_rounds,
                  "seconds": options.seconds, "seed": options.seed, "mib": options.mib,
                  "file_system": machine.file_system(self.folder),
                  "disk_file_system": self.disk_images and machine.file_system(
                      self.disk_images.folder), "servers": servers,
                  "failures": self.failures, "jobs": told}
        summary(report)
        return report

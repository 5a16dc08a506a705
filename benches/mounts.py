#!/usr/bin/env python3
"""Compares mounted images: orlop's mount with the bare file, loop devices and other mounts.

Every contestant has its own copy of the same disk; all are up at once. The bytes of each are
verified before anything is timed; one that fails is listed as failing and not timed. Rounds are
interleaved in shuffled order. Told are medians over the rounds, the median of the ratios within a
round, and the CPU time an operation costs in the server and in fio together (kernel threads, such
as a loop device's, are in nobody's account). Needs root, fio, and the peers that are to be seen;
for requests through rings, the fuse module's parameter enable_uring=Y.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
JOBS = {
    "4k randread qd1": ("randread", "4k", 1),
    "4k randread qd16": ("randread", "4k", 16),
    "4k randwrite qd16": ("randwrite", "4k", 16),
    "1M read qd4": ("read", "1M", 4),
    "1M write qd4": ("write", "1M", 4),
}


def run(*words):
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def wait_for(what, so, process=None):
    for _ in range(1000):
        if so():
            return
        if process and process.poll() is not None:
            break
        time.sleep(0.01)
    raise RuntimeError(f"{what} does not come")


class Contestant:
    """A disk that fio can use, and the processes that serve it."""

    def __init__(self, bench, name):
        self.bench, self.name = bench, name
        self.folder = os.path.join(bench.folder, name.replace(" ", "-").replace("/", "-"))
        os.mkdir(self.folder)
        self.processes, self.undo = [], []
        self.target, self.failure = None, None

    def start(self, *words):
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE)
        self.processes.append(process)
        return process

    def image(self, source):
        copy = os.path.join(self.folder, "image" + os.path.splitext(source)[1])
        shutil.copyfile(source, copy)
        return copy

    def place(self):
        place = os.path.join(self.folder, "mount")
        os.mkdir(place)
        self.undo.append(lambda: subprocess.run(["umount", "-l", place], capture_output=True))
        return place

    def loop(self, file):
        device = run("losetup", "--find", "--show", "--direct-io=on", file).strip()
        self.undo.append(lambda: run("losetup", "-d", device))
        return device

    def mount(self, source, *options):
        place = self.place()
        process = self.start(self.bench.orlop, "mount", self.image(source), place, "--foreground",
                             *options)
        disk = os.path.join(place, "disk")
        wait_for(self.name, lambda: os.path.exists(disk), process)
        return disk

    def cpu_s(self):
        total = 0
        for process in self.processes:
            try:
                with open(f"/proc/{process.pid}/stat") as stat:
                    fields = stat.read().rsplit(")", 1)[1].split()
                total += (int(fields[11]) + int(fields[12])) * TICK_S
            except OSError:
                pass
        return total

    def stop(self):
        for act in reversed(self.undo):
            try:
                act()
            except RuntimeError as error:
                print(error, file=sys.stderr)
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


class Bench:
    """The contestants, and what they did."""

    def __init__(self, options):
        self.options, self.orlop = options, options.orlop
        self.folder = tempfile.mkdtemp(prefix="orlop-mounts-", dir=options.dir)
        self.contestants, self.rows = [], {}
        self.raw = os.path.join(self.folder, "disk.raw")
        self.vhd = os.path.join(self.folder, "disk.vhd")

    def prepare(self):
        size = self.options.size << 20
        dice = random.Random(1)
        with open(self.raw, "wb") as raw:
            for _ in range(size >> 20):
                raw.write(dice.randbytes(1 << 20))
        # Sizes that every tool agrees on: QEMU keeps the exact size only when told to.
        run("qemu-img", "convert", "-f", "raw", "-O", "vpc",
            "-o", "subformat=dynamic,force_size=on", self.raw, self.vhd)
        self.sum = self.digest(self.raw)

    def digest(self, path):
        digest, left = hashlib.sha256(), self.options.size << 20
        with open(path, "rb") as file:
            while left:
                piece = file.read(min(left, 1 << 20))
                if not piece:
                    return "too short"
                digest.update(piece)
                left -= len(piece)
        return digest.hexdigest()

    def add(self, name, make):
        contestant = Contestant(self, name)
        self.contestants.append(contestant)
        try:
            contestant.target = make(contestant)
            if not contestant.target.startswith("nbd") and self.digest(contestant.target) != self.sum:
                contestant.failure = "reads other bytes than were written"
        except (RuntimeError, OSError) as error:
            contestant.failure = str(error)
        if contestant.failure:
            print(f"{name}: {contestant.failure}", file=sys.stderr)

    def fio(self, contestant, job):
        rw, block, depth = JOBS[job]
        words = ["fio", "--name=x", f"--rw={rw}", f"--bs={block}", f"--iodepth={depth}",
                 f"--size={self.options.size}M", f"--runtime={self.options.seconds}",
                 "--time_based", "--output-format=json", "--norandommap", "--randrepeat=0",
                 "--allow_file_create=0"]
        if contestant.target.startswith("nbd"):
            words += ["--ioengine=nbd", f"--uri={contestant.target}"]
        else:
            words += ["--ioengine=" + ("psync" if depth == 1 else "libaio"), "--direct=1",
                      f"--filename={contestant.target}"]
        before, start = contestant.cpu_s(), os.times()
        # Some engines talk before.
        said = run(*words)
        told = json.loads(said[said.index("{"):])["jobs"][0]
        server = contestant.cpu_s() - before
        client = os.times().children_user + os.times().children_system
        client -= start.children_user + start.children_system
        side = told["write" if "write" in rw else "read"]
        count = max(1, side["total_ios"])
        return {"iops": side["iops"], "mib_s": side["bw_bytes"] / (1 << 20),
                "server_us": server / count * 1e6, "cpu_us": (server + client) / count * 1e6}

    def race(self, jobs, names):
        field = [c for c in self.contestants if c.name in names and not c.failure]
        for job in jobs:
            rounds = {contestant.name: [] for contestant in field}
            for _ in range(self.options.rounds):
                random.shuffle(field)
                for contestant in field:
                    try:
                        rounds[contestant.name].append(self.fio(contestant, job))
                    except RuntimeError as error:
                        print(f"{contestant.name}, {job}: {error}", file=sys.stderr)
            self.rows.setdefault(job, {}).update(rounds)

    def report(self, base, jobs, names):
        print(f"\n| {'job':<18} | {'contestant':<24} | {'iops':>9} | {'MiB/s':>7} "
              f"| {'x ' + base:>12} | {'CPU us/op':>9} | {'server':>7} |")
        print("|---|---|---|---|---|---|---|")
        for job in jobs:
            for name in names:
                rounds = self.rows.get(job, {}).get(name)
                if not rounds:
                    print(f"| {job:<18} | {name:<24} | fails |  |  |  |  |")
                    continue
                middle = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
                bases = self.rows[job].get(base) or rounds
                ratio = statistics.median(a["iops"] / b["iops"] for a, b in zip(rounds, bases))
                print(f"| {job:<18} | {name:<24} | {middle['iops']:>9.0f} "
                      f"| {middle['mib_s']:>7.0f} | {ratio:>12.2f} | {middle['cpu_us']:>9.1f} "
                      f"| {middle['server_us']:>7.1f} |", flush=True)

    def finish(self, base, *usual):
        """Times those added since the last time, tells, and lets them go."""
        names = [contestant.name for contestant in self.contestants]
        jobs = self.options.job or usual or list(JOBS)
        self.race(jobs, names)
        self.report(base, jobs, names)
        self.stop_contestants()
        self.contestants, self.rows = [], {}

    def stop_contestants(self):
        for contestant in self.contestants:
            contestant.stop()
            shutil.rmtree(contestant.folder, ignore_errors=True)

    def stop(self):
        for contestant in self.contestants:
            contestant.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def qsd(contestant):
    image, file = contestant.image(contestant.bench.vhd), os.path.join(contestant.folder, "export")
    open(file, "w").close()
    contestant.undo.append(lambda: subprocess.run(["umount", "-l", file], capture_output=True))
    process = contestant.start(
        "qemu-storage-daemon", "--blockdev", f"file,node-name=f,filename={image}",
        "--blockdev", "vpc,node-name=v,file=f",
        "--export", f"fuse,id=e,node-name=v,mountpoint={file},writable=on")
    wait_for("qemu-storage-daemon", lambda: os.path.getsize(file) > 0, process)
    return file


def nbdfuse(contestant):
    image, place = contestant.image(contestant.bench.vhd), contestant.place()
    socket = os.path.join(contestant.folder, "nbd")
    server = contestant.start("qemu-nbd", "-t", "-f", "vpc", "-k", socket, "-e", "16", image)
    wait_for("qemu-nbd", lambda: os.path.exists(socket), server)
    process = contestant.start("nbdfuse", "-C", "4", place, f"nbd+unix:///?socket={socket}")
    wait_for("nbdfuse", lambda: os.path.exists(place + "/nbd"), process)
    return place + "/nbd"


def vhdimount(contestant):
    image, place = contestant.image(contestant.bench.vhd), contestant.place()
    process = contestant.start("vhdimount", image, place)
    wait_for("vhdimount", lambda: os.path.exists(place + "/vhdi1"))
    contestant.processes.remove(process)
    process.wait()
    # It went to the background under another number.
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline") as line:
                words = line.read()
        except OSError:
            continue
        if words.startswith("vhdimount") and place in words:
            contestant.processes.append(Other(int(pid)))
    return place + "/vhdi1"


class Other:
    """A process that is not our child."""

    def __init__(self, pid):
        self.pid = pid

    def terminate(self):
        try:
            os.kill(self.pid, 15)
        except OSError:
            pass

    def wait(self, _seconds):
        pass


def nbd(contestant):
    image = contestant.image(contestant.bench.vhd)
    socket = os.path.join(contestant.folder, "nbd")
    process = contestant.start(contestant.bench.orlop, "serve", image, "--socket", socket)
    wait_for("orlop serve", lambda: os.path.exists(socket), process)
    return f"nbd+unix:///?socket={socket}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--orlop", default="target/release/orlop")
    parser.add_argument("--dir", default="/dev/shm", help="where the images lie")
    parser.add_argument("--size", type=int, default=512, help="of the disk, in MiB")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--only", choices=("raw", "loop", "vhd", "rings"))
    parser.add_argument("--job", action="append", help="only these, by their names")
    parser.add_argument("--option", action="append", default=[], help="for orlop mount")
    options = parser.parse_args()
    bench = Bench(options)
    more = options.option
    try:
        bench.prepare()
        if options.only in (None, "rings"):
            ways = {way: ("--transport", name, *more)
                    for way, name in (("classic", "classic"), ("rings", "uring"))}
            bench.add("bare file", lambda c: c.image(bench.raw))
            for way, words in ways.items():
                bench.add(f"raw, {way}", lambda c, w=words: c.mount(bench.raw, *w))
                bench.add(f"vhd, {way}", lambda c, w=words: c.mount(bench.vhd, *w))
            bench.finish("bare file")
            bench.add("loop/bare", lambda c: c.loop(c.image(bench.raw)))
            for way, words in ways.items():
                bench.add(f"loop/raw, {way}", lambda c, w=words: c.loop(c.mount(bench.raw, *w)))
                bench.add(f"loop/vhd, {way}", lambda c, w=words: c.loop(c.mount(bench.vhd, *w)))
            bench.finish("loop/bare")
        if options.only in (None, "raw"):
            bench.add("bare file", lambda c: c.image(bench.raw))
            bench.add("orlop raw", lambda c: c.mount(bench.raw, *more))
            bench.add("orlop passthrough", lambda c: c.mount(bench.raw, "--passthrough", *more))
            bench.finish("bare file")
        if options.only in (None, "loop"):
            bench.add("loop/bare", lambda c: c.loop(c.image(bench.raw)))
            bench.add("loop/orlop raw", lambda c: c.loop(c.mount(bench.raw, *more)))
            bench.add("loop/passthrough",
                      lambda c: c.loop(c.mount(bench.raw, "--passthrough", *more)))
            bench.add("loop/orlop vhd", lambda c: c.loop(c.mount(bench.vhd, *more)))
            bench.finish("loop/bare", "4k randread qd16", "4k randwrite qd16", "1M read qd4")
        if options.only in (None, "vhd"):
            bench.add("orlop vhd", lambda c: c.mount(bench.vhd, *more))
            bench.add("orlop vhd over nbd", nbd)
            bench.add("qemu-storage-daemon", qsd)
            bench.add("nbdfuse qemu-nbd", nbdfuse)
            bench.add("vhdimount", vhdimount)
            bench.finish("orlop vhd", "4k randread qd1", "4k randread qd16", "1M read qd4")
    finally:
        bench.stop()


main()

#!/usr/bin/env python3
"""Compares mounted images: orlop's mount with the bare file, loop devices and other mounts.

Every contestant has its own copy of the same disk; all are up at once. The bytes of each are
verified before anything is timed; one that fails is listed as failing and not timed. Rounds are
interleaved in shuffled order. Told are medians over the rounds, the median of the ratios within a
round, and the CPU time an operation costs in the server and in fio together (kernel threads, such
as a loop device's, are in nobody's account). Needs root, fio, and the peers that are to be seen.
Where the fuse module's parameter enable_uring is Y, requests through rings are measured beside
those through /dev/fuse; --rings makes it so for the while. benches/peers reports the same.
"""

import argparse
import contextlib
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

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "peers"))

from machine import end_well  # noqa: E402

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
JOBS = {
    "4k randread qd1": ("randread", "4k", 1),
    "4k randread qd16": ("randread", "4k", 16),
    "4k randwrite qd16": ("randwrite", "4k", 16),
    "1M read qd4": ("read", "1M", 4),
    "1M write qd4": ("write", "1M", 4),
}
RINGS = "/sys/module/fuse/parameters/enable_uring"


def run(*words):
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    with process:
        try:
            told, complaint = process.communicate()
        except BaseException:
            end(process)
            raise
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {complaint.strip()}")
    return told


def end(process):
    """By a word first: fio then ends its jobs, which would go on and hold a device if it was
    killed."""
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()


def wait_for(what, so, process=None):
    for _ in range(1000):
        if so():
            return
        if process and process.poll() is not None:
            break
        time.sleep(0.01)
    raise RuntimeError(f"{what} does not come")


def offers_rings():
    try:
        with open(RINGS) as parameter:
            return parameter.read().strip() == "Y"
    except OSError:
        return False


@contextlib.contextmanager
def rings(switch):
    """Whether the kernel offers requests through rings. If it could but does not, `switch` lets it
    for the while: what ends this program ends that, unless it cannot be caught."""
    if offers_rings() or not switch or not os.path.exists(RINGS):
        yield offers_rings()
        return
    set_rings("Y")
    try:
        yield True
    finally:
        set_rings("N")


def set_rings(word):
    with open(RINGS, "w") as parameter:
        parameter.write(word)


class Contestant:
    """A disk that fio can use, and the processes that serve it."""

    def __init__(self, bench, name):
        self.bench, self.name = bench, name
        self.folder = os.path.join(bench.folder, name.replace(" ", "-").replace("/", "-"))
        os.mkdir(self.folder)
        self.processes, self.undo, self.commands = [], [], []
        self.target, self.failure = None, None

    def start(self, *words):
        self.tell(words)
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE)
        self.processes.append(process)
        return process

    def tell(self, words):
        """Keeps a command line for the report, without this machine's paths."""
        line = " ".join(words).replace(self.bench.orlop, "orlop")
        self.commands.append(line.replace(self.folder + "/", ""))

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
        words = ["losetup", "--find", "--show", "--direct-io=on", file]
        device = run(*words).strip()
        self.tell(words)
        self.undo.append(lambda: run("losetup", "-d", device))
        return device

    def mount(self, source, *options):
        place = self.place()
        process = self.start(self.bench.orlop, "mount", self.image(source), place, "--foreground",
                             *options)
        disk = os.path.join(place, "disk")
        wait_for(self.name, lambda: os.path.exists(disk), process)
        wanted = None
        if "--transport" in options:
            wanted = options[options.index("--transport") + 1]
        if "--passthrough" in options:
            wanted = "passthrough"
        if wanted:
            self.check_transport(os.path.join(place, "info.json"), wanted)
        return disk

    def check_transport(self, info, wanted):
        """It may fall back to another way, which is not what is to be measured."""
        told = {}

        def known():
            with open(info) as file:
                told.update(json.load(file))
            return told["transport"]

        wait_for(f"the transport of {self.name}", known)
        if told["transport"] != wanted:
            raise RuntimeError(f"requests come by {told['transport']}, not {wanted}: "
                               f"{told['transport_because']}")

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
        self.contestants, self.failures = [], []
        self.dice = random.Random(getattr(options, "seed", 1))
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
            if self.content(contestant.target) != self.sum:
                contestant.failure = "reads other bytes than were written"
        except (RuntimeError, OSError) as error:
            contestant.failure = str(error)
        if contestant.failure:
            self.failures.append(f"{name}: {contestant.failure}")
            print(self.failures[-1], file=sys.stderr)

    def content(self, target):
        if not target.startswith("nbd"):
            return self.digest(target)
        copy = os.path.join(self.folder, "content")
        run("nbdcopy", target, copy)
        try:
            return self.digest(copy)
        finally:
            os.unlink(copy)

    def fio(self, contestant, job, seconds=None):
        rw, block, depth = JOBS[job]
        seconds = seconds or self.options.seconds
        words = ["fio", "--name=x", f"--rw={rw}", f"--bs={block}", f"--iodepth={depth}",
                 f"--size={self.options.size}M", f"--runtime={round(seconds * 1e3)}ms",
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
        spot = side["clat_ns"].get("percentile", {})
        return {"iops": side["iops"], "mib_s": side["bw_bytes"] / (1 << 20),
                "p50_us": spot.get("50.000000", 0) / 1e3, "p99_us": spot.get("99.000000", 0) / 1e3,
                "server_us": server / count * 1e6, "cpu_us": (server + client) / count * 1e6}

    def race(self, jobs):
        """What was measured: by job and name, one entry for each round that went well."""
        field = [contestant for contestant in self.contestants if not contestant.failure]
        told = {job: {contestant.name: [] for contestant in field} for job in jobs}
        for number in range(1, self.options.rounds + 1):
            runs = [(job, contestant) for job in jobs for contestant in field]
            self.dice.shuffle(runs)
            for job, contestant in runs:
                try:
                    figures = dict(self.fio(contestant, job), round=number)
                    told[job][contestant.name].append(figures)
                except RuntimeError as error:
                    self.failures.append(f"{contestant.name}, {job}, round {number}: {error}")
                    print(self.failures[-1], file=sys.stderr)
        return told

    def run(self, group, after=None):
        """Brings a group's contestants up, times them and lets them go; `after` the rounds, what
        else is to be done while they are up."""
        try:
            for name, make in group.contestants:
                self.add(name, make)
            told = self.race(group.jobs)
            if after:
                after(self, group)
            group.commands = {c.name: c.commands for c in self.contestants}
            return told
        finally:
            self.stop_contestants()

    def stop_contestants(self):
        for contestant in self.contestants:
            contestant.stop()
            shutil.rmtree(contestant.folder, ignore_errors=True)
        self.contestants = []

    def stop(self):
        self.stop_contestants()
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


class Group:
    """Contestants that are up together, the jobs they do, and the one they are compared with."""

    def __init__(self, key, title, base, jobs, contestants):
        self.key, self.title, self.base = key, title, base
        self.jobs, self.contestants, self.commands = list(jobs), contestants, {}


def ways(with_rings, more=()):
    """How requests may come: the end of a contestant's name, and its options."""
    told = [("", ("--transport", "classic", *more))]
    return told + ([(", rings", ("--transport", "uring", *more))] if with_rings else [])


def groups(bench, with_rings, more=()):
    raw, vhd, each = bench.raw, bench.vhd, ways(with_rings, more)
    passing = ("--passthrough", *more)
    files = [("bare file", lambda c: c.image(raw))]
    loops = [("loop/bare", lambda c: c.loop(c.image(raw))),
             ("loop/passthrough", lambda c: c.loop(c.mount(raw, *passing)))]
    disks = []
    for end, words in each:
        files.append((f"orlop raw{end}", lambda c, w=words: c.mount(raw, *w)))
        loops += [(f"loop/orlop raw{end}", lambda c, w=words: c.loop(c.mount(raw, *w))),
                  (f"loop/orlop vhd{end}", lambda c, w=words: c.loop(c.mount(vhd, *w)))]
        disks.append((f"orlop vhd{end}", lambda c, w=words: c.mount(vhd, *w)))
    files.append(("orlop passthrough", lambda c: c.mount(raw, *passing)))
    disks += [("orlop vhd over nbd", nbd), ("qemu-storage-daemon", qsd),
              ("nbdfuse qemu-nbd", nbdfuse), ("vhdimount", vhdimount)]
    return [
        Group("raw", "a mounted raw image", "bare file", JOBS, files),
        Group("loop", "a loop device", "loop/bare",
              ("4k randread qd16", "4k randwrite qd16", "1M read qd4"), loops),
        Group("vhd", "a mounted dynamic VHD", "orlop vhd",
              ("4k randread qd1", "4k randread qd16", "1M read qd4"), disks),
    ]


def tell(group, told):
    print(f"\n| {'job':<18} | {'contestant':<24} | {'iops':>9} | {'MiB/s':>7} "
          f"| {'x ' + group.base:>12} | {'CPU us/op':>9} | {'server':>7} |")
    print("|---|---|---|---|---|---|---|")
    for job in group.jobs:
        bases = {one["round"]: one for one in told[job].get(group.base, ())}
        for name, _ in group.contestants:
            rounds = told[job].get(name)
            if not rounds:
                print(f"| {job:<18} | {name:<24} | fails |  |  |  |  |")
                continue
            middle = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
            ratios = [one["iops"] / bases[one["round"]]["iops"] for one in rounds
                      if one["round"] in bases]
            ratio = f"{statistics.median(ratios):.2f}" if ratios else ""
            print(f"| {job:<18} | {name:<24} | {middle['iops']:>9.0f} "
                  f"| {middle['mib_s']:>7.0f} | {ratio:>12} | {middle['cpu_us']:>9.1f} "
                  f"| {middle['server_us']:>7.1f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--orlop", default="target/release/orlop")
    parser.add_argument("--dir", default="/dev/shm", help="where the images lie")
    parser.add_argument("--size", type=int, default=512, help="of the disk, in MiB")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--only", choices=("raw", "loop", "vhd"))
    parser.add_argument("--job", action="append", help="only these, by their names")
    parser.add_argument("--option", action="append", default=[], help="for orlop mount")
    parser.add_argument("--rings", action="store_true",
                        help="let the kernel offer rings for the while (enable_uring=Y)")
    options = parser.parse_args()
    end_well()
    with rings(options.rings) as with_rings:
        bench = Bench(options)
        try:
            bench.prepare()
            for group in groups(bench, with_rings, options.option):
                if options.only in (None, group.key):
                    group.jobs = [job for job in options.job or group.jobs if job in JOBS]
                    tell(group, bench.run(group))
        finally:
            bench.stop()


if __name__ == "__main__":
    main()

"""Mounted images in the same report: benches/mounts.py measures, and here stand its floors."""

import argparse
import os
import sys

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import mountprofile  # noqa: E402
import mounts  # noqa: E402
from jobs import Floor  # noqa: E402
from machine import file_system  # noqa: E402

COLUMNS = (("iops", "requests/s"), ("mib_s", "MiB/s"), ("cpu_us", "us with fio"),
           ("server_us", "us of server"), ("p50_us", "p50 us"), ("p99_us", "p99 us"))
PLOTS = (("iops", "requests/s"),
         ("cpu_us", "us of processor time per request, of server and fio"))
KINDS = {"randread": "random reads", "randwrite": "random writes", "read": "reads in order",
         "write": "writes in order"}


def title(group, job):
    rw, bs, qd = mounts.JOBS[job]
    size = bs.replace("k", " KiB").replace("M", " MiB")
    return f"{size} {KINDS[rw]} of {group.title}, depth {qd}"


def floors(group, job, ends):
    """What the FUSE issue promises of this job; `ends` are those of the names of our mounts."""
    deep_4k = job in ("4k randread qd16", "4k randwrite qd16")
    if group.key == "raw":
        return [Floor("orlop passthrough", "bare file", least=0.95)] if "qd1" != job[-3:] else []
    if group.key == "loop":
        normal = [Floor(f"loop/orlop raw{end}", "loop/bare", least=0.5) for end in ends]
        return [Floor("loop/passthrough", "loop/bare", least=0.9)] + (normal if deep_4k else [])
    if job.endswith("qd1"):
        return []
    told = []
    for end in ends:
        ours = f"orlop vhd{end}"
        told += [Floor(ours, "qemu-storage-daemon", least=3),
                 Floor(ours, "nbdfuse qemu-nbd", least=4), Floor(ours, "vhdimount", least=20),
                 Floor(ours, "orlop vhd over nbd", "cpu_us", most=1.5),
                 Floor(ours, "orlop vhd over nbd", "server_us", most=1.5)]
    return told


def entries(group, told, ends, profiles):
    """One for each job, as the report has those of NBD servers."""
    for job in group.jobs:
        rw, bs, qd = mounts.JOBS[job]
        cases = [{"label": name, "rounds": told[job].get(name, []), "counts": {}}
                 for name, _ in group.contestants]
        for case in cases:
            if (job, case["label"]) in profiles:
                case["profile"] = profiles[job, case["label"]]
        # Of the FUSE issue's list, which the seventh check here repeats.
        check = "7 (FUSE 6)" if group.key == "vhd" else "7 (FUSE 5)"
        yield {"key": f"mount-{group.key}-{job.replace(' ', '-')}", "title": title(group, job),
               "check": check, "x": None, "cases": cases, "columns": COLUMNS, "plots": PLOTS,
               "floors": [floor.entry() for floor in floors(group, job, ends)],
               "load": [rw, bs, qd, 1]}


def runs(rings):
    """How many times something is timed in a round, and how many contestants are brought up."""
    everything = mounts.groups(argparse.Namespace(raw="", vhd=""), rings)
    return (sum(len(group.contestants) * len(group.jobs) for group in everything),
            sum(len(group.contestants) for group in everything))


def rings_to_be(options):
    """Whether rings will be measured."""
    return mounts.offers_rings() or (options.rings and os.path.exists(mounts.RINGS))


def race(options, say):
    """The jobs, and what the report says of all of them."""
    place = options.mounts_dir
    asked = argparse.Namespace(
        orlop=options.orlop, dir=place, size=options.mib, rounds=options.rounds,
        seconds=options.seconds / 2, seed=options.seed)
    jobs, commands = [], {}
    with mounts.rings(options.rings) as rings:
        ends = [end for end, _ in mounts.ways(rings)]
        bench, profiles = mounts.Bench(asked), {}

        def profile(bench, group):
            say(f"profiles: {group.title}")
            wanted = {job: floors(group, job, ends) for job in group.jobs}
            profiles.update(mountprofile.profiles(bench, wanted, options.seconds))

        try:
            bench.prepare()
            for group in mounts.groups(bench, rings):
                say(f"verifying and timing: {group.title}")
                profiles.clear()
                told = bench.run(group, profile if options.profile else None)
                jobs += entries(group, told, ends, profiles)
                commands.update(group.commands)
        finally:
            bench.stop()
    about = ("`fio --direct=1` by libaio, psync at depth 1, for a while of "
             f"{asked.seconds} s, on contestants that are up together, each over a copy of one "
             f"disk of {asked.size} MiB in {file_system(place)}; each was read whole and compared "
             "before. A loop device has direct I/O; the time of its kernel threads is in nobody's "
             "account, but in the profiles. ")
    about += ("Rings are FUSE over io_uring." if rings else
              "FUSE over io_uring was not measured: the fuse module's parameter enable_uring is "
              "off; --rings turns it on for the while.")
    return jobs, {"about": about, "commands": commands, "rings": rings}, bench.failures

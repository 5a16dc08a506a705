"""Where the time of all processors goes while a mount is loaded, process by process: the server's,
fio's, that of the kernel's threads, which serve loop devices, and what is left idle.

An idle processor is not sampled while it halts, so idle is what nobody was sampled in.
"""

import collections
import os
import re
import subprocess

from sampling import LEAST, SAMPLES_PER_S, Profile, is_possible

# What perf and fio take to start, and what perf may be late by: fio's load lies around the sample.
BEFORE_S, BEHIND_S = 0.6, 0.6
# What a floor is kept over and nobody serves: the profile of it shows what a mount adds.
BARE = ("bare file", "loop/bare")
# By how the names of their functions begin. A sample belongs to the innermost that it is in; one
# of the kernel that is in none is not told.
LAYERS = (
    ("wake-ups and switches", ("__wake_up", "try_to_wake_up", "raise_softirq", "schedule",
                               "__schedule", "finish_task_switch")),
    ("file system", ("shmem_", "ext4_", "xfs_", "btrfs_")),
    ("FUSE", ("fuse_", "backing_")),
    ("loop device", ("loop_", "lo_")),
    ("block layer", ("blk_", "__blk_", "blkdev_", "bio_", "submit_bio", "__submit_bio")),
    ("libaio", ("aio_", "io_submit_one", "__x64_sys_io_submit", "__x64_sys_io_getevents")),
    ("io_uring", ("io_", "__io_", "__do_sys_io_uring")),
)
KERNEL = "[kernel"
# Of the kernel's calls below each other; behind them stand those of the program.
DEEPEST = 40
KERNEL_THREADS = ("kworker", "ksoftirqd")
# "kworker/u8:1-lo  77", and below it "ffffffff8173de58 io_submit_one ([kernel.kallsyms])".
PROCESS = re.compile(r"\s*(?P<comm>.+?)\s+(?P<pid>-?\d+)\s*")
FRAME = re.compile(r"\s*[0-9a-f]+ (?P<symbol>.*) \((?P<dso>.*)\)")


def profiles(bench, floors, seconds):
    """By job and contestant, of those that a floor is about and of what nobody serves."""
    if not is_possible():
        bench.failures.append("no profiles of mounts: perf is missing")
        return {}
    told = {}
    for job, wanted in floors.items():
        names = {floor.of for floor in wanted} | {floor.over for floor in wanted} & set(BARE)
        for contestant in bench.contestants:
            if contestant.name in names and not contestant.failure:
                try:
                    told[job, contestant.name] = sample(bench, contestant, job, seconds)
                except (RuntimeError, OSError) as error:
                    bench.failures.append(f"{contestant.name}, {job}, profile: {error}")
    return told


def sample(bench, contestant, job, seconds):
    with Profile(bench.folder, ["-a", "-g"], seconds, BEFORE_S) as profile:
        figures = bench.fio(contestant, job, BEFORE_S + seconds + BEHIND_S)
        profile.wait()
    servers = {process.pid: os.path.basename(process.args[0]) for process in contestant.processes}
    told = counted(profile.path, servers)
    if "fio" not in told:
        raise RuntimeError("perf saw nothing of fio")
    return shares(told, seconds, 1e6 / figures["iops"])


def counted(path, servers):
    """How many samples each process has, by symbol, whether that is the kernel's, and layer."""
    script = subprocess.run(
        ["perf", "script", "-i", path, "--max-stack", str(DEEPEST), "-F", "comm,pid,ip,sym,dso"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True)
    told = collections.defaultdict(collections.Counter)
    for one in script.stdout.split("\n\n"):
        first, *rest = one.strip("\n").split("\n")
        process, frames = PROCESS.fullmatch(first), [FRAME.fullmatch(line) for line in rest]
        if not (process and frames and all(frames)):
            continue
        symbol, dso = frames[0].groups()
        if symbol == "[unknown]":
            symbol = os.path.basename(dso)
        kernel = [frame["symbol"] for frame in frames if frame["dso"].startswith(KERNEL)]
        name = name_of(process["comm"], int(process["pid"]), servers)
        told[name][symbol, dso.startswith(KERNEL), layer_of(kernel)] += 1
    return told


def layer_of(symbols):
    """`symbols`: a function, the one that called it, and so on."""
    return next((layer for symbol in symbols for layer, starts in LAYERS
                 if symbol.startswith(starts)), None)


def name_of(comm, pid, servers):
    """What the report calls a process. `comm` is the name of one of its threads."""
    if pid in servers:
        return servers[pid]
    if pid <= 0:
        return "idle"
    name = comm.split("/")[0]
    return name if name == "fio" or name in KERNEL_THREADS else "others"


def shares(told, seconds, request_us):
    """Each process's part of all processors' time, the most first, and what that is made of.
    `request_us`: the time from one request to the next."""
    processors = os.cpu_count() or 1
    us = processors * request_us
    told.pop("idle", None)
    most = processors * seconds * SAMPLES_PER_S
    parts, processes = [], []
    for name, samples in sorted(told.items(), key=lambda one: -one[1].total()):
        parts.append([name, round(100 * samples.total() / most)])
        if name != "others" and 100 * samples.total() >= LEAST * most:
            processes.append(dict(process_of(samples, us / most), name=name))
    parts.append(["idle", max(0, 100 - sum(percent for _, percent in parts))])
    return {"us": round(us, 2), "shares": parts, "processes": processes}


def process_of(samples, each):
    """`each`: what one sample is in us per request."""
    symbols, layers, in_kernel = collections.Counter(), collections.Counter(), 0
    for (symbol, kernel, layer), count in samples.items():
        symbols[symbol] += count
        layers[layer] += count
        in_kernel += count if kernel else 0
    total = samples.total()

    def listed(counts):
        return [[what, round(count * each, 2)] for what, count in counts.most_common()
                if what and 100 * count >= LEAST * total]

    return {"us": round(total * each, 2), "kernel_percent": round(100 * in_kernel / total),
            "layers": listed(layers), "symbols": listed(symbols)}

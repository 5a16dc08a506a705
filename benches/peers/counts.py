"""What is counted once and not timed: system calls, syncs, and how large a file grows."""

import copy
import os
import random
import select
import subprocess

FLUSH_EVERY = 32
FLUSHES = 25
BLOCK = 2 << 20
# One piece of 64 KiB goes into each of so many blocks, or fewer where the disk has fewer.
TOUCHED = 40
# Seconds that strace may take to attach, and to end.
ATTACH_S = 5
# Seconds of the job's load before its system calls are counted: a server that looks at what the
# page cache holds has looked by then, and looks again as it always will.
SETTLED_S = 4


class Counts:
    def __init__(self, loader, window):
        self.loader, self.window = loader, window

    def of(self, what, server, image, job):
        return getattr(self, what)(server, image, job)

    def traced(self, running, words, load):
        """Calls that strace counts in the server during a load, and what the load told."""
        report = os.path.join(self.loader.folder, "calls")
        words = ["strace", "-f", "-c", "-o", report, *words]
        for pid in running.processes():
            words += ["-p", str(pid)]
        strace = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        # A server that makes a process for each connection may be about to end the last one.
        ready, _, _ = select.select([strace.stderr], [], [], ATTACH_S)
        try:
            if not ready:
                raise RuntimeError(f"strace does not attach within {ATTACH_S} s")
            strace.stderr.readline()
            told = self.loader.told(running.uri, *load)
        finally:
            strace.terminate()
            try:
                strace.communicate(timeout=ATTACH_S)
            except subprocess.TimeoutExpired:
                strace.kill()
                strace.communicate()
        with open(report) as file:
            lines = file.read().splitlines()
        for line in lines:
            if line.rstrip().endswith("total"):
                return int(line.split()[3]), told
        if any(line.strip() for line in lines):
            raise RuntimeError(f"strace told no total but: {lines[0]}")
        return 0, told

    def system_calls(self, server, image, job):
        """System calls of a settled server for each request: what more requests ask for in
        addition, as the connection has its own."""
        few, more = (2000, 12000) if job.bs == "4K" else (50, 250)
        load = ["--rw", job.rw, "--bs", job.bs, "--qd", job.qd, "--size", self.window, "--yes"]
        running = self.loader.start(server, image)
        try:
            self.loader.warm(running.uri, self.window)
            self.loader.told(running.uri, *load, "--time", SETTLED_S)
            calls = [self.traced(running, [], [*load, "--ops", ops])[0] for ops in (few, more)]
        finally:
            running.stop()
        return (calls[1] - calls[0]) / (more - few)

    def syncs_per_flush(self, server, image, _job):
        """fdatasync and its kin for each FLUSH. strace sees none that goes through a ring, so
        orlop does its I/O by threads here: what it syncs is decided elsewhere."""
        if server.name.startswith("orlop"):
            server = copy.copy(server)
            server.words = [*server.words, "--aio", "threads"]
        running = self.loader.start(server, image)
        try:
            syncs, told = self.traced(
                running, ["-e", "trace=fdatasync,fsync,sync_file_range,syncfs,msync"],
                ["--rw", "randwrite", "--bs", "4K", "--qd", 32, "--ops", FLUSHES * FLUSH_EVERY,
                 "--size", self.window, "--flush-every", FLUSH_EVERY, "--yes", "--seed", 1])
        finally:
            running.stop()
        return syncs / told["flush"]["ops"]

    def file_over_blocks(self, server, image, _job):
        """Writes into known blocks of an empty VHD; the file's size, or the space it takes if that
        is more, over what the specification asks for these blocks."""
        blocks = image.disk_bytes // BLOCK
        touched = random.Random(1).sample(range(blocks), min(TOUCHED, blocks))
        running = self.loader.start(server, image)
        try:
            for block in touched:
                self.loader.bench(running.uri, "--rw", "write", "--bs", "64K", "--ops", 1,
                                  "--offset", block * BLOCK, "--size", "64K", "--yes")
        finally:
            running.stop()
        told = os.stat(image.path)
        return max(told.st_size, told.st_blocks * 512) / needed(blocks, len(touched))


def needed(blocks, touched):
    """Bytes of a dynamic VHD with so many of its blocks: a copy of the footer, header, BAT (4 bytes
    each, in whole sectors), each block behind its bitmap (a bit per sector), footer. Data may lie
    at multiples of 4 KiB, so a bitmap may take 4 KiB."""
    table = -(-4 * blocks // 512) * 512
    start = -(-(512 + 1024 + table) // 4096) * 4096
    return start + touched * (4096 + BLOCK) + 512

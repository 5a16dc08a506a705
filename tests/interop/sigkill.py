#!/usr/bin/env python3
"""Kills a serving orlop again and again under load and looks for every flushed sector.

Each sector of a write carries its number and the write's. For every sector the script knows which
values it may have: the last one that a flush covers, and everything sent since. After each life
the whole disk is read from a new server: any other value is a loss. Needs libnbd's Python module.
"""

import argparse
import ctypes
import os
import random
import signal
import struct
import subprocess
import sys
import time

import nbd

SECTOR = 512
DIE_WITH_PARENT = 1


def sector_bytes(sector, value):
    """What a sector holds: zeroes, or its number and the write's, over and over."""
    return bytes(SECTOR) if value == 0 else struct.pack(">QQ", sector, value) * 32


def sector_value(sector, data):
    """Which write a sector is of; None when it is of none, or of two."""
    if not any(data):
        return 0
    number, value = struct.unpack(">QQ", data[:16])
    return value if number == sector and data == sector_bytes(sector, value) else None


class Server:
    """A server process on a socket of its own."""

    def __init__(self, options, image):
        self.socket = image + ".sock"
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        # If the test is killed, the server must not go on.
        libc = ctypes.CDLL(None)
        self.process = subprocess.Popen(
            [options.orlop, "serve", image, "--socket", self.socket, "--aio", options.aio,
             "--cache", options.cache, "--threads", options.threads],
            stdout=subprocess.PIPE, env={**os.environ, "ORLOP_LOG": "warn"},
            preexec_fn=lambda: libc.prctl(DIE_WITH_PARENT, signal.SIGKILL))
        self.uri = self.process.stdout.readline().decode().strip()
        assert self.uri, "the server did not start"

    def connect(self):
        handle = nbd.NBD()
        handle.connect_uri(self.uri)
        return handle

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def close(self):
        self.process.terminate()
        assert self.process.wait(30) == 0, "the server did not end well"
        self.process.stdout.close()


class Request:
    """A request in flight."""

    def __init__(self, kind, first, count, value, fua):
        self.kind, self.first, self.count = kind, first, count
        self.value, self.fua = value, fua
        # A flush promises what was acknowledged before it was sent.
        self.covers = []


class Disk:
    """What each sector may hold: the value that a flush covers, or that of a request since then.
    Requests are told apart by themselves: a trim, of which a flush promises nothing, and a zeroing
    have the same value."""

    def __init__(self, sectors):
        self.floor = [0] * sectors
        self.since = [[] for _ in range(sectors)]
        self.acknowledged = []

    def sent(self, request):
        for sector in range(request.first, request.first + request.count):
            self.since[sector].append(request)

    def answered(self, request):
        if request.kind == "flush":
            for covered in request.covers:
                self.durable(covered)
        elif request.kind == "trim":
            pass
        elif request.fua:
            self.durable(request)
        else:
            self.acknowledged.append(request)

    def durable(self, request):
        # A sector has one request in flight at a time, so what came later comes later here.
        for sector in range(request.first, request.first + request.count):
            since = self.since[sector]
            if request in since:
                self.floor[sector] = request.value
                self.since[sector] = since[since.index(request) + 1:]

    def judge(self, sector, value, life):
        since = [request.value for request in self.since[sector]]
        if value != self.floor[sector] and value not in since:
            sys.exit("life %d: sector %d holds %r, not %d or one of %r" % (
                life, sector, value, self.floor[sector], since))
        # The file says so now, and the next process starts from the file.
        self.floor[sector] = value
        self.since[sector] = []


class Load:
    """Random requests on a few connections until the time is over."""

    def __init__(self, disk, rng, counter):
        self.disk, self.rng, self.counter = disk, rng, counter
        self.busy = [False] * len(disk.floor)
        self.flights = []
        self.flushed = 0

    def pick(self):
        rng = self.rng
        count = rng.choice([1, 1, 8, 8, 8, 64, 300])
        first = rng.randrange(len(self.disk.floor) - count)
        if rng.random() < 0.6:
            first -= first % 8
        if any(self.busy[first:first + count]):
            return None
        kind = rng.choices(["write", "zero", "trim"], [20, 2, 1])[0]
        self.counter += 1
        value = self.counter if kind == "write" else 0
        return Request(kind, first, count, value, rng.random() < 0.05)

    def start(self, handle, request):
        at, length = request.first * SECTOR, request.count * SECTOR
        flags = nbd.CMD_FLAG_FUA if request.fua else 0
        if request.kind == "write":
            data = bytearray().join(sector_bytes(sector, request.value) for sector in
                                    range(request.first, request.first + request.count))
            cookie = handle.aio_pwrite(nbd.Buffer.from_bytearray(data), at, flags=flags)
        elif request.kind == "zero":
            flags |= self.rng.choice([0, nbd.CMD_FLAG_NO_HOLE])
            cookie = handle.aio_zero(length, at, flags=flags)
        elif request.kind == "trim":
            cookie = handle.aio_trim(length, at, flags=flags)
        else:
            cookie = handle.aio_flush()
        self.busy[request.first:request.first + request.count] = [True] * request.count
        self.flights.append((handle, cookie, request))

    def settle(self):
        going = []
        for handle, cookie, request in self.flights:
            if not handle.aio_command_completed(cookie):
                going.append((handle, cookie, request))
                continue
            self.busy[request.first:request.first + request.count] = [False] * request.count
            self.disk.answered(request)
            self.flushed += request.kind == "flush"
        self.flights = going

    def run(self, handles, depth, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            while len(self.flights) < depth:
                request = Request("flush", 0, 0, 0, False)
                if self.rng.random() < 0.04:
                    request.covers = list(self.disk.acknowledged)
                    self.disk.acknowledged = []
                else:
                    request = self.pick()
                if request is None:
                    break
                self.disk.sent(request)
                self.start(self.rng.choice(handles), request)
            for handle in handles:
                handle.poll(0)
            self.settle()


def verify(server, disk, life):
    handle = server.connect()
    for at in range(0, len(disk.floor) * SECTOR, 4 << 20):
        data = handle.pread(min(4 << 20, len(disk.floor) * SECTOR - at), at)
        for skip in range(0, len(data), SECTOR):
            sector = (at + skip) // SECTOR
            disk.judge(sector, sector_value(sector, bytes(data[skip:skip + SECTOR])), life)
    handle.shutdown()


def check(options, image):
    done = subprocess.run([options.orlop, "check", "--data", image], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit("check after a recovery:\n%s%s" % (done.stdout, done.stderr))


def grow_parent(options, disk, rng):
    """A parent whose every third sector holds something of its own."""
    parent = options.image + ".parent.vhd"
    size = str(len(disk.floor) * SECTOR)
    subprocess.run([options.orlop, "create", parent, "-s", size, "--block-size", "128K"],
                   check=True, stdout=subprocess.DEVNULL)
    server = Server(options, parent)
    handle = server.connect()
    for sector in range(0, len(disk.floor), 3):
        disk.floor[sector] = 1 << 40 | sector
        handle.pwrite(sector_bytes(sector, disk.floor[sector]), sector * SECTOR)
    handle.shutdown()
    server.close()
    return ["--parent", parent]


def live(options):
    rng = random.Random(options.seed)
    disk = Disk(options.sectors)
    shape = ["-s", str(options.sectors * SECTOR)]
    if options.parent:
        shape = grow_parent(options, disk, rng)
    subprocess.run([options.orlop, "create", options.image, "--block-size", "64K"] + shape,
                   check=True, stdout=subprocess.DEVNULL)
    counter, requests, flushes = 0, 0, 0
    server = None
    try:
        for life in range(options.lives):
            server = Server(options, options.image)
            verify(server, disk, life)
            if life % 5 == 4:
                server.close()
                check(options, options.image)
                server = Server(options, options.image)
            handles = [server.connect() for _ in range(rng.choice([1, 3]))]
            load = Load(disk, rng, counter)
            load.run(handles, rng.choice([1, 8, 32]), rng.uniform(0.03, 0.3))
            server.kill()
            # Answers still on their way do not count: nobody has read them.
            disk.acknowledged = []
            requests += load.counter - counter
            counter, flushes = load.counter, flushes + load.flushed
        server = Server(options, options.image)
        verify(server, disk, options.lives)
        server.close()
        check(options, options.image)
    finally:
        if server is not None and server.process.poll() is None:
            server.kill()
    print("%d lives, %d requests, %d flushes, nothing lost" % (options.lives, requests, flushes))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("orlop")
    parser.add_argument("image")
    parser.add_argument("--lives", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sectors", type=int, default=16384)
    parser.add_argument("--aio", default="auto")
    parser.add_argument("--cache", default="writeback")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--parent", action="store_true")
    live(parser.parse_args())


if __name__ == "__main__":
    main()

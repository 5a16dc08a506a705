#!/usr/bin/env python3
"""One disk through three doors at once: NBD, a mounted file, and pages mapped from it.

In turns: whatever one door was told is done, all doors show. At the same time: a block written over
NBD carries a number that only grows, and once a write was answered nobody reads an older one.
"""

import argparse
import mmap
import os
import random
import struct
import sys
import threading

import nbd
from mounted import Mount, clear

PAGE = 4096
STAMP = struct.Struct(">QQ")


class Doors:
    """The mount and a connection to its socket."""

    def __init__(self, options):
        self.socket = options.image + ".sock"
        self.mount = Mount(options.orlop, options.image, options.place, "--nbd", self.socket,
                           *options.option)
        self.fd = os.open(self.mount.disk, os.O_RDWR)
        self.direct = os.open(self.mount.disk, os.O_RDWR | os.O_DIRECT)
        self.size = os.fstat(self.fd).st_size
        self.map = mmap.mmap(self.fd, self.size)

    def connect(self):
        handle = nbd.NBD()
        handle.connect_uri("nbd+unix:///?socket=" + self.socket)
        return handle

    def close(self):
        self.map.close()
        os.close(self.fd)
        os.close(self.direct)
        self.mount.close()


def in_turns(doors, dice, count):
    """Any door writes, then every door shows it; neighbours in a page keep their bytes."""
    handle = doors.connect()
    model = bytearray(handle.pread(doors.size, 0))
    tally = {}
    for _ in range(count):
        how = dice.choice(("nbd", "nbd", "file", "mapped", "mapped and left", "zero"))
        length = dice.choice((1, 512, PAGE, dice.randrange(1, 3 * PAGE)))
        at = dice.randrange(0, min(doors.size, 64 * PAGE) - length)
        data = bytes(length) if how == "zero" else dice.randbytes(length)
        model[at:at + length] = data
        if how == "nbd":
            handle.pwrite(data, at)
        elif how == "zero":
            handle.zero(length, at)
        elif how == "file":
            assert os.pwrite(doors.fd, data, at) == length
        else:
            doors.map[at:at + length] = data
            if how == "mapped":
                doors.map.flush()
        tally[how] = tally.get(how, 0) + 1
        first, last = max(0, at - PAGE), min(doors.size, at + length + PAGE)
        expected = bytes(model[first:last])
        found = {"mapped": doors.map[first:last], "file": os.pread(doors.fd, last - first, first)}
        # What was only put into a page is nobody's business yet but this kernel's.
        if how != "mapped and left":
            found["nbd"] = handle.pread(last - first, first)
        for door, there in found.items():
            if there != expected:
                wrong = next(i for i, (a, b) in enumerate(zip(there, expected)) if a != b)
                sys.exit(f"after {how} of {length} at {at}: {door} is wrong at {first + wrong}")
    doors.map.flush()
    assert handle.pread(doors.size, 0) == bytes(model), "old bytes were written back"
    handle.shutdown()
    return tally


def at_once(doors, rounds):
    """Writers over NBD, readers through the file, past its cache, and through a mapping."""
    blocks = 16
    answered = [0] * blocks
    stop, faults, looks = threading.Event(), [], [0, 0, 0]

    def write(part):
        handle = doors.connect()
        for number in range(1, rounds + 1):
            for block in range(part, blocks, 2):
                handle.pwrite(STAMP.pack(block, number) * (PAGE // STAMP.size), block * PAGE)
                answered[block] = number
        handle.shutdown()

    def look(which, read):
        dice = random.Random(which)
        while not stop.is_set() and not faults:
            block = dice.randrange(blocks)
            least = answered[block]
            page = read(block * PAGE)
            number = STAMP.unpack_from(page)[1]
            looks[which] += 1
            if number < least:
                faults.append(f"door {which}: block {block} shows {number} after {least}")

    # Holds one aligned page for reads past the cache.
    buffer = mmap.mmap(-1, PAGE)

    def read_directly(at):
        os.preadv(doors.direct, [buffer], at)
        return buffer[:]

    readers = [lambda at: os.pread(doors.fd, PAGE, at), read_directly,
               lambda at: doors.map[at:at + PAGE]]
    watchers = [threading.Thread(target=look, args=pair) for pair in enumerate(readers)]
    writers = [threading.Thread(target=write, args=(part,)) for part in range(2)]
    for thread in watchers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in watchers:
        thread.join()
    if faults:
        sys.exit(faults[0])
    return looks


def side_by_side(doors, rounds):
    """A program goes on changing a page by its mapping while its other bytes are written over NBD:
    what was answered stays."""
    handle, stop = doors.connect(), threading.Event()

    def store():
        number = 0
        while not stop.is_set():
            number = (number + 1) % 256
            doors.map[2048] = number

    storer = threading.Thread(target=store)
    storer.start()
    try:
        for number in range(1, rounds + 1):
            data = STAMP.pack(number, number) * (512 // STAMP.size)
            handle.pwrite(data, 0)
            found = handle.pread(512, 0)
            if found != data:
                sys.exit(f"write {number} was answered, and then there was "
                         f"{STAMP.unpack_from(found)[1]}")
    finally:
        stop.set()
        storer.join()
    handle.shutdown()


def main():
    parser = argparse.ArgumentParser()
    for name in ("orlop", "image", "place"):
        parser.add_argument(name)
    parser.add_argument("--turns", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--option", action="append", default=[])
    options = parser.parse_args()
    print(f"seed {options.seed}")
    doors = None
    try:
        doors = Doors(options)
        print(in_turns(doors, random.Random(options.seed), options.turns))
        print("looks while others wrote:", at_once(doors, options.rounds))
        side_by_side(doors, options.rounds * 2)
        doors.close()
    finally:
        if doors and doors.mount.process.poll() is None:
            doors.mount.kill()
        clear(options.orlop, options.place)


main()

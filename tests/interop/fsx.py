#!/usr/bin/env python3
"""Random operations on a mounted disk against a model in memory, with the server killed between.

Every byte read is compared with the model: by read, through a mapping, behind a hole's bounds.
After a kill each sector may be what was flushed last or what was written since, and nothing else;
after a proper end it is what was written last.
"""

import argparse
import errno
import mmap
import os
import random
import sys
import threading
import time

from mounted import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, Mount, clear, fallocate

SECTOR = 512
LONGEST = 64 << 10
PAGE = 4096


class Mismatch(Exception):
    """The file is not what the model says."""


class Run:
    """One file, its model, and how it got there."""

    def __init__(self, options):
        self.options, self.dice = options, random.Random(options.seed)
        self.size = None
        self.done = 0
        self.mount = self.fd = self.map = None
        self.model, self.flushed = None, None
        # What was written since the last flush: offset and bytes, oldest first.
        self.since = []
        self.pool = self.dice.randbytes(1 << 20)

    # The life of the mount.

    def begin(self):
        self.mount = Mount(self.options.orlop, self.options.image, self.options.place,
                           *self.options.option)
        self.open()
        if self.model is None:
            self.size = os.fstat(self.fd).st_size
            self.model = bytearray(self.read_all())
        else:
            self.adopt(self.read_all())
        self.flushed, self.since = bytes(self.model), []

    def open(self):
        self.fd = os.open(self.mount.disk, os.O_RDWR)
        self.map = mmap.mmap(self.fd, self.size or os.fstat(self.fd).st_size)

    def shut(self):
        self.map.close()
        os.close(self.fd)

    def read_all(self):
        found = b"".join(os.pread(self.fd, 1 << 20, at)
                         for at in range(0, os.fstat(self.fd).st_size, 1 << 20))
        assert len(found) == (self.size or len(found)), "another size"
        return found

    def adopt(self, found):
        """Takes what a new life shows, if it may be so."""
        for at in range(0, self.size, SECTOR):
            sector = found[at:at + SECTOR]
            if sector == self.model[at:at + SECTOR]:
                continue
            allowed = self.states_of(at)
            if sector not in allowed:
                raise Mismatch(f"sector at {at} after a kill is none of {len(allowed)} states: "
                               f"{sector[:16].hex()}...")
        self.model = bytearray(found)

    def states_of(self, at):
        state = bytearray(self.flushed[at:at + SECTOR])
        states = {bytes(state)}
        for offset, data in self.since:
            first, last = max(offset, at), min(offset + len(data), at + SECTOR)
            if first < last:
                # Writes may have reached the disk in part, and in any order where they overlap.
                states |= {one[:first - at] + data[first - offset:last - offset] + one[last - at:]
                           for one in states}
        return states

    # The operations. Each notes what it changes before it does it.

    def note(self, offset, data):
        self.since.append((offset, data))
        self.model[offset:offset + len(data)] = data

    def place(self, longest=LONGEST, grain=1):
        dice = self.dice
        grain = dice.choice((1, SECTOR, PAGE)) if grain == 1 else grain
        length = max(1, min(longest, int(dice.expovariate(1 / 8192)))) // grain * grain or grain
        offset = dice.randrange(0, max(1, self.size - length)) // grain * grain
        return offset, min(length, self.size - offset)

    def data(self, length):
        at = self.dice.randrange(0, len(self.pool) - length)
        return self.pool[at:at + length]

    def compare(self, offset, found, what):
        expected = self.model[offset:offset + len(found)]
        if found != expected:
            wrong = next(i for i, (a, b) in enumerate(zip(found, expected)) if a != b)
            raise Mismatch(f"{what} of {len(found)} at {offset} is wrong from {offset + wrong} on")

    def read(self):
        offset, length = self.place()
        found = os.pread(self.fd, length, offset)
        if len(found) != length:
            raise Mismatch(f"read {len(found)} of {length} at {offset}")
        self.compare(offset, found, "read")

    def write(self):
        offset, length = self.place()
        data = self.data(length)
        self.note(offset, data)
        assert os.pwrite(self.fd, data, offset) == length

    def write_durably(self):
        offset, length = self.place(4096)
        data = self.data(length)
        self.note(offset, data)
        assert os.pwritev(self.fd, [data], offset, os.RWF_DSYNC) == length
        # What else was written may still be under way: only these bytes are known.
        flushed = bytearray(self.flushed)
        flushed[offset:offset + length] = data
        self.flushed = bytes(flushed)

    def erase(self, mode):
        offset, length = self.place()
        self.note(offset, bytes(length))
        fallocate(self.fd, mode, offset, length)

    def punch(self):
        self.erase(PUNCH_HOLE | KEEP_SIZE)

    def zero(self):
        self.erase(ZERO_RANGE | self.dice.choice((0, KEEP_SIZE)))

    def read_mapped(self):
        offset, length = self.place()
        self.compare(offset, self.map[offset:offset + length], "mapped read")

    def write_mapped(self):
        offset, length = self.place()
        data = self.data(length)
        self.note(offset, data)
        self.map[offset:offset + length] = data

    def sync(self):
        # Pages that were mapped and written belong to what a file's sync makes durable.
        os.fsync(self.fd)
        self.flushed, self.since = bytes(self.model), []

    def sync_mapped(self):
        self.map.flush()

    def reopen(self):
        # The last close of a file that was written makes it durable.
        self.map.flush()
        self.shut()
        self.flushed, self.since = bytes(self.model), []
        self.open()

    def seek(self):
        start = self.dice.randrange(self.size)
        # The kernel does not tell of pages that were mapped and written and are its own still.
        self.map.flush()
        try:
            data = os.lseek(self.fd, start, os.SEEK_DATA)
        except OSError as error:
            assert error.errno == errno.ENXIO, error
            data = self.size
        if any(self.model[start:data]):
            raise Mismatch(f"data before {data}, which is said to be a hole from {start} on")
        hole = os.lseek(self.fd, start, os.SEEK_HOLE)
        assert start <= hole <= self.size

    def refuse(self):
        for what, expected in (
                (lambda: os.pwrite(self.fd, b"x", self.size), errno.EFBIG),
                (lambda: os.ftruncate(self.fd, self.size + 1), None),
                (lambda: os.ftruncate(self.fd, 0), None)):
            try:
                what()
            except OSError as error:
                assert expected in (None, error.errno), error
            else:
                raise Mismatch("a change of the size was not refused")

    WEIGHTS = {"read": 30, "write": 30, "write_durably": 0.3, "punch": 5, "zero": 4,
               "read_mapped": 10, "write_mapped": 10, "sync": 1, "sync_mapped": 0.5, "reopen": 0.3, "seek": 5,
               "refuse": 0.5}
    # A mapping of a dead mount kills its reader.
    SAFE = {"read": 30, "write": 50, "punch": 8, "zero": 6, "sync": 2}

    def operate(self, weights, count):
        names = self.dice.choices(list(weights), list(weights.values()), k=count)
        for name in names:
            getattr(self, name)()
            self.done += 1

    def live(self, count):
        """Some operations, then an end: asked for, or a kill in the middle of more."""
        self.operate(self.WEIGHTS, count)
        if self.dice.random() < 0.25:
            self.shut()
            self.mount.close()
            self.flushed, self.since = bytes(self.model), []
            return
        self.sync()
        self.map.close()
        delay = self.dice.random() * 0.3
        killer = threading.Thread(target=lambda: (time.sleep(delay), self.mount.kill()))
        killer.start()
        try:
            while True:
                self.operate(self.SAFE, 50)
        except OSError as error:
            gone = (errno.ENOTCONN, errno.EIO, errno.ECONNABORTED, errno.ECANCELED)
            assert error.errno in gone, error
        killer.join()
        try:
            os.close(self.fd)
        except OSError:
            pass

    def run(self):
        lives = max(1, self.options.lives)
        for life in range(lives):
            self.begin()
            left = (self.options.operations - self.done) // (lives - life)
            self.live(max(left, 1))
        self.begin()
        self.shut()
        self.mount.close()
        print(f"{self.done} operations, {lives} lives, no difference (seed {self.options.seed})")


def main():
    parser = argparse.ArgumentParser()
    for name in ("orlop", "image", "place"):
        parser.add_argument(name)
    parser.add_argument("--operations", type=int, default=20_000)
    parser.add_argument("--lives", type=int, default=4)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--option", action="append", default=[])
    run = Run(parser.parse_args())
    try:
        run.run()
    except BaseException:
        print(f"seed {run.options.seed}, after {run.done} operations", file=sys.stderr)
        raise
    finally:
        if run.mount and run.mount.process.poll() is None:
            run.mount.kill()
        clear(run.options.orlop, run.options.place)


main()

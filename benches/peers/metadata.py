"""What images cost by their size alone: starting to serve them, keeping them, looking blocks up."""

import random
import statistics
import tempfile
import time

from client import Client
from jobs import Case, Floor, Job
from servers import Running

SIZES_GIB = (1, 64, 2040)
BLOCK = 2 << 20
# Blocks that are read twice.
BLOCKS = 400
ATTACH = (("attach_ms", "ms to the first read"), ("resident_mib", "MiB resident then"))
IDLE = (("resident_mib", "MiB resident"), ("each_kib", "KiB for each"))
LOOK_UP = (("miss_us", "us, first read of a block"), ("hit_us", "us, second read of it"),
           ("reads", "random reads then"), ("resident_mib", "MiB resident then"))


def started(peers, case, act):
    """Starts a server, lets `act` have it, and ends it."""
    image = peers.images.get(case.image)
    folder = tempfile.mkdtemp(dir=peers.folder)
    running = Running(peers.servers[case.server], image, folder)
    try:
        return act(running, image)
    finally:
        running.stop()


def attach(peers, case, _number):
    """From starting the program to the first byte that a client has."""
    def act(running, image):
        client = Client(running.socket, image.export)
        client.read(image.disk_bytes // 2)
        took = time.monotonic() - running.began
        client.close()
        return {"attach_ms": took * 1e3, "resident_mib": running.resident_bytes() / (1 << 20)}
    return started(peers, case, act)


def idle(peers, case, _number):
    def act(running, image):
        client = Client(running.socket, image.export)
        client.read(0)
        client.close()
        # What it does after a client has left belongs to it.
        time.sleep(0.2)
        resident = running.resident_bytes()
        return {"resident_mib": resident / (1 << 20),
                "each_kib": resident / 1024 / (1 + len(image.beside))}
    return started(peers, case, act)


def look_up(peers, case, number):
    def act(running, image):
        client, dice = Client(running.socket, image.export), random.Random(number)
        client.read(0)
        miss, hit = [], []
        for block in dice.sample(range(1, image.disk_bytes // BLOCK - 1), BLOCKS):
            miss.append(client.read(block * BLOCK))
            hit.append(client.read(block * BLOCK + 8192))
        client.close()
        told = peers.loader.told(running.uri, "--rw", "randread", "--qd", 32, "--time",
                                 2 * peers.options.seconds, "--seed", number)
        return {"miss_us": statistics.median(miss) * 1e6, "hit_us": statistics.median(hit) * 1e6,
                "reads": told["total"]["ops"],
                "resident_mib": running.resident_bytes() / (1 << 20)}
    return started(peers, case, act)


def metadata():
    largest = SIZES_GIB[-1]
    servers = ("orlop", "qemu-nbd")
    sizes = [Case(f"{server}, {gib} GiB", server, f"sized-{gib}")
             for server in servers for gib in SIZES_GIB]
    kept = [Case("orlop, 1 disk", "orlop", "full-1"), Case("orlop, 100 disks", "orlop", "full-100"),
            Case("qemu-nbd, 1 disk", "qemu-nbd", f"sized-{largest}")]
    whole = [Case(server, server, f"sized-{largest}", whole=True) for server in servers]
    return [
        Job("attach", "Serving a VHD with every block allocated, from exec to the first read",
            "read", "4K", 1, sizes, [
                Floor(f"orlop, {largest} GiB", "orlop, 1 GiB", "attach_ms", most=1.5),
                Floor(f"orlop, {largest} GiB", f"qemu-nbd, {largest} GiB", "attach_ms", most=1)],
            check="item 4", run=attach, columns=ATTACH, plots=ATTACH),
        Job("idle", f"Memory of servers of full {largest} GiB VHDs that nobody uses", "read", "4K",
            1, kept, check="item 4", run=idle, columns=IDLE, plots=IDLE[:1]),
        Job("look-up", f"Looking up blocks all over a full {largest} GiB VHD", "randread", "4K", 1,
            whole, check="item 4", run=look_up, columns=LOOK_UP,
            plots=[LOOK_UP[0], LOOK_UP[1], LOOK_UP[3]],
            note=f"{BLOCKS} blocks are read for the first and the second time, one at a time, by "
            "a client in Python; then the whole disk is read at random at depth 32. The file is "
            "sparse: a bitmap comes from the page cache or a hole, not from a device."),
    ]

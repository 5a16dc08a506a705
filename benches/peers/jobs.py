"""What is compared: loads, contestants, and the floors that orlop promises to keep."""


class Case:
    """A contestant of a job: a server over an image. `fio` stands for fio on the bare file, and
    `fio in step` for fio that asks again when all of a depth was answered.

    `whole`: the load goes to all of the disk and not only where its data lie. `qd` and
    `connections` stand in for the job's.
    """

    def __init__(self, label, server, image, renew=False, whole=False, qd=None, connections=None):
        self.label, self.server, self.image, self.renew = label, server, image, renew
        self.whole, self.qd, self.connections = whole, qd, connections


# The figures of a job that are told, and how each is called.
COLUMNS = (("iops", "requests/s"), ("mib_s", "MiB/s"), ("server_us", "us"), ("p50_us", "p50 us"),
           ("p99_us", "p99 us"))
CURVE = (("iops", "requests/s"), ("p50_us", "p50 us"), ("server_us", "us"),
         ("resident_mib", "MiB resident"), ("ready_ms", "ms to start"))
# Those that are drawn as bars.
PLOTS = (("iops", "requests/s"), ("server_us", "us of processor time per request, of the server"))


class Job:
    """A load for all its cases. `check`: what of the issue's list it is for. `x`: its place on a
    curve. `run`: what measures a case, where that is not a load through `orlop bench`. `counted`:
    what is counted once and not timed (counts.py). `on_disk`: its images need a device."""

    def __init__(self, key, title, rw, bs, qd, cases, floors=(), connections=1, more=(), x=None,
                 check="", run=None, counted=(), on_disk=False, columns=None, plots=PLOTS,
                 note=""):
        self.key, self.title, self.rw, self.bs, self.qd = key, title, rw, bs, qd
        self.cases, self.floors, self.connections = cases, floors, connections
        self.more, self.x, self.check, self.run = list(more), x, check, run
        self.counted, self.on_disk, self.plots = tuple(counted), on_disk, plots
        self.columns, self.note = columns or (COLUMNS if x is None else CURVE), note

    def writes(self):
        return "write" in self.rw

    def entry(self):
        """What the report has of it before anything is measured."""
        return {"key": self.key, "title": self.title, "check": self.check, "x": self.x,
                "floors": [floor.entry() for floor in self.floors], "cases": [],
                "columns": self.columns, "plots": self.plots, "note": self.note,
                "load": [self.rw, self.bs, self.qd, self.connections]}


WORDS = {"iops": "throughput", "server_us": "server CPU per request", "p50_us": "latency",
         "cpu_us": "CPU per request, client's included", "attach_ms": "time to the first read",
         "system_calls": "system calls per request", "syncs_per_flush": "fdatasync per FLUSH",
         "file_over_blocks": "file over what the blocks touched need"}


class Floor:
    """`of` over `over`, at least or at most so much, in `what`, a figure. Where `over` is None,
    what was counted of `of` by itself."""

    def __init__(self, of, over, what="iops", least=None, most=None):
        self.of, self.over, self.what, self.least, self.most = of, over, what, least, most

    def text(self):
        bound = f"at least {self.least}" if self.least is not None else f"at most {self.most}"
        over = f" over {self.over}" if self.over else ""
        return f"{WORDS[self.what]} of {self.of}{over}: {bound}"

    def entry(self):
        return dict(vars(self), text=self.text())


def same(servers, image):
    return [Case(name, name, image) for name in servers]


def written(servers, of):
    """Each writes to a copy of its own."""
    return [Case(name, name, f"copy-{of}-{name.replace(' ', '_')}") for name in servers]


READERS = ["orlop", "nbdkit", "qemu-nbd", "qemu-nbd io_uring", "qemu-storage-daemon", "nbd-server"]
WRITERS = ["orlop", "nbdkit", "qemu-nbd", "qemu-nbd io_uring", "qemu-storage-daemon"]
VPC = ["orlop", "qemu-nbd", "qemu-storage-daemon"]


def reading():
    return [
        Job("raw-read-qd32", "4 KiB random reads of raw, depth 32", "randread", "4K", 32,
            same(READERS, "raw"), [
                Floor("orlop", "nbdkit", least=2.5), Floor("orlop", "qemu-nbd", least=6),
                Floor("orlop", "qemu-nbd io_uring", least=3.5),
                Floor("orlop", "nbdkit", "server_us", most=0.35),
                Floor("orlop", "qemu-nbd", "server_us", most=0.1),
                Floor("orlop", None, "system_calls", most=0.15)],
            check="1", counted=["system_calls"]),
        Job("raw-read-qd1", "4 KiB random reads of raw, depth 1", "randread", "4K", 1,
            same(READERS, "raw"), [
                Floor("orlop", "nbdkit", "p50_us", most=0.7),
                Floor("orlop", "qemu-nbd", "p50_us", most=0.5),
                Floor("orlop", None, "system_calls", most=2)],
            check="1", counted=["system_calls"]),
        Job("vhd-read-qd32", "4 KiB random reads of a full VHD, depth 32", "randread", "4K", 32,
            same(VPC, "vhd") + [Case("orlop on raw", "orlop", "raw")],
            [Floor("orlop", "orlop on raw", least=0.95)], check="2", counted=["system_calls"]),
        Job("vhd-read-qd1", "4 KiB random reads of a full VHD, depth 1", "randread", "4K", 1,
            same(VPC, "vhd") + [Case("orlop on raw", "orlop", "raw")],
            [Floor("orlop", "orlop on raw", "p50_us", most=1.05)], check="2"),
        Job("chain-read-qd32", "4 KiB random reads of a chain of 30, depth 32", "randread", "4K",
            32, [Case("orlop on chain", "orlop", "chain-30"),
                 Case("orlop on single", "orlop", "single-30")],
            [Floor("orlop on chain", "orlop on single", least=0.9)], check="2"),
        Job("raw-seq-read", "1 MiB reads of raw in order, depth 4", "read", "1M", 4,
            same(READERS + ["orlop null"], "raw"), [
                Floor("orlop", "nbdkit", least=1.3), Floor("orlop", "qemu-nbd", least=3),
                Floor("orlop", "orlop null", least=0.7)],
            check="5", counted=["system_calls"]),
        Job("raw-read-4x", "4 KiB random reads of raw, four connections of depth 8", "randread",
            "4K", 8, same(["orlop", "orlop 2 threads", "nbdkit", "qemu-nbd"], "raw")
            + [Case("orlop, one connection", "orlop", "raw", connections=1),
               Case("orlop, one of depth 32", "orlop", "raw", qd=32, connections=1)],
            [Floor("orlop", "nbdkit", least=1),
             Floor("orlop", "orlop, one connection", "server_us", most=1)], connections=4,
            check="6",
            note="One connection has the depth of each of the four; one of depth 32 has as much "
            "in flight as they have together, in larger batches."),
        Job("null-read-4x", "512 byte reads of a null export, four connections of depth 128",
            "randread", "512", 128, same(["orlop null", "orlop null 2 threads"], "raw"),
            [Floor("orlop null 2 threads", "orlop null", least=1.5)], connections=4, check="6",
            note="Short and many, so that the client, which has the same two processors, has "
            "little to do: a third of what the server has."),
    ]


def writing():
    empty = [Case(name, name, f"empty-{name}", renew=True) for name in ("orlop", "qemu-nbd")]
    flushed = written(("orlop", "qemu-nbd"), "vhd")
    vhd = written(("orlop", "qemu-nbd"), "vhd") + [Case("orlop on raw", "orlop", "copy-raw-orlop")]
    return [
        Job("raw-write-qd32", "4 KiB random writes of raw, depth 32", "randwrite", "4K", 32,
            written(WRITERS, "raw"), [Floor("orlop", "nbdkit", least=1.5)], check="3"),
        Job("vhd-write-qd32", "4 KiB random overwrites of a full VHD, depth 32", "randwrite", "4K",
            32, vhd, [Floor("orlop", "qemu-nbd", least=10),
                      Floor("orlop", "orlop on raw", least=0.9)], check="3"),
        Job("vhd-fill", "64 KiB random writes into an empty VHD, depth 16", "randwrite", "64K", 16,
            empty, [Floor("orlop", "qemu-nbd", least=5),
                    Floor("orlop", None, "file_over_blocks", most=1)],
            check="3", counted=["file_over_blocks"]),
        Job("vhd-flush", "4 KiB random overwrites of a VHD, a flush after every 32", "randwrite",
            "4K", 32, flushed, [Floor("orlop", "qemu-nbd", least=3),
                                Floor("orlop", None, "syncs_per_flush", most=2)],
            more=["--flush-every", 32], check="3", counted=["syncs_per_flush"]),
        Job("vhd-fill-flush", "4 KiB random writes into an empty VHD, a flush after every 32",
            "randwrite", "4K", 32, empty, [Floor("orlop", "qemu-nbd", least=3),
                                           Floor("orlop", None, "syncs_per_flush", most=2)],
            more=["--flush-every", 32], check="3", counted=["syncs_per_flush"]),
        Job("raw-seq-write", "1 MiB writes of raw in order, depth 4", "write", "1M", 4,
            written(WRITERS, "raw"), [Floor("orlop", "nbdkit", least=1.2)], check="5"),
    ]


# What a client behind a socket sees of a device that tells of all its requests at once.
IN_STEP = ("In step: fio asks for 32 at once, and for 32 more when all were answered. That is what "
           "a device that tells only when it has nothing left to do makes of every client behind a "
           "socket.")


def direct():
    limit = [Floor("orlop direct", "bare file", least=0.9)]
    others = ("orlop direct", "qemu-nbd direct")
    return [
        Job("direct-read", "4 KiB random reads with O_DIRECT, depth 32", "randread", "4K", 32,
            same(others, "raw") + [
                Case("bare file", "fio", "raw"), Case("bare file, in step", "fio in step", "raw")],
            limit, check="4", on_disk=True, note=IN_STEP),
        Job("direct-write", "4 KiB random writes with O_DIRECT, depth 32", "randwrite", "4K", 32,
            written(others, "raw") + [
                Case("bare file", "fio", "copy-raw-fio"),
                Case("bare file, in step", "fio in step", "copy-raw-fio")],
            limit, check="4", on_disk=True, note=IN_STEP),
        # Told beside the null export of the reading suite, which the floor is kept for.
        Job("direct-read-4x", "4 KiB random reads with O_DIRECT, four connections of depth 8",
            "randread", "4K", 8, same(("orlop direct", "orlop direct 2 threads"), "raw"),
            connections=4, check="6", on_disk=True),
    ]


def growth():
    """Curves: jobs with an `x`, drawn by the part of their key before the last dash."""
    jobs = []
    for qd in (1, 4, 16, 32, 64):
        jobs.append(Job(f"by-depth-of-queue-{qd}", "requests in flight", "randread", "4K", qd,
                        same(READERS, "raw"), x=qd))
    for count in (1, 4, 16, 64):
        jobs.append(Job(f"by-connections-{count}", "connections of depth 4", "randread", "4K", 4,
                        same(("orlop", "orlop 2 threads", "nbdkit"), "raw"), connections=count,
                        x=count))
    for depth in (1, 2, 8, 30):
        jobs.append(Job(f"by-layers-{depth}", "images in the chain", "randread", "4K", 32,
                        [Case("orlop", "orlop", f"chain-{depth}")], x=depth))
    for gib in (1, 32, 256, 1024, 2040):
        image = f"sized-{gib}"
        jobs.append(Job(f"by-size-{gib}", "GiB of the disk, every block allocated", "randread",
                        "4K", 32, [Case("where data lie", "orlop", image),
                                   Case("all over the disk", "orlop", image, whole=True)], x=gib))
    for count in (1, 10, 100, 500):
        jobs.append(Job(f"by-disks-{count}", "disks served, one of them used", "randread", "4K",
                        32, [Case("orlop", "orlop", f"many-{count}")], x=count))
    for percent in (0, 25, 50, 75, 100):
        image = f"scattered-{percent}"
        jobs.append(Job(f"by-fragmentation-{percent}", "percent of blocks out of order",
                        "randread", "4K", 32, [Case("orlop", "orlop", image)], x=percent))
        jobs.append(Job(f"by-fragmentation-in-order-{percent}",
                        "percent of blocks out of order, 1 MiB reads in order", "read", "1M", 4,
                        [Case("orlop", "orlop", image)], x=percent))
    for job in jobs:
        job.check = "8"
    return jobs


def short():
    """What `orlop bench --peers` runs."""
    wanted = ("raw-read-qd32", "raw-read-qd1", "vhd-read-qd32", "raw-seq-read", "raw-write-qd32",
              "vhd-write-qd32")
    return [job for job in reading() + writing() if job.key in wanted]


SUITES = {"reading": reading, "writing": writing, "direct": direct, "growth": growth}

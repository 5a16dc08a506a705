"""What is asked of servers: by `orlop bench` over NBD, by fio of a bare file."""

import hashlib
import json
import os
import subprocess
import tempfile

from servers import Running


class Loader:
    def __init__(self, orlop, folder):
        self.orlop, self.folder = orlop, folder

    def bench(self, target, *words):
        done = subprocess.run([self.orlop, "bench", target, *map(str, words)],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError((done.stderr.strip() or "failed").splitlines()[-1])
        return done.stdout

    def told(self, uri, *words):
        """What a load told, if no request of it failed."""
        told = json.loads(self.bench(uri, "--json", *words))
        if told["fault_count"]:
            raise RuntimeError(f"{told['fault_count']} requests failed")
        return told

    def answers(self, uri):
        try:
            self.bench(uri, "--ops", 1, "--qd", 1, "--bs", 512)
        except RuntimeError:
            return False
        return True

    def start(self, server, image):
        running = Running(server, image, tempfile.mkdtemp(dir=self.folder))
        running.wait(self.answers)
        return running

    def content(self, server, image):
        """The digest of all bytes, as the server tells them."""
        running, digest = self.start(server, image), hashlib.sha256()
        try:
            copy = subprocess.Popen(["nbdcopy", running.uri, "-"], stdout=subprocess.PIPE,
                                    stderr=subprocess.DEVNULL)
            while piece := copy.stdout.read(1 << 20):
                digest.update(piece)
            if copy.wait() != 0:
                raise RuntimeError(f"{server.name} cannot be read to the end")
        finally:
            running.stop()
        return digest.hexdigest()

    def keeps_what_is_written(self, server, image):
        """Stamped writes at three depths, each checked: nothing is timed before."""
        running = self.start(server, image)
        try:
            for depth in (1, 16, 64):
                self.bench(running.uri, "--rw", "randrw", "--verify", "--yes", "--ops", 4000,
                           "--qd", depth, "--size", "32M")
        finally:
            running.stop()

    def warm(self, uri, size):
        """Everything into the page cache, so that no server pays for the device."""
        self.bench(uri, "--rw", "read", "--bs", "1M", "--qd", 8, "--size", size,
                   "--ops", max(1, size >> 20))

    def settle(self, running, job, case, seconds, window):
        """The load itself for a while, untimed: what a server learns of it is learnt."""
        self.measure(running, job, case, seconds, 0, window)

    def measure(self, running, job, case, seconds, seed, window):
        words = ["--rw", job.rw, "--bs", job.bs, "--qd", case.qd or job.qd, "--jobs",
                 case.connections or job.connections, "--time", seconds, "--seed", seed,
                 "--yes", *job.more]
        words += [] if case.whole else ["--size", window]
        before = running.cpu_s()
        told = self.told(running.uri, *words)
        cpu = running.cpu_s() - before
        total = told["total"]
        ops = max(1, total["ops"])
        return {"iops": total["iops"], "mib_s": total["mib_per_s"],
                "p50_us": total["latency_us"]["p50"], "p99_us": total["latency_us"]["p99"],
                "server_us": cpu / ops * 1e6, "client_us": told["cpu"]["client_us_per_op"],
                "resident_mib": running.resident_bytes() / (1 << 20),
                "ready_ms": running.ready_ms or 0.0}

    def fio(self, image, job, seconds, window, in_step=False):
        """The same load on the bare file: what the machine could do at most."""
        step = [f"--iodepth_batch_submit={job.qd}", f"--iodepth_batch_complete_min={job.qd}"]
        done = subprocess.run(
            ["fio", "--name=x", f"--rw={job.rw}", f"--bs={job.bs}", f"--iodepth={job.qd}",
             f"--filename={image.path}", f"--size={window}", f"--runtime={round(seconds * 1e3)}ms",
             "--time_based", "--ioengine=io_uring", "--direct=1", "--norandommap",
             "--randrepeat=0", "--allow_file_create=0",
             "--output-format=json", *(step if in_step else [])],
            stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        told = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
        side = told["write" if "write" in job.rw else "read"]
        spot = side["clat_ns"].get("percentile", {})
        return {"iops": side["iops"], "mib_s": side["bw_bytes"] / (1 << 20),
                "p50_us": spot.get("50.000000", 0) / 1e3, "p99_us": spot.get("99.000000", 0) / 1e3,
                "server_us": 0.0, "client_us": 0.0, "resident_mib": 0.0,
                "ready_ms": 0.0}

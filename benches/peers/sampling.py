"""Where the processor time of a server goes while it is loaded, as `perf` samples it."""

import os
import shutil
import subprocess

SAMPLES_PER_S = 4000
# Symbols that take less than so many percent are not told.
LEAST = 2.0


def is_possible():
    return shutil.which("perf") is not None


class Profile:
    """Samples one process. Ends by itself."""

    def __init__(self, folder, pid, seconds):
        self.path = os.path.join(folder, "perf.data")
        self.perf = subprocess.Popen(
            ["perf", "record", "-q", "-F", str(SAMPLES_PER_S), "-p", str(pid), "-o", self.path,
             "--", "sleep", str(seconds)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def told(self, server_us):
        """Who takes how many us per request, the most first, and the kernel's part."""
        if self.perf.wait() != 0:
            raise RuntimeError("perf cannot sample here")
        kernel = sum(percent for percent, mode, _ in self.lines(0.0)
                     if mode == "k")
        symbols = [[symbol, round(percent * server_us / 100, 2)]
                   for percent, _, symbol in self.lines(LEAST)]
        return {"server_us": server_us, "kernel_percent": round(kernel), "symbols": symbols}

    def lines(self, least):
        report = subprocess.run(
            ["perf", "report", "-i", self.path, "--stdio", "--no-children", "-g", "none",
             "--sort", "dso,symbol", "--percent-limit", str(least)], stdin=subprocess.DEVNULL, capture_output=True,
            text=True)
        for line in report.stdout.splitlines():
            cells = line.split(maxsplit=3)
            # "12.34%  [kernel.kallsyms]  [k] _copy_from_iter"
            if len(cells) == 4 and cells[0].endswith("%") and cells[2] in ("[k]", "[.]"):
                yield float(cells[0][:-1]), cells[2].strip("[]"), cells[3].split("  ")[0]


def line_of(label, profile):
    """A profile in a line of the report."""
    symbols = ", ".join(f"`{symbol}` {us:.2f}" for symbol, us in profile["symbols"])
    return (f"{label}, {profile['server_us']:.2f} us per request, {profile['kernel_percent']} % in "
            f"the kernel: {symbols}")

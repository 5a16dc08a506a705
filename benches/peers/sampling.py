"""Where the processor time goes while a server or a mount is loaded, as `perf` samples it."""

import os
import shutil
import subprocess

SAMPLES_PER_S = 4000
# Symbols that take less than so many percent are not told.
LEAST = 2.0


def is_possible():
    return shutil.which("perf") is not None


class Profile:
    """Samples whom these options of perf name, from `after_s` on. Ends by itself, and with the
    block that it is for."""

    def __init__(self, folder, whom, seconds, after_s=0):
        self.path = os.path.join(folder, "perf.data")
        # It takes no delay of 0.
        late = ["-D", str(round(after_s * 1e3))] if after_s else []
        self.perf = subprocess.Popen(
            ["perf", "record", "-q", "-F", str(SAMPLES_PER_S), *late, *whom, "-o", self.path,
             "--", "sleep", str(after_s + seconds)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.perf.poll() is None:
            self.perf.terminate()
            self.perf.wait()

    def wait(self):
        if self.perf.wait() != 0:
            raise RuntimeError("perf cannot sample here")

    def told(self, server_us):
        """Who takes how many us per request, the most first, and the kernel's part."""
        self.wait()
        kernel = sum(percent for percent, mode, _ in self.lines(0.0)
                     if mode == "k")
        symbols = [[symbol, round(percent * server_us / 100, 2)]
                   for percent, _, symbol in self.lines(LEAST)]
        return {"server_us": server_us, "kernel_percent": round(kernel), "symbols": symbols}

    def lines(self, least):
        report = subprocess.run(
            ["perf", "report", "-i", self.path, "--stdio", "--no-children", "-g", "none",
             "--sort", "dso,symbol", "--percent-limit", str(least)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True)
        for line in report.stdout.splitlines():
            cells = line.split(maxsplit=3)
            # "12.34%  [kernel.kallsyms]  [k] _copy_from_iter"
            if len(cells) == 4 and cells[0].endswith("%") and cells[2] in ("[k]", "[.]"):
                yield float(cells[0][:-1]), cells[2].strip("[]"), cells[3].split("  ")[0]


def lines_of(label, profile):
    """A profile in lines of the report: one, or where all processes were sampled, one of their
    shares and one for each that is told."""
    if "processes" not in profile:
        return [line_of(label, profile["server_us"], profile)]
    shares = ", ".join(f"{name} {percent} %" for name, percent in profile["shares"])
    lines = [f"{label}, {profile['us']:.2f} us of all processors per request: {shares}"]
    return lines + [line_of(f"{label}, {process['name']}", process["us"], process)
                    for process in profile["processes"]]


def line_of(label, us, profile):
    symbols = ", ".join(f"`{symbol}` {part:.2f}" for symbol, part in profile["symbols"])
    layers = ", ".join(f"{layer} {part:.2f}" for layer, part in profile.get("layers", ()))
    return (f"{label}, {us:.2f} us per request, {profile['kernel_percent']} % in the kernel"
            + (f" ({layers})" if layers else "") + f": {symbols}")

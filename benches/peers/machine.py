"""What a report says of the machine and the moment: whoever reads figures must know both."""

import os
import platform
import shutil
import signal
import subprocess
import sys

# What keeps files in memory: O_DIRECT there is a copy between two places of it.
IN_MEMORY = ("tmpfs", "ramfs")
TOOLS = {"fio": ["fio", "--version"], "qemu-img": ["qemu-img", "--version"],
         "nbdfuse": ["nbdfuse", "--version"], "vhdimount": ["vhdimount", "-V"],
         "nbdcopy": ["nbdcopy", "--version"], "strace": ["strace", "--version"]}


def file_system(path):
    """The type of the file system that has this path; stat(1) calls all of ext2 to ext4 one."""
    for words in (["findmnt", "-n", "-o", "FSTYPE", "-T"], ["stat", "-f", "-c", "%T"]):
        if shutil.which(words[0]):
            done = subprocess.run([*words, path], capture_output=True, text=True)
            # Of mounts over each other the last is the one that is seen.
            if done.stdout.strip():
                return done.stdout.split()[-1]
    return "unknown"


def disk_folder(wanted):
    """A directory on a file system with a device, if there is one: this one, or a usual one."""
    usual = [os.environ.get("TMPDIR"), "target", "/var/tmp", "."]
    places = [wanted] if wanted else [place for place in usual if place and os.path.isdir(place)]
    for place in places:
        if file_system(place) not in IN_MEMORY:
            return place
    return places[0]


def not_on_a_device(path):
    """Why O_DIRECT cannot be judged on files there, if it cannot."""
    kind = file_system(path)
    if kind in IN_MEMORY:
        return (f"not judged: the images lie in {kind}, which keeps files in memory and takes "
                "O_DIRECT without a device; name a directory on a disk with --disk-dir")
    return None


def end_well():
    """Whoever ends this program ends what it started, once."""
    words = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

    def end(_word, _frame):
        for word in words:
            signal.signal(word, signal.SIG_IGN)
        sys.exit(1)

    for word in words:
        signal.signal(word, end)


def first_line(path, start):
    try:
        with open(path) as file:
            for line in file:
                if line.startswith(start):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return "unknown"


def load_average():
    """Of the last minute, and of the last five."""
    return [round(value, 2) for value in os.getloadavg()[:2]]


def version(words):
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0] if lines else "unknown"


def idle_poll_us():
    """For how long an idle processor of a virtual machine looks for work before it halts; None
    where nothing tells."""
    try:
        with open("/sys/module/haltpoll/parameters/guest_halt_poll_ns") as file:
            return int(file.read()) / 1000
    except (OSError, ValueError):
        return None


def describe():
    memory = int(first_line("/proc/meminfo", "MemTotal").split()[0]) >> 20
    tools = {name: version(words) for name, words in TOOLS.items() if shutil.which(name)}
    hypervisor = "hypervisor" in first_line("/proc/cpuinfo", "flags").split()
    return {"system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "processor": first_line("/proc/cpuinfo", "model name"),
            "processors": os.cpu_count(), "memory_gib": memory, "virtual": hypervisor,
            "idle_poll_us": idle_poll_us(),
            "python": platform.python_version(), "tools": tools}


def told(machine):
    """The same in a sentence."""
    kind = " in a virtual machine" if machine["virtual"] else ""
    if machine["idle_poll_us"] is not None:
        kind += f" (an idle one halts after {machine['idle_poll_us']:g} us)"
    tools = ", ".join([f"Python {machine['python']}", *machine["tools"].values()])
    return (f"{machine['processors']} processors ({machine['processor']}){kind}, "
            f"{machine['memory_gib']} GiB of memory, {machine['system']}; {tools}")

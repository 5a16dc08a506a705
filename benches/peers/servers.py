"""The servers that are compared: how each is started, and what its processes cost."""

import os
import shutil
import signal
import subprocess
import time

from machine import version

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Server:
    """A way to serve an image over NBD on a unix socket.

    `words` is the command line; {image}, {socket}, {folder} and {size} are filled in, and {format}
    by the image's kind in the server's own words (`formats`).
    """

    def __init__(self, name, words, formats, version=None, note="", prepare=None, export=""):
        self.name, self.words, self.formats = name, words, formats
        self.version_words = version or [words[0], "--version"]
        self.note, self.prepare, self.export = note, prepare, export

        # The first line on standard output says "ready".
        self.says_when_ready = name.startswith("orlop")
        # Whether what is written can be read: none may be without it but those that say so.
        self.keeps = True

    def about(self):
        """Cache mode, what a FLUSH does, and whatever else is not the usual."""
        if not self.keeps:
            return self.note
        cached = ["FLUSH makes durable"]
        if "O_DIRECT" not in self.note:
            cached.insert(0, "page cache")
        return ", ".join(cached + ([self.note] if self.note else []))

    def program(self):
        return shutil.which(self.words[0])

    def version(self):
        return version(self.version_words)

    def command(self, image, folder):
        values = {"image": image.path, "socket": os.path.join(folder, "nbd"), "folder": folder,
                  "size": image.disk_bytes, "format": self.formats.get(image.kind, "")}
        words = []
        for word in self.words:
            words += image.all_paths() if word == "{image}" else [word.format(**values)]
        return words

    def serves(self, image):
        return image.kind in self.formats


class Running:
    """A server that runs."""

    def __init__(self, server, image, folder):
        self.server, self.folder = server, folder
        self.socket = os.path.join(folder, "nbd")
        self.uri = f"nbd+unix:///{image.export or server.export}?socket={self.socket}"
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        if server.prepare:
            server.prepare(image, folder)
        self.log = open(os.path.join(folder, "log"), "wb")
        self.pid_file = os.path.join(folder, "pid")
        self.began = time.monotonic()
        # A session of its own, so that everything it starts can be found and ended.
        self.process = subprocess.Popen(
            server.command(image, folder), stdin=subprocess.DEVNULL, stdout=self.log,
            stderr=self.log, start_new_session=True)
        self.session = self.process.pid

    def follow(self):
        """Some go to the background, and say which process that is."""
        try:
            with open(self.pid_file) as file:
                self.session = os.getsid(int(file.read()))
        except (OSError, ValueError):
            pass

    def wait(self, answers):
        self.ready_ms = self.said_so() if self.server.says_when_ready else None
        for _ in range(200):
            if os.path.exists(self.socket) and answers(self.uri):
                self.follow()
                return
            if self.process.poll():
                break
            time.sleep(0.05)
        with open(self.log.name, errors="replace") as log:
            said = log.read().strip().splitlines()[-2:]
        self.stop()
        raise RuntimeError(f"{self.server.name} does not answer: {' / '.join(said)}")

    def said_so(self):
        """Milliseconds until it said that it serves: its own start, and opening its images."""
        while self.process.poll() is None and time.monotonic() - self.began < 20:
            if os.path.getsize(self.log.name):
                return (time.monotonic() - self.began) * 1e3
            time.sleep(0.0005)
        return None

    def processes(self):
        """Its processes: all of its session."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.getsid(int(pid)) == self.session:
                    found.append(int(pid))
            except OSError:
                pass
        return found

    def cpu_s(self):
        """Processor time of all of them, and of those of their children that ended."""
        total = 0
        for pid in self.processes():
            try:
                with open(f"/proc/{pid}/stat") as stat:
                    fields = stat.read().rsplit(")", 1)[1].split()
            except OSError:
                continue
            total += sum(int(field) for field in fields[11:15]) * TICK_S
        return total

    def resident_bytes(self):
        total = 0
        for pid in self.processes():
            try:
                with open(f"/proc/{pid}/status") as status:
                    for line in status:
                        if line.startswith("VmRSS:"):
                            total += int(line.split()[1]) << 10
            except OSError:
                pass
        return total

    def stop(self):
        self.follow()
        # The server first; what it left behind afterwards.
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            pass
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        self.process.wait()
        self.log.close()
        if os.path.exists(self.socket):
            os.unlink(self.socket)


def nbd_server_config(image, folder):
    with open(os.path.join(folder, "config"), "w") as file:
        file.write(f"[generic]\nunixsock = {folder}/nbd\n[export]\nexportname = {image.path}\n"
                   "flush = true\nfua = true\ntrim = true\n")


def all_servers(orlop):
    qsd = ["qemu-storage-daemon", "--blockdev",
           "file,node-name=f,filename={image},aio=io_uring", "--blockdev",
           "{format},node-name=n,file=f", "--nbd-server", "addr.type=unix,addr.path={socket}",
           "--export", "nbd,id=e,node-name=n,name=,writable=on"]
    both = {"raw": "raw", "vhd": "vpc"}
    null = Server("orlop null", [orlop, "serve", "null:{size}", "--socket", "{socket}"],
                  {"raw": "raw"}, note="keeps nothing")
    null_2 = Server("orlop null 2 threads", null.words + ["--threads", "2"], {"raw": "raw"},
                    note="keeps nothing")
    null.keeps = null_2.keeps = False
    servers = [
        Server("orlop", [orlop, "serve", "{image}", "--socket", "{socket}"],
               {"raw": "raw", "vhd": "vhd", "chain": "vhd", "many": "vhd"}),
        null,
        null_2,
        Server("orlop direct",
               [orlop, "serve", "{image}", "--socket", "{socket}", "--cache", "none"],
               {"raw": "raw", "vhd": "vhd"}, note="O_DIRECT"),
        Server("orlop direct 2 threads",
               [orlop, "serve", "{image}", "--socket", "{socket}", "--cache", "none",
                "--read-only", "--threads", "2"], {"raw": "raw", "vhd": "vhd"},
               note="O_DIRECT, read-only"),
        Server("orlop 2 threads",
               [orlop, "serve", "{image}", "--socket", "{socket}", "--read-only", "--threads",
                "2"], {"raw": "raw", "vhd": "vhd"}, note="page cache, read-only"),
        Server("nbdkit", ["nbdkit", "-f", "-U", "{socket}", "file", "{image}"], {"raw": "raw"}),
        Server("qemu-nbd", ["qemu-nbd", "-t", "-e", "64", "-f", "{format}", "-k", "{socket}",
                            "{image}"], both, note="aio=threads, its default"),
        Server("qemu-nbd io_uring",
               ["qemu-nbd", "-t", "-e", "64", "--aio=io_uring", "-f", "{format}", "-k",
                "{socket}", "{image}"], both),
        Server("qemu-nbd direct",
               ["qemu-nbd", "-t", "-e", "64", "--cache=none", "--aio=native", "-f", "{format}",
                "-k", "{socket}", "{image}"], both, note="O_DIRECT"),
        Server("qemu-storage-daemon", qsd, both, note="aio=io_uring"),
        Server("nbd-server", ["nbd-server", "-p", "{folder}/pid", "-C", "{folder}/config"],
               {"raw": "raw"},
               version=["nbd-server", "-V"], prepare=nbd_server_config, export="export"),
    ]
    return {server.name: server for server in servers}

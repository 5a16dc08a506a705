"""An image mounted by a process of its own, for scripts that write its files."""

import ctypes
import os
import signal
import subprocess
import time

DIE_WITH_PARENT = 1
PATIENCE_S = 60

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16


def fallocate(fd, mode, offset, length):
    """The system call, which Python does not have with its modes."""
    if libc.fallocate(fd, mode, offset, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Mount:
    """`orlop mount --foreground`, and what becomes of it."""

    def __init__(self, orlop, image, place, *options):
        self.place, self.disk = place, os.path.join(place, "disk")
        # If the test is killed, the server must not go on.
        self.process = subprocess.Popen(
            [orlop, "mount", image, place, "--foreground", *options],
            env={**os.environ, "ORLOP_LOG": "warn"}, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            preexec_fn=lambda: libc.prctl(DIE_WITH_PARENT, signal.SIGTERM))
        for _ in range(PATIENCE_S * 100):
            if os.path.exists(self.disk):
                return
            assert self.process.poll() is None, "the mount did not start"
            time.sleep(0.01)
        raise AssertionError("the mount did not come")

    def kill(self):
        """The end without a word; the mount stays behind, and is dead."""
        self.process.kill()
        self.process.wait()

    def close(self):
        """The end as asked for."""
        self.process.terminate()
        assert self.process.wait(PATIENCE_S) == 0, "the mount did not end well"


def clear(orlop, place):
    """Takes away what is left at a place, if anything is."""
    subprocess.run([orlop, "umount", place], stdin=subprocess.DEVNULL, check=False,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if os.path.ismount(place):
        subprocess.run(["umount", "-l", place], check=False)

"""A client of one connection that asks one thing at a time; a program would start later."""

import socket
import struct
import time

OPTION_MAGIC = 0x49484156454F5054
NBD_MAGIC = 0x4E42444D41474943
EXPORT_NAME, READ, DISCONNECT = 1, 0, 2
REQUEST_MAGIC, REPLY_MAGIC = 0x25609513, 0x67446698
# Fixed newstyle, and no zeroes after the size.
FLAGS = 3


class Client:
    """Connects when somebody listens, for as many seconds as `patience`."""

    def __init__(self, path, export="", patience=20.0):
        self.end = time.monotonic() + patience
        self.socket = self.connect(path)
        self.socket.settimeout(patience)
        magic, option_magic, _ = struct.unpack(">QQH", self.take(18))
        if (magic, option_magic) != (NBD_MAGIC, OPTION_MAGIC):
            raise RuntimeError("what listens there does not speak NBD's newstyle")
        name = export.encode()
        asked = struct.pack(">IQII", FLAGS, OPTION_MAGIC, EXPORT_NAME, len(name))
        self.socket.sendall(asked + name)
        self.bytes, _ = struct.unpack(">QH", self.take(10))

    def connect(self, path):
        while True:
            one = socket.socket(socket.AF_UNIX)
            try:
                one.connect(path)
                return one
            except OSError as error:
                one.close()
                if time.monotonic() > self.end:
                    raise RuntimeError(f"nobody listens: {error}") from error
            time.sleep(0.0005)

    def take(self, count):
        pieces = b""
        while len(pieces) < count:
            piece = self.socket.recv(count - len(pieces))
            if not piece:
                raise RuntimeError("the server ended the connection")
            pieces += piece
        return pieces

    def read(self, at, count=4096):
        """Seconds from the request to its last byte."""
        began = time.monotonic()
        self.socket.sendall(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, READ, 7, at, count))
        magic, error, _ = struct.unpack(">IIQ", self.take(16))
        if magic != REPLY_MAGIC or error:
            raise RuntimeError(f"a read at {at} fails with {error}")
        self.take(count)
        return time.monotonic() - began

    def close(self):
        try:
            self.socket.sendall(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, DISCONNECT, 8, 0, 0))
        except OSError:
            pass
        self.socket.close()

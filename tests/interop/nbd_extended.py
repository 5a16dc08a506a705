#!/usr/bin/env python3
"""Speaks extended headers over a raw socket, from the protocol's text and from no library.

Expects a disk of at least 8 GiB that reads as zeroes, on a unix socket. Checks every frame it gets:
magic, cookie, offset, the one kind of status chunk, one chunk per context and DONE on the last.
"""

import socket
import struct
import sys

READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = (1 << bit for bit in range(6))
NAMES = [b"base:allocation", b"qemu:allocation-depth", b"qemu:dirty-bitmap:leaf"]
EINVAL, ENOSPC, EOVERFLOW = 22, 28, 75
GIB = 1 << 30


class Client:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.socket.settimeout(30)
        self.cookie = 0
        assert self.take(16) == b"NBDMAGICIHAVEOPT"
        self.take(2)
        self.socket.sendall(struct.pack(">I", 3))

    def take(self, count):
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            assert piece, "the server hung up"
            data += piece
        return data

    def option(self, number, data=b""):
        self.socket.sendall(b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data)
        replies = []
        while True:
            magic, option, kind, length = struct.unpack(">QIII", self.take(20))
            assert (magic, option) == (0x3E889045565A9, number)
            replies.append((kind, self.take(length)))
            if kind == 1 or kind >> 31:
                return replies

    def contexts(self, number, queries):
        data = struct.pack(">II", 0, len(queries))
        for query in queries:
            data += struct.pack(">I", len(query)) + query
        replies = self.option(number, data)
        assert replies[-1][0] == 1, replies
        return {name[4:]: struct.unpack(">I", name[:4])[0] for _, name in replies[:-1]}

    def go(self):
        replies = self.option(7, struct.pack(">IH", 0, 0))
        assert replies[-1][0] == 1, replies
        _, self.size, flags = struct.unpack(">HQH", replies[0][1])
        assert flags & 1 << 12, "the status filter is offered"

    def send(self, command, offset, length, flags=0, payload=b""):
        self.cookie += 1
        header = struct.pack(">IHHQQQ", 0x21E41C71, flags, command, self.cookie, offset, length)
        self.socket.sendall(header + payload)

    def chunks(self, offset):
        found = []
        while True:
            head = struct.unpack(">IHHQQQ", self.take(32))
            assert head[0] == 0x6E8A278C and head[3] == self.cookie and head[4] == offset, head
            found.append((head[2], self.take(head[5])))
            if head[1] & 1:
                return found

    def ask(self, command, offset, length, flags=0, payload=b""):
        self.send(command, offset, length, flags, payload)
        return self.chunks(offset)

    def done(self, *arguments):
        found = self.ask(*arguments)
        assert found == [(0, b"")], found

    def refused(self, error, *arguments):
        [(kind, data)] = self.ask(*arguments)
        code, text = struct.unpack(">IH", data[:6])
        assert kind >> 15 and code == error and text > 0, (kind, data, arguments)

    def status(self, offset, length, flags=0, ids=None):
        if ids is None:
            found = self.ask(BLOCK_STATUS, offset, length, flags)
        else:
            payload = struct.pack(">Q", length) + b"".join(struct.pack(">I", n) for n in ids)
            found = self.ask(BLOCK_STATUS, offset, len(payload), flags | PAYLOAD_LEN, payload)
        told = {}
        for kind, data in found:
            context, count = struct.unpack(">II", data[:8])
            assert kind == 6 and context not in told and len(data) == 8 + 16 * count
            words = struct.unpack(f">{2 * count}Q", data[8:])
            told[context] = list(zip(words[::2], words[1::2]))
        return told


def negotiate(path):
    client = Client(path)
    assert client.option(11, b"x")[0][0] == 0x80000003, "data is invalid"
    assert client.option(11) == [(1, b"")]
    assert client.option(8)[0][0] == 0x8000000A, "no way back to structured replies"
    assert list(client.contexts(9, [])) == NAMES
    assert list(client.contexts(9, [b"qemu:"])) == NAMES[1:]
    assert list(client.contexts(9, [b"qemu:dirty-bitmap:"])) == NAMES[2:]
    assert client.contexts(10, [b"qemu:"]) == {}
    ids = client.contexts(10, NAMES[::-1])
    assert sorted(ids) == NAMES and len(set(ids.values())) == 3
    client.go()
    return client, [ids[name] for name in NAMES]


def main(path):
    client, (base, depth, leaf) = negotiate(path)
    size, far = client.size, 6 * GIB
    # The whole disk in one question, one chunk each, and no extent cut at 32 bits.
    hole = {base: [(size, 3)], depth: [(size, 0)], leaf: [(size, 0)]}
    assert client.status(0, size) == hole
    client.done(WRITE, far, 4096, PAYLOAD_LEN | FUA, b"x" * 4096)
    client.done(WRITE, far + 4096, 4096, 0, b"y" * 4096)
    rest = size - far - 8192
    expected = {
        base: [(far, 3), (8192, 0), (rest, 3)],
        depth: [(far, 0), (8192, 1), (rest, 0)],
        leaf: [(far, 0), (8192, 1), (rest, 0)],
    }
    assert client.status(0, size) == expected, client.status(0, size)
    # A filter chooses, in whatever order it names them.
    for ids in ([base], [depth], [leaf], [leaf, base], [depth, leaf, base]):
        told = client.status(0, size, 0, ids)
        assert told == {context: expected[context] for context in ids}, told
    assert client.status(far, 4096, REQ_ONE, [leaf]) == {leaf: [(4096, 1)]}
    for ids in ([], [77], [base, base], [0]):
        payload = struct.pack(">Q", size) + b"".join(struct.pack(">I", n) for n in ids)
        client.refused(EINVAL, BLOCK_STATUS, 0, len(payload), PAYLOAD_LEN, payload)
    # A payload where none belongs is skipped.
    client.refused(EINVAL, TRIM, 0, 5000, PAYLOAD_LEN, bytes(5000))
    client.refused(EINVAL, READ, 0, 64 << 20 | 1)
    client.refused(EOVERFLOW, READ, 0, 1 << 40, DF)
    client.refused(ENOSPC, WRITE_ZEROES, 0, size + 1)
    client.refused(EINVAL, TRIM, 1, (1 << 64) - 1)
    # Commands without payload reach over the whole disk.
    client.done(CACHE, 0, size)
    found = client.ask(READ, far - 1, 8192)
    text = bytearray(8192)
    for kind, data in found:
        at = struct.unpack(">Q", data[:8])[0] - far + 1
        if kind == 1:
            text[at:at + len(data) - 8] = data[8:]
    assert text == b"\0" + b"x" * 4096 + b"y" * 4095
    for command in (WRITE_ZEROES, TRIM):
        client.done(WRITE, far, 4096, PAYLOAD_LEN, b"z" * 4096)
        client.done(command, 0, size)
        [(kind, data)] = client.ask(READ, far, 4096)
        assert kind == 2 or data[8:] == bytes(4096), (command, kind)
    client.done(FLUSH, 0, 0)
    client.send(DISC, 0, 0)
    assert client.socket.recv(1) == b""
    # A payload nobody would carry ends the connection.
    client, _ = negotiate(path)
    client.send(READ, 0, 1 << 33, PAYLOAD_LEN)
    assert client.socket.recv(1) == b""
    # So does EXPORT_NAME, which extended headers forbid.
    client = Client(path)
    client.option(11)
    client.socket.sendall(b"IHAVEOPT" + struct.pack(">II", 1, 0))
    assert client.socket.recv(1) == b""


if __name__ == "__main__":
    main(sys.argv[1])

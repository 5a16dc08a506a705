#!/usr/bin/env python3
"""Negotiates through libnbd in every order it knows, and through a raw socket where it is too kind.

Usage: nbd_negotiation.py URI EXPORT. The server has one export of this name on a unix socket, of
at least 32 MiB, and it reads as zeroes where nothing was written.
"""

import errno
import socket
import struct
import sys
import urllib.parse

import nbd

MIB = 1 << 20
CONTEXTS = ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:leaf"]


def fails(call, *arguments):
    try:
        call(*arguments)
    except nbd.Error as error:
        return error
    raise AssertionError("%s%r succeeded" % (call.__name__, arguments))


def asked(uri, name, structured=True):
    """A connection that stays in negotiation."""
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.set_request_structured_replies(structured)
    handle.connect_uri(uri)
    handle.set_export_name(name)
    return handle


def options_in_any_order(uri, name):
    """Lists, questions, refusals and failed attempts do not spoil what comes after them."""
    handle = asked(uri, name)
    assert handle.get_protocol() == "newstyle-fixed"
    for _ in range(3):
        names = []
        assert handle.opt_list(lambda found, _: names.append(found)) == 1
        assert names == [name], names
    handle.opt_info()
    size = handle.get_size()
    for wrong in ("no such export", name + "x", name[:-1], "\u00e9" * 100, "x" * 4096):
        handle.set_export_name(wrong)
        fails(handle.opt_info)
        fails(handle.opt_go)
    handle.set_export_name(name)
    handle.set_full_info(True)
    handle.opt_info()
    assert handle.get_size() == size and handle.get_canonical_export_name() == name
    handle.opt_go()
    assert handle.get_size() == size
    handle.pread(512, 0)
    # Options are over.
    fails(handle.opt_list, lambda *_: None)
    handle.shutdown()


def contexts_by_query(uri, name):
    """LIST_META_CONTEXT answers each way to ask, and asking is not choosing."""
    handle = asked(uri, name)

    def listed(*queries):
        handle.clear_meta_contexts()
        for query in queries:
            handle.add_meta_context(query)
        found = []
        handle.opt_list_meta_context(found.append)
        return sorted(found)

    assert listed() == CONTEXTS
    assert listed("base:") == CONTEXTS[:1]
    assert listed("qemu:") == CONTEXTS[1:]
    assert listed("qemu:dirty-bitmap:") == CONTEXTS[2:]
    assert listed("qemu:dirty-bitmap:none", "x-strange:", "base:none") == []
    assert listed(*CONTEXTS) == CONTEXTS
    handle.clear_meta_contexts()
    handle.add_meta_context(CONTEXTS[1])
    handle.add_meta_context("x-strange:thing")
    handle.opt_go()
    chosen = [context for context in CONTEXTS if handle.can_meta_context(context)]
    assert chosen == CONTEXTS[1:2], chosen
    assert not handle.can_meta_context("x-strange:thing")
    handle.shutdown()


def without_structured_replies(uri, name):
    """Simple replies: no contexts, no DF, the same bytes, errors as before."""
    handle = asked(uri, name, structured=False)
    handle.add_meta_context(CONTEXTS[0])
    handle.opt_go()
    assert not handle.get_structured_replies_negotiated()
    assert not handle.can_meta_context(CONTEXTS[0]) and not handle.can_df()
    handle.set_strict_mode(0)
    handle.pwrite(b"simple" * 1000, 12345)
    assert handle.pread(6000, 12345) == b"simple" * 1000
    assert fails(handle.pread, 4096, handle.get_size()).errnum == errno.EINVAL
    error = fails(handle.block_status, 4096, 0, lambda *_: 0)
    assert error.errnum == errno.EINVAL, error.string
    assert fails(handle.pread_structured, 4096, 0, lambda *_: 0, nbd.CMD_FLAG_DF).errnum == \
        errno.EINVAL
    assert handle.pread(6000, 12345) == b"simple" * 1000
    handle.zero(6000, 12345)
    handle.shutdown()


def malformed(uri, name):
    """What libnbd would refuse by itself reaches the server, which refuses it and goes on."""
    handle = asked(uri, name)
    handle.set_strict_mode(0)
    handle.add_meta_context(CONTEXTS[0])
    handle.opt_go()
    size = handle.get_size()
    handle.pwrite(b"stays", 5000)
    for bit in range(5, 16):
        flag = 1 << bit
        for call, arguments in (
                (handle.pread, (512, 0)), (handle.pwrite, (b"x" * 512, 5000)),
                (handle.trim, (512, 5000)), (handle.zero, (512, 5000)),
                (handle.cache, (512, 0)), (handle.flush, ()),
                (handle.block_status, (512, 0, lambda *_: 0))):
            error = fails(call, *arguments, flag)
            assert error.errnum == errno.EINVAL, (call.__name__, flag, error.string)
    for call, flag in ((handle.zero, nbd.CMD_FLAG_DF), (handle.zero, nbd.CMD_FLAG_REQ_ONE),
                       (handle.trim, nbd.CMD_FLAG_NO_HOLE), (handle.cache, nbd.CMD_FLAG_DF)):
        assert fails(call, 512, 5000, flag).errnum == errno.EINVAL, (call.__name__, flag)
    for past, wanted in ((handle.pread, errno.EINVAL), (handle.trim, errno.EINVAL),
                         (handle.cache, errno.EINVAL), (handle.zero, errno.ENOSPC)):
        for count, offset in ((1, size), (2, size - 1), (1 << 20, size - 512),
                              (512, (1 << 63) - 512)):
            error = fails(past, count, offset)
            assert error.errnum == wanted, (past.__name__, count, offset, error.string)
    assert handle.pread(5, 5000) == b"stays"
    # FUA is welcome on every command once it was offered.
    handle.trim(4096, MIB, nbd.CMD_FLAG_FUA)
    handle.zero(4096, MIB, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE)
    handle.pread(4096, MIB, nbd.CMD_FLAG_FUA)
    # Nothing hangs on a request of no bytes: success or a clean error.
    for call in (handle.trim, handle.zero, handle.cache):
        try:
            call(0, 0)
        except nbd.Error as error:
            assert error.errnum == errno.EINVAL, error.string
    handle.zero(4096, 4096)
    handle.shutdown()


def fast_zero(uri, name):
    """Fast zeroes are zeroes, or refused at once with nothing changed."""
    handle = asked(uri, name)
    handle.opt_go()
    if not handle.can_fast_zero():
        handle.set_strict_mode(0)
        error = fails(handle.zero, 4096, 0, nbd.CMD_FLAG_FAST_ZERO)
        assert error.errnum == errno.EINVAL, error.string
        handle.shutdown()
        return
    for count, offset, more in ((MIB, 0, 0), (700, 5, 0), (8 * MIB, 0, nbd.CMD_FLAG_NO_HOLE)):
        handle.pwrite(b"\x77" * MIB, 0)
        try:
            handle.zero(count, offset, nbd.CMD_FLAG_FAST_ZERO | more)
            zeroed = min(offset + count, MIB)
        except nbd.Error as error:
            assert error.errnum == errno.ENOTSUP, error.string
            zeroed = offset
        wanted = b"\x77" * offset + bytes(zeroed - offset) + b"\x77" * (MIB - zeroed)
        assert handle.pread(MIB, 0) == wanted, (count, offset, more)
    handle.zero(8 * MIB, 0)
    handle.shutdown()


class Raw:
    """The oldest way in: EXPORT_NAME over a socket, simple replies."""

    def __init__(self, uri, name, flags):
        query = urllib.parse.parse_qs(urllib.parse.urlparse(uri).query)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(query["socket"][0])
        assert self.take(16) == b"NBDMAGICIHAVEOPT"
        assert self.take(2) == b"\0\3"
        name = name.encode()
        self.socket.sendall(struct.pack(">I", flags))
        self.socket.sendall(b"IHAVEOPT" + struct.pack(">II", 1, len(name)) + name)
        self.size, self.flags = struct.unpack(">QH", self.take(10))
        if not flags & 2:
            assert self.take(124) == bytes(124)

    def take(self, count):
        data = bytearray()
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            assert piece, "the server hung up after %d bytes of %d" % (len(data), count)
            data += piece
        return bytes(data)


def request(command, cookie, offset, count, payload=b"", flags=0):
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, count) + payload


def all_in_one_packet(uri, name):
    """Three hundred writes and a farewell in one go: each is answered, then the server hangs up."""
    for flags in (0, 1, 3):
        raw = Raw(uri, name, flags)
        data = [bytes([1 + n % 255]) * (1 + n * 37) for n in range(300)]
        text = b"".join(
            request(1, 1000 + n, n * 65536 % (24 * MIB), len(piece), piece)
            for n, piece in enumerate(data))
        raw.socket.sendall(text + request(2, 1, 0, 0))
        seen = set()
        for _ in data:
            magic, error, cookie = struct.unpack(">IIQ", raw.take(16))
            assert (magic, error) == (0x67446698, 0), (magic, error)
            seen.add(cookie)
        assert seen == set(range(1000, 1300))
        assert raw.socket.recv(1) == b"", "something follows the farewell"
        # A second client finds them.
        raw = Raw(uri, name, 3)
        for n, piece in enumerate(data):
            raw.socket.sendall(request(0, n, n * 65536 % (24 * MIB), len(piece)))
            magic, error, cookie = struct.unpack(">IIQ", raw.take(16))
            assert (magic, error, cookie) == (0x67446698, 0, n)
            assert raw.take(len(piece)) == piece, n
        raw.socket.sendall(request(6, 9, 0, 24 * MIB))
        assert struct.unpack(">IIQ", raw.take(16)) == (0x67446698, 0, 9)
        # No farewell this time.
        raw.socket.close()


def byte_by_byte(uri, name):
    """A client may be as slow as one byte a packet, from the greeting to the last payload."""
    raw = Raw(uri, name, 3)
    raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    for byte in request(1, 7, 100, 50, b"slow!" * 10) + request(0, 8, 100, 50):
        raw.socket.sendall(bytes([byte]))
    assert struct.unpack(">IIQ", raw.take(16)) == (0x67446698, 0, 7)
    assert struct.unpack(">IIQ", raw.take(16)) == (0x67446698, 0, 8)
    assert raw.take(50) == b"slow!" * 10
    raw.socket.close()


def main():
    uri, name = sys.argv[1:]
    for check in (options_in_any_order, contexts_by_query, without_structured_replies, malformed,
                  fast_zero, all_in_one_packet, byte_by_byte):
        check(uri, name)
        print("%s: fine" % check.__name__)


if __name__ == "__main__":
    main()

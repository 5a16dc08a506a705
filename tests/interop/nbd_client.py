#!/usr/bin/env python3
"""Speaks NBD to a running server through libnbd and says so on the first answer that is wrong.

Usage: nbd_client.py CHECK URI [URI-OF-A-READ-ONLY-SERVER]. Needs the Python module of libnbd.
"""

import errno
import os
import random
import sys

import nbd

MIB = 1 << 20


def connect(uri, **settings):
    handle = nbd.NBD()
    handle.add_meta_context("base:allocation")
    # The server has to refuse nonsense itself: libnbd must let it through.
    handle.set_strict_mode(0)
    for name, value in settings.items():
        getattr(handle, "set_" + name)(value)
    handle.connect_uri(uri)
    return handle


def expect_errno(wanted, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except nbd.Error as error:
        assert error.errnum == wanted, "%s instead of %s: %s" % (
            errno.errorcode.get(error.errnum), errno.errorcode[wanted], error.string)
        return
    raise AssertionError("%s%r succeeded instead of %s" % (
        call.__name__, args[1:], errno.errorcode[wanted]))


def unaligned(uri):
    """Random requests of any alignment, beside an array of bytes; simple and structured replies."""
    for structured in (True, False):
        handle = connect(uri, request_structured_replies=structured)
        assert handle.get_structured_replies_negotiated() == structured
        size = min(handle.get_size(), 6 * MIB)
        handle.zero(size, 0)
        disk = bytearray(size)
        rng = random.Random(size + structured)
        for step in range(400):
            at = rng.randrange(size)
            length = min(size - at, rng.choice([1, 3, 511, 512, 513, 4096, 70000, 300000]))
            action = rng.randrange(6)
            flags = rng.choice([0, 0, nbd.CMD_FLAG_FUA])
            if action < 3:
                data = rng.randbytes(length)
                handle.pwrite(data, at, flags)
                disk[at:at + length] = data
            elif action == 3:
                hole = rng.choice([0, nbd.CMD_FLAG_NO_HOLE])
                handle.zero(length, at, flags | hole)
                disk[at:at + length] = bytes(length)
            elif action == 4:
                handle.flush()
            found = handle.pread(length, at)
            assert found == disk[at:at + length], "step %d: %d+%d" % (step, at, length)
        for at in range(0, size, MIB):
            length = min(MIB, size - at)
            assert handle.pread(length, at) == disk[at:at + length]
        handle.shutdown()


def chunks(uri):
    """Structured reads: chunks cover the request once, holes read as zeroes, DF gives one chunk."""
    handle = connect(uri)
    size = handle.get_size()
    handle.trim(min(size, 8 * MIB), 0)
    handle.zero(8 * MIB, 0)
    handle.pwrite(b"\x5a" * 4096, 3 * MIB)
    handle.pwrite(b"\xa5" * 512, 5 * MIB + 512)
    for flags in (0, nbd.CMD_FLAG_DF):
        seen = []

        def chunk(data, offset, status, _error, seen=seen):
            if status == nbd.READ_HOLE:
                assert bytes(data) == bytes(len(data))
            seen.append((offset, len(data), status))

        found = handle.pread_structured(8 * MIB, 0, chunk, flags)
        wanted = bytearray(8 * MIB)
        wanted[3 * MIB:3 * MIB + 4096] = b"\x5a" * 4096
        wanted[5 * MIB + 512:5 * MIB + 1024] = b"\xa5" * 512
        assert found == wanted
        end = 0
        for offset, length, _ in sorted(seen):
            assert offset == end, "chunks overlap or leave a gap: %r" % seen
            end += length
        assert end == 8 * MIB
        if flags:
            assert len(seen) == 1, "DF, and yet %d chunks" % len(seen)
    handle.shutdown()


def refusals(uri, read_only):
    """Each nonsense gets its own error, and the connection goes on."""
    handle = connect(uri)
    size = handle.get_size()
    data = bytes(4096)
    expect_errno(errno.EINVAL, handle.pread, 4096, size)
    expect_errno(errno.EINVAL, handle.pread, 4096, size - 512)
    expect_errno(errno.EINVAL, handle.pread, 4096, (1 << 63) - 1024)
    expect_errno(errno.ENOSPC, handle.pwrite, data, size)
    expect_errno(errno.ENOSPC, handle.pwrite, data, size - 512)
    expect_errno(errno.ENOSPC, handle.zero, 4096, size - 512)
    expect_errno(errno.EINVAL, handle.trim, 4096, size - 512)
    expect_errno(errno.EINVAL, handle.block_status, 4096, size, lambda *_: 0)
    expect_errno(errno.EINVAL, handle.pread, 4096, 0, 1 << 15)
    handle.pwrite(data, 0)
    assert handle.pread(4096, 0) == data
    handle.shutdown()
    if read_only is None:
        return
    handle = connect(read_only)
    assert handle.is_read_only()
    expect_errno(errno.EPERM, handle.pwrite, data, 0)
    expect_errno(errno.EPERM, handle.zero, 4096, 0)
    expect_errno(errno.EPERM, handle.trim, 4096, 0)
    # Out of bounds and forbidden: what is said first does not matter, that it is refused does.
    expect_one_of((errno.EPERM, errno.ENOSPC), handle.pwrite, data, handle.get_size())
    handle.flush()
    handle.pread(4096, 0)
    handle.shutdown()


def expect_one_of(wanted, call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errnum in wanted, error.string
        return
    raise AssertionError("%s succeeded" % call.__name__)


def status(uri):
    """Block status: whole, in order, true to the bytes; REQ_ONE gives one extent."""
    handle = connect(uri)
    size = handle.get_size()
    handle.zero(min(size, 32 * MIB), 0)
    handle.pwrite(os.urandom(MIB), 8 * MIB)
    handle.pwrite(os.urandom(MIB), 12 * MIB)
    at, extents = 0, []
    while at < size:
        got = []

        def extent(context, offset, entries, _error, got=got):
            assert context == "base:allocation"
            got.append((offset, list(entries)))

        handle.block_status(min(size - at, 1 << 30), at, extent)
        assert len(got) == 1 and got[0][0] == at, got
        entries = got[0][1]
        for length, flags in zip(entries[::2], entries[1::2]):
            assert length > 0
            extents.append((at, length, flags))
            at += length
    for start, length, flags in extents:
        for probe in range(start, start + length, max(4096, length // 8)):
            data = handle.pread(min(4096, start + length - probe), probe)
            if flags & nbd.STATE_ZERO:
                assert not any(data), "zero says the status, not the bytes at %d" % probe
    held = sum(length for _, length, flags in extents if not flags & nbd.STATE_HOLE)
    assert held >= 2 * MIB
    for at in (0, 8 * MIB, 8 * MIB + 5, size - 1):
        got = []
        handle.block_status(size - at if size - at < 1 << 32 else 1 << 31, at,
                            lambda _c, _o, entries, _e: got.append(list(entries)),
                            nbd.CMD_FLAG_REQ_ONE)
        assert len(got) == 1 and len(got[0]) == 2 and 0 < got[0][0] <= size - at, got
    handle.shutdown()


def contexts(uri):
    """Several contexts at once: each is told once, in order, and they agree on one map."""
    names = ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:leaf"]
    handle = nbd.NBD()
    for name in names[::-1]:
        handle.add_meta_context(name)
    handle.connect_uri(uri)
    assert all(handle.can_meta_context(name) for name in names)
    handle.pwrite(os.urandom(MIB), 8 * MIB)
    told = {}

    def extent(context, offset, entries, _error):
        assert context not in told and offset == 8 * MIB - 4096
        told[context] = list(zip(entries[::2], entries[1::2]))

    handle.block_status(MIB + 8192, 8 * MIB - 4096, extent)
    assert sorted(told) == names, told

    def at(name, probe):
        for length, flags in told[name]:
            if probe < length:
                return flags
            probe -= length
        raise AssertionError("%s ends early" % name)

    assert [at(name, 4096 + 5000) for name in names] == [0, 1, 1], told
    handle.shutdown()


def connections(uri):
    """MULTI_CONN: after a flush on one connection, what any other had acknowledged is there."""
    handles = [connect(uri) for _ in range(8)]
    assert all(handle.can_multi_conn() for handle in handles)
    rng = random.Random(8)
    for step in range(60):
        writer, flusher, reader = rng.sample(handles, 3)
        data = rng.randbytes(rng.choice([512, 4096, 9000]))
        at = rng.randrange(16 * MIB)
        writer.pwrite(data, at)
        flusher.flush()
        assert reader.pread(len(data), at) == data, step
    for handle in handles:
        handle.shutdown()


def large(uri):
    """Requests of 64 MiB, the most libnbd sends, one by one and several at once."""
    handle = connect(uri)
    assert handle.get_block_size(nbd.SIZE_MAXIMUM) >= 32 * MIB
    length = 64 * MIB
    assert handle.get_size() > length
    data = os.urandom(MIB) * (length // MIB)
    handle.pwrite(data, 512)
    assert handle.pread(length, 512) == data
    handle.zero(length, 512)
    assert handle.pread(length, 512) == bytes(length)
    # Several at once must wait for memory, not fail or hang.
    buffers = [nbd.Buffer.from_bytearray(bytearray(data)) for _ in range(6)]
    cookies = [handle.aio_pwrite(buffer, 512) for buffer in buffers]
    while cookies:
        assert handle.poll(30000) == 1, "no answer within half a minute"
        cookies = [cookie for cookie in cookies if not handle.aio_command_completed(cookie)]
    assert handle.pread(length, 512) == data
    handle.zero(handle.get_size(), 0)
    handle.shutdown()


def pipeline(uri):
    """Hundreds of requests in flight on one connection, answered in any order."""
    handle = connect(uri)
    size = min(handle.get_size(), 16 * MIB)
    rng = random.Random(3)
    slots = list(range(0, size, 65536))
    written = {}
    live = {}
    for at in slots * 2:
        data = rng.randbytes(rng.choice([4096, 65536]))
        while at in live.values() or len(live) >= 200:
            assert handle.poll(30000) == 1
            live = {cookie: spot for cookie, spot in live.items()
                    if not handle.aio_command_completed(cookie)}
        live[handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), at)] = at
        written[at] = data
    while live:
        assert handle.poll(30000) == 1
        live = {cookie: spot for cookie, spot in live.items()
                if not handle.aio_command_completed(cookie)}
    for at, data in written.items():
        assert handle.pread(len(data), at) == data, at
    handle.shutdown()


def fill(uri):
    """Every byte written once and flushed: the image is allocated from here on."""
    handle = connect(uri)
    for at in range(0, handle.get_size(), MIB):
        handle.pwrite(os.urandom(MIB), at)
    handle.flush()
    handle.shutdown()


def trimmed(uri):
    """What was written, trimmed as a whole and flushed is a hole, before and after the flush."""
    handle = connect(uri)
    size, half = handle.get_size(), handle.get_size() // 2

    def map_now():
        found = []
        handle.block_status(
            size, 0, lambda _context, _at, entries, _error: found.extend(entries) or 0)
        # A file's hole may be called a hole or not; that it is zero must be told.
        return [(length, flags & nbd.STATE_ZERO) for length, flags in zip(found[0::2], found[1::2])]

    wanted = [(half, nbd.STATE_ZERO), (size - half, 0)]
    handle.pwrite(b"\x07" * size, 0)
    handle.trim(half, 0)
    assert map_now() == wanted, map_now()
    handle.flush()
    assert map_now() == wanted, map_now()
    assert handle.pread(half, 0) == bytes(half)
    # The space is used again, and what was there before does not come back.
    handle.pwrite(b"\x09" * 4096, 8192)
    handle.flush()
    assert handle.pread(16384, 0) == bytes(8192) + b"\x09" * 4096 + bytes(4096)
    handle.trim(half, 0)
    handle.flush()
    assert map_now() == wanted, map_now()
    handle.shutdown()


def scatter(uri):
    """Five hundred random writes of 4 KiB, and no flush."""
    handle = connect(uri)
    rng = random.Random(500)
    for _ in range(500):
        handle.pwrite(rng.randbytes(4096), rng.randrange(handle.get_size() // 4096) * 4096)
    handle.shutdown()


def flush(uri):
    """One flush."""
    handle = connect(uri)
    handle.flush()
    handle.shutdown()


def options(uri):
    """What is offered before transmission: sizes, flags, the list of exports."""
    handle = connect(uri)
    for flag in ("can_flush", "can_fua", "can_trim", "can_zero", "can_df", "can_multi_conn"):
        assert getattr(handle, flag)(), flag
    assert handle.can_meta_context("base:allocation")
    least = handle.get_block_size(nbd.SIZE_MINIMUM)
    best = handle.get_block_size(nbd.SIZE_PREFERRED)
    most = handle.get_block_size(nbd.SIZE_MAXIMUM)
    assert least == 1 and best in (4096, 65536) and most >= 32 * MIB, (least, best, most)
    handle.shutdown()
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.connect_uri(uri)
    names = []
    handle.opt_list(lambda name, _description: names.append(name))
    assert names == [""], names
    handle.set_export_name("there is none of this name")
    try:
        handle.opt_go()
        raise AssertionError("an export that is not there was given out")
    except nbd.Error:
        pass
    handle.set_export_name("")
    handle.opt_info()
    handle.opt_abort()


CHECKS = {check.__name__: check for check in
          (unaligned, chunks, status, contexts, connections, large, pipeline, fill, trimmed, scatter,
                                        flush, options)}


def main():
    name, uri, *more = sys.argv[1:]
    if name == "refusals":
        refusals(uri, more[0] if more else None)
    else:
        CHECKS[name](uri)
    print("%s: fine" % name)


if __name__ == "__main__":
    main()

# The table of section 5.3 of the security notes: what peers were asked, and what we answer.
EINVAL, ENOSPC = 22, 28


def closed(s):
    """No further answer comes."""
    try:
        told = rest(s)
    except socket.timeout:
        sys.exit('it is left hanging')
    return told


def fine(s):
    s.sendall(request(READ, 77, 0, 512))
    assert reply(s) == (0, 77)
    take(s, 512)


def says(number, data, kind, after=True):
    s = greeted(path)
    told = ask(s, number, data)
    assert told[0] == kind, (number, data[:20], told)
    fine(go(s))


def does(data, error, extra=0):
    s = go(greeted(path))
    s.sendall(data)
    told = reply(s)
    assert told[0] == error, (data[:28], told)
    if not error:
        take(s, extra)
    fine(s)


UNSUP = 0x80000001
s = greeted(path)                                                       # opt len=0xFFFFFFFF
s.sendall(b'IHAVEOPT' + struct.pack('>II', 0x7777, 0xffffffff)); s.shutdown(socket.SHUT_WR)
closed(s)
says(0x7777, b'', UNSUP)                                                # unknown option
says(GO, struct.pack('>I', 4097) + b'x' * 4097 + bytes(2), INVALID)     # name of 4097
says(GO, struct.pack('>I', 100) + bytes(2), INVALID)                    # name longer than option
says(GO, struct.pack('>I', 0xffffffff) + bytes(2), INVALID)
says(GO, named(b'a\0b'), INVALID)                                       # name with NUL
says(GO, bytes(4) + struct.pack('>H', 9), INVALID)                      # count of wishes lies
says(INFO, named(b'nothing'), UNKNOWN)
says(LIST, b'data', INVALID)
says(8, b'data', INVALID)                                               # STRUCTURED_REPLY
assert ask(greeted(path), STARTTLS)[0] in (POLICY, UNSUP)               # no TLS here
context_of_all = struct.pack('>I', 0) + struct.pack('>I', 0)
says(10, context_of_all, INVALID)                                       # before STRUCTURED_REPLY
s = greeted(path); ask(s, 8)
assert ask(s, 10, struct.pack('>II', 0, 0xffffffff))[0] == INVALID      # number of queries lies
go(s)
s = connect(path); hello(s, 0xffffffff); assert closed(s) == b''        # client flags
s = greeted(path); s.sendall(bytes(16)); assert closed(s) == b''        # option magic
s = greeted(path)                                                       # EXPORT_NAME of 4097
s.sendall(option(EXPORT_NAME, b'x' * 4097)); assert closed(s) == b''
s = go(greeted(path)); s.sendall(bytes(28)); assert closed(s) == b''    # request magic
END, ALL = 8 << 20, (1 << 32) - 1
does(request(READ, 1, END, 512), EINVAL)
does(request(READ, 1, (1 << 64) - 1, 512), EINVAL)
s = go(greeted(path)); s.sendall(request(READ, 1, 0, 0))
assert reply(s)[0] in (0, EINVAL); fine(s)                              # unspecified
does(request(READ, 1, 0, ALL), EINVAL)
s = go(greeted(path)); s.sendall(request(WRITE, 1, 0, ALL)); s.shutdown(socket.SHUT_WR)
told = closed(s); assert len(told) in (0, 16), told                     # no data behind it
does(request(WRITE, 1, END, 512) + bytes(512), ENOSPC)
does(request(99, 1, 0, 0), EINVAL)
does(request(READ, 1, 0, 512, 0xff80), EINVAL)
does(request(READ, 1, 0, 512, 1), 0, 512)                               # FUA on READ
does(request(7, 1, 0, 512), EINVAL)                                     # BLOCK_STATUS, no context
s = go(greeted(path)); s.sendall(request(FLUSH, 1, 5, 5))
assert reply(s)[0] in (0, EINVAL); fine(s)
does(request(READ, 1, 1, 1), 0, 1)                                      # unaligned
does(request(4, 1, END, 512), EINVAL)                                   # TRIM
does(request(6, 1, 0, ALL), ENOSPC)                                     # WRITE_ZEROES
s = go(greeted(path)); s.sendall(request(WRITE, 1, 0, 4096) + bytes(100)); s.close()
s = go(greeted(path)); s.sendall(request(READ, 9, 0, 512) * 2)          # one cookie twice
for _ in range(2): assert reply(s) == (0, 9); take(s, 512)
s = go(greeted(path))                                                   # never reads
s.settimeout(1)
try: s.sendall(b''.join(request(READ, i, 0, 65536) for i in range(1000)))
except socket.timeout: pass
fine(go(greeted(path)))

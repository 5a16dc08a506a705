# Lengths 0, 1, 4096, 4097, 2^31 and 2^32-1 in every length field there is; after each, another
# client is served.
LENGTHS = 0, 1, 4096, 4097, 1 << 31, (1 << 32) - 1
honest = go(greeted(path))
HEAD = lambda number, length: b'IHAVEOPT' + struct.pack('>II', number, length)


def served():
    honest.sendall(request(READ, 1, 0, 512))
    assert reply(honest) == (0, 1)
    take(honest, 512)


def lie(prelude, data):
    """Says it, and hangs up; every other time only once the server had its say."""
    for patient in (False, True):
        s = greeted(path)
        prelude(s)
        try:
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)
            if patient:
                told = rest(s)
                assert len(told) < 1 << 20, len(told)
        except (BrokenPipeError, ConnectionResetError):
            pass
        s.close()
        served()


def structured(s):
    ask(s, 8)


def nothing(s):
    pass


# The length of an option, with as much data as that is, or with little.
for number in list(range(13)) + [4711, (1 << 32) - 1]:
    for length in LENGTHS:
        lie(structured, HEAD(number, length) + bytes(min(length, 5000)))
# Lengths and counts within options.
for length in LENGTHS:
    word = struct.pack('>I', length)
    for number in (INFO, GO):
        body = word + bytes(min(length, 4200)) + b'\0\0'
        lie(nothing, option(number, body))
        lie(nothing, option(number, word + b'\0\0'))
        lie(nothing, option(number, bytes(4) + struct.pack('>H', length & 0xffff)))
        lie(nothing, option(number, word))
    for number in (9, 10):
        lie(structured, option(number, word + bytes(min(length, 4200)) + bytes(4)))
        lie(structured, option(number, word + bytes(4)))
        lie(structured, option(number, bytes(4) + word))
        lie(structured, option(number, bytes(4) + word + struct.pack('>I', 4) + b'base'))
        lie(structured, option(number, bytes(4) + struct.pack('>II', 1, length) + b'base'))
# The length of a request, of every command, compact.
for command in list(range(10)) + [99, 65535]:
    for length in LENGTHS:
        for offset in (0, (1 << 64) - 1, 8 << 20, 1 << 63):
            lie(go, request(command, 5, offset, length) + bytes(min(length, 5000)))
# The same with extended headers, whose lengths have 64 bits.
def extended(s):
    assert ask(s, 11) == (ACK, b'')
    go(s)


for command in list(range(10)) + [99]:
    for length in LENGTHS + ((1 << 63), (1 << 64) - 1):
        for flags in (0, 1 << 5):
            head = struct.pack('>IHHQQQ', 0x21e41c71, flags, command, 5, 0, length)
            lie(extended, head + bytes(min(length, 5000)))

# Connections of libnbd that read one export at once and stay, and do as they are told on standard
# input: what each is to read, and whether it is what a file holds.
import random, sys, threading, time
import nbd

uri, count, wanted = sys.argv[1], int(sys.argv[2]), open(sys.argv[3], "rb").read()
PIECE = 64 << 10


def connection():
    handle = nbd.NBD()
    handle.connect_uri(uri)
    assert handle.get_size() == len(wanted), handle.get_size()
    # The answer comes from the thread that serves the connection, so it has one by then.
    handle.flush()
    return handle


def together(act):
    """Does it with every connection at once; tells what went wrong in words."""
    wrong = []

    def one(handle, number):
        try:
            act(handle, number)
        except Exception as error:
            wrong.append(f"connection {number}: {error!r}")

    threads = [threading.Thread(target=one, args=pair) for pair in zip(handles, range(count))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return "; ".join(wrong) or "right"


def read_all(handle, number):
    pieces = range(0, len(wanted), PIECE)
    # Each begins elsewhere.
    first = len(pieces) * number // count
    for at in [*pieces[first:], *pieces[:first]]:
        length = min(PIECE, len(wanted) - at)
        assert handle.pread(length, at) == wanted[at : at + length], f"piece at {at}"


def read_until_refused(handle, number):
    places = random.Random(number)
    while True:
        at = places.randrange(0, len(wanted) - PIECE)
        try:
            found = handle.pread(PIECE, at)
        except nbd.Error:
            return
        assert found == wanted[at : at + PIECE], f"bytes at {at}"
        if not begun[number].is_set():
            begun[number].set()


handles = [connection() for _ in range(count)]
begun = [threading.Event() for _ in range(count)]
print("connected", flush=True)
for line in sys.stdin:
    if line == "read\n":
        start = time.monotonic()
        print(together(read_all), time.monotonic() - start, flush=True)
    elif line == "read until refused\n":
        ending = []
        reading = threading.Thread(target=lambda: ending.append(together(read_until_refused)))
        reading.start()
        for event in begun:
            assert event.wait(60), "somebody reads nothing"
        print("reading", flush=True)
        reading.join()
        print(ending[0], flush=True)
    else:
        sys.exit(f"what is {line!r}?")

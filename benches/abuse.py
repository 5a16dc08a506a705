#!/usr/bin/env python3
"""What a well-behaved client notices of others' abuse: latency of its 4 KiB random reads, one and
sixteen at a time, over a unix socket, by 'orlop bench'.

In each round every kind of abuse, and none of it twice, gets a fresh server, in an order shuffled
by the seed. The client connects first; then one process misbehaves until the client is done.
Abuse that is work and not just waiting goes at a steady pace: it is to be seen what the server's
part costs others, not what another program does with the processors. Then a new client knocks,
under the same abuse. Printed: medians over the rounds, their ratios to those of 'quiet' ('again' is
quiet too, and tells how much of a ratio is chance), the longest a request took (a client that is
stopped for seconds has fine percentiles: it asks little meanwhile), and the most memory the server
had resident.

    ORLOP=target/release/orlop benches/abuse.py [--rounds N] [--time SECS] [--pace N] [--seed N]

Asserts nothing: it is a measurement. Whether the server stays within its bounds is tested by
tests/abuse.rs and tests/limits.rs.
"""

import argparse
import itertools
import json
import os
import random
import select
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time

MIB = 1 << 20
DISK_BYTES = 64 * MIB
PEERS = 200
DEPTHS = (1, 16)
READ, WRITE = 0, 1
GO = 7
# How long a new client waits to be let in before it counts as kept out.
PATIENCE_S = 60


# The misbehaving side: each kind sets up, and gives what it does at each tick from then on.

def connect(path, timeout=PATIENCE_S):
    peer = socket.socket(socket.AF_UNIX)
    # Where the backlog is full, only a connect that blocks waits for its turn.
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack('ll', timeout, 0))
    peer.connect(path)
    peer.settimeout(timeout)
    return peer


def option(number, data=b'', length=None):
    length = len(data) if length is None else length
    return b'IHAVEOPT' + struct.pack('>II', number, length) + data


def request(command, cookie, offset, length):
    return struct.pack('>IHHQQI', 0x25609513, 0, command, cookie, offset, length)


HELLO = struct.pack('>I', 3)
HANDSHAKE = HELLO + option(GO, bytes(6))


def take(peer, count):
    data = b''
    while len(data) < count:
        piece = peer.recv(count - len(data))
        if not piece:
            raise EOFError('the server closed the connection')
        data += piece
    return data


def admitted(path, timeout=PATIENCE_S):
    """A client in its transmission phase."""
    peer = connect(path, timeout)
    take(peer, 18)
    peer.sendall(HANDSHAKE)
    kind = None
    while kind != 1:
        _, _, kind, length = struct.unpack('>QIII', take(peer, 20))
        take(peer, length)
        assert not kind >> 31, hex(kind)
    return peer


def converse(path, said, leave=False):
    """Says it, and hears the server out unless it leaves at once."""
    with connect(path, 5) as peer:
        try:
            peer.sendall(said)
            if leave:
                return
            peer.shutdown(socket.SHUT_WR)
            while peer.recv(65536):
                pass
        except (ConnectionError, socket.timeout):
            pass  # To be cut short is what such a peer must expect.


def announce(path):
    held = [admitted(path) for _ in range(PEERS)]
    for peer in held:
        peer.sendall(request(WRITE, 1, 0, 64 * MIB) + bytes(1024))
    return lambda: held


def half_open(path):
    """Keeps so many handshakes waiting: one that was ended is begun again."""
    held = []

    def tick():
        ended = select.select(held, [], [], 0)[0] if held else []
        for peer in ended:
            try:
                if peer.recv(4096):
                    continue
            except ConnectionError:
                pass
            held.remove(peer)
            peer.close()
        while len(held) < PEERS:
            peer = socket.socket(socket.AF_UNIX)
            peer.setblocking(False)
            try:
                peer.connect(path)
            except BlockingIOError:
                peer.close()
                return
            held.append(peer)
    tick()
    return tick


def deaf(path):
    """Asks for 64 GiB, and takes nothing."""
    peer = admitted(path)
    peer.setblocking(False)
    asked = b''.join(request(READ, n, n % 64 * MIB, MIB) for n in range(65536))

    def tick():
        nonlocal asked
        try:
            asked = asked[peer.send(asked):]
        except (BlockingIOError, ConnectionError):
            pass
    tick()
    return tick


def options(path):
    many = HELLO + option(0x7777) * 10_000
    return lambda: converse(path, many)


def lengths(path):
    """Every length that is said anywhere, wrong."""
    said = []
    for length in (0, 1, 4096, 4097, 1 << 31, (1 << 32) - 1):
        for number in range(1, 12):
            said.append(HELLO + option(number, bytes(8), length))
        word = struct.pack('>I', length)
        said.append(HELLO + option(GO, word + bytes(2)))
        said.append(HELLO + option(GO, bytes(4) + word[2:]))
        said.append(HELLO + option(8) + option(10, bytes(4) + word))
        said.append(HELLO + option(8) + option(10, bytes(4) + struct.pack('>I', 1) + word))
        for command in range(8):
            said.append(HANDSHAKE + request(command, 1, 0, length))
    turns = itertools.cycle(said)
    return lambda: converse(path, next(turns))


def break_off(path):
    """Comes and goes, one byte further each time."""
    whole = HANDSHAKE + request(WRITE, 1, 0, 512) + bytes(512) + request(READ, 2, 0, 4096)
    turns = itertools.cycle(range(len(whole) + 1))
    return lambda: converse(path, whole[:next(turns)], leave=True)


# What it is, how it starts, and its ticks a second as a share of the pace.
ABUSES = {
    'quiet': ('no abuse', None, 0),
    'again': ('no abuse, once more', None, 0),
    'announce': ('200 announced writes of 64 MiB, 1 KiB of each sent', announce, 0.1),
    'half-open': ('200 handshakes begun and never ended', half_open, 0.2),
    'deaf': ('reads of 1 MiB without end, no reply taken', deaf, 0.1),
    'options': ('10,000 unknown options in a handshake, over and over', options, 0.2),
    'lengths': ('malformed lengths in every field, over and over', lengths, 1),
    'break-off': ('connections that end at every byte, over and over', break_off, 1),
}


def misbehave(kind, path, pace):
    """Does it from the first line on standard input to its end."""
    sys.stdin.readline()
    tick = ABUSES[kind][1](path)
    pause = 1 / (pace * ABUSES[kind][2])
    due = time.monotonic()
    while True:
        # No catching up: what the server made wait is not to come as a burst.
        due = max(due + pause, time.monotonic())
        if select.select([sys.stdin], [], [], max(0, due - time.monotonic()))[0]:
            return
        tick()


# The measuring side.

class Server:
    def __init__(self, orlop, folder):
        self.path = os.path.join(folder, 's')
        image = os.path.join(folder, 'disk.raw')
        self.log = open(os.path.join(folder, 'log'), 'ab')
        command = [orlop, 'serve', image, '--socket', self.path, '--export-connections', '256']
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        self.most = 0
        self.ends = threading.Event()
        self.watch = threading.Thread(target=self.look)
        self.watch.start()

    def wait(self):
        """Until it lets clients in."""
        for _ in range(500):
            try:
                return admitted(self.path, 10).close()
            except (FileNotFoundError, ConnectionRefusedError):
                time.sleep(0.01)
        sys.exit('abuse.py: the server does not listen')

    def look(self):
        while not self.ends.wait(0.1):
            with open(f'/proc/{self.process.pid}/status', encoding='ascii') as status:
                told = [line for line in status if line.startswith('VmRSS')]
            self.most = max([self.most] + [int(line.split()[1]) for line in told])

    def close(self):
        self.ends.set()
        self.watch.join()
        self.process.kill()
        self.process.wait()
        self.log.close()
        if os.path.exists(self.path):
            os.unlink(self.path)


def knock(path):
    """Milliseconds until a new client is let in; one that is sent away comes again."""
    start = time.monotonic()
    while time.monotonic() < start + PATIENCE_S:
        try:
            admitted(path).close()
            break
        except (EOFError, ConnectionError):
            time.sleep(0.01)
    return (time.monotonic() - start) * 1000


def measure(orlop, folder, kind, depth, settings):
    """The latency of one client, what the server had resident, and how long a new client waited."""
    server = Server(orlop, folder)
    abuser = None
    bench = None
    try:
        server.wait()
        if ABUSES[kind][1]:
            command = [sys.executable, __file__, '--misbehave', kind, server.path]
            command += ['--pace', str(settings.pace)]
            abuser = subprocess.Popen(command, stdin=subprocess.PIPE)
            time.sleep(0.3)  # It loads its modules meanwhile.
        uri = f'nbd+unix:///?socket={server.path}'
        command = [orlop, 'bench', uri, '--qd', str(depth), '--time', str(settings.time)]
        command += ['--seed', str(settings.seed), '--json']
        bench = subprocess.Popen(command, stdout=subprocess.PIPE)
        time.sleep(0.2)  # It connects meanwhile: how long that takes is told by the knock.
        if abuser:
            abuser.stdin.write(b'go\n')
            abuser.stdin.flush()
        report = json.loads(bench.communicate(timeout=settings.time + PATIENCE_S)[0])
        if 'total' not in report:
            sys.exit(f'abuse.py: under {kind} the client failed: {report}')
        if abuser and abuser.poll() is not None:
            sys.exit(f'abuse.py: {kind} ended by itself')
        knock_ms = knock(server.path)
    finally:
        for process in (abuser, bench):
            if process and process.poll() is None:
                process.kill()
                process.wait()
        server.close()
    told = report['total']['latency_us']
    return {
        'p50': told['p50'], 'p99': told['p99'], 'max_ms': told['max'] / 1000, 'knock_ms': knock_ms,
        'cpu': report['cpu']['server_us_per_op'] if report.get('cpu') else 0,
        'rss_mib': server.most / 1024,
    }


def tell(results):
    def median(kind, depth, key):
        return statistics.median(found[key] for found in results[kind, depth])

    head = [f'{key} qd {depth}' for depth in DEPTHS for key in ('p50', 'p99')]
    head += ['longest, ms', 'server us/op, qd 1', 'new client, ms', 'resident, MiB']
    print('| abuse |', ' | '.join(head), '|')
    print('| --- ' * (len(head) + 1) + '|')
    for kind in ABUSES:
        row = [kind]
        for depth in DEPTHS:
            for key in ('p50', 'p99'):
                found = median(kind, depth, key)
                row.append(f'{found:.1f} ({found / median("quiet", depth, key):.2f})')
        row.append(' and '.join(f'{median(kind, depth, "max_ms"):.0f}' for depth in DEPTHS))
        row.append(f'{median(kind, 1, "cpu"):.1f}')
        row.append(f'{median(kind, 1, "knock_ms"):.1f}')
        most = max(found['rss_mib'] for depth in DEPTHS for found in results[kind, depth])
        row.append(f'{most:.0f}')
        print('|', ' | '.join(row), '|')


def main():
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument('--rounds', type=int, default=7)
    asked.add_argument('--time', type=int, default=3, help='seconds of each run')
    asked.add_argument('--pace', type=float, default=100, help='ticks of abuse in a second')
    asked.add_argument('--seed', type=int, default=1, help='of the order')
    asked.add_argument('--misbehave', nargs=2, help=argparse.SUPPRESS)
    settings = asked.parse_args()
    if settings.misbehave:
        return misbehave(*settings.misbehave, settings.pace)
    orlop = os.environ.get('ORLOP', 'orlop')
    order = random.Random(settings.seed)
    results = {(kind, depth): [] for kind in ABUSES for depth in DEPTHS}
    with tempfile.TemporaryDirectory(prefix='abuse.') as folder:
        with open(os.path.join(folder, 'disk.raw'), 'wb') as disk:
            disk.write(random.Random(0).randbytes(DISK_BYTES))
        for number in range(settings.rounds):
            cases = list(results)
            order.shuffle(cases)
            for kind, depth in cases:
                found = measure(orlop, folder, kind, depth, settings)
                results[kind, depth].append(found)
                print(f'{number} {kind} qd {depth}: {found}', file=sys.stderr, flush=True)
    tell(results)


if __name__ == '__main__':
    main()

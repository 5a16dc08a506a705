# A client of NBD from the protocol's text, that can also say what no client should. Scripts of
# tests are appended to it; words after -c are theirs.
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time

GO, ABORT, LIST, STARTTLS, INFO, EXPORT_NAME = 7, 2, 3, 5, 6, 1
READ, WRITE, DISC, FLUSH = 0, 1, 2, 3
ACK, POLICY, INVALID, UNKNOWN, TLS_REQD, TOO_BIG = (
    1, 0x80000002, 0x80000003, 0x80000006, 0x80000005, 0x80000009)


def connect(path):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(60)
    s.connect(path)
    return s


def take(s, count):
    data = b''
    while len(data) < count:
        piece = s.recv(count - len(data))
        if not piece:
            raise EOFError('%d of %d bytes came' % (len(data), count))
        data += piece
    return data


def rest(s):
    """What comes until the end, however that looks."""
    data = b''
    while True:
        try:
            piece = s.recv(65536)
        except ConnectionResetError:
            return data
        if not piece:
            return data
        data += piece


def option(number, data=b''):
    return b'IHAVEOPT' + struct.pack('>II', number, len(data)) + data


def hello(s, flags=3):
    assert take(s, 18)[:16] == b'NBDMAGICIHAVEOPT'
    s.sendall(struct.pack('>I', flags))


def greeted(path):
    s = connect(path)
    hello(s)
    return s


def answer(s):
    while True:
        magic, _, kind, length = struct.unpack('>QIII', take(s, 20))
        assert magic == 0x3e889045565a9
        data = take(s, length)
        if kind == ACK or kind >> 31:
            return kind, data


def ask(s, number, data=b''):
    s.sendall(option(number, data))
    return answer(s)


def named(name=b''):
    return struct.pack('>I', len(name)) + name + bytes(2)


def go(s, name=b''):
    told = ask(s, GO, named(name))
    assert told == (ACK, b''), told
    return s


def request(command, cookie, offset, length, flags=0):
    return struct.pack('>IHHQQI', 0x25609513, flags, command, cookie, offset, length)


def reply(s):
    magic, error, cookie = struct.unpack('>IIQ', take(s, 16))
    assert magic == 0x67446698, hex(magic)
    return error, cookie


def context(folder, anonymous=False):
    c = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    c.load_verify_locations(folder + '/ca-cert.pem')
    if not anonymous:
        c.load_cert_chain(folder + '/client-cert.pem', folder + '/client-key.pem')
    return c


def secure(path, c):
    s = greeted(path)
    assert ask(s, STARTTLS) == (ACK, b'')
    return c.wrap_socket(s, server_hostname='localhost', suppress_ragged_eofs=False)

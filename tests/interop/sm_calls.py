"""Calls of the Storage Manager API through Python's own XML-RPC client, over a unix socket."""

import contextlib
import http.client
import os
import socket
import uuid
import xml.etree.ElementTree as ElementTree
import xmlrpc.client

CODES = {"EPERM": 1, "EIO": 5, "EBUSY": 16, "EEXIST": 17, "ENODEV": 19, "EINVAL": 22,
         "ENOSPC": 28, "ENOLCK": 37, "ENOSYS": 38}


class Connection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("orlop")
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(120)
        self.sock.connect(self.path)


class Transport(xmlrpc.client.Transport):
    def __init__(self, path):
        super().__init__()
        self.path = path

    def make_connection(self, host):
        if self._connection and self._connection[0] == host:
            return self._connection[1]
        self._connection = host, Connection(self.path)
        return self._connection[1]


def server(path, route="/sm"):
    return xmlrpc.client.ServerProxy("http://orlop" + route, Transport(path), allow_none=True)


def fresh():
    return str(uuid.uuid4())


def document(text):
    """An XML document as (name, text) pairs and nested lists; white space around is nobody's."""
    assert text.startswith('<?xml version="1.0" ?>'), text
    return ElementTree.fromstring(text)


def value(element, name):
    found = element.findall(name)
    assert len(found) == 1, "%d elements <%s>" % (len(found), name)
    return (found[0].text or "").strip()


@contextlib.contextmanager
def used(in_use, vdi, path):
    """Somebody has the VDI's file open: really, or as the stand-in for who serves it is told."""
    if not in_use:
        with open(path, "rb"):
            yield
        return
    mark = os.path.join(in_use, vdi)
    open(mark, "w").close()
    yield
    os.unlink(mark)


class Caller:
    """One host, as the agent calls it."""

    def __init__(self, path, route="/sm"):
        self.path = path
        self.proxy = server(path, route)
        self.faults = set()

    def __call__(self, command, sr, *args, vdi=None, config=None, **members):
        struct = {"host_ref": "OpaqueRef:host", "session_ref": "OpaqueRef:session",
                  "command": command, "args": [str(arg) for arg in args], "sr_uuid": sr,
                  "device_config": dict(config or {}), "subtask_of": "OpaqueRef:task"}
        if vdi is not None:
            struct["vdi_uuid"] = struct["vdi_location"] = vdi
        struct.update(members)
        return getattr(self.proxy, command)(struct)

    def fails(self, code, command, *args, **named):
        """The call must fail with this code, and say why."""
        try:
            result = self(command, *args, **named)
        except xmlrpc.client.Fault as fault:
            assert fault.faultCode == CODES[code], "%s, not %s" % (fault, code)
            assert fault.faultCode > 0 and len(fault.faultString) > 20, fault
            self.faults.add(fault.faultCode)
            return fault.faultString
        raise AssertionError("%s%r gave %r, not %s" % (command, args, result, code))

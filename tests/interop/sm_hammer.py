#!/usr/bin/env python3
"""Many clients that call any verb at any time: the SR must come out of it whole.

Usage: sm_hammer.py SOCKET DIRECTORY CLIENTS CALLS
"""

import os
import random
import sys
import threading
import xmlrpc.client

from sm_calls import CODES, Caller, document, fresh, value

MIB = 1 << 20
# An I/O error would be ours, and nothing here is unknown.
EXPECTED = {CODES[name] for name in ["EPERM", "EBUSY", "EEXIST", "ENODEV", "EINVAL", "ENOLCK"]}


def hammer(socket, sr, config, number, calls, known, wrong):
    rng = random.Random(number)
    caller = Caller(socket)
    verbs = ["vdi_create"] * 3 + ["vdi_delete"] * 2 + ["vdi_attach", "vdi_detach"] * 2 + [
        "vdi_clone", "vdi_snapshot", "vdi_resize", "vdi_lock", "vdi_unlock", "sr_scan",
        "sr_attach", "sr_detach", "sr_create", "sr_delete", "sr_content_type"]
    for _ in range(calls):
        verb, vdi = rng.choice(verbs), rng.choice(known)
        args = {"vdi_create": [rng.choice([MIB, 3 * MIB])], "sr_create": [0],
                "vdi_clone": [rng.choice(known)], "vdi_snapshot": [rng.choice(known)],
                "vdi_resize": [rng.choice([2 * MIB, 4 * MIB])],
                "vdi_lock": [rng.choice(["TRUE", "FALSE"]), "user %d" % (number % 4)],
                "vdi_unlock": ["user %d" % (number % 4)]}.get(verb, [])
        try:
            caller(verb, sr, *args, vdi=vdi, config=config)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode not in EXPECTED:
                wrong.append("%s: %s" % (verb, fault))
        except Exception as error:
            wrong.append("%s: %r" % (verb, error))
            return


def main():
    socket, directory, clients, calls = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:5])
    sr, config = fresh(), {"location": os.path.join(directory, "sr")}
    agent = Caller(socket)
    agent("sr_create", sr, 0, config=config)
    agent("sr_attach", sr, config=config)
    known, wrong = [fresh() for _ in range(12)], []
    threads = [threading.Thread(target=hammer, daemon=True,
                                args=(socket, sr, config, number, calls, known, wrong))
               for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
        assert not thread.is_alive(), "a client waits for ever"
    assert not wrong, "\n".join(wrong[:10])
    # What is left is whole, before and after everything was let go.
    for command in ["sr_create", "sr_attach"]:
        try:
            agent(command, sr, 0, config=config)
        except xmlrpc.client.Fault as fault:
            assert fault.faultCode == CODES["EEXIST"], fault
    for turn in range(2):
        listing = document(agent("sr_scan", sr))
        assert listing.find("finding") is None, agent("sr_scan", sr)
        vdis = [value(vdi, "uuid") for vdi in listing.findall("vdi")]
        assert len(set(vdis)) == len(vdis)
        for vdi in known:
            try:
                agent("vdi_detach", sr, vdi=vdi)
            except xmlrpc.client.Fault as fault:
                assert fault.faultCode == CODES["ENODEV"] and vdi not in vdis, fault
        agent("sr_detach", sr)
        agent("sr_attach", sr, config=config)
        print("%d VDIs" % len(vdis))
    for vdi in vdis:
        agent("vdi_lock", sr, "TRUE", "agent", vdi=vdi)
        assert agent("vdi_attach", sr, vdi=vdi)
        agent("vdi_detach", sr, vdi=vdi)
        agent("vdi_unlock", sr, "agent", vdi=vdi)
        agent("vdi_delete", sr, vdi=vdi)
    listing = document(agent("sr_scan", sr))
    assert listing.find("vdi") is None and listing.find("finding") is None
    agent("sr_detach", sr)
    agent("sr_delete", sr, config=config)
    assert not os.path.exists(config["location"]), os.listdir(config["location"])
    print("ok")


if __name__ == "__main__":
    main()

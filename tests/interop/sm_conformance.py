#!/usr/bin/env python3
"""The Storage Manager API's specification (spec 003), sentence by sentence, over a socket.

Usage: sm_conformance.py SOCKET OTHER-SOCKET DIRECTORY SMALL IN-USE

Two daemons stand for two hosts; DIRECTORY is for SRs that both reach, SMALL is a small file system
("" when there is none). A file IN-USE/<vdi> stands for somebody who has that VDI's file open; where
VDIs are really served IN-USE is "". Each case names the sentence it stands for.
"""

import os
import sys
import traceback

from sm_calls import CODES, Caller, document, fresh, used, value

MIB = 1 << 20
CASES = []


def says(sentence):
    def register(case):
        CASES.append((sentence, case))
        return case
    return register


class World:
    def __init__(self, host, other, directory, small, in_use):
        self.host, self.other = Caller(host), Caller(other)
        self.directory, self.small, self.in_use = directory, small, in_use

    def place(self):
        return os.path.join(self.directory, "sr-" + fresh())

    def sr(self, attached=True, config=None):
        """A new SR."""
        return Sr(self, config or {"location": self.place()}, attached)


class Sr:
    def __init__(self, world, config, attached):
        self.world, self.config, self.uuid = world, config, fresh()
        self.location = config["location"]
        assert self("sr_create", 0) == 0
        if attached:
            assert self("sr_attach") == 0

    def __call__(self, command, *args, **named):
        return self.world.host(command, self.uuid, *args, config=self.config, **named)

    def fails(self, code, command, *args, **named):
        return self.world.host.fails(code, command, self.uuid, *args, config=self.config, **named)

    def on_other(self):
        """The same SR on the other host."""
        return Elsewhere(self)

    def vdi(self, size=MIB, **named):
        vdi = fresh()
        self("vdi_create", size, vdi_uuid=vdi, **named)
        return vdi

    def scan(self):
        return document(self("sr_scan"))

    def find(self, vdi):
        found = [each for each in self.scan().findall("vdi") if value(each, "uuid") == vdi]
        assert len(found) <= 1, "a VDI is listed twice"
        return found[0] if found else None

    def data(self, vdi):
        return os.path.join(self.location, vdi + ".vhd")


class Elsewhere(Sr):
    def __init__(self, sr):
        self.world, self.uuid, self.location = sr.world, sr.uuid, sr.location
        self.config = sr.config

    def __call__(self, command, *args, **named):
        return self.world.other(command, self.uuid, *args, config=self.config, **named)

    def fails(self, code, command, *args, **named):
        return self.world.other.fails(code, command, self.uuid, *args, config=self.config, **named)


def shared(world):
    """An SR that both hosts have attached."""
    sr = world.sr(config={"location": world.place(), "shared": "true"})
    other = sr.on_other()
    other("sr_attach")
    return sr, other


# Arguments and return values


@says("The backend driver is responsible for verifying the contents of the dconf string and "
      "establishing whether the required parameters are provided.")
def _(world):
    for config, named in [({}, "device_config"), ({"location": ""}, "device_config"),
                          ({"location": "relative"}, "location"),
                          ({"location": "/tmp/../etc"}, "location")]:
        for verb in ["sr_create", "sr_attach", "sr_delete"]:
            said = world.host.fails("EINVAL", verb, fresh(), 0, config=config)
            assert named in said, said
    said = world.host.fails("EINVAL", "sr_create", fresh(), 0, config={}, driver="file")
    assert "location" in said, said


@says("when the same SR is mapped to separate hosts, the \"dconf\" string may be different in "
      "each case.")
def _(world):
    sr = world.sr(config={"location": world.place(), "shared": "true"})
    os.symlink(world.directory, sr.location + "-way")
    other = sr.on_other()
    other.config = {"location": os.path.join(sr.location + "-way", os.path.basename(sr.location)),
                    "shared": "true"}
    assert other("sr_attach") == 0
    vdi = sr.vdi()
    assert other.find(vdi) is not None


@says("In all cases a return value indicates SUCCESS (a zero value) or FAILURE (a positive return "
      "code greater than zero).")
def _(world):
    sr = world.sr()
    vdi = sr.vdi()
    for call in [("vdi_resize", 2 * MIB), ("vdi_lock", "FALSE", "me"), ("vdi_unlock", "me"),
                 ("vdi_detach",), ("vdi_delete",)]:
        assert sr(*call, vdi=vdi) == 0, call
    assert sr("sr_detach") == 0
    assert sr("sr_delete") == 0
    assert world.host.fails("ENODEV", "sr_scan", sr.uuid)


# SR operations


@says("Any values returned by the sr_scan() call are considered to be authoritative and always "
      "override locally cached values by the host agent.")
def _(world):
    sr = world.sr()
    vdi = sr.vdi(MIB)
    before = int(value(sr.find(vdi), "size"))
    sr("vdi_resize", 3 * MIB, vdi=vdi)
    sr("vdi_lock", "FALSE", "me", vdi=vdi)
    found = sr.find(vdi)
    assert (before, int(value(found, "size"))) == (MIB, 3 * MIB)
    assert value(found, "locked") == "True"


@says("Where available, the SR is responsible for providing persistent locks on disk for VDIs such "
      "that concurrent write access can be avoided.")
def _(world):
    sr, other = shared(world)
    vdi = sr.vdi()
    sr("vdi_lock", "FALSE", "host one", vdi=vdi)
    sr("sr_detach")
    sr("sr_attach")
    said = other.fails("EBUSY", "vdi_attach", vdi=vdi)
    assert "host one" in said, said
    other.fails("EBUSY", "vdi_attach", "true", vdi=vdi)
    assert value(document(other("vdi_attach", "false", vdi=vdi)), "path")
    other("vdi_detach", vdi=vdi)
    sr("vdi_unlock", "host one", vdi=vdi)
    assert other("vdi_attach", "true", vdi=vdi)


@says("Lock and unlock calls for data access to VDIs for shared SRs.")
def _(world):
    sr, other = shared(world)
    vdi = sr.vdi()
    sr("vdi_lock", "FALSE", "one", vdi=vdi)
    said = other.fails("ENOLCK", "vdi_lock", "FALSE", "two", vdi=vdi)
    assert "one" in said, said
    assert value(other.find(vdi), "locked") == "True"
    sr("vdi_unlock", "one", vdi=vdi)
    assert value(other.find(vdi), "locked") == "False"
    assert other("vdi_lock", "FALSE", "two", vdi=vdi) == 0


@says("sr_create() takes a storage medium such as a physical disk or NFS mount point and "
      "effectively \u201cformats\u201d it to hold VDIs.")
def _(world):
    sr = world.sr()
    assert os.path.isdir(sr.location)
    assert sr.find(sr.vdi()) is not None


@says("sr_delete() takes an empty SR and performs any additional clean-up that is required to "
      "return the specified device or mount point to a \u201cclean\u201d state.")
def _(world):
    place = world.place()
    os.mkdir(place)
    sr = world.sr(config={"location": place})
    vdi = sr.vdi()
    sr("vdi_lock", "FALSE", "me", vdi=vdi)
    sr("vdi_unlock", "me", vdi=vdi)
    sr("vdi_delete", vdi=vdi)
    sr("sr_detach")
    sr("sr_delete")
    assert os.listdir(place) == [], os.listdir(place)


@says("VDI operations are only available on SRs that have first been attached.")
def _(world):
    sr = world.sr()
    vdi = sr.vdi()
    sr("sr_detach")
    for call in [("vdi_create", MIB), ("vdi_delete",), ("vdi_attach",), ("vdi_detach",),
                 ("vdi_clone", fresh()), ("vdi_snapshot", fresh()), ("vdi_resize", 2 * MIB),
                 ("vdi_lock", "FALSE", "me"), ("vdi_unlock", "me")]:
        said = sr.fails("ENODEV", *call, vdi=vdi)
        assert "sr_attach" in said, said


@says("This allows the tools to discover updates to the SR such as the addition or removal of VDIs "
      "that were not explicitly carried out through the XE interfaces.")
def _(world):
    sr = world.sr()
    vdi, gone, new = sr.vdi(), sr.vdi(), fresh()
    with open(os.path.join(sr.location, new + ".raw"), "wb") as made:
        made.truncate(5 * 512)
    os.unlink(sr.data(gone))
    assert sr.find(vdi) is not None and sr.find(gone) is None
    assert value(sr.find(new), "size") == str(5 * 512)


# sr_create


@says("Create an SR of size <Size> Bytes using the given dconf string.")
def _(world):
    config = {"location": world.place()}
    uuid = fresh()
    assert world.host("sr_create", uuid, 10 * MIB, config=config) == 0
    assert os.path.isdir(config["location"])
    assert world.host("sr_attach", uuid, config=config) == 0
    assert value(document(world.host("sr_scan", uuid)), "uuid") == uuid


@says("This operation may fail if it believes that an SR is already installed on the disk.")
def _(world):
    sr = world.sr(attached=False)
    said = sr.fails("EEXIST", "sr_create", 0)
    assert sr.uuid in said, said
    world.host.fails("EEXIST", "sr_create", fresh(), 0, config=sr.config)
    assert sr("sr_attach") == 0
    sr.fails("EEXIST", "sr_create", 0)


@says("If the directory already exists or any of the target attachment parameters are incorrect, "
      "the operation will fail.")
def _(world):
    place = world.place()
    os.mkdir(place)
    with open(os.path.join(place, "letter"), "w") as letter:
        letter.write("dear")
    said = world.host.fails("EEXIST", "sr_create", fresh(), 0, config={"location": place})
    assert "letter" in said, said
    assert os.listdir(place) == ["letter"]


@says("ENODEV \u2013 No such device")
def _(world):
    nowhere = {"location": os.path.join(world.place(), "deep", "sr")}
    world.host.fails("ENODEV", "sr_create", fresh(), 0, config=nowhere)
    nothing = {"device": "/dev/orlop-does-not-exist"}
    world.host.fails("ENODEV", "sr_create", fresh(), 0, config=nothing)


@says("ENOSYS \u2013 Function not implemented")
def _(world):
    nfs = {"server": "192.0.2.1", "serverpath": "/export"}
    world.host.fails("ENOSYS", "sr_create", fresh(), 0, config=nfs)
    world.host.fails("ENOSYS", "sr_delete", fresh(), config=nfs)
    world.host.fails("ENOSYS", "sr_paint", fresh())


# sr_delete


@says("Deletes the specified SR, leaving the substrate in a clean state.")
def _(world):
    sr = world.sr(attached=False)
    assert sr("sr_delete") == 0
    assert not os.path.exists(sr.location)


@says("All VDIs must be deleted in order for the sr_delete call to succeed.")
def _(world):
    sr = world.sr()
    vdi = sr.vdi()
    sr("sr_detach")
    said = sr.fails("EBUSY", "sr_delete")
    assert "1 VDI" in said, said
    sr("sr_attach")
    sr("vdi_delete", vdi=vdi)
    sr("sr_detach")
    assert sr("sr_delete") == 0


@says("It is the responsibility of the driver to verify that this is the case.")
def _(world):
    # Also of what was put there behind its back, and of what cannot be read.
    for name, content in [(".raw", bytes(512)), (".vhd", b"no image")]:
        sr = world.sr(attached=False)
        path = os.path.join(sr.location, fresh() + name)
        with open(path, "wb") as made:
            made.write(content)
        sr.fails("EBUSY", "sr_delete")
        assert os.path.exists(path)


@says("The operation IS idempotent and should succeed if the SR exists and can be deleted or if "
      "the SR does not exist.")
def _(world):
    sr = world.sr(attached=False)
    for _ in range(3):
        assert sr("sr_delete") == 0
    assert world.host("sr_delete", fresh(), config={"location": world.place()}) == 0


@says("The call will FAIL if any VDIs in the SR are in use or have not been deleted.")
def _(world):
    sr = world.sr()
    vdi = sr.vdi()
    sr("vdi_attach", vdi=vdi)
    sr.fails("EBUSY", "sr_delete")
    sr("vdi_detach", vdi=vdi)
    sr.fails("EBUSY", "sr_delete")
    assert sr.find(vdi) is not None


@says("The device must be in an unmounted state initially, and the driver satisfied that there are "
      "no VDIs present.")
def _(world):
    sr = world.sr()
    said = sr.fails("EBUSY", "sr_delete")
    assert "sr_detach" in said, said


# sr_attach


@says("Initiate local access to the SR. Initialises any device state required to access the "
      "substrate.")
def _(world):
    sr = world.sr(attached=False)
    sr.fails("ENODEV", "sr_scan")
    assert sr("sr_attach") == 0
    assert sr.scan() is not None


@says("The operation IS idempotent and will return success if the SR can be attached or if the SR "
      "is already attached.")
def _(world):
    sr = world.sr(attached=False)
    for _ in range(3):
        assert sr("sr_attach") == 0
    # xapi's own word about who is master may change between two calls.
    sr.config = dict(sr.config, SRmaster="true")
    assert sr("sr_attach") == 0


@says("The call may fail if the target SR directory does not exist.")
def _(world):
    world.host.fails("ENODEV", "sr_attach", fresh(), config={"location": world.place()})
    place = world.place()
    os.mkdir(place)
    world.host.fails("ENODEV", "sr_attach", fresh(), config={"location": place})


@says("EIO \u2013 General IO error occurred attaching device")
def _(world):
    sr = world.sr(attached=False)
    with open(os.path.join(sr.location, "orlop-sr"), "r+b") as record:
        record.seek(10)
        record.write(b"\xff\xff")
    sr.fails("EIO", "sr_attach")


# sr_detach


@says("Remove local access to the SR. Destroys any device state initiated by the sr_attach() "
      "operation.")
def _(world):
    sr = world.sr()
    assert sr("sr_detach") == 0
    sr.fails("ENODEV", "sr_scan")
    sr.fails("ENODEV", "sr_content_type")


@says("The operation is idempotent and will return success if the SR can be detached or if the SR "
      "is already detached.")
def _(world):
    sr = world.sr()
    for _ in range(3):
        assert sr("sr_detach") == 0
    assert world.host("sr_detach", fresh()) == 0


@says("All VDIs must be detached in order for the operation to succeed.")
def _(world):
    sr = world.sr()
    vdi = sr.vdi()
    sr("vdi_attach", vdi=vdi)
    said = sr.fails("EBUSY", "sr_detach")
    assert vdi in said, said
    sr("vdi_detach", vdi=vdi)
    assert sr("sr_detach") == 0


# sr_content_type


@says("Returns an XML string with a 'type' object.")
def _(world):
    answer = document(world.sr()("sr_content_type"))
    assert answer.tag == "sr" and [each.tag for each in answer] == ["type"]


@says("Returns a value of 'vhd' to indicate that the blktap VHD driver should handle the disk IO.")
def _(world):
    assert value(document(world.sr()("sr_content_type")), "type") == "vhd"


# sr_scan


@says("List the SR contents as an XML string.")
def _(world):
    sr = world.sr()
    vdis = {sr.vdi() for _ in range(3)}
    answer = sr.scan()
    assert answer.tag == "sr"
    assert {value(each, "uuid") for each in answer.findall("vdi")} == vdis
    tags = [each.tag for each in answer]
    assert tags == ["uuid", "physical_utilisation", "virtual_allocation", "physical_size",
                    "default_vdi_visibility", "label", "description"] + 3 * ["vdi"], tags
    tags = [each.tag for each in answer.find("vdi")]
    assert tags == ["uuid", "size", "utilisation", "locked", "label", "description", "shareable",
                    "read_only"], tags


@says("A globally unique SR identifier conforming to OSF DCE 1.1 which matches the SR-UUID on the "
      "command line.")
def _(world):
    sr = world.sr()
    assert value(sr.scan(), "uuid") == sr.uuid


@says("The amount of physical space in Bytes consumed by VDIs.")
def _(world):
    sr = world.sr()
    sr.vdi()
    answer = sr.scan()
    own = int(value(answer.find("vdi"), "utilisation"))
    assert int(value(answer, "physical_utilisation")) >= own > 0


@says("The virtual disk space in Bytes allocated to this SR.")
def _(world):
    sr = world.sr()
    sr.vdi(MIB)
    sr.vdi(5 * MIB)
    assert int(value(sr.scan(), "virtual_allocation")) == 6 * MIB


@says("The physical disk space in Bytes allocated to this SR")
def _(world):
    sr = world.sr()
    stat = os.statvfs(sr.location)
    assert int(value(sr.scan(), "physical_size")) == stat.f_blocks * stat.f_frsize


@says("The default behaviour of the agent on discovering a new VDI i.e. should the VDI "
      "automatically be made available?")
def _(world):
    assert value(world.sr().scan(), "default_vdi_visibility") == "True"


@says("A user generated tag for identifyng the SR.")
def _(world):
    config, uuid = {"location": world.place()}, fresh()
    world.host("sr_create", uuid, 0, "disks <of> \u00fcs", "all & sundry", config=config)
    world.host("sr_attach", uuid, config=config)
    answer = document(world.host("sr_scan", uuid))
    assert value(answer, "label") == "disks <of> \u00fcs"
    assert value(answer, "description") == "all & sundry"


@says("A globally unique VDI identifier conforming to OSF DCE 1.1.")
def _(world):
    sr = world.sr()
    made = sr("vdi_create", MIB)
    assert set(made) == {"uuid", "location"} and len(made["uuid"]) == 36
    assert value(sr.find(made["uuid"]), "uuid") == made["uuid"]


@says("The amount of physical space in Bytes consumed by this VDI")
def _(world):
    sr = world.sr()
    vdi = sr.vdi(100 * MIB)
    used = int(value(sr.find(vdi), "utilisation"))
    assert 0 < used <= 64 << 10, used


@says("The virtual size of the disk in Bytes.")
def _(world):
    sr = world.sr()
    for size in [512, MIB, 12345 * 512, 1 << 40]:
        assert value(sr.find(sr.vdi(size)), "size") == str(size)


@says("The lock status of the VDI")
def _(world):
    sr = world.sr()
    vdi = sr.vdi()
    assert value(sr.find(vdi), "locked") == "False"
    sr("vdi_lock", "FALSE", "me", vdi=vdi)
    assert value(sr.find(vdi), "locked") == "True"
    sr("vdi_unlock", "me", vdi=vdi)
    assert value(sr.find(vdi), "locked") == "False"


@says("A User generated tag for identifyng the VDI")
def _(world):
    sr = world.sr()
    vdi = fresh()
    sr("vdi_create", MIB, "root <disk> \u00fc", "a & b\nc", vdi_uuid=vdi)
    found = sr.find(vdi)
    assert value(found, "label") == "root <disk> \u00fc"
    assert value(found, "description") == "a & b\nc"


@says("Whether the VDI can safely be shared across hosts")
def _(world):
    sr = world.sr()
    assert value(sr.find(sr.vdi()), "shareable") == "False"
    assert value(sr.find(sr.vdi(shareable="true")), "shareable") == "True"


@says("Whether the disk is read-only accessible")
def _(world):
    sr = world.sr()
    vdi, kept = sr.vdi(), fresh()
    sr("vdi_snapshot", kept, vdi=vdi)
    assert value(sr.find(vdi), "read_only") == "False"
    assert value(sr.find(kept), "read_only") == "True"
    fixed = fresh()
    sr("vdi_create", MIB, "", "", "", "false", "19700101T00:00:00Z", "", "true", vdi_uuid=fixed)
    assert value(sr.find(fixed), "read_only") == "True"


@says("If this VDI has a read-only parent dependency, specify the UUID of the parent disk")
def _(world):
    sr = world.sr()
    vdi, kept = sr.vdi(), fresh()
    assert sr.find(vdi).find("parent") is None
    sr("vdi_snapshot", kept, vdi=vdi)
    assert value(sr.find(vdi), "parent") == kept
    assert sr.find(kept).find("parent") is None


@says("ENODEV \u2013 No such SR")
def _(world):
    world.host.fails("ENODEV", "sr_scan", fresh())


# vdi_create


@says("Create a VDI of size <Size> Bytes on the given SR.")
def _(world):
    sr = world.sr()
    vdi = sr.vdi(7 * 512)
    assert value(sr.find(vdi), "size") == str(7 * 512)
    for size in ["0", "-512", "much", "1.5", ""]:
        said = sr.fails("EINVAL", "vdi_create", size, vdi_uuid=fresh())
        assert "size" in said or "disk" in said, said


@says("The operation IS NOT idempotent and will fail if the UUID already exists or if there is "
      "insufficient space.")
def _(world):
    sr = world.sr()
    vdi = sr.vdi()
    said = sr.fails("EEXIST", "vdi_create", MIB, vdi_uuid=vdi)
    assert vdi in said, said
    # One that is only there for its children has a UUID too.
    child = fresh()
    sr("vdi_clone", child, vdi=vdi)
    parent = value(sr.find(child), "parent")
    sr.fails("EEXIST", "vdi_create", MIB, vdi_uuid=parent)
    sr.fails("EEXIST", "vdi_clone", parent, vdi=vdi)


@says("This operation will instantiate a virtual object to support the virtual size requested.")
def _(world):
    sr = world.sr()
    vdi = sr.vdi(1 << 40)
    assert os.path.exists(sr.data(vdi))
    assert os.stat(sr.data(vdi)).st_blocks * 512 < 64 * MIB


@says("The agent will subsequently call vdi_attach() whenever the disk is required.")
def _(world):
    sr = world.sr()
    sr.vdi()
    # What was not attached keeps nobody from detaching the SR.
    assert sr("sr_detach") == 0


@says("ENOSPC \u2013 Insufficient space on the SR")
def _(world):
    sr = crowded(world)
    before = sorted(os.listdir(sr.location))
    said = sr.fails("ENOSPC", "vdi_create", MIB, vdi_uuid=fresh())
    assert "space" in said, said
    assert sorted(os.listdir(sr.location)) == before


# vdi_delete


@says("The agent will ensure that vdi_detach is successfully called prior to attempting to delete "
      "any VDIs.")
def _(world):
    sr = world.sr()
    vdi = sr.vdi()
    sr("vdi_attach", vdi=vdi)
    said = sr.fails("EBUSY", "vdi_delete", vdi=vdi)
    assert "vdi_detach" in said, said
    assert os.path.exists(sr.data(vdi))
    sr("vdi_detach", vdi=vdi)
    assert sr("vdi_delete", vdi=vdi) == 0


@says("Delete the specified VDI from the given SR.")
def _(world):
    sr = world.sr()
    vdi, other = sr.vdi(), sr.vdi()
    sr("vdi_delete", vdi=vdi)
    assert sr.find(vdi) is None and sr.find(other) is not None
    assert not os.path.exists(sr.data(vdi))


@says("The operation IS idempotent and should succeed if the VDI exists and can be deleted or if "
      "the VDI does not exist.")
def _(world):
    sr = world.sr()
    vdi = sr.vdi()
    for _ in range(3):
        assert sr("vdi_delete", vdi=vdi) == 0
    assert sr("vdi_delete", vdi=fresh()) == 0


@says("Checks for the existence of an active VDI lock and if none exists, deletes the "
      "corresponding VHD file.")
def _(world):
    sr = world.sr()
    vdi = sr.vdi()
    sr("vdi_lock", "FALSE", "me", vdi=vdi)
    sr.fails("EBUSY", "vdi_delete", vdi=vdi)
    assert os.path.exists(sr.data(vdi))
    sr("vdi_unlock", "me", vdi=vdi)
    assert sr("vdi_delete", vdi=vdi) == 0


@says("ENODEV \u2013 No such SR/VDI (vdi_delete)")
def _(world):
    # Of a VDI that does not exist, idempotence says success; of an SR nothing does.
    world.host.fails("ENODEV", "vdi_delete", fresh(), vdi=fresh())


# vdi_attach


@says("If the operation succeeds the string contains a 'path' object.")
def _(world):
    sr = world.sr()
    vdi = sr.vdi()
    answer = document(sr("vdi_attach", vdi=vdi))
    assert answer.tag == "sr" and vdi in value(answer, "path")
    assert [each.tag for each in answer] == ["path", "nbd_uri"]
    assert value(answer, "nbd_uri").startswith("nbd+unix:///")


@says("The operation IS idempotent and should succeed if the VDI can be  attached or if the VDI is "
      "already attached.")
def _(world):
    sr = world.sr()
    vdi = sr.vdi()
    answers = {sr("vdi_attach", vdi=vdi) for _ in range(3)}
    assert len(answers) == 1


@says("Verifies both the SR and VDI exist.")
def _(world):
    sr = world.sr()
    sr.fails("ENODEV", "vdi_attach", vdi=fresh())
    world.host.fails("ENODEV", "vdi_attach", fresh(), vdi=fresh())
    sr.fails("ENODEV", "vdi_attach", vdi="no/such/location")


@says("EIO: a VDI whose image is damaged cannot be attached (Error Codes: I/O error)")
def _(world):
    sr = world.sr()
    vdi, sound = sr.vdi(), sr.vdi()
    size = os.path.getsize(sr.data(vdi))
    with open(sr.data(vdi), "r+b") as image:
        image.write(bytes(size))
    said = sr.fails("EIO", "vdi_attach", vdi=vdi)
    assert vdi in said, said
    # The rest of the SR stands, and the scan tells.
    answer = sr.scan()
    assert [value(each, "uuid") for each in answer.findall("vdi")] == [sound]
    assert value(answer.find("finding"), "name") == vdi + ".vhd"
    assert sr("vdi_attach", vdi=sound)


# vdi_detach


@says("Remove local access to the VDI. Destroys any device state initialised via the vdi_attach() "
      "command.")
def _(world):
    sr = world.sr()
    vdi = sr.vdi()
    sr("vdi_attach", vdi=vdi)
    assert sr("vdi_detach", vdi=vdi) == 0
    assert sr("sr_detach") == 0


@says("The operation IS idempotent and will always return SUCCESS if the VDI can be detached from "
      "the system (e.g. all filehandles are closed) or if the VDI is already detached.")
def _(world):
    sr = world.sr()
    vdi = sr.vdi()
    sr("vdi_attach", vdi=vdi)
    for _ in range(3):
        assert sr("vdi_detach", vdi=vdi) == 0


@says("EBUSY \u2013 VDI is in use, unable to detach")
def _(world):
    sr = world.sr()
    vdi = sr.vdi()
    answer = sr("vdi_attach", vdi=vdi)
    with used(world.in_use, vdi, value(document(answer), "path")):
        sr.fails("EBUSY", "vdi_detach", vdi=vdi)
        assert sr("vdi_attach", vdi=vdi) == answer
    assert sr("vdi_detach", vdi=vdi) == 0


@says("ENODEV \u2013 No such SR/VDI (vdi_detach)")
def _(world):
    world.sr().fails("ENODEV", "vdi_detach", vdi=fresh())
    world.host.fails("ENODEV", "vdi_detach", fresh(), vdi=fresh())


# vdi_clone


@says("Create a mutable instance of the referenced VDI.")
def _(world):
    sr = world.sr()
    vdi, child = sr.vdi(3 * MIB), fresh()
    assert sr("vdi_clone", child, vdi=vdi) == {"uuid": child, "location": child}
    for each in [vdi, child]:
        found = sr.find(each)
        assert (value(found, "read_only"), value(found, "size")) == ("False", str(3 * MIB))
    assert sr("vdi_attach", "true", vdi=child)


@says("The operation is not idempotent and will fail if the UUID already exists or if there is "
      "insufficient space.")
def _(world):
    sr = world.sr()
    vdi, child = sr.vdi(), fresh()
    sr("vdi_clone", child, vdi=vdi)
    sr.fails("EEXIST", "vdi_clone", child, vdi=vdi)
    sr.fails("EEXIST", "vdi_clone", vdi, vdi=vdi)


@says("The SRC VDI must be in a detached state and unlocked.")
def _(world):
    sr = world.sr()
    vdi = sr.vdi()
    sr("vdi_attach", vdi=vdi)
    sr.fails("EBUSY", "vdi_clone", fresh(), vdi=vdi)
    sr("vdi_detach", vdi=vdi)
    sr("vdi_lock", "FALSE", "me", vdi=vdi)
    sr.fails("EBUSY", "vdi_clone", fresh(), vdi=vdi)
    sr("vdi_unlock", "me", vdi=vdi)
    assert sr("vdi_clone", fresh(), vdi=vdi)


@says("Upon successful creation of the clone, the clone vdi must be explicitly attached via the "
      "vdi_attach().")
def _(world):
    sr = world.sr()
    vdi, child = sr.vdi(), fresh()
    sr("vdi_clone", child, vdi=vdi)
    assert sr("sr_detach") == 0
    sr("sr_attach")
    assert child in sr("vdi_attach", vdi=child)


@says("If the driver does not support cloning this operation should fail with an error code of "
      "EPERM.")
def _(world):
    # Each driver here supports it; a chain that is as long as it may be does not.
    sr = world.sr()
    vdi = sr.vdi()
    for _ in range(29):
        sr("vdi_snapshot", fresh(), vdi=vdi)
    said = sr.fails("EPERM", "vdi_clone", fresh(), vdi=vdi)
    assert "30" in said, said
    sr.fails("EPERM", "vdi_snapshot", fresh(), vdi=vdi)
    assert sr("vdi_attach", vdi=vdi)


@says("creates two Copy-on-Write instances of the parent, one of which assumes the name of the "
      "source VDI UUID.")
def _(world):
    sr = world.sr()
    vdi, child = sr.vdi(), fresh()
    sr("vdi_clone", child, vdi=vdi)
    parents = {value(sr.find(each), "parent") for each in [vdi, child]}
    assert len(parents) == 1 and parents.isdisjoint({vdi, child})
    # The clone of what is read-only needs no second instance.
    kept, second = fresh(), fresh()
    sr("vdi_snapshot", kept, vdi=vdi)
    sr("vdi_clone", second, vdi=kept)
    assert value(sr.find(second), "parent") == kept


@says("ENODEV \u2013 No such SR/Source VDI")
def _(world):
    sr = world.sr()
    for verb in ["vdi_clone", "vdi_snapshot"]:
        sr.fails("ENODEV", verb, fresh(), vdi=fresh())
        world.host.fails("ENODEV", verb, fresh(), fresh(), vdi=fresh())


@says("ENOSPC \u2013 Insufficient space on SR to create clones")
def _(world):
    sr = crowded(world)
    before = sorted(os.listdir(sr.location))
    sr.fails("ENOSPC", "vdi_clone", fresh(), vdi=sr.kept)
    assert sorted(os.listdir(sr.location)) == before


# vdi_snapshot


@says("Save an immutable copy of the referenced VDI.")
def _(world):
    sr = world.sr()
    vdi, kept = sr.vdi(), fresh()
    assert sr("vdi_snapshot", kept, vdi=vdi) == {"uuid": kept, "location": kept}
    said = sr.fails("EPERM", "vdi_attach", "true", vdi=kept)
    assert "read-only" in said, said
    sr.fails("EPERM", "vdi_resize", 2 * MIB, vdi=kept)
    assert sr("vdi_attach", "false", vdi=kept)


@says("The vdi must be explicitly attached via the vdi_attach() command following creation.")
def _(world):
    sr = world.sr()
    vdi, kept = sr.vdi(), fresh()
    sr("vdi_snapshot", kept, vdi=vdi)
    assert sr("sr_detach") == 0


@says("The operation IS NOT idempotent and will fail if the UUID already exists or if there is "
      "insufficient space. (vdi_snapshot)")
def _(world):
    sr = world.sr()
    vdi, kept = sr.vdi(), fresh()
    sr("vdi_snapshot", kept, vdi=vdi)
    sr.fails("EEXIST", "vdi_snapshot", kept, vdi=vdi)


@says("Renames the parent disk to the destination VDI UUID and creates a Copy-on-Write instance of "
      "the parent which assumes the name of the source VDI UUID.")
def _(world):
    sr = world.sr()
    vdi, kept = sr.vdi(), fresh()
    inode = os.stat(sr.data(vdi)).st_ino
    sr("vdi_snapshot", kept, vdi=vdi)
    assert os.stat(sr.data(kept)).st_ino == inode != os.stat(sr.data(vdi)).st_ino
    assert value(sr.find(vdi), "parent") == kept


@says("The parent disk is subsequently listed as read-only.")
def _(world):
    sr = world.sr()
    vdi, kept = sr.vdi(), fresh()
    sr("vdi_snapshot", kept, vdi=vdi)
    assert value(sr.find(kept), "read_only") == "True"


@says("ENOSPC \u2013 Insufficient space on SR to create snapshot")
def _(world):
    sr = crowded(world)
    before = sorted(os.listdir(sr.location))
    sr.fails("ENOSPC", "vdi_snapshot", fresh(), vdi=sr.kept)
    assert sorted(os.listdir(sr.location)) == before


# vdi_resize


@says("The agent will ensure that vdi_resize is only called on inactive disks.")
def _(world):
    sr = world.sr()
    vdi = sr.vdi()
    sr("vdi_attach", vdi=vdi)
    sr.fails("EBUSY", "vdi_resize", 2 * MIB, vdi=vdi)
    assert value(sr.find(vdi), "size") == str(MIB)


@says("Resize the given VDI to size <new-size> Bytes. Size can be any valid disk size greater than "
      "the current value.")
def _(world):
    sr = world.sr()
    vdi = sr.vdi()
    for size in [MIB + 512, 5 * MIB, 1 << 40]:
        assert sr("vdi_resize", size, vdi=vdi) == 0
        assert value(sr.find(vdi), "size") == str(size)
    sr.fails("EINVAL", "vdi_resize", MIB, vdi=vdi)
    sr.fails("EINVAL", "vdi_resize", (1 << 40) + 1, vdi=vdi)
    sr.fails("EINVAL", "vdi_resize", "", vdi=vdi)
    assert value(sr.find(vdi), "size") == str(1 << 40)


@says("The operation IS idempotent and should succeed if the VDI can be resized to the specified "
      "value or if the VDI is already the specified size.")
def _(world):
    sr = world.sr()
    vdi = sr.vdi()
    for _ in range(3):
        assert sr("vdi_resize", 2 * MIB, vdi=vdi) == 0


@says("This operation does not modify the contents on the disk such as the filesystem.")
def _(world):
    sr = world.sr()
    vdi = fresh()
    path = os.path.join(sr.location, vdi + ".raw")
    with open(path, "wb") as disk:
        disk.write(b"\x5a" * 4096)
    assert sr("vdi_resize", 8192, vdi=vdi) == 0
    with open(path, "rb") as disk:
        assert disk.read() == b"\x5a" * 4096 + bytes(4096)


@says("ENODEV \u2013 No such SR/Source VDI (vdi_resize)")
def _(world):
    world.sr().fails("ENODEV", "vdi_resize", MIB, vdi=fresh())
    world.host.fails("ENODEV", "vdi_resize", fresh(), MIB, vdi=fresh())


@says("ENOSPC \u2013 Insufficient space on SR to resize VDI")
def _(world):
    sr = crowded(world)
    sr.fails("ENOSPC", "vdi_resize", 2000 << 30, vdi=sr.kept)
    assert value(sr.find(sr.kept), "size") == str(MIB)


# vdi_lock


@says("Allocate a persistent VDI lock on the storage device for this VDI.")
def _(world):
    sr = world.sr()
    vdi = sr.vdi()
    assert sr("vdi_lock", "FALSE", "me", vdi=vdi) == 0
    sr("sr_detach")
    sr("sr_attach")
    assert value(sr.find(vdi), "locked") == "True"
    sr.fails("ENOLCK", "vdi_lock", "FALSE", "you", vdi=vdi)


@says("The 'Force' parameter contains a boolean value of TRUE or FALSE.")
def _(world):
    sr = world.sr()
    vdi = sr.vdi()
    for word in ["TRUE", "FALSE", "True", "false", "1", "0"]:
        assert sr("vdi_lock", word, "me", vdi=vdi) == 0
    said = sr.fails("EINVAL", "vdi_lock", "perhaps", "me", vdi=vdi)
    assert "force" in said, said
    said = sr.fails("EINVAL", "vdi_lock", "FALSE", vdi=vdi)
    assert "user string" in said, said


@says("The operation IS NOT idempotent and will fail if the VDI does not exist.")
def _(world):
    world.sr().fails("ENODEV", "vdi_lock", "FALSE", "me", vdi=fresh())


@says("If the disk is already locked by another user and the Force flag is set to TRUE, the driver "
      "will attempt to break the lock and reclaim it for this user.")
def _(world):
    sr, other = shared(world)
    vdi = sr.vdi()
    sr("vdi_lock", "FALSE", "one", vdi=vdi)
    assert other("vdi_lock", "TRUE", "two", vdi=vdi) == 0
    sr.fails("ENOLCK", "vdi_unlock", "one", vdi=vdi)
    sr.fails("ENOLCK", "vdi_lock", "FALSE", "one", vdi=vdi)
    assert other("vdi_unlock", "two", vdi=vdi) == 0


@says("the driver attempts to acquire an exclusive lock or refresh an existing lock that it "
      "already holds, identified by the unique user string. If either operation fails, the driver "
      "returns ENOLCK.")
def _(world):
    sr = world.sr()
    vdi = sr.vdi()
    for _ in range(2):
        assert sr("vdi_lock", "FALSE", "me", vdi=vdi) == 0
    sr.fails("ENOLCK", "vdi_lock", "FALSE", "you", vdi=vdi)


# vdi_unlock


@says("The stored user string is matched and the lock removed for the VDI.")
def _(world):
    sr = world.sr()
    vdi = sr.vdi()
    sr("vdi_lock", "FALSE", "me", vdi=vdi)
    assert sr("vdi_unlock", "me", vdi=vdi) == 0
    assert sr("vdi_lock", "FALSE", "you", vdi=vdi) == 0


@says("It is idempotent in that a call to unlock an unlocked VDI will always succeed.")
def _(world):
    sr = world.sr()
    vdi = sr.vdi()
    for user in ["me", "me", "you"]:
        assert sr("vdi_unlock", user, vdi=vdi) == 0


@says("If the disk is locked by another user, the unique user string does not match or the mode "
      "value is incorrect, the operation will fail with ENOLCK.")
def _(world):
    sr = world.sr()
    vdi = sr.vdi()
    sr("vdi_lock", "FALSE", "me", vdi=vdi)
    for user in ["you", "ME", "me "]:
        sr.fails("ENOLCK", "vdi_unlock", user, vdi=vdi)
    assert value(sr.find(vdi), "locked") == "True"


@says("If the specified VDI does not exist this will return ENODEV.")
def _(world):
    world.sr().fails("ENODEV", "vdi_unlock", "me", vdi=fresh())


# The form of the calls (spec 000)


@says("Xapi will always pass in the reference, uuid and location of the VDI")
def _(world):
    sr = world.sr()
    made = sr("vdi_create", MIB)
    named = {"vdi_ref": "OpaqueRef:vdi", "vdi_on_boot": "persist", "vdi_allow_caching": "false"}
    assert sr("vdi_attach", vdi_location=made["location"], vdi_uuid=made["uuid"], **named)
    assert sr("vdi_detach", vdi_location=made["location"]) == 0
    assert sr("vdi_delete", vdi_uuid=made["uuid"]) == 0


@says("The idea is that the location field is used to identify which VDI xapi is talking about.")
def _(world):
    sr = world.sr()
    made = sr("vdi_create", MIB)
    assert sr("vdi_resize", 2 * MIB, vdi_location=made["location"], vdi_uuid=fresh()) == 0


@says("this API call takes a uuid which was made up by the SM backend.")
def _(world):
    sr = world.sr()
    uuids = {sr("vdi_create", MIB, "name", "", "", "false", "19700101T00:00:00Z", "",
                "false")["uuid"] for _ in range(3)}
    assert len(uuids) == 3


def crowded(world):
    """An SR on a small file system without room; made once, with a VDI from better times."""
    if not hasattr(world, "crowd"):
        if not world.small:
            raise Skipped("there is no small file system")
        sr = world.sr(config={"location": os.path.join(world.small, "sr")})
        sr.kept = sr.vdi()
        with open(os.path.join(world.small, "ballast"), "wb") as ballast:
            try:
                while True:
                    ballast.write(bytes(512))
                    ballast.flush()
            except OSError:
                pass
            try:
                ballast.close()
            except OSError:
                pass
        world.crowd = sr
    return world.crowd


class Skipped(Exception):
    pass


def main():
    world = World(*sys.argv[1:6])
    failed = skipped = 0
    for sentence, case in CASES:
        try:
            case(world)
            print("ok", sentence)
        except Skipped as why:
            skipped += 1
            print("SKIPPED (%s) %s" % (why, sentence))
        except Exception:
            failed += 1
            print("FAILED", sentence)
            traceback.print_exc(file=sys.stdout)
    names = {number: name for name, number in CODES.items()}
    seen = {names[number] for number in world.host.faults | world.other.faults}
    missing = set(CODES) - seen
    print("%d cases, %d failed, %d skipped; codes seen: %s" % (
        len(CASES), failed, skipped, " ".join(sorted(seen))))
    if missing and not skipped:
        print("FAILED: never seen:", missing)
        failed += 1
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

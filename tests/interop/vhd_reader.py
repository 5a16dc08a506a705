#!/usr/bin/env python3
"""Reads a VHD with its parents, written from the format document and from no program's source.

Slow, small and strict: it refuses whatever the document does not allow. Prints the size and the
SHA-256 of the disk's bytes as JSON; with --out it also writes them to a file.
"""

import argparse
import hashlib
import json
import os
import struct
import sys

SECTOR = 512


class Malformed(Exception):
    """The image is not as the format document says."""


def ones_complement_sum(data, at):
    """The checksum of a structure whose own checksum field starts at `at`."""
    total = sum(data) - sum(data[at:at + 4])
    return ~total & 0xFFFFFFFF


def parse_footer(data):
    if data[0:8] != b"conectix":
        raise Malformed("no footer cookie")
    fields = struct.unpack(">8sIIQIIIIQQIII16sB", data[0:85])
    names = ("cookie features version data_offset timestamp app app_version os original "
             "size geometry kind checksum uuid saved").split()
    footer = dict(zip(names, fields))
    if ones_complement_sum(data, 64) != footer["checksum"]:
        raise Malformed("footer checksum")
    if footer["version"] != 0x00010000 or footer["kind"] not in (2, 3, 4):
        raise Malformed("footer version or type")
    if not footer["features"] & 2:
        raise Malformed("the reserved feature bit is clear")
    return footer


def parse_header(data):
    if data[0:8] != b"cxsparse":
        raise Malformed("no header cookie")
    if ones_complement_sum(data, 36) != struct.unpack(">I", data[36:40])[0]:
        raise Malformed("header checksum")
    offset, table, version, entries, block = struct.unpack(">QQIII", data[8:36])
    if offset != 0xFFFFFFFFFFFFFFFF or version != 0x00010000:
        raise Malformed("header version")
    if block < SECTOR or block & (block - 1):
        raise Malformed("block size")
    locators = []
    for i in range(8):
        entry = struct.unpack(">4sIIIQ", data[576 + 24 * i:600 + 24 * i])
        if entry[0] != b"\0\0\0\0":
            locators.append(entry)
    name = data[64:576].decode("utf-16-be", "replace").split("\0")[0]
    return {"table": table, "entries": entries, "block": block, "parent": data[40:56],
            "locators": locators, "name": name}


def relative_paths(image, header):
    """The parent's relative paths: W2ru first, then MacX."""
    paths = []
    for code, _space, length, _reserved, at in header["locators"]:
        text = image[at:at + length]
        if len(text) != length:
            raise Malformed("a locator beyond the file")
        if code == b"W2ru":
            path = text.decode("utf-16-le").replace("\\", "/")
            paths.append((0, path))
        elif code == b"MacX":
            path = text.decode("utf-8")
            if not path.startswith("file://"):
                raise Malformed("a MacX locator that is no URL")
            path = path[len("file://"):]
            if not path.startswith("/"):
                paths.append((1, path))
    return [path for _, path in sorted(paths)]


def read_raw(path):
    with open(path, "rb") as file:
        return bytearray(file.read())


def read_parent(path, image, header):
    folder = os.path.dirname(os.path.abspath(path))
    for relative in relative_paths(image, header):
        candidate = os.path.normpath(os.path.join(folder, relative))
        if os.path.dirname(candidate) != folder or not os.path.isfile(candidate):
            continue
        if header["parent"] == bytes(16):
            return read_raw(candidate)
        disk, uuid = read_disk(candidate)
        if uuid != header["parent"]:
            raise Malformed("the parent has another identity")
        return disk
    raise Malformed("no parent found")


def read_disk(path):
    """The disk's bytes and the image's identity."""
    image = bytes(read_raw(path))
    footer = parse_footer(image[-SECTOR:])
    size = footer["size"]
    if size % SECTOR:
        raise Malformed("size")
    if footer["kind"] == 2:
        if len(image) != size + SECTOR:
            raise Malformed("the length of a fixed image")
        return bytearray(image[:size]), footer["uuid"]
    if image[:SECTOR] != image[-SECTOR:]:
        raise Malformed("the two footers differ")
    start = footer["data_offset"]
    header = parse_header(image[start:start + 1024])
    if footer["kind"] == 4:
        disk = read_parent(path, image, header)
        # A smaller parent ends in zeroes, of a larger one the first part shows.
        disk = disk[:size] + bytes(max(0, size - len(disk)))
    else:
        disk = bytearray(size)
    overlay(image, header, footer, disk)
    return disk, footer["uuid"]


def overlay(image, header, footer, disk):
    """Puts the sectors an image has itself over what its parents say."""
    block, size = header["block"], footer["size"]
    sectors = block // SECTOR
    bitmap_bytes = -(-sectors // 8)
    bitmap_bytes += -bitmap_bytes % SECTOR
    if header["entries"] * block < size:
        raise Malformed("too few table entries")
    for index in range(-(-size // block)):
        at = header["table"] + 4 * index
        entry = struct.unpack(">I", image[at:at + 4])[0]
        if entry == 0xFFFFFFFF:
            continue
        start = entry * SECTOR
        if start + bitmap_bytes + block > len(image) - SECTOR:
            raise Malformed("block %d ends behind the footer's start" % index)
        bitmap = image[start:start + bitmap_bytes]
        for sector in range(sectors):
            to = index * block + sector * SECTOR
            if to >= size:
                break
            if bitmap[sector >> 3] & (0x80 >> (sector & 7)):
                source = start + bitmap_bytes + sector * SECTOR
                disk[to:to + SECTOR] = image[source:source + SECTOR]
            elif footer["kind"] == 3:
                disk[to:to + SECTOR] = bytes(SECTOR)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image")
    parser.add_argument("--out")
    options = parser.parse_args()
    try:
        disk, uuid = read_disk(options.image)
    except Malformed as why:
        sys.exit("%s: %s" % (options.image, why))
    if options.out:
        with open(options.out, "wb") as file:
            file.write(disk)
    print(json.dumps({"size": len(disk), "sha256": hashlib.sha256(disk).hexdigest(),
                      "uuid": uuid.hex()}))


if __name__ == "__main__":
    main()

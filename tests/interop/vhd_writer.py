#!/usr/bin/env python3
"""Writes chains of VHD images, from the format document and from no program's source.

A chain has partial bitmaps, blocks of several sizes in any order, gaps between them, and random
bytes in every sector whose bit is clear, so that who ignores a bitmap is found out. Prints what the
top of the chain must read as (JSON: the path, size and SHA-256), computed beside the images.
"""

import argparse
import hashlib
import json
import os
import random
import struct

SECTOR = 512
FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4


def chs(size):
    """Cylinders, heads and sectors, by the algorithm of the format document."""
    total = min(size // SECTOR, 65535 * 16 * 255)
    if total >= 65535 * 16 * 63:
        spt, heads = 255, 16
        cth = total // spt
    else:
        spt = 17
        cth = total // spt
        heads = max(4, -(-cth // 1024))
        if cth >= heads * 1024 or heads > 16:
            spt, heads = 31, 16
            cth = total // spt
        if cth >= heads * 1024:
            spt, heads = 63, 16
            cth = total // spt
    return struct.pack(">HBB", cth // heads, heads, spt)


def with_checksum(data, at):
    value = ~sum(data) & 0xFFFFFFFF
    return data[:at] + struct.pack(">I", value) + data[at + 4:]


def footer(kind, size, uuid):
    offset = 0xFFFFFFFFFFFFFFFF if kind == FIXED else SECTOR
    data = struct.pack(">8sIIQI4sI4sQQ4sII16s", b"conectix", 2, 0x00010000, offset, 0, b"win ",
                       0x000A0000, b"Wi2k", size, size, chs(size), kind, 0, uuid)
    return with_checksum(data + bytes(SECTOR - len(data)), 64)


def locators(parent, at):
    """Entries and bytes of the locators that lead to `parent` in the same folder."""
    texts = [(b"MacX", ("file://./" + parent).encode()),
             (b"W2ku", (".\\" + parent).encode("utf-16-le")),
             (b"W2ru", (".\\" + parent).encode("utf-16-le"))]
    entries, data = b"", b""
    for code, text in texts:
        entries += struct.pack(">4sIIIQ", code, SECTOR, len(text), 0, at + len(data))
        data += text + bytes(-len(text) % SECTOR)
    return entries, data


def header(table, entries, block, parent_uuid, parent_name, locator_entries):
    data = struct.pack(">8sQQIIII16sII", b"cxsparse", 0xFFFFFFFFFFFFFFFF, table, 0x00010000,
                       entries, block, 0, parent_uuid, 0, 0)
    name = parent_name.encode("utf-16-be")
    data += name + bytes(512 - len(name))
    data += locator_entries + bytes(8 * 24 - len(locator_entries))
    return with_checksum(data + bytes(1024 - len(data)), 36)


class Layer:
    """One image over the disk below it."""

    def __init__(self, rng, below, below_uuid, below_name, size, block):
        self.rng = rng
        self.kind = DYNAMIC if below is None else DIFFERENCING
        self.parent_uuid = below_uuid or bytes(16)
        self.parent_name = below_name or ""
        self.size, self.block = size, block
        self.uuid = rng.randbytes(16)
        below = below or bytearray()
        self.disk = bytearray(below[:size]) + bytes(max(0, size - len(below)))
        self.blocks = {}

    def write_sectors(self):
        """Random runs of sectors, random in whole blocks now and then."""
        rng, sectors = self.rng, self.block // SECTOR
        for index in range(-(-self.size // self.block)):
            if rng.random() < 0.45:
                continue
            present = [False] * sectors
            if rng.random() < 0.2:
                present = [True] * sectors
            else:
                for _ in range(rng.randint(1, 5)):
                    first = rng.randrange(sectors)
                    for sector in range(first, min(sectors, first + rng.randint(1, 40))):
                        present[sector] = True
            self.fill_block(index, present)

    def fill_block(self, index, present):
        # Bit clear: a dynamic image must hold zeroes there, a differencing one may hold anything.
        differs = self.kind == DIFFERENCING
        data = bytearray(self.rng.randbytes(self.block) if differs else bytes(self.block))
        bitmap_bytes = -(-len(present) // 8)
        bitmap = bytearray(bitmap_bytes + -bitmap_bytes % SECTOR)
        for sector, is_present in enumerate(present):
            at = index * self.block + sector * SECTOR
            if not is_present or at >= self.size:
                continue
            value = bytes(SECTOR) if self.rng.random() < 0.1 else self.rng.randbytes(SECTOR)
            data[sector * SECTOR:(sector + 1) * SECTOR] = value
            bitmap[sector >> 3] |= 0x80 >> (sector & 7)
            self.disk[at:at + SECTOR] = value
        self.blocks[index] = bytes(bitmap) + bytes(data)

    def save(self, path):
        rng = self.rng
        entries = -(-self.size // self.block)
        table_at = SECTOR + 1024
        table = [0xFFFFFFFF] * entries
        table_bytes = 4 * entries + -(4 * entries) % SECTOR
        end = table_at + table_bytes
        entries_of_locators, locator_data = b"", b""
        if self.kind == DIFFERENCING:
            entries_of_locators, locator_data = locators(self.parent_name, end)
        foot = footer(self.kind, self.size, self.uuid)
        image = bytearray(foot)
        image += header(table_at, entries, self.block, self.parent_uuid, self.parent_name,
                        entries_of_locators)
        image += b"\xff" * table_bytes + locator_data
        order = sorted(self.blocks)
        rng.shuffle(order)
        for index in order:
            if rng.random() < 0.3:
                image += bytes(SECTOR * rng.randint(1, 9))
            table[index] = len(image) // SECTOR
            image += self.blocks[index]
        packed = b"".join(struct.pack(">I", entry) for entry in table)
        image[table_at:table_at + len(packed)] = packed
        image += foot
        with open(path, "wb") as file:
            file.write(image)


def build(options):
    rng = random.Random(options.seed)
    size = options.size
    disk, uuid, name, count = None, None, None, options.depth
    if options.base == "raw":
        # Not a whole number of sectors, to be mean.
        disk = bytearray(rng.randbytes(size - options.ragged))
        name = "base.raw"
        with open(os.path.join(options.folder, name), "wb") as file:
            file.write(disk)
    elif options.base == "fixed":
        disk, uuid, name = bytearray(rng.randbytes(size)), rng.randbytes(16), "base.vhd"
        with open(os.path.join(options.folder, name), "wb") as file:
            file.write(disk + footer(FIXED, size, uuid))
    else:
        count += 1
    blocks = [int(block) for block in options.blocks.split(",")]
    for level in range(count):
        top = level + 1 == count
        if level > 0 and options.grow and rng.random() < 0.4:
            size += SECTOR * rng.randint(1, 900)
        layer = Layer(rng, disk, uuid, name, size, rng.choice(blocks))
        layer.write_sectors()
        name = "top.vhd" if top else "level%d.vhd" % level
        layer.save(os.path.join(options.folder, name))
        disk, uuid = layer.disk, layer.uuid
    path = os.path.join(options.folder, name)
    print(json.dumps({"path": path, "size": len(disk),
                      "sha256": hashlib.sha256(disk).hexdigest()}))
    if options.out:
        with open(options.out, "wb") as file:
            file.write(disk)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--depth", type=int, default=1, help="differencing images over the base")
    parser.add_argument("--size", type=int, default=3 * 1024 * 1024 + 512, help="of the base")
    parser.add_argument("--base", choices=["dynamic", "fixed", "raw"], default="dynamic")
    parser.add_argument("--ragged", type=int, default=0, help="bytes a raw base is shorter")
    parser.add_argument("--blocks", default="4096,65536,524288,2097152")
    parser.add_argument("--grow", action="store_true", help="children may be larger")
    parser.add_argument("--out")
    build(parser.parse_args())


if __name__ == "__main__":
    main()

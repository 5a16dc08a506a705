"""The images that are served: the same content in each format, made by QEMU where it can."""

import hashlib
import os
import random
import struct
import subprocess

MIB = 1 << 20


class Image:
    """A file. `kind`: raw, vhd, chain (a VHD over others), or many (with others `beside`)."""

    def __init__(self, path, kind, disk_bytes, parents=(), beside=(), export=""):
        self.path, self.kind, self.disk_bytes, self.parents = path, kind, disk_bytes, parents
        self.beside, self.export = list(beside), export

    def all_paths(self):
        """It, and those that are served with it."""
        return [self.path, *self.beside]


def run(*words):
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


class Images:
    """Makes images in a folder when they are first asked for."""

    def __init__(self, folder, mib, orlop, write_some):
        self.folder, self.bytes, self.orlop = folder, mib * MIB, orlop
        self.write_some = write_some
        self.made = {}
        self.sums = {}
        self.tables = {}

    def path(self, name):
        """Each image lies in a folder of its own: beside its parent's copy it could not be told
        whose child a child is."""
        folder = os.path.join(self.folder, name.split(".")[0])
        os.makedirs(folder, exist_ok=True)
        return os.path.join(folder, name)

    def get(self, key):
        if key not in self.made:
            word, _, rest = key.partition("-")
            self.made[key] = getattr(self, f"make_{word}")(rest)
            # What the kernel still had to write would be written while something is timed.
            run("sync", "--data", self.made[key].path)
        return self.made[key]

    def make_raw(self, _):
        path, dice, digest = self.path("disk.raw"), random.Random(1), hashlib.sha256()
        with open(path, "wb") as file:
            for _ in range(self.bytes // MIB):
                piece = dice.randbytes(MIB)
                digest.update(piece)
                file.write(piece)
        self.sums["raw"] = digest.hexdigest()
        return Image(path, "raw", self.bytes)

    def make_vhd(self, _):
        path, raw = self.path("disk.vhd"), self.get("raw")
        # QEMU keeps the exact size only when told to.
        run("qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o",
            "subformat=dynamic,force_size=on", raw.path, path)
        self.sums["vhd"] = self.sums["raw"]
        return Image(path, "vhd", self.bytes)

    def make_copy(self, of_for):
        of, _, name = of_for.partition("-")
        source = self.get(of)
        path = self.path(f"copy-{name}{os.path.splitext(source.path)[1]}")
        run("cp", "--sparse=always", source.path, path)
        return Image(path, source.kind, source.disk_bytes)

    def make_empty(self, name):
        """A VHD without a block, fresh each time it is asked for by `renew`."""
        image = Image(self.path(f"empty-{name}.vhd"), "vhd", self.bytes)
        self.renew(image)
        return image

    def renew(self, image):
        if os.path.exists(image.path):
            os.unlink(image.path)
        run("qemu-img", "create", "-q", "-f", "vpc", "-o", "subformat=dynamic,force_size=on",
            image.path, str(image.disk_bytes))

    def make_chain(self, depth):
        """A chain whose data lie in all layers: the base is full, each child has a share."""
        depth = int(depth)
        folder = os.path.dirname(self.path(f"chain-{depth}.vhd"))
        layers = [os.path.join(folder, "1.vhd")]
        run("cp", self.get("vhd").path, layers[0])
        for layer in range(2, depth + 1):
            path = os.path.join(folder, f"{layer}.vhd")
            run(self.orlop, "create", path, "--parent", layers[-1])
            layers.append(path)
            image = Image(path, "chain", self.bytes)
            self.write_some(image, max(1, 2 * self.bytes // (65536 * depth)), layer)
        return Image(layers[-1], "chain" if depth > 1 else "vhd", self.bytes, layers[:-1])

    def make_single(self, depth):
        """One image with the content of a chain."""
        path = self.path(f"single-{depth}.vhd")
        chain, content = self.get(f"chain-{depth}"), self.path("content.raw")
        self.copy_out(chain, content)
        run("qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o",
            "subformat=dynamic,force_size=on", content, path)
        os.unlink(content)
        return Image(path, "vhd", self.bytes)

    def make_sized(self, gib):
        """A VHD of so many GiB, every block of which has its place in a sparse file; data lie at
        its start only."""
        path, size = self.path(f"sized-{gib}.vhd"), int(gib) << 30
        run(self.orlop, "create", path, "--size", str(size))
        self.place_all(path)
        image = Image(path, "vhd", size)
        self.write_some(image, 0, 1)
        return image

    def place_all(self, path):
        """Gives every block of an empty VHD its place, one behind the other."""
        with open(path, "r+b") as file:
            footer = file.read(512)
            file.seek(512 + 16)
            table_at, _, blocks, block_bytes = struct.unpack(">QIII", file.read(20))
            slot = 8 + block_bytes // 512  # the bitmap ends where 4 KiB of data may begin
            first = -(-(table_at + 4 * blocks) // 4096) * 8 + 7
            if (first, slot, blocks) not in self.tables:
                self.tables[first, slot, blocks] = struct.pack(
                    f">{blocks}I", *(first + slot * block for block in range(blocks)))
            file.seek(table_at)
            file.write(self.tables[first, slot, blocks])
            end = (first + slot * blocks) * 512
            file.truncate(end)
            file.seek(end)
            file.write(footer)

    def make_many(self, count):
        """So many VHDs for one server, each in a folder of its own; data lie in the first."""
        return self.several("many", int(count), self.get("sized-1"))

    def make_full(self, count):
        """So many of the largest VHDs, every block of which has its place."""
        return self.several("full", int(count), self.get("sized-2040"), self.place_all)

    def several(self, name, count, first, also=None):
        beside = []
        for number in range(1, count):
            folder = os.path.join(self.folder, name, str(number))
            path = os.path.join(folder, f"{number}.vhd")
            if not os.path.exists(path):
                os.makedirs(folder)
                run(self.orlop, "create", path, "--size", str(first.disk_bytes))
                if also:
                    also(path)
            beside.append(path)
        export = os.path.basename(first.path) if beside else ""
        return Image(first.path, "many", first.disk_bytes, beside=beside, export=export)

    def make_scattered(self, percent):
        """A full VHD of which so many percent of the blocks lie in random order in the file."""
        path, dice = self.path(f"scattered-{percent}.vhd"), random.Random(int(percent))
        run(self.orlop, "create", path, "--size", str(self.bytes))
        blocks = list(range(self.bytes // (2 * MIB)))
        moved = dice.sample(range(len(blocks)), len(blocks) * int(percent) // 100)
        for place, block in zip(moved, dice.sample([blocks[at] for at in moved], len(moved))):
            blocks[place] = block
        image = Image(path, "vhd", self.bytes)
        self.write_some(image, blocks, 1)
        return image

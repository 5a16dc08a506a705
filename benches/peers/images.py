"""The images that are served: the same content in each format, made by QEMU where it can."""

import hashlib
import os
import random
import subprocess

MIB = 1 << 20


class Image:
    """A file. `kind`: raw, vhd, or chain (a VHD over others)."""

    def __init__(self, path, kind, disk_bytes, parents=()):
        self.path, self.kind, self.disk_bytes, self.parents = path, kind, disk_bytes, parents


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
        """A VHD of so many GiB that holds nothing but the usual data at its start."""
        path, size = self.path(f"sized-{gib}.vhd"), int(gib) << 30
        run(self.orlop, "create", path, "--size", str(size))
        image = Image(path, "vhd", size)
        self.write_some(image, 0, 1)
        return image

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

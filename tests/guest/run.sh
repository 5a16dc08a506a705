#!/usr/bin/env bash
#
# Boots a Debian kernel under QEMU (TCG, no network) and lets it use our exports as disks:
#
#   kernel  orlop runs in the guest and the kernel's own client (nbd.ko, four connections) is on it
#   layers  the same with a child image, whose parent must not change
#   disk    orlop runs on this machine and QEMU's NBD client gives the guest a virtio disk
#   vsock   orlop listens on AF_VSOCK in the guest; only with ORLOP_GUEST_VSOCK=1
#
# Afterwards the images are judged here: by `orlop check`, by QEMU's VHD driver, by e2fsck, and by
# comparing what debugfs finds in the file systems with what was put there.
#
#   ORLOP=PATH              the program under test (built if not given)
#   ORLOP_NO_INSTALL=1      install nothing
#   ORLOP_GUEST_VSOCK=1     the stage `vsock` too
#   ORLOP_GUEST_KEEP=1      keep the working directory, and show the guest's console

set -u -o pipefail
cd "$(dirname "$0")/../.." || exit 1
exec </dev/null
export LC_ALL=C.UTF-8 PATH="$PATH:/usr/sbin:/sbin:${HOME:-}/.cargo/bin"
here=$PWD/tests/guest
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target/guest" || exit 1
store=$(realpath "$target/guest")
started=$SECONDS

die() {
    echo "guest: $*" >&2
    exit 1
}
say() { echo "[$((SECONDS - started)) s] $*"; }

# What the machine lacks is installed, or the run ends: a guest that never boots finds nothing.
install_packages() {
    [ -z "${ORLOP_NO_INSTALL:-}" ] || return 0
    "$here/packages.sh" "$store" || die 'not everything could be installed'
}

work=$(mktemp -d) || exit 1
server=
finish() {
    [ -z "$server" ] || kill "$server" 2>/dev/null
    if [ -n "${ORLOP_GUEST_KEEP:-}" ]; then echo "kept: $work"; else rm -rf "$work"; fi
}
trap finish EXIT

# A program and every library it names, at the same places in the guest.
pack() {
    local path file
    path=$(command -v "$1") || die "$1 is missing"
    install -D "$(realpath "$path")" "$work/root/bin/$(basename "$1")"
    ldd "$path" | grep -o '/[^ ]*' | while read -r file; do
        [ -e "$work/root$file" ] || install -D "$(realpath "$file")" "$work/root$file"
    done
}

# Forty files that no two runs share, and their checksums.
make_payload() {
    local n
    mkdir -p "$work/root/payload"
    for n in $(seq 1 40); do
        head -c $((n * 16381)) /dev/urandom >"$work/root/payload/file$n"
    done
    (cd "$work/root/payload" && sha256sum file* >"$work/sums" && cp "$work/sums" SUMS)
}

make_guest() {
    local root=$work/root kernel=$1 version=$2 number=100 module file
    mkdir -p "$root"/{bin,proc,sys,dev,tmp,run,mnt,lib/modules}
    cp /bin/busybox "$root/bin/busybox"
    ln -s busybox "$root/bin/sh"
    for program in mke2fs e2fsck sfdisk nbd-client; do pack "$program"; done
    ln -s mke2fs "$root/bin/mkfs.ext4"
    [ ! -e /etc/mke2fs.conf ] || install -D -m 644 /etc/mke2fs.conf "$root/etc/mke2fs.conf"
    pack "$orlop"
    mv "$root/bin/$(basename "$orlop")" "$root/bin/orlop" 2>/dev/null
    # Symbols are most of a debug build, and the guest's memory is small.
    strip "$root/bin/orlop" 2>/dev/null
    local modules=(virtio_pci virtio_blk nbd)
    [ -z "${ORLOP_GUEST_VSOCK:-}" ] || {
        modules+=(vsock_loopback)
        pack nbdinfo
        pack nbdcopy
    }
    # Numbered in the order in which they can be loaded.
    for module in "${modules[@]}"; do
        modprobe -d "$kernel" -S "$version" --show-depends "$module" || die "no module $module"
    done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$work/modules"
    while read -r file; do
        cp "$file" "$root/lib/modules/$((number++))-$(basename "$file")"
    done <"$work/modules"
    cp "$here/init" "$root/init"
    cp "$here/stages.sh" "$root/stages.sh"
    chmod +x "$root/init"
    echo "kernel layers disk ${ORLOP_GUEST_VSOCK:+vsock}" >"$root/stages"
    (cd "$root" && find . | cpio -o -H newc --quiet) >"$work/initramfs" || die 'no initramfs'
}

serve() {
    "$orlop" create "$work/disk.vhd" -s 192M >/dev/null || die 'no image for the virtio disk'
    "$orlop" serve "$work/disk.vhd" --socket "$work/nbd" >"$work/uri" 2>"$work/server.log" &
    server=$!
    for _ in $(seq 200); do
        [ ! -s "$work/uri" ] || return 0
        sleep 0.05
    done
    die "orlop does not serve: $(cat "$work/server.log")"
}

stop_server() {
    kill -TERM "$server" && wait "$server" || die "orlop ended badly: $(cat "$work/server.log")"
    server=
}

boot() {
    # The second disk takes the guest's own images home.
    truncate -s 512M "$work/home" || die 'no room'
    timeout -k 5 240 qemu-system-x86_64 -M q35 -accel tcg,thread=multi -cpu max -smp 2 -m 1536 \
        -nographic -no-reboot -nodefaults -serial stdio -kernel "$1" -initrd "$work/initramfs" \
        -append 'console=ttyS0 quiet panic=-1' \
        -drive "file=nbd+unix:///?socket=$work/nbd,format=raw,if=virtio,discard=unmap" \
        -drive "file=$work/home,format=raw,if=virtio,cache=unsafe" >"$work/console" 2>&1
    local ended=$?
    tr -d '\r' <"$work/console" | grep -a '^guest:'
    if [ $ended != 0 ] || ! grep -aq '^guest: all is well' "$work/console"; then
        tail -n 60 "$work/console"
        echo "orlop on this machine said:"
        cat "$work/server.log"
        die "the guest failed (QEMU ended with $ended)"
    fi
    [ -z "${ORLOP_GUEST_KEEP:-}" ] || cat "$work/console"
}

# judge NAME IMAGE OFFSET: the file system at OFFSET of a VHD holds what the guest was given.
judge() {
    local name=$1 image=$2 offset=$3 raw=$work/$1.raw
    shift 3
    "$orlop" check --data "$image" "$@" >"$work/check" 2>&1 || die "$name: $(cat "$work/check")"
    "$orlop" serve "$image" --read-only --socket "$work/$name" "$@" \
        --run "nbdcopy \"\$uri\" $raw" >/dev/null 2>"$work/log" || die "$name: $(cat "$work/log")"
    e2fsck -f -n "$raw?offset=$offset" >"$work/check" 2>&1 || die "$name: $(cat "$work/check")"
    rm -rf "$work/out" && mkdir "$work/out"
    debugfs -R "rdump /kept $work/out" "$raw?offset=$offset" 2>/dev/null
    (cd "$work/out/kept" && sha256sum --quiet -c "$work/sums") || die "$name: files differ"
    say "$name: 40 files are whole, the file system and the image are sound"
}

# QEMU's VHD driver reads the same bytes: an image without parents only.
judge_by_qemu() {
    qemu-img compare -f vpc -F raw "$2" "$work/$1.raw" || die "$1: QEMU reads something else"
}

# only BYTE START LENGTH: nothing but this byte lies there in the copy of the disk.
only() {
    [ "$3" -gt 0 ] || die "no bytes to look at ($2, $3)"
    tail -c +$(($2 + 1)) "$work/disk.raw" | head -c "$3" >"$work/part"
    [ "$(stat -c %s "$work/part")" = "$3" ] || die "the disk ends before $2 + $3"
    tr -d "$1" <"$work/part" | cmp - /dev/null || die "disk: not only '$1' at $2 + $3"
}

judge_all() {
    local images=$work/images
    mkdir "$images"
    tar -x -f "$work/home" -C "$images" || die 'the guest brought no images home'
    ls -l "$images"
    judge kernel "$images/kernel.vhd" 0
    judge_by_qemu kernel "$images/kernel.vhd"
    judge layers "$images/child.vhd" 0
    judge disk "$work/disk.vhd" $((1 << 20))
    judge_by_qemu disk "$work/disk.vhd"
    # The guest filled the second partition with one byte, then discarded 8 MiB in the middle.
    local mib=$((1 << 20)) raw=$work/disk.raw sectors
    sectors=$(sfdisk -d "$raw" | sed -n 's/.*start= *264192, size= *\([0-9]*\).*/\1/p')
    only 'o' $((129 * mib)) $((32 * mib))
    only '\0' $((161 * mib)) $((8 * mib))
    only 'o' $((169 * mib)) $((sectors * 512 - 40 * mib))
    # Blocks of 2 MiB are holes again where all of them was discarded.
    "$orlop" serve "$work/disk.vhd" --read-only --socket "$work/map" \
        --run "nbdinfo --map \"\$uri\"" 2>/dev/null >"$work/map.txt"
    awk -v from=$((162 * mib)) -v to=$((168 * mib)) '
        $3 % 2 == 1 {
            start = $1 > from ? $1 : from
            end = $1 + $2 < to ? $1 + $2 : to
            if (end > start) { hole += end - start }
        }
        END { exit hole == to - from ? 0 : 1 }' "$work/map.txt" ||
        die "disk: what the guest discarded is no hole: $(cat "$work/map.txt")"
    say 'disk: the second partition holds the pattern, and a hole'
}

[ "$(uname -m)" = x86_64 ] || {
    [ "${CI:-}" != true ] || die 'only x86_64 has a guest'
    echo 'SKIPPED: the guest is for x86_64'
    exit 0
}
install_packages
kernel=$store/kernel
[ -e "$kernel/version" ] || die "no kernel in $kernel: run without ORLOP_NO_INSTALL"
version=$(cat "$kernel/version")
if [ -z "${ORLOP:-}" ]; then
    cargo build --bin orlop || exit 1
    ORLOP=$target/debug/orlop
fi
orlop=$(realpath "$ORLOP")
say "kernel $version, $(qemu-system-x86_64 --version | head -n 1)"
make_payload
make_guest "$kernel" "$version"
serve
say "booting with $(($(stat -c %s "$work/initramfs") >> 20)) MiB of initramfs"
boot "$kernel/boot/vmlinuz-$version"
say 'the guest is done'
stop_server
judge_all
say 'all is well'

# What the guest does with one kind of disk: `sh -eu stages.sh STAGE`. Runs in busybox's shell.

say() { echo "guest: $*"; }
die() {
    say "$*"
    [ ! -e /tmp/log ] || cat /tmp/log
    exit 1
}

# start IMAGE OPTION...: serves an image inside the guest and waits until it listens.
start() {
    : >/tmp/uri
    orlop serve "$@" >/tmp/uri 2>/tmp/log &
    server=$!
    for _ in $(seq 100); do
        [ ! -s /tmp/uri ] || return 0
        sleep 0.1
    done
    die 'orlop does not serve'
}

stop() {
    kill -TERM "$server"
    wait "$server" || die "orlop ended with $?"
}

# attach SOCKET: the kernel's client with four connections.
attach() {
    nbd-client -unix "$1" /dev/nbd0 -C 4 -b 512 >/tmp/client 2>&1 || die "$(cat /tmp/client)"
    for _ in $(seq 100); do
        [ "$(cat /sys/block/nbd0/size)" = 0 ] || break
        sleep 0.1
    done
    # Established sockets of the server's path; the listening one is in state 01.
    connections=$(awk -v path="$1" '$NF == path && $6 == "03"' /proc/net/unix | wc -l)
    [ "$connections" = 4 ] || die "$connections connections instead of 4"
    queue=/sys/block/nbd0/queue
    say "nbd0: $(cat /sys/block/nbd0/size) sectors, $(cat $queue/write_cache)," \
        "FUA $(cat $queue/fua), discard up to $(cat $queue/discard_max_bytes) bytes"
    [ "$(cat $queue/write_cache)" = 'write back' ] || die 'no flush was negotiated'
    [ "$(cat $queue/fua)" = 1 ] || die 'no FUA was negotiated'
    [ "$(cat $queue/discard_max_bytes)" -gt 0 ] || die 'no trim was negotiated'
}

detach() {
    nbd-client -d /dev/nbd0 >/tmp/client 2>&1 || die "$(cat /tmp/client)"
    for _ in $(seq 100); do
        [ -e /sys/block/nbd0/pid ] || return 0
        sleep 0.1
    done
    die 'nbd0 stays connected'
}

# fill DEVICE [SIZE]: a file system with the payload, and as much again to be removed later.
fill() {
    mkfs.ext4 -q -F "$@"
    mount -t ext4 "$1" /mnt
    mkdir /mnt/kept /mnt/gone
    cp /payload/file* /mnt/kept/
    cp /payload/file* /mnt/gone/
    sync
    umount /mnt
    look "$1"
}

# look DEVICE: the file system is sound and the payload is there, read from the device again.
look() {
    e2fsck -f -n "$1" >/tmp/check 2>&1 || die "$(cat /tmp/check)"
    echo 3 >/proc/sys/vm/drop_caches
    mount -t ext4 -o ro "$1" /mnt
    (cd /mnt/kept && sha256sum -c /payload/SUMS >/dev/null) || die 'files differ'
    umount /mnt
}

# thin DEVICE: removes half of the files and gives their space back.
thin() {
    mount -t ext4 "$1" /mnt
    rm -r /mnt/gone
    sync
    say "$(fstrim -v /mnt)"
    umount /mnt
    look "$1"
}

# behind DEVICE: behind the file system, direct and aligned to sectors only, four at a time.
behind() {
    for part in 0 1 2 3; do
        dd if=/payload/file40 of="$1" bs=512 seek=$((204801 + part * 1201)) count=1200 \
            oflag=direct conv=notrunc 2>/dev/null &
        writers="${writers:-} $!"
    done
    for writer in $writers; do wait "$writer"; done
    head -c $((1200 * 512)) /payload/file40 >/tmp/wanted
    for part in 0 1 2 3; do
        dd if="$1" bs=512 skip=$((204801 + part * 1201)) count=1200 iflag=direct 2>/dev/null |
            cmp - /tmp/wanted || die "part $part is not what was written"
    done
    blkdiscard -o $((100 << 20)) -l $((28 << 20)) "$1"
    dd if="$1" bs=1M skip=100 count=28 iflag=direct 2>/dev/null | tr -d '\0' |
        cmp - /dev/null || die 'what was discarded does not read as zeroes'
}

held() { du -k "$1" | cut -f1; }

stage_kernel() {
    orlop create /tmp/kernel.vhd -s 128M >/dev/null
    start /tmp/kernel.vhd --socket /run/nbd
    say "serving at $(cat /tmp/uri)"
    attach /run/nbd
    fill /dev/nbd0 96M
    full=$(held /tmp/kernel.vhd)
    thin /dev/nbd0
    behind /dev/nbd0
    detach
    stop
    thinned=$(held /tmp/kernel.vhd)
    say "the image held $full KiB full and $thinned KiB trimmed"
    [ "$thinned" -lt "$full" ] || die 'trimming gave nothing back'
    orlop check --data /tmp/kernel.vhd >/tmp/check 2>&1 || die "$(cat /tmp/check)"
}

# A child of what `kernel` left: the parent's bytes stay as they are.
stage_layers() {
    before=$(sha256sum </tmp/kernel.vhd)
    orlop create /tmp/child.vhd --parent /tmp/kernel.vhd >/dev/null
    for aio in uring threads; do
        start /tmp/child.vhd --socket /run/layers --aio $aio
        attach /run/layers
        look /dev/nbd0
        mount -t ext4 /dev/nbd0 /mnt
        cp /payload/file40 /mnt/$aio
        rm /mnt/kept/file7
        cp /payload/file7 /mnt/kept/
        umount /mnt
        look /dev/nbd0
        detach
        stop
    done
    [ "$(sha256sum </tmp/kernel.vhd)" = "$before" ] || die "the parent's bytes changed"
}

# The disk QEMU gives us: two partitions, a file system on the first, a pattern on the second.
stage_disk() {
    printf 'label: gpt\nstart=1MiB, size=128MiB\nstart=129MiB\n' | sfdisk -q /dev/vda
    blockdev --rereadpt /dev/vda 2>/dev/null || true
    [ -b /dev/vda2 ] || die 'no second partition'
    [ "$(cat /sys/block/vda/queue/discard_max_bytes)" -gt 0 ] || die 'no discard over virtio'
    fill /dev/vda1
    thin /dev/vda1
    size=$(blockdev --getsize64 /dev/vda2)
    head -c "$size" /dev/zero | tr '\0' 'o' | dd of=/dev/vda2 bs=64k conv=fsync 2>/dev/null
    # Flushed, so that the image's table lists the blocks: others are zeroed and stay.
    blkdiscard -o $((32 << 20)) -l $((8 << 20)) /dev/vda2
}

# nbdcopy over AF_VSOCK's loopback, if the server listens there.
stage_vsock() {
    orlop create /tmp/vsock.vhd -s 32M >/dev/null
    start /tmp/vsock.vhd --vsock 10810 --allow-remote
    nbdinfo nbd+vsock://1:10810 | grep export-size
    cat /payload/file3? >/tmp/source
    truncate -s 32M /tmp/source
    nbdcopy --flush /tmp/source nbd+vsock://1:10810 || { cat /tmp/log; die 'nbdcopy over vsock'; }
    nbdcopy nbd+vsock://1:10810 /tmp/copy
    cmp /tmp/source /tmp/copy || die 'what was copied in does not come out'
    stop
    orlop check --data /tmp/vsock.vhd
    rm /tmp/source /tmp/copy
}

"stage_$1"

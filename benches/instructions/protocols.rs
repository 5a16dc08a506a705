//! The wires: NBD requests parsed and answered, FUSE requests sorted, served and answered. Nothing
//! is sent, and the disk behind FUSE answers at once.

use std::hint::black_box;
use std::sync::Arc;
use std::time::SystemTime;

use nbd::wire::HeaderFormat;
use nbd::{ContextId, Extent, Parsed, Request, Segment, Transmission};
use orlop::engine::units::ByteLen;
use orlop::transport::nbd::{ExportShape, export_of};
use orlop_fuse::channel::{HEAD_BYTES, Order};
use orlop_fuse::ops::Ops;
use orlop_fuse::ring::{Frame, Requests, Slot};
use orlop_fuse::{Bytes, DiskId, Errno, Fact, Layout, NewDisk, Port, ReadReply, Reply, Run, Text};

use crate::PathUnderTest;
use crate::support::scatter;

/// Bytes of the disk behind the requests.
pub(crate) const DISK_BYTES: u64 = 1 << 30;
const PAGES: u64 = DISK_BYTES / 4096;

/// NBD's READ, WRITE and BLOCK_STATUS; FUSE's LOOKUP, OPEN, READ and WRITE, GETATTR.
pub(crate) const NBD_READ: u16 = 0;
pub(crate) const NBD_WRITE: u16 = 1;
const NBD_BLOCK_STATUS: u16 = 7;
const FUSE_LOOKUP: u32 = 1;
const FUSE_GETATTR: u32 = 3;
const FUSE_OPEN: u32 = 14;
const FUSE_READ: u32 = 15;
const FUSE_WRITE: u32 = 16;

/// Counts all of it.
pub(crate) fn count_all() {
    nbd_requests();
    nbd_answers();
    fuse();
}

/// What a handshake would have agreed on.
pub(crate) fn session(headers: HeaderFormat) -> nbd::Session {
    let export = export_of(ExportShape {
        name: String::new(),
        description: String::new(),
        size: ByteLen::new(DISK_BYTES),
        read_only: false,
        resize: false,
    });
    let name = nbd::ContextName::Allocation;
    let contexts = vec![nbd::Context { id: ContextId(1), name }];
    let leftover = Vec::new();
    nbd::Session { export, structured: true, contexts, no_zeroes: true, headers, leftover }
}

/// The disk's byte at which the request of a cookie begins.
pub(crate) fn place_of(cookie: u64) -> u64 {
    scatter(cookie) % PAGES * 4096
}

/// A request as a client sends it, 4 KiB long.
fn asked(headers: HeaderFormat, command: u16, cookie: u64) -> Vec<u8> {
    let wide = headers == HeaderFormat::Extended;
    let magic: u32 = if wide { 0x21E4_1C71 } else { 0x2560_9513 };
    // PAYLOAD_LEN, which extended headers want of a WRITE.
    let flags: u16 = if wide && command == NBD_WRITE { 32 } else { 0 };
    let mut bytes = magic.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(place_of(cookie).to_be_bytes());
    if wide {
        bytes.extend(4096_u64.to_be_bytes());
    } else {
        bytes.extend(4096_u32.to_be_bytes());
    }
    bytes
}

/// So many requests of 4 KiB, with their payload.
pub(crate) fn batch(command: u16, count: u64) -> Vec<u8> {
    let payload = if command == NBD_WRITE { 4096 } else { 0 };
    let one = |cookie| [asked(HeaderFormat::Compact, command, cookie), vec![7; payload]].concat();
    (0..count).flat_map(one).collect()
}

fn parsed(gate: &Transmission, bytes: &[u8]) -> Request {
    match gate.parse(bytes) {
        Parsed::Request { request, .. } => request,
        other => unreachable!("a sound request is taken, not {other:?}"),
    }
}

fn nbd_requests() {
    for (name, headers, command) in [
        ("parse an NBD READ", HeaderFormat::Compact, NBD_READ),
        ("parse an NBD WRITE", HeaderFormat::Compact, NBD_WRITE),
        ("parse an NBD READ, extended header", HeaderFormat::Extended, NBD_READ),
    ] {
        let gate = Transmission::new(&session(headers));
        let stream: Vec<Vec<u8>> = (0..256).map(|cookie| asked(headers, command, cookie)).collect();
        PathUnderTest { name, warm: 100, turns: 2000, each: 1 }.take(|turn| {
            black_box(parsed(&gate, &stream[turn as usize % stream.len()]));
        });
    }
}

fn nbd_answers() {
    let gate = Transmission::new(&session(HeaderFormat::Compact));
    let style = gate.reply_style();
    let read = parsed(&gate, &asked(HeaderFormat::Compact, NBD_READ, 7));
    let name = "head of an NBD reply, data";
    PathUnderTest { name, warm: 100, turns: 2000, each: 1 }.take(|_| {
        black_box(style.before_data(black_box(read).echo(), 4096));
    });
    let name = "head of an NBD reply, done";
    PathUnderTest { name, warm: 100, turns: 2000, each: 1 }.take(|_| {
        black_box(style.done(black_box(read).echo()));
    });
    let (mut headers, mut pieces) = (Vec::new(), Vec::new());
    let half = nbd::Bytes(2048);
    let segments = [Segment::Data(half), Segment::Hole(half)];
    let name = "plan of an NBD reply, data and a hole";
    PathUnderTest { name, warm: 100, turns: 2000, each: 1 }.take(|_| {
        headers.clear();
        pieces.clear();
        let planned = style.plan_read(&read, black_box(&segments), &mut headers, &mut pieces);
        planned.expect("the segments add up");
    });
    let status = parsed(&gate, &asked(HeaderFormat::Compact, NBD_BLOCK_STATUS, 8));
    let extents: Vec<Extent> =
        (0..256).map(|at| Extent { length: nbd::Bytes(16), flags: at % 2 }).collect();
    let name = "extent of an NBD block status";
    let mut out = Vec::new();
    PathUnderTest { name, warm: 10, turns: 20, each: 256 }.take(|_| {
        out.clear();
        let extents = black_box(&extents).iter().copied();
        let told = style.block_status(&mut out, &status, ContextId(1), extents, true);
        told.expect("there are extents");
    });
}

/// A disk of zeroes that answers at once.
struct AtOnce;

impl Port for AtOnce {
    fn read(&self, _: DiskId, extent: orlop_fuse::Extent, reply: ReadReply) {
        static ZEROES: [u8; 4096] = [0; 4096];
        reply.data(&ZEROES[..extent.len.0 as usize]);
    }

    fn write(&self, _: DiskId, _: orlop_fuse::Offset, _: &[u8], _: bool, reply: Reply<()>) {
        reply.done(());
    }

    fn flush(&self, _: DiskId, reply: Reply<()>) {
        reply.done(());
    }

    fn punch(&self, _: DiskId, _: orlop_fuse::Extent, reply: Reply<()>) {
        reply.done(());
    }

    fn zero(&self, _: DiskId, _: orlop_fuse::Extent, reply: Reply<()>) {
        reply.done(());
    }

    fn map(&self, _: DiskId, _: orlop_fuse::Extent, reply: Reply<Vec<Run>>) {
        reply.fail(Errno::NotSupported);
    }

    fn allocated(&self, _: DiskId, extent: orlop_fuse::Extent, reply: Reply<Bytes>) {
        reply.done(extent.len);
    }

    fn text(&self, _: DiskId, _: Text, reply: Reply<Vec<u8>>) {
        reply.done(Vec::new());
    }

    fn facts(&self, _: DiskId, reply: Reply<Vec<Fact>>) {
        reply.done(Vec::new());
    }
}

/// Where an answer goes: its first bytes are kept, where somebody wants them.
struct Kept(std::sync::mpsc::Sender<u64>);

impl Slot for Kept {
    fn finish(self, errno: i32, bytes: &[u8]) {
        assert_eq!(errno, 0, "a sound request is served");
        let first = bytes.first_chunk().copied().map_or(0, u64::from_ne_bytes);
        self.0.send(first).expect("the asker waits");
    }
}

/// Takes an answer and forgets it.
struct Dropped;

impl Slot for Dropped {
    fn finish(self, errno: i32, bytes: &[u8]) {
        black_box((errno, bytes));
    }
}

/// `fuse_in_header` and behind it the words of an operation, with room for the longest.
fn fuse_request(opcode: u32, node: u64, words: &[u64]) -> [u8; HEAD_BYTES] {
    let mut bytes = [0; HEAD_BYTES];
    bytes[4..8].copy_from_slice(&opcode.to_ne_bytes());
    bytes[16..24].copy_from_slice(&node.to_ne_bytes());
    for (word, place) in words.iter().zip(bytes[40..].chunks_exact_mut(8)) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

fn frame<'a>(request: &'a [u8; HEAD_BYTES], payload: &'a [u8]) -> Frame<'a> {
    Frame { head: &request[..40], operation: &request[40..], payload }
}

/// A tree of one disk, the inode of the disk's file and an open handle of it.
fn one_disk() -> (Requests, u64, u64) {
    let ops = Ops::new(Arc::new(AtOnce), Layout::Single, false);
    let disk = NewDisk {
        id: DiskId(3),
        label: b"disk".to_vec(),
        len: Bytes(DISK_BYTES),
        read_only: false,
        windows: Vec::new(),
        modified: SystemTime::UNIX_EPOCH,
    };
    ops.add(&disk).expect("the first disk fits");
    let requests = Requests::apart(ops);
    let (sender, answers) = std::sync::mpsc::channel();
    let ask = |request: [u8; HEAD_BYTES], payload: &[u8]| {
        requests.serve(&frame(&request, payload), Kept(sender.clone()));
        answers.recv().expect("it answers at once")
    };
    let inode = ask(fuse_request(FUSE_LOOKUP, 1, &[]), b"disk\0");
    // O_RDWR
    let handle = ask(fuse_request(FUSE_OPEN, inode, &[2]), &[]);
    (requests, inode, handle)
}

fn fuse() {
    let (requests, inode, handle) = one_disk();
    let place = |turn: u64| scatter(turn) % PAGES * 4096;
    let read = |turn| fuse_request(FUSE_READ, inode, &[handle, place(turn), 4096]);
    let write = |turn| fuse_request(FUSE_WRITE, inode, &[handle, place(turn), 4096]);
    let name = "sort a FUSE read";
    PathUnderTest { name, warm: 100, turns: 2000, each: 1 }.take(|turn| {
        let order = requests.order(&read(turn), 0);
        assert!(matches!(black_box(order), Order::Read { .. }));
    });
    let name = "sort a FUSE write";
    PathUnderTest { name, warm: 100, turns: 2000, each: 1 }.take(|turn| {
        let order = requests.order(&write(turn), 4096);
        assert!(matches!(black_box(order), Order::Write { .. }));
    });
    let name = "serve a FUSE read";
    PathUnderTest { name, warm: 100, turns: 2000, each: 1 }.take(|turn| {
        requests.serve(&frame(&read(turn), &[]), Dropped);
    });
    let (name, data) = ("serve a FUSE write", [7; 4096]);
    PathUnderTest { name, warm: 100, turns: 2000, each: 1 }.take(|turn| {
        requests.serve(&frame(&write(turn), &data), Dropped);
    });
    let name = "serve a FUSE getattr";
    let getattr = fuse_request(FUSE_GETATTR, inode, &[]);
    PathUnderTest { name, warm: 100, turns: 2000, each: 1 }.take(|_| {
        requests.serve(&frame(&getattr, &[]), Dropped);
    });
}

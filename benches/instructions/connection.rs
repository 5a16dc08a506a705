//! A whole connection: the loop of a shard, its ring, its NBD client and a raw disk, over a socket
//! pair whose other end asks in batches. The kernel's part is done but not counted.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use orlop::engine::Disk;
use orlop::engine::effect::FileId;
use orlop::engine::units::{ByteLen, DiskOffset, Extent};
use orlop::format::Flat;
use orlop::host::memory::ArenaSize;
use orlop::host::{Descriptors, OpenMode};
use orlop::meter::{Meter, Rates, Throttle};
use orlop::shard::{DiskTag, ExportKey, Link, Mailbox, NewClient, Stepped};
use orlop::transport::nbd::{ClientLimits, ClientSettings, NbdClient};

use crate::PathUnderTest;
use crate::baseline::WITH_KERNEL;
use crate::protocols::{self, DISK_BYTES};

/// Bytes of a request, and of its answer: a structured header, the offset, 4 KiB.
const ASKED_BYTES: usize = 28;
const READ_BYTES: usize = 20 + 8 + 4096;
const WROTE_BYTES: usize = 20;
/// So many disks may lie attached in one shard while one is used.
const IDLE_DISKS: usize = 500;
/// Turns of the loop within which a batch is answered.
const PATIENCE: usize = 100_000;

type Asked<T> = Pin<Box<dyn Future<Output = T>>>;

/// What the disk's file holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum File {
    Whole,
    Hole,
}

/// A shard with a disk and one client.
struct Rig {
    shard: Stepped,
    peer: UnixStream,
    answer: Vec<u8>,
}

/// Counts all of it; nothing where there is no ring.
pub(crate) fn count_all() {
    alone();
    not_in_memory();
    beside_idle_disks();
}

fn alone() {
    for depth in [1, 32] {
        let read = format!("NBD read of 4 KiB, raw, {depth} at a time, {WITH_KERNEL}");
        let write = format!("NBD write of 4 KiB, raw, {depth} at a time, {WITH_KERNEL}");
        let (warm, turns, each) = (640 / depth, 3200 / depth, depth);
        let ask = |command| protocols::batch(command, depth);
        let Some(mut rig) = Rig::try_new(File::Whole, 0) else {
            crate::leave_out(&read);
            crate::leave_out(&write);
            continue;
        };
        let request = ask(protocols::NBD_READ);
        debug_assert_eq!(request.len(), ASKED_BYTES * depth as usize);
        PathUnderTest { name: &read, warm, turns, each }
            .take(|_| rig.exchange(&request, READ_BYTES * depth as usize));
        let request = ask(protocols::NBD_WRITE);
        PathUnderTest { name: &write, warm, turns, each }
            .take(|_| rig.exchange(&request, WROTE_BYTES * depth as usize));
    }
}

/// What the page cache does not have whole goes through the ring.
fn not_in_memory() {
    let name = format!("NBD read of 4 KiB, a hole of raw, 32 at a time, {WITH_KERNEL}");
    let Some(mut rig) = Rig::try_new(File::Hole, 0) else { return crate::leave_out(&name) };
    let request = protocols::batch(protocols::NBD_READ, 32);
    PathUnderTest { name: &name, warm: 20, turns: 100, each: 32 }
        .take(|_| rig.exchange(&request, READ_BYTES * 32));
}

/// What a shard has besides must cost nobody anything.
fn beside_idle_disks() {
    let name = format!("NBD read of 4 KiB, raw, beside {IDLE_DISKS} idle disks, {WITH_KERNEL}");
    let Some(mut rig) = Rig::try_new(File::Whole, IDLE_DISKS) else {
        return crate::leave_out(&name);
    };
    let request = protocols::batch(protocols::NBD_READ, 1);
    PathUnderTest { name: &name, warm: 640, turns: 3200, each: 1 }
        .take(|_| rig.exchange(&request, READ_BYTES));
}

fn answered<T>(asked: &mut Asked<T>) -> Option<T> {
    match asked.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

impl Rig {
    /// None where there is no ring.
    fn try_new(content: File, idle: usize) -> Option<Self> {
        let made = Self::new(content, idle);
        made.inspect_err(|why| eprintln!("no ring can be had here: {why}")).ok()
    }

    fn new(content: File, idle: usize) -> std::io::Result<Self> {
        let (mailbox, mut shard) =
            Stepped::over_ring(ArenaSize::default(), Duration::from_secs(10))?;
        let place = tempfile::tempdir()?;
        let path = place.path().join("disk.raw");
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        file.set_len(DISK_BYTES)?;
        if content == File::Whole {
            // All that is asked for, and what lies around it: it is looked at together.
            let around = |cookie| protocols::place_of(cookie) >> 20 << 20;
            let written = (0..32).map(around).map(|at| file.write_all_at(&vec![7; 1 << 20], at));
            written.collect::<Result<(), _>>()?;
        }
        let mut one_more = || {
            Ok::<_, std::io::Error>(attach(&mailbox, &mut shard, OwnedFd::from(file.try_clone()?)))
        };
        for _ in 0..idle {
            one_more()?;
        }
        let disk = one_more()?;
        let (ours, peer) = UnixStream::pair()?;
        let window = Extent::new(DiskOffset::new(0), ByteLen::new(DISK_BYTES));
        let settings = ClientSettings {
            window,
            whole: None,
            limits: ClientLimits::default(),
            export_meter: Arc::default(),
            meter: Arc::<Meter>::default(),
            throttle: Arc::new(Throttle::new(Rates::default())),
        };
        let session = protocols::session(nbd::wire::HeaderFormat::Compact);
        let client = Box::new(NbdClient::new(&session, settings));
        let link = Link::Socket(ours.into());
        let new = NewClient { disk, export: ExportKey(1), link, client, guard: Box::new(()) };
        assert!(mailbox.connect(new).is_ok(), "the mailbox has room");
        // The mailbox must outlive its shard, which takes its end for a wish to end.
        std::mem::forget(mailbox);
        peer.set_nonblocking(true)?;
        Ok(Self { shard, peer, answer: vec![0; 1 << 18] })
    }

    /// Asks, and takes turns until the answer is there.
    fn exchange(&mut self, request: &[u8], wanted: usize) {
        self.peer.write_all(request).expect("the buffers hold a batch");
        let mut had = 0;
        for _ in 0..PATIENCE {
            self.shard.turn(Instant::now()).expect("a turn");
            match self.peer.read(&mut self.answer) {
                Ok(count) => had += count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => unreachable!("the shard keeps its connection: {error}"),
            }
            if had >= wanted {
                assert_eq!(had, wanted, "an answer has the length that was agreed on");
                return;
            }
        }
        unreachable!("a batch is answered");
    }
}

fn attach(mailbox: &Mailbox, shard: &mut Stepped, file: OwnedFd) -> DiskTag {
    let sender = mailbox.clone();
    let mut attaching: Asked<_> = Box::pin(async move {
        let make = Box::new(move |add: &mut dyn FnMut(_) -> _| {
            let file: FileId = add(Descriptors::new(file, OpenMode::BUFFERED))?;
            let leaf = Box::new(Flat::new(ByteLen::new(DISK_BYTES)));
            Ok(Disk::writable(leaf, file, Vec::new()))
        });
        sender.attach(make).await
    });
    assert!(answered(&mut attaching).is_none(), "nobody has taken a turn");
    shard.turn(Instant::now()).expect("a turn");
    answered(&mut attaching).expect("one turn attaches").expect("and well")
}

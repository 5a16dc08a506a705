//! FUSE over io_uring: a mount's requests come through an inlet of a shard's own ring, into memory
//! of their own; reads and writes of disks of that shard are carried out from there, without a
//! copy. What the kernel sends to the device only (forgotten inodes, interrupts) is read there, as
//! on the classic channel.
//!
//! Refuses to wait, and to leave the kernel waiting: what breaks ends the connection.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use orlop_fuse::channel::Order;
use orlop_fuse::ring::{self, Connection, Frame, REQUEST_BYTES_MAX, REQUEST_BYTES_MIN, Slot};
use orlop_fuse::{Bytes, Errno, ReadReply, Reply};

use super::channel::{DeviceReader, Wanted};
use super::port::{Entry, Files};
use super::queue::Ask;
use crate::host::inlet::{Asked, ENTRY_BLOCK_BYTES, EntryPlace, queues};
use crate::host::memory::{Arena, ENTRIES_BYTES, Lease};
use crate::shard::{Context, Mailbox, NewReader, Nudge, Progress, Reader, Reading};

/// Requests, and bytes of them, that are looked at before others have their turn.
const TURN: usize = 32;
const TURN_BYTES: u64 = 2 << 20;
/// Entries of a queue: whoever asks on its processor waits while all of them are being answered.
const DEPTH_MIN: u32 = 4;
const DEPTH_GOOD: u32 = 16;
const DEPTH_MAX: u32 = 32;
/// Entries of one mount, as far as that leaves each queue a good number.
const ENTRIES: u32 = 64;
/// Memory of one mount's entries at most: half of what there is, so that a mount can come before
/// the last one is gone.
const MOUNT_BYTES: u32 = ENTRIES_BYTES / 2;
/// Distance of blocks from each other.
const BLOCK_STRIDE: u32 = 512;
const _: () = assert!(ENTRY_BLOCK_BYTES <= BLOCK_STRIDE);

/// Serves mounts through the ring of one shard. To be given as [`orlop_fuse::Options::ring`].
pub struct Rings {
    /// The shard: one that was started with inlets, best with many of the disks.
    pub mailbox: Mailbox,
    /// The disks.
    pub files: Arc<Files>,
    /// Bytes of one request: memory of each entry, touched when used. `None`: as many as the
    /// processors leave room for.
    pub request_bytes: Option<u32>,
}

impl std::fmt::Debug for Rings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rings").field("request_bytes", &self.request_bytes).finish_non_exhaustive()
    }
}

/// How a mount's entries are laid out on a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    /// Entries of each queue.
    depth: u32,
    /// Bytes of each.
    request_bytes: u32,
}

impl Shape {
    /// As deep and as large as there is room for, depth first. `None`: too many queues.
    fn of(queues: u16) -> Option<Self> {
        let queues = u32::from(queues.max(1));
        let room = MOUNT_BYTES / REQUEST_BYTES_MIN / queues;
        let wanted = (ENTRIES / queues).clamp(DEPTH_GOOD, DEPTH_MAX);
        let depth = wanted.min(room);
        let request_bytes = 1 << (MOUNT_BYTES / (queues * depth).max(1)).ilog2();
        let request_bytes = request_bytes.min(REQUEST_BYTES_MAX);
        (depth >= DEPTH_MIN).then_some(Self { depth, request_bytes })
    }
}

impl Rings {
    /// Whether this machine leaves rings as much room as the classic channel has.
    #[must_use]
    pub fn are_roomy() -> bool {
        let shape = queues().ok().and_then(Shape::of);
        shape.is_some_and(|shape| {
            shape.depth >= DEPTH_GOOD && shape.request_bytes == REQUEST_BYTES_MAX
        })
    }
}

impl orlop_fuse::RingHost for Rings {
    fn request_bytes(&self) -> u32 {
        let shape = queues().ok().and_then(Shape::of);
        self.request_bytes.or(shape.map(|shape| shape.request_bytes)).unwrap_or(REQUEST_BYTES_MIN)
    }

    fn start(&self, connection: Connection) -> io::Result<()> {
        let watched = connection.fuse().try_clone_to_owned()?;
        let payload_bytes = self.request_bytes.unwrap_or(connection.request_bytes());
        let nudge = self.mailbox.bell();
        let refused = Arc::new(OnceLock::new());
        let reader = RingReader {
            device: DeviceReader::new(connection, Arc::clone(&self.files), nudge.clone())?,
            payload_bytes,
            blocks: None,
            payloads: Vec::new(),
            home: Arc::new(Home { done: Mutex::default(), nudge: nudge.clone() }),
            away: 0,
            kept: None,
            refused: Arc::clone(&refused),
            device_is_over: false,
            is_broken: false,
            may_give: true,
        };
        self.mailbox.add_reader(NewReader { watched, nudge, reader: Box::new(reader) })?;
        refused.get().map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(*errno)))
    }
}

/// A read or write on its way into the client of its disk, in the memory of its entry.
pub(super) struct EntryParcel {
    /// Taken by the client that takes the parcel.
    pub(super) entry: Option<Asked>,
    pub(super) wanted: Wanted,
}

/// Answers a write.
pub(super) fn answer_write(cx: &mut Context<'_>, entry: Asked, result: Result<u32, Errno>) {
    match result {
        Err(errno) => cx.answer(entry, errno.number(), 0),
        Ok(count) => {
            let told = ring::written(count);
            cx.arena().copy_in(entry.room(), &told);
            cx.answer(entry, 0, told.len() as u32);
        }
    }
}

/// An answer on its way to the entry.
struct Done {
    entry: Asked,
    errno: i32,
    bytes: Vec<u8>,
}

/// Where answers given elsewhere go. Bounded by the entries: each has one request at a time.
struct Home {
    done: Mutex<Vec<Done>>,
    nudge: Nudge,
}

impl Home {
    fn done(&self) -> MutexGuard<'_, Vec<Done>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The duty to answer from elsewhere. Dropped, it answers "input/output error".
struct Place {
    home: Arc<Home>,
    entry: Option<Asked>,
}

impl Place {
    fn give(&mut self, errno: i32, bytes: &[u8]) {
        if let Some(entry) = self.entry.take() {
            let done = Done { entry, errno, bytes: bytes.to_vec() };
            self.home.done().push(done);
            self.home.nudge.nudge();
        }
    }
}

impl Slot for Place {
    fn finish(mut self, errno: i32, bytes: &[u8]) {
        self.give(errno, bytes);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.give(Errno::Io.number(), &[]);
    }
}

struct RingReader {
    /// The connection, and what comes to its device.
    device: DeviceReader,
    payload_bytes: u32,
    blocks: Option<Lease>,
    payloads: Vec<Lease>,
    home: Arc<Home>,
    /// Requests that are answered from elsewhere, in none of our memory.
    away: usize,
    /// A question for which its disk's queue had no room.
    kept: Option<(Arc<Entry>, Ask)>,
    /// Why the kernel refused an entry.
    refused: Arc<OnceLock<i32>>,
    device_is_over: bool,
    is_broken: bool,
    /// The kernel has none of the memory.
    may_give: bool,
}

impl Reader for RingReader {
    fn start(&mut self, cx: &mut Reading<'_>) -> io::Result<()> {
        self.device.start(cx)?;
        let queues = queues()?;
        let many = || io::Error::other(format!("{queues} processors are too many for one ring"));
        let count = u32::from(queues) * Shape::of(queues).ok_or_else(many)?.depth;
        let little = || io::Error::other("there is too little memory for entries of a ring");
        let blocks = cx.arena().take_entry(count * BLOCK_STRIDE).ok_or_else(little)?;
        let blocks = self.blocks.insert(blocks);
        let mut places = Vec::new();
        for index in 0..count {
            let payload = cx.arena().take_entry(self.payload_bytes).ok_or_else(little)?;
            let start = index * BLOCK_STRIDE;
            places.push(EntryPlace {
                queue: (index % u32::from(queues)) as u16,
                block: blocks.part(start..start + ENTRY_BLOCK_BYTES),
                payload: payload.span(),
            });
            self.payloads.push(payload);
        }
        let fuse = self.device.connection().fuse().try_clone_to_owned()?;
        self.may_give = false;
        cx.open_inlet(fuse, &places)?;
        let state = cx.inlet_state();
        let ended = state.is_over.then(|| rustix::io::Errno::NOTCONN.raw_os_error());
        if let Some(errno) = state.failed.map(|error| error.0).or(ended) {
            // It stays until the kernel has let go of the others.
            let _first = self.refused.set(errno);
        }
        Ok(())
    }

    fn read(&mut self, cx: &mut Reading<'_>) -> Progress {
        self.bring_home(cx);
        let mut progress = Progress::Dry;
        if !self.device_is_over && cx.is_readable() {
            progress = self.device.read(cx);
            self.device_is_over = progress == Progress::Over;
        }
        let asked = self.read_entries(cx);
        self.bring_home(cx);
        let state = cx.inlet_state();
        if let Some(error) = state.failed
            && !std::mem::replace(&mut self.is_broken, true)
        {
            tracing::error!(%error, "a mount's ring cannot go on; its connection is ended");
            self.device.connection().abort();
        }
        let is_over = state.is_over || self.device_is_over || self.is_broken;
        if is_over && state.in_kernel == 0 && state.unanswered == self.away {
            self.may_give = true;
            return Progress::Over;
        }
        match (asked, progress) {
            (Progress::Waits, _) | (_, Progress::Waits) => Progress::Waits,
            (Progress::More, _) | (_, Progress::More) => Progress::More,
            _ => Progress::Dry,
        }
    }

    fn closed(&mut self, arena: &mut Arena) {
        self.device.closed(arena);
        if self.may_give {
            self.payloads.drain(..).chain(self.blocks.take()).for_each(|lease| arena.give(lease));
        }
    }
}

impl RingReader {
    fn read_entries(&mut self, cx: &mut Reading<'_>) -> Progress {
        if let Some((entry, ask)) = self.kept.take()
            && !self.ask(entry, ask)
        {
            return Progress::Waits;
        }
        let mut turn_bytes = 0;
        for _ in 0..TURN {
            let Some(asked) = cx.next_asked() else { return Progress::Dry };
            turn_bytes += match self.serve(cx, asked) {
                Some(bytes) => bytes,
                None => return Progress::Waits,
            };
            if turn_bytes >= TURN_BYTES {
                break;
            }
        }
        Progress::More
    }

    /// Sees to one request; tells its bytes, or `None` if nothing more may be read for now.
    fn serve(&mut self, cx: &mut Reading<'_>, asked: Asked) -> Option<u64> {
        let (block, payload) = cx.request(&asked);
        let order = self.device.connection().requests().order_in(block, payload.len() as u32);
        let (disk, extent, wanted) = match order {
            Order::Answer(Ok(count)) => {
                self.put(cx, Done { entry: asked, errno: 0, bytes: ring::written(count).to_vec() });
                return Some(0);
            }
            Order::Answer(Err(errno)) => {
                cx.answer(asked, errno.number(), 0);
                return Some(0);
            }
            Order::Read { disk, extent } => (disk, extent, None),
            Order::Write { disk, at, count, durable, stamp } => {
                let extent = orlop_fuse::Extent { at, len: Bytes(u64::from(count)) };
                (disk, extent, Some((durable, stamp)))
            }
            Order::Nothing | Order::Other => {
                self.relay(cx, asked);
                return Some(0);
            }
        };
        match self.device.files().place(disk, extent) {
            Ok((entry, extent)) if extent.len.get() <= u64::from(asked.room().len) => {
                let wanted = match wanted {
                    None => Wanted::Read(extent),
                    Some((durable, stamp)) => Wanted::Write { extent, durable, stamp },
                };
                self.pass(cx, entry, wanted, asked).then_some(extent.len.get())
            }
            // Whoever else has it, or nobody: told there.
            Ok(_) | Err(_) => {
                self.relay(cx, asked);
                Some(0)
            }
        }
    }

    /// Lets the tree of files answer.
    fn relay(&mut self, cx: &mut Reading<'_>, asked: Asked) {
        // The request is looked at in a copy of its entry, which is with the answer meanwhile.
        let (block, payload) = cx.request(&asked);
        let (block, payload) = (block.to_vec(), payload.to_vec());
        let (head, operation) = ring::parts(&block);
        self.away += 1;
        let place = Place { home: Arc::clone(&self.home), entry: Some(asked) };
        let frame = Frame { head, operation, payload: &payload };
        self.device.connection().requests().serve(&frame, place);
    }

    /// Hands a read or write to its disk; false if nothing more may be read for now.
    fn pass(
        &mut self,
        cx: &mut Reading<'_>,
        entry: Arc<Entry>,
        wanted: Wanted,
        asked: Asked,
    ) -> bool {
        let mut parcel = EntryParcel { entry: Some(asked), wanted };
        cx.hand(entry.queue.nudge(), &mut parcel);
        let EntryParcel { entry: Some(asked), wanted } = parcel else { return true };
        self.away += 1;
        let data = cx.arena().bytes(asked.brought());
        let home = Arc::clone(&self.home);
        let ask = match wanted {
            Wanted::Read(extent) => {
                let place = Place { home, entry: Some(asked) };
                let reply = ReadReply::new(move |result: Result<&[u8], Errno>| match result {
                    Ok(bytes) => place.finish(0, bytes),
                    Err(errno) => place.finish(errno.number(), &[]),
                });
                Ask::Read { extent, reply }
            }
            Wanted::Write { extent, durable, stamp } => {
                let count = extent.len.get() as u32;
                let data = data.get(..count as usize).unwrap_or_default().to_vec();
                let place = Place { home, entry: Some(asked) };
                let reply = Reply::new(move |result: Result<(), Errno>| {
                    stamp.touch();
                    match result {
                        Ok(()) => place.finish(0, &ring::written(count)),
                        Err(errno) => place.finish(errno.number(), &[]),
                    }
                });
                Ask::Write { at: extent.at, data, durable, reply }
            }
        };
        self.ask(entry, ask)
    }

    /// Puts a question into the queue of its disk; false if it must be kept until there is room.
    fn ask(&mut self, entry: Arc<Entry>, ask: Ask) -> bool {
        match entry.queue.offer(ask, &self.home.nudge) {
            Ok(()) => true,
            Err(ask) => {
                self.kept = Some((entry, ask));
                false
            }
        }
    }

    /// Puts the answers that were given elsewhere into their entries.
    fn bring_home(&mut self, cx: &mut Reading<'_>) {
        if self.away == 0 {
            return;
        }
        let done = std::mem::take(&mut *self.home.done());
        self.away -= done.len();
        done.into_iter().for_each(|done| self.put(cx, done));
    }

    /// Answers with bytes that stand elsewhere.
    fn put(&self, cx: &mut Reading<'_>, done: Done) {
        let Done { entry, errno, bytes } = done;
        if bytes.len() > entry.room().len as usize {
            return cx.answer(entry, Errno::Io.number(), 0);
        }
        cx.arena().copy_in(entry.room(), &bytes);
        cx.answer(entry, errno, bytes.len() as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::{MOUNT_BYTES, Shape};

    #[test]
    fn every_queue_has_entries_and_all_of_them_have_room() {
        for queues in 1..=256 {
            let shape = Shape::of(queues).expect("these are not too many");
            assert!(shape.depth * u32::from(queues) * shape.request_bytes <= MOUNT_BYTES);
            assert!((4..=32).contains(&shape.depth), "{queues}: {shape:?}");
            assert!(((256 << 10)..=(1 << 20)).contains(&shape.request_bytes), "{shape:?}");
        }
        let of = |depth, request_bytes| Some(Shape { depth, request_bytes });
        assert_eq!(Shape::of(2), of(32, 1 << 20));
        assert_eq!(Shape::of(16), of(16, 1 << 20));
        assert_eq!(Shape::of(64), of(16, 256 << 10));
        assert_eq!(Shape::of(256), of(4, 256 << 10));
        assert_eq!(Shape::of(257), None);
    }
}

//! One disk's questions inside its shard.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use orlop_fuse::channel::{Mail, Stamp};
use orlop_fuse::{Bytes, Errno, ReadReply, Reply, Run, RunKind};
use slab::Slab;

use super::channel::{Parcel, Wanted};
use super::queue::{Ask, Queue};
use super::ring::EntryParcel;
use crate::engine::effect::IoError;
use crate::engine::request::{Answer, Fault, FaultKind, MapKind, MapRun, Request, Segment};
use crate::engine::units::{ByteLen, DiskOffset, Extent, Span};
use crate::host::inlet::Asked as AskedEntry;
use crate::host::memory::{Arena, Lease};
use crate::host::{ReceiveInto, SendList};
use crate::meter::{Meter, Op};
use crate::shard::{Client, Context, Fate, Watch};

/// Bytes of memory that one disk's questions may hold; a single one may always go on.
const LEASED_BYTES: u64 = 64 << 20;
/// A write of so many bytes takes the lease it was read into; a shorter one is copied.
const EXCHANGED_BYTES: u64 = 256 << 10;
/// Runs asked for at once, for a search and for a sum.
const SEARCH_RUNS: u32 = 256;
const SUM_RUNS: u32 = 8192;
/// Steps of one sum; what lies behind counts as it did when the sum last came as far.
const SUM_STEPS: u32 = 4096;
/// A sum is told again for so long if nothing was written here meanwhile.
const SUM_AGE: Duration = Duration::from_secs(1);
/// Sums remembered: of the disk and its first partitions.
const SUMS_MAX: usize = 16;
/// Failures that the log hears of.
const FAULTS_TOLD_MAX: u32 = 20;

/// A question the disk is working on.
struct Asked {
    what: What,
    op: Op,
    bytes: u64,
    since: Instant,
}

enum What {
    Read {
        lease: Lease,
        reply: ReadReply,
    },
    Write {
        lease: Lease,
        reply: Reply<()>,
    },
    /// From the device itself.
    ReadMail {
        lease: Lease,
        mail: Mail,
    },
    WriteMail {
        lease: Lease,
        mail: Mail,
        stamp: Stamp,
    },
    /// From a mount's entry, into or out of its own memory.
    ReadEntry {
        entry: AskedEntry,
        span: Span,
    },
    WriteEntry {
        entry: AskedEntry,
        stamp: Stamp,
    },
    Done {
        reply: Reply<()>,
    },
    Map {
        len: u64,
        reply: Reply<Vec<Run>>,
    },
    Stored {
        sum: Sum,
        reply: Reply<Bytes>,
    },
}

/// A sum of stored bytes on its way through a map.
#[derive(Clone, Copy)]
struct Sum {
    whole: Extent,
    /// What is behind.
    done: u64,
    stored: u64,
    steps: u32,
    /// Changes seen when it began.
    changes: u64,
}

/// A sum that was made.
struct Known {
    whole: Extent,
    stored: u64,
    changes: u64,
    at: Instant,
}

/// The client.
pub(super) struct FilesClient {
    queue: Arc<Queue>,
    meter: Arc<Meter>,
    watch: Option<Arc<dyn Watch>>,
    /// Taken out of the queue, and waiting for memory.
    waiting: Option<Ask>,
    asked: Slab<Asked>,
    leased_bytes: u64,
    sums: VecDeque<Known>,
    /// Writes and erasures answered so far.
    changes: u64,
    faults_told: u32,
    connected: bool,
    ending: bool,
}

impl FilesClient {
    pub(super) fn new(queue: Arc<Queue>, meter: Arc<Meter>, watch: Option<Arc<dyn Watch>>) -> Self {
        Self {
            queue,
            meter,
            watch,
            waiting: None,
            asked: Slab::new(),
            leased_bytes: 0,
            sums: VecDeque::new(),
            changes: 0,
            faults_told: 0,
            connected: false,
            ending: false,
        }
    }

    fn fate(&self) -> Fate {
        if self.ending && self.asked.is_empty() { Fate::Leave } else { Fate::Stay }
    }

    /// Carries out what waits, as far as there is memory.
    fn advance(&mut self, cx: &mut Context<'_>) {
        while !self.ending {
            let Some(ask) = self.waiting.take().or_else(|| self.queue.pop()) else { return };
            if let Err(ask) = self.begin(cx, ask) {
                self.waiting = Some(ask);
                return;
            }
        }
    }

    /// Starts one; gives it back when there is no memory for it now.
    fn begin(&mut self, cx: &mut Context<'_>, ask: Ask) -> Result<(), Ask> {
        let size = cx.disk_size().get();
        let outside = |extent: Extent| extent.at.get() + extent.len.get() > size;
        match ask {
            Ask::Read { extent, reply } if outside(extent) => reply.fail(Errno::TooBig),
            Ask::Read { extent, reply } => {
                let Some(lease) = self.take(cx, extent.len.get()) else {
                    return Err(Ask::Read { extent, reply });
                };
                let request = Request::Read { extent, into: lease.span() };
                let what = What::Read { lease, reply };
                self.submit(cx, what, Op::Read, extent.len.get(), request);
            }
            Ask::Write { at, data, durable, reply } => {
                let extent = Extent::new(at, ByteLen::new(data.len() as u64));
                if outside(extent) {
                    reply.fail(Errno::TooBig);
                    return Ok(());
                }
                let Some(lease) = self.take(cx, data.len() as u64) else {
                    return Err(Ask::Write { at, data, durable, reply });
                };
                cx.arena().copy_in(lease.span(), &data);
                let request = Request::Write { extent, from: lease.span(), fua: durable };
                let what = What::Write { lease, reply };
                self.submit(cx, what, Op::Write, extent.len.get(), request);
            }
            Ask::Erase { extent, reply, .. } if outside(extent) => reply.fail(Errno::TooBig),
            Ask::Erase { extent, may_unmap, reply } => {
                let request = Request::Zero { extent, may_unmap, fua: false };
                let op = if may_unmap { Op::Trim } else { Op::Zero };
                self.submit(cx, What::Done { reply }, op, extent.len.get(), request);
            }
            Ask::Flush { reply } => {
                self.submit(cx, What::Done { reply }, Op::Flush, 0, Request::Flush);
            }
            Ask::Map { extent, reply } => {
                let request = Request::Map { extent, limit: SEARCH_RUNS };
                let what = What::Map { len: extent.len.get(), reply };
                self.submit(cx, what, Op::Status, 0, request);
            }
            Ask::Stored { extent, reply } => match self.known(cx.now(), extent) {
                Some(stored) => reply.done(Bytes(stored)),
                None => {
                    let (done, stored, steps) = (0, 0, 0);
                    let sum = Sum { whole: extent, done, stored, steps, changes: self.changes };
                    self.sum_on(cx, sum, reply);
                }
            },
        }
        Ok(())
    }

    /// Starts what the reader of a device has brought, if there is memory for it now and nobody
    /// else waits here.
    fn begin_parcel(&mut self, cx: &mut Context<'_>, parcel: &mut Parcel) {
        if self.ending || self.waiting.is_some() || parcel.mail.is_none() {
            return;
        }
        let size = cx.disk_size().get();
        let (Wanted::Read(extent) | Wanted::Write { extent, .. }) = &parcel.wanted;
        let (extent, len) = (*extent, extent.len.get());
        let outside = extent.at.get() + len > size;
        if outside {
            if let Some(mail) = parcel.mail.take() {
                mail.read(Err(Errno::TooBig));
            }
            return;
        }
        match &parcel.wanted {
            Wanted::Read(_) => {
                let Some(lease) = self.take(cx, len) else { return };
                let Some(mail) = parcel.mail.take() else { return };
                let request = Request::Read { extent, into: lease.span() };
                self.submit(cx, What::ReadMail { lease, mail }, Op::Read, len, request);
            }
            Wanted::Write { durable, stamp, .. } => {
                let (durable, stamp) = (*durable, stamp.clone());
                let Some(lease) = self.take_data(cx, len, &mut parcel.standing) else { return };
                let Some(mail) = parcel.mail.take() else { return };
                let from = lease.part(0..len as u32);
                let request = Request::Write { extent, from, fua: durable };
                self.submit(cx, What::WriteMail { lease, mail, stamp }, Op::Write, len, request);
            }
        }
    }

    /// Starts what came in an entry: it has brought its memory.
    fn begin_entry(&mut self, cx: &mut Context<'_>, parcel: &mut EntryParcel) {
        let size = cx.disk_size().get();
        let (Wanted::Read(extent) | Wanted::Write { extent, .. }) = parcel.wanted;
        let len = extent.len.get();
        // Whoever is not let in here takes the other way, and is told there.
        if self.ending || extent.at.get() + len > size {
            return;
        }
        let Some(entry) = parcel.entry.take() else { return };
        match &parcel.wanted {
            Wanted::Read(_) => {
                let span = Span { len: len as u32, ..entry.room() };
                let request = Request::Read { extent, into: span };
                self.submit(cx, What::ReadEntry { entry, span }, Op::Read, len, request);
            }
            Wanted::Write { durable, stamp, .. } => {
                let (fua, stamp) = (*durable, stamp.clone());
                let from = Span { len: len as u32, ..entry.room() };
                let request = Request::Write { extent, from, fua };
                self.submit(cx, What::WriteEntry { entry, stamp }, Op::Write, len, request);
            }
        }
    }

    /// A lease with the first bytes of the standing one: a copy, or that itself against another.
    fn take_data(
        &mut self,
        cx: &mut Context<'_>,
        len: u64,
        standing: &mut Option<Lease>,
    ) -> Option<Lease> {
        let held = standing.as_mut()?;
        if len >= EXCHANGED_BYTES
            && self.leased_bytes + u64::from(held.len()) <= LEASED_BYTES
            && let Some(other) = cx.take_idle(held.len())
        {
            self.leased_bytes += u64::from(held.len());
            return Some(std::mem::replace(held, other));
        }
        let from = held.part(0..u32::try_from(len).ok()?);
        let lease = self.take(cx, len)?;
        cx.arena().copy(from, lease.span());
        Some(lease)
    }

    fn take(&mut self, cx: &mut Context<'_>, len: u64) -> Option<Lease> {
        if self.leased_bytes > 0 && self.leased_bytes + len > LEASED_BYTES {
            return None;
        }
        let lease = cx.take(u32::try_from(len).ok()?)?;
        self.leased_bytes += u64::from(lease.len());
        Some(lease)
    }

    fn give(&mut self, cx: &mut Context<'_>, lease: Lease) {
        self.leased_bytes -= u64::from(lease.len());
        cx.give(lease);
    }

    fn submit(&mut self, cx: &mut Context<'_>, what: What, op: Op, bytes: u64, request: Request) {
        self.meter.began();
        let slot = self.asked.insert(Asked { what, op, bytes, since: cx.now() });
        cx.submit(slot as u32, request);
    }

    /// A sum made lately, if nothing changed since.
    fn known(&mut self, now: Instant, whole: Extent) -> Option<u64> {
        let changes = self.changes;
        self.sums.retain(|known| {
            known.changes == changes && now.saturating_duration_since(known.at) < SUM_AGE
        });
        self.sums.iter().find(|known| known.whole == whole).map(|known| known.stored)
    }

    /// Asks for the next part of a sum, or tells it.
    fn sum_on(&mut self, cx: &mut Context<'_>, sum: Sum, reply: Reply<Bytes>) {
        let left = sum.whole.len.get() - sum.done;
        if left == 0 || sum.steps == SUM_STEPS {
            let Sum { whole, stored, changes, .. } = sum;
            if self.sums.len() == SUMS_MAX {
                self.sums.pop_front();
            }
            self.sums.push_back(Known { whole, stored, changes, at: cx.now() });
            return reply.done(Bytes(stored));
        }
        let at = DiskOffset::new(sum.whole.at.get() + sum.done);
        let extent = Extent::new(at, ByteLen::new(left));
        let request = Request::Map { extent, limit: SUM_RUNS };
        self.submit(cx, What::Stored { sum, reply }, Op::Status, 0, request);
    }

    fn answer(&mut self, cx: &mut Context<'_>, slot: u32, result: Result<Answer, Fault>) {
        let Asked { what, op, bytes, since } = self.asked.remove(slot as usize);
        self.meter.ended();
        let latency = cx.now().saturating_duration_since(since);
        self.meter.record(op, bytes, latency, result.is_ok());
        self.changes += u64::from(matches!(op, Op::Write | Op::Trim | Op::Zero));
        if let Err(fault) = &result {
            self.tell(fault, op);
        }
        let result = result.map_err(|fault| errno_of(&fault));
        match what {
            What::Read { lease, reply } => {
                match result {
                    Err(errno) => reply.fail(errno),
                    Ok(told) => {
                        fill_holes(cx.arena(), lease.span(), &told);
                        reply.data(cx.arena().bytes(lease.span()));
                    }
                }
                self.give(cx, lease);
            }
            What::Write { lease, reply } => {
                reply.answer(result.map(drop));
                self.give(cx, lease);
            }
            What::ReadMail { lease, mail } => {
                match result {
                    Err(errno) => mail.read(Err(errno)),
                    Ok(told) => {
                        fill_holes(cx.arena(), lease.span(), &told);
                        mail.read(Ok(cx.arena().bytes(lease.span())));
                    }
                }
                self.give(cx, lease);
            }
            What::WriteMail { lease, mail, stamp } => {
                stamp.touch();
                mail.wrote(result.map(|_| bytes as u32));
                self.give(cx, lease);
            }
            What::ReadEntry { entry, span } => match result {
                Err(errno) => cx.answer(entry, errno.number(), 0),
                Ok(told) => {
                    fill_holes(cx.arena(), span, &told);
                    cx.answer(entry, 0, span.len);
                }
            },
            What::WriteEntry { entry, stamp } => {
                stamp.touch();
                super::ring::answer_write(cx, entry, result.map(|_| bytes as u32));
            }
            What::Done { reply } => reply.answer(result.map(drop)),
            What::Map { len, reply } => reply.answer(result.and_then(|told| runs_of(&told, len))),
            What::Stored { sum, reply } => match result {
                Ok(Answer::Map(runs)) if !self.ending && runs.iter().any(|r| !r.len.is_zero()) => {
                    let next = runs.iter().fold(sum, add_to_sum);
                    self.sum_on(cx, Sum { steps: sum.steps + 1, ..next }, reply);
                }
                Ok(_) => reply.fail(Errno::Gone),
                Err(errno) => reply.fail(errno),
            },
        }
    }

    /// Tells the log of the first failures: more would be the users' to multiply.
    fn tell(&mut self, fault: &Fault, op: Op) {
        self.faults_told = self.faults_told.saturating_add(1);
        if self.faults_told <= FAULTS_TOLD_MAX {
            tracing::warn!(%fault, ?op, "a request of the mount failed");
        } else if self.faults_told == FAULTS_TOLD_MAX + 1 {
            tracing::warn!("further failures of this mount are told to its users only");
        }
    }

    /// Nobody is let in any more.
    fn end(&mut self) {
        self.ending = true;
        if let Some(ask) = self.waiting.take() {
            ask.fail(Errno::Gone);
        }
        self.queue.close();
    }
}

impl Client for FilesClient {
    fn start(&mut self, cx: &mut Context<'_>) -> Fate {
        self.connected = true;
        self.meter.connected();
        if let Some(watch) = self.watch.take() {
            cx.watch(watch);
        }
        self.advance(cx);
        self.fate()
    }

    fn nudged(&mut self, cx: &mut Context<'_>) -> Fate {
        self.advance(cx);
        self.fate()
    }

    fn handed(&mut self, cx: &mut Context<'_>, parcel: &mut dyn Any) -> Fate {
        if let Some(parcel) = parcel.downcast_mut::<Parcel>() {
            self.begin_parcel(cx, parcel);
        } else if let Some(parcel) = parcel.downcast_mut::<EntryParcel>() {
            self.begin_entry(cx, parcel);
        }
        self.fate()
    }

    fn received(
        &mut self,
        _cx: &mut Context<'_>,
        _into: ReceiveInto,
        _result: Result<u32, IoError>,
    ) -> Fate {
        self.fate()
    }

    fn sent(
        &mut self,
        _cx: &mut Context<'_>,
        _list: SendList,
        _result: Result<(), IoError>,
    ) -> Fate {
        self.fate()
    }

    fn replied(&mut self, cx: &mut Context<'_>, slot: u32, result: Result<Answer, Fault>) -> Fate {
        self.answer(cx, slot, result);
        self.fate()
    }

    fn settle(&mut self, cx: &mut Context<'_>) -> Fate {
        self.advance(cx);
        self.fate()
    }

    fn unstall(&mut self, cx: &mut Context<'_>) -> Fate {
        self.advance(cx);
        self.fate()
    }

    fn due(&self) -> Option<Instant> {
        None
    }

    fn tick(&mut self, _cx: &mut Context<'_>) -> Fate {
        self.fate()
    }

    fn drain(&mut self, _cx: &mut Context<'_>) -> Fate {
        self.end();
        self.fate()
    }

    fn owes_since(&self) -> Option<Instant> {
        None
    }

    fn cut(&mut self, _cx: &mut Context<'_>) -> Fate {
        self.end();
        self.fate()
    }

    fn closed(&mut self, arena: &mut Arena) {
        if self.connected {
            self.meter.disconnected();
        }
        // The fate said that the disk holds none of these any more.
        for asked in self.asked.drain() {
            match asked.what {
                What::Read { lease, .. }
                | What::Write { lease, .. }
                | What::ReadMail { lease, .. }
                | What::WriteMail { lease, .. } => arena.give(lease),
                // An entry of a shard that ends: its connection ends too.
                What::ReadEntry { .. } | What::WriteEntry { .. } => {}
                What::Done { .. } | What::Map { .. } | What::Stored { .. } => {}
            }
        }
    }
}

impl Drop for FilesClient {
    /// Also where the shard never took it: whoever asked hears that there is no such disk.
    fn drop(&mut self) {
        self.end();
    }
}

/// Makes a read's bytes whole: what no layer holds was not touched.
fn fill_holes(arena: &mut Arena, whole: Span, told: &Answer) {
    let Answer::Segments(segments) = told else { return };
    let mut at = 0;
    for segment in segments {
        let len = match segment {
            Segment::Data(span) => span.len,
            Segment::Hole(len) => {
                let len = len.get() as u32;
                arena.zero(Span { start: whole.start + at, len, ..whole });
                len
            }
        };
        at += len;
    }
}

/// Whether bytes are stored: what a layer calls zero takes no place worth counting.
const fn is_stored(run: &MapRun) -> bool {
    matches!(run.kind, MapKind::Data { .. })
}

fn add_to_sum(sum: Sum, run: &MapRun) -> Sum {
    let len = run.len.get().min(sum.whole.len.get() - sum.done);
    let stored = if is_stored(run) { len } else { 0 };
    Sum { done: sum.done + len, stored: sum.stored + stored, ..sum }
}

/// A map in the mount's words, neighbours of one kind merged, no longer than what was asked.
fn runs_of(told: &Answer, len: u64) -> Result<Vec<Run>, Errno> {
    let Answer::Map(runs) = told else { return Err(Errno::Io) };
    let (mut merged, mut left) = (Vec::<Run>::new(), len);
    for run in runs {
        let kind = if is_stored(run) { RunKind::Data } else { RunKind::Hole };
        let len = run.len.get().min(left);
        left -= len;
        match merged.last_mut() {
            _ if len == 0 => {}
            Some(last) if last.kind == kind => last.len.0 += len,
            _ => merged.push(Run { kind, len: Bytes(len) }),
        }
    }
    Ok(merged)
}

/// The system's number for a fault.
fn errno_of(fault: &Fault) -> Errno {
    match &fault.kind {
        FaultKind::Io(error) if error.is_space() => Errno::NoSpace,
        FaultKind::NoSpace(_) => Errno::NoSpace,
        FaultKind::ReadOnly => Errno::ReadOnly,
        FaultKind::Unsupported(_) => Errno::NotSupported,
        FaultKind::Io(_) | FaultKind::Corrupt(_) | FaultKind::Stopped(_) => Errno::Io,
    }
}

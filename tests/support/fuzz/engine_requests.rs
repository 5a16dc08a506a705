//! Bytes as a life of a disk: requests, the order in which their effects complete, and faults.
//! What it reads is compared with a flat array, and what it leaves behind is opened again.
//!
//! Refuses to crash the disk: what a power loss leaves is the crash simulator's question.

use orlop::engine::effect::{Effect, FileId, IoError};
use orlop::engine::layer::Leaf;
use orlop::engine::request::{Answer, Part, Reply, Request, RequestId, Segment};
use orlop::engine::units::{ByteLen, DiskOffset, Extent, RegionId, Span};
use orlop::engine::{Disk, FrozenLayer};
use orlop::format::Flat;
use orlop::format::vhd::{Backing, VhdLeaf};
use vhd::{CreateOptions, NewLayout, NewParent, Piece};

use super::ram::{Fate, Ram, usize_of};
use super::vhd_open::{check, open, repair};

/// Bytes of the disk: some blocks and a ragged rest of whole sectors.
const DISK_BYTES: u64 = 8 * 4096 + 3 * 512;
/// Most requests in flight, each with a slot of the arena.
const SLOTS: usize = 6;
const SLOT_BYTES: u32 = 12 << 10;
const LEAF: FileId = FileId(0);
const PARENT: FileId = FileId(1);

/// The bytes of an input, one decision each; when they are used up, everything is 0.
struct Feed<'a>(std::slice::Iter<'a, u8>);

impl Feed<'_> {
    fn byte(&mut self) -> u8 {
        self.0.next().copied().unwrap_or(0)
    }

    fn below(&mut self, most: u64) -> u64 {
        (u64::from(self.byte()) << 8 | u64::from(self.byte())) % most.max(1)
    }

    fn is_empty(&self) -> bool {
        self.0.len() == 0
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Flat,
    Dynamic(u64),
    Child,
}

struct Life {
    disk: Disk,
    ram: Ram,
    kind: Kind,
    /// What each byte of the disk is; `None` after a failure or a discard.
    model: Vec<Option<u8>>,
    slots: [Option<Request>; SLOTS],
    effects: Vec<Effect>,
    faulty: bool,
    faulted: bool,
    next_value: u8,
    traced: bool,
}

/// Lives one life.
pub fn engine_requests(bytes: &[u8]) {
    let mut feed = Feed(bytes.iter());
    let first = feed.byte();
    let kind = match first & 3 {
        0 => Kind::Flat,
        1 => Kind::Dynamic(4096),
        2 => Kind::Child,
        _ => Kind::Dynamic(512),
    };
    let mut life = Life::new(kind, first & 128 != 0);
    while !feed.is_empty() {
        life.act(&mut feed);
    }
    life.end();
}

impl Life {
    fn new(kind: Kind, faulty: bool) -> Self {
        let parent: Vec<u8> = (0..DISK_BYTES).map(|at| (at / 512) as u8 | 0x80).collect();
        let model = match kind {
            Kind::Child => parent.iter().copied().map(Some).collect(),
            _ => vec![Some(0); DISK_BYTES as usize],
        };
        let leaf = match kind {
            Kind::Flat => vec![0; DISK_BYTES as usize],
            _ => fresh_image(kind),
        };
        let arena = vec![0; SLOTS * SLOT_BYTES as usize];
        Self {
            disk: disk_of(kind, &leaf),
            ram: Ram { files: vec![leaf, parent], arena },
            kind,
            model,
            slots: [None; SLOTS],
            effects: Vec::new(),
            faulty,
            faulted: false,
            next_value: 1,
            traced: std::env::var_os("ORLOP_FUZZ_TRACE").is_some(),
        }
    }

    /// One decision: ask something, or let one effect complete.
    fn act(&mut self, feed: &mut Feed<'_>) {
        let choice = feed.byte();
        self.gather();
        if choice % 5 < 3 {
            let asked = self.slots.iter().position(Option::is_none);
            if let Some(slot) = asked {
                self.ask(slot, choice / 5, feed);
                return;
            }
        }
        let fails = self.faulty && feed.byte().is_multiple_of(16);
        let fate = match (fails, choice & 0x40 != 0) {
            (false, _) => Fate::Done,
            (true, false) => Fate::Fails(IoError::EIO, usize::from(feed.byte()) * 16),
            (true, true) => Fate::Fails(IoError::ENOSPC, 0),
        };
        let which = usize::from(feed.byte());
        self.complete(which, fate);
    }

    fn complete(&mut self, which: usize, fate: Fate) {
        if self.effects.is_empty() {
            return;
        }
        let effect = self.effects.swap_remove(which % self.effects.len());
        self.faulted |= fate != Fate::Done;
        self.tell(|| format!("  {fate:?}: {}", brief(&effect)));
        let (id, outcome) = self.ram.carry_out(effect, fate);
        self.disk.complete(id, outcome);
        self.gather();
    }

    /// Takes what the disk has to say.
    fn gather(&mut self) {
        while let Some(effect) = self.disk.poll_effect() {
            self.effects.push(effect);
        }
        while let Some(reply) = self.disk.poll_reply() {
            self.replied(reply);
        }
        let most = SLOTS * 64;
        assert!(self.effects.len() <= most, "{} effects in flight", self.effects.len());
    }

    fn ask(&mut self, slot: usize, what: u8, feed: &mut Feed<'_>) {
        let at = feed.below(DISK_BYTES);
        let len = 1 + feed.below(u64::from(SLOT_BYTES).min(DISK_BYTES - at));
        let ragged = feed.byte() & 3 == 0;
        let mut extent = Extent::new(DiskOffset::new(at), ByteLen::new(len));
        if !ragged {
            let whole = extent.whole_sectors();
            extent = whole.first(ByteLen::new(u64::from(SLOT_BYTES)));
        }
        let start = slot as u32 * SLOT_BYTES;
        let span = Span { region: RegionId(0), start, len: extent.len.get() as u32 };
        let fua = what & 8 != 0;
        let request = match what % 8 {
            0 | 1 if what & 32 != 0 => Request::Fetch { extent, into: span },
            0 | 1 => Request::Read { extent, into: span },
            2..=4 => Request::Write { extent, from: span, fua },
            5 => Request::Zero { extent, may_unmap: what & 16 != 0, fua },
            6 if what & 16 != 0 => Request::Map { extent, limit: 1 + u32::from(what >> 5) },
            6 => Request::Discard { extent, fua },
            _ => Request::Flush,
        };
        // Overlapping requests in flight have no order, so they would have no right answer.
        if self.slots.iter().flatten().any(|other| collide(other, &request)) {
            return;
        }
        if matches!(request, Request::Write { .. }) {
            self.next_value = self.next_value.wrapping_add(1).max(1);
        }
        let reads = matches!(request, Request::Read { .. } | Request::Fetch { .. });
        let value = if reads { 0xEE } else { self.next_value };
        self.ram.span(span).fill(value);
        self.slots[slot] = Some(request);
        self.tell(|| format!("ask {slot}: {request:?}"));
        self.disk.submit(RequestId(slot as u64), request);
        self.gather();
    }

    /// With `ORLOP_FUZZ_TRACE` set, a finding's story is told on standard error.
    fn tell(&self, what: impl FnOnce() -> String) {
        if self.traced {
            eprintln!("{}", what());
        }
    }

    fn replied(&mut self, reply: Reply) {
        let slot = usize::try_from(reply.id.0).expect("a slot's number");
        let request = self.slots[slot].take().expect("one reply to each request");
        self.tell(|| format!("    reply {slot}: {:?}", reply.result));
        let answer = match reply.result {
            Ok(answer) => answer,
            Err(fault) => {
                assert!(self.faulted, "{request:?} failed without a fault: {fault}");
                if let Some(range) = changes(&request) {
                    self.model[range].fill(None);
                }
                return;
            }
        };
        match (request, answer) {
            (Request::Read { extent, into } | Request::Fetch { extent, into }, answer) => {
                self.compare(extent, into, answer)
            }
            (Request::Write { extent, from, .. }, Answer::Done) => {
                let bytes = self.ram.span(from).to_vec();
                for (known, byte) in self.model[range_of(extent)].iter_mut().zip(bytes) {
                    *known = Some(byte);
                }
            }
            (Request::Zero { extent, .. }, Answer::Done) => {
                self.model[range_of(extent)].fill(Some(0));
            }
            (Request::Discard { extent, .. }, Answer::Done) => {
                let forget = |known: &mut Option<u8>| *known = known.filter(|byte| *byte == 0);
                self.model[range_of(extent)].iter_mut().for_each(forget);
            }
            (Request::Map { extent, limit }, Answer::Map(runs)) => {
                let covered: u64 = runs.iter().map(|run| run.len.get()).sum();
                assert!(covered > 0 && covered <= extent.len.get(), "{covered} of {extent:?}");
                assert!(runs.len() <= limit as usize, "{} runs of {limit}", runs.len());
            }
            (Request::Flush, Answer::Done) => {}
            (request, answer) => unreachable!("{request:?} was answered {answer:?}"),
        }
    }

    fn compare(&mut self, extent: Extent, into: Span, answer: Answer) {
        let mut got = Vec::new();
        let parts = match answer {
            Answer::Done => vec![Part::Segment(Segment::Data(into))],
            Answer::Segments(segments) => segments.into_iter().map(Part::Segment).collect(),
            Answer::Fetched(parts) => parts,
            Answer::Map(_) => unreachable!("a read was answered with a map"),
        };
        for part in parts {
            match part {
                Part::Segment(Segment::Data(span)) => {
                    assert_eq!(span.start, into.start + got.len() as u32, "{span:?}");
                    got.extend_from_slice(self.ram.span(span));
                }
                Part::Segment(Segment::Hole(len)) => got.resize(got.len() + usize_of(len), 0),
                Part::Stored(stored) => got.extend(self.ram.stored(stored)),
            }
        }
        assert_eq!(got.len() as u64, extent.len.get(), "length of {extent:?}");
        let wanted = &self.model[range_of(extent)];
        for (index, (known, byte)) in wanted.iter().zip(&got).enumerate() {
            let at = extent.at.get() + index as u64;
            assert!(known.is_none_or(|known| known == *byte), "{at}: {known:?}, read {byte}");
        }
    }

    /// Lets everything finish, reads all of it, and opens what was left once more.
    fn end(mut self) {
        self.drain();
        if self.disk.stopped().is_some() {
            assert!(self.faulted, "stopped without a fault");
        } else {
            self.one(Request::Flush);
            self.read_all();
            assert!(self.disk.stopped().is_none() && !self.disk.is_dirty(), "after a flush");
        }
        if self.kind == Kind::Flat {
            return;
        }
        let stopped = self.disk.stopped().is_some();
        let leaf = std::mem::take(&mut self.ram.files[0]);
        if !self.faulted {
            let report = check(&leaf, false).expect("what was closed can be checked");
            assert!(report.is_sound(), "{:?}", report.findings);
        }
        let image = open(&leaf).expect("what was left opens");
        if stopped {
            return;
        }
        // A block given back at the end of the file leaves a gap that the next opening cuts off.
        let leaf = repair(&image, &leaf);
        self.disk = disk_of(self.kind, &leaf);
        self.ram.files[0] = leaf;
        self.read_all();
    }

    fn drain(&mut self) {
        self.gather();
        while !self.effects.is_empty() {
            self.complete(0, Fate::Done);
        }
        assert!(self.slots.iter().all(Option::is_none), "no effects, yet {:?}", self.slots);
        assert_eq!(self.disk.in_flight(), 0, "requests left");
    }

    /// One request, alone and without faults of its own.
    fn one(&mut self, request: Request) {
        self.slots[0] = Some(request);
        self.disk.submit(RequestId(0), request);
        self.drain();
    }

    fn read_all(&mut self) {
        let mut at = 0;
        while at < DISK_BYTES {
            let len = (DISK_BYTES - at).min(u64::from(SLOT_BYTES));
            let extent = Extent::new(DiskOffset::new(at), ByteLen::new(len));
            let into = Span { region: RegionId(0), start: 0, len: len as u32 };
            self.ram.span(into).fill(0xEE);
            self.one(Request::Read { extent, into });
            at += len;
        }
    }
}

fn brief(effect: &Effect) -> String {
    match effect {
        Effect::Read { at, into, .. } => format!("read {at}+{} of {:?}", into.len(), effect.file()),
        Effect::Write { at, from, .. } => format!("write {at}+{}", from.len()),
        other => format!("{other:?}"),
    }
}

fn range_of(extent: Extent) -> std::ops::Range<usize> {
    extent.at.get() as usize..extent.end().get() as usize
}

/// What a request may change.
fn changes(request: &Request) -> Option<std::ops::Range<usize>> {
    match request {
        Request::Write { extent, .. }
        | Request::Zero { extent, .. }
        | Request::Discard { extent, .. } => Some(range_of(*extent)),
        _ => None,
    }
}

fn touches(request: &Request) -> Option<std::ops::Range<usize>> {
    match request {
        Request::Read { extent, .. }
        | Request::Fetch { extent, .. }
        | Request::Map { extent, .. } => Some(range_of(*extent)),
        other => changes(other),
    }
}

fn collide(a: &Request, b: &Request) -> bool {
    let (Some(left), Some(right)) = (touches(a), touches(b)) else { return false };
    let change = changes(a).is_some() || changes(b).is_some();
    change && left.start < right.end && right.start < left.end
}

fn disk_of(kind: Kind, leaf: &[u8]) -> Disk {
    let size = ByteLen::new(DISK_BYTES);
    if kind == Kind::Flat {
        return Disk::writable(Box::new(Flat::new(size)), LEAF, Vec::new());
    }
    let image = open(leaf).expect("a fresh image opens");
    let sparse = image.sparse().expect("it has blocks");
    let leaf: Box<dyn Leaf> = Box::new(VhdLeaf::new(&image, sparse, Backing::File));
    let parent = FrozenLayer { layer: Box::new(Flat::new(size)), file: PARENT };
    let parents = if kind == Kind::Child { vec![parent] } else { Vec::new() };
    Disk::writable(leaf, LEAF, parents)
}

fn fresh_image(kind: Kind) -> Vec<u8> {
    let layout = match kind {
        Kind::Child => NewLayout::Differencing {
            block_bytes: vhd::ByteLen::new(4096),
            parent: NewParent {
                uuid: [0; 16],
                raw: true,
                relative_path: "parent.raw".to_owned(),
                timestamp: 0,
            },
        },
        Kind::Dynamic(block) => NewLayout::Dynamic { block_bytes: vhd::ByteLen::new(block) },
        Kind::Flat => NewLayout::Fixed,
    };
    let size = vhd::ByteLen::new(DISK_BYTES);
    let plan = vhd::create(&CreateOptions { size, layout, uuid: [7; 16], timestamp: 0 });
    let plan = plan.expect("these sizes are fine");
    let mut file = vec![0; plan.file_len.get() as usize];
    for piece in plan.pieces {
        match piece {
            Piece::Bytes { at, bytes } => {
                let start = at.get() as usize;
                file[start..start + bytes.len()].copy_from_slice(&bytes);
            }
            Piece::Fill { at, len, byte } => {
                let start = at.get() as usize;
                file[start..start + len.get() as usize].fill(byte);
            }
        }
    }
    file
}

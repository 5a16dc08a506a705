//! A workbench for one format: a disk on top of files in memory, the bytes it must show, and what
//! its effects cost. Effects complete at once and in order; `tests/model.rs` has the other orders.

use orlop::engine::effect::{Effect, FileId, IoError, Outcome, Piece, Source, Target};
use orlop::engine::layer::{Layer, Leaf};
use orlop::engine::request::{Answer, Fault, Request, RequestId, Segment};
use orlop::engine::units::{ByteLen, DiskOffset, Extent, RegionId, Span};
use orlop::engine::{Disk, FrozenLayer};
use orlop::format::Flat;
use orlop::format::vhd::{Backing, FixedLeaf, VhdLayer, VhdLeaf};
use vhd::{CreateOptions, Image, Limits, NewLayout, NewParent, Opening, Piece as Part, Step};

/// Bytes of every disk: no whole number of blocks.
pub(crate) const SIZE: u64 = (3 << 20) + 512;

/// How to make the image.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Make {
    Raw,
    Fixed,
    Dynamic { block_bytes: u64 },
    Differencing { block_bytes: u64, parents: u8 },
}

/// A disk and what is known about it.
pub(crate) struct Bench {
    make: Make,
    /// The top image first.
    files: Vec<Vec<u8>>,
    disk: Disk,
    memory: Vec<u8>,
    expected: Vec<u8>,
    syncs: usize,
    punched: u64,
    fail_sync: bool,
}

impl Bench {
    /// An empty image; over parents, if it has some, that hold something.
    pub(crate) fn new(make: Make) -> Self {
        let (files, expected) = match make {
            Make::Raw => (vec![vec![0; SIZE as usize]], vec![0; SIZE as usize]),
            Make::Fixed => (vec![new_image(NewLayout::Fixed, 1)], vec![0; SIZE as usize]),
            Make::Dynamic { block_bytes } => {
                let block_bytes = vhd::ByteLen::new(block_bytes);
                let image = new_image(NewLayout::Dynamic { block_bytes }, 1);
                (vec![image], vec![0; SIZE as usize])
            }
            Make::Differencing { block_bytes, parents } => family(block_bytes, parents),
        };
        let disk = open(make, &files, true);
        Self {
            make,
            files,
            disk,
            memory: Vec::new(),
            expected,
            syncs: 0,
            punched: 0,
            fail_sync: false,
        }
    }

    /// The bytes the disk must show.
    pub(crate) fn expected(&self) -> &[u8] {
        &self.expected
    }

    /// Whether the format knows no holes.
    pub(crate) fn is_flat(&self) -> bool {
        matches!(self.make, Make::Raw | Make::Fixed)
    }

    pub(crate) fn syncs(&self) -> usize {
        self.syncs
    }

    /// Bytes whose space was given back.
    pub(crate) fn punched(&self) -> u64 {
        self.punched
    }

    pub(crate) fn fail_next_sync(&mut self) {
        self.fail_sync = true;
    }

    /// Memory for a request.
    pub(crate) fn lend(&mut self, len: u32) -> Span {
        let start = self.memory.len() as u32;
        self.memory.resize((start + len) as usize, 0xEE);
        Span { region: RegionId(0), start, len }
    }

    /// Writes a byte over and over.
    pub(crate) fn write(&mut self, extent: Extent, byte: u8, fua: bool) {
        let from = self.lend(extent.len.get() as u32);
        self.memory[from.start as usize..][..from.len as usize].fill(byte);
        self.expected[range(extent)].fill(byte);
        assert_eq!(self.ask(Request::Write { extent, from, fua }), Answer::Done);
    }

    pub(crate) fn zero(&mut self, extent: Extent, may_unmap: bool) {
        self.expected[range(extent)].fill(0);
        assert_eq!(self.ask(Request::Zero { extent, may_unmap, fua: false }), Answer::Done);
    }

    pub(crate) fn flush(&mut self) {
        assert_eq!(self.ask(Request::Flush), Answer::Done);
    }

    /// A request that must succeed.
    pub(crate) fn ask(&mut self, request: Request) -> Answer {
        self.try_ask(request).unwrap_or_else(|fault| panic!("{request:?}: {fault}"))
    }

    /// A request, and all effects it causes.
    pub(crate) fn try_ask(&mut self, request: Request) -> Result<Answer, Fault> {
        self.disk.submit(RequestId(1), request);
        while let Some(effect) = self.disk.poll_effect() {
            let id = effect.id();
            let outcome = self.carry_out(effect);
            self.disk.complete(id, outcome);
        }
        let reply = self.disk.poll_reply().expect("a request is answered when nothing is left");
        assert_eq!(self.disk.effects_in_flight(), 0);
        reply.result
    }

    /// Lets the disk grow.
    pub(crate) fn grow(&mut self, size: u64) {
        let request = Request::Resize { size: ByteLen::new(size) };
        assert_eq!(self.ask(request), Answer::Done);
        assert_eq!(self.disk.size().get(), size);
        self.expected.resize(size as usize, 0);
    }

    /// Bytes of the top image.
    pub(crate) fn file(&self) -> &[u8] {
        &self.files[0]
    }

    /// Reads the whole disk and compares.
    pub(crate) fn agrees(&mut self) {
        self.memory.clear();
        assert_eq!(self.disk.size().get(), self.expected.len() as u64);
        let size = self.expected.len();
        let extent = Extent::new(DiskOffset::new(0), ByteLen::new(size as u64));
        let into = self.lend(size as u32);
        if let Answer::Segments(segments) = self.ask(Request::Read { extent, into }) {
            let mut at = 0;
            for segment in segments {
                match segment {
                    Segment::Data(span) => at += span.len as usize,
                    Segment::Hole(len) => {
                        self.memory[at..at + len.get() as usize].fill(0);
                        at += len.get() as usize;
                    }
                }
            }
            assert_eq!(at, size);
        }
        let differs = self.memory.iter().zip(&self.expected).position(|(a, b)| a != b);
        assert_eq!(differs, None, "first byte that differs");
        self.memory.clear();
    }

    /// Closes the disk in order and opens it again.
    pub(crate) fn reopen(&mut self) {
        self.flush();
        assert!(!self.disk.is_dirty());
        self.disk = open(self.make, &self.files, true);
    }

    /// Closes the disk in order and opens it to read.
    pub(crate) fn freeze(&mut self) {
        self.flush();
        self.disk = open(self.make, &self.files, false);
    }

    /// Forgets everything that is only in memory.
    pub(crate) fn crash(&mut self) {
        self.disk = open(self.make, &self.files, true);
    }

    fn carry_out(&mut self, effect: Effect) -> Outcome {
        let file = &mut self.files[usize::from(effect.file().0)];
        match effect {
            Effect::Read { at, into, .. } => {
                let (at, len) = (at.get() as usize, into.len().get() as usize);
                let Some(bytes) = file.get(at..at + len) else {
                    return Outcome::Failed(IoError::UNEXPECTED_EOF);
                };
                match into {
                    Target::Span(span) => {
                        self.memory[span.start as usize..][..len].copy_from_slice(bytes);
                        Outcome::Done
                    }
                    Target::Owned(_) => Outcome::Bytes(bytes.to_vec()),
                }
            }
            Effect::Write { at, from, .. } => {
                let bytes = gather(&self.memory, from);
                room(file, at.get(), bytes.len() as u64).copy_from_slice(&bytes);
                Outcome::Done
            }
            Effect::Zero { at, len, .. } => {
                room(file, at.get(), len.get()).fill(0);
                Outcome::Done
            }
            Effect::Punch { at, len, .. } => {
                let end = file.len() as u64;
                let stop = (at.get() + len.get()).min(end);
                let start = at.get().min(stop);
                file[start as usize..stop as usize].fill(0);
                self.punched += stop - start;
                Outcome::Done
            }
            Effect::SetLength { len, .. } => {
                file.resize(len.get() as usize, 0);
                Outcome::Done
            }
            Effect::Extents { at, len, most, .. } => {
                Outcome::Extents(orlop::host::sim::host::holes_in(file, at, len, most))
            }
            Effect::Sync { .. } if std::mem::take(&mut self.fail_sync) => {
                self.syncs += 1;
                Outcome::Failed(IoError::EIO)
            }
            Effect::Sync { .. } => {
                self.syncs += 1;
                Outcome::Done
            }
        }
    }
}

fn gather(memory: &[u8], from: Source) -> Vec<u8> {
    let lent = |span: Span| memory[span.start as usize..][..span.len as usize].to_vec();
    match from {
        Source::Span(span) => lent(span),
        Source::Owned(bytes) => bytes,
        Source::Pieces(pieces) => {
            let bytes = pieces.into_iter().map(|piece| match piece {
                Piece::Span(span) => lent(span),
                Piece::Owned(bytes) => bytes,
            });
            bytes.flatten().collect()
        }
    }
}

fn room(file: &mut Vec<u8>, at: u64, len: u64) -> &mut [u8] {
    let (start, end) = (at as usize, (at + len) as usize);
    if file.len() < end {
        file.resize(end, 0);
    }
    &mut file[start..end]
}

fn range(extent: Extent) -> std::ops::Range<usize> {
    extent.at.get() as usize..extent.end().get() as usize
}

/// A child over so many parents, each of which holds something of its own.
fn family(block_bytes: u64, parents: u8) -> (Vec<Vec<u8>>, Vec<u8>) {
    let mut below = Bench::new(Make::Dynamic { block_bytes: 128 << 10 });
    below.write(Extent::new(DiskOffset::new(0), ByteLen::new(SIZE / 2)), 0xA0, false);
    below.flush();
    for generation in 1..parents {
        let (mut files, expected) = (below.files, below.expected);
        files.insert(0, child(block_bytes, generation));
        let make = Make::Differencing { block_bytes, parents: generation };
        let disk = open(make, &files, true);
        below = Bench {
            make,
            files,
            disk,
            memory: Vec::new(),
            expected,
            syncs: 0,
            punched: 0,
            fail_sync: false,
        };
        let at = u64::from(generation) * 300_000;
        let own = Extent::new(DiskOffset::new(at), ByteLen::new(9000));
        below.write(own, 0xA0 + generation, false);
        below.flush();
    }
    let (mut files, expected) = (below.files, below.expected);
    files.insert(0, child(block_bytes, parents));
    (files, expected)
}

fn child(block_bytes: u64, generation: u8) -> Vec<u8> {
    let parent = NewParent {
        uuid: [generation; 16],
        raw: false,
        relative_path: "parent.vhd".to_owned(),
        timestamp: 0,
    };
    let block_bytes = vhd::ByteLen::new(block_bytes);
    new_image(NewLayout::Differencing { block_bytes, parent }, generation + 1)
}

fn new_image(layout: NewLayout, name: u8) -> Vec<u8> {
    let size = vhd::ByteLen::new(SIZE);
    let options = CreateOptions { size, layout, uuid: [name; 16], timestamp: 0 };
    let plan = vhd::create(&options).expect("the formats' images are legal");
    let mut bytes = vec![0; plan.file_len.get() as usize];
    for part in &plan.pieces {
        match part {
            Part::Bytes { at, bytes: own } => {
                room(&mut bytes, at.get(), own.len() as u64).copy_from_slice(own);
            }
            Part::Fill { at, len, byte } => room(&mut bytes, at.get(), len.get()).fill(*byte),
        }
    }
    bytes
}

fn opened(bytes: &[u8]) -> Image {
    let mut opening = Opening::new(vhd::ByteLen::new(bytes.len() as u64), Limits::default());
    let mut step = opening.step(None);
    loop {
        match step.expect("an image of ours opens") {
            Step::Read { at, len } => {
                step = opening.step(Some(&bytes[at.get() as usize..][..len]));
            }
            Step::Done(image) => return image,
        }
    }
}

fn open(make: Make, files: &[Vec<u8>], writable: bool) -> Disk {
    let frozen = |(index, bytes): (usize, &Vec<u8>)| FrozenLayer {
        layer: layer(make, bytes),
        file: FileId(index as u16),
    };
    let numbered = files.iter().enumerate();
    if writable {
        Disk::writable(leaf(make, &files[0]), FileId(0), numbered.skip(1).map(frozen).collect())
    } else {
        Disk::read_only(numbered.map(frozen).collect()).expect("there is at least one image")
    }
}

fn layer(make: Make, bytes: &[u8]) -> Box<dyn Layer> {
    if matches!(make, Make::Raw) {
        return Box::new(Flat::new(ByteLen::new(bytes.len() as u64)));
    }
    let image = opened(bytes);
    match image.sparse() {
        Some(sparse) => Box::new(VhdLayer::new(&image, sparse)),
        None => Box::new(Flat::new(ByteLen::new(image.disk_size().get()))),
    }
}

fn leaf(make: Make, bytes: &[u8]) -> Box<dyn Leaf> {
    if matches!(make, Make::Raw) {
        return Box::new(Flat::growing(ByteLen::new(bytes.len() as u64)));
    }
    let image = opened(bytes);
    match image.sparse() {
        Some(sparse) => Box::new(VhdLeaf::new(&image, sparse, Backing::File)),
        None => Box::new(FixedLeaf::new(&image, Backing::File)),
    }
}

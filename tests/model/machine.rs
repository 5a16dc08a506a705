//! What carries out effects: memory that completes them in any order, or a real host on real files.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use orlop::engine::effect::{Effect, EffectId, FileId, IoError, Outcome, Piece, Source, Target};
use orlop::engine::request::Stored;
use orlop::engine::units::{RegionId, Span};
use orlop::host::memory::{Arena, ArenaSize, Lease};
use orlop::host::sim::host::holes_in;
use orlop::host::sim::rng::Rng;
use orlop::host::{Aio, Choice, Descriptors, Event, Host, OpenMode};
use tempfile::TempDir;

use crate::images::ImageBytes;

/// Carries out effects on the files of one chain.
pub(crate) trait Machine {
    /// Takes the chain's files over, the top first, and names them.
    fn attach(&mut self, chain: &[ImageBytes]) -> Vec<FileId>;

    /// Gives the top image's bytes back; nothing is in flight.
    fn detach(&mut self) -> Vec<u8>;

    /// Starts an effect.
    fn start(&mut self, effect: Effect);

    /// Waits for any effect that was started.
    fn finished(&mut self) -> (EffectId, Outcome);

    /// Memory for a request.
    fn lend(&mut self, len: u32) -> Span;

    /// The bytes behind a span.
    fn bytes(&mut self, span: Span) -> &mut [u8];

    /// The bytes of a file where they lie now.
    fn stored(&mut self, stored: Stored) -> Vec<u8>;

    /// Everything lent comes back.
    fn reclaim(&mut self);
}

/// Files in memory; which effect in flight is carried out next is drawn by lot.
pub(crate) struct InMemory {
    files: Vec<Vec<u8>>,
    memory: Vec<u8>,
    in_flight: Vec<Effect>,
    order: Rng,
}

impl InMemory {
    pub(crate) fn new(order: u64) -> Self {
        Self {
            files: Vec::new(),
            memory: Vec::new(),
            in_flight: Vec::new(),
            order: Rng::new(order),
        }
    }

    fn carry_out(&mut self, effect: Effect) -> Outcome {
        let file = usize::from(effect.file().0);
        match effect {
            Effect::Read { may_lend: true, .. } if self.order.below(2) == 0 => Outcome::Lent,
            Effect::Read { at, into, .. } => self.read(file, at.get() as usize, into),
            Effect::Write { at, from, .. } => {
                let bytes = self.gather(from);
                let at = at.get() as usize;
                let room = self.room(file, at, bytes.len());
                room.copy_from_slice(&bytes);
                Outcome::Done
            }
            Effect::Zero { at, len, .. } => {
                self.room(file, at.get() as usize, len.get() as usize).fill(0);
                Outcome::Done
            }
            Effect::Punch { at, len, .. } => {
                let end = self.files[file].len();
                let start = (at.get() as usize).min(end);
                let stop = (at.get() + len.get()).min(end as u64) as usize;
                self.files[file][start..stop].fill(0);
                Outcome::Done
            }
            Effect::SetLength { len, .. } => {
                self.files[file].resize(len.get() as usize, 0);
                Outcome::Done
            }
            Effect::Extents { at, len, most, .. } => {
                Outcome::Extents(holes_in(&self.files[file], at, len, most))
            }
            Effect::Sync { .. } => Outcome::Done,
        }
    }

    fn read(&mut self, file: usize, at: usize, into: Target) -> Outcome {
        let len = into.len().get() as usize;
        let Some(bytes) = self.files[file].get(at..at + len) else {
            return Outcome::Failed(IoError::UNEXPECTED_EOF);
        };
        match into {
            Target::Span(span) => {
                self.memory[span.start as usize..][..len].copy_from_slice(bytes);
                Outcome::Done
            }
            Target::Owned(mut own) => {
                own.copy_from_slice(bytes);
                Outcome::Bytes(own)
            }
        }
    }

    fn gather(&self, from: Source) -> Vec<u8> {
        let lent = |span: Span| &self.memory[span.start as usize..][..span.len as usize];
        match from {
            Source::Span(span) => lent(span).to_vec(),
            Source::Owned(bytes) => bytes,
            Source::Pieces(pieces) => {
                let mut all = Vec::new();
                for piece in pieces {
                    match piece {
                        Piece::Span(span) => all.extend_from_slice(lent(span)),
                        Piece::Owned(bytes) => all.extend(bytes),
                    }
                }
                all
            }
        }
    }

    fn room(&mut self, file: usize, at: usize, len: usize) -> &mut [u8] {
        let file = &mut self.files[file];
        if file.len() < at + len {
            file.resize(at + len, 0);
        }
        &mut file[at..at + len]
    }
}

impl Machine for InMemory {
    fn attach(&mut self, chain: &[ImageBytes]) -> Vec<FileId> {
        self.files = chain.iter().map(|image| image.bytes.clone()).collect();
        (0..chain.len()).map(|depth| FileId(depth as u16)).collect()
    }

    fn detach(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.files[0])
    }

    fn start(&mut self, effect: Effect) {
        self.in_flight.push(effect);
    }

    fn finished(&mut self) -> (EffectId, Outcome) {
        let index = self.order.below(self.in_flight.len());
        let effect = self.in_flight.swap_remove(index);
        (effect.id(), self.carry_out(effect))
    }

    fn lend(&mut self, len: u32) -> Span {
        let start = self.memory.len() as u32;
        // Old bytes in fresh memory must never pass for what was read.
        self.memory.resize((start + len) as usize, 0xEE);
        Span { region: RegionId(0), start, len }
    }

    fn bytes(&mut self, span: Span) -> &mut [u8] {
        &mut self.memory[span.start as usize..][..span.len as usize]
    }

    fn stored(&mut self, Stored { file, at, len }: Stored) -> Vec<u8> {
        self.files[usize::from(file.0)][at.get() as usize..][..len.get() as usize].to_vec()
    }

    fn reclaim(&mut self) {
        self.memory.clear();
    }
}

/// A host as the server uses it, on files of its own.
pub(crate) struct OnHost {
    host: Host,
    arena: Arena,
    leases: Vec<Lease>,
    files: Vec<FileId>,
    folder: TempDir,
    direct: bool,
    events: Vec<Event>,
}

impl OnHost {
    /// A machine of the kind asked for, or why there is none here.
    pub(crate) fn new(aio: Aio, direct: bool) -> io::Result<(Self, Choice)> {
        let arena = Arena::new(ArenaSize { registered_bytes: 1 << 20, large_bytes: 256 << 20 })?;
        let (host, choice) = Host::new(aio, &arena)?;
        let folder = TempDir::new()?;
        let machine = Self {
            host,
            arena,
            leases: Vec::new(),
            files: Vec::new(),
            folder,
            direct,
            events: Vec::new(),
        };
        Ok((machine, choice))
    }

    fn open(&self, depth: usize, bytes: &[u8]) -> Descriptors {
        let path = self.folder.path().join(depth.to_string());
        std::fs::write(&path, bytes).expect("the temporary folder takes files");
        let mut options = File::options();
        options.read(true).write(depth == 0);
        let mut direct = options.clone();
        direct.custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32);
        let file = if self.direct { direct.open(&path) } else { options.open(&path) };
        let fd = OwnedFd::from(file.or_else(|_| options.open(&path)).expect("it was just written"));
        let mode = OpenMode::probe(fd.as_fd()).expect("a plain file can be described");
        let cached = options.open(&path).map(OwnedFd::from).ok();
        Descriptors { main: fd, cached, mode }
    }
}

impl Machine for OnHost {
    fn attach(&mut self, chain: &[ImageBytes]) -> Vec<FileId> {
        let opened: Vec<_> =
            chain.iter().enumerate().map(|(i, c)| self.open(i, &c.bytes)).collect();
        for file in opened {
            self.files.push(self.host.add_file(file).expect("a host takes a few files"));
        }
        self.files.clone()
    }

    fn detach(&mut self) -> Vec<u8> {
        assert_eq!(self.host.in_flight(), 0, "a disk was closed with effects in flight");
        for file in self.files.drain(..) {
            self.host.remove_file(file);
        }
        std::fs::read(self.folder.path().join("0")).expect("it is still there")
    }

    fn start(&mut self, effect: Effect) {
        self.host.start(5, effect);
    }

    fn finished(&mut self) -> (EffectId, Outcome) {
        while self.events.is_empty() {
            self.host.wait(None, &mut self.events).expect("a host can wait");
        }
        match self.events.remove(0) {
            Event::Effect { tag: 5, id, outcome } => (id, outcome),
            other => panic!("{other:?} from a host with nothing but effects"),
        }
    }

    fn lend(&mut self, len: u32) -> Span {
        let lease = self.arena.take(len).expect("the arena is large enough for a batch");
        let span = lease.span();
        self.arena.bytes_mut(span).fill(0xEE);
        self.leases.push(lease);
        span
    }

    fn bytes(&mut self, span: Span) -> &mut [u8] {
        self.arena.bytes_mut(span)
    }

    fn stored(&mut self, Stored { file, at, len }: Stored) -> Vec<u8> {
        let depth = self.files.iter().position(|known| *known == file).expect("a file of ours");
        let file = File::open(self.folder.path().join(depth.to_string())).expect("it is there");
        let mut bytes = vec![0; len.get() as usize];
        file.read_exact_at(&mut bytes, at.get()).expect("what is lent lies in the file");
        bytes
    }

    fn reclaim(&mut self) {
        for lease in self.leases.drain(..) {
            self.arena.give(lease);
        }
    }
}

//! A disk that nobody serves, read and written through a store: the engine as always, with a host
//! that carries out one effect after the other.
//!
//! For merging, and for looking at content in tests. Refuses nothing that the engine does not:
//! whoever opens a disk here has made sure that nobody else writes to it.

use std::io;
use std::sync::Arc;

use super::change::{self, corrupt};
use super::grow::leaf_of;
use super::names::DataFormat;
use super::store::{DirOp, Store};
use crate::engine::effect::{Effect, FileId, FileRun, IoError, Outcome, Piece, Source, Target};
use crate::engine::layer::Layer;
use crate::engine::request::{
    Answer, FaultKind, MapKind, MapRun, Reply, Request, RequestId, Segment,
};
use crate::engine::units::{ByteLen, DiskOffset, Extent, RegionId, Span};
use crate::engine::{Disk, FrozenLayer};
use crate::format::Flat;
use crate::format::vhd::VhdLayer;

/// Runs of a map asked for at once.
const MAP_RUNS: u32 = 256;

/// A disk over data files of a store.
pub struct OfflineDisk {
    store: Arc<dyn Store>,
    disk: Disk,
    files: Vec<String>,
    /// The memory that requests lend.
    memory: Vec<u8>,
    requests: u64,
    /// What the store said first; what the engine makes of it says less.
    refusal: Option<io::Error>,
}

impl std::fmt::Debug for OfflineDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OfflineDisk").field("files", &self.files).finish_non_exhaustive()
    }
}

impl OfflineDisk {
    /// Opens data files, the top one first; that one is written to unless `read_only`.
    ///
    /// # Errors
    /// When one cannot be read or makes no sense (`InvalidData`).
    pub fn open(
        store: Arc<dyn Store>,
        chain: &[(String, DataFormat)],
        read_only: bool,
    ) -> io::Result<Self> {
        let mut leaf = None;
        let mut frozen = Vec::new();
        for (index, (name, format)) in chain.iter().enumerate() {
            let file = FileId(u16::try_from(index).map_err(corrupt)?);
            if index == 0 && !read_only {
                leaf = Some((leaf_of(store.as_ref(), name, *format)?, file));
            } else {
                frozen.push(FrozenLayer { layer: layer_of(store.as_ref(), name, *format)?, file });
            }
        }
        let disk = match leaf {
            Some((leaf, file)) => Disk::writable(leaf, file, frozen),
            None => Disk::read_only(frozen).ok_or_else(|| corrupt("a chain of nothing"))?,
        };
        let files = chain.iter().map(|(name, _)| name.clone()).collect();
        Ok(Self { store, disk, files, memory: Vec::new(), requests: 0, refusal: None })
    }

    /// Bytes of the disk.
    pub fn size(&self) -> ByteLen {
        self.disk.size()
    }

    /// Reads a run of the disk.
    ///
    /// # Errors
    /// What the store or the engine says.
    pub fn read(&mut self, at: DiskOffset, len: u32) -> io::Result<Vec<u8>> {
        self.memory = vec![0; len as usize];
        let into = Span { region: RegionId(0), start: 0, len };
        let extent = Extent::new(at, into.bytes());
        let answer = self.ask(Request::Read { extent, into })?;
        let mut bytes = std::mem::take(&mut self.memory);
        if let Answer::Segments(segments) = answer {
            let mut done = 0;
            for segment in segments {
                match segment {
                    Segment::Data(span) => done += span.len as usize,
                    Segment::Hole(len) => {
                        let len = len.get() as usize;
                        bytes[done..done + len].fill(0);
                        done += len;
                    }
                }
            }
        }
        Ok(bytes)
    }

    /// Writes a run of the disk; durable after a flush.
    ///
    /// # Errors
    /// What the store or the engine says.
    pub fn write(&mut self, at: DiskOffset, bytes: &[u8]) -> io::Result<()> {
        let len = u32::try_from(bytes.len()).map_err(corrupt)?;
        self.memory = bytes.to_vec();
        let from = Span { region: RegionId(0), start: 0, len };
        let extent = Extent::new(at, from.bytes());
        self.ask(Request::Write { extent, from, fua: false }).map(drop)
    }

    /// Lets a run read as zeroes, whatever a parent has there.
    ///
    /// # Errors
    /// What the store or the engine says.
    pub fn zero(&mut self, extent: Extent) -> io::Result<()> {
        self.ask(Request::Zero { extent, may_unmap: true, fua: false }).map(drop)
    }

    /// Makes everything written durable.
    ///
    /// # Errors
    /// What the store or the engine says.
    pub fn flush(&mut self) -> io::Result<()> {
        self.ask(Request::Flush).map(drop)
    }

    /// Lets the disk grow.
    ///
    /// # Errors
    /// What the store or the engine says.
    pub fn resize(&mut self, size: ByteLen) -> io::Result<()> {
        self.ask(Request::Resize { size }).map(drop)
    }

    /// What the first bytes of a run are made of.
    ///
    /// # Errors
    /// What the store or the engine says.
    pub fn map(&mut self, extent: Extent) -> io::Result<Vec<MapRun>> {
        match self.ask(Request::Map { extent, limit: MAP_RUNS })? {
            Answer::Map(runs) => Ok(runs),
            other => Err(corrupt(format!("a map was answered with {other:?}"))),
        }
    }

    fn ask(&mut self, request: Request) -> io::Result<Answer> {
        self.requests += 1;
        let id = RequestId(self.requests);
        self.disk.submit(id, request);
        loop {
            while let Some(effect) = self.disk.poll_effect() {
                let id = effect.id();
                let outcome = self.carry_out(effect).unwrap_or_else(|error| {
                    let code = error.raw_os_error().unwrap_or(IoError::EIO.0);
                    self.refusal.get_or_insert(error);
                    Outcome::Failed(IoError(code))
                });
                self.disk.complete(id, outcome);
            }
            match self.disk.poll_reply() {
                Some(Reply { result: Ok(answer), .. }) => return Ok(answer),
                Some(Reply { result: Err(fault), .. }) => {
                    return Err(self.refusal.take().unwrap_or_else(|| as_io(&fault.kind)));
                }
                None if self.disk.effects_in_flight() == 0 => {
                    return Err(corrupt("the engine waits for nothing"));
                }
                None => {}
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) -> io::Result<Outcome> {
        let name = self.files[usize::from(effect.file().0)].as_str();
        let store = self.store.as_ref();
        match effect {
            Effect::Read { at, into: Target::Owned(mut bytes), .. } => {
                store.read(name, at, &mut bytes)?;
                return Ok(Outcome::Bytes(bytes));
            }
            Effect::Read { at, into: Target::Span(span), .. } => {
                store.read(name, at, &mut self.memory[range(span)])?;
            }
            Effect::Write { at, from, durable, .. } => {
                let bytes = gather(&self.memory, from);
                store.apply(DirOp::Write { name, at, bytes: &bytes })?;
                if durable {
                    store.apply(DirOp::SyncFile { name })?;
                }
            }
            Effect::Zero { at, len, .. } | Effect::Punch { at, len, .. } => {
                store.apply(DirOp::Punch { name, at, len })?;
            }
            Effect::SetLength { len, .. } => store.apply(DirOp::SetLength { name, len })?,
            Effect::Extents { len, .. } => {
                return Ok(Outcome::Extents(vec![FileRun { len, hole: false }]));
            }
            Effect::Sync { .. } => store.apply(DirOp::SyncFile { name })?,
        }
        Ok(Outcome::Done)
    }
}

/// The image inside a data file, to be read.
fn layer_of(store: &dyn Store, name: &str, format: DataFormat) -> io::Result<Box<dyn Layer>> {
    let flat = |size| Box::new(Flat::new(size));
    if format == DataFormat::Raw {
        return Ok(flat(store.stamp(name)?.len));
    }
    let image = change::survey(store, name)?;
    Ok(match image.sparse() {
        Some(sparse) => Box::new(VhdLayer::new(&image, sparse)),
        None => flat(ByteLen::new(image.disk_size().get())),
    })
}

fn range(span: Span) -> std::ops::Range<usize> {
    span.start as usize..(span.start + span.len) as usize
}

fn gather(memory: &[u8], from: Source) -> Vec<u8> {
    match from {
        Source::Owned(bytes) => bytes,
        Source::Span(span) => memory[range(span)].to_vec(),
        Source::Pieces(pieces) => {
            let mut all = Vec::new();
            for piece in pieces {
                match piece {
                    Piece::Owned(bytes) => all.extend_from_slice(&bytes),
                    Piece::Span(span) => all.extend_from_slice(&memory[range(span)]),
                }
            }
            all
        }
    }
}

fn as_io(kind: &FaultKind) -> io::Error {
    match kind {
        FaultKind::Io(error) if error.0 > 0 => io::Error::from_raw_os_error(error.0),
        FaultKind::NoSpace(_) => io::Error::from_raw_os_error(IoError::ENOSPC.0),
        other => corrupt(other),
    }
}

/// Copies what the top layer of `from` holds itself into `to`: bytes as bytes, zeroes as zeroes.
///
/// # Errors
/// What the store or the engine says; some of it may be there then.
pub(super) fn copy_top(from: &mut OfflineDisk, to: &mut OfflineDisk) -> io::Result<()> {
    const CHUNK_BYTES: u64 = 1 << 20;
    let size = from.size().get();
    let mut at = 0;
    while at < size {
        let runs = from.map(Extent::new(DiskOffset::new(at), ByteLen::new(size - at)))?;
        let before = at;
        for run in runs {
            let end = at + run.len.get();
            while at < end {
                let len = (end - at).min(CHUNK_BYTES);
                let start = DiskOffset::new(at);
                match run.kind {
                    MapKind::Data { depth: 0 } | MapKind::Sparse { depth: 0 } => {
                        let bytes = from.read(start, u32::try_from(len).map_err(corrupt)?)?;
                        to.write(start, &bytes)?;
                    }
                    MapKind::Zero { depth: 0 } => {
                        to.zero(Extent::new(start, ByteLen::new(len)))?;
                    }
                    _ => {}
                }
                at += len;
            }
        }
        if at == before {
            return Err(corrupt("a map that covers nothing"));
        }
    }
    Ok(())
}

//! Ragged edges: the first and last sector of a request that covers only a part of them.
//!
//! Presence is kept per sector, so a sector the leaf does not hold yet must be completed from what
//! it reads as now before it can be written. Such a task is exclusive on its sectors, or two of
//! them would each bring back the other's old bytes.

use super::chain::Found;
use super::disk::Disk;
use super::effect::{Effect, IoError, Outcome, Piece, Source, Target};
use super::request::FaultKind;
use super::task::{Purpose, TaskKey};
use super::units::{ByteLen, DiskOffset, Extent, SECTOR, Span};

/// The ragged sectors of a request; `first` also stands for the last when they are the same.
pub(super) struct Edges {
    pub(super) first: Option<Edge>,
    pub(super) last: Option<Edge>,
}

/// One ragged sector.
pub(super) struct Edge {
    /// The sector, cut at the end of the disk.
    pub(super) sector: Extent,
    /// What it reads as now (zeroes until fetched).
    bytes: Vec<u8>,
    /// How much of it was asked for.
    asked: ByteLen,
    /// The leaf holds all of it: it can be written in part.
    in_place: bool,
    /// Some layer holds some of it.
    held: bool,
    /// Its final content was handed out (zeroing only).
    written: bool,
}

impl Edge {
    fn new(sector: Extent) -> Self {
        let bytes = vec![0; sector.len.get() as usize];
        Self { sector, bytes, asked: ByteLen::ZERO, in_place: false, held: false, written: false }
    }
}

impl Edges {
    /// The ragged sectors of `extent` on a disk of `size` bytes.
    fn of(extent: Extent, size: ByteLen) -> Self {
        let (start, end) = (extent.at.get(), extent.end().get());
        let sector = |byte: u64| {
            let at = byte / SECTOR * SECTOR;
            Extent::new(DiskOffset::new(at), ByteLen::new(SECTOR.min(size.get() - at)))
        };
        let ragged_end = !end.is_multiple_of(SECTOR) && end != size.get();
        let first = (!start.is_multiple_of(SECTOR)).then(|| sector(start));
        let last = ragged_end.then(|| sector(end)).filter(|last| Some(*last) != first);
        Self { first: first.map(Edge::new), last: last.map(Edge::new) }
    }

    fn edge(&mut self, last: bool) -> Option<&mut Edge> {
        if last { self.last.as_mut() } else { self.first.as_mut() }
    }

    fn is_fetched(&self) -> bool {
        let done = |edge: &Edge| edge.in_place || edge.asked == edge.sector.len;
        self.first.as_ref().is_none_or(done) && self.last.as_ref().is_none_or(done)
    }

    fn is_written(&self) -> bool {
        let done = |edge: &Edge| edge.written;
        self.first.as_ref().is_none_or(done) && self.last.as_ref().is_none_or(done)
    }

    /// `extent` grown to whole sectors where an edge must be written whole.
    fn grown(&self, extent: Extent) -> Extent {
        let mut at = extent.at;
        let mut end = extent.end();
        for edge in [&self.first, &self.last].into_iter().flatten() {
            if !edge.in_place {
                at = at.min(edge.sector.at);
                end = end.max(edge.sector.end());
            }
        }
        Extent::new(at, end - at)
    }
}

/// `extent` without its ragged ends: the whole sectors inside, maybe none.
pub(super) fn inner(extent: Extent, size: ByteLen) -> Extent {
    let start = extent.at.get().next_multiple_of(SECTOR);
    let end = extent.end().get();
    let end = if end == size.get() { end } else { end / SECTOR * SECTOR };
    Extent::new(DiskOffset::new(start.min(end)), ByteLen::new(end.saturating_sub(start)))
}

impl Disk {
    /// Sees to it that the ragged sectors of a task are known. True when they are; otherwise the
    /// task waits. With `partly`, a sector that the leaf holds needs no fetching.
    pub(super) fn fetch_edges(&mut self, key: TaskKey, extent: Extent, partly: bool) -> bool {
        let size = self.size;
        let mut edges = match self.tasks[key].edges.take() {
            Some(edges) => edges,
            None => Box::new(Edges::of(extent, size)),
        };
        for last in [false, true] {
            if let Some(edge) = edges.edge(last)
                && !self.fetch_edge(key, last, edge, partly)
            {
                break;
            }
        }
        let task = &mut self.tasks[key];
        let ready = edges.is_fetched() && task.pending == 0;
        task.edges = Some(edges);
        ready && !self.tasks[key].parked
    }

    /// Asks for the rest of one edge; false when a page is needed first.
    fn fetch_edge(&mut self, key: TaskKey, last: bool, edge: &mut Edge, partly: bool) -> bool {
        while edge.asked < edge.sector.len && !edge.in_place {
            let asked = edge.asked;
            match self.find(edge.sector.after(asked)) {
                Found::Ask { layer, page } => {
                    self.wait_for_page(key, layer, page);
                    return false;
                }
                Found::Here { layer: 0, len, .. } if partly && len == edge.sector.len => {
                    edge.in_place = true;
                }
                Found::Here { layer, file, at, len } => {
                    edge.held = true;
                    edge.asked += len;
                    self.tasks[key].pending += 1;
                    let start = asked.get() as usize;
                    let purpose = Purpose::Edge { task: key, last, at: start, layer };
                    let into = Target::Owned(vec![0; len.get() as usize]);
                    self.outbox.emit(purpose, |id| Effect::Read {
                        id,
                        file,
                        at,
                        into,
                        may_lend: false,
                    });
                }
                Found::Hole(len) | Found::Zero { len, .. } => edge.asked += len,
            }
        }
        true
    }

    /// A piece of an edge was read.
    pub(super) fn edge_read(
        &mut self,
        key: TaskKey,
        last: bool,
        at: usize,
        layer: u16,
        outcome: Outcome,
    ) {
        match outcome {
            Outcome::Bytes(bytes) => {
                let edge = self.tasks[key].edges.as_mut().and_then(|edges| edges.edge(last));
                if let Some(edge) = edge {
                    edge.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
                }
            }
            Outcome::Failed(error) => self.note_fault(key, layer, FaultKind::Io(error)),
            Outcome::Done | Outcome::Lent | Outcome::Extents(_) => {
                self.note_fault(key, layer, FaultKind::Io(IoError::EIO));
            }
        }
        self.piece_done(key);
    }

    /// The extent a write really covers: whole sectors where the edges demand it.
    pub(super) fn write_work(&self, key: TaskKey, extent: Extent) -> Extent {
        self.tasks[key].edges.as_ref().map_or(extent, |edges| edges.grown(extent))
    }

    /// How far the planning of a write must get; more than any cursor while edges are missing.
    pub(super) fn write_target(&self, task: &super::task::Task, extent: Extent) -> ByteLen {
        match &task.edges {
            None if task.exclusive => ByteLen::new(u64::MAX),
            None => extent.len,
            Some(edges) if edges.is_fetched() => edges.grown(extent).len,
            Some(_) => ByteLen::new(u64::MAX),
        }
    }

    /// How far the planning of a zeroing must get.
    pub(super) fn zero_target(&self, task: &super::task::Task, extent: Extent) -> ByteLen {
        match &task.edges {
            None if self.is_ragged(extent) => ByteLen::new(u64::MAX),
            Some(edges) if !edges.is_written() => ByteLen::new(u64::MAX),
            _ => inner(extent, self.size).len,
        }
    }

    /// The bytes for `part` of a write whose own bytes are `from` at `extent`.
    pub(super) fn gather(&self, key: TaskKey, extent: Extent, from: Span, part: Extent) -> Source {
        let inside = part.at >= extent.at && part.end() <= extent.end();
        if inside {
            return Source::Span(from.part(part.at - extent.at, part.len));
        }
        let mut pieces = Vec::with_capacity(3);
        if let Some(edges) = &self.tasks[key].edges {
            if part.at < extent.at
                && let Some(edge) = &edges.first
            {
                pieces.push(edge_piece(edge, part.at, extent.at));
            }
            let start = part.at.max(extent.at);
            let end = part.end().min(extent.end());
            pieces.push(Piece::Span(from.part(start - extent.at, end - start)));
            if part.end() > extent.end() {
                let edge = edges.last.as_ref().or(edges.first.as_ref());
                pieces.extend(edge.map(|edge| edge_piece(edge, extent.end(), part.end())));
            }
        }
        Source::Pieces(pieces)
    }

    /// Writes the ragged sectors of a zeroing with the covered part made zero. True when they are
    /// all on their way; otherwise the task waits.
    pub(super) fn write_zero_edges(&mut self, key: TaskKey, extent: Extent, unmap: bool) -> bool {
        let Some(mut edges) = self.tasks[key].edges.take() else { return true };
        for last in [false, true] {
            let Some(edge) = edges.edge(last) else { continue };
            if edge.written {
                continue;
            }
            if unmap && !edge.held {
                edge.written = true;
                continue;
            }
            let file = self.leaf_file();
            let Some(seat) = &mut self.stack.leaf else { break };
            match seat.leaf.place(edge.sector) {
                Err(blocked) => {
                    self.wait_for_leaf(key, blocked);
                    break;
                }
                Ok(placed) => {
                    let bytes = zeroed_within(edge, extent);
                    edge.written = true;
                    let task = &mut self.tasks[key];
                    task.pending += 1;
                    task.settled = false;
                    let purpose = Purpose::Data { task: key, placed, durable: false };
                    self.outbox.emit(purpose, |id| Effect::Write {
                        id,
                        file,
                        at: placed.at,
                        from: Source::Owned(bytes),
                        durable: false,
                    });
                }
            }
        }
        let written = edges.is_written();
        self.tasks[key].edges = Some(edges);
        written
    }
}

fn edge_piece(edge: &Edge, from: DiskOffset, to: DiskOffset) -> Piece {
    let start = (from - edge.sector.at).get() as usize;
    let end = (to - edge.sector.at).get() as usize;
    Piece::Owned(edge.bytes[start..end].to_vec())
}

/// The edge's bytes with those inside `extent` made zero.
fn zeroed_within(edge: &Edge, extent: Extent) -> Vec<u8> {
    let mut bytes = edge.bytes.clone();
    let start = extent.at.max(edge.sector.at) - edge.sector.at;
    let end = extent.end().min(edge.sector.end()) - edge.sector.at;
    bytes[start.get() as usize..end.get() as usize].fill(0);
    bytes
}

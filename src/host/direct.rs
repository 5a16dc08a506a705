//! Direct I/O, thought through without doing any: where a request meets the alignment a file asks
//! for, which part of a write may go straight, and which writes must wait for each other.
//!
//! Refuses to read or write. `task` acts on these plans, for both hosts alike.
//!
//! A write that does not cover whole units is read-modify-write. Two writes that share a unit would
//! then lose one another's bytes, so a ragged write holds its units alone while it runs.

use std::collections::VecDeque;

use crate::engine::units::{ByteLen, FileOffset};

/// The grid a file wants direct requests to lie on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grid {
    unit: u64,
}

/// Page cache and device grain meet here: a ragged write claims whole pages, because its tail goes
/// through the page cache, which writes back whole pages.
const PAGE: u64 = 4096;

impl Grid {
    /// A grid of `unit` bytes, a power of two.
    pub(super) const fn new(unit: u32) -> Self {
        assert!(unit.is_power_of_two());
        Self { unit: unit as u64 }
    }

    /// Bytes of a unit.
    pub(super) const fn unit(self) -> usize {
        self.unit as usize
    }

    /// The last grid line at or before the position.
    pub(super) const fn floor(self, at: u64) -> u64 {
        at & !(self.unit - 1)
    }

    /// The first grid line at or behind the position. Positions are below 2^63 (checked by `task`).
    pub(super) const fn ceil(self, at: u64) -> u64 {
        self.floor(at + self.unit - 1)
    }

    /// Whether a number of bytes is whole units.
    pub(super) const fn is_whole(self, bytes: u64) -> bool {
        bytes & (self.unit - 1) == 0
    }

    /// Where a write of `len` bytes at `at` must be cut so that the part before goes out in whole
    /// units without making a file of `size` bytes longer than the write asks for. The part behind
    /// the cut, less than a unit, goes through the page cache.
    ///
    /// The first unit needs no such care: when it reaches over the end of the file, either the
    /// write covers the rest of the unit, or the cut lies in the same unit.
    pub(super) fn cut(self, at: FileOffset, len: ByteLen, size: ByteLen) -> FileOffset {
        let (start, end) = (at.get(), at.get() + len.get());
        if self.is_whole(end) || self.ceil(end) <= size.get() {
            return FileOffset::new(end);
        }
        FileOffset::new(self.floor(end).max(start))
    }

    /// What a write claims: exactly its bytes when they are whole units, else whole pages, alone.
    pub(super) fn claim(self, at: FileOffset, len: ByteLen) -> Claim {
        let (start, end) = (at.get(), at.get() + len.get());
        if self.is_whole(start) && self.is_whole(end) {
            return Claim { start, end, alone: false };
        }
        let wide = Self { unit: self.unit.max(PAGE) };
        Claim { start: wide.floor(start), end: wide.ceil(end), alone: true }
    }
}

/// A range of a file that a write works on, shared with other whole-unit writes or alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    start: u64,
    end: u64,
    alone: bool,
}

impl Claim {
    fn conflicts(&self, other: &Self) -> bool {
        (self.alone || other.alone) && self.start < other.end && other.start < self.end
    }
}

/// Names an admitted write until it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u32);

/// The writes of one direct file: those that run, and those that wait for a conflicting one.
#[derive(Debug)]
pub(super) struct Order<T> {
    running: Vec<(Ticket, Claim)>,
    waiting: VecDeque<(Claim, T)>,
    next: u32,
}

impl<T> Order<T> {
    /// No writes.
    pub(super) const fn new() -> Self {
        Self { running: Vec::new(), waiting: VecDeque::new(), next: 0 }
    }

    /// Whether no write runs or waits.
    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Admits a write or keeps it until it may run. First come, first served among conflicting
    /// ones, so that none starves.
    pub(super) fn admit(&mut self, claim: Claim, write: T) -> Option<(Ticket, T)> {
        let earlier = self.waiting.iter().map(|(claim, _)| claim);
        if self.running.iter().map(|(_, claim)| claim).chain(earlier).any(|c| c.conflicts(&claim)) {
            self.waiting.push_back((claim, write));
            return None;
        }
        Some((self.run(claim), write))
    }

    /// Takes note that a write is over and tells which waiting ones start by that.
    pub(super) fn release(&mut self, ticket: Ticket) -> Vec<(Ticket, T)> {
        if let Some(index) = self.running.iter().position(|(running, _)| *running == ticket) {
            self.running.swap_remove(index);
        }
        let mut started = Vec::new();
        for (claim, write) in std::mem::take(&mut self.waiting) {
            started.extend(self.admit(claim, write));
        }
        started
    }

    fn run(&mut self, claim: Claim) -> Ticket {
        let ticket = Ticket(self.next);
        self.next = self.next.wrapping_add(1);
        self.running.push((ticket, claim));
        ticket
    }
}

/// Memory aligned for direct I/O, for requests whose own memory is not.
#[derive(Debug)]
pub(super) struct Bounce {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Bounce {
    /// At most so many bytes go through a bounce at once.
    pub(super) const MAX_BYTES: u64 = 1 << 20;

    /// `len` zero bytes, aligned to `align` (a power of two).
    pub(super) fn new(len: usize, align: usize) -> Self {
        let bytes = vec![0; len + align];
        let start = bytes.as_ptr().align_offset(align).min(align);
        Self { bytes, start, len }
    }

    /// Its bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }

    /// Its bytes, to change.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::{Grid, Order};
    use crate::engine::units::{ByteLen, FileOffset};

    fn cut(unit: u32, at: u64, len: u64, size: u64) -> u64 {
        Grid::new(unit).cut(FileOffset::new(at), ByteLen::new(len), ByteLen::new(size)).get()
    }

    #[test]
    fn a_write_never_grows_the_file_by_rounding() {
        assert_eq!(cut(4096, 0, 4096, 0), 4096);
        assert_eq!(cut(4096, 0, 5000, 0), 4096);
        assert_eq!(cut(4096, 0, 5000, 8192), 5000);
        assert_eq!(cut(4096, 0, 5000, 8191), 4096);
        assert_eq!(cut(4096, 512, 512, 1024), 512);
        assert_eq!(cut(512, 512, 512, 512), 1024);
        assert_eq!(cut(4096, 512, 512, 4096), 1024);
        assert_eq!(cut(4096, 4000, 8192, 100), 8192);
    }

    fn order(acts: &[(u64, u64)]) -> (Order<usize>, Vec<usize>) {
        let mut order = Order::new();
        let mut running = Vec::new();
        for (name, (at, len)) in acts.iter().enumerate() {
            let claim = Grid::new(512).claim(FileOffset::new(*at), ByteLen::new(*len));
            running.extend(order.admit(claim, name).map(|(_, name)| name));
        }
        (order, running)
    }

    #[test]
    fn whole_unit_writes_run_together_even_when_they_overlap() {
        assert_eq!(order(&[(0, 512), (0, 1024), (512, 512)]).1, [0, 1, 2]);
    }

    #[test]
    fn a_ragged_write_waits_for_all_in_its_pages_and_makes_later_ones_wait() {
        let (mut order, running) =
            order(&[(0, 512), (100, 10), (4096, 512), (512, 512), (9000, 1)]);
        assert_eq!(running, [0, 2, 4]);
        let started: Vec<_> = order.release(super::Ticket(0)).into_iter().collect();
        assert_eq!(started.iter().map(|(_, name)| *name).collect::<Vec<_>>(), [1]);
        let started = order.release(started[0].0);
        assert_eq!(started.iter().map(|(_, name)| *name).collect::<Vec<_>>(), [3]);
        assert!(!order.is_idle());
    }
}

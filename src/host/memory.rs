//! The memory lent to disks, sockets and the kernel: page-aligned regions, leases taken from them,
//! and the only place where a span becomes bytes.
//!
//! Refuses to grow: an exhausted arena answers `None`, which is the back-pressure of the shard.
//!
//! I6, the contract of this module: while a span is named by an effect, receive or send in flight,
//! only the host touches it. A lease is given back only after the completion, and whoever plans
//! with a span keeps its lease. With that, no two live references ever cover the same byte; the
//! functions below check the bounds and nothing else.
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use memmap2::{MmapMut, MmapRaw, UncheckedAdvice};

use super::buddy::{Block, Buddy, GRAIN};
use crate::engine::units::{RegionId, Span};

/// The small region, registered with the ring.
pub const REGISTERED: RegionId = RegionId(0);
/// The large region, whose pages are touched only when needed.
pub const LARGE: RegionId = RegionId(1);
/// The region of what mounts are asked in, which has its own: it is lent for as long as they live.
/// Mapped when first wanted, touched when used.
pub const ENTRIES: RegionId = RegionId(2);
/// Its bytes.
pub const ENTRIES_BYTES: u32 = 512 << 20;

/// Sizes of an arena.
#[derive(Clone, Copy, Debug)]
pub struct ArenaSize {
    /// Bytes of the region registered with the ring; counts against RLIMIT_MEMLOCK.
    pub registered_bytes: u32,
    /// Bytes of the large region, virtual until touched.
    pub large_bytes: u32,
}

impl Default for ArenaSize {
    fn default() -> Self {
        Self { registered_bytes: 4 << 20, large_bytes: 256 << 20 }
    }
}

/// Leases of at least this give their pages back to the system at once.
const RETURN_PAGES: u32 = 4 << 20;

/// Ownership of bytes of the arena. Not `Clone`: it goes back through [`Arena::give`] exactly once.
#[derive(Debug, PartialEq, Eq)]
pub struct Lease {
    span: Span,
    block: Block,
}

impl Lease {
    /// All of it.
    pub const fn span(&self) -> Span {
        self.span
    }

    /// Length in bytes, as asked for.
    pub const fn len(&self) -> u32 {
        self.span.len
    }

    /// Whether it has no bytes.
    pub const fn is_empty(&self) -> bool {
        self.span.len == 0
    }

    /// A part of it, in bytes from its start.
    ///
    /// # Panics
    /// When the part does not lie inside: the caller computed it, so that is our own error.
    pub fn part(&self, range: Range<u32>) -> Span {
        assert!(
            range.start <= range.end && range.end <= self.span.len,
            "part {range:?} of a lease of {}",
            self.span.len
        );
        Span {
            region: self.span.region,
            start: self.span.start + range.start,
            len: range.end - range.start,
        }
    }
}

/// The regions a shard lends from, and who has what.
#[derive(Debug)]
pub struct Arena {
    memory: Arc<Memory>,
    books: Vec<Buddy>,
    lent: usize,
    spare: Spare,
}

/// Memory set aside, one lease at a time, for those whom others wait for.
#[derive(Debug, Default)]
struct Spare {
    /// Bytes wanted; zero where nobody has asked for it.
    wanted: u32,
    /// Where it is, once it was set aside: for good.
    place: Option<(RegionId, u32)>,
    /// It, unless it is out.
    lease: Option<Lease>,
}

impl Arena {
    /// Maps the regions. Sizes are rounded up to whole pages of 4 KiB.
    ///
    /// # Errors
    /// What the system says when it cannot map that much.
    pub fn new(size: ArenaSize) -> io::Result<Self> {
        let lens = [size.registered_bytes, size.large_bytes].map(|len| {
            len.max(GRAIN).checked_next_multiple_of(GRAIN).unwrap_or(u32::MAX / GRAIN * GRAIN)
        });
        let memory = Arc::new(Memory::new(&lens)?);
        Ok(Self { memory, books: lens.map(Buddy::new).into(), lent: 0, spare: Spare::default() })
    }

    /// Takes `len` bytes, 4 KiB-aligned. `None` when no run that long is free: try again after a
    /// lease was given back. The bytes hold whatever the last user left.
    pub fn take(&mut self, len: u32) -> Option<Lease> {
        // Large leases leave the first region to small ones, unless they fit nowhere else.
        let block = len.max(GRAIN).checked_next_power_of_two();
        let fits_large = block.is_some_and(|block| block <= self.books[1].len());
        let order: &[RegionId] = match (self.is_small(len), fits_large) {
            (true, _) => &[REGISTERED, LARGE],
            (false, true) => &[LARGE],
            (false, false) => &[REGISTERED],
        };
        order.iter().find_map(|region| self.take_from(*region, len))
    }

    /// Takes `len` bytes for a small lease, and nothing of what large ones wait for.
    pub fn take_apart(&mut self, len: u32) -> Option<Lease> {
        self.take_from(REGISTERED, len)
    }

    /// Takes `len` bytes for a mount to be asked in. `None` where it cannot be mapped, too.
    pub fn take_entry(&mut self, len: u32) -> Option<Lease> {
        if self.books.len() == usize::from(ENTRIES.0) {
            self.memory.map_entries().ok()?;
            self.books.push(Buddy::new(ENTRIES_BYTES));
        }
        self.take_from(ENTRIES, len)
    }

    /// Sets so many bytes aside for [`Self::take_spare`], now or as soon as they come free.
    pub fn want_spare(&mut self, len: u32) {
        self.spare.wanted = self.spare.wanted.max(len);
        self.set_aside();
    }

    fn set_aside(&mut self) {
        if self.spare.wanted > 0
            && self.spare.place.is_none()
            && let Some(lease) = self.take(self.spare.wanted)
        {
            self.lent -= 1;
            self.spare.place = Some((lease.span.region, lease.span.start));
            self.spare.lease = Some(lease);
        }
    }

    /// Takes what was set aside, if it is not out and long enough.
    pub fn take_spare(&mut self, len: u32) -> Option<Lease> {
        let mut lease = self.spare.lease.take_if(|spare| spare.block.len() >= len)?;
        lease.span.len = len;
        self.lent += 1;
        Some(lease)
    }

    fn take_from(&mut self, region: RegionId, len: u32) -> Option<Lease> {
        let block = self.books[usize::from(region.0)].take(len)?;
        self.lent += 1;
        Some(Lease { span: Span { region, start: block.start(), len }, block })
    }

    /// Whether a lease of so many bytes may come from the region that large ones leave alone.
    pub fn is_small(&self, len: u32) -> bool {
        len <= self.books[0].len() / 8
    }

    /// Takes a lease back. Everything that named its bytes must be over (I6).
    pub fn give(&mut self, lease: Lease) {
        self.lent -= 1;
        let region = lease.span.region;
        if self.spare.place == Some((region, lease.span.start)) {
            self.spare.lease = Some(lease);
            return;
        }
        if region == ENTRIES || region == LARGE && lease.block.len() >= RETURN_PAGES {
            self.memory.forget(Span { region, start: lease.block.start(), len: lease.block.len() });
        }
        self.books[usize::from(region.0)].give(lease.block);
        self.set_aside();
    }

    /// Gives the pages of everything free in the large region back to the system. For idle times.
    pub fn trim(&mut self) {
        let memory = &self.memory;
        self.books[usize::from(LARGE.0)].each_free(|block| {
            memory.forget(Span { region: LARGE, start: block.start(), len: block.len() });
        });
    }

    /// How many leases are out.
    pub const fn lent(&self) -> usize {
        self.lent
    }

    /// The bytes of a span that is not in flight.
    ///
    /// # Panics
    /// When the span lies outside its region.
    pub fn bytes(&self, span: Span) -> &[u8] {
        self.memory.bytes(span)
    }

    /// The bytes of a span that is not in flight, to change.
    ///
    /// # Panics
    /// When the span lies outside its region.
    pub fn bytes_mut(&mut self, span: Span) -> &mut [u8] {
        // SAFETY: `pointer` checked that the span lies inside a mapping that lives as long as
        // self.memory. Exclusive: `&mut self` shuts out other callers of the arena, and the span is
        // not in flight, which whoever holds its lease keeps (I6).
        unsafe { std::slice::from_raw_parts_mut(self.memory.pointer(span), span.len as usize) }
    }

    /// Fills a span with zeroes.
    pub fn zero(&mut self, span: Span) {
        self.bytes_mut(span).fill(0);
    }

    /// Copies bytes to the start of a span, which must be long enough.
    pub fn copy_in(&mut self, span: Span, bytes: &[u8]) {
        self.bytes_mut(span)[..bytes.len()].copy_from_slice(bytes);
    }

    /// Copies the bytes of one span to the start of another, which must be long enough. Neither is
    /// in flight.
    pub fn copy(&mut self, from: Span, to: Span) {
        assert!(from.len <= to.len, "{from:?} does not fit into {to:?}");
        let (from_bytes, to_bytes) = (self.memory.pointer(from), self.memory.pointer(to));
        // SAFETY: `pointer` checked that both spans lie inside mappings that live as long as
        // self.memory, and the copy may overlap. Exclusive as in `bytes_mut`.
        unsafe { std::ptr::copy(from_bytes, to_bytes, from.len as usize) }
    }

    /// The memory itself, for the host.
    pub fn memory(&self) -> Arc<Memory> {
        Arc::clone(&self.memory)
    }
}

/// The mapped regions, shared by the arena that lends them and the host that works on them.
pub struct Memory {
    regions: Vec<MmapRaw>,
    entries: OnceLock<MmapRaw>,
}

impl Memory {
    fn new(lens: &[u32]) -> io::Result<Self> {
        let regions = lens
            .iter()
            .map(|len| MmapMut::map_anon(*len as usize).map(MmapRaw::from))
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Self { regions, entries: OnceLock::new() })
    }

    /// Called by the one arena, so that there is one at most.
    fn map_entries(&self) -> io::Result<()> {
        if self.entries.get().is_none() {
            let map = MmapMut::map_anon(ENTRIES_BYTES as usize).map(MmapRaw::from)?;
            drop(self.entries.set(map));
        }
        Ok(())
    }

    fn map_of(&self, region: RegionId) -> &MmapRaw {
        if region == ENTRIES {
            self.entries.get().expect("spans of it are made when it is mapped")
        } else {
            &self.regions[usize::from(region.0)]
        }
    }

    /// The first byte of the span, checked to lie with all its length inside its region.
    pub(super) fn pointer(&self, span: Span) -> *mut u8 {
        let region = self.map_of(span.region);
        let end = u64::from(span.start) + u64::from(span.len);
        assert!(end <= region.len() as u64, "{span:?} reaches over a region of {}", region.len());
        region.as_mut_ptr().wrapping_add(span.start as usize)
    }

    /// A whole region: address and length in bytes.
    pub(super) fn region(&self, region: RegionId) -> (*mut u8, usize) {
        let map = self.map_of(region);
        (map.as_mut_ptr(), map.len())
    }

    /// The bytes of a span nobody writes at present (I6).
    pub(super) fn bytes(&self, span: Span) -> &[u8] {
        // SAFETY: `pointer` checked that the span lies inside a mapping that lives as long as self.
        // Nobody writes to it meanwhile: it is either not in flight, or in flight as the source of
        // a write or send, which only reads (I6, kept by the holder of the lease).
        unsafe { std::slice::from_raw_parts(self.pointer(span), span.len as usize) }
    }

    /// Lends a span to one operation in flight.
    pub(super) fn lend(self: &Arc<Self>, span: Span) -> Loan {
        let _checked = self.pointer(span);
        Loan { memory: Arc::clone(self), span }
    }

    /// Lets the system take the pages of a span; they read as zeroes afterwards.
    fn forget(&self, span: Span) {
        let region = self.map_of(span.region);
        let (start, len) = (span.start as usize, span.len as usize);
        // SAFETY: the span belongs to no lease (the arena calls this for free blocks only), so no
        // reference into it lives whose bytes would change. A failure leaves the pages as they are.
        let _kept = unsafe { region.unchecked_advise_range(UncheckedAdvice::DontNeed, start, len) };
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.regions.iter().map(MmapRaw::len)).finish()
    }
}

/// A span moved into an operation in flight, on whichever thread carries it out. Keeps the memory
/// mapped until the operation is over.
#[derive(Debug)]
pub(super) struct Loan {
    memory: Arc<Memory>,
    span: Span,
}

impl Loan {
    /// What is lent.
    pub(super) const fn span(&self) -> Span {
        self.span
    }

    /// The bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        self.memory.bytes(self.span)
    }

    /// The bytes, to fill.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: bounds were checked by `lend`, the mapping lives as long as self.memory, and a
        // loan stands for the operation that alone may touch the span until it is over (I6).
        unsafe { std::slice::from_raw_parts_mut(self.memory.pointer(self.span), self.len()) }
    }

    fn len(&self) -> usize {
        self.span.len as usize
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::{Arena, ArenaSize, LARGE, REGISTERED};

    fn small() -> Arena {
        Arena::new(ArenaSize { registered_bytes: 1 << 20, large_bytes: 16 << 20 }).unwrap()
    }

    #[test]
    fn small_leases_come_from_the_registered_region_and_large_ones_do_not() {
        let mut arena = small();
        let a = arena.take(4096).unwrap();
        let b = arena.take(8 << 20).unwrap();
        assert_eq!((a.span().region, b.span().region), (REGISTERED, LARGE));
        assert_eq!((a.len(), b.len()), (4096, 8 << 20));
        arena.give(a);
        arena.give(b);
        assert_eq!(arena.lent(), 0);
    }

    #[test]
    fn large_leases_leave_the_registered_region_alone_unless_they_fit_nowhere_else() {
        let mut arena = small();
        let all = arena.take(16 << 20).unwrap();
        assert_eq!(arena.take(1 << 20), None);
        let apart = arena.take_apart(4096).unwrap();
        assert_eq!(apart.span().region, REGISTERED);
        [all, apart].into_iter().for_each(|lease| arena.give(lease));
        let size = ArenaSize { registered_bytes: 4 << 20, large_bytes: 3 << 20 };
        let mut arena = Arena::new(size).unwrap();
        let lease = arena.take(5 << 19).unwrap();
        assert_eq!(lease.span().region, REGISTERED);
        arena.give(lease);
    }

    #[test]
    fn what_is_set_aside_goes_to_nobody_else_and_comes_back() {
        let mut arena = small();
        let all = arena.take(16 << 20).unwrap();
        arena.want_spare(1 << 20);
        assert_eq!(arena.take_spare(4096), None, "there was nothing to set aside");
        arena.give(all);
        assert_eq!((arena.lent(), arena.take(16 << 20)), (0, None));
        for len in [4096, 1 << 20] {
            let spare = arena.take_spare(len).unwrap();
            assert_eq!((spare.len(), arena.lent()), (len, 1));
            assert_eq!(arena.take_spare(1), None, "it is out");
            arena.give(spare);
        }
        assert_eq!(arena.take_spare((1 << 20) + 1), None);
        assert_eq!(arena.lent(), 0);
    }

    #[test]
    fn an_exhausted_arena_says_so_and_recovers_when_leases_come_back() {
        let mut arena = small();
        let mut leases = Vec::new();
        while let Some(lease) = arena.take(64 * 1024) {
            leases.push(lease);
        }
        assert_eq!(leases.len(), 17 << 20 >> 16);
        let mut spans: Vec<_> =
            leases.iter().map(|l| (l.span().region.0, l.span().start)).collect();
        spans.sort_unstable();
        spans.dedup();
        assert_eq!(spans.len(), leases.len());
        leases.drain(..).for_each(|lease| arena.give(lease));
        let whole = arena.take(16 << 20).unwrap();
        assert!(arena.take(8 << 20).is_none());
        arena.give(whole);
    }

    #[test]
    fn bytes_stay_where_they_were_put_until_large_leases_come_back_as_zeroes() {
        let mut arena = small();
        let lease = arena.take(8 << 20).unwrap();
        arena.copy_in(lease.part(5..10), b"hello");
        assert_eq!(&arena.bytes(lease.span())[4..11], b"\0hello\0");
        arena.zero(lease.part(5..6));
        assert_eq!(arena.bytes(lease.part(5..7)), b"\0e");
        arena.give(lease);
        let again = arena.take(8 << 20).unwrap();
        assert_eq!(arena.bytes(again.part(0..16)), [0; 16]);
        arena.give(again);
        arena.trim();
    }

    #[test]
    #[should_panic(expected = "reaches over a region")]
    fn a_span_outside_its_region_is_refused() {
        let mut arena = small();
        let lease = arena.take(4096).unwrap();
        let mut span = lease.span();
        span.len = 2 << 20;
        arena.bytes(span);
    }
}

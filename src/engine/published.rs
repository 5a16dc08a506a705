//! What the owner of a written disk lets readers on other threads know (its guests, see `guest`):
//! where whole units of the leaf lie, and which bytes are being changed just now. Without a lock: a
//! guest reads at its own risk, looks again, and hands the read to the owner if it cannot be sure.
//!
//! Two things are told apart. *Stripes* count changes of bytes: each stands for ranges of 64 KiB of
//! the disk, and is odd while any change of them is in flight. *Homes* say where units of the
//! leaf's allocation lie: wholly in the leaf at one place, wholly below it, or "ask the owner".
//!
//! - **G1** A stripe is odd from before the first effect of a change of its bytes until after the
//!   last one completed, and before anybody hears that the change is done.
//! - **G2** Unless it says "ask", a home is right for every byte of its unit that is not being
//!   changed. So a change that may move bytes or give them a first home makes it "ask" before its
//!   first effect (a write into a unit that lies whole in the leaf does neither), and it is told
//!   anew only while no change of the unit is in flight.
//! - **G3** What a home names is not used for other bytes unless its own were changed: a place
//!   comes free only by a change of all of its unit. What else moves bytes (a resize) closes the
//!   gate for as long as it lasts.
//! - **G4** Counters only grow. So a sum of some is the same later only if each of them is: whoever
//!   saw them all even, and the same sum after it read, read while nothing of it changed.
//!
//! So a guest's answer is what the disk said at one moment between the question and the answer.
//!
//! Refuses to know why a unit is not told, and to tell of bytes that were added to the disk since:
//! the owner answers for those.

use super::sync::{Arc, AtomicU64, Ordering, fence};
use super::units::{ByteLen, DiskOffset, Extent, FileOffset};

/// Bytes of disk that one stripe stands for, again and again over the disk: two ranges that share a
/// stripe only ask the owner more often.
const STRIPE_BYTES: u64 = 64 << 10;
/// Stripes of a disk: 128 KiB, and a collision for one read in a hundred beside a hundred writes.
pub const STRIPES: usize = 1 << 14;
/// Most units told: 8 MiB, for 2 TiB in units of 2 MiB.
const UNITS_MAX: u64 = 1 << 20;

/// Not told.
const ASK: u64 = 0;
/// Wholly below the leaf.
const BELOW: u64 = 1;
/// Wholly in the leaf, so many bytes less from the start of its file.
const IN_LEAF: u64 = 2;

/// Where a whole unit of the leaf lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// In the leaf's file, from here on.
    Leaf(FileOffset),
    /// The leaf holds nothing of it.
    Below,
}

/// What the counters said of an extent when nothing of it was being changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen(u64);

/// What is told of one disk.
#[derive(Debug)]
pub struct Published {
    /// Odd while nothing is to be believed.
    gate: AtomicU64,
    /// Bytes of the disk.
    size: AtomicU64,
    /// Bytes of the disk that units are told of.
    reach: ByteLen,
    unit: ByteLen,
    stripes: Box<[AtomicU64]>,
    homes: Box<[AtomicU64]>,
}

impl Published {
    fn new(size: ByteLen, unit: ByteLen, stripes: usize) -> Self {
        let mut unit = unit.get().max(1);
        while size.get().div_ceil(unit) > UNITS_MAX {
            unit *= 2;
        }
        let words = |count| (0..count).map(|_| AtomicU64::new(0)).collect();
        Self {
            gate: AtomicU64::new(0),
            size: AtomicU64::new(size.get()),
            reach: size,
            unit: ByteLen::new(unit),
            stripes: words(stripes.max(1)),
            homes: words(size.get().div_ceil(unit) as usize),
        }
    }

    /// Bytes of the disk now.
    pub fn size(&self) -> ByteLen {
        ByteLen::new(self.size.load(Ordering::SeqCst))
    }

    /// Bytes of the disk that may be told of: what was added since is not.
    pub fn reach(&self) -> ByteLen {
        self.reach
    }

    /// What the counters say, if nothing of the extent is being changed. To be asked before homes
    /// are looked at and anything is read.
    pub fn look(&self, extent: Extent) -> Option<Seen> {
        let mut sum = self.gate.load(Ordering::SeqCst);
        let mut changing = sum;
        for stripe in stripes_of(extent, self.stripes.len()) {
            let count = self.stripes[stripe].load(Ordering::SeqCst);
            sum = sum.wrapping_add(count);
            changing |= count;
        }
        changing.is_multiple_of(2).then_some(Seen(sum))
    }

    /// Whether nothing of the extent has changed since: what was read there is an answer.
    pub fn is_still(&self, extent: Extent, seen: Seen) -> bool {
        // Nothing that was read may have been read after this look.
        fence(Ordering::SeqCst);
        self.look(extent) == Some(seen)
    }

    /// Where the first bytes of an extent lie, and how many of them; `None`: the owner knows.
    pub fn home(&self, wanted: Extent) -> Option<(Home, ByteLen)> {
        if wanted.end().get() > self.reach.get() {
            return None;
        }
        let (unit, within) = (wanted.at.get() / self.unit.get(), wanted.at.get() % self.unit.get());
        let len = wanted.len.min(ByteLen::new(self.unit.get() - within));
        match self.homes[unit as usize].load(Ordering::SeqCst) {
            ASK => None,
            BELOW => Some((Home::Below, len)),
            at => Some((Home::Leaf(FileOffset::new(at - IN_LEAF + within)), len)),
        }
    }

    /// The units that an extent lies in, of those that are told.
    fn units_of(&self, extent: Extent) -> std::ops::Range<usize> {
        let end = extent.end().get().min(self.reach.get());
        let first = extent.at.get().min(end) / self.unit.get();
        first as usize..end.div_ceil(self.unit.get()) as usize
    }
}

/// The stripes of an extent, each once.
fn stripes_of(extent: Extent, all: usize) -> impl Iterator<Item = usize> {
    let first = extent.at.get() / STRIPE_BYTES;
    let end = extent.end().get().div_ceil(STRIPE_BYTES);
    (first..end.min(first.saturating_add(all as u64))).map(move |at| (at % all as u64) as usize)
}

/// The owner's end: the one writer.
#[derive(Debug)]
pub struct Publisher {
    published: Arc<Published>,
    /// Changes in flight in each stripe.
    changing: Box<[u32]>,
}

impl Publisher {
    /// For a disk of this size, whose leaf gives homes to so many bytes at a time. Nothing is told
    /// yet.
    pub fn new(size: ByteLen, unit: ByteLen, stripes: usize) -> Self {
        let published = Arc::new(Published::new(size, unit, stripes));
        let changing = vec![0; published.stripes.len()].into_boxed_slice();
        Self { published, changing }
    }

    /// What it tells.
    pub fn published(&self) -> Arc<Published> {
        Arc::clone(&self.published)
    }

    /// A change of these bytes begins; its effects are not to start before. `moves`: it may take
    /// bytes away from where they lie.
    pub fn begin(&mut self, extent: Extent, moves: bool) {
        let Published { stripes, homes, .. } = &*self.published;
        for stripe in stripes_of(extent, stripes.len()) {
            self.changing[stripe] += 1;
            if self.changing[stripe] == 1 {
                count(&stripes[stripe]);
            }
        }
        for unit in self.published.units_of(extent) {
            let home = homes[unit].load(Ordering::Relaxed);
            if home == BELOW || (moves && home != ASK) {
                homes[unit].store(ASK, Ordering::SeqCst);
            }
        }
        // G1: none of the change's bytes may be there before it is announced.
        fence(Ordering::SeqCst);
    }

    /// A change of these bytes is over; nobody has heard of it yet.
    pub fn end(&mut self, extent: Extent) {
        fence(Ordering::SeqCst);
        for stripe in stripes_of(extent, self.changing.len()) {
            self.changing[stripe] -= 1;
            if self.changing[stripe] == 0 {
                count(&self.published.stripes[stripe]);
            }
        }
    }

    /// The first unit of an extent that is not told and could be: nothing of it is being changed.
    pub fn untold(&self, extent: Extent) -> Option<Extent> {
        let Published { homes, gate, .. } = &*self.published;
        let (unit, reach) = (self.published.unit, self.published.reach);
        // What lies behind the reach is in no unit, also where the last one is cut by it.
        if !gate.load(Ordering::Relaxed).is_multiple_of(2) || extent.at.get() >= reach.get() {
            return None;
        }
        let whole = |index: usize| {
            let at = DiskOffset::new(index as u64 * unit.get());
            Extent::new(at, unit.min(ByteLen::new(reach.get() - at.get())))
        };
        let is_still =
            |unit: &Extent| stripes_of(*unit, self.changing.len()).all(|at| self.changing[at] == 0);
        let mut units = self.published.units_of(extent);
        units.find_map(|unit| {
            let untold = homes[unit].load(Ordering::Relaxed) == ASK;
            Some(whole(unit)).filter(|unit| untold && is_still(unit))
        })
    }

    /// Tells where a unit lies, as [`Self::untold`] gave it, nothing having begun since.
    pub fn tell(&mut self, unit: Extent, home: Home) {
        let word = match home {
            Home::Below => BELOW,
            Home::Leaf(at) => at.get() + IN_LEAF,
        };
        let index = (unit.at.get() / self.published.unit.get()) as usize;
        self.published.homes[index].store(word, Ordering::SeqCst);
    }

    /// Lets nobody believe anything, until [`Self::open`].
    pub fn close(&mut self) {
        let Published { gate, homes, .. } = &*self.published;
        if gate.load(Ordering::Relaxed).is_multiple_of(2) {
            count(gate);
        }
        homes.iter().for_each(|home| home.store(ASK, Ordering::SeqCst));
        fence(Ordering::SeqCst);
    }

    /// Ends a [`Self::close`]: nothing is told yet.
    pub fn open(&mut self) {
        let gate = &self.published.gate;
        if !gate.load(Ordering::Relaxed).is_multiple_of(2) {
            count(gate);
        }
    }

    /// The disk has another size.
    pub fn resized(&mut self, size: ByteLen) {
        self.published.size.store(size.get(), Ordering::SeqCst);
    }
}

impl Drop for Publisher {
    /// Who owned the disk knows no more what becomes of it.
    fn drop(&mut self) {
        self.close();
    }
}

/// One writer counts, so nobody's count is lost.
fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::SeqCst);
}

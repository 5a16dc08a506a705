//! Sector bitmaps of blocks that are present in part: a bounded cache. A bitmap that is newer than
//! the disk, or that a write in flight will change, is held and cannot be dropped.

use std::collections::{BTreeMap, VecDeque};

use vhd::{BlockIndex, FileOffset, bitmap};

/// Bytes of bitmaps kept before those not used lately are dropped.
const MAX_BYTES: usize = 1 << 20;

/// Parts of a bitmap that a digest tells apart.
const PARTS: u32 = 32;

/// Which parts of a bitmap are all alike: most answers need no look at the bits themselves, which
/// lie elsewhere in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Digest {
    /// A bit for each part in which all sectors are present.
    present: u32,
    /// The same for absent.
    absent: u32,
}

impl Digest {
    /// Bytes of one part; 0 where a bitmap is too small for parts of its own.
    const fn part_bytes(bits: usize) -> usize {
        bits / PARTS as usize
    }

    fn of(bits: &[u8]) -> Self {
        match Self::part_bytes(bits.len()) {
            // That of blocks of up to 2 MiB: one comparison each.
            16 => Self::of_parts(bits.as_chunks::<16>().0.iter().map(|part| {
                (u128::from_ne_bytes(*part) == u128::MAX, u128::from_ne_bytes(*part) == 0)
            })),
            0 => Self::default(),
            size => Self::of_parts(bits.chunks_exact(size).map(whole)),
        }
    }

    fn of_parts(parts: impl Iterator<Item = (bool, bool)>) -> Self {
        let mut digest = Self::default();
        for (number, (present, absent)) in (0..PARTS).zip(parts) {
            digest.present |= u32::from(present) << number;
            digest.absent |= u32::from(absent) << number;
        }
        digest
    }

    /// Takes in anew what stands in the parts of `count` sectors from `first` on.
    fn renew(&mut self, bits: &[u8], first: u32, count: u32) {
        let Some(parts) = parts_of(bits.len(), first, count) else {
            *self = Self::of(bits);
            return;
        };
        let size = Self::part_bytes(bits.len());
        let mut left = parts;
        while left != 0 {
            let number = left.trailing_zeros();
            let at = number as usize * size;
            let (present, absent) = whole(&bits[at..at + size]);
            self.present = self.present & !(1 << number) | u32::from(present) << number;
            self.absent = self.absent & !(1 << number) | u32::from(absent) << number;
            left &= left - 1;
        }
    }

    /// Whether `count` sectors from `first` on are present, if the digest knows that of all.
    fn tell(self, bits: usize, first: u32, count: u32) -> Option<bool> {
        let parts = parts_of(bits, first, count)?;
        if self.present & parts == parts {
            return Some(true);
        }
        (self.absent & parts == parts).then_some(false)
    }
}

/// Whether all sectors of a part are present, and whether all are absent.
fn whole(part: &[u8]) -> (bool, bool) {
    (part.iter().all(|byte| *byte == 0xFF), part.iter().all(|byte| *byte == 0))
}

/// The parts that sectors lie in, a bit for each; `None` where there are no parts.
fn parts_of(bits: usize, first: u32, count: u32) -> Option<u32> {
    let part = Digest::part_bytes(bits) as u32 * 8;
    let last = (first + count).checked_sub(1)?.checked_div(part)?;
    let first = first / part;
    if count == 0 || last >= PARTS {
        return None;
    }
    Some((u32::MAX >> (PARTS - 1 - (last - first))) << first)
}

struct Entry {
    /// Where it lies in the file: the table's page may be dropped while it is dirty.
    at: FileOffset,
    bits: Vec<u8>,
    digest: Digest,
    holds: u32,
    used: bool,
}

/// The bitmaps of one image.
#[derive(Default)]
pub(super) struct Bitmaps {
    entries: BTreeMap<BlockIndex, Entry>,
    /// Blocks in the order the clock hand meets them.
    order: VecDeque<BlockIndex>,
    bytes: usize,
}

impl Bitmaps {
    /// Whether the sector `first` of a block is present, and for how many of `count` sectors the
    /// same holds, if the bitmap is here.
    pub(super) fn run(&mut self, block: BlockIndex, first: u32, count: u32) -> Option<(bool, u32)> {
        let entry = self.entries.get_mut(&block)?;
        entry.used = true;
        Some(match entry.digest.tell(entry.bits.len(), first, count) {
            Some(present) => (present, count),
            None => bitmap::run(&entry.bits, first, first + count),
        })
    }

    /// The bitmap of a block, if it is here, and where it lies in the file.
    pub(super) fn placed(&self, block: BlockIndex) -> Option<(FileOffset, &[u8])> {
        self.entries.get(&block).map(|entry| (entry.at, entry.bits.as_slice()))
    }

    /// Takes in a bitmap with so many holds on it. One that is here already wins: it may be newer.
    pub(super) fn insert(&mut self, block: BlockIndex, at: FileOffset, bits: Vec<u8>, holds: u32) {
        self.make_room(bits.len());
        let size = bits.len();
        let mut is_new = false;
        let entry = self.entries.entry(block).or_insert_with(|| {
            is_new = true;
            Entry { at, digest: Digest::of(&bits), bits, holds: 0, used: true }
        });
        entry.holds += holds;
        if is_new {
            self.bytes += size;
            self.order.push_back(block);
        }
    }

    fn make_room(&mut self, coming: usize) {
        let mut steps = (self.order.len() * 2).min(64);
        while self.bytes + coming > MAX_BYTES && steps > 0 {
            steps -= 1;
            let Some(block) = self.order.pop_front() else { return };
            match self.entries.get_mut(&block) {
                Some(entry) if entry.holds > 0 || entry.used => {
                    entry.used = false;
                    self.order.push_back(block);
                }
                Some(entry) => {
                    self.bytes -= entry.bits.len();
                    self.entries.remove(&block);
                }
                None => {}
            }
        }
    }

    /// Keeps a bitmap until `unhold`; it must be here.
    pub(super) fn hold(&mut self, block: BlockIndex) {
        if let Some(entry) = self.entries.get_mut(&block) {
            entry.holds += 1;
        }
    }

    /// Gives back one hold.
    pub(super) fn unhold(&mut self, block: BlockIndex) {
        if let Some(entry) = self.entries.get_mut(&block) {
            entry.holds = entry.holds.saturating_sub(1);
        }
    }

    /// Marks sectors present. False when the bitmap is not here.
    pub(super) fn set(&mut self, block: BlockIndex, first: u32, count: u32) -> bool {
        let Some(entry) = self.entries.get_mut(&block) else { return false };
        bitmap::set_range(&mut entry.bits, first, count);
        entry.digest.renew(&entry.bits, first, count);
        true
    }

    /// Drops a bitmap.
    pub(super) fn remove(&mut self, block: BlockIndex) {
        if let Some(entry) = self.entries.remove(&block) {
            self.bytes -= entry.bits.len();
            // The clock passes over those that are gone; they are swept out now and then.
            if self.order.len() > 2 * self.entries.len() + 64 {
                self.order = self.entries.keys().copied().collect();
            }
        }
    }

    /// Whether nobody holds the bitmap and its first `sectors` bits are all set.
    pub(super) fn is_full_and_free(&self, block: BlockIndex, sectors: u32) -> bool {
        self.entries
            .get(&block)
            .is_some_and(|entry| entry.holds == 0 && bitmap::is_full(&entry.bits, sectors))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq, proptest};
    use vhd::{BlockIndex, FileOffset, bitmap};

    use super::Bitmaps;

    const BLOCK: BlockIndex = BlockIndex::new(7);

    proptest! {
        /// Bitmaps of blocks of 4 KiB to 16 MiB, some of which are written further.
        #[test]
        fn what_is_told_is_what_the_bits_say(
            size in proptest::sample::select(vec![1usize, 31, 32, 33, 100, 512, 4096]),
            ranges in proptest::collection::vec((any::<u16>(), 0u32..700), 0..12),
            later in proptest::collection::vec((any::<u16>(), 0u32..700), 0..6),
            asked in proptest::collection::vec((any::<u16>(), 0u32..700), 40),
        ) {
            let most = size as u32 * 8;
            let within = |(at, count): (u16, u32)| {
                let first = u32::from(at) % most;
                (first, count.min(most - first))
            };
            let mut bits = vec![0; size];
            for (first, count) in ranges.into_iter().map(within) {
                bitmap::set_range(&mut bits, first, count);
            }
            let mut bitmaps = Bitmaps::default();
            prop_assert_eq!(bitmaps.run(BLOCK, 0, 1), None);
            bitmaps.insert(BLOCK, FileOffset::new(512), bits.clone(), 0);
            for (first, count) in later.into_iter().map(within) {
                bitmap::set_range(&mut bits, first, count);
                bitmaps.set(BLOCK, first, count);
            }
            for (first, count) in asked.into_iter().map(within) {
                let expected = bitmap::run(&bits, first, first + count);
                prop_assert_eq!(bitmaps.run(BLOCK, first, count), Some(expected));
            }
        }
    }
}

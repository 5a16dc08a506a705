//! Sector bitmaps of blocks that are present in part: a bounded cache. A bitmap that is newer than
//! the disk, or that a write in flight will change, is held and cannot be dropped.

use std::collections::{BTreeMap, VecDeque};

use vhd::{BlockIndex, FileOffset, bitmap};

/// Bytes of bitmaps kept before those not used lately are dropped.
const MAX_BYTES: usize = 1 << 20;

struct Entry {
    /// Where it lies in the file: the table's page may be dropped while it is dirty.
    at: FileOffset,
    bits: Vec<u8>,
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
    /// The bitmap of a block, if it is here.
    pub(super) fn find(&mut self, block: BlockIndex) -> Option<&[u8]> {
        let entry = self.entries.get_mut(&block)?;
        entry.used = true;
        Some(&entry.bits)
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
            Entry { at, bits, holds: 0, used: true }
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

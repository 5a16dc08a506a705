//! Which parts of a region are free: blocks of power-of-two sizes that split and merge.
//!
//! Refuses to touch the memory it keeps books about.

/// The smallest block in bytes, and the alignment of all.
pub(super) const GRAIN: u32 = 4096;

/// Orders up to this (64 KiB) are kept unmerged after use, so that the common sizes take and give
/// in constant time.
const CACHED_ORDERS: usize = 5;
/// How many free blocks of one cached order are kept unmerged.
const CACHED_BLOCKS: usize = 64;
/// Number of orders: 4 KiB to 2 GiB.
const ORDERS: usize = 20;
/// End of a list, and "not a free block" in `order`.
const NONE: u32 = u32::MAX;
const TAKEN: u8 = u8::MAX;

/// A taken block. Not `Clone`: it goes back once.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Block {
    grain: u32,
    order: u8,
}

impl Block {
    /// First byte in the region.
    pub(super) const fn start(&self) -> u32 {
        self.grain * GRAIN
    }

    /// Length in bytes, at least what was asked for.
    pub(super) const fn len(&self) -> u32 {
        GRAIN << self.order
    }
}

/// The books of one region. Grains are numbered from the region's start.
#[derive(Debug)]
pub(super) struct Buddy {
    grains: u32,
    heads: [u32; ORDERS],
    next: Vec<u32>,
    prev: Vec<u32>,
    /// Order of the free block that starts at the grain, `TAKEN` where none starts.
    order: Vec<u8>,
    cached: [Vec<u32>; CACHED_ORDERS],
}

impl Buddy {
    /// Books of a region of `len` bytes (a multiple of the grain), all free.
    pub(super) fn new(len: u32) -> Self {
        let grains = len / GRAIN;
        let size = grains as usize;
        let mut books = Self {
            grains,
            heads: [NONE; ORDERS],
            next: vec![0; size],
            prev: vec![0; size],
            order: vec![TAKEN; size],
            cached: Default::default(),
        };
        let mut at = 0;
        while at < grains {
            let fits = (grains - at).ilog2();
            let aligned = if at == 0 { fits } else { at.trailing_zeros() };
            let order = fits.min(aligned).min(ORDERS as u32 - 1) as u8;
            books.link(at, order);
            at += 1 << order;
        }
        books
    }

    /// Length of the region in bytes.
    pub(super) const fn len(&self) -> u32 {
        self.grains * GRAIN
    }

    /// Takes a block of at least `len` bytes.
    pub(super) fn take(&mut self, len: u32) -> Option<Block> {
        let grains = len.max(1).div_ceil(GRAIN).checked_next_power_of_two()?;
        let order = grains.trailing_zeros() as usize;
        if let Some(grain) = self.cached.get_mut(order).and_then(Vec::pop) {
            return Some(Block { grain, order: order as u8 });
        }
        let found = self.take_merged(order);
        if found.is_some() || self.cached.iter().all(Vec::is_empty) {
            return found;
        }
        self.merge_cached();
        self.take_merged(order)
    }

    /// Takes a block back.
    pub(super) fn give(&mut self, block: Block) {
        if let Some(kept) = self.cached.get_mut(usize::from(block.order))
            && kept.len() < CACHED_BLOCKS
        {
            kept.push(block.grain);
            return;
        }
        self.merge(block.grain, block.order);
    }

    /// Shows every free block, merged as far as possible.
    pub(super) fn each_free(&mut self, mut see: impl FnMut(Block)) {
        self.merge_cached();
        for (order, head) in self.heads.iter().enumerate() {
            let mut grain = *head;
            while grain != NONE {
                see(Block { grain, order: order as u8 });
                grain = self.next[grain as usize];
            }
        }
    }

    fn take_merged(&mut self, order: usize) -> Option<Block> {
        let from = (order..ORDERS).find(|from| self.heads[*from] != NONE)?;
        let grain = self.heads[from];
        self.unlink(grain);
        for split in (order..from).rev() {
            self.link(grain + (1 << split), split as u8);
        }
        Some(Block { grain, order: order as u8 })
    }

    fn merge_cached(&mut self) {
        for order in 0..CACHED_ORDERS {
            while let Some(grain) = self.cached[order].pop() {
                self.merge(grain, order as u8);
            }
        }
    }

    fn merge(&mut self, mut grain: u32, mut order: u8) {
        while usize::from(order) + 1 < ORDERS {
            let buddy = grain ^ (1 << order);
            // The buddy of the last block of a region may begin or end behind the region.
            if self.order.get(buddy as usize) != Some(&order) {
                break;
            }
            self.unlink(buddy);
            grain = grain.min(buddy);
            order += 1;
        }
        self.link(grain, order);
    }

    fn link(&mut self, grain: u32, order: u8) {
        let head = self.heads[usize::from(order)];
        self.next[grain as usize] = head;
        self.prev[grain as usize] = NONE;
        if head != NONE {
            self.prev[head as usize] = grain;
        }
        self.heads[usize::from(order)] = grain;
        self.order[grain as usize] = order;
    }

    fn unlink(&mut self, grain: u32) {
        let order = usize::from(self.order[grain as usize]);
        let (prev, next) = (self.prev[grain as usize], self.next[grain as usize]);
        if prev == NONE {
            self.heads[order] = next;
        } else {
            self.next[prev as usize] = next;
        }
        if next != NONE {
            self.prev[next as usize] = prev;
        }
        self.order[grain as usize] = TAKEN;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, any, prop_assert, proptest};

    use super::{Block, Buddy, GRAIN};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn blocks_never_overlap_and_all_comes_back(
            grains in 1u32..300,
            acts in proptest::collection::vec((any::<bool>(), 1u32..200_000), 1..300),
        ) {
            let mut books = Buddy::new(grains * GRAIN);
            let mut out: Vec<Block> = Vec::new();
            for (take, number) in acts {
                if take {
                    let Some(block) = books.take(number) else { continue };
                    prop_assert!(block.len() >= number);
                    prop_assert!(block.start() + block.len() <= grains * GRAIN);
                    for other in &out {
                        let apart = block.start() + block.len() <= other.start()
                            || other.start() + other.len() <= block.start();
                        prop_assert!(apart, "{:?} overlaps {:?}", block, other);
                    }
                    out.push(block);
                } else if !out.is_empty() {
                    let index = number as usize % out.len();
                    books.give(out.swap_remove(index));
                }
            }
            out.drain(..).for_each(|block| books.give(block));
            let mut free = 0;
            let mut largest = 0;
            books.each_free(|block| {
                free += block.len();
                largest = largest.max(block.len());
            });
            prop_assert!(free == grains * GRAIN);
            prop_assert!(largest == GRAIN << grains.ilog2());
        }
    }
}

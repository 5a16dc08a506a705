//! The two waves of a VHD commit (scheme S4 of the crash model): first the bitmaps of new blocks
//! and the footer, with the data; then the table's sectors and the bitmaps of blocks already
//! visible. Everything is built from the snapshot taken when the commit began (W5).

use std::collections::BTreeSet;

use vhd::bat::BatEntry;
use vhd::{BlockIndex, FileOffset, SectorNo, bitmap};

use super::file_at;
use super::leaf::{Stage, VhdLeaf};
use super::table::Table;
use crate::engine::layer::Wave;

/// What one commit makes durable.
#[derive(Default)]
pub(super) struct Batch {
    /// Fresh blocks whose entries change.
    published: Vec<BlockIndex>,
    /// Homes that nothing durable names once the commit settles.
    released: Vec<(BlockIndex, SectorNo)>,
    /// Snapshots of bitmaps of visible blocks.
    bitmaps: Vec<(BlockIndex, FileOffset, Vec<u8>)>,
    /// Sectors of the table that change.
    sectors: BTreeSet<u32>,
    footer_at: Option<FileOffset>,
}

impl Batch {
    /// Whether homes come free when the commit settles.
    pub(super) fn releases(&self) -> bool {
        !self.released.is_empty()
    }

    /// Whether the commit writes the entry of a block.
    pub(super) fn publishes(&self, block: BlockIndex) -> bool {
        self.published.binary_search(&block).is_ok()
    }

    /// Whether the commit writes the bitmap of a listed block.
    pub(super) fn holds_bitmap(&self, block: BlockIndex) -> bool {
        self.bitmaps.iter().any(|(other, ..)| *other == block)
    }
}

impl VhdLeaf {
    /// Takes the snapshot; writes the bitmaps of new blocks and the footer, if it moved.
    pub(super) fn first_wave(&mut self) -> Option<Wave> {
        if !crate::engine::layer::Leaf::dirty(self) {
            return None;
        }
        let mut wave = Wave::default();
        let mut batch = Batch::default();
        for block in std::mem::take(&mut self.unpublished) {
            self.snapshot_fresh(block, &mut batch, &mut wave);
        }
        for block in std::mem::take(&mut self.dirty_bits) {
            self.snapshot_bitmap(block, &mut batch);
        }
        // I2: the footer goes out with the data, so the file covers every block whose entry
        // appears in the next wave.
        if let Some((at, footer)) = self.tail.footer_write() {
            wave.writes.push((file_at(at), footer));
            batch.footer_at = Some(at);
        }
        self.batch = Some(batch);
        Some(wave)
    }

    fn snapshot_fresh(&mut self, block: BlockIndex, batch: &mut Batch, wave: &mut Wave) {
        let sectors = self.layer.geometry.sectors_on_disk(block);
        let differencing = self.layer.differencing;
        let Some(fresh) = self.fresh.get_mut(&block) else { return };
        fresh.changed = false;
        let entry = match fresh.slot {
            None => BatEntry::Unallocated,
            Some(slot) => {
                let bits = match differencing {
                    true => fresh.bits.clone(),
                    false => fresh.dynamic_bitmap(sectors),
                };
                fresh.published.clone_from(&bits);
                if fresh.stage == Stage::Exposed {
                    batch.bitmaps.push((block, slot.offset(), bits));
                } else {
                    // W1: the bitmap is durable before the entry that leads to it.
                    wave.writes.push((file_at(slot.offset()), bits));
                    fresh.stage = Stage::Publishing;
                }
                BatEntry::At(slot)
            }
        };
        batch.released.extend(fresh.previous.drain(..).map(|slot| (block, slot)));
        self.layer.table.set(block, entry);
        batch.sectors.insert(Table::sector_of(block));
        batch.published.push(block);
    }

    fn snapshot_bitmap(&mut self, block: BlockIndex, batch: &mut Batch) {
        // Not asked of the table: its page may have been dropped since.
        if let Some((at, bits)) = self.layer.bitmaps.placed(block) {
            batch.bitmaps.push((block, at, bits.to_vec()));
        }
    }

    /// The pointers: table sectors, and bitmaps of blocks that are visible already.
    pub(super) fn second_wave(&mut self) -> Option<Wave> {
        let batch = self.batch.as_mut()?;
        if batch.sectors.is_empty() && batch.bitmaps.is_empty() {
            return None;
        }
        let mut wave = Wave::default();
        for (first, count) in runs(&batch.sectors) {
            let (at, bytes) = self.layer.table.sectors(first, count);
            wave.writes.push((file_at(at), bytes));
        }
        for (_, at, bits) in &mut batch.bitmaps {
            wave.writes.push((file_at(*at), std::mem::take(bits)));
        }
        for block in &batch.published {
            if let Some(fresh) = self.fresh.get_mut(block)
                && fresh.stage == Stage::Publishing
            {
                fresh.stage = Stage::Exposed;
            }
        }
        Some(wave)
    }

    /// Everything in the batch is durable.
    pub(super) fn settle_batch(&mut self) {
        let Some(batch) = self.batch.take() else { return };
        if let Some(at) = batch.footer_at {
            self.tail.footer_settled(at);
        }
        for block in &batch.published {
            self.settle_block(*block);
        }
        for (block, ..) in &batch.bitmaps {
            // An exposed block was fresh: its bitmap came without a hold, and `settle_block`
            // has just taken one if it changed since the snapshot.
            if batch.publishes(*block) {
                continue;
            }
            self.layer.bitmaps.unhold(*block);
            let sectors = self.layer.geometry.sectors_on_disk(*block);
            if self.layer.bitmaps.is_full_and_free(*block, sectors) {
                self.layer.table.mark_full(*block);
                self.layer.bitmaps.remove(*block);
            }
        }
        self.tail.release(batch.released.into_iter().map(|(_, slot)| slot));
    }

    /// A published block is described by the disk now; what landed since stays dirty.
    fn settle_block(&mut self, block: BlockIndex) {
        let Some(fresh) = self.fresh.get(&block) else { return };
        // It found a new home meanwhile, or gave back the one that was published now: that is yet
        // to be published.
        if fresh.stage == Stage::Reserved && (fresh.slot.is_some() || fresh.changed) {
            return;
        }
        let Some(fresh) = self.fresh.remove(&block) else { return };
        self.unpublished.remove(&block);
        let sectors = self.layer.geometry.sectors_on_disk(block);
        let differencing = self.layer.differencing;
        let Some(slot) = fresh.slot else {
            self.layer.table.uncover(block, false);
            return;
        };
        let (bits, dirty) = if differencing {
            (fresh.bits, fresh.changed)
        } else {
            let bits = fresh.dynamic_bitmap(sectors);
            let dirty = bits != fresh.published;
            (bits, dirty)
        };
        let full = !dirty && bitmap::is_full(&bits, sectors);
        self.layer.table.uncover(block, full);
        if !full {
            let holds = fresh.writers + u32::from(dirty);
            self.layer.bitmaps.insert(block, slot.offset(), bits, holds);
            if dirty {
                self.dirty_bits.insert(block);
            }
        }
    }

    /// A write of the batch failed: all of it is dirty again. What the second wave may have made
    /// visible stays `Exposed`, so its bitmap never again goes out together with data.
    pub(super) fn abandon_batch(&mut self) {
        let Some(batch) = self.batch.take() else { return };
        for (block, slot) in batch.released {
            if let Some(fresh) = self.fresh.get_mut(&block) {
                fresh.previous.push(slot);
            }
        }
        for block in batch.published {
            if let Some(fresh) = self.fresh.get_mut(&block) {
                // Released, and given a new home since the snapshot: what lands there decides.
                if fresh.slot.is_some() && fresh.stage == Stage::Reserved {
                    continue;
                }
                if fresh.stage == Stage::Publishing {
                    fresh.stage = Stage::Reserved;
                }
                fresh.changed = true;
                self.unpublished.insert(block);
            }
        }
        for (block, ..) in batch.bitmaps {
            if self.fresh.contains_key(&block) {
                continue;
            }
            // The batch's hold becomes the dirty one, unless there is one already.
            if !self.dirty_bits.insert(block) {
                self.layer.bitmaps.unhold(block);
            }
        }
    }
}

/// Runs of neighbouring sectors: first and count.
fn runs(sectors: &BTreeSet<u32>) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for sector in sectors {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == *sector => *count += 1,
            _ => runs.push((*sector, 1)),
        }
    }
    runs
}

//! A dynamic or differencing VHD that is written: homes for new sectors, and what changed since the
//! last commit. `publish` turns that into the waves of a commit.

use std::collections::{BTreeMap, BTreeSet};

use vhd::bat::BatEntry;
use vhd::{BlockIndex, FileOffset as VhdOffset, Image, SectorNo, Sparse, bitmap};

use super::file_at;
use super::grow::Grower;
use super::layer::{VhdLayer, run, sectors_of};
use super::publish::Batch;
use super::table::BlockState;
use super::tail::{Backing, Tail};
use crate::engine::layer::{
    Blocked, Corrupt, FileChange, Hollow, Layer, Leaf, Located, MetaPage, PlaceNote, PlaceToken,
    Placed, ResizeStep, Wave, WaveNo,
};
use crate::engine::request::FaultKind;
use crate::engine::units::{ByteLen, Extent};

/// Bytes of changed bitmaps kept in memory before a commit is forced.
const MAX_DIRTY_BYTES: u64 = 8 << 20;

/// How far a new block is on its way into the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Known in memory only.
    Reserved,
    /// Its bitmap goes out with the running commit, its entry with the next wave.
    Publishing,
    /// Its bitmap is durable and its entry may be: as good as visible (W2 applies).
    Exposed,
}

/// A block about which memory knows more than the table on disk.
pub(super) struct Fresh {
    /// Its new home; `None`: the block was released and has none.
    pub(super) slot: Option<SectorNo>,
    /// Homes that durable metadata may still name; quarantined until a commit settles.
    pub(super) previous: Vec<SectorNo>,
    /// Sectors whose bytes have landed.
    pub(super) bits: Vec<u8>,
    /// Those of them that are zero although nothing was written there: the file may end before
    /// them until a commit puts the footer behind the block, so they are not read from it. Empty
    /// when there is none.
    hollows: Vec<u8>,
    /// The bitmap that went out last, if one did.
    pub(super) published: Vec<u8>,
    /// Writes in flight into it.
    pub(super) writers: u32,
    pub(super) stage: Stage,
    /// Landed sectors since the last snapshot.
    pub(super) changed: bool,
    /// A write failed: sectors that did not land may hold anything.
    pub(super) tainted: bool,
    /// No byte was written into it yet.
    pristine: bool,
    /// Stale bytes beneath were made zero, or cannot matter; and the file does not end with it.
    scrubbed: bool,
}

impl Fresh {
    /// A block that is about to get a home, or has none any more.
    fn new(slot: Option<SectorNo>, previous: Vec<SectorNo>, bits: Vec<u8>, scrubbed: bool) -> Self {
        Self {
            slot,
            previous,
            bits,
            hollows: Vec::new(),
            published: Vec::new(),
            writers: 0,
            stage: Stage::Reserved,
            changed: false,
            tainted: false,
            pristine: true,
            scrubbed,
        }
    }

    /// What the block's bitmap should say in a dynamic image: what was not written reads as zeroes
    /// from a block that is clean, so its sectors are present and later writes need no bitmap.
    /// Those that somebody made zero are absent, so that they stay known as zeroes.
    pub(super) fn dynamic_bitmap(&self, sectors: u32) -> Vec<u8> {
        let mut bits = self.bits.clone();
        if !self.tainted {
            bitmap::set_range(&mut bits, 0, sectors);
        }
        bits.iter_mut().zip(&self.hollows).for_each(|(bits, hollows)| *bits &= !hollows);
        bits
    }

    /// Whether all that landed is zero, and nothing else is on its way.
    fn is_void(&self) -> bool {
        let hollow = |(at, bits): (usize, &u8)| bits & !self.hollows.get(at).unwrap_or(&0) == 0;
        self.writers == 0 && !self.tainted && self.bits.iter().enumerate().all(hollow)
    }

    /// Sectors have landed as zeroes without bytes behind them, or as bytes.
    fn note_hollow(&mut self, first: u32, count: u32, hollow: bool) {
        if hollow {
            self.hollows.resize(self.bits.len(), 0);
            bitmap::set_range(&mut self.hollows, first, count);
        } else if !self.hollows.is_empty() {
            bitmap::clear_range(&mut self.hollows, first, count);
        }
    }
}

/// A writable sparse VHD.
pub struct VhdLeaf {
    pub(super) layer: VhdLayer,
    pub(super) tail: Tail,
    pub(super) grower: Grower,
    pub(super) fresh: BTreeMap<BlockIndex, Fresh>,
    /// Fresh blocks with something to publish.
    pub(super) unpublished: BTreeSet<BlockIndex>,
    /// Listed blocks whose bitmap is newer than the disk.
    pub(super) dirty_bits: BTreeSet<BlockIndex>,
    /// The commit that runs.
    pub(super) batch: Option<Batch>,
    /// Whole blocks may be given back: not while Xen's batmap describes them.
    may_release: bool,
    max_dirty: usize,
}

impl VhdLeaf {
    /// The leaf of an image that was opened, and repaired where it had to be.
    pub fn new(image: &Image, sparse: &Sparse, backing: Backing) -> Self {
        let file_end = VhdOffset::new(image.file_len.get());
        let footer = image.footer_bytes().to_vec();
        let layer = VhdLayer::new(image, sparse);
        let bitmap_bytes = sparse.geometry.bitmap_bytes().get();
        Self {
            layer,
            tail: Tail::new(backing, file_end, sparse.blocks_end, footer),
            grower: Grower::new(image),
            fresh: BTreeMap::new(),
            unpublished: BTreeSet::new(),
            dirty_bits: BTreeSet::new(),
            batch: None,
            may_release: sparse.batmap.is_none(),
            max_dirty: (MAX_DIRTY_BYTES / bitmap_bytes).clamp(64, 8192) as usize,
        }
    }

    fn entry(&mut self, block: BlockIndex) -> Result<(BatEntry, BlockState), Blocked> {
        self.layer.table.entry(block).map_err(Blocked::Ask)
    }

    fn check_room(&self) -> Result<(), Blocked> {
        let dirty = self.unpublished.len() + self.dirty_bits.len();
        if dirty >= self.max_dirty { Err(Blocked::Commit) } else { Ok(()) }
    }

    /// Room for a block. While homes wait in quarantine, a commit makes room before it is denied.
    fn reserve(&mut self) -> Result<SectorNo, Blocked> {
        let reserved = self.tail.reserve(&self.layer.geometry);
        let Err(Blocked::NoSpace(_)) = reserved else { return reserved };
        let publishes_release = |block: &BlockIndex| {
            self.fresh.get(block).is_some_and(|fresh| !fresh.previous.is_empty())
        };
        let pending = self.batch.as_ref().is_some_and(Batch::releases)
            || self.unpublished.iter().any(publishes_release);
        if pending { Err(Blocked::Commit) } else { reserved }
    }

    /// Reserves a home for a block that has none. Nothing visible changes.
    fn allocate(&mut self, block: BlockIndex) -> Result<(), Blocked> {
        self.check_room()?;
        let before = self.tail.end();
        let slot = self.reserve()?;
        let grows = self.tail.end() != before;
        self.layer.end = self.layer.end.max(self.tail.end());
        // What a differencing image does not mark present is never read from it.
        let clean = match self.tail.backing {
            // A file that ends with a guest's bytes may end with what looks like a footer.
            Backing::File => !grows,
            Backing::Device => self.layer.differencing,
        };
        let bits = vec![0; self.layer.geometry.bitmap_bytes().get() as usize];
        let previous = self.fresh.remove(&block).map(|old| old.previous).unwrap_or_default();
        // A release that waited for its commit is overtaken: what landed in the new home decides.
        self.unpublished.remove(&block);
        self.fresh.insert(block, Fresh::new(Some(slot), previous, bits, clean));
        self.layer.table.overlay(block);
        Ok(())
    }

    /// A home in a fresh block, which is allocated if need be.
    fn place_fresh(&mut self, block: BlockIndex, part: Extent) -> Result<Placed, Blocked> {
        if self.fresh.get(&block).is_none_or(|fresh| fresh.slot.is_none()) {
            self.allocate(block)?;
        }
        let geometry = self.layer.geometry;
        let Some((fresh, slot)) =
            self.fresh.get_mut(&block).and_then(|fresh| fresh.slot.map(|slot| (fresh, slot)))
        else {
            return Err(Blocked::NoSpace("no home was reserved"));
        };
        if !fresh.scrubbed && self.tail.backing == Backing::File {
            return Err(Blocked::Cap {
                block: block.get(),
                at: file_at(geometry.slot_end(slot)),
                bytes: self.tail.footer().to_vec(),
            });
        }
        if !fresh.scrubbed {
            return Err(Blocked::Scrub {
                block: block.get(),
                at: file_at(geometry.data_at(slot)),
                len: super::len_of(geometry.block_bytes()),
            });
        }
        fresh.writers += 1;
        let at = self.layer.place_in(slot, part);
        Ok(placed(block, part, at, false, PlaceNote::Present))
    }

    /// A home in a block that the table lists.
    fn place_listed(
        &mut self,
        block: BlockIndex,
        slot: SectorNo,
        part: Extent,
    ) -> Result<Placed, Blocked> {
        let at = self.layer.place_in(slot, part);
        let Some((present, len)) = self.layer.present(block, part) else {
            return Err(Blocked::Ask(self.layer.ask_bitmap(block, slot)));
        };
        let is_dirty = self.dirty_bits.contains(&block);
        if present && len == part.len {
            let in_commit = self.batch.as_ref().is_some_and(|batch| batch.holds_bitmap(block));
            let settled = !is_dirty && !in_commit;
            return Ok(placed(block, part, at, settled, PlaceNote::Nothing));
        }
        if !is_dirty {
            self.check_room()?;
        }
        self.layer.bitmaps.hold(block);
        Ok(placed(block, part, at, false, PlaceNote::Present))
    }

    fn locate_fresh(&mut self, block: BlockIndex, part: Extent) -> Located {
        let Some((fresh, slot)) =
            self.fresh.get(&block).and_then(|fresh| fresh.slot.map(|slot| (fresh, slot)))
        else {
            return Located::Below(part.len);
        };
        let geometry = &self.layer.geometry;
        let (present, len) = run(geometry, &fresh.bits, part);
        if !present {
            return Located::Below(len);
        }
        let here = self.layer.place_in(slot, part);
        if fresh.hollows.is_empty() {
            return Located::Here(here, len);
        }
        match run(geometry, &fresh.hollows, part.first(len)) {
            (true, len) => Located::Zero(len),
            (false, len) => Located::Here(here, len),
        }
    }

    /// Zeroes in a block that the table lists.
    fn hollow_listed(
        &mut self,
        block: BlockIndex,
        (slot, state): (SectorNo, BlockState),
        part: Extent,
    ) -> Result<Hollow, Blocked> {
        if self.layer.differencing && state != BlockState::Full {
            return self.place_listed(block, slot, part).map(Hollow::Punch);
        }
        let on_disk = u64::from(self.layer.geometry.sectors_on_disk(block)) * 512;
        let whole = part.len.get() >= on_disk;
        let at = self.layer.place_in(slot, part);
        if whole && !self.layer.differencing && self.may_release {
            self.check_room()?;
            // The whole slot, also what lies behind the end of the disk: it may be used again.
            let all = Extent::new(part.at, super::len_of(self.layer.geometry.block_bytes()));
            let mut home = placed(block, all, at, false, PlaceNote::Release);
            home.extent = all;
            return Ok(Hollow::Punch(home));
        }
        Ok(Hollow::Punch(placed(block, part, at, false, PlaceNote::Nothing)))
    }

    /// The block's data was punched as a whole: it needs no home any more.
    fn release(&mut self, block: BlockIndex) {
        let Ok((BatEntry::At(slot), BlockState::Listed | BlockState::Full)) =
            self.layer.table.entry(block)
        else {
            return;
        };
        self.dirty_bits.remove(&block);
        self.layer.bitmaps.remove(block);
        let mut fresh = Fresh::new(None, vec![slot], Vec::new(), true);
        fresh.changed = true;
        self.fresh.insert(block, fresh);
        self.unpublished.insert(block);
        self.layer.table.overlay(block);
    }

    /// A fresh block of a dynamic image holds nothing but zeroes: it needs no home any more.
    fn drop_void(&mut self, block: BlockIndex) {
        let may_release = self.may_release;
        let Some(fresh) = self.fresh.get_mut(&block) else { return };
        let named = fresh.stage != Stage::Reserved;
        let Some(slot) = fresh.slot.filter(|_| fresh.is_void() && (may_release || !named)) else {
            return;
        };
        let mut previous = std::mem::take(&mut fresh.previous);
        if named {
            // W3: the commit that runs, or one that failed, may have made its entry durable.
            previous.push(slot);
        } else {
            self.tail.release([slot]);
            // A commit that failed may have left it there: two blocks must never name one slot.
            self.layer.table.set(block, BatEntry::Unallocated);
        }
        *fresh = Fresh::new(None, previous, Vec::new(), true);
        fresh.changed = !fresh.previous.is_empty();
        if fresh.changed {
            self.unpublished.insert(block);
            return;
        }
        self.unpublished.remove(&block);
        // A commit that clears its entry tells of it when it settles or fails.
        if !self.batch.as_ref().is_some_and(|batch| batch.publishes(block)) {
            self.fresh.remove(&block);
            self.layer.table.set(block, BatEntry::Unallocated);
            self.layer.table.uncover(block, false);
        }
    }

    /// Bytes were made zero. A block that holds nothing else is given back.
    fn landed_zeroes(&mut self, block: BlockIndex, extent: Extent) {
        let geometry = &self.layer.geometry;
        let on_disk = u64::from(geometry.sectors_on_disk(block)) * 512;
        let whole = extent.len.get() >= on_disk;
        let was_fresh = self.fresh.get_mut(&block).map(|fresh| {
            // What a failed write left behind is gone as well.
            fresh.tainted &= !whole || fresh.writers > 1;
        });
        self.landed_present(block, extent, true);
        if self.layer.differencing {
            return;
        }
        match was_fresh {
            Some(()) => self.drop_void(block),
            // A commit described it meanwhile.
            None if whole && self.may_release => self.release(block),
            None => {}
        }
    }

    fn landed_present(&mut self, block: BlockIndex, extent: Extent, hollow: bool) {
        let (first, count) = sectors_of(&self.layer.geometry, extent);
        if let Some(fresh) = self.fresh.get_mut(&block) {
            fresh.writers = fresh.writers.saturating_sub(1);
            if fresh.slot.is_some() {
                bitmap::set_range(&mut fresh.bits, first, count);
                fresh.note_hollow(first, count, hollow);
                fresh.changed = true;
                self.unpublished.insert(block);
            }
        } else if self.layer.bitmaps.set(block, first, count) {
            // One hold was the write's; it becomes the one for being dirty.
            if !self.dirty_bits.insert(block) {
                self.layer.bitmaps.unhold(block);
            }
        }
    }
}

impl Layer for VhdLeaf {
    fn size(&self) -> ByteLen {
        self.layer.size()
    }

    fn locate(&mut self, wanted: Extent) -> Located {
        if !self.fresh.is_empty() {
            let (block, part) = self.layer.in_block(wanted);
            if let Ok((_, BlockState::Overlaid)) = self.layer.table.entry(block) {
                return self.locate_fresh(block, part);
            }
        }
        self.layer.locate(wanted)
    }

    fn learn(&mut self, page: MetaPage, bytes: &[u8]) -> Result<(), Corrupt> {
        self.layer.learn(page, bytes)
    }
}

impl Leaf for VhdLeaf {
    fn unit(&self) -> ByteLen {
        super::len_of(self.layer.geometry.block_bytes())
    }

    fn place(&mut self, wanted: Extent) -> Result<Placed, Blocked> {
        let (block, part) = self.layer.in_block(wanted);
        match self.entry(block)? {
            (_, BlockState::Overlaid) | (BatEntry::Unallocated, _) => {
                let placed = self.place_fresh(block, part)?;
                if let Some(fresh) = self.fresh.get_mut(&block) {
                    fresh.pristine = false;
                }
                Ok(placed)
            }
            (BatEntry::At(slot), BlockState::Full) => {
                let at = self.layer.place_in(slot, part);
                Ok(placed(block, part, at, true, PlaceNote::Nothing))
            }
            (BatEntry::At(slot), BlockState::Listed) => self.place_listed(block, slot, part),
        }
    }

    fn hollow(&mut self, wanted: Extent) -> Result<Hollow, Blocked> {
        let (block, part) = self.layer.in_block(wanted);
        match self.entry(block)? {
            (BatEntry::At(slot), state @ (BlockState::Full | BlockState::Listed)) => {
                self.hollow_listed(block, (slot, state), part)
            }
            (BatEntry::Unallocated, BlockState::Listed | BlockState::Full)
                if !self.layer.differencing =>
            {
                Ok(Hollow::Already(part.len))
            }
            (_, BlockState::Overlaid)
                if !self.layer.differencing
                    && self.fresh.get(&block).is_some_and(|fresh| fresh.slot.is_none()) =>
            {
                Ok(Hollow::Already(part.len))
            }
            _ => {
                let mut home = self.place_fresh(block, part)?;
                home.token.note = PlaceNote::Zeroes;
                let clean = self.tail.backing == Backing::File
                    && self.fresh.get(&block).is_some_and(|fresh| fresh.pristine);
                if clean { Ok(Hollow::Silent(home)) } else { Ok(Hollow::Punch(home)) }
            }
        }
    }

    fn landed(&mut self, placed: &Placed) {
        let block = BlockIndex::new(placed.token.block);
        match placed.token.note {
            PlaceNote::Nothing => {}
            PlaceNote::Release => self.release(block),
            PlaceNote::Present => self.landed_present(block, placed.extent, false),
            PlaceNote::Zeroes => self.landed_zeroes(block, placed.extent),
        }
    }

    fn failed(&mut self, placed: &Placed) {
        let block = BlockIndex::new(placed.token.block);
        if !matches!(placed.token.note, PlaceNote::Present | PlaceNote::Zeroes) {
            return;
        }
        if let Some(fresh) = self.fresh.get_mut(&block) {
            fresh.writers = fresh.writers.saturating_sub(1);
            // Part of it may lie there: these sectors are no longer known to be zero.
            let (first, count) = sectors_of(&self.layer.geometry, placed.extent);
            fresh.note_hollow(first, count, false);
            let published_whole = fresh.stage != Stage::Reserved && !fresh.tainted;
            if published_whole && !self.layer.differencing && fresh.slot.is_some() {
                // The disk shows these sectors already, so memory must show them as well.
                bitmap::set_range(&mut fresh.bits, first, count);
            } else {
                fresh.tainted = true;
            }
        } else {
            self.layer.bitmaps.unhold(block);
        }
    }

    fn scrubbed(&mut self, block: u32) {
        if let Some(fresh) = self.fresh.get_mut(&BlockIndex::new(block)) {
            fresh.scrubbed = true;
        }
    }

    fn scrub_failed(&mut self, _block: u32) {
        // It stays unscrubbed, so the next one who wants it asks again.
    }

    fn dirty(&self) -> bool {
        !self.unpublished.is_empty() || !self.dirty_bits.is_empty() || self.tail.footer_moved()
    }

    fn wave(&mut self, n: WaveNo) -> Option<Wave> {
        match n.0 {
            0 => self.first_wave(),
            1 => self.second_wave(),
            _ => None,
        }
    }

    fn settled(&mut self) {
        self.settle_batch();
    }

    fn abandoned(&mut self) {
        self.abandon_batch();
    }

    fn begin_resize(&mut self, size: ByteLen) -> Result<(), String> {
        self.begin_growth(size)
    }

    fn resize_step(&mut self, read: Option<Vec<u8>>) -> Result<ResizeStep, FaultKind> {
        self.grow_on(read)
    }

    fn undo_resize(&mut self) -> Vec<FileChange> {
        self.undo_growth()
    }
}

fn placed(
    block: BlockIndex,
    extent: Extent,
    at: crate::engine::units::FileOffset,
    settled: bool,
    note: PlaceNote,
) -> Placed {
    Placed { extent, at, settled, token: PlaceToken { block: block.get(), note } }
}

//! A leaf that tells the truth except for one bug.
//!
//! Refuses to know how the real leaf works inside: it tampers with what goes in and comes out.

use std::collections::{BTreeMap, BTreeSet};

use orlop::engine::layer::{
    Blocked, Corrupt, FileChange, Hollow, Layer, Leaf, Located, MetaPage, PlaceNote, Placed,
    ResizeStep, Wave, WaveNo,
};
use orlop::engine::request::FaultKind;
use orlop::engine::units::{ByteLen, DiskOffset, Extent, FileOffset};
use vhd::{Geometry, Sparse};

use crate::bugs::Bug;
use crate::world::open_image;

/// Where the image keeps what, for the tampering.
struct Places {
    table: u64,
    table_end: u64,
    geometry: Geometry,
}

struct BadLeaf {
    inner: Box<dyn Leaf>,
    bug: Bug,
    places: Option<Places>,
    /// Writes taken out of one wave, for a later one.
    kept: Wave,
    /// Where a block's bitmap lies, by block, as far as placements told.
    slots: BTreeMap<u32, u64>,
    /// Homes given to blocks that never had one.
    fresh: BTreeSet<u32>,
    /// What landed since the snapshot.
    landed: Vec<Placed>,
    /// Homes that are somewhere else in truth: from, to.
    moved: BTreeMap<u64, u64>,
    /// Home of a freed block.
    freed: Option<u64>,
    /// Sectors of the disk zeroed in a child.
    cleared: BTreeSet<u64>,
    /// Homes of blocks whose bitmaps went out with the commit that runs.
    told: BTreeMap<u32, u64>,
    /// Those of commits that failed.
    stale: BTreeMap<u32, u64>,
    /// The size last asked for.
    wanted: ByteLen,
    /// It has written a footer since.
    footer_moved: bool,
}

/// Builds a bug into a leaf.
pub(crate) fn wrap(leaf: Box<dyn Leaf>, bug: Bug, bytes: &[u8]) -> Box<dyn Leaf> {
    let image = open_image(bytes).ok();
    let sparse = image.as_ref().and_then(vhd::Image::sparse);
    let places = sparse.map(|sparse: &Sparse| Places {
        table: sparse.table.get(),
        table_end: sparse.table.get() + sparse.table_bytes.get(),
        geometry: sparse.geometry,
    });
    Box::new(BadLeaf {
        inner: leaf,
        bug,
        places,
        kept: Wave::default(),
        slots: BTreeMap::new(),
        fresh: BTreeSet::new(),
        landed: Vec::new(),
        moved: BTreeMap::new(),
        freed: None,
        cleared: BTreeSet::new(),
        told: BTreeMap::new(),
        stale: BTreeMap::new(),
        wanted: ByteLen::ZERO,
        footer_moved: false,
    })
}

/// What a metadata write is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Table,
    Footer,
    Bitmap,
}

impl Places {
    fn part(&self, at: FileOffset, bytes: &[u8]) -> Part {
        if (self.table..self.table_end).contains(&at.get()) {
            Part::Table
        } else if bytes.starts_with(b"conectix") {
            Part::Footer
        } else {
            Part::Bitmap
        }
    }

    fn slot_of(&self, placed: &Placed) -> u64 {
        let within = placed.extent.at.get() % self.geometry.block_bytes().get();
        placed.at.get() - within - self.geometry.bitmap_bytes().get()
    }

    /// Sectors of its block that an extent covers.
    fn sectors(&self, extent: Extent) -> std::ops::Range<u64> {
        let within = extent.at.get() % self.geometry.block_bytes().get();
        let end = (within + extent.len.get()).min(self.geometry.block_bytes().get());
        within / 512..end.div_ceil(512)
    }
}

impl BadLeaf {
    /// Whether no footer is to be written but by the wave that this bug spoils.
    fn omits_footers(&self) -> bool {
        matches!(self.bug, Bug::FooterForgotten | Bug::FooterLate)
    }

    /// Learns from a placement where its block lies.
    fn note(&mut self, placed: &mut Placed) {
        let Some(places) = &self.places else { return };
        let block = placed.token.block;
        let slot = places.slot_of(placed);
        let is_new = self.slots.insert(block, slot).is_none_or(|old| old != slot);
        if is_new && !placed.settled && placed.token.note == PlaceNote::Present {
            self.fresh.insert(block);
            self.misplace(block, slot);
        }
        self.shift(&mut placed.at);
    }

    fn misplace(&mut self, block: u32, slot: u64) {
        let to = match self.bug {
            Bug::FreedBlockReused => self.freed.take(),
            Bug::DoubleAllocation if self.fresh.len() > 1 => {
                self.slots.iter().find(|(other, _)| **other != block).map(|(_, slot)| *slot)
            }
            _ => None,
        };
        if let Some(to) = to.filter(|to| *to != slot) {
            self.moved.insert(slot, to);
        }
    }

    /// Moves a position inside a misplaced home to where it is in truth.
    fn shift(&self, at: &mut FileOffset) {
        let Some(places) = &self.places else { return };
        let whole = places.geometry.slot_bytes().get();
        for (from, to) in &self.moved {
            if (*from..from + whole).contains(&at.get()) {
                *at = FileOffset::new(at.get() - from + to);
                return;
            }
        }
    }

    fn first_wave(&mut self) -> Option<Wave> {
        self.landed.clear();
        let mut wave = self.inner.wave(WaveNo(0))?;
        match self.bug {
            Bug::OneEpoch => {
                wave.writes.extend(self.inner.wave(WaveNo(1)).unwrap_or_default().writes);
            }
            Bug::PointersFirst => {
                self.kept = wave;
                wave = self.inner.wave(WaveNo(1)).unwrap_or_default();
            }
            Bug::LateBitmap => self.keep(&mut wave, Part::Bitmap),
            Bug::FooterLate => self.keep(&mut wave, Part::Footer),
            Bug::FooterForgotten => {
                self.keep(&mut wave, Part::Footer);
                self.kept.writes.clear();
            }
            Bug::AckBeforeSecondEpoch => wave.writes.append(&mut self.kept.writes),
            Bug::FailedCommitRemembered => self.tell(&wave),
            _ => {}
        }
        Some(self.tampered(wave))
    }

    fn second_wave(&mut self) -> Option<Wave> {
        match self.bug {
            Bug::OneEpoch => return None,
            Bug::PointersFirst => return Some(std::mem::take(&mut self.kept)),
            Bug::AckBeforeSecondEpoch => {
                self.kept = self.inner.wave(WaveNo(1)).unwrap_or_default();
                return None;
            }
            _ => {}
        }
        let mut wave = self.inner.wave(WaveNo(1))?;
        wave.writes.append(&mut self.kept.writes);
        if self.bug == Bug::OldBitmapForgotten {
            self.keep(&mut wave, Part::Bitmap);
            self.kept.writes.clear();
        }
        Some(self.tampered(wave))
    }

    /// Remembers whose bitmaps a first wave holds: a new home's entry is sure to follow.
    fn tell(&mut self, wave: &Wave) {
        let told = |(_, slot): &(&u32, &u64)| wave.writes.iter().any(|(at, _)| at.get() == **slot);
        self.told = self.slots.iter().filter(told).map(|(block, slot)| (*block, *slot)).collect();
    }

    /// Takes writes of a kind out of a wave.
    fn keep(&mut self, wave: &mut Wave, part: Part) {
        let Some(places) = &self.places else { return };
        let is_kept = |write: &mut (FileOffset, Vec<u8>)| places.part(write.0, &write.1) == part;
        self.kept.writes.extend(wave.writes.extract_if(.., is_kept));
    }

    fn tampered(&self, mut wave: Wave) -> Wave {
        let Some(places) = &self.places else { return wave };
        for (at, bytes) in &mut wave.writes {
            match places.part(*at, bytes) {
                Part::Table => self.tamper_table(places, *at, bytes),
                Part::Bitmap => {
                    self.tamper_bitmap(places, *at, bytes);
                    self.shift(at);
                }
                Part::Footer => {}
            }
        }
        wave
    }

    fn tamper_table(&self, places: &Places, at: FileOffset, bytes: &mut [u8]) {
        let first = ((at.get() - places.table) / 4) as u32;
        for (block, entry) in (first..).zip(bytes.chunks_exact_mut(4)) {
            let raw = u32::from_be_bytes([entry[0], entry[1], entry[2], entry[3]]);
            let mut slot = FileOffset::new(u64::from(raw) * 512);
            self.shift(&mut slot);
            let mut new = if raw == u32::MAX { raw } else { (slot.get() / 512) as u32 };
            let here = self.slots.get(&block);
            if let Some(slot) = self.stale.get(&block).filter(|_| raw == u32::MAX) {
                new = (slot / 512) as u32;
            }
            match (self.bug, here) {
                (Bug::LiveTable, Some(slot)) if raw == u32::MAX && self.was_placed(block) => {
                    new = (slot / 512) as u32;
                }
                (Bug::NeighbourEntryLost, _) if block % 2 == 0 => new = u32::MAX,
                _ => {}
            }
            entry.copy_from_slice(&new.to_be_bytes());
        }
    }

    fn was_placed(&self, block: u32) -> bool {
        self.fresh.contains(&block)
    }

    fn tamper_bitmap(&self, places: &Places, at: FileOffset, bits: &mut [u8]) {
        match self.bug {
            Bug::BitmapMirrored => bits.iter_mut().for_each(|byte| *byte = byte.reverse_bits()),
            Bug::BitmapShifted => {
                let mut carry = 0;
                for byte in bits {
                    let next = *byte << 7;
                    *byte = *byte >> 1 | carry;
                    carry = next;
                }
            }
            Bug::LastSectorForgotten => {
                let last = places.geometry.disk_size().get() / 512 - 1;
                self.clear_bit(places, at, last, bits);
            }
            Bug::TrimShowsParent => {
                self.cleared.iter().for_each(|sector| self.clear_bit(places, at, *sector, bits));
            }
            Bug::LiveBitmap => {
                let mine = |placed: &&Placed| places.slot_of(placed) == at.get();
                for placed in self.landed.iter().filter(mine) {
                    for sector in places.sectors(placed.extent) {
                        bits[sector as usize / 8] |= 0x80 >> (sector % 8);
                    }
                }
            }
            _ => {}
        }
    }

    /// Clears the bit of a sector of the disk if the bitmap at `at` is its block's.
    fn clear_bit(&self, places: &Places, at: FileOffset, sector: u64, bits: &mut [u8]) {
        let per_block = places.geometry.block_bytes().get() / 512;
        let (block, bit) = ((sector / per_block) as u32, sector % per_block);
        if self.slots.get(&block) == Some(&at.get()) {
            bits[bit as usize / 8] &= !(0x80 >> (bit % 8));
        }
    }

    /// Lets every footer say the new size.
    fn tell_size(&self, changes: &mut [FileChange]) {
        for change in changes {
            let FileChange::Write(_, bytes) = change else { continue };
            if let Ok(footer) = vhd::Footer::parse(bytes) {
                let current_size = vhd::ByteLen::new(self.wanted.get());
                *bytes = vhd::Footer { current_size, ..footer }.to_bytes().to_vec();
            }
        }
    }

    fn disk_sectors(extent: Extent) -> std::ops::Range<u64> {
        extent.at.get() / 512..extent.end().get().div_ceil(512)
    }
}

impl Layer for BadLeaf {
    fn size(&self) -> ByteLen {
        self.inner.size()
    }

    fn locate(&mut self, wanted: Extent) -> Located {
        let mut wanted = wanted;
        if self.bug == Bug::TrimShowsParent && !self.cleared.is_empty() {
            let sector = wanted.at.get() / 512;
            let end = DiskOffset::new((sector + 1) * 512);
            wanted = wanted.first(ByteLen::new(end.get() - wanted.at.get()));
            if self.cleared.contains(&sector) {
                return Located::Below(wanted.len);
            }
        }
        match self.inner.locate(wanted) {
            Located::Here(mut at, len) => {
                self.shift(&mut at);
                Located::Here(at, len)
            }
            other => other,
        }
    }

    fn is_flat(&self) -> bool {
        self.inner.is_flat()
    }

    fn learn(&mut self, page: MetaPage, bytes: &[u8]) -> Result<(), Corrupt> {
        self.inner.learn(page, bytes)
    }
}

impl Leaf for BadLeaf {
    fn place(&mut self, wanted: Extent) -> Result<Placed, Blocked> {
        let mut placed = match self.inner.place(wanted) {
            Err(Blocked::Scrub { block, .. }) if self.bug == Bug::ScrubSkipped => {
                self.inner.scrubbed(block);
                self.inner.place(wanted)?
            }
            Err(Blocked::Cap { block, .. }) if self.omits_footers() => {
                self.inner.scrubbed(block);
                self.inner.place(wanted)?
            }
            other => other?,
        };
        let truth = placed;
        self.note(&mut placed);
        match self.bug {
            Bug::FuaWithoutCommit => placed.settled = true,
            Bug::LandsEarly => self.inner.landed(&truth),
            Bug::TrimShowsParent => {
                Self::disk_sectors(placed.extent).for_each(|sector| {
                    self.cleared.remove(&sector);
                });
            }
            _ => {}
        }
        Ok(placed)
    }

    fn hollow(&mut self, wanted: Extent) -> Result<Hollow, Blocked> {
        if self.bug == Bug::HollowForgotten {
            return Ok(Hollow::Already(wanted.len));
        }
        let hollow = self.inner.hollow(wanted);
        let hollow = match hollow {
            Err(Blocked::Scrub { block, .. }) if self.bug == Bug::ScrubSkipped => {
                self.inner.scrubbed(block);
                self.inner.hollow(wanted)?
            }
            Err(Blocked::Cap { block, .. }) if self.omits_footers() => {
                self.inner.scrubbed(block);
                self.inner.hollow(wanted)?
            }
            other => other?,
        };
        Ok(match hollow {
            Hollow::Punch(mut placed) | Hollow::Silent(mut placed) => {
                let truth = placed;
                self.note(&mut placed);
                if self.bug == Bug::LandsEarly {
                    self.inner.landed(&truth);
                }
                if self.bug == Bug::TrimShowsParent {
                    self.cleared.extend(Self::disk_sectors(placed.extent));
                }
                match hollow {
                    Hollow::Silent(_) => Hollow::Silent(placed),
                    _ => Hollow::Punch(placed),
                }
            }
            already => already,
        })
    }

    fn landed(&mut self, placed: &Placed) {
        self.landed.push(*placed);
        if placed.token.note == PlaceNote::Release
            && let Some(places) = &self.places
        {
            self.freed = Some(places.slot_of(placed));
        }
        if self.bug != Bug::LandsEarly {
            self.inner.landed(placed);
        }
    }

    fn failed(&mut self, placed: &Placed) {
        match self.bug {
            Bug::FailedWriteLands => self.inner.landed(placed),
            Bug::LandsEarly => {}
            _ => self.inner.failed(placed),
        }
    }

    fn scrubbed(&mut self, block: u32) {
        self.inner.scrubbed(block);
    }

    fn scrub_failed(&mut self, block: u32) {
        self.inner.scrub_failed(block);
    }

    fn dirty(&self) -> bool {
        self.inner.dirty()
    }

    fn wave(&mut self, n: WaveNo) -> Option<Wave> {
        match n.0 {
            0 => self.first_wave(),
            1 => self.second_wave(),
            _ => None,
        }
    }

    fn settled(&mut self) {
        self.stale.retain(|block, _| !self.told.contains_key(block));
        self.inner.settled();
    }

    fn abandoned(&mut self) {
        self.stale.append(&mut self.told);
        if self.bug == Bug::FailedCommitSettles {
            self.inner.settled();
        } else {
            self.inner.abandoned();
        }
    }

    fn begin_resize(&mut self, size: ByteLen) -> Result<(), String> {
        self.wanted = size;
        self.footer_moved = false;
        self.inner.begin_resize(size)
    }

    fn resize_step(&mut self, read: Option<Vec<u8>>) -> Result<ResizeStep, FaultKind> {
        let step = self.inner.resize_step(read)?;
        let ResizeStep::Change { mut changes, mut sync } = step else { return Ok(step) };
        let is_footer =
            |c: &FileChange| matches!(c, FileChange::Write(_, b) if b.starts_with(b"conectix"));
        self.footer_moved |= changes.iter().any(is_footer);
        match self.bug {
            Bug::ResizeNotSynced => sync = false,
            Bug::ResizeStaleShown => changes.retain(|c| !matches!(c, FileChange::Punch(..))),
            Bug::ResizeOnlyInFront => {
                changes.retain(|c| !matches!(c, FileChange::Write(at, _) if at.get() > 0));
            }
            Bug::ResizeTooSoon => self.tell_size(&mut changes),
            // Such a step is a barrier behind entries, or behind the new table.
            Bug::MoveNotSynced if changes.is_empty() => sync = false,
            Bug::MoveCopiesNothing if !sync && !self.footer_moved => changes.clear(),
            _ => {}
        }
        Ok(ResizeStep::Change { changes, sync })
    }

    fn undo_resize(&mut self) -> Vec<FileChange> {
        self.inner.undo_resize()
    }
}

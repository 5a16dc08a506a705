//! A larger block allocation table for a sparse VHD, while it is served. It goes behind all other
//! metadata, where blocks lie so far, so these move to the end of the file first:
//!
//! 1. copies of the blocks, and a footer behind them; barrier
//! 2. their entries in the old table; barrier: their old homes are free
//! 3. the new table, over these homes; barrier
//! 4. the first sector of the dynamic header, which says where the table is and how large, and
//!    holds the checksum of both of its sectors; barrier
//!
//! Blocks stay behind all metadata, as every program expects. The old table's place stays unused.

use std::collections::BTreeMap;

use vhd::bat::{BatEntry, ENTRIES_PER_SECTOR};
use vhd::header::{HEADER_BYTES, with_table};
use vhd::{BlockIndex, FileOffset as VhdOffset, Geometry, Limits, SectorNo};

use super::leaf::VhdLeaf;
use super::table::Table;
use super::tail::Backing;
use super::{file_at, len_of};
use crate::engine::layer::{FileChange, ResizeStep};
use crate::engine::request::FaultKind;
use crate::engine::units::{ByteLen, FileOffset};

/// Bytes of a block copied in one step.
const COPY_BYTES: u64 = 1 << 20;
/// Bytes of the table handled in one step.
const TABLE_BYTES: u64 = 64 << 10;
const SECTOR: u64 = 512;

/// A table on its way to a new place.
pub(super) struct Move {
    at: VhdOffset,
    bytes: u64,
    geometry: Geometry,
    stage: Stage,
    /// Blocks that must go: which, from where, to where.
    homes: Vec<(BlockIndex, SectorNo, SectorNo)>,
    /// Their entries, by sector of the old table.
    sectors: BTreeMap<u32, Vec<(usize, SectorNo)>>,
    /// Behind the last copy.
    end: VhdOffset,
    /// The way back from the last step.
    pub(super) undo: Vec<FileChange>,
}

/// What comes next. Stages named in the past have asked for bytes.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Scan(u64),
    Scanned(u64),
    Copy(usize, u64),
    Copied(usize, u64),
    NewEnd,
    Ended,
    Entries(u32),
    Entered(u32),
    Table(u64),
    Tabled(u64),
    Header,
    Switch,
    Done,
}

impl Move {
    /// A move of the table that gives it room for a disk of `size` bytes; `metadata_end` is behind
    /// all metadata there is.
    ///
    /// # Errors
    /// Why no table can.
    pub(super) fn new(
        old: &Geometry,
        size: vhd::ByteLen,
        metadata_end: VhdOffset,
    ) -> Result<Self, String> {
        let limits = Limits::default();
        let block = old.block_bytes();
        let most = (limits.max_table_bytes.get() / 4).min(u64::from(u32::MAX));
        let reach = most * block.get();
        let refusal = || {
            format!(
                "blocks of {block} bytes allow a disk of {reach} bytes at most, not {size}; copy \
                 the disk into an image of larger blocks"
            )
        };
        let needed = Geometry::blocks_for(size, block).ok_or_else(refusal)?;
        let whole = Geometry::blocks_for(limits.max_sparse_bytes, block).unwrap_or(u32::MAX);
        // Twice as large as before, so that a disk that grows often moves its table seldom.
        let entries = needed.max(old.entries().saturating_mul(2).min(whole));
        let entries = entries.min(u32::try_from(most).unwrap_or(u32::MAX));
        let geometry = Geometry::new(size, block, entries).ok_or_else(refusal)?;
        let bytes = (u64::from(entries) * 4).next_multiple_of(SECTOR);
        let at = metadata_end.round_up(SECTOR).ok_or_else(refusal)?;
        Ok(Self {
            at,
            bytes,
            geometry,
            stage: Stage::Scan(0),
            homes: Vec::new(),
            sectors: BTreeMap::new(),
            end: VhdOffset::new(at.get() + bytes),
            undo: Vec::new(),
        })
    }

    /// Sizes of the image once it has grown.
    pub(super) const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Whether a block at `slot` lies where the table goes.
    fn meets(&self, geometry: &Geometry, slot: SectorNo) -> bool {
        let end = VhdOffset::new(self.at.get() + self.bytes);
        slot.offset() < end && geometry.slot_end(slot) > self.at
    }
}

impl VhdLeaf {
    /// The next step of a move; `None`: the table is in its new place.
    ///
    /// # Errors
    /// When the image has no room for the blocks, or was changed by somebody else.
    pub(super) fn move_on(
        &mut self,
        going: &mut Move,
        read: &mut Option<Vec<u8>>,
    ) -> Result<Option<ResizeStep>, FaultKind> {
        loop {
            let mut bytes = || read.take().ok_or_else(|| corrupt("bytes asked for did not come"));
            let step = match going.stage {
                Stage::Scan(done) => self.scan(going, done)?,
                Stage::Scanned(done) => self.scanned(going, done, &bytes()?),
                Stage::Copy(index, done) => self.copy(going, index, done),
                Stage::Copied(index, done) => self.copied(going, index, done, bytes()?),
                Stage::NewEnd => Some(self.new_end(going)),
                Stage::Ended => {
                    self.ended(going);
                    None
                }
                Stage::Entries(from) => self.entries(going, from),
                Stage::Entered(sector) => Some(self.entered(going, sector, &bytes()?)),
                Stage::Table(done) => Some(self.table(going, done)),
                Stage::Tabled(done) => Some(self.tabled(going, done, bytes()?)),
                Stage::Header => {
                    going.stage = Stage::Switch;
                    let at = self.header_at()?;
                    Some(ResizeStep::Read(at, ByteLen::new(HEADER_BYTES as u64)))
                }
                Stage::Switch => Some(self.switch(going, &bytes()?)?),
                Stage::Done => {
                    going.undo.clear();
                    self.table_moved(going);
                    return Ok(None);
                }
            };
            if step.is_some() {
                return Ok(step);
            }
        }
    }

    fn old_table(&self, done: u64) -> FileOffset {
        file_at(self.layer.table.at()) + ByteLen::new(done)
    }

    fn scan(&self, going: &mut Move, done: u64) -> Result<Option<ResizeStep>, FaultKind> {
        let len = (self.layer.table.bytes().get() - done).min(TABLE_BYTES);
        if len > 0 {
            going.stage = Stage::Scanned(done);
            return Ok(Some(ResizeStep::Read(self.old_table(done), ByteLen::new(len))));
        }
        self.find_homes(going)?;
        going.stage = Stage::Copy(0, 0);
        Ok(None)
    }

    fn scanned(&self, going: &mut Move, done: u64, bytes: &[u8]) -> Option<ResizeStep> {
        let geometry = &self.layer.geometry;
        for (block, entry) in ((done / 4) as u32..geometry.entries()).zip(bytes.chunks_exact(4)) {
            let raw = u32::from_be_bytes([entry[0], entry[1], entry[2], entry[3]]);
            if let BatEntry::At(slot) = BatEntry::from_raw(raw)
                && going.meets(geometry, slot)
            {
                going.homes.push((BlockIndex::new(block), slot, slot));
            }
        }
        going.stage = Stage::Scan(done + bytes.len() as u64);
        None
    }

    /// New homes at the end for the blocks that must go.
    fn find_homes(&self, going: &mut Move) -> Result<(), FaultKind> {
        let geometry = &self.layer.geometry;
        let tail = match self.tail.backing {
            // W3: not over the footer.
            Backing::File => self.tail.end().get().max(self.tail.footer_at().get()) + SECTOR,
            Backing::Device => self.tail.end().get(),
        };
        going.end = going.end.max(VhdOffset::new(tail));
        let full = "no room for a larger allocation table and the blocks that lie in its way";
        for (block, _, home) in &mut going.homes {
            let slot = geometry.next_slot(going.end).ok_or(FaultKind::NoSpace(full))?;
            *home = slot;
            going.end = geometry.slot_end(slot);
            let sector = Table::sector_of(*block);
            let index = (block.get() % ENTRIES_PER_SECTOR) as usize;
            going.sectors.entry(sector).or_default().push((index, slot));
        }
        if self.tail.backing == Backing::Device && going.end > self.tail.footer_at() {
            return Err(FaultKind::NoSpace(full));
        }
        if self.tail.backing == Backing::File {
            // What the copies leave behind must be gone: new blocks are clean (W7).
            let end = self.tail.footer_at().get() + SECTOR;
            going.undo = vec![FileChange::SetLength(ByteLen::new(end))];
        }
        Ok(())
    }

    fn copy(&self, going: &mut Move, index: usize, done: u64) -> Option<ResizeStep> {
        let Some((_, from, _)) = going.homes.get(index) else {
            going.stage = Stage::NewEnd;
            return None;
        };
        let len = (self.layer.geometry.slot_bytes().get() - done).min(COPY_BYTES);
        if len == 0 {
            going.stage = Stage::Copy(index + 1, 0);
            return None;
        }
        going.stage = Stage::Copied(index, done);
        let at = file_at(from.offset()) + ByteLen::new(done);
        Some(ResizeStep::Read(at, ByteLen::new(len)))
    }

    fn copied(
        &self,
        going: &mut Move,
        index: usize,
        done: u64,
        bytes: Vec<u8>,
    ) -> Option<ResizeStep> {
        going.stage = Stage::Copy(index, done + bytes.len() as u64);
        // Behind the end of a file there are zeroes already, and they take no space.
        if self.tail.backing == Backing::File && bytes.iter().all(|byte| *byte == 0) {
            return None;
        }
        let (_, _, to) = going.homes[index];
        let at = file_at(to.offset()) + ByteLen::new(done);
        Some(change(vec![FileChange::Write(at, bytes)], false))
    }

    /// I2: the footer covers the copies before an entry leads to them. It still says the old size.
    fn new_end(&self, going: &mut Move) -> ResizeStep {
        going.stage = Stage::Ended;
        match self.tail.backing {
            Backing::File => {
                let footer = self.grower.footer.to_bytes().to_vec();
                change(vec![FileChange::Write(file_at(going.end), footer)], true)
            }
            Backing::Device => change(Vec::new(), true),
        }
    }

    fn ended(&mut self, going: &mut Move) {
        going.undo.clear();
        self.tail.reach(going.end);
        going.stage = Stage::Entries(0);
    }

    fn entries(&mut self, going: &mut Move, from: u32) -> Option<ResizeStep> {
        let next = going.sectors.range(from..).next().map(|(sector, _)| *sector);
        if let Some(sector) = next {
            going.stage = Stage::Entered(sector);
            let at = self.old_table(u64::from(sector) * SECTOR);
            return Some(ResizeStep::Read(at, ByteLen::new(SECTOR)));
        }
        going.stage = Stage::Table(0);
        if going.sectors.is_empty() { None } else { Some(change(Vec::new(), true)) }
    }

    fn entered(&self, going: &mut Move, sector: u32, bytes: &[u8]) -> ResizeStep {
        let at = self.old_table(u64::from(sector) * SECTOR);
        going.undo.push(FileChange::Write(at, bytes.to_vec()));
        let mut bytes = bytes.to_vec();
        for (index, slot) in &going.sectors[&sector] {
            bytes[index * 4..index * 4 + 4].copy_from_slice(&BatEntry::At(*slot).to_bytes());
        }
        going.stage = Stage::Entries(sector + 1);
        change(vec![FileChange::Write(at, bytes)], false)
    }

    fn table(&mut self, going: &mut Move, done: u64) -> ResizeStep {
        if done == 0 {
            // Nothing durable names the old homes any more. There is no way back, and none needed.
            going.undo.clear();
            let geometry = self.layer.geometry;
            self.tail.forget_free(|slot| going.meets(&geometry, slot));
        }
        let left = going.bytes - done;
        if left == 0 {
            going.stage = Stage::Header;
            return change(Vec::new(), true);
        }
        let known = self.layer.table.bytes().get().saturating_sub(done);
        if known == 0 {
            let len = left.min(TABLE_BYTES);
            going.stage = Stage::Table(done + len);
            let at = file_at(going.at) + ByteLen::new(done);
            return change(vec![FileChange::Write(at, vec![0xFF; len as usize])], false);
        }
        going.stage = Stage::Tabled(done);
        ResizeStep::Read(self.old_table(done), ByteLen::new(known.min(left).min(TABLE_BYTES)))
    }

    fn tabled(&self, going: &mut Move, done: u64, bytes: Vec<u8>) -> ResizeStep {
        let mut bytes = bytes;
        // What pads the old table may be anything; here it would be entries.
        let entries = u64::from(self.layer.geometry.entries()) * 4;
        let sound = entries.saturating_sub(done).min(bytes.len() as u64) as usize;
        bytes[sound..].fill(0xFF);
        going.stage = Stage::Table(done + bytes.len() as u64);
        let at = file_at(going.at) + ByteLen::new(done);
        change(vec![FileChange::Write(at, bytes)], false)
    }

    fn header_at(&self) -> Result<FileOffset, FaultKind> {
        self.grower.footer.data_offset.map(file_at).ok_or_else(|| corrupt("no dynamic header"))
    }

    fn switch(&self, going: &mut Move, bytes: &[u8]) -> Result<ResizeStep, FaultKind> {
        let at = self.header_at()?;
        let new = with_table(bytes, going.at, going.geometry.entries())
            .map_err(|error| corrupt(&format!("the dynamic header at {at}: {error}")))?;
        let old = bytes[..SECTOR as usize].to_vec();
        going.undo = vec![FileChange::Write(at, old)];
        going.stage = Stage::Done;
        Ok(change(vec![FileChange::Write(at, new.to_vec())], true))
    }

    /// The new table is the one that counts; the disk still has its old size.
    fn table_moved(&mut self, going: &Move) {
        let old = self.layer.geometry;
        let entries = going.geometry.entries();
        self.layer.table = Table::new(going.at, vhd::ByteLen::new(going.bytes));
        self.layer.first = VhdOffset::new(going.at.get() + going.bytes);
        let sizes = Geometry::new(old.disk_size(), old.block_bytes(), entries);
        self.layer.geometry = sizes.unwrap_or(old);
        debug_assert!(len_of(self.layer.geometry.disk_size()) == len_of(old.disk_size()));
    }
}

fn change(changes: Vec<FileChange>, sync: bool) -> ResizeStep {
    ResizeStep::Change { changes, sync }
}

fn corrupt(why: &str) -> FaultKind {
    FaultKind::Corrupt(why.to_owned())
}

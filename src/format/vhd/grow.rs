//! A sparse VHD grows: what lies behind its old end becomes nothing, then the footer at the end and
//! after it the copy in front say the new size. Where the copies differ the one at the end counts,
//! so its sector is the moment at which the disk has grown.
//!
//! Where the table has too few entries, a larger one takes its place before (`relocate`).
//!
//! Refuses more bytes than the format allows.

use vhd::bat::{BatEntry, ENTRIES_PER_SECTOR};
use vhd::footer::CREATOR_TAPDISK;
use vhd::{BlockIndex, Chs, Footer, Geometry, Image, Limits, SectorNo};

use super::bitmaps::Bitmaps;
use super::leaf::VhdLeaf;
use super::relocate::Move;
use super::table::Table;
use super::{file_at, len_of};
use crate::engine::layer::{FileChange, ResizeStep};
use crate::engine::request::FaultKind;
use crate::engine::units::{ByteLen, FileOffset};

/// Sectors of the table looked at in one step: 64 KiB.
const STEP_SECTORS: u32 = 128;

/// What a growth must know of an image beyond what serving it takes.
pub(super) struct Grower {
    pub(super) footer: Footer,
    growth: Option<Growth>,
}

impl Grower {
    pub(super) fn new(image: &Image) -> Self {
        Self { footer: image.footer, growth: None }
    }
}

/// A growth on its way.
struct Growth {
    geometry: Geometry,
    footer: Footer,
    stage: Stage,
    /// The table's way to another place, until it is there.
    going: Option<Box<Move>>,
    /// Where the block lies in which the disk ends.
    last: Option<SectorNo>,
    /// Entries behind the disk were cleared.
    cleared: bool,
    undo: Vec<FileChange>,
}

/// What the next step is.
#[derive(Clone, Copy)]
enum Stage {
    /// Look at the entries that come into use, from this sector of the table on.
    Look(u32),
    /// So many sectors from this one on were asked for.
    Looked(u32, u32),
    Scrub,
    Move,
    Tail,
    Front,
    Finish,
}

impl VhdLeaf {
    pub(super) fn begin_growth(&mut self, size: ByteLen) -> Result<(), String> {
        let most = Limits::default().max_sparse_bytes;
        let size = vhd::ByteLen::new(size.get());
        if size > most {
            return Err(format!("a dynamic VHD of {size} bytes; the most is {most} (2040 GiB)"));
        }
        let old = self.layer.geometry;
        let (geometry, going) = match Geometry::new(size, old.block_bytes(), old.entries()) {
            Some(geometry) => (geometry, None),
            None => {
                let going = self.larger_table(size)?;
                (going.geometry(), Some(Box::new(going)))
            }
        };
        let footer =
            Footer { current_size: size, geometry: Chs::for_size(size), ..self.grower.footer };
        let first = Table::sector_of(BlockIndex::new(old.blocks() - 1));
        self.grower.growth = Some(Growth {
            geometry,
            footer,
            stage: Stage::Look(first),
            going,
            last: None,
            cleared: false,
            undo: Vec::new(),
        });
        Ok(())
    }

    fn larger_table(&self, size: vhd::ByteLen) -> Result<Move, String> {
        let old = &self.layer.geometry;
        if self.grower.footer.creator.app == CREATOR_TAPDISK {
            let reach = u64::from(old.entries()) * old.block_bytes().get();
            return Err(format!(
                "its allocation table has {} entries, enough for {reach} bytes and not for {size}; \
                 other parts of the image are found by the table's place, so that one of \
                 XenServer's must be moved by XenServer's own tools, offline",
                old.entries()
            ));
        }
        Move::new(old, size, self.layer.first)
    }

    pub(super) fn grow_on(&mut self, read: Option<Vec<u8>>) -> Result<ResizeStep, FaultKind> {
        let Some(mut growth) = self.grower.growth.take() else { return Ok(ResizeStep::Done) };
        let step = self.next_growth(&mut growth, read);
        if step != Ok(ResizeStep::Done) {
            self.grower.growth = Some(growth);
        }
        step
    }

    fn next_growth(
        &mut self,
        growth: &mut Growth,
        read: Option<Vec<u8>>,
    ) -> Result<ResizeStep, FaultKind> {
        let mut read = read;
        loop {
            match growth.stage {
                Stage::Look(first) => return Ok(self.look(growth, first)),
                Stage::Looked(first, count) => {
                    let bytes = read.take().unwrap_or_default();
                    if let Some(step) = self.looked(growth, (first, count), bytes)? {
                        return Ok(step);
                    }
                }
                Stage::Scrub => {
                    growth.stage = Stage::Move;
                    if let Some(step) = self.scrub_end(growth) {
                        return Ok(step);
                    }
                }
                Stage::Move => {
                    if let Some(going) = &mut growth.going {
                        let step = self.move_on(going, &mut read);
                        growth.undo.clone_from(&going.undo);
                        if let Some(step) = step? {
                            return Ok(step);
                        }
                    }
                    growth.going = None;
                    growth.stage = Stage::Tail;
                }
                Stage::Tail => {
                    growth.stage = Stage::Front;
                    let at = file_at(self.tail.footer_at());
                    let old = self.grower.footer.to_bytes().to_vec();
                    let front = FileOffset::new(0);
                    growth.undo = [at, front].map(|at| FileChange::Write(at, old.clone())).to_vec();
                    return Ok(footer_to(at, &growth.footer));
                }
                Stage::Front => {
                    growth.stage = Stage::Finish;
                    return Ok(footer_to(FileOffset::new(0), &growth.footer));
                }
                Stage::Finish => {
                    self.layer.geometry = growth.geometry;
                    self.grower.footer = growth.footer;
                    self.tail.replace_footer(growth.footer.to_bytes().to_vec());
                    self.forget();
                    return Ok(ResizeStep::Done);
                }
            }
        }
    }

    pub(super) fn undo_growth(&mut self) -> Vec<FileChange> {
        self.forget();
        self.grower.growth.take().map(|growth| growth.undo).unwrap_or_default()
    }

    /// Drops what was learnt of the metadata: it was changed behind the caches' back, or means
    /// something else. Everything is committed; homes that were reserved for writes that failed
    /// stay unused.
    fn forget(&mut self) {
        let table = &self.layer.table;
        self.layer.table = Table::new(table.at(), table.bytes());
        self.layer.bitmaps = Bitmaps::default();
        self.layer.asked.clear();
        self.fresh.clear();
        self.layer.end = self.layer.end.max(self.tail.end());
    }

    fn look(&self, growth: &mut Growth, first: u32) -> ResizeStep {
        let count = (self.last_sector(growth) - first + 1).min(STEP_SECTORS);
        growth.stage = Stage::Looked(first, count);
        let at = file_at(self.layer.table.at()) + ByteLen::new(u64::from(first) * 512);
        ResizeStep::Read(at, ByteLen::new(u64::from(count) * 512))
    }

    /// The last sector of the table with entries that come into use.
    fn last_sector(&self, growth: &Growth) -> u32 {
        let blocks = growth.geometry.blocks().min(self.layer.geometry.entries());
        Table::sector_of(BlockIndex::new(blocks - 1))
    }

    /// Notes where the last block lies, and clears entries of blocks that no disk has shown: a
    /// larger disk was cut once, and new space must read as zeroes.
    fn looked(
        &self,
        growth: &mut Growth,
        (first, count): (u32, u32),
        bytes: Vec<u8>,
    ) -> Result<Option<ResizeStep>, FaultKind> {
        if bytes.len() != count as usize * 512 {
            let found = bytes.len();
            return Err(FaultKind::Corrupt(format!("{found} bytes of {count} sectors of a table")));
        }
        let blocks = self.layer.geometry.blocks();
        let mut bytes = bytes;
        let mut cleared = false;
        for (block, entry) in (first * ENTRIES_PER_SECTOR..).zip(bytes.chunks_exact_mut(4)) {
            let raw = u32::from_be_bytes([entry[0], entry[1], entry[2], entry[3]]);
            match BatEntry::from_raw(raw) {
                BatEntry::At(slot) if block + 1 == blocks => growth.last = Some(slot),
                BatEntry::At(_) if block >= blocks && block < growth.geometry.blocks() => {
                    entry.copy_from_slice(&BatEntry::Unallocated.to_bytes());
                    cleared = true;
                }
                _ => {}
            }
        }
        let next = first + count;
        let end = self.last_sector(growth);
        growth.stage = if next <= end { Stage::Look(next) } else { Stage::Scrub };
        if !cleared {
            return Ok((next <= end).then(|| self.look(growth, next)));
        }
        growth.cleared = true;
        let at = file_at(self.layer.table.at()) + ByteLen::new(u64::from(first) * 512);
        let changes = vec![FileChange::Write(at, bytes)];
        Ok(Some(ResizeStep::Change { changes, sync: false }))
    }

    /// W7: the rest of the last block was no part of any disk, so it may hold anything, and its
    /// bits may say anything.
    fn scrub_end(&self, growth: &Growth) -> Option<ResizeStep> {
        let geometry = &self.layer.geometry;
        let used = geometry.within(vhd::DiskOffset::new(geometry.disk_size().get()));
        let mut changes = Vec::new();
        if let Some(slot) = growth.last.filter(|_| used > 0) {
            let at = file_at(geometry.data_at(slot)) + ByteLen::new(used);
            let rest = len_of(geometry.block_bytes()) - ByteLen::new(used);
            changes.push(FileChange::Punch(at, rest));
        }
        (growth.cleared || !changes.is_empty())
            .then_some(ResizeStep::Change { changes, sync: true })
    }
}

fn footer_to(at: FileOffset, footer: &Footer) -> ResizeStep {
    let changes = vec![FileChange::Write(at, footer.to_bytes().to_vec())];
    ResizeStep::Change { changes, sync: true }
}

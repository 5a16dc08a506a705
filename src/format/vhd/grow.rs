//! A sparse VHD grows: what lies behind its old end becomes nothing, then the footer at the end and
//! after it the copy in front say the new size. Where the copies differ the one at the end counts,
//! so its sector is the moment at which the disk has grown.
//!
//! Refuses more blocks than the table has entries for, and more bytes than the format allows.

use vhd::bat::{BatEntry, ENTRIES_PER_SECTOR};
use vhd::{BlockIndex, Chs, DynamicHeader, Footer, Geometry, Image, Limits, SectorNo, Sparse};

use super::bitmaps::Bitmaps;
use super::leaf::VhdLeaf;
use super::table::Table;
use super::{file_at, len_of};
use crate::engine::layer::{Corrupt, FileChange, ResizeStep};
use crate::engine::units::{ByteLen, FileOffset};

/// Sectors of the table looked at in one step: 64 KiB.
const STEP_SECTORS: u32 = 128;

/// What a growth must know of an image beyond what serving it takes.
pub(super) struct Grower {
    pub(super) footer: Footer,
    pub(super) header: DynamicHeader,
    growth: Option<Growth>,
}

impl Grower {
    pub(super) fn new(image: &Image, sparse: &Sparse) -> Self {
        Self { footer: image.footer, header: sparse.header.clone(), growth: None }
    }
}

/// A growth on its way.
struct Growth {
    geometry: Geometry,
    footer: Footer,
    stage: Stage,
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
        let block = old.block_bytes();
        let reach = (u64::from(old.entries()) * block.get()).min(most.get());
        let Some(geometry) = Geometry::new(size, block, old.entries()) else {
            return Err(format!(
                "the allocation table has {} entries for blocks of {block} bytes, so the disk can \
                 have {reach} bytes at most and not {size}; the table would have to be moved, \
                 which must be done offline",
                old.entries()
            ));
        };
        let footer =
            Footer { current_size: size, geometry: Chs::for_size(size), ..self.grower.footer };
        let first = Table::sector_of(BlockIndex::new(old.blocks() - 1));
        self.grower.growth = Some(Growth {
            geometry,
            footer,
            stage: Stage::Look(first),
            last: None,
            cleared: false,
            undo: Vec::new(),
        });
        Ok(())
    }

    pub(super) fn grow_on(&mut self, read: Option<Vec<u8>>) -> Result<ResizeStep, Corrupt> {
        let Some(mut growth) = self.grower.growth.take() else { return Ok(ResizeStep::Done) };
        let step = loop {
            match growth.stage {
                Stage::Look(first) => break self.look(&mut growth, first),
                Stage::Looked(first, count) => {
                    let bytes = read.as_deref().unwrap_or_default();
                    if let Some(step) = self.looked(&mut growth, (first, count), bytes)? {
                        break step;
                    }
                }
                Stage::Scrub => {
                    growth.stage = Stage::Tail;
                    if let Some(step) = self.scrub_end(&growth) {
                        break step;
                    }
                }
                Stage::Tail => {
                    growth.stage = Stage::Front;
                    let at = file_at(self.tail.footer_at());
                    let old = self.grower.footer.to_bytes().to_vec();
                    let front = FileOffset::new(0);
                    growth.undo = [at, front].map(|at| FileChange::Write(at, old.clone())).to_vec();
                    break footer_to(at, &growth.footer);
                }
                Stage::Front => {
                    growth.stage = Stage::Finish;
                    break footer_to(FileOffset::new(0), &growth.footer);
                }
                Stage::Finish => {
                    self.layer.geometry = growth.geometry;
                    self.grower.footer = growth.footer;
                    self.tail.replace_footer(growth.footer.to_bytes().to_vec());
                    self.forget();
                    return Ok(ResizeStep::Done);
                }
            }
        };
        self.grower.growth = Some(growth);
        Ok(step)
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
        let last = BlockIndex::new(growth.geometry.blocks() - 1);
        let count = (Table::sector_of(last) - first + 1).min(STEP_SECTORS);
        growth.stage = Stage::Looked(first, count);
        let at = file_at(self.layer.table.at()) + ByteLen::new(u64::from(first) * 512);
        ResizeStep::Read(at, ByteLen::new(u64::from(count) * 512))
    }

    /// Notes where the last block lies, and clears entries of blocks that no disk has shown: a
    /// larger disk was cut once, and new space must read as zeroes.
    fn looked(
        &self,
        growth: &mut Growth,
        (first, count): (u32, u32),
        bytes: &[u8],
    ) -> Result<Option<ResizeStep>, Corrupt> {
        if bytes.len() != count as usize * 512 {
            let found = bytes.len();
            return Err(Corrupt(format!("{found} bytes of {count} sectors of the table")));
        }
        let blocks = self.layer.geometry.blocks();
        let mut bytes = bytes.to_vec();
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
        let end = Table::sector_of(BlockIndex::new(growth.geometry.blocks() - 1));
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

//! A dynamic or differencing VHD that is read: entries and bitmaps turned into places.

use std::collections::BTreeMap;

use vhd::bat::BatEntry;
use vhd::footer::DiskKind;
use vhd::{BlockIndex, FileOffset as VhdOffset, Geometry, Image, SectorNo, Sparse, bitmap};

use super::bitmaps::Bitmaps;
use super::table::{BlockState, Table};
use super::{disk_at, file_at, len_of};
use crate::engine::layer::{Corrupt, Layer, Located, MetaPage};
use crate::engine::units::{ByteLen, Extent, FileOffset, SECTOR};

/// A sparse VHD as a layer.
pub struct VhdLayer {
    pub(super) geometry: Geometry,
    pub(super) differencing: bool,
    pub(super) table: Table,
    pub(super) bitmaps: Bitmaps,
    /// Bitmaps asked for: where they lie, and whose they are.
    pub(super) asked: BTreeMap<FileOffset, BlockIndex>,
    /// Blocks lie behind all metadata.
    pub(super) first: VhdOffset,
    /// Blocks end before this.
    pub(super) end: VhdOffset,
}

impl VhdLayer {
    /// The layer of an opened image; `sparse` is its body.
    pub fn new(image: &Image, sparse: &Sparse) -> Self {
        Self {
            geometry: sparse.geometry,
            differencing: image.footer.kind == DiskKind::Differencing,
            table: Table::new(sparse.table, sparse.table_bytes),
            bitmaps: Bitmaps::default(),
            asked: BTreeMap::new(),
            first: sparse.metadata_end,
            end: VhdOffset::new(image.file_len.get()),
        }
    }

    /// The bytes of `wanted` inside its first block, and that block.
    pub(super) fn in_block(&self, wanted: Extent) -> (BlockIndex, Extent) {
        let at = disk_at(wanted.at);
        let left = self.geometry.block_bytes().get() - self.geometry.within(at);
        (self.geometry.block_of(at), wanted.first(ByteLen::new(left)))
    }

    /// Where the first byte of an extent lies in the block at `slot`.
    pub(super) fn place_in(&self, slot: SectorNo, extent: Extent) -> FileOffset {
        let within = self.geometry.within(disk_at(extent.at));
        file_at(self.geometry.data_at(slot)) + ByteLen::new(within)
    }

    /// The page that holds the bitmap of the block at `slot`.
    pub(super) fn ask_bitmap(&mut self, block: BlockIndex, slot: SectorNo) -> MetaPage {
        let at = file_at(slot.offset());
        self.asked.insert(at, block);
        MetaPage { at, len: self.geometry.bitmap_bytes().get() as u32 }
    }

    /// Whether the first sectors of `part`, which lies in a block, are present, and for how many
    /// bytes that holds; `None` without the block's bitmap.
    pub(super) fn present(&mut self, block: BlockIndex, part: Extent) -> Option<(bool, ByteLen)> {
        let (first, count) = sectors_of(&self.geometry, part);
        let (present, sectors) = self.bitmaps.run(block, first, count)?;
        Some((present, bytes_until(&self.geometry, part, first + sectors)))
    }

    /// How far `wanted` runs over blocks that have no home.
    fn absent(&self, block: BlockIndex, wanted: Extent) -> ByteLen {
        let end = disk_at(wanted.end());
        let blocks = (end.get() - 1) / self.geometry.block_bytes().get() + 1;
        let most = (blocks - u64::from(block.get())).min(u64::from(u32::MAX)) as u32;
        let run = u64::from(self.table.absent_run(block, most).max(1));
        let end = (u64::from(block.get()) + run) * self.geometry.block_bytes().get();
        ByteLen::new(end - wanted.at.get()).min(wanted.len)
    }
}

impl Layer for VhdLayer {
    fn size(&self) -> ByteLen {
        len_of(self.geometry.disk_size())
    }

    fn locate(&mut self, wanted: Extent) -> Located {
        let (block, part) = self.in_block(wanted);
        let (entry, state) = match self.table.entry(block) {
            Ok(known) => known,
            Err(page) => return Located::Ask(page),
        };
        let BatEntry::At(slot) = entry else {
            return Located::Below(self.absent(block, wanted));
        };
        if state == BlockState::Full {
            return Located::Here(self.place_in(slot, part), part.len);
        }
        match self.present(block, part) {
            None => Located::Ask(self.ask_bitmap(block, slot)),
            Some((true, len)) => Located::Here(self.place_in(slot, part), len),
            Some((false, len)) => Located::Below(len),
        }
    }

    fn learn(&mut self, page: MetaPage, bytes: &[u8]) -> Result<(), Corrupt> {
        if bytes.len() != page.len as usize {
            return Err(Corrupt(format!("{} bytes read of a page of {}", bytes.len(), page.len)));
        }
        if self.table.owns(page) {
            let bounds = (self.first, self.end);
            let geometry = self.geometry;
            return self
                .table
                .load(page, bytes, |block, slot| check_slot(&geometry, bounds, block, slot));
        }
        let Some(block) = self.asked.remove(&page.at) else {
            return Err(Corrupt(format!("nobody asked for the page at {}", page.at)));
        };
        if bitmap::is_full(bytes, self.geometry.sectors_on_disk(block)) {
            self.table.mark_full(block);
        }
        self.bitmaps.insert(block, VhdOffset::new(page.at.get()), bytes.to_vec(), 0);
        Ok(())
    }
}

/// Whether the first sectors of `part` (inside one block) are present in `bits`, and for how many
/// bytes that holds.
pub(super) fn run(geometry: &Geometry, bits: &[u8], part: Extent) -> (bool, ByteLen) {
    let (first, count) = sectors_of(geometry, part);
    let (present, sectors) = bitmap::run(bits, first, first + count);
    (present, bytes_until(geometry, part, first + sectors))
}

/// The bytes of `part` before a sector of its block.
fn bytes_until(geometry: &Geometry, part: Extent, sector: u32) -> ByteLen {
    let within = geometry.within(disk_at(part.at));
    ByteLen::new(u64::from(sector) * SECTOR - within).min(part.len)
}

/// The sectors of its block that an extent touches: first and count.
pub(super) fn sectors_of(geometry: &Geometry, extent: Extent) -> (u32, u32) {
    let within = geometry.within(disk_at(extent.at));
    let first = within / SECTOR;
    let end = (within + extent.len.get()).div_ceil(SECTOR);
    (first as u32, (end - first) as u32)
}

fn check_slot(
    geometry: &Geometry,
    (first, last): (VhdOffset, VhdOffset),
    block: BlockIndex,
    slot: SectorNo,
) -> Result<(), Corrupt> {
    let (start, _) = geometry.slot_extent(slot);
    let end = geometry.slot_end(slot);
    if start >= first && end <= last {
        return Ok(());
    }
    Err(Corrupt(format!(
        "BAT entry {block} points at sector {slot}: its block {start}..{end} does not lie between \
         the metadata ({first}) and the end of the file ({last})"
    )))
}

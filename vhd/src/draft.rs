//! A sparse image's body in the making: what the header says, what of the file is taken, and the
//! rules for each part's place (V3, V6 and the batmap). Reads nothing and never looks at a block.

use crate::batmap::{BATMAP_HEADER_BYTES, BatmapError, BatmapInfo};
use crate::error::{OpenError, Reason, Region, Warning};
use crate::footer::{CREATOR_TAPDISK, DiskKind, FOOTER_BYTES, Footer};
use crate::geometry::Geometry;
use crate::header::{DynamicHeader, HEADER_BYTES};
use crate::image::{Limits, MAX_READ_BYTES, ParentLink, Sparse, TailState, feature_refusal};
use crate::locator::{LocatorPath, Platform};
use crate::table::{Blocks, Taken};
use crate::units::{ByteLen, FileOffset, SECTOR_BYTES};

/// The footers, once both places were looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Footers {
    pub(crate) footer: Footer,
    pub(crate) state: TailState,
    pub(crate) front_matches: bool,
}

/// A sparse body in the making.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) header: DynamicHeader,
    pub(crate) geometry: Geometry,
    pub(crate) table: FileOffset,
    pub(crate) table_bytes: ByteLen,
    pub(crate) taken: Vec<Taken>,
    pub(crate) space_end: FileOffset,
    pub(crate) paths: Vec<LocatorPath>,
    pub(crate) batmap: Option<BatmapInfo>,
    pub(crate) write_refusal: Option<Reason>,
}

impl Draft {
    /// Rule V3 for the table, and all sizes. All metadata must end at or before `end`.
    pub(crate) fn new(
        limits: &Limits,
        footer: &Footer,
        header_at: FileOffset,
        header: DynamicHeader,
        end: FileOffset,
    ) -> Result<Self, OpenError> {
        let (geometry, len) = sound_geometry(limits, footer.current_size, &header)?;
        let at = header.table_offset;
        let table = Taken::new(Region::Table, at, len).filter(|table| table.end <= end);
        let Some(table) = table else {
            return Err(OpenError::TableBeyondFile { at, len, end });
        };
        let copy = fixed_region(Region::FooterCopy, FileOffset::new(0), FOOTER_BYTES);
        let taken = vec![copy, fixed_region(Region::Header, header_at, HEADER_BYTES)];
        if let Some(hit) = taken.iter().find(|taken| taken.meets(table.start, table.end)) {
            return Err(OpenError::TableOverlaps { at, region: hit.region });
        }
        let mut taken = taken;
        taken.push(table);
        Ok(Self {
            write_refusal: write_refusal(footer, header_at, at),
            header,
            geometry,
            table: at,
            table_bytes: len,
            taken,
            space_end: FileOffset::new(0),
            paths: Vec::new(),
            batmap: None,
        })
    }

    /// Rule V6: the data has a place of its own inside the file.
    pub(crate) fn place_locator(
        &mut self,
        limits: &Limits,
        position: usize,
        end: FileOffset,
    ) -> Result<(usize, Option<Warning>), OpenError> {
        let entry = self.header.locators[position];
        let index = position as u8;
        if let Platform::Unknown(code) = entry.platform {
            return Err(OpenError::LocatorPlatform { index, code });
        }
        let most = entry.space_bytes().min(limits.max_locator_bytes);
        let (at, len) = (entry.at, entry.len);
        if len == ByteLen::ZERO || len > most || len.get() > MAX_READ_BYTES as u64 {
            return Err(OpenError::LocatorLength { index, found: len, most });
        }
        let data = Taken::new(Region::Locator(index), at, len).filter(|data| data.end <= end);
        let Some(data) = data else {
            return Err(OpenError::LocatorBeyondFile { index, at, len, end });
        };
        if let Some(hit) = self.taken.iter().find(|taken| taken.meets(data.start, data.end)) {
            return Err(OpenError::LocatorOverlaps { index, at, region: hit.region });
        }
        self.taken.push(data);
        // The space beyond the data only keeps new blocks away; a nonsensical one does not count.
        let space_end = at.checked_add(entry.space_bytes()).filter(|space| *space <= end);
        self.space_end = self.space_end.max(space_end.unwrap_or(data.end));
        let warning = space_end.is_none().then_some(Warning::LocatorSpace(index));
        Ok((len.get() as usize, warning))
    }

    /// Takes the batmap into account if it is where every known writer puts it.
    pub(crate) fn place_batmap(
        &mut self,
        info: BatmapInfo,
        end: FileOffset,
    ) -> Result<(), BatmapError> {
        let header = fixed_region(Region::BatmapHeader, info.header_at, BATMAP_HEADER_BYTES);
        let (at, len) = (info.map_at, info.map_bytes);
        let astray = BatmapError::Place { at, len };
        let map = Taken::new(Region::Batmap, at, len).filter(|map| map.end <= end).ok_or(astray)?;
        let free = |part: &Taken| !self.taken.iter().any(|taken| taken.meets(part.start, part.end));
        if map.start != header.end || !free(&header) || !free(&map) {
            // Every known writer puts the bits right behind the header. What is elsewhere may be
            // a block's bytes: not believed, but new blocks stay away from it.
            self.space_end = self.space_end.max(map.end);
            return Err(astray);
        }
        let needed = ByteLen::new(u64::from(self.geometry.blocks().div_ceil(8)));
        if len < needed {
            return Err(BatmapError::Short { found: len, needed });
        }
        self.taken.extend([header, map]);
        self.batmap = Some(info);
        Ok(())
    }

    /// The body, once the blocks are known.
    pub(crate) fn into_sparse(self, footers: Footers, blocks: &Blocks) -> Sparse {
        let metadata_end = self.taken.iter().map(|taken| taken.end).max().unwrap_or_default();
        let metadata_end = metadata_end.max(self.space_end);
        let blocks_end = blocks.end().unwrap_or_default().max(metadata_end);
        let differencing = footers.footer.kind == DiskKind::Differencing;
        Sparse {
            parent: differencing.then(|| ParentLink::new(&self.header, self.paths)),
            header: self.header,
            geometry: self.geometry,
            table: self.table,
            table_bytes: self.table_bytes,
            entries: self.geometry.entries(),
            metadata_end,
            blocks_end,
            allocated: blocks.allocated,
            tail: footers.state,
            front_matches: footers.front_matches,
            batmap: self.batmap,
            write_refusal: self.write_refusal,
        }
    }
}

/// Rule V3: a table of a size that the disk needs and the policy allows; its bytes are rounded up
/// to sectors.
fn sound_geometry(
    limits: &Limits,
    size: ByteLen,
    header: &DynamicHeader,
) -> Result<(Geometry, ByteLen), OpenError> {
    let block = header.block_bytes;
    let entries = header.max_entries;
    let (least, most) = (limits.min_block_bytes, limits.max_block_bytes);
    if block < least || block > most {
        return Err(OpenError::BlockSizeOutOfRange { found: block, least, most });
    }
    if !block.get().is_power_of_two() {
        return Err(OpenError::BlockSizeNotPowerOfTwo { found: block });
    }
    let needed = Geometry::blocks_for(size, block).unwrap_or(u32::MAX);
    if entries == 0 {
        return Err(OpenError::TableEmpty);
    }
    if entries < needed {
        return Err(OpenError::TableTooSmall { found: entries, needed });
    }
    let len = ByteLen::new((u64::from(entries) * 4).next_multiple_of(SECTOR_BYTES));
    if len > limits.max_table_bytes {
        let most = limits.max_table_bytes;
        return Err(OpenError::TableTooLarge { entries, most });
    }
    let geometry = Geometry::new(size, block, entries)
        .ok_or(OpenError::TableTooSmall { found: entries, needed })?;
    Ok((geometry, len))
}

/// A region whose place is checked already.
fn fixed_region(region: Region, start: FileOffset, len: usize) -> Taken {
    Taken::new(region, start, ByteLen::new(len as u64)).expect("its end was checked")
}

fn write_refusal(footer: &Footer, header: FileOffset, table: FileOffset) -> Option<Reason> {
    let creator = footer.creator;
    if !table.is_multiple_of(SECTOR_BYTES) {
        Some(Reason::TableUnaligned(table))
    } else if !header.is_multiple_of(SECTOR_BYTES) {
        Some(Reason::HeaderUnaligned(header))
    } else if creator.app == CREATOR_TAPDISK && creator.version > 0x0001_0003 {
        Some(Reason::LaterTapdisk(creator.version))
    } else {
        feature_refusal(footer)
    }
}

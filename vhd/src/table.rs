//! The pass over the allocation table: every entry is looked at once, in pages, and at the end all
//! blocks together. Keeps the allocated entries only; refuses to keep more of them than the file
//! can hold, so that a forged table costs no more memory than its file has blocks.

use std::ops::Range;

use crate::bat::each_allocated;
use crate::error::{OpenError, Region};
use crate::geometry::Geometry;
use crate::units::{BlockIndex, ByteLen, FileOffset, SECTOR_BYTES, SectorNo};

/// A part of the file that no block may touch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    pub(crate) region: Region,
    pub(crate) start: FileOffset,
    pub(crate) end: FileOffset,
}

impl Taken {
    /// `None` when the end overflows.
    pub(crate) fn new(region: Region, start: FileOffset, len: ByteLen) -> Option<Self> {
        Some(Self { region, start, end: start.checked_add(len)? })
    }

    pub(crate) fn meets(&self, start: FileOffset, end: FileOffset) -> bool {
        self.start < end && start < self.end
    }
}

/// One allocated entry. Ordered by where the block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Placed(u64);

impl Placed {
    fn new(block: u32, sector: u32) -> Self {
        // One number, so that sorting a million of them compares plain words.
        Self(u64::from(sector) << 32 | u64::from(block))
    }

    pub(crate) const fn sector(self) -> SectorNo {
        SectorNo::new((self.0 >> 32) as u32)
    }

    pub(crate) const fn block(self) -> BlockIndex {
        BlockIndex::new(self.0 as u32)
    }
}

/// What one pass over the table has seen so far.
#[derive(Debug)]
pub(crate) struct TablePass {
    geometry: Geometry,
    taken: Vec<Taken>,
    taken_end: FileOffset,
    file_len: ByteLen,
    blocks_limit: FileOffset,
    /// Sectors at which a block is sound, as far as it alone can tell: behind all metadata, with
    /// its end inside the file. A table has a million entries, so most are to take one look.
    sound: Range<u64>,
    seen: u32,
    behind_disk: u32,
    placed: Vec<Placed>,
}

impl TablePass {
    /// `blocks_limit` is where the last block must have ended; `taken` lists the metadata.
    pub(crate) fn new(
        geometry: Geometry,
        taken: Vec<Taken>,
        file_len: ByteLen,
        blocks_limit: FileOffset,
    ) -> Self {
        let taken_end = taken.iter().map(|taken| taken.end).max().unwrap_or_default();
        let end = file_len.get().min(blocks_limit.get());
        let room =
            end.checked_sub(geometry.slot_bytes().get()).map_or(0, |last| last / SECTOR_BYTES + 1);
        let sound = taken_end.get().div_ceil(SECTOR_BYTES)..room;
        Self {
            geometry,
            taken,
            taken_end,
            file_len,
            blocks_limit,
            sound,
            seen: 0,
            behind_disk: 0,
            placed: Vec::new(),
        }
    }

    /// Entries looked at so far.
    pub(crate) const fn seen(&self) -> u32 {
        self.seen
    }

    /// Looks at the next page of the table; reports what is wrong through `fail`. Entries that are
    /// wrong on their own are left out of [`TablePass::finish`].
    pub(crate) fn page(&mut self, bytes: &[u8], mut fail: impl FnMut(OpenError)) {
        let base = self.seen;
        self.seen += u32::try_from(bytes.len() / 4).expect("a page is at most 1 MiB");
        let reaches_behind = self.seen > self.geometry.blocks();
        let most = self.file_len.get() / self.geometry.slot_bytes().get();
        let mut placed = std::mem::take(&mut self.placed);
        if placed.capacity() == 0 {
            // At once: growing step by step touches twice the memory.
            let blocks = most.saturating_add(1).min(self.geometry.blocks().into());
            placed.reserve(usize::try_from(blocks).unwrap_or(0));
        }
        each_allocated(bytes, |position, raw| {
            let entry = Placed::new(base + position, raw);
            if reaches_behind && entry.block().get() >= self.geometry.blocks() {
                self.behind_disk += 1;
            }
            let sound = self.sound.contains(&u64::from(raw));
            if !sound && let Some(error) = self.fault_of(entry) {
                fail(error);
            } else if (placed.len() as u64) <= most {
                // One more than fit is enough to show that two of them overlap.
                placed.push(entry);
            }
        });
        self.placed = placed;
    }

    fn fault_of(&self, entry: Placed) -> Option<OpenError> {
        let (block, sector) = (entry.block(), entry.sector());
        let (start, end) = (sector.offset(), self.geometry.slot_end(sector));
        if end > self.file_len.end_of_file() {
            let file = self.file_len;
            return Some(OpenError::EntryBeyondFile { block, sector, end, file });
        }
        if end > self.blocks_limit {
            return Some(OpenError::EntryOverlaps { block, sector, region: Region::TailFooter });
        }
        if start >= self.taken_end {
            return None;
        }
        let hit = self.taken.iter().find(|taken| taken.meets(start, end))?;
        Some(OpenError::EntryOverlaps { block, sector, region: hit.region })
    }

    /// Sorts the blocks by place and reports those that lie over each other.
    pub(crate) fn finish(mut self, mut fail: impl FnMut(OpenError)) -> Blocks {
        self.placed.sort_unstable();
        let slot_sectors = self.geometry.slot_bytes().get() / SECTOR_BYTES;
        for pair in self.placed.windows(2) {
            let (left, right) = (pair[0], pair[1]);
            let apart = u64::from(right.sector().get()) - u64::from(left.sector().get());
            if apart == 0 {
                let (first, second, sector) = (left.block(), right.block(), left.sector());
                fail(OpenError::BlockShared { first, second, sector });
            } else if apart < slot_sectors {
                fail(OpenError::BlocksOverlap {
                    first: left.block(),
                    second: right.block(),
                    at: right.sector(),
                    end: self.geometry.slot_end(left.sector()),
                });
            }
        }
        Blocks { placed: self.placed, behind_disk: self.behind_disk }
    }
}

/// The allocated blocks in the order they lie in the file.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    pub(crate) placed: Vec<Placed>,
    /// Allocated entries behind the last block of the disk.
    pub(crate) behind_disk: u32,
}

impl Blocks {
    /// Just behind the last block; `None` without blocks.
    pub(crate) fn end(&self, geometry: &Geometry) -> Option<FileOffset> {
        self.placed.last().map(|last| geometry.slot_end(last.sector()))
    }
}

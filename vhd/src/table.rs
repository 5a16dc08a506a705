//! The pass over the allocation table: every entry is looked at once, in pages, and at the end all
//! blocks together. Keeps the allocated entries only, those that lie one behind the other in one
//! piece: a table filled in order is one, whatever its size. Refuses to keep more entries than the
//! file can hold, so that a forged table costs no more memory than its file has blocks.

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

/// What is looked at together: 1024 entries.
const PIECE_BYTES: usize = 4096;

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
    slot_sectors: u32,
    seen: u32,
    behind_disk: u32,
    /// Allocated entries that are sound by themselves.
    allocated: u32,
    runs: Vec<Run>,
}

/// Blocks that follow each other on the disk and, at equal distances, in the file, with no room for
/// another between them. Ordered by where they lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Run {
    sector: u32,
    block: u32,
    count: u32,
    /// Sectors from one to the next; of no meaning for one alone.
    stride: u32,
}

impl Run {
    const fn of(block: u32, sector: u32) -> Self {
        Self { sector, block, count: 1, stride: 0 }
    }

    const fn last(self) -> u32 {
        self.sector + (self.count - 1) * self.stride
    }

    /// The sector after the last one, which may need more than 32 bits.
    fn end(self, slot_sectors: u32) -> u64 {
        u64::from(self.last()) + u64::from(slot_sectors)
    }

    /// Takes in the next block, if it fits.
    fn takes(&mut self, block: u32, sector: u32, slot_sectors: u32) -> bool {
        let Some(stride) = sector.checked_sub(self.last()) else { return false };
        let fits = if self.count == 1 {
            (slot_sectors..slot_sectors.saturating_mul(2)).contains(&stride)
        } else {
            stride == self.stride
        };
        let next = fits && self.block.checked_add(self.count) == Some(block);
        if next {
            (self.count, self.stride) = (self.count + 1, stride);
        }
        next
    }
}

/// How many entries at the start of some, in whole groups, are `first`, and `stride` more each.
fn entries_in_steps(entries: &[[u8; 4]], first: u32, stride: u32) -> u32 {
    const GROUP: u32 = 64;
    let mut wanted = first;
    let mut count = 0;
    for group in entries.chunks_exact(GROUP as usize) {
        // Without a way out, so that it is done several entries at a time.
        let differs = (0..).zip(group).fold(0, |differs, (index, entry)| {
            let wanted = wanted.wrapping_add(stride.wrapping_mul(index));
            differs | (u32::from_be_bytes(*entry) ^ wanted)
        });
        if differs != 0 {
            break;
        }
        wanted = wanted.wrapping_add(stride.wrapping_mul(GROUP));
        count += GROUP;
    }
    count
}

/// Each block of runs, in the order in which they lie in the file.
fn each_of(runs: &[Run]) -> Vec<Placed> {
    let blocks = |run: &Run| {
        let Run { sector, block, count, stride } = *run;
        (0..count).map(move |index| Placed::new(block + index, sector + index * stride))
    };
    let mut placed: Vec<Placed> = runs.iter().flat_map(blocks).collect();
    placed.sort_unstable();
    placed
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
        let slot_sectors = geometry.slot_bytes().get() / SECTOR_BYTES;
        Self {
            geometry,
            taken,
            taken_end,
            file_len,
            blocks_limit,
            sound,
            slot_sectors: u32::try_from(slot_sectors).expect("a block has at most 4 GiB"),
            seen: 0,
            behind_disk: 0,
            allocated: 0,
            runs: Vec::new(),
        }
    }

    /// Entries looked at so far.
    pub(crate) const fn seen(&self) -> u32 {
        self.seen
    }

    /// Looks at the next page of the table; reports what is wrong through `fail`. Entries that are
    /// wrong on their own are left out of [`TablePass::finish`].
    pub(crate) fn page(&mut self, bytes: &[u8], mut fail: impl FnMut(OpenError)) {
        // In pieces, so that order is soon found again behind what breaks it.
        bytes.chunks(PIECE_BYTES).for_each(|piece| self.piece(piece, &mut fail));
    }

    fn piece(&mut self, bytes: &[u8], fail: &mut impl FnMut(OpenError)) {
        let (entries, _) = bytes.as_chunks();
        let in_order = self.go_on(entries);
        let bytes = &bytes[4 * in_order as usize..];
        let base = self.seen;
        self.seen += u32::try_from(bytes.len() / 4).expect("a page is at most 1 MiB");
        let reaches_behind = self.seen > self.geometry.blocks();
        let most = self.file_len.get() / self.geometry.slot_bytes().get();
        let slot_sectors = self.slot_sectors;
        let mut runs = std::mem::take(&mut self.runs);
        each_allocated(bytes, |position, sector| {
            let block = base + position;
            if reaches_behind && block >= self.geometry.blocks() {
                self.behind_disk += 1;
            }
            let sound = self.sound.contains(&u64::from(sector));
            if !sound && let Some(error) = self.fault_of(Placed::new(block, sector)) {
                return fail(error);
            }
            // One more than fit is enough to show that two of them overlap.
            if u64::from(self.allocated) > most {
                return;
            }
            self.allocated += 1;
            let run = runs.last_mut();
            if !run.is_some_and(|run| run.takes(block, sector, slot_sectors)) {
                runs.push(Run::of(block, sector));
            }
        });
        self.runs = runs;
    }

    /// Takes in the first entries of a page, as far as they go on with the last run and nothing can
    /// be wrong with them; tells how many they were. Most of a table that was filled in order is
    /// looked at here, several entries at a time.
    fn go_on(&mut self, entries: &[[u8; 4]]) -> u32 {
        let Some(run) = self.runs.last_mut() else { return 0 };
        if run.count < 2 || run.block + run.count != self.seen {
            return 0;
        }
        let next = u64::from(run.last()) + u64::from(run.stride);
        // The largest number stands for no block.
        let end = self.sound.end.min(u64::from(u32::MAX));
        let room = end.saturating_sub(next).div_ceil(u64::from(run.stride));
        let blocks = u64::from(self.geometry.blocks().saturating_sub(self.seen));
        let most = self.file_len.get() / self.geometry.slot_bytes().get();
        let most = (most + 1).saturating_sub(u64::from(self.allocated));
        let limit = usize::try_from(room.min(blocks).min(most)).unwrap_or(usize::MAX);
        let entries = &entries[..entries.len().min(limit)];
        let count = entries_in_steps(entries, next as u32, run.stride);
        run.count += count;
        self.allocated += count;
        self.seen += count;
        count
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
    pub(crate) fn finish(mut self, fail: impl FnMut(OpenError)) -> Blocks {
        self.runs.sort_unstable();
        let slot_sectors = self.slot_sectors;
        let meet = |pair: &[Run]| pair[0].end(slot_sectors) > u64::from(pair[1].sector);
        if self.runs.windows(2).any(meet) {
            self.tell_overlaps(fail);
        }
        let Self { runs, allocated, behind_disk, .. } = self;
        Blocks { runs, slot_sectors, allocated, behind_disk }
    }

    /// Reports each two neighbours that lie over each other.
    fn tell_overlaps(&self, mut fail: impl FnMut(OpenError)) {
        for pair in each_of(&self.runs).windows(2) {
            let (left, right) = (pair[0], pair[1]);
            let apart = right.sector().get() - left.sector().get();
            if apart == 0 {
                let (first, second, sector) = (left.block(), right.block(), left.sector());
                fail(OpenError::BlockShared { first, second, sector });
            } else if apart < self.slot_sectors {
                fail(OpenError::BlocksOverlap {
                    first: left.block(),
                    second: right.block(),
                    at: right.sector(),
                    end: self.geometry.slot_end(left.sector()),
                });
            }
        }
    }
}

/// The allocated blocks in the order they lie in the file.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    runs: Vec<Run>,
    slot_sectors: u32,
    /// How many there are.
    pub(crate) allocated: u32,
    /// Allocated entries behind the last block of the disk.
    pub(crate) behind_disk: u32,
}

impl Blocks {
    /// Just behind the last block; `None` without blocks.
    pub(crate) fn end(&self) -> Option<FileOffset> {
        // By where it begins the last run is the last: none lies over another, or is refused.
        let ends = self.runs.iter().map(|run| run.end(self.slot_sectors));
        ends.max().map(|sector| FileOffset::new(sector * SECTOR_BYTES))
    }

    /// Each of them.
    pub(crate) fn placed(&self) -> Vec<Placed> {
        each_of(&self.runs)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{Just, Strategy, prop_assert_eq, prop_oneof, proptest};

    use super::TablePass;
    use crate::error::OpenError;
    use crate::geometry::Geometry;
    use crate::units::{BlockIndex, ByteLen, FileOffset, SECTOR_BYTES, SectorNo};

    /// Sectors of a block's data and bitmap.
    const SLOT: u32 = 9;
    const BLOCKS: u32 = 40;
    const FILE_SECTORS: u32 = 60 * SLOT;

    /// What lies over each other, found by comparing neighbours one by one.
    fn expected(table: &[Option<u32>]) -> Vec<OpenError> {
        let entries = table.iter().zip(0..).filter_map(|(at, block)| Some(((*at)?, block)));
        let mut entries: Vec<(u32, u32)> = entries.collect();
        entries.sort_unstable();
        let told = entries.windows(2).filter_map(|pair| {
            let [(left, first), (right, second)] = [pair[0], pair[1]];
            let [first, second] = [first, second].map(BlockIndex::new);
            match right - left {
                0 => Some(OpenError::BlockShared { first, second, sector: SectorNo::new(left) }),
                1..SLOT => Some(OpenError::BlocksOverlap {
                    first,
                    second,
                    at: SectorNo::new(right),
                    end: SectorNo::new(left + SLOT).offset(),
                }),
                _ => None,
            }
        });
        told.collect()
    }

    /// Tables of stretches that were filled in order, of single blocks, and of nothing.
    fn tables() -> impl Strategy<Value = Vec<Option<u32>>> {
        let stretch = (0..FILE_SECTORS - 4 * SLOT, 1_u32..5).prop_map(|(at, count)| {
            (0..count).map(|index| Some(at + index * SLOT)).collect::<Vec<_>>()
        });
        let in_order = (0_u32..56, 1_u32..5).prop_map(|(place, count)| {
            (0..count).map(|index| Some((place + index) * SLOT)).collect::<Vec<_>>()
        });
        let padded = (0_u32..40, 1_u32..9, 1_u32..5).prop_map(|(place, pad, count)| {
            (0..count).map(|index| Some(place * SLOT + index * (SLOT + pad))).collect::<Vec<_>>()
        });
        let nothing = (1_usize..4).prop_map(|count| vec![None; count]);
        vec(prop_oneof![1 => stretch, 8 => in_order, 4 => padded, 2 => nothing], 1..9)
            .prop_map(|parts| parts.concat().into_iter().take(BLOCKS as usize).collect())
    }

    proptest! {
        #[test]
        fn runs_tell_what_single_blocks_would(table in tables(), page in 1_usize..12) {
            let block = ByteLen::new(u64::from(SLOT - 1) * SECTOR_BYTES);
            let disk = ByteLen::new(u64::from(BLOCKS) * block.get());
            let geometry = Geometry::new(disk, block, BLOCKS).unwrap();
            prop_assert_eq!(geometry.slot_bytes().get(), u64::from(SLOT) * SECTOR_BYTES);
            let len = ByteLen::new(u64::from(FILE_SECTORS) * SECTOR_BYTES);
            let mut pass = TablePass::new(geometry, Vec::new(), len, len.end_of_file());
            for entries in table.chunks(page) {
                let raw = entries.iter().map(|entry| entry.unwrap_or(u32::MAX));
                let bytes: Vec<u8> = raw.flat_map(u32::to_be_bytes).collect();
                pass.page(&bytes, |error| panic!("each is sound by itself: {error}"));
            }
            let mut told = Vec::new();
            let blocks = pass.finish(|error| told.push(error));
            prop_assert_eq!(told, expected(&table));
            let mut placed: Vec<u32> = table.iter().flatten().copied().collect();
            placed.sort_unstable();
            prop_assert_eq!(blocks.allocated as usize, placed.len());
            let end = placed.last().map(|last| SectorNo::new(last + SLOT).offset());
            prop_assert_eq!(blocks.end(), end);
            let seen: Vec<u32> = blocks.placed().iter().map(|one| one.sector().get()).collect();
            prop_assert_eq!(seen, placed);
        }
    }

    /// What a table comes to, looked at in pages of so many entries.
    fn told_of(raw: &[u32], page: usize, blocks: u32, sectors: u64) -> String {
        let block = ByteLen::new(u64::from(SLOT - 1) * SECTOR_BYTES);
        let disk = ByteLen::new(u64::from(blocks) * block.get());
        let geometry = Geometry::new(disk, block, raw.len() as u32).unwrap();
        let len = ByteLen::new(sectors * SECTOR_BYTES);
        let mut pass = TablePass::new(geometry, Vec::new(), len, len.end_of_file());
        let mut errors = Vec::new();
        for entries in raw.chunks(page) {
            let bytes: Vec<u8> = entries.iter().copied().flat_map(u32::to_be_bytes).collect();
            pass.page(&bytes, |error| errors.push(error));
        }
        assert_eq!(pass.seen() as usize, raw.len());
        let blocks = pass.finish(|error| errors.push(error));
        format!("{blocks:?} {errors:?}")
    }

    proptest! {
        #[test]
        fn many_entries_at_a_time_tell_what_each_would(
            first in 0_u32..1000, pad in 0_u32..10, page in 60_usize..700,
            changes in vec((0_usize..700, prop_oneof![Just(u32::MAX), 0_u32..9000]), 0..3),
            behind in 0_u32..100, sectors in 5000_u64..9000, far: bool,
        ) {
            // Also where the last sectors that a table can name are.
            let (first, sectors) = if far {
                (u32::MAX - 7000 + first, u64::from(u32::MAX) + sectors - 7000)
            } else {
                (first, sectors)
            };
            let mut raw: Vec<u32> =
                (0..700).map(|index| first.wrapping_add(index * (SLOT + pad))).collect();
            for (at, value) in changes {
                raw[at] = value;
            }
            let blocks = 700 - behind;
            prop_assert_eq!(
                told_of(&raw, page, blocks, sectors),
                told_of(&raw, 1, blocks, sectors)
            );
        }
    }

    #[test]
    fn a_table_filled_in_order_is_one_run() {
        let block = ByteLen::new(2 << 20);
        let geometry = Geometry::new(ByteLen::new(1 << 40), block, 1 << 19).unwrap();
        let slot = (geometry.slot_bytes().get() / SECTOR_BYTES) as u32;
        let len = ByteLen::new(1 << 41);
        let mut pass = TablePass::new(geometry, Vec::new(), len, FileOffset::new(1 << 41));
        for page in 0..1 << 9 {
            // With 3.5 KiB between them, so that data lie on whole pages.
            let entries = (page << 10..(page + 1) << 10).map(|block: u32| 100 + block * (slot + 7));
            let bytes: Vec<u8> = entries.flat_map(u32::to_be_bytes).collect();
            pass.page(&bytes, |error| panic!("{error}"));
        }
        let blocks = pass.finish(|error| panic!("{error}"));
        assert_eq!((blocks.runs.len(), blocks.allocated), (1, 1 << 19));
    }
}

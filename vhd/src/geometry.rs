//! Arithmetic between the virtual disk and the file of a sparse image: which block a byte is in,
//! where a block's parts lie, where a new block may go. Knows sizes only, never an entry's value.

use crate::units::{BlockIndex, ByteLen, DiskOffset, FileOffset, SECTOR_BYTES, SectorNo};

/// Data of a new block starts on a multiple of this, so that a page of the guest is a page of the
/// file.
pub const DATA_ALIGN_BYTES: u64 = 4096;

/// Sizes of a sparse image. The block size is a power of two of at least one sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    disk_size: ByteLen,
    block_shift: u32,
    blocks: u32,
    entries: u32,
    bitmap_bytes: u64,
}

impl Geometry {
    /// `None` when the block size is no power of two from 512 bytes to 2 GiB, when the size is
    /// zero, or when the disk needs more blocks than `entries`.
    pub fn new(disk_size: ByteLen, block_bytes: ByteLen, entries: u32) -> Option<Self> {
        let bytes = block_bytes.get();
        if !bytes.is_power_of_two() || !(SECTOR_BYTES..=1 << 31).contains(&bytes) {
            return None;
        }
        let blocks = Self::blocks_for(disk_size, block_bytes)?;
        let bitmap_bytes = (bytes / SECTOR_BYTES).div_ceil(8).next_multiple_of(SECTOR_BYTES);
        (blocks > 0 && blocks <= entries).then_some(Self {
            disk_size,
            block_shift: bytes.trailing_zeros(),
            blocks,
            entries,
            bitmap_bytes,
        })
    }

    /// Blocks that a disk of `disk_size` needs; `None` when 32 bits cannot count them.
    pub fn blocks_for(disk_size: ByteLen, block_bytes: ByteLen) -> Option<u32> {
        if block_bytes.get() == 0 {
            return None;
        }
        u32::try_from(disk_size.get().div_ceil(block_bytes.get())).ok()
    }

    /// Bytes of the virtual disk.
    pub const fn disk_size(&self) -> ByteLen {
        self.disk_size
    }

    /// Data bytes of a block.
    pub const fn block_bytes(&self) -> ByteLen {
        ByteLen::new(1 << self.block_shift)
    }

    /// Sectors of a block's data, and bits of its bitmap that count.
    pub const fn block_sectors(&self) -> u32 {
        1 << (self.block_shift - SECTOR_BYTES.trailing_zeros())
    }

    /// Blocks that the disk needs.
    pub const fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Entries of the allocation table, at least [`Geometry::blocks`].
    pub const fn entries(&self) -> u32 {
        self.entries
    }

    /// Bytes of a block's bitmap, padding to whole sectors included.
    pub const fn bitmap_bytes(&self) -> ByteLen {
        ByteLen::new(self.bitmap_bytes)
    }

    /// Bytes a block takes in the file: bitmap, then data.
    pub const fn slot_bytes(&self) -> ByteLen {
        ByteLen::new(self.bitmap_bytes + (1 << self.block_shift))
    }

    /// The block that holds a byte of the disk. An offset whose block has no 32-bit index lies far
    /// beyond any disk and gives the last index there is.
    pub fn block_of(&self, at: DiskOffset) -> BlockIndex {
        BlockIndex::new(u32::try_from(at.get() >> self.block_shift).unwrap_or(u32::MAX))
    }

    /// Bytes from the start of the block to a byte in it.
    pub const fn within(&self, at: DiskOffset) -> u64 {
        at.get() & ((1 << self.block_shift) - 1)
    }

    /// Where a block starts on the disk.
    pub const fn block_start(&self, block: BlockIndex) -> DiskOffset {
        DiskOffset::new((block.get() as u64) << self.block_shift)
    }

    /// Sectors of a block that lie inside the disk: fewer than all only in the last block.
    pub fn sectors_on_disk(&self, block: BlockIndex) -> u32 {
        let rest = self.disk_size.get().saturating_sub(self.block_start(block).get());
        let sectors = u32::try_from(rest.div_ceil(SECTOR_BYTES)).unwrap_or(u32::MAX);
        sectors.min(self.block_sectors())
    }

    /// Where the data of a block starts whose bitmap starts at `slot`.
    pub const fn data_at(&self, slot: SectorNo) -> FileOffset {
        FileOffset::new(slot.offset().get() + self.bitmap_bytes)
    }

    /// The file extent of the block whose bitmap starts at `slot`.
    pub const fn slot_extent(&self, slot: SectorNo) -> (FileOffset, ByteLen) {
        (slot.offset(), self.slot_bytes())
    }

    /// Just behind the block whose bitmap starts at `slot`.
    pub const fn slot_end(&self, slot: SectorNo) -> FileOffset {
        FileOffset::new(slot.offset().get() + self.slot_bytes().get())
    }

    /// The first slot at or after `after` whose data starts on a multiple of
    /// [`DATA_ALIGN_BYTES`]; `None` when its last sector would need a number of more than 32 bits,
    /// which is how this format runs out of space.
    pub fn next_slot(&self, after: FileOffset) -> Option<SectorNo> {
        let data = after.checked_add(self.bitmap_bytes())?.round_up(DATA_ALIGN_BYTES)?;
        let slot = data.checked_sub(self.bitmap_bytes())?;
        let end = slot.checked_add(self.slot_bytes())?;
        let most = (u64::from(u32::MAX) + 1) * SECTOR_BYTES;
        if end.get() > most {
            return None;
        }
        SectorNo::at(slot)
    }

    /// Bytes from one new slot to the next one packed behind it.
    pub const fn stride_bytes(&self) -> ByteLen {
        ByteLen::new(self.slot_bytes().get().next_multiple_of(DATA_ALIGN_BYTES))
    }
}

#[cfg(test)]
mod tests {
    use super::Geometry;
    use crate::units::{BlockIndex, ByteLen, DiskOffset, FileOffset, SectorNo};

    fn geometry(size: u64, block: u64) -> Geometry {
        Geometry::new(ByteLen::new(size), ByteLen::new(block), u32::MAX).expect("sound sizes")
    }

    #[test]
    fn parts_of_a_block_are_where_the_format_puts_them() {
        let two_mib = geometry((5 << 20) + 512, 2 << 20);
        assert_eq!((two_mib.blocks(), two_mib.block_sectors()), (3, 4096));
        assert_eq!(two_mib.bitmap_bytes(), ByteLen::new(512));
        assert_eq!(two_mib.slot_bytes(), ByteLen::new(512 + (2 << 20)));
        assert_eq!(two_mib.block_of(DiskOffset::new((4 << 20) + 9)), BlockIndex::new(2));
        assert_eq!(two_mib.within(DiskOffset::new((4 << 20) + 9)), 9);
        assert_eq!(two_mib.sectors_on_disk(BlockIndex::new(2)), 2049);
        assert_eq!(two_mib.sectors_on_disk(BlockIndex::new(1)), 4096);
        assert_eq!(two_mib.data_at(SectorNo::new(7)), FileOffset::new(4096));
        assert_eq!(geometry(1 << 30, 4 << 20).bitmap_bytes(), ByteLen::new(1024));
        assert_eq!(geometry(1024, 512).bitmap_bytes(), ByteLen::new(512));
    }

    #[test]
    fn unsound_sizes_make_no_geometry() {
        for (size, block, entries) in
            [(1, 0, 9), (1, 256, 9), (1, 768, 9), (0, 512, 9), (513, 512, 1), (1 << 62, 512, 9)]
        {
            let made = Geometry::new(ByteLen::new(size), ByteLen::new(block), entries);
            assert_eq!(made, None, "{size} {block} {entries}");
        }
    }

    #[test]
    fn new_slots_align_their_data_and_end_with_the_numbers() {
        let geometry = geometry(2040 << 30, 2 << 20);
        let slot = geometry.next_slot(FileOffset::new(2048)).expect("room");
        assert_eq!(slot, SectorNo::new(7));
        let next = geometry.next_slot(geometry.slot_end(slot)).expect("room");
        assert_eq!(next, SectorNo::new(7 + 4104));
        let last = (1u64 << 32) - 4097;
        let last = last - (last + 1) % 8;
        let fits = geometry.next_slot(FileOffset::new(last * 512));
        assert_eq!(fits.map(|slot| u64::from(slot.get())), Some(last));
        assert_eq!(geometry.next_slot(FileOffset::new(last * 512 + 1)), None);
        assert_eq!(geometry.next_slot(FileOffset::new(u64::MAX)), None);
    }
}

//! Entries of the block allocation table: four big-endian bytes each. Whether an entry points at a
//! sound place is decided where an image is opened, never here.

use crate::units::SectorNo;

/// Bytes of one entry.
pub const ENTRY_BYTES: usize = 4;
/// Entries in one 512-byte sector of the table.
pub const ENTRIES_PER_SECTOR: u32 = 128;

const UNALLOCATED: u32 = u32::MAX;

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BatEntry {
    /// Nowhere: every sector is the parent's, or zero.
    Unallocated,
    /// Its bitmap starts at this sector of the file; the data follows the bitmap.
    At(SectorNo),
}

impl BatEntry {
    /// The entry of a stored number.
    pub const fn from_raw(raw: u32) -> Self {
        if raw == UNALLOCATED { Self::Unallocated } else { Self::At(SectorNo::new(raw)) }
    }

    /// The number to store.
    pub const fn to_raw(self) -> u32 {
        match self {
            Self::Unallocated => UNALLOCATED,
            Self::At(sector) => sector.get(),
        }
    }

    /// The entry of four stored bytes.
    pub const fn from_bytes(bytes: [u8; ENTRY_BYTES]) -> Self {
        Self::from_raw(u32::from_be_bytes(bytes))
    }

    /// The four bytes to store.
    pub const fn to_bytes(self) -> [u8; ENTRY_BYTES] {
        self.to_raw().to_be_bytes()
    }
}

/// Decodes whole entries of a table; up to three bytes at the end that make none are left out.
pub fn decode_page(bytes: &[u8]) -> impl ExactSizeIterator<Item = u32> + '_ {
    bytes.chunks_exact(ENTRY_BYTES).map(|raw| u32::from_be_bytes([raw[0], raw[1], raw[2], raw[3]]))
}

/// Encodes entries the way a table stores them.
pub fn encode_page(entries: &[u32]) -> Vec<u8> {
    entries.iter().flat_map(|raw| raw.to_be_bytes()).collect()
}

/// Calls `found` with the position and the raw value of every allocated entry. Skips empty
/// stretches eight bytes at a time: tables of large new images are megabytes of ones.
pub(crate) fn each_allocated(bytes: &[u8], mut found: impl FnMut(u32, u32)) {
    const EMPTY_PAIR: [u8; 8] = [0xFF; 8];
    for (pair, raw) in bytes.chunks(EMPTY_PAIR.len()).enumerate() {
        if raw == EMPTY_PAIR {
            continue;
        }
        for (half, value) in decode_page(raw).enumerate() {
            if value != UNALLOCATED {
                // A page has fewer entries than that.
                found((pair * 2 + half) as u32, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BatEntry, decode_page, each_allocated, encode_page};
    use crate::units::SectorNo;

    #[test]
    fn entries_go_both_ways() {
        assert_eq!(BatEntry::from_bytes([0xFF; 4]), BatEntry::Unallocated);
        let entry = BatEntry::At(SectorNo::new(0x0102_0304));
        assert_eq!(entry.to_bytes(), [1, 2, 3, 4]);
        assert_eq!(BatEntry::from_bytes([1, 2, 3, 4]), entry);
        let page = encode_page(&[7, u32::MAX, 9]);
        assert_eq!(decode_page(&page).collect::<Vec<_>>(), [7, u32::MAX, 9]);
    }

    #[test]
    fn empty_stretches_are_skipped_without_losing_an_entry() {
        let mut table = vec![u32::MAX; 101];
        for at in [0, 3, 64, 100] {
            table[at] = at as u32 + 5;
        }
        let mut seen = Vec::new();
        each_allocated(&encode_page(&table), |at, value| seen.push((at, value)));
        assert_eq!(seen, [(0, 5), (3, 8), (64, 69), (100, 105)]);
    }
}

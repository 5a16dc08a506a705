//! GPT: headers and entries from bytes (UEFI 2.10, section 5.3).
//!
//! A header counts only with both of its checksums and at the place it says it is at. Refuses
//! arrays larger than any tool makes, whose reading would cost memory.

use uuid::Uuid;

use super::table::{Candidate, Notice, PartitionKind, Table};
use crate::engine::units::{ByteLen, DiskOffset, Extent};

/// Bytes of a header that have a meaning.
pub(super) const HEADER_BYTES: usize = 92;
/// Most entries of a table; tools make 128.
const ENTRIES_MAX: u32 = 1024;
/// Sizes an entry may have; tools make 128.
const ENTRY_BYTES: [u32; 3] = [128, 256, 512];
const NAME_AT: usize = 56;
const NAME_END: usize = 128;

/// What is wrong with a GPT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GptFault {
    /// No header at all.
    #[error("is missing")]
    Missing,
    /// A header of an impossible size.
    #[error("has a header of {found} bytes")]
    HeaderSize {
        /// Size it says.
        found: u32,
    },
    /// A header that was changed by accident.
    #[error("has a header with the checksum {stored:#010x} instead of {computed:#010x}")]
    HeaderChecksum {
        /// Checksum it says.
        stored: u32,
        /// Checksum of its bytes.
        computed: u32,
    },
    /// A header that belongs somewhere else.
    #[error("says that it is in sector {found}, but is in {expected}")]
    Misplaced {
        /// Sector it says.
        found: u64,
        /// Sector it was read from.
        expected: u64,
    },
    /// Entries of an impossible size or number.
    #[error("has {entries} entries of {entry_bytes} bytes, more or other than are supported")]
    Entries {
        /// Entries it says.
        entries: u32,
        /// Bytes of each.
        entry_bytes: u32,
    },
    /// Entries beyond the disk.
    #[error("has its entries in sector {sector}, outside the disk")]
    EntriesOutside {
        /// First sector it says.
        sector: u64,
    },
    /// Entries that were changed by accident.
    #[error("has entries with the checksum {computed:#010x} instead of {stored:#010x}")]
    EntriesChecksum {
        /// Checksum that the header says.
        stored: u32,
        /// Checksum of their bytes.
        computed: u32,
    },
}

/// A header that is what it says, and the place of its entries, which lie on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) entries: Extent,
    entry_bytes: usize,
    checksum: u32,
}

impl Header {
    /// Reads the header of sector `lba`, given that whole sector.
    pub(super) fn parse(bytes: &[u8], lba: u64, disk: ByteLen) -> Result<Self, GptFault> {
        let sector = bytes.len() as u64;
        if bytes.len() < HEADER_BYTES || bytes[..8] != *b"EFI PART" {
            return Err(GptFault::Missing);
        }
        let found = le32(bytes, 12);
        let size = usize::try_from(found).unwrap_or(usize::MAX);
        if size < HEADER_BYTES || size > bytes.len() {
            return Err(GptFault::HeaderSize { found });
        }
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&bytes[..16]);
        hasher.update(&[0; 4]);
        hasher.update(&bytes[20..size]);
        let (stored, computed) = (le32(bytes, 16), hasher.finalize());
        if stored != computed {
            return Err(GptFault::HeaderChecksum { stored, computed });
        }
        let found = le64(bytes, 24);
        if found != lba {
            return Err(GptFault::Misplaced { found, expected: lba });
        }
        let (entries, entry_bytes) = (le32(bytes, 80), le32(bytes, 84));
        if entries == 0 || entries > ENTRIES_MAX || !ENTRY_BYTES.contains(&entry_bytes) {
            return Err(GptFault::Entries { entries, entry_bytes });
        }
        let first = le64(bytes, 72);
        let len = u64::from(entries) * u64::from(entry_bytes);
        let at = first.checked_mul(sector);
        match at.and_then(|at| at.checked_add(len)) {
            Some(end) if end <= disk.get() => {}
            _ => return Err(GptFault::EntriesOutside { sector: first }),
        }
        let at = DiskOffset::new(at.unwrap_or_default());
        let entries = Extent::new(at, ByteLen::new(len));
        Ok(Self { entries, entry_bytes: entry_bytes as usize, checksum: le32(bytes, 88) })
    }

    /// Takes the partitions out of the whole array of entries.
    pub(super) fn partitions(
        &self,
        bytes: &[u8],
        sector: ByteLen,
        disk: ByteLen,
        table: &mut Table,
    ) -> Result<(), GptFault> {
        let (stored, computed) = (self.checksum, crc32fast::hash(bytes));
        if stored != computed {
            return Err(GptFault::EntriesChecksum { stored, computed });
        }
        for (entry, number) in bytes.chunks_exact(self.entry_bytes).zip(1..) {
            let kind = guid(entry, 0);
            if kind.is_nil() {
                continue;
            }
            let (first, last) = (le64(entry, 32), le64(entry, 40));
            let Some(sectors) = last.checked_sub(first).map(|more| more.checked_add(1)) else {
                table.notices.push(Notice::Backwards { number });
                continue;
            };
            let candidate = Candidate {
                number,
                start: first.checked_mul(sector.get()),
                len: sectors.and_then(|count| count.checked_mul(sector.get())),
                kind: PartitionKind::Gpt(kind),
                name: name(&entry[NAME_AT..NAME_END]),
                unique: Some(guid(entry, 16)),
                flags: le64(entry, 48),
            };
            table.admit(disk, candidate);
        }
        Ok(())
    }
}

/// A name of UTF-16 units up to the first zero, safe to print.
pub(super) fn name(bytes: &[u8]) -> String {
    let units = bytes.as_chunks::<2>().0.iter().map(|unit| u16::from_le_bytes(*unit));
    let units = units.take_while(|unit| *unit != 0);
    let chars = char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER));
    chars.map(|c| if is_plain(c) { c } else { char::REPLACEMENT_CHARACTER }).collect()
}

/// Whether a character stays in its place: a guest's name must not move the cursor, end the line
/// or turn the direction of what stands behind it.
fn is_plain(c: char) -> bool {
    let turns = matches!(c, '\u{061C}' | '\u{200E}'..='\u{200F}' | '\u{202A}'..='\u{202E}'
        | '\u{2066}'..='\u{2069}');
    let hides = matches!(c, '\u{00AD}' | '\u{200B}'..='\u{200D}' | '\u{2060}'..='\u{2064}'
        | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}');
    !c.is_control() && !turns && !hides && !matches!(c, '\u{2028}' | '\u{2029}')
}

fn guid(bytes: &[u8], at: usize) -> Uuid {
    let mut guid = [0; 16];
    guid.copy_from_slice(&bytes[at..at + 16]);
    // Appendix A of UEFI: the first three fields are little-endian.
    Uuid::from_bytes_le(guid)
}

pub(super) fn le32(bytes: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(raw)
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(raw)
}

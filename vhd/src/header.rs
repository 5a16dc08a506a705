//! The 1024-byte dynamic header (section 1.2 of the format notes): raw layout, checks, and back to
//! bytes. It judges the header's own bytes; whether its numbers fit the file is decided on opening.

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::footer::checksum;
use crate::locator::{LOCATORS, LocatorEntry, RawLocator};
use crate::units::{ByteLen, FileOffset};

/// Bytes of a dynamic header.
pub const HEADER_BYTES: usize = 1024;
/// Bytes of the parent's name: 256 UTF-16 units.
pub const PARENT_NAME_BYTES: usize = 512;

const COOKIE: [u8; 8] = *b"cxsparse";
const VERSION: u32 = 0x0001_0000;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    cookie: [u8; 8],
    data_offset: U64,
    table_offset: U64,
    version: U32,
    max_entries: U32,
    block_bytes: U32,
    checksum: U32,
    parent_uuid: [u8; 16],
    parent_timestamp: U32,
    reserved: U32,
    parent_name: [u8; PARENT_NAME_BYTES],
    locators: [RawLocator; LOCATORS],
    reserved_tail: [u8; 256],
}
const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES);

/// A dynamic header whose cookie, checksum and version are right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DynamicHeader {
    /// Unused by the format; all ones in every sound image.
    pub data_offset: u64,
    /// Where the allocation table starts. Not yet checked.
    pub table_offset: FileOffset,
    /// Entries of the allocation table. Not yet checked.
    pub max_entries: u32,
    /// Data bytes of one block. Not yet checked.
    pub block_bytes: ByteLen,
    /// Identity of the parent; all zero in a differencing image means a raw parent.
    pub parent_uuid: [u8; 16],
    /// Seconds since 2000-01-01 00:00 UTC; never a reason to refuse.
    pub parent_timestamp: u32,
    /// The parent's name as stored: UTF-16, big-endian, perhaps without a terminator.
    pub parent_name: [u8; PARENT_NAME_BYTES],
    /// Parent locators in the order stored.
    pub locators: [LocatorEntry; LOCATORS],
}

/// Why bytes are no dynamic header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Not 1024 bytes.
    #[error("a dynamic header has 1024 bytes, not {found}")]
    Length {
        /// Bytes given.
        found: usize,
    },
    /// No header here.
    #[error("no dynamic header: the cookie is {found:02x?}")]
    Cookie {
        /// First eight bytes found.
        found: [u8; 8],
    },
    /// The bytes changed after the header was written.
    #[error("header checksum {stored:#010x}, but its bytes sum to {computed:#010x}")]
    Checksum {
        /// What the header says.
        stored: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// A format that this crate does not know.
    #[error("header version {found:#010x}, expected 0x00010000")]
    Version {
        /// Version stored.
        found: u32,
    },
}

impl DynamicHeader {
    /// Parses 1024 bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        let raw = RawHeader::read_from_bytes(bytes)
            .map_err(|_| HeaderError::Length { found: bytes.len() })?;
        if raw.cookie != COOKIE {
            return Err(HeaderError::Cookie { found: raw.cookie });
        }
        let stored = raw.checksum.get();
        let computed = checksum(RawHeader { checksum: 0.into(), ..raw }.as_bytes());
        if stored != computed {
            return Err(HeaderError::Checksum { stored, computed });
        }
        if raw.version.get() != VERSION {
            return Err(HeaderError::Version { found: raw.version.get() });
        }
        Ok(Self {
            data_offset: raw.data_offset.get(),
            table_offset: FileOffset::new(raw.table_offset.get()),
            max_entries: raw.max_entries.get(),
            block_bytes: ByteLen::new(u64::from(raw.block_bytes.get())),
            parent_uuid: raw.parent_uuid,
            parent_timestamp: raw.parent_timestamp.get(),
            parent_name: raw.parent_name,
            locators: raw.locators.map(LocatorEntry::from_raw),
        })
    }

    /// The header as it goes to disk, checksum included.
    ///
    /// # Panics
    /// When `block_bytes` needs more than the field's 32 bits.
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let block_bytes =
            u32::try_from(self.block_bytes.get()).expect("no checked block size needs 33 bits");
        let mut raw = RawHeader {
            cookie: COOKIE,
            data_offset: self.data_offset.into(),
            table_offset: self.table_offset.get().into(),
            version: VERSION.into(),
            max_entries: self.max_entries.into(),
            block_bytes: block_bytes.into(),
            checksum: 0.into(),
            parent_uuid: self.parent_uuid,
            parent_timestamp: self.parent_timestamp.into(),
            reserved: 0.into(),
            parent_name: self.parent_name,
            locators: self.locators.map(LocatorEntry::to_raw),
            reserved_tail: [0; 256],
        };
        raw.checksum = checksum(raw.as_bytes()).into();
        let mut bytes = [0; HEADER_BYTES];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }

    /// The parent's name as text; what is not Unicode is replaced, for people to read only.
    pub fn parent_name_text(&self) -> String {
        let units =
            self.parent_name.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
        let name: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
        String::from_utf16_lossy(&name)
    }

    /// Whether the name field ends without a zero unit.
    pub fn parent_name_is_unterminated(&self) -> bool {
        self.parent_name.chunks_exact(2).all(|pair| pair != [0, 0])
    }
}

/// Bytes of the header's first sector, which alone changes when the table moves or the parent gets
/// another identity.
pub const SWITCH_BYTES: usize = 512;

/// The first sector of the header in `bytes` with its table at another place and of another size;
/// the second sector, whose bytes the checksum covers too, stays as it is.
///
/// # Errors
/// When `bytes` are no sound header.
pub fn with_table(
    bytes: &[u8],
    table: FileOffset,
    entries: u32,
) -> Result<[u8; SWITCH_BYTES], HeaderError> {
    DynamicHeader::parse(bytes)?;
    let raw = RawHeader::read_from_bytes(bytes)
        .map_err(|_| HeaderError::Length { found: bytes.len() })?;
    let mut raw = RawHeader {
        table_offset: table.get().into(),
        max_entries: entries.into(),
        checksum: 0.into(),
        ..raw
    };
    raw.checksum = checksum(raw.as_bytes()).into();
    let mut first = [0; SWITCH_BYTES];
    first.copy_from_slice(&raw.as_bytes()[..SWITCH_BYTES]);
    Ok(first)
}

/// The first sector of the header in `bytes` with another identity of the parent; the second
/// sector, which holds the parent's name and locators, stays as it is.
///
/// # Errors
/// When `bytes` are no sound header.
pub fn with_parent(bytes: &[u8], parent_uuid: [u8; 16]) -> Result<[u8; SWITCH_BYTES], HeaderError> {
    DynamicHeader::parse(bytes)?;
    let raw = RawHeader::read_from_bytes(bytes)
        .map_err(|_| HeaderError::Length { found: bytes.len() })?;
    let mut raw = RawHeader { parent_uuid, checksum: 0.into(), ..raw };
    raw.checksum = checksum(raw.as_bytes()).into();
    let mut first = [0; SWITCH_BYTES];
    first.copy_from_slice(&raw.as_bytes()[..SWITCH_BYTES]);
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::{DynamicHeader, HEADER_BYTES, HeaderError, PARENT_NAME_BYTES};
    use crate::locator::{LOCATORS, LocatorEntry, Platform};
    use crate::units::{ByteLen, FileOffset};

    fn sample() -> DynamicHeader {
        let mut parent_name = [0; PARENT_NAME_BYTES];
        parent_name[..8].copy_from_slice(&[0, b'a', 0, b'.', 0x20, 0xAC, 0xD8, 0x00]);
        let mut locators = [LocatorEntry::NONE; LOCATORS];
        locators[1] = LocatorEntry {
            platform: Platform::W2ru,
            space: 1,
            len: ByteLen::new(20),
            at: FileOffset::new(2048),
        };
        DynamicHeader {
            data_offset: u64::MAX,
            table_offset: FileOffset::new(1536),
            max_entries: 2,
            block_bytes: ByteLen::new(2 << 20),
            parent_uuid: [3; 16],
            parent_timestamp: 4,
            parent_name,
            locators,
        }
    }

    #[test]
    fn a_header_survives_the_way_to_bytes_and_back() {
        assert_eq!(DynamicHeader::parse(&sample().to_bytes()), Ok(sample()));
        assert_eq!(sample().parent_name_text(), "a.\u{20AC}\u{FFFD}");
        assert!(!sample().parent_name_is_unterminated());
    }

    #[test]
    fn the_table_moves_with_one_sector_of_the_header() {
        let old = sample().to_bytes();
        let first = super::with_table(&old, FileOffset::new(8192), 9).expect("sound");
        let mut moved = old;
        moved[..512].copy_from_slice(&first);
        let wanted =
            DynamicHeader { table_offset: FileOffset::new(8192), max_entries: 9, ..sample() };
        assert_eq!(DynamicHeader::parse(&moved), Ok(wanted));
    }

    #[test]
    fn every_fault_of_a_header_has_its_name() {
        let mut bytes = sample().to_bytes();
        bytes[700] ^= 1;
        assert!(matches!(DynamicHeader::parse(&bytes), Err(HeaderError::Checksum { .. })));
        bytes[0] = 0;
        assert!(matches!(DynamicHeader::parse(&bytes), Err(HeaderError::Cookie { .. })));
        assert_eq!(
            DynamicHeader::parse(&bytes[1..]),
            Err(HeaderError::Length { found: HEADER_BYTES - 1 })
        );
    }
}

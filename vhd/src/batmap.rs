//! XenServer's batmap (section 1.5 of the format notes): one bit per block that says "every sector
//! is here". A hint that others wrote: parsed so that `check` can judge it and so that its bytes
//! are not taken for free space; never believed over a sector bitmap.

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::footer::checksum;
use crate::units::{ByteLen, FileOffset, SECTOR_BYTES};

/// Bytes of the batmap's header.
pub const BATMAP_HEADER_BYTES: usize = 512;

const COOKIE: [u8; 8] = *b"tdbatmap";
const VERSION_1_1: u32 = 0x0001_0001;
const VERSION_1_2: u32 = 0x0001_0002;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawBatmap {
    cookie: [u8; 8],
    offset: U64,
    sectors: U32,
    version: U32,
    checksum: U32,
    marker: u8,
    key_cookie: u8,
    key_nonce: [u8; 32],
    key_hash: [u8; 32],
    reserved: [u8; 418],
}
const _: () = assert!(size_of::<RawBatmap>() == BATMAP_HEADER_BYTES);

/// A batmap's header, checked for itself only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatmapInfo {
    /// Where the header lies.
    pub header_at: FileOffset,
    /// Where the bits lie.
    pub map_at: FileOffset,
    /// Bytes of the bits, whole sectors.
    pub map_bytes: ByteLen,
    /// Version 1.1 summed its bytes as signed ones.
    pub signed_sum: bool,
    /// Sum stored for the bits.
    pub checksum: u32,
    /// Whether the image is encrypted, which this crate cannot undo.
    pub encrypted: bool,
}

/// Why a batmap is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatmapError {
    /// No header where one must be.
    #[error("no batmap header: the cookie is {found:02x?}")]
    Cookie {
        /// First eight bytes found.
        found: [u8; 8],
    },
    /// A version that this crate does not know.
    #[error("batmap version {found:#010x}, expected 1.1 or 1.2")]
    Version {
        /// Version stored.
        found: u32,
    },
    /// The bits would not lie inside the file, or over something else.
    #[error("the batmap's bits at {at} ({len} bytes) are not in a place of their own")]
    Place {
        /// Where the header says they are.
        at: FileOffset,
        /// How many bytes.
        len: ByteLen,
    },
    /// Too few bits for the blocks.
    #[error("the batmap has {found} bytes of bits, the blocks need {needed}")]
    Short {
        /// Bytes it has.
        found: ByteLen,
        /// Bytes needed.
        needed: ByteLen,
    },
}

impl BatmapInfo {
    /// Parses the 512 bytes at `header_at`.
    pub fn parse(header_at: FileOffset, bytes: &[u8]) -> Result<Self, BatmapError> {
        let Ok(raw) = RawBatmap::ref_from_bytes(bytes) else {
            return Err(BatmapError::Cookie { found: [0; 8] });
        };
        if raw.cookie != COOKIE {
            return Err(BatmapError::Cookie { found: raw.cookie });
        }
        let version = raw.version.get();
        if version != VERSION_1_1 && version != VERSION_1_2 {
            return Err(BatmapError::Version { found: version });
        }
        Ok(Self {
            header_at,
            map_at: FileOffset::new(raw.offset.get()),
            map_bytes: ByteLen::new(u64::from(raw.sectors.get()) * SECTOR_BYTES),
            signed_sum: version == VERSION_1_1,
            checksum: raw.checksum.get(),
            encrypted: raw.key_cookie != 0,
        })
    }

    /// Whether the stored sum is right for the bits. The writer sums only what its disk size
    /// covers, counted in a way that rounds down: `covered` is that many bytes.
    pub fn sum_is_right(&self, bits: &[u8], covered: ByteLen) -> bool {
        let covered = usize::try_from(covered.get()).unwrap_or(usize::MAX).min(bits.len());
        let bits = &bits[..covered];
        let sum = if self.signed_sum {
            !bits.iter().fold(0u32, |sum, byte| sum.wrapping_add_signed(i32::from(*byte as i8)))
        } else {
            checksum(bits)
        };
        sum == self.checksum
    }
}

#[cfg(test)]
mod tests {
    use super::{BatmapError, BatmapInfo};
    use crate::units::{ByteLen, FileOffset};

    fn header() -> [u8; 512] {
        let mut bytes = [0; 512];
        bytes[..8].copy_from_slice(b"tdbatmap");
        bytes[8..16].copy_from_slice(&2560u64.to_be_bytes());
        bytes[16..20].copy_from_slice(&1u32.to_be_bytes());
        bytes[20..24].copy_from_slice(&0x0001_0002u32.to_be_bytes());
        bytes[24..28].copy_from_slice(&(!0x180u32).to_be_bytes());
        bytes
    }

    #[test]
    fn a_header_says_where_the_bits_are() {
        let info = BatmapInfo::parse(FileOffset::new(2048), &header()).expect("a sound header");
        assert_eq!((info.map_at, info.map_bytes), (FileOffset::new(2560), ByteLen::new(512)));
        assert!(!info.encrypted && !info.signed_sum);
        assert!(info.sum_is_right(&[0xC0, 0xC0, 9], ByteLen::new(2)));
        assert!(!info.sum_is_right(&[0xC0, 0xC0, 9], ByteLen::new(3)));
    }

    #[test]
    fn a_stranger_is_not_a_batmap() {
        let at = FileOffset::new(0);
        assert!(matches!(BatmapInfo::parse(at, &[0; 512]), Err(BatmapError::Cookie { .. })));
        assert!(matches!(BatmapInfo::parse(at, &[0; 5]), Err(BatmapError::Cookie { .. })));
        let mut bytes = header();
        bytes[23] = 9;
        let version = BatmapError::Version { found: 0x0001_0009 };
        assert_eq!(BatmapInfo::parse(at, &bytes), Err(version));
    }
}

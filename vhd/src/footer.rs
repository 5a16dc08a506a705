//! The 512-byte footer (section 1.1 of the format notes): raw layout, checks, and back to bytes.
//! It judges one copy alone; which of two copies counts is decided where an image is opened, and
//! size limits belong to the opener's policy.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::units::{ByteLen, FileOffset, SECTOR_BYTES};

/// Bytes of a footer.
pub const FOOTER_BYTES: usize = 512;
/// Bytes of the footer that Virtual PC wrote before 2004; its 512th byte is taken as zero.
pub const SHORT_FOOTER_BYTES: usize = 511;
/// The feature bit that every writer sets.
pub const FEATURE_RESERVED: u32 = 2;
/// The feature bit of a disk that its owner calls temporary.
pub const FEATURE_TEMPORARY: u32 = 1;
/// The creator of XenServer images.
pub const CREATOR_TAPDISK: [u8; 4] = *b"tap\0";

const COOKIE: [u8; 8] = *b"conectix";
const POISON: [u8; 8] = *b"v_poison";
const VERSION: u32 = 0x0001_0000;
const NOWHERE: u64 = u64::MAX;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawFooter {
    cookie: [u8; 8],
    features: U32,
    version: U32,
    data_offset: U64,
    timestamp: U32,
    creator_app: [u8; 4],
    creator_version: U32,
    creator_os: [u8; 4],
    original_size: U64,
    current_size: U64,
    cylinders: U16,
    heads: u8,
    sectors: u8,
    kind: U32,
    checksum: U32,
    uuid: [u8; 16],
    saved_state: u8,
    hidden: u8,
    reserved: [u8; 426],
}
const _: () = assert!(size_of::<RawFooter>() == FOOTER_BYTES);

/// What an image is: the disk type of its footer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskKind {
    /// Type 2: the disk's bytes from offset 0, then the footer.
    Fixed,
    /// Type 3: blocks allocated on demand; absent sectors are zero.
    Dynamic,
    /// Type 4: blocks allocated on demand; absent sectors are the parent's.
    Differencing,
}

impl DiskKind {
    /// The number the footer stores.
    pub const fn code(self) -> u32 {
        match self {
            Self::Fixed => 2,
            Self::Dynamic => 3,
            Self::Differencing => 4,
        }
    }

    const fn from_code(code: u32) -> Option<Self> {
        match code {
            2 => Some(Self::Fixed),
            3 => Some(Self::Dynamic),
            4 => Some(Self::Differencing),
            _ => None,
        }
    }

    /// Whether the image has a dynamic header and an allocation table.
    pub const fn is_sparse(self) -> bool {
        !matches!(self, Self::Fixed)
    }
}

/// Who wrote the image. Some readers derive the disk's size from it; this crate never does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Creator {
    /// Application, such as `win ` or `tap\0`.
    pub app: [u8; 4],
    /// Version, major in the upper 16 bits.
    pub version: u32,
    /// Operating system, such as `Wi2k`.
    pub os: [u8; 4],
}

/// Cylinders, heads and sectors per track: what a BIOS was told. Informative only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Chs {
    /// Cylinders.
    pub cylinders: u16,
    /// Heads.
    pub heads: u8,
    /// Sectors per track.
    pub sectors: u8,
}

impl Chs {
    /// The geometry that the VHD specification computes for a disk of `size` bytes (section 1.6).
    pub fn for_size(size: ByteLen) -> Self {
        const MOST: u64 = 65_535 * 16 * 255;
        let total = (size.get() / SECTOR_BYTES).min(MOST);
        let (heads, sectors, tracks);
        if total >= 65_535 * 16 * 63 {
            (heads, sectors, tracks) = (16, 255, total / 255);
        } else {
            (heads, sectors, tracks) = Self::small(total);
        }
        Self {
            cylinders: u16::try_from(tracks / heads).unwrap_or(u16::MAX),
            heads: u8::try_from(heads).unwrap_or(u8::MAX),
            sectors,
        }
    }

    fn small(total: u64) -> (u64, u8, u64) {
        let mut sectors = 17;
        let mut tracks = total / 17;
        let mut heads = tracks.div_ceil(1024).max(4);
        if tracks >= heads * 1024 || heads > 16 {
            (sectors, heads, tracks) = (31, 16, total / 31);
        }
        if tracks >= heads * 1024 {
            (sectors, heads, tracks) = (63, 16, total / 63);
        }
        (heads, sectors, tracks)
    }

    /// The bytes that this geometry addresses.
    pub fn capacity(self) -> ByteLen {
        let tracks = u64::from(self.cylinders) * u64::from(self.heads);
        ByteLen::new(tracks * u64::from(self.sectors) * SECTOR_BYTES)
    }
}

/// A footer whose cookie, checksum, version and type are right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Disk type.
    pub kind: DiskKind,
    /// Bytes of the virtual disk. Not yet checked against any limit.
    pub current_size: ByteLen,
    /// Bytes it had when made. Informative only.
    pub original_size: ByteLen,
    /// Where the dynamic header lies; `None` when the field says nowhere (all ones).
    pub data_offset: Option<FileOffset>,
    /// Seconds since 2000-01-01 00:00 UTC.
    pub timestamp: u32,
    /// Who wrote the image.
    pub creator: Creator,
    /// What a BIOS was told. Never the disk's size.
    pub geometry: Chs,
    /// Identity of the image, bytes in the order stored.
    pub uuid: [u8; 16],
    /// Feature bits; see [`FEATURE_RESERVED`].
    pub features: u32,
    /// 1 when a virtual machine was suspended over this disk.
    pub saved_state: u8,
    /// XenServer: 1 when the image is a base that only children may show.
    pub hidden: u8,
}

/// Why bytes are no footer that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FooterError {
    /// Neither 512 nor 511 bytes.
    #[error("a footer has 512 or 511 bytes, not {found}")]
    Length {
        /// Bytes given.
        found: usize,
    },
    /// No footer here at all.
    #[error("no footer: the cookie is {found:02x?}")]
    Cookie {
        /// First eight bytes found.
        found: [u8; 8],
    },
    /// A resize by another program is unfinished; only its journal can undo it.
    #[error("the footer is poisoned: a resize with a journal is unfinished")]
    Poisoned,
    /// The bytes changed after the footer was written.
    #[error("footer checksum {stored:#010x}, but its bytes sum to {computed:#010x}")]
    Checksum {
        /// What the footer says.
        stored: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// A format that this crate does not know.
    #[error("footer version {found:#010x}, expected 0x00010000")]
    Version {
        /// Version stored.
        found: u32,
    },
    /// Types 0, 1, 5, 6 and unknown ones.
    #[error("disk type {found}, expected 2, 3 or 4")]
    Kind {
        /// Type stored.
        found: u32,
    },
}

impl FooterError {
    /// Whether the bytes are damaged or never were a footer, so that another copy may stand in.
    /// An intact footer that cannot be used must not be passed over in favour of another copy.
    pub const fn is_damage(self) -> bool {
        matches!(self, Self::Length { .. } | Self::Cookie { .. } | Self::Checksum { .. })
    }
}

impl Footer {
    /// Parses 512 bytes, or the 511 of old Virtual PC.
    pub fn parse(bytes: &[u8]) -> Result<Self, FooterError> {
        let mut padded = [0; FOOTER_BYTES];
        if bytes.len() != FOOTER_BYTES && bytes.len() != SHORT_FOOTER_BYTES {
            return Err(FooterError::Length { found: bytes.len() });
        }
        padded[..bytes.len()].copy_from_slice(bytes);
        let raw = RawFooter::read_from_bytes(&padded).expect("the length is the layout's own");
        raw.check()?;
        let kind = DiskKind::from_code(raw.kind.get())
            .ok_or(FooterError::Kind { found: raw.kind.get() })?;
        Ok(Self {
            kind,
            current_size: ByteLen::new(raw.current_size.get()),
            original_size: ByteLen::new(raw.original_size.get()),
            data_offset: match raw.data_offset.get() {
                NOWHERE => None,
                at => Some(FileOffset::new(at)),
            },
            timestamp: raw.timestamp.get(),
            creator: Creator {
                app: raw.creator_app,
                version: raw.creator_version.get(),
                os: raw.creator_os,
            },
            geometry: Chs {
                cylinders: raw.cylinders.get(),
                heads: raw.heads,
                sectors: raw.sectors,
            },
            uuid: raw.uuid,
            features: raw.features.get(),
            saved_state: raw.saved_state,
            hidden: raw.hidden,
        })
    }

    /// The footer as it goes to disk, checksum included; reserved bytes are zero.
    pub fn to_bytes(&self) -> [u8; FOOTER_BYTES] {
        let mut raw = RawFooter {
            cookie: COOKIE,
            features: self.features.into(),
            version: VERSION.into(),
            data_offset: self.data_offset.map_or(NOWHERE, FileOffset::get).into(),
            timestamp: self.timestamp.into(),
            creator_app: self.creator.app,
            creator_version: self.creator.version.into(),
            creator_os: self.creator.os,
            original_size: self.original_size.get().into(),
            current_size: self.current_size.get().into(),
            cylinders: self.geometry.cylinders.into(),
            heads: self.geometry.heads,
            sectors: self.geometry.sectors,
            kind: self.kind.code().into(),
            checksum: 0.into(),
            uuid: self.uuid,
            saved_state: self.saved_state,
            hidden: self.hidden,
            reserved: [0; 426],
        };
        raw.checksum = checksum(raw.as_bytes()).into();
        let mut bytes = [0; FOOTER_BYTES];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }

    /// Whether the two are one image caught between the two writes of a footer update: all that
    /// differs is what such an update may change (section 1.7, rule 6).
    pub fn is_update_of(&self, other: &Self) -> bool {
        let mutable_from_self = Self {
            current_size: self.current_size,
            geometry: self.geometry,
            timestamp: self.timestamp,
            hidden: self.hidden,
            saved_state: self.saved_state,
            ..*other
        };
        mutable_from_self == *self
    }
}

impl RawFooter {
    fn check(&self) -> Result<(), FooterError> {
        if self.cookie == POISON {
            return Err(FooterError::Poisoned);
        }
        if self.cookie != COOKIE {
            return Err(FooterError::Cookie { found: self.cookie });
        }
        let stored = self.checksum.get();
        let computed = Self { checksum: 0.into(), ..*self }.sum();
        if stored != computed && !self.hidden_without_sum(stored) {
            return Err(FooterError::Checksum { stored, computed });
        }
        match self.version.get() {
            VERSION => Ok(()),
            found => Err(FooterError::Version { found }),
        }
    }

    fn sum(&self) -> u32 {
        checksum(self.as_bytes())
    }

    /// Early tapdisk tools set the hidden flag without renewing the checksum.
    fn hidden_without_sum(&self, stored: u32) -> bool {
        self.creator_app == CREATOR_TAPDISK
            && matches!(self.creator_version.get(), 0x0000_0001 | 0x0001_0001)
            && self.hidden != 0
            && stored == Self { checksum: 0.into(), hidden: 0, ..*self }.sum()
    }
}

/// One's complement of the byte sum; the caller has zeroed the checksum field.
pub(crate) fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::{Chs, Creator, DiskKind, Footer, FooterError, checksum};
    use crate::units::{ByteLen, FileOffset};

    fn sample() -> Footer {
        Footer {
            kind: DiskKind::Dynamic,
            current_size: ByteLen::new(4 << 20),
            original_size: ByteLen::new(4 << 20),
            data_offset: Some(FileOffset::new(512)),
            timestamp: 7,
            creator: Creator { app: *b"win ", version: 0x000A_0000, os: *b"Wi2k" },
            geometry: Chs { cylinders: 120, heads: 4, sectors: 17 },
            uuid: [9; 16],
            features: 2,
            saved_state: 0,
            hidden: 0,
        }
    }

    #[test]
    fn a_footer_survives_the_way_to_bytes_and_back() {
        assert_eq!(Footer::parse(&sample().to_bytes()), Ok(sample()));
        assert_eq!(Footer::parse(&sample().to_bytes()[..511]), Ok(sample()));
    }

    #[test]
    fn the_geometry_follows_the_specification() {
        assert_eq!(Chs::for_size(ByteLen::new(4 << 20)), sample().geometry);
        let of = |bytes| {
            let chs = Chs::for_size(ByteLen::new(bytes));
            (chs.cylinders, chs.heads, chs.sectors)
        };
        assert_eq!(of(0), (0, 4, 17));
        assert_eq!(of(512 << 20), (1040, 16, 63));
        assert_eq!(of(2040 << 30), (65535, 16, 255));
        assert_eq!(of(127 << 30), (65278, 16, 255));
    }

    #[test]
    fn every_fault_of_a_footer_has_its_name() {
        let good = sample().to_bytes();
        let with = |at: usize, value: &[u8], sum: bool| {
            let mut bytes = good;
            bytes[at..at + value.len()].copy_from_slice(value);
            if sum {
                bytes[64..68].fill(0);
                let sum = checksum(&bytes);
                bytes[64..68].copy_from_slice(&sum.to_be_bytes());
            }
            Footer::parse(&bytes)
        };
        assert_eq!(Footer::parse(&good[..510]), Err(FooterError::Length { found: 510 }));
        assert_eq!(with(0, b"v_poison", false), Err(FooterError::Poisoned));
        assert!(matches!(with(0, b"x", false), Err(FooterError::Cookie { .. })));
        assert!(matches!(with(100, b"x", false), Err(FooterError::Checksum { .. })));
        assert_eq!(with(12, &[0, 2, 0, 0], true), Err(FooterError::Version { found: 0x20000 }));
        assert_eq!(with(60, &[0, 0, 0, 7], true), Err(FooterError::Kind { found: 7 }));
    }

    #[test]
    fn a_hidden_flag_without_a_new_checksum_is_forgiven_to_early_tapdisk_only() {
        let mut footer = sample();
        footer.creator = Creator { app: *b"tap\0", version: 0x0001_0001, os: [0; 4] };
        let mut bytes = footer.to_bytes();
        bytes[85] = 1;
        assert_eq!(Footer::parse(&bytes).map(|footer| footer.hidden), Ok(1));
        let mut bytes = sample().to_bytes();
        bytes[85] = 1;
        assert!(matches!(Footer::parse(&bytes), Err(FooterError::Checksum { .. })));
    }

    #[test]
    fn only_what_an_update_changes_may_differ_between_the_copies() {
        let old = sample();
        assert!(Footer { current_size: ByteLen::new(512), hidden: 1, ..old }.is_update_of(&old));
        assert!(!Footer { uuid: [1; 16], ..old }.is_update_of(&old));
        assert!(!Footer { kind: DiskKind::Fixed, ..old }.is_update_of(&old));
    }
}

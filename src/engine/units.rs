//! Units of the engine: where the guest sees a byte, where a file keeps it, and how many.
//!
//! Refuses to mix them: a `DiskOffset` never becomes a `FileOffset` except through a layer.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};

/// Bytes in a sector: the grain of presence in a layer and of torn writes (crash model, 4.2).
pub const SECTOR: u64 = 512;

/// A byte position on the virtual disk, as the guest sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskOffset(u64);

/// A byte position in an image file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileOffset(u64);

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteLen(u64);

macro_rules! unit {
    ($name:ident) => {
        impl $name {
            /// Wraps a raw number of bytes.
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The raw number of bytes.
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

unit!(DiskOffset);
unit!(FileOffset);
unit!(ByteLen);

impl ByteLen {
    /// No bytes.
    pub const ZERO: Self = Self(0);

    /// Whether this is no byte at all.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The smaller of the two.
    pub fn min(self, other: Self) -> Self {
        Self(self.0.min(other.0))
    }
}

impl Add for ByteLen {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl AddAssign for ByteLen {
    fn add_assign(&mut self, other: Self) {
        self.0 += other.0;
    }
}

impl Sub for ByteLen {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 - other.0)
    }
}

impl Add<ByteLen> for DiskOffset {
    type Output = Self;
    fn add(self, len: ByteLen) -> Self {
        Self(self.0 + len.0)
    }
}

impl Sub for DiskOffset {
    type Output = ByteLen;
    fn sub(self, other: Self) -> ByteLen {
        ByteLen(self.0 - other.0)
    }
}

impl Add<ByteLen> for FileOffset {
    type Output = Self;
    fn add(self, len: ByteLen) -> Self {
        Self(self.0 + len.0)
    }
}

impl Sub for FileOffset {
    type Output = ByteLen;
    fn sub(self, other: Self) -> ByteLen {
        ByteLen(self.0 - other.0)
    }
}

/// A run of bytes of the virtual disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub at: DiskOffset,
    /// Length in bytes.
    pub len: ByteLen,
}

impl Extent {
    /// The run of `len` bytes from `at`.
    pub const fn new(at: DiskOffset, len: ByteLen) -> Self {
        Self { at, len }
    }

    /// The first byte behind the run.
    pub fn end(self) -> DiskOffset {
        self.at + self.len
    }

    /// Whether both have a byte in common.
    pub fn overlaps(self, other: Self) -> bool {
        self.at < other.end() && other.at < self.end()
    }

    /// The run without its first `len` bytes.
    pub fn after(self, len: ByteLen) -> Self {
        Self { at: self.at + len, len: self.len - len }
    }

    /// The run cut to at most `len` bytes.
    pub fn first(self, len: ByteLen) -> Self {
        Self { at: self.at, len: self.len.min(len) }
    }

    /// The smallest run of whole sectors around this one.
    pub fn whole_sectors(self) -> Self {
        let start = self.at.0 / SECTOR * SECTOR;
        let end = self.end().0.div_ceil(SECTOR) * SECTOR;
        Self { at: DiskOffset(start), len: ByteLen(end - start) }
    }
}

/// Which piece of lent memory a span lies in (the host's arena, later guest memory).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RegionId(pub u16);

/// Coordinates of lent bytes. The engine plans with spans and never touches what they name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The region.
    pub region: RegionId,
    /// First byte within the region.
    pub start: u32,
    /// Length in bytes.
    pub len: u32,
}

impl Span {
    /// The part of this span that starts `skip` bytes in and is `len` bytes long.
    ///
    /// # Panics
    /// When the part does not lie inside: the engine computed it, so that is our own error.
    pub fn part(self, skip: ByteLen, len: ByteLen) -> Self {
        let end = skip.0 + len.0;
        assert!(end <= u64::from(self.len), "part {skip}+{len} of a span of {}", self.len);
        Self { region: self.region, start: self.start + skip.0 as u32, len: len.0 as u32 }
    }

    /// The length as a unit.
    pub fn bytes(self) -> ByteLen {
        ByteLen(u64::from(self.len))
    }
}

//! Units of the VHD world. Each number says what it counts, so that an offset in the file is never
//! mistaken for an offset on the disk. Refuses to do arithmetic that could wrap.

use std::fmt;

/// Bytes of one sector, in the file and on the disk alike; VHD knows no other.
pub const SECTOR_BYTES: u64 = 512;

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name($inner);

        impl $name {
            /// Wraps the plain number.
            pub const fn new(value: $inner) -> Self {
                Self(value)
            }

            /// The plain number.
            pub const fn get(self) -> $inner {
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

unit!(
    /// A byte of the image file.
    FileOffset(u64)
);
unit!(
    /// A byte of the virtual disk, as the guest counts.
    DiskOffset(u64)
);
unit!(
    /// A length in bytes.
    ByteLen(u64)
);
unit!(
    /// An absolute sector of the image file (512 bytes each), as the allocation table stores it.
    SectorNo(u32)
);
unit!(
    /// The index of a block of the virtual disk, and of its entry in the allocation table.
    BlockIndex(u32)
);

impl FileOffset {
    /// The offset `len` bytes further on, unless that overflows.
    pub const fn checked_add(self, len: ByteLen) -> Option<Self> {
        match self.0.checked_add(len.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// The offset `len` bytes before this one, unless that is before the file.
    pub const fn checked_sub(self, len: ByteLen) -> Option<Self> {
        match self.0.checked_sub(len.0) {
            Some(rest) => Some(Self(rest)),
            None => None,
        }
    }

    /// Bytes from `earlier` to here, or `None` when `earlier` is later.
    pub const fn since(self, earlier: Self) -> Option<ByteLen> {
        match self.0.checked_sub(earlier.0) {
            Some(rest) => Some(ByteLen(rest)),
            None => None,
        }
    }

    /// Whether the offset is a whole multiple of `bytes` (not 0).
    pub const fn is_multiple_of(self, bytes: u64) -> bool {
        self.0.is_multiple_of(bytes)
    }

    /// The next multiple of `bytes` (not 0) at or after this one, unless that overflows.
    pub const fn round_up(self, bytes: u64) -> Option<Self> {
        match self.0.checked_next_multiple_of(bytes) {
            Some(up) => Some(Self(up)),
            None => None,
        }
    }
}

impl DiskOffset {
    /// The offset `len` bytes further on, unless that overflows.
    pub const fn checked_add(self, len: ByteLen) -> Option<Self> {
        match self.0.checked_add(len.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// Bytes from `earlier` to here, or `None` when `earlier` is later.
    pub const fn since(self, earlier: Self) -> Option<ByteLen> {
        match self.0.checked_sub(earlier.0) {
            Some(rest) => Some(ByteLen(rest)),
            None => None,
        }
    }
}

impl ByteLen {
    /// No bytes.
    pub const ZERO: Self = Self(0);

    /// The sum, unless it overflows.
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// The difference, unless it is negative.
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(rest) => Some(Self(rest)),
            None => None,
        }
    }

    /// The next multiple of `bytes` (not 0) at or above this length, unless that overflows.
    pub const fn round_up(self, bytes: u64) -> Option<Self> {
        match self.0.checked_next_multiple_of(bytes) {
            Some(up) => Some(Self(up)),
            None => None,
        }
    }

    /// The offset just behind this many bytes of a file.
    pub const fn end_of_file(self) -> FileOffset {
        FileOffset(self.0)
    }
}

impl SectorNo {
    /// Where the sector starts in the file.
    pub const fn offset(self) -> FileOffset {
        // A 32-bit number times 512 stays far below 2^64.
        FileOffset(self.0 as u64 * SECTOR_BYTES)
    }

    /// The sector that starts exactly at `at`; `None` when none does or its number needs more than
    /// 32 bits. The number that means "unallocated" in a table is no sector either.
    pub const fn at(at: FileOffset) -> Option<Self> {
        let number = at.0 / SECTOR_BYTES;
        if at.is_multiple_of(SECTOR_BYTES) && number < u32::MAX as u64 {
            Some(Self(number as u32))
        } else {
            None
        }
    }
}

impl BlockIndex {
    /// The index as a slice index.
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }
}

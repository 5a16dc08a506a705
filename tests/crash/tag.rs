//! What the guest writes: every 128-byte cell of the disk says who wrote it, where and when.
//!
//! Refuses to recognise anything else: zeroes are zeroes, the rest is garbage.

/// Bytes in a cell, the grain of requests in the simulator: a quarter of a sector, so that
/// requests with ragged ends are seen too.
pub(crate) const CELL: usize = 128;

/// The content of a cell, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Tag(pub u64);

impl Tag {
    /// All bytes zero.
    pub(crate) const ZERO: Self = Self(0);
    /// Nothing the guest or a parent ever wrote there.
    pub(crate) const GARBAGE: Self = Self(1);

    /// The content that write number `version` of disk `disk` puts into cell `cell`.
    pub(crate) fn new(disk: u8, cell: u32, version: u32) -> Self {
        let place = u64::from(disk) << 48 | u64::from(cell & 0xF_FFFF) << 28;
        Self(0xA5C << 52 | place | u64::from(version & 0xFFF_FFFF))
    }

    /// Fills a cell with this content.
    pub(crate) fn fill(self, cell: &mut [u8]) {
        for (at, word) in (0..).zip(cell.chunks_exact_mut(8)) {
            word.copy_from_slice(&self.word(at).to_le_bytes());
        }
    }

    fn word(self, at: u32) -> u64 {
        if self == Self::ZERO {
            return 0;
        }
        self.0.rotate_left(at * 3) ^ u64::from(at).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }

    /// What cell number `cell` holds.
    pub(crate) fn read(cell: u32, bytes: &[u8]) -> Self {
        let mut words = bytes
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().expect("chunks of eight bytes")));
        let first = Self(words.next().unwrap_or(0));
        let fits = first == Self::ZERO
            || (first.0 >> 52 == 0xA5C && (first.0 >> 28) as u32 & 0xF_FFFF == cell);
        let whole = fits && (1..).zip(words).all(|(at, word)| word == first.word(at));
        if whole { first } else { Self::GARBAGE }
    }
}

impl std::fmt::Display for Tag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::ZERO => f.write_str("zeroes"),
            Self::GARBAGE => f.write_str("GARBAGE"),
            Self(raw) => write!(f, "disk {} write {}", raw >> 48 & 15, raw & 0xFFF_FFFF),
        }
    }
}

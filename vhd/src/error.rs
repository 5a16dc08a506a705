//! What can be wrong with an image: errors that refuse it, warnings that do not, and reasons to
//! open it for reading only. Types alone; who finds them is elsewhere.

use std::fmt;

use crate::batmap::BatmapError;
use crate::footer::{DiskKind, FooterError};
use crate::header::HeaderError;
use crate::locator::LocatorError;
use crate::units::{BlockIndex, ByteLen, FileOffset, SectorNo};

/// A part of the file that belongs to something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Region {
    /// The copy of the footer at offset 0.
    FooterCopy,
    /// The dynamic header.
    Header,
    /// The block allocation table.
    Table,
    /// The data of the parent locator with this index.
    Locator(u8),
    /// The header of XenServer's batmap.
    BatmapHeader,
    /// The bits of XenServer's batmap.
    Batmap,
    /// The footer at the end of the file.
    TailFooter,
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FooterCopy => f.write_str("footer copy"),
            Self::Header => f.write_str("dynamic header"),
            Self::Table => f.write_str("allocation table"),
            Self::Locator(index) => write!(f, "parent locator {index}"),
            Self::BatmapHeader => f.write_str("batmap header"),
            Self::Batmap => f.write_str("batmap"),
            Self::TailFooter => f.write_str("footer"),
        }
    }
}

/// Why an image is refused. Offsets are bytes of the file, sizes bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Too short for any footer.
    #[error("the file has {found} bytes, too few for a footer")]
    TooSmall {
        /// Bytes of the file.
        found: ByteLen,
    },
    /// The caller brought other bytes than asked for: the file shrank, or a read fell short.
    #[error("{expected} bytes were asked for, {found} came")]
    WrongLength {
        /// Bytes asked for.
        expected: usize,
        /// Bytes that came.
        found: usize,
    },
    /// Neither the end nor the start of the file holds a footer.
    #[error("no footer at the end ({tail}) nor at the start ({front})")]
    NoFooter {
        /// Where the footer should be.
        at: FileOffset,
        /// What is wrong with the one at the end.
        tail: FooterError,
        /// What is wrong with the one at the start.
        front: FooterError,
    },
    /// An intact footer that cannot be used.
    #[error("the footer at {at} cannot be used: {cause}")]
    Footer {
        /// Where it lies.
        at: FileOffset,
        /// What is wrong.
        cause: FooterError,
    },
    /// The start of the file says "fixed disk", but there it is only guest data.
    #[error("no footer at the end ({tail}); a fixed disk has none at the start")]
    FixedWithoutTail {
        /// What is wrong with the one at the end.
        tail: FooterError,
    },
    /// Both copies are sound and belong to different images.
    #[error("the footers at the start and at {at} have different identities")]
    CopiesDifferInIdentity {
        /// Where the tail footer lies.
        at: FileOffset,
        /// Identity in the tail footer.
        tail: [u8; 16],
        /// Identity in the copy.
        front: [u8; 16],
    },
    /// Both copies are sound and say different disk types.
    #[error("the footer at {at} says {tail:?}, its copy says {front:?}")]
    CopiesDifferInKind {
        /// Where the tail footer lies.
        at: FileOffset,
        /// Type in the tail footer.
        tail: DiskKind,
        /// Type in the copy.
        front: DiskKind,
    },
    /// Both copies are sound and differ in what no update changes.
    #[error("the footer at {at} and its copy differ in more than an update changes")]
    CopiesDiffer {
        /// Where the tail footer lies.
        at: FileOffset,
    },
    /// XenServer's first images keep their bitmaps in another bit order.
    #[error("images of tapdisk 0.1 keep their bitmaps in another bit order")]
    LittleEndianBitmaps,
    /// XenServer's encrypted images.
    #[error("the image is encrypted (key hash in the batmap at {at})")]
    Encrypted {
        /// Where the batmap header lies.
        at: FileOffset,
    },
    /// A disk of no bytes.
    #[error("the disk has no bytes")]
    SizeZero,
    /// The size is no whole number of sectors.
    #[error("the disk size {found} is not a multiple of 512")]
    SizeUnaligned {
        /// Size stored.
        found: ByteLen,
    },
    /// Larger than the policy or the format allows.
    #[error("the disk size {found} is more than {most}")]
    SizeTooLarge {
        /// Size stored.
        found: ByteLen,
        /// Largest allowed.
        most: ByteLen,
    },
    /// A fixed image whose file ends too early.
    #[error("the disk has {size} bytes, its file room for {room}")]
    SizeBeyondFile {
        /// Size stored.
        size: ByteLen,
        /// Bytes before the footer.
        room: ByteLen,
    },
    /// A sparse image that says it has no dynamic header.
    #[error("the footer names no dynamic header")]
    NoHeaderOffset,
    /// The dynamic header would lie over the footer copy.
    #[error("the dynamic header at {at} lies over the footer copy")]
    HeaderOverlapsFooterCopy {
        /// Where the footer says it is.
        at: FileOffset,
    },
    /// The dynamic header would end behind the last byte it may use.
    #[error("the dynamic header at {at} ends behind {end}")]
    HeaderBeyondFile {
        /// Where the footer says it is.
        at: FileOffset,
        /// Where metadata must end.
        end: FileOffset,
    },
    /// The dynamic header is damaged or unknown.
    #[error("the dynamic header at {at}: {cause}")]
    Header {
        /// Where it lies.
        at: FileOffset,
        /// What is wrong.
        cause: HeaderError,
    },
    /// A block size that is no power of two.
    #[error("the block size {found} is not a power of two")]
    BlockSizeNotPowerOfTwo {
        /// Size stored.
        found: ByteLen,
    },
    /// A block size outside the policy.
    #[error("the block size {found} is not within {least} to {most}")]
    BlockSizeOutOfRange {
        /// Size stored.
        found: ByteLen,
        /// Smallest allowed.
        least: ByteLen,
        /// Largest allowed.
        most: ByteLen,
    },
    /// A table of no entries.
    #[error("the allocation table has no entries")]
    TableEmpty,
    /// Fewer entries than the disk has blocks.
    #[error("the allocation table has {found} entries, the disk needs {needed}")]
    TableTooSmall {
        /// Entries of the table.
        found: u32,
        /// Blocks of the disk; saturated.
        needed: u32,
    },
    /// More entries than the policy reads.
    #[error("the allocation table of {entries} entries needs more than {most} bytes")]
    TableTooLarge {
        /// Entries of the table.
        entries: u32,
        /// Most bytes allowed.
        most: ByteLen,
    },
    /// The table would end behind the last byte it may use.
    #[error("the allocation table at {at} ({len} bytes) ends behind {end}")]
    TableBeyondFile {
        /// Where the header says it is.
        at: FileOffset,
        /// Bytes of the table, whole sectors.
        len: ByteLen,
        /// Where metadata must end.
        end: FileOffset,
    },
    /// The table would lie over other metadata.
    #[error("the allocation table at {at} lies over the {region}")]
    TableOverlaps {
        /// Where the header says it is.
        at: FileOffset,
        /// What is there too.
        region: Region,
    },
    /// A differencing image without any locator.
    #[error("a differencing image without a parent locator")]
    NoLocators,
    /// A locator of a platform that does not exist.
    #[error("parent locator {index}: unknown platform {}", code.escape_ascii())]
    LocatorPlatform {
        /// Index of the entry.
        index: u8,
        /// Code stored.
        code: [u8; 4],
    },
    /// A locator without data, or with more than its space or the policy has room for.
    #[error("parent locator {index}: {found} bytes of data, expected 1 to {most}")]
    LocatorLength {
        /// Index of the entry.
        index: u8,
        /// Bytes stored.
        found: ByteLen,
        /// Most bytes allowed.
        most: ByteLen,
    },
    /// A locator whose data would end behind the last byte it may use.
    #[error("parent locator {index}: {len} bytes at {at} end behind {end}")]
    LocatorBeyondFile {
        /// Index of the entry.
        index: u8,
        /// Where the data starts.
        at: FileOffset,
        /// Bytes of data.
        len: ByteLen,
        /// Where metadata must end.
        end: FileOffset,
    },
    /// A locator whose data would lie over other metadata.
    #[error("parent locator {index}: data at {at} lies over the {region}")]
    LocatorOverlaps {
        /// Index of the entry.
        index: u8,
        /// Where the data starts.
        at: FileOffset,
        /// What is there too.
        region: Region,
    },
    /// A locator whose data is no path.
    #[error("parent locator {index} at {at}: {cause}")]
    Locator {
        /// Index of the entry.
        index: u8,
        /// Where the data starts.
        at: FileOffset,
        /// What is wrong.
        cause: LocatorError,
    },
    /// A block that the file does not cover.
    #[error("block {block} at sector {sector} ends at {end}, the file has {file} bytes")]
    EntryBeyondFile {
        /// The entry.
        block: BlockIndex,
        /// Its value.
        sector: SectorNo,
        /// Where the block would end.
        end: FileOffset,
        /// Bytes of the file.
        file: ByteLen,
    },
    /// A block over metadata.
    #[error("block {block} at sector {sector} lies over the {region}")]
    EntryOverlaps {
        /// The entry.
        block: BlockIndex,
        /// Its value.
        sector: SectorNo,
        /// What is there too.
        region: Region,
    },
    /// Two entries of the same value.
    #[error("blocks {first} and {second} are both at sector {sector}")]
    BlockShared {
        /// One entry.
        first: BlockIndex,
        /// Another entry.
        second: BlockIndex,
        /// Their value.
        sector: SectorNo,
    },
    /// Two blocks that lie partly over each other.
    #[error("block {second} at sector {at} starts inside block {first}, which ends at {end}")]
    BlocksOverlap {
        /// The block that starts earlier in the file.
        first: BlockIndex,
        /// The block that starts inside it.
        second: BlockIndex,
        /// Where the second one starts.
        at: SectorNo,
        /// Where the first one ends.
        end: FileOffset,
    },
}

/// What is odd about an image that opens all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// The footer at the end is lost; the copy at the start stands in.
    #[error("the footer at the end is lost: {0}")]
    TailLost(FooterError),
    /// The footer at the end has 511 bytes.
    #[error("the footer at the end has 511 bytes")]
    ShortTail,
    /// The copy at the start is damaged.
    #[error("the footer copy at the start is damaged: {0}")]
    FrontLost(FooterError),
    /// The two copies differ the way an unfinished update leaves them; the one at the end counts.
    #[error("the footer copy at the start is older than the footer at the end")]
    CopiesDiffer,
    /// A virtual machine was suspended over this disk.
    #[error("a virtual machine was suspended over this disk (saved state {0})")]
    SavedState(u8),
    /// Feature bits that nobody knows.
    #[error("unknown feature bits {0:#x}")]
    UnknownFeatures(u32),
    /// The cylinders, heads and sectors are not those of the size.
    #[error("the geometry addresses {geometry} bytes, the disk has {size}; the size counts")]
    Geometry {
        /// Bytes that the geometry addresses.
        geometry: ByteLen,
        /// Bytes of the disk.
        size: ByteLen,
    },
    /// A fixed image with bytes between the disk and the footer.
    #[error("{0} bytes lie unused between the disk and its footer")]
    FixedFileLonger(ByteLen),
    /// A fixed image whose footer names a dynamic header.
    #[error("a fixed disk's footer names a dynamic header at {0}; it is ignored")]
    FixedHasHeader(FileOffset),
    /// The header's unused offset is not all ones.
    #[error("the header's unused data offset is {0:#x}")]
    HeaderDataOffset(u64),
    /// Allocated entries behind the last block of the disk.
    #[error("{0} blocks behind the end of the disk are allocated")]
    EntriesBehindDisk(u32),
    /// The batmap is not to be used.
    #[error("the batmap is ignored: {0}")]
    Batmap(BatmapError),
    /// The parent's name fills its field.
    #[error("the parent's name is not terminated")]
    ParentNameUnterminated,
    /// A locator's text could not be decoded without loss.
    #[error("parent locator {0} is not Unicode")]
    LocatorLossy(u8),
    /// The space of a locator reaches over something else; only its data counts.
    #[error("the space of parent locator {0} does not fit where it is")]
    LocatorSpace(u8),
    /// The image can be opened for reading only.
    #[error("reading only: {0}")]
    ReadOnly(Reason),
}

/// Why an image may be opened for reading only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Reason {
    /// Sectors of the table would not be sectors of the file, so that no write of one is atomic.
    #[error("the allocation table at {0} is not aligned to sectors")]
    TableUnaligned(FileOffset),
    /// The dynamic header is not on a sector.
    #[error("the dynamic header at {0} is not aligned to sectors")]
    HeaderUnaligned(FileOffset),
    /// The feature bit that every writer sets is clear, so the others mean nobody knows what.
    #[error("feature bits {0:#x} lack the one that is always set")]
    ReservedFeatureClear(u32),
    /// A later tapdisk than any known.
    #[error("written by tapdisk {0:#010x}, later than 1.3")]
    LaterTapdisk(u32),
}

//! Everything a disk may ask of the outside world. Effects are plain data: a host carries them out
//! in any order and at any time, and tells the outcome.
//!
//! I6: memory named by an effect stays lent until its completion was given to the disk.

use super::units::{ByteLen, FileOffset, Span};

/// Names an effect of one disk until it completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EffectId(pub u32);

/// Names an open file of the host (for io_uring: the fixed-file slot).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u16);

/// The one file of a chain that may be written. I5: only a disk's leaf seat makes one, so no write
/// effect can name a parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafFile(FileId);

impl LeafFile {
    pub(super) const fn new(file: FileId) -> Self {
        Self(file)
    }

    /// The file behind it.
    pub const fn file(self) -> FileId {
        self.0
    }
}

/// Where read bytes go.
#[derive(Debug, PartialEq, Eq)]
pub enum Target {
    /// Lent memory; filled completely.
    Span(Span),
    /// The effect's own buffer; filled completely and handed back in the outcome.
    Owned(Vec<u8>),
}

impl Target {
    /// How many bytes the read must deliver.
    pub fn len(&self) -> ByteLen {
        match self {
            Self::Span(span) => span.bytes(),
            Self::Owned(bytes) => ByteLen::new(bytes.len() as u64),
        }
    }

    /// Whether nothing is to be read.
    pub fn is_empty(&self) -> bool {
        self.len().is_zero()
    }
}

/// Where written bytes come from.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    /// Lent memory.
    Span(Span),
    /// The effect's own bytes.
    Owned(Vec<u8>),
    /// Several pieces, written one behind the other as one write.
    Pieces(Vec<Piece>),
}

/// A piece of a gathered write.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// Lent memory.
    Span(Span),
    /// Bytes of the effect's own.
    Owned(Vec<u8>),
}

impl Piece {
    /// Length in bytes.
    pub fn len(&self) -> ByteLen {
        match self {
            Self::Span(span) => span.bytes(),
            Self::Owned(bytes) => ByteLen::new(bytes.len() as u64),
        }
    }

    /// Whether the piece has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len().is_zero()
    }
}

impl Source {
    /// How many bytes are written.
    pub fn len(&self) -> ByteLen {
        match self {
            Self::Span(span) => span.bytes(),
            Self::Owned(bytes) => ByteLen::new(bytes.len() as u64),
            Self::Pieces(pieces) => pieces.iter().map(Piece::len).fold(ByteLen::ZERO, |a, b| a + b),
        }
    }

    /// Whether nothing is written.
    pub fn is_empty(&self) -> bool {
        self.len().is_zero()
    }
}

/// An operation on a file. Each names itself by `id`, unique among the disk's effects in flight.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// Read exactly the target's length. Meeting the end of the file is a failure
    /// ([`IoError::UNEXPECTED_EOF`]), never zeroes: the engine asks only for bytes that must exist.
    Read {
        /// Name.
        id: EffectId,
        /// File.
        file: FileId,
        /// Position.
        at: FileOffset,
        /// Destination.
        into: Target,
        /// The host may leave the bytes where they are and say so ([`Outcome::Lent`]), if they can
        /// be sent from the page cache at once.
        may_lend: bool,
    },
    /// Write all bytes of the source. With `durable` the outcome waits until they (and what is
    /// needed to find them) are on stable storage (RWF_DSYNC).
    Write {
        /// Name.
        id: EffectId,
        /// File.
        file: LeafFile,
        /// Position.
        at: FileOffset,
        /// Bytes.
        from: Source,
        /// Wait for stable storage.
        durable: bool,
    },
    /// Make the range read as zeroes and keep space allocated for it.
    Zero {
        /// Name.
        id: EffectId,
        /// File.
        file: LeafFile,
        /// Position.
        at: FileOffset,
        /// Length.
        len: ByteLen,
    },
    /// Make the range read as zeroes and give its space back; writing zeroes is a valid fallback.
    /// Never changes the file's size.
    Punch {
        /// Name.
        id: EffectId,
        /// File.
        file: LeafFile,
        /// Position.
        at: FileOffset,
        /// Length.
        len: ByteLen,
    },
    /// Give the file this length; what is added reads as zeroes (ftruncate). Only a resize asks for
    /// it, and only of a regular file.
    SetLength {
        /// Name.
        id: EffectId,
        /// File.
        file: LeafFile,
        /// The new length.
        len: ByteLen,
    },
    /// Tell what of the range are holes of the file: bytes that take no space and read as zeroes. A
    /// host that cannot tell says it is all data. Never is a hole what an effect wrote that
    /// completed before this one started.
    Extents {
        /// Name.
        id: EffectId,
        /// File.
        file: FileId,
        /// Position.
        at: FileOffset,
        /// Length.
        len: ByteLen,
        /// Most runs wanted. The answer may stop short of the range's end.
        most: u32,
    },
    /// Make every effect on the file that completed before this one started durable (fdatasync).
    Sync {
        /// Name.
        id: EffectId,
        /// File.
        file: LeafFile,
    },
}

impl Effect {
    /// The effect's name.
    pub fn id(&self) -> EffectId {
        match self {
            Self::Read { id, .. }
            | Self::Write { id, .. }
            | Self::Zero { id, .. }
            | Self::Punch { id, .. }
            | Self::SetLength { id, .. }
            | Self::Extents { id, .. }
            | Self::Sync { id, .. } => *id,
        }
    }

    /// The file it works on.
    pub fn file(&self) -> FileId {
        match self {
            Self::Read { file, .. } | Self::Extents { file, .. } => *file,
            Self::Write { file, .. }
            | Self::Zero { file, .. }
            | Self::Punch { file, .. }
            | Self::SetLength { file, .. }
            | Self::Sync { file, .. } => file.file(),
        }
    }
}

/// A part of a file that is a hole, or not, throughout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileRun {
    /// Length in bytes.
    pub len: ByteLen,
    /// Whether it takes no space and reads as zeroes.
    pub hole: bool,
}

/// A failed operation, as the system named it (errno).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoError(pub i32);

impl IoError {
    /// Input/output error.
    pub const EIO: Self = Self(5);
    /// No space left on device.
    pub const ENOSPC: Self = Self(28);
    /// The file ended inside a read. Not an errno: no system call returns it.
    pub const UNEXPECTED_EOF: Self = Self(-1);

    /// Whether the cause is lack of space (ENOSPC, EDQUOT, EFBIG).
    pub fn is_space(self) -> bool {
        matches!(self.0, 28 | 122 | 27)
    }
}

impl std::fmt::Display for IoError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if *self == Self::UNEXPECTED_EOF {
            return f.write_str("the file ends inside the range (was it truncated while open?)");
        }
        write!(f, "{}", std::io::Error::from_raw_os_error(self.0))
    }
}

/// What came of an effect.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of it was done.
    Done,
    /// A read that allowed it was not done: its bytes can be sent from the file as they are.
    Lent,
    /// A read into an owned buffer was done; the buffer comes back.
    Bytes(Vec<u8>),
    /// What of a range are holes, in order, from its start on; never nothing.
    Extents(Vec<FileRun>),
    /// It failed. A failed write, zero or punch may have changed any part of its range.
    Failed(IoError),
}

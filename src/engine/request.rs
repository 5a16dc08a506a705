//! What a client of a disk may ask, and what it is told.

use super::effect::{FileId, IoError};
use super::units::{ByteLen, DiskOffset, Extent, FileOffset, Span};

/// The caller's name for a request; given back in the reply. Unique among those in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// A request to a disk. Extents lie inside the disk: the transport has checked the bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Fill `into` (same length as the extent) with the disk's bytes.
    Read {
        /// What to read.
        extent: Extent,
        /// Where the bytes go.
        into: Span,
    },
    /// As [`Self::Read`], for who can send parts of files as they are: a part may be named in the
    /// answer ([`Answer::Fetched`]) instead of read into the span, where it lies in a layer that
    /// nobody writes and the host says that it is at hand.
    Fetch {
        /// What to read.
        extent: Extent,
        /// Where the bytes go that are read.
        into: Span,
    },
    /// Store the bytes of `from`. With `fua` the reply waits until they are durable.
    Write {
        /// What to write.
        extent: Extent,
        /// The new bytes.
        from: Span,
        /// Force unit access.
        fua: bool,
    },
    /// Make the extent read as zeroes.
    Zero {
        /// What to zero.
        extent: Extent,
        /// Whether the space may be given back (NBD: no NO_HOLE flag).
        may_unmap: bool,
        /// Force unit access.
        fua: bool,
    },
    /// The content is no longer needed; it may read as before or as zeroes.
    Discard {
        /// What to discard.
        extent: Extent,
        /// Force unit access.
        fua: bool,
    },
    /// Tell where data and holes are, from the extent's start on, in at most `limit` runs.
    /// The answer may stop short of the extent's end, but covers at least one byte.
    Map {
        /// What to describe.
        extent: Extent,
        /// Most runs wanted.
        limit: u32,
    },
    /// Make everything acknowledged before this request was submitted durable.
    Flush,
    /// Let the disk grow to this size; what is added reads as zeroes. Replied to when the new size
    /// is durable, and with it everything acknowledged before. Requests submitted meanwhile wait.
    /// A failure leaves the old size in force, but until a later resize succeeds the image may
    /// open with either.
    Resize {
        /// The new size: whole sectors, not less than the old one.
        size: ByteLen,
    },
    /// Let no change begin from now on: writes, zeroings, discards and resizes wait until
    /// [`Disk::release`](super::Disk::release), while all else goes on. Replied to when those that
    /// began before have ended and everything is durable. A failure holds nothing.
    Hold,
}

impl Request {
    /// The part of the disk it touches, if it touches one.
    #[must_use]
    pub const fn extent(&self) -> Option<Extent> {
        match self {
            Self::Read { extent, .. }
            | Self::Fetch { extent, .. }
            | Self::Write { extent, .. }
            | Self::Zero { extent, .. }
            | Self::Discard { extent, .. }
            | Self::Map { extent, .. } => Some(*extent),
            Self::Flush | Self::Resize { .. } | Self::Hold => None,
        }
    }

    /// The part of the disk it changes. A longer disk changes nothing that was there.
    #[must_use]
    pub const fn changes(&self) -> Option<Extent> {
        match self {
            Self::Write { .. } | Self::Zero { .. } | Self::Discard { .. } => self.extent(),
            Self::Read { .. }
            | Self::Fetch { .. }
            | Self::Map { .. }
            | Self::Flush
            | Self::Resize { .. }
            | Self::Hold => None,
        }
    }
}

/// A piece of a read's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Bytes that lie in this part of the request's span.
    Data(Span),
    /// A run of zeroes; the span was not touched there.
    Hole(ByteLen),
}

/// A part of a fetch's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// As of a read.
    Segment(Segment),
    /// Bytes that lie in a file and were not read; the span was not touched there. They stay as
    /// they are for as long as the file is attached.
    Stored(Stored),
}

impl Part {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> ByteLen {
        match self {
            Self::Segment(Segment::Data(span)) => span.bytes(),
            Self::Segment(Segment::Hole(len)) => *len,
            Self::Stored(stored) => stored.len,
        }
    }

    /// Whether it covers nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len().is_zero()
    }
}

/// Where bytes of a disk lie in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The file.
    pub file: FileId,
    /// Position in the file.
    pub at: FileOffset,
    /// Length in bytes.
    pub len: ByteLen,
}

/// A run of a map answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRun {
    /// Length in bytes.
    pub len: ByteLen,
    /// What is there.
    pub kind: MapKind,
}

/// What a run of the disk is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// No layer holds it: reads as zeroes and takes no space.
    Hole,
    /// Held by the layer this many steps below the top (0 is the top).
    Data {
        /// Steps below the top layer.
        depth: u16,
    },
    /// Held by the layer, in a hole of its file: reads as zeroes, and may take no space.
    Sparse {
        /// Steps below the top layer.
        depth: u16,
    },
    /// A layer says that it is zero, hiding what lies below.
    Zero {
        /// Steps below the top layer.
        depth: u16,
    },
}

/// A successful answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done; for a read: the whole span holds data.
    Done,
    /// A read with holes, in order, covering the extent.
    Segments(Vec<Segment>),
    /// A fetch of which parts were not read, in order, covering the extent.
    Fetched(Vec<Part>),
    /// A map, in order, from the extent's start.
    Map(Vec<MapRun>),
}

/// The answer to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The request's id.
    pub id: RequestId,
    /// What came of it.
    pub result: Result<Answer, Fault>,
}

/// Why a request failed, with the place it failed at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} (layer {layer}, disk offset {at})")]
pub struct Fault {
    /// What went wrong.
    pub kind: FaultKind,
    /// The layer, counted from the top (0).
    pub layer: u16,
    /// The disk offset of the failing piece.
    pub at: DiskOffset,
}

/// The kinds of failure a request can meet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultKind {
    /// The file system refused an operation.
    #[error("I/O failed: {0}")]
    Io(IoError),
    /// Metadata read from the image breaks the format's rules.
    #[error("corrupt image: {0}")]
    Corrupt(String),
    /// The format or the device has no room for another block.
    #[error("no space left in the image: {0}")]
    NoSpace(&'static str),
    /// The image cannot do what was asked, and nothing was changed: what, why, and what could be
    /// done instead.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// The disk was opened read-only.
    #[error("the disk is read-only")]
    ReadOnly,
    /// An earlier failure made the disk unusable until it is opened again.
    #[error("the disk is stopped after an earlier failure: {0}")]
    Stopped(String),
}

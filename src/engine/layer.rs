//! What a format must be able to say about an image: where bytes live, and how its metadata reaches
//! the disk without ever lying after a crash. Formats answer; they do no I/O.

use super::request::FaultKind;
use super::units::{ByteLen, Extent, FileOffset};

/// A piece of metadata a layer needs before it can answer. The engine reads it and calls `learn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MetaPage {
    /// Where it lies in the layer's file.
    pub at: FileOffset,
    /// Its length in bytes; at most 64 KiB.
    pub len: u32,
}

/// Metadata that breaks the format's rules: what was found where, and what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Corrupt(pub String);

/// Where the first bytes of a wanted extent live. A length is never zero and never longer than
/// the extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Located {
    /// In this layer's file.
    Here(FileOffset, ByteLen),
    /// Not in this layer: the next one below knows.
    Below(ByteLen),
    /// This layer says they are zero, whatever lies below.
    Zero(ByteLen),
    /// Not known until this page was learnt.
    Ask(MetaPage),
}

/// An image somebody may read. It is opened on one thread and served on another.
pub trait Layer: Send {
    /// Length of the disk this layer describes, in bytes.
    fn size(&self) -> ByteLen;

    /// Where the first bytes of `wanted` live. `wanted` is not empty and lies within `size`.
    fn locate(&mut self, wanted: Extent) -> Located;

    /// Whether a map is to tell holes of this layer's file as such: where no metadata says what is
    /// empty, only the file system knows.
    fn is_flat(&self) -> bool {
        false
    }

    /// Takes in a page that `locate` or `place` asked for.
    ///
    /// # Errors
    /// When the page breaks the format's rules; the request that needed it fails.
    fn learn(&mut self, page: MetaPage, bytes: &[u8]) -> Result<(), Corrupt>;
}

/// A reserved home for bytes about to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The bytes of the disk it is for; starts where the wanted extent starts.
    pub extent: Extent,
    /// Where they go in the leaf's file.
    pub at: FileOffset,
    /// Whether a durable write of the bytes alone makes them durable and findable: the home is
    /// already described by durable metadata.
    pub settled: bool,
    /// What the format remembers about the reservation until `landed` or `failed`.
    pub token: PlaceToken,
}

/// The format's own note on a reservation; opaque to the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaceToken {
    /// The format's index of the unit of allocation.
    pub block: u32,
    /// The format's note on what is to happen when the bytes have landed.
    pub note: PlaceNote,
}

/// What becomes of a reservation when its effect completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaceNote {
    /// The bytes are present from then on.
    Present,
    /// They read as zeroes from then on; the file need not reach them yet.
    Zeroes,
    /// Nothing to remember: the metadata already describes them.
    Nothing,
    /// The block goes back to the free space once no durable metadata names it.
    Release,
}

/// Why a leaf cannot give a home right now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// A page must be learnt first.
    Ask(MetaPage),
    /// This range of the leaf's file must read as zeroes first (stale bytes of a block device);
    /// afterwards the engine calls `scrubbed(block)`.
    Scrub {
        /// The format's index of the unit of allocation.
        block: u32,
        /// First byte of the range.
        at: FileOffset,
        /// Length of the range in bytes.
        len: ByteLen,
    },
    /// These bytes must be in the leaf's file first; afterwards the engine calls `scrubbed(block)`,
    /// or `scrub_failed(block)`. They need not be durable.
    Cap {
        /// The format's index of the unit of allocation.
        block: u32,
        /// Where they go.
        at: FileOffset,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Too much metadata is dirty: a commit must settle first (back-pressure).
    Commit,
    /// The image cannot grow; the reason.
    NoSpace(&'static str),
}

/// How a leaf makes the first bytes of an extent read as zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hollow {
    /// They already do, and need nothing.
    Already(ByteLen),
    /// The reserved home is known to hold zeroes: `landed` may be called at once, no effect.
    Silent(Placed),
    /// Punch the reserved home, then call `landed`.
    Punch(Placed),
}

/// Which wave of a commit: 0 is the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WaveNo(pub u8);

/// The metadata writes of one wave, in no particular order. A barrier follows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wave {
    /// Position in the leaf's file and the bytes that go there.
    pub writes: Vec<(FileOffset, Vec<u8>)>,
}

/// A change that a resize makes to the leaf's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileChange {
    /// These bytes go to this place.
    Write(FileOffset, Vec<u8>),
    /// This range reads as zeroes from then on; the file keeps its length.
    Punch(FileOffset, ByteLen),
    /// The file has this length from then on.
    SetLength(ByteLen),
}

/// What a leaf wants next on its way to another size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResizeStep {
    /// These bytes of its file.
    Read(FileOffset, ByteLen),
    /// These changes, in any order; `sync` asks for a barrier behind them.
    Change {
        /// The changes; none when only the barrier is wanted.
        changes: Vec<FileChange>,
        /// Whether they must be durable before the next step.
        sync: bool,
    },
    /// Nothing: the new size is durable, and `size` says it.
    Done,
}

/// The one layer of a chain that takes writes.
///
/// A resize is `begin_resize`, then `resize_step` until it says [`ResizeStep::Done`]; the engine
/// carries out each step before it asks for the next, and serves nothing else meanwhile. Before it
/// begins everything is committed, so the leaf is not dirty and has no reservations.
///
///
/// A commit is wave 0, barrier, wave 1, barrier, ... until `wave` says `None`; then `settled`. If a
/// write of a wave fails, `abandoned` is called instead and the next commit starts over. A failed
/// barrier stops the disk, and the leaf is never called again (W8).
pub trait Leaf: Layer {
    /// Bytes of the disk that get a home as one, where they do: what a home is told of at a time.
    fn unit(&self) -> ByteLen {
        ByteLen::new(2 << 20)
    }

    /// Whether it keeps nothing: what is written, zeroed or discarded vanishes, and no home for it
    /// is asked for.
    fn forgets(&self) -> bool {
        false
    }

    /// Reserves a home for the first bytes of `wanted` (within one unit of allocation). No reader
    /// sees the home before `landed`. `wanted` is made of whole sectors unless every byte of its
    /// ragged sectors is already `Here`, or ends at the end of the disk.
    ///
    /// # Errors
    /// What must happen before it can be asked again.
    fn place(&mut self, wanted: Extent) -> Result<Placed, Blocked>;

    /// How to make the first bytes of `wanted` (whole sectors, or ending at the disk's end) read
    /// as zeroes, giving space back where possible. A hole in a child must hide the parent.
    ///
    /// # Errors
    /// What must happen before it can be asked again.
    fn hollow(&mut self, wanted: Extent) -> Result<Hollow, Blocked>;

    /// The write (or punch) into a reserved home completed: its bytes are visible to readers now.
    fn landed(&mut self, placed: &Placed);

    /// The write into a reserved home failed: its bytes stay as invisible as they were (W6).
    fn failed(&mut self, placed: &Placed);

    /// The range named by [`Blocked::Scrub`] reads as zeroes now.
    fn scrubbed(&mut self, block: u32);

    /// The scrub failed; the block must not be used before another one succeeds.
    fn scrub_failed(&mut self, block: u32);

    /// Whether a commit has metadata to write.
    fn dirty(&self) -> bool;

    /// The writes of wave `n`. Wave 0 takes the snapshot of everything landed so far (W5); later
    /// waves write only what was in it.
    fn wave(&mut self, n: WaveNo) -> Option<Wave>;

    /// The last barrier of the commit completed.
    fn settled(&mut self);

    /// A metadata write of the commit failed: what it meant to make durable is dirty again.
    fn abandoned(&mut self);

    /// Gets ready to grow to `size`, which is more than the size now and whole sectors.
    ///
    /// # Errors
    /// Why this image cannot have that size, what the most is, and what to do; nothing has changed
    /// and nothing more is asked.
    fn begin_resize(&mut self, size: ByteLen) -> Result<(), String> {
        Err(format!("an image of this kind cannot be given {size} bytes: its size is fixed"))
    }

    /// The next step; `read` are the bytes that the last one asked for. At every moment a crash
    /// must leave an image that opens with the old or the new size and with all its data.
    ///
    /// # Errors
    /// When what was read breaks the format's rules, or there is no room; the resize is undone.
    fn resize_step(&mut self, read: Option<Vec<u8>>) -> Result<ResizeStep, FaultKind> {
        let _nothing_asked = read;
        Ok(ResizeStep::Done)
    }

    /// The last step failed: what to change so that the old size is certain again; the leaf is as
    /// before `begin_resize`. If these changes fail too, the disk stops.
    fn undo_resize(&mut self) -> Vec<FileChange> {
        Vec::new()
    }
}

//! Seeded bugs: the wrong write orders of the crash model (4.4), and the classic slips of its 4.6.
//! They live outside the engine: as a wrapper around the leaf (`bad_leaf`), around the stream of
//! effects (`wire`), around recovery (`world`) and in what the client is told (`life`).
//!
//! Refuses to touch production code: what the simulator kills here is a composition of the real
//! engine with one lie.

/// A bug to build in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    // Of the leaf: the order and content of the waves.
    /// S1: table and visible bitmaps first, their targets after them.
    PointersFirst,
    /// S2: both waves in one epoch.
    OneEpoch,
    /// S3: the bitmaps of new blocks only in the second wave.
    LateBitmap,
    /// S8: every home counts as settled, so FUA is a durable write and no commit.
    FuaWithoutCommit,
    /// S9: a freed block is given to the next one that asks, at once.
    FreedBlockReused,
    /// S10: the second wave writes bits that landed after the snapshot.
    LiveBitmap,
    /// S10: the second wave writes entries of blocks that were placed after the snapshot.
    LiveTable,
    /// A flush is acknowledged after the first epoch; the second goes out with the next commit.
    AckBeforeSecondEpoch,
    /// W6: a failed write counts as landed.
    FailedWriteLands,
    /// A failed commit counts as settled.
    FailedCommitSettles,
    /// A block whose entry a failed commit prepared, and that gave its home back since, keeps the
    /// entry in memory: it goes out with its neighbours'.
    FailedCommitRemembered,
    /// W7: what must read as zero is not made so.
    ScrubSkipped,
    /// The bits of a bitmap are written the other way round.
    BitmapMirrored,
    /// The bits of a bitmap are off by one.
    BitmapShifted,
    /// The last sector of the disk is forgotten in bitmaps.
    LastSectorForgotten,
    /// The footer is never written behind new blocks.
    FooterForgotten,
    /// The footer, and with it the file's size, follows with the second wave only.
    FooterLate,
    /// Sectors count as present when their write starts.
    LandsEarly,
    /// New bits of visible blocks are never written.
    OldBitmapForgotten,
    /// Zeroing a range is taken to be done already.
    HollowForgotten,
    /// Zeroing in a child clears the bits, so that the parent shows through.
    TrimShowsParent,
    /// A table sector is written without the neighbours' entries.
    NeighbourEntryLost,
    /// Two blocks get the same home.
    DoubleAllocation,
    /// No step of a resize is made durable before the next.
    ResizeNotSynced,
    /// What lay behind the old end is left there.
    ResizeStaleShown,
    /// Of the footers only the copy in front learns the new size.
    ResizeOnlyInFront,
    /// The footer at a fixed image's new end says the new size before the old one's place is zero.
    ResizeTooSoon,
    /// A larger table is switched to before it, and the blocks it displaced, are durable.
    MoveNotSynced,
    /// Blocks in the way of a larger table are not copied.
    MoveCopiesNothing,
    // Of the wire: what the system is asked.
    /// Syncs are not done.
    NoSync,
    /// The barrier between the waves is not done.
    NoFirstBarrier,
    /// The barrier behind the last wave is not done.
    NoLastBarrier,
    /// Durable writes are plain writes.
    DurableForgotten,
    /// W9: a write counts as complete when it is submitted.
    CompleteAtSubmit,
    /// W8: a failed sync is tried again, and the second answer believed.
    SyncRetried,
    /// W8: a failed sync is ignored.
    SyncErrorIgnored,
    /// A failed write is ignored.
    WriteErrorIgnored,
    /// Zeroing and punching are not done.
    ZeroForgotten,
    /// A short write is taken for a whole one.
    ShortWriteAccepted,
    // Of the client's side.
    /// A flush is acknowledged when it is asked for.
    FlushAckAtOnce,
    /// A FUA write is handed down without the flag.
    FuaDropped,
    // Of recovery.
    /// Nothing is repaired before an image is written again.
    RecoverySkipped,
    /// The leftovers behind the last block are not cut off.
    RecoveryCutsNothing,
    /// The file is cut to its metadata.
    RecoveryCutsBlocks,
    /// What a killed predecessor left in the page cache is built upon without a sync.
    OpenWithoutSync,
}

/// All of them.
pub(crate) const ALL: [Bug; 45] = [
    Bug::PointersFirst,
    Bug::OneEpoch,
    Bug::LateBitmap,
    Bug::FuaWithoutCommit,
    Bug::FreedBlockReused,
    Bug::LiveBitmap,
    Bug::LiveTable,
    Bug::AckBeforeSecondEpoch,
    Bug::FailedWriteLands,
    Bug::FailedCommitSettles,
    Bug::FailedCommitRemembered,
    Bug::ScrubSkipped,
    Bug::BitmapMirrored,
    Bug::BitmapShifted,
    Bug::LastSectorForgotten,
    Bug::FooterForgotten,
    Bug::FooterLate,
    Bug::LandsEarly,
    Bug::OldBitmapForgotten,
    Bug::HollowForgotten,
    Bug::TrimShowsParent,
    Bug::NeighbourEntryLost,
    Bug::DoubleAllocation,
    Bug::ResizeNotSynced,
    Bug::ResizeStaleShown,
    Bug::ResizeOnlyInFront,
    Bug::ResizeTooSoon,
    Bug::MoveNotSynced,
    Bug::MoveCopiesNothing,
    Bug::NoSync,
    Bug::NoFirstBarrier,
    Bug::NoLastBarrier,
    Bug::DurableForgotten,
    Bug::CompleteAtSubmit,
    Bug::SyncRetried,
    Bug::SyncErrorIgnored,
    Bug::WriteErrorIgnored,
    Bug::ZeroForgotten,
    Bug::ShortWriteAccepted,
    Bug::FlushAckAtOnce,
    Bug::FuaDropped,
    Bug::RecoverySkipped,
    Bug::RecoveryCutsNothing,
    Bug::RecoveryCutsBlocks,
    Bug::OpenWithoutSync,
];

impl Bug {
    /// Whether only a failing operation can show it.
    pub(crate) fn needs_faults(self) -> bool {
        matches!(
            self,
            Self::FailedWriteLands
                | Self::FailedCommitSettles
                | Self::FailedCommitRemembered
                | Self::SyncRetried
                | Self::SyncErrorIgnored
                | Self::WriteErrorIgnored
        )
    }
}

//! What a problem means to whoever checks an image: which invariant it breaks, where, what was
//! expected and what to do about it. Tables only; nothing is decided here.

use crate::check::{Rule, Severity};
use crate::error::{OpenError, Warning};
use crate::survey::Places;
use crate::units::{BlockIndex, FileOffset};

impl OpenError {
    /// The invariant that is broken (section 1.9).
    pub const fn rule(&self) -> Rule {
        match self {
            Self::TooSmall { .. }
            | Self::WrongLength { .. }
            | Self::NoFooter { .. }
            | Self::FixedWithoutTail { .. } => Rule::V8,
            Self::Footer { .. }
            | Self::CopiesDifferInIdentity { .. }
            | Self::CopiesDifferInKind { .. }
            | Self::CopiesDiffer { .. }
            | Self::LittleEndianBitmaps
            | Self::Encrypted { .. } => Rule::V1,
            Self::SizeZero
            | Self::SizeUnaligned { .. }
            | Self::SizeTooLarge { .. }
            | Self::SizeBeyondFile { .. } => Rule::V12,
            Self::NoHeaderOffset
            | Self::HeaderOverlapsFooterCopy { .. }
            | Self::HeaderBeyondFile { .. }
            | Self::Header { .. }
            | Self::BlockSizeNotPowerOfTwo { .. }
            | Self::BlockSizeOutOfRange { .. } => Rule::V2,
            Self::TableEmpty
            | Self::TableTooSmall { .. }
            | Self::TableTooLarge { .. }
            | Self::TableBeyondFile { .. }
            | Self::TableOverlaps { .. } => Rule::V3,
            Self::LocatorLength { .. }
            | Self::LocatorBeyondFile { .. }
            | Self::LocatorOverlaps { .. } => Rule::V6,
            Self::NoLocators | Self::LocatorPlatform { .. } | Self::Locator { .. } => Rule::V7,
            Self::EntryBeyondFile { .. } | Self::EntryOverlaps { .. } => Rule::V4,
            Self::BlockShared { .. } | Self::BlocksOverlap { .. } => Rule::V5,
        }
    }

    /// The byte of the file that is wrong, as near as can be said.
    pub(crate) fn place(&self, places: &Places) -> FileOffset {
        match self {
            Self::TooSmall { .. } | Self::WrongLength { .. } | Self::FixedWithoutTail { .. } => {
                places.footer
            }
            Self::NoFooter { at, .. }
            | Self::Footer { at, .. }
            | Self::CopiesDifferInIdentity { at, .. }
            | Self::CopiesDifferInKind { at, .. }
            | Self::CopiesDiffer { at }
            | Self::Encrypted { at } => *at,
            Self::LittleEndianBitmaps => field(places.footer, 28),
            Self::SizeZero
            | Self::SizeUnaligned { .. }
            | Self::SizeTooLarge { .. }
            | Self::SizeBeyondFile { .. } => field(places.footer, 48),
            Self::NoHeaderOffset
            | Self::HeaderOverlapsFooterCopy { .. }
            | Self::HeaderBeyondFile { .. } => field(places.footer, 16),
            Self::Header { at, .. } => *at,
            Self::BlockSizeNotPowerOfTwo { .. } | Self::BlockSizeOutOfRange { .. } => {
                field(places.header, 32)
            }
            Self::TableEmpty | Self::TableTooSmall { .. } | Self::TableTooLarge { .. } => {
                field(places.header, 28)
            }
            Self::TableBeyondFile { .. } | Self::TableOverlaps { .. } => field(places.header, 16),
            Self::NoLocators => field(places.header, 576),
            Self::LocatorPlatform { index, .. }
            | Self::LocatorLength { index, .. }
            | Self::LocatorBeyondFile { index, .. }
            | Self::LocatorOverlaps { index, .. } => {
                field(places.header, 576 + u64::from(*index) * 24)
            }
            Self::Locator { at, .. } => *at,
            Self::EntryBeyondFile { block, .. } | Self::EntryOverlaps { block, .. } => {
                entry(places, *block)
            }
            Self::BlockShared { second, .. } | Self::BlocksOverlap { second, .. } => {
                entry(places, *second)
            }
        }
    }

    /// What a sound image has there.
    pub(crate) const fn expectation(&self) -> &'static str {
        match self {
            Self::TooSmall { .. } => "a file of at least 512 bytes",
            Self::WrongLength { .. } => "a file that keeps its length while it is read",
            Self::NoFooter { .. } | Self::FixedWithoutTail { .. } => "a footer at the end",
            Self::Footer { .. } => "a footer of version 1.0 and of type 2, 3 or 4",
            Self::CopiesDifferInIdentity { .. }
            | Self::CopiesDifferInKind { .. }
            | Self::CopiesDiffer { .. } => "two equal copies of the footer",
            Self::LittleEndianBitmaps => "bitmaps with the highest bit first",
            Self::Encrypted { .. } => "an image that is not encrypted",
            Self::SizeZero => "a disk of at least one sector",
            Self::SizeUnaligned { .. } => "a disk of whole sectors",
            Self::SizeTooLarge { .. } => "a disk within the limit",
            Self::SizeBeyondFile { .. } => "a file that holds the whole disk",
            Self::NoHeaderOffset
            | Self::HeaderOverlapsFooterCopy { .. }
            | Self::HeaderBeyondFile { .. } => "a dynamic header inside the file",
            Self::Header { .. } => "an intact dynamic header of version 1.0",
            Self::BlockSizeNotPowerOfTwo { .. } | Self::BlockSizeOutOfRange { .. } => {
                "a power of two within the limits"
            }
            Self::TableEmpty | Self::TableTooSmall { .. } => "an entry for every block of the disk",
            Self::TableTooLarge { .. } => "a table within the limit",
            Self::TableBeyondFile { .. } | Self::TableOverlaps { .. } => {
                "a table inside the file, in a place of its own"
            }
            Self::NoLocators => "at least one parent locator",
            Self::LocatorPlatform { .. } => "a platform of the specification",
            Self::LocatorLength { .. } => "data that fits its space",
            Self::LocatorBeyondFile { .. } | Self::LocatorOverlaps { .. } => {
                "locator data inside the file, in a place of its own"
            }
            Self::Locator { .. } => "a path",
            Self::EntryBeyondFile { .. } => "a block inside the file",
            Self::EntryOverlaps { .. } => "a block clear of all metadata",
            Self::BlockShared { .. } | Self::BlocksOverlap { .. } => "a place for each block",
        }
    }

    /// What to do about it.
    pub(crate) const fn hint(&self) -> &'static str {
        match self {
            Self::TooSmall { .. } | Self::NoFooter { .. } | Self::FixedWithoutTail { .. } => {
                "is the file complete, and is it a VHD image at all?"
            }
            Self::WrongLength { .. } => "check again while nothing writes the file",
            Self::Footer { .. } => {
                "if another program was resizing it, revert with that program's journal"
            }
            Self::LittleEndianBitmaps | Self::Encrypted { .. } => "convert it with XenServer",
            Self::NoLocators
            | Self::LocatorPlatform { .. }
            | Self::Locator { .. }
            | Self::LocatorLength { .. }
            | Self::LocatorBeyondFile { .. }
            | Self::LocatorOverlaps { .. } => "name the parent again with the program that made it",
            _ => "restore the image from a backup; guessing here would mix up guest data",
        }
    }
}

impl Warning {
    /// The invariant that it touches (section 1.9).
    pub const fn rule(&self) -> Rule {
        match self {
            Self::TailLost(_) | Self::ShortTail => Rule::V8,
            Self::FrontLost(_)
            | Self::CopiesDiffer
            | Self::SavedState(_)
            | Self::UnknownFeatures(_)
            | Self::ReadOnly(_) => Rule::V1,
            Self::Geometry { .. } | Self::FixedFileLonger(_) => Rule::V12,
            Self::FixedHasHeader(_) | Self::HeaderDataOffset(_) => Rule::V2,
            Self::EntriesBehindDisk(_) => Rule::V3,
            Self::Batmap(_) => Rule::V11,
            Self::ParentNameUnterminated | Self::LocatorLossy(_) => Rule::V7,
            Self::LocatorSpace(_) => Rule::V6,
        }
    }

    /// Lost copies make an image that other programs refuse; the rest is merely odd.
    pub(crate) const fn severity(&self) -> Severity {
        match self {
            Self::TailLost(_) | Self::FrontLost(_) | Self::CopiesDiffer => Severity::Error,
            _ => Severity::Warning,
        }
    }

    pub(crate) fn place(&self, places: &Places) -> FileOffset {
        match self {
            Self::TailLost(_) | Self::ShortTail => places.footer,
            Self::FrontLost(_) | Self::CopiesDiffer => FileOffset::new(0),
            Self::SavedState(_) => field(places.footer, 84),
            Self::UnknownFeatures(_) | Self::ReadOnly(_) => field(places.footer, 8),
            Self::Geometry { .. } => field(places.footer, 56),
            Self::FixedFileLonger(_) => field(places.footer, 48),
            Self::FixedHasHeader(_) => field(places.footer, 16),
            Self::HeaderDataOffset(_) => field(places.header, 8),
            Self::EntriesBehindDisk(_) | Self::Batmap(_) => places.table,
            Self::ParentNameUnterminated => field(places.header, 64),
            Self::LocatorLossy(index) | Self::LocatorSpace(index) => {
                field(places.header, 576 + u64::from(*index) * 24)
            }
        }
    }

    pub(crate) const fn expectation(&self) -> &'static str {
        match self {
            Self::TailLost(_) | Self::ShortTail => "a footer of 512 bytes at the end",
            Self::FrontLost(_) | Self::CopiesDiffer => "two equal copies of the footer",
            Self::SavedState(_) => "no saved state",
            Self::UnknownFeatures(_) | Self::ReadOnly(_) => "known features, everything aligned",
            Self::Geometry { .. } => "the geometry that the specification computes",
            Self::FixedFileLonger(_) => "a footer right behind the disk",
            Self::FixedHasHeader(_) | Self::HeaderDataOffset(_) => "an offset of all ones",
            Self::EntriesBehindDisk(_) => "blocks of the disk only",
            Self::Batmap(_) => "a batmap right behind the table",
            Self::ParentNameUnterminated | Self::LocatorLossy(_) => "a terminated Unicode name",
            Self::LocatorSpace(_) => "locator space inside the file",
        }
    }

    pub(crate) const fn hint(&self) -> &'static str {
        match self {
            Self::TailLost(_) | Self::ShortTail | Self::FrontLost(_) | Self::CopiesDiffer => {
                "repair the image, or open it for writing once"
            }
            Self::Geometry { .. } => "programs that believe the geometry show another size",
            Self::SavedState(_) => "resume or discard the suspended machine before writing",
            Self::ReadOnly(_) => "convert the image to write to it",
            _ => "nothing needs to be done",
        }
    }
}

/// A field of a part of the file; the part was read, so its offsets are far from overflowing.
fn field(part: FileOffset, offset: u64) -> FileOffset {
    FileOffset::new(part.get().saturating_add(offset))
}

fn entry(places: &Places, block: BlockIndex) -> FileOffset {
    field(places.table, u64::from(block.get()) * 4)
}

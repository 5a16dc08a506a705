//! What must be written before an image is opened for writing after a crash. Plans only. Relies on
//! one sector being written whole or not at all, and keeps one good footer at every moment, so
//! that a crash between any two steps, or inside one, leaves an image that the same plan repairs.

use crate::footer::FOOTER_BYTES;
use crate::image::{Image, Sparse, TailState};
use crate::units::{ByteLen, FileOffset, SECTOR_BYTES};

/// What Microsoft's programs align the end of their files to; the footer is the last sector of it.
const MICROSOFT_ALIGN_BYTES: u64 = 4096;

/// What holds the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// A regular file: the footer follows the last block.
    File,
    /// A device: the footer is its last sector, and nothing can be cut off. Bytes behind the last
    /// block may be anything.
    Device {
        /// Bytes of the device.
        len: ByteLen,
    },
}

/// One step of a repair. The next one starts when it has completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RepairStep {
    /// Write these bytes, growing the file if need be.
    Write {
        /// Where they start.
        at: FileOffset,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Cut the file.
    Truncate {
        /// Its new length.
        len: ByteLen,
    },
    /// Make everything so far durable, the length included.
    Sync,
}

/// What to do before the first write to an image. Empty when nothing needs to be done, and when
/// the image must not be written at all.
///
/// Afterwards both footers are in place and equal, the file has [`recovered_len`] bytes, and
/// whatever an unfinished allocation left behind the last block is gone, so that it can never
/// become guest data. What lies between [`Sparse::blocks_end`] and that length need not be zero:
/// it holds the footer, in images of Microsoft's programs up to 4 KiB before it too. A block put
/// there must overwrite it (rule W7).
pub fn recovery_plan(image: &Image, backing: Backing) -> Vec<RepairStep> {
    let Some(sparse) = image.sparse() else { return fixed_plan(image, backing) };
    if sparse.write_refusal.is_some() {
        return Vec::new();
    }
    let mut steps = Vec::new();
    let footer = image.footer_bytes().to_vec();
    if !sparse.front_matches {
        // First of all: from here on the copy is good, and the footer at the end may go.
        steps.push(RepairStep::Write { at: FileOffset::new(0), bytes: footer.clone() });
        steps.push(RepairStep::Sync);
    }
    if tail_stays(image, sparse, backing) {
        return steps;
    }
    let Some(at) = new_tail(sparse, backing) else { return steps };
    let len = ByteLen::new(at.get() + FOOTER_BYTES as u64);
    steps.push(RepairStep::Write { at, bytes: footer });
    steps.push(RepairStep::Sync);
    if backing == Backing::File && image.file_len > len {
        // Only now: had the cut come first, a crash would leave no footer at the end.
        steps.push(RepairStep::Truncate { len });
        steps.push(RepairStep::Sync);
    }
    steps
}

/// Bytes of the file once [`recovery_plan`] is carried out.
pub fn recovered_len(image: &Image, backing: Backing) -> ByteLen {
    let Some(sparse) = image.sparse() else {
        return fixed_len(image, backing).unwrap_or(image.file_len);
    };
    match backing {
        Backing::Device { len } => len,
        Backing::File if sparse.write_refusal.is_some() || tail_stays(image, sparse, backing) => {
            image.file_len
        }
        Backing::File => new_tail(sparse, backing)
            .and_then(|at| at.checked_add(ByteLen::new(FOOTER_BYTES as u64)))
            .map_or(image.file_len, |end| ByteLen::new(end.get())),
    }
}

/// A fixed image's file that has grown without its footer is cut behind it, in one step.
fn fixed_plan(image: &Image, backing: Backing) -> Vec<RepairStep> {
    match fixed_len(image, backing) {
        Some(len) => vec![RepairStep::Truncate { len }, RepairStep::Sync],
        None => Vec::new(),
    }
}

fn fixed_len(image: &Image, backing: Backing) -> Option<ByteLen> {
    let end = image.footer_at.get().saturating_add(FOOTER_BYTES as u64);
    let displaced = end < image.file_len.get() && backing == Backing::File;
    (displaced && image.write_refusal().is_none()).then_some(ByteLen::new(end))
}

/// Where a footer goes; `None` on a device that has no room for one behind its last block.
fn new_tail(sparse: &Sparse, backing: Backing) -> Option<FileOffset> {
    let behind_blocks = sparse.blocks_end.round_up(SECTOR_BYTES)?;
    match backing {
        Backing::File => Some(behind_blocks),
        Backing::Device { len } => {
            let at = len.end_of_file().checked_sub(ByteLen::new(FOOTER_BYTES as u64))?;
            (at >= behind_blocks).then_some(at)
        }
    }
}

/// Whether the footer at the end is sound and where it should be.
fn tail_stays(image: &Image, sparse: &Sparse, backing: Backing) -> bool {
    let end = image.file_len.end_of_file();
    let at = end.checked_sub(ByteLen::new(FOOTER_BYTES as u64)).unwrap_or_default();
    let there = match sparse.tail {
        TailState::Good | TailState::FrontBad | TailState::Differ => true,
        TailState::Missing | TailState::Short511 => false,
    };
    let (true, Some(wanted)) = (there, new_tail(sparse, backing)) else { return false };
    if at == wanted {
        return true;
    }
    // A gap that leaves no room for a block holds nothing that could become guest data.
    let gap = at.since(wanted);
    backing == Backing::File
        && end.is_multiple_of(MICROSOFT_ALIGN_BYTES)
        && gap.is_some_and(|gap| {
            gap.get() <= MICROSOFT_ALIGN_BYTES && gap < sparse.geometry.slot_bytes()
        })
}

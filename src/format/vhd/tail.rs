//! The end of the image: where the next block goes, and where the trailing footer belongs.
//!
//! A new block never overwrites the footer that is on disk (W3): it goes behind it, with its data
//! on a multiple of 4 KiB. On a regular file everything behind the end reads as zeroes, so a new
//! block is clean (W7); on a device it holds whatever was there and must be scrubbed first.

use vhd::{FileOffset, Geometry, SectorNo};

use crate::engine::layer::Blocked;

/// What the image lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// A file that grows; bytes behind its end read as zeroes.
    File,
    /// A block device of fixed size; unused bytes hold anything.
    Device,
}

pub(super) struct Tail {
    pub(super) backing: Backing,
    /// End of the last reserved block (or of the image's bytes before the footer).
    end: FileOffset,
    /// Where the footer on disk starts.
    footer_at: FileOffset,
    footer: Vec<u8>,
    /// Blocks that no durable metadata names any more.
    free: Vec<SectorNo>,
}

impl Tail {
    /// The tail of an image that was just opened. `file_end` is the file's length; `blocks_end`
    /// the end of its last block.
    pub(super) fn new(
        backing: Backing,
        file_end: FileOffset,
        blocks_end: FileOffset,
        footer: Vec<u8>,
    ) -> Self {
        let footer_at = FileOffset::new(file_end.get().saturating_sub(footer.len() as u64));
        let end = match backing {
            Backing::File => footer_at,
            Backing::Device => blocks_end,
        };
        Self { backing, end, footer_at, footer, free: Vec::new() }
    }

    /// End of the last reserved block.
    pub(super) const fn end(&self) -> FileOffset {
        self.end
    }

    /// Reserves room for a block.
    pub(super) fn reserve(&mut self, geometry: &Geometry) -> Result<SectorNo, Blocked> {
        if let Some(slot) = self.free.pop() {
            return Ok(slot);
        }
        let after = match self.backing {
            Backing::File => self.end.checked_add(vhd::ByteLen::new(self.footer.len() as u64)),
            Backing::Device => Some(self.end),
        };
        let slot = after
            .and_then(|after| geometry.next_slot(after))
            .ok_or(Blocked::NoSpace("its blocks would need sector numbers of more than 32 bits"))?;
        let end = geometry.slot_end(slot);
        if self.backing == Backing::Device && end > self.footer_at {
            return Err(Blocked::NoSpace("the block device is full"));
        }
        self.end = end;
        Ok(slot)
    }

    /// Takes back blocks; no durable metadata names them, and their data reads as zeroes.
    pub(super) fn release(&mut self, slots: impl IntoIterator<Item = SectorNo>) {
        self.free.extend(slots);
    }

    /// The footer, as it would be written now.
    pub(super) fn footer(&self) -> &[u8] {
        &self.footer
    }

    /// The footer's write, if the footer on disk is not where it belongs.
    pub(super) fn footer_write(&self) -> Option<(FileOffset, Vec<u8>)> {
        self.footer_moved().then(|| (self.end, self.footer.clone()))
    }

    /// Whether the footer on disk is not where it belongs.
    pub(super) fn footer_moved(&self) -> bool {
        self.backing == Backing::File && self.end != self.footer_at
    }

    /// The image reaches to `end` now, and its footer is durable there (on a device it stays).
    pub(super) fn reach(&mut self, end: FileOffset) {
        self.end = self.end.max(end);
        if self.backing == Backing::File {
            self.footer_at = self.end;
        }
    }

    /// Free homes of this kind must not be given out any more.
    pub(super) fn forget_free(&mut self, gone: impl Fn(SectorNo) -> bool) {
        self.free.retain(|slot| !gone(*slot));
    }

    /// Where the footer on disk starts.
    pub(super) const fn footer_at(&self) -> FileOffset {
        self.footer_at
    }

    /// The image has another footer from now on, where the old one was.
    pub(super) fn replace_footer(&mut self, footer: Vec<u8>) {
        self.footer = footer;
    }

    /// The footer is durable at this place now.
    pub(super) const fn footer_settled(&mut self, at: FileOffset) {
        self.footer_at = at;
    }
}

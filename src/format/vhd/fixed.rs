//! Fixed VHDs that are written: a flat disk with a footer behind it, which moves when the disk
//! grows.
//!
//! A reader takes the last sector of the file for the footer, and the footer for the truth. So the
//! old size goes to the new end first, in a footer of its own: the disk is as before, its file is
//! longer than needed. Then the old footer's place becomes zeroes, which no disk shows yet. Last,
//! the footer at the new end is overwritten, one sector, and the disk has its new size.
//!
//! Where a file system keeps the length and loses the footer, there are zeroes behind the old one,
//! and opening finds it (`vhd::repair`).

use std::collections::VecDeque;

use vhd::image::MAX_FOOTER_JUMP_BYTES;
use vhd::{Chs, Footer, Image, Limits};

use super::tail::Backing;
use super::{file_at, len_of};
use crate::engine::layer::{
    Blocked, Corrupt, FileChange, Hollow, Layer, Leaf, Located, MetaPage, Placed, ResizeStep, Wave,
    WaveNo,
};
use crate::engine::request::FaultKind;
use crate::engine::units::{ByteLen, Extent, FileOffset};
use crate::format::flat::Flat;

/// Places made zero in one step.
const STEP_PUNCHES: usize = 64;
const FOOTER_BYTES: u64 = vhd::footer::FOOTER_BYTES as u64;

/// A writable fixed VHD.
pub struct FixedLeaf {
    flat: Flat,
    backing: Backing,
    footer: Footer,
    /// Where the footer on disk starts.
    footer_at: FileOffset,
    growth: Option<Growth>,
}

struct Growth {
    footer: Footer,
    /// Steps to take, and where the footer is once one is done.
    steps: VecDeque<(Vec<FileChange>, FileOffset)>,
    /// The step that was taken last, until the next one is asked for.
    taken: Option<FileOffset>,
    /// How to go back from it.
    undo: Option<FileChange>,
}

impl FixedLeaf {
    /// The leaf of an opened fixed image.
    pub fn new(image: &Image, backing: Backing) -> Self {
        Self {
            flat: Flat::new(len_of(image.disk_size())),
            backing,
            footer: image.footer,
            footer_at: file_at(image.footer_at),
            growth: None,
        }
    }
}

impl Layer for FixedLeaf {
    fn size(&self) -> ByteLen {
        self.flat.size()
    }

    fn locate(&mut self, wanted: Extent) -> Located {
        self.flat.locate(wanted)
    }

    fn is_flat(&self) -> bool {
        self.flat.is_flat()
    }

    fn learn(&mut self, page: MetaPage, bytes: &[u8]) -> Result<(), Corrupt> {
        self.flat.learn(page, bytes)
    }
}

impl Leaf for FixedLeaf {
    fn place(&mut self, wanted: Extent) -> Result<Placed, Blocked> {
        self.flat.place(wanted)
    }

    fn hollow(&mut self, wanted: Extent) -> Result<Hollow, Blocked> {
        self.flat.hollow(wanted)
    }

    fn landed(&mut self, _placed: &Placed) {}

    fn failed(&mut self, _placed: &Placed) {}

    fn scrubbed(&mut self, _block: u32) {}

    fn scrub_failed(&mut self, _block: u32) {}

    fn dirty(&self) -> bool {
        false
    }

    fn wave(&mut self, _n: WaveNo) -> Option<Wave> {
        None
    }

    fn settled(&mut self) {}

    fn abandoned(&mut self) {}

    fn begin_resize(&mut self, size: ByteLen) -> Result<(), String> {
        let most = len_of(Limits::default().max_fixed_bytes);
        if size > most {
            return Err(format!("a fixed VHD of {size} bytes; the most is {most}"));
        }
        if !self.footer_at.get().is_multiple_of(512) {
            return Err(format!(
                "its footer starts inside a sector (at {}), as an early program left it; copy the \
                 disk into a new image",
                self.footer_at
            ));
        }
        let new_at = FileOffset::new(size.get()).max(self.footer_at);
        if self.backing == Backing::Device && new_at > self.footer_at {
            return Err(format!(
                "the block device has room for a disk of {} bytes and not for {size}; grow the \
                 device, move the footer to its new end, and open the image again",
                self.footer_at
            ));
        }
        let vhd_size = vhd::ByteLen::new(size.get());
        let geometry = Chs::for_size(vhd_size);
        let footer = Footer { current_size: vhd_size, geometry, ..self.footer };
        let mut steps = VecDeque::new();
        let mut stale = Vec::new();
        let mut at = self.footer_at;
        while at < new_at {
            // If only the length survives a crash, the footer is looked for so far back.
            let jump = (new_at - at).min(ByteLen::new(MAX_FOOTER_JUMP_BYTES));
            if at > self.footer_at {
                stale.push(FileChange::Punch(at, FOOTER));
            }
            at = at + jump;
            let bytes = self.footer.to_bytes().to_vec();
            steps.push_back((vec![FileChange::Write(at, bytes)], at));
        }
        // W7: behind the old end there may be anything, among it the old footer.
        let old_end = FileOffset::new(self.size().get());
        let stale_end = FileOffset::new(size.get()).min(self.footer_at + FOOTER);
        if stale_end > old_end {
            stale.push(FileChange::Punch(old_end, stale_end - old_end));
        }
        steps.extend(stale.chunks(STEP_PUNCHES).map(|some| (some.to_vec(), new_at)));
        steps.push_back((vec![FileChange::Write(new_at, footer.to_bytes().to_vec())], new_at));
        self.growth = Some(Growth { footer, steps, taken: None, undo: None });
        Ok(())
    }

    fn resize_step(&mut self, _read: Option<Vec<u8>>) -> Result<ResizeStep, FaultKind> {
        let Some(growth) = &mut self.growth else { return Ok(ResizeStep::Done) };
        if let Some(at) = growth.taken.take() {
            self.footer_at = at;
        }
        let Some((changes, footer_at)) = growth.steps.pop_front() else {
            self.footer = growth.footer;
            self.flat = Flat::new(len_of(self.footer.current_size));
            self.growth = None;
            return Ok(ResizeStep::Done);
        };
        growth.taken = Some(footer_at);
        growth.undo = match &changes[0] {
            FileChange::Write(at, _) if *at == self.footer_at => {
                Some(FileChange::Write(*at, self.footer.to_bytes().to_vec()))
            }
            FileChange::Write(..) => {
                let end = self.footer_at + FOOTER;
                Some(FileChange::SetLength(ByteLen::new(end.get())))
            }
            // Nothing that a disk shows.
            _ => None,
        };
        Ok(ResizeStep::Change { changes, sync: true })
    }

    fn undo_resize(&mut self) -> Vec<FileChange> {
        self.growth.take().and_then(|growth| growth.undo).into_iter().collect()
    }
}

const FOOTER: ByteLen = ByteLen::new(FOOTER_BYTES);

//! Disks that lie in their file as they are: raw images, fixed VHDs (whose footer lies behind the
//! disk) and raw block devices. Every byte has its home from the start, so a commit is one barrier.

use crate::engine::layer::{
    Blocked, Corrupt, Hollow, Layer, Leaf, Located, MetaPage, PlaceNote, PlaceToken, Placed, Wave,
    WaveNo,
};
use crate::engine::units::{ByteLen, Extent, FileOffset};

/// A flat image of a known size.
#[derive(Debug)]
pub struct Flat {
    size: ByteLen,
}

impl Flat {
    /// A flat image whose disk is the first `size` bytes of the file.
    pub const fn new(size: ByteLen) -> Self {
        Self { size }
    }
}

impl Layer for Flat {
    fn size(&self) -> ByteLen {
        self.size
    }

    fn locate(&mut self, wanted: Extent) -> Located {
        Located::Here(home(wanted), wanted.len)
    }

    fn learn(&mut self, page: MetaPage, _bytes: &[u8]) -> Result<(), Corrupt> {
        Err(Corrupt(format!("a flat image has no metadata, yet a page at {} was read", page.at)))
    }
}

impl Leaf for Flat {
    fn place(&mut self, wanted: Extent) -> Result<Placed, Blocked> {
        Ok(placed(wanted))
    }

    fn hollow(&mut self, wanted: Extent) -> Result<Hollow, Blocked> {
        Ok(Hollow::Punch(placed(wanted)))
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
}

fn home(wanted: Extent) -> FileOffset {
    FileOffset::new(wanted.at.get())
}

fn placed(wanted: Extent) -> Placed {
    let token = PlaceToken { block: 0, note: PlaceNote::Nothing };
    Placed { extent: wanted, at: home(wanted), settled: true, token }
}

//! Disks that lie in their file as they are: raw images, fixed VHDs (whose footer lies behind the
//! disk) and raw block devices. Every byte has its home from the start, so a commit is one barrier.

use crate::engine::layer::{
    Blocked, Corrupt, FileChange, Hollow, Layer, Leaf, Located, MetaPage, PlaceNote, PlaceToken,
    Placed, ResizeStep, Wave, WaveNo,
};
use crate::engine::request::FaultKind;
use crate::engine::units::{ByteLen, Extent, FileOffset};

/// A flat image of a known size.
#[derive(Debug)]
pub struct Flat {
    size: ByteLen,
    growth: Growth,
}

/// Whether the disk can grow, and how far it is on its way.
#[derive(Debug)]
enum Growth {
    /// What lies behind the disk is not ours to change.
    Never(&'static str),
    /// The disk is all of its file, and may grow with it.
    WithFile,
    /// The file is being given this size.
    Lengthening(ByteLen),
    /// It has it; the disk follows.
    Lengthened(ByteLen),
}

/// The longest file that Linux can have, to the sector.
const MOST_BYTES: u64 = i64::MAX as u64 / 512 * 512;

impl Flat {
    /// A flat image whose disk is the first `size` bytes of the file.
    pub const fn new(size: ByteLen) -> Self {
        Self { size, growth: Growth::Never("this image has no room to grow into") }
    }

    /// A raw image that is all of a regular file, so that it can grow.
    pub const fn growing(size: ByteLen) -> Self {
        Self { size, growth: Growth::WithFile }
    }

    /// A raw image that is a block device.
    pub const fn on_device(size: ByteLen) -> Self {
        let why = "a raw disk on a block device has the device's size; grow the device and open \
                   it again";
        Self { size, growth: Growth::Never(why) }
    }
}

impl Layer for Flat {
    fn size(&self) -> ByteLen {
        self.size
    }

    fn locate(&mut self, wanted: Extent) -> Located {
        Located::Here(home(wanted), wanted.len)
    }

    fn is_flat(&self) -> bool {
        true
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

    fn begin_resize(&mut self, size: ByteLen) -> Result<(), String> {
        if let Growth::Never(why) = self.growth {
            return Err(why.into());
        }
        if size.get() > MOST_BYTES {
            return Err(format!("no file can have {size} bytes; the most is {MOST_BYTES}"));
        }
        self.growth = Growth::Lengthening(size);
        Ok(())
    }

    /// One change: with it the file, and so the disk, has the new size, without it the old one.
    fn resize_step(&mut self, _read: Option<Vec<u8>>) -> Result<ResizeStep, FaultKind> {
        match self.growth {
            Growth::Lengthening(size) => {
                self.growth = Growth::Lengthened(size);
                let changes = vec![FileChange::SetLength(size)];
                Ok(ResizeStep::Change { changes, sync: true })
            }
            Growth::Lengthened(size) => {
                self.size = size;
                self.growth = Growth::WithFile;
                Ok(ResizeStep::Done)
            }
            Growth::Never(_) | Growth::WithFile => Ok(ResizeStep::Done),
        }
    }

    fn undo_resize(&mut self) -> Vec<FileChange> {
        self.growth = Growth::WithFile;
        vec![FileChange::SetLength(self.size)]
    }
}

fn home(wanted: Extent) -> FileOffset {
    FileOffset::new(wanted.at.get())
}

fn placed(wanted: Extent) -> Placed {
    let token = PlaceToken { block: 0, note: PlaceNote::Nothing };
    Placed { extent: wanted, at: home(wanted), settled: true, token }
}

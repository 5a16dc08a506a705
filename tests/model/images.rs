//! Images as bytes: made by `vhd::create`, opened by `vhd::Opening`, judged by `vhd::Check`, and
//! stacked into a disk. Knows no machine: files are named by their depth in the chain.

use orlop::engine::effect::FileId;
use orlop::engine::layer::{Layer, Leaf};
use orlop::engine::published::Published;
use orlop::engine::units::ByteLen;
use orlop::engine::{Disk, FrozenLayer};
use orlop::format::Flat;
use orlop::format::vhd::{Backing, VhdLayer, VhdLeaf};
use vhd::{
    Check, CheckOptions, CreateOptions, Image, Limits, NewLayout, NewParent, Opening, Piece, Step,
};

use crate::script::{Bottom, Upper};

/// One image of a chain.
#[derive(Clone, Debug)]
pub(crate) struct ImageBytes {
    pub(crate) bytes: Vec<u8>,
    /// Its identity; raw images have none.
    uuid: Option<[u8; 16]>,
    /// Bytes of the disk it describes.
    pub(crate) size: u64,
}

impl ImageBytes {
    /// The lowest image, empty.
    pub(crate) fn bottom(bottom: Bottom, sectors: u32) -> Self {
        let size = u64::from(sectors) * 512;
        match bottom {
            Bottom::Raw { ragged } => {
                let size = size + u64::from(ragged);
                Self { bytes: vec![0; size as usize], uuid: None, size }
            }
            Bottom::Fixed => Self::new(NewLayout::Fixed, size, 1),
            Bottom::Dynamic { shift } => {
                Self::new(NewLayout::Dynamic { block_bytes: block_bytes(shift) }, size, 1)
            }
        }
    }

    /// An empty child of this image, which lies `depth` images above the lowest.
    pub(crate) fn child(&self, upper: Upper, depth: u8) -> Self {
        let size = upper.sectors.map_or(self.size.next_multiple_of(512), |n| u64::from(n) * 512);
        let parent = NewParent {
            uuid: self.uuid.unwrap_or_default(),
            raw: self.uuid.is_none(),
            relative_path: "parent.vhd".to_owned(),
            timestamp: 7,
        };
        let block_bytes = block_bytes(upper.shift);
        Self::new(NewLayout::Differencing { block_bytes, parent }, size, depth + 1)
    }

    fn new(layout: NewLayout, size: u64, name: u8) -> Self {
        let uuid = [name; 16];
        let options = CreateOptions { size: vhd::ByteLen::new(size), layout, uuid, timestamp: 7 };
        let plan = vhd::create(&options).expect("the scripts' images are legal");
        let mut bytes = vec![0; plan.file_len.get() as usize];
        for piece in &plan.pieces {
            match piece {
                Piece::Bytes { at, bytes: own } => {
                    let at = at.get() as usize;
                    bytes[at..at + own.len()].copy_from_slice(own);
                }
                Piece::Fill { at, len, byte } => {
                    let at = at.get() as usize;
                    bytes[at..at + len.get() as usize].fill(*byte);
                }
            }
        }
        Self { bytes, uuid: Some(uuid), size }
    }

    fn open(&self) -> Option<Image> {
        self.uuid?;
        let mut opening = Opening::new(self.file_len(), Limits::default());
        let mut step = opening.step(None);
        loop {
            match step {
                Ok(Step::Read { at, len }) => {
                    let at = at.get() as usize;
                    step = opening.step(Some(&self.bytes[at..at + len]));
                }
                Ok(Step::Done(image)) => return Some(image),
                Err(error) => panic!("an image of ours does not open: {error}"),
            }
        }
    }

    fn file_len(&self) -> vhd::ByteLen {
        vhd::ByteLen::new(self.bytes.len() as u64)
    }

    /// Does what an opening for writing does first, and says how often that was needed.
    pub(crate) fn recover(&mut self) -> usize {
        let Some(image) = self.open() else { return 0 };
        let steps = vhd::recovery_plan(&image, vhd::Backing::File);
        for step in &steps {
            match step {
                vhd::RepairStep::Write { at, bytes } => {
                    let end = at.get() as usize + bytes.len();
                    self.bytes.resize(self.bytes.len().max(end), 0);
                    self.bytes[at.get() as usize..end].copy_from_slice(bytes);
                }
                vhd::RepairStep::Truncate { len } => self.bytes.truncate(len.get() as usize),
                vhd::RepairStep::Sync => {}
            }
        }
        steps.len()
    }

    /// What is wrong with the image after a clean close.
    pub(crate) fn findings(&self) -> Vec<String> {
        let Some(image) = self.open() else { return Vec::new() };
        let mut findings: Vec<String> =
            image.warnings.iter().map(|warning| format!("warning: {warning}")).collect();
        let options = CheckOptions { data: true, ..CheckOptions::default() };
        let mut check = Check::new(self.file_len(), options);
        let mut step = check.step(None);
        let report = loop {
            match step {
                Ok(Step::Read { at, len }) => {
                    let at = at.get() as usize;
                    step = check.step(Some(&self.bytes[at..at + len]));
                }
                Ok(Step::Done(report)) => break report,
                Err(error) => panic!("a check failed: {error}"),
            }
        };
        findings.extend(report.findings.iter().map(|finding| format!("{finding:?}")));
        findings
    }

    fn leaf(&self) -> Box<dyn Leaf> {
        let Some(image) = self.open() else { return Box::new(Flat::new(ByteLen::new(self.size))) };
        match image.sparse() {
            Some(sparse) => Box::new(VhdLeaf::new(&image, sparse, Backing::File)),
            None => Box::new(Flat::new(ByteLen::new(self.size))),
        }
    }

    fn layer(&self) -> Box<dyn Layer> {
        let Some(image) = self.open() else { return Box::new(Flat::new(ByteLen::new(self.size))) };
        match image.sparse() {
            Some(sparse) => Box::new(VhdLayer::new(&image, sparse)),
            None => Box::new(Flat::new(ByteLen::new(self.size))),
        }
    }
}

/// Opens a chain, the top first; `files` names each image's file.
pub(crate) fn open_disk(chain: &[ImageBytes], files: &[FileId], writable: bool) -> Disk {
    let frozen = |from: usize| {
        let pairs = chain.iter().zip(files).skip(from);
        pairs.map(|(image, file)| FrozenLayer { layer: image.layer(), file: *file }).collect()
    };
    if writable {
        Disk::writable(chain[0].leaf(), files[0], frozen(1))
    } else {
        Disk::read_only(frozen(0)).expect("a chain has at least one image")
    }
}

fn block_bytes(shift: u8) -> vhd::ByteLen {
    vhd::ByteLen::new(512 << shift)
}

/// Opens a guest of the disk that publishes this, over the same files.
#[allow(dead_code)]
pub(crate) fn open_guest(
    chain: &[ImageBytes],
    files: &[FileId],
    published: std::sync::Arc<Published>,
) -> Disk {
    let pairs = chain.iter().zip(files).skip(1);
    let frozen = pairs.map(|(image, file)| FrozenLayer { layer: image.layer(), file: *file });
    Disk::guest(published, files[0], frozen.collect())
}

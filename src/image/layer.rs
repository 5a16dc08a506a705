//! What opening gives: formats, opened layers, and the chain that becomes a disk.
//!
//! Refuses to read: the layers' bytes are the engine's business from here on.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use vhd::{Image, RepairStep};

use crate::engine::effect::FileId;
use crate::engine::layer::{Layer, Leaf};
use crate::engine::published::Published;
use crate::engine::units::ByteLen;
use crate::engine::{Disk, FrozenLayer};
use crate::format::vhd::{Backing, FixedLeaf, VhdLayer, VhdLeaf};
use crate::format::{Flat, Null};
use crate::host::{Descriptors, OpenMode};

/// The format of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The disk's bytes as they are.
    Raw,
    /// A VHD of any type.
    Vhd,
}

impl Format {
    /// The format that a file's name promises; `None` when it promises nothing. VHDX is another
    /// format than VHD.
    pub fn of_name(path: &Path) -> Option<Self> {
        let extension = path.extension().and_then(OsStr::to_str)?.to_ascii_lowercase();
        match extension.as_str() {
            "vhd" | "avhd" => Some(Self::Vhd),
            "raw" | "img" | "iso" => Some(Self::Raw),
            _ => None,
        }
    }

    /// The format that a file's name promises and that is none of ours.
    pub fn foreign(path: &Path) -> Option<&'static str> {
        const KNOWN: [&str; 9] =
            ["vhdx", "avhdx", "qcow", "qcow2", "qed", "vmdk", "vdi", "hdd", "dmg"];
        let extension = path.extension().and_then(OsStr::to_str)?;
        KNOWN.into_iter().find(|known| extension.eq_ignore_ascii_case(known))
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vhd => "vhd",
        }
    }

    /// The format that a file's name promises, if it is not this one.
    pub(super) fn contradicted_by(self, path: &Path) -> Option<&'static str> {
        let ours = Self::of_name(path).filter(|promised| *promised != self);
        Self::foreign(path).or(ours.map(Self::word))
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "raw" => Ok(Self::Raw),
            "vhd" | "vpc" => Ok(Self::Vhd),
            _ => Err(format!("{text:?} is no format: expected raw or vhd")),
        }
    }
}

/// What an image file holds.
#[derive(Clone, Debug)]
pub enum Content {
    /// The disk, byte by byte.
    Raw {
        /// Bytes of the disk.
        size: ByteLen,
    },
    /// A VHD, with its checked metadata.
    Vhd(Box<Image>),
    /// Nothing: it reads as zeroes and forgets what is written.
    Null {
        /// Bytes of the disk.
        size: ByteLen,
    },
}

impl Content {
    /// Bytes of the disk it describes.
    pub fn size(&self) -> ByteLen {
        match self {
            Self::Raw { size } | Self::Null { size } => *size,
            Self::Vhd(image) => ByteLen::new(image.disk_size().get()),
        }
    }

    /// The checked metadata of a VHD.
    pub fn vhd(&self) -> Option<&Image> {
        match self {
            Self::Raw { .. } | Self::Null { .. } => None,
            Self::Vhd(image) => Some(image),
        }
    }

    fn layer(&self) -> Box<dyn Layer> {
        match self {
            Self::Vhd(image) => match image.sparse() {
                Some(sparse) => Box::new(VhdLayer::new(image, sparse)),
                None => Box::new(Flat::new(self.size())),
            },
            Self::Raw { size } => Box::new(Flat::new(*size)),
            Self::Null { size } => Box::new(Null::new(*size)),
        }
    }

    pub(super) fn leaf(&self, device: bool) -> Box<dyn Leaf> {
        let backing = if device { Backing::Device } else { Backing::File };
        match self {
            Self::Vhd(image) => match image.sparse() {
                Some(sparse) => Box::new(VhdLeaf::new(image, sparse, backing)),
                None => Box::new(FixedLeaf::new(image, backing)),
            },
            Self::Raw { size } => Box::new(match backing {
                Backing::File => Flat::growing(*size),
                Backing::Device => Flat::on_device(*size),
            }),
            Self::Null { size } => Box::new(Null::new(*size)),
        }
    }
}

/// One image of a chain, open.
#[derive(Debug)]
pub struct OpenedLayer {
    /// Canonical path.
    pub path: PathBuf,
    /// The descriptor. The claim on the image lives as long as it and every duplicate of it.
    pub fd: OwnedFd,
    /// The same file through the page cache; see [`Descriptors::cached`].
    pub cached: Option<OwnedFd>,
    /// How the host is to use it.
    pub mode: OpenMode,
    /// What it holds.
    pub content: Content,
    /// Bytes of the file or device.
    pub file_bytes: ByteLen,
    /// Bytes it takes on its file system; 0 for a device.
    pub allocated_bytes: ByteLen,
}

/// Something a user should know about an image that opened all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The image.
    pub path: PathBuf,
    /// What about it.
    pub kind: NoticeKind,
}

/// The kinds of notices.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoticeKind {
    /// The image is odd.
    #[error("{0}")]
    Odd(vhd::Warning),
    /// It was repaired before it was opened for writing.
    #[error("repaired after an unclean end: {}", described(.0))]
    Repaired(Vec<RepairStep>),
    /// It is smaller than the image above it.
    #[error("it has {parent} bytes, its child {child}: beyond its end the child reads as zeroes")]
    ParentSmaller {
        /// Bytes of this image.
        parent: ByteLen,
        /// Bytes of its child.
        child: ByteLen,
    },
    /// It is larger than the image above it.
    #[error("it has {parent} bytes, its child {child}: the child shows only the first part of it")]
    ParentLarger {
        /// Bytes of this image.
        parent: ByteLen,
        /// Bytes of its child.
        child: ByteLen,
    },
    /// Everybody may change it under its children.
    #[error("every user may write to it, and so change what its children show")]
    WritableByAll,
    /// A throwaway layer goes through the page cache although the other images do not.
    #[error("its file system has no direct I/O (O_DIRECT): the overlay is cached")]
    OverlayCached,
    /// A throwaway layer lies in a file system that is memory.
    #[error("it is memory: what is written to the overlay takes memory until it is closed")]
    OverlayInMemory,
    /// It is no image.
    #[error("it keeps nothing: reads are zeroes and writes vanish; it is there to measure with")]
    KeepsNothing,
    /// There were too many files beside it to look for children in all.
    #[error("only the first {looked_at} files beside it were searched for children of it")]
    ChildrenUnknown {
        /// Files looked at, at most, among those called VHDs and among the others.
        looked_at: usize,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.kind)
    }
}

fn described(steps: &[RepairStep]) -> String {
    let steps = steps.iter().filter_map(|step| match step {
        RepairStep::Write { at, .. } => Some(format!("footer written at {at}")),
        RepairStep::Truncate { len } => Some(format!("file cut to {len} bytes")),
        RepairStep::Sync => None,
    });
    steps.collect::<Vec<_>>().join(", ")
}

/// An image with all its parents, open and claimed.
#[derive(Debug)]
pub struct OpenedChain {
    /// Bytes of the disk.
    pub size: ByteLen,
    /// Whether the top layer may not be written.
    pub read_only: bool,
    /// The layers, the top first. Never empty.
    pub layers: Vec<OpenedLayer>,
    /// What a user should know.
    pub notices: Vec<Notice>,
}

impl OpenedLayer {
    fn twin(&self) -> io::Result<Self> {
        Ok(Self {
            path: self.path.clone(),
            fd: self.fd.try_clone()?,
            cached: self.cached.as_ref().map(OwnedFd::try_clone).transpose()?,
            mode: self.mode,
            content: self.content.clone(),
            file_bytes: self.file_bytes,
            allocated_bytes: self.allocated_bytes,
        })
    }
}

impl OpenedChain {
    /// Whether several disks of it at once would show the same: nobody may write it, or it keeps
    /// nothing of what is written. Two disks of any other chain would destroy each other's bytes.
    #[must_use]
    pub fn is_shareable(&self) -> bool {
        let forgets = |layer: &OpenedLayer| matches!(layer.content, Content::Null { .. });
        self.read_only || self.layers.iter().all(forgets)
    }

    /// The same chain over duplicates of its descriptors, for one more disk of it; `None` unless it
    /// [is shareable](Self::is_shareable). Nothing is read or locked anew: a duplicate has the open
    /// file description, and with it the claim, which ends with the last of them.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn twin(&self) -> io::Result<Option<Self>> {
        if !self.is_shareable() {
            return Ok(None);
        }
        let layers = self.layers.iter().map(OpenedLayer::twin).collect::<io::Result<_>>()?;
        let notices = Vec::new();
        Ok(Some(Self { size: self.size, read_only: self.read_only, layers, notices }))
    }

    /// What guests of the disk are made of: the same over duplicates of its descriptors, as with a
    /// [`Self::twin`]; `None` where nobody writes.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn guest(&self) -> io::Result<Option<GuestChain>> {
        if self.is_shareable() {
            return Ok(None);
        }
        let layers = self.layers.iter().map(OpenedLayer::twin).collect::<io::Result<_>>()?;
        Ok(Some(GuestChain { layers }))
    }

    /// Hands the files to a host and makes the disk. `add_file` is the host's.
    ///
    /// # Errors
    /// Of `add_file`. Files added by then stay with the host.
    pub fn attach(
        self,
        add_file: &mut dyn FnMut(Descriptors) -> io::Result<FileId>,
    ) -> io::Result<Disk> {
        let mut leaf = None;
        let mut frozen = Vec::with_capacity(self.layers.len());
        for (depth, layer) in self.layers.into_iter().enumerate() {
            let device = layer.mode.device;
            let OpenedLayer { fd: main, cached, mode, .. } = layer;
            let file = add_file(Descriptors { main, cached, mode })?;
            if depth == 0 && !self.read_only {
                leaf = Some((layer.content.leaf(device), file));
            } else {
                frozen.push(FrozenLayer { layer: layer.content.layer(), file });
            }
        }
        Ok(match leaf {
            Some((leaf, file)) => Disk::writable(leaf, file, frozen),
            None => Disk::read_only(frozen).expect("a chain has at least its top layer"),
        })
    }
}

/// The images of a disk that is written elsewhere. Refuses to become anything but a guest: as a
/// disk of its own it would not know what the other writes.
#[derive(Debug)]
pub struct GuestChain {
    layers: Vec<OpenedLayer>,
}

impl GuestChain {
    /// How many images there are.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.layers.len()
    }

    /// The same for one more guest.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn twin(&self) -> io::Result<Self> {
        let layers = self.layers.iter().map(OpenedLayer::twin).collect::<io::Result<_>>()?;
        Ok(Self { layers })
    }

    /// Hands the files to a host and makes the guest of the disk that publishes this.
    ///
    /// # Errors
    /// Of `add_file`. Files added by then stay with the host.
    pub fn attach(
        self,
        published: Arc<Published>,
        add_file: &mut dyn FnMut(Descriptors) -> io::Result<FileId>,
    ) -> io::Result<Disk> {
        let mut layers = self.layers.into_iter().map(|layer| {
            let OpenedLayer { fd: main, cached, mode, content, .. } = layer;
            Ok((add_file(Descriptors { main, cached, mode })?, content))
        });
        let (leaf, _) = layers.next().expect("a chain has at least its top layer")?;
        let frozen = layers.map(|layer: io::Result<_>| {
            let (file, content) = layer?;
            Ok(FrozenLayer { layer: content.layer(), file })
        });
        Ok(Disk::guest(published, leaf, frozen.collect::<io::Result<_>>()?))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Format, OpenedChain};
    use crate::image::{OpenOptions, open, open_overlay};

    #[test]
    fn a_name_tells_the_format_or_nothing() {
        for (name, format) in [
            ("a.vhd", Some(Format::Vhd)),
            ("a.AVHD", Some(Format::Vhd)),
            ("a.vhdx", None),
            ("a.raw", Some(Format::Raw)),
            ("a.img", Some(Format::Raw)),
            ("a.iso", Some(Format::Raw)),
            ("a.qcow2", None),
            ("vhd", None),
        ] {
            assert_eq!(Format::of_name(Path::new(name)), format, "{name}");
        }
        assert_eq!(Format::foreign(Path::new("a.QCOW2")), Some("qcow2"));
        for name in ["a.vhd", "a.raw", "qcow2", "keep", "a.tmp"] {
            assert_eq!(Format::foreign(Path::new(name)), None, "{name}");
        }
    }

    #[test]
    fn the_claim_on_an_image_ends_with_the_last_twin_of_its_chain() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.raw");
        std::fs::write(&path, [7; 4096]).unwrap();
        let to_read = OpenOptions { read_only: true, ..OpenOptions::new(&path) };
        let to_write = OpenOptions::new(&path);
        let first = open(&to_read).unwrap();
        let second = first.twin().unwrap().expect("nobody may write it");
        let third = second.twin().unwrap().expect("nor this one");
        assert_eq!(third.size, first.size);
        for one in [first, third, second] {
            assert_eq!(open(&to_write).unwrap_err().code(), "locked");
            drop(one);
        }
        open(&to_write).unwrap();
    }

    #[test]
    fn only_what_nobody_writes_or_what_keeps_nothing_has_twins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.raw");
        std::fs::write(&path, [7; 4096]).unwrap();
        let has_twin = |chain: &OpenedChain| chain.twin().unwrap().is_some();
        assert!(!has_twin(&open(&OpenOptions::new(&path)).unwrap()));
        let overlay = open_overlay(&OpenOptions::new(&path), dir.path()).unwrap();
        assert!(!has_twin(&overlay));
        drop(overlay);
        assert!(has_twin(&open(&OpenOptions::new("null:1M")).unwrap()));
    }

    #[test]
    fn a_chain_can_be_sent_to_the_thread_that_serves_it() {
        fn sendable<T: Send>() {}
        sendable::<OpenedChain>();
    }
}

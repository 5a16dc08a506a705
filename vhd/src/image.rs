//! Opening an image without doing I/O: [`Opening`] asks for bytes, gets them, and ends with a
//! checked [`Image`] or with the first thing that is wrong. Never guesses a format and never takes
//! guest bytes for metadata: the footer at the end of the file counts (section 1.7).

use crate::batmap::BatmapInfo;
use crate::error::{OpenError, Reason, Warning};
use crate::footer::{FEATURE_RESERVED, FOOTER_BYTES, Footer};
use crate::geometry::Geometry;
use crate::header::DynamicHeader;
use crate::locator::{LocatorPath, Platform};
use crate::survey::{Ask, Outcome, Survey};
use crate::units::{ByteLen, FileOffset};

/// The most bytes one [`Step::Read`] asks for.
pub const MAX_READ_BYTES: usize = 1 << 20;

/// The most bytes by which a fixed image's file may grow before its footer is durable at the new
/// end: so far a lost footer is looked for (a file system may have kept the length alone).
pub const MAX_FOOTER_JUMP_BYTES: u64 = 4 << 30;

/// What to do next.
#[derive(Debug)]
pub enum Step<T> {
    /// Read exactly these bytes of the file and step again with them.
    Read {
        /// Where they start.
        at: FileOffset,
        /// How many, at most [`MAX_READ_BYTES`] and never past the end of the file.
        len: usize,
    },
    /// Finished; do not step again.
    Done(T),
}

/// What an opener accepts, beyond what the format itself says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of an allocation table.
    pub max_table_bytes: ByteLen,
    /// Smallest block.
    pub min_block_bytes: ByteLen,
    /// Largest block.
    pub max_block_bytes: ByteLen,
    /// Largest disk of a dynamic or differencing image.
    pub max_sparse_bytes: ByteLen,
    /// Largest disk of a fixed image.
    pub max_fixed_bytes: ByteLen,
    /// Most bytes of one parent locator's data, at most [`MAX_READ_BYTES`].
    pub max_locator_bytes: ByteLen,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_table_bytes: ByteLen::new(64 << 20),
            min_block_bytes: ByteLen::new(512),
            max_block_bytes: ByteLen::new(256 << 20),
            max_sparse_bytes: ByteLen::new(2040 << 30),
            max_fixed_bytes: ByteLen::new(64 << 40),
            max_locator_bytes: ByteLen::new(64 << 10),
        }
    }
}

/// An image that passed every check an opener makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The footer that counts.
    pub footer: Footer,
    /// Bytes of the file when it was opened.
    pub file_len: ByteLen,
    /// Where a fixed image's footer lies. Not at the end of the file only if that was growing when
    /// the system crashed; a sparse image has the other copy for that.
    pub footer_at: FileOffset,
    /// What is odd about it.
    pub warnings: Vec<Warning>,
    /// What lies before the footer.
    pub body: Body,
}

/// What lies before the footer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// The disk's bytes from offset 0.
    Fixed,
    /// Header, table and blocks.
    Sparse(Box<Sparse>),
}

/// The checked metadata of a dynamic or differencing image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sparse {
    /// The dynamic header.
    pub header: DynamicHeader,
    /// Sizes.
    pub geometry: Geometry,
    /// Where the allocation table starts.
    pub table: FileOffset,
    /// Bytes of the table, rounded up to sectors.
    pub table_bytes: ByteLen,
    /// Entries of the table; all are sound, also those behind the disk's last block.
    pub entries: u32,
    /// Behind the last byte of metadata, the trailing footer apart.
    pub metadata_end: FileOffset,
    /// Behind the last allocated block, at least `metadata_end`.
    pub blocks_end: FileOffset,
    /// Allocated entries.
    pub allocated: u32,
    /// State of the footer at the end.
    pub tail: TailState,
    /// Whether the copy at offset 0 equals [`Image::footer`].
    pub front_matches: bool,
    /// XenServer's batmap where it has one that is in its place; a hint.
    pub batmap: Option<BatmapInfo>,
    /// The parent of a differencing image.
    pub parent: Option<ParentLink>,
    /// Why it may be opened for reading only.
    pub write_refusal: Option<Reason>,
}

/// State of the two footers of a sparse image: what a repair must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TailState {
    /// Both are there and equal.
    Good,
    /// Only the copy at offset 0 is there.
    Missing,
    /// The one at the end has 511 bytes; `front_matches` tells about the other.
    Short511,
    /// The copy at offset 0 is damaged.
    FrontBad,
    /// Both are there; the one at the end is newer.
    Differ,
}

/// Where a differencing image says its parent is. Text from an untrusted file: whoever opens the
/// parent checks the identity and where the path leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentLink {
    /// Identity of the parent; meaningless when `raw`.
    pub uuid: [u8; 16],
    /// Whether the parent is a raw image (the identity is all zero).
    pub raw: bool,
    /// Name for people; what is not Unicode is replaced.
    pub name: String,
    /// Paths, the most promising first: W2ru, relative MacX, the others.
    pub candidates: Vec<LocatorPath>,
}

impl ParentLink {
    pub(crate) fn new(header: &DynamicHeader, mut candidates: Vec<LocatorPath>) -> Self {
        // Stable, so that equals stay in the order of the header.
        candidates.sort_by_key(|path| match path.platform {
            Platform::W2ru => 0,
            Platform::MacX if path.relative.is_some() => 1,
            _ => 2,
        });
        Self {
            uuid: header.parent_uuid,
            raw: header.parent_uuid == [0; 16],
            name: header.parent_name_text(),
            candidates,
        }
    }
}

impl Image {
    /// Bytes of the virtual disk.
    pub const fn disk_size(&self) -> ByteLen {
        self.footer.current_size
    }

    /// The body of a dynamic or differencing image.
    pub const fn sparse(&self) -> Option<&Sparse> {
        match &self.body {
            Body::Fixed => None,
            Body::Sparse(sparse) => Some(sparse),
        }
    }

    /// The parent of a differencing image.
    pub fn parent(&self) -> Option<&ParentLink> {
        self.sparse().and_then(|sparse| sparse.parent.as_ref())
    }

    /// Why the image may be opened for reading only, whatever its kind.
    pub fn write_refusal(&self) -> Option<Reason> {
        match &self.body {
            Body::Sparse(sparse) => sparse.write_refusal,
            Body::Fixed => feature_refusal(&self.footer),
        }
    }

    /// The footer as both its places hold it.
    pub fn footer_bytes(&self) -> [u8; FOOTER_BYTES] {
        self.footer.to_bytes()
    }
}

pub(crate) fn feature_refusal(footer: &Footer) -> Option<Reason> {
    (footer.features & FEATURE_RESERVED == 0)
        .then_some(Reason::ReservedFeatureClear(footer.features))
}

/// Opens an image step by step.
#[derive(Debug)]
pub struct Opening {
    survey: Survey,
}

impl Opening {
    /// Starts with the length of the file (or device) and what is accepted.
    pub fn new(file_len: ByteLen, limits: Limits) -> Self {
        Self { survey: Survey::new(file_len, limits, 1) }
    }

    /// The first call brings `None`, each further one exactly the bytes asked for. After an error
    /// or [`Step::Done`] the opening is over.
    pub fn step(&mut self, bytes: Option<&[u8]>) -> Result<Step<Image>, OpenError> {
        let ask = self.survey.step(bytes)?;
        if let Some(error) = self.survey.first_problem() {
            return Err(error);
        }
        Ok(match ask {
            Ask::Read { at, len } => Step::Read { at, len },
            Ask::Finished => match self.survey.take_outcome() {
                Outcome { image: Some(image), .. } => Step::Done(image),
                Outcome { image: None, .. } => {
                    return Err(OpenError::WrongLength { expected: 0, found: 0 });
                }
            },
        })
    }
}

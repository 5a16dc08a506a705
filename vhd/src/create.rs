//! The bytes of a new image. Decides where everything lies and what every program accepts; writes
//! nothing, draws no identity and reads no clock: those come with the request.

use crate::bat::ENTRY_BYTES;
use crate::footer::{Chs, Creator, DiskKind, FEATURE_RESERVED, FOOTER_BYTES, Footer};
use crate::geometry::Geometry;
use crate::header::{DynamicHeader, HEADER_BYTES, PARENT_NAME_BYTES};
use crate::image::Limits;
use crate::locator::{LOCATORS, LocatorEntry, PATH_MAX_BYTES, Platform, encode};
use crate::units::{ByteLen, FileOffset, SECTOR_BYTES};

/// The block size that every program knows.
pub const DEFAULT_BLOCK_BYTES: ByteLen = ByteLen::new(2 << 20);

/// A creator for which all programs take the size from the size field (section 1.6).
const CREATOR: Creator = Creator { app: *b"win ", version: 0x000A_0000, os: *b"Wi2k" };
const HEADER_AT: FileOffset = FileOffset::new(FOOTER_BYTES as u64);
const TABLE_AT: FileOffset = FileOffset::new((FOOTER_BYTES + HEADER_BYTES) as u64);

/// What to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Bytes of the virtual disk.
    pub size: ByteLen,
    /// What kind of image.
    pub layout: NewLayout,
    /// Its identity; not all zero.
    pub uuid: [u8; 16],
    /// Seconds since 2000-01-01 00:00 UTC.
    pub timestamp: u32,
}

/// What kind of image to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewLayout {
    /// The whole disk, then a footer.
    Fixed,
    /// Blocks on demand.
    Dynamic {
        /// Data bytes of a block; see [`DEFAULT_BLOCK_BYTES`].
        block_bytes: ByteLen,
    },
    /// Blocks on demand over a parent.
    Differencing {
        /// Data bytes of a block; see [`DEFAULT_BLOCK_BYTES`].
        block_bytes: ByteLen,
        /// The parent.
        parent: NewParent,
    },
}

/// The parent of a new differencing image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewParent {
    /// Its identity; ignored when `raw`.
    pub uuid: [u8; 16],
    /// Whether it is a raw image, which has no identity.
    pub raw: bool,
    /// Where it is, seen from the directory of the new image; separated by `/`.
    pub relative_path: String,
    /// When it was last written, seconds since 2000-01-01 00:00 UTC.
    pub timestamp: u32,
}

/// The bytes of a new image. The file is empty before; what no piece covers is zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What to write, in this order; no two overlap.
    pub pieces: Vec<Piece>,
    /// Bytes of the whole file.
    pub file_len: ByteLen,
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// These bytes.
    Bytes {
        /// Where they start.
        at: FileOffset,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// The same byte over and over.
    Fill {
        /// Where it starts.
        at: FileOffset,
        /// How often.
        len: ByteLen,
        /// The byte.
        byte: u8,
    },
}

/// Why an image cannot be created.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// An identity of zeros means "none".
    #[error("an image needs an identity that is not all zero")]
    UuidZero,
    /// A parent's identity of zeros means a raw parent.
    #[error("a VHD parent needs an identity that is not all zero")]
    ParentUuidZero,
    /// A disk of no bytes.
    #[error("a disk needs at least one sector")]
    SizeZero,
    /// No whole number of sectors.
    #[error("the size {found} is not a multiple of 512")]
    SizeUnaligned {
        /// Size asked for.
        found: ByteLen,
    },
    /// More than the format or the block size can address.
    #[error("the size {found} is more than {most}")]
    SizeTooLarge {
        /// Size asked for.
        found: ByteLen,
        /// Largest possible.
        most: ByteLen,
    },
    /// No power of two within the limits.
    #[error("the block size {found} is not a power of two from {least} to {most}")]
    BlockSize {
        /// Size asked for.
        found: ByteLen,
        /// Smallest possible.
        least: ByteLen,
        /// Largest possible.
        most: ByteLen,
    },
    /// Blocks so small that they could not all be found.
    #[error("a disk of {size} bytes has too many blocks of {block_bytes}")]
    TooManyBlocks {
        /// Size asked for.
        size: ByteLen,
        /// Block size asked for.
        block_bytes: ByteLen,
    },
    /// A path that some reader would understand differently.
    #[error("the parent's path {path:?} is not relative, or is not the same to every reader")]
    ParentPath {
        /// Path asked for.
        path: String,
    },
    /// A path or a name that its field cannot hold.
    #[error("the parent's path {path:?} is too long")]
    ParentPathTooLong {
        /// Path asked for.
        path: String,
    },
}

/// Plans a new image.
pub fn create(options: &CreateOptions) -> Result<Plan, CreateError> {
    if options.uuid == [0; 16] {
        return Err(CreateError::UuidZero);
    }
    match &options.layout {
        NewLayout::Fixed => fixed(options),
        NewLayout::Dynamic { block_bytes } => sparse(options, *block_bytes, None),
        NewLayout::Differencing { block_bytes, parent } => {
            sparse(options, *block_bytes, Some(parent))
        }
    }
}

/// The footer of a new image of this kind, as [`create`] writes it.
pub fn footer_for(kind: DiskKind, size: ByteLen, uuid: [u8; 16], timestamp: u32) -> Footer {
    Footer {
        kind,
        current_size: size,
        original_size: size,
        data_offset: kind.is_sparse().then_some(HEADER_AT),
        timestamp,
        creator: CREATOR,
        geometry: Chs::for_size(size),
        uuid,
        features: FEATURE_RESERVED,
        saved_state: 0,
        hidden: 0,
    }
}

fn fixed(options: &CreateOptions) -> Result<Plan, CreateError> {
    check_size(options.size, Limits::default().max_fixed_bytes)?;
    let footer = footer_for(DiskKind::Fixed, options.size, options.uuid, options.timestamp);
    let at = options.size.end_of_file();
    let pieces = vec![Piece::Bytes { at, bytes: footer.to_bytes().to_vec() }];
    Ok(Plan { pieces, file_len: ByteLen::new(at.get() + FOOTER_BYTES as u64) })
}

fn sparse(
    options: &CreateOptions,
    block_bytes: ByteLen,
    parent: Option<&NewParent>,
) -> Result<Plan, CreateError> {
    let geometry = new_geometry(options.size, block_bytes)?;
    let kind = if parent.is_some() { DiskKind::Differencing } else { DiskKind::Dynamic };
    let footer = footer_for(kind, options.size, options.uuid, options.timestamp).to_bytes();
    let table_bytes = table_bytes(geometry.entries());
    let mut header = DynamicHeader {
        data_offset: u64::MAX,
        table_offset: TABLE_AT,
        max_entries: geometry.entries(),
        block_bytes,
        parent_uuid: [0; 16],
        parent_timestamp: 0,
        parent_name: [0; PARENT_NAME_BYTES],
        locators: [LocatorEntry::NONE; LOCATORS],
    };
    let mut end = TABLE_AT.get() + table_bytes;
    let mut pieces = vec![Piece::Fill { at: TABLE_AT, len: ByteLen::new(table_bytes), byte: 0xFF }];
    if let Some(parent) = parent {
        end = place_parent(parent, &mut header, &mut pieces, end)?;
    }
    // No gap: the first block brings the one that puts its data on 4 KiB, and readers that look
    // for free space behind the last block or the table find the same place.
    pieces.push(Piece::Bytes { at: HEADER_AT, bytes: header.to_bytes().to_vec() });
    pieces.push(Piece::Bytes { at: FileOffset::new(0), bytes: footer.to_vec() });
    pieces.push(Piece::Bytes { at: FileOffset::new(end), bytes: footer.to_vec() });
    Ok(Plan { pieces, file_len: ByteLen::new(end + FOOTER_BYTES as u64) })
}

fn check_size(found: ByteLen, most: ByteLen) -> Result<(), CreateError> {
    if found == ByteLen::ZERO {
        return Err(CreateError::SizeZero);
    }
    if !found.get().is_multiple_of(SECTOR_BYTES) {
        return Err(CreateError::SizeUnaligned { found });
    }
    if found > most {
        return Err(CreateError::SizeTooLarge { found, most });
    }
    Ok(())
}

fn new_geometry(size: ByteLen, block_bytes: ByteLen) -> Result<Geometry, CreateError> {
    let limits = Limits::default();
    check_size(size, limits.max_sparse_bytes)?;
    let (least, most) = (limits.min_block_bytes, limits.max_block_bytes);
    if !block_bytes.get().is_power_of_two() || block_bytes < least || block_bytes > most {
        return Err(CreateError::BlockSize { found: block_bytes, least, most });
    }
    let too_many = CreateError::TooManyBlocks { size, block_bytes };
    let blocks = Geometry::blocks_for(size, block_bytes).ok_or_else(|| too_many.clone())?;
    let geometry = Geometry::new(size, block_bytes, blocks).ok_or_else(|| too_many.clone())?;
    if table_bytes(blocks) > limits.max_table_bytes.get() {
        return Err(too_many);
    }
    // A disk that cannot be written full is refused now, not when its guest has filled it. The
    // longest metadata is the table and three paths.
    let metadata = TABLE_AT.get() + table_bytes(blocks) + 3 * 4 * PATH_MAX_BYTES as u64;
    let before_last = u64::from(blocks - 1) * geometry.stride_bytes().get();
    match geometry.next_slot(FileOffset::new(metadata + before_last)) {
        Some(_) => Ok(geometry),
        None => Err(too_many),
    }
}

fn table_bytes(entries: u32) -> u64 {
    (u64::from(entries) * ENTRY_BYTES as u64).next_multiple_of(SECTOR_BYTES)
}

/// Writes the parent's name, identity and locators; gives the end of the metadata.
fn place_parent(
    parent: &NewParent,
    header: &mut DynamicHeader,
    pieces: &mut Vec<Piece>,
    mut end: u64,
) -> Result<u64, CreateError> {
    let path = parent_path(parent)?;
    let too_long = || CreateError::ParentPathTooLong { path: parent.relative_path.clone() };
    header.parent_timestamp = parent.timestamp;
    if !parent.raw {
        header.parent_uuid = parent.uuid;
    }
    let name = path.rsplit('/').next().unwrap_or(path);
    let units: Vec<u8> = name.encode_utf16().flat_map(u16::to_be_bytes).collect();
    header.parent_name.get_mut(..units.len()).ok_or_else(too_long)?.copy_from_slice(&units);
    for (index, platform) in [Platform::MacX, Platform::W2ku, Platform::W2ru].iter().enumerate() {
        let bytes = encode(*platform, path).expect("these platforms can be written");
        let len = bytes.len() as u64;
        let space = len.next_multiple_of(SECTOR_BYTES);
        let at = FileOffset::new(end);
        header.locators[index] = LocatorEntry {
            platform: *platform,
            // In bytes, as every program in the field does against the specification's word.
            space: u32::try_from(space).map_err(|_| too_long())?,
            len: ByteLen::new(len),
            at,
        };
        pieces.push(Piece::Bytes { at, bytes });
        end += space;
    }
    Ok(end)
}

/// The path without a leading `./`, refused when readers would not agree where it leads.
fn parent_path(parent: &NewParent) -> Result<&str, CreateError> {
    if !parent.raw && parent.uuid == [0; 16] {
        return Err(CreateError::ParentUuidZero);
    }
    let path = parent.relative_path.as_str();
    let path = path.strip_prefix("./").unwrap_or(path);
    if path.len() > PATH_MAX_BYTES {
        return Err(CreateError::ParentPathTooLong { path: path.to_owned() });
    }
    let bytes = path.as_bytes();
    let drive = bytes.len() >= 2 && bytes[0].is_ascii_alphabetic() && bytes[1] == b':';
    let components_are_plain = path.split('/').all(|part| !part.is_empty() && part != ".");
    let leads_up = path.split('/').next_back() == Some("..");
    if drive || leads_up || !components_are_plain || path.contains(['\\', '\0']) {
        return Err(CreateError::ParentPath { path: path.to_owned() });
    }
    Ok(path)
}

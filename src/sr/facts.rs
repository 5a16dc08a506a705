//! What a data file says of itself, read in at most three short reads: enough to list a disk, its
//! size and its parent. Opens no parent and follows no path; the full check of an image is made
//! when it is opened to be served.

use std::io;

use vhd::footer::{FOOTER_BYTES, SHORT_FOOTER_BYTES};
use vhd::header::HEADER_BYTES;
use vhd::{DiskKind, DynamicHeader, Footer, FooterError};

use super::names::DataFormat;
use super::store::{Stamp, Store};
use crate::engine::units::{ByteLen, FileOffset, SECTOR};

/// What a data file says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    /// Bytes of the disk.
    pub size: ByteLen,
    /// The identity in a VHD's footer; not the VDI's.
    pub identity: Option<[u8; 16]>,
    /// The kind of a VHD.
    pub kind: Option<DiskKind>,
    /// The hidden flag of a VHD.
    pub hidden: bool,
    /// The parent of a differencing VHD.
    pub parent: Option<ParentClaim>,
}

/// The parent that a file claims to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ParentClaim {
    /// Its identity; `None` for a raw parent, which has none.
    pub identity: Option<[u8; 16]>,
    /// The name stored; text of an untrusted file.
    pub name: String,
}

/// Why a data file cannot be listed as a disk.
#[derive(Debug, thiserror::Error)]
pub(super) enum FactsError {
    /// The system failed.
    #[error("cannot read it: {0}")]
    Io(#[from] io::Error),
    /// No footer, or one that cannot be used.
    #[error("{0}")]
    Footer(#[from] FooterError),
    /// No header, or one that cannot be used.
    #[error("{0}")]
    Header(#[from] vhd::HeaderError),
    /// No disk of that size.
    #[error("its disk has {0} bytes, which is no whole number of sectors, or none")]
    Size(u64),
    /// A header that is nowhere.
    #[error("its footer says that its header is nowhere")]
    HeaderNowhere,
    /// Too short for a footer.
    #[error("it has {0} bytes, too few for a VHD")]
    Short(u64),
}

/// Reads what a data file says of itself.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read(
    store: &dyn Store,
    name: &str,
    format: DataFormat,
    stamp: &Stamp,
) -> Result<Facts, FactsError> {
    if format == DataFormat::Raw {
        let size = whole_sectors(stamp.len.get())?;
        return Ok(Facts { size, identity: None, kind: None, hidden: false, parent: None });
    }
    let footer = footer_of(store, name, stamp.len.get())?;
    let parent = match footer.kind {
        DiskKind::Differencing => Some(parent_of(store, name, &footer)?),
        DiskKind::Fixed | DiskKind::Dynamic => None,
    };
    Ok(Facts {
        size: whole_sectors(footer.current_size.get())?,
        identity: Some(footer.uuid),
        kind: Some(footer.kind),
        hidden: footer.hidden != 0,
        parent,
    })
}

fn whole_sectors(bytes: u64) -> Result<ByteLen, FactsError> {
    let sound = bytes > 0 && bytes.is_multiple_of(SECTOR);
    if sound { Ok(ByteLen::new(bytes)) } else { Err(FactsError::Size(bytes)) }
}

/// The footer that counts: the one at the end; the copy in front only where that is damaged and the
/// copy is a sparse image's, since a fixed one's first bytes are its guest's.
pub(super) fn footer_of(store: &dyn Store, name: &str, len: u64) -> Result<Footer, FactsError> {
    let short = FactsError::Short(len);
    let at = len.checked_sub(FOOTER_BYTES as u64).ok_or(short)?;
    let mut bytes = [0; FOOTER_BYTES];
    store.read(name, FileOffset::new(at), &mut bytes)?;
    let mut tail = Footer::parse(&bytes);
    if tail.is_err_and(FooterError::is_damage) && len % SECTOR == SHORT_FOOTER_BYTES as u64 {
        tail = Footer::parse(&bytes[FOOTER_BYTES - SHORT_FOOTER_BYTES..]);
    }
    match tail {
        Err(error) if error.is_damage() => {
            store.read(name, FileOffset::new(0), &mut bytes)?;
            let front = Footer::parse(&bytes).ok().filter(|footer| footer.kind.is_sparse());
            Ok(front.ok_or(error)?)
        }
        tail => Ok(tail?),
    }
}

fn parent_of(store: &dyn Store, name: &str, footer: &Footer) -> Result<ParentClaim, FactsError> {
    let at = footer.data_offset.ok_or(FactsError::HeaderNowhere)?;
    let mut bytes = [0; HEADER_BYTES];
    store.read(name, FileOffset::new(at.get()), &mut bytes)?;
    let header = DynamicHeader::parse(&bytes)?;
    let raw = header.parent_uuid == [0; 16];
    let identity = (!raw).then_some(header.parent_uuid);
    Ok(ParentClaim { identity, name: header.parent_name_text() })
}

//! Looks for children of an image among its neighbours: whoever writes to a parent corrupts every
//! child. Reads the metadata of VHDs in the same directory, three short reads each; opens no
//! parent, follows no link, and takes nothing it finds for more than a reason to refuse.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags};
use vhd::footer::FOOTER_BYTES;
use vhd::header::HEADER_BYTES;
use vhd::{DiskKind, DynamicHeader, Footer};

use super::error::Cause;
use super::file::ImageFile;
use super::layer::{Content, Format};

/// Most neighbours whose metadata is read.
pub(super) const NEIGHBOURS_MAX: usize = 4096;

/// What was found.
pub(super) struct Census {
    /// One child, if there is any.
    pub(super) child: Option<PathBuf>,
    /// Whether every neighbour was looked at.
    pub(super) complete: bool,
}

/// Looks for a child of the image that `file` holds.
pub(super) fn find(file: &ImageFile, content: &Content) -> Result<Census, Cause> {
    let unlisted = |errno| Cause::io("list its directory", errno);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(&file.place.dir, ".", flags, Mode::empty()).map_err(unlisted)?;
    let mut looked_at = 0;
    for entry in Dir::new(dir).map_err(unlisted)? {
        let entry = entry.map_err(unlisted)?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        let maybe = matches!(entry.file_type(), FileType::RegularFile | FileType::Unknown);
        let vhd = Format::of_name(Path::new(name)) == Some(Format::Vhd);
        if !maybe || !vhd || name == file.name {
            continue;
        }
        if looked_at == NEIGHBOURS_MAX {
            return Ok(Census { child: None, complete: false });
        }
        looked_at += 1;
        let Some(header) = header_of(file, name) else { continue };
        if names(&header, file, content) {
            return Ok(Census { child: Some(file.place.path.join(name)), complete: true });
        }
    }
    Ok(Census { child: None, complete: true })
}

/// The header of a neighbour, if it is a differencing image. One that cannot be read is no reason
/// to refuse: it could not be served either.
fn header_of(file: &ImageFile, name: &OsStr) -> Option<DynamicHeader> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(&file.place.dir, name, flags, Mode::empty()).ok()?;
    let neighbour = File::from(fd);
    let stat = neighbour.metadata().ok()?;
    if !stat.is_file() {
        return None;
    }
    // The end first: the start of a fixed image is its guest's to write.
    let footer = [stat.len().checked_sub(FOOTER_BYTES as u64)?, 0].into_iter().find_map(|at| {
        let mut bytes = [0; FOOTER_BYTES];
        neighbour.read_exact_at(&mut bytes, at).ok()?;
        Footer::parse(&bytes).ok()
    })?;
    if footer.kind != DiskKind::Differencing {
        return None;
    }
    let mut bytes = [0; HEADER_BYTES];
    neighbour.read_exact_at(&mut bytes, footer.data_offset?.get()).ok()?;
    DynamicHeader::parse(&bytes).ok()
}

/// Whether the child means this image: by identity, or by name where the parent has none.
fn names(header: &DynamicHeader, file: &ImageFile, content: &Content) -> bool {
    match content.vhd() {
        Some(image) => header.parent_uuid == image.footer.uuid,
        None => {
            let name = header.parent_name_text();
            let name = name.rsplit(['/', '\\']).next().unwrap_or_default();
            header.parent_uuid == [0; 16] && file.name == *name
        }
    }
}

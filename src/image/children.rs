//! Looks for children of an image among its neighbours: whoever writes to a parent, or takes its
//! place, corrupts every child. Reads the metadata of files in the same directory, three short
//! reads each and whatever they are called, since a child needs no name that tells; opens no
//! parent, follows no link, and takes nothing it finds for more than a reason to refuse.
//!
//! A file whose name says that it is raw holds what its guest likes. It counts only if it names an
//! identity, which no guest of another disk knows, so that no guest can keep a neighbour from being
//! written by claiming to be its child.

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

/// Most neighbours of each kind whose metadata is read: those called VHDs, and the others, so that
/// a crowd of other files hides none that is called what it is.
pub(super) const NEIGHBOURS_MAX: usize = 4096;

/// What a child may mean its parent by.
pub(super) struct Known<'a> {
    /// Its identity.
    uuid: Option<[u8; 16]>,
    /// Its name, which is all that a raw image has.
    name: Option<&'a OsStr>,
}

impl<'a> Known<'a> {
    /// An image that was opened.
    pub(super) fn of(file: &'a ImageFile, content: &Content) -> Self {
        match content.vhd() {
            Some(image) => Self { uuid: Some(image.footer.uuid), name: None },
            None => Self { uuid: None, name: Some(&file.name) },
        }
    }

    /// A file of which nobody said what it is, sound or not: whatever it may be known by. Also
    /// tells whether it is a VHD that says of itself that others depend on it.
    pub(super) fn of_any(file: &'a ImageFile) -> (Self, bool) {
        let read = |at, bytes: &mut [u8]| file.read(vhd::FileOffset::new(at), bytes).is_ok();
        let footer = footer_in(file.len.get(), read);
        let hidden = footer.as_ref().is_some_and(|footer| footer.hidden != 0);
        (Self { uuid: footer.map(|footer| footer.uuid), name: Some(&file.name) }, hidden)
    }

    fn is_meant_by(&self, header: &DynamicHeader) -> bool {
        if header.parent_uuid != [0; 16] {
            return self.uuid == Some(header.parent_uuid);
        }
        let name = header.parent_name_text();
        let name = name.rsplit(['/', '\\']).next().unwrap_or_default();
        self.name.is_some_and(|own| *own == *name)
    }
}

/// What was found.
pub(super) struct Census {
    /// One child, if there is any.
    pub(super) child: Option<PathBuf>,
    /// Whether every neighbour was looked at.
    pub(super) complete: bool,
}

/// Looks for a child of the image that `file` holds, and that is known as `known`.
pub(super) fn find(file: &ImageFile, known: &Known<'_>) -> Result<Census, Cause> {
    let unlisted = |errno| Cause::io("list its directory", errno);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(&file.place.dir, ".", flags, Mode::empty()).map_err(unlisted)?;
    let (mut called_vhd, mut others) = (0, 0);
    let mut complete = true;
    for entry in Dir::new(dir).map_err(unlisted)? {
        let entry = entry.map_err(unlisted)?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        let maybe = matches!(entry.file_type(), FileType::RegularFile | FileType::Unknown);
        if !maybe || name == file.name || super::create::is_draft(name) {
            continue;
        }
        let format = Format::of_name(Path::new(name));
        let looked_at = if format == Some(Format::Vhd) { &mut called_vhd } else { &mut others };
        if *looked_at == NEIGHBOURS_MAX {
            complete = false;
            continue;
        }
        *looked_at += 1;
        let Some(header) = header_of(file, name) else { continue };
        let may_be_forged = format == Some(Format::Raw) && header.parent_uuid == [0; 16];
        if !may_be_forged && known.is_meant_by(&header) {
            return Ok(Census { child: Some(file.place.path.join(name)), complete: true });
        }
    }
    Ok(Census { child: None, complete })
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
    let read = |at, bytes: &mut [u8]| neighbour.read_exact_at(bytes, at).is_ok();
    let footer = footer_in(stat.len(), read)?;
    if footer.kind != DiskKind::Differencing {
        return None;
    }
    let mut bytes = [0; HEADER_BYTES];
    neighbour.read_exact_at(&mut bytes, footer.data_offset?.get()).ok()?;
    DynamicHeader::parse(&bytes).ok()
}

/// A footer of a file of this length; `read` says whether it could. The one at the end comes first:
/// the start of a fixed image is its guest's to write.
fn footer_in(len: u64, read: impl Fn(u64, &mut [u8]) -> bool) -> Option<Footer> {
    [len.checked_sub(FOOTER_BYTES as u64)?, 0].into_iter().find_map(|at| {
        let mut bytes = [0; FOOTER_BYTES];
        if read(at, &mut bytes) { Footer::parse(&bytes).ok() } else { None }
    })
}

//! A fresh child of an image that is in use, opened to take its writes from then on.
//!
//! Its parent is open already, under our own claim as the one who writes: so it is not opened here,
//! only compared with what the child names. Refuses a child of anything else.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use super::error::{Cause, ImageError};
use super::gate::GateError;
use super::layer::{Content, OpenedLayer};
use super::lock::{self, LockError};
use super::open::{self, OpenOptions};
use crate::engine::effect::FileId;
use crate::engine::layer::Leaf;
use crate::engine::units::ByteLen;
use crate::host::Descriptors;

/// What a child says of its parent, and must say rightly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lineage {
    /// Its identity; `None` for a raw image, which has none.
    pub uuid: Option<[u8; 16]>,
    /// Bytes of its disk.
    pub size: ByteLen,
}

impl Lineage {
    /// That of an image.
    #[must_use]
    pub fn of(content: &Content) -> Self {
        Self { uuid: content.vhd().map(|image| image.footer.uuid), size: content.size() }
    }
}

/// Opens a child to be written, whose parent at `path` is this one. `options` name the child; its
/// own children are not looked for.
///
/// # Errors
/// What forbids opening it, and a child of another image.
pub fn open_child(
    options: &OpenOptions,
    parent: Lineage,
    path: &Path,
) -> Result<OpenedLayer, ImageError> {
    let options = OpenOptions { force_rw_parent: true, read_only: false, ..options.clone() };
    let mut notices = Vec::new();
    let child = open::open_top(&options, &mut notices)?;
    for notice in notices {
        tracing::warn!("{notice}");
    }
    let link = child.content.vhd().and_then(vhd::Image::parent);
    let named = link.map(|link| if link.raw { None } else { Some(link.uuid) });
    if named != Some(parent.uuid) || child.content.size() != parent.size {
        let (expected, found) =
            (named.flatten().unwrap_or_default(), parent.uuid.unwrap_or_default());
        let cause = GateError::Identity { path: path.to_owned(), expected, found };
        return Err(ImageError::new(&options.path, Cause::Parent(cause)));
    }
    child.into_layer(options.cache)
}

/// Gives up the right to be the only one who writes a file, for as long as its open file
/// description lives: from now on it is claimed as a parent is, and others may read it.
///
/// # Errors
/// When the system refuses; others are kept out then as before.
pub fn claim_to_read_only(fd: &impl AsFd) -> Result<(), LockError> {
    lock::weaken(fd)
}

impl OpenedLayer {
    /// Hands the file to a host and makes a leaf of it. `add_file` is the host's.
    ///
    /// # Errors
    /// Of `add_file`.
    pub fn into_leaf(
        self,
        add_file: &mut dyn FnMut(Descriptors) -> io::Result<FileId>,
    ) -> io::Result<(Box<dyn Leaf>, FileId)> {
        let Self { fd: main, cached, mode, content, .. } = self;
        let file = add_file(Descriptors { main, cached, mode })?;
        Ok((content.leaf(mode.device), file))
    }
}

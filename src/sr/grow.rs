//! A VDI that nobody serves grows. What is written, and in which order, is the format's own plan
//! for growing a disk that is served; here its steps are carried out one after the other.
//!
//! Refuses to shrink, and to grow what others depend on.

use std::io;

use vhd::DiskKind;

use super::catalogue::Vdi;
use super::change::{self, corrupt};
use super::failure::{Failure, Kind};
use super::intent::Intent;
use super::names::{DataFormat, VdiUuid};
use super::repository::Repository;
use super::store::{DirOp, Store};
use crate::engine::layer::{FileChange, Leaf, ResizeStep};
use crate::engine::units::{ByteLen, SECTOR};
use crate::format::Flat;
use crate::format::vhd::{Backing, FixedLeaf, VhdLeaf};

impl Repository {
    /// Gives a disk another size; nothing happens when it has it already.
    ///
    /// # Errors
    /// When the disk cannot have it, or the store fails; it keeps the old size then.
    pub fn resize(&self, vdi: VdiUuid, size: ByteLen) -> Result<(), Failure> {
        self.ready()?;
        let catalogue = self.glance(&[vdi])?;
        let found = catalogue.visible(vdi)?;
        catalogue.untouched(vdi)?;
        found.known_record()?;
        if found.size == size {
            return Ok(());
        }
        let parent = found.parent.and_then(|parent| catalogue.any(parent));
        may_grow(found, parent, size)?;
        let name = found.data_name();
        let _claim = self.store.claim(&name).map_err(|e| self.failed("claim it", &e))?;
        let mut refusal = None;
        let format = found.format;
        let intent = Intent::Resize { vdi, format, size };
        let grown = self.carry_out(&intent, || {
            let mut leaf = leaf_of(self.store.as_ref(), &name, found.format)?;
            grow(self.store.as_ref(), &name, leaf.as_mut(), size, &mut refusal)
        });
        match refusal {
            Some(why) => {
                let large = too_large(size).filter(|_| format == DataFormat::Vhd);
                let kind = if large.is_some() { Kind::Invalid } else { Kind::NotPermitted };
                Err(Failure::new(kind, format!("VDI {vdi}"), large.unwrap_or(why)))
            }
            None => grown,
        }
    }
}

/// What is to be said of a size that no VHD of blocks has.
pub(super) fn too_large(size: ByteLen) -> Option<String> {
    let most = vhd::Limits::default().max_sparse_bytes.get();
    let gib = most >> 30;
    (size.get() > most).then(|| format!("a VHD has at most {gib} GiB ({most} bytes), not {size}"))
}

fn may_grow(vdi: &Vdi, parent: Option<&Vdi>, size: ByteLen) -> Result<(), Failure> {
    let refused = |kind, why: String| Err(Failure::new(kind, format!("VDI {}", vdi.uuid), why));
    if !size.get().is_multiple_of(SECTOR) {
        return refused(Kind::Invalid, format!("the size {size} is not a multiple of 512"));
    }
    if size < vdi.size {
        let why = format!("it has {} bytes and cannot shrink to {size}", vdi.size);
        return refused(Kind::Invalid, why);
    }
    if !vdi.children.is_empty() {
        return refused(Kind::NotPermitted, "others depend on its content".to_owned());
    }
    vdi.free_of_strays()?;
    if vdi.read_only {
        return refused(Kind::NotPermitted, "it is read-only".to_owned());
    }
    if parent.is_some_and(|parent| parent.size > vdi.size) {
        let why = "its parent is larger: what it hides would show".to_owned();
        return refused(Kind::NotPermitted, why);
    }
    Ok(())
}

/// The image inside a data file, ready to be written.
pub(super) fn leaf_of(
    store: &dyn Store,
    name: &str,
    format: DataFormat,
) -> io::Result<Box<dyn Leaf>> {
    if format == DataFormat::Raw {
        return Ok(Box::new(Flat::growing(store.stamp(name)?.len)));
    }
    let image = change::survey_to_write(store, name)?;
    Ok(match image.sparse() {
        Some(sparse) => Box::new(VhdLeaf::new(&image, sparse, Backing::File)),
        None => {
            debug_assert_eq!(image.footer.kind, DiskKind::Fixed);
            Box::new(FixedLeaf::new(&image, Backing::File))
        }
    })
}

fn grow(
    store: &dyn Store,
    name: &str,
    leaf: &mut dyn Leaf,
    size: ByteLen,
    refusal: &mut Option<String>,
) -> io::Result<()> {
    if let Err(why) = leaf.begin_resize(size) {
        *refusal = Some(why);
        return Err(io::ErrorKind::Unsupported.into());
    }
    let done = take_steps(store, name, leaf);
    if done.is_err() {
        for change in leaf.undo_resize() {
            apply(store, name, &change)?;
        }
        store.apply(DirOp::SyncFile { name })?;
    }
    done
}

fn take_steps(store: &dyn Store, name: &str, leaf: &mut dyn Leaf) -> io::Result<()> {
    let mut read = None;
    loop {
        match leaf.resize_step(read.take()).map_err(corrupt)? {
            ResizeStep::Done => return Ok(()),
            ResizeStep::Read(at, len) => {
                let len = usize::try_from(len.get()).map_err(corrupt)?;
                let mut bytes = vec![0; len];
                store.read(name, at, &mut bytes)?;
                read = Some(bytes);
            }
            ResizeStep::Change { changes, sync } => {
                for change in &changes {
                    apply(store, name, change)?;
                }
                if sync {
                    store.apply(DirOp::SyncFile { name })?;
                }
            }
        }
    }
}

fn apply(store: &dyn Store, name: &str, change: &FileChange) -> io::Result<()> {
    store.apply(match change {
        FileChange::Write(at, bytes) => DirOp::Write { name, at: *at, bytes },
        FileChange::Punch(at, len) => DirOp::Punch { name, at: *at, len: *len },
        FileChange::SetLength(len) => DirOp::SetLength { name, len: *len },
    })
}

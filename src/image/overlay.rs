//! A throwaway layer: whatever is written to it is gone when its last descriptor is closed.
//!
//! The overlay is a differencing VHD without a name, so that no death of any kind leaves it behind;
//! it needs no repair, no lock and no sync, since nobody else and no later run can open it. Refuses
//! to touch the base: that is opened to read, under the claim of a reader, like any parent. The
//! gate is for parents that a file names; this one is named by the user, so it does not pass there.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use vhd::{CreateOptions, NewLayout, NewParent, Plan};

use super::create::{NewKind, fill};
use super::error::{Cause, ImageError};
use super::file::{FoundFile, ImageFile, Place};
use super::gate::GateError;
use super::layer::{Content, Format, Notice, NoticeKind, OpenedChain, OpenedLayer};
use super::open::{self, CacheMode, OpenImage, OpenOptions};

/// Nobody but us needs to open what has no name.
const PRIVATE: u32 = 0o600;

/// What file systems in memory call themselves (statfs(2)): tmpfs and ramfs.
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58F6];

/// What the overlay calls its parent. Nobody ever follows it.
const PARENT_NAME: &str = "base";

/// The directory for overlays when the user names none: `$TMPDIR`, else `/var/tmp`. Not `/tmp`,
/// which is memory on many systems: a guest that writes much would take it from everybody.
pub fn default_place() -> PathBuf {
    place_for(std::env::var_os("TMPDIR"))
}

fn place_for(told: Option<OsString>) -> PathBuf {
    let told = told.map(PathBuf::from).filter(|place| place.is_absolute());
    told.unwrap_or_else(|| PathBuf::from("/var/tmp"))
}

/// Opens an image and its parents to read, with a fresh layer over them that takes all writes and
/// vanishes with the chain. `place` is the directory whose file system holds what is written.
///
/// Of `base`, `read_only` and `force_rw_parent` mean nothing here. The overlay counts among the
/// images of `max_depth`. Where `place` has no direct I/O, the overlay alone is cached all the
/// same, and a notice says so.
///
/// # Errors
/// What forbids opening the base; [`Cause::Overlay`] for a base that no overlay fits, above all one
/// beyond 2040 GiB; [`Cause::OverlayPlace`] when `place` does not take it.
pub fn open_overlay(base: &OpenOptions, place: &Path) -> Result<OpenedChain, ImageError> {
    let mut chain = open::open(&OpenOptions { read_only: true, ..base.clone() })?;
    let below = &chain.layers[0];
    let refused = |cause: Cause| ImageError::new(&below.path, cause);
    if chain.layers.len() >= base.max_depth {
        return Err(refused(GateError::TooDeep { most: base.max_depth }.into()));
    }
    let plan = plan(&below.content).map_err(|error| refused(Cause::Overlay(error)))?;
    let failed = |cause| ImageError::new(place, cause);
    let unplaced = |error: std::io::Error| failed(Cause::OverlayPlace(error));
    let place = Place::open(place).map_err(unplaced)?;
    let (fd, name) = nameless(&place).map_err(|errno| unplaced(errno.into()))?;
    fill(&File::from(fd.try_clone().map_err(unplaced)?), &plan).map_err(unplaced)?;
    let file = hold(fd, place, &name).map_err(failed)?;
    let layer = open_layer(file, base.cache, &mut chain.notices).map_err(failed)?;
    chain.layers.insert(0, layer);
    chain.read_only = false;
    Ok(chain)
}

/// The image of the overlay. Its blocks are the usual 2 MiB: a block takes only the sectors that
/// were written to it, so smaller ones would save nothing and make the table longer, which is
/// written whole here (4 MiB for 2 TiB).
fn plan(base: &Content) -> Result<Plan, vhd::CreateError> {
    let NewKind::Vhd { block_bytes } = NewKind::dynamic() else {
        unreachable!("a dynamic VHD is a VHD")
    };
    let parent = NewParent {
        uuid: base.vhd().map_or([0; 16], |image| image.footer.uuid),
        raw: base.vhd().is_none(),
        relative_path: PARENT_NAME.to_owned(),
        timestamp: 0,
    };
    let block_bytes = vhd::ByteLen::new(block_bytes.get());
    vhd::create(&CreateOptions {
        size: vhd::ByteLen::new(base.size().get()),
        layout: NewLayout::Differencing { block_bytes, parent },
        uuid: uuid::Uuid::new_v4().into_bytes(),
        timestamp: 0,
    })
}

/// A new file without a name, and what to call it in messages.
fn nameless(place: &Place) -> Result<(OwnedFd, OsString), Errno> {
    let mode = Mode::from_raw_mode(PRIVATE);
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    // With EXCL, nobody can give it a name later either.
    let unnamed = flags | OFlags::TMPFILE | OFlags::EXCL;
    match rustix::fs::openat(&place.dir, ".", unnamed, mode) {
        Ok(fd) => Ok((fd, OsString::from("(overlay)"))),
        // File systems without such files: overlayfs of old, NFS, FAT.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => named_for_now(place),
        Err(errno) => Err(errno),
    }
}

/// A file whose name nobody can guess, and which loses it at once.
fn named_for_now(place: &Place) -> Result<(OwnedFd, OsString), Errno> {
    let name = format!(".orlop-{}.overlay", uuid::Uuid::new_v4().simple());
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(&place.dir, &name, flags, Mode::from_raw_mode(PRIVATE))?;
    rustix::fs::unlinkat(&place.dir, &name, AtFlags::empty())?;
    Ok((fd, OsString::from(name)))
}

/// The overlay as an image file. Without a claim: nobody can open what has no name, and its file
/// system may be one without locks.
fn hold(fd: OwnedFd, place: Place, name: &OsStr) -> Result<ImageFile, Cause> {
    let found = FoundFile::held(fd, place, name).map_err(Cause::OverlayPlace)?;
    found.open(true, None)
}

fn open_layer(
    file: ImageFile,
    cache: CacheMode,
    notices: &mut Vec<Notice>,
) -> Result<OpenedLayer, Cause> {
    let content = open::content_of(&file, Format::Vhd)?;
    let place = file.place.path.clone();
    let mut note = |kind| notices.push(Notice { path: place.clone(), kind });
    // Where it cannot be told, nothing is told.
    let kind = rustix::fs::fstatfs(&file).map_or(0, |stat| stat.f_type as u64);
    if IN_MEMORY.contains(&kind) {
        note(NoticeKind::OverlayInMemory);
    }
    let mut cache = cache;
    if cache == CacheMode::None && file.make_direct().is_err() {
        note(NoticeKind::OverlayCached);
        cache = CacheMode::Writeback;
    }
    OpenImage { file, content }.into_layer(cache).map_err(|error| error.cause)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Content, Place, fill, hold, named_for_now, nameless, place_for, plan};
    use crate::engine::units::ByteLen;
    use crate::image::layer::Format;
    use crate::image::open::content_of;

    #[test]
    fn the_user_s_word_counts_before_our_own() {
        assert_eq!(place_for(Some("/scratch".into())), Path::new("/scratch"));
        for useless in [None, Some("".into()), Some("here".into())] {
            assert_eq!(place_for(useless), Path::new("/var/tmp"));
        }
    }

    #[test]
    fn neither_way_leaves_a_name_and_both_give_a_private_image() {
        let dir = tempfile::tempdir().unwrap();
        for make in [nameless, named_for_now] {
            let place = Place::open(dir.path()).unwrap();
            let (fd, name) = make(&place).unwrap();
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
            let stat = rustix::fs::fstat(&fd).unwrap();
            assert_eq!((stat.st_nlink, stat.st_mode & 0o7777), (0, 0o600));
            let plan = plan(&Content::Raw { size: ByteLen::new(512) }).unwrap();
            fill(&std::fs::File::from(fd.try_clone().unwrap()), &plan).unwrap();
            let file = hold(fd, place, &name).unwrap();
            let content = content_of(&file, Format::Vhd).unwrap();
            assert_eq!(content.size().get(), 512);
        }
    }
}

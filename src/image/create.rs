//! Making images: complete under a name of their own before they appear under the one asked for,
//! so that nobody, a crash included, ever sees half of one.
//!
//! Refuses to replace what exists unless told so, and then never what is in use, and never
//! anything but a regular file.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use vhd::{CreateOptions, NewLayout, NewParent, Piece, Plan};

use super::children::{self, Known};
use super::error::{Cause, ImageError};
use super::file::{FileKind, FoundFile, Place, vhd_seconds};
use super::gate::GateError;
use super::layer::{Format, Notice, NoticeKind};
use super::lock::Claim;
use super::open::{self, OpenOptions, is_called_raw};
use crate::engine::units::{ByteLen, SECTOR};

/// Bytes written at once where a plan asks for many equal ones.
const FILL_BYTES: usize = 1 << 20;

/// What kind of image to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewKind {
    /// A VHD whose blocks come on demand: differencing with a parent, dynamic without.
    Vhd {
        /// Data bytes of a block.
        block_bytes: ByteLen,
    },
    /// A fixed VHD.
    VhdFixed,
    /// The disk's bytes as they are.
    Raw,
}

impl NewKind {
    /// A VHD with blocks of the size that every program knows.
    pub const fn dynamic() -> Self {
        Self::Vhd { block_bytes: ByteLen::new(vhd::create::DEFAULT_BLOCK_BYTES.get()) }
    }

    /// The format of such an image.
    pub const fn format(self) -> Format {
        match self {
            Self::Vhd { .. } | Self::VhdFixed => Format::Vhd,
            Self::Raw => Format::Raw,
        }
    }
}

impl Format {
    /// The format of an image that is to be made under this name, by the rule by which it will be
    /// opened: else a user would make what nobody finds again.
    ///
    /// # Errors
    /// A name that promises another format, or none.
    pub fn of_new(path: &Path) -> Result<Self, ImageError> {
        let foreign = Self::foreign(path).map(|promised| Cause::NameContradicts { promised });
        let cause = || foreign.unwrap_or(Cause::FormatUnknown);
        Self::of_name(path).ok_or_else(|| ImageError::new(path, cause()))
    }
}

/// What to make.
#[derive(Clone, Debug)]
pub struct NewImage {
    /// Where.
    pub path: PathBuf,
    /// Bytes of the disk; the parent's when `None`.
    pub size: Option<ByteLen>,
    /// What kind. A parent makes sense with [`NewKind::Vhd`] only and is ignored otherwise.
    pub kind: NewKind,
    /// The parent, and how to open it and its own parents; its `path` is the parent's.
    pub parent: Option<OpenOptions>,
    /// Its identity; a fresh one when `None`. Means nothing for raw images.
    pub uuid: Option<[u8; 16]>,
    /// Whether a file of that name is replaced.
    pub replace: bool,
}

/// What was made.
#[derive(Debug)]
pub struct Created {
    /// Bytes of the disk.
    pub size: ByteLen,
    /// Bytes of the file.
    pub file_bytes: ByteLen,
    /// Identity of a VHD.
    pub uuid: Option<[u8; 16]>,
    /// The parent as the child names it.
    pub parent: Option<String>,
    /// What a user should know about the parent's chain.
    pub notices: Vec<Notice>,
}

/// Makes an image: written completely, made durable, then given its name.
///
/// # Errors
/// What forbids it; nothing is left behind then.
pub fn create(new: &NewImage) -> Result<Created, ImageError> {
    let failed = |cause| ImageError::new(&new.path, cause);
    let (place, name) = Place::around(&new.path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => failed(Cause::NoDirectory),
        _ => failed(Cause::io("find its directory", error)),
    })?;
    if let Some(promised) = new.kind.format().contradicted_by(&new.path) {
        return Err(failed(Cause::NameContradicts { promised }));
    }
    let mut notices = check_free(new, &place, &name)?;
    let parent = match (&new.parent, new.kind) {
        (Some(options), NewKind::Vhd { .. }) => Some(measure_parent(new, options, &place)?),
        _ => None,
    };
    let size = new.size.or(parent.as_ref().map(|p| p.size));
    let size = size.ok_or_else(|| failed(Cause::SizeMissing))?;
    let uuid = new.uuid.unwrap_or_else(|| uuid::Uuid::new_v4().into_bytes());
    let plan = plan(new, size, uuid, parent.as_ref()).map_err(|e| failed(Cause::New(e)))?;
    write(&place, &name, &plan, new.replace).map_err(failed)?;
    let link = parent.map(|measured| {
        notices.extend(measured.notices);
        measured.link
    });
    Ok(Created {
        size,
        file_bytes: ByteLen::new(plan.file_len.get()),
        uuid: (new.kind != NewKind::Raw).then_some(uuid),
        parent: link.map(|link| link.relative_path),
        notices,
    })
}

/// What a child needs to know about its parent.
struct Measured {
    link: NewParent,
    size: ByteLen,
    notices: Vec<Notice>,
}

/// Whether the name is free, or its holder may go. What goes must have no children, whatever it is:
/// in its place they would find another disk, or none.
fn check_free(new: &NewImage, place: &Place, name: &OsStr) -> Result<Vec<Notice>, ImageError> {
    let path = place.path.join(name);
    let failed = |cause| ImageError::new(&new.path, cause);
    let kind = match rustix::fs::statat(&place.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(Vec::new()),
        Err(errno) => return Err(failed(Cause::io("look at it", errno))),
        Ok(stat) => FileKind::of(stat.st_mode),
    };
    if !new.replace {
        return Err(failed(Cause::Exists));
    }
    if kind != FileKind::Regular {
        return Err(failed(Cause::CannotReplace(kind)));
    }
    // Whoever has it open would go on with a file that nobody else can see any more.
    let file = FoundFile::named(&path)?.open(false, Some(Claim::Write)).map_err(failed)?;
    let (known, hidden) = Known::of_any(&file);
    if hidden {
        return Err(failed(Cause::ReplacesHidden));
    }
    let census = children::find(&file, &known).map_err(failed)?;
    if let Some(child) = census.child {
        return Err(failed(Cause::ReplacesParent { child }));
    }
    if census.complete {
        return Ok(Vec::new());
    }
    let kind = NoticeKind::ChildrenUnknown { looked_at: children::NEIGHBOURS_MAX };
    Ok(vec![Notice { path: file.path.clone(), kind }])
}

/// Opens the parent with its whole chain, so that the child will open too, and finds the way to it.
fn measure_parent(
    new: &NewImage,
    options: &OpenOptions,
    place: &Place,
) -> Result<Measured, ImageError> {
    // The chain gets one image more.
    let max_depth = options.max_depth.saturating_sub(1);
    let reading = OpenOptions { read_only: true, max_depth, ..options.clone() };
    let chain = open::open(&reading)?;
    let top = &chain.layers[0];
    let refused = |error: GateError| ImageError::new(&new.path, error);
    if max_depth == 0 {
        return Err(refused(GateError::TooDeep { most: options.max_depth }));
    }
    let home = place.path.as_path();
    if new.path.file_name().is_some_and(|name| top.path == home.join(name)) {
        return Err(ImageError::new(&new.path, Cause::OwnParent));
    }
    let way = way_to(home, &top.path);
    if way.starts_with("..") && !is_allowed(options, &top.path) {
        return Err(refused(GateError::Outside { path: way }));
    }
    let raw = top.content.vhd().is_none();
    if raw && !options.allow_raw_parent && !is_called_raw(&top.path) {
        return Err(refused(GateError::RawRefused { path: top.path.clone() }));
    }
    let unspeakable = || ImageError::new(&new.path, Cause::ParentPathNotUnicode(way.clone()));
    let relative_path = way.to_str().ok_or_else(unspeakable)?.to_owned();
    let stat = rustix::fs::fstat(&top.fd)
        .map_err(|errno| ImageError::new(&top.path, Cause::io("look at it", errno)))?;
    let written = vhd_seconds(stat.st_mtime);
    let uuid = top.content.vhd().map_or([0; 16], |image| image.footer.uuid);
    let link = NewParent { uuid, raw, relative_path, timestamp: written };
    Ok(Measured { link, size: chain.size, notices: chain.notices })
}

fn is_allowed(options: &OpenOptions, parent: &Path) -> bool {
    let real = options.allow_parents.iter().filter_map(|path| path.canonicalize().ok());
    real.into_iter().any(|place| parent.starts_with(place))
}

/// The relative way from a directory to a file, both canonical.
fn way_to(from: &Path, to: &Path) -> PathBuf {
    let common = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(common).map(|_| Path::new(".."));
    let down = to.components().skip(common);
    up.chain(down.map(|part| Path::new(part.as_os_str()))).collect()
}

fn plan(
    new: &NewImage,
    size: ByteLen,
    uuid: [u8; 16],
    parent: Option<&Measured>,
) -> Result<Plan, vhd::CreateError> {
    let vhd_size = vhd::ByteLen::new(size.get());
    let layout = match (new.kind, parent) {
        (NewKind::Raw, _) => return raw_plan(vhd_size),
        (NewKind::VhdFixed, _) => NewLayout::Fixed,
        (NewKind::Vhd { block_bytes }, None) => {
            NewLayout::Dynamic { block_bytes: vhd::ByteLen::new(block_bytes.get()) }
        }
        (NewKind::Vhd { block_bytes }, Some(parent)) => NewLayout::Differencing {
            block_bytes: vhd::ByteLen::new(block_bytes.get()),
            parent: parent.link.clone(),
        },
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let timestamp = vhd_seconds(i64::try_from(now.as_secs()).unwrap_or(0));
    vhd::create(&CreateOptions { size: vhd_size, layout, uuid, timestamp })
}

fn raw_plan(size: vhd::ByteLen) -> Result<Plan, vhd::CreateError> {
    const MOST: vhd::ByteLen = vhd::ByteLen::new(i64::MAX as u64 / SECTOR * SECTOR);
    if size == vhd::ByteLen::ZERO {
        return Err(vhd::CreateError::SizeZero);
    }
    if !size.get().is_multiple_of(SECTOR) {
        return Err(vhd::CreateError::SizeUnaligned { found: size });
    }
    if size > MOST {
        return Err(vhd::CreateError::SizeTooLarge { found: size, most: MOST });
    }
    Ok(Plan { pieces: Vec::new(), file_len: size })
}

/// What the names of unfinished images begin and end with.
const DRAFT: &str = ".orlop-";
const DRAFT_END: &str = ".tmp";

/// Whether a file of this name is an image that was never finished, so that nothing depends on it.
pub(super) fn is_draft(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(DRAFT.as_bytes()) && name.ends_with(DRAFT_END.as_bytes())
}

/// Writes the file under a name of its own, then gives it the one asked for.
fn write(place: &Place, name: &OsStr, plan: &Plan, replace: bool) -> Result<(), Cause> {
    let draft = format!("{DRAFT}{}{DRAFT_END}", uuid::Uuid::new_v4().simple());
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(&place.dir, &draft, flags, Mode::from_raw_mode(0o666))
        .map_err(|e| Cause::io("create it", e))?;
    let file = File::from(fd);
    let written = fill(&file, plan)
        .and_then(|()| file.sync_all())
        .map_err(|error| Cause::Io { doing: "write it", error })
        .and_then(|()| appear(place, &draft, name, replace));
    if written.is_err() {
        // Nothing more can be done if this fails too; the first failure is the one to tell.
        let _left_behind = rustix::fs::unlinkat(&place.dir, &draft, AtFlags::empty());
        return written;
    }
    sync_directory(place).map_err(|error| Cause::Io { doing: "make its name durable", error })
}

/// Writes an image into an empty file. Whoever wants it to last syncs it.
pub(super) fn fill(file: &File, plan: &Plan) -> io::Result<()> {
    file.set_len(plan.file_len.get())?;
    for piece in &plan.pieces {
        match piece {
            Piece::Bytes { at, bytes } => file.write_all_at(bytes, at.get())?,
            Piece::Fill { at, len, byte } => {
                let chunk = vec![*byte; FILL_BYTES];
                let mut done = 0;
                while done < len.get() {
                    let rest = usize::try_from(len.get() - done).unwrap_or(usize::MAX);
                    let part = &chunk[..rest.min(FILL_BYTES)];
                    file.write_all_at(part, at.get() + done)?;
                    done += part.len() as u64;
                }
            }
        }
    }
    Ok(())
}

/// Gives a draft its name.
fn appear(place: &Place, draft: &str, name: &OsStr, replace: bool) -> Result<(), Cause> {
    let dir = &place.dir;
    let flags = if replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
    let named = match rustix::fs::renameat_with(dir, draft, dir, name, flags) {
        // Some file systems cannot rename without replacing, but all of those can link.
        Err(Errno::INVAL | Errno::NOSYS) if !replace => {
            rustix::fs::linkat(dir, draft, dir, name, AtFlags::empty())
                .and_then(|()| rustix::fs::unlinkat(dir, draft, AtFlags::empty()))
        }
        result => result,
    };
    match named {
        Err(Errno::EXIST) => Err(Cause::Exists),
        Err(errno) => Err(Cause::io("give it its name", errno)),
        Ok(()) => Ok(()),
    }
}

fn sync_directory(place: &Place) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(&place.dir, ".", flags, Mode::empty())?;
    Ok(rustix::fs::fsync(dir)?)
}

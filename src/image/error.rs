//! Why an image could not be opened or made: which file, what about it, and what to do.
//!
//! Types and words only; the command line turns them into exit codes.

use std::io;
use std::path::{Path, PathBuf};

use super::file::FileKind;
use super::gate::GateError;
use super::lock::LockError;

/// A failure, with the file it concerns.
#[derive(Debug, thiserror::Error)]
#[error("{}: {cause}{}", path.display(), needed(needed_by.as_deref()))]
pub struct ImageError {
    /// The file.
    pub path: PathBuf,
    /// The image whose parent the file is, where it was opened as one.
    pub needed_by: Option<PathBuf>,
    /// What is wrong.
    pub cause: Cause,
}

impl ImageError {
    pub(super) fn new(path: &Path, cause: impl Into<Cause>) -> Self {
        Self { path: path.to_owned(), needed_by: None, cause: cause.into() }
    }

    /// A stable word for programs.
    pub fn code(&self) -> &'static str {
        self.cause.code()
    }

    /// What to do about it.
    pub fn hint(&self) -> String {
        self.cause.hint(&self.path)
    }

    /// Whether the system does not permit it.
    pub fn is_forbidden(&self) -> bool {
        let denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
        matches!(&self.cause, Cause::Io { error, .. } if denied(error))
    }
}

fn needed(child: Option<&Path>) -> String {
    child
        .map_or_else(String::new, |child| format!(" (needed as the parent of {})", child.display()))
}

/// What can be wrong.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The system refused something.
    #[error("cannot {doing}: {error}")]
    Io {
        /// What was tried, as a verb and its object.
        doing: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// No such file.
    #[error("no such file")]
    NotFound,
    /// A new image has nowhere to be.
    #[error("its directory does not exist")]
    NoDirectory,
    /// Neither a regular file nor a block device.
    #[error("it is a {0}, not a regular file or a block device")]
    NotAnImage(FileKind),
    /// Nothing says which format it has.
    #[error("its name does not tell its format")]
    FormatUnknown,
    /// A raw image of no bytes.
    #[error("it is empty: a disk has at least one byte")]
    Empty,
    /// No size for a disk that keeps nothing.
    #[error("it names no size of a null disk: {0}")]
    NullSize(String),
    /// The image breaks the rules of its format.
    #[error("{0}")]
    Vhd(#[from] vhd::OpenError),
    /// The image cannot be written safely.
    #[error("it can be opened for reading only: {0}")]
    WriteRefused(vhd::Reason),
    /// Another image depends on every byte of this one.
    #[error("it is the parent of {}: writing to it would corrupt that image", child.display())]
    HasChildren {
        /// One of its children.
        child: PathBuf,
    },
    /// XenServer marked it as a base that only its children may show.
    #[error("it is marked as hidden, which says that other images depend on it")]
    Hidden,
    /// It was to be replaced, and another image depends on every byte of it.
    #[error("it is the parent of {}: replacing it would lose that image", child.display())]
    ReplacesParent {
        /// One of its children.
        child: PathBuf,
    },
    /// It was to be replaced, and is marked as XenServer marks bases.
    #[error("it is marked as hidden, which says that other images depend on it")]
    ReplacesHidden,
    /// Somebody else uses it.
    #[error("{0}")]
    Lock(#[from] LockError),
    /// No direct I/O here.
    #[error("its file system has no direct I/O (O_DIRECT)")]
    NoDirect,
    /// The parent cannot be had.
    #[error("{0}")]
    Parent(#[from] GateError),
    /// A repair did not make the image sound.
    #[error("the repair was carried out, but the image still needs one")]
    RepairFutile,
    /// A directory of `--allow-parent` cannot be used.
    #[error("cannot use the directory for parents: {0}")]
    AllowedDirectory(io::Error),
    /// The new image cannot exist.
    #[error("{0}")]
    New(#[from] vhd::CreateError),
    /// No throwaway layer fits over it.
    #[error("no overlay fits over it (an overlay is a VHD, of at most 2040 GiB): {0}")]
    Overlay(vhd::CreateError),
    /// The directory does not take a throwaway layer.
    #[error("cannot keep an overlay there: {0}")]
    OverlayPlace(io::Error),
    /// The name of a new image would make everybody open it in another format.
    #[error("its name promises another format: {promised}")]
    NameContradicts {
        /// What the name promises.
        promised: &'static str,
    },
    /// There is something already.
    #[error("it exists already")]
    Exists,
    /// Only a regular file may be replaced.
    #[error("it is a {0}; only a regular file may be replaced")]
    CannotReplace(FileKind),
    /// A new image without a size, and no parent to take it from.
    #[error("a new image needs a size")]
    SizeMissing,
    /// A new image would read itself as its parent.
    #[error("an image cannot be its own parent")]
    OwnParent,
    /// A path that no locator can hold.
    #[error("the path to its parent is not Unicode: {}", .0.display())]
    ParentPathNotUnicode(PathBuf),
    /// Raw images have no metadata.
    #[error("it is raw: there is no metadata to check or repair")]
    NothingToCheck,
}

impl Cause {
    pub(super) fn io(doing: &'static str, error: impl Into<io::Error>) -> Self {
        let error = error.into();
        match error.kind() {
            io::ErrorKind::NotFound => Self::NotFound,
            _ => Self::Io { doing, error },
        }
    }

    /// A stable word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "io",
            Self::NotFound | Self::NoDirectory => "not-found",
            Self::NotAnImage(_) => "not-an-image",
            Self::FormatUnknown => "format-unknown",
            Self::Empty => "empty",
            Self::NullSize(_) => "null-size",
            Self::Vhd(_) => "bad-image",
            Self::WriteRefused(_) => "read-only-image",
            Self::HasChildren { .. } | Self::ReplacesParent { .. } => "has-children",
            Self::Hidden | Self::ReplacesHidden => "hidden",
            Self::Lock(error) => error.code(),
            Self::NoDirect => "no-direct-io",
            Self::Parent(error) => error.code(),
            Self::RepairFutile => "repair-futile",
            Self::AllowedDirectory(_) => "allow-parent",
            Self::New(_) => "bad-options",
            Self::Overlay(_) => "overlay-base",
            Self::OverlayPlace(_) => "overlay-place",
            Self::NameContradicts { .. } => "name-contradicts",
            Self::Exists => "exists",
            Self::CannotReplace(_) => "cannot-replace",
            Self::SizeMissing => "size-missing",
            Self::OwnParent => "own-parent",
            Self::ParentPathNotUnicode(_) => "parent-path",
            Self::NothingToCheck => "nothing-to-check",
        }
    }

    fn hint(&self, path: &Path) -> String {
        let path = path.display();
        match self {
            Self::Io { error, .. } if error.kind() == io::ErrorKind::PermissionDenied => {
                "check the permissions of the file, or open it with --read-only".to_owned()
            }
            Self::Io { error, .. }
                if error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) =>
            {
                "each image of a chain takes a descriptor: raise LimitNOFILE= of the service, or \
                 `ulimit -n`, and start it again"
                    .to_owned()
            }
            Self::Io { .. } => "check the file system and the kernel's log".to_owned(),
            Self::NotFound => "check the path".to_owned(),
            Self::NoDirectory => "make the directory first, or check the path".to_owned(),
            Self::NotAnImage(_) => "name the image itself".to_owned(),
            Self::FormatUnknown => {
                "pass --format raw or --format vhd; orlop never guesses it from the content"
                    .to_owned()
            }
            Self::Empty => format!("make an image with 'orlop create {path} -s SIZE'"),
            Self::NullSize(_) => {
                format!("say null:SIZE, such as null:64G; a file of that name is ./{path}")
            }
            Self::Vhd(_) => format!(
                "run 'orlop check {path}' for everything that is wrong; if it is no VHD at all, \
                 pass --format raw"
            ),
            Self::WriteRefused(_) => "open it with --read-only, or convert it".to_owned(),
            Self::HasChildren { .. } | Self::Hidden => {
                "open it with --read-only, or create a child and write to that; \
                 --force-rw-parent if no child matters any more"
                    .to_owned()
            }
            Self::ReplacesParent { .. } | Self::ReplacesHidden => {
                "choose another name; remove it yourself if no child matters any more".to_owned()
            }
            Self::Lock(error) => error.hint(),
            Self::NoDirect => "use --cache writeback".to_owned(),
            Self::Parent(error) => error.hint(),
            Self::RepairFutile => format!("run 'orlop check {path}'; restore from a backup"),
            Self::AllowedDirectory(_) => "name an existing directory".to_owned(),
            Self::New(_) => "choose other values".to_owned(),
            Self::Overlay(_) => "open it with --read-only, or copy it first".to_owned(),
            Self::OverlayPlace(_) => {
                "name a writable directory with room for all that will be written".to_owned()
            }
            Self::NameContradicts { .. } => {
                "choose a name that ends in .vhd for a VHD, in .raw or .img for a raw image"
                    .to_owned()
            }
            Self::Exists => "choose another name, or pass --force to replace it".to_owned(),
            Self::CannotReplace(_) => "choose another name".to_owned(),
            Self::SizeMissing => "pass -s SIZE (such as 20G) or --parent".to_owned(),
            Self::OwnParent => "choose another name for the child".to_owned(),
            Self::ParentPathNotUnicode(_) => "rename the parent or its directory".to_owned(),
            Self::NothingToCheck => "pass --format vhd if it is a VHD".to_owned(),
        }
    }
}

//! The gate in front of parents. Where a child says its parent is, is text from an untrusted file:
//! it opens only if it resolves beneath the child's own directory, or beneath one the user vouched
//! for, without a symbolic link on the way, to a regular file (section 5.5 of the security notes).
//!
//! Refuses to open devices, pipes and anything by an absolute path, and never looks at content:
//! the identity is compared by whoever opens what came through here.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use vhd::{LocatorPath, ParentLink};

use super::file::{FileKind, FoundFile, Place};

/// How often a path is tried again that somebody renamed things under meanwhile.
const RACES_MAX: usize = 8;

const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Why a parent does not open.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// No candidate exists.
    #[error("its parent {name:?} is missing (looked for {})", listed(tried))]
    Missing {
        /// The parent's name in the child.
        name: String,
        /// Where it was looked for.
        tried: Vec<PathBuf>,
    },
    /// The child knows an absolute path only, and no allowed directory has a file of that name.
    #[error("its parent is known by the absolute path {path:?} only, which is never followed")]
    Absolute {
        /// The path in the child.
        path: String,
    },
    /// The path leads out of the child's directory and into no allowed one.
    #[error("its parent {} lies outside its directory and every allowed one", path.display())]
    Outside {
        /// The path in the child.
        path: PathBuf,
    },
    /// A symbolic link on the way.
    #[error("its parent {} is reached through a symbolic link, which is never followed",
        path.display())]
    Symlink {
        /// Where the link is met, or behind it.
        path: PathBuf,
    },
    /// No regular file.
    #[error("its parent {} is a {found}, not a regular file", path.display())]
    NotRegular {
        /// The candidate.
        path: PathBuf,
        /// What it is.
        found: FileKind,
    },
    /// Another image lies where the parent should be.
    #[error("its parent {} has the identity {}, expected {}", path.display(), uuid_text(found),
        uuid_text(expected))]
    Identity {
        /// The candidate.
        path: PathBuf,
        /// Identity that the child names.
        expected: [u8; 16],
        /// Identity of the candidate.
        found: [u8; 16],
    },
    /// The image names itself.
    #[error("it is its own parent")]
    Itself,
    /// An image further up names one further down.
    #[error("its parent {} is an image above it: the chain is a circle", path.display())]
    Cycle {
        /// The image met again.
        path: PathBuf,
    },
    /// A raw parent may be any file, so its name must say that it is meant as one.
    #[error("its raw parent {} is not called .raw or .img", path.display())]
    RawRefused {
        /// The candidate.
        path: PathBuf,
    },
    /// More images than a chain may have.
    #[error("its chain has more than {most} images")]
    TooDeep {
        /// The limit.
        most: usize,
    },
    /// The system refused a candidate.
    #[error("cannot open its parent {}: {error}", path.display())]
    Io {
        /// The candidate.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

impl GateError {
    /// A stable word for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "parent-missing",
            Self::Absolute { .. } => "parent-absolute",
            Self::Outside { .. } => "parent-outside",
            Self::Symlink { .. } => "parent-symlink",
            Self::NotRegular { .. } => "parent-not-regular",
            Self::Identity { .. } => "parent-identity",
            Self::Itself => "parent-itself",
            Self::Cycle { .. } => "parent-cycle",
            Self::RawRefused { .. } => "parent-raw",
            Self::TooDeep { .. } => "chain-too-deep",
            Self::Io { .. } => "parent-io",
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Missing { .. } | Self::Absolute { .. } => {
                "put the parent beside the child, or pass --allow-parent DIR for its directory"
            }
            Self::Outside { .. } => "pass --allow-parent DIR if you trust its directory",
            Self::Symlink { .. } => {
                "put the parent itself there, or pass --allow-parent DIR for its real directory"
            }
            Self::NotRegular { .. } => "a parent is a file; copy it to one if this is meant",
            Self::Identity { .. } => {
                "find the right parent: over another one the disk would be garbage"
            }
            Self::Itself | Self::Cycle { .. } => {
                "the image is damaged or was made to do harm; restore it from a backup"
            }
            Self::RawRefused { .. } => {
                "pass --allow-raw-parent if you trust the child: its guest reads that file's bytes"
            }
            Self::TooDeep { .. } => "merge some of the images, or pass a larger --max-depth",
            Self::Io { .. } => "check the permissions of the parent and its directory",
        }
        .to_owned()
    }
}

fn listed(paths: &[PathBuf]) -> String {
    let names: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

/// An identity the way people read it.
pub(super) fn uuid_text(bytes: &[u8; 16]) -> String {
    uuid::Uuid::from_bytes(*bytes).hyphenated().to_string()
}

/// One way to try: a path beneath a directory.
struct Attempt<'a> {
    from: &'a Place,
    path: PathBuf,
}

/// Where the parent of an image in `home` may be, and what came of looking there.
pub(super) struct Search<'a> {
    attempts: Vec<Attempt<'a>>,
    tried: Vec<PathBuf>,
    refusal: Option<GateError>,
    link: &'a ParentLink,
}

impl<'a> Search<'a> {
    /// Plans the search: the candidates in their order, each beneath the child's directory first.
    pub(super) fn new(home: &'a Place, allowed: &'a [Place], link: &'a ParentLink) -> Self {
        let mut attempts: Vec<Attempt<'a>> = Vec::new();
        let mut plan = |from: &'a Place, path: PathBuf| {
            let known = attempts.iter().any(|a| std::ptr::eq(a.from, from) && a.path == path);
            if !known {
                attempts.push(Attempt { from, path });
            }
        };
        for candidate in &link.candidates {
            if let Some(relative) = &candidate.relative {
                plan(home, PathBuf::from(relative));
                for place in allowed {
                    if let Some(rest) = beneath(&home.path, relative, &place.path) {
                        plan(place, rest);
                    }
                }
            }
            let Some(name) = plain_name(candidate) else { continue };
            for place in allowed {
                plan(place, PathBuf::from(name));
            }
        }
        // Taken from the end.
        attempts.reverse();
        Self { attempts, tried: Vec::new(), refusal: None, link }
    }

    /// The next file that could be the parent.
    pub(super) fn next(&mut self) -> Option<FoundFile> {
        while let Some(attempt) = self.attempts.pop() {
            let shown = attempt.from.path.join(&attempt.path);
            match find(attempt.from, &attempt.path) {
                Ok(found) if found.kind == FileKind::Regular => return Some(found),
                Ok(found) => {
                    self.refuse(GateError::NotRegular { path: shown, found: found.kind });
                }
                Err(Errno::NOENT | Errno::NOTDIR) => self.tried.push(shown),
                Err(Errno::LOOP) => self.refuse(GateError::Symlink { path: shown }),
                Err(Errno::XDEV) => self.refuse(GateError::Outside { path: attempt.path }),
                Err(errno) => self.refuse(GateError::Io { path: shown, error: errno.into() }),
            }
        }
        None
    }

    /// Notes why a file that was found will not do. The first reason is the one that is told.
    pub(super) fn refuse(&mut self, error: GateError) {
        self.refusal.get_or_insert(error);
    }

    /// Why there is no parent.
    pub(super) fn into_error(self) -> GateError {
        if let Some(refusal) = self.refusal {
            return refusal;
        }
        let candidates = &self.link.candidates;
        if let Some(first) = candidates.first()
            && candidates.iter().all(|path| path.relative.is_none())
        {
            return GateError::Absolute { path: first.text.clone() };
        }
        GateError::Missing { name: self.link.name.clone(), tried: self.tried }
    }
}

/// The last component, which is all of an absolute path that counts.
fn plain_name(candidate: &LocatorPath) -> Option<&str> {
    candidate.file_name().filter(|name| !name.contains('\0'))
}

/// The rest of the way when `relative`, seen from `home`, leads into `place`; decided on the text,
/// since the kernel checks it again beneath `place`.
fn beneath(home: &Path, relative: &str, place: &Path) -> Option<PathBuf> {
    let mut path = home.to_owned();
    for component in Path::new(relative).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::ParentDir => {
                path.pop();
            }
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    let rest = path.strip_prefix(place).ok()?;
    (rest != Path::new("")).then(|| rest.to_owned())
}

/// Looks up a path beneath a directory: its directory first, so that the parent's own locators
/// start from a handle and not from a path somebody may have replaced.
fn find(from: &Place, path: &Path) -> Result<FoundFile, Errno> {
    let name = path.file_name().ok_or(Errno::NOENT)?;
    let place = match path.parent() {
        Some(way) if way != Path::new("") => {
            let dir = resolve(from, way.as_os_str(), OFlags::DIRECTORY)?;
            let path = where_is(&dir)?;
            Place { dir, path }
        }
        _ => from.try_clone().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?,
    };
    // No NOFOLLOW: with it a handle to a link would be given out instead of an error.
    let handle = resolve(&place, name, OFlags::empty())?;
    FoundFile::held(handle, place, name)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

fn resolve(from: &Place, path: &OsStr, more: OFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | more;
    for _ in 0..RACES_MAX {
        match rustix::fs::openat2(&from.dir, path, flags, Mode::empty(), BENEATH) {
            // Somebody renamed a directory while `..` was followed.
            Err(Errno::AGAIN) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

/// The canonical path of an open directory.
fn where_is(dir: &OwnedFd) -> Result<PathBuf, Errno> {
    let link = format!("/proc/self/fd/{}", dir.as_raw_fd());
    std::fs::read_link(link).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::{Path, PathBuf};

    use vhd::{LocatorPath, ParentLink, Platform};

    use super::super::file::Place;
    use super::{GateError, Search, beneath};

    fn link(paths: &[(&str, bool)]) -> ParentLink {
        let candidate = |(text, relative): &(&str, bool)| LocatorPath {
            platform: Platform::W2ru,
            text: (*text).to_owned(),
            relative: relative.then(|| (*text).to_owned()),
        };
        ParentLink {
            uuid: [1; 16],
            raw: false,
            name: "base.vhd".to_owned(),
            candidates: paths.iter().map(candidate).collect(),
        }
    }

    fn tree() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for sub in ["home/sub", "base", "other"] {
            std::fs::create_dir_all(root.join(sub)).unwrap();
        }
        for file in ["home/near.vhd", "home/sub/deep.vhd", "base/base.vhd", "secret"] {
            std::fs::write(root.join(file), file).unwrap();
        }
        symlink(root.join("secret"), root.join("home/link.vhd")).unwrap();
        symlink(root.join("base"), root.join("home/way")).unwrap();
        (dir, root)
    }

    /// What a search finds first, or why it finds nothing.
    fn search(paths: &[(&str, bool)], allow: &[&str]) -> Result<String, GateError> {
        let (_dir, root) = tree();
        let home = Place::open(&root.join("home")).unwrap();
        let allowed: Vec<_> =
            allow.iter().map(|name| Place::open(&root.join(name)).unwrap()).collect();
        let link = link(paths);
        let mut search = Search::new(&home, &allowed, &link);
        match search.next() {
            Some(found) => Ok(found.path().strip_prefix(&root).unwrap().display().to_string()),
            None => Err(search.into_error()),
        }
    }

    #[test]
    fn a_parent_opens_beneath_its_childs_directory_only() {
        assert_eq!(search(&[("near.vhd", true)], &[]).unwrap(), "home/near.vhd");
        assert_eq!(search(&[("sub/deep.vhd", true)], &[]).unwrap(), "home/sub/deep.vhd");
        assert_eq!(search(&[("sub/../near.vhd", true)], &[]).unwrap(), "home/near.vhd");
        for path in ["../base/base.vhd", "../secret", "sub/../../secret", "../../../etc/passwd"] {
            let error = search(&[(path, true)], &[]).unwrap_err();
            assert!(matches!(error, GateError::Outside { .. }), "{path}: {error}");
        }
    }

    #[test]
    fn links_are_never_followed_wherever_they_are_on_the_way() {
        for path in ["link.vhd", "way/base.vhd"] {
            let error = search(&[(path, true)], &["other"]).unwrap_err();
            assert!(matches!(error, GateError::Symlink { .. }), "{path}: {error}");
        }
        // The name of the parent, in a directory the user vouched for, needs no link.
        assert_eq!(search(&[("way/base.vhd", true)], &["base"]).unwrap(), "base/base.vhd");
    }

    #[test]
    fn an_allowed_directory_opens_the_way_and_takes_absolute_paths_by_name() {
        let far = ("../base/base.vhd", true);
        assert_eq!(search(&[far], &["base"]).unwrap(), "base/base.vhd");
        assert!(search(&[far], &["other"]).is_err());
        let absolute = ("C:\\images\\base.vhd", false);
        assert_eq!(search(&[absolute], &["other", "base"]).unwrap(), "base/base.vhd");
        let error = search(&[absolute], &[]).unwrap_err();
        assert!(matches!(error, GateError::Absolute { .. }), "{error}");
        let error = search(&[("/etc/passwd", false)], &["base"]).unwrap_err();
        assert!(matches!(error, GateError::Absolute { .. }), "{error}");
    }

    #[test]
    fn a_missing_parent_is_told_with_every_place_it_was_looked_for() {
        let error = search(&[("gone.vhd", true)], &["base"]).unwrap_err();
        let GateError::Missing { tried, .. } = error else { unreachable!("{error}") };
        assert_eq!(tried.len(), 2);
    }

    #[test]
    fn directories_are_no_parents() {
        let error = search(&[("sub", true)], &[]).unwrap_err();
        assert!(matches!(error, GateError::NotRegular { .. }), "{error}");
    }

    #[test]
    fn a_way_is_followed_on_paper_before_it_is_followed_on_disk() {
        let rest = |relative, place: &str| beneath(Path::new("/a/b"), relative, Path::new(place));
        assert_eq!(rest("../c/d.vhd", "/a/c"), Some(PathBuf::from("d.vhd")));
        assert_eq!(rest("../../x", "/"), Some(PathBuf::from("x")));
        assert_eq!(rest("../c", "/a/c"), None);
        assert_eq!(rest("../cc/d.vhd", "/a/c"), None);
    }
}

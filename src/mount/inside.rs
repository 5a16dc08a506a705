//! What lies on a mounted image's file: a loop device, and the file system in it.
//!
//! Made in this order and undone in the other. Dropped, it is undone as far as that goes; only what
//! was made here is.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::loops::{self, LoopDevice};
use super::tool::{self, LONG_PATIENCE, ToolError};

/// A loop device over a file, and perhaps a mounted file system on it.
#[derive(Debug)]
pub(super) struct Inside {
    /// The mount with the file.
    mount: PathBuf,
    node: Option<PathBuf>,
    file_system: Option<PathBuf>,
}

/// Why the file system inside is still there.
#[derive(Debug, thiserror::Error)]
pub enum InsideError {
    /// Somebody uses it.
    #[error("{} is in use", .0.display())]
    Busy(PathBuf),
    /// It is not where it was put.
    #[error(
        "what lies on {} is mounted on {}, not on {} where it was put; unmount it there",
        node.display(), at.display(), put.display()
    )]
    Elsewhere {
        /// The loop device.
        node: PathBuf,
        /// Where it is mounted.
        at: PathBuf,
        /// Where it was mounted.
        put: PathBuf,
    },
    /// The system refused.
    #[error("{} could not be unmounted: {error}", at.display())]
    Failed {
        /// Where it is mounted.
        at: PathBuf,
        /// Why.
        error: ToolError,
    },
}

impl Inside {
    /// Makes a loop device over `file` of a mount and, if asked for, mounts the file system in it
    /// at a place, with options for mount(8) besides.
    ///
    /// # Errors
    /// The step that failed; those before it are undone.
    pub(super) fn make(
        mount: &Path,
        file: &str,
        read_only: bool,
        file_system: Option<(&Path, &str)>,
    ) -> Result<Self, ToolError> {
        let node = loops::attach(&mount.join(file), read_only)?;
        let mount = mount.to_owned();
        let mut made = Self { mount, node: Some(node.clone()), file_system: None };
        if let Some((at, more)) = file_system {
            // Programs and devices of a foreign disk are no business of this system.
            let mode = if read_only { "ro" } else { "rw" };
            let options = [mode, more, "nosuid,nodev"].into_iter().filter(|word| !word.is_empty());
            let options = options.collect::<Vec<_>>().join(",");
            let words = ["-o", &options, "--"].map(OsStr::new);
            tool::run("mount", &[&words[..], &[node.as_os_str(), at.as_os_str()]].concat())?;
            made.file_system = Some(at.to_owned());
        }
        Ok(made)
    }

    pub(super) fn node(&self) -> Option<&Path> {
        self.node.as_deref()
    }

    pub(super) fn file_system(&self) -> Option<&Path> {
        self.file_system.as_deref()
    }

    /// Unmounts and lets the loop device go; what is gone already is no error. `lazily`: out of
    /// sight now, and gone with its last user.
    ///
    /// # Errors
    /// The step that failed; it can be tried again.
    pub(super) fn unmake(&mut self, lazily: bool) -> Result<(), InsideError> {
        let Some(node) = self.node.clone() else { return Ok(()) };
        // Somebody else may have let it go, and it may be anybody's by now.
        let all = loops::below(&self.mount);
        if let Some(device) = all.iter().find(|device| device.node() == node) {
            if let Some(at) = &self.file_system {
                match unmount(at, device, lazily) {
                    Err(error @ InsideError::Elsewhere { .. }) if lazily => {
                        tracing::warn!("{error}");
                    }
                    result => result?,
                }
            }
            if let Err(error) = loops::detach(device) {
                // The mount is told to be busy then.
                tracing::warn!(%error, "{} was not let go", node.display());
            }
        }
        (self.node, self.file_system) = (None, None);
        Ok(())
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if let Err(error) = self.unmake(true) {
            tracing::warn!(%error, "something is left behind");
        }
    }
}

/// Unmounts what a loop device holds at this place.
pub(super) fn unmount(at: &Path, device: &LoopDevice, lazily: bool) -> Result<(), InsideError> {
    let mounts = orlop_fuse::mounts();
    let top = mounts.iter().rfind(|mount| mount.point == at);
    if !top.is_some_and(|mount| device.holds(mount)) {
        let node = device.node();
        return match mounts.into_iter().find(|mount| device.holds(mount)) {
            Some(other) => {
                Err(InsideError::Elsewhere { node, at: other.point, put: at.to_owned() })
            }
            None => {
                tracing::debug!("{} is no longer on {}", node.display(), at.display());
                Ok(())
            }
        };
    }
    // Not followed, not looked at: what lies below may be dead.
    let mut words = vec![OsStr::new("--no-canonicalize"), OsStr::new("--internal-only")];
    words.extend(lazily.then_some(OsStr::new("--lazy")));
    words.extend([OsStr::new("--"), at.as_os_str()]);
    match tool::run_for(LONG_PATIENCE, "umount", &words) {
        Ok(_) => Ok(()),
        Err(ToolError::Failed { said, .. }) if said.contains("busy") => {
            Err(InsideError::Busy(at.to_owned()))
        }
        Err(error) => Err(InsideError::Failed { at: at.to_owned(), error }),
    }
}

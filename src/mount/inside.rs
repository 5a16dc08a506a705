//! What lies on a mounted image's file: a loop device, and the file system in it.
//!
//! Made in this order and undone in the other. Dropped, it is undone as far as that goes; only what
//! was made here is.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use rustix::mount::UnmountFlags;

use super::loops;
use super::tool::{self, ToolError};

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
    /// The system refused.
    #[error("{} could not be unmounted: {error}", at.display())]
    Failed {
        /// Where it is mounted.
        at: PathBuf,
        /// Why.
        error: std::io::Error,
    },
}

impl Inside {
    /// Makes a loop device over `file` of a mount and, if asked for, mounts the file system in it.
    ///
    /// # Errors
    /// The step that failed; those before it are undone.
    pub(super) fn make(
        mount: &Path,
        file: &str,
        read_only: bool,
        file_system: Option<&Path>,
    ) -> Result<Self, ToolError> {
        let node = loops::attach(&mount.join(file), read_only)?;
        let mount = mount.to_owned();
        let mut made = Self { mount, node: Some(node.clone()), file_system: None };
        if let Some(at) = file_system {
            // Programs and devices of a foreign disk are no business of this system.
            let options = if read_only { "ro,nosuid,nodev" } else { "rw,nosuid,nodev" };
            let words = ["-o", options, "--"].map(OsStr::new);
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
        if let (Some(at), Some(node)) = (&self.file_system, &self.node) {
            unmount(at, node, lazily)?;
        }
        self.file_system = None;
        let Some(node) = self.node.take() else { return Ok(()) };
        // Somebody else may have let it go, and it may be anybody's by now.
        if loops::below(&self.mount).iter().any(|device| device.node() == node)
            && let Err(error) = loops::detach(&node)
        {
            // The mount is told to be busy then.
            tracing::warn!(%error, "{} was not let go", node.display());
        }
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

/// Unmounts what a loop device holds, if that is what is mounted there.
pub(super) fn unmount(at: &Path, node: &Path, lazily: bool) -> Result<(), InsideError> {
    let top = orlop_fuse::mounts().into_iter().rfind(|mount| mount.point == at);
    let source = top.map(|mount| mount.source).unwrap_or_default();
    let rest = node.to_str().and_then(|node| source.strip_prefix(node));
    if !rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('p')) {
        tracing::debug!("{} is no longer on {}", node.display(), at.display());
        return Ok(());
    }
    let flags = if lazily { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(at, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::BUSY) => Err(InsideError::Busy(at.to_owned())),
        Err(errno) => Err(InsideError::Failed { at: at.to_owned(), error: errno.into() }),
    }
}

//! Why an image was not mounted, or not unmounted.

use std::io;
use std::path::PathBuf;

use super::busy::{User, listed};
use super::inside::InsideError;
use super::tool::ToolError;
use crate::image::ImageError;
use crate::server::ControlError;

/// Why an image is not mounted, or did not end well. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum MountFailure {
    /// The image does not open.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The overlay's file is there, and lies over something else.
    #[error("{} is no overlay of {}: {}", layer.display(), base.display(), lies_over(found))]
    OtherBase {
        /// The overlay's file.
        layer: PathBuf,
        /// The image that was named.
        base: PathBuf,
        /// What it lies over.
        found: Option<PathBuf>,
    },
    /// It opens, but not as asked.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The mount point or the kernel.
    #[error(transparent)]
    Fuse(#[from] orlop_fuse::MountError),
    /// What is left of a dead server cannot be cleared away.
    #[error("{}: what a dead server left there is in the way: {why}", at.display())]
    Left {
        /// The mount point.
        at: PathBuf,
        /// What kept it.
        why: String,
    },
    /// The mount was made and answers nothing.
    #[error("{}: the mount does not answer: {error}", at.display())]
    Silent {
        /// The mount point.
        at: PathBuf,
        /// What a look at it gave.
        error: ToolError,
    },
    /// No transport of the kind that was asked for.
    #[error("--transport {asked}: {why}")]
    Transport {
        /// What was asked for.
        asked: &'static str,
        /// What is missing.
        why: String,
    },
    /// The NBD socket.
    #[error("--nbd: {0}")]
    Nbd(io::Error),
    /// The loop device, or the file system in it.
    #[error("{step}: {error}")]
    Inside {
        /// The option that asked for it.
        step: &'static str,
        /// Why not.
        error: ToolError,
    },
    /// The file system inside cannot go there.
    #[error("--mount-fs {}: {why}", at.display())]
    InsidePlace {
        /// The place.
        at: PathBuf,
        /// Why not.
        why: String,
        /// Whether there is nothing at that place.
        absent: bool,
    },
    /// Which file system is meant is not clear.
    #[error("--mount-fs: {0}")]
    WhichFileSystem(String),
    /// Threads, memory or the I/O host.
    #[error("{what}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        error: io::Error,
    },
    /// It was unmounted, but not all of it is on disk.
    #[error("the last changes could not be made durable: {0}")]
    NotDurable(String),
}

impl LeaveFailure {
    /// The same, after this was undone.
    pub(super) fn after(mut self, undone: &'static str) -> Self {
        if let Self::Busy { done, .. } | Self::Flush { done, .. } = &mut self {
            *done = undone;
        }
        self
    }
}

fn lies_over(found: &Option<PathBuf>) -> String {
    match found {
        Some(other) => format!("it lies over {}", other.display()),
        None => "it is an image of its own".to_owned(),
    }
}

/// Why something is still mounted.
#[derive(Debug, thiserror::Error)]
pub enum LeaveFailure {
    /// Nothing of orlop is mounted there.
    #[error("{}: {found}", at.display())]
    NotMounted {
        /// The place.
        at: PathBuf,
        /// What is there.
        found: String,
    },
    /// Somebody uses it; everything is as it was, as far as `done` does not say otherwise.
    #[error("{}: in use by {}{done}", at.display(), listed(users))]
    Busy {
        /// What is in use.
        at: PathBuf,
        /// Who uses it.
        users: Vec<User>,
        /// What was undone before that was found.
        done: &'static str,
    },
    /// What was written could not be made durable; it is still mounted.
    #[error(
        "{}: what was written cannot be made durable: {error}; it stays mounted{done}",
        at.display()
    )]
    Flush {
        /// The file, or the file system inside.
        at: PathBuf,
        /// Why.
        error: ToolError,
        /// What was undone before that was found.
        done: &'static str,
    },
    /// It is another user's.
    #[error("{}: another user has mounted it; only that one and root may unmount it", .0.display())]
    Denied(PathBuf),
    /// The file system inside.
    #[error(transparent)]
    Inside(#[from] InsideError),
    /// The loop device.
    #[error("a loop device cannot be let go: {0}")]
    Loop(#[from] ToolError),
    /// The kernel.
    #[error(transparent)]
    Fuse(#[from] orlop_fuse::UnmountError),
    /// The server does not answer.
    #[error("{}: its server does not answer ({error})", at.display())]
    Silent {
        /// The mount point.
        at: PathBuf,
        /// What a look at it gave.
        error: ToolError,
        /// The name of its connection under /sys/fs/fuse/connections.
        connection: String,
    },
    /// The server is still at work.
    #[error("{} is unmounted, but its server (pid {pid}) is not done yet", at.display())]
    Lingering {
        /// The mount point.
        at: PathBuf,
        /// The server.
        pid: u32,
    },
}

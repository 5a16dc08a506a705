//! One image as files: opened, mounted, watched until somebody takes the mount away, and then made
//! durable and closed.
//!
//! The order is the point. What a dead server left is cleared away, the image is opened, the mount
//! made, then what lies on it (a loop device, the file system inside); the way back is the same in
//! reverse, after an error as after years of service. Nothing about a mount is kept in files: the
//! kernel knows what there is, and the mount itself says who serves it.
//!
//! Refuses to serve more than one disk, and to speak to a terminal.

mod about;
mod ask;
mod busy;
mod ending;
mod failure;
mod guard;
mod inside;
mod leave;
mod loops;
mod opening;
mod passing;
mod place;
mod session;
mod standing;
mod tool;
mod way;
mod windows;

use std::path::PathBuf;

use serde_json::Value;

use crate::host::Aio;
use crate::image::OpenedLayer;
use crate::server::ExportSpec;

pub use about::facts_of_failure;
pub(crate) use about::{Chain, ImageAbout, Way};
pub use busy::{User, listed, process_users, users};
pub use failure::{LeaveFailure, MountFailure};
pub(crate) use guard::{flush_nothing_for_memory, stay_in_memory};
pub use inside::InsideError;
pub use leave::{Left, clear_dead, leave};
pub use loops::LoopDevice;
pub(crate) use passing::Mapped;
pub(crate) use place::make_ready;
pub use session::run;
pub use tool::{BACKGROUND_MARK, ToolError};
pub(crate) use windows::windows;

/// How requests come from the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// The best there is.
    Auto,
    /// Through /dev/fuse.
    Classic,
    /// Through io_uring.
    Uring,
}

/// What is to be mounted, and how.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The image and what is shown of it.
    pub spec: ExportSpec,
    /// A file that takes what is written, and keeps it; made if it is not there. Without one,
    /// `spec` says whether there is a throwaway layer.
    pub kept_overlay: Option<PathBuf>,
    /// The mount point.
    pub at: PathBuf,
    /// Whether other users may use it.
    pub allow_other: bool,
    /// Whether the kernel may read and write the image's file by itself where that is the disk.
    pub passthrough: bool,
    /// How requests come.
    pub transport: Transport,
    /// Threads that read requests where the shard does not.
    pub threads: usize,
    /// A socket on which the same disk is served over NBD.
    pub nbd: Option<PathBuf>,
    /// Whether a loop device is to lie over the disk.
    pub loop_device: bool,
    /// Where the file system in the disk is to be mounted.
    pub file_system: Option<PathBuf>,
    /// Options of mount(8) for that one.
    pub file_system_options: Vec<String>,
    /// How the images are read and written.
    pub aio: Aio,
    /// MiB for requests in flight.
    pub memory_mib: u32,
    /// An image for people.
    pub describe: fn(&OpenedLayer) -> String,
}

/// A mount that answers.
#[derive(Clone, Debug)]
pub struct Ready {
    /// The mount point, without links.
    pub at: PathBuf,
    /// The files with the disk's bytes.
    pub files: Vec<String>,
    /// What `info.json` says.
    pub info: Value,
    /// What a user should know.
    pub notices: Vec<String>,
}

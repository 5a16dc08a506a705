//! Disks as files: questions of a FUSE mount, read by the thread of a shard or asked on threads of
//! the mount, carried out by the shard that owns the disk and answered from there.
//!
//! Bounded: a disk's questions wait in a queue of its own; what they bring to be written counts,
//! and whoever brings too much waits. A read or write is started only once memory for it was
//! granted. Refuses to know names, mounts and formats.

mod channel;
mod client;
mod passed;
mod port;
mod queue;
mod ring;

use std::sync::Arc;

use orlop_fuse::{Errno, Fact, Text};

use crate::engine::units::Extent;
use crate::meter::Meter;
use crate::shard::{DiskTag, ExportKey, Mailbox, Watch};

pub use channel::Channel;
pub use port::Files;
pub use ring::Rings;

/// What the small files beside a disk say, and its extended attributes.
pub trait About: Send + Sync {
    /// The text. Called on the shard's own thread: answers at once, from memory.
    ///
    /// # Errors
    /// The number the reader of the file is to see.
    fn text(&self, which: Text) -> Result<Vec<u8>, Errno>;

    /// The extended attributes. Called as [`Self::text`] is.
    fn facts(&self) -> Vec<Fact>;
}

/// A file the kernel may read and write by itself: it is exactly the disk.
pub trait Passing: Send + Sync {
    /// The file, if the kernel may have it now, to write as well or only to read.
    fn backing(&self, write: bool) -> Option<Arc<std::os::fd::OwnedFd>>;
}

/// A disk as [`Files`] shows it.
pub struct FileDisk {
    /// The way to its shard.
    pub mailbox: Mailbox,
    /// Its name there.
    pub tag: DiskTag,
    /// What it is shown as: those who use it go when this is drained.
    pub export: ExportKey,
    /// The part of the disk that is shown.
    pub window: Extent,
    /// What is told about it.
    pub about: Arc<dyn About>,
    /// What the kernel may do by itself.
    pub passing: Option<Arc<dyn Passing>>,
    /// Who gives up mapped pages when others change the disk.
    pub watch: Option<Arc<dyn Watch>>,
    /// Where requests are counted. Written by the shard alone.
    pub meter: Arc<Meter>,
}

//! What the program says of a disk it wants shown, and why that may be refused.
//! Holds no state of a mount.

use std::time::SystemTime;

use crate::port::{Bytes, DiskId, Extent};
use crate::tree::PARTITIONS_MAX;

/// Where the files of a disk are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One disk, its files directly under the mount point.
    Single,
    /// A directory for each disk.
    Many,
}

/// A partition: a part of the disk shown as a file `p<number>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// From 1.
    pub number: u32,
    /// Where it lies on the disk.
    pub extent: Extent,
}

/// A disk to show.
#[derive(Clone, Debug)]
pub struct NewDisk {
    /// The port's name of it.
    pub id: DiskId,
    /// What it is to be called: anything; made safe and different from the others.
    pub label: Vec<u8>,
    /// Its size.
    pub len: Bytes,
    /// Whether writing is refused.
    pub read_only: bool,
    /// Its partitions.
    pub windows: Vec<Window>,
    /// When it was last written, as far as is known.
    pub modified: SystemTime,
}

/// Why a disk cannot be shown or changed as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// The id is taken.
    #[error("disk {} is in this mount already", .0.0)]
    Known(DiskId),
    /// The id is not there.
    #[error("disk {} is not in this mount", .0.0)]
    Unknown(DiskId),
    /// Full: a [`Layout::Single`] mount holds one disk, any other [`crate::tree::DISKS_MAX`].
    #[error("the mount holds {0} disks already, which is all it can")]
    Full(usize),
    /// Longer than a file can be.
    #[error("a disk of {} bytes is larger than a file can be", .0.0)]
    TooLong(Bytes),
    /// A window that is not within its disk, or whose number is taken or out of range.
    #[error("partition {} ({} bytes at {}) is not within its disk, or its number is taken or \
        not in 1..={PARTITIONS_MAX}", .0.number, .0.extent.len.0, .0.extent.at.0)]
    BadWindow(Window),
    /// Files of it are open, and the removal was not forced.
    #[error("disk {} is in use: {} handles are open", .0.0, .1)]
    InUse(DiskId, u32),
}

/// Who has a disk's files open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Handles open for reading only.
    pub readers: u32,
    /// Handles open for writing.
    pub writers: u32,
    /// Of these, handles the kernel serves by itself, or maps by itself: the port neither counts
    /// nor stops what they do.
    pub passthrough: u32,
}

//! The plain values of requests and their answers, the same for every transport.
//! Decides nothing.

use std::time::SystemTime;

use crate::port::{Bytes, Errno};

/// Whether a file may be listed or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file.
    File,
}

/// What `stat` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The inode number.
    pub inode: u64,
    /// Directory or file.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u16,
    /// Entries that name it.
    pub links: u32,
    /// The size.
    pub len: Bytes,
    /// What of it is stored.
    pub stored: Bytes,
    /// When it last changed.
    pub modified: SystemTime,
}

/// What the mount as a whole shows in `statfs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Blocks of [`Self::block`] bytes of all disks together; none is ever free.
    pub blocks: u64,
    /// The size of a block.
    pub block: u32,
    /// Files and directories.
    pub files: u64,
}

/// How a file is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenHow {
    /// For writing too.
    pub write: bool,
    /// To be emptied (`O_TRUNC`).
    pub truncate: bool,
}

/// An open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// What later requests name it by.
    pub handle: u64,
    /// Whether a close must be told, because there may be something to make durable.
    pub flush_on_close: bool,
}

/// A change of attributes (`setattr`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The size wanted.
    pub size: Option<u64>,
    /// Whether owner, mode or times are to change.
    pub other: bool,
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Where a listing goes on behind it.
    pub cookie: u64,
    /// Its name.
    pub name: String,
    /// Its inode number.
    pub inode: u64,
    /// Directory or file.
    pub kind: Kind,
}

/// How a value meets the buffer its asker has (`getxattr`, `listxattr`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Only the size was asked for.
    Size(u32),
    /// It fits.
    Whole,
}

/// Fits a value into a buffer of `room` bytes; 0 asks for the size.
///
/// # Errors
///
/// [`Errno::Range`] where it does not fit.
pub fn fit(value: &[u8], room: u32) -> Result<Fit, Errno> {
    let len = u32::try_from(value.len()).map_err(|_| Errno::Range)?;
    match room {
        0 => Ok(Fit::Size(len)),
        room if len <= room => Ok(Fit::Whole),
        _ => Err(Errno::Range),
    }
}

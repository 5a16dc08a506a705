//! What every transport tells the kernel in the same words: how long it may believe things, whose
//! the files are, what open flags and seeks mean. Knows no wire.

use std::time::Duration;

use rustix::fs::OFlags;

use crate::ops::{Change, OpenHow};
use crate::port::{Errno, RunKind};

/// How long the kernel may believe a name. Changes are told, so this is only a ceiling.
pub(crate) const ENTRY_TTL: Duration = Duration::from_secs(3600);
/// How long it may believe attributes: block counts and times change without its knowledge.
pub(crate) const ATTRIBUTE_TTL: Duration = Duration::from_secs(1);
/// Inode numbers are not used twice, so one generation does.
pub(crate) const GENERATION: u64 = 0;
/// What files say is a good size for one read or write.
pub(crate) const GOOD_IO: u32 = 1 << 20;
/// What block counts count.
pub(crate) const SECTOR: u64 = 512;

const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// Who the files belong to, and what the kernel may do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) passthrough: bool,
}

/// How a file is asked for by these flags of `open`.
pub(crate) fn open_how(flags: OFlags) -> OpenHow {
    OpenHow {
        write: flags.intersection(OFlags::RWMODE) != OFlags::RDONLY,
        truncate: flags.contains(OFlags::TRUNC),
    }
}

/// Whether a write through a file opened so is to be durable before it is answered: O_SYNC
/// includes the bit of O_DSYNC; the kernel sets them for RWF_DSYNC too.
pub(crate) fn is_durable(flags: OFlags) -> bool {
    flags.intersects(OFlags::DSYNC)
}

/// A change of attributes. Times that come with a size belong to it.
pub(crate) fn change(size: Option<u64>, owner_or_mode: bool, times: bool) -> Change {
    Change { size, other: owner_or_mode || (times && size.is_none()) }
}

/// What `lseek` looks for.
pub(crate) fn sought(whence: i32) -> Result<RunKind, Errno> {
    match whence {
        SEEK_DATA => Ok(RunKind::Data),
        SEEK_HOLE => Ok(RunKind::Hole),
        _ => Err(Errno::Invalid),
    }
}

//! Carries out a task's calls one after the other and waits for each: what a worker thread does,
//! and what the ring host does for small cached writes.
//!
//! Refuses to decide anything: that is `task`'s.

use std::io::{IoSlice, IoSliceMut};

use rustix::fs::FallocateFlags;
use rustix::io::{Errno, ReadWriteFlags};

use super::task::{Call, Erase, Task, Via};
use crate::engine::effect::{IoError, Outcome};

/// Slices per call, below the system's limit of 1024.
pub(super) const SLICES_MAX: usize = 256;

/// The mode of the fallocate call that erases.
pub(super) fn erase_mode(how: Erase) -> FallocateFlags {
    match how {
        Erase::Punch => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        Erase::Zero => FallocateFlags::ZERO_RANGE,
    }
}

/// Makes calls until the task, which was started, is over.
pub(super) fn run(task: &mut Task) -> Outcome {
    loop {
        let result = call(task).map_err(|error| IoError(error.raw_os_error()));
        if let Some(outcome) = task.result(result) {
            return outcome;
        }
    }
}

fn call(task: &mut Task) -> Result<usize, Errno> {
    match task.call() {
        Call::Read { at } => read(task, at.get()),
        Call::Write { at, via, durable } => {
            let fd = match via {
                Via::Main => task.file().fd(),
                Via::Cached => task.file().cached().ok_or(Errno::BADF)?,
            };
            let mut slices = Vec::new();
            task.write_from(SLICES_MAX, &mut |bytes| slices.push(IoSlice::new(bytes)));
            if durable {
                rustix::io::pwritev2(fd, &slices, at.get(), ReadWriteFlags::DSYNC)
            } else {
                rustix::io::pwritev(fd, &slices, at.get())
            }
        }
        Call::Erase { how, at, len } => {
            rustix::fs::fallocate(task.file().fd(), erase_mode(how), at.get(), len.get())?;
            Ok(0)
        }
        Call::SetLength { len } => {
            rustix::fs::ftruncate(task.file().fd(), len.get())?;
            Ok(0)
        }
        Call::Sync => {
            rustix::fs::fdatasync(task.file().fd())?;
            Ok(0)
        }
    }
}

fn read(task: &mut Task, at: u64) -> Result<usize, Errno> {
    let file = task.shared_file();
    rustix::io::preadv(file.fd(), &mut [IoSliceMut::new(task.read_into())], at)
}

//! Carries out a task's calls one after the other and waits for each: what a worker thread does,
//! and what the ring host does for small cached writes.
//!
//! Refuses to decide anything: that is `task`'s.

use std::io::{IoSlice, IoSliceMut};

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::{Errno, ReadWriteFlags};

use super::files::OpenFile;
use super::task::{Call, Erase, Task, Via};
use crate::engine::effect::{FileRun, IoError, Outcome};
use crate::engine::units::ByteLen;

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
        Call::Extents { at, len, most } => {
            let file = task.shared_file();
            task.found(extents(&file, at.get(), len, most));
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
    rustix::io::pread(file.fd(), task.read_into(), at)
}

/// Reads what the page cache holds of a read's current call. `None`: nothing, or the file system
/// cannot tell without waiting, or there is an error, which a call that waits will tell as well.
pub(super) fn read_cached(task: &mut Task) -> Option<usize> {
    let Call::Read { at } = task.call() else { return None };
    let file = task.shared_file();
    let mut into = [IoSliceMut::new(task.read_into())];
    match rustix::io::preadv2(file.fd(), &mut into, at.get(), ReadWriteFlags::NOWAIT) {
        Ok(moved) => Some(moved),
        Err(Errno::OPNOTSUPP) => {
            file.cannot_tell();
            None
        }
        Err(_) => None,
    }
}

/// Which of `len` bytes from `at` on are holes of the file, in at most `most` runs: one call for
/// each. What the file system does not tell, and what lies behind the file's end, counts as data.
///
/// The calls move the descriptor's own position, which nobody uses.
fn extents(file: &OpenFile, at: u64, len: ByteLen, most: u32) -> Vec<FileRun> {
    let end = at + len.get();
    let mut runs: Vec<FileRun> = Vec::new();
    let mut now = at;
    let mut hole = true;
    // One more: the first call finds no run where data comes first.
    for _ in 0..=most.max(1) {
        let next = if file.is_device() {
            None
        } else if hole {
            match rustix::fs::seek(file.fd(), SeekFrom::Data(now)) {
                // Nothing but a hole up to the file's end.
                Err(Errno::NXIO) => file.size().map(ByteLen::get).ok(),
                data => data.ok(),
            }
        } else {
            rustix::fs::seek(file.fd(), SeekFrom::Hole(now)).ok()
        };
        let known = next.filter(|next| *next > now || hole);
        let until = known.unwrap_or(u64::MAX).min(end);
        if until > now {
            let hole = hole && known.is_some();
            runs.push(FileRun { len: ByteLen::new(until - now), hole });
            now = until;
        }
        if now >= end || runs.len() >= most.max(1) as usize {
            break;
        }
        hole = !hole;
    }
    if runs.is_empty() {
        runs.push(FileRun { len, hole: false });
    }
    runs
}

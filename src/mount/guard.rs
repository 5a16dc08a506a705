//! What keeps a process that serves a mount from waiting for itself: to free memory, the kernel may
//! write pages of the mounted file, which this process must take without needing free memory first.
//!
//! Best effort: what the system refuses is said and done without.

use rustix::mm::MlockAllFlags;
use rustix::process::{Resource, configure_io_flusher_behavior, getrlimit};

/// Has the kernel give memory to this thread, and to those it starts, without writing files first.
/// To be called before the threads start.
pub(crate) fn flush_nothing_for_memory() {
    // prctl(2), PR_SET_IO_FLUSHER: needs CAP_SYS_RESOURCE.
    if let Err(error) = configure_io_flusher_behavior(true) {
        tracing::debug!(%error, "a shortage of memory may make this process wait for itself");
    }
}

/// Keeps the memory of this process in memory, each page from when it is first used. To be called
/// before disks are served: parts of images that are mapped then are the page cache's, and stay so.
pub(crate) fn stay_in_memory() {
    let root = rustix::process::geteuid().is_root();
    // Under a limit, later requests for memory would fail: worse than what this guards from.
    if !root && getrlimit(Resource::Memlock).current.is_some() {
        tracing::debug!("memory is not locked: there is a limit (ulimit -l)");
        return;
    }
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    if let Err(error) = rustix::mm::mlockall(flags) {
        tracing::debug!(%error, "memory is not locked");
    }
}

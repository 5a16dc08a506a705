//! What of a file the page cache holds.
//!
//! Refuses to read: it only counts pages (`cachestat`, Linux 6.5).
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;
use rustix::io::Errno;

/// The call's number, the same on every architecture.
const SYS_CACHESTAT: libc::c_long = 451;

/// `struct cachestat_range`: bytes of the file.
#[repr(C)]
struct Range {
    at: u64,
    len: u64,
}

/// `struct cachestat`: pages.
#[repr(C)]
#[derive(Default)]
struct Pages {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Whether the page cache has all pages of a range of a file that is not empty. Pages that are
/// being read count.
///
/// # Errors
/// The kernel has no such call, or does not tell: only who owns a file or may write it is told.
pub(super) fn is_cached(file: BorrowedFd<'_>, at: u64, len: u64) -> Result<bool, Errno> {
    // SAFETY: it takes a number and returns one.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let page = u64::try_from(page).ok().filter(|page| *page > 0).ok_or(Errno::NOSYS)?;
    let (range, mut pages) = (Range { at, len }, Pages::default());
    let no_flags: libc::c_uint = 0;
    // SAFETY: the call reads one structure and writes the other, both laid out as it expects them;
    // they are ours and live until it returns. It keeps no pointer.
    let done = unsafe {
        libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut pages, no_flags)
    };
    if done != 0 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::NOSYS));
    }
    let wanted = (at + len).div_ceil(page) - at / page;
    Ok(pages.cached >= wanted)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::is_cached;

    #[test]
    fn what_was_just_written_is_there_and_what_was_never_is_not() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 40_000]).unwrap();
        file.set_len(1 << 20).unwrap();
        let told = |at, len| is_cached(file.as_fd(), at, len);
        let Ok(written) = told(0, 40_000) else {
            // A kernel before 6.5: nothing is ever told, and nothing lent.
            return;
        };
        assert!(written);
        assert!(told(100, 1).unwrap());
        assert!(told(4095, 2).unwrap());
        assert!(!told(512 << 10, 4096).unwrap());
        assert!(!told(36_000, 100_000).unwrap());
    }
}

//! Descriptors this process was started with: from a service manager, or named on the command line.
//!
//! Refuses the standard streams, numbers that name nothing, and to give out one twice.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

/// The first descriptor that is not a standard stream.
pub const FIRST: RawFd = 3;

/// Numbers that were given out.
static ADOPTED: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// Takes over a descriptor that was open when the process started. Children will not inherit it.
///
/// Call it before anything else opens descriptors: what this process opened itself already has an
/// owner, which no number tells.
///
/// # Errors
/// A number below [`FIRST`], one that is not open, or one adopted before.
#[allow(unsafe_code)]
pub fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    let refused = |why: &str| {
        let text = format!("descriptor {number} {why}");
        Err(io::Error::new(io::ErrorKind::InvalidInput, text))
    };
    if number < FIRST {
        return refused("is a standard stream, or negative");
    }
    let mut adopted = ADOPTED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if adopted.contains(&number) {
        return refused("was named twice");
    }
    // SAFETY: only asked whether it is open; a number that is not gets an error from the kernel.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    let Ok(flags) = fcntl_getfd(borrowed) else {
        return refused("is not open");
    };
    if flags.contains(FdFlags::CLOEXEC) {
        // What is inherited was kept over an exec; this one is our own.
        return refused("was not inherited");
    }
    fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    adopted.insert(number);
    // SAFETY: it is open, it survived the exec, so nothing in this process owns it; the list above
    // gives each number out once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::adopt;

    #[test]
    fn what_is_ours_or_not_open_is_refused() {
        for number in [-1, 0, 1, 2] {
            assert!(adopt(number).is_err_and(|e| e.to_string().contains("standard stream")));
        }
        assert!(adopt(9_999).is_err_and(|e| e.to_string().contains("is not open")));
        let own = std::fs::File::open("/dev/null").expect("it is there");
        let told = adopt(own.as_raw_fd()).map(drop).map_err(|e| e.to_string());
        assert!(told.is_err_and(|told| told.contains("was not inherited")));
    }
}

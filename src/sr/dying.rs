//! The end of this process in the middle of a verb, where a test asks for it. In debug builds only;
//! in others there is nothing here.
//!
//! The environment variable ORLOP_TEST_DIE names a file. From the moment it is there, the number in
//! it says after how many changes of an SR (or of what a host remembers) the process kills itself.

#[cfg(not(debug_assertions))]
pub(super) const fn step() {}

/// One change is about to be made.
#[cfg(debug_assertions)]
pub(super) fn step() {
    use std::path::PathBuf;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static ASKED: OnceLock<Option<PathBuf>> = OnceLock::new();
    static MADE: AtomicU64 = AtomicU64::new(0);
    let Some(file) = ASKED.get_or_init(|| std::env::var_os("ORLOP_TEST_DIE").map(Into::into))
    else {
        return;
    };
    let number = std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok());
    let Some(most) = number else { return };
    if MADE.fetch_add(1, Ordering::SeqCst) >= most {
        // Not an abort: nothing runs after it, as after the kernel's own.
        let own = rustix::process::getpid();
        let _never = rustix::process::kill_process(own, rustix::process::Signal::KILL);
        loop {
            std::thread::park();
        }
    }
}

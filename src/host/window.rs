//! A window into the page cache: part of a file, mapped, to be copied from without a call.
//!
//! Refuses to hand out references: what is mapped changes under everybody's hands and may go away.
//! Bytes are copied out, and a copy from pages that are gone (the file was cut, the device failed)
//! ends with a "no" instead of the signal that ends the process (SIGBUS).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use memmap2::{Advice, MmapOptions, MmapRaw};
use nix::libc;

/// Bytes of a page. The copy below is written for machines that have no other.
const PAGE: u64 = 4096;

/// The most pages one question can be about.
const PAGES_MAX: usize = 256;

/// Which pages of a range are in memory.
#[derive(Clone, Copy)]
pub(super) struct Residency([u8; PAGES_MAX]);

impl Residency {
    /// Whether that page is, counted from the first of the range.
    pub(super) fn has(&self, page: u32) -> bool {
        self.0.get(page as usize).is_some_and(|told| told & 1 == 1)
    }
}

/// Part of a file, mapped to be read.
#[derive(Debug)]
pub(super) struct Window {
    map: MmapRaw,
    /// The file position of its first byte.
    at: u64,
}

impl Window {
    /// Maps `len` bytes of a file from `at` on, a multiple of the page; its end may come before.
    ///
    /// # Errors
    /// What the system says; `Unsupported` on machines this was not written for.
    pub(super) fn over(file: BorrowedFd<'_>, at: u64, len: usize) -> io::Result<Self> {
        copying::prepare()?;
        let map = MmapOptions::new().offset(at).len(len).map_raw_read_only(file.as_raw_fd())?;
        // Should a page be gone after all, it alone is read. A child that runs a program has no use
        // for any of it.
        map.advise(Advice::Random)?;
        map.advise(Advice::DontFork)?;
        // Where all memory of the process stays in memory, this must not: it is the page cache's.
        // SAFETY: it changes what may become of the pages of our own mapping, and nothing in them.
        if unsafe { libc::munlock(map.as_ptr().cast(), len) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { map, at })
    }

    /// Which pages of a range, whole pages and at most 1 MiB, the page cache has ready, as told by
    /// `mincore`: those that are still being read are not, nor any behind the end of the file.
    pub(super) fn residency(&self, at: u64, len: u64) -> Option<Residency> {
        let mut told = Residency([0; PAGES_MAX]);
        let pages = told.0.get_mut(..len.div_ceil(PAGE) as usize)?;
        let start = self.pointer(at, pages.len() * PAGE as usize)?;
        // SAFETY: `pointer` checked that the range lies within the mapping; the call reads no
        // memory of it, and writes one byte for each page into `pages`, which has as many.
        let done = unsafe {
            libc::mincore(start.cast_mut().cast(), pages.len() * PAGE as usize, pages.as_mut_ptr())
        };
        (done == 0).then_some(told)
    }

    /// Copies bytes of the file from `at` on. False if not all of them could be had; what `into`
    /// holds then is of no meaning.
    pub(super) fn copy(&self, at: u64, into: &mut [u8]) -> bool {
        if !ARMED.load(Ordering::Relaxed) {
            return false;
        }
        let Some(from) = self.pointer(at, into.len()) else { return false };
        // SAFETY: `pointer` checked that the range lies within the mapping, which lives as long as
        // self. `into` is ours alone, and of that length. No reference to what is mapped exists.
        unsafe { copying::copy(into, from) }
    }

    /// Where a range begins, if it lies within.
    fn pointer(&self, at: u64, len: usize) -> Option<*const u8> {
        let skip = usize::try_from(at.checked_sub(self.at)?).ok()?;
        let fits = skip.checked_add(len)? <= self.map.len();
        // SAFETY: not beyond the end of the mapping, as was just checked.
        fits.then(|| unsafe { self.map.as_ptr().add(skip) })
    }
}

/// Whether the system tells this process which pages of a file are in memory. To those who neither
/// own a file nor may write it, `mincore` says that all are; even those behind its end.
pub(super) fn tells_the_truth(file: BorrowedFd<'_>) -> bool {
    let Ok(size) = rustix::fs::fstat(file).map(|stat| stat.st_size.unsigned_abs()) else {
        return false;
    };
    // A page behind the end, and another for a file that grows meanwhile.
    let Some(behind) = size.checked_next_multiple_of(PAGE).and_then(|end| end.checked_add(PAGE))
    else {
        return false;
    };
    let told = Window::over(file, behind, PAGE as usize)
        .ok()
        .and_then(|window| window.residency(behind, PAGE));
    told.is_some_and(|told| !told.has(0))
}

/// Whether a fault is answered. Not any more once the signal went to somebody else.
static ARMED: AtomicBool = AtomicBool::new(false);

/// The signal that tells of a page that cannot be had, and what was to become of it before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

#[cfg(target_arch = "x86_64")]
mod copying {
    use std::io;
    use std::sync::OnceLock;
    use std::sync::atomic::Ordering;

    use nix::libc;

    use super::{ARMED, BEFORE};

    // The two string moves are the only instructions that touch what is mapped. A fault in one of
    // them leaves the instruction pointer on it; `caught` sets it to the third label.
    std::arch::global_asm!(
        ".pushsection .text.orlop_copy,\"ax\",@progbits",
        ".p2align 6",
        ".hidden orlop_copy, orlop_copy_words, orlop_copy_bytes, orlop_copy_failed",
        ".globl orlop_copy, orlop_copy_words, orlop_copy_bytes, orlop_copy_failed",
        ".type orlop_copy,@function",
        "orlop_copy:",
        "mov rcx, rdx",
        "shr rcx, 3",
        "orlop_copy_words:",
        "rep movsq",
        "mov rcx, rdx",
        "and rcx, 7",
        "orlop_copy_bytes:",
        "rep movsb",
        "xor eax, eax",
        "ret",
        "orlop_copy_failed:",
        "mov eax, 1",
        "ret",
        ".size orlop_copy, . - orlop_copy",
        ".popsection",
    );

    // SAFETY: what is declared is what the assembly above defines: a function that keeps to the
    // conventions of C, and labels of which only the addresses are taken.
    unsafe extern "C" {
        fn orlop_copy(into: *mut u8, from: *const u8, len: usize) -> usize;
        static orlop_copy_words: u8;
        static orlop_copy_bytes: u8;
        static orlop_copy_failed: u8;
    }

    /// Copies; false after a fault.
    ///
    /// # Safety
    /// As many bytes as `into` has are mapped to be read from `from` on, and `prepare` was called.
    pub(super) unsafe fn copy(into: &mut [u8], from: *const u8) -> bool {
        // SAFETY: the caller's promise for `from`; `into` is a slice. The function keeps to the
        // conventions of C, and a fault is answered by `caught`.
        unsafe { orlop_copy(into.as_mut_ptr(), from, into.len()) == 0 }
    }

    /// Sees to it that a fault in `copy` is answered.
    pub(super) fn prepare() -> io::Result<()> {
        static DONE: OnceLock<Result<(), i32>> = OnceLock::new();
        let done = DONE.get_or_init(|| {
            // SAFETY: all zeroes is a valid value of the structure, and the start of every other.
            let (mut new, mut old) = unsafe {
                (std::mem::zeroed::<libc::sigaction>(), std::mem::zeroed::<libc::sigaction>())
            };
            // SAFETY: reads what was there, into a structure of ours.
            if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut old) } != 0 {
                return Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO));
            }
            let old = BEFORE.get_or_init(|| old);
            new.sa_sigaction = caught as *const () as usize;
            new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            new.sa_mask = old.sa_mask;
            // SAFETY: `caught` has the signature that SA_SIGINFO asks for, and calls nothing but
            // what a signal handler may.
            if unsafe { libc::sigaction(libc::SIGBUS, &raw const new, std::ptr::null_mut()) } != 0 {
                return Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO));
            }
            ARMED.store(true, Ordering::Relaxed);
            Ok(())
        });
        done.map_err(io::Error::from_raw_os_error)
    }

    /// Goes on behind a copy that met a page which cannot be had. Word of broken memory that nobody
    /// touches is no fault. Every other is left to whoever had the signal before.
    extern "C" fn caught(
        signal: libc::c_int,
        info: *mut libc::siginfo_t,
        context: *mut libc::c_void,
    ) {
        // SAFETY: with SA_SIGINFO the kernel passes a `ucontext_t` of this thread, which is ours
        // until the handler returns; the labels are addresses in our own code.
        unsafe {
            let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
            let at = registers[libc::REG_RIP as usize];
            let ours = [&raw const orlop_copy_words, &raw const orlop_copy_bytes];
            if ours.into_iter().any(|label| label as i64 == at) {
                registers[libc::REG_RIP as usize] = &raw const orlop_copy_failed as i64;
                return;
            }
            if (*info).si_code == libc::BUS_MCEERR_AO {
                return;
            }
            ARMED.store(false, Ordering::Relaxed);
            // The instruction runs again and faults again; a signal that somebody sent does not
            // come by itself.
            let before = BEFORE.get().map_or(std::ptr::null(), std::ptr::from_ref);
            libc::sigaction(signal, before, std::ptr::null_mut());
            if (*info).si_code <= 0 {
                libc::raise(signal);
            }
        }
    }
}

/// Machines whose copy is not written: nothing is mapped there.
#[cfg(not(target_arch = "x86_64"))]
mod copying {
    use std::io;

    /// Copies nothing.
    ///
    /// # Safety
    /// It may be called with anything.
    pub(super) unsafe fn copy(_into: &mut [u8], _from: *const u8) -> bool {
        false
    }

    pub(super) fn prepare() -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
#[cfg(target_arch = "x86_64")]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use rustix::fs::{Advice, fadvise};

    use super::{PAGE, Window, tells_the_truth};

    const LEN: usize = 64 << 10;

    #[test]
    fn what_is_there_is_copied_and_what_was_cut_off_is_refused() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..LEN).map(|at| (at % 251) as u8).collect();
        file.write_all(&bytes).unwrap();
        let window = Window::over(file.as_fd(), 4096, LEN).unwrap();
        for (at, len) in [(4096, 1), (4099, 17), (5000, 12_345), (LEN - 9, 9)] {
            let mut seen = vec![0; len];
            assert!(window.copy(at as u64, &mut seen));
            assert!(seen == bytes[at..at + len], "{len} bytes from {at}");
        }
        let mut into = [0; 100];
        assert!(!window.copy(0, &mut into), "before it");
        assert!(!window.copy(4096 + LEN as u64 - 99, &mut into), "behind it");
        assert!(!window.copy(u64::MAX - 50, &mut into));
        file.set_len(8192).unwrap();
        for len in [1, 8, 100] {
            assert!(!window.copy(8192, &mut into[..len]), "it was cut");
            assert!(!window.copy(8191, &mut into[..=len.min(99)]), "{len} bytes behind its end");
        }
        assert!(window.copy(8100, &mut into[..92]));
        assert_eq!(into[..92], bytes[8100..8192]);
    }

    #[test]
    fn only_pages_in_memory_are_resident() {
        // Not in memory, where nothing is ever dropped.
        let mut file = tempfile::tempfile_in("/var/tmp").unwrap();
        assert!(tells_the_truth(file.as_fd()));
        file.write_all(&[7; LEN]).unwrap();
        let window = Window::over(file.as_fd(), 0, 2 * LEN).unwrap();
        let resident = |first: u64, pages: u64| {
            let told = window.residency(first * PAGE, pages * PAGE).unwrap();
            (0..pages as u32).filter(|page| told.has(*page)).count() as u64
        };
        let all = LEN as u64 / PAGE;
        assert_eq!(resident(0, all), all);
        assert_eq!(resident(1, 2), 2);
        assert_eq!(resident(all - 1, 3), 1, "none behind the end");
        assert!(window.residency(2 * LEN as u64, PAGE).is_none(), "behind the window");
        assert!(window.residency(0, 257 * PAGE).is_none(), "too many");
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        if resident(0, all) == all {
            println!("SKIPPED: this file system keeps what it is told to drop");
            return;
        }
        assert!(window.copy(3 * PAGE + 5, &mut [0; 10]), "the fault reads it");
        assert_eq!(resident(3, 1), 1);
        assert!(resident(0, all) < all);
    }
}

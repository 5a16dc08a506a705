//! The ring itself: with entries of 64 bytes or, for a shard that may serve mounts through it, of
//! 128, which have room for a command.
//!
//! Refuses to know what an entry asks for: what it names is its pusher's promise.
#![allow(unsafe_code)]

use std::io;

use io_uring::cqueue::CompletionQueue;
use io_uring::squeue::{Entry, Entry128};
use io_uring::{IoUring, Parameters, Submitter};
use nix::libc::iovec;

use super::command::SUBMISSION_BYTES;
use crate::host::memory::{Memory, REGISTERED};

/// A ring of either kind.
pub(in crate::host) enum Ring {
    Plain(IoUring),
    Wide(IoUring<Entry128>),
}

/// What the submission queue says of itself.
pub(super) struct Standing {
    pub(super) is_empty: bool,
    /// Something waits that only entering the kernel brings.
    pub(super) owes: bool,
    /// Some completions had no room in their queue.
    pub(super) overflows: bool,
}

impl Ring {
    pub(in crate::host) fn submitter(&self) -> Submitter<'_> {
        match self {
            Self::Plain(ring) => ring.submitter(),
            Self::Wide(ring) => ring.submitter(),
        }
    }

    pub(in crate::host) fn params(&self) -> &Parameters {
        match self {
            Self::Plain(ring) => ring.params(),
            Self::Wide(ring) => ring.params(),
        }
    }

    pub(in crate::host) const fn takes_commands(&self) -> bool {
        matches!(self, Self::Wide(_))
    }

    pub(super) fn completion(&mut self) -> CompletionQueue<'_> {
        match self {
            Self::Plain(ring) => ring.completion(),
            Self::Wide(ring) => ring.completion(),
        }
    }

    pub(super) fn standing(&mut self) -> Standing {
        macro_rules! of {
            ($ring:ident) => {{
                let queue = $ring.submission();
                let overflows = queue.cq_overflow();
                let owes = queue.taskrun() || overflows;
                Standing { is_empty: queue.is_empty(), owes, overflows }
            }};
        }
        match self {
            Self::Plain(ring) => of!(ring),
            Self::Wide(ring) => of!(ring),
        }
    }

    /// Puts an entry into the submission queue; false if there is no room.
    ///
    /// # Safety
    /// What the entry points at must stay the kernel's until its completion.
    pub(super) unsafe fn push(&mut self, entry: &Entry) -> bool {
        let pushed = match self {
            Self::Plain(ring) => {
                // SAFETY: the caller's promise.
                unsafe { ring.submission().push(entry) }
            }
            Self::Wide(ring) => {
                // SAFETY: the same; the other half of the entry is zeroes, which name nothing.
                unsafe { ring.submission().push(&Entry128::from(entry.clone())) }
            }
        };
        pushed.is_ok()
    }

    /// Puts a command into the submission queue, as laid out; false if there is no room, or never
    /// any.
    ///
    /// # Safety
    /// As for [`Self::push`].
    pub(super) unsafe fn push_command(&mut self, bytes: &[u8; SUBMISSION_BYTES]) -> bool {
        let Self::Wide(ring) = self else { return false };
        // SAFETY: an entry is 128 bytes of integers in the kernel's layout; any bytes are one.
        let entry = unsafe { std::mem::transmute::<[u8; SUBMISSION_BYTES], Entry128>(*bytes) };
        // SAFETY: the caller's promise.
        unsafe { ring.submission().push(&entry) }.is_ok()
    }
}

/// Registers region 0 as buffer 0. Fails where RLIMIT_MEMLOCK is too small for it.
pub(in crate::host) fn register_memory(ring: &Ring, memory: &Memory) -> io::Result<()> {
    let (start, len) = memory.region(REGISTERED);
    let region = iovec { iov_base: start.cast(), iov_len: len };
    // SAFETY: the region is a mapping of our own. The kernel pins its pages, so even a mapping that
    // ends before the ring does not leave it dangling.
    unsafe { ring.submitter().register_buffers(&[region]) }
}

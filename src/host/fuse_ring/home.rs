//! The way of answers home: from whichever thread has one to the ring's own, which alone hands
//! entries back to the kernel.
//!
//! Bounded by the entries: each has one request at a time, and a request has one answer.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::mpsc::SyncSender;

use rustix::io::Errno;

use super::blocks::Payload;
use crate::host::wake::Waker;

/// Answers up to this need no memory of their own.
const INLINE_BYTES: usize = 128;

/// What an answer carries.
pub(super) enum Body {
    /// It stands in the payload: this many bytes.
    InPlace(usize),
    /// It is to be put there.
    Inline([u8; INLINE_BYTES], usize),
    /// It is to be put there.
    Long(Vec<u8>),
    /// An error number.
    Failed(i32),
}

/// An answer on its way.
pub(super) struct Done {
    pub(super) index: usize,
    /// The payload, where the answer had it.
    pub(super) payload: Option<Payload>,
    pub(super) body: Body,
}

/// Where answers go.
pub(super) struct Home {
    answers: SyncSender<Done>,
    waker: Waker,
    /// The ring's thread waits in the kernel, or is about to.
    asleep: AtomicBool,
}

impl Home {
    pub(super) fn new(answers: SyncSender<Done>, waker: Waker) -> Self {
        Self { answers, waker, asleep: AtomicBool::new(false) }
    }

    /// Before the ring's thread looks a last time for answers and waits.
    pub(super) fn falls_asleep(&self) {
        self.asleep.store(true, Ordering::SeqCst);
        // Either the last look sees an answer, or its sender sees this.
        fence(Ordering::SeqCst);
    }

    pub(super) fn is_awake(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }

    fn bring(&self, done: Done) {
        // Never full: see the module. A ring that is gone needs no answer: nor does the kernel.
        if self.answers.try_send(done).is_err() {
            return;
        }
        fence(Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) {
            self.waker.wake();
        }
    }
}

/// The duty to answer one request. Dropped, it answers "input/output error".
pub struct Answer {
    index: usize,
    payload: Option<Payload>,
    home: Arc<Home>,
    given: bool,
}

impl Answer {
    /// `payload`: there where nobody else looks at it meanwhile.
    pub(super) fn new(index: usize, payload: Option<Payload>, home: Arc<Home>) -> Self {
        Self { index, payload, home, given: false }
    }

    /// Answers with these bytes. More than the entry has room for is an input/output error.
    pub fn data(mut self, bytes: &[u8]) {
        let body = match &mut self.payload {
            Some(payload) => match payload.bytes_mut().get_mut(..bytes.len()) {
                Some(room) => {
                    room.copy_from_slice(bytes);
                    Body::InPlace(bytes.len())
                }
                None => Body::Failed(Errno::IO.raw_os_error()),
            },
            None if bytes.len() <= INLINE_BYTES => {
                let mut inline = [0; INLINE_BYTES];
                inline[..bytes.len()].copy_from_slice(bytes);
                Body::Inline(inline, bytes.len())
            }
            None => Body::Long(bytes.to_vec()),
        };
        self.give(body);
    }

    /// Answers with this error number.
    pub fn fail(mut self, errno: i32) {
        self.give(Body::Failed(errno));
    }

    fn give(&mut self, body: Body) {
        if !std::mem::replace(&mut self.given, true) {
            let payload = self.payload.take();
            self.home.bring(Done { index: self.index, payload, body });
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.give(Body::Failed(Errno::IO.raw_os_error()));
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("index", &self.index).finish_non_exhaustive()
    }
}

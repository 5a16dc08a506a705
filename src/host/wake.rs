//! A way for other threads to wake a shard that waits in its host.
//!
//! Refuses to carry messages: those go through the shard's mailbox, which is looked at after.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

/// Wakes one shard. Cheap to clone, usable from any thread, and never waits.
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// A waker over a fresh eventfd. The ring wants a descriptor that may wait, epoll one that
    /// never does.
    pub(super) fn new(flags: EventfdFlags) -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(0, flags | EventfdFlags::CLOEXEC)?)))
    }

    /// Makes the shard's current or next wait return with an [`super::Event::Woken`].
    pub fn wake(&self) {
        // Fails only when the counter is full, and then the shard is woken anyway.
        let _counted = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

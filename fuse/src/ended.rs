//! The end of a connection: when the kernel has let go and no request will come any more.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Told by each reader of requests when it is over.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Readers that are not over.
    left: Mutex<u32>,
    told: Condvar,
}

impl Ended {
    /// The end of one reader.
    pub(crate) fn new() -> Self {
        Self { left: Mutex::new(1), told: Condvar::new() }
    }

    /// Waits for one more reader.
    pub(crate) fn expect(&self) {
        *self.lock() += 1;
    }

    pub(crate) fn is(&self) -> bool {
        *self.lock() == 0
    }

    /// Waits until the end, or this long; says whether it came.
    pub(crate) fn wait(&self, at_most: Duration) -> bool {
        let until = self.told.wait_timeout_while(self.lock(), at_most, |left| *left > 0);
        *until.unwrap_or_else(PoisonError::into_inner).0 == 0
    }

    pub(crate) fn tell(&self) {
        let mut left = self.lock();
        *left = left.saturating_sub(1);
        self.told.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, u32> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

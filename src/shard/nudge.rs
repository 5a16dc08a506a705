//! The way to a client without a socket: other threads ring its bell, the shard calls it.
//!
//! Refuses to carry anything: what is wanted lies in a queue that the client and its callers share.

use std::sync::Arc;

use super::belfry::{Belfry, Bell};
use crate::host::Waker;

/// Lets other threads call one client of a shard.
#[derive(Clone, Debug)]
pub struct Nudge {
    bell: Arc<Bell>,
    belfry: Belfry,
    waker: Waker,
}

impl Nudge {
    pub(super) fn new(belfry: Belfry, waker: Waker) -> Self {
        Self { bell: Arc::new(Bell::new()), belfry, waker }
    }

    /// The key of its client, if that is in the shard of this belfry.
    pub(super) fn key_in(&self, belfry: &Belfry) -> Option<usize> {
        self.bell.key().filter(|_| self.belfry.is(belfry))
    }

    pub(super) fn bell(&self) -> Arc<Bell> {
        Arc::clone(&self.bell)
    }

    /// Lets the shard call the client soon, once for any number of nudges meanwhile. Never waits.
    pub fn nudge(&self) {
        if self.belfry.ring(&self.bell) {
            self.waker.wake();
        }
    }
}

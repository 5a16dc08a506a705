//! The bell of a client without a socket: other threads ring it, the shard calls the client.
//!
//! Refuses to carry anything: what is wanted lies in a queue that the client and its callers share.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::host::Waker;

/// The key of a client that is not in the shard.
const NOBODY: u32 = u32::MAX;

/// One client's bell.
#[derive(Debug)]
pub(super) struct Bell {
    rung: AtomicBool,
    key: AtomicU32,
}

impl Bell {
    /// Binds the bell to a client of the shard.
    pub(super) fn hang(&self, key: usize) {
        self.key.store(key as u32, Ordering::Release);
    }

    /// Its client is gone: ringing does nothing from now on.
    pub(super) fn take_down(&self) {
        self.key.store(NOBODY, Ordering::Release);
    }
}

/// Bells that have rung since the shard looked. A bell is in it once, so it is no longer than there
/// are clients.
#[derive(Clone, Debug, Default)]
pub(super) struct Belfry(Arc<Mutex<Vec<Arc<Bell>>>>);

impl Belfry {
    /// The keys of the clients that are to be called.
    pub(super) fn answer(&self) -> Vec<usize> {
        let rung = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut keys = Vec::with_capacity(rung.len());
        for bell in rung {
            // Before the client looks into its queue, so that what comes later rings again.
            bell.rung.store(false, Ordering::Release);
            match bell.key.load(Ordering::Acquire) {
                NOBODY => {}
                key => keys.push(key as usize),
            }
        }
        keys
    }
}

/// Lets other threads call one client of a shard.
#[derive(Clone, Debug)]
pub struct Nudge {
    bell: Arc<Bell>,
    belfry: Belfry,
    waker: Waker,
}

impl Nudge {
    pub(super) fn new(belfry: Belfry, waker: Waker) -> Self {
        let bell = Bell { rung: AtomicBool::new(false), key: AtomicU32::new(NOBODY) };
        Self { bell: Arc::new(bell), belfry, waker }
    }

    pub(super) fn bell(&self) -> Arc<Bell> {
        Arc::clone(&self.bell)
    }

    /// Lets the shard call the client soon, once for any number of nudges meanwhile. Never waits.
    pub fn nudge(&self) {
        if self.bell.rung.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut rung = self.belfry.0.lock().unwrap_or_else(PoisonError::into_inner);
        rung.push(self.bell());
        drop(rung);
        self.waker.wake();
    }
}

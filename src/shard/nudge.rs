//! The bell of a client without a socket: other threads ring it, the shard calls the client.
//!
//! Refuses to carry anything: what is wanted lies in a queue that the client and its callers share.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
pub(super) struct Belfry(Arc<Tower>);

#[derive(Debug, Default)]
struct Tower {
    rung: Mutex<Vec<Arc<Bell>>>,
    /// Whether there are any: connections alone never cost the lock.
    any: AtomicBool,
    /// The shard looks here before it sleeps, so it need not be woken: a system call less.
    awake: AtomicBool,
}

impl Belfry {
    fn rung(&self) -> MutexGuard<'_, Vec<Arc<Bell>>> {
        self.0.rung.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shard is about to sleep, and may if this is true: whoever rings from now on wakes it.
    pub(super) fn may_sleep(&self) -> bool {
        // Before looking: who rings says so before asking whether the shard is awake.
        self.0.awake.store(false, Ordering::SeqCst);
        !self.0.any.load(Ordering::SeqCst)
    }

    /// The shard is up, and will look before it sleeps.
    pub(super) fn is_up(&self) {
        self.0.awake.store(true, Ordering::SeqCst);
    }

    /// The keys of the clients that are to be called.
    pub(super) fn answer(&self) -> Vec<usize> {
        if !self.0.any.load(Ordering::SeqCst) {
            return Vec::new();
        }
        let mut bells = self.rung();
        self.0.any.store(false, Ordering::SeqCst);
        let rung = std::mem::take(&mut *bells);
        drop(bells);
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

    /// The key of its client, if that is in the shard of this belfry.
    pub(super) fn key_in(&self, belfry: &Belfry) -> Option<usize> {
        let key = self.bell.key.load(Ordering::Acquire);
        let here = Arc::ptr_eq(&self.belfry.0, &belfry.0) && key != NOBODY;
        here.then_some(key as usize)
    }

    pub(super) fn bell(&self) -> Arc<Bell> {
        Arc::clone(&self.bell)
    }

    /// Lets the shard call the client soon, once for any number of nudges meanwhile. Never waits.
    pub fn nudge(&self) {
        if self.bell.rung.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut rung = self.belfry.rung();
        rung.push(self.bell());
        self.belfry.0.any.store(true, Ordering::SeqCst);
        drop(rung);
        if !self.belfry.0.awake.load(Ordering::SeqCst) {
            self.waker.wake();
        }
    }
}

//! Bells that other threads ring, and a shard that sleeps only while none has rung. Thousands of
//! the orders in which they can do so are tried in tests/schedules.rs.
//!
//! Refuses to wake anybody: who rings is told whether the shard must be woken.

use super::sync::{Arc, AtomicBool, AtomicU32, Mutex, MutexGuard, Ordering, PoisonError};

/// The key of a client that is not in the shard.
const NOBODY: u32 = u32::MAX;

/// One client's bell.
#[derive(Debug)]
pub(super) struct Bell {
    rung: AtomicBool,
    key: AtomicU32,
}

impl Bell {
    /// A bell without a client.
    pub(super) fn new() -> Self {
        Self { rung: AtomicBool::new(false), key: AtomicU32::new(NOBODY) }
    }

    /// Binds the bell to a client of the shard.
    pub(super) fn hang(&self, key: usize) {
        self.key.store(key as u32, Ordering::Release);
    }

    /// Its client is gone: ringing does nothing from now on.
    pub(super) fn take_down(&self) {
        self.key.store(NOBODY, Ordering::Release);
    }

    /// Its client, if that is in a shard.
    pub(super) fn key(&self) -> Option<usize> {
        match self.key.load(Ordering::Acquire) {
            NOBODY => None,
            key => Some(key as usize),
        }
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

    /// Whether both are the same.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
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

    /// Lets the shard call the bell's client soon, once for any number of rings meanwhile. True if
    /// the caller must wake it.
    pub(super) fn ring(&self, bell: &Arc<Bell>) -> bool {
        if bell.rung.swap(true, Ordering::AcqRel) {
            return false;
        }
        let mut rung = self.rung();
        rung.push(Arc::clone(bell));
        self.0.any.store(true, Ordering::SeqCst);
        drop(rung);
        !self.0.awake.load(Ordering::SeqCst)
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
            keys.extend(bell.key());
        }
        keys
    }
}

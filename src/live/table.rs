//! What is attached now, by SR and VDI. Held for look-ups and changes only.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use orlop_fuse::DiskId;

use super::about::Key;
use crate::control::Access;
use crate::image::Lineage;
use crate::mount::ImageAbout;
use crate::server::Seat;
use crate::sr::SrUuid;

/// The image that takes the writes of a VDI.
pub(super) struct LeafFile {
    /// Another name of the open file that the shard has: its claim is changed by this.
    pub(super) fd: OwnedFd,
    /// What its children must say of it.
    pub(super) lineage: Lineage,
}

/// A VDI that is served.
#[derive(Clone)]
pub(super) struct Served {
    /// Its name in the tree of files.
    pub(super) id: DiskId,
    pub(super) seat: Arc<Seat>,
    pub(super) access: Access,
    /// `None` where it is only read.
    pub(super) leaf: Option<Arc<LeafFile>>,
    pub(super) about: Arc<ImageAbout>,
}

/// A VDI that has a place in the tree.
#[derive(Clone)]
pub(super) enum Shown {
    Served(Arc<Served>),
    /// It could not be attached; what is told of it.
    Broken(DiskId),
}

/// All of them.
#[derive(Default)]
pub(super) struct Table {
    shown: Mutex<BTreeMap<Key, Shown>>,
    ids: AtomicU64,
}

impl Table {
    /// A name that no disk had.
    pub(super) fn fresh_id(&self) -> DiskId {
        DiskId(self.ids.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn find(&self, key: Key) -> Option<Shown> {
        self.lock().get(&key).cloned()
    }

    pub(super) fn served(&self, key: Key) -> Option<Arc<Served>> {
        match self.find(key) {
            Some(Shown::Served(served)) => Some(served),
            Some(Shown::Broken(_)) | None => None,
        }
    }

    pub(super) fn broken_of(&self, sr: SrUuid) -> Vec<Key> {
        let is_broken =
            |(key, shown): &(&Key, &Shown)| key.sr == sr && matches!(shown, Shown::Broken(_));
        self.lock().iter().filter(is_broken).map(|(key, _)| *key).collect()
    }

    pub(super) fn put(&self, key: Key, shown: Shown) {
        self.lock().insert(key, shown);
    }

    pub(super) fn remove(&self, key: Key) {
        self.lock().remove(&key);
    }

    pub(super) fn take_all(&self) -> Vec<(Key, Shown)> {
        std::mem::take(&mut *self.lock()).into_iter().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Shown>> {
        // It is held for look-ups and insertions, none of which can stop halfway.
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! The disks of a server: opened once each, whoever asks for how many parts of them, and given to
//! the shards that own them.
//!
//! Refuses to open an image a second time, and to know what it is exported as. Where a disk is
//! served is for [`super::homes`] to say.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::homes::{Homes, Shards, Spare, Stay};
use super::spec::ExportSpec;
use crate::engine::units::ByteLen;
use crate::image::{self, ImageError, OpenOptions, OpenedChain};
use crate::shard::{DiskTag, ExportKey, Mailbox, Refused};

/// A disk in the hands of a shard, or of several.
pub struct OwnedDisk {
    /// The image on top.
    pub path: PathBuf,
    /// Whether nobody may write it.
    pub read_only: bool,
    /// Whether what is written vanishes with it.
    pub throwaway: bool,
    /// Images from the top down.
    pub layers: usize,
    /// Its name on the shard that it was given to first.
    pub tag: DiskTag,
    /// The way to that shard.
    pub mailbox: Mailbox,
    pub(super) homes: Arc<Homes>,
    size_bytes: Arc<AtomicU64>,
    /// Exports that show it.
    users: AtomicUsize,
}

impl OwnedDisk {
    /// Its size now.
    #[must_use]
    pub fn size(&self) -> ByteLen {
        ByteLen::new(self.size_bytes.load(Ordering::Acquire))
    }

    /// Where its size is told, for whoever changes it.
    pub(super) fn size_bytes(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.size_bytes)
    }

    /// Where the next connection goes: to the home with the fewest. It gets one more for that, if
    /// it can have one.
    pub(super) async fn stay(&self) -> Stay {
        Homes::stay(&self.homes).await
    }

    /// Lets the clients of an export go, wherever they are, as [`Mailbox::drain`] does. The export
    /// is not shown any more.
    ///
    /// # Errors
    /// When a shard has ended, or is stuck; the others are drained all the same.
    pub(super) async fn drain(&self, export: ExportKey) -> Result<(), Refused> {
        self.homes.drain(export).await
    }
}

/// Why a disk is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The image does not open.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// It is open already, to be read only.
    #[error("{path} is served read-only already; remove those exports first, or add it read-only")]
    ReadOnly {
        /// The image.
        path: PathBuf,
    },
    /// The shard did not take it.
    #[error("{path}: {error}")]
    Shard {
        /// The image.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// What tells one file from another, whatever paths lead to it.
type FileKey = (u64, u64);

/// Images opened before there was anybody to give them to: a process that is confined later opens
/// what it needs first.
#[derive(Default)]
pub struct Prepared {
    shared: BTreeMap<FileKey, OpenedChain>,
    /// Those under an overlay, each for one export.
    own: BTreeMap<String, OpenedChain>,
}

impl Prepared {
    /// Opens what an export needs, unless it is open already.
    ///
    /// # Errors
    /// What keeps the image from being opened.
    pub fn open(&mut self, spec: &ExportSpec) -> Result<(), ImageError> {
        if let Some(place) = &spec.overlay {
            let chain = image::open_overlay(&spec.image, place)?;
            self.own.insert(spec.name.clone(), chain);
            return Ok(());
        }
        if file_key(&spec.image.path).is_some_and(|key| self.shared.contains_key(&key)) {
            return Ok(());
        }
        let chain = image::open(&spec.image)?;
        // It was there, so it has a key; if it went away since, nothing else can share it.
        if let Some(key) = file_key(&spec.image.path) {
            self.shared.insert(key, chain);
        }
        Ok(())
    }

    /// What was opened.
    pub fn chains(&self) -> impl Iterator<Item = &OpenedChain> {
        self.shared.values().chain(self.own.values())
    }
}

/// The disks of a process.
pub struct Estate {
    shards: Arc<Shards>,
    shared: Mutex<BTreeMap<FileKey, Arc<OwnedDisk>>>,
    prepared: Mutex<Prepared>,
}

impl Estate {
    /// An estate on at least one shard. What was prepared is attached when it is asked for.
    #[must_use]
    pub fn new(shards: Vec<Mailbox>, prepared: Prepared) -> Self {
        let shards = Arc::new(Shards::new(shards));
        Self { shards, shared: Mutex::default(), prepared: Mutex::new(prepared) }
    }

    /// How many shards there are.
    pub(super) fn shards(&self) -> usize {
        self.shards.count()
    }

    /// The disk of an image: the one that is there, or opened now. An overlay is always its own.
    /// Whoever gets it owes a [`Self::release`]. Not to be called by two at once.
    ///
    /// # Errors
    /// What keeps the image from being opened or served.
    pub(super) async fn disk(&self, spec: &ExportSpec) -> Result<Arc<OwnedDisk>, DiskError> {
        let (options, path) = (&spec.image, &spec.image.path);
        let key = if spec.overlay.is_none() { file_key(path) } else { None };
        if let Some(disk) = key.and_then(|key| self.lock().get(&key).cloned()) {
            if disk.read_only && !options.read_only {
                return Err(DiskError::ReadOnly { path: path.clone() });
            }
            disk.users.fetch_add(1, Ordering::Relaxed);
            return Ok(disk);
        }
        let chain = match self.prepared(spec, key) {
            Some(chain) => chain,
            None => open(spec).await?,
        };
        for notice in &chain.notices {
            tracing::warn!("{notice}");
        }
        // Before it is handed over.
        let spare = self.shards.spare(&chain);
        let disk = Arc::new(self.attach(options, spec.overlay.is_some(), chain, spare).await?);
        if let Some(key) = key {
            self.lock().insert(key, Arc::clone(&disk));
        }
        Ok(disk)
    }

    /// A disk of an open chain, for one export alone. Whoever gets it owes a [`Self::release`]. It
    /// stays on one shard, whatever it is: whoever brought the chain may give the disk a new leaf,
    /// or show it as a file, and both are done on that shard.
    ///
    /// # Errors
    /// What keeps it from being served.
    pub(super) async fn own(
        &self,
        options: &OpenOptions,
        chain: OpenedChain,
    ) -> Result<Arc<OwnedDisk>, DiskError> {
        self.attach(options, false, chain, None).await.map(Arc::new)
    }

    fn prepared(&self, spec: &ExportSpec, key: Option<FileKey>) -> Option<OpenedChain> {
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        match key {
            Some(key) => prepared.shared.remove(&key),
            None => prepared.own.remove(&spec.name),
        }
    }

    /// Gives an opened image to the shard with the fewest disks.
    async fn attach(
        &self,
        options: &OpenOptions,
        throwaway: bool,
        chain: OpenedChain,
        spare: Option<Spare>,
    ) -> Result<OwnedDisk, DiskError> {
        let path = options.path.clone();
        let size_bytes = Arc::new(AtomicU64::new(chain.size.get()));
        let (read_only, layers) = (chain.read_only, chain.layers.len());
        let first = self.shards.settle(chain).await;
        let first = first.map_err(|error| DiskError::Shard { path: path.clone(), error })?;
        let (tag, mailbox) = (first.tag, first.mailbox.clone());
        let homes = Arc::new(Homes::new(first, spare));
        let users = AtomicUsize::new(1);
        Ok(OwnedDisk { path, read_only, throwaway, layers, tag, mailbox, homes, size_bytes, users })
    }

    /// Gives a disk up: if nothing else uses it, its shards make it durable and close it.
    ///
    /// # Errors
    /// What kept its last changes from becoming durable.
    pub async fn release(&self, disk: Arc<OwnedDisk>) -> Result<(), String> {
        if disk.users.fetch_sub(1, Ordering::Relaxed) > 1 {
            return Ok(());
        }
        self.lock().retain(|_, other| !Arc::ptr_eq(other, &disk));
        let closed = disk.homes.leave().await;
        closed.map_err(|why| format!("{}: {why}", disk.path.display()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<FileKey, Arc<OwnedDisk>>> {
        // It is held for look-ups and insertions, none of which can stop halfway.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opening waits for disks and locks, so it has a thread of its own while it lasts.
async fn open(spec: &ExportSpec) -> Result<OpenedChain, ImageError> {
    let (options, overlay) = (spec.image.clone(), spec.overlay.clone());
    let opened = tokio::task::spawn_blocking(move || match overlay {
        None => image::open(&options),
        Some(place) => image::open_overlay(&options, &place),
    });
    opened.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

fn file_key(path: &Path) -> Option<FileKey> {
    // A path that leads nowhere gets its error from whoever opens it.
    std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

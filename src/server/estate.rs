//! The disks of a server: opened once each, whoever asks for how many parts of them, and given to
//! the shards that own them.
//!
//! Refuses to open an image a second time, and to know what it is exported as.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::spec::ExportSpec;
use crate::engine::units::ByteLen;
use crate::image::{self, ImageError, OpenOptions, OpenedChain};
use crate::shard::{DiskTag, Mailbox};

/// A disk in the hands of a shard.
pub struct OwnedDisk {
    /// The image on top.
    pub path: PathBuf,
    /// Whether nobody may write it.
    pub read_only: bool,
    /// Whether what is written vanishes with it.
    pub throwaway: bool,
    /// Images from the top down.
    pub layers: usize,
    /// Its name on its shard.
    pub tag: DiskTag,
    /// The way to its shard.
    pub mailbox: Mailbox,
    /// Which shard that is.
    shard: usize,
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
    shards: Vec<Mailbox>,
    /// How many disks each shard has.
    loads: Vec<AtomicUsize>,
    shared: Mutex<BTreeMap<FileKey, Arc<OwnedDisk>>>,
    prepared: Mutex<Prepared>,
}

impl Estate {
    /// An estate on at least one shard. What was prepared is attached when it is asked for.
    #[must_use]
    pub fn new(shards: Vec<Mailbox>, prepared: Prepared) -> Self {
        let loads = shards.iter().map(|_| AtomicUsize::new(0)).collect();
        Self { shards, loads, shared: Mutex::default(), prepared: Mutex::new(prepared) }
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
        let disk = Arc::new(self.attach(options, spec.overlay.is_some(), chain).await?);
        if let Some(key) = key {
            self.lock().insert(key, Arc::clone(&disk));
        }
        Ok(disk)
    }

    /// A disk of an open chain, for one export alone. Whoever gets it owes a [`Self::release`].
    ///
    /// # Errors
    /// What keeps it from being served.
    pub(super) async fn own(
        &self,
        options: &OpenOptions,
        chain: OpenedChain,
    ) -> Result<Arc<OwnedDisk>, DiskError> {
        self.attach(options, false, chain).await.map(Arc::new)
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
    ) -> Result<OwnedDisk, DiskError> {
        let path = options.path.clone();
        let shard = self.quietest();
        let mailbox = self.shards[shard].clone();
        let size_bytes = Arc::new(AtomicU64::new(chain.size.get()));
        let (read_only, layers) = (chain.read_only, chain.layers.len());
        // Before anything is waited for, so that two at once do not choose the same shard.
        self.loads[shard].fetch_add(1, Ordering::Relaxed);
        let attached = mailbox.attach(Box::new(move |add_file| chain.attach(add_file))).await;
        let tag = attached.map_err(|error| {
            self.loads[shard].fetch_sub(1, Ordering::Relaxed);
            DiskError::Shard { path: path.clone(), error }
        })?;
        Ok(OwnedDisk {
            path,
            read_only,
            throwaway,
            layers,
            tag,
            mailbox,
            shard,
            size_bytes,
            users: AtomicUsize::new(1),
        })
    }

    /// The shard with the fewest disks.
    fn quietest(&self) -> usize {
        let disks = |shard: &usize| self.loads[*shard].load(Ordering::Relaxed);
        (0..self.shards.len()).min_by_key(disks).expect("there is at least one shard")
    }

    /// Gives a disk up: if nothing else uses it, its shard makes it durable and closes it.
    ///
    /// # Errors
    /// What kept its last changes from becoming durable.
    pub async fn release(&self, disk: Arc<OwnedDisk>) -> Result<(), String> {
        if disk.users.fetch_sub(1, Ordering::Relaxed) > 1 {
            return Ok(());
        }
        self.lock().retain(|_, other| !Arc::ptr_eq(other, &disk));
        let closed = disk.mailbox.detach(disk.tag).await;
        self.loads[disk.shard].fetch_sub(1, Ordering::Relaxed);
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

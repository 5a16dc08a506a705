//! What can be done to a running server: exports added, removed, limited, looked at.
//!
//! Refuses to do two of these at once: an export is opened, named and shown in one go.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::Semaphore;

use super::estate::{DiskError, Estate, OwnedDisk};
use super::registry::{NameError, Registry, Seat};
use super::spec::{ExportSpec, Part};
use crate::engine::units::{ByteLen, DiskOffset, Extent};
use crate::image::OpenedChain;
use crate::meter::{Meters, Throttle};
use crate::partition::{PartitionError, Scan, Table};
use crate::shard::ExportKey;
use crate::tls::Tls;

/// Why a server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The export's name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Its disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Its partition.
    #[error("{path}: {error}")]
    Partition {
        /// The image.
        path: String,
        /// What about it.
        error: PartitionError,
    },
    /// The disk could not be read to find its partitions.
    #[error("{path}: reading the partition table failed: {error}")]
    Reading {
        /// The image.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// Its window.
    #[error(
        "{path}: the disk has {disk} bytes, and a window from {at} of {size} does not lie in it"
    )]
    Window {
        /// The image.
        path: String,
        /// Bytes of the disk.
        disk: ByteLen,
        /// Where the window starts.
        at: DiskOffset,
        /// Its length in bytes.
        size: ByteLen,
    },
    /// A list of names without anything that could prove one.
    #[error(
        "{0:?} has a list of who may use it, but the server has no TLS credentials; add \
        --tls-certs or --tls-psk"
    )]
    NoCredentials(String),
    /// Anybody could reach it.
    #[error(
        "{0:?} would be served without TLS beyond this machine; leave tls=optional away, or start \
        the server with --allow-remote if that is what you want"
    )]
    InTheOpen(String),
    /// The parts of a disk cannot change its size.
    #[error("only an export of a whole disk that is not read-only can be resized")]
    ResizeOfPart,
    /// The disk did not close well.
    #[error("the export is gone, but its last changes could not be made durable: {0}")]
    NotDurable(String),
}

/// A running server, as its admin holds it.
pub struct Control {
    registry: Arc<Registry>,
    estate: Estate,
    /// Connections per export where its spec does not say.
    per_export: usize,
    tls: Option<Tls>,
    /// Whether nothing may be served without TLS.
    only_tls: bool,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
}

impl Control {
    /// A server without exports.
    #[must_use]
    pub fn new(
        registry: Arc<Registry>,
        estate: Estate,
        per_export: usize,
        tls: Option<Tls>,
    ) -> Self {
        let changing = tokio::sync::Mutex::default();
        Self { registry, estate, per_export, tls, only_tls: false, changing }
    }

    /// The same, and nothing is ever served without TLS: strangers can reach it.
    #[must_use]
    pub fn only_tls(self, only_tls: bool) -> Self {
        Self { only_tls, ..self }
    }

    /// The exports, to look at.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The server's credentials.
    #[must_use]
    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// Opens what a spec names, and shows it to clients.
    ///
    /// # Errors
    /// What forbids it; nothing is left open then.
    pub async fn add(&self, spec: ExportSpec) -> Result<Arc<Seat>, ControlError> {
        let _alone = self.changing.lock().await;
        self.registry.check_name(&spec.name)?;
        if !spec.allow.is_empty() && self.tls.is_none() {
            return Err(ControlError::NoCredentials(spec.name));
        }
        if self.only_tls && spec.plaintext {
            return Err(ControlError::InTheOpen(spec.name));
        }
        let whole = spec.part == Part::WHOLE;
        if spec.resize && (!whole || spec.image.read_only) {
            return Err(ControlError::ResizeOfPart);
        }
        let disk = self.estate.disk(&spec).await?;
        let window = if whole { Ok(None) } else { self.window(&spec, &disk).await.map(Some) };
        let shown = window.and_then(|window| self.show(spec, window, Arc::clone(&disk)));
        if shown.is_err() {
            // Whatever kept it from being shown is what the user hears of.
            if let Err(why) = self.estate.release(disk).await {
                tracing::warn!(why, "a disk did not close well");
            }
        }
        shown
    }

    /// Shows an open chain to clients, on a disk of its own: no other export's, whatever files they
    /// have in common. `spec` is of the whole image and says how it was opened. Others may be added
    /// meanwhile. Goes with [`Self::close`].
    ///
    /// # Errors
    /// What forbids it; nothing is left open then.
    pub async fn add_opened(
        &self,
        spec: ExportSpec,
        chain: OpenedChain,
    ) -> Result<Arc<Seat>, ControlError> {
        self.registry.check_name(&spec.name)?;
        let disk = self.estate.own(&spec.image, chain).await?;
        let shown = self.show(spec, None, Arc::clone(&disk));
        if shown.is_err()
            && let Err(why) = self.estate.release(disk).await
        {
            tracing::warn!(why, "a disk did not close well");
        }
        shown
    }

    /// Takes an export of [`Self::add_opened`] away, as [`Self::remove`] does. Others may be added
    /// or removed meanwhile.
    ///
    /// # Errors
    /// Its disk could not be made durable; it is gone all the same.
    pub async fn close(&self, seat: Arc<Seat>) -> Result<(), ControlError> {
        // It may be hidden already.
        self.registry.hide(&seat);
        if let Err(refused) = seat.disk.drain(seat.key).await {
            tracing::warn!(export = seat.name, %refused, "its clients could not be told");
        }
        let disk = Arc::clone(&seat.disk);
        drop(seat);
        self.estate.release(disk).await.map_err(ControlError::NotDurable)
    }

    fn show(
        &self,
        spec: ExportSpec,
        window: Option<Extent>,
        disk: Arc<OwnedDisk>,
    ) -> Result<Arc<Seat>, ControlError> {
        let file_name = || spec.image.path.file_name().map(|n| n.to_string_lossy().into_owned());
        let max_connections = spec.max_connections.unwrap_or(self.per_export);
        let seat = Arc::new(Seat {
            key: ExportKey(self.registry.number()),
            description: spec.description.or_else(file_name).unwrap_or_default(),
            name: spec.name,
            read_only: disk.read_only || (spec.image.read_only && !disk.throwaway),
            disk,
            window,
            resize: spec.resize,
            plaintext: spec.plaintext,
            allow: spec.allow,
            meter: Meters::new(self.estate.shards()),
            throttle: Arc::new(Throttle::new(spec.rates)),
            max_connections,
            slots: Arc::new(Semaphore::new(max_connections)),
            connections: Mutex::new(BTreeMap::new()),
        });
        self.registry.insert(Arc::clone(&seat))?;
        Ok(seat)
    }

    /// The bytes of a disk that a spec means.
    async fn window(&self, spec: &ExportSpec, disk: &OwnedDisk) -> Result<Extent, ControlError> {
        let path = disk.path.display().to_string();
        match spec.part {
            Part::Partition(number) => {
                let table = scan(disk).await?;
                let partition = table.partition(number);
                let partition =
                    partition.map_err(|error| ControlError::Partition { path, error })?;
                Ok(Extent::new(partition.start, partition.len))
            }
            Part::Window { at, size } => {
                let (all, start) = (disk.size().get(), at.get());
                let left = all.saturating_sub(start);
                let size = size.map_or(left, ByteLen::get);
                if size == 0 || size > left {
                    let (disk, size) = (disk.size(), ByteLen::new(size));
                    return Err(ControlError::Window { path, disk, at, size });
                }
                Ok(Extent::new(at, ByteLen::new(size)))
            }
        }
    }

    /// Where the partitions of an export's disk lie, whichever part of it the export shows.
    ///
    /// # Errors
    /// The disk does not read, or its table makes no sense.
    pub async fn partitions(&self, seat: &Seat) -> Result<Table, ControlError> {
        scan(&seat.disk).await
    }

    /// Takes an export away: new clients do not find it, those connected finish what is in flight,
    /// and then its disk is made durable and closed if no other export shows it.
    ///
    /// # Errors
    /// There is none of that name, or its disk could not be made durable.
    pub async fn remove(&self, name: &str) -> Result<(), ControlError> {
        let _alone = self.changing.lock().await;
        let seat = self.registry.remove(name)?;
        if let Err(refused) = seat.disk.drain(seat.key).await {
            tracing::warn!(export = name, %refused, "its clients could not be told");
        }
        let disk = Arc::clone(&seat.disk);
        drop(seat);
        self.estate.release(disk).await.map_err(ControlError::NotDurable)
    }
}

/// Reads a disk's partition table.
async fn scan(disk: &OwnedDisk) -> Result<Table, ControlError> {
    let path = || disk.path.display().to_string();
    let mut scan = Scan::new(disk.size());
    while let Some(wanted) = scan.wants() {
        let bytes = disk.mailbox.read(disk.tag, wanted).await;
        scan.feed(&bytes.map_err(|error| ControlError::Reading { path: path(), error })?);
    }
    scan.finish().map_err(|error| ControlError::Partition { path: path(), error })
}

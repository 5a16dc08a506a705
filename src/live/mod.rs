//! Attached VDIs, served: each on NBD under its uuid, and as a directory of one tree of files.
//!
//! What `control` attaches is opened here, given to a shard and shown; what it detaches is taken
//! from its clients' sight, made durable and closed; and a VDI that is served gets a new leaf while
//! its clients go on. Refuses to know what a repository is: it is told which files make a disk.

mod about;
mod attaching;
mod cut;
mod failing;
mod table;
mod tree;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use orlop_fuse::Bytes;
use tokio::runtime::Handle;

use crate::control::{Access, AttachRequest, Attacher};
use crate::host::memory::ArenaSize;
use crate::host::{Aio, raise_open_files};
use crate::mount::{MountFailure, flush_nothing_for_memory, stay_in_memory};
use crate::server::{self, Bound, Estate, Limits, Prepared, Registry, Service, bind_one_unix};
use crate::shard::{self, Mailbox};
use crate::sr::{Cut, DataFile, Failure, SrUuid, VdiUuid};
use about::Key;
use cut::LiveCut;
use table::{Shown, Table};
use tree::Tree;

/// Connections at once, of all VDIs together, and handshakes among them.
const CONNECTIONS_MAX: usize = 4096;
const HALF_OPEN_MAX: usize = 64;

/// How attached VDIs are served.
#[derive(Clone, Debug)]
pub struct LiveSettings {
    /// Where the tree of files is mounted: `<mount>/<vdi>/disk`. Without, VDIs are served over NBD
    /// only, and their [`Access::path`] is empty.
    pub mount: Option<PathBuf>,
    /// The unix socket on which they are served over NBD, each under its uuid.
    pub nbd: PathBuf,
    /// The permission bits of that socket.
    pub nbd_mode: u32,
    /// Threads that serve disks, at least one; each disk has one of them.
    pub shards: usize,
    /// MiB for requests in flight, for each of those threads.
    pub memory_mib: u32,
    /// How the images are read and written.
    pub aio: Aio,
    /// Whether other users may use the tree of files.
    pub allow_other: bool,
}

/// Why VDIs are not served, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// The tree of files.
    #[error("the tree of files: {0}")]
    Mount(#[from] MountFailure),
    /// The socket.
    #[error("NBD: {0}")]
    Nbd(io::Error),
    /// Threads, memory or the I/O host.
    #[error("{what}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        error: io::Error,
    },
    /// It was ended, but not all of it is on disk.
    #[error("the last changes could not be made durable: {0}")]
    NotDurable(String),
}

impl LiveError {
    /// Whether somebody else listens on the socket.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        matches!(self, Self::Nbd(error) if error.kind() == io::ErrorKind::AddrInUse)
    }
}

/// The VDIs that are served.
///
/// What [`Attacher`] asks of it blocks, and is to be called from threads that may: never from one
/// that drives the runtime it was started on.
pub struct Live {
    settings: LiveSettings,
    runtime: Handle,
    control: server::Control,
    mailboxes: Vec<Mailbox>,
    tree: Option<Arc<Tree>>,
    vdis: Table,
    /// Whether it has ended. Read for as long as anything is attached, detached or cut.
    ended: tokio::sync::RwLock<bool>,
    /// What is to be stopped last.
    running: Mutex<Option<Running>>,
}

struct Running {
    service: Arc<Service>,
    serving: tokio::task::JoinHandle<()>,
    threads: Vec<JoinHandle<()>>,
}

impl Live {
    /// Mounts the tree of files and listens for NBD clients; serves nothing yet. To be called on
    /// the runtime that will let clients in.
    ///
    /// # Errors
    /// What is not to be had; nothing is left behind then.
    pub async fn start(settings: LiveSettings) -> Result<Arc<Self>, LiveError> {
        raise_open_files();
        // Their working directory may change.
        let nbd = std::path::absolute(&settings.nbd).map_err(LiveError::Nbd)?;
        let bound = bind_one_unix(&nbd, settings.nbd_mode).map_err(LiveError::Nbd)?;
        let settings = LiveSettings { nbd, ..settings };
        if settings.mount.is_some() {
            flush_nothing_for_memory();
        }
        let (mailboxes, threads) = spawn(&settings).await?;
        let (at, others) = (settings.mount.clone(), settings.allow_other);
        let shards = mailboxes.clone();
        let mounting = move || at.map(|at| Tree::mount(&at, others, &shards)).transpose();
        let mounted = tokio::task::spawn_blocking(mounting).await;
        let what = "mounting";
        let mounted = mounted
            .map_err(|panic| LiveError::System { what, error: io::Error::other(panic) })
            .flatten();
        let tree = match mounted {
            Ok(tree) => tree.map(Arc::new),
            Err(error) => {
                // The first failure is the one to tell; these have no disks.
                let _empty = end(&mailboxes, threads).await;
                return Err(error);
            }
        };
        if tree.is_some() {
            stay_in_memory();
        }
        Ok(Arc::new(Self::serve(settings, bound, mailboxes, threads, tree)))
    }

    fn serve(
        settings: LiveSettings,
        bound: Bound,
        mailboxes: Vec<Mailbox>,
        threads: Vec<JoinHandle<()>>,
        tree: Option<Arc<Tree>>,
    ) -> Self {
        let registry = Arc::new(Registry::default());
        // No name means no VDI, also where there is only one.
        registry.set_default(Some(String::new()));
        let limits =
            Limits { connections: CONNECTIONS_MAX, half_open: HALF_OPEN_MAX, ..Limits::default() };
        let estate = Estate::new(mailboxes.clone(), Prepared::default());
        let control = server::Control::new(Arc::clone(&registry), estate, limits.per_export, None);
        let runtime = Handle::current();
        let service = Arc::new(Service::new(registry, limits, None, runtime.clone()));
        let serves = Arc::clone(&service);
        let serving = tokio::spawn(async move {
            if let Err(error) = serves.serve(bound).await {
                tracing::error!(%error, "NBD clients are no longer let in");
            }
        });
        let running = Mutex::new(Some(Running { service, serving, threads }));
        let ended = tokio::sync::RwLock::new(false);
        let vdis = Table::default();
        Self { settings, runtime, control, mailboxes, tree, vdis, ended, running }
    }

    /// Lets every client finish, makes everything durable, unmounts, and removes the socket.
    /// Nothing is served afterwards. Whoever keeps files open has ten seconds.
    ///
    /// # Errors
    /// What could not be made durable. All of it was tried.
    pub async fn stop(&self) -> Result<(), LiveError> {
        let mut ended = self.ended.write().await;
        if std::mem::replace(&mut *ended, true) {
            return Ok(());
        }
        self.control.registry().drain();
        let shown = self.vdis.take_all();
        self.take_tree_down(&shown).await;
        let mut failed = Vec::new();
        for (key, shown) in shown {
            let Shown::Served(served) = shown else { continue };
            if let Err(error) = self.close(&served).await {
                failed.push(format!("VDI {}: {error}", key.vdi));
            }
        }
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Running { service, serving, threads }) = running {
            serving.abort();
            // It was told to.
            let _aborted = serving.await;
            service.close().await;
            failed.extend(end(&self.mailboxes, threads).await.err());
        }
        if failed.is_empty() { Ok(()) } else { Err(LiveError::NotDurable(failed.join("; "))) }
    }

    /// Whether one more NBD client would be greeted: there are as many as there may be, or fewer.
    pub fn has_room(&self) -> bool {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.as_ref().is_some_and(|running| running.service.has_room())
    }

    async fn take_tree_down(&self, shown: &[(Key, Shown)]) {
        let Some(tree) = self.tree.clone() else { return };
        let disks = shown.iter().map(|(_, shown)| match shown {
            Shown::Served(served) => (served.id, Bytes(served.seat.extent().len.get())),
            Shown::Broken(id) => (*id, Bytes(0)),
        });
        let disks: Vec<_> = disks.collect();
        let down = tokio::task::spawn_blocking(move || tree.take_down(&disks)).await;
        if let Err(error) = down {
            tracing::error!(%error, "the tree of files was not taken down well");
        }
    }
}

impl Attacher for Live {
    fn attach(&self, request: &AttachRequest) -> Result<Access, Failure> {
        self.attach_vdi(request)
    }

    fn detach(&self, sr: SrUuid, vdi: VdiUuid) -> Result<(), Failure> {
        self.detach_vdi(Key { sr, vdi })
    }

    fn broken(&self, sr: SrUuid, file: &DataFile, failure: &Failure) {
        self.tell_broken(Key { sr, vdi: file.vdi }, file, failure);
    }

    fn left(&self, sr: SrUuid) {
        self.forget_all_broken(sr);
    }

    fn cut(&self, sr: SrUuid, vdi: VdiUuid) -> Option<Box<dyn Cut + '_>> {
        LiveCut::of(self, Key { sr, vdi }).map(|cut| Box::new(cut) as _)
    }
}

/// Starts the threads that serve disks.
async fn spawn(settings: &LiveSettings) -> Result<(Vec<Mailbox>, Vec<JoinHandle<()>>), LiveError> {
    let what = "no I/O host";
    let too_much = || io::Error::new(io::ErrorKind::InvalidInput, "too much memory is asked for");
    let large_bytes = settings.memory_mib.checked_mul(1 << 20).ok_or_else(too_much);
    let large_bytes = large_bytes.map_err(|error| LiveError::System { what, error })?;
    let size = ArenaSize { large_bytes, ..ArenaSize::default() };
    let (mut mailboxes, mut threads) = (Vec::new(), Vec::new());
    for _ in 0..settings.shards.max(1) {
        match shard::spawn(settings.aio, size) {
            Ok((mailbox, choice, thread)) => {
                tracing::debug!("I/O by {choice}");
                mailboxes.push(mailbox);
                threads.push(thread);
            }
            Err(error) => {
                // The first failure is the one to tell; these have no disks.
                let _empty = end(&mailboxes, threads).await;
                return Err(LiveError::System { what, error });
            }
        }
    }
    Ok((mailboxes, threads))
}

/// Ends the threads.
async fn end(mailboxes: &[Mailbox], threads: Vec<JoinHandle<()>>) -> Result<(), String> {
    let mut outcome = Ok(());
    for mailbox in mailboxes {
        outcome = outcome.and(mailbox.shut_down().await);
    }
    let joined = tokio::task::spawn_blocking(|| {
        for thread in threads {
            // A shard that fails takes the process with it.
            drop(thread.join());
        }
    });
    drop(joined.await);
    outcome
}

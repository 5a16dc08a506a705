//! Attached VDIs, served: each on NBD under its uuid, and as a directory of one tree of files.
//!
//! What `control` attaches is opened here, given to a shard and shown; what it detaches is taken
//! from its clients' sight, made durable and closed; and a VDI that is served gets a new leaf while
//! its clients go on. Refuses to know what a repository is: it is told which files make a disk.

use std::path::PathBuf;
use std::sync::Arc;

use crate::control::{Access, AttachRequest, Attacher};
use crate::host::Aio;
use crate::sr::{Cut, Failure, Kind, SrUuid, VdiUuid};

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
    /// Threads, memory or the I/O host.
    #[error("{what}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        error: std::io::Error,
    },
}

/// The VDIs that are served.
pub struct Live {
    settings: LiveSettings,
}

impl Live {
    /// Mounts the tree of files and listens for NBD clients; serves nothing yet.
    ///
    /// # Errors
    /// What is not to be had; nothing is left behind then.
    pub async fn start(settings: LiveSettings) -> Result<Arc<Self>, LiveError> {
        Ok(Arc::new(Self { settings }))
    }

    /// Lets every client finish, makes everything durable, unmounts, and removes the socket.
    /// Nothing is served afterwards.
    ///
    /// # Errors
    /// What could not be made durable. All of it was tried.
    pub async fn stop(&self) -> Result<(), LiveError> {
        Ok(())
    }
}

impl Attacher for Live {
    fn attach(&self, request: &AttachRequest) -> Result<Access, Failure> {
        let place = format!("VDI {}", request.vdi);
        let why = format!("{} is not served yet", self.settings.nbd.display());
        Err(Failure::new(Kind::Unsupported, place, why))
    }

    fn detach(&self, _sr: SrUuid, _vdi: VdiUuid) -> Result<(), Failure> {
        Ok(())
    }

    fn cut(&self, _sr: SrUuid, _vdi: VdiUuid) -> Option<Box<dyn Cut + '_>> {
        None
    }
}

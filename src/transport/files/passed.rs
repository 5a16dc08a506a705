//! Syncing what the kernel wrote by itself: the engine does not know of it, so a flush of the disk
//! alone would leave it out.
//!
//! Refuses to sync on a thread that reads requests: one thread does it for all mounts.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// What the kernel was given of one disk to write by itself.
#[derive(Default)]
pub(super) struct Passed {
    file: OnceLock<Arc<OwnedFd>>,
    failed: AtomicBool,
}

impl Passed {
    /// The file, once it was given away.
    pub(super) fn file(&self) -> Option<Arc<OwnedFd>> {
        self.file.get().cloned()
    }

    pub(super) fn give(&self, file: &Arc<OwnedFd>) {
        self.file.get_or_init(|| Arc::clone(file));
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// What a sync came to. The system tells of lost bytes once and forgets them, so after one
    /// failure none succeeds any more.
    pub(super) fn judge(&self, synced: io::Result<()>) -> io::Result<()> {
        if let Err(error) = synced {
            tracing::error!(%error, "what the kernel wrote by itself could not be synced");
            self.failed.store(true, Ordering::Relaxed);
            return Err(error);
        }
        if self.has_failed() {
            return Err(io::Error::other("an earlier sync of what the kernel wrote has failed"));
        }
        Ok(())
    }
}

type Then = Box<dyn FnOnce(io::Result<()>) + Send>;
type Job = (Arc<OwnedFd>, Then);

/// The thread, once there is work.
#[derive(Default)]
pub(super) struct Syncer(Mutex<Option<Sender<Job>>>);

impl Syncer {
    /// Makes what was written to a file durable, then goes on.
    pub(super) fn sync(&self, file: Arc<OwnedFd>, then: Then) {
        let mut sender = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if sender.is_none() {
            match hire() {
                Ok(new) => *sender = Some(new),
                Err(error) => {
                    drop(sender);
                    return then(Err(error));
                }
            }
        }
        // The thread lives as long as this does.
        let sent = sender.as_ref().map(|sender| sender.send((file, then)));
        drop(sender);
        drop(sent);
    }
}

fn hire() -> io::Result<Sender<Job>> {
    let (sender, jobs) = channel::<Job>();
    std::thread::Builder::new().name("orlop-sync".to_owned()).spawn(move || {
        for (file, then) in jobs {
            then(rustix::fs::fdatasync(&*file).map_err(io::Error::from));
        }
    })?;
    Ok(sender)
}

//! Syncing what the kernel wrote by itself: the engine does not know of it, so a flush of the disk
//! alone would leave it out.
//!
//! Refuses to sync on a thread that reads requests: one thread does it for all mounts.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

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

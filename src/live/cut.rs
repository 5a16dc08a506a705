//! A VDI in use gets a new leaf: its clients wait for some milliseconds, and notice nothing else.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::RwLockReadGuard;
use tokio::task::JoinHandle;

use super::Live;
use super::about::{Key, ServedAbout};
use super::attaching::{format_of, path_of};
use super::table::{LeafFile, Served, Shown};
use crate::image::{Cause, ImageError, Lineage, OpenOptions, claim_to_read_only, open_child};
use crate::mount::ImageAbout;
use crate::shard::Refused;
use crate::sr::{Cut, DataFile};

/// How long requests that began before a hold may take to end. Guests' own patience is longer.
const HOLD_MAX: Duration = Duration::from_secs(2);

/// How long a shard that is too busy is left alone.
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// A cut through a VDI that is served.
pub(super) struct LiveCut<'a> {
    live: &'a Live,
    key: Key,
    served: Arc<Served>,
    held: bool,
    /// What was written before the cut began, on its way to the disk.
    early: Option<JoinHandle<io::Result<()>>>,
    /// The server does not end meanwhile.
    _at_work: RwLockReadGuard<'a, bool>,
}

impl<'a> LiveCut<'a> {
    /// `None`: it is not served, or is not written.
    pub(super) fn of(live: &'a Live, key: Key) -> Option<Self> {
        let at_work = live.at_work(key).ok()?;
        let served = live.vdis.served(key)?;
        served.leaf.as_ref()?;
        Some(Self { live, key, served, held: false, early: None, _at_work: at_work })
    }

    /// Opens the new leaf, gives it to the shard, and lets others read the old one.
    fn switch_to(&mut self, file: &DataFile) -> io::Result<()> {
        let path = path_of(file).map_err(io::Error::other)?;
        let options = OpenOptions {
            format: Some(format_of(file.format)),
            allow_raw_parent: true,
            ..OpenOptions::new(path)
        };
        let old = self.served.leaf.clone().ok_or_else(|| io::Error::other("it is only read"))?;
        let old_path = path_now(&old)?;
        let child = open_child(&options, old.lineage, &old_path).map_err(not_opened)?;
        let leaf =
            Arc::new(LeafFile { fd: child.fd.try_clone()?, lineage: Lineage::of(&child.content) });
        let chain = self.served.about.chain.under(&child, old_path);
        let disk = &self.served.seat.disk;
        let taken = disk.mailbox.pivot(disk.tag, Box::new(|add_file| child.into_leaf(add_file)));
        self.live.runtime.block_on(taken)?;
        if let Err(error) = claim_to_read_only(&old.fd) {
            // It is only kept from others for longer than need be.
            tracing::warn!(vdi = %self.key.vdi, %error, "others cannot read the snapshot yet");
        }
        let about = Arc::new(ImageAbout { chain, ..self.served.about.again() });
        if let Some(tree) = &self.live.tree {
            let told = ServedAbout { key: self.key, image: Arc::clone(&about) };
            tree.files().retell(self.served.id, Arc::new(told));
        }
        let served = Served { leaf: Some(leaf), about, ..(*self.served).clone() };
        self.served = Arc::new(served);
        self.live.vdis.put(self.key, Shown::Served(Arc::clone(&self.served)));
        Ok(())
    }
}

impl Cut for LiveCut<'_> {
    fn expect(&mut self) {
        let disk = &self.served.seat.disk;
        let (mailbox, tag) = (disk.mailbox.clone(), disk.tag);
        self.early = Some(self.live.runtime.spawn(async move { mailbox.flush(tag).await }));
    }

    fn hold(&mut self) -> io::Result<()> {
        // Most of what must become durable does so while nobody waits. A failure comes again.
        if let Some(early) = self.early.take() {
            let _ = self.live.runtime.block_on(early);
        }
        let disk = &self.served.seat.disk;
        // Whatever comes of it, it is to be released.
        self.held = true;
        let hold = async { tokio::time::timeout(HOLD_MAX, disk.mailbox.hold(disk.tag)).await };
        let held = self.live.runtime.block_on(hold).unwrap_or_else(|_| {
            let why = "requests of its clients did not end within 2 seconds; nothing was changed";
            Err(io::Error::new(io::ErrorKind::TimedOut, why))
        });
        if held.is_err() {
            self.release();
        }
        held
    }

    fn switch(&mut self, leaf: &DataFile) -> io::Result<()> {
        self.switch_to(leaf)
    }

    fn release(&mut self) {
        if !std::mem::take(&mut self.held) {
            return;
        }
        let disk = &self.served.seat.disk;
        // A shard that is too busy to be told now is told later: its clients wait for it.
        while let Err(error) = self.live.runtime.block_on(disk.mailbox.release(disk.tag)) {
            let refused = error.get_ref().and_then(|error| error.downcast_ref::<Refused>());
            if !matches!(refused, Some(Refused::Full)) {
                // The disk or its shard is gone, and what it held with it.
                tracing::debug!(vdi = %self.key.vdi, %error, "nothing to release");
                return;
            }
            std::thread::sleep(BUSY_PAUSE);
        }
    }
}

impl Drop for LiveCut<'_> {
    fn drop(&mut self) {
        self.release();
    }
}

/// Why a new leaf was not opened, in the system's kind where it was the system's word.
fn not_opened(error: ImageError) -> io::Error {
    let kind = match &error.cause {
        Cause::Io { error, .. } => error.kind(),
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

/// What an open file is called now.
fn path_now(file: &LeafFile) -> io::Result<PathBuf> {
    use std::os::fd::AsRawFd;
    std::fs::read_link(format!("/proc/self/fd/{}", file.fd.as_raw_fd()))
}

//! The port of a mount: finds a disk's queue, copies what is lent, and returns at once.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError, RwLock};

use orlop_fuse::{Bytes, DiskId, Errno, Fact, Offset, Port, ReadReply, Reply, Run, Text};

use super::client::FilesClient;
use super::passed::{Passed, Syncer};
use super::queue::{Ask, Queue};
use super::{About, FileDisk, Passing};
use crate::engine::units::{ByteLen, DiskOffset, Extent};
use crate::shard::{Link, NewClient, Nudge, Refused};

/// What is known of a disk that can be asked.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) queue: Arc<Queue>,
    window: Extent,
    about: Arc<dyn About>,
    passing: Option<Arc<dyn Passing>>,
    /// The file the kernel was given to write by itself.
    passed: Arc<Passed>,
}

impl Entry {
    /// The extent on the disk, if it lies within what is shown.
    fn on_disk(&self, extent: orlop_fuse::Extent) -> Result<Extent, Errno> {
        let end = extent.at.0.checked_add(extent.len.0).ok_or(Errno::TooBig)?;
        if end > self.window.len.get() {
            return Err(Errno::TooBig);
        }
        let at = DiskOffset::new(self.window.at.get() + extent.at.0);
        Ok(Extent::new(at, ByteLen::new(extent.len.0)))
    }
}

/// The disks that mounts of this process may ask.
#[derive(Default)]
pub struct Files {
    entries: RwLock<BTreeMap<u64, Arc<Entry>>>,
    syncer: Syncer,
}

impl Files {
    /// None yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Makes a disk askable under this name, which no other may have had.
    ///
    /// # Errors
    /// When the shard does not take another client.
    pub fn open(&self, id: DiskId, disk: FileDisk) -> Result<(), Refused> {
        let nudge = disk.mailbox.bell();
        let queue = Arc::new(Queue::new(nudge.clone()));
        let client = FilesClient::new(Arc::clone(&queue), disk.meter, disk.watch);
        disk.mailbox.connect(NewClient {
            disk: disk.tag,
            export: disk.export,
            link: Link::Local(nudge),
            client: Box::new(client),
            guard: Box::new(()),
        })?;
        let FileDisk { window, about, passing, .. } = disk;
        let entry = Entry { queue, window, about, passing, passed: Arc::default() };
        self.entries.write().unwrap_or_else(PoisonError::into_inner).insert(id.0, Arc::new(entry));
        Ok(())
    }

    /// Makes known what is told of a disk that cannot be asked for bytes. `nudge` is anybody's, and
    /// never rung.
    pub fn describe(&self, id: DiskId, nudge: Nudge, about: Arc<dyn About>) {
        let queue = Arc::new(Queue::new(nudge));
        queue.close();
        let window = Extent::new(DiskOffset::new(0), ByteLen::ZERO);
        let entry = Entry { queue, window, about, passing: None, passed: Arc::default() };
        self.entries.write().unwrap_or_else(PoisonError::into_inner).insert(id.0, Arc::new(entry));
    }

    /// Something else is told of a disk from now on.
    pub fn retell(&self, id: DiskId, about: Arc<dyn About>) {
        self.change(id, |entry| entry.about = about);
    }

    /// Lets nobody ask any more: they hear that the disk is gone. Questions that the shard has
    /// taken are answered; `Mailbox::drain` tells when. Makes durable what the kernel wrote by
    /// itself, so it may wait.
    ///
    /// # Errors
    /// What kept that from being durable.
    pub fn close(&self, id: DiskId) -> io::Result<()> {
        let entry = self.entries.write().unwrap_or_else(PoisonError::into_inner).remove(&id.0);
        let Some(entry) = entry else { return Ok(()) };
        entry.queue.close();
        match entry.passed.file() {
            Some(file) => {
                entry.passed.judge(rustix::fs::fdatasync(&*file).map_err(io::Error::from))
            }
            None => Ok(()),
        }
    }

    /// A disk that grew shows as much from now on.
    pub fn resize(&self, id: DiskId, len: ByteLen) {
        self.change(id, |entry| entry.window = Extent::new(entry.window.at, len));
    }

    fn change(&self, id: DiskId, act: impl FnOnce(&mut Entry)) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        // Whoever has it just now goes on with what it was.
        if let Some(entry) = entries.get_mut(&id.0) {
            act(Arc::make_mut(entry));
        }
    }

    fn entry(&self, disk: DiskId) -> Result<Arc<Entry>, Errno> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries.get(&disk.0).cloned().ok_or(Errno::Gone)
    }

    /// The entry, and where on its disk the extent lies.
    pub(super) fn place(
        &self,
        disk: DiskId,
        extent: orlop_fuse::Extent,
    ) -> Result<(Arc<Entry>, Extent), Errno> {
        let entry = self.entry(disk)?;
        let extent = entry.on_disk(extent)?;
        Ok((entry, extent))
    }

    fn erase(&self, disk: DiskId, extent: orlop_fuse::Extent, may_unmap: bool, reply: Reply<()>) {
        match self.place(disk, extent) {
            Ok((entry, extent)) => entry.queue.push(Ask::Erase { extent, may_unmap, reply }),
            Err(errno) => reply.fail(errno),
        }
    }
}

impl Port for Files {
    fn read(&self, disk: DiskId, extent: orlop_fuse::Extent, reply: ReadReply) {
        match self.place(disk, extent) {
            Ok((entry, extent)) => entry.queue.push(Ask::Read { extent, reply }),
            Err(errno) => reply.fail(errno),
        }
    }

    fn write(&self, disk: DiskId, at: Offset, data: &[u8], durable: bool, reply: Reply<()>) {
        let extent = orlop_fuse::Extent { at, len: Bytes(data.len() as u64) };
        match self.place(disk, extent) {
            Ok((entry, extent)) => {
                let data = data.to_vec();
                entry.queue.push(Ask::Write { at: extent.at, data, durable, reply });
            }
            Err(errno) => reply.fail(errno),
        }
    }

    fn flush(&self, disk: DiskId, reply: Reply<()>) {
        let entry = match self.entry(disk) {
            Ok(entry) => entry,
            Err(errno) => return reply.fail(errno),
        };
        let Some(file) = entry.passed.file() else {
            return entry.queue.push(Ask::Flush { reply });
        };
        let then = move |synced: io::Result<()>| match entry.passed.judge(synced) {
            Ok(()) => entry.queue.push(Ask::Flush { reply }),
            Err(_) => reply.fail(Errno::Io),
        };
        self.syncer.sync(file, Box::new(then));
    }

    fn punch(&self, disk: DiskId, extent: orlop_fuse::Extent, reply: Reply<()>) {
        self.erase(disk, extent, true, reply);
    }

    fn zero(&self, disk: DiskId, extent: orlop_fuse::Extent, reply: Reply<()>) {
        self.erase(disk, extent, false, reply);
    }

    fn map(&self, disk: DiskId, extent: orlop_fuse::Extent, reply: Reply<Vec<Run>>) {
        match self.place(disk, extent) {
            Ok((entry, extent)) => entry.queue.push(Ask::Map { extent, reply }),
            Err(errno) => reply.fail(errno),
        }
    }

    fn allocated(&self, disk: DiskId, extent: orlop_fuse::Extent, reply: Reply<Bytes>) {
        match self.place(disk, extent) {
            Ok((entry, extent)) => entry.queue.push(Ask::Stored { extent, reply }),
            Err(errno) => reply.fail(errno),
        }
    }

    fn text(&self, disk: DiskId, which: Text, reply: Reply<Vec<u8>>) {
        reply.answer(self.entry(disk).and_then(|entry| entry.about.text(which)));
    }

    fn facts(&self, disk: DiskId, reply: Reply<Vec<Fact>>) {
        reply.answer(self.entry(disk).map(|entry| entry.about.facts()));
    }

    fn passthrough(&self, disk: DiskId, write: bool) -> Option<Arc<OwnedFd>> {
        let entry = self.entry(disk).ok()?;
        if entry.passed.has_failed() {
            return None;
        }
        let file = entry.passing.as_ref()?.backing(write)?;
        if write {
            // Before the kernel has it, so that no flush can miss it.
            entry.passed.give(&file);
        }
        Some(file)
    }
}

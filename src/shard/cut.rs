//! A disk in use gets a new leaf: held, given the leaf, released. See `engine::pivot`.
//!
//! Refuses to be patient: who holds a disk says when it has lasted long enough.

use std::io;

use tokio::sync::oneshot;

use super::mailbox::{AddFile, DiskTag, Mailbox, Message};
use super::own::{Own, gone};
use super::run::Shard;
use crate::engine::effect::FileId;
use crate::engine::layer::Leaf;
use crate::engine::request::Request;

/// Makes a leaf out of open files, on the shard's own thread.
pub type NewLeaf = Box<dyn FnOnce(AddFile<'_>) -> io::Result<(Box<dyn Leaf>, FileId)> + Send>;

/// Told how a step went.
pub(super) type Told = oneshot::Sender<io::Result<()>>;

/// A step on the way to a new leaf.
pub(super) enum Step {
    Hold(Told),
    Pivot(NewLeaf, Told),
    Release(Told),
}

impl Mailbox {
    /// Lets no change of a disk begin, and returns when those under way have ended and everything
    /// is durable; reads go on. Whoever asked owes a [`Self::release`], also when this failed or
    /// was no longer waited for.
    ///
    /// # Errors
    /// What the disk says, or that there is no such disk.
    pub async fn hold(&self, disk: DiskTag) -> io::Result<()> {
        self.step(disk, Step::Hold).await
    }

    /// Puts a new leaf over a held disk: an empty child of the one it has.
    ///
    /// # Errors
    /// What `leaf` says, or why the disk did not take it; it is as before then.
    pub async fn pivot(&self, disk: DiskTag, leaf: NewLeaf) -> io::Result<()> {
        self.step(disk, |told| Step::Pivot(leaf, told)).await
    }

    /// Ends a hold, if there is one: changes go on.
    ///
    /// # Errors
    /// When there is no such disk.
    pub async fn release(&self, disk: DiskTag) -> io::Result<()> {
        self.step(disk, Step::Release).await
    }

    async fn step(&self, disk: DiskTag, step: impl FnOnce(Told) -> Step) -> io::Result<()> {
        let asked = self.ask(|told| Message::Cut(disk, step(told))).await;
        asked.map_err(io::Error::other)?
    }
}

impl Shard {
    pub(super) fn take_step(&mut self, tag: DiskTag, step: Step) {
        let place = self.lasting(tag);
        // Who asked may have gone; then nobody minds what is told here.
        match (step, place) {
            (Step::Hold(told) | Step::Pivot(_, told) | Step::Release(told), None) => {
                let _ = told.send(Err(gone()));
            }
            (Step::Hold(told), Some(disk)) => self.submit_own(disk, Own::Told(told), Request::Hold),
            (Step::Pivot(leaf, told), Some(disk)) => {
                let _ = told.send(self.pivot(disk, leaf));
            }
            (Step::Release(told), Some(disk)) => {
                self.disks.touch(disk).disk.release();
                let _ = told.send(Ok(()));
            }
        }
    }

    fn pivot(&mut self, disk: usize, leaf: NewLeaf) -> io::Result<()> {
        let (host, mut files) = (&mut self.host, Vec::new());
        let made = leaf(&mut |file| {
            let file = host.add_file(file)?;
            files.push(file);
            Ok(file)
        });
        let seat = self.disks.touch(disk);
        let taken =
            made.and_then(|(leaf, file)| seat.disk.pivot(leaf, file).map_err(io::Error::other));
        match &taken {
            Ok(()) => seat.files.extend(files),
            Err(_) => files.into_iter().for_each(|file| self.host.remove_file(file)),
        }
        taken
    }
}

//! A new leaf for a disk in use: changes are held, what was acknowledged becomes durable, the leaf
//! is frozen under a new one, and changes go on.
//!
//! A hold lets no change begin: those that run end, then everything is committed, and then the hold
//! is answered. Reads go on all the while. Between that answer and the release the leaf's file says
//! exactly what the disk says, so it may get another name, and a child. Refuses a leaf that would
//! change what the disk reads as: one of another size, or one that comes while something is dirty.

use std::collections::VecDeque;

use super::disk::Disk;
use super::effect::FileId;
use super::layer::Leaf;
use super::request::{FaultKind, MapKind, Request};
use super::task::TaskKey;

/// Where the disk's hold stands, and who waits for its end.
#[derive(Default)]
pub(super) struct Hold {
    stage: Stage,
    waiting: VecDeque<TaskKey>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Off,
    /// Changes that began before run to their end.
    Ending(TaskKey),
    /// They have ended, and everything is being committed.
    Committing(TaskKey),
    /// Nothing changes, and everything is durable.
    Quiet,
}

/// Why a disk did not take a new leaf; nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PivotError {
    /// It is not held.
    #[error("the disk is not held: its changes would not stand still")]
    NotHeld,
    /// Something waits for a commit.
    #[error("the disk has changes that are not durable")]
    Dirty,
    /// The new leaf describes another disk.
    #[error("the new leaf has another size than the disk")]
    OtherSize,
}

/// Whether a request changes the disk.
const fn changes(request: &Request) -> bool {
    match request {
        Request::Write { .. }
        | Request::Zero { .. }
        | Request::Discard { .. }
        | Request::Resize { .. } => true,
        Request::Read { .. } | Request::Map { .. } | Request::Flush | Request::Hold => false,
    }
}

impl Hold {
    /// Whether this request must wait for the release.
    pub(super) fn keeps(&self, request: &Request) -> bool {
        self.stage != Stage::Off && changes(request)
    }

    /// Lets a task wait for the release.
    pub(super) fn keep(&mut self, key: TaskKey) {
        self.waiting.push_back(key);
    }

    /// Tasks that do not run because of it, the hold itself included.
    pub(super) fn kept(&self) -> usize {
        self.waiting.len() + usize::from(matches!(self.stage, Stage::Ending(_)))
    }

    /// Those who wait for the release, to be looked at again.
    pub(super) fn waiting(&self) -> impl Iterator<Item = TaskKey> {
        self.waiting.iter().copied()
    }

    /// Takes out everyone who waits, the hold itself included; the disk has stopped. While it waits
    /// for the commit, the commit gives it back.
    pub(super) fn take_waiters(&mut self) -> Vec<TaskKey> {
        let mut waiters = Vec::from(std::mem::take(&mut self.waiting));
        if let Stage::Ending(key) = std::mem::take(&mut self.stage) {
            waiters.push(key);
        }
        waiters
    }
}

impl Disk {
    pub(super) fn begin_hold(&mut self, key: TaskKey) {
        if self.hold.stage != Stage::Off {
            self.refuse_hold(key, "the disk is held already");
            return;
        }
        self.hold.stage = Stage::Ending(key);
        self.try_hold();
    }

    fn refuse_hold(&mut self, key: TaskKey, why: &str) {
        self.note_fault(key, 0, FaultKind::Unsupported(why.to_owned()));
        self.reply(key);
    }

    /// Commits once no change runs any more.
    pub(super) fn try_hold(&mut self) {
        let Stage::Ending(key) = self.hold.stage else { return };
        let running = |task: &super::task::Task| task.admitted && changes(&task.request);
        if self.resize.is_pending() || self.tasks.iter().any(|(_, task)| running(task)) {
            return;
        }
        self.hold.stage = Stage::Committing(key);
        self.join_commit(key);
    }

    /// A task ends: if it is the hold, the disk is held from now on, or the hold is off.
    pub(super) fn note_end_of_hold(&mut self, key: TaskKey, well: bool) {
        if !matches!(self.hold.stage, Stage::Ending(k) | Stage::Committing(k) if k == key) {
            return;
        }
        if well {
            self.hold.stage = Stage::Quiet;
        } else {
            self.end_hold();
        }
    }

    fn end_hold(&mut self) {
        self.hold.stage = Stage::Off;
        for key in std::mem::take(&mut self.hold.waiting) {
            self.wait_again(key);
        }
    }

    /// Whether nothing changes and everything is durable, until [`Self::release`].
    pub fn is_held(&self) -> bool {
        self.hold.stage == Stage::Quiet
    }

    /// Ends a hold: changes go on. A hold that was not answered yet fails, unless its commit runs:
    /// then its answer comes and means nothing. Nothing happens where there is none.
    pub fn release(&mut self) {
        let stage = self.hold.stage;
        self.end_hold();
        if let Stage::Ending(key) = stage {
            self.refuse_hold(key, "the hold was given up: requests did not end in time");
        }
        self.admit_waiting();
    }

    /// Puts a new leaf over a held disk: an empty child of its leaf, which is only read from now
    /// on. What is in flight goes on: it reads the same bytes from the same files.
    ///
    /// # Errors
    /// Why not; the disk is as before then.
    pub fn pivot(&mut self, leaf: Box<dyn Leaf>, file: FileId) -> Result<(), PivotError> {
        if !self.is_held() || self.stopped().is_some() || self.is_read_only() {
            return Err(PivotError::NotHeld);
        }
        // I4: what the old leaf's file does not say yet would be lost to its next reader.
        if self.is_dirty() {
            return Err(PivotError::Dirty);
        }
        if leaf.size() != self.size() {
            return Err(PivotError::OtherSize);
        }
        self.stack.push(leaf, file);
        self.outbox.one_layer_more();
        self.parking.one_layer_more();
        for (_, task) in &mut self.tasks {
            if let Some(fault) = &mut task.fault {
                fault.layer += 1;
            }
            for run in &mut task.runs {
                if let MapKind::Data { depth }
                | MapKind::Sparse { depth }
                | MapKind::Zero { depth } = &mut run.kind
                {
                    *depth += 1;
                }
            }
        }
        Ok(())
    }
}

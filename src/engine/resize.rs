//! Resize: a control operation that has the disk to itself. What is in flight ends, everything is
//! committed, the leaf takes its steps, and only then do waiting requests run. So no format needs
//! to think of a block being placed while its table moves.
//!
//! Refuses to shrink. A step that fails is undone, and the old size stays in force; if that fails
//! too, nobody knows what the image says, and the disk stops as after a failed sync (W8).

use std::collections::VecDeque;

use super::disk::Disk;
use super::effect::{Effect, IoError, Outcome, Source, Target};
use super::layer::{FileChange, ResizeStep};
use super::request::{Fault, FaultKind, Request};
use super::task::{Purpose, TaskKey};
use super::units::{ByteLen, DiskOffset, SECTOR};

/// Where the disk's resize stands, and who waits for the next one.
#[derive(Default)]
pub(super) struct Resize {
    queue: VecDeque<TaskKey>,
    running: Option<Running>,
}

struct Running {
    task: TaskKey,
    size: ByteLen,
    /// The leaf takes its steps; before that, the commit is waited for.
    begun: bool,
    /// Changes of the step in flight.
    left: usize,
    /// Whether a barrier follows them.
    sync: bool,
    /// Why it is being undone.
    failed: Option<FaultKind>,
    /// The changes in flight are those of the undoing.
    undoing: bool,
}

impl Resize {
    /// Whether a resize runs or waits: nothing else may begin.
    pub(super) fn is_pending(&self) -> bool {
        self.running.is_some() || !self.queue.is_empty()
    }

    /// Lets a resize wait for its turn.
    pub(super) fn queue(&mut self, task: TaskKey) {
        self.queue.push_back(task);
    }

    /// Resizes that wait for their turn.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Whether one runs.
    pub(super) const fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Takes out everyone who waits, the one that runs included; the disk has stopped.
    pub(super) fn take_waiters(&mut self) -> Vec<TaskKey> {
        let mut waiters: Vec<TaskKey> = std::mem::take(&mut self.queue).into();
        // While it waits for the commit, the commit gives it back.
        waiters.extend(self.running.take().filter(|running| running.begun).map(|r| r.task));
        waiters
    }

    /// The resize of this task is over.
    pub(super) fn end(&mut self, task: TaskKey) {
        if self.running.as_ref().is_some_and(|running| running.task == task) {
            self.running = None;
        }
    }
}

impl Disk {
    pub(super) fn queue_resize(&mut self, key: TaskKey) {
        self.resize.queue.push_back(key);
        self.try_resize();
    }

    /// Begins the next resize if nothing else is in flight. True when it is over already.
    pub(super) fn try_resize(&mut self) -> bool {
        if self.resize.running.is_some() || self.stopped.is_some() || self.admitted() > 0 {
            return false;
        }
        let Some(task) = self.resize.queue.pop_front() else { return false };
        self.tasks[task].admitted = true;
        let Request::Resize { size } = self.tasks[task].request else { return false };
        self.resize.running = Some(Running {
            task,
            size,
            begun: false,
            left: 0,
            sync: false,
            failed: None,
            undoing: false,
        });
        self.withdraw();
        match self.refusal_of_size(size) {
            Some(why) => self.refuse_resize(task, why),
            None if size == self.size => self.reply(task),
            // The leaf takes its steps from a clean state.
            None => self.join_commit(task),
        }
        self.resize.running.is_none()
    }

    fn refuse_resize(&mut self, task: TaskKey, why: String) {
        self.note_fault(task, 0, FaultKind::Unsupported(why));
        self.reply(task);
    }

    fn refusal_of_size(&self, size: ByteLen) -> Option<String> {
        if size == self.size {
            return None;
        }
        if !size.get().is_multiple_of(SECTOR) {
            return Some(format!("a disk has whole sectors of {SECTOR} bytes, and {size} is none"));
        }
        if size < self.size {
            return Some(format!(
                "shrinking the disk from {} to {size} bytes would drop its data behind them; a \
                 disk can only grow",
                self.size
            ));
        }
        let below = self.stack.size_below().filter(|below| *below > self.size)?;
        Some(format!(
            "the parent has {below} bytes, the disk only {}: growing would bring to light what it \
             hides of its parent",
            self.size
        ))
    }

    /// Everything is committed: the leaf may begin.
    pub(super) fn resize_committed(&mut self, task: TaskKey) {
        let Some(seat) = &mut self.stack.leaf else { return self.reply(task) };
        let Some(running) = &mut self.resize.running else { return self.reply(task) };
        running.begun = true;
        match seat.leaf.begin_resize(running.size) {
            Ok(()) => self.step_resize(None),
            Err(why) => self.refuse_resize(task, why),
        }
    }

    fn step_resize(&mut self, read: Option<Vec<u8>>) {
        let Some(seat) = &mut self.stack.leaf else { return };
        let file = seat.file;
        match seat.leaf.resize_step(read) {
            Err(kind) => self.undo_resize(kind),
            Ok(ResizeStep::Done) => self.finish_resize(),
            Ok(ResizeStep::Read(at, len)) => {
                self.outbox.emit(Purpose::ResizeRead, |id| Effect::Read {
                    id,
                    file: file.file(),
                    at,
                    into: Target::Owned(vec![0; len.get() as usize]),
                    may_lend: false,
                });
            }
            Ok(ResizeStep::Change { changes, sync }) => self.change_file(changes, sync),
        }
    }

    fn change_file(&mut self, changes: Vec<FileChange>, sync: bool) {
        let file = self.leaf_file();
        let Some(running) = &mut self.resize.running else { return };
        running.left = changes.len();
        running.sync = sync;
        self.unsynced = true;
        if changes.is_empty() {
            self.resize_step_done();
            return;
        }
        for change in changes {
            self.outbox.emit(Purpose::ResizeChange, |id| match change {
                FileChange::Write(at, bytes) => {
                    Effect::Write { id, file, at, from: Source::Owned(bytes), durable: false }
                }
                FileChange::Punch(at, len) => Effect::Punch { id, file, at, len },
                FileChange::SetLength(len) => Effect::SetLength { id, file, len },
            });
        }
    }

    /// Bytes that the leaf asked for came.
    pub(super) fn resize_read(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Bytes(bytes) => self.step_resize(Some(bytes)),
            Outcome::Failed(error) => self.undo_resize(FaultKind::Io(error)),
            Outcome::Done | Outcome::Lent | Outcome::Extents(_) => {
                self.undo_resize(FaultKind::Io(IoError::EIO))
            }
        }
    }

    /// A change that the leaf asked for completed.
    pub(super) fn resize_changed(&mut self, outcome: &Outcome) {
        let Some(running) = &mut self.resize.running else { return };
        running.left -= 1;
        if let Outcome::Failed(error) = outcome {
            if running.undoing {
                let error = *error;
                self.stop(format!("undoing a failed resize failed too: {error}"));
                return;
            }
            running.failed.get_or_insert(FaultKind::Io(*error));
        }
        if running.left == 0 {
            self.resize_step_done();
        }
    }

    fn resize_step_done(&mut self) {
        let Some(running) = &mut self.resize.running else { return };
        match running.failed.clone() {
            Some(kind) if !running.undoing => self.undo_resize(kind),
            // W9: every completion of the step was seen.
            _ if running.sync => {
                let file = self.leaf_file();
                self.unsynced = false;
                self.outbox.emit(Purpose::ResizeBarrier, |id| Effect::Sync { id, file });
            }
            _ => self.step_resize(None),
        }
    }

    /// A barrier of the resize completed.
    pub(super) fn resize_barrier_done(&mut self, outcome: &Outcome) {
        if let Outcome::Failed(error) = outcome {
            self.stop(format!("syncing the image failed while it was resized: {error}"));
            return;
        }
        let Some(running) = &mut self.resize.running else { return };
        match running.failed.clone() {
            Some(kind) => self.fail_resize(kind),
            None => self.step_resize(None),
        }
    }

    fn undo_resize(&mut self, kind: FaultKind) {
        let Some(seat) = &mut self.stack.leaf else { return };
        let changes = seat.leaf.undo_resize();
        if changes.is_empty() {
            self.fail_resize(kind);
            return;
        }
        if let Some(running) = &mut self.resize.running {
            running.failed = Some(kind);
            running.undoing = true;
        }
        self.change_file(changes, true);
    }

    fn fail_resize(&mut self, kind: FaultKind) {
        let Some(running) = &self.resize.running else { return };
        let task = running.task;
        let fault = Fault { kind, layer: 0, at: DiskOffset::new(0) };
        self.fail(task, fault);
    }

    /// I4: the new size is durable; only now does anybody see it.
    fn finish_resize(&mut self) {
        let Some(running) = &self.resize.running else { return };
        let (task, size) = (running.task, running.size);
        self.size = size;
        self.stack.grown(size);
        self.review_waiting();
        self.reply(task);
    }
}

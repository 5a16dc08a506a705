//! The commit: how acknowledged writes become durable and stay findable after a crash.
//!
//! - **I1** No BAT entry or bitmap bit reaches disk before the bytes it points at are durable.
//! - **I2** The file covers a block's whole extent before its entry is published.
//! - **I3** Commits are serial per disk; each metadata sector has one writer.
//! - **I4** A flush or FUA reply follows its last barrier.
//! - **I5** Parents are frozen: no write effect can name them.
//! - **I6** Bytes lent to the kernel return only with a completion.
//! - **I7** A control operation is on disk as intent before its first effect.
//!
//! A commit is: wave 0, barrier, wave 1, barrier, ... as the leaf dictates, with at least one
//! barrier when anything was written at all. Flushes that arrive meanwhile join the next one.

use super::disk::Disk;
use super::effect::{Effect, IoError, Outcome, Source};
use super::layer::{Wave, WaveNo};
use super::request::{Fault, FaultKind, Request};
use super::task::{Purpose, TaskKey, WaitFor};
use super::units::DiskOffset;

/// Where the disk's commit stands.
#[derive(Default)]
pub(super) struct Commit {
    stage: Stage,
    /// Tasks whose reply waits for the commit that runs.
    serving: Vec<TaskKey>,
    /// Tasks that wait for the one after it.
    queued: Vec<TaskKey>,
}

#[derive(Clone, Copy, Default)]
enum Stage {
    #[default]
    Idle,
    /// Writes of a wave are in flight.
    Wave { n: u8, left: usize, failed: Option<IoError> },
    /// The barrier behind wave `n` is in flight; `None`: there was no wave.
    Barrier { n: Option<u8> },
}

impl Disk {
    /// Lets a task's reply wait for a commit that starts from now on.
    pub(super) fn join_commit(&mut self, task: TaskKey) {
        self.commit.queued.push(task);
        self.start_commit();
    }

    /// Whether a commit runs or waits to run.
    pub(super) fn committing(&self) -> bool {
        !matches!(self.commit.stage, Stage::Idle)
    }

    /// Starts the next commit unless one is running (I3).
    pub(super) fn start_commit(&mut self) {
        if self.committing() || self.stopped.is_some() {
            return;
        }
        let Some(seat) = &mut self.stack.leaf else { return };
        self.commit.serving = std::mem::take(&mut self.commit.queued);
        let metadata = seat.leaf.dirty();
        if !metadata && !self.unsynced {
            self.finish_commit();
            return;
        }
        // W5: what completes from here on belongs to the next commit.
        self.unsynced = false;
        let wave = if metadata { seat.leaf.wave(WaveNo(0)) } else { None };
        match wave {
            Some(wave) => self.write_wave(0, wave),
            None => self.barrier(None),
        }
    }

    fn write_wave(&mut self, n: u8, wave: Wave) {
        if wave.writes.is_empty() {
            self.barrier(Some(n));
            return;
        }
        let file = self.leaf_file();
        self.commit.stage = Stage::Wave { n, left: wave.writes.len(), failed: None };
        for (at, bytes) in wave.writes {
            self.outbox.emit(Purpose::Wave, |id| Effect::Write {
                id,
                file,
                at,
                from: Source::Owned(bytes),
                durable: false,
            });
        }
    }

    // W9: only now, with every completion of the wave seen, may the sync be issued.
    fn barrier(&mut self, n: Option<u8>) {
        let file = self.leaf_file();
        self.commit.stage = Stage::Barrier { n };
        self.outbox.emit(Purpose::Barrier, |id| Effect::Sync { id, file });
    }

    /// A metadata write of the running wave completed.
    pub(super) fn wave_write_done(&mut self, outcome: &Outcome) {
        let Stage::Wave { n, left, failed } = &mut self.commit.stage else { return };
        if let Outcome::Failed(error) = outcome {
            failed.get_or_insert(*error);
        }
        *left -= 1;
        if *left > 0 {
            return;
        }
        let (n, failed) = (*n, *failed);
        match failed {
            None => self.barrier(Some(n)),
            Some(error) => self.abandon_commit(error),
        }
    }

    /// The barrier completed.
    pub(super) fn barrier_done(&mut self, outcome: &Outcome) {
        if let Outcome::Failed(error) = outcome {
            // W8: what the kernel could not write it may have forgotten; a later sync would lie.
            self.stop(format!("syncing the image failed: {error}"));
            return;
        }
        let Stage::Barrier { n } = self.commit.stage else { return };
        let next = match (n, &mut self.stack.leaf) {
            (Some(n), Some(seat)) => match seat.leaf.wave(WaveNo(n + 1)) {
                Some(wave) => Some((n + 1, wave)),
                None => {
                    seat.leaf.settled();
                    None
                }
            },
            _ => None,
        };
        match next {
            Some((n, wave)) => self.write_wave(n, wave),
            None => self.finish_commit(),
        }
    }

    // I4: the replies leave here, behind the last barrier, and nowhere else.
    fn finish_commit(&mut self) {
        self.commit.stage = Stage::Idle;
        for task in std::mem::take(&mut self.commit.serving) {
            match self.tasks[task].request {
                Request::Resize { .. } => self.resize_committed(task),
                _ => self.reply(task),
            }
        }
        self.resume(WaitFor::Commit);
        if !self.commit.queued.is_empty() {
            self.start_commit();
        }
    }

    /// A metadata write failed. Nothing of the commit counts as durable; what it covered is dirty
    /// again, the waiting flushes hear of it, and the disk goes on.
    fn abandon_commit(&mut self, error: IoError) {
        self.commit.stage = Stage::Idle;
        self.unsynced = true;
        if let Some(seat) = &mut self.stack.leaf {
            seat.leaf.abandoned();
        }
        let fault = Fault { kind: FaultKind::Io(error), layer: 0, at: DiskOffset::new(0) };
        let mut failed = std::mem::take(&mut self.commit.serving);
        // Those who wait for room in the metadata would only start the same commit again.
        let parked = self.parking.release(WaitFor::Commit);
        failed.extend(parked);
        for task in failed {
            self.fail(task, fault.clone());
        }
        if !self.commit.queued.is_empty() {
            self.start_commit();
        }
    }

    /// Gives back every task that waits for a commit; the disk has stopped.
    pub(super) fn take_commit_waiters(&mut self) -> Vec<TaskKey> {
        self.commit.stage = Stage::Idle;
        let mut waiters = std::mem::take(&mut self.commit.serving);
        waiters.append(&mut self.commit.queued);
        waiters
    }
}

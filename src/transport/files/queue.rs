//! The questions of one disk on their way to its shard.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use orlop_fuse::{Bytes, Errno, ReadReply, Reply, Run};

use crate::engine::units::{DiskOffset, Extent};
use crate::shard::Nudge;

/// Bytes brought to be written that may wait. The kernel asks for at most 128 writes of 1 MiB at a
/// time that nobody waits for, but for as many as there are threads that wait.
const WAITING_BYTES: usize = 32 << 20;

/// A question, with the reply that carries its answer.
pub(super) enum Ask {
    Read { extent: Extent, reply: ReadReply },
    Write { at: DiskOffset, data: Vec<u8>, durable: bool, reply: Reply<()> },
    Erase { extent: Extent, may_unmap: bool, reply: Reply<()> },
    Flush { reply: Reply<()> },
    Map { extent: Extent, reply: Reply<Vec<Run>> },
    Stored { extent: Extent, reply: Reply<Bytes> },
}

impl Ask {
    /// Answers that it failed.
    pub(super) fn fail(self, errno: Errno) {
        match self {
            Self::Read { reply, .. } => reply.fail(errno),
            Self::Write { reply, .. } | Self::Erase { reply, .. } | Self::Flush { reply } => {
                reply.fail(errno);
            }
            Self::Map { reply, .. } => reply.fail(errno),
            Self::Stored { reply, .. } => reply.fail(errno),
        }
    }

    fn weight(&self) -> usize {
        match self {
            Self::Write { data, .. } => data.len(),
            _ => 0,
        }
    }
}

#[derive(Default)]
struct State {
    asks: VecDeque<Ask>,
    /// Their bytes to be written.
    bytes: usize,
    closed: bool,
    /// Readers of devices that wait for room.
    readers: Vec<Nudge>,
}

/// The queue: threads of the mount put in, the shard takes out.
pub(super) struct Queue {
    state: Mutex<State>,
    room: Condvar,
    nudge: Nudge,
}

impl Queue {
    pub(super) fn new(nudge: Nudge) -> Self {
        Self { state: Mutex::default(), room: Condvar::new(), nudge }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a question in, or answers that the disk is gone. Only what brings bytes waits while too
    /// much waits to be written: the mount's thread is then the back-pressure. A question without
    /// bytes may come from the shard itself, which must not wait for itself: the next step of a
    /// search follows from the answer to the last.
    pub(super) fn push(&self, ask: Ask) {
        let mut state = self.state();
        while ask.weight() > 0 && state.bytes > WAITING_BYTES && !state.closed {
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        self.put(state, ask);
    }

    /// Puts a question in as [`Self::push`] does, but never waits: one for which there is no room
    /// comes back, and the nudge is used when there is.
    pub(super) fn offer(&self, ask: Ask, reader: &Nudge) -> Result<(), Ask> {
        let mut state = self.state();
        if ask.weight() > 0 && state.bytes > WAITING_BYTES && !state.closed {
            state.readers.push(reader.clone());
            return Err(ask);
        }
        self.put(state, ask);
        Ok(())
    }

    fn put(&self, mut state: MutexGuard<'_, State>, ask: Ask) {
        if state.closed {
            drop(state);
            return ask.fail(Errno::Gone);
        }
        state.bytes += ask.weight();
        state.asks.push_back(ask);
        drop(state);
        self.nudge.nudge();
    }

    /// Calls the client of the disk.
    pub(super) fn nudge(&self) -> &Nudge {
        &self.nudge
    }

    /// Takes the oldest question.
    pub(super) fn pop(&self) -> Option<Ask> {
        let mut state = self.state();
        let ask = state.asks.pop_front()?;
        let was_full = state.bytes > WAITING_BYTES;
        state.bytes -= ask.weight();
        if was_full && state.bytes <= WAITING_BYTES {
            self.room.notify_all();
            state.readers.drain(..).for_each(|reader| reader.nudge());
        }
        Some(ask)
    }

    /// Lets nobody in any more; those who are in hear that the disk is gone.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.bytes = 0;
        let asks = std::mem::take(&mut state.asks);
        let readers = std::mem::take(&mut state.readers);
        drop(state);
        self.room.notify_all();
        readers.iter().for_each(Nudge::nudge);
        asks.into_iter().for_each(|ask| ask.fail(Errno::Gone));
    }
}

//! Book-keeping of what is in flight: tasks (requests on their way), the effects they wait for, and
//! who is parked on what.

use std::collections::{BTreeMap, VecDeque};

use slab::Slab;

use super::edges::Edges;
use super::effect::{Effect, EffectId};
use super::layer::{MetaPage, Placed};
use super::published::Seen;
use super::request::{Fault, MapRun, Request, RequestId, Segment, Stored};
use super::units::{ByteLen, FileOffset};

/// Index of a task.
pub(super) type TaskKey = usize;

/// Effects one task may have in flight; the rest of a large request follows as they complete.
pub(super) const MAX_PIECES: u32 = 128;

/// A request on its way.
pub(super) struct Task {
    pub(super) id: RequestId,
    pub(super) request: Request,
    /// Bytes planned so far, from the start of what is to be planned.
    pub(super) cursor: ByteLen,
    /// Effects in flight for this task.
    pub(super) pending: u32,
    /// The first failure.
    pub(super) fault: Option<Fault>,
    /// What a read found, once it found a hole.
    pub(super) segments: Option<Vec<Segment>>,
    /// What the host lent instead of reading it.
    pub(super) lent: Vec<Lendable>,
    /// What a map found.
    pub(super) runs: Vec<MapRun>,
    /// Ragged first and last sectors that must be completed from what is there now.
    pub(super) edges: Option<Box<Edges>>,
    /// No other task may touch the same sectors while this one runs.
    pub(super) exclusive: bool,
    /// Runs now (as opposed to waiting for an overlapping task to end).
    pub(super) admitted: bool,
    /// Waits for a page, a scrub or a commit before it can plan further.
    pub(super) parked: bool,
    /// Everything written so far was written durably to a settled home.
    pub(super) settled: bool,
    /// What a guest's read must find again at its end.
    pub(super) seen: Option<Seen>,
}

/// A part of a read that need not be read.
pub(super) struct Lendable {
    /// Bytes of the request before it.
    pub(super) skip: ByteLen,
    pub(super) stored: Stored,
}

/// What a task, or several, may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum WaitFor {
    Page { layer: u16, at: FileOffset },
    Scrub { block: u32 },
    Commit,
}

/// Why an effect was issued, and so what its completion means.
pub(super) enum Purpose {
    Read { task: TaskKey, layer: u16, lendable: Option<Lendable> },
    Data { task: TaskKey, placed: Placed, durable: bool },
    Edge { task: TaskKey, last: bool, at: usize, layer: u16 },
    Page { layer: u16, page: MetaPage },
    Extents { task: TaskKey, layer: u16, len: ByteLen },
    Scrub { block: u32 },
    Wave,
    Barrier,
    ResizeRead,
    ResizeChange,
    ResizeBarrier,
}

/// Effects in flight, and those not yet fetched by the host.
#[derive(Default)]
pub(super) struct Outbox {
    purposes: Slab<Purpose>,
    queue: VecDeque<Effect>,
}

impl Outbox {
    /// Issues the effect that `build` makes of a fresh name.
    pub(super) fn emit(&mut self, purpose: Purpose, build: impl FnOnce(EffectId) -> Effect) {
        let id = EffectId(self.purposes.insert(purpose) as u32);
        self.queue.push_back(build(id));
    }

    pub(super) fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    pub(super) fn next(&mut self) -> Option<Effect> {
        self.queue.pop_front()
    }

    /// Why the effect was issued; it is no longer in flight afterwards.
    ///
    /// # Panics
    /// When the host completes an effect twice or one that never was: the books are wrong then.
    pub(super) fn settle(&mut self, id: EffectId) -> Purpose {
        self.purposes.remove(id.0 as usize)
    }

    pub(super) fn in_flight(&self) -> usize {
        self.purposes.len()
    }

    /// Every layer lies one step lower from now on.
    pub(super) fn one_layer_more(&mut self) {
        for (_, purpose) in &mut self.purposes {
            match purpose {
                Purpose::Read { layer, .. }
                | Purpose::Edge { layer, .. }
                | Purpose::Page { layer, .. }
                | Purpose::Extents { layer, .. } => *layer += 1,
                Purpose::Data { .. }
                | Purpose::Scrub { .. }
                | Purpose::Wave
                | Purpose::Barrier
                | Purpose::ResizeRead
                | Purpose::ResizeChange
                | Purpose::ResizeBarrier => {}
            }
        }
    }
}

/// Who waits for what. Only the first waiter issues the effect that everyone waits for.
#[derive(Default)]
pub(super) struct Parking {
    lots: BTreeMap<WaitFor, Vec<TaskKey>>,
}

impl Parking {
    /// Parks a task; true when it is the first to wait for this.
    pub(super) fn park(&mut self, what: WaitFor, task: TaskKey) -> bool {
        let lot = self.lots.entry(what).or_default();
        lot.push(task);
        lot.len() == 1
    }

    /// Everyone who waits for this; they wait no longer.
    pub(super) fn release(&mut self, what: WaitFor) -> Vec<TaskKey> {
        self.lots.remove(&what).unwrap_or_default()
    }

    /// Every layer lies one step lower from now on.
    pub(super) fn one_layer_more(&mut self) {
        let lower = |what| match what {
            WaitFor::Page { layer, at } => WaitFor::Page { layer: layer + 1, at },
            other => other,
        };
        let lots = std::mem::take(&mut self.lots);
        self.lots = lots.into_iter().map(|(what, lot)| (lower(what), lot)).collect();
    }

    /// Everyone who waits for anything.
    pub(super) fn release_all(&mut self) -> Vec<TaskKey> {
        std::mem::take(&mut self.lots).into_values().flatten().collect()
    }
}

//! Map: where data and holes are, for block status and `orlop map`.

use super::chain::Found;
use super::disk::Disk;
use super::effect::{Effect, FileRun, Outcome};
use super::request::{MapKind, MapRun, Request};
use super::task::{Purpose, Task, TaskKey};
use super::units::{ByteLen, Extent};

/// Runs of a file asked for at once: each costs the host a call that nothing else can interrupt.
const FILE_RUNS_MAX: u32 = 64;

impl Disk {
    pub(super) fn advance_map(&mut self, key: TaskKey, extent: Extent, limit: u32) {
        loop {
            let rest = extent.after(self.tasks[key].cursor);
            if rest.len.is_zero() {
                return;
            }
            let (kind, len) = match self.find(rest) {
                Found::Ask { layer, page } => {
                    self.wait_for_page(key, layer, page);
                    return;
                }
                Found::Here { layer, file, at, len } if self.stack.is_flat(layer) => {
                    let task = &mut self.tasks[key];
                    // One more than wanted tells where the last one ends.
                    let most = limit.saturating_sub(task.runs.len() as u32).saturating_add(1);
                    let most = most.min(FILE_RUNS_MAX);
                    task.pending += 1;
                    let purpose = Purpose::Extents { task: key, layer, len };
                    self.outbox.emit(purpose, |id| Effect::Extents { id, file, at, len, most });
                    return;
                }
                Found::Hole(len) => (MapKind::Hole, len),
                Found::Zero { layer, len } => (MapKind::Zero { depth: layer }, len),
                Found::Here { layer, len, .. } => (MapKind::Data { depth: layer }, len),
            };
            if !self.note_run(key, extent, limit, kind, len) {
                return;
            }
        }
    }

    /// The host told which of the `len` bytes behind the cursor are holes.
    pub(super) fn extents_told(
        &mut self,
        key: TaskKey,
        depth: u16,
        len: ByteLen,
        outcome: Outcome,
    ) {
        if let Request::Map { extent, limit } = self.tasks[key].request {
            // Not to know is no failure: data it is.
            let unknown = || vec![FileRun { len, hole: false }];
            let told = match outcome {
                Outcome::Extents(told) if !told.is_empty() => told,
                _ => unknown(),
            };
            for run in told {
                let kind =
                    if run.hole { MapKind::Sparse { depth } } else { MapKind::Data { depth } };
                if !self.note_run(key, extent, limit, kind, run.len) {
                    break;
                }
            }
        }
        self.piece_done(key);
    }

    /// Takes a run into the answer; false when that is complete without it.
    fn note_run(
        &mut self,
        key: TaskKey,
        extent: Extent,
        limit: u32,
        kind: MapKind,
        len: ByteLen,
    ) -> bool {
        let task = &mut self.tasks[key];
        if !push_run(task, kind, len, limit) {
            // Enough runs: the answer ends here.
            task.cursor = extent.len;
            return false;
        }
        task.cursor += len;
        true
    }
}

/// Appends a run or lengthens the last; false when that would make one too many.
fn push_run(task: &mut Task, kind: MapKind, len: ByteLen, limit: u32) -> bool {
    if let Some(last) = task.runs.last_mut()
        && last.kind == kind
    {
        last.len += len;
        return true;
    }
    if task.runs.len() >= limit.max(1) as usize {
        return false;
    }
    task.runs.push(MapRun { len, kind });
    true
}

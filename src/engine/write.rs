//! Writes: a home for each piece, one data write into it, and nothing else. Whole sectors never
//! need the parent, so there is no copy-up.

use super::disk::Disk;
use super::effect::{Effect, Outcome};
use super::layer::Placed;
use super::task::{MAX_PIECES, Purpose, TaskKey};
use super::units::{Extent, Span};

impl Disk {
    pub(super) fn advance_write(&mut self, key: TaskKey, extent: Extent, from: Span, fua: bool) {
        if self.tasks[key].exclusive && !self.fetch_edges(key, extent, true) {
            return;
        }
        let work = self.write_work(key, extent);
        loop {
            let task = &self.tasks[key];
            let rest = work.after(task.cursor);
            if rest.len.is_zero() || task.pending >= MAX_PIECES {
                return;
            }
            let Some(seat) = &mut self.stack.leaf else { return };
            let file = seat.file;
            let placed = match seat.leaf.place(rest) {
                Ok(placed) => placed,
                Err(blocked) => {
                    self.wait_for_leaf(key, blocked);
                    return;
                }
            };
            let source = self.gather(key, extent, from, placed.extent);
            let durable = fua && placed.settled;
            let task = &mut self.tasks[key];
            task.cursor += placed.extent.len;
            task.pending += 1;
            task.settled &= placed.settled;
            self.outbox.emit(Purpose::Data { task: key, placed, durable }, |id| Effect::Write {
                id,
                file,
                at: placed.at,
                from: source,
                durable,
            });
        }
    }

    /// A write, punch or zeroing into a reserved home completed.
    pub(super) fn data_done(
        &mut self,
        key: TaskKey,
        placed: &Placed,
        durable: bool,
        outcome: &Outcome,
    ) {
        let failed = matches!(outcome, Outcome::Failed(_));
        // A failed write may have left bytes behind as well.
        self.unsynced |= failed || !durable;
        if let Some(seat) = &mut self.stack.leaf {
            if failed { seat.leaf.failed(placed) } else { seat.leaf.landed(placed) }
        }
        self.note_failure(key, 0, outcome);
        // W8: a durable write syncs as well, and its failure may be that of an older write, which
        // the kernel tells only once.
        if durable
            && let Outcome::Failed(error) = outcome
            && !error.is_space()
        {
            self.stop(format!("a durable write failed: {error}"));
        }
        self.piece_done(key);
    }
}

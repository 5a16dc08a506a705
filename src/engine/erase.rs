//! Write-zeroes and discard. Both run alone on their sectors, because what they punch and what a
//! write puts there must not cross.

use super::chain::Found;
use super::disk::Disk;
use super::edges::inner;
use super::effect::Effect;
use super::layer::{Blocked, Hollow, Placed};
use super::request::Request;
use super::task::{MAX_PIECES, Purpose, Task, TaskKey};
use super::units::{ByteLen, Extent};

/// What to do with the next bytes of an erasure.
enum Next {
    /// Nothing for so many bytes.
    Skip(ByteLen),
    /// Make them zero by the leaf's cheapest means.
    Hollow(Extent),
    /// Stop: the task is parked.
    Parked,
}

impl Disk {
    pub(super) fn advance_zero(&mut self, key: TaskKey, extent: Extent, may_unmap: bool) {
        if self.is_ragged(extent)
            && !(self.fetch_edges(key, extent, false)
                && self.write_zero_edges(key, extent, may_unmap))
        {
            return;
        }
        let work = inner(extent, self.size);
        if may_unmap {
            self.hollow_out(key, work, false);
        } else {
            self.zero_in_place(key, work);
        }
    }

    pub(super) fn advance_discard(&mut self, key: TaskKey, extent: Extent) {
        // The ragged ends of a discard are kept: it promises nothing.
        self.hollow_out(key, inner(extent, self.size), true);
    }

    /// How far the planning of a task must get.
    pub(super) fn planned_len(&self, task: &Task) -> ByteLen {
        match task.request {
            Request::Read { extent, .. }
            | Request::Fetch { extent, .. }
            | Request::Map { extent, .. } => extent.len,
            Request::Write { extent, .. } => self.write_target(task, extent),
            Request::Zero { extent, .. } => self.zero_target(task, extent),
            Request::Discard { extent, .. } => inner(extent, self.size).len,
            Request::Flush | Request::Resize { .. } | Request::Hold => ByteLen::ZERO,
        }
    }

    fn hollow_out(&mut self, key: TaskKey, work: Extent, discard: bool) {
        loop {
            let task = &self.tasks[key];
            let rest = work.after(task.cursor);
            if rest.len.is_zero() || task.pending >= MAX_PIECES {
                return;
            }
            let wanted = match self.next_to_erase(key, rest, discard) {
                Next::Parked => return,
                Next::Skip(len) => {
                    self.tasks[key].cursor += len;
                    continue;
                }
                Next::Hollow(wanted) => wanted,
            };
            if let Err(blocked) = self.hollow_piece(key, wanted) {
                self.wait_for_leaf(key, blocked);
                return;
            }
        }
    }

    /// Looks whether there is anything to erase at all.
    fn next_to_erase(&mut self, key: TaskKey, rest: Extent, discard: bool) -> Next {
        match self.find(rest) {
            Found::Ask { layer, page } => {
                self.wait_for_page(key, layer, page);
                Next::Parked
            }
            Found::Hole(len) => Next::Skip(len),
            Found::Zero { layer: 0, len } => Next::Skip(len),
            // What only a parent holds costs the leaf nothing; hiding it would cost a block.
            Found::Here { layer, len, .. } | Found::Zero { layer, len } if discard && layer > 0 => {
                Next::Skip(len)
            }
            // The leaf punches best in whole blocks: offer it all the rest.
            Found::Here { layer: 0, .. } => Next::Hollow(rest),
            Found::Here { len, .. } | Found::Zero { len, .. } => Next::Hollow(rest.first(len)),
        }
    }

    fn hollow_piece(&mut self, key: TaskKey, wanted: Extent) -> Result<(), Blocked> {
        let file = self.leaf_file();
        let Some(seat) = &mut self.stack.leaf else { return Ok(()) };
        match seat.leaf.hollow(wanted)? {
            Hollow::Already(len) => self.tasks[key].cursor += len,
            Hollow::Silent(placed) => {
                seat.leaf.landed(&placed);
                let task = &mut self.tasks[key];
                task.cursor += placed.extent.len;
                task.settled = false;
            }
            Hollow::Punch(placed) => {
                self.count_piece(key, placed, wanted.len);
                self.outbox.emit(data(key, placed), |id| Effect::Punch {
                    id,
                    file,
                    at: placed.at,
                    len: placed.extent.len,
                });
            }
        }
        Ok(())
    }

    fn zero_in_place(&mut self, key: TaskKey, work: Extent) {
        loop {
            let task = &self.tasks[key];
            let rest = work.after(task.cursor);
            if rest.len.is_zero() || task.pending >= MAX_PIECES {
                return;
            }
            let Some(seat) = &mut self.stack.leaf else { return };
            let file = seat.file;
            match seat.leaf.place(rest) {
                Err(blocked) => {
                    self.wait_for_leaf(key, blocked);
                    return;
                }
                Ok(placed) => {
                    self.count_piece(key, placed, rest.len);
                    self.outbox.emit(data(key, placed), |id| Effect::Zero {
                        id,
                        file,
                        at: placed.at,
                        len: placed.extent.len,
                    });
                }
            }
        }
    }

    // A whole block may be given back although the disk ends inside it.
    fn count_piece(&mut self, key: TaskKey, placed: Placed, most: ByteLen) {
        let task = &mut self.tasks[key];
        task.cursor += placed.extent.len.min(most);
        task.pending += 1;
        task.settled = false;
    }
}

fn data(task: TaskKey, placed: Placed) -> Purpose {
    Purpose::Data { task, placed, durable: false }
}

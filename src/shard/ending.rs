//! How exports, disks and the shard itself end: clients finish what is in flight or are cut, then
//! a disk is committed, then its files are closed.

use std::time::Instant;

use tokio::sync::oneshot;

use super::disks::{DiskSeat, Farewell, Last};
use super::mailbox::{DiskTag, ExportKey};
use super::run::Shard;
use super::seats::ClientSeat;

/// How far the shard is on its way out.
pub(super) enum Phase {
    Serving,
    /// Clients finish until the deadline.
    Draining(Instant, Farewell),
    /// Disks are being committed.
    Flushing(Farewell),
}

/// An export whose clients are to go.
pub(super) struct Drain {
    export: ExportKey,
    deadline: Instant,
    answer: oneshot::Sender<()>,
}

impl Shard {
    /// Whether the shard is not on its way out.
    pub(super) const fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Serving)
    }

    /// Whether clients of this export have to go.
    pub(super) fn is_draining(&self, export: ExportKey) -> bool {
        !self.is_serving() || self.drains.iter().any(|drain| drain.export == export)
    }

    /// The earliest time at which somebody's patience ends.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let shutdown = match self.phase {
            Phase::Draining(deadline, _) => Some(deadline),
            Phase::Serving | Phase::Flushing(_) => None,
        };
        let drains = self.drains.iter().map(|drain| drain.deadline);
        let going = self.disks.going().iter().map(|place| &self.disks[*place]);
        let waiting = going.filter(|seat| seat.clients > 0);
        let detaches = waiting.filter_map(|seat| Some(seat.detach()?.deadline));
        shutdown.into_iter().chain(drains).chain(detaches).min()
    }

    pub(super) fn begin_drain(&mut self, export: ExportKey, answer: oneshot::Sender<()>) {
        self.drains.push(Drain { export, deadline: self.now + self.drain_limit, answer });
        self.drain_clients(|seat| seat.export == export);
    }

    pub(super) fn begin_detach(&mut self, tag: DiskTag, answer: Farewell) {
        let Some(disk) = self.disks.place_of(tag) else {
            let _ = answer.send(Err("there is no such disk any more".to_owned()));
            return;
        };
        if !self.disks.let_go(disk, self.now + self.drain_limit, answer) {
            return;
        }
        // What is held would never end.
        self.disks.touch(disk).disk.release();
        self.forget_reads(disk);
        self.drain_clients(|seat| seat.disk == disk);
    }

    pub(super) fn begin_shutdown(&mut self, answer: Farewell) {
        self.phase = Phase::Draining(self.now + self.drain_limit, answer);
        for disk in self.disks.places() {
            self.disks.touch(disk).disk.release();
            self.forget_reads(disk);
        }
        self.drain_clients(|_| true);
    }

    /// Takes the next steps of everything that ends; true when the shard is done.
    pub(super) fn advance_ends(&mut self) -> bool {
        if !self.drains.is_empty() {
            self.advance_drains();
        }
        if !self.disks.going().is_empty() {
            self.advance_detaches();
        }
        !self.is_serving() && self.advance_shutdown()
    }

    fn advance_drains(&mut self) {
        for mut drain in std::mem::take(&mut self.drains) {
            let export = drain.export;
            if !self.clients.iter().any(|(_, seat)| seat.export == export) {
                let _ = drain.answer.send(());
                continue;
            }
            if drain.deadline <= self.now {
                drain.deadline = self.now + self.drain_limit;
                self.cut_clients(|seat| seat.export == export);
            }
            self.drains.push(drain);
        }
    }

    fn advance_detaches(&mut self) {
        for disk in Vec::from_iter(self.disks.going().iter().copied()) {
            let seat = &self.disks[disk];
            if seat.clients > 0 {
                if seat.detach().is_some_and(|detach| detach.deadline <= self.now) {
                    self.disks.put_off(disk, self.now + self.drain_limit);
                    self.cut_clients(|seat| seat.disk == disk);
                }
            } else if seat.last == Last::No {
                self.commit_last(disk);
                self.pump();
            }
            self.forget_if_over(disk);
        }
    }

    /// Closes the files of a disk that was detached, once nothing of it is in flight.
    fn forget_if_over(&mut self, disk: usize) {
        let seat = &self.disks[disk];
        let Last::Over(result) = &seat.last else { return };
        if seat.clients > 0 || !seat.is_quiet() {
            return;
        }
        let result = result.clone();
        let seat = self.disks.remove(disk);
        for file in &seat.files {
            self.host.remove_file(*file);
        }
        let leftovers = self.host.take_leftovers();
        let answers = seat.into_answers();
        leftovers.drop_apart(move || {
            for answer in answers {
                let _ = answer.send(result.clone());
            }
        });
    }

    fn advance_shutdown(&mut self) -> bool {
        match std::mem::replace(&mut self.phase, Phase::Serving) {
            Phase::Serving => false,
            Phase::Draining(deadline, answer) => {
                if self.clients.is_empty() {
                    self.phase = Phase::Flushing(answer);
                    for disk in self.disks.places() {
                        if self.disks[disk].last == Last::No {
                            self.commit_last(disk);
                        }
                        self.let_owner_go(disk);
                    }
                    self.pump();
                    return self.advance_shutdown();
                }
                let late = deadline <= self.now;
                let next = if late { self.now + self.drain_limit } else { deadline };
                self.phase = Phase::Draining(next, answer);
                if late {
                    self.cut_clients(|_| true);
                }
                false
            }
            Phase::Flushing(answer) => {
                let over = |last: &Last| matches!(last, Last::Over(_));
                let busy =
                    |seat: &DiskSeat| !over(&seat.last) || seat.own > 0 || seat.detach().is_some();
                if self.disks.iter().any(busy) {
                    self.phase = Phase::Flushing(answer);
                    return false;
                }
                let fault = self.disks.iter().find_map(|seat| match &seat.last {
                    Last::Over(Err(fault)) => Some(fault.clone()),
                    _ => None,
                });
                let _ = answer.send(fault.map_or(Ok(()), Err));
                true
            }
        }
    }

    fn drain_clients(&mut self, which: impl Fn(&ClientSeat) -> bool) {
        for key in self.keys_of(which) {
            self.call_key(key, |client, cx| client.drain(cx));
        }
    }

    /// The clients that did not finish in time lose their connection. What they have at the disk
    /// is waited for all the same: it names their memory (I6).
    fn cut_clients(&mut self, which: impl Fn(&ClientSeat) -> bool) {
        for key in self.keys_of(which) {
            self.call_key(key, |client, cx| client.cut(cx));
        }
        self.pump();
    }
}

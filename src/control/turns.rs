//! Whose turn it is in an SR, by the specification's section "Ordering, Concurrency, and Locking":
//! creating and deleting one at a time, other verbs one at a time per VDI, a scan alone.
//!
//! Its callers promise to keep that order; who breaks it gets EBUSY. Some patience may be set, for
//! callers that only overlap by a little. The lock here is held to look and to note, never while
//! anything is done.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::sr::{Failure, Kind, VdiUuid};

/// What a verb needs to itself.
#[derive(Clone, Debug)]
pub(super) enum Need {
    /// The whole SR.
    All,
    /// Its set of VDIs, and these.
    Structure(Vec<VdiUuid>),
    /// This VDI.
    One(VdiUuid),
}

#[derive(Debug, Default)]
struct State {
    /// The SR goes: nobody gets a turn.
    closed: bool,
    all: bool,
    structure: bool,
    vdis: BTreeSet<VdiUuid>,
}

impl State {
    fn obstacle(&self, need: &Need) -> Option<String> {
        if self.all {
            return Some("an operation that needs the whole SR is running".to_owned());
        }
        let taken = |vdi: &VdiUuid| {
            self.vdis
                .contains(vdi)
                .then(|| format!("another operation on the VDI {vdi} is running"))
        };
        match need {
            Need::All if self.structure || !self.vdis.is_empty() => {
                Some("another operation in the SR is running".to_owned())
            }
            Need::All => None,
            Need::Structure(_) if self.structure => {
                Some("a VDI is being created or deleted".to_owned())
            }
            Need::Structure(vdis) => vdis.iter().find_map(taken),
            Need::One(vdi) => taken(vdi),
        }
    }

    fn note(&mut self, need: &Need, running: bool) {
        let vdis: &[VdiUuid] = match need {
            Need::All => {
                self.all = running;
                return;
            }
            Need::Structure(vdis) => {
                self.structure = running;
                vdis
            }
            Need::One(vdi) => std::slice::from_ref(vdi),
        };
        for vdi in vdis {
            if running {
                self.vdis.insert(*vdi);
            } else {
                self.vdis.remove(vdi);
            }
        }
    }
}

/// The turns of one SR.
#[derive(Debug, Default)]
pub(super) struct Turns {
    state: Mutex<State>,
    ended: Condvar,
}

impl Turns {
    /// Takes a turn, if need be after waiting for `patience`.
    pub(super) fn take(
        &self,
        need: Need,
        place: impl std::fmt::Display,
        patience: Duration,
    ) -> Result<Turn<'_>, Failure> {
        let deadline = Instant::now() + patience;
        let mut state = self.state();
        loop {
            if state.closed {
                return Err(Failure::new(Kind::NoSr, place, "it is not attached here"));
            }
            let Some(why) = state.obstacle(&need) else {
                state.note(&need, true);
                return Ok(Turn { turns: self, need });
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Failure::new(Kind::Busy, place, why));
            }
            let waited = self.ended.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes a [`Turn::close`] back.
    pub(super) fn open_again(&self) {
        self.state().closed = false;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    need: Need,
}

impl Turn<'_> {
    /// Ends the turn, and with it all turns: whoever waits or comes is told that there is no SR.
    pub(super) fn close(self) {
        self.turns.state().closed = true;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.state().note(&self.need, false);
        self.turns.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Need, Turns};
    use crate::sr::{Kind, VdiUuid};

    #[test]
    fn who_breaks_the_order_is_told_that_it_is_busy() {
        let turns = Turns::default();
        let [a, b] = [1, 2].map(|n| VdiUuid::from_bytes([n; 16]));
        let try_take = |need| turns.take(need, "here", Duration::ZERO);
        let busy = |need| try_take(need).is_err_and(|failure| failure.kind == Kind::Busy);
        let first = try_take(Need::One(a)).unwrap();
        assert!(busy(Need::One(a)) && busy(Need::All) && busy(Need::Structure(vec![a, b])));
        let second = try_take(Need::Structure(vec![b])).unwrap();
        assert!(busy(Need::Structure(vec![])) && busy(Need::One(b)));
        drop((first, second));
        let scan = try_take(Need::All).unwrap();
        assert!(busy(Need::All) && busy(Need::One(a)) && busy(Need::Structure(vec![])));
        drop(scan);
        assert!(try_take(Need::All).is_ok());
    }

    #[test]
    fn whoever_waits_for_an_sr_that_goes_is_told_that_it_is_gone() {
        let turns = Turns::default();
        let a = VdiUuid::from_bytes([1; 16]);
        let last = turns.take(Need::All, "here", Duration::ZERO).unwrap();
        let patient = |need| turns.take(need, "here", Duration::from_secs(600)).map(drop);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| patient(Need::One(a)));
            last.close();
            assert_eq!(waiting.join().unwrap().unwrap_err().kind, Kind::NoSr);
        });
        assert_eq!(patient(Need::All).unwrap_err().kind, Kind::NoSr);
        turns.open_again();
        assert!(patient(Need::One(a)).is_ok());
    }

    #[test]
    fn patience_outlasts_a_short_operation() {
        let turns = Turns::default();
        let first = turns.take(Need::All, "here", Duration::ZERO).unwrap();
        std::thread::scope(|scope| {
            let patient =
                scope.spawn(|| turns.take(Need::All, "here", Duration::from_secs(600)).map(drop));
            drop(first);
            assert!(patient.join().unwrap().is_ok());
        });
    }
}

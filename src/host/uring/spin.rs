//! Looking for a completion for a moment before sleeping: a sleeper that is woken from another
//! core costs both sides more than the look.
//!
//! Refuses to pay for nothing: looks that find nothing become rare, so a server whose clients
//! think, are slow or share its core hardly ever looks, and one without clients never does.
#![deny(unsafe_code)]

use std::io;
use std::time::{Duration, Instant};

use super::{Uring, endured};

/// What a look that found nothing costs, and what each that did brings.
const COST: u32 = 4;
const MAX_CREDIT: u32 = 32;
/// Sleeps without a look once the credit is used up; twice as many each time, up to a bound.
const FIRST_PAUSE: u32 = 64;
const LAST_PAUSE: u32 = 1 << 14;

/// Whether looking has paid lately.
#[derive(Debug)]
pub(super) struct Spin {
    /// How long to look at most; zero: never.
    limit: Duration,
    credit: u32,
    /// Sleeps until the next trial.
    pause: u32,
    next_pause: u32,
}

impl Spin {
    pub(super) fn new(limit: Duration) -> Self {
        // On a single core nobody could do anything meanwhile.
        let alone = std::thread::available_parallelism().is_ok_and(|cores| cores.get() == 1);
        let limit = if alone { Duration::ZERO } else { limit };
        Self { limit, credit: COST, pause: 0, next_pause: FIRST_PAUSE }
    }

    /// Whether to look now, before a sleep.
    fn is_due(&mut self) -> bool {
        if self.pause > 0 {
            self.pause -= 1;
            return false;
        }
        !self.limit.is_zero()
    }

    /// Learns what came of a look.
    fn learn(&mut self, found: bool) {
        if found {
            self.credit = (self.credit + 1).min(MAX_CREDIT);
            if self.credit == MAX_CREDIT {
                self.next_pause = FIRST_PAUSE;
            }
            return;
        }
        self.credit = self.credit.saturating_sub(COST);
        if self.credit == 0 {
            self.credit = COST;
            self.pause = self.next_pause;
            self.next_pause = (self.next_pause * 2).min(LAST_PAUSE);
        }
    }
}

impl Uring {
    /// Submits everything and looks whether something completes at once. True if so.
    pub(super) fn spin(&mut self) -> io::Result<bool> {
        if !self.spin.is_due() {
            return Ok(false);
        }
        self.counters.spins += 1;
        if !self.ring.standing().is_empty {
            self.counters.enters += 1;
            endured(self.ring.submitter().submit())?;
        }
        let begun = Instant::now();
        let found = loop {
            // Completions that wait to be made on this thread are made by a call.
            if self.ring.standing().owes {
                self.counters.enters += 1;
                endured(self.ring.submitter().submit_and_wait(0))?;
            }
            if !self.ring.completion().is_empty() {
                break true;
            }
            if begun.elapsed() >= self.spin.limit {
                break false;
            }
            std::hint::spin_loop();
        };
        self.spin.learn(found);
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{LAST_PAUSE, Spin};

    /// How many of so many sleeps began with a look.
    fn looks(spin: &mut Spin, sleeps: u32, found: bool) -> u32 {
        let mut count = 0;
        for _ in 0..sleeps {
            if spin.is_due() {
                count += 1;
                spin.learn(found);
            }
        }
        count
    }

    #[test]
    fn looks_that_find_nothing_become_rare_and_return_when_they_pay() {
        let limit = Duration::from_micros(20);
        let mut spin = Spin { limit, ..Spin::new(limit) };
        assert_eq!(looks(&mut spin, 1000, true), 1000);
        assert!(looks(&mut spin, 100_000, false) < 40);
        let back = looks(&mut spin, LAST_PAUSE + 1000, true);
        assert!(back >= 1000, "{back}");
        let mut never = Spin::new(Duration::ZERO);
        assert_eq!(looks(&mut never, 1000, true), 0);
    }
}

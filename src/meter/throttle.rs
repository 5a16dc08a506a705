//! Limits on bytes and requests a second, shared by all connections of an export, whichever shards
//! they are on.
//!
//! This is the generic cell rate algorithm told in work instead of time. Whoever asks is given a
//! place in one long line of work; the line is served at the rate, and a place may go when the
//! service is there or at most the burst away. So whoever came first goes first, nothing is worked
//! out anew when the rate changes, and a request larger than the burst goes and is paid for
//! afterwards by those behind it.
//!
//! Refuses to wait, and to ask the time: it is told.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const NANOS: u64 = 1_000_000_000;
/// The burst is what the rate allows in the tenth part of a second.
const BURSTS_PER_SECOND: u64 = 10;
/// Who waits asks again at least this often, so a raised limit is noticed.
const RECHECK: Duration = Duration::from_millis(100);

/// What an export may do in a second; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Bytes read and written.
    pub bytes_per_s: Option<NonZeroU64>,
    /// Requests of any kind.
    pub ops_per_s: Option<NonZeroU64>,
}

/// The limits of an export. Any thread may change them and ask for admission: all stand in one
/// line.
#[derive(Debug)]
pub struct Throttle {
    epoch: Instant,
    bytes: Line,
    ops: Line,
}

/// Whether a request may go.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// At once.
    Now,
    /// It has a place in the line, to be asked about with [`Throttle::turn`] or given up with
    /// [`Throttle::cancel`].
    Later(Ticket),
}

/// A place in the line.
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket {
    bytes: Option<Place>,
    ops: Option<Place>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    /// The work in front of it since the beginning.
    at: u64,
    /// Its own work.
    work: u64,
}

impl Throttle {
    /// A throttle with these limits.
    #[must_use]
    pub fn new(rates: Rates) -> Self {
        let throttle = Self { epoch: Instant::now(), bytes: Line::default(), ops: Line::default() };
        throttle.set(rates);
        throttle
    }

    /// Changes the limits, from any thread. Whoever waits notices within 100 ms.
    pub fn set(&self, rates: Rates) {
        let raw = |rate: Option<NonZeroU64>| rate.map_or(0, NonZeroU64::get);
        self.bytes.rate.store(raw(rates.bytes_per_s), Ordering::Relaxed);
        self.ops.rate.store(raw(rates.ops_per_s), Ordering::Relaxed);
    }

    /// The limits.
    #[must_use]
    pub fn rates(&self) -> Rates {
        let wrapped = |line: &Line| NonZeroU64::new(line.rate.load(Ordering::Relaxed));
        Rates { bytes_per_s: wrapped(&self.bytes), ops_per_s: wrapped(&self.ops) }
    }

    /// Asks for a request of so many bytes, which may be none. Its place is paid for from now on.
    pub fn admit(&self, now: Instant, bytes: u64) -> Admission {
        let now_nanos = self.nanos(now);
        let ticket = Ticket {
            bytes: if bytes == 0 { None } else { self.bytes.join(now_nanos, bytes) },
            ops: self.ops.join(now_nanos, 1),
        };
        match self.turn(&ticket, now) {
            None => Admission::Now,
            Some(_) => Admission::Later(ticket),
        }
    }

    /// When to ask for this place again; `None`: its turn has come.
    pub fn turn(&self, ticket: &Ticket, now: Instant) -> Option<Instant> {
        let now_nanos = self.nanos(now);
        let wait = |line: &Line, place: Option<Place>| {
            place.map_or(Duration::ZERO, |place| line.wait(now_nanos, place))
        };
        let wait = wait(&self.bytes, ticket.bytes).max(wait(&self.ops, ticket.ops));
        (!wait.is_zero()).then(|| now + wait.min(RECHECK))
    }

    /// Gives a place up that will not be used. The last place is as if it had never been; one in
    /// the middle stays paid for, or giving up places would move others forward for nothing.
    pub fn cancel(&self, ticket: Ticket) {
        for (line, place) in [(&self.bytes, ticket.bytes), (&self.ops, ticket.ops)] {
            if let Some(place) = place {
                line.leave(place);
            }
        }
    }

    fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX)
    }
}

/// One dimension of the limits.
#[derive(Debug, Default)]
struct Line {
    /// Work a second; 0 is no limit.
    rate: AtomicU64,
    /// Locked only under a limit, for a few sums: an export's connections may be on several shards.
    work: Mutex<Work>,
}

/// How far the line is.
#[derive(Debug, Default)]
struct Work {
    /// Work that was given a place since the beginning.
    joined: u64,
    /// Work that was served since the beginning, never more than joined.
    served: u64,
    /// Billionth parts of one more piece of work.
    served_part: u64,
    /// Up to when it was served, in nanoseconds since the epoch.
    served_until: u64,
}

impl Line {
    /// Takes a place at the end; none is needed without a limit.
    fn join(&self, now_nanos: u64, work: u64) -> Option<Place> {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 {
            return None;
        }
        let mut line = self.lock();
        line.serve(now_nanos, rate);
        let at = line.joined;
        line.joined = at.saturating_add(work);
        Some(Place { at, work })
    }

    fn leave(&self, place: Place) {
        let mut line = self.lock();
        if line.joined == place.at.saturating_add(place.work) {
            line.joined = place.at;
            line.served = line.served.min(place.at);
        }
    }

    /// How long a place has to wait from now on, if the rate stays.
    fn wait(&self, now_nanos: u64, place: Place) -> Duration {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 {
            return Duration::ZERO;
        }
        let mut line = self.lock();
        line.serve(now_nanos, rate);
        let ahead = place.at.saturating_sub(line.served);
        let burst = rate / BURSTS_PER_SECOND;
        if ahead == 0 || ahead < burst {
            return Duration::ZERO;
        }
        // With a burst, the service must come closer than it.
        let missing = if burst == 0 { ahead } else { ahead - burst + 1 };
        let parts = u128::from(missing) * u128::from(NANOS) - u128::from(line.served_part);
        let nanos = parts.div_ceil(u128::from(rate)).max(1);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn lock(&self) -> MutexGuard<'_, Work> {
        // What is done under it is arithmetic that cannot stop halfway.
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Work {
    /// Serves the line up to now. The time of a shard that is a little behind serves nothing.
    fn serve(&mut self, now_nanos: u64, rate: u64) {
        let nanos = now_nanos.saturating_sub(self.served_until);
        if nanos == 0 {
            return;
        }
        self.served_until = now_nanos;
        let parts = u128::from(nanos) * u128::from(rate) + u128::from(self.served_part);
        let done = parts / u128::from(NANOS);
        if done >= u128::from(self.joined - self.served) {
            // Time nobody used is gone; the burst is all there is to save.
            self.served = self.joined;
            self.served_part = 0;
        } else {
            self.served += done as u64;
            self.served_part = (parts % u128::from(NANOS)) as u64;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests;

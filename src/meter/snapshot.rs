//! What a meter had counted at a moment, as plain values.

use std::time::Duration;

use super::histogram;
use super::op::Op;

/// What was counted up to a moment, or between two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub(super) ops: [OpSnapshot; Op::COUNT],
    /// Requests in the hands of the disk at that moment.
    pub in_flight: u64,
    /// Connections at that moment.
    pub connections: u64,
    /// How long requests waited for their turn under a limit, all added up.
    pub throttled: Duration,
}

/// What was counted of one kind of request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpSnapshot {
    /// Requests answered, well or not.
    pub requests: u64,
    /// Bytes of those that succeeded.
    pub bytes: u64,
    /// Requests that failed or were refused.
    pub errors: u64,
    pub(super) total: Duration,
    pub(super) longest: Duration,
    /// Counts of the histogram's buckets; empty when there was none.
    pub(super) latencies: Vec<u64>,
}

impl Snapshot {
    /// What was counted of one kind.
    #[must_use]
    pub const fn op(&self, op: Op) -> &OpSnapshot {
        &self.ops[op.index()]
    }

    /// What was counted since an earlier snapshot of the same meter. Gauges stay what they are.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut ops = self.ops.clone();
        for (now, before) in ops.iter_mut().zip(&earlier.ops) {
            now.subtract(before);
        }
        Self { ops, throttled: self.throttled.saturating_sub(earlier.throttled), ..self.clone() }
    }

    /// Adds what another meter counted.
    pub fn add(&mut self, other: &Self) {
        for (mine, its) in self.ops.iter_mut().zip(&other.ops) {
            mine.add(its);
        }
        self.in_flight = self.in_flight.saturating_add(other.in_flight);
        self.connections = self.connections.saturating_add(other.connections);
        self.throttled = self.throttled.saturating_add(other.throttled);
    }
}

impl OpSnapshot {
    /// The latency that this part (0 to 1) of the successful requests did not exceed, within 6 %
    /// of it. Zero when there was none.
    #[must_use]
    pub fn percentile(&self, quantile: f64) -> Duration {
        histogram::percentile(&self.latencies, quantile, self.longest)
    }

    /// The average latency of the successful requests; zero when there was none.
    #[must_use]
    pub fn mean(&self) -> Duration {
        let count: u64 = self.latencies.iter().sum();
        let nanos = self.total.as_nanos().checked_div(u128::from(count)).unwrap_or(0);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// The longest latency of a successful request. Between two snapshots: not shorter than that,
    /// and at most a sixteenth longer.
    #[must_use]
    pub const fn max(&self) -> Duration {
        self.longest
    }

    fn subtract(&mut self, earlier: &Self) {
        self.requests = self.requests.saturating_sub(earlier.requests);
        self.bytes = self.bytes.saturating_sub(earlier.bytes);
        self.errors = self.errors.saturating_sub(earlier.errors);
        self.total = self.total.saturating_sub(earlier.total);
        for (now, before) in self.latencies.iter_mut().zip(&earlier.latencies) {
            *now = now.saturating_sub(*before);
        }
        // The longest of all time may be older; the buckets know to which it belongs.
        self.longest = self.longest.min(histogram::longest_of(&self.latencies));
    }

    fn add(&mut self, other: &Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.errors = self.errors.saturating_add(other.errors);
        self.total = self.total.saturating_add(other.total);
        self.longest = self.longest.max(other.longest);
        if self.latencies.is_empty() {
            self.latencies.clone_from(&other.latencies);
        } else {
            for (mine, its) in self.latencies.iter_mut().zip(&other.latencies) {
                *mine = mine.saturating_add(*its);
            }
        }
    }
}

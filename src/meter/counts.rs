//! The live counters of an export or a connection.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::histogram::Histogram;
use super::op::Op;
use super::snapshot::{OpSnapshot, Snapshot};

/// Counters that one thread writes, the shard's, and anyone reads at any time. Two writers would
/// lose counts: everything that records here must live on one shard.
///
/// A reader may find a request counted whose bytes are not yet; it never finds less than before.
#[derive(Debug, Default)]
pub struct Meter {
    ops: [Counts; Op::COUNT],
    in_flight: AtomicU64,
    connections: AtomicU64,
    throttled_nanos: AtomicU64,
}

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    total_nanos: AtomicU64,
    longest_nanos: AtomicU64,
    /// Made with the first request of its kind: most connections know but two.
    histogram: OnceLock<Box<Histogram>>,
}

/// Adds without a locked instruction: there is one writer.
fn add(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
}

fn subtract(gauge: &AtomicU64) {
    gauge.store(gauge.load(Ordering::Relaxed).saturating_sub(1), Ordering::Relaxed);
}

impl Meter {
    /// Nothing was counted yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts an answered request. Its bytes and its latency count only if it succeeded: how fast
    /// something is refused says nothing about the disk.
    pub fn record(&self, op: Op, bytes: u64, latency: Duration, ok: bool) {
        let counts = &self.ops[op.index()];
        add(&counts.requests, 1);
        if !ok {
            add(&counts.errors, 1);
            return;
        }
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        add(&counts.bytes, bytes);
        add(&counts.total_nanos, nanos);
        if nanos > counts.longest_nanos.load(Ordering::Relaxed) {
            counts.longest_nanos.store(nanos, Ordering::Relaxed);
        }
        counts.histogram.get_or_init(|| Box::new(Histogram::new())).record(nanos);
    }

    /// The disk has another request in hand.
    pub fn began(&self) {
        add(&self.in_flight, 1);
    }

    /// The disk answered a request.
    pub fn ended(&self) {
        subtract(&self.in_flight);
    }

    /// There is another connection.
    pub fn connected(&self) {
        add(&self.connections, 1);
    }

    /// A connection is gone.
    pub fn disconnected(&self) {
        subtract(&self.connections);
    }

    /// A request waited so long for its turn under a limit.
    pub fn throttled(&self, time: Duration) {
        add(&self.throttled_nanos, u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// What was counted so far.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let told = |gauge: &AtomicU64| gauge.load(Ordering::Relaxed);
        Snapshot {
            ops: self.ops.each_ref().map(|counts| OpSnapshot {
                requests: told(&counts.requests),
                bytes: told(&counts.bytes),
                errors: told(&counts.errors),
                total: Duration::from_nanos(told(&counts.total_nanos)),
                longest: Duration::from_nanos(told(&counts.longest_nanos)),
                latencies: counts.histogram.get().map_or(Vec::new(), |found| found.counts()),
            }),
            in_flight: told(&self.in_flight),
            connections: told(&self.connections),
            throttled: Duration::from_nanos(told(&self.throttled_nanos)),
        }
    }
}

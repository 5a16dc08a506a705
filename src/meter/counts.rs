//! The live counters of an export or a connection.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::histogram::Histogram;
use super::op::Op;
use super::snapshot::{OpSnapshot, Snapshot};

/// Counters that one thread writes, the shard's, and anyone reads at any time. Two writers would
/// lose counts: everything that records here must live on one shard. What several shards serve has
/// [`Meters`](super::Meters).
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Meter;
    use crate::meter::{Op, Snapshot};

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn each_kind_of_request_is_counted_for_itself() {
        let meter = Meter::new();
        for (count, op) in (1..).zip(Op::ALL) {
            (0..count).for_each(|_| meter.record(op, 100, MS, true));
            meter.record(op, 100, 1000 * MS, false);
        }
        let told = meter.snapshot();
        for (count, op) in (1..).zip(Op::ALL) {
            let op = told.op(op);
            assert_eq!((op.requests, op.bytes, op.errors), (count + 1, count * 100, 1));
            assert_eq!((op.mean(), op.max()), (MS, MS), "what failed has no latency");
        }
    }

    #[test]
    fn between_two_snapshots_counts_what_came_between() {
        let meter = Meter::new();
        meter.record(Op::Read, 10, 500 * MS, true);
        let earlier = meter.snapshot();
        assert_eq!(earlier.since(&earlier).op(Op::Read).max(), Duration::ZERO);
        (0..100).for_each(|_| meter.record(Op::Read, 10, MS, true));
        meter.throttled(3 * MS);
        let told = meter.snapshot().since(&earlier);
        let reads = told.op(Op::Read);
        assert_eq!((reads.requests, reads.bytes, reads.mean()), (100, 1000, MS));
        assert!(reads.max() >= MS && reads.max() <= MS * 17 / 16, "{:?}", reads.max());
        assert_eq!(told.throttled, 3 * MS);
        // Nothing is made up when they are given the wrong way round.
        assert_eq!(earlier.since(&meter.snapshot()).op(Op::Read).requests, 0);
    }

    #[test]
    fn gauges_follow_what_comes_and_goes() {
        let meter = Meter::new();
        meter.connected();
        meter.connected();
        meter.began();
        meter.disconnected();
        let told = meter.snapshot();
        assert_eq!((told.connections, told.in_flight), (1, 1));
        (0..3).for_each(|_| meter.ended());
        assert_eq!(meter.snapshot().in_flight, 0, "a gauge does not go below nothing");
    }

    #[test]
    fn what_several_meters_counted_adds_up() {
        let (one, two) = (Meter::new(), Meter::new());
        one.record(Op::Write, 7, MS, true);
        two.record(Op::Write, 8, 3 * MS, true);
        two.record(Op::Read, 1, MS, true);
        let mut sum = Snapshot::default();
        sum.add(&one.snapshot());
        sum.add(&two.snapshot());
        let writes = sum.op(Op::Write);
        assert_eq!((writes.requests, writes.bytes, writes.mean()), (2, 15, 2 * MS));
        assert_eq!(writes.max(), 3 * MS);
        assert_eq!(sum.op(Op::Read).requests, 1);
    }

    #[test]
    fn who_reads_while_another_writes_never_sees_less_than_before() {
        let meter = Meter::new();
        std::thread::scope(|threads| {
            threads.spawn(|| (0..100_000).for_each(|_| meter.record(Op::Read, 1, MS, true)));
            let mut before = meter.snapshot();
            for _ in 0..200 {
                let now = meter.snapshot();
                let read = |told: &Snapshot| (told.op(Op::Read).requests, told.op(Op::Read).bytes);
                assert!(read(&now).0 >= read(&before).0 && read(&now).1 >= read(&before).1);
                before = now;
            }
        });
        assert_eq!(meter.snapshot().op(Op::Read).requests, 100_000);
    }
}

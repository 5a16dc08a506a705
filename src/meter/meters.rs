//! The counters of something that is served by several threads: a meter for each, summed by
//! whoever reads.
//!
//! Refuses to have two writers of one meter.

use std::sync::{Arc, OnceLock};

use super::counts::Meter;
use super::snapshot::Snapshot;

/// A meter for each of a fixed number of threads, made when that thread first needs it: most
/// exports are served by one.
#[derive(Debug)]
pub struct Meters {
    by_thread: Box<[OnceLock<Arc<Meter>>]>,
}

impl Meters {
    /// For threads numbered from 0, so many.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        Self { by_thread: (0..threads).map(|_| OnceLock::new()).collect() }
    }

    /// The meter that only the thread of this number writes.
    ///
    /// # Panics
    /// When there is no such thread.
    #[must_use]
    pub fn of(&self, thread: usize) -> Arc<Meter> {
        Arc::clone(self.by_thread[thread].get_or_init(Arc::default))
    }

    /// What all of them counted so far.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let mut sum = Snapshot::default();
        for meter in self.by_thread.iter().filter_map(OnceLock::get) {
            sum.add(&meter.snapshot());
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Meters;
    use crate::meter::{Op, Snapshot};

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn nothing_is_lost_when_several_threads_count_at_once() {
        const EACH: u64 = 50_000;
        let meters = Meters::new(4);
        assert_eq!(meters.snapshot(), Snapshot::default());
        std::thread::scope(|threads| {
            for thread in [0, 2, 3] {
                let meter = meters.of(thread);
                threads.spawn(move || {
                    meter.connected();
                    (0..EACH).for_each(|_| meter.record(Op::Read, 7, MS, true));
                });
            }
            let mut before = 0;
            for _ in 0..100 {
                let now = meters.snapshot().op(Op::Read).requests;
                assert!(now >= before, "{now} requests after {before}");
                before = now;
            }
        });
        let sum = meters.snapshot();
        let reads = sum.op(Op::Read);
        assert_eq!((reads.requests, reads.bytes, reads.max()), (3 * EACH, 21 * EACH, MS));
        assert_eq!(sum.connections, 3);
        meters.of(2).disconnected();
        assert_eq!(meters.snapshot().connections, 2);
    }
}

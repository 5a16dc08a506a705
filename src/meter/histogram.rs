//! A log-linear histogram of durations: every power of two of nanoseconds is cut into sixteen, so
//! the middle of a bucket is within a thirty-second of whatever fell into it.
//!
//! Refuses to grow: its size is fixed, and what is too long for it counts as the longest.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets of one power of two.
const PARTS: usize = 16;
/// The finest bucket is this power of two nanoseconds wide; below 1024 ns all are as wide.
const FINEST: u32 = 6;
/// Powers of two above 1024 ns that are told apart: up to some 1100 s.
const OCTAVES: usize = 30;
/// Buckets in all: just under 4 KiB.
pub(super) const BUCKETS: usize = PARTS * (OCTAVES + 1);

/// The bucket of a duration.
fn bucket_of(nanos: u64) -> usize {
    let units = nanos >> FINEST;
    if units < PARTS as u64 {
        return units as usize;
    }
    let octave = units.ilog2() - PARTS.ilog2();
    // Between 16 and 31: which sixteenth of its power of two.
    let part = (units >> octave) as usize;
    (octave as usize * PARTS + part).min(BUCKETS - 1)
}

/// The shortest duration of a bucket, in nanoseconds.
fn start_of(bucket: usize) -> u64 {
    if bucket < PARTS {
        return (bucket as u64) << FINEST;
    }
    let octave = bucket / PARTS - 1;
    ((PARTS + bucket % PARTS) as u64) << octave << FINEST
}

/// What stands for all durations of a bucket.
fn middle_of(bucket: usize) -> u64 {
    let start = start_of(bucket);
    start + (start_of(bucket + 1) - start) / 2
}

/// The live histogram; one thread writes.
#[derive(Debug)]
pub(super) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
}

impl Histogram {
    pub(super) const fn new() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; BUCKETS] }
    }

    pub(super) fn record(&self, nanos: u64) {
        let bucket = &self.buckets[bucket_of(nanos)];
        bucket.store(bucket.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    pub(super) fn counts(&self) -> Vec<u64> {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect()
    }
}

/// The duration that `quantile` (0 to 1) of what was counted does not exceed. Zero when nothing
/// was. `longest` bounds the answer.
pub(super) fn percentile(counts: &[u64], quantile: f64, longest: Duration) -> Duration {
    let total: u64 = counts.iter().sum();
    let rank = (quantile.clamp(0.0, 1.0) * total as f64).ceil() as u64;
    let rank = rank.clamp(1, total.max(1));
    let mut seen = 0;
    for (bucket, count) in counts.iter().enumerate() {
        seen += count;
        if seen >= rank {
            if bucket == BUCKETS - 1 {
                return longest;
            }
            return Duration::from_nanos(middle_of(bucket)).min(longest);
        }
    }
    Duration::ZERO
}

/// The end of the last bucket that holds anything.
pub(super) fn longest_of(counts: &[u64]) -> Duration {
    let last = counts.iter().rposition(|count| *count > 0);
    last.map_or(Duration::ZERO, |bucket| Duration::from_nanos(start_of(bucket + 1)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::{Just, Strategy, prop_oneof, proptest};

    use super::{BUCKETS, Histogram, bucket_of, longest_of, percentile, start_of};

    #[test]
    fn buckets_follow_each_other_without_gaps() {
        for bucket in 0..BUCKETS {
            assert_eq!(bucket_of(start_of(bucket)), bucket);
            let end = start_of(bucket + 1) - 1;
            assert_eq!(bucket_of(end), bucket, "{end} ns");
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        assert!(start_of(BUCKETS - 1) > 1_000_000_000_000, "1000 s are told from more");
        const { assert!(BUCKETS * 8 <= 4096) };
    }

    #[test]
    fn an_empty_histogram_has_no_percentiles() {
        let counts = Histogram::new().counts();
        assert_eq!(percentile(&counts, 0.99, Duration::MAX), Duration::ZERO);
        assert_eq!(percentile(&[], 0.5, Duration::MAX), Duration::ZERO);
        assert_eq!(longest_of(&counts), Duration::ZERO);
    }

    /// Durations of every size alike, from nothing to 1000 s.
    fn nanos() -> impl Strategy<Value = u64> {
        prop_oneof![Just(0), (0..40_u32).prop_flat_map(|bits| 0..=1_u64 << bits)]
            .prop_map(|nanos| nanos.min(1_000_000_000_000))
    }

    proptest! {
        #[test]
        fn percentiles_are_those_of_the_sorted_data(
            mut data in proptest::collection::vec(nanos(), 1..400),
            quantile in 0.0..=1.0_f64,
        ) {
            let histogram = Histogram::new();
            data.iter().for_each(|nanos| histogram.record(*nanos));
            data.sort_unstable();
            let rank = ((quantile * data.len() as f64).ceil() as usize).clamp(1, data.len());
            let exact = data[rank - 1];
            let longest = Duration::from_nanos(data[data.len() - 1]);
            let told = percentile(&histogram.counts(), quantile, longest).as_nanos() as u64;
            // Six hundredths, and 64 ns where a clock sees no more anyway.
            assert!(told.abs_diff(exact) <= exact / 100 * 6 + 64, "{told} for {exact}");
            assert!(longest_of(&histogram.counts()) >= longest);
        }
    }
}

//! What one job saw: how many requests of each kind, how long they took, and what went wrong.
//!
//! Counts; decides nothing and prints nothing.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::stamp::Finding;
use crate::engine::units::{ByteLen, DiskOffset};

/// The longest latency told apart, in nanoseconds: a minute, twice what a server may take.
const LONGEST_NS: u64 = 60_000_000_000;

/// Faults kept for the report; later ones are only counted.
const FAULTS_KEPT: usize = 16;

/// The latencies and bytes of one kind of request.
#[derive(Clone, Debug)]
pub(super) struct Meter {
    /// Latencies in nanoseconds.
    pub(super) latency_ns: Histogram<u64>,
    /// Bytes moved.
    pub(super) bytes: ByteLen,
}

impl Meter {
    /// Nothing seen.
    pub(super) fn new() -> Meter {
        let latency_ns = Histogram::new_with_bounds(1, LONGEST_NS, 3)
            .expect("the bounds are ascending and three digits are allowed");
        Meter { latency_ns, bytes: ByteLen::ZERO }
    }

    /// Counts one request.
    pub(super) fn record(&mut self, took: Duration, bytes: ByteLen) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(LONGEST_NS);
        self.latency_ns.saturating_record(nanos.max(1));
        self.bytes += bytes;
    }

    /// How many requests.
    pub(super) fn count(&self) -> u64 {
        self.latency_ns.len()
    }

    /// Adds what another job saw.
    pub(super) fn absorb(&mut self, other: &Meter) {
        self.latency_ns.add(&other.latency_ns).expect("all meters have the same bounds");
        self.bytes += other.bytes;
    }
}

/// Something that must not happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A sector that is not what was written.
    Mismatch(Box<Finding>),
    /// A request the server or the file refused.
    Refused {
        /// What was asked: `read`, `write` or `flush`.
        request: &'static str,
        /// Where.
        at: DiskOffset,
        /// The answer.
        answer: String,
    },
    /// A connection that cannot go on.
    Broken(String),
}

/// What one job saw.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    /// Reads.
    pub(super) reads: Meter,
    /// Writes.
    pub(super) writes: Meter,
    /// Flushes.
    pub(super) flushes: Meter,
    /// Bytes compared with what they should be.
    pub(super) checked: ByteLen,
    /// The first faults.
    pub(super) faults: Vec<Fault>,
    /// How many faults there were.
    pub(super) fault_count: u64,
    /// Processor time of the job's thread.
    pub(super) cpu: Duration,
    /// When the job began and when its last reply came.
    pub(super) span: (Instant, Instant),
}

impl Tally {
    /// Nothing seen by a job that begins now.
    pub(super) fn begin() -> Tally {
        let now = Instant::now();
        Tally {
            reads: Meter::new(),
            writes: Meter::new(),
            flushes: Meter::new(),
            checked: ByteLen::ZERO,
            faults: Vec::new(),
            fault_count: 0,
            cpu: Duration::ZERO,
            span: (now, now),
        }
    }

    /// Notes a fault.
    pub(super) fn fault(&mut self, fault: Fault) {
        self.fault_count += 1;
        if self.faults.len() < FAULTS_KEPT {
            self.faults.push(fault);
        }
    }

    /// How many requests of all kinds were answered well.
    pub(super) fn count(&self) -> u64 {
        self.reads.count() + self.writes.count() + self.flushes.count()
    }

    /// Adds what another job saw.
    pub(super) fn absorb(&mut self, other: Tally) {
        self.reads.absorb(&other.reads);
        self.writes.absorb(&other.writes);
        self.flushes.absorb(&other.flushes);
        self.cpu += other.cpu;
        self.span = (self.span.0.min(other.span.0), self.span.1.max(other.span.1));
        self.absorb_findings(other);
    }

    /// Adds only what another job found out, not how fast it was.
    pub(super) fn absorb_findings(&mut self, other: Tally) {
        self.checked += other.checked;
        self.fault_count += other.fault_count;
        let room = FAULTS_KEPT - self.faults.len();
        self.faults.extend(other.faults.into_iter().take(room));
    }
}

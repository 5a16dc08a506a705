//! The report of a run: one set of numbers, as a table for people and as JSON for programs.
//!
//! Units stand in the names. Knows nothing of how the numbers came to be.

use std::fmt::{self, Write as _};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::load::Outcome;
use super::options::{Settings, Verify};
use super::tally::{Fault, Meter};

/// Raised when a key changes its meaning or goes away.
pub const SCHEMA_VERSION: u32 = 1;

/// The numbers of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// See [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// What was loaded, as a URI or path.
    pub target: String,
    /// The kind of load.
    pub rw: String,
    /// Bytes per request.
    pub block_bytes: u64,
    /// Requests in flight per job.
    pub queue_depth: u32,
    /// Connections, or threads.
    pub jobs: u32,
    /// Whether writes were durable when answered.
    pub fua: bool,
    /// Writes of a job between two flushes.
    pub flush_every: Option<u64>,
    /// Whether replies came in chunks.
    pub structured: bool,
    /// Size of the disk.
    pub disk_bytes: u64,
    /// First byte used.
    pub window_offset: u64,
    /// Bytes used.
    pub window_bytes: u64,
    /// What chose the offsets and marked the stamps.
    pub seed: u64,
    /// From the start of the load to its last reply.
    pub elapsed_s: f64,
    /// All requests together.
    pub total: Rates,
    /// Reads, if there were any.
    pub read: Option<Rates>,
    /// Writes, if there were any.
    pub write: Option<Rates>,
    /// Flushes, if there were any.
    pub flush: Option<Rates>,
    /// Processor time.
    pub cpu: Cpu,
    /// What verification saw; none if nothing was checked.
    pub verify: Option<Verification>,
    /// How many faults there were, mismatches included.
    pub fault_count: u64,
    /// The first of them.
    pub faults: Vec<FaultReport>,
}

/// How much of something, and how fast.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Requests.
    pub ops: u64,
    /// Requests per second.
    pub iops: f64,
    /// 1024 x 1024 bytes per second.
    pub mib_per_s: f64,
    /// From queueing a request to reading its reply.
    pub latency_us: Latency,
}

/// Microseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Arithmetic mean.
    pub mean: f64,
    /// Half of the requests took no longer.
    pub p50: f64,
    /// 90 of 100 took no longer.
    pub p90: f64,
    /// 99 of 100 took no longer.
    pub p99: f64,
    /// 999 of 1000 took no longer.
    pub p99_9: f64,
    /// The slowest.
    pub max: f64,
}

/// Processor time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cpu {
    /// Of our own threads, per request.
    pub client_us_per_op: f64,
    /// Of the server, per request; none if the server is not known.
    pub server_us_per_op: Option<f64>,
    /// Which process that is.
    pub server_pid: Option<u32>,
    /// `schedstat` (nanoseconds) or `stat` (ticks of 10 ms).
    pub server_account: Option<String>,
}

/// What verification saw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verification {
    /// Bytes that were compared.
    pub checked_bytes: u64,
    /// Whether all were as they should be.
    pub clean: bool,
}

/// Something that must not happen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FaultReport {
    /// `mismatch`, `refused` or `broken`.
    pub kind: String,
    /// Where on the disk, in bytes; none for a broken connection.
    pub offset: Option<u64>,
    /// What should have been.
    pub expected: String,
    /// What was.
    pub found: String,
}

impl Report {
    /// The report of a run.
    pub(super) fn new(settings: &Settings, outcome: &Outcome) -> Report {
        let tally = &outcome.tally;
        let elapsed = tally.span.1.saturating_duration_since(tally.span.0);
        let mut total = Meter::new();
        for meter in [&tally.reads, &tally.writes, &tally.flushes] {
            total.absorb(meter);
        }
        let used = |meter: &Meter| (meter.count() > 0).then(|| Rates::new(meter, elapsed));
        let server = outcome.server;
        let per_op = |used: Duration| micros(used) / tally.count().max(1) as f64;
        let faults: Vec<FaultReport> = tally.faults.iter().map(FaultReport::new).collect();
        Report {
            schema_version: SCHEMA_VERSION,
            target: settings.target.to_string(),
            rw: settings.pattern.name().into(),
            block_bytes: settings.block.get(),
            queue_depth: settings.queue_depth,
            jobs: settings.jobs,
            fua: settings.fua,
            flush_every: settings.flush_every,
            structured: settings.structured,
            disk_bytes: outcome.disk.get(),
            window_offset: outcome.window.at.get(),
            window_bytes: outcome.window.blocks * outcome.window.block.get(),
            seed: settings.seed.0,
            elapsed_s: elapsed.as_secs_f64(),
            total: Rates::new(&total, elapsed),
            read: used(&tally.reads),
            write: used(&tally.writes),
            flush: used(&tally.flushes),
            cpu: Cpu {
                client_us_per_op: per_op(tally.cpu),
                server_us_per_op: server.map(|server| per_op(server.used)),
                server_pid: server.map(|server| server.pid.0),
                server_account: server.map(|server| server.account.name().into()),
            },
            verify: (settings.verify != Verify::Off).then(|| Verification {
                checked_bytes: tally.checked.get(),
                clean: tally.fault_count == 0,
            }),
            fault_count: tally.fault_count,
            faults,
        }
    }

    /// Whether nothing went wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.fault_count == 0
    }

    /// One line that says which load this was, without its target.
    #[must_use]
    pub fn load_name(&self) -> String {
        let mut name = format!(
            "{} bs {} qd {} jobs {}",
            self.rw, self.block_bytes, self.queue_depth, self.jobs
        );
        if self.fua {
            name.push_str(" fua");
        }
        if let Some(every) = self.flush_every {
            let _ = write!(name, " flush every {every}");
        }
        if self.structured {
            name.push_str(" structured");
        }
        name
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let window = self.window_bytes as f64 / f64::from(1 << 20);
        writeln!(f, "{}", self.target)?;
        writeln!(
            f,
            "{}, {:.2} s, {window:.1} MiB from byte {}, seed {}",
            self.load_name(),
            self.elapsed_s,
            self.window_offset,
            self.seed
        )?;
        let columns = ["", "ops", "iops", "MiB/s", "p50 us", "p90 us", "p99 us", "p99.9", "max us"];
        for (at, column) in columns.iter().enumerate() {
            if at == 0 { write!(f, "{column:<6}")? } else { write!(f, " {column:>10}")? }
        }
        writeln!(f)?;
        let rows = [("read", &self.read), ("write", &self.write), ("flush", &self.flush)];
        for (name, rates) in rows {
            if let Some(rates) = rates {
                row(f, name, rates)?;
            }
        }
        if rows.iter().filter(|(_, rates)| rates.is_some()).count() != 1 {
            row(f, "total", &self.total)?;
        }
        let client = self.cpu.client_us_per_op;
        match (self.cpu.server_us_per_op, self.cpu.server_pid) {
            (Some(server), Some(pid)) => {
                writeln!(f, "cpu per op: server {server:.3} us (pid {pid}), client {client:.3} us")?
            }
            _ => writeln!(f, "cpu per op: client {client:.3} us (server unknown: --server-pid)")?,
        }
        if let Some(verify) = &self.verify {
            let verdict = if verify.clean { "all as written" } else { "NOT as written" };
            writeln!(f, "verify: {} bytes checked, {verdict}", verify.checked_bytes)?;
        }
        for fault in &self.faults {
            writeln!(f, "FAULT {fault}")?;
        }
        let hidden = self.fault_count - (self.faults.len() as u64).min(self.fault_count);
        if hidden > 0 {
            writeln!(f, "and {hidden} more faults")?;
        }
        Ok(())
    }
}

impl Rates {
    fn new(meter: &Meter, elapsed: Duration) -> Rates {
        let seconds = elapsed.as_secs_f64().max(1e-9);
        let latency = &meter.latency_ns;
        let us = |nanos: u64| nanos as f64 / 1000.0;
        let at = |quantile| us(latency.value_at_quantile(quantile));
        Rates {
            ops: meter.count(),
            iops: meter.count() as f64 / seconds,
            mib_per_s: meter.bytes.get() as f64 / f64::from(1 << 20) / seconds,
            latency_us: Latency {
                mean: latency.mean() / 1000.0,
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
                p99_9: at(0.999),
                max: us(latency.max()),
            },
        }
    }
}

impl FaultReport {
    fn new(fault: &Fault) -> FaultReport {
        match fault {
            Fault::Mismatch(finding) => FaultReport {
                kind: "mismatch".into(),
                offset: Some(finding.at.get()),
                expected: finding.expected.clone(),
                found: finding.found.clone(),
            },
            Fault::Refused { request, at, answer } => FaultReport {
                kind: "refused".into(),
                offset: Some(at.get()),
                expected: format!("success of a {request}"),
                found: answer.clone(),
            },
            Fault::Broken(what) => FaultReport {
                kind: "broken".into(),
                offset: None,
                expected: "a working connection".into(),
                found: what.clone(),
            },
        }
    }
}

impl fmt::Display for FaultReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if let Some(offset) = self.offset {
            write!(f, " at byte {offset}")?;
        }
        write!(f, ": expected {}, found {}", self.expected, self.found)
    }
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, rates: &Rates) -> fmt::Result {
    let us = &rates.latency_us;
    write!(f, "{name:<6} {:>10} {:>10.0} {:>10.1}", rates.ops, rates.iops, rates.mib_per_s)?;
    for value in [us.p50, us.p90, us.p99, us.p99_9, us.max] {
        write!(f, " {value:>10.1}")?;
    }
    writeln!(f)
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Meter, Rates};
    use crate::engine::units::ByteLen;

    #[test]
    fn rates_and_percentiles_come_from_what_was_recorded() {
        let mut meter = Meter::new();
        for micros in 1..=1000 {
            meter.record(Duration::from_micros(micros), ByteLen::new(4096));
        }
        let rates = Rates::new(&meter, Duration::from_secs(2));
        assert_eq!(rates.ops, 1000);
        assert!((rates.iops - 500.0).abs() < 1e-6);
        assert!((rates.mib_per_s - 1.953).abs() < 0.001);
        let us = rates.latency_us;
        for (found, wanted) in
            [(us.p50, 500.0), (us.p90, 900.0), (us.p99, 990.0), (us.p99_9, 999.0), (us.max, 1000.0)]
        {
            assert!((found - wanted).abs() / wanted < 0.002, "{found} {wanted}");
        }
    }

    #[test]
    fn rates_survive_json() {
        let mut meter = Meter::new();
        meter.record(Duration::from_micros(3), ByteLen::new(512));
        let rates = Rates::new(&meter, Duration::from_secs(1));
        let text = serde_json::to_string(&rates).expect("plain numbers");
        assert!(text.contains("\"p99_9\":"), "{text}");
        assert_eq!(serde_json::from_str::<Rates>(&text).expect("just written"), rates);
    }
}

//! Two reports side by side, with ratios.
//!
//! Prints numbers and no verdict: two runs say nothing about noise.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::report::{Rates, Report, SCHEMA_VERSION};

/// Reads a report that `--json` wrote.
///
/// # Errors
/// A file that cannot be read, is no report, or has another schema.
pub(super) fn read(path: &Path) -> Result<Report> {
    let name = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
    let value: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("{name} is no JSON"))?;
    let version = value.get("schema_version").and_then(serde_json::Value::as_u64);
    ensure!(
        version == Some(SCHEMA_VERSION.into()),
        "{name} has schema_version {version:?}, not {SCHEMA_VERSION}; measure again"
    );
    serde_json::from_value(value)
        .with_context(|| format!("{name} is no report; make it with 'orlop bench --json'"))
}

/// The table of both.
pub(super) fn table(a: &Report, b: &Report) -> String {
    let mut out =
        format!("A {} ({})\nB {} ({})\n", a.target, a.load_name(), b.target, b.load_name());
    if a.load_name() != b.load_name() || a.window_bytes != b.window_bytes {
        out.push_str("the loads differ, so the ratios compare more than the targets\n");
    }
    for (name, report) in [("A", a), ("B", b)] {
        if !report.is_clean() {
            let _ =
                writeln!(out, "{name} had {} faults: its rates mean nothing", report.fault_count);
        }
    }
    let _ = writeln!(out, "{:<22} {:>14} {:>14} {:>8}", "", "A", "B", "B/A");
    for (name, of) in rows() {
        let (Some(a), Some(b)) = (of(a), of(b)) else { continue };
        let ratio = if a > 0.0 { format!("{:.3}", b / a) } else { "-".into() };
        let _ = writeln!(out, "{name:<22} {a:>14.3} {b:>14.3} {ratio:>8}");
    }
    out
}

/// The same numbers for programs.
pub(super) fn json(a: &Report, b: &Report) -> serde_json::Value {
    let mut ratios = serde_json::Map::new();
    for (name, of) in rows() {
        let (Some(a), Some(b)) = (of(a), of(b)) else { continue };
        if a > 0.0 {
            ratios.insert(name.replace([' ', '.'], "_"), (b / a).into());
        }
    }
    let same = a.load_name() == b.load_name() && a.window_bytes == b.window_bytes;
    serde_json::json!({
        "schema_version": SCHEMA_VERSION,
        "a": a.target,
        "b": b.target,
        "same_load": same,
        "clean": a.is_clean() && b.is_clean(),
        "b_over_a": ratios,
    })
}

type Number = fn(&Report) -> Option<f64>;

fn rows() -> [(&'static str, Number); 9] {
    [
        ("iops", |report| Some(report.total.iops)),
        ("mib per s", |report| Some(report.total.mib_per_s)),
        ("latency p50 us", |report| Some(busiest(report).latency_us.p50)),
        ("latency p90 us", |report| Some(busiest(report).latency_us.p90)),
        ("latency p99 us", |report| Some(busiest(report).latency_us.p99)),
        ("latency p99.9 us", |report| Some(busiest(report).latency_us.p99_9)),
        ("latency max us", |report| Some(busiest(report).latency_us.max)),
        ("server cpu us per op", |report| report.cpu.server_us_per_op),
        ("client cpu us per op", |report| Some(report.cpu.client_us_per_op)),
    ]
}

fn busiest(report: &Report) -> &Rates {
    &report.total
}

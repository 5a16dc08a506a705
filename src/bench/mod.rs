//! `orlop bench`: puts a load on any NBD export or file, checks what comes back, and measures.
//!
//! The client must cost much less than the server it measures, since both share the processor:
//! threads that block, one per connection, big buffers, many frames per system call. It knows
//! nothing of images and shares no code with our server, so that it can judge it. Refuses to report
//! a rate without saying what it cost whom, and to overwrite what nobody said may go.

mod client;
mod compare;
mod cpu;
mod direct;
mod drive;
mod load;
mod options;
mod peers;
mod pipe;
mod plan;
mod report;
mod stamp;
mod tally;
mod uri;
mod wire;

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

pub use options::BenchOptions;
pub use plan::Pattern;
pub use report::{Cpu, FaultReport, Latency, Rates, Report, SCHEMA_VERSION, Verification};
pub use stamp::Seed;
pub use uri::{Address, Target, UriError};

/// How a run ended that could be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Everything was answered, and as written.
    Clean,
    /// Something was refused, lost or not as written; the report says what.
    Faulty,
}

impl Verdict {
    /// The exit status of the command: 0 or 1.
    #[must_use]
    pub fn exit_status(self) -> u8 {
        match self {
            Verdict::Clean => 0,
            Verdict::Faulty => 1,
        }
    }
}

/// Carries out `orlop bench` and writes its answer to `out`.
///
/// # Errors
/// What kept the load from starting, or `out` from taking the report. What went wrong under load is
/// a [`Verdict::Faulty`].
pub fn run(options: &BenchOptions, out: &mut dyn Write) -> Result<Verdict> {
    if options.peers {
        return peers::run(options.json, out);
    }
    if let Some([a, b]) = options.compare.as_deref() {
        return compared(a, b, options.json, out);
    }
    let report = measure(options)?;
    if options.json {
        let text = serde_json::to_string(&report).context("cannot write the report as JSON")?;
        writeln!(out, "{text}")?;
    } else {
        write!(out, "{report}")?;
    }
    Ok(if report.is_clean() { Verdict::Clean } else { Verdict::Faulty })
}

/// Options that make no sense, or that would destroy what nobody said may go.
#[derive(Debug, thiserror::Error)]
#[error("{0:#}")]
pub struct Misused(anyhow::Error);

/// Carries out a load, for callers that want its numbers.
///
/// # Errors
/// What kept the load from starting.
pub fn measure(options: &BenchOptions) -> Result<Report> {
    let settings = options::Settings::new(options, load::fresh_seed()).map_err(Misused)?;
    let outcome = load::run(&settings)?;
    Ok(Report::new(&settings, &outcome))
}

fn compared(a: &Path, b: &Path, json: bool, out: &mut dyn Write) -> Result<Verdict> {
    let (a, b) = (compare::read(a)?, compare::read(b)?);
    if json {
        writeln!(out, "{}", compare::json(&a, &b))?;
    } else {
        write!(out, "{}", compare::table(&a, &b))?;
    }
    let clean = a.is_clean() && b.is_clean();
    Ok(if clean { Verdict::Clean } else { Verdict::Faulty })
}

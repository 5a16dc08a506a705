//! `orlop check`: what is wrong with an image, and the repair that needs no guessing. Without
//! `--repair` it writes nothing and tells what a repair would do.

use std::io::Write;
use std::path::Path;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use vhd::{Finding, RepairStep, Report, Severity};

use super::options::ImageOptions;
use super::output::{Exit, Failure, SCHEMA_VERSION};
use crate::engine::units::ByteLen;
use crate::image::{Cause, ImageError, Repaired, inspect, inspect_layer, open, repair};
use crate::size::human;

/// What to check, and whether to repair it.
#[derive(Args, Clone, Debug)]
pub(super) struct CheckOptions {
    #[command(flatten)]
    image: ImageOptions,

    /// Read the blocks too: what a bitmap calls absent must be zero
    #[arg(long)]
    data: bool,

    /// Check every parent too, and that each is the right one
    #[arg(long)]
    chain: bool,

    /// Carry the repair out, instead of telling what it would do
    #[arg(long, value_name = "WHAT", conflicts_with_all = ["force_share", "chain"])]
    repair: Option<What>,

    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// The footers, and leftovers of unfinished allocations behind the last block
    Footer,
    /// Everything that can be repaired without guessing
    All,
}

/// One image's part of the answer.
struct Part {
    path: String,
    report: Option<Report>,
    /// Why it, or its parent, does not open.
    broken: Option<ImageError>,
}

/// Checks the image.
pub(super) fn run(options: &CheckOptions, out: &mut dyn Write) -> Result<Exit, Failure> {
    let reading = options.image.reading();
    let name = options.image.path.display().to_string();
    if options.repair.is_some() {
        let done = repair(&reading, options.data)?;
        let exit = exit_of_repair(&done);
        if options.json {
            writeln!(out, "{}", repaired_json(&name, &done))?;
        } else {
            show_repair(&name, &done, out)?;
        }
        return Ok(exit);
    }
    let inspection = inspect(&reading, options.data)?;
    let mut parts = vec![Part { path: name, report: Some(inspection.report), broken: None }];
    if options.chain {
        check_parents(options, &mut parts)?;
    }
    let exit = if parts.iter().all(Part::is_sound) { Exit::Ok } else { Exit::Corrupt };
    if options.json {
        let object = json!({
            "schema_version": SCHEMA_VERSION,
            "sound": exit == Exit::Ok,
            "images": parts.iter().map(Part::as_json).collect::<Value>(),
            "repair": plan_json(&inspection.plan),
        });
        writeln!(out, "{object}")?;
        return Ok(exit);
    }
    for part in &parts {
        part.show(out)?;
    }
    show_plan(&options.image.path, &inspection.plan, out)?;
    Ok(exit)
}

fn check_parents(options: &CheckOptions, parts: &mut Vec<Part>) -> Result<(), Failure> {
    let chain = match open(&options.image.reading()) {
        Ok(chain) => chain,
        Err(error) if matches!(error.cause, Cause::Vhd(_) | Cause::Parent(_)) => {
            // The top's own problems are in its report already.
            let path = error.path.display().to_string();
            let own = error.needed_by.is_none() && matches!(error.cause, Cause::Vhd(_));
            if !own {
                parts.push(Part { path, report: None, broken: Some(error) });
            }
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    for layer in chain.layers.iter().skip(1) {
        let report = inspect_layer(layer, options.data)?;
        parts.push(Part { path: layer.path.display().to_string(), report, broken: None });
    }
    Ok(())
}

impl Part {
    fn is_sound(&self) -> bool {
        self.broken.is_none() && self.report.as_ref().is_none_or(Report::is_sound)
    }

    fn as_json(&self) -> Value {
        let report = self.report.as_ref();
        json!({
            "path": self.path,
            "sound": self.is_sound(),
            "blocks": report.map(|report| report.blocks),
            "allocated_blocks": report.map(|report| report.allocated),
            "leaked_bytes": report.map(|report| report.leaked.get()),
            "findings": findings_json(report),
            "more_findings": report.map_or(0, |report| report.more_findings),
            "error": self.broken.as_ref().map(|error| json!({
                "code": error.code(), "message": error.to_string(), "hint": error.hint(),
            })),
        })
    }

    fn show(&self, out: &mut dyn Write) -> Result<(), Failure> {
        if let Some(error) = &self.broken {
            writeln!(out, "error: {error}\n  hint: {}", error.hint())?;
        }
        match &self.report {
            Some(report) => show_report(&self.path, report, out),
            None if self.broken.is_some() => Ok(()),
            None => Ok(writeln!(out, "{}: raw, nothing to check", self.path)?),
        }
    }
}

fn severity(finding: &Finding) -> &'static str {
    match finding.severity {
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}

fn findings_json(report: Option<&Report>) -> Value {
    let findings = report.map_or(&[][..], |report| &report.findings);
    let objects = findings.iter().map(|finding| {
        json!({
            "rule": finding.rule.to_string(),
            "severity": severity(finding),
            "at": finding.at.get(),
            "found": finding.found,
            "expected": finding.expected,
            "hint": finding.hint,
        })
    });
    objects.collect()
}

fn show_report(path: &str, report: &Report, out: &mut dyn Write) -> Result<(), Failure> {
    for finding in &report.findings {
        let Finding { rule, at, found, expected, hint, .. } = finding;
        let severity = severity(finding);
        writeln!(out, "{severity}: {path}: byte {at}: {found}\n  expected: {expected} ({rule})")?;
        writeln!(out, "  hint: {hint}")?;
    }
    if report.more_findings > 0 {
        writeln!(out, "{path}: {} more findings", report.more_findings)?;
    }
    let verdict = if report.is_sound() { "sound" } else { "damaged" };
    write!(out, "{path}: {verdict}")?;
    if report.blocks > 0 {
        write!(out, ", {} of {} blocks allocated", report.allocated, report.blocks)?;
    }
    let leaked = ByteLen::new(report.leaked.get());
    if !leaked.is_zero() {
        write!(out, ", {} used by nothing", human(leaked))?;
    }
    Ok(writeln!(out)?)
}

fn describe(step: &RepairStep) -> Option<String> {
    match step {
        RepairStep::Write { at, bytes } => {
            Some(format!("write the footer ({} bytes) at byte {at}", bytes.len()))
        }
        RepairStep::Truncate { len } => Some(format!("cut the file to {len} bytes")),
        RepairStep::Sync => None,
    }
}

fn plan_json(plan: &[RepairStep]) -> Value {
    plan.iter().filter_map(describe).collect()
}

fn show_plan(path: &Path, plan: &[RepairStep], out: &mut dyn Write) -> Result<(), Failure> {
    if plan.is_empty() {
        return Ok(());
    }
    writeln!(out, "a repair would, in this order:")?;
    for step in plan.iter().filter_map(describe) {
        writeln!(out, "  {step}")?;
    }
    Ok(writeln!(out, "run 'orlop check --repair=all {}' to do so", path.display())?)
}

fn exit_of_repair(done: &Repaired) -> Exit {
    match (done.after.report.is_sound(), done.steps.is_empty()) {
        (false, _) => Exit::Corrupt,
        (true, true) => Exit::Ok,
        (true, false) => Exit::Repaired,
    }
}

fn repaired_json(path: &str, done: &Repaired) -> Value {
    json!({
        "schema_version": SCHEMA_VERSION,
        "path": path,
        "sound": done.after.report.is_sound(),
        "repaired": plan_json(&done.steps),
        "findings_before": findings_json(Some(&done.before)),
        "findings": findings_json(Some(&done.after.report)),
    })
}

fn show_repair(path: &str, done: &Repaired, out: &mut dyn Write) -> Result<(), Failure> {
    if !done.steps.is_empty() {
        show_report(path, &done.before, out)?;
        writeln!(out, "repaired:")?;
        for step in done.steps.iter().filter_map(describe) {
            writeln!(out, "  {step}")?;
        }
    }
    show_report(path, &done.after.report, out)
}

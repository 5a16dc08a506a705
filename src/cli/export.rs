//! `orlop export`: changes and looks at the exports of a running `orlop serve --admin`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::output::{Exit, Failure, SCHEMA_VERSION};
use crate::admin::{Ask, AskError, ask};

/// Change or look at the exports of a running server.
#[derive(Debug, Args)]
pub(super) struct ExportOptions {
    /// The server's admin socket (`orlop serve --admin PATH`)
    #[arg(long, value_name = "PATH", global = true)]
    admin: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the exports
    List,
    /// Export something more
    Add {
        /// Comma-separated words, as `orlop serve --add` takes them
        spec: String,
    },
    /// Export something no longer: its clients finish, and its disk is made durable and closed
    Remove {
        /// The export
        name: String,
    },
    /// Change what an export's clients may do in a second
    Limit {
        /// The export
        name: String,
        /// Bytes (10M, 1G); 0 for no limit
        #[arg(long, value_name = "BYTES", value_parser = bytes)]
        bps: Option<u64>,
        /// Requests; 0 for no limit
        #[arg(long, value_name = "N")]
        iops: Option<u64>,
    },
    /// Tell what clients did: requests, bytes, errors and latencies
    Stats,
    /// Have the server read its certificates again
    ReloadTls,
}

fn bytes(text: &str) -> Result<u64, String> {
    crate::size::parse_bytes(text).map(|size| size.get())
}

/// Runs the command.
pub(super) fn run(options: &ExportOptions, out: &mut dyn Write) -> Result<Exit, Failure> {
    let Some(admin) = &options.admin else {
        let hint = "start the server with --admin PATH and name it here with --admin PATH";
        return Err(Failure::usage("which server?", hint));
    };
    if let Verb::Limit { bps: None, iops: None, .. } = &options.verb {
        let hint = "add --bps or --iops; 0 takes a limit away";
        return Err(Failure::usage("no limit is said, so there is nothing to change", hint));
    }
    let question = match &options.verb {
        Verb::List => Ask::Exports,
        Verb::Add { spec } => Ask::Add { spec: spec.clone() },
        Verb::Remove { name } => Ask::Remove { name: name.clone() },
        Verb::Limit { name, bps, iops } => {
            Ask::Limit { name: name.clone(), bps: *bps, iops: *iops }
        }
        Verb::Stats => Ask::Stats,
        Verb::ReloadTls => Ask::ReloadTls,
    };
    let answer = ask(admin, &question).map_err(failure)?;
    if options.json {
        let whole = json!({ "schema_version": SCHEMA_VERSION, "answer": answer });
        writeln!(out, "{whole}")?;
    } else {
        write!(out, "{}", text(&options.verb, &answer))?;
    }
    Ok(Exit::Ok)
}

fn failure(error: AskError) -> Failure {
    let (exit, code) = match &error {
        AskError::Unreachable { .. } => (Exit::Unreachable, "unreachable"),
        AskError::Refused { code, .. } => meaning(code),
        AskError::Strange { .. } => (Exit::Failed, "strange-answer"),
    };
    Failure::new(exit, code, error.to_string(), String::new())
}

/// What the server's words for its refusals mean to a shell.
fn meaning(code: &str) -> (Exit, &'static str) {
    match code {
        "not-found" => (Exit::NotFound, "not-found"),
        "no-partition" => (Exit::NotFound, "no-partition"),
        "locked" => (Exit::Busy, "locked"),
        "exists" => (Exit::Failed, "exists"),
        _ => (Exit::Failed, "refused"),
    }
}

/// An answer for people.
fn text(verb: &Verb, answer: &Value) -> String {
    match verb {
        Verb::List => {
            let exports = answer["exports"].as_array().map(Vec::as_slice).unwrap_or_default();
            exports.iter().map(export_line).collect()
        }
        Verb::Add { .. } | Verb::Limit { .. } => export_line(answer),
        Verb::Remove { .. } | Verb::ReloadTls => String::new(),
        Verb::Stats => {
            let exports = answer.as_object().into_iter().flatten();
            exports.flat_map(|(name, told)| stat_lines(name, &told["counters"])).collect()
        }
    }
}

fn shown(name: &str) -> &str {
    if name.is_empty() { "(no name)" } else { name }
}

fn export_line(export: &Value) -> String {
    let text = |key: &str| export[key].as_str().unwrap_or_default().to_owned();
    let number = |key: &str| export[key].as_u64();
    let mode = if export["read_only"] == true { "read-only" } else { "read-write" };
    let mut line = format!(
        "{}: {} of {} bytes, {mode}, {} connections",
        shown(&text("name")),
        text("image"),
        number("size").unwrap_or_default(),
        number("connections").unwrap_or_default(),
    );
    if export["overlay"] == true {
        line.push_str(", throwaway layer");
    }
    for (key, unit) in [("bps", "bytes/s"), ("iops", "requests/s")] {
        if let Some(limit) = number(key) {
            line.push_str(&format!(", at most {limit} {unit}"));
        }
    }
    line.push('\n');
    line
}

fn stat_lines(name: &str, counters: &Value) -> Vec<String> {
    let ops = counters.as_object().into_iter().flatten();
    let line = |(op, counts): (&String, &Value)| {
        let number = |key: &str| counts[key].as_u64().unwrap_or_default();
        let micros = |key: &str| counts["latency_us"][key].as_f64().unwrap_or_default();
        format!(
            "{}: {op}: {} requests, {} bytes, {} errors, mean {:.0} us, p99 {:.0} us, \
             max {:.0} us\n",
            shown(name),
            number("requests"),
            number("bytes"),
            number("errors"),
            micros("mean"),
            micros("p99"),
            micros("max"),
        )
    };
    ops.map(line).collect()
}

//! The command line: words in, answers on standard output, everything else on standard error.
//!
//! Refuses to know how anything is done: a command reads its options, calls one room, and says
//! what came of it. Exit codes are those of [`output::Exit`].

mod ask;
mod check;
mod create;
mod daemon;
mod export;
mod info;
mod map;
mod mount;
mod options;
pub mod output;
pub mod serve;
mod sm;
mod sr;
mod table;
mod umount;
mod vdi;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::bench::BenchOptions;
use output::{Exit, Failure};

/// Serves VHD and raw disk images, with their parent chains, over NBD.
#[derive(Debug, Parser)]
#[command(name = "orlop", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  orlop serve disk.vhd --create 20G               a new dynamic VHD, over NBD
  orlop create base.vhd -s 20G                    a dynamic VHD of 20 GiB
  orlop create child.vhd --parent base.vhd        a child of it, of the same size
  orlop serve child.vhd --socket /tmp/child.sock  serve it until interrupted
  orlop mount disk.vhd /mnt/x                     its bytes and partitions as files

Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 busy or locked, 5 corrupt found, 6 repaired,
            7 no server answers, 8 unsupported";

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve an image over NBD until told to stop
    Serve(Box<serve::ServeOptions>),
    /// Add, remove, limit and watch the exports of a running server
    Export(export::ExportOptions),
    /// Make an image
    Create(create::CreateOptions),
    /// Tell about an image without opening its parents
    Info(info::InfoOptions),
    /// Tell where data and holes are, and which image of the chain holds them
    Map(map::MapOptions),
    /// Look for damage, and repair what can be repaired without guessing
    Check(check::CheckOptions),
    /// Show an image, and its partitions, as files
    Mount(Box<mount::MountOptions>),
    /// Take a mounted image away, and say who keeps it busy
    Umount(umount::UmountOptions),
    /// Serve storage repositories until told to stop
    Daemon(daemon::DaemonOptions),
    /// Make, attach and look at storage repositories of a running daemon
    Sr(sr::SrOptions),
    /// Make, attach and look at virtual disks of a running daemon
    Vdi(vdi::VdiOptions),
    /// Speak the Storage Manager API to a running daemon, in its command-line form
    Sm(sm::SmOptions),
    /// Load an NBD export or a file and measure it
    Bench(Box<BenchOptions>),
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    if let Some(driver) = sm::plugin(&arguments) {
        return sm::relay(&driver, &arguments);
    }
    let ordinary = mount::ordinary(&arguments);
    arguments = ordinary.unwrap_or(arguments);
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Asked-for help goes to standard output with 0, errors to standard error with 2.
            let _nowhere_to_say = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Ok }.into();
        }
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    // The daemon's log is as its configuration says.
    if !matches!(cli.command, Command::Daemon(_)) {
        log_to_standard_error();
    }
    let (result, json) = match &cli.command {
        Command::Daemon(options) => return daemon::main(options, &mut out),
        Command::Sm(options) => return sm::main(options, &mut out),
        // Its exit code may be that of the command it ran.
        Command::Serve(options) => return serve::main(options, &mut out),
        Command::Mount(options) => return mount::main(options, &mut out),
        Command::Umount(options) => (umount::run(options, &mut out), options.json),
        Command::Export(options) => (export::run(options, &mut out), options.json),
        Command::Create(options) => (create::run(options, &mut out), options.json),
        Command::Info(options) => (info::run(options, &mut out), options.json),
        Command::Map(options) => (map::run(options, &mut out), options.json),
        Command::Check(options) => (check::run(options, &mut out), options.json),
        Command::Sr(options) => (sr::run(options, &mut out), options.json()),
        Command::Vdi(options) => (vdi::run(options, &mut out), options.json()),
        Command::Bench(options) => (bench(options, &mut out), options.json),
    };
    let result = result.and_then(|exit| Ok(out.flush().map(|()| exit)?));
    match result {
        Ok(exit) => exit.into(),
        Err(failure) => failure.report(json, &mut out).into(),
    }
}

/// Events go to standard error; the environment variable ORLOP_LOG says which (default: info).
fn log_to_standard_error() {
    let filter = EnvFilter::try_from_env("ORLOP_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .init();
}

fn bench(options: &BenchOptions, out: &mut dyn Write) -> Result<Exit, Failure> {
    let verdict = crate::bench::run(options, out).map_err(|error| {
        let misused = error.downcast_ref::<crate::bench::Misused>();
        let usage = misused.map(|misused| Failure::usage(misused.to_string(), ""));
        usage.unwrap_or_else(|| Failure::other(&error))
    })?;
    Ok(if verdict.exit_status() == 0 { Exit::Ok } else { Exit::Failed })
}

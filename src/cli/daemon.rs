//! `orlop daemon`: reads the configuration, begins the log, and lives until a signal.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::json;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use super::output::{Exit, Failure, SCHEMA_VERSION};
use crate::daemon::{
    self, Config, ConfigError, DaemonError, HomeError, LogFormat, Overrides, Settings,
};

/// Says what is logged, over what the configuration says.
const LEVEL_VARIABLE: &str = "ORLOP_LOG";
/// What is logged when nobody says.
const USUAL_LEVEL: &str = "info";

/// Serve storage repositories until told to stop.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  orlop daemon                              state in /var/lib/orlop, sockets in /run/orlop
  orlop daemon --state-dir /srv/orlop       everything below one directory, any user
  orlop daemon --config orlop.toml --check-config

Without --config and --state-dir, /etc/orlop/orlop.toml is read if it is there. SIGTERM and SIGINT
make everything durable and end it; what is attached is attached again by the next start. SIGHUP
reads the configuration again.")]
pub(super) struct DaemonOptions {
    /// A configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Keep everything below this directory: state, sockets (run/) and mounts (vdi/, mounts/)
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The management socket
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Serve attached VDIs over NBD only, not as files
    #[arg(long)]
    no_fuse: bool,
    /// How the log, on standard error, is written
    #[arg(long, value_enum, value_name = "FORMAT")]
    log_format: Option<FormatArg>,
    /// Read the configuration, say what it comes to, and end
    #[arg(long)]
    check_config: bool,
    /// Print what --check-config says, and errors, as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FormatArg {
    /// Lines for people
    Text,
    /// A JSON object on each line
    Json,
}

/// How much of something is logged.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Changes what is logged while it is being logged.
type Level = reload::Handle<EnvFilter, Registry>;

/// Runs the daemon and says how it ended.
pub(super) fn main(options: &DaemonOptions, out: &mut dyn Write) -> ExitCode {
    let done = if options.check_config { check(options, out) } else { run(options) };
    match done {
        Ok(()) => Exit::Ok.into(),
        Err(failure) => failure.report(options.json, out).into(),
    }
}

fn run(options: &DaemonOptions) -> Result<(), Failure> {
    let overrides = options.overrides()?;
    let (_, settings) = options.settings(&overrides)?;
    let level = log(&settings)?;
    let mut reload = || -> Result<Vec<&'static str>, String> {
        let (_, again) = options.settings(&overrides).map_err(|failure| failure.to_string())?;
        let filter = filter(&again).map_err(|failure| failure.to_string())?;
        level.reload(filter).map_err(|error| error.to_string())?;
        Ok(settings.changed(&again))
    };
    daemon::run(&settings, &mut reload).map_err(failure)
}

/// What the configuration comes to.
fn check(options: &DaemonOptions, out: &mut dyn Write) -> Result<(), Failure> {
    let (_, settings) = options.settings(&options.overrides()?)?;
    filter(&settings)?;
    let facts = settings.facts();
    if options.json {
        let facts: serde_json::Map<String, serde_json::Value> =
            facts.into_iter().map(|(key, value)| (key.to_owned(), json!(value))).collect();
        writeln!(out, "{}", json!({ "schema_version": SCHEMA_VERSION, "settings": facts }))?;
    } else {
        for (key, value) in facts {
            writeln!(out, "{key} = {value}")?;
        }
    }
    Ok(out.flush()?)
}

impl DaemonOptions {
    fn overrides(&self) -> Result<Overrides, Failure> {
        let whole = |path: &Option<PathBuf>| match path {
            None => Ok(None),
            Some(path) => std::path::absolute(path).map(Some).map_err(|error| {
                Failure::usage(format!("{}: {error}", path.display()), "name a path")
            }),
        };
        Ok(Overrides {
            state_dir: whole(&self.state_dir)?,
            socket: whole(&self.socket)?,
            no_fuse: self.no_fuse,
            log_format: self.log_format.map(|format| match format {
                FormatArg::Text => LogFormat::Text,
                FormatArg::Json => LogFormat::Json,
            }),
        })
    }

    fn settings(&self, overrides: &Overrides) -> Result<(Config, Settings), Failure> {
        let config = Config::find(self.config.as_deref(), overrides).map_err(wrong)?;
        let settings = config.settings(overrides).map_err(wrong)?;
        Ok((config, settings))
    }
}

/// Begins the log. The environment's word on what is logged goes over the configuration's.
fn log(settings: &Settings) -> Result<Level, Failure> {
    let (filter, level) = reload::Layer::new(filter(settings)?);
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_target(false);
    let layer = match settings.log_format {
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
        LogFormat::Text => {
            let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            lines.with_ansi(colour).boxed()
        }
    };
    tracing_subscriber::registry().with(filter).with(layer).init();
    Ok(level)
}

/// What is logged. The configuration is looked at also where the environment goes over it.
fn filter(settings: &Settings) -> Result<EnvFilter, Failure> {
    let configured = settings.log_level.as_deref().unwrap_or(USUAL_LEVEL);
    let filter = parsed("log.level", configured)?;
    match std::env::var(LEVEL_VARIABLE).ok().filter(|set| !set.is_empty()) {
        Some(set) => parsed(LEVEL_VARIABLE, &set),
        None => Ok(filter),
    }
}

fn parsed(from: &str, text: &str) -> Result<EnvFilter, Failure> {
    let wrong = |why: String| {
        let hint = "write a level (off, error, warn, info, debug, trace) or directives such as \
                    'info,orlop::sr=debug'";
        Failure::usage(format!("{from} = {text:?}: {why}"), hint)
    };
    // The parser takes a misspelt level for the name of something to be logged, and logs nothing.
    let levels = text.split(',').map(|directive| directive.rsplit('=').next().unwrap_or_default());
    if let Some(level) = levels.map(str::trim).find(|level| !LEVELS.contains(level)) {
        return Err(wrong(format!("{level:?} is no level")));
    }
    EnvFilter::try_new(text).map_err(|error| wrong(error.to_string()))
}

fn wrong(error: ConfigError) -> Failure {
    let hint = match &error {
        ConfigError::Unreadable { .. } => "name a file that is there, and that this user may read",
        ConfigError::Wrong { .. } => "packaging/orlop.toml shows every value there is",
        ConfigError::Value { .. } => "correct it, or leave it out",
    };
    let exit = match &error {
        ConfigError::Unreadable { error, .. } if error.kind() == io::ErrorKind::NotFound => {
            Exit::NotFound
        }
        _ => Exit::Usage,
    };
    Failure::new(exit, "configuration", error.to_string(), hint.to_owned())
}

fn failure(error: DaemonError) -> Failure {
    let (exit, code, hint) = match &error {
        DaemonError::Home(HomeError::Taken { .. }) => {
            (Exit::Busy, "busy", "end that one first, or give this one its own --state-dir")
        }
        DaemonError::Home(HomeError::Identity { .. }) => {
            (Exit::Failed, "identity", "restore the file, or remove it: then this is another host")
        }
        DaemonError::Home(HomeError::Io { error, .. })
            if error.kind() == io::ErrorKind::PermissionDenied =>
        {
            (Exit::Failed, "not-permitted", "run it as root, or with a --state-dir of your own")
        }
        DaemonError::Socket { error, .. } if error.kind() == io::ErrorKind::AddrInUse => {
            (Exit::Busy, "busy", "end who listens there, or name another with --socket")
        }
        DaemonError::Live { error, .. } if error.is_taken() => {
            (Exit::Busy, "busy", "end who listens there, or configure another NBD socket")
        }
        _ => (Exit::Failed, "failed", ""),
    };
    Failure::new(exit, code, error.to_string(), hint.to_owned())
}

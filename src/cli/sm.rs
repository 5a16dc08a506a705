//! The Storage Manager API on command lines: `orlop sm DRIVER DCONF-XML COMMAND...`, and links to
//! orlop whose names end in `SR`, which xapi runs as plugins. Words go to the daemon's socket, and
//! what comes back is printed; nothing is understood here.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::ask;
use crate::api::client;
use crate::control::Code;
use crate::dialect::argv::{self, Printed};

/// What both dialects are.
const XML: &str = "text/xml";
/// What ends a plugin's name.
const PLUGIN: &str = "SR";

/// The original command-line form of the Storage Manager API.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  orlop sm file '<dconf><location>/srv/sr</location></dconf>' sr_attach SR-UUID
  orlop sm file \"$dconf\" vdi_create SR-UUID VDI-UUID SIZE

XML on standard output, the error's number as exit status, its text on standard error.")]
pub(super) struct SmOptions {
    /// The daemon's socket [default: $ORLOP_SOCKET, or /run/orlop/api.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The type of the SR
    driver: String,
    /// Its parameters: an XML document with one element for each
    dconf: String,
    /// The command, the SR's uuid and what the command needs
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// Relays a call.
pub(super) fn main(options: &SmOptions, out: &mut dyn Write) -> ExitCode {
    let socket = ask::socket(options.socket.as_deref());
    let printed = match argv::call(&options.dconf, &options.words) {
        Ok(body) => match client::post(&socket, &format!("/sm/{}", options.driver), XML, &body) {
            Ok(answer) => argv::printed(&answer),
            Err(error) => Printed::failed(Code::Eio, error),
        },
        Err(printed) => printed,
    };
    let told = out.write_all(printed.stdout.as_bytes()).and_then(|()| out.flush());
    // Where standard error takes no word, the exit status still tells.
    let _untold = io::stderr().lock().write_all(printed.stderr.as_bytes());
    if told.is_err() {
        return ExitCode::from(Code::Eio.number());
    }
    ExitCode::from(printed.status)
}

/// The type of SR that this process was started as a plugin for.
pub(super) fn plugin(arguments: &[OsString]) -> Option<String> {
    let name = Path::new(arguments.first()?).file_name()?.to_str()?;
    if !name.ends_with(PLUGIN) {
        return None;
    }
    argv::plugin_driver(name)
}

/// Relays a plugin's only word, and prints the answer. Ends with 0 as soon as something is printed:
/// xapi reads errors from the answer.
pub(super) fn relay(driver: &str, arguments: &[OsString]) -> ExitCode {
    let answer = match arguments.get(1..) {
        Some([word]) => match word.to_str() {
            Some(call) => {
                let route = format!("/smapi/{driver}");
                client::post(&ask::socket(None), &route, XML, call.as_bytes())
                    .unwrap_or_else(|error| argv::plugin_unanswered(&error.to_string()))
            }
            None => argv::plugin_misused("the call is no text"),
        },
        _ => argv::plugin_misused("a plugin is called with one word, an XML-RPC call"),
    };
    let mut out = io::stdout().lock();
    match out.write_all(&answer).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

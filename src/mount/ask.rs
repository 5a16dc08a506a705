//! Questions to a mount whose server may be stopped, dead, or somebody else's.
//!
//! A program asks, not this process: whoever waits for a server that is stopped may not be killed
//! either, and this process is to come to its end and say why. Refuses to wait for ever.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::tool::{self, LONG_PATIENCE, ToolError};

/// How long a mount may take to say who serves it.
const ANSWER: Duration = Duration::from_secs(10);
/// How programs tell that a server is dead or dying: the errors NOTCONN, CONNABORTED and CANCELED
/// in the words of the GNU C library and of musl.
const DEAD: [&str; 5] = [
    "Transport endpoint is not connected",
    "Socket not connected",
    "Software caused connection abort",
    "Connection aborted",
    "Operation canceled",
];
/// The same of ACCES and NOENT.
const DENIED: &str = "Permission denied";
const ABSENT: &str = "No such file";

/// What a mount says.
#[derive(Debug)]
pub(super) enum Known {
    /// Its server is dead.
    Dead,
    /// It is described so.
    Described(Value),
    /// It has no description here, as a tree of many disks.
    Bare,
    /// This user may not look.
    Denied,
}

/// Asks a mount of ours about itself.
///
/// # Errors
/// It does not answer.
pub(super) fn look(at: &Path) -> Result<Known, ToolError> {
    if is_dead(at)? {
        return Ok(Known::Dead);
    }
    let info = at.join("info.json");
    match tool::run_for(ANSWER, "cat", &[OsStr::new("--"), info.as_os_str()]) {
        Ok(text) => Ok(Known::Described(serde_json::from_str(&text).unwrap_or_default())),
        Err(ToolError::Failed { said, .. }) if said.contains(DENIED) => Ok(Known::Denied),
        Err(ToolError::Failed { said, .. }) if said.contains(ABSENT) => Ok(Known::Bare),
        Err(ToolError::Failed { said, .. }) if is_death(&said) => Ok(Known::Dead),
        Err(ToolError::Missing { program }) => directly(program, std::fs::read(info)),
        Err(error) => Err(error),
    }
}

/// Without the program.
fn directly(program: &'static str, read: io::Result<Vec<u8>>) -> Result<Known, ToolError> {
    match read {
        Ok(text) => Ok(Known::Described(serde_json::from_slice(&text).unwrap_or_default())),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(Known::Denied),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Known::Bare),
        Err(error) => Err(ToolError::System { program, error }),
    }
}

/// Whether the server of a mount of ours is dead.
///
/// # Errors
/// It does not answer.
pub(super) fn is_dead(at: &Path) -> Result<bool, ToolError> {
    // The file system's figures: asked of the server every time.
    let words = [OsStr::new("--file-system"), OsStr::new("--"), at.as_os_str()];
    match tool::run_for(ANSWER, "stat", &words) {
        Ok(_) => Ok(false),
        Err(ToolError::Failed { said, .. }) => Ok(is_death(&said)),
        Err(ToolError::Missing { .. }) => Ok(orlop_fuse::is_stale(at)),
        Err(error) => Err(error),
    }
}

fn is_death(said: &str) -> bool {
    DEAD.iter().any(|words| said.contains(words))
}

/// Makes a file durable.
///
/// # Errors
/// It is not.
pub(super) fn flush(file: &Path) -> Result<(), ToolError> {
    let words = [OsStr::new("--"), file.as_os_str()];
    match tool::run_for(LONG_PATIENCE, "sync", &words) {
        Ok(_) => Ok(()),
        Err(ToolError::Missing { program }) => {
            let done = File::open(file).and_then(|file| file.sync_all());
            done.map_err(|error| ToolError::System { program, error })
        }
        Err(error) => Err(error),
    }
}

/// Makes durable all that was written to the file system mounted there.
///
/// # Errors
/// It is not.
pub(super) fn flush_file_system(at: &Path) -> Result<(), ToolError> {
    let words = [OsStr::new("--file-system"), OsStr::new("--"), at.as_os_str()];
    match tool::run_for(LONG_PATIENCE, "sync", &words) {
        Ok(_) => Ok(()),
        Err(ToolError::Missing { program }) => {
            let done = File::open(at).and_then(|file| Ok(rustix::fs::syncfs(&file)?));
            done.map_err(|error| ToolError::System { program, error })
        }
        Err(error) => Err(error),
    }
}

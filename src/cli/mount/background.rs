//! Going to the background: the command starts itself again, hands on what that process says until
//! the mount answers, and ends as that one did or with 0.
//!
//! Not a fork: threads and locks of this process would be in an unknown state in the other one.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use super::super::output::{Exit, Failure};
use crate::mount::BACKGROUND_MARK;

/// Its last byte on standard output when the mount answers (ASCII ACK): it cannot be part of what
/// it says.
const ANSWERS: u8 = 0x06;
/// What systemd tells a unit whose standard error is its journal.
const JOURNAL: &str = "JOURNAL_STREAM";

/// What the kernel calls this process, which it started as /proc/self/exe: for whoever is told who
/// has a file open.
const NAME: &CStr = c"orlop";

/// Takes the program's name again in the process that serves in the background.
pub(super) fn take_name() {
    if is_there() && rustix::thread::set_name(NAME).is_err() {
        // Nothing but what others call it depends on that.
        tracing::debug!("the kernel goes on calling this process exe");
    }
}

/// Whether this is the process that serves in the background.
pub(super) fn is_there() -> bool {
    std::env::var_os(BACKGROUND_MARK).is_some()
}

/// Starts the other process, and waits until its mount answers or it has ended.
pub(super) fn launch(out: &mut dyn Write) -> Result<ExitCode, Failure> {
    let failed = |error: io::Error| {
        Failure::other(&anyhow::Error::from(error).context("cannot go to the background"))
    };
    let mut arguments = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    command.args(arguments).env(BACKGROUND_MARK, "1").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let mut said = Vec::new();
    if let Some(mut pipe) = child.stdout.take() {
        pipe.read_to_end(&mut said).map_err(failed)?;
    }
    let answers = said.pop_if(|last| *last == ANSWERS).is_some();
    out.write_all(&said)?;
    out.flush()?;
    if answers {
        return Ok(Exit::Ok.into());
    }
    let status = child.wait().map_err(failed)?;
    // A signal has no code of its own here; the log has told of anything else.
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.filter(|code| *code != 0).unwrap_or(Exit::Failed.status()).into())
}

/// What is to happen when the mount answers.
pub(super) struct Stage {
    background: bool,
    log: Option<File>,
}

impl Stage {
    pub(super) fn new(log: Option<&Path>) -> Result<Self, Failure> {
        // Opened now: later nobody could be told that it cannot be.
        let open = |path: &Path| {
            File::options().append(true).create(true).open(path).map_err(|error| {
                Failure::usage(format!("--log {}: {error}", path.display()), "name another file")
            })
        };
        Ok(Self { background: is_there(), log: log.map(open).transpose()? })
    }

    /// The mount answers, and what is to be said is in `out`.
    pub(super) fn ready(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if self.background {
            out.write_all(&[ANSWERS])?;
        }
        out.flush()?;
        let nowhere = File::options().read(true).write(true).open("/dev/null")?;
        if self.background {
            // Nobody's terminal, nobody's directory: it is to outlive both.
            rustix::process::setsid()?;
            std::env::set_current_dir("/")?;
            rustix::stdio::dup2_stdout(&nowhere)?;
        }
        if let Some(log) = self.log.take() {
            rustix::stdio::dup2_stderr(&log)?;
        } else if self.background && std::env::var_os(JOURNAL).is_none() {
            rustix::stdio::dup2_stderr(&nowhere)?;
        }
        Ok(())
    }
}

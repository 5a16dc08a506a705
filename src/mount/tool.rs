//! Programs of the system that are run for a mount: losetup, mount, umount, sync, cat, stat.
//!
//! They are also how a server looks at its own mount. A thread that waits for a request which its
//! own process was to answer cannot be killed: /dev/fuse closes with the process's last thread, and
//! that one waits for it. A child that waits is let go when the server dies.
//!
//! Refuses to wait for ever, and to let a program see more of this process than it needs.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

/// How long a program may take. They wait for the disk, and a disk may be slow.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// How long one may take that writes all that was kept in memory.
pub(super) const LONG_PATIENCE: Duration = Duration::from_secs(600);
/// Of its output, as much as is read.
const OUTPUT_MAX: u64 = 16 << 20;
/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The variable that tells a process that it is the one in the background.
pub const BACKGROUND_MARK: &str = "ORLOP_MOUNT_STAGE";

/// Why a program did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It is not installed.
    #[error("{program} is not installed (it is part of util-linux or coreutils)")]
    Missing {
        /// The program.
        program: &'static str,
    },
    /// It could not be started or watched.
    #[error("{program} could not be run: {error}")]
    System {
        /// The program.
        program: &'static str,
        /// Why.
        error: io::Error,
    },
    /// It said no.
    #[error("{program}: {said}")]
    Failed {
        /// The program.
        program: &'static str,
        /// What it said, or its status.
        said: String,
    },
    /// It did not come to an end.
    #[error("{program} did not end within {} seconds", after.as_secs())]
    Hangs {
        /// The program.
        program: &'static str,
        /// How long it had.
        after: Duration,
    },
}

/// Runs a program to its end; gives its output.
///
/// # Errors
/// [`ToolError`].
pub(super) fn run(program: &'static str, arguments: &[&OsStr]) -> Result<String, ToolError> {
    run_for(PATIENCE, program, arguments)
}

/// The same, with a patience of its own.
///
/// # Errors
/// [`ToolError`].
pub(super) fn run_for(
    after: Duration,
    program: &'static str,
    arguments: &[&OsStr],
) -> Result<String, ToolError> {
    let failed = |error| ToolError::System { program, error };
    let mut command = Command::new(program);
    // What the program starts is not this process's background.
    command.args(arguments).env("LC_ALL", "C").env_remove(BACKGROUND_MARK);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A thread of its own: what it gives up for its child, this one keeps (see `guard`).
    let started = std::thread::scope(|scope| {
        let start = move || {
            let _unsupported = rustix::process::configure_io_flusher_behavior(false);
            command.spawn()
        };
        scope.spawn(start).join().unwrap_or_else(|_| Err(io::Error::other("the thread ended")))
    });
    let mut child = started.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => ToolError::Missing { program },
        _ => failed(error),
    })?;
    let output = read_along(child.stdout.take());
    let until = Instant::now() + after;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < until => std::thread::sleep(LOOK_EVERY),
            Ok(None) => {
                give_up(child);
                return Err(ToolError::Hangs { program, after });
            }
            Err(error) => return Err(failed(error)),
        }
    };
    if status.success() {
        let out = output.recv_timeout(after);
        let out = out.unwrap_or_else(|_| Err(io::Error::other("its output has no end")));
        return out.map(|out| out.trim().to_owned()).map_err(failed);
    }
    // It says less than a pipe holds, so it has not had to wait.
    let mut said = Vec::new();
    let _unreadable = child.stderr.take().map(|mut pipe| pipe.read_to_end(&mut said));
    let said = String::from_utf8_lossy(&said);
    let said = said.trim().replace('\n', "; ");
    Err(ToolError::Failed {
        program,
        said: if said.is_empty() { status.to_string() } else { said },
    })
}

/// Reads what a program says while it runs: it may be more than a pipe holds.
fn read_along(pipe: Option<ChildStdout>) -> Receiver<io::Result<String>> {
    let (whole, is_there) = mpsc::channel();
    std::thread::spawn(move || {
        let mut out = Vec::new();
        let read = pipe.map_or(Ok(0), |pipe| pipe.take(OUTPUT_MAX).read_to_end(&mut out));
        // Nobody listens where the program failed. A path in it may be no text.
        let _ = whole.send(read.map(|_| String::from_utf8_lossy(&out).into_owned()));
    });
    is_there
}

/// One that waits for a dead disk cannot even be killed at once; nobody waits for it.
fn give_up(mut child: Child) {
    let _ = child.kill();
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::{ToolError, run};

    #[test]
    fn a_program_tells_its_answer_or_why_not() {
        assert_eq!(run("echo", &[OsStr::new("a"), OsStr::new("b")]).unwrap(), "a b");
        let long = run("seq", &[OsStr::new("20000")]).unwrap();
        assert!(long.len() > 100_000 && long.ends_with("20000"), "more than a pipe holds");
        let said = run("sh", &[OsStr::new("-c"), OsStr::new("echo no >&2; exit 3")]).unwrap_err();
        assert_eq!(said.to_string(), "sh: no");
        let absent = run("orlop-no-such-program", &[]).unwrap_err();
        assert!(matches!(absent, ToolError::Missing { .. }), "{absent}");
    }
}

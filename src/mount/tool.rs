//! Programs of the system that are run for a mount: losetup, mount, umount.
//!
//! Refuses to wait for ever, and to let a program see more of this process than it needs.

use std::io::{self, Read};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a program may take. They wait for the disk, and a disk may be slow.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The variable that tells a process that it is the one in the background.
pub const BACKGROUND_MARK: &str = "ORLOP_MOUNT_STAGE";

/// Why a program did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It is not installed.
    #[error("{program} is not installed (it is part of util-linux)")]
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
    #[error("{program} did not end within {} seconds", PATIENCE.as_secs())]
    Hangs {
        /// The program.
        program: &'static str,
    },
}

/// Runs a program to its end; gives its output.
///
/// # Errors
/// [`ToolError`].
pub(super) fn run(
    program: &'static str,
    arguments: &[&std::ffi::OsStr],
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
    let until = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < until => std::thread::sleep(LOOK_EVERY),
            Ok(None) => {
                give_up(child);
                return Err(ToolError::Hangs { program });
            }
            Err(error) => return Err(failed(error)),
        }
    };
    // Both say less than a pipe holds, so nobody has had to wait.
    let (mut out, mut said) = (String::new(), String::new());
    let told = child.stdout.take().map_or(Ok(0), |mut pipe| pipe.read_to_string(&mut out));
    told.map_err(failed)?;
    if status.success() {
        return Ok(out.trim().to_owned());
    }
    let _unreadable = child.stderr.take().map(|mut pipe| pipe.read_to_string(&mut said));
    let said = said.trim().replace('\n', "; ");
    Err(ToolError::Failed {
        program,
        said: if said.is_empty() { status.to_string() } else { said },
    })
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
        let said = run("sh", &[OsStr::new("-c"), OsStr::new("echo no >&2; exit 3")]).unwrap_err();
        assert_eq!(said.to_string(), "sh: no");
        let absent = run("orlop-no-such-program", &[]).unwrap_err();
        assert!(matches!(absent, ToolError::Missing { .. }), "{absent}");
    }
}

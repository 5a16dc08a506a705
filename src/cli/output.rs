//! How commands end: exit codes, errors for people and for programs, and sizes for people.
//!
//! An error says what, where, why and what to do. With `--json` it is an object on standard output,
//! where a program looks for the answer; else two lines on standard error.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::json;

use crate::image::{Cause, ImageError, LockError, Notice};

/// Version of the JSON of all commands here. A key may be added without raising it; none changes
/// its meaning or goes.
pub const SCHEMA_VERSION: u32 = 1;

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// As asked: 0.
    Ok,
    /// Something failed that has no code of its own: 1.
    Failed,
    /// The command line makes no sense: 2.
    Usage,
    /// What was named does not exist: 3.
    NotFound,
    /// Somebody else uses it: 4.
    Busy,
    /// A check found errors: 5.
    Corrupt,
    /// A check found errors, and repaired all of them: 6.
    Repaired,
    /// The daemon does not answer: 7.
    Unreachable,
    /// Not possible here, or not with this image: 8.
    Unsupported,
}

impl Exit {
    /// The exit status of the process.
    pub const fn status(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Busy => 4,
            Self::Corrupt => 5,
            Self::Repaired => 6,
            Self::Unreachable => 7,
            Self::Unsupported => 8,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.status())
    }
}

/// A command that did not get to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    exit: Exit,
    code: &'static str,
    message: String,
    hint: String,
}

impl Failure {
    /// A command line that makes no sense.
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, code: "usage", message: message.into(), hint: hint.into() }
    }

    /// A failure that nothing more is known about than its text.
    pub fn other(error: &anyhow::Error) -> Self {
        let message = format!("{error:#}");
        Self { exit: Exit::Failed, code: "failed", message, hint: String::new() }
    }

    /// A failure with a name of its own.
    pub fn new(exit: Exit, code: &'static str, message: String, hint: String) -> Self {
        Self { exit, code, message, hint }
    }

    /// The same after something that was done, said in words that go before.
    #[must_use]
    pub fn after(self, done: &str) -> Self {
        Self { message: format!("{done} {}", self.message), ..self }
    }

    /// Tells the user, and how the process ends.
    pub fn report(&self, json: bool, out: &mut dyn Write) -> Exit {
        if self.code == PIPE_CLOSED {
            // Whoever read the answer has seen enough; `orlop map | head` is no failure.
            return Exit::Ok;
        }
        let told = if json {
            writeln!(out, "{}", self.as_json()).and_then(|()| out.flush())
        } else {
            write!(io::stderr().lock(), "{self}")
        };
        // Where neither stream takes a word, the exit code still tells.
        drop(told);
        self.exit
    }

    fn as_json(&self) -> serde_json::Value {
        json!({
            "schema_version": SCHEMA_VERSION,
            "error": { "code": self.code, "message": self.message, "hint": self.hint },
        })
    }
}

const PIPE_CLOSED: &str = "pipe-closed";

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "orlop: {}", self.message)?;
        if self.hint.is_empty() { Ok(()) } else { writeln!(f, "orlop: hint: {}", self.hint) }
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        let exit = exit_of(&error.cause);
        Self { exit, code: error.code(), message: error.to_string(), hint: error.hint() }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let closed = error.kind() == io::ErrorKind::BrokenPipe;
        let code = if closed { PIPE_CLOSED } else { "output" };
        let message = format!("cannot write the answer: {error}");
        Self { exit: Exit::Failed, code, message, hint: String::new() }
    }
}

fn exit_of(cause: &Cause) -> Exit {
    match cause {
        Cause::NotFound | Cause::NoDirectory => Exit::NotFound,
        Cause::Io { error, .. } => match error.kind() {
            // A device in use, or a file that somebody executes or holds a lease on.
            io::ErrorKind::ResourceBusy
            | io::ErrorKind::ExecutableFileBusy
            | io::ErrorKind::WouldBlock => Exit::Busy,
            _ => Exit::Failed,
        },
        Cause::Lock(LockError::Held { .. } | LockError::Unshared { .. }) => Exit::Busy,
        Cause::Lock(LockError::Unavailable(_)) | Cause::NoDirect | Cause::NothingToCheck => {
            Exit::Unsupported
        }
        Cause::FormatUnknown
        | Cause::New(_)
        | Cause::SizeMissing
        | Cause::OwnParent
        | Cause::NameContradicts { .. }
        | Cause::AllowedDirectory(_) => Exit::Usage,
        _ => Exit::Failed,
    }
}

/// Notices for people, on standard error.
pub fn tell(notices: &[Notice]) {
    let mut stderr = io::stderr().lock();
    for notice in notices {
        // A notice nobody can read is no reason to fail.
        let _unread = writeln!(stderr, "orlop: note: {notice}");
    }
}

/// Notices for programs.
pub fn as_json(notices: &[Notice]) -> serde_json::Value {
    let objects = notices.iter().map(|notice| {
        json!({ "path": notice.path.display().to_string(), "message": notice.kind.to_string() })
    });
    objects.collect()
}

#[cfg(test)]
mod tests {
    use super::{Exit, Failure};

    #[test]
    fn a_failure_is_an_object_for_programs_and_two_lines_for_people() {
        let failure = Failure::usage("no such size", "write 4M");
        let mut out = Vec::new();
        assert_eq!(failure.report(true, &mut out), Exit::Usage);
        let object: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(object["error"]["code"], "usage");
        assert_eq!(object["error"]["hint"], "write 4M");
        assert_eq!(failure.to_string(), "orlop: no such size\norlop: hint: write 4M\n");
    }

    #[test]
    fn a_reader_who_leaves_early_is_no_failure() {
        let closed = Failure::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert_eq!(closed.report(false, &mut Vec::new()), Exit::Ok);
    }
}

//! What is left of this process for somebody who has taken it over through a hostile image or a
//! hostile client: no privileges, no files but those being served, no way to start a program.
//!
//! Every step is for a process that has opened what it needs. Refuses to guess what that is: the
//! caller says which paths are still wanted, and in which order the steps come:
//!
//! 1. [`Captive::spawn`], while nothing is confined: a child inherits every restriction.
//! 2. Sockets are bound; [`assume`] another user if asked to; images are opened.
//! 3. [`drop_privileges`], then [`confine_files`]: both bind the calling thread and the threads it
//!    starts, so they come before any other thread.
//! 4. Threads, their rings, and the runtime start.
//! 5. [`confine_calls`], for all threads at once.
//!
//! io_uring passes by the call filter: what a ring may do is registered with the ring itself
//! (`host`), and no new ring can be made after step 5. Landlock holds for rings as well.

mod calls;
mod captive;
mod files;
mod list;
mod privileges;

use std::fmt;
use std::io;
use std::path::PathBuf;

pub use calls::{Calls, confine_calls};
pub use captive::Captive;
pub use files::{Allowed, confine_files};
pub use privileges::{User, UserError, assume, drop_privileges};

/// How much of the sandbox is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// As much as the system offers; what is missing is said.
    #[default]
    On,
    /// All of it, or no service.
    Required,
    /// None.
    Off,
}

/// A piece of the sandbox this system does not give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// What stays possible without it.
    pub what: &'static str,
    /// What the system said, and what would help.
    pub why: String,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.what, self.why)
    }
}

/// What the steps achieved so far.
#[must_use = "what is missing must be told"]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    held: Vec<String>,
    lacks: Vec<Lack>,
}

impl Report {
    /// What is in force, one phrase each.
    #[must_use]
    pub fn held(&self) -> &[String] {
        &self.held
    }

    /// What the system does not give.
    #[must_use]
    pub fn lacks(&self) -> &[Lack] {
        &self.lacks
    }

    /// Adds what a later step achieved.
    pub fn add(&mut self, later: Self) {
        self.held.extend(later.held);
        self.lacks.extend(later.lacks);
    }

    /// Writes it to the log, once: what holds as information, what is missing as a warning.
    pub fn tell(&self) {
        if !self.held.is_empty() {
            tracing::info!("sandbox: {}", self.held.join("; "));
        }
        if !self.lacks.is_empty() {
            tracing::warn!(
                "the sandbox is incomplete: {}; --sandbox required refuses to serve like this, \
                 --sandbox off does without a warning",
                listed(&self.lacks)
            );
        }
    }

    fn hold(&mut self, what: impl Into<String>) {
        self.held.push(what.into());
    }

    fn lack(&mut self, what: &'static str, why: impl Into<String>) {
        self.lacks.push(Lack { what, why: why.into() });
    }

    /// The report, unless everything was required and something is missing.
    fn judged(self, mode: Mode) -> Result<Self, SandboxError> {
        if mode == Mode::Required && !self.lacks.is_empty() {
            return Err(SandboxError::Lacking { lacks: self.lacks });
        }
        Ok(self)
    }
}

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Everything was required, and the system does not give it.
    #[error(
        "the sandbox is required, but this system cannot give all of it: {}; \
         --sandbox on serves without the missing pieces",
        listed(lacks)
    )]
    Lacking {
        /// What is missing.
        lacks: Vec<Lack>,
    },
    /// A path that is to stay usable is not.
    #[error("the sandbox cannot keep {} usable: {source}", path.display())]
    Path {
        /// Which one.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Other threads would stay outside. A defect of the caller.
    #[error("{step} would not hold for the {others} other threads that run already")]
    TooLate {
        /// The step that came too late.
        step: &'static str,
        /// Threads beside the calling one.
        others: usize,
    },
    /// The process could not become another user.
    #[error("cannot become {user}: {what}: {source}")]
    User {
        /// Who it should become.
        user: String,
        /// The step that failed.
        what: &'static str,
        /// What the system says.
        source: io::Error,
    },
}

fn listed(lacks: &[Lack]) -> String {
    lacks.iter().map(Lack::to_string).collect::<Vec<_>>().join(", ")
}

/// Refuses when other threads exist: a step that binds one thread would leave them free.
fn refuse_company(step: &'static str) -> Result<(), SandboxError> {
    // Without /proc nobody can count; the order of the calls then rests on the caller alone.
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return Ok(()) };
    match threads.count() {
        0 | 1 => Ok(()),
        count => Err(SandboxError::TooLate { step, others: count - 1 }),
    }
}

#[cfg(test)]
mod tests {
    use super::{Mode, Report, SandboxError};

    #[test]
    fn what_is_missing_is_an_error_only_where_everything_is_required() {
        let mut report = Report::default();
        report.lack("any file can be opened", "no Landlock");
        assert!(report.clone().judged(Mode::On).is_ok());
        let error = report.clone().judged(Mode::Required).unwrap_err();
        assert!(matches!(&error, SandboxError::Lacking { lacks } if lacks == report.lacks()));
        let said = error.to_string();
        assert!(said.contains("any file can be opened (no Landlock)"), "{said}");
        assert!(said.contains("--sandbox on"), "{said}");
    }

    #[test]
    fn a_test_runner_has_threads_and_no_step_for_one_thread_hides_that() {
        let error = super::refuse_company("the step").unwrap_err();
        assert!(matches!(error, SandboxError::TooLate { others: 1.., .. }), "{error}");
    }
}

//! What a case is, how it ends, and the runner of a table of them.
//!
//! The runner judges nothing itself: a case's function tells whether its sentence holds.

use std::fmt::Display;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::world::World;

/// How the protocol says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// Breaking it is a failure.
    Must,
    /// Breaking it is a warning.
    Should,
}

/// Where a case makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Anywhere,
    /// On a server without TLS only: it is about what is said in the clear.
    Plain,
    /// On a server that insists on TLS only.
    Tls,
}

/// Why a case did not simply pass.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The sentence does not hold.
    Broken(String),
    /// The server under test has no such thing; orlop must have everything.
    Lacking(String),
}

impl<T: Display> From<T> for Stop {
    fn from(what: T) -> Self {
        Self::Broken(what.to_string())
    }
}

/// What a step of a case returns.
pub(crate) type Outcome<T = ()> = Result<T, Stop>;

/// One sentence of the protocol and the function that checks it.
pub(crate) struct Case {
    /// Unique, and stable from run to run.
    pub(crate) id: &'static str,
    pub(crate) level: Level,
    pub(crate) place: Place,
    /// The section of the protocol's text.
    pub(crate) section: &'static str,
    /// The sentence, in our words.
    pub(crate) rule: &'static str,
    pub(crate) check: fn(&World) -> Outcome,
}

impl Case {
    /// The same, on servers without TLS only.
    pub(crate) const fn plain(mut self) -> Self {
        self.place = Place::Plain;
        self
    }

    /// The same, on servers that insist on TLS only.
    pub(crate) const fn tls(mut self) -> Self {
        self.place = Place::Tls;
        self
    }
}

/// A rule that has no exception.
pub(crate) const fn must(
    id: &'static str,
    section: &'static str,
    rule: &'static str,
    check: fn(&World) -> Outcome,
) -> Case {
    Case { id, level: Level::Must, place: Place::Anywhere, section, rule, check }
}

/// A rule that is broken only with a good reason; we have none.
pub(crate) const fn should(
    id: &'static str,
    section: &'static str,
    rule: &'static str,
    check: fn(&World) -> Outcome,
) -> Case {
    Case { id, level: Level::Should, place: Place::Anywhere, section, rule, check }
}

/// Stops a case unless something holds.
macro_rules! ensure {
    ($holds:expr, $($words:tt)+) => {
        if !$holds {
            return Err($crate::case::Stop::Broken(format!($($words)+)));
        }
    };
}
pub(crate) use ensure;

/// The counts of a run.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: Vec<&'static str>,
    pub(crate) warned: Vec<&'static str>,
    pub(crate) lacking: Vec<&'static str>,
}

/// Runs all cases that make sense in this world, and says how each ended.
pub(crate) fn run(world: &World, tables: &[&[Case]]) -> Tally {
    let mut tally = Tally::default();
    let here = if world.disk.connector.is_tls() { Place::Tls } else { Place::Plain };
    let wanted = std::env::var("CONFORMANCE_ONLY").unwrap_or_default();
    for case in tables.iter().copied().flatten() {
        let foreign = case.place != Place::Anywhere && case.place != here;
        if foreign || !case.id.starts_with(&wanted) {
            continue;
        }
        let ended = catch_unwind(AssertUnwindSafe(|| (case.check)(world)));
        let ended = ended.unwrap_or_else(|_| Err(Stop::Broken("the case itself fell over".into())));
        let (word, why) = match ended {
            Ok(()) => {
                tally.passed += 1;
                ("ok  ", String::new())
            }
            Err(Stop::Lacking(what)) => {
                tally.lacking.push(case.id);
                ("n/a ", format!(": not here: {what}"))
            }
            Err(Stop::Broken(what)) if case.level == Level::Must => {
                tally.failed.push(case.id);
                ("FAIL", format!(": {what}\n     [{}] {}", case.section, case.rule))
            }
            Err(Stop::Broken(what)) => {
                tally.warned.push(case.id);
                ("WARN", format!(": {what}\n     [{}] {}", case.section, case.rule))
            }
        };
        println!("{word} {}{why}", case.id);
    }
    println!(
        "{}: {} cases pass, {} fail, {} warn, {} not to be had",
        world.name,
        tally.passed,
        tally.failed.len(),
        tally.warned.len(),
        tally.lacking.len()
    );
    tally
}

/// A broken rule that is about I/O, told with what was being done.
pub(crate) fn during<T>(what: &str, result: io::Result<T>) -> Outcome<T> {
    result.map_err(|error| Stop::Broken(format!("{what}: {error}")))
}

//! Which operation of a simulated host fails, how, and how often.
//!
//! Refuses to be random: a plan is data, so a failing life can be told and replayed.

use crate::engine::effect::IoError;

/// The kinds of operation that may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Any of them.
    Any,
    /// Reads.
    Read,
    /// Writes, durable or not.
    Write,
    /// Zeroing and punching.
    Zero,
    /// Syncs.
    Sync,
}

/// One planned failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What fails.
    pub target: Target,
    /// How many of them succeed first.
    pub after: u32,
    /// What the system says.
    pub error: IoError,
    /// Whether every later one fails too.
    pub sticky: bool,
}

/// The failures of one life and how far they have come.
#[derive(Clone, Debug, Default)]
pub struct FaultPlan {
    faults: Vec<(Fault, u32)>,
    struck: u32,
}

impl FaultPlan {
    /// A plan of these failures.
    pub fn new(faults: &[Fault]) -> Self {
        Self { faults: faults.iter().map(|fault| (*fault, 0)).collect(), struck: 0 }
    }

    /// How many operations failed so far.
    pub fn struck(&self) -> u32 {
        self.struck
    }

    /// Whether the next operation of this kind fails.
    pub fn strike(&mut self, kind: Target) -> Option<IoError> {
        let mut hit = None;
        for (fault, count) in &mut self.faults {
            if fault.target != Target::Any && fault.target != kind {
                continue;
            }
            let due = *count == fault.after || (fault.sticky && *count > fault.after);
            *count += 1;
            if due {
                hit = hit.or(Some(fault.error));
            }
        }
        self.struck += u32::from(hit.is_some());
        hit
    }
}

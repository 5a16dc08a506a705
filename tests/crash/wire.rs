//! Between a disk and its host: passes effects and completions on, or lies as a bug says.
//!
//! Refuses to lie without being told to.

use std::collections::VecDeque;

use orlop::engine::effect::{Effect, EffectId, LeafFile, Outcome, Source};
use orlop::host::sim::host::SimHost;

use crate::bugs::Bug;

/// Names of the wire's own effects start here; a disk's are small.
const OWN: u32 = 1 << 24;

/// The wire.
#[derive(Debug)]
pub(crate) struct Wire {
    bug: Option<Bug>,
    /// Completions made up by a bug.
    early: VecDeque<(EffectId, Outcome)>,
    syncs: Vec<(EffectId, LeafFile)>,
    /// Whether a write of a wave came since the last sync.
    since_sync: u32,
    own: u32,
}

impl Wire {
    /// A wire with this bug.
    pub(crate) fn new(bug: Option<Bug>) -> Self {
        Self { bug, early: VecDeque::new(), syncs: Vec::new(), since_sync: 0, own: OWN }
    }

    /// Hands an effect to the host.
    pub(crate) fn start(&mut self, effect: Effect, host: &mut SimHost) {
        let Some(bug) = self.bug else { return host.start(effect) };
        match effect {
            Effect::Sync { id, file } => {
                self.syncs.push((id, file));
                if self.drops_sync(bug) {
                    self.early.push_back((id, Outcome::Done));
                } else {
                    host.start(Effect::Sync { id, file });
                }
            }
            Effect::Zero { id, .. } | Effect::Punch { id, .. } if bug == Bug::ZeroForgotten => {
                self.early.push_back((id, Outcome::Done));
            }
            Effect::Write { id, file, at, from, durable } => {
                self.write(bug, Effect::Write { id, file, at, from, durable }, host);
            }
            other => host.start(other),
        }
    }

    /// The engine syncs behind each wave: a wave that writes a table sector is the last one.
    fn drops_sync(&mut self, bug: Bug) -> bool {
        let last = std::mem::take(&mut self.since_sync) > 0;
        match bug {
            Bug::NoSync => true,
            Bug::NoFirstBarrier => !last,
            Bug::NoLastBarrier => last,
            _ => false,
        }
    }

    fn write(&mut self, bug: Bug, effect: Effect, host: &mut SimHost) {
        let Effect::Write { id, file, at, from, durable } = effect else { return };
        // Table sectors lie in front of everything but the header; the first block lies behind.
        self.since_sync += u32::from(matches!(from, Source::Owned(_)) && at.get() < 4096 - 512);
        match bug {
            Bug::DurableForgotten => {
                host.start(Effect::Write { id, file, at, from, durable: false });
            }
            Bug::CompleteAtSubmit => {
                self.own += 1;
                self.early.push_back((id, Outcome::Done));
                host.start(Effect::Write { id: EffectId(self.own), file, at, from, durable });
            }
            Bug::ShortWriteAccepted => {
                let from = shortened(from, self.own);
                self.own += 1;
                host.start(Effect::Write { id, file, at, from, durable });
            }
            _ => host.start(Effect::Write { id, file, at, from, durable }),
        }
    }

    /// A completion the host knows nothing of.
    pub(crate) fn next_early(&mut self) -> Option<(EffectId, Outcome)> {
        self.early.pop_front()
    }

    /// What the disk is told of a completion, if anything.
    pub(crate) fn delivered(
        &mut self,
        id: EffectId,
        outcome: Outcome,
        host: &mut SimHost,
    ) -> Option<(EffectId, Outcome)> {
        let Some(bug) = self.bug else { return Some((id, outcome)) };
        if id.0 >= OWN {
            return None;
        }
        let sync = self.syncs.iter().position(|(sync, _)| *sync == id);
        let sync = sync.map(|at| self.syncs.swap_remove(at));
        match (bug, sync, &outcome) {
            (Bug::SyncRetried, Some((id, file)), Outcome::Failed(_)) => {
                host.start(Effect::Sync { id, file });
                None
            }
            (Bug::SyncErrorIgnored, Some(_), Outcome::Failed(_)) => Some((id, Outcome::Done)),
            (Bug::WriteErrorIgnored, None, Outcome::Failed(error)) if error.0 > 0 => {
                Some((id, Outcome::Done))
            }
            _ => Some((id, outcome)),
        }
    }
}

/// Now and then the source without its last sector.
fn shortened(from: Source, turn: u32) -> Source {
    match from {
        Source::Span(mut span) if span.len > 512 && turn.is_multiple_of(4) => {
            span.len -= 512;
            Source::Span(span)
        }
        other => other,
    }
}

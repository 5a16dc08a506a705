use orlop::engine::effect::{Effect, EffectId, Outcome};
use orlop::engine::layer::Leaf;
use orlop::host::sim::host::SimHost;

use crate::world::Plan;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    None,
}

pub(crate) fn wrap(leaf: Box<dyn Leaf>, _bug: Bug, _plan: &Plan, _bytes: &[u8]) -> Box<dyn Leaf> {
    leaf
}

#[derive(Debug)]
pub(crate) struct Wire {}

impl Wire {
    pub(crate) fn new(_bug: Option<Bug>) -> Self {
        Self {}
    }
    pub(crate) fn start(&mut self, effect: Effect, host: &mut SimHost) {
        host.start(effect);
    }
    pub(crate) fn next_early(&mut self) -> Option<(EffectId, Outcome)> {
        None
    }
    pub(crate) fn delivered(
        &mut self,
        id: EffectId,
        outcome: Outcome,
        _host: &mut SimHost,
    ) -> Option<(EffectId, Outcome)> {
        Some((id, outcome))
    }
    pub(crate) fn acks_early(&mut self) -> bool {
        false
    }
}

use orlop::engine::effect::{Effect, EffectId, Outcome};
use orlop::engine::layer::Leaf;
use orlop::host::sim::host::SimHost;

use crate::world::Plan;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    None,
}

pub fn wrap(leaf: Box<dyn Leaf>, _bug: Bug, _plan: &Plan, _bytes: &[u8]) -> Box<dyn Leaf> {
    leaf
}

#[derive(Debug)]
pub struct Wire {}

impl Wire {
    pub fn new(_bug: Option<Bug>) -> Self {
        Self {}
    }
    pub fn start(&mut self, effect: Effect, host: &mut SimHost) {
        host.start(effect);
    }
    pub fn next_early(&mut self) -> Option<(EffectId, Outcome)> {
        None
    }
    pub fn delivered(&mut self, id: EffectId, outcome: Outcome, _host: &mut SimHost) -> Option<(EffectId, Outcome)> {
        Some((id, outcome))
    }
    pub fn acks_early(&mut self) -> bool {
        false
    }
}

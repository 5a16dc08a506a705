//! Metadata that nobody asks to be made durable: for how long the loop lets it be, and that it
//! does not turn for that meanwhile.

use std::time::Duration;

use orlop::engine::effect::FileId;
use orlop::host::sim::rng::Rng;
use orlop::host::sim::script::Leave;
use orlop::transport::nbd::ClientLimits;

use crate::ends::content_of;
use crate::oracle::{Cells, Oracle};
use crate::peer::{Peer, Plan};
use crate::rig::{Rig, Setup};
use crate::wire::{Style, command};
use crate::world::World;
use crate::worlds;

/// As docs/commit.md promises.
const AGE: Duration = Duration::from_secs(30);

/// A shard whose disk was just written by a peer that stays.
struct Written {
    rig: Rig,
    oracle: Oracle,
    peer: Peer,
}

/// None where only data is dirty, which is the system's business: the loop waits for nothing but
/// the patience that it has with a silent peer, a minute.
fn written(world: &World) -> Option<Written> {
    let mut rng = Rng::new(5);
    let mut rig = Rig::new(world, 256 << 10, rng.bits());
    let mut oracle = Oracle::new(1, world.content());
    let setup = Setup { style: Style::Structured, limits: ClientLimits::default() };
    let mut peer = Peer::new(rig.connect(setup), setup.style);
    let cells = Cells { first: 1, count: 7 };
    peer.ask(Plan { command: command::WRITE, flags: 0, cells }, 1, &mut rng);
    let bytes = peer.take(usize::MAX, &mut oracle);
    rig.script().feed(peer.id, &bytes);
    rig.settle();
    let said = rig.script().drain(peer.id);
    peer.hear(&said, &mut oracle, false).expect("a good reply");
    let dirty = rig.shard.next_look().is_some_and(|look| look <= rig.now + AGE);
    dirty.then_some(Written { rig, oracle, peer })
}

/// Holds what would survive a loss of power against what must.
fn judge_durable(world: &World, rig: &mut Rig, oracle: &Oracle, what: &str) {
    let durable = rig.script().disk().file(FileId(0)).durable().bytes().to_vec();
    let content = content_of(world, &durable).expect("it opens");
    let mut allowed = Vec::new();
    for (cell, tag) in (0..).zip(content) {
        oracle.allowed(cell, &mut allowed);
        assert!(allowed.contains(&tag), "{what}: cell {cell}: {tag}\n{}", oracle.story(cell));
    }
}

#[test]
fn dirty_metadata_lies_for_thirty_seconds_and_no_turn_is_taken_for_it_before() {
    let mut aged = 0;
    for (no, world) in worlds().iter().enumerate() {
        let Some(Written { mut rig, mut oracle, .. }) = written(world) else { continue };
        let due = rig.now + AGE;
        assert_eq!(rig.shard.next_look(), Some(due), "world {no}");
        let issue = oracle.tick();
        rig.now = due - Duration::from_millis(1);
        rig.settle();
        assert_eq!(rig.shard.next_look(), Some(due), "world {no}");
        rig.now = due;
        rig.settle();
        assert!(rig.shard.next_look().is_none_or(|look| look > due), "world {no}");
        oracle.flushed(issue);
        judge_durable(world, &mut rig, &oracle, &format!("world {no}"));
        aged += 1;
    }
    assert!(aged >= 3, "only {aged} worlds had dirty metadata");
}

#[test]
fn what_is_dirty_is_made_durable_at_once_when_the_last_peer_has_gone() {
    for (no, world) in worlds().iter().enumerate() {
        let Some(Written { mut rig, mut oracle, peer }) = written(world) else { continue };
        let issue = oracle.tick();
        rig.script().leave(peer.id, Leave::Closed);
        rig.settle();
        assert_eq!(rig.shard.next_look(), None, "world {no}");
        oracle.flushed(issue);
        judge_durable(world, &mut rig, &oracle, &format!("world {no}"));
    }
}

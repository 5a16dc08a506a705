//! Peers that leave at every place of a conversation, or right behind what they asked.

use orlop::engine::effect::FileId;
use orlop::host::sim::rng::Rng;
use orlop::host::sim::script::Leave;
use orlop::transport::nbd::ClientLimits;

use crate::ends::content_of;
use crate::oracle::{Cells, Oracle};
use crate::peer::{Peer, Plan};
use crate::rig::{Rig, Setup};
use crate::wire::{STYLES, Style, command, flag};
use crate::world::World;
use crate::{setting, worlds};

const ARENA_BYTES: u32 = 256 << 10;

fn setup(style: Style) -> Setup {
    Setup { style, limits: ClientLimits::default() }
}

fn cells(first: u32, count: u32) -> Cells {
    Cells { first, count }
}

/// One request of each kind, the writes on top of each other in part.
fn ask_one_of_each(peer: &mut Peer, rng: &mut Rng) {
    let status = if peer.style == Style::Simple { command::READ } else { command::BLOCK_STATUS };
    let plans = [
        (command::WRITE, 0, cells(0, 4)),
        (command::READ, 0, cells(2, 6)),
        (command::WRITE, flag::FUA, cells(30, 3)),
        (command::FLUSH, 0, cells(0, 0)),
        (command::WRITE_ZEROES, 0, cells(2, 4)),
        (status, 0, cells(0, 64)),
        (command::CACHE, 0, cells(0, 8)),
        (command::TRIM, 0, cells(64, 32)),
        (command::WRITE, 0, cells(1, 1)),
    ];
    for (version, (command, flags, cells)) in (1..).zip(plans) {
        peer.ask(Plan { command, flags, cells }, version, rng);
    }
    peer.say_goodbye();
}

/// Ends the shard and holds what is durable against the oracle.
fn judge_end(world: &World, rig: &mut Rig, oracle: &mut Oracle, what: &str) {
    let issue = oracle.tick();
    rig.shut_down().expect(what);
    oracle.flushed(issue);
    rig.judge_rest();
    let durable = rig.script().disk().file(FileId(0)).durable().bytes().to_vec();
    let content = content_of(world, &durable).expect(what);
    let mut allowed = Vec::new();
    for (cell, tag) in (0..).zip(content) {
        oracle.allowed(cell, &mut allowed);
        assert!(allowed.contains(&tag), "{what}: cell {cell}: {tag}\n{}", oracle.story(cell));
    }
}

#[test]
fn a_peer_may_leave_at_every_byte_of_a_conversation() {
    let worlds = worlds();
    let (mut partings, mut seed) = (0, setting("ORLOP_MODEL_SEED", 1));
    for style in STYLES {
        for how in [Leave::Half, Leave::Closed, Leave::Reset] {
            for place in 0.. {
                seed += 1;
                let world = &worlds[seed as usize % worlds.len()];
                let what = format!("{style:?}, {how:?}, behind byte {place}, seed {seed}");
                partings += 1;
                if !part_at(world, style, how, place, seed, &what) {
                    break;
                }
            }
        }
    }
    println!("{partings} partings");
}

/// Leaves behind so many bytes; false when those were all.
fn part_at(world: &World, style: Style, how: Leave, place: usize, seed: u64, what: &str) -> bool {
    let mut rng = Rng::new(seed);
    let mut rig = Rig::new(world, ARENA_BYTES, rng.bits());
    let mut oracle = Oracle::new(1, world.content());
    let mut peer = Peer::new(rig.connect(setup(style)), style);
    ask_one_of_each(&mut peer, &mut rng);
    let bytes = peer.take(place, &mut oracle);
    let more = peer.unsent() > 0;
    rig.script().feed(peer.id, &bytes);
    for _ in 0..rng.below(60) {
        rig.script().step();
        if rng.chance(1, 3) {
            rig.turn();
        }
    }
    peer.go(how == Leave::Half);
    // Half a request is as good as nothing, and what came before it counts.
    rig.script().leave(peer.id, how);
    rig.settle();
    assert!(!rig.script().is_connected(peer.id), "{what}: the connection stays");
    let said = rig.script().drain(peer.id);
    peer.hear(&said, &mut oracle, false).expect(what);
    peer.doomed = how != Leave::Half && more;
    if how == Leave::Half && peer.ends_whole() {
        peer.closed(&mut oracle, false, false).expect(what);
    }
    judge_end(world, &mut rig, &mut oracle, what);
    more
}

#[test]
fn what_was_written_before_a_goodbye_is_written_though_the_peer_is_gone() {
    let worlds = worlds();
    let tries = setting("ORLOP_MODEL_GOODBYES", 1200);
    let first = setting("ORLOP_MODEL_SEED", 1);
    for seed in first..first + tries {
        let world = &worlds[seed as usize % worlds.len()];
        let style = STYLES[seed as usize / worlds.len() % 3];
        let what = format!("goodbye {seed} in style {style:?}");
        let mut rng = Rng::new(seed);
        let mut rig = Rig::new(world, ARENA_BYTES, rng.bits());
        let mut oracle = Oracle::new(1, world.content());
        let limits = ClientLimits { requests: 1 + rng.below(16), ..ClientLimits::default() };
        let mut peer = Peer::new(rig.connect(Setup { style, limits }), style);
        for version in 1..=1 + rng.below(20) as u32 {
            let first = rng.below(world.cells() as usize - 1) as u32;
            let most = if rng.chance(1, 6) { world.cells() } else { 24 };
            let count = 1 + rng.below(most.min(world.cells() - first) as usize) as u32;
            let (command, flags) = match rng.below(8) {
                0 => (command::READ, 0),
                1 => (command::FLUSH, 0),
                2 => (command::WRITE_ZEROES, 0),
                3 => (command::WRITE, flag::FUA),
                _ => (command::WRITE, 0),
            };
            peer.ask(Plan { command, flags, cells: cells(first, count) }, version, &mut rng);
        }
        peer.say_goodbye();
        while peer.unsent() > 0 {
            let most = [1, 100, 5000, usize::MAX][rng.below(4)];
            let bytes = peer.take(most, &mut oracle);
            rig.script().feed(peer.id, &bytes);
            for _ in 0..rng.below(8) {
                rig.script().step();
            }
            rig.turn();
        }
        let how = [Leave::Closed, Leave::Closed, Leave::Half, Leave::No][rng.below(4)];
        peer.listens = how != Leave::Closed;
        rig.script().leave(peer.id, how);
        rig.settle();
        assert!(!rig.script().is_connected(peer.id), "{what}: the connection stays");
        let said = rig.script().drain(peer.id);
        peer.hear(&said, &mut oracle, false).expect(&what);
        peer.closed(&mut oracle, false, false).expect(&what);
        judge_end(world, &mut rig, &mut oracle, &what);
    }
}

/// Lets everything move, and tells the peers what came.
fn converse(rig: &mut Rig, oracle: &mut Oracle, peers: &mut [Peer]) {
    for peer in &mut *peers {
        let bytes = peer.take(usize::MAX, oracle);
        rig.script().feed(peer.id, &bytes);
    }
    rig.settle();
    for peer in peers {
        let said = rig.script().drain(peer.id);
        peer.hear(&said, oracle, false).expect("a good reply");
        assert_eq!(peer.waiting(), 0, "everything is answered");
    }
}

#[test]
fn a_flush_on_one_connection_covers_what_was_acknowledged_on_another() {
    for (no, world) in worlds().iter().enumerate() {
        for style in STYLES {
            for seed in 0..12 {
                let mut rng = Rng::new(seed);
                let mut rig = Rig::new(world, ARENA_BYTES, rng.bits());
                let mut oracle = Oracle::new(1, world.content());
                let styles = [style, STYLES[rng.below(3)]];
                let mut peers = styles.map(|style| Peer::new(rig.connect(setup(style)), style));
                for version in 1..=8 {
                    let at = cells(rng.below(world.cells() as usize - 20) as u32, 20);
                    let plan = Plan { command: command::WRITE, flags: 0, cells: at };
                    peers[0].ask(plan, version, &mut rng);
                }
                converse(&mut rig, &mut oracle, &mut peers);
                let flush = Plan { command: command::FLUSH, flags: 0, cells: cells(0, 0) };
                peers[1].ask(flush, 0, &mut rng);
                converse(&mut rig, &mut oracle, &mut peers);
                // Power is lost; nothing that was not made durable survives.
                let durable = rig.script().disk().file(FileId(0)).durable().bytes().to_vec();
                let content = content_of(world, &durable).expect("it opens");
                let mut allowed = Vec::new();
                for (cell, tag) in (0..).zip(content) {
                    oracle.allowed(cell, &mut allowed);
                    let story = || oracle.story(cell);
                    assert!(allowed.contains(&tag), "world {no}, {style:?}: {tag}\n{}", story());
                }
            }
        }
    }
}

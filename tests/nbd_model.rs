//! The model test of connections: the real loop of a shard, the real NBD client, the real engine
//! and the real formats in one thread, over files and sockets in memory that follow a seed. An
//! oracle that saw only what the peers saw says what may be read, and what must be there after.
//!
//! `ORLOP_MODEL_LIVES` and `ORLOP_MODEL_SEED` say how many lives and from which seed on;
//! `ORLOP_MODEL_LIFE` lives one of them again.
#![allow(clippy::panic, reason = "a test stops where something is wrong")]

#[path = "nbd_model/ageing.rs"]
mod ageing;
#[allow(dead_code)]
#[path = "crash/bad_leaf.rs"]
mod bad_leaf;
#[allow(dead_code)]
#[path = "crash/bugs.rs"]
mod bugs;
#[path = "nbd_model/ends.rs"]
mod ends;
#[path = "nbd_model/life.rs"]
mod life;
#[allow(dead_code)]
#[path = "crash/oracle.rs"]
mod oracle;
#[path = "nbd_model/partings.rs"]
mod partings;
#[path = "nbd_model/peer.rs"]
mod peer;
#[allow(dead_code)]
#[path = "crash/plain.rs"]
mod plain;
#[path = "crash/populate.rs"]
mod populate;
#[allow(dead_code)]
#[path = "crash/probe.rs"]
mod probe;
#[path = "nbd_model/rig.rs"]
mod rig;
#[path = "crash/tag.rs"]
mod tag;
#[path = "nbd_model/wire.rs"]
mod wire;
#[allow(dead_code)]
#[path = "crash/world.rs"]
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use life::{Life, Tally};
use world::{Kind, Plan, World};

/// Lives lived unless the environment says otherwise.
const LIVES: u64 = 300;
/// Lives that once went wrong: 4 lost what was written before a goodbye, 6 never let a peer go
/// whose replies nobody took.
const KNOWN: [u64; 2] = [4, 6];

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// The images on which lives are lived: raw, dynamic, children of one and of two parents.
pub(crate) fn worlds() -> Vec<World> {
    let plan = Plan {
        kind: Kind::Raw,
        block_bytes: 4096,
        sectors: 45,
        ragged: 0,
        device: false,
        foreign: false,
        filled: 4,
        spare: 0,
        cut: false,
    };
    let child = |parents, raw| Kind::Differencing { parents, raw };
    let plans = [
        plan,
        Plan { kind: Kind::Dynamic, filled: 0, ..plan },
        Plan { kind: Kind::Dynamic, foreign: true, ..plan },
        // Long enough for payloads that are received straight into their memory.
        Plan { kind: Kind::Dynamic, sectors: 300, block_bytes: 8192, filled: 2, ..plan },
        Plan { kind: child(1, false), filled: 2, ..plan },
        Plan { kind: child(2, true), filled: 1, ..plan },
    ];
    (1..).zip(plans).map(|(seed, plan)| World::new(plan, seed)).collect()
}

fn live(worlds: &[World], seed: u64, total: &mut Tally) {
    let world = &worlds[(seed % worlds.len() as u64) as usize];
    let lived = catch_unwind(AssertUnwindSafe(|| {
        let mut life = Life::new(world, seed);
        let result = life.live(200 + (seed % 7) as usize * 150);
        (result, life.tally)
    }));
    match lived {
        Ok((Ok(()), tally)) => total.add(tally),
        Ok((Err(why), _)) => panic!("life {seed} (ORLOP_MODEL_LIFE={seed}): {why}"),
        Err(_) => panic!("life {seed} (ORLOP_MODEL_LIFE={seed}) panicked"),
    }
}

#[test]
fn seeded_lives_of_many_connections_lose_nothing_and_leak_nothing() {
    let (lives, seed) = (setting("ORLOP_MODEL_LIVES", LIVES), setting("ORLOP_MODEL_SEED", 1));
    let (start, worlds) = (Instant::now(), worlds());
    let mut total = Tally::default();
    for seed in KNOWN.into_iter().chain(seed..seed + lives) {
        live(&worlds, seed, &mut total);
    }
    println!("{lives} lives, 0 violations ({total:?}, {:?})", start.elapsed());
    assert!(lives < 100 || total.is_varied(), "{total:?}: the lives are too tame");
}

#[test]
fn one_life_of_a_given_seed() {
    let mut tally = Tally::default();
    live(&worlds(), setting("ORLOP_MODEL_LIFE", 1), &mut tally);
    println!("{tally:?}");
}

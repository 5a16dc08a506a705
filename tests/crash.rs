//! The crash simulator's tests: seeded lives, every short workload, failing effects, and the
//! seeded bugs that show that the knife is sharp.

#[path = "crash/bad_leaf.rs"]
mod bad_leaf;
#[path = "crash/bugs.rs"]
mod bugs;
#[path = "crash/checker.rs"]
mod checker;
#[path = "crash/generations.rs"]
mod generations;
#[path = "crash/life.rs"]
mod life;
#[path = "crash/oracle.rs"]
mod oracle;
#[path = "crash/plain.rs"]
mod plain;
#[path = "crash/populate.rs"]
mod populate;
#[path = "crash/probe.rs"]
mod probe;
#[path = "crash/runs.rs"]
mod runs;
#[path = "crash/suites.rs"]
mod suites;
#[path = "crash/tag.rs"]
mod tag;
#[path = "crash/wire.rs"]
mod wire;
#[path = "crash/work.rs"]
mod work;
#[path = "crash/world.rs"]
mod world;

use std::time::Instant;

use bugs::{ALL, Bug};
use checker::Tally;
use generations::live_to_be_cut;
use runs::{Hunt, hunt, live, live_many, report, setting};

/// Crash states judged unless the environment says otherwise.
const STATES: u64 = if cfg!(debug_assertions) { 200_000 } else { 10_000_000 };

#[test]
fn seeded_lives_lose_nothing_whatever_a_crash_leaves() {
    let states = setting("ORLOP_CRASH_STATES", STATES);
    let seed = setting("ORLOP_CRASH_SEED", 1);
    let start = Instant::now();
    let halves = [seed, seed ^ 0x5EED_0000_0000];
    let results: Vec<Result<Tally, String>> = std::thread::scope(|scope| {
        let workers = halves.map(|seed| scope.spawn(move || live_many(seed, states / 2)));
        workers.map(|worker| worker.join().expect("a life does not panic")).into()
    });
    let mut total = Tally::default();
    for result in results {
        match result {
            Ok(tally) => total.add(tally),
            Err(report) => panic!("{report}"),
        }
    }
    println!("{} states, 0 violations ({total:?}, {:?})", total.states, start.elapsed());
}

/// Lives in which disks get new leaves.
const CUT_LIVES: u64 = 40;

#[test]
fn a_leaf_that_gets_a_child_holds_what_was_answered_and_nothing_later() {
    let mut tally = Tally::default();
    for seed in 0..setting("ORLOP_CRASH_CUT_LIVES", CUT_LIVES) {
        if let Err(violation) = live_to_be_cut(seed, &mut tally) {
            panic!("life {seed}: {}\n{}", violation.what, violation.story);
        }
    }
    assert!(tally.cuts > 0, "{tally:?}");
    println!("{tally:?}");
}

#[test]
fn one_life_of_a_given_seed() {
    let seed = setting("ORLOP_CRASH_LIFE", 1);
    let mut tally = Tally::default();
    if let Err(violation) = live(seed, None, &mut tally) {
        panic!("{}", report(seed, &violation));
    }
    println!("life {seed}: {tally:?}");
}

/// States within which a seeded bug must be found.
const HUNT_STATES: u64 = 4_000_000;

#[test]
fn every_seeded_bug_is_found() {
    let seed = setting("ORLOP_CRASH_SEED", 1);
    let limit = setting("ORLOP_CRASH_HUNT_STATES", HUNT_STATES);
    let only = std::env::var("ORLOP_CRASH_BUG").ok();
    let wanted = |bug: &Bug| only.as_ref().is_none_or(|only| format!("{bug:?}").contains(only));
    let (even, odd): (Vec<_>, Vec<_>) =
        ALL.iter().copied().filter(wanted).enumerate().partition(|(at, _)| at % 2 == 0);
    let chase = |bugs: Vec<(usize, Bug)>| -> Vec<(Hunt, String)> {
        bugs.into_iter()
            .map(|(_, bug)| {
                let (hunt, violation) = hunt(bug, seed, limit);
                (hunt, violation.map_or_else(|| "SURVIVED".into(), |violation| violation.what))
            })
            .collect()
    };
    let hunts = std::thread::scope(|scope| {
        let first = scope.spawn(|| chase(even));
        let mut hunts = chase(odd);
        hunts.extend(first.join().expect("a hunt does not panic"));
        hunts
    });
    for (hunt, what) in &hunts {
        println!(
            "{:>24} {:>9} states {:>6} lives, seed {:?}: {what}",
            format!("{:?}", hunt.bug),
            hunt.tally.states,
            hunt.lives,
            hunt.killer
        );
    }
    let survivors: Vec<Bug> =
        hunts.iter().filter(|(hunt, _)| hunt.killer.is_none()).map(|(hunt, _)| hunt.bug).collect();
    println!("{} of {} seeded bugs found", hunts.len() - survivors.len(), hunts.len());
    assert!(survivors.is_empty(), "not found within {limit} states: {survivors:?}");
}

#[test]
fn every_workload_of_up_to_three_requests_survives_every_crash() {
    let most = setting("ORLOP_CRASH_LENGTH", if cfg!(debug_assertions) { 2 } else { 3 }) as u32;
    let start = Instant::now();
    let worlds = suites::worlds();
    // The longest workloads cost nearly everything; only the two plainest worlds get them.
    let part = |part: u64| -> Tally {
        let mut tally = Tally::default();
        for (no, world) in worlds.iter().enumerate() {
            let longest = if no < 2 { most } else { most.min(2) };
            for length in 1..=longest {
                let result = suites::every_workload(world, length, (part, 2), &mut tally);
                if let Err(violation) = result {
                    panic!("violation: {}\n{}", violation.what, violation.story);
                }
            }
        }
        tally
    };
    let mut total = std::thread::scope(|scope| {
        let other = scope.spawn(|| part(1));
        let mut total = part(0);
        total.add(other.join().expect("no violation in the other half"));
        total
    });
    total.points = total.points.max(1);
    println!("{} states, 0 violations ({total:?}, {:?})", total.states, start.elapsed());
}

#[test]
fn every_effect_may_fail_and_nothing_flushed_is_lost() {
    let mut tally = Tally::default();
    let mut tried = 0;
    for world in suites::worlds().into_iter().chain(suites::flat_worlds()) {
        match suites::every_failure(&world, &mut tally) {
            Ok(count) => tried += count,
            Err(violation) => panic!("violation: {}\n{}", violation.what, violation.story),
        }
    }
    println!("{tried} failures, {} states, 0 violations", tally.states);
}

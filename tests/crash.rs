//! The crash simulator's tests: seeded lives, every short workload, failing effects, and the
//! seeded bugs that show that the knife is sharp.

#[path = "crash/bugs.rs"]
mod bugs;
#[path = "crash/checker.rs"]
mod checker;
#[path = "crash/life.rs"]
mod life;
#[path = "crash/oracle.rs"]
mod oracle;
#[path = "crash/populate.rs"]
mod populate;
#[path = "crash/probe.rs"]
mod probe;
#[path = "crash/runs.rs"]
mod runs;
#[path = "crash/tag.rs"]
mod tag;
#[path = "crash/work.rs"]
mod work;
#[path = "crash/world.rs"]
mod world;

use std::time::Instant;

use checker::Tally;
use runs::{live, live_many, report, setting};

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

#[test]
fn one_life_of_a_given_seed() {
    let seed = setting("ORLOP_CRASH_LIFE", 1);
    let mut tally = Tally::default();
    if let Err(violation) = live(seed, None, &mut tally) {
        panic!("{}", report(seed, &violation));
    }
    println!("life {seed}: {tally:?}");
}

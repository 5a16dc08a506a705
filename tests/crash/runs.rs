//! Whole lives from one number, and the bookkeeping over many.
//!
//! Refuses to hide a failure: the seed, the story and the command to see it again are printed.

use orlop::host::sim::enumerate::{Depth, SizeMode};
use orlop::host::sim::rng::{Rng, mix};

use crate::bugs::Bug;
use crate::checker::Tally;
use crate::generations::generations;
use crate::life::{Life, Style, Violation};
use crate::suites;
use crate::work;
use crate::world::World;

/// A number from the environment.
pub(crate) fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Lives one life, all of it decided by `seed`.
///
/// # Errors
/// The first violation; its story starts with what the world was.
pub(crate) fn live(seed: u64, bug: Option<Bug>, tally: &mut Tally) -> Result<(), Violation> {
    let mut rng = Rng::new(seed);
    let plan = work::plan(&mut rng);
    let world = World::new(plan, rng.bits());
    let mode = if rng.chance(1, 2) { SizeMode::Strict } else { SizeMode::Ordered };
    let style = Style { mode, depth: Depth::default(), bug };
    let mut life = Life::new(&world, style, rng.bits());
    let faulty = rng.chance(1, 4);
    if bug.map_or(faulty, Bug::needs_faults) {
        life.checker.faulty = true;
        life.host.set_faults(work::faults(&mut rng));
    }
    // Of their own dice, so that seeds mean what they meant.
    let mut cuts = Rng::new(seed ^ 0x0C07);
    let more = if faulty || bug.is_some() { 0 } else { [0, 1, 2][cuts.below(3)] };
    let result = generations(life, (&mut rng, &mut cuts), more, tally);
    result.map_err(|violation| Violation {
        what: violation.what,
        story: format!("{plan:?}, {mode:?}\n{}", violation.story),
    })
}

pub(crate) fn spend(life: &mut Life<'_>, rng: &mut Rng) -> Result<(), Violation> {
    let mut ops = 8 + rng.below(24);
    let width = 1 + rng.below(5);
    let crashes = rng.chance(2, 3);
    while ops > 0 || life.waiting() > 0 || life.host.in_flight() > 0 {
        if ops > 0 && life.has_room() && life.waiting() < width && rng.chance(1, 3) {
            ops -= 1;
            life.submit(work::op(rng, life.cells()))?;
        }
        if !life.advance()? && ops == 0 {
            break;
        }
        life.crash_everywhere(false)?;
        if rng.chance(1, 8) {
            life.crash_everywhere(true)?;
        }
        let stopped = life.disk.stopped().is_some() && rng.chance(1, 6);
        if stopped || (crashes && rng.chance(1, 40)) {
            life.crash_and_go_on(!stopped && rng.chance(1, 3))?;
        }
    }
    life.judge_parents()
}

/// Lives lives until so many crash states were judged.
///
/// # Errors
/// A report of the first violation.
pub(crate) fn live_many(seed: u64, states: u64) -> Result<Tally, String> {
    let mut tally = Tally::default();
    for no in 0.. {
        if tally.states >= states {
            break;
        }
        let seed = mix(seed.wrapping_add(no));
        if let Err(violation) = live(seed, None, &mut tally) {
            return Err(report(seed, &violation));
        }
    }
    Ok(tally)
}

/// What a person needs to see a violation again.
pub(crate) fn report(seed: u64, violation: &Violation) -> String {
    format!(
        "violation: {}\n{}\nreplay: ORLOP_CRASH_LIFE={seed} cargo test -p orlop --release --test \
         crash one_life -- --nocapture",
        violation.what, violation.story
    )
}

/// How a seeded bug fared.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hunt {
    /// The bug.
    pub(crate) bug: Bug,
    /// The life that killed it; 0 for a workload of its own.
    pub(crate) killer: Option<u64>,
    /// What it took.
    pub(crate) tally: Tally,
    /// Lives it took.
    pub(crate) lives: u64,
}

/// Lives lives with a bug built in until one shows it, for at most so many states. What random
/// lives meet too rarely gets its own workload.
pub(crate) fn hunt(bug: Bug, seed: u64, states: u64) -> (Hunt, Option<Violation>) {
    let mut hunt = Hunt { bug, killer: None, tally: Tally::default(), lives: 0 };
    if bug == Bug::FailedCommitRemembered {
        let violation = suites::rehome_with(bug, &mut hunt.tally).err();
        hunt.killer = violation.is_some().then_some(0);
        return (hunt, violation);
    }
    while hunt.tally.states < states && hunt.lives < states {
        let seed = mix(seed.wrapping_add(hunt.lives));
        hunt.lives += 1;
        if let Err(violation) = live(seed, Some(bug), &mut hunt.tally) {
            hunt.killer = Some(seed);
            return (hunt, Some(violation));
        }
    }
    (hunt, None)
}

//! The suites that leave nothing to chance: every short workload, and every effect of a fixed
//! workload failing in every way.
//!
//! Refuses to sample: what it names, it tries.

use orlop::engine::effect::IoError;
use orlop::host::sim::enumerate::{Depth, SizeMode};
use orlop::host::sim::fault::{Fault, FaultPlan, Target};
use orlop::host::sim::rng::Rng;

use crate::bugs::Bug;
use crate::checker::{Checker, Tally};
use crate::life::{Life, Op, Style, Violation};
use crate::oracle::Cells;
use crate::work::alphabet;
use crate::world::{Kind, Plan, World};

/// Orders of completion each failure is tried with; the first is one request after the other.
const SCHEDULES: u64 = if cfg!(debug_assertions) { 1 } else { 3 };

/// Two blocks of eight sectors.
fn small(kind: Kind, device: bool, filled: usize) -> World {
    let plan = Plan {
        kind,
        block_bytes: 4096,
        sectors: 16,
        ragged: 0,
        device,
        foreign: false,
        filled,
        spare: if kind == Kind::Raw { 0 } else { 8 },
        cut: kind != Kind::Raw,
    };
    World::new(plan, 0xB0D1E5)
}

/// A table of two sectors with the first block close behind it: a larger table displaces blocks.
fn crowded() -> World {
    let plan = Plan {
        kind: Kind::Dynamic,
        block_bytes: 512,
        sectors: 130,
        ragged: 0,
        device: false,
        foreign: false,
        filled: 1,
        spare: 0,
        cut: false,
    };
    World::new(plan, 0xC0DE)
}

/// The worlds of the suites.
pub(crate) fn worlds() -> Vec<World> {
    let child = Kind::Differencing { parents: 1, raw: false };
    vec![
        small(child, false, 0),
        small(Kind::Dynamic, false, 0),
        small(child, false, 4),
        small(Kind::Dynamic, true, 4),
    ]
}

/// Worlds in which only failures are of interest: flat ones, and one where blocks are in the way.
pub(crate) fn flat_worlds() -> Vec<World> {
    vec![small(Kind::Raw, false, 4), small(Kind::Fixed, false, 4), crowded()]
}

/// All workloads of `length` requests whose number among them is `part` modulo `parts`.
///
/// # Errors
/// The first violation, its story starting with the workload.
pub(crate) fn every_workload(
    world: &World,
    length: u32,
    (part, parts): (u64, u64),
    tally: &mut Tally,
) -> Result<(), Violation> {
    let ops = alphabet();
    let count = (ops.len() as u64).pow(length);
    let style =
        Style { mode: SizeMode::Strict, depth: Depth { exhaustive: 8, random: 8 }, bug: None };
    let mut checker = Checker::new(world, style.mode, None);
    for number in (part..count).step_by(parts as usize) {
        let mut rest = number;
        let mut life = Life::new(world, style, number);
        // Images recur from workload to workload: their verdicts are kept.
        std::mem::swap(&mut life.checker, &mut checker);
        let mut script = Vec::new();
        for _ in 0..length {
            script.push(ops[(rest % ops.len() as u64) as usize]);
            rest /= ops.len() as u64;
        }
        let result = play(&mut life, &script, number % 2 == 0);
        std::mem::swap(&mut life.checker, &mut checker);
        if let Err(violation) = result {
            tally.add(checker.tally);
            let story =
                format!("{:?}\nworkload {number}: {script:?}\n{}", world.plan, violation.story);
            return Err(Violation { what: violation.what, story });
        }
    }
    tally.add(checker.tally);
    Ok(())
}

/// Plays a script, one request after the other or all at once, crashing at every step.
fn play(life: &mut Life<'_>, script: &[Op], serially: bool) -> Result<(), Violation> {
    for op in script {
        life.submit(*op)?;
        while serially && life.waiting() > 0 {
            step(life)?;
        }
    }
    while life.host.in_flight() > 0 {
        step(life)?;
    }
    life.judge_parents()
}

fn step(life: &mut Life<'_>) -> Result<(), Violation> {
    life.advance()?;
    life.crash_everywhere(false)
}

/// A fixed workload with something of everything.
fn script(sectors: u32) -> Vec<Op> {
    let run = |first: u32, count: u32| Cells { first: first * 4, count: count * 4 };
    let ragged = Cells { first: 6, count: 7 };
    vec![
        Op::Write { cells: run(0, 3), fua: false },
        Op::Write { cells: run(9, 4), fua: false },
        Op::Flush,
        Op::Write { cells: ragged, fua: true },
        Op::Zero { cells: run(8, 8), unmap: true, fua: false },
        Op::Write { cells: run(10, 2), fua: false },
        Op::Flush,
        Op::Discard { cells: run(0, 8), fua: false },
        Op::Write { cells: run(4, 2), fua: true },
        Op::Zero { cells: run(11, 3), unmap: false, fua: true },
        Op::Read { cells: run(0, 8) },
        Op::Write { cells: run(14, 2), fua: false },
        // Once within the table, once beyond it.
        Op::Resize { sectors: sectors + 4 },
        Op::Write { cells: run(sectors + 1, 2), fua: false },
        Op::Resize { sectors: sectors * 2 },
        Op::Write { cells: run(sectors + 2, 8), fua: false },
        Op::Write { cells: run(sectors * 2 - 8, 8), fua: false },
        Op::Flush,
    ]
}

/// A block loses its home, finds another behind a commit that may fail, gives that back as well,
/// and finds a third while its neighbour is published in the second: what the failed commit has
/// told the table in memory must not come out with the neighbour's entry.
fn rehoming() -> Vec<Op> {
    let run = |first: u32, count: u32| Cells { first: first * 4, count: count * 4 };
    vec![
        Op::Write { cells: run(0, 3), fua: false },
        Op::Flush,
        Op::Discard { cells: run(0, 8), fua: false },
        Op::Write { cells: run(2, 1), fua: false },
        Op::Flush,
        Op::Discard { cells: run(0, 8), fua: false },
        Op::Write { cells: run(8, 2), fua: false },
        Op::Write { cells: run(4, 2), fua: false },
        Op::Flush,
    ]
}

/// A write that has not landed when the flush beside it takes its snapshot.
const BESIDE: usize = 2;

/// Lets each effect of a script with something of everything fail, and where homes are given back,
/// each of the script about that.
///
/// # Errors
/// The first violation.
pub(crate) fn every_failure(world: &World, tally: &mut Tally) -> Result<u32, Violation> {
    let tried = fail_each(world, (&script(world.cells() / 4), 1), None, tally)?;
    // The crowded world is large, and has nothing to add.
    if world.plan.kind != Kind::Dynamic || world.plan.sectors > 100 {
        return Ok(tried);
    }
    Ok(tried + fail_each(world, (&rehoming(), BESIDE), None, tally)?)
}

/// Lets each effect of the script about homes given back fail, with a bug built in.
///
/// # Errors
/// The first violation.
pub(crate) fn rehome_with(bug: Bug, tally: &mut Tally) -> Result<u32, Violation> {
    let world = small(Kind::Dynamic, false, 0);
    fail_each(&world, (&rehoming(), BESIDE), Some(bug), tally)
}

/// Lets each effect of the script fail in turn, in each way, once and for good; then goes on, and
/// after a failed sync opens again. Nothing acknowledged and flushed may be lost. The last so many
/// requests are under way together. Returns how many failures were tried.
fn fail_each(
    world: &World,
    script: (&[Op], usize),
    bug: Option<Bug>,
    tally: &mut Tally,
) -> Result<u32, Violation> {
    let ways = [
        (Target::Any, IoError::EIO, false),
        (Target::Any, IoError::EIO, true),
        (Target::Write, IoError::ENOSPC, false),
        (Target::Write, IoError::ENOSPC, true),
        (Target::Sync, IoError::EIO, false),
    ];
    let mut tried = 0;
    for (target, error, sticky) in ways {
        for after in 0.. {
            let fault = Fault { target, after, error, sticky };
            let mut struck = false;
            for seed in 0..SCHEDULES {
                let style = Style { mode: SizeMode::Strict, depth: depth(world), bug };
                let result = fail_once(world, script, style, (fault, seed), tally);
                struck |= result.map_err(|violation| Violation {
                    what: violation.what,
                    story: format!("{:?}\n{fault:?}, seed {seed}\n{}", world.plan, violation.story),
                })?;
                tried += 1;
            }
            if !struck {
                break;
            }
        }
    }
    Ok(tried)
}

/// The crowded world is large, and its images cost in proportion.
fn depth(world: &World) -> Depth {
    let most = if world.plan.sectors > 100 { 3 } else { 7 };
    Depth { exhaustive: most, random: most }
}

fn fail_once(
    world: &World,
    (script, beside): (&[Op], usize),
    style: Style,
    (fault, seed): (Fault, u64),
    tally: &mut Tally,
) -> Result<bool, Violation> {
    let mut life = Life::new(world, style, seed);
    life.checker.faulty = true;
    life.host.set_faults(FaultPlan::new(&[fault]));
    let mut rng = Rng::new(seed);
    let mut result = Ok(());
    for (no, op) in (1..).zip(script) {
        // The last ones go out before any of them does a step.
        let pace = match (no < script.len()) && (no + beside > script.len()) {
            true => Pace::Beside,
            false if seed == 0 => Pace::Alone,
            false => Pace::Mixed,
        };
        result = perform(&mut life, *op, pace, &mut rng);
        if result.is_err() {
            break;
        }
    }
    tally.add(life.checker.tally);
    result.map(|()| life.host.struck() > 0)
}

/// How far things go before the next request comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// Until nothing is in flight.
    Alone,
    /// As far as the seed says.
    Mixed,
    /// Not a step.
    Beside,
}

fn perform(life: &mut Life<'_>, op: Op, pace: Pace, rng: &mut Rng) -> Result<(), Violation> {
    while !life.has_room() {
        step(life)?;
    }
    // A growth that failed leaves nothing to write to.
    if matches!(op, Op::Write { cells, .. } if cells.iter().end > life.cells()) {
        return Ok(());
    }
    life.submit(op)?;
    if pace == Pace::Beside {
        return Ok(());
    }
    let serially = pace == Pace::Alone || matches!(op, Op::Resize { .. });
    while life.host.in_flight() > 0 && (serially || rng.chance(3, 4)) {
        step(life)?;
    }
    if life.disk.stopped().is_some() && life.host.in_flight() == 0 {
        life.crash_and_go_on(false)?;
    }
    Ok(())
}

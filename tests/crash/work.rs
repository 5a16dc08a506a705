//! What clients do: seeded workloads, seeded worlds, and all short workloads there are.
//!
//! Refuses to look at the disk: requests come from the seed alone.

use orlop::engine::effect::IoError;
use orlop::host::sim::fault::{Fault, FaultPlan, Target};
use orlop::host::sim::rng::Rng;

use crate::life::{MOST_CELLS, Op};
use crate::oracle::Cells;
use crate::world::{Kind, Plan};

/// The world of a seed.
pub(crate) fn plan(rng: &mut Rng) -> Plan {
    let kind = match rng.below(16) {
        0 => Kind::Raw,
        1 => Kind::Fixed,
        2..7 => Kind::Dynamic,
        7..12 => Kind::Differencing { parents: 1, raw: false },
        12 => Kind::Differencing { parents: 1, raw: true },
        _ => Kind::Differencing { parents: 2, raw: rng.chance(1, 4) },
    };
    let block_sectors = [8, 8, 8, 16, 4][rng.below(5)];
    let mut sectors = block_sectors * (2 + rng.below(3) as u64);
    if matches!(kind, Kind::Dynamic | Kind::Differencing { .. }) && rng.chance(1, 24) {
        // Blocks of one sector, so many that the table takes two sectors.
        return Plan {
            kind,
            block_bytes: 512,
            sectors: 120 + rng.below(20) as u64,
            ragged: 0,
            device: false,
            foreign: false,
            filled: rng.below(2),
            spare: 0,
            cut: false,
        };
    }
    if rng.chance(1, 3) {
        // The last block is cut short.
        sectors -= 1 + rng.below(block_sectors as usize - 1) as u64;
    }
    let ragged = if kind == Kind::Raw { 128 * rng.below(4) as u64 } else { 0 };
    let device = !matches!(kind, Kind::Fixed) && rng.chance(1, 4);
    let filled = [0, 0, 3, 6][rng.below(4)];
    let foreign = kind == Kind::Dynamic && filled > 0 && rng.chance(1, 2);
    let spare = if kind != Kind::Raw && rng.chance(1, 2) {
        rng.below(2 * block_sectors as usize) as u64
    } else {
        0
    };
    let cut = spare > 0 && rng.chance(1, 2);
    let block_bytes = block_sectors * 512;
    Plan { kind, block_bytes, sectors, ragged, device, foreign, filled, spare, cut }
}

/// One to three failures somewhere in the life.
pub(crate) fn faults(rng: &mut Rng) -> FaultPlan {
    let targets =
        [Target::Any, Target::Read, Target::Write, Target::Write, Target::Zero, Target::Sync];
    let faults: Vec<Fault> = (0..1 + rng.below(3))
        .map(|_| {
            let target = targets[rng.below(targets.len())];
            let space = target == Target::Write && rng.chance(1, 2);
            let error = if space { IoError::ENOSPC } else { IoError::EIO };
            Fault { target, after: rng.below(40) as u32, error, sticky: rng.chance(1, 6) }
        })
        .collect();
    FaultPlan::new(&faults)
}

/// The next request of a seeded client on a disk of `cells` cells.
pub(crate) fn op(rng: &mut Rng, cells: u32) -> Op {
    let place = |rng: &mut Rng| {
        if rng.chance(1, 5) { ragged(rng, cells) } else { sectors(rng, cells) }
    };
    let fua = rng.chance(1, 5);
    match rng.below(22) {
        0..9 => Op::Write { cells: place(rng), fua },
        9..12 => Op::Flush,
        12 | 13 => Op::Zero { cells: place(rng), unmap: rng.chance(1, 2), fua },
        14..16 => Op::Discard { cells: place(rng), fua },
        16 => Op::Zero { cells: large(rng, cells), unmap: rng.chance(2, 3), fua },
        17 => Op::Discard { cells: large(rng, cells), fua },
        18 => Op::Map { cells: place(rng) },
        19 => Op::Resize { sectors: resized(rng, cells) },
        _ => Op::Read { cells: place(rng) },
    }
}

/// A few sectors more, now and then one less.
fn resized(rng: &mut Rng, cells: u32) -> u32 {
    if rng.chance(1, 16) {
        return cells / 4 - 1;
    }
    let most = [2, 8, 20][rng.below(3)];
    (cells.div_ceil(4) + rng.below(most) as u32).min(MOST_SECTORS)
}

/// Sectors beyond which no disk grows.
const MOST_SECTORS: u32 = 160;

/// One to eight whole sectors, short ones more often.
fn sectors(rng: &mut Rng, cells: u32) -> Cells {
    let all = cells / 4;
    let first = rng.below(all as usize) as u32;
    let most = (all - first).min([1, 1, 2, 3, 8][rng.below(5)]);
    let count = 1 + rng.below(most as usize) as u32;
    Cells { first: first * 4, count: count * 4 }
}

/// Any run of cells.
fn ragged(rng: &mut Rng, cells: u32) -> Cells {
    let first = rng.below(cells as usize) as u32;
    let most = (cells - first).min([2, 6, 12, MOST_CELLS][rng.below(4)]);
    Cells { first, count: 1 + rng.below(most as usize) as u32 }
}

/// As much as a request can hold, often whole blocks.
fn large(rng: &mut Rng, cells: u32) -> Cells {
    let first = rng.below(cells as usize) as u32 / 32 * 32;
    Cells { first, count: (cells - first).min(if rng.chance(2, 3) { 32 } else { MOST_CELLS }) }
}

/// The requests of the bounded-exhaustive suite on a disk of two blocks of eight sectors:
/// writes of one and two sectors at eight positions, with and without FUA, flush, growing within
/// the table and beyond it, and per block trim, and zeroing with and without unmapping.
pub(crate) fn alphabet() -> Vec<Op> {
    let mut ops = vec![Op::Flush];
    for at in [0, 1, 4, 7, 8, 9, 12, 14] {
        for (count, fua) in [(1, false), (2, false), (1, true), (2, true)] {
            ops.push(Op::Write { cells: Cells { first: at * 4, count: count * 4 }, fua });
        }
    }
    ops.extend([18, 40].map(|sectors| Op::Resize { sectors }));
    for block in 0..2 {
        let cells = Cells { first: block * 32, count: 32 };
        ops.push(Op::Discard { cells, fua: false });
        ops.push(Op::Zero { cells, unmap: true, fua: false });
        ops.push(Op::Zero { cells, unmap: false, fua: false });
    }
    ops
}

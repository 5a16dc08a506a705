//! What an image holds after an end, and what fails before it.

use orlop::engine::effect::IoError;
use orlop::host::sim::fault::{Fault, FaultPlan, Target};
use orlop::host::sim::fs::SimFile;
use orlop::host::sim::rng::Rng;

use crate::probe::read_disk;
use crate::tag::Tag;
use crate::world::{RecoveryStep, World};

/// One to three failures somewhere in a life.
pub(crate) fn faults(rng: &mut Rng) -> FaultPlan {
    let targets =
        [Target::Any, Target::Read, Target::Write, Target::Write, Target::Zero, Target::Sync];
    let faults: Vec<Fault> = (0..1 + rng.below(3))
        .map(|_| {
            let target = targets[rng.below(targets.len())];
            let space = target == Target::Write && rng.chance(1, 2);
            let error = if space { IoError::ENOSPC } else { IoError::EIO };
            Fault { target, after: rng.below(60) as u32, error, sticky: rng.chance(1, 6) }
        })
        .collect();
    FaultPlan::new(&faults)
}

/// What the next process finds: the image is recovered, opened, read and checked.
///
/// # Errors
/// Why it cannot be.
pub(crate) fn content_of(world: &World, image: &[u8]) -> Result<Vec<Tag>, String> {
    let mut file = SimFile::new(world.backing(), image);
    for step in world.recovery(image, None)? {
        match step {
            RecoveryStep::Change(change) => {
                let op = file.execute(&change);
                file.delivered(op, 0);
            }
            RecoveryStep::Sync => file.sync(u64::MAX),
        }
    }
    let recovered = file.live().bytes();
    let mut disk = world.open(recovered, None)?;
    let mut files: Vec<&[u8]> = vec![recovered];
    files.extend(world.parents().iter().map(Vec::as_slice));
    let content = read_disk(&mut disk, &files)?;
    world.check(recovered, true)?;
    Ok(content)
}

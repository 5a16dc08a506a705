//! A disk that gets new leaves while it lives: it is held, what its file says is judged, a child
//! takes its place, and the life goes on above it. The old leaf must then hold exactly what was
//! answered, and never change again.

use orlop::host::sim::enumerate::{Depth, SizeMode};
use orlop::host::sim::fs::{Backing, SimFile};
use orlop::host::sim::rng::Rng;

use crate::checker::{Checker, Tally};
use crate::life::{Life, Op, Style, Violation};
use crate::runs::spend;
use crate::work;
use crate::world::{Kind, World};

/// Lives a life in which the disk gets two new leaves, each crash point judged in few ways: its
/// kind of world is looked for from this seed on.
///
/// # Errors
/// The first violation.
pub(crate) fn live_to_be_cut(seed: u64, tally: &mut Tally) -> Result<(), Violation> {
    let mut rng = Rng::new(seed);
    let plan = std::iter::repeat_with(|| work::plan(&mut rng))
        .find(|plan| plan.kind != Kind::Fixed && !plan.device && plan.ragged == 0)
        .expect("there are always more");
    let world = World::new(plan, rng.bits());
    let mode = if rng.chance(1, 2) { SizeMode::Strict } else { SizeMode::Ordered };
    let depth = Depth { exhaustive: 3, random: 8 };
    let life = Life::new(&world, Style { mode, depth, bug: None }, rng.bits());
    let mut cuts = Rng::new(rng.bits());
    generations(life, (&mut rng, &mut cuts), 2, tally).map_err(|violation| Violation {
        what: violation.what,
        story: format!("{plan:?}, {mode:?}\n{}", violation.story),
    })
}

/// Spends a life, and so many more above it.
///
/// # Errors
/// The first violation.
pub(crate) fn generations(
    mut life: Life<'_>,
    (rng, cuts): (&mut Rng, &mut Rng),
    more: usize,
    tally: &mut Tally,
) -> Result<(), Violation> {
    let held = spend(&mut life, rng).and_then(|()| {
        let may = more > 0 && life.world.may_lie_below(life.disk.size().get());
        if may { life.hold(cuts) } else { Ok(false) }
    });
    tally.add(std::mem::take(&mut life.checker.tally));
    if !held? {
        return Ok(());
    }
    tally.cuts += 1;
    let world = life.world_above(cuts)?;
    let above = life.pivot(&world)?;
    generations(above, (rng, cuts), more - 1, tally)
}

impl Life<'_> {
    /// Holds the disk while its client goes on asking; every crash on the way is judged. False
    /// where the disk has stopped.
    fn hold(&mut self, rng: &mut Rng) -> Result<bool, Violation> {
        for _ in 0..rng.below(4) {
            self.submit(work::op(rng, self.cells()))?;
        }
        self.last_before_hold = self.version;
        self.submit(Op::Hold)?;
        let mut more = rng.below(4);
        while !self.disk.is_held() {
            if self.disk.stopped().is_some() {
                return Ok(false);
            }
            if more > 0 && self.has_room() && rng.chance(1, 2) {
                more -= 1;
                self.submit(work::op(rng, self.cells()))?;
            }
            self.advance()?;
            self.crash_everywhere(false)?;
        }
        self.crash_everywhere(true)?;
        Ok(true)
    }

    /// The world of the next generation, once what the leaf's file says was judged.
    fn world_above(&mut self, rng: &mut Rng) -> Result<World, Violation> {
        let mut atoms = Vec::new();
        self.host.at_risk(self.file, &mut atoms);
        if !atoms.is_empty() {
            self.violated(
                format!("{} effects are at risk although it is held", atoms.len()),
                None,
            )?;
        }
        let bytes = self.host.file(self.file).durable().bytes().to_vec();
        let world = match self.world.over(&bytes, self.disk.size().get(), rng) {
            Ok(world) => world,
            Err(why) => {
                self.violated(format!("the frozen leaf does not open: {why}"), None)?;
                unreachable!("a violation is an error")
            }
        };
        if world.cells() != self.cells() {
            let why = format!("{} cells, of a disk of {}", world.cells(), self.cells());
            self.violated(why, None)?;
        }
        for (cell, tag) in (0..).zip(world.content()) {
            let mut allowed = Vec::new();
            self.oracle.allowed(cell, &mut allowed);
            let version = (tag.0 & 0xFFF_FFFF) as u32;
            // What lay there from the start has versions of its own.
            let ours = tag.0 >> 48 & 15 == 1 && version <= self.version;
            let late = ours && version > self.last_before_hold;
            if !allowed.contains(tag) || late {
                self.violated(format!("the frozen leaf has {tag}"), Some(cell))?;
            }
        }
        Ok(world)
    }

    /// The life above: the same disk and host, and whatever its client still waits for.
    fn pivot(self, world: &World) -> Result<Life<'_>, Violation> {
        let style = self.style;
        let mut above = Life {
            world,
            checker: Checker::new(world, style.mode, style.bug),
            style,
            host: self.host,
            disk: self.disk,
            wire: self.wire,
            file: self.file,
            ids: self.ids,
            oracle: self.oracle,
            slots: self.slots,
            version: self.version,
            last_before_hold: 0,
            step: self.step,
            struck_before: self.struck_before,
            rng: self.rng,
            atoms: self.atoms,
            log: self.log,
        };
        above.file = above.host.add_file(SimFile::new(Backing::File, world.leaf()));
        above.ids.insert(0, above.file);
        above.log.push(format!("{:>4}: a new leaf", above.step));
        let leaf = world.open_leaf(world.leaf()).expect("a fresh image opens");
        if let Err(why) = above.disk.pivot(leaf, above.file) {
            above.violated(format!("the disk does not take the leaf: {why}"), None)?;
        }
        above.crash_everywhere(false)?;
        above.disk.release();
        above.pump()?;
        Ok(above)
    }
}

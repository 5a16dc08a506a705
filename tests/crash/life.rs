//! A life: a disk, its client, the host and a crash at every step, judged by the oracle.
//!
//! Refuses to choose anything but by its seed.

use orlop::engine::Disk;
use orlop::engine::effect::FileId;
use orlop::engine::request::{Answer, Fault, FaultKind, MapKind, Reply, Request, RequestId};
use orlop::engine::units::{ByteLen, DiskOffset, Extent, SECTOR, Span};
use orlop::host::sim::atom::{Atom, Stage};
use orlop::host::sim::enumerate::{CrashPoint, Depth, SizeMode};
use orlop::host::sim::fs::SimFile;
use orlop::host::sim::host::{ARENA, SimHost, Step};
use orlop::host::sim::image::Image;
use orlop::host::sim::rng::Rng;

use crate::bugs::Bug;
use crate::checker::{Checker, run_step};
use crate::oracle::{Cells, Oracle, Puts, WriteNo};
use crate::probe::{fill_holes, tags};
use crate::tag::{CELL, Tag};
use crate::wire::Wire;
use crate::world::World;

/// Most requests in flight.
pub(crate) const SLOTS: usize = 6;
/// Most cells in one request.
pub(crate) const MOST_CELLS: u32 = 40;
/// Steps after which a life that makes no progress is declared hung.
const MOST_STEPS: u32 = 20_000;

/// A request in the words of the simulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// Write fresh data.
    Write { cells: Cells, fua: bool },
    /// Write zeroes.
    Zero { cells: Cells, unmap: bool, fua: bool },
    /// Discard.
    Discard { cells: Cells, fua: bool },
    /// Flush.
    Flush,
    /// Read and compare.
    Read { cells: Cells },
    /// Map and compare.
    Map { cells: Cells },
    /// Give the disk so many sectors.
    Resize { sectors: u32 },
    /// Let nothing change from now on.
    Hold,
}

/// The rule that was broken, where, and the story of that place.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    /// What is wrong.
    pub(crate) what: String,
    /// Everything a person needs to follow it.
    pub(crate) story: String,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Waits {
    Write(WriteNo),
    Flush { issue: u64 },
    Read { cells: Cells, issue: u64 },
    Map { cells: Cells, issue: u64 },
    Resize { sectors: u32 },
    Hold,
}

/// How a life is lived.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    /// Size ordering of the file system.
    pub(crate) mode: SizeMode,
    /// How thorough each crash point is.
    pub(crate) depth: Depth,
    /// The seeded bug, if any.
    pub(crate) bug: Option<Bug>,
}

/// A disk being lived on.
pub(crate) struct Life<'w> {
    pub(crate) world: &'w World,
    pub(crate) style: Style,
    /// The host.
    pub(crate) host: SimHost,
    /// The disk.
    pub(crate) disk: Disk,
    pub(crate) wire: Wire,
    /// The leaf's file, and with it those of the whole chain.
    pub(crate) file: FileId,
    pub(crate) ids: Vec<FileId>,
    pub(crate) oracle: Oracle,
    pub(crate) slots: [Option<Waits>; SLOTS],
    pub(crate) version: u32,
    /// The last version that may be below the next generation.
    pub(crate) last_before_hold: u32,
    pub(crate) step: u32,
    /// Operations that had failed when the disk was opened: their errors are no excuse any more.
    pub(crate) struck_before: u32,
    /// The judge of images.
    pub(crate) checker: Checker<'w>,
    pub(crate) rng: Rng,
    pub(crate) atoms: Vec<Atom>,
    pub(crate) log: Vec<String>,
}

impl<'w> Life<'w> {
    /// A life on a fresh copy of the world's image.
    pub(crate) fn new(world: &'w World, style: Style, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let arena = ByteLen::new((SLOTS * MOST_CELLS as usize * CELL) as u64);
        let mut host = SimHost::new(rng.bits(), arena);
        let file = host.add_file(SimFile::new(world.backing(), world.leaf()));
        let mut ids = vec![file];
        for parent in world.parents() {
            ids.push(host.add_file(SimFile::new(orlop::host::sim::fs::Backing::File, parent)));
        }
        let mut disk =
            world.open_as(world.leaf(), style.bug, &ids).expect("the world's own image opens");
        // What guests are told changes nothing about what reaches the disk, and when.
        drop(disk.publish());
        Self {
            world,
            style,
            host,
            disk,
            wire: Wire::new(style.bug),
            file,
            ids,
            oracle: Oracle::new(1, world.content()),
            slots: [None; SLOTS],
            version: 0,
            last_before_hold: 0,
            step: 0,
            struck_before: 0,
            checker: Checker::new(world, style.mode, style.bug),
            rng,
            atoms: Vec::new(),
            log: Vec::new(),
        }
    }

    /// Cells of the disk.
    pub(crate) fn cells(&self) -> u32 {
        (self.disk.size().get() / CELL as u64) as u32
    }

    /// Whether another request may be submitted.
    pub(crate) fn has_room(&self) -> bool {
        self.slots.iter().any(Option::is_none)
    }

    /// Requests without a reply.
    pub(crate) fn waiting(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Submits a request into a free slot.
    pub(crate) fn submit(&mut self, op: Op) -> Result<(), Violation> {
        let slot = self.slots.iter().position(Option::is_none).expect("asked has_room first");
        self.log.push(format!("{:>4}: submit {slot}: {op:?}", self.step));
        let issue = |oracle: &mut Oracle| oracle.tick();
        let (waits, request) = match op {
            Op::Write { cells, fua } => {
                self.version += 1;
                let from = self.fill(slot, cells);
                let no = self.oracle.issue(cells, Puts::Data(self.version), fua);
                let fua = fua && self.style.bug != Some(Bug::FuaDropped);
                (Waits::Write(no), Request::Write { extent: extent(cells), from, fua })
            }
            Op::Zero { cells, unmap, fua } => {
                let no = self.oracle.issue(cells, Puts::Zeroes, fua);
                let request = Request::Zero { extent: extent(cells), may_unmap: unmap, fua };
                (Waits::Write(no), request)
            }
            Op::Discard { cells, fua } => {
                let no = self.oracle.issue(cells, Puts::Maybe, fua);
                (Waits::Write(no), Request::Discard { extent: extent(cells), fua })
            }
            Op::Flush => {
                let issue = issue(&mut self.oracle);
                if self.style.bug == Some(Bug::FlushAckAtOnce) {
                    self.oracle.flushed(issue);
                }
                (Waits::Flush { issue }, Request::Flush)
            }
            Op::Read { cells } => {
                let into = span(slot, cells);
                self.host.bytes_mut(into).fill(0xEE);
                let issue = issue(&mut self.oracle);
                (Waits::Read { cells, issue }, Request::Read { extent: extent(cells), into })
            }
            Op::Map { cells } => {
                let issue = issue(&mut self.oracle);
                let request = Request::Map { extent: extent(cells), limit: 64 };
                (Waits::Map { cells, issue }, request)
            }
            Op::Resize { sectors } => {
                self.oracle.may_grow(sectors * 4);
                let size = ByteLen::new(u64::from(sectors) * SECTOR);
                (Waits::Resize { sectors }, Request::Resize { size })
            }
            Op::Hold => (Waits::Hold, Request::Hold),
        };
        self.slots[slot] = Some(waits);
        self.disk.submit(RequestId(slot as u64), request);
        self.pump()
    }

    fn fill(&mut self, slot: usize, cells: Cells) -> Span {
        let from = span(slot, cells);
        let bytes = self.host.bytes_mut(from);
        for (cell, bytes) in cells.iter().zip(bytes.chunks_exact_mut(CELL)) {
            Tag::new(1, cell, self.version).fill(bytes);
        }
        from
    }

    /// Hands effects to the host and replies to the client until there are no more.
    pub(crate) fn pump(&mut self) -> Result<(), Violation> {
        loop {
            while let Some(effect) = self.disk.poll_effect() {
                self.wire.start(effect, &mut self.host);
            }
            let mut moved = false;
            while let Some((id, outcome)) = self.wire.next_early() {
                self.disk.complete(id, outcome);
                moved = true;
            }
            while let Some(reply) = self.disk.poll_reply() {
                self.reply(reply)?;
                moved = true;
            }
            if !moved {
                return Ok(());
            }
        }
    }

    fn reply(&mut self, reply: Reply) -> Result<(), Violation> {
        let slot = reply.id.0 as usize;
        let Some(waits) = self.slots[slot].take() else {
            return self.violated(format!("a reply nobody waits for: {reply:?}"), None);
        };
        self.log.push(format!("{:>4}: reply  {slot}: {:?}", self.step, reply.result));
        if let Err(fault) = &reply.result {
            // A device may fill up: blocks given back are free only once a commit settled.
            let full = self.world.is_device() && matches!(fault.kind, FaultKind::NoSpace(_));
            let refused = match (waits, &fault.kind) {
                (Waits::Resize { sectors }, FaultKind::Unsupported(_)) => {
                    let new = u64::from(sectors) * SECTOR;
                    self.world.may_refuse(self.disk.size().get(), new)
                }
                _ => false,
            };
            if !full && !refused && self.host.struck() == self.struck_before {
                return self.violated(format!("failed for no reason: {fault}"), None);
            }
        }
        match waits {
            Waits::Resize { sectors } if reply.result.is_ok() => {
                if self.cells() != sectors * 4 {
                    let found = self.disk.size();
                    return self.violated(format!("{sectors} sectors, but {found} bytes"), None);
                }
                self.oracle.settle_size(sectors * 4);
                // Others may be under way.
                for other in self.slots.iter().flatten() {
                    if let Waits::Resize { sectors } = other {
                        self.oracle.may_grow(sectors * 4);
                    }
                }
            }
            Waits::Resize { sectors } => {
                if let Err(Fault { kind: FaultKind::Unsupported(_), .. }) = reply.result {
                    self.oracle.never_grew(sectors * 4);
                }
            }
            Waits::Hold if reply.result.is_ok() => {
                // Everything that was answered by now.
                let now = self.oracle.tick();
                self.oracle.flushed(now);
            }
            Waits::Hold => {}
            Waits::Write(no) => self.oracle.ack(no, reply.result.is_ok()),
            Waits::Flush { issue } if reply.result.is_ok() => self.oracle.flushed(issue),
            Waits::Flush { .. } => {}
            Waits::Read { cells, issue } => {
                if let Ok(answer) = reply.result {
                    self.judge_read(slot, cells, issue, &answer)?;
                }
            }
            Waits::Map { cells, issue } => {
                if let Ok(Answer::Map(runs)) = reply.result {
                    self.judge_map(cells, issue, &runs)?;
                }
            }
        }
        Ok(())
    }

    fn judge_read(
        &mut self,
        slot: usize,
        cells: Cells,
        issue: u64,
        answer: &Answer,
    ) -> Result<(), Violation> {
        if let Err(why) = fill_holes(answer, self.host.bytes_mut(span(slot, cells))) {
            return self.violated(why, None);
        }
        let found = tags(cells.first, self.host.bytes(span(slot, cells)));
        for (cell, tag) in cells.iter().zip(found) {
            if !self.oracle.may_read(cell, issue, tag) {
                return self.violated(format!("a live read found {tag}"), Some(cell));
            }
        }
        Ok(())
    }

    /// What the map calls a hole or zero must be allowed to read as zeroes.
    fn judge_map(
        &mut self,
        cells: Cells,
        issue: u64,
        runs: &[orlop::engine::request::MapRun],
    ) -> Result<(), Violation> {
        let mut at = 0;
        for run in runs {
            let end = at + run.len.get();
            if !matches!(run.kind, MapKind::Data { .. }) {
                for cell in at.div_ceil(CELL as u64)..end / CELL as u64 {
                    let cell = cells.first + cell as u32;
                    if !self.oracle.may_read(cell, issue, Tag::ZERO) {
                        return self.violated("the map shows a hole".into(), Some(cell));
                    }
                }
            }
            at = end;
        }
        if at == 0 || at > extent(cells).len.get() {
            return self.violated(format!("a map of {at} bytes"), None);
        }
        Ok(())
    }

    /// Lets the host do one thing; false when nothing is in flight.
    pub(crate) fn advance(&mut self) -> Result<bool, Violation> {
        self.step += 1;
        if self.step > MOST_STEPS {
            return self.violated("hung: effects without end".into(), None).map(|()| false);
        }
        match self.host.step() {
            Step::Idle => {
                if self.waiting() > 0 {
                    return self.violated("hung: nothing in flight".into(), None).map(|()| false);
                }
                Ok(false)
            }
            Step::Executed => Ok(true),
            Step::Delivered(id, outcome) => {
                if let Some((id, outcome)) = self.wire.delivered(id, outcome, &mut self.host) {
                    self.log.push(format!("{:>4}: {id:?} {}", self.step, brief(&outcome)));
                    self.disk.complete(id, outcome);
                }
                self.pump()?;
                Ok(true)
            }
        }
    }

    /// Loses power, or kills the process, here and in every way, and judges each.
    pub(crate) fn crash_everywhere(&mut self, kill: bool) -> Result<(), Violation> {
        let oracle = &self.oracle;
        let allowed: Vec<Vec<Tag>> = (0..self.oracle.cells())
            .map(|cell| {
                let mut tags = Vec::new();
                self.oracle.allowed(cell, &mut tags);
                tags
            })
            .collect();
        let mut atoms = std::mem::take(&mut self.atoms);
        self.gather(kill, &mut atoms);
        let file = self.host.file(self.file);
        let base = if kill { file.live() } else { file.durable() };
        let mut point = CrashPoint::new(base, &atoms, self.style.mode, self.world.is_device());
        let checker = &mut self.checker;
        let mut bad: Option<(String, Option<u32>, Vec<bool>)> = None;
        let seen = point.visit(self.style.depth, &mut self.rng, |point, picked, print| {
            let verdict = checker.verdict(print, |image| point.build(picked, image));
            let wrong = match &*verdict {
                Err(why) => Some((why.clone(), None)),
                Ok(cells) if !oracle.may_have(cells.len() as u32) => {
                    Some((format!("after the crash the disk has {} cells", cells.len()), None))
                }
                Ok(cells) => {
                    cells.iter().zip(&allowed).position(|(tag, ok)| !ok.contains(tag)).map(|cell| {
                        (format!("after the crash: {}", cells[cell]), Some(cell as u32))
                    })
                }
            };
            bad = wrong.map(|(why, cell)| (why, cell, picked.to_vec()));
            bad.is_none()
        });
        self.checker.tally.points += 1;
        self.checker.tally.states += seen as u64;
        let result = match bad {
            None => Ok(()),
            Some((why, cell, picked)) => {
                let what = format!("{why} ({})", if kill { "kill" } else { "power loss" });
                self.violated(what, cell).map_err(|mut violation| {
                    violation.story.push_str(&survivors(&atoms, &picked));
                    violation
                })
            }
        };
        self.atoms = atoms;
        result
    }

    fn gather(&self, kill: bool, atoms: &mut Vec<Atom>) {
        atoms.clear();
        if kill {
            self.host.torn(self.file, atoms);
        } else {
            self.host.at_risk(self.file, atoms);
        }
    }

    /// Crashes in one way of the seed's choice, recovers and lives on.
    pub(crate) fn crash_and_go_on(&mut self, kill: bool) -> Result<(), Violation> {
        // After a failed sync the page cache lies to the next process as well; only a restart of
        // the machine, or dropping the cache, brings the truth back.
        let lies = self.host.file(self.file).pending().iter().any(|a| a.stage == Stage::Frozen);
        let kill = kill && !lies;
        let mut atoms = Vec::new();
        self.gather(kill, &mut atoms);
        let density = self.rng.below(17);
        let picked: Vec<bool> = atoms.iter().map(|_| self.rng.chance(density, 16)).collect();
        self.log.push(format!("{:>4}: crash, kill {kill}, {picked:?}", self.step));
        let mut image = Image::default();
        let file = self.host.file(self.file);
        let base = if kill { file.live() } else { file.durable() };
        let point = CrashPoint::new(base, &atoms, self.style.mode, self.world.is_device());
        point.build(&picked, &mut image);
        let verdict = self.checker.verdict(image.print(), |into| into.clone_from(&image));
        let content = match &*verdict {
            Ok(content) => content.clone(),
            Err(why) => return self.violated(why.clone(), None),
        };
        self.host.drop_flights();
        self.slots = [None; SLOTS];
        if kill {
            let deeds = atoms.into_iter().zip(&picked).filter(|(_, picked)| **picked);
            let deeds = deeds.map(|(atom, _)| atom.deed).collect();
            let file = self.host.file_mut(self.file);
            file.execute_deeds(deeds);
            file.orphan();
            self.oracle.was_killed(&content);
        } else {
            self.host.file_mut(self.file).reset(image.bytes());
            self.oracle.lost_power(&content);
        }
        self.reopen()
    }

    /// Opens the image again as the next process does.
    fn reopen(&mut self) -> Result<(), Violation> {
        // First what the dead process left in the page cache, or recovery would build on sand.
        let before = self.world.opening_steps(self.style.bug);
        let steps = self.world.recovery(self.host.file(self.file).live().bytes(), self.style.bug);
        let steps = match steps {
            Ok(steps) => steps,
            Err(why) => return self.violated(why, None),
        };
        for step in before.iter().chain(&steps) {
            run_step(self.host.file_mut(self.file), step);
            self.crash_everywhere(false)?;
        }
        self.wire = Wire::new(self.style.bug);
        self.struck_before = self.host.struck();
        let bytes = self.host.file(self.file).live().bytes();
        match self.world.open_as(bytes, self.style.bug, &self.ids) {
            Ok(disk) => {
                self.disk = disk;
                drop(self.disk.publish());
                // What is open is durable: the opening synced.
                let cells = self.cells();
                self.oracle.settle_size(cells);
                Ok(())
            }
            Err(why) => self.violated(why, None),
        }
    }

    /// Nobody may have changed a parent.
    pub(crate) fn judge_parents(&self) -> Result<(), Violation> {
        for (no, parent) in self.ids[1..].iter().zip(self.world.parents()) {
            if self.host.file(*no).live().bytes() != parent.as_slice() {
                return self.violated(format!("parent {no:?} was changed"), None);
            }
        }
        Ok(())
    }

    pub(crate) fn violated(&self, what: String, cell: Option<u32>) -> Result<(), Violation> {
        let mut story = self.log.join("\n");
        story.push('\n');
        if let Some(cell) = cell {
            let (sector, quarter) = (cell / 4, cell % 4);
            story.push_str(&format!("cell {cell} (sector {sector}, quarter {quarter}):\n"));
            story.push_str(&self.oracle.story(cell));
        }
        Err(Violation { what, story })
    }
}

fn brief(outcome: &orlop::engine::effect::Outcome) -> String {
    match outcome {
        orlop::engine::effect::Outcome::Bytes(bytes) => format!("{} bytes", bytes.len()),
        other => format!("{other:?}"),
    }
}

fn survivors(atoms: &[Atom], picked: &[bool]) -> String {
    let mut text = String::from("effects at risk (op, survived, what):\n");
    for (atom, picked) in atoms.iter().zip(picked) {
        let what = match &atom.deed {
            orlop::host::sim::atom::Deed::Put { no, body, .. } => {
                format!("sector {no} = {:02x?}...", &body[..8])
            }
            other => format!("{other:?}"),
        };
        text.push_str(&format!("  {:>10} {picked:<5} {what}\n", atom.op));
    }
    text
}

fn extent(cells: Cells) -> Extent {
    let at = DiskOffset::new(u64::from(cells.first) * CELL as u64);
    Extent::new(at, ByteLen::new(u64::from(cells.count) * CELL as u64))
}

fn span(slot: usize, cells: Cells) -> Span {
    let start = (slot * MOST_CELLS as usize * CELL) as u32;
    Span { region: ARENA, start, len: cells.count * CELL as u32 }
}

const _: () = assert!(SECTOR as usize == 4 * CELL);

//! The simulated host: carries out effects on simulated files, in an order its seed chooses.
//!
//! Execution and delivery of a completion are two steps, so a completion may be told late and in
//! any order. Refuses to know requests, disks or formats: effects in, outcomes out.

use crate::engine::effect::{
    Effect, EffectId, FileId, FileRun, IoError, Outcome, Piece, Source, Target,
};
use crate::engine::units::{ByteLen, FileOffset, RegionId, Span};

use super::atom::{Atom, Deed, Stage};
use super::fault::{FaultPlan, Target as FaultTarget};
use super::fs::{Change, OpId, SimFile};
use super::ground::Ground;
use super::rng::Rng;

/// One effect on its way.
#[derive(Debug)]
struct Flight {
    id: EffectId,
    file: FileId,
    /// Moment of the start, by the host's clock.
    started: u64,
    stage: Progress,
    /// The memory its bytes came from, and their print: nobody may change them meanwhile (I6).
    lent: Vec<(Span, u64)>,
}

#[derive(Debug)]
enum Progress {
    Read { at: FileOffset, into: Target },
    Change { change: Change, durable: bool },
    Extents { at: FileOffset, len: ByteLen, most: u32 },
    Sync,
    Done { outcome: Outcome, ops: Vec<OpId> },
    Empty,
}

/// What one step of the host did.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing is in flight.
    Idle,
    /// Something was executed, wholly or in part; nobody was told yet.
    Executed,
    /// A completion to hand to the disk.
    Delivered(EffectId, Outcome),
}

/// A host with files, lent memory, a schedule and a plan of failures.
#[derive(Debug)]
pub struct SimHost {
    files: Vec<SimFile>,
    ground: Ground,
    flights: Vec<Flight>,
    rng: Rng,
    clock: u64,
    faults: FaultPlan,
    effects: u64,
    /// Operations of a change that was executed in parts, waiting for the rest.
    parts: Vec<(EffectId, OpId)>,
}

/// What [`Effect::Extents`] may say of a file that is held in memory: every sector of zeroes may be
/// a hole. What lies behind the end counts as data.
pub fn holes_in(file: &[u8], at: FileOffset, len: ByteLen, most: u32) -> Vec<FileRun> {
    let (start, end) = (at.get() as usize, at.get().saturating_add(len.get()) as usize);
    let mut runs: Vec<FileRun> = Vec::new();
    let mut now = start;
    while now < end {
        let next = (now / 512 * 512 + 512).min(end);
        let hole = file.get(now..next).is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0));
        let step = if now < file.len() { next - now } else { end - now };
        now += step;
        let full = runs.len() >= most.max(1) as usize;
        match runs.last_mut() {
            Some(last) if last.hole == hole => last.len += ByteLen::new(step as u64),
            _ if full => break,
            _ => runs.push(FileRun { len: ByteLen::new(step as u64), hole }),
        }
    }
    runs
}

/// The only region of the arena.
pub const ARENA: RegionId = RegionId(0);

impl SimHost {
    /// A host with `arena` bytes of memory to lend.
    pub fn new(seed: u64, arena: ByteLen) -> Self {
        Self::on(Ground::Own(vec![0; arena.get() as usize]), seed)
    }

    /// A host that works on this memory.
    pub(super) fn on(ground: Ground, seed: u64) -> Self {
        Self {
            files: Vec::new(),
            ground,
            flights: Vec::new(),
            rng: Rng::new(seed),
            clock: 0,
            faults: FaultPlan::default(),
            effects: 0,
            parts: Vec::new(),
        }
    }

    /// Opens a file; ids count from zero.
    pub fn add_file(&mut self, file: SimFile) -> FileId {
        self.files.push(file);
        FileId((self.files.len() - 1) as u16)
    }

    /// An open file.
    pub fn file(&self, id: FileId) -> &SimFile {
        &self.files[usize::from(id.0)]
    }

    /// An open file, to change it behind everybody's back.
    pub fn file_mut(&mut self, id: FileId) -> &mut SimFile {
        &mut self.files[usize::from(id.0)]
    }

    /// Which operations fail from now on.
    pub fn set_faults(&mut self, faults: FaultPlan) {
        self.faults = faults;
    }

    /// How many operations were made to fail.
    pub fn struck(&self) -> u32 {
        self.faults.struck()
    }

    /// How many effects were started.
    pub fn effects(&self) -> u64 {
        self.effects
    }

    /// How many effects are in flight.
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// The bytes of a span.
    pub fn bytes(&self, span: Span) -> &[u8] {
        self.ground.bytes(span)
    }

    /// The bytes of a span, for the client that owns it.
    ///
    /// # Panics
    /// When the memory belongs to an arena: whoever has the lease asks that.
    pub fn bytes_mut(&mut self, span: Span) -> &mut [u8] {
        self.ground.own_mut(span)
    }

    /// Takes an effect. It is executed by some later step.
    pub fn start(&mut self, effect: Effect) {
        self.clock += 1;
        self.effects += 1;
        let (id, file) = (effect.id(), effect.file());
        let mut lent = Vec::new();
        let stage = match effect {
            Effect::Read { at, into, .. } => {
                if let Target::Span(span) = into {
                    self.ground.spoil(span);
                }
                Progress::Read { at, into }
            }
            Effect::Write { at, from, durable, .. } => {
                self.ground.watch(&from, &mut lent);
                Progress::Change { change: Change::Write(at, self.gather(&from)), durable }
            }
            Effect::Zero { at, len, .. } => {
                Progress::Change { change: Change::Zero(at, len), durable: false }
            }
            Effect::Punch { at, len, .. } => {
                Progress::Change { change: Change::Punch(at, len), durable: false }
            }
            Effect::SetLength { len, .. } => {
                Progress::Change { change: Change::Truncate(len), durable: false }
            }
            Effect::Extents { at, len, most, .. } => Progress::Extents { at, len, most },
            Effect::Sync { .. } => Progress::Sync,
        };
        self.flights.push(Flight { id, file, started: self.clock, stage, lent });
    }

    fn gather(&self, from: &Source) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(from.len().get() as usize);
        match from {
            Source::Span(span) => bytes.extend_from_slice(self.bytes(*span)),
            Source::Owned(own) => bytes.extend_from_slice(own),
            Source::Pieces(pieces) => pieces.iter().for_each(|piece| match piece {
                Piece::Span(span) => bytes.extend_from_slice(self.bytes(*span)),
                Piece::Owned(own) => bytes.extend_from_slice(own),
            }),
        }
        bytes
    }

    /// Executes or delivers one effect of the schedule's choice.
    pub fn step(&mut self) -> Step {
        if self.flights.is_empty() {
            return Step::Idle;
        }
        let pick = self.rng.below(self.flights.len());
        self.step_at(pick)
    }

    fn step_at(&mut self, pick: usize) -> Step {
        self.clock += 1;
        match std::mem::replace(&mut self.flights[pick].stage, Progress::Empty) {
            Progress::Done { outcome, ops } => {
                let flight = self.flights.swap_remove(pick);
                for (span, print) in &flight.lent {
                    let now = self.ground.print(*span);
                    assert_eq!(now, *print, "I6: {span:?} was changed while it was being written");
                }
                let file = &mut self.files[usize::from(flight.file.0)];
                ops.iter().for_each(|op| file.delivered(*op, self.clock));
                Step::Delivered(flight.id, outcome)
            }
            stage => {
                let stage = self.execute(pick, stage);
                self.flights[pick].stage = stage;
                Step::Executed
            }
        }
    }

    fn execute(&mut self, pick: usize, stage: Progress) -> Progress {
        let (id, file) = (self.flights[pick].id, usize::from(self.flights[pick].file.0));
        let started = self.flights[pick].started;
        match stage {
            Progress::Read { at, into } => {
                let outcome = self.read(file, at, into);
                Progress::Done { outcome, ops: Vec::new() }
            }
            Progress::Change { change, durable } => self.change(id, file, change, durable),
            Progress::Extents { at, len, most } => {
                // Fewer than asked for, so that who asks has to ask again.
                let most = most.min(1 + self.rng.below(3) as u32);
                let runs = holes_in(self.files[file].live().bytes(), at, len, most);
                Progress::Done { outcome: Outcome::Extents(runs), ops: Vec::new() }
            }
            Progress::Sync => {
                let outcome = match self.faults.strike(FaultTarget::Sync) {
                    None => {
                        self.files[file].sync(started);
                        Outcome::Done
                    }
                    Some(error) => {
                        self.files[file].sync_failed(started);
                        Outcome::Failed(error)
                    }
                };
                Progress::Done { outcome, ops: Vec::new() }
            }
            done => done,
        }
    }

    fn read(&mut self, file: usize, at: FileOffset, into: Target) -> Outcome {
        if let Some(error) = self.faults.strike(FaultTarget::Read) {
            return Outcome::Failed(error);
        }
        let (start, len) = (at.get() as usize, into.len().get() as usize);
        let Some(found) = self.files[file].live().bytes().get(start..start + len) else {
            return Outcome::Failed(IoError::UNEXPECTED_EOF);
        };
        match into {
            Target::Span(span) => {
                self.ground.put(span, found);
                Outcome::Done
            }
            Target::Owned(mut bytes) => {
                bytes.copy_from_slice(found);
                Outcome::Bytes(bytes)
            }
        }
    }

    fn change(&mut self, id: EffectId, file: usize, change: Change, durable: bool) -> Progress {
        let kind = match change {
            Change::Write(..) => FaultTarget::Write,
            _ => FaultTarget::Zero,
        };
        if let Some(rest) = self.short(id, file, &change) {
            return Progress::Change { change: rest, durable };
        }
        let error = self.faults.strike(kind);
        let error = error.or((!self.files[file].fits(&change)).then_some(IoError::ENOSPC));
        let mut ops: Vec<OpId> =
            self.parts.extract_if(.., |part| part.0 == id).map(|part| part.1).collect();
        let op = match error {
            None => self.files[file].execute(&change),
            Some(_) => self.fail(file, &change),
        };
        ops.push(op);
        if durable && error.is_none() {
            ops.iter().for_each(|op| self.files[file].settle(*op));
        }
        let outcome = error.map_or(Outcome::Done, Outcome::Failed);
        Progress::Done { outcome, ops }
    }

    /// A short transfer now and then: the first sectors are written now, the rest by a later step.
    fn short(&mut self, id: EffectId, file: usize, change: &Change) -> Option<Change> {
        let Change::Write(at, bytes) = change else { return None };
        if bytes.len() <= 512 || !self.files[file].fits(change) || !self.rng.chance(1, 8) {
            return None;
        }
        // Torn at a sector of the file, like everything here.
        let cut = 512 * (1 + self.rng.below((bytes.len() - 1) / 512));
        let cut = cut - (at.get() % 512) as usize;
        let first = Change::Write(*at, bytes[..cut].to_vec());
        let op = self.files[file].execute(&first);
        self.parts.push((id, op));
        Some(Change::Write(*at + ByteLen::new(cut as u64), bytes[cut..].to_vec()))
    }

    /// A failed change may have done any part of itself.
    fn fail(&mut self, file: usize, change: &Change) -> OpId {
        let mut deeds = Vec::new();
        if self.files[file].fits(change) {
            self.files[file].deeds(change, &mut deeds);
        }
        let keep = self.rng.below(deeds.len() + 1);
        let whole = self.rng.chance(1, 2);
        let rng = &mut self.rng;
        let mut at = 0;
        deeds.retain(|_| {
            at += 1;
            if whole { at <= keep } else { rng.chance(1, 2) }
        });
        self.files[file].execute_deeds(deeds)
    }

    /// Every effect a power loss may take or leave on `file`, the executed and the unexecuted.
    pub fn at_risk(&self, file: FileId, into: &mut Vec<Atom>) {
        into.clear();
        into.extend_from_slice(self.file(file).pending());
        self.torn(file, into);
    }

    /// Adds the effects of changes that were started and not executed: each sector of them may
    /// have been written when the process died.
    pub fn torn(&self, file: FileId, into: &mut Vec<Atom>) {
        let mut deeds: Vec<Deed> = Vec::new();
        for (no, flight) in self.flights.iter().enumerate() {
            let Progress::Change { change, .. } = &flight.stage else { continue };
            if flight.file == file && self.file(file).fits(change) {
                self.file(file).deeds(change, &mut deeds);
                let op = u32::MAX - no as u32;
                let stage = Stage::Executed;
                into.extend(deeds.drain(..).map(|deed| Atom { op, stage, deed }));
            }
        }
    }

    /// The process dies: effects in flight are forgotten. What became of them is up to the caller.
    pub fn drop_flights(&mut self) {
        self.flights.clear();
        self.parts.clear();
    }
}

//! Files and memory that several disks share, and their effects in flight. Every read and write is
//! carried out in pieces that end anywhere, also inside a sector: whoever reads beside a write sees
//! half of it.

use orlop::engine::effect::{Effect, EffectId, FileId, IoError, Outcome, Piece, Source, Target};
use orlop::engine::units::{RegionId, Span};
use orlop::host::sim::host::holes_in;
use orlop::host::sim::rng::Rng;

/// An effect on its way.
struct Flight {
    disk: usize,
    effect: Effect,
    /// Bytes moved so far.
    done: usize,
    /// What a read has found, or a write brings.
    bytes: Vec<u8>,
    outcome: Option<Outcome>,
}

/// Where effects happen.
pub(crate) struct Bench {
    pub(crate) files: Vec<Vec<u8>>,
    memory: Vec<u8>,
    flights: Vec<Flight>,
    /// The next sync fails.
    pub(crate) sync_fails: bool,
}

impl Bench {
    pub(crate) fn new(files: Vec<Vec<u8>>) -> Self {
        Self { files, memory: Vec::new(), flights: Vec::new(), sync_fails: false }
    }

    pub(crate) fn lend(&mut self, len: u32) -> Span {
        let start = self.memory.len() as u32;
        self.memory.resize((start + len) as usize, 0xEE);
        Span { region: RegionId(0), start, len }
    }

    pub(crate) fn bytes(&mut self, span: Span) -> &mut [u8] {
        &mut self.memory[span.start as usize..][..span.len as usize]
    }

    pub(crate) fn start(&mut self, disk: usize, effect: Effect) {
        let bytes = match &effect {
            Effect::Write { from, .. } => self.gather(from),
            _ => Vec::new(),
        };
        self.flights.push(Flight { disk, effect, done: 0, bytes, outcome: None });
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.flights.len()
    }

    fn gather(&self, from: &Source) -> Vec<u8> {
        let lent = |span: &Span| &self.memory[span.start as usize..][..span.len as usize];
        match from {
            Source::Span(span) => lent(span).to_vec(),
            Source::Owned(bytes) => bytes.clone(),
            Source::Pieces(pieces) => {
                let pieces = pieces.iter().map(|piece| match piece {
                    Piece::Span(span) => lent(span),
                    Piece::Owned(bytes) => bytes.as_slice(),
                });
                pieces.collect::<Vec<_>>().concat()
            }
        }
    }

    /// Goes on with one effect of the lot's choice; if it is over, tells whose it was.
    pub(crate) fn step(&mut self, rng: &mut Rng) -> Option<(usize, EffectId, Outcome)> {
        if self.flights.is_empty() {
            return None;
        }
        let index = rng.below(self.flights.len());
        if self.flights[index].outcome.is_some() {
            let Flight { disk, effect, outcome, .. } = self.flights.swap_remove(index);
            return Some((disk, effect.id(), outcome?));
        }
        let mut flight = self.flights.swap_remove(index);
        flight.outcome = self.go_on(&mut flight, rng);
        self.flights.push(flight);
        None
    }

    fn go_on(&mut self, flight: &mut Flight, rng: &mut Rng) -> Option<Outcome> {
        let file = &mut self.files[usize::from(flight.effect.file().0)];
        match &flight.effect {
            Effect::Read { may_lend: true, .. } if flight.done == 0 && rng.chance(1, 4) => {
                return Some(Outcome::Lent);
            }
            Effect::Read { at, into, .. } => {
                let (at, len) = (at.get() as usize, into.len().get() as usize);
                let next = flight.done + piece(len - flight.done, rng);
                let Some(found) = file.get(at + flight.done..at + next) else {
                    return Some(Outcome::Failed(IoError::UNEXPECTED_EOF));
                };
                flight.bytes.extend_from_slice(found);
                flight.done = next;
                if next < len {
                    return None;
                }
            }
            Effect::Write { at, .. } => {
                let (at, len) = (at.get() as usize, flight.bytes.len());
                let next = flight.done + piece(len - flight.done, rng);
                if file.len() < at + next {
                    file.resize(at + next, 0);
                }
                let part = &flight.bytes[flight.done..next];
                file[at + flight.done..at + next].copy_from_slice(part);
                flight.done = next;
                return (next == len).then_some(Outcome::Done);
            }
            Effect::Zero { at, len, .. } | Effect::Punch { at, len, .. } => {
                let (at, len) = (at.get() as usize, len.get() as usize);
                let next = flight.done + piece(len - flight.done, rng);
                let fill = matches!(flight.effect, Effect::Zero { .. });
                if fill && file.len() < at + next {
                    file.resize(at + next, 0);
                }
                let end = file.len();
                file[(at + flight.done).min(end)..(at + next).min(end)].fill(0);
                flight.done = next;
                return (next == len).then_some(Outcome::Done);
            }
            Effect::SetLength { len, .. } => file.resize(len.get() as usize, 0),
            Effect::Extents { at, len, most, .. } => {
                return Some(Outcome::Extents(holes_in(file, *at, *len, *most)));
            }
            Effect::Sync { .. } if std::mem::take(&mut self.sync_fails) => {
                return Some(Outcome::Failed(IoError::EIO));
            }
            Effect::Sync { .. } => {}
        }
        if let Effect::Read { into, .. } = &mut flight.effect {
            let found = std::mem::take(&mut flight.bytes);
            match into {
                Target::Span(span) => {
                    self.memory[span.start as usize..][..found.len()].copy_from_slice(&found);
                }
                Target::Owned(_) => return Some(Outcome::Bytes(found)),
            }
        }
        Some(Outcome::Done)
    }

    pub(crate) fn stored(&self, file: FileId, at: u64, len: u64) -> &[u8] {
        &self.files[usize::from(file.0)][at as usize..][..len as usize]
    }
}

/// How much of what is left is done next.
fn piece(left: usize, rng: &mut Rng) -> usize {
    if rng.chance(1, 2) { left } else { 1 + rng.below(left.max(1)) }.min(left)
}

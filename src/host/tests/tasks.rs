//! Tasks against calls that move less than asked, get interrupted or are not supported; direct
//! calls must lie on the grid.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::{Dice, arena};
use crate::engine::effect::{EffectId, FileId, IoError, Outcome, Piece, Source, Target};
use crate::engine::units::{ByteLen, FileOffset};
use crate::host::files::FileTable;
use crate::host::task::{Call, Erase, Task, TaskName, Via, Work};
use crate::host::{Descriptors, OpenMode};

struct Unkind {
    file: File,
    align: u64,
    dice: Dice,
}

impl Unkind {
    fn on_grid(&self, bytes: &[u8], at: u64) {
        let (address, len) = (bytes.as_ptr() as u64, bytes.len() as u64);
        let place = (address % self.align, at % self.align, len % self.align);
        assert_eq!(place, (0, 0, 0), "call off the grid of {}", self.align);
    }

    /// Part of what was asked for, in whole units.
    fn some(&mut self, len: u64) -> u64 {
        let units = len / self.align;
        if units < 2 || self.dice.one_in(2) {
            len
        } else {
            (1 + self.dice.below(units)) * self.align
        }
    }

    fn call(&mut self, task: &mut Task) -> Result<usize, IoError> {
        if self.dice.one_in(5) {
            return Err(IoError(if self.dice.one_in(2) { 4 } else { 11 }));
        }
        match task.call() {
            Call::Read { at } => {
                let into = task.read_into();
                self.on_grid(into, at.get());
                let len = self.some(into.len() as u64) as usize;
                Ok(self.file.read_at(&mut into[..len], at.get()).unwrap())
            }
            Call::Write { at, via, .. } => {
                let mut slices = Vec::new();
                let room = 1 + self.dice.below(3) as usize;
                task.write_from(room, &mut |bytes| slices.push(bytes));
                assert!((1..=room).contains(&slices.len()));
                let mut at_now = at.get();
                for bytes in &slices {
                    if via == Via::Main {
                        self.on_grid(bytes, at_now);
                    }
                    let len = self.some(bytes.len() as u64) as usize;
                    self.file.write_all_at(&bytes[..len], at_now).unwrap();
                    at_now += len as u64;
                    if len < bytes.len() {
                        break;
                    }
                }
                Ok((at_now - at.get()) as usize)
            }
            Call::Erase { .. } => Err(IoError(95)),
            Call::SetLength { .. } | Call::Extents { .. } | Call::Sync => Ok(0),
        }
    }

    fn run(&mut self, mut task: Task) -> Outcome {
        if let Some(outcome) = task.start() {
            return outcome;
        }
        loop {
            let result = self.call(&mut task);
            if let Some(outcome) = task.result(result) {
                return outcome;
            }
        }
    }
}

fn live(align: u32, seed: u64) {
    let mut dice = Dice::new(seed);
    let mut arena = arena();
    let file = tempfile::tempfile().unwrap();
    let mut model = dice.bytes(30_000 + dice_len(seed));
    file.write_all_at(&model, 0).unwrap();
    let mut files = FileTable::new();
    let direct = align > 1;
    let mode = OpenMode { direct, mem_align: align, offset_align: align, device: false };
    let id = files
        .add(Descriptors {
            main: OwnedFd::from(file.try_clone().unwrap()),
            cached: Some(OwnedFd::from(file.try_clone().unwrap())),
            mode,
        })
        .unwrap();
    let name = TaskName { tag: 0, id: EffectId(0), file: id };
    let mut unkind = Unkind { file, align: u64::from(align), dice: Dice::new(seed + 100) };
    for step in 0..300 {
        let at = dice.below(model.len() as u64 + 3000) as usize;
        let len = dice.below([600, 9000, 60_000][step % 3]) as usize;
        let at_offset = FileOffset::new(at as u64);
        let lease = arena.take(len as u32 + 600).unwrap();
        let skip = [0, 512, 3][dice.below(3) as usize];
        let span = lease.part(skip..skip + len as u32);
        let bytes = dice.bytes(len);
        let mut wanted = Outcome::Done;
        let work = match dice.below(4) {
            0 => {
                if at + len > model.len() && len > 0 {
                    wanted = Outcome::Failed(IoError::UNEXPECTED_EOF);
                }
                Work::Read { at: at_offset, into: Target::Span(span) }
            }
            1 => {
                let how = if dice.one_in(2) { Erase::Punch } else { Erase::Zero };
                erase(&mut model, how, at, len);
                Work::Erase { how, at: at_offset, len: ByteLen::new(len as u64) }
            }
            kind => {
                arena.copy_in(span, &bytes);
                put(&mut model, at, &bytes);
                let from = if kind == 2 {
                    Source::Span(span)
                } else {
                    let half = len as u32 / 2;
                    let first = Piece::Owned(bytes[..half as usize].to_vec());
                    let last = lease.part(skip + half..skip + len as u32);
                    Source::Pieces(vec![first, Piece::Span(last)])
                };
                Work::Write { at: at_offset, from, durable: false }
            }
        };
        let reads = matches!(work, Work::Read { .. }) && wanted == Outcome::Done;
        let file = Arc::clone(files.file(id).unwrap());
        let outcome = unkind.run(Task::new(name, file, &arena.memory(), work).unwrap());
        assert_eq!(outcome, wanted, "align {align} seed {seed} step {step}: {at} {len}");
        if reads && len > 0 {
            assert!(arena.bytes(span) == &model[at..at + len], "align {align} seed {seed}");
        }
        arena.give(lease);
        let size = unkind.file.metadata().unwrap().len();
        assert_eq!(size, model.len() as u64, "align {align} seed {seed} step {step}: {at} {len}");
    }
    let mut bytes = vec![0; model.len()];
    unkind.file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == model, "align {align} seed {seed}");
}

fn dice_len(seed: u64) -> usize {
    [0, 1, 512, 3584][seed as usize % 4]
}

fn put(model: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if !bytes.is_empty() && at + bytes.len() > model.len() {
        model.resize(at + bytes.len(), 0);
    }
    if !bytes.is_empty() {
        model[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

fn erase(model: &mut Vec<u8>, how: Erase, at: usize, len: usize) {
    let end = if how == Erase::Zero { at + len } else { (at + len).min(model.len()) };
    if at < end {
        put(model, at, &vec![0; end - at]);
    }
}

#[test]
fn tasks_move_everything_through_unkind_calls() {
    for seed in 1..=8 {
        for align in [1, 512, 4096] {
            live(align, seed);
        }
    }
}

#[test]
fn positions_beyond_all_files_are_refused() {
    let mut files = FileTable::new();
    let fd = OwnedFd::from(tempfile::tempfile().unwrap());
    let id: FileId = files.add(Descriptors::new(fd, OpenMode::BUFFERED)).unwrap();
    let name = TaskName { tag: 0, id: EffectId(0), file: id };
    for at in [u64::MAX, i64::MAX as u64] {
        let work = Work::Erase { how: Erase::Zero, at: FileOffset::new(at), len: ByteLen::new(1) };
        let file = Arc::clone(files.file(id).unwrap());
        let refused = Task::new(name, file, &arena().memory(), work);
        assert_eq!(refused.map(|_| ()), Err(IoError(22)));
    }
}

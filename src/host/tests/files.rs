//! Effects on a real file, through both hosts and every way of opening.

use std::ops::Range;

use super::{Dice, WAYS, Way, arena, hosts, open, outcome, start};
use crate::engine::effect::{Effect, EffectId, FileId, IoError, Outcome, Piece, Source, Target};
use crate::engine::units::{ByteLen, FileOffset};
use crate::host::memory::{Arena, Lease};
use crate::host::task::{Erase, Work};
use crate::host::{Event, Host};

/// What a test awaits of an effect.
struct Awaited {
    range: Range<usize>,
    /// The bytes a read must bring.
    bytes: Option<Vec<u8>>,
    leases: Vec<Lease>,
    /// The part of the lease that was read into.
    skip: u32,
}

/// A file and what it must hold.
struct Model {
    host: Host,
    arena: Arena,
    file: FileId,
    bytes: Vec<u8>,
    awaited: Vec<Option<Awaited>>,
    dice: Dice,
}

const FILE_MAX: u64 = 200_000;

impl Model {
    /// A range nothing in flight touches.
    fn free_range(&mut self, end: u64) -> Option<Range<usize>> {
        let grain = [1, 1, 512, 4096][self.dice.below(4) as usize];
        let at = self.dice.below(end) / grain * grain;
        let most = [700, 5000, 40_000][self.dice.below(3) as usize];
        let len = (self.dice.below(most) / grain * grain + grain).min(end - at);
        let range = at as usize..(at + len) as usize;
        let clear =
            |other: &Awaited| other.range.end <= range.start || range.end <= other.range.start;
        self.awaited.iter().flatten().all(clear).then_some(range)
    }

    fn act(&mut self) {
        let reads = self.dice.one_in(2) && !self.bytes.is_empty();
        let end = if reads { self.bytes.len() as u64 } else { FILE_MAX };
        let Some(range) = self.free_range(end) else { return };
        let at = FileOffset::new(range.start as u64);
        let len = ByteLen::new(range.len() as u64);
        let mut awaited = Awaited { range: range.clone(), bytes: None, leases: vec![], skip: 0 };
        if reads {
            awaited.bytes = Some(self.bytes[range].to_vec());
            let into = self.target(len, &mut awaited);
            let id = EffectId(self.awaited.len() as u32);
            self.awaited.push(Some(awaited));
            self.host.start(7, Effect::Read { id, file: self.file, at, into, may_lend: false });
            return;
        }
        let erase = self.dice.one_in(4);
        let work = if erase {
            let how = if self.dice.one_in(2) { Erase::Punch } else { Erase::Zero };
            let size = self.bytes.len();
            let end = if how == Erase::Zero { range.end } else { range.end.min(size) };
            if range.start < end {
                self.grow(end);
                self.bytes[range.start..end].fill(0);
            }
            Work::Erase { how, at, len }
        } else {
            let bytes = self.dice.bytes(range.len());
            self.grow(range.end);
            self.bytes[range].copy_from_slice(&bytes);
            let from = self.source(bytes, &mut awaited);
            Work::Write { at, from, durable: self.dice.one_in(20) }
        };
        let id = self.awaited.len() as u32;
        self.awaited.push(Some(awaited));
        start(&mut self.host, id, self.file, work);
        if self.dice.one_in(30) {
            let id = self.awaited.len() as u32;
            let (bytes, leases) = (None, vec![]);
            self.awaited.push(Some(Awaited { range: 0..0, bytes, leases, skip: 0 }));
            start(&mut self.host, id, self.file, Work::Sync);
        }
    }

    /// The file gets longer. `live` then waits, or a read could be earlier there than the bytes.
    fn grow(&mut self, end: usize) {
        if end > self.bytes.len() {
            self.bytes.resize(end, 0);
        }
    }

    fn lease(&mut self, len: u64, awaited: &mut Awaited) -> crate::engine::units::Span {
        let skip = if self.dice.one_in(2) { 0 } else { self.dice.below(513) as u32 };
        let lease = self.arena.take(len as u32 + skip).unwrap();
        let span = lease.part(skip..skip + len as u32);
        awaited.leases.push(lease);
        awaited.skip = skip;
        span
    }

    fn target(&mut self, len: ByteLen, awaited: &mut Awaited) -> Target {
        if self.dice.one_in(3) {
            return Target::Owned(vec![0xEE; len.get() as usize]);
        }
        let span = self.lease(len.get(), awaited);
        self.arena.bytes_mut(span).fill(0xEE);
        Target::Span(span)
    }

    fn source(&mut self, bytes: Vec<u8>, awaited: &mut Awaited) -> Source {
        match self.dice.below(3) {
            0 => Source::Owned(bytes),
            1 => {
                let span = self.lease(bytes.len() as u64, awaited);
                self.arena.copy_in(span, &bytes);
                Source::Span(span)
            }
            _ => {
                let cut = self.dice.below(bytes.len() as u64 + 1) as usize;
                let (first, last) = bytes.split_at(cut);
                let span = self.lease(last.len() as u64, awaited);
                self.arena.copy_in(span, last);
                Source::Pieces(vec![Piece::Owned(first.to_vec()), Piece::Span(span)])
            }
        }
    }

    fn wait(&mut self) {
        let mut events = Vec::new();
        self.host.wait(None, &mut events).unwrap();
        for event in events {
            let Event::Effect { tag: 7, id, outcome } = event else { panic!("{event:?}") };
            let awaited = self.awaited[id.0 as usize].take().unwrap();
            match (outcome, &awaited.bytes) {
                (Outcome::Done, Some(wanted)) => {
                    let skip = awaited.skip;
                    let span = awaited.leases[0].part(skip..skip + wanted.len() as u32);
                    assert!(self.arena.bytes(span) == wanted, "read of {:?}", awaited.range);
                }
                (Outcome::Bytes(bytes), Some(wanted)) => {
                    assert!(&bytes == wanted, "read of {:?}", awaited.range);
                }
                (Outcome::Done, None) => {}
                (outcome, _) => panic!("{outcome:?} of {:?}", awaited.range),
            }
            awaited.leases.into_iter().for_each(|lease| self.arena.give(lease));
        }
        assert_eq!(self.host.in_flight(), self.awaited.iter().flatten().count());
    }
}

fn live(host: Host, arena: Arena, way: Way, seed: u64) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let file = open(&path, way);
    println!("{way:?} {:?} seed {seed}", file.mode);
    let mut host = host;
    let file = host.add_file(file).unwrap();
    let mut dice = Dice::new(seed);
    // A file that is not whole units long, so that its end is met in the middle of one.
    let bytes = dice.bytes(70_001 + 512 * (seed as usize % 5));
    std::fs::write(&path, &bytes).unwrap();
    let mut model = Model { host, arena, file, bytes, awaited: vec![], dice };
    for _ in 0..600 {
        let before = model.bytes.len();
        model.act();
        let grew = model.bytes.len() > before;
        while model.host.in_flight() > if grew { 0 } else { 12 } {
            model.wait();
        }
    }
    while model.host.in_flight() > 0 {
        model.wait();
    }
    model.host.remove_file(file);
    assert_eq!(model.arena.lent(), 0);
    assert!(std::fs::read(&path).unwrap() == model.bytes, "{way:?} seed {seed}");
}

#[test]
fn a_file_holds_what_a_byte_array_would_hold() {
    for seed in 1..=3 {
        for way in WAYS {
            // Every host gets memory of its own: leases go back to where they came from.
            for which in 0..hosts(&arena()).len() {
                let arena = arena();
                let host = hosts(&arena).swap_remove(which);
                live(host, arena, way, seed);
            }
        }
    }
}

#[test]
fn ragged_neighbours_in_one_unit_do_not_lose_each_other() {
    let arena = arena();
    for mut host in hosts(&arena) {
        for way in WAYS {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("image");
            let file = open(&path, way);
            std::fs::write(&path, [0; 8192]).unwrap();
            let file = host.add_file(file).unwrap();
            for id in 0..64u32 {
                let from = Source::Owned(vec![id as u8 + 1; 100]);
                let at = FileOffset::new(u64::from(id) * 100);
                start(&mut host, id, file, Work::Write { at, from, durable: false });
            }
            let mut events = Vec::new();
            while events.len() < 64 {
                host.wait(None, &mut events).unwrap();
            }
            let bytes = std::fs::read(&path).unwrap();
            for (at, byte) in bytes.iter().enumerate() {
                let wanted = if at < 6400 { (at / 100 + 1) as u8 } else { 0 };
                assert_eq!((at, *byte), (at, wanted), "{way:?}");
            }
            host.remove_file(file);
        }
    }
}

#[test]
fn a_read_over_the_end_of_the_file_fails_and_a_ragged_write_there_does_not_round_it_up() {
    let arena = arena();
    for mut host in hosts(&arena) {
        for way in WAYS {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("image");
            let file = open(&path, way);
            std::fs::write(&path, [9; 1000]).unwrap();
            let file = host.add_file(file).unwrap();
            for (at, len) in [(0, 1001), (999, 2), (1000, 1), (0, 4096), (4096, 4096)] {
                let (at, into) = (FileOffset::new(at), Target::Owned(vec![0; len]));
                host.start(7, Effect::Read { id: EffectId(1), file, at, into, may_lend: false });
                let failed = Outcome::Failed(IoError::UNEXPECTED_EOF);
                assert_eq!(outcome(&mut host), failed, "{way:?} {at} {len}");
            }
            let (at, into) = (FileOffset::new(990), Target::Owned(vec![0; 10]));
            host.start(7, Effect::Read { id: EffectId(1), file, at, into, may_lend: false });
            assert_eq!(outcome(&mut host), Outcome::Bytes(vec![9; 10]));
            let (at, from) = (FileOffset::new(1024), Source::Owned(vec![7; 512]));
            start(&mut host, 2, file, Work::Write { at, from, durable: true });
            assert_eq!(outcome(&mut host), Outcome::Done);
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(bytes.len(), 1536, "{way:?}");
            assert_eq!((bytes[999], bytes[1000], bytes[1023], bytes[1024]), (9, 0, 0, 7));
            host.remove_file(file);
        }
    }
}

#[test]
fn a_large_read_lands_in_one_lease() {
    let mut arena = arena();
    for mut host in hosts(&arena) {
        for way in [Way::Cached, Way::Direct] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("image");
            let bytes = Dice::new(5).bytes(5 << 20);
            std::fs::write(&path, &bytes).unwrap();
            let file = open(&path, way);
            let file = host.add_file(file).unwrap();
            let lease = arena.take(5 << 20).unwrap();
            for skip in [0u32, 1] {
                let at = FileOffset::new(u64::from(skip));
                let into = Target::Span(lease.part(0..(5 << 20) - skip));
                host.start(7, Effect::Read { id: EffectId(1), file, at, into, may_lend: false });
                assert_eq!(outcome(&mut host), Outcome::Done);
                let got = arena.bytes(lease.part(0..(5 << 20) - skip));
                assert!(got == &bytes[skip as usize..]);
            }
            arena.give(lease);
            host.remove_file(file);
        }
    }
}

#[test]
fn an_effect_on_a_file_that_is_not_open_fails() {
    let arena = arena();
    for mut host in hosts(&arena) {
        start(&mut host, 1, FileId(3), Work::Sync);
        assert_eq!(outcome(&mut host), Outcome::Failed(IoError(9)));
        assert_eq!(host.in_flight(), 0);
    }
}

#[test]
fn a_file_is_given_a_length_and_its_new_bytes_are_zeroes() {
    let arena = arena();
    for way in WAYS {
        for mut host in hosts(&arena) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("image");
            std::fs::write(&path, [7; 1000]).unwrap();
            let file = open(&path, way);
            let file = host.add_file(file).unwrap();
            for len in [9728, 1500] {
                let work = Work::SetLength { len: ByteLen::new(len) };
                start(&mut host, 1, file, work);
                assert_eq!(outcome(&mut host), Outcome::Done, "{way:?}");
                start(&mut host, 2, file, Work::Sync);
                assert_eq!(outcome(&mut host), Outcome::Done, "{way:?}");
                let mut wanted = vec![0; len as usize];
                wanted[..1000].fill(7);
                assert!(std::fs::read(&path).unwrap() == wanted, "{way:?}");
            }
            host.remove_file(file);
        }
    }
}

#[test]
fn cached_reads_started_together_share_an_enter() {
    let mut arena = arena();
    let Some(mut host) = hosts(&arena).into_iter().find(|host| matches!(host, Host::Uring(_)))
    else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    std::fs::write(&path, vec![1; 1 << 20]).unwrap();
    let file = open(&path, Way::Cached);
    let file = host.add_file(file).unwrap();
    let leases: Vec<_> = (0..32).map(|_| arena.take(4096).unwrap()).collect();
    let mut events = Vec::new();
    for round in 0..100u64 {
        for (slot, lease) in leases.iter().enumerate() {
            let at = FileOffset::new((slot as u64 * 7 + round) % 256 * 4096);
            let (id, into) = (EffectId(slot as u32), Target::Span(lease.span()));
            host.start(7, Effect::Read { id, file, at, into, may_lend: false });
        }
        while events.len() < 32 {
            host.wait(None, &mut events).unwrap();
        }
        events.clear();
    }
    let counted = host.counters();
    println!("{counted:?}");
    assert!(counted.enters <= counted.effects, "{counted:?}");
    leases.into_iter().for_each(|lease| arena.give(lease));
}

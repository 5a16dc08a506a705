//! Guests of a written disk at the level of the engine: an owner and two guests over the same
//! files, whose effects are carried out in pieces and in any order by lot. Whatever a guest answers
//! must be what the disk said at some moment between question and answer, sector by sector, with
//! none half written; and no acknowledged change may be missing.
//!
//! `ORLOP_GUEST_LIVES` and `ORLOP_GUEST_SEED` say how many lives and from which seed on.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "guests/bench.rs"]
mod bench;
#[allow(dead_code)]
#[path = "model/images.rs"]
mod images;
#[path = "guests/oracle.rs"]
mod oracle;
#[allow(dead_code)]
#[path = "model/script.rs"]
mod script;

use std::collections::BTreeMap;

use orlop::engine::Disk;
use orlop::engine::effect::FileId;
use orlop::engine::request::{Answer, Fault, Part, Request, RequestId, Segment};
use orlop::engine::units::{ByteLen, DiskOffset, Extent, Span};
use orlop::host::sim::rng::Rng;

use bench::Bench;
use images::{ImageBytes, open_disk, open_guest};
use oracle::Oracle;
use script::{Bottom, Upper};

const SECTOR: usize = 512;
/// Sixteen of the ranges of which changes are told. In every other life some are missing, so that
/// the last block is cut.
const SECTORS: u32 = 2048;
/// The owner comes first.
const DISKS: usize = 3;
const LIVES: u64 = 300;

/// A request in flight, of whichever disk it was asked.
#[derive(Clone, Copy)]
struct Ask {
    request: Request,
    first: usize,
    count: usize,
    asked: u64,
    disk: usize,
    /// Its owner has it.
    handed: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    /// Reads asked of guests, and those of them that they answered by themselves.
    asked: u64,
    alone: u64,
    changes: u64,
    failed: u64,
}

struct Life {
    bench: Bench,
    disks: Vec<Disk>,
    asks: BTreeMap<u64, Ask>,
    oracle: Oracle,
    rng: Rng,
    now: u64,
    stopped: bool,
    tally: Tally,
}

fn extent(first: usize, count: usize) -> Extent {
    let at = DiskOffset::new((first * SECTOR) as u64);
    Extent::new(at, ByteLen::new((count * SECTOR) as u64))
}

impl Life {
    fn new(chain: &[ImageBytes], content: &[u64], rng: Rng) -> Self {
        let files: Vec<_> = (0..chain.len()).map(|at| FileId(at as u16)).collect();
        let mut owner = open_disk(chain, &files, true);
        let published = owner.publish().unwrap();
        let guest = || open_guest(chain, &files, published.clone());
        Self {
            bench: Bench::new(chain.iter().map(|image| image.bytes.clone()).collect()),
            disks: vec![owner, guest(), guest()],
            asks: BTreeMap::new(),
            oracle: Oracle::new(content),
            rng,
            now: 0,
            stopped: false,
            tally: Tally::default(),
        }
    }

    fn submit(&mut self, disk: usize, request: Request, first: usize, count: usize) {
        self.now += 1;
        self.asks
            .insert(self.now, Ask { request, first, count, asked: self.now, disk, handed: false });
        self.disks[disk].submit(RequestId(self.now), request);
    }

    fn place(&mut self, most: usize) -> (usize, usize) {
        let all = self.oracle.sectors();
        let first = self.rng.below(all);
        (first, 1 + self.rng.below(most.min(all - first)))
    }

    fn read(&mut self) {
        let disk = self.rng.below(DISKS);
        let (first, count) = self.place(40);
        let into = self.bench.lend((count * SECTOR) as u32);
        self.tally.asked += u64::from(disk > 0);
        let extent = extent(first, count);
        let request = match self.rng.chance(1, 2) {
            true => Request::Read { extent, into },
            false => Request::Fetch { extent, into },
        };
        self.submit(disk, request, first, count);
    }

    fn change(&mut self) {
        let disk = self.rng.below(DISKS);
        let (mut first, mut count) = self.place(64);
        if self.rng.chance(1, 3) {
            // Whole blocks, so that they come free and are used again.
            first = first / 8 * 8;
            count = count.next_multiple_of(8).min(self.oracle.sectors() - first);
        }
        if self.oracle.is_changing(first, count) {
            return;
        }
        let extent = extent(first, count);
        let fua = self.rng.chance(1, 8);
        let stamp = self.now + 1;
        let (request, value) = match self.rng.below(8) {
            0 => (Request::Discard { extent, fua }, None),
            1 => (Request::Zero { extent, may_unmap: true, fua }, Some(0)),
            2 => (Request::Zero { extent, may_unmap: false, fua }, Some(0)),
            _ => {
                let from = self.bench.lend((count * SECTOR) as u32);
                self.bench.bytes(from).chunks_exact_mut(8).for_each(|word| {
                    word.copy_from_slice(&stamp.to_le_bytes());
                });
                (Request::Write { extent, from, fua }, Some(stamp))
            }
        };
        self.tally.changes += 1;
        self.oracle.begin(first, count, value, stamp);
        self.submit(disk, request, first, count);
    }

    fn act(&mut self) {
        let changes = self.asks.values().filter(|ask| is_change(&ask.request)).count();
        match self.rng.below(60) {
            0..14 => self.read(),
            14..18 if changes < 3 => self.change(),
            18 if self.rng.chance(1, 2) => {
                let disk = self.rng.below(DISKS);
                self.submit(disk, Request::Flush, 0, 0);
            }
            19 if self.rng.chance(1, 30) => {
                let sectors = self.oracle.sectors() as u64 + 1 + self.rng.below(200) as u64;
                let disk = self.rng.below(DISKS);
                let size = ByteLen::new(sectors * SECTOR as u64);
                self.submit(disk, Request::Resize { size }, 0, 0);
            }
            20 if self.rng.chance(1, 400) => self.bench.sync_fails = true,
            _ => {
                if let Some((disk, id, outcome)) = self.bench.step(&mut self.rng) {
                    self.disks[disk].complete(id, outcome);
                }
            }
        }
        self.pump();
    }

    fn pump(&mut self) {
        for disk in 0..DISKS {
            while let Some(effect) = self.disks[disk].poll_effect() {
                assert!(disk == 0 || is_read(&effect), "a guest asks for {effect:?}");
                self.bench.start(disk, effect);
            }
        }
        for disk in 0..DISKS {
            while let Some(reply) = self.disks[disk].poll_reply() {
                self.replied(disk, reply.id, reply.result);
            }
            while let Some((id, request)) = self.disks[disk].poll_elsewhere() {
                // As a steward does: nothing is fetched.
                let request = match request {
                    Request::Fetch { extent, into } => Request::Read { extent, into },
                    other => other,
                };
                self.disks[0].submit(id, request);
            }
        }
        if self.disks[0].has_output() || self.disks.iter().skip(1).any(Disk::has_output) {
            self.pump();
        }
    }

    fn replied(&mut self, from: usize, id: RequestId, result: Result<Answer, Fault>) {
        let ask = self.asks[&id.0];
        if from == 0 && ask.disk != 0 {
            self.asks.get_mut(&id.0).unwrap().handed = true;
            self.disks[ask.disk].answered(id, result);
            return;
        }
        self.asks.remove(&id.0);
        self.now += 1;
        let alone = ask.disk != 0 && !ask.handed;
        match (ask.request, result) {
            (Request::Resize { size }, Ok(_)) => {
                self.oracle.grow((size.get() / SECTOR as u64) as usize);
            }
            (Request::Read { into, .. } | Request::Fetch { into, .. }, Ok(answer)) => {
                self.tally.alone += u64::from(alone);
                assert!(!self.stopped || self.now == 0, "a read of a stopped disk is answered");
                self.judge(&ask, into, &answer);
            }
            (Request::Read { .. } | Request::Fetch { .. }, Err(_)) => {
                assert!(!alone, "a guest fails by itself");
                self.tally.failed += 1;
            }
            (request, Ok(_)) if is_change(&request) => {
                self.oracle.told(ask.first, ask.count, self.now);
            }
            (_, Ok(_)) => {}
            (request, Err(fault)) => {
                self.tally.failed += 1;
                // Only a failed sync fails anything here; a size that no table can have apart.
                let resize = matches!(request, Request::Resize { .. });
                assert!(resize || self.disks[0].stopped().is_some(), "{request:?}: {fault}");
            }
        }
        if self.disks[0].stopped().is_some() {
            self.stopped |= self.asks.is_empty();
        }
    }

    fn judge(&mut self, ask: &Ask, into: Span, answer: &Answer) {
        let bytes = self.bytes_of(into, answer);
        assert_eq!(bytes.len(), ask.count * SECTOR);
        for (at, sector) in bytes.chunks_exact(SECTOR).enumerate() {
            let mut words = sector.chunks_exact(8);
            let value = u64::from_le_bytes(words.next().unwrap().try_into().unwrap());
            let whole = words.all(|word| word == value.to_le_bytes());
            // That an owner reads no half sector beside its own write is for its host to see to.
            let owner = ask.disk == 0 || ask.handed;
            if owner && self.oracle.was_changing(ask.first + at, ask.asked) {
                continue;
            }
            assert!(whole, "sector {} is torn for disk {}", ask.first + at, ask.disk);
            let may = self.oracle.may_read(ask.first + at, value, ask.asked, self.now);
            let sector = ask.first + at;
            assert!(
                may,
                "sector {sector} reads {value} for disk {}, asked {}",
                ask.disk, ask.asked
            );
        }
    }

    fn bytes_of(&mut self, into: Span, answer: &Answer) -> Vec<u8> {
        let parts: Vec<Part> = match answer {
            Answer::Segments(segments) => segments.iter().copied().map(Part::Segment).collect(),
            Answer::Fetched(parts) => parts.clone(),
            _ => return self.bench.bytes(into).to_vec(),
        };
        let mut bytes = Vec::new();
        for part in parts {
            match part {
                Part::Segment(Segment::Data(span)) => {
                    bytes.extend_from_slice(self.bench.bytes(span));
                }
                Part::Segment(Segment::Hole(len)) => {
                    bytes.resize(bytes.len() + len.get() as usize, 0)
                }
                Part::Stored(s) => {
                    bytes.extend_from_slice(self.bench.stored(s.file, s.at.get(), s.len.get()));
                }
            }
        }
        bytes
    }

    /// Lets everything end that is in flight.
    fn settle(&mut self) {
        self.pump();
        while self.bench.in_flight() > 0 {
            if let Some((disk, id, outcome)) = self.bench.step(&mut self.rng) {
                self.disks[disk].complete(id, outcome);
            }
            self.pump();
        }
        assert!(self.asks.is_empty(), "{} requests are never answered", self.asks.len());
        assert!(self.disks.iter().all(|disk| disk.in_flight() == 0));
    }

    fn live(&mut self, steps: usize) {
        for _ in 0..steps {
            self.act();
        }
        self.settle();
        if self.disks[0].stopped().is_none() {
            return;
        }
        // Who asks a guest now hears what its owner says.
        let failed = self.tally.failed;
        for disk in 0..DISKS {
            let into = self.bench.lend(SECTOR as u32);
            self.submit(disk, Request::Read { extent: extent(0, 1), into }, 0, 1);
        }
        self.settle();
        assert_eq!(self.tally.failed, failed + DISKS as u64);
    }

    /// What the disk holds, for the next who lives on it.
    fn content(&mut self) -> Vec<u64> {
        let all = self.oracle.sectors();
        let mut content = Vec::new();
        for first in 0..all {
            let into = self.bench.lend(SECTOR as u32);
            self.bench.bytes(into).fill(0);
            self.submit(0, Request::Read { extent: extent(first, 1), into }, first, 1);
            self.settle();
            let word = &self.bench.bytes(into)[..8];
            content.push(u64::from_le_bytes(word.try_into().unwrap()));
        }
        content
    }
}

fn is_change(request: &Request) -> bool {
    matches!(request, Request::Write { .. } | Request::Zero { .. } | Request::Discard { .. })
}

fn is_read(effect: &orlop::engine::effect::Effect) -> bool {
    matches!(effect, orlop::engine::effect::Effect::Read { .. })
}

/// Images of each kind; the children's parents have something in them.
fn chain(seed: u64) -> (Vec<ImageBytes>, Vec<u64>) {
    let bottom = match seed % 5 {
        0 => Bottom::Raw { ragged: 0 },
        1 => Bottom::Fixed,
        _ => Bottom::Dynamic { shift: 3 },
    };
    let sectors = SECTORS - [0, 3][(seed / 5 % 2) as usize];
    let mut chain = vec![ImageBytes::bottom(bottom, sectors)];
    let mut content = vec![0; sectors as usize];
    for depth in 0..(seed % 5).saturating_sub(2) {
        let mut life = Life::new(&chain, &content, Rng::new(seed ^ 0x5EED ^ depth));
        for _ in 0..60 {
            life.change();
            life.settle();
        }
        life.submit(0, Request::Flush, 0, 0);
        life.settle();
        content = life.content();
        chain[0].bytes = life.bench.files.swap_remove(0);
        let child = chain[0].child(Upper { shift: 3, sectors: None }, depth as u8 + 1);
        chain.insert(0, child);
    }
    (chain, content)
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn a_guest_answers_what_the_disk_said_at_one_moment() {
    let (lives, first) = (setting("ORLOP_GUEST_LIVES", LIVES), setting("ORLOP_GUEST_SEED", 1));
    let mut all = Tally::default();
    let mut alone = [0; 5];
    for seed in first..first + lives {
        println!("life {seed}");
        let (chain, content) = chain(seed);
        let mut life = Life::new(&chain, &content, Rng::new(seed));
        life.live(4000);
        let Tally { asked, changes, failed, .. } = life.tally;
        all.asked += asked;
        all.alone += life.tally.alone;
        all.changes += changes;
        all.failed += failed;
        alone[(seed % 5) as usize] += life.tally.alone;
    }
    println!("{all:?}, alone by kind {alone:?}");
    assert!(lives < 100 || alone.iter().all(|alone| *alone > 1000), "{alone:?}: too tame");
}

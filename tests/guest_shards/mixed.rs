//! What is written through one shard is read through the other at once, whole sectors always.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::scope;

use orlop::host::Aio;
use orlop::host::memory::ArenaSize;
use orlop::host::sim::rng::Rng;
use tempfile::TempDir;

use crate::house::{House, KINDS, Kind, SIZE, TRIM, WRITE_ZEROES, ask, image};
use crate::oracle::Oracle;
use crate::rig::{MIB, Peer, command};

const SECTOR: usize = 512;
const AIOS: [Aio; 2] = [Aio::Threads, Aio::Auto];

fn each(aios: &[Aio], act: impl Fn(Kind, House)) {
    for kind in KINDS {
        for aio in aios.iter().copied() {
            let folder = TempDir::new().unwrap();
            let house = House::over(aio, &image(&folder, kind));
            println!("{kind:?} {aio:?}");
            act(kind, house);
        }
    }
}

#[test]
fn what_one_shard_writes_the_other_reads_at_once() {
    each(&AIOS, |_, house| {
        let (mut here, mut there) = (house.at_owner(), house.at_guest());
        for round in 1..=200_u64 {
            let at = round * 7919 * 512 % (SIZE - 8192);
            let len = 512 * (1 + round as usize % 16);
            let (from, to) =
                if round % 3 == 0 { (&mut there, &mut here) } else { (&mut here, &mut there) };
            from.write(0, at, &vec![round as u8; len]).unwrap();
            assert_eq!(to.read(at, len as u32), Ok(vec![round as u8; len]), "round {round}");
            // The second time it knows where it lies.
            assert_eq!(to.read(at, len as u32), Ok(vec![round as u8; len]), "round {round}");
            match round % 5 {
                0 => ask(from, WRITE_ZEROES, at, len as u32).unwrap(),
                1 => ask(from, TRIM, at / 4096 * 4096, 8192).unwrap(),
                2 => ask(from, command::FLUSH, 0, 0).unwrap(),
                _ => continue,
            }
            let wanted = if round % 5 == 2 { round as u8 } else { 0 };
            if round % 5 != 1 {
                assert_eq!(to.read(at, len as u32), Ok(vec![wanted; len]), "round {round}");
            }
        }
        drop((here, there));
        house.close();
    });
}

#[test]
fn a_whole_disk_is_the_same_on_both_shards_and_after_it_is_opened_again() {
    for kind in KINDS {
        let folder = TempDir::new().unwrap();
        let path = image(&folder, kind);
        let house = House::over(Aio::Auto, &path);
        let (mut here, mut there) = (house.at_owner(), house.at_guest());
        let piece = |n: u64| vec![n as u8 + 1; MIB as usize];
        for n in 0..SIZE / MIB {
            let peer = if n % 2 == 0 { &mut here } else { &mut there };
            peer.write(0, n * MIB, &piece(n)).unwrap();
        }
        ask(&mut there, command::FLUSH, 0, 0).unwrap();
        for peer in [&mut here, &mut there, &mut house.at_guest()] {
            for n in 0..SIZE / MIB {
                assert!(peer.read(n * MIB, MIB as u32) == Ok(piece(n)), "{kind:?}: piece {n}");
            }
        }
        drop((here, there));
        house.close();
        let house = House::over(Aio::Threads, &path);
        let mut again = house.at_guest();
        for n in 0..SIZE / MIB {
            assert!(again.read(n * MIB, MIB as u32) == Ok(piece(n)), "{kind:?}: piece {n}, again");
        }
        drop(again);
        house.close();
    }
}

/// What the threads of the model share: the oracle and its clock.
struct Model {
    oracle: Mutex<Oracle>,
    now: AtomicU64,
    sectors: usize,
}

impl Model {
    fn tick(&self) -> u64 {
        self.now.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn place(&self, rng: &mut Rng, most: usize) -> (usize, usize) {
        let first = rng.below(self.sectors);
        (first, 1 + rng.below(most.min(self.sectors - first)))
    }

    /// A change, unless another of the same sectors is in flight.
    fn change(&self, peer: &mut Peer, rng: &mut Rng) {
        let (first, count) = self.place(rng, 48);
        let stamp = self.tick();
        let kind = rng.below(10);
        let value = match kind {
            0 => None,
            1 => Some(0),
            _ => Some(stamp),
        };
        let mut oracle = self.oracle.lock().unwrap();
        if oracle.is_changing(first, count) {
            return;
        }
        oracle.begin(first, count, value, stamp);
        drop(oracle);
        let (at, len) = ((first * SECTOR) as u64, (count * SECTOR) as u32);
        match kind {
            0 => ask(peer, TRIM, at, len).unwrap(),
            1 => ask(peer, WRITE_ZEROES, at, len).unwrap(),
            _ => {
                let bytes = stamp.to_le_bytes().repeat(count * SECTOR / 8);
                peer.write(u16::from(kind == 2), at, &bytes).unwrap();
            }
        }
        self.oracle.lock().unwrap().told(first, count, self.tick());
    }

    fn read(&self, peer: &mut Peer, rng: &mut Rng) {
        let (first, count) = self.place(rng, 48);
        let from = self.tick();
        let bytes = peer.read((first * SECTOR) as u64, (count * SECTOR) as u32).unwrap();
        let now = self.tick();
        let oracle = self.oracle.lock().unwrap();
        for (at, sector) in bytes.chunks_exact(SECTOR).enumerate() {
            let mut words = sector.chunks_exact(8);
            let value = u64::from_le_bytes(words.next().unwrap().try_into().unwrap());
            let sector = first + at;
            assert!(words.all(|word| word == value.to_le_bytes()), "sector {sector} is torn");
            assert!(oracle.may_read(sector, value, from, now), "sector {sector} reads {value}");
        }
    }
}

#[test]
fn four_connections_on_two_shards_are_a_flat_array_of_sectors() {
    let rounds = std::env::var("ORLOP_GUEST_ROUNDS").map_or(4000, |text| text.parse().unwrap());
    each(&AIOS, |kind, house| {
        let sectors = (SIZE / 512) as usize;
        let model = Model {
            oracle: Mutex::new(Oracle::new(&vec![0; sectors])),
            now: AtomicU64::new(0),
            sectors,
        };
        let peers = [house.at_owner(), house.at_guest(), house.at_guest(), house.at_owner()];
        scope(|threads| {
            for (seed, mut peer) in (1..).zip(peers) {
                let model = &model;
                threads.spawn(move || {
                    let mut rng = Rng::new(seed + kind as u64 * 16);
                    for _ in 0..rounds {
                        match rng.below(40) {
                            0 => ask(&mut peer, command::FLUSH, 0, 0).unwrap(),
                            1..10 => model.change(&mut peer, &mut rng),
                            _ => model.read(&mut peer, &mut rng),
                        }
                    }
                });
            }
        });
        house.close();
    });
}

#[test]
fn nobody_reads_half_a_sector_beside_a_writer_of_whole_ones() {
    const PLACE: u64 = 3 * MIB;
    const LEN: usize = 64 << 10;
    // A pool of threads reads beside its own writes; that is so with one shard as well.
    if let Err(error) = orlop::shard::spawn(Aio::Uring, ArenaSize::default()) {
        return println!("SKIPPED: {error}");
    }
    each(&[Aio::Uring], |_, house| {
        let over = AtomicBool::new(false);
        let mut writers = [house.at_owner(), house.at_guest()];
        let mut readers = [house.at_guest(), house.at_guest()];
        scope(|threads| {
            let over = &over;
            for reader in &mut readers {
                threads.spawn(move || {
                    while !over.load(Ordering::SeqCst) {
                        let bytes = reader.read(PLACE, LEN as u32).unwrap();
                        for (at, sector) in bytes.chunks_exact(SECTOR).enumerate() {
                            let whole = sector.iter().all(|byte| *byte == sector[0]);
                            assert!(whole, "sector {at} is torn");
                        }
                    }
                });
            }
            for round in 0..1500_u32 {
                let bytes = vec![round as u8; LEN];
                writers[round as usize % 8 / 7].write(0, PLACE, &bytes).unwrap();
            }
            over.store(true, Ordering::SeqCst);
        });
        drop((writers, readers));
        house.close();
    });
}

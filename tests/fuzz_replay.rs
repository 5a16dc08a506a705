//! The fuzz targets without a fuzzer: every committed input is replayed, then mutations of them run
//! for `ORLOP_FUZZ_SECONDS` (2) per target. A finding is saved and named, and replays with
//! `ORLOP_FUZZ_INPUT=FILE cargo test --test fuzz_replay one_input`.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[path = "support/fuzz/mod.rs"]
mod bodies;

use bodies::{
    TARGETS, Target, engine_requests, management, nbd_receive, nbd_session, seeds, vhd_open,
};

/// Longest input that mutation makes.
const INPUT_BYTES_MAX: usize = 64 << 10;

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

fn inputs(target: &str) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(corpus(target)).expect("each target has a corpus");
    let mut all: Vec<(String, Vec<u8>)> = entries
        .map(|entry| {
            let path = entry.expect("an entry of the corpus").path();
            (path.display().to_string(), fs::read(&path).expect("an input"))
        })
        .collect();
    all.sort();
    all
}

/// xorshift64*: the same seed, the same mutations, on every machine.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, most: usize) -> usize {
        ((self.roll() >> 33) as usize) % most.max(1)
    }
}

/// Numbers at which formats and protocols tend to break.
const EDGES: [u64; 10] =
    [0, 1, 511, 512, 4096, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFE, 0xFFFF_FFFF, u64::MAX];

fn mutate(bytes: &mut Vec<u8>, other: &[u8], dice: &mut Dice) {
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len());
        match dice.below(8) {
            0 | 1 if !bytes.is_empty() => bytes[at] ^= 1 << dice.below(8),
            2 if !bytes.is_empty() => bytes[at] = dice.roll() as u8,
            3 | 4 => {
                let value = EDGES[dice.below(EDGES.len())].wrapping_add(dice.below(3) as u64);
                let width = [1, 2, 4, 8][dice.below(4)];
                let aligned = 1 + at / 4 * 4;
                if let Some(place) = bytes.get_mut(aligned..aligned + width) {
                    place.copy_from_slice(&value.to_be_bytes()[8 - width..]);
                }
            }
            5 => {
                let end = bytes.len().min(at + 1 + dice.below(64));
                bytes.drain(at.min(end)..end);
            }
            6 => {
                let from = dice.below(other.len());
                let piece = &other[from..other.len().min(from + 1 + dice.below(128))];
                bytes.splice(at..at, piece.iter().copied());
            }
            _ => {
                let from = dice.below(other.len());
                let piece = &other[from..other.len().min(from + 1 + dice.below(512))];
                let len = piece.len().min(bytes.len() - at);
                bytes[at..at + len].copy_from_slice(&piece[..len]);
            }
        }
    }
    bytes.truncate(INPUT_BYTES_MAX);
}

/// Runs a body; a panic is told with the input that caused it.
fn judge((name, body): Target, bytes: &[u8], what: &str) {
    if catch_unwind(AssertUnwindSafe(|| body(bytes))).is_ok() {
        return;
    }
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("finding-{name}"));
    fs::write(&path, bytes).expect("a finding can be saved");
    unreachable!("{name}: {what} is a finding, saved as {}", path.display());
}

fn replay(target: Target) {
    let inputs = inputs(target.0);
    for (name, bytes) in &inputs {
        judge(target, bytes, name);
    }
    let seconds = std::env::var("ORLOP_FUZZ_SECONDS").map_or(Ok(2), |text| text.parse());
    let limit = Duration::from_secs(seconds.expect("ORLOP_FUZZ_SECONDS is a number"));
    let seed = std::env::var("ORLOP_FUZZ_SEED").map_or(Ok(1), |text| text.parse());
    let seed: u64 = seed.expect("ORLOP_FUZZ_SEED is a number");
    let (start, mut runs) = (Instant::now(), 0_u64);
    let mut dice = Dice(seed.wrapping_mul(2).wrapping_add(1));
    while start.elapsed() < limit {
        let mut bytes = inputs[dice.below(inputs.len())].1.clone();
        let other = &inputs[dice.below(inputs.len())].1;
        mutate(&mut bytes, other, &mut dice);
        judge(target, &bytes, &format!("mutation {runs} of seed {seed}"));
        runs += 1;
    }
    println!("{}: {} inputs, {runs} mutations, no finding", target.0, inputs.len());
}

#[test]
fn bytes_of_an_image_are_survived() {
    replay(("vhd_open", vhd_open));
}

#[test]
fn bytes_of_a_peer_are_survived() {
    replay(("nbd_receive", nbd_receive));
}

#[test]
fn a_disk_in_any_order_and_with_any_fault_keeps_its_bytes() {
    replay(("engine_requests", engine_requests));
}

#[test]
fn a_connection_of_any_bytes_in_any_pieces_leaves_nothing_behind() {
    replay(("nbd_session", nbd_session));
}

#[test]
fn requests_of_any_bytes_get_answers_that_can_be_read() {
    replay(("management", management));
}

#[test]
fn every_seed_is_in_the_corpus() {
    for (target, _) in TARGETS {
        let known: Vec<Vec<u8>> = inputs(target).into_iter().map(|(_, bytes)| bytes).collect();
        for (name, bytes) in seeds(target) {
            assert!(known.contains(&bytes), "{target}/{name}: run write_the_seeds");
        }
    }
}

#[test]
#[ignore = "writes into the repository: run it after changing a seed"]
fn write_the_seeds() {
    for (target, _) in TARGETS {
        fs::create_dir_all(corpus(target)).expect("the corpus can be written");
        for (name, bytes) in seeds(target) {
            fs::write(corpus(target).join(name), bytes).expect("the corpus can be written");
        }
    }
}

#[test]
fn one_input_named_by_the_environment_is_survived() {
    let Ok(path) = std::env::var("ORLOP_FUZZ_INPUT") else { return };
    let bytes = fs::read(&path).expect("ORLOP_FUZZ_INPUT names a file");
    for target in TARGETS.iter().filter(|(name, _)| path.contains(name)) {
        judge(*target, &bytes, &path);
    }
}

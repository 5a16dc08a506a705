//! What the micro-benchmarks share: a stop watch, images that exist as descriptions only, and a
//! host that has always just finished. Moves no bytes: what is measured is thinking.
#![allow(dead_code, unreachable_pub)]

use std::hint::black_box;
use std::time::Instant;

use orlop::engine::Disk;
use orlop::engine::effect::{Effect, FileId, Outcome, Target};
use orlop::engine::layer::{Layer, Located, MetaPage};
use orlop::engine::request::{Reply, Request, RequestId};
use orlop::engine::units::{ByteLen, DiskOffset, Extent, RegionId, Span};
use vhd::{Image, Limits, Opening, Step};

#[path = "../../tests/support/vhd_builder.rs"]
mod builder;

pub use builder::{Builder, SparseFile};

/// Rounds of a measurement; the median counts.
const ROUNDS: usize = 9;

/// Runs `act` `count` times a round and prints the median of nanoseconds per call.
pub fn measure(name: &str, count: u64, mut act: impl FnMut(u64)) {
    let mut rounds: Vec<f64> = (0..ROUNDS as u64)
        .map(|round| {
            let start = Instant::now();
            for turn in 0..count {
                act(black_box(round * count + turn));
            }
            start.elapsed().as_nanos() as f64 / count as f64
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    let (least, median, most) = (rounds[0], rounds[ROUNDS / 2], rounds[ROUNDS - 1]);
    println!("{name:<44} {median:>9.1} ns  ({least:.1} to {most:.1})");
}

/// A number that jumps about, the same in each run.
pub fn scatter(turn: u64) -> u64 {
    turn.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20
}

/// Opens a described image.
pub fn opened(file: &SparseFile) -> Image {
    let mut opening = Opening::new(vhd::ByteLen::new(file.len), Limits::default());
    let mut bytes: Option<Vec<u8>> = None;
    loop {
        match opening.step(bytes.as_deref()).expect("the builder makes sound images") {
            Step::Done(image) => return image,
            Step::Read { at, len } => bytes = Some(file.read(at.get(), len)),
        }
    }
}

/// A page of metadata: of the table as described, of a bitmap with all bits set.
fn page(file: &SparseFile, table_end: u64, page: MetaPage) -> Vec<u8> {
    if page.at.get() < table_end {
        return file.read(page.at.get(), page.len as usize);
    }
    vec![0xFF; page.len as usize]
}

/// Where the first byte of an extent lives, after whatever had to be learnt.
pub fn locate(layer: &mut dyn Layer, file: &SparseFile, table_end: u64, at: u64) -> Located {
    let wanted = Extent::new(DiskOffset::new(at), ByteLen::new(4096));
    loop {
        match layer.locate(wanted) {
            Located::Ask(asked) => {
                let bytes = page(file, table_end, asked);
                layer.learn(asked, &bytes).expect("described pages are sound");
            }
            found => return found,
        }
    }
}

/// The 4 KiB at `at`, as a request names them.
pub fn four_kib(at: u64) -> (Extent, Span) {
    let span = Span { region: RegionId(0), start: 0, len: 4096 };
    (Extent::new(DiskOffset::new(at), ByteLen::new(4096)), span)
}

/// Lets a request run to its end and returns how many effects it took.
pub fn run(disk: &mut Disk, files: &[(SparseFile, u64)], request: Request) -> u64 {
    disk.submit(RequestId(1), request);
    let mut effects = 0;
    while let Some(effect) = disk.poll_effect() {
        effects += 1;
        let id = effect.id();
        let outcome = match effect {
            Effect::Read { file: FileId(index), at, into: Target::Owned(into), .. } => {
                let (file, table_end) = &files[usize::from(index)];
                let asked = MetaPage { at, len: into.len() as u32 };
                Outcome::Bytes(page(file, *table_end, asked))
            }
            _ => Outcome::Done,
        };
        disk.complete(id, outcome);
    }
    let reply: Option<Reply> = disk.poll_reply();
    black_box(reply.expect("a disk without effects has replied").result.expect("no fault"));
    effects
}

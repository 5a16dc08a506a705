//! One set of sentences for every format: what holds for any layer and leaf, whatever it keeps in
//! its metadata. A new format adds one line to the macro's list at the end.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "layers/bench.rs"]
mod bench;
#[path = "support/foreign.rs"]
mod foreign;

use orlop::engine::request::{Answer, FaultKind, MapKind, Request, Segment};
use orlop::engine::units::{ByteLen, DiskOffset, Extent};

use bench::{Bench, Make, SIZE};

const fn extent(at: u64, len: u64) -> Extent {
    Extent::new(DiskOffset::new(at), ByteLen::new(len))
}

/// What was written is read, through any alignment and across blocks, now and after reopening.
fn reads_what_was_written(make: Make) {
    let mut bench = Bench::new(make);
    bench.write(extent(100, 9000), 7, false);
    bench.write(extent(SIZE - 700, 700), 8, false);
    bench.write(extent(4096, 4096), 9, true);
    bench.agrees();
    bench.reopen();
    bench.agrees();
}

/// Zeroed bytes read as zeroes, whatever a parent holds, and whether space was given back or not.
fn zeroes_hide_what_was_there(make: Make) {
    for may_unmap in [true, false] {
        let mut bench = Bench::new(make);
        bench.write(extent(0, 20000), 3, false);
        bench.zero(extent(1000, 12000), may_unmap);
        bench.zero(extent(SIZE - 9000, 9000), may_unmap);
        bench.agrees();
        bench.reopen();
        bench.agrees();
        bench.write(extent(1500, 100), 4, false);
        bench.zero(extent(0, SIZE), may_unmap);
        bench.agrees();
        bench.reopen();
        bench.agrees();
    }
}

/// A whole disk that is discarded takes no more room than before it was written.
fn discarding_gives_space_back(make: Make) {
    let mut bench = Bench::new(make);
    bench.write(extent(0, SIZE), 5, false);
    bench.flush();
    bench.zero(extent(0, SIZE), true);
    bench.flush();
    assert!(bench.punched() >= SIZE / 2, "only {} bytes were punched", bench.punched());
    bench.agrees();
    bench.reopen();
    bench.agrees();
}

/// Overwriting what is there syncs nothing until somebody flushes, and then at most twice.
fn overwriting_syncs_only_when_flushed(make: Make) {
    let mut bench = Bench::new(make);
    bench.write(extent(0, SIZE), 1, false);
    bench.flush();
    let before = bench.syncs();
    for n in 0..50 {
        bench.write(extent(n * 4096 % (SIZE - 4096), 4096), n as u8, false);
    }
    assert_eq!(bench.syncs(), before, "writes without a flush caused syncs");
    bench.flush();
    assert!((1..=2).contains(&(bench.syncs() - before)), "{} syncs", bench.syncs() - before);
    let settled = bench.syncs();
    bench.flush();
    assert_eq!(bench.syncs(), settled, "a flush with nothing to do");
    bench.agrees();
}

/// A commit of new blocks needs two barriers and no more.
fn allocating_costs_two_barriers(make: Make) {
    let mut bench = Bench::new(make);
    bench.write(extent(0, SIZE), 1, false);
    let before = bench.syncs();
    bench.flush();
    assert!(bench.syncs() - before <= 2, "{} syncs for a flush", bench.syncs() - before);
}

/// FUA is a promise of its own: nothing of it waits for a flush.
fn fua_leaves_nothing_to_flush(make: Make) {
    let mut bench = Bench::new(make);
    bench.write(extent(512, 4096), 6, true);
    bench.write(extent(512, 4096), 7, true);
    let before = bench.syncs();
    bench.flush();
    assert!(bench.syncs() - before <= 1, "a FUA write left a commit to do");
    bench.crash();
    bench.agrees();
}

/// The map covers the disk without gaps, and calls nothing empty that holds a byte.
fn the_map_tells_the_truth(make: Make) {
    let mut bench = Bench::new(make);
    bench.write(extent(70000, 3000), 2, false);
    let Answer::Map(runs) = bench.ask(Request::Map { extent: extent(0, SIZE), limit: 1000 }) else {
        panic!("a map was not answered by a map");
    };
    let mut at = 0;
    for run in runs {
        let end = at + run.len.get();
        let bytes = &bench.expected()[at as usize..end as usize];
        let empty = bytes.iter().all(|byte| *byte == 0);
        assert!(empty || matches!(run.kind, MapKind::Data { .. }), "{run:?} at {at}");
        at = end;
    }
    assert_eq!(at, SIZE);
}

/// A read of holes names them instead of filling memory.
fn holes_are_named(make: Make) {
    let mut bench = Bench::new(make);
    let into = bench.lend(SIZE as u32);
    let holes: u64 = match bench.ask(Request::Read { extent: extent(0, SIZE), into }) {
        Answer::Segments(segments) => segments.iter().map(hole_len).sum(),
        _ => 0,
    };
    let allocated = bench.expected().iter().any(|byte| *byte != 0) || bench.is_flat();
    assert!(allocated || holes == SIZE, "{holes} bytes of holes on an empty disk");
}

fn hole_len(segment: &Segment) -> u64 {
    match segment {
        Segment::Hole(len) => len.get(),
        Segment::Data(_) => 0,
    }
}

/// A disk opened for reading refuses to change and reads the same.
fn a_frozen_disk_refuses_to_change(make: Make) {
    let mut bench = Bench::new(make);
    bench.write(extent(3000, 3000), 5, false);
    bench.freeze();
    for request in [
        Request::Zero { extent: extent(0, 512), may_unmap: true, fua: false },
        Request::Discard { extent: extent(0, 512), fua: false },
    ] {
        let fault = bench.try_ask(request).unwrap_err();
        assert_eq!(fault.kind, FaultKind::ReadOnly);
    }
    bench.flush();
    bench.agrees();
}

/// After a failed sync the disk refuses everything, and does not sync again.
fn a_failed_sync_stops_the_disk(make: Make) {
    let mut bench = Bench::new(make);
    bench.write(extent(0, 4096), 5, false);
    bench.fail_next_sync();
    assert!(bench.try_ask(Request::Flush).is_err());
    let before = bench.syncs();
    assert!(bench.try_ask(Request::Flush).is_err());
    let into = bench.lend(512);
    assert!(bench.try_ask(Request::Read { extent: extent(0, 512), into }).is_err());
    assert_eq!(bench.syncs(), before, "a failed sync was tried again");
}

/// A disk grows while it is served, within a block and far beyond its table; what is new reads as
/// zeroes and can be written, and a smaller size is refused.
fn a_disk_grows(make: Make) {
    let mut bench = Bench::new(make);
    bench.write(extent(0, 300_000), 1, false);
    bench.write(extent(SIZE - 5000, 5000), 2, false);
    for size in [SIZE + 512, SIZE * 2 + 1024, SIZE * 5] {
        bench.grow(size);
        bench.agrees();
        bench.write(extent(size - 700, 700), 3, false);
        bench.agrees();
        bench.crash();
        let fault = bench.try_ask(Request::Resize { size: ByteLen::new(size - 512) }).unwrap_err();
        assert!(matches!(fault.kind, FaultKind::Unsupported(_)), "{fault}");
        bench.write(extent(size - 700, 700), 3, true);
        bench.write(extent(0, 300_000), 1, true);
        bench.agrees();
        bench.reopen();
        bench.agrees();
    }
    bench.freeze();
    bench.agrees();
    others_agree(make, &bench);
}

/// QEMU and 7-Zip find the disk in the grown image; both know no parents.
fn others_agree(make: Make, bench: &Bench) {
    let kind = match make {
        Make::Fixed => "fixed",
        // QEMU knows one block size.
        Make::Dynamic { block_bytes: 0x20_0000 } => "dynamic",
        _ => return,
    };
    if !foreign::have(&["qemu-img", "7zz", "vhdiinfo"]) {
        return;
    }
    let folder = tempfile::TempDir::new().unwrap();
    let (image, raw) = (folder.path().join("grown.vhd"), folder.path().join("wanted.raw"));
    std::fs::write(&image, bench.file()).unwrap();
    std::fs::write(&raw, bench.expected()).unwrap();
    let (image, raw) = (foreign::text(&image), foreign::text(&raw));
    let told = foreign::run("qemu-img", &["info", "-f", "vpc", image]);
    assert!(told.contains(&format!("{} bytes", bench.expected().len())), "{kind}: {told}");
    foreign::run("qemu-img", &["compare", "-f", "vpc", "-F", "raw", image, raw]);
    foreign::run("7zz", &["t", "-tvhd", image]);
    foreign::run("vhdiinfo", &[image]);
    foreign::orlop(&["check", image]);
}

macro_rules! every_format {
    ($($name:ident: $make:expr;)*) => {$(
        mod $name {
            use crate::bench::Make;

            const MAKE: Make = $make;

            #[test]
            fn reads_what_was_written() {
                crate::reads_what_was_written(MAKE);
            }

            #[test]
            fn zeroes_hide_what_was_there() {
                crate::zeroes_hide_what_was_there(MAKE);
            }

            #[test]
            fn discarding_gives_space_back() {
                crate::discarding_gives_space_back(MAKE);
            }

            #[test]
            fn overwriting_syncs_only_when_flushed() {
                crate::overwriting_syncs_only_when_flushed(MAKE);
            }

            #[test]
            fn allocating_costs_two_barriers() {
                crate::allocating_costs_two_barriers(MAKE);
            }

            #[test]
            fn fua_leaves_nothing_to_flush() {
                crate::fua_leaves_nothing_to_flush(MAKE);
            }

            #[test]
            fn the_map_tells_the_truth() {
                crate::the_map_tells_the_truth(MAKE);
            }

            #[test]
            fn holes_are_named() {
                crate::holes_are_named(MAKE);
            }

            #[test]
            fn a_frozen_disk_refuses_to_change() {
                crate::a_frozen_disk_refuses_to_change(MAKE);
            }

            #[test]
            fn a_disk_grows() {
                crate::a_disk_grows(MAKE);
            }

            #[test]
            fn a_failed_sync_stops_the_disk() {
                crate::a_failed_sync_stops_the_disk(MAKE);
            }
        }
    )*};
}

every_format! {
    raw: Make::Raw;
    vhd_fixed: Make::Fixed;
    vhd_dynamic: Make::Dynamic { block_bytes: 2 << 20 };
    vhd_dynamic_of_small_blocks: Make::Dynamic { block_bytes: 4096 };
    vhd_differencing: Make::Differencing { block_bytes: 64 << 10, parents: 1 };
    vhd_differencing_over_three: Make::Differencing { block_bytes: 16 << 10, parents: 3 };
}

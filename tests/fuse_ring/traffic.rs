//! Load over rings: many threads, large requests, both ways of answering.

use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::Ordering;
use std::thread;

use rustix::fs::OFlags;

use crate::common::{DISK, Fixture, Mood, can_mount};

const MIB: usize = 1 << 20;

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|n| ((n * 37 + seed * 101) >> 2) as u8).collect()
}

/// Each thread owns a quarter of a mebibyte in each of the file's mebibytes.
fn churn(fixture: &Fixture, flags: OFlags) {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .custom_flags(flags.bits() as i32)
        .open(fixture.path("disk"))
        .unwrap();
    // Direct I/O wants aligned memory; a vector of this size is, from the system.
    thread::scope(|scope| {
        for worker in 0..4 {
            let file = &file;
            scope.spawn(move || {
                for round in 0..3 {
                    for mib in 0..8 {
                        let data = pattern(MIB / 4, worker * 100 + mib * 10 + round);
                        let at = (mib * MIB + worker * MIB / 4) as u64;
                        file.write_all_at(&data, at).unwrap();
                        let mut back = vec![0; data.len()];
                        file.read_exact_at(&mut back, at).unwrap();
                        assert!(back == data, "{worker} {round} {mib}");
                    }
                }
            });
        }
    });
}

#[test]
fn many_threads_read_back_what_each_wrote() {
    if !can_mount() || !crate::ring::is_on() {
        return;
    }
    let fixture = Fixture::single(8 * MIB);
    for mood in [Mood::Well, Mood::AtOnce] {
        fixture.port.set(mood);
        churn(&fixture, OFlags::empty());
        churn(&fixture, OFlags::SYNC);
    }
    assert!(fixture.port.durable.load(Ordering::Relaxed) > 0);
}

#[test]
fn a_large_read_and_write_take_one_request_each_mebibyte() {
    if !can_mount() || !crate::ring::is_on() {
        return;
    }
    let fixture = Fixture::single(16 * MIB);
    let file = fixture.disk();
    let data = pattern(4 * MIB, 7);
    file.write_all_at(&data, MIB as u64).unwrap();
    let mut back = vec![0; 4 * MIB];
    file.read_exact_at(&mut back, MIB as u64).unwrap();
    assert!(back == data && fixture.port.bytes(MIB, 4 * MIB) == data);
    // Unaligned memory costs at most one page, and so one request, more.
    assert!(fixture.port.reads.load(Ordering::Relaxed) <= 5);
    assert!(fixture.port.writes.load(Ordering::Relaxed) <= 5);
    assert!(fixture.mounted().usage(DISK).unwrap().writers == 1);
}

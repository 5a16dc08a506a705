//! Reads through mappings: always what a call would have read, and never the end of the process.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{Advice, fadvise};
use tempfile::TempDir;

use super::super::residency::is_cached;
use super::{Dice, Way, arena, hosts, open, outcome, start};
use crate::engine::effect::{FileId, IoError, Outcome, Source, Target};
use crate::engine::units::{ByteLen, FileOffset};
use crate::host::task::{Erase, Work};
use crate::host::{Event, Host};

const MIB: usize = 1 << 20;

fn read(host: &mut Host, file: FileId, at: usize, len: usize) -> Result<Vec<u8>, IoError> {
    let into = Target::Owned(vec![0xEE; len]);
    start(host, 1, file, Work::Read { at: FileOffset::new(at as u64), into });
    match outcome(host) {
        Outcome::Bytes(bytes) => Ok(bytes),
        Outcome::Failed(error) => Err(error),
        outcome => panic!("{outcome:?}"),
    }
}

/// Reads until the host knows by heart where these bytes are; machines that do not map never do.
fn warm(host: &mut Host, file: FileId, at: usize) -> bool {
    (0..300).any(|_| {
        let before = host.counters().mapped_reads;
        read(host, file, at, 512).unwrap();
        host.counters().mapped_reads > before
    })
}

fn run(host: &mut Host, file: FileId, work: Work) {
    start(host, 2, file, work);
    assert_eq!(outcome(host), Outcome::Done);
}

fn write(at: usize, bytes: &[u8]) -> Work {
    let from = Source::Owned(bytes.to_vec());
    Work::Write { at: FileOffset::new(at as u64), from, durable: false }
}

fn file_of(bytes: &[u8], folder: &Path, name: &str) -> std::path::PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// Where files are tried: on a disk, and in memory.
fn folders() -> Vec<TempDir> {
    let memory = TempDir::new_in("/dev/shm").ok();
    [TempDir::new().ok(), memory].into_iter().flatten().collect()
}

fn maps_here() -> bool {
    cfg!(target_arch = "x86_64")
}

#[test]
fn what_is_read_often_is_copied_from_a_mapping_and_is_what_was_written_last() {
    let arena = arena();
    for folder in folders() {
        for mut host in hosts(&arena) {
            let mut dice = Dice::new(8);
            let mut bytes = dice.bytes(3 * MIB);
            let path = file_of(&bytes, folder.path(), "file");
            let file = host.add_file(open(&path, Way::Cached)).unwrap();
            for turn in 0..2000 {
                let most = if dice.one_in(20) { 2 * MIB as u64 } else { 5000 };
                let len = 1 + dice.below(most);
                let at = dice.below((bytes.len() as u64) - len) as usize;
                let range = at..at + len as usize;
                if dice.one_in(3) {
                    let new = dice.bytes(range.len().min(9000));
                    bytes[at..at + new.len()].copy_from_slice(&new);
                    run(&mut host, file, write(at, &new));
                } else {
                    let seen = read(&mut host, file, at, range.len()).unwrap();
                    assert!(seen == bytes[range.clone()], "turn {turn}, {range:?}");
                }
            }
            let mapped = host.counters().mapped_reads;
            assert!(!maps_here() || mapped > 800, "{mapped} of some 1300 reads were mapped");
            host.remove_file(file);
        }
    }
}

#[test]
fn pages_that_are_not_in_memory_do_not_keep_their_neighbours_from_being_mapped() {
    let arena = arena();
    // Not in memory, where nothing is ever dropped.
    let folder = TempDir::new_in("/var/tmp").unwrap();
    for mut host in hosts(&arena) {
        let bytes = Dice::new(9).bytes(MIB);
        let path = file_of(&bytes, folder.path(), "file");
        let theirs = File::open(&path).unwrap();
        theirs.sync_all().unwrap();
        fadvise(&theirs, 0, None, Advice::Random).unwrap();
        fadvise(&theirs, 0, None, Advice::DontNeed).unwrap();
        if is_cached(theirs.as_fd(), 0, MIB as u64) != Ok(false) {
            println!("SKIPPED: this file system keeps what it is told to drop");
            return;
        }
        let file = host.add_file(open(&path, Way::Cached)).unwrap();
        assert!(warm(&mut host, file, 70 << 10) || !maps_here());
        assert_eq!(is_cached(theirs.as_fd(), 0, MIB as u64), Ok(false));
        for at in (0..MIB - 4096).step_by(4096 - 512).chain((0..MIB - 4096).step_by(4096)) {
            let seen = read(&mut host, file, at, 4096).unwrap();
            assert!(seen == bytes[at..at + 4096], "at {at}");
        }
        host.remove_file(file);
    }
}

#[test]
fn the_end_of_a_file_is_told_also_within_a_page() {
    let arena = arena();
    for folder in folders() {
        for mut host in hosts(&arena) {
            let path = file_of(&vec![7; MIB + 100], folder.path(), "file");
            let file = host.add_file(open(&path, Way::Cached)).unwrap();
            for _ in 0..300 {
                assert_eq!(read(&mut host, file, MIB, 100), Ok(vec![7; 100]));
                let over = read(&mut host, file, MIB, 101);
                assert_eq!(over, Err(IoError::UNEXPECTED_EOF));
            }
            assert!(!maps_here() || host.counters().mapped_reads > 0);
            // Once it is longer, what is new can be read at once.
            run(&mut host, file, write(MIB + 100, &[8; 5000]));
            let seen = read(&mut host, file, MIB + 99, 3).unwrap();
            assert_eq!(seen, [7, 8, 8]);
            host.remove_file(file);
        }
    }
}

#[test]
fn a_file_that_somebody_cut_ends_its_reads_and_not_the_process() {
    let arena = arena();
    for folder in folders() {
        for mut host in hosts(&arena) {
            let path = file_of(&vec![7; 4 * MIB], folder.path(), "file");
            let file = host.add_file(open(&path, Way::Cached)).unwrap();
            assert!(warm(&mut host, file, 2 * MIB) || !maps_here());
            let theirs = File::options().write(true).open(&path).unwrap();
            theirs.set_len(MIB as u64).unwrap();
            for len in [1, 7, 512, 4096, 5001] {
                let over = read(&mut host, file, 2 * MIB, len);
                assert_eq!(over, Err(IoError::UNEXPECTED_EOF), "{len} bytes");
            }
            assert_eq!(read(&mut host, file, 1000, 3), Ok(vec![7; 3]));
            theirs.set_len(4 * MIB as u64).unwrap();
            theirs.write_all_at(b"new", 2 * MIB as u64).unwrap();
            assert_eq!(read(&mut host, file, 2 * MIB, 4), Ok(b"new\0".to_vec()));
            host.remove_file(file);
        }
    }
}

#[test]
fn what_was_erased_reads_as_zeroes_and_takes_no_room_again() {
    let arena = arena();
    for folder in folders() {
        for mut host in hosts(&arena) {
            let path = file_of(&vec![7; 2 * MIB], folder.path(), "file");
            let file = host.add_file(open(&path, Way::Cached)).unwrap();
            assert!(warm(&mut host, file, MIB) || !maps_here());
            let (at, len) = (FileOffset::new(MIB as u64), ByteLen::new(MIB as u64 / 2));
            run(&mut host, file, Work::Erase { how: Erase::Punch, at, len });
            File::open(&path).unwrap().sync_all().unwrap();
            let blocks = std::fs::metadata(&path).unwrap().blocks();
            for _ in 0..60 {
                assert_eq!(read(&mut host, file, MIB, 4096), Ok(vec![0; 4096]));
                assert_eq!(read(&mut host, file, MIB + MIB / 2, 16), Ok(vec![7; 16]));
            }
            assert_eq!(std::fs::metadata(&path).unwrap().blocks(), blocks);
            let zeroes = Work::Erase { how: Erase::Zero, at: FileOffset::new(0), len };
            assert!(warm(&mut host, file, 0) || !maps_here());
            run(&mut host, file, zeroes);
            assert_eq!(read(&mut host, file, MIB / 2 - 1, 2), Ok(vec![0, 7]));
            let cut = Work::SetLength { len: ByteLen::new(MIB as u64 / 4) };
            run(&mut host, file, cut);
            assert_eq!(read(&mut host, file, MIB / 4 - 2, 2), Ok(vec![0; 2]));
            assert_eq!(read(&mut host, file, MIB / 4 - 2, 3), Err(IoError::UNEXPECTED_EOF));
            // Behind an end within a page nothing is read as zeroes, however often.
            assert!(warm(&mut host, file, 0) || !maps_here());
            let cut = Work::SetLength { len: ByteLen::new(1 << 16 | 100) };
            run(&mut host, file, cut);
            for _ in 0..20 {
                let over = read(&mut host, file, 1 << 16 | 90, 20);
                assert_eq!(over, Err(IoError::UNEXPECTED_EOF));
            }
            host.remove_file(file);
        }
    }
}

#[test]
fn a_file_takes_what_was_known_of_it_along() {
    let arena = arena();
    let folder = TempDir::new().unwrap();
    for mut host in hosts(&arena) {
        let mut before = None;
        for fill in 1..4 {
            let path = file_of(&vec![fill; 2 * MIB], folder.path(), &format!("{fill}"));
            let file = host.add_file(open(&path, Way::Cached)).unwrap();
            assert_eq!(before.replace(file).unwrap_or(file), file, "names are given again");
            for at in [0, MIB, MIB - 10] {
                assert!(warm(&mut host, file, at) || !maps_here());
                assert_eq!(read(&mut host, file, at, 20), Ok(vec![fill; 20]));
            }
            host.remove_file(file);
            std::fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn what_is_being_written_is_not_read_beside_it() {
    let arena = arena();
    let folder = TempDir::new().unwrap();
    for mut host in hosts(&arena) {
        let path = file_of(&vec![7; 2 * MIB], folder.path(), "file");
        let file = host.add_file(open(&path, Way::Cached)).unwrap();
        assert!(warm(&mut host, file, 0) && warm(&mut host, file, MIB) || !maps_here());
        let before = host.counters().mapped_reads;
        start(&mut host, 1, file, write(0, &vec![8; MIB]));
        let at = FileOffset::new(MIB as u64 - 100);
        let into = Target::Owned(vec![0; 512]);
        start(&mut host, 2, file, Work::Read { at, into });
        assert_eq!(host.counters().mapped_reads, before);
        let (mut events, mut over) = (Vec::new(), 0);
        while over < 2 {
            host.wait(None, &mut events).unwrap();
            over += events.drain(..).filter(|e| matches!(e, Event::Effect { .. })).count();
        }
        // Beside it, and afterwards, it is.
        assert_eq!(read(&mut host, file, MIB - 1, 2), Ok(vec![8, 7]));
        assert!(warm(&mut host, file, MIB - 100) || !maps_here());
        host.remove_file(file);
    }
}

#[test]
fn windows_of_a_file_that_goes_are_closed_before_what_waits_for_it() {
    let arena = arena();
    let folder = TempDir::new().unwrap();
    for mut host in hosts(&arena) {
        let path = folder.path().join("sparse");
        let theirs = File::create(&path).unwrap();
        let places = [0, 64 * MIB, 128 * MIB];
        places.iter().for_each(|at| theirs.write_all_at(&vec![7; MIB], *at as u64).unwrap());
        let file = host.add_file(open(&path, Way::Cached)).unwrap();
        let maps = |path: &Path| {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            maps.lines().filter(|line| line.ends_with(path.to_str().unwrap())).count()
        };
        for at in places {
            assert!(warm(&mut host, file, at) || !maps_here());
        }
        if maps_here() {
            assert!(maps(&path) >= 1, "windows beside each other may be told as one");
        }
        host.remove_file(file);
        let (tell, told) = std::sync::mpsc::channel();
        let seen = path.clone();
        host.take_leftovers().drop_apart(move || tell.send(maps(&seen)).unwrap());
        assert_eq!(told.recv(), Ok(0));
        host.take_leftovers().drop_apart(|| ());
    }
}

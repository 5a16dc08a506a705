//! The simulator itself, held against the words of the crash model (4.2).

use crate::engine::effect::IoError;
use crate::engine::units::{ByteLen, FileOffset};

use super::enumerate::{CrashPoint, Depth, SizeMode};
use super::fault::{Fault, FaultPlan, Target};
use super::fs::{Backing, Change, OpId, SimFile};
use super::image::Image;
use super::rng::Rng;

fn write(file: &mut SimFile, at: u64, byte: u8, len: usize, clock: u64) -> OpId {
    let op = file.execute(&Change::Write(FileOffset::new(at), vec![byte; len]));
    file.delivered(op, clock);
    op
}

/// Every image a power loss can leave.
fn states(file: &SimFile, mode: SizeMode) -> Vec<Vec<u8>> {
    let fixed = file.backing() == Backing::Device;
    let mut point = CrashPoint::new(file.durable(), file.pending(), mode, fixed);
    let mut found = Vec::new();
    point.visit(Depth::default(), &mut Rng::new(1), |point, picked, print| {
        let mut image = Image::default();
        point.build(picked, &mut image);
        assert_eq!(image.print(), print, "a fingerprint tells the bytes");
        assert_eq!(Image::new(image.bytes()).print(), print, "and is no matter of history");
        found.push(image.bytes().to_vec());
        true
    });
    found
}

#[test]
fn sectors_of_one_write_persist_each_on_its_own() {
    let mut file = SimFile::new(Backing::File, &[0; 1024]);
    write(&mut file, 0, 7, 1024, 1);
    assert_eq!(states(&file, SizeMode::Strict).len(), 4);
}

#[test]
fn any_version_of_a_sector_may_persist_and_never_a_mix() {
    let mut file = SimFile::new(Backing::File, &[0; 512]);
    write(&mut file, 0, 1, 512, 1);
    write(&mut file, 0, 2, 512, 2);
    let mut found: Vec<u8> = states(&file, SizeMode::Strict).iter().map(|s| s[0]).collect();
    found.sort_unstable();
    assert_eq!(found, [0, 1, 2]);
}

#[test]
fn a_sync_covers_what_completed_before_it_started_and_nothing_else() {
    let mut file = SimFile::new(Backing::File, &[0; 1024]);
    write(&mut file, 0, 1, 512, 1);
    write(&mut file, 512, 2, 512, 5);
    file.sync(3);
    assert_eq!(file.durable().bytes()[0], 1);
    assert_eq!(file.durable().bytes()[512], 0);
    assert_eq!(file.pending().len(), 1);
}

#[test]
fn a_durable_write_is_durable_and_takes_nothing_with_it() {
    let mut file = SimFile::new(Backing::File, &[0; 512]);
    write(&mut file, 0, 1, 512, 1);
    let op = write(&mut file, 512, 2, 512, 2);
    file.settle(op);
    assert_eq!(file.durable().len(), ByteLen::new(1024), "its size comes along");
    assert_eq!((file.durable().bytes()[0], file.durable().bytes()[512]), (0, 2));
}

#[test]
fn what_a_failed_sync_gave_up_no_later_sync_makes_durable() {
    let mut file = SimFile::new(Backing::File, &[0; 512]);
    write(&mut file, 0, 1, 512, 1);
    file.sync_failed(2);
    file.sync(9);
    assert_eq!(file.durable().bytes()[0], 0);
    assert_eq!(file.live().bytes()[0], 1, "readers are not told");
    assert_eq!(states(&file, SizeMode::Strict).len(), 2, "it may or may not be there");
}

#[test]
fn an_older_write_does_not_come_back_over_a_synced_one() {
    let mut file = SimFile::new(Backing::File, &[0; 4096]);
    let punch = file.execute(&Change::Punch(FileOffset::new(0), ByteLen::new(4096)));
    write(&mut file, 512, 3, 512, 1);
    file.sync(2);
    file.delivered(punch, 3);
    for state in states(&file, SizeMode::Strict) {
        assert_eq!(state[512], 3);
    }
}

#[test]
fn strict_sizes_persist_without_data_and_ordered_ones_do_not() {
    let mut file = SimFile::new(Backing::File, &[9; 512]);
    write(&mut file, 512, 7, 512, 1);
    let strict = states(&file, SizeMode::Strict);
    assert!(strict.iter().any(|s| s.len() == 1024 && s[512] == 0), "a size with no data");
    let ordered = states(&file, SizeMode::Ordered);
    assert!(ordered.iter().all(|s| s.len() == 512 || s[512] == 7));
    assert!(strict.iter().any(|s| s.len() == 512), "data without its size is lost");
}

#[test]
fn a_cut_takes_the_bytes_with_it_even_if_the_file_grows_again() {
    let mut file = SimFile::new(Backing::File, &[9; 2048]);
    let cut = file.execute(&Change::Truncate(ByteLen::new(512)));
    file.delivered(cut, 1);
    write(&mut file, 1536, 4, 512, 2);
    assert_eq!(file.live().bytes()[512..1024], [0; 512]);
    for state in states(&file, SizeMode::Strict) {
        assert!(matches!(state.len(), 512 | 2048));
    }
    file.sync(9);
    assert_eq!(file.durable().bytes(), file.live().bytes());
}

#[test]
fn punching_never_grows_a_file_and_zeroing_does() {
    let mut file = SimFile::new(Backing::File, &[9; 1024]);
    file.execute(&Change::Punch(FileOffset::new(512), ByteLen::new(4096)));
    assert_eq!(file.live().len(), ByteLen::new(1024));
    assert_eq!(file.live().bytes()[512..], [0; 512]);
    file.execute(&Change::Zero(FileOffset::new(512), ByteLen::new(4096)));
    assert_eq!(file.live().len(), ByteLen::new(4608));
}

#[test]
fn a_ragged_write_keeps_the_rest_of_its_sectors() {
    let mut file = SimFile::new(Backing::File, &[9; 1024]);
    write(&mut file, 500, 1, 24, 1);
    file.sync(2);
    let bytes = file.durable().bytes();
    assert_eq!((bytes[499], bytes[500], bytes[523], bytes[524]), (9, 1, 1, 9));
}

#[test]
fn a_device_keeps_its_size() {
    let file = SimFile::new(Backing::Device, &[0xCC; 1024]);
    assert!(!file.fits(&Change::Write(FileOffset::new(1024), vec![1])));
    assert!(file.fits(&Change::Write(FileOffset::new(1023), vec![1])));
}

#[test]
fn a_plan_of_failures_strikes_where_it_says() {
    let once = Fault { target: Target::Sync, after: 1, error: IoError::EIO, sticky: false };
    let stuck = Fault { target: Target::Write, after: 1, error: IoError::ENOSPC, sticky: true };
    let mut plan = FaultPlan::new(&[once, stuck]);
    let syncs: Vec<bool> = (0..4).map(|_| plan.strike(Target::Sync).is_some()).collect();
    assert_eq!(syncs, [false, true, false, false]);
    let writes: Vec<bool> = (0..4).map(|_| plan.strike(Target::Write).is_some()).collect();
    assert_eq!(writes, [false, true, true, true]);
    assert_eq!(plan.strike(Target::Read), None);
    assert_eq!(plan.struck(), 4);
}

#[test]
fn seeds_replay() {
    let draw = |seed| -> Vec<usize> {
        let mut rng = Rng::new(seed);
        (0..32).map(|_| rng.below(1000)).collect()
    };
    assert_eq!(draw(5), draw(5));
    assert_ne!(draw(5), draw(6));
    assert!(draw(5).iter().all(|n| *n < 1000));
}

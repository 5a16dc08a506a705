//! An export that is a part of a disk: offsets are its own, and nothing beyond is to be seen.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;

use orlop::engine::units::{ByteLen, DiskOffset, Extent};
use orlop::shard::READ_MAX;

use crate::rig::{MIB, Rig, Setup, command, request};

const EINVAL: u32 = 22;
const REPLY_DONE: u16 = 1;
const REPLY_BLOCK_STATUS: u16 = 5;
const REPLY_ERROR_OFFSET: u16 = 0x8002;

fn extent(at: u64, len: u64) -> Extent {
    Extent::new(DiskOffset::new(at), ByteLen::new(len))
}

#[test]
fn offsets_of_a_window_are_its_own() {
    let rig = Rig::new();
    let disk = rig.disk("a", 4 * MIB);
    let file = OpenOptions::new().read(true).write(true).open(rig.image("a")).unwrap();
    file.write_all_at(&[7; 8192], MIB + 4096).unwrap();
    let mut peer = rig.connect(disk, Setup::window(MIB, MIB));
    assert_eq!(peer.read(4096, 8192), Ok(vec![7; 8192]));
    assert_eq!(peer.write(0, 100, &[9; 1000]), Ok(()));
    let mut bytes = vec![0; 1000];
    file.read_exact_at(&mut bytes, MIB + 100).unwrap();
    assert_eq!(bytes, [9; 1000]);
    // The last byte of the window, and the first behind it.
    assert_eq!(peer.write(0, MIB - 1, &[5]), Ok(()));
    assert_eq!(peer.read(MIB, 1), Err(EINVAL));
    let mut around = [0; 3];
    file.read_exact_at(&mut around, 2 * MIB - 2).unwrap();
    assert_eq!(around, [0, 5, 0]);
    rig.close();
}

#[test]
fn nothing_beyond_a_window_is_touched_whatever_the_gate_believed() {
    let rig = Rig::new();
    let disk = rig.disk("a", 4 * MIB);
    let mut peer = rig.connect(disk, Setup { size: 3 * MIB, ..Setup::window(MIB, MIB) });
    assert_eq!(peer.read(MIB - 1, 2), Err(EINVAL));
    assert_eq!(peer.write(0, MIB, &[1; 512]), Err(EINVAL));
    assert_eq!(peer.read(MIB - 1, 1), Ok(vec![0]));
    let left = rig.wait(rig.mailbox.read(disk, extent(2 * MIB, 512))).unwrap();
    assert_eq!(left, [0; 512]);
    rig.close();
}

#[test]
fn a_failure_is_told_at_the_offset_within_the_window() {
    let rig = Rig::new();
    let disk = rig.disk("a", 4 * MIB);
    // Behind its back the file shrinks: the engine finds the end inside a read.
    OpenOptions::new().write(true).open(rig.image("a")).unwrap().set_len(MIB).unwrap();
    let mut peer = rig.connect(disk, Setup { structured: true, ..Setup::window(MIB, MIB) });
    peer.send(&request(command::READ, 1, 12288, 4096));
    let (flags, kind, payload) = peer.chunk();
    assert_eq!((flags, kind), (REPLY_DONE, REPLY_ERROR_OFFSET));
    assert_eq!(payload[payload.len() - 8..], 12288_u64.to_be_bytes());
    rig.close();
}

#[test]
fn the_map_of_a_window_ends_with_it() {
    let rig = Rig::new();
    let disk = rig.disk("a", 4 * MIB);
    let mut peer = rig.connect(disk, Setup { structured: true, ..Setup::window(MIB, MIB) });
    peer.send(&request(command::BLOCK_STATUS, 1, 65536, (MIB - 65536) as u32));
    let (flags, kind, payload) = peer.chunk();
    assert_eq!((flags, kind), (REPLY_DONE, REPLY_BLOCK_STATUS));
    let lens = payload[4..].chunks(8).map(|run| u32::from_be_bytes(run[..4].try_into().unwrap()));
    assert_eq!(lens.map(u64::from).sum::<u64>(), MIB - 65536);
    rig.close();
}

#[test]
fn the_shard_reads_and_flushes_for_those_outside() {
    let rig = Rig::new();
    let disk = rig.disk("a", 4 * MIB);
    let mut peer = rig.connect(disk, Setup::of(4 * MIB));
    peer.write(0, MIB, &[3; 512]).unwrap();
    let read = |at, len| rig.wait(rig.mailbox.read(disk, extent(at, len)));
    let mut expected = vec![0; MIB as usize];
    expected[512..1024].fill(3);
    assert!(read(MIB - 512, READ_MAX.get()).unwrap() == expected);
    assert_eq!(read(4 * MIB, 0).unwrap(), Vec::<u8>::new());
    for (at, len) in [(4 * MIB, 1), (0, READ_MAX.get() + 1), (u64::MAX, 1), (1, u64::MAX)] {
        assert_eq!(read(at, len).map_err(|e| e.kind()), Err(ErrorKind::InvalidInput), "{at} {len}");
    }
    rig.wait(rig.mailbox.flush(disk)).unwrap();
    rig.close();
}

//! A disk's shard asked through the port of a mount, without a kernel between: bytes, bounds,
//! errors, holes, sums, and what becomes of questions when a disk goes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where its set-up fails")]

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use orlop::engine::units::{ByteLen, DiskOffset, Extent};
use orlop::meter::{Meter, Op};
use orlop::shard::{DiskTag, ExportKey};
use orlop::transport::files::{About, FileDisk, Files};
use orlop_fuse::{
    Bytes, DiskId, Errno, Extent as Range, Fact, Offset, Port, ReadReply, Reply, RunKind, Text,
};
use rig::{MIB, Rig};

#[path = "shard/rig.rs"]
#[allow(dead_code)]
mod rig;

const DISK: DiskId = DiskId(7);
const PATIENCE: Duration = Duration::from_secs(60);

struct Plain;

impl About for Plain {
    fn text(&self, which: Text) -> Result<Vec<u8>, Errno> {
        Ok(which.file_name().into())
    }

    fn facts(&self) -> Vec<Fact> {
        vec![Fact { key: "format".into(), value: b"raw".to_vec() }]
    }
}

fn shown(rig: &Rig, tag: DiskTag, window: (u64, u64)) -> (Arc<Files>, Arc<Meter>) {
    let (files, meter) = (Files::new(), Arc::new(Meter::new()));
    let disk = FileDisk {
        mailbox: rig.mailbox.clone(),
        tag,
        export: ExportKey(9),
        window: Extent::new(DiskOffset::new(window.0), ByteLen::new(window.1)),
        about: Arc::new(Plain),
        passing: None,
        watch: None,
        meter: Arc::clone(&meter),
    };
    files.open(DISK, disk).unwrap();
    (files, meter)
}

fn range(at: u64, len: u64) -> Range {
    Range { at: Offset(at), len: Bytes(len) }
}

type Heard<T> = Receiver<Result<T, Errno>>;

fn heard<T>(from: &Heard<T>) -> Result<T, Errno> {
    from.recv_timeout(PATIENCE).expect("every question is answered")
}

fn replying<T: Send + 'static>() -> (Reply<T>, Heard<T>) {
    let (sender, receiver) = channel();
    (Reply::new(move |result| drop(sender.send(result))), receiver)
}

fn read(files: &Files, at: u64, len: u64) -> Result<Vec<u8>, Errno> {
    let (sender, receiver) = channel();
    let reply = ReadReply::new(move |result: Result<&[u8], Errno>| {
        sender.send(result.map(<[u8]>::to_vec)).unwrap();
    });
    files.read(DISK, range(at, len), reply);
    heard(&receiver)
}

fn ask<T: Send + 'static>(put: impl FnOnce(Reply<T>)) -> Result<T, Errno> {
    let (reply, receiver) = replying();
    put(reply);
    heard(&receiver)
}

fn write(files: &Files, at: u64, data: &[u8]) -> Result<(), Errno> {
    ask(|reply| files.write(DISK, Offset(at), data, false, reply))
}

#[test]
fn bytes_go_to_their_place_and_come_back_with_zeroes_around() {
    let rig = Rig::new();
    let disk = rig.disk("disk", 4 * MIB);
    let (files, meter) = shown(&rig, disk, (0, 4 * MIB));
    let data: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8 + 1).collect();
    write(&files, MIB + 333, &data).unwrap();
    let around = read(&files, MIB, MIB).unwrap();
    assert_eq!(around[333..333 + data.len()], data);
    assert!(around[..333].iter().chain(&around[333 + data.len()..]).all(|byte| *byte == 0));
    ask(|reply| files.flush(DISK, reply)).unwrap();
    assert_eq!(std::fs::read(rig.image("disk")).unwrap()[MIB as usize + 333..][..100_000], data);
    let counts = meter.snapshot();
    assert_eq!(counts.op(Op::Write).requests, 1);
    assert_eq!(counts.op(Op::Write).bytes, 100_000);
}

#[test]
fn erased_bytes_read_as_zeroes_and_no_longer_count_as_stored() {
    let rig = Rig::new();
    let disk = rig.disk("disk", 4 * MIB);
    let (files, _) = shown(&rig, disk, (0, 4 * MIB));
    let stored = |files: &Files| ask(|r| files.allocated(DISK, range(0, 4 * MIB), r)).unwrap().0;
    write(&files, 0, &vec![0xAB; 2 * MIB as usize]).unwrap();
    ask(|reply| files.flush(DISK, reply)).unwrap();
    assert_eq!(stored(&files), 2 * MIB);
    ask(|reply| files.punch(DISK, range(MIB, MIB), reply)).unwrap();
    assert!(read(&files, MIB, MIB).unwrap().iter().all(|byte| *byte == 0));
    assert_eq!(stored(&files), MIB, "the sum is told anew after a change");
    let runs = ask(|reply| files.map(DISK, range(0, 4 * MIB), reply)).unwrap();
    assert_eq!((runs[0].kind, runs[0].len.0), (RunKind::Data, MIB));
    assert_eq!(runs[1].kind, RunKind::Hole);
    ask(|reply| files.zero(DISK, range(0, 4096), reply)).unwrap();
    assert!(read(&files, 0, 4096).unwrap().iter().all(|byte| *byte == 0));
    assert_eq!(read(&files, 4096, 1).unwrap(), [0xAB]);
}

#[test]
fn a_window_shows_its_part_and_nothing_beyond() {
    let rig = Rig::new();
    let disk = rig.disk("disk", 4 * MIB);
    let (files, _) = shown(&rig, disk, (MIB, MIB));
    write(&files, 0, b"first").unwrap();
    let image = std::fs::read(rig.image("disk")).unwrap();
    assert_eq!(image[MIB as usize..][..5], *b"first");
    assert_eq!(read(&files, MIB - 1, 2), Err(Errno::TooBig));
    assert_eq!(read(&files, u64::MAX, 2), Err(Errno::TooBig));
    assert_eq!(write(&files, MIB, b"x"), Err(Errno::TooBig));
}

#[test]
fn many_questions_at_once_are_all_answered_within_the_memory_there_is() {
    let rig = Rig::new();
    let disk = rig.disk("disk", 64 * MIB);
    let (files, _) = shown(&rig, disk, (0, 64 * MIB));
    let piece = vec![0x5A; MIB as usize];
    let writes: Vec<Heard<()>> = (0..256)
        .map(|i| {
            let (reply, heard) = replying();
            files.write(DISK, Offset(i % 64 * MIB), &piece, i % 50 == 0, reply);
            heard
        })
        .collect();
    writes.iter().for_each(|write| heard(write).unwrap());
    for at in 0..64 {
        assert_eq!(read(&files, at * MIB, MIB).unwrap(), piece);
    }
}

#[test]
fn a_question_without_bytes_never_waits_for_room() {
    let rig = Rig::new();
    let disk = rig.disk("disk", 4 * MIB);
    let (files, _) = shown(&rig, disk, (0, 4 * MIB));
    let ((enters, entered), (leave, may_leave)) = (channel(), channel::<()>());
    let mailbox = rig.mailbox.clone();
    // Keeps the shard's thread busy, so that nobody empties the queue.
    let busy = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let attached = mailbox.attach(Box::new(move |_| {
            enters.send(()).unwrap();
            may_leave.recv_timeout(PATIENCE).unwrap();
            Err(std::io::Error::other("no disk"))
        }));
        runtime.block_on(attached).unwrap_err();
    });
    entered.recv_timeout(PATIENCE).unwrap();
    let piece = vec![7; MIB as usize];
    let writes: Vec<Heard<()>> = (0..33)
        .map(|_| {
            let (reply, heard) = replying();
            files.write(DISK, Offset(0), &piece, false, reply);
            heard
        })
        .collect();
    // The queue is full; a search goes on from the shard's own thread.
    let (asks, asked) = channel();
    let search = Arc::clone(&files);
    std::thread::spawn(move || {
        let (reply, heard) = replying();
        search.map(DISK, range(0, 4 * MIB), reply);
        asks.send(heard).unwrap();
    });
    let map = asked.recv_timeout(PATIENCE).expect("it does not wait for room");
    leave.send(()).unwrap();
    busy.join().unwrap();
    writes.iter().for_each(|write| heard(write).unwrap());
    assert_eq!(heard(&map).unwrap()[0].kind, RunKind::Data);
}

#[test]
fn questions_to_a_disk_that_went_hear_so() {
    let rig = Rig::new();
    let disk = rig.disk("disk", MIB);
    let (files, _) = shown(&rig, disk, (0, MIB));
    write(&files, 0, b"last").unwrap();
    rig.wait(rig.mailbox.drain(ExportKey(9))).unwrap();
    assert_eq!(read(&files, 0, 4), Err(Errno::Gone));
    rig.wait(rig.mailbox.detach(disk)).unwrap();
    assert_eq!(write(&files, 0, b"x"), Err(Errno::Gone));
    files.close(DISK).unwrap();
    assert_eq!(read(&files, 0, 4), Err(Errno::Gone));
    assert_eq!(std::fs::read(rig.image("disk")).unwrap()[..4], *b"last");
    let text = ask(|reply| files.text(DISK, Text::Info, reply));
    assert_eq!(text, Err(Errno::Gone));
}

#[test]
fn a_shard_that_ends_answers_what_was_asked() {
    let rig = Rig::new();
    let disk = rig.disk("disk", 8 * MIB);
    let (files, _) = shown(&rig, disk, (0, 8 * MIB));
    let asked: Vec<Heard<()>> = (0..64)
        .map(|i| {
            let (reply, heard) = replying();
            files.write(DISK, Offset(i % 8 * MIB), &[i as u8; 65_536], false, reply);
            heard
        })
        .collect();
    rig.wait(rig.mailbox.shut_down()).unwrap();
    for write in &asked {
        assert!(matches!(heard(write), Ok(()) | Err(Errno::Gone)));
    }
    assert_eq!(read(&files, 0, 1), Err(Errno::Gone));
}

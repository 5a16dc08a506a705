//! Parts of files that are sent from the page cache.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::{Dice, arena, hosts};
use crate::engine::effect::{Effect, EffectId, FileId, IoError, Outcome, Target};
use crate::engine::request::Stored;
use crate::engine::units::{ByteLen, FileOffset, Span};
use crate::host::memory::Arena;
use crate::host::{Descriptors, Event, Host, OpenMode, SendList, SocketId, residency};

const FILE_BYTES: usize = 4 << 20;

/// The ring host, if this machine has one and tells what it caches.
fn lender(arena: &Arena) -> Option<Host> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[1; 4096]).unwrap();
    if let Err(error) = residency::is_cached(file.as_fd(), 0, 4096) {
        println!("SKIPPED lending: the kernel does not tell what it caches: {error}");
        return None;
    }
    hosts(arena).into_iter().find(|host| matches!(host, Host::Uring(_)))
}

fn image(folder: &Path, dice: &mut Dice) -> (File, Vec<u8>) {
    let bytes = dice.bytes(FILE_BYTES);
    let path = folder.join("image");
    std::fs::write(&path, &bytes).unwrap();
    (File::options().read(true).write(true).open(&path).unwrap(), bytes)
}

fn fetch(host: &mut Host, file: FileId, at: u64, into: Span, may_lend: bool) -> Outcome {
    let (at, into) = (FileOffset::new(at), Target::Span(into));
    host.start(7, Effect::Read { id: EffectId(1), file, at, into, may_lend });
    super::outcome(host)
}

fn sent(host: &mut Host, socket: SocketId) -> Result<(), IoError> {
    let mut events = Vec::new();
    loop {
        host.wait(None, &mut events).unwrap();
        match events.pop() {
            Some(Event::Sent { socket: of, result, .. }) if of == socket => return result,
            Some(event) => panic!("{event:?}"),
            None => {}
        }
    }
}

fn connected(host: &mut Host) -> (SocketId, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (host.add_socket(ours.into()).unwrap(), theirs)
}

#[test]
fn what_is_lent_arrives_between_what_is_not_however_slowly_it_is_taken() {
    let mut arena = arena();
    let Some(mut host) = lender(&arena) else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut dice = Dice::new(3);
    let (file, bytes) = image(folder.path(), &mut dice);
    let file = host.add_file(Descriptors::new(file.into(), OpenMode::BUFFERED)).unwrap();
    let (socket, mut theirs) = connected(&mut host);
    let lease = arena.take(1 << 20).unwrap();
    for round in 0..40 {
        let (mut list, mut wanted) = (SendList::new(), Vec::new());
        for _ in 0..=dice.below(6) {
            let header = dice.bytes(16);
            list.push_bytes(&header);
            wanted.extend(header);
            if dice.one_in(4) {
                list.push_zeroes(ByteLen::new(5000));
                wanted.resize(wanted.len() + 5000, 0);
            }
            let len = (32 << 10) + dice.below(900_000);
            let at = dice.below(FILE_BYTES as u64 - len);
            let (start, end) = (at as usize, (at + len) as usize);
            let into = Span { len: len as u32, ..lease.span() };
            match fetch(&mut host, file, at, into, true) {
                Outcome::Lent => {
                    let (at, len) = (FileOffset::new(at), ByteLen::new(len));
                    list.push_stored(Stored { file, at, len });
                }
                // The system may take pages back at any time.
                Outcome::Done => list.push_bytes(arena.bytes(into)),
                other => panic!("{other:?}"),
            }
            wanted.extend(&bytes[start..end]);
        }
        let total = wanted.len();
        let taker = std::thread::spawn(move || {
            let mut got = vec![0; total];
            // In bites, so that the socket is full most of the time.
            for bite in got.chunks_mut(if round % 2 == 0 { 70_001 } else { 1 << 20 }) {
                theirs.read_exact(bite).unwrap();
            }
            (got, theirs)
        });
        host.send(socket, list);
        assert_eq!(sent(&mut host, socket), Ok(()), "round {round}");
        let (got, back) = taker.join().unwrap();
        assert!(got == wanted, "round {round}: {total} bytes, not those that were sent");
        theirs = back;
    }
    let counted = host.counters();
    assert!(counted.lent_reads > counted.effects / 2, "{counted:?}");
    arena.give(lease);
}

#[test]
fn what_is_small_not_cached_direct_or_not_allowed_is_read() {
    let mut arena = arena();
    let folder = tempfile::tempdir().unwrap();
    let (written, bytes) = image(folder.path(), &mut Dice::new(5));
    let lease = arena.take(1 << 20).unwrap();
    for mut host in hosts(&arena) {
        let copy = written.try_clone().unwrap().into();
        let file = host.add_file(Descriptors::new(copy, OpenMode::BUFFERED)).unwrap();
        let small = Span { len: 4096, ..lease.span() };
        assert_eq!(fetch(&mut host, file, 8192, small, true), Outcome::Done);
        assert_eq!(arena.bytes(small), &bytes[8192..][..4096]);
        assert_eq!(fetch(&mut host, file, 0, lease.span(), false), Outcome::Done);
        assert_eq!(arena.bytes(lease.span()), &bytes[..1 << 20]);
        // Behind the end there is nothing to lend, and nothing to read.
        let end = FILE_BYTES as u64 - 4096;
        let failed = Outcome::Failed(IoError::UNEXPECTED_EOF);
        assert_eq!(fetch(&mut host, file, end, lease.span(), true), failed);
        let direct = super::open(&folder.path().join("image"), super::Way::Direct);
        let direct = host.add_file(direct).unwrap();
        assert_eq!(fetch(&mut host, direct, 0, lease.span(), true), Outcome::Done);
        if matches!(host, Host::Threads(_)) {
            assert_eq!(fetch(&mut host, file, 0, lease.span(), true), Outcome::Done);
        }
        assert_eq!(host.counters().lent_reads, 0);
    }
    arena.give(lease);
}

#[test]
fn a_peer_that_leaves_and_a_file_that_is_cut_end_a_send() {
    let arena = arena();
    let Some(mut host) = lender(&arena) else { return };
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = image(folder.path(), &mut Dice::new(9));
    let cut = file.try_clone().unwrap();
    let file = host.add_file(Descriptors::new(file.into(), OpenMode::BUFFERED)).unwrap();
    let list = || {
        let mut list = SendList::new();
        list.push_bytes(b"header");
        // More than any socket holds.
        for _ in 0..20 {
            let (at, len) = (FileOffset::new(0), ByteLen::new(FILE_BYTES as u64));
            list.push_stored(Stored { file, at, len });
        }
        list
    };
    let (socket, theirs) = connected(&mut host);
    host.send(socket, list());
    drop(theirs);
    sent(&mut host, socket).unwrap_err();

    let (socket, theirs) = connected(&mut host);
    host.send(socket, list());
    host.close_socket(socket);
    let mut events = Vec::new();
    while events.is_empty() {
        host.wait(None, &mut events).unwrap();
    }
    assert_eq!(events, [Event::Closed { socket }]);
    drop(theirs);

    let (socket, mut theirs) = connected(&mut host);
    cut.set_len(10_000).unwrap();
    let taker = std::thread::spawn(move || {
        let mut got = vec![0; 6 + 10_000];
        theirs.read_exact(&mut got).unwrap();
        // Nothing more comes: who waited for the rest would wait for ever.
        assert_eq!(theirs.read(&mut got).unwrap(), 0);
    });
    host.send(socket, list());
    assert_eq!(sent(&mut host, socket), Err(IoError::EIO));
    taker.join().unwrap();
    assert_eq!(host.in_flight(), 0);
}

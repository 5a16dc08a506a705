//! Bytes through sockets, closing, waking and waiting.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::{Dice, arena, hosts};
use crate::engine::effect::IoError;
use crate::engine::units::ByteLen;
use crate::host::{Event, Host, ReceiveInto, SendList, SocketId};

fn next(host: &mut Host, pending: &mut Vec<Event>) -> Event {
    while pending.is_empty() {
        host.wait(None, pending).unwrap();
    }
    pending.remove(0)
}

fn pair(host: &mut Host) -> (SocketId, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (host.add_socket(ours.into()).unwrap(), theirs)
}

/// The next receive's result; a send that ends meanwhile leaves its list in `returned`. Waiting for
/// the send first would deadlock: the echo stops reading while nobody reads from it.
fn received(
    host: &mut Host,
    events: &mut Vec<Event>,
    returned: &mut Option<SendList>,
) -> (ReceiveInto, u32) {
    loop {
        match next(host, events) {
            Event::Received { into, result, .. } => return (into, result.unwrap()),
            Event::Sent { list, result: Ok(()), .. } => *returned = Some(list),
            event => panic!("{event:?}"),
        }
    }
}

/// Sends everything back, in shreds.
fn echo(mut stream: UnixStream) {
    let mut buffer = vec![0; 7001];
    loop {
        match stream.read(&mut buffer).unwrap() {
            0 => return,
            got => stream.write_all(&buffer[..got]).unwrap(),
        }
    }
}

#[test]
fn what_is_sent_comes_back_from_an_echo_in_order() {
    let mut arena = arena();
    for mut host in hosts(&arena) {
        let (socket, theirs) = pair(&mut host);
        let peer = std::thread::spawn(move || echo(theirs));
        let mut dice = Dice::new(11);
        let mut events = Vec::new();
        let mut list = SendList::new();
        for round in 0..200u64 {
            let mut wanted = Vec::new();
            let mut leases = Vec::new();
            list.clear();
            for _ in 0..dice.below(if round % 50 == 0 { 900 } else { 9 }) + 1 {
                let bytes_len = dice.below(60) as usize;
                let bytes = dice.bytes(bytes_len);
                list.push_bytes(&bytes);
                wanted.extend(&bytes);
                let bytes_len = dice.below(3000) as usize;
                let bytes = dice.bytes(bytes_len);
                if dice.one_in(4) {
                    list.push_zeroes(ByteLen::new(bytes.len() as u64));
                    wanted.extend(std::iter::repeat_n(0, bytes.len()));
                    continue;
                }
                let lease = arena.take(bytes.len() as u32).unwrap();
                arena.copy_in(lease.span(), &bytes);
                list.push_span(lease.span());
                wanted.extend(bytes);
                leases.push(lease);
            }
            let len = wanted.len();
            let into = arena.take(len as u32).unwrap();
            let half = len as u32 / 2;
            host.send(socket, std::mem::take(&mut list));
            let mut returned = None;
            if half > 0 {
                host.receive(socket, ReceiveInto::Span(into.part(0..half)));
                let (_, got) = received(&mut host, &mut events, &mut returned);
                assert_eq!(got, half);
                assert!(arena.bytes(into.part(0..half)) == &wanted[..half as usize]);
            }
            let mut bytes = vec![0; len];
            let mut filled = half as usize;
            while filled < len {
                host.receive(socket, ReceiveInto::Buffer { bytes, filled });
                let (back, got) = received(&mut host, &mut events, &mut returned);
                let ReceiveInto::Buffer { bytes: now, filled: now_filled } = back else { panic!() };
                assert_eq!(now_filled, filled + got as usize);
                (bytes, filled) = (now, now_filled);
            }
            assert!(bytes[half as usize..] == wanted[half as usize..]);
            list = match returned {
                Some(list) => list,
                None => match next(&mut host, &mut events) {
                    Event::Sent { list, result: Ok(()), .. } => list,
                    event => panic!("{event:?}"),
                },
            };
            assert_eq!(list.total().get(), len as u64);
            leases.into_iter().chain([into]).for_each(|lease| arena.give(lease));
        }
        host.close_socket(socket);
        assert_eq!(next(&mut host, &mut events), Event::Closed { socket });
        peer.join().unwrap();
        assert_eq!(host.in_flight(), 0);
    }
    assert_eq!(arena.lent(), 0);
}

#[test]
fn closing_swallows_what_is_in_flight_and_tells_when_memory_is_free() {
    let mut arena = arena();
    for mut host in hosts(&arena) {
        let mut events = Vec::new();
        let (socket, mut theirs) = pair(&mut host);
        let into = arena.take(8192).unwrap();
        let from = arena.take(32 << 20).unwrap();
        host.receive(socket, ReceiveInto::Span(into.span()));
        let mut list = SendList::new();
        list.push_span(from.span());
        host.send(socket, list);
        theirs.write_all(&[1; 100]).unwrap();
        // Something to wait for, so that both operations reach the kernel.
        host.wake_handle().wake();
        assert_eq!(next(&mut host, &mut events), Event::Woken);
        host.close_socket(socket);
        assert_eq!(next(&mut host, &mut events), Event::Closed { socket });
        assert_eq!((events.len(), host.in_flight()), (0, 0));
        let mut rest = Vec::new();
        let _reset_or_end = theirs.read_to_end(&mut rest);
        assert!(rest.len() < 32 << 20);
        arena.give(into);
        arena.give(from);

        let (again, mut theirs) = pair(&mut host);
        theirs.write_all(b"x").unwrap();
        host.receive(again, ReceiveInto::Buffer { bytes: vec![0; 8], filled: 3 });
        let Event::Received { into, result: Ok(1), .. } = next(&mut host, &mut events) else {
            panic!("no byte")
        };
        assert_eq!(into, ReceiveInto::Buffer { bytes: b"\0\0\0x\0\0\0\0".to_vec(), filled: 4 });
        host.close_socket(again);
        assert_eq!(next(&mut host, &mut events), Event::Closed { socket: again });
    }
}

#[test]
fn a_closed_peer_ends_receives_and_breaks_sends_without_a_signal() {
    let mut arena = arena();
    for mut host in hosts(&arena) {
        let mut events = Vec::new();
        let (socket, mut theirs) = pair(&mut host);
        theirs.write_all(&[1; 100]).unwrap();
        drop(theirs);
        let lease = arena.take(200).unwrap();
        host.receive(socket, ReceiveInto::Span(lease.span()));
        let event = next(&mut host, &mut events);
        assert!(matches!(event, Event::Received { result: Ok(0), .. }), "{event:?}");
        assert_eq!(arena.bytes(lease.part(0..100)), [1; 100]);
        let mut list = SendList::new();
        list.push_bytes(b"anybody?");
        host.send(socket, list.clone());
        let result = Err(IoError(32));
        assert_eq!(next(&mut host, &mut events), Event::Sent { socket, list, result });
        host.close_socket(socket);
        assert_eq!(next(&mut host, &mut events), Event::Closed { socket });
        arena.give(lease);
    }
}

#[test]
fn other_threads_wake_a_waiting_host_and_a_timeout_ends_a_wait_without_events() {
    let arena = arena();
    for mut host in hosts(&arena) {
        let mut events = Vec::new();
        host.wait(Some(Duration::from_millis(1)), &mut events).unwrap();
        host.wait(Some(Duration::ZERO), &mut events).unwrap();
        assert_eq!(events, []);
        for _ in 0..20 {
            let waker = host.wake_handle();
            let other = std::thread::spawn(move || waker.wake());
            assert_eq!(next(&mut host, &mut events), Event::Woken);
            other.join().unwrap();
        }
        host.wake_handle().wake();
        while events.is_empty() {
            host.wait(Some(Duration::ZERO), &mut events).unwrap();
        }
        assert_eq!(events, [Event::Woken]);
    }
}

#[test]
fn a_host_dropped_with_operations_in_flight_lets_go_of_them() {
    let mut arena = arena();
    for mut host in hosts(&arena) {
        let (socket, theirs) = pair(&mut host);
        let lease = arena.take(4096).unwrap();
        host.receive(socket, ReceiveInto::Span(lease.span()));
        host.wait(Some(Duration::ZERO), &mut Vec::new()).unwrap();
        drop(host);
        drop(theirs);
        arena.give(lease);
    }
}

//! Bytes through sockets, closing, waking and waiting.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::{Dice, arena, hosts};
use crate::engine::effect::{Effect, EffectId, IoError, Outcome, Target};
use crate::engine::units::{ByteLen, FileOffset};
use crate::host::{Descriptors, Event, Host, OpenMode, ReceiveInto, SendList, SocketId};

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

/// Sends everything back, in shreds, until nobody listens any more.
fn echo(mut stream: UnixStream) {
    let mut buffer = vec![0; 7001];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(got) if stream.write_all(&buffer[..got]).is_err() => return,
            Ok(_) => {}
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

/// Sends some bytes of a list that came back, or of a new one.
fn send_some(host: &mut Host, socket: SocketId, mut list: SendList) {
    list.clear();
    list.push_bytes(&[3; 4000]);
    host.send(socket, list);
}

#[test]
fn a_peer_that_takes_nothing_does_not_keep_the_others_waiting() {
    let arena = arena();
    for mut host in hosts(&arena) {
        let ((stuck, silent), (socket, theirs)) = (pair(&mut host), pair(&mut host));
        let peer = std::thread::spawn(move || echo(theirs));
        let into = ReceiveInto::Buffer { bytes: vec![0; 8000], filled: 0 };
        send_some(&mut host, stuck, SendList::new());
        send_some(&mut host, socket, SendList::new());
        host.receive(socket, into);
        let (mut events, mut echoed, mut since_taken) = (Vec::new(), 0u64, 0);
        // Its buffers, whatever their size, are full when it took nothing for long.
        while since_taken < 500 {
            host.wait(Some(Duration::from_secs(30)), &mut events).unwrap();
            assert!(!events.is_empty(), "all wait for the peer that takes nothing");
            // Half of the time, as a shard does that has nothing to do before.
            if echoed % 2 == 0 {
                host.defer_sent();
            }
            for event in events.drain(..) {
                match event {
                    Event::Sent { socket: at, list, result } => {
                        result.unwrap();
                        since_taken = if at == stuck { 0 } else { since_taken };
                        send_some(&mut host, at, list);
                    }
                    Event::Received { into, result, .. } => {
                        echoed += u64::from(result.unwrap());
                        since_taken += 1;
                        let ReceiveInto::Buffer { bytes, .. } = into else { panic!() };
                        host.receive(socket, ReceiveInto::Buffer { bytes, filled: 0 });
                    }
                    event => panic!("{event:?}"),
                }
            }
        }
        assert!(echoed > 0);
        drop((silent, host));
        peer.join().unwrap();
    }
}

#[test]
fn a_lone_cached_read_and_its_answer_cost_two_calls() {
    let mut arena = arena();
    let Some(mut host) = hosts(&arena).into_iter().find(|host| matches!(host, Host::Uring(_)))
    else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    // So many parts that none is read often enough to be mapped.
    std::fs::write(&path, vec![7; 32 << 20]).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    let file = host.add_file(Descriptors::new(file.into(), OpenMode::BUFFERED)).unwrap();
    let (socket, mut theirs) = pair(&mut host);
    const ROUNDS: u64 = 1000;
    let peer = std::thread::spawn(move || {
        let mut answer = [0; 4096];
        for _ in 0..ROUNDS {
            theirs.write_all(b"?").unwrap();
            theirs.read_exact(&mut answer).unwrap();
            assert!(answer.iter().all(|byte| *byte == 7));
        }
        theirs
    });
    let lease = arena.take(4096).unwrap();
    let into = ReceiveInto::Buffer { bytes: vec![0; 10], filled: 0 };
    host.receive(socket, into);
    let (mut events, mut list, mut answered) = (Vec::new(), SendList::new(), 0);
    while answered < ROUNDS {
        host.defer_sent();
        host.wait(Some(Duration::from_secs(1)), &mut events).unwrap();
        while let Some(event) = events.pop() {
            match event {
                Event::Received { into: ReceiveInto::Buffer { bytes, .. }, .. } => {
                    let at = FileOffset::new(answered % 512 * (64 << 10));
                    let into = Target::Span(lease.span());
                    host.start(
                        7,
                        Effect::Read { id: EffectId(1), file, at, into, may_lend: false },
                    );
                    host.receive(socket, ReceiveInto::Buffer { bytes, filled: 0 });
                }
                Event::Effect { outcome, .. } => {
                    assert_eq!(outcome, Outcome::Done);
                    list.clear();
                    list.push_span(lease.span());
                    host.send(socket, std::mem::take(&mut list));
                }
                Event::Sent { list: back, .. } => {
                    list = back;
                    answered += 1;
                }
                event => panic!("{event:?}"),
            }
            host.take_ready(&mut events);
        }
    }
    drop(peer.join().unwrap());
    let counted = host.counters();
    println!("{counted:?}");
    assert_eq!(counted.inline_reads, ROUNDS, "{counted:?}");
    // One call waits for a request while it sends the answer to the one before.
    assert!(counted.enters <= ROUNDS + 10, "{counted:?}");
    arena.give(lease);
}

#[test]
fn a_send_the_peer_has_no_room_for_goes_on_when_it_has_although_nobody_waits_for_its_end() {
    let arena = arena();
    for mut host in hosts(&arena) {
        let (socket, mut theirs) = pair(&mut host);
        let (mut events, mut sent) = (Vec::new(), 0u64);
        let mut back = Some(SendList::new());
        // As much as fits, and one more that does not.
        while let Some(mut list) = back.take() {
            list.clear();
            let round = sent;
            list.push_bytes(&round.to_ne_bytes().repeat(6000));
            host.send(socket, list);
            sent += 1;
            host.defer_sent();
            host.wait(Some(Duration::from_millis(5)), &mut events).unwrap();
            match events.pop() {
                Some(Event::Sent { list, result, .. }) => {
                    result.unwrap();
                    back = Some(list);
                }
                Some(event) => panic!("{event:?}"),
                None => {}
            }
        }
        let reader = std::thread::spawn(move || {
            for round in 0..sent {
                let mut got = [0; 48_000];
                theirs.read_exact(&mut got).unwrap();
                assert!(got == round.to_ne_bytes().repeat(6000)[..], "{round}");
            }
            theirs
        });
        host.wait(Some(Duration::from_secs(30)), &mut events).unwrap();
        assert!(matches!(events.pop(), Some(Event::Sent { result: Ok(()), .. })));
        drop(reader.join().unwrap());
    }
}

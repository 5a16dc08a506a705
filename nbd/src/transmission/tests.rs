//! The gate with compact headers: every check, with the rule it stands for.

use super::{Command, ContextSet, PAYLOAD_MAX, Parsed, Request, Transmission};
use crate::export::{BlockSize, Capabilities};
use crate::fuzz::OneDisk;
use crate::handshake::{Context, ContextName, Session, Violation};
use crate::reply::Echo;
use crate::units::{Bytes, ContextId, Cookie, Offset};
use crate::wire::{Errno, HeaderFormat, RequestHeader, command, command_flag};

const MIB: u64 = 1 << 20;
const ALL: [u16; 7] = [
    command::READ,
    command::WRITE,
    command::FLUSH,
    command::TRIM,
    command::CACHE,
    command::WRITE_ZEROES,
    command::BLOCK_STATUS,
];

fn session() -> Session {
    Session {
        export: OneDisk::new().0,
        structured: true,
        contexts: vec![Context { id: ContextId(1), name: ContextName::Allocation }],
        no_zeroes: true,
        headers: HeaderFormat::Compact,
        leftover: Vec::new(),
    }
}

fn ask(session: &Session, command: u16, flags: u16, offset: u64, length: u32) -> Parsed {
    let header =
        RequestHeader { flags, command, cookie: Cookie(7), offset: Offset(offset), length };
    Transmission::new(session).parse(&header.encode())
}

fn request(parsed: Parsed) -> Option<Request> {
    match parsed {
        Parsed::Request { request, consumed: 28 } => Some(request),
        _ => None,
    }
}

/// The error and the payload to skip; the cookie must have come back.
fn refusal(parsed: Parsed) -> Option<(Errno, u32)> {
    match parsed {
        Parsed::Refused {
            echo: Echo { cookie: Cookie(7), .. },
            error,
            payload,
            consumed: 28,
            text,
        } => {
            assert!(!text.is_empty());
            Some((error, payload))
        }
        _ => None,
    }
}

fn on_able(change: impl FnOnce(&mut Capabilities)) -> Session {
    let mut session = session();
    change(&mut session.export.capabilities);
    session
}

#[test]
fn every_command_is_understood_with_its_own_flags() {
    use command_flag::{DF, FAST_ZERO, FUA, NO_HOLE, REQ_ONE};
    let zeroes = |fua, no_hole, fast| Command::WriteZeroes { fua, no_hole, fast };
    let cases = [
        (command::READ, 0, Command::Read { df: false }),
        (command::READ, DF, Command::Read { df: true }),
        (command::WRITE, FUA, Command::Write { fua: true }),
        (command::TRIM, FUA, Command::Trim { fua: true }),
        (command::CACHE, 0, Command::Cache),
        (command::WRITE_ZEROES, FUA | NO_HOLE | FAST_ZERO, zeroes(true, true, true)),
        (command::WRITE_ZEROES, 0, zeroes(false, false, false)),
        (
            command::BLOCK_STATUS,
            REQ_ONE,
            Command::BlockStatus { req_one: true, contexts: ContextSet::first(1) },
        ),
    ];
    for (number, flags, command) in cases {
        let expected =
            Request { cookie: Cookie(7), command, offset: Offset(512), length: Bytes(4096) };
        let found = request(ask(&session(), number, flags, 512, 4096));
        assert_eq!(found, Some(expected), "{number} {flags:#x}");
    }
}

#[test]
fn a_flag_that_is_not_for_the_command_is_einval() {
    // A flag unknown, or known but meant for another command, is refused, never ignored.
    let legal = |command| match command {
        command::READ => command_flag::DF,
        command::WRITE_ZEROES => command_flag::NO_HOLE | command_flag::FAST_ZERO,
        command::BLOCK_STATUS => command_flag::REQ_ONE,
        _ => 0,
    };
    for command in ALL {
        for bit in 1..16 {
            let flag = 1 << bit;
            let parsed = ask(&session(), command, flag, 0, 512);
            if legal(command) & flag != 0 {
                assert!(request(parsed).is_some(), "{command} {flag:#x}");
            } else {
                let payload = if command == command::WRITE { 512 } else { 0 };
                assert_eq!(refusal(parsed), Some((Errno::EINVAL, payload)));
            }
        }
    }
}

#[test]
fn fua_goes_with_every_command_once_offered_and_with_none_before() {
    for command in ALL {
        let parsed = ask(&session(), command, command_flag::FUA, 0, 512);
        assert!(request(parsed).is_some(), "{command}");
        let without = on_able(|able| able.fua = false);
        let parsed = ask(&without, command, command_flag::FUA, 0, 512);
        assert_eq!(refusal(parsed).map(|(error, _)| error), Some(Errno::EINVAL), "{command}");
    }
}

#[test]
fn df_belongs_to_structured_replies_and_fast_zero_to_those_who_were_offered_it() {
    let mut simple = session();
    simple.structured = false;
    let parsed = ask(&simple, command::READ, command_flag::DF, 0, 512);
    assert_eq!(refusal(parsed), Some((Errno::EINVAL, 0)));
    let slow = on_able(|able| able.fast_zero = false);
    let parsed = ask(&slow, command::WRITE_ZEROES, command_flag::FAST_ZERO, 0, 512);
    assert_eq!(refusal(parsed), Some((Errno::EINVAL, 0)));
}

#[test]
fn commands_that_were_not_offered_are_einval() {
    type Change = fn(&mut Capabilities);
    let cases: [(u16, Change); 4] = [
        (command::FLUSH, |able| able.flush = false),
        (command::TRIM, |able| able.trim = false),
        (command::WRITE_ZEROES, |able| able.write_zeroes = false),
        (command::CACHE, |able| able.cache = false),
    ];
    for (command, change) in cases {
        let parsed = ask(&on_able(change), command, 0, 0, 512);
        assert_eq!(refusal(parsed), Some((Errno::EINVAL, 0)), "{command}");
    }
    // Block status is for those who selected a context.
    let mut blind = session();
    blind.contexts.clear();
    let parsed = ask(&blind, command::BLOCK_STATUS, 0, 0, 512);
    assert_eq!(refusal(parsed), Some((Errno::EINVAL, 0)));
}

#[test]
fn unknown_commands_are_einval_and_leave_the_stream_in_step() {
    for command in [9, 10, 99, u16::MAX] {
        let parsed = ask(&session(), command, 0, 0, 512);
        assert_eq!(refusal(parsed), Some((Errno::EINVAL, 0)));
    }
}

#[test]
fn a_read_only_export_answers_writers_with_eperm() {
    let read_only = on_able(|able| able.read_only = true);
    for command in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
        let payload = if command == command::WRITE { 4096 } else { 0 };
        let parsed = ask(&read_only, command, 0, 0, 4096);
        assert_eq!(refusal(parsed), Some((Errno::EPERM, payload)));
        // Even beyond the end: it is the permission that is missing.
        let parsed = ask(&read_only, command, 0, 2 * MIB, 4096);
        assert_eq!(refusal(parsed), Some((Errno::EPERM, payload)));
    }
    for command in [command::READ, command::FLUSH, command::CACHE, command::BLOCK_STATUS] {
        assert!(request(ask(&read_only, command, 0, 0, 4096)).is_some());
    }
}

#[test]
fn beyond_the_end_writers_get_enospc_and_readers_einval() {
    for command in ALL.into_iter().filter(|&command| command != command::FLUSH) {
        let grows = matches!(command, command::WRITE | command::WRITE_ZEROES);
        let error = if grows { Errno::ENOSPC } else { Errno::EINVAL };
        for offset in [MIB - 511, MIB, u64::MAX - 511, u64::MAX, 1 << 63] {
            let found = refusal(ask(&session(), command, 0, offset, 512));
            assert_eq!(found.map(|(error, _)| error), Some(error), "{command} at {offset}");
        }
        assert!(request(ask(&session(), command, 0, MIB - 512, 512)).is_some());
    }
}

#[test]
fn every_length_has_a_clean_answer_and_a_refused_write_says_what_to_skip() {
    for length in [0, 1, 4096, 4097, 1 << 31, u32::MAX] {
        for command in ALL {
            let parsed = ask(&session(), command, 0, 0, length);
            let fits = matches!(length, 1 | 4096 | 4097) || command == command::FLUSH;
            let payload = if command == command::WRITE { length } else { 0 };
            match refusal(parsed.clone()) {
                None => assert!(fits && request(parsed).is_some()),
                Some((_, skip)) => assert!(!fits && skip == payload, "{command} {length}"),
            }
        }
    }
}

#[test]
fn payloads_up_to_64_mib_pass_whatever_was_advertised() {
    let mut large = session();
    large.export.size = Bytes(1 << 40);
    for command in [command::READ, command::WRITE] {
        assert!(request(ask(&large, command, 0, 0, PAYLOAD_MAX)).is_some());
        let payload = if command == command::WRITE { PAYLOAD_MAX + 1 } else { 0 };
        let parsed = ask(&large, command, 0, 0, PAYLOAD_MAX + 1);
        assert_eq!(refusal(parsed), Some((Errno::EINVAL, payload)));
    }
    // What carries no payload is bounded by its length field alone.
    for command in [command::TRIM, command::WRITE_ZEROES, command::CACHE, command::BLOCK_STATUS] {
        let found = request(ask(&large, command, 0, 0, u32::MAX));
        assert_eq!(found.map(|request| request.length), Some(Bytes(u32::MAX.into())));
    }
}

#[test]
fn requests_keep_to_the_minimum_block_size() {
    let mut strict = session();
    strict.export.block_size = BlockSize::new(512, 4096, 32 << 20).expect("these sizes are legal");
    for command in ALL.into_iter().filter(|&command| command != command::FLUSH) {
        for (offset, length) in [(1, 512), (0, 511), (511, 513)] {
            let found = refusal(ask(&strict, command, 0, offset, length));
            assert_eq!(found.map(|(error, _)| error), Some(Errno::EINVAL));
        }
        assert!(request(ask(&strict, command, 0, 512, 1024)).is_some());
    }
}

#[test]
fn a_flush_carries_no_range_even_if_the_client_left_one_in() {
    let found = request(ask(&session(), command::FLUSH, 0, u64::MAX, u32::MAX));
    let expected = Request {
        cookie: Cookie(7),
        command: Command::Flush { reserved: Offset(u64::MAX) },
        offset: Offset(0),
        length: Bytes(0),
    };
    assert_eq!(found, Some(expected));
    // "Offset ... MUST match the request" (extended reply chunk message).
    assert_eq!(expected.echo().offset, Offset(u64::MAX));
}

#[test]
fn disconnect_needs_nothing_but_its_number() {
    assert_eq!(ask(&session(), command::DISC, 0xffff, 1, 2), Parsed::Disconnect);
}

#[test]
fn a_header_is_complete_at_28_bytes_and_its_magic_at_four() {
    let gate = Transmission::new(&session());
    let header = RequestHeader {
        flags: 0,
        command: command::READ,
        cookie: Cookie(1),
        offset: Offset(0),
        length: 1,
    };
    let bytes = header.encode();
    for end in 0..bytes.len() {
        assert_eq!(gate.parse(&bytes[..end]), Parsed::Incomplete);
    }
    assert!(request(gate.parse(&bytes)).is_some());
    let wrong = Parsed::Violation(Violation::RequestMagic { found: 0x2560_9514 });
    assert_eq!(gate.parse(&[0x25, 0x60, 0x95, 0x14]), wrong);
}

//! Extended headers: what changes once they are agreed on. Each test states the rule it holds the
//! server to; what does not change is tested with compact headers.

use orlop_nbd::fuzz::OneDisk;
use orlop_nbd::transmission::PAYLOAD_MAX;
use orlop_nbd::wire::{
    self, ExtendedRequestHeader, HeaderFormat, ReplyHeader, RequestHeader, chunk, command,
    command_flag,
};
use orlop_nbd::{
    Body, Bytes, Command, Context, ContextId, ContextSet, Cookie, Echo, Errno, Extent, Offset,
    Parsed, Piece, ReplyError, ReplyStyle, Request, Segment, Session, Transmission, Violation,
};

const COOKIE: Cookie = Cookie(0x0102_0304_0506_0708);
const TIB: u64 = 1 << 40;
const PAYLOAD_LEN: u16 = command_flag::PAYLOAD_LEN;
const EVERY: [u16; 9] = [0, 1, 3, 4, 5, 6, 7, 8, 0xffff];

/// A session with extended headers over 8 TiB, with that many of its contexts selected.
fn session(selected: usize) -> Session {
    let mut export = OneDisk::new().0;
    export.size = Bytes(8 * TIB);
    let names = export.contexts.iter().take(selected).cloned();
    let contexts = (1..).map(ContextId).zip(names).map(|(id, name)| Context { id, name }).collect();
    let headers = HeaderFormat::Extended;
    Session { export, structured: true, contexts, no_zeroes: true, headers, leftover: Vec::new() }
}

fn gate() -> Transmission {
    Transmission::new(&session(3))
}

fn header(command: u16, flags: u16, offset: u64, length: u64) -> Vec<u8> {
    let (offset, length) = (Offset(offset), Bytes(length));
    ExtendedRequestHeader { flags, command, cookie: COOKIE, offset, length }.encode().to_vec()
}

fn ask(command: u16, flags: u16, offset: u64, length: u64) -> Parsed {
    gate().parse(&header(command, flags, offset, length))
}

/// A BLOCK_STATUS with a filter: the header's length counts the payload.
fn filtered(flags: u16, offset: u64, payload: &[u8]) -> Vec<u8> {
    let flags = flags | PAYLOAD_LEN;
    [header(command::BLOCK_STATUS, flags, offset, payload.len() as u64), payload.to_vec()].concat()
}

fn filter(covers: u64, ids: &[u32]) -> Vec<u8> {
    let ids: Vec<ContextId> = ids.iter().copied().map(ContextId).collect();
    wire::status_filter(Bytes(covers), &ids)
}

fn request(parsed: Parsed) -> Option<(Request, usize)> {
    match parsed {
        Parsed::Request { request, consumed } => Some((request, consumed)),
        _ => None,
    }
}

/// The error and the payload to skip; cookie and offset must have come back.
fn refusal(parsed: Parsed, at: u64) -> Option<(Errno, u32)> {
    match parsed {
        Parsed::Refused { echo, error, text, consumed: 32, payload } => {
            assert_eq!(echo, Echo { cookie: COOKIE, offset: Offset(at) });
            assert!(!text.is_empty());
            Some((error, payload))
        }
        _ => None,
    }
}

#[test]
fn a_header_has_32_bytes_and_a_magic_of_its_own() {
    let bytes = header(command::READ, 0, 512, 4096);
    assert_eq!(bytes.len(), gate().header_len());
    assert_eq!(bytes[..4], [0x21, 0xe4, 0x1c, 0x71]);
    for end in 0..bytes.len() {
        assert_eq!(gate().parse(&bytes[..end]), Parsed::Incomplete);
    }
    let (found, consumed) = request(gate().parse(&bytes)).expect("it is whole");
    assert_eq!((found.offset, found.length, consumed), (Offset(512), Bytes(4096), 32));
    // Once agreed on, only these: a compact header is out of place, and the other way round.
    let (cookie, offset) = (COOKIE, Offset(0));
    let compact = RequestHeader { flags: 0, command: 0, cookie, offset, length: 512 }.encode();
    let found = wire::REQUEST_MAGIC;
    assert_eq!(gate().parse(&compact), Parsed::Violation(Violation::RequestMagic { found }));
    let plain = Transmission::new(&Session { headers: HeaderFormat::Compact, ..session(0) });
    let found = wire::EXTENDED_REQUEST_MAGIC;
    assert_eq!(plain.parse(&bytes), Parsed::Violation(Violation::RequestMagic { found }));
}

#[test]
fn commands_without_payload_cover_as_much_as_64_bits_say() {
    for number in [command::TRIM, command::WRITE_ZEROES, command::CACHE, command::BLOCK_STATUS] {
        for length in [1 << 32, 5 * TIB + 1, 8 * TIB] {
            let (found, _) = request(ask(number, 0, 0, length)).expect("it is inside");
            assert_eq!((found.length, found.payload()), (Bytes(length), Bytes(0)), "{number}");
        }
        let error = if number == command::WRITE_ZEROES { Errno::ENOSPC } else { Errno::EINVAL };
        for (offset, length) in
            [(0, 8 * TIB + 1), (1, u64::MAX), (u64::MAX, u64::MAX), (0, 1 << 63)]
        {
            let parsed = ask(number, 0, offset, length);
            assert_eq!(refusal(parsed, offset), Some((error, 0)), "{number} {length}");
        }
    }
}

#[test]
fn reads_keep_to_64_mib_and_overflow_if_they_must_come_in_one_piece() {
    let most = u64::from(PAYLOAD_MAX);
    assert!(request(ask(command::READ, 0, 0, most)).is_some());
    for length in [most + 1, 1 << 32, u64::MAX] {
        let found = refusal(ask(command::READ, 0, 0, length), 0);
        assert_eq!(found, Some((Errno::EINVAL, 0)));
        let found = refusal(ask(command::READ, command_flag::DF, 0, length), 0);
        assert_eq!(found, Some((Errno::EOVERFLOW, 0)));
    }
}

#[test]
fn a_write_has_its_payload_behind_it_with_the_flag_and_without() {
    // The flag is the protocol's MUST; QEMU leaves it out and sends the payload all the same.
    for flags in [PAYLOAD_LEN, PAYLOAD_LEN | command_flag::FUA, 0] {
        let (found, consumed) = request(ask(command::WRITE, flags, 0, 4096)).expect("a write");
        assert_eq!((found.payload(), consumed), (Bytes(4096), 32));
        assert_eq!(found.command, Command::Write { fua: flags & command_flag::FUA != 0 });
    }
    // Refused, it still has to be skipped.
    let beyond = 8 * TIB;
    let found = refusal(ask(command::WRITE, PAYLOAD_LEN, beyond, 4096), beyond);
    assert_eq!(found, Some((Errno::ENOSPC, 4096)));
    assert_eq!(refusal(ask(command::WRITE, PAYLOAD_LEN, 0, 0), 0), Some((Errno::EINVAL, 0)));
}

#[test]
fn a_payload_where_none_belongs_is_skipped_and_einval() {
    for number in EVERY.into_iter().filter(|number| ![1, 7].contains(number)) {
        for length in [0, 1, 4096, u64::from(PAYLOAD_MAX)] {
            let found = refusal(ask(number, PAYLOAD_LEN, 0, length), 0);
            assert_eq!(found, Some((Errno::EINVAL, length as u32)), "{number}");
        }
    }
    // Without a selected context there is no filter either.
    let blind = Transmission::new(&session(0));
    let parsed = blind.parse(&filtered(0, 0, &filter(4096, &[1])));
    assert_eq!(refusal(parsed, 0), Some((Errno::EINVAL, 12)));
}

#[test]
fn a_payload_longer_than_any_maximum_drops_the_connection() {
    // Servers SHOULD initiate a hard disconnect then, whatever the command.
    for number in EVERY {
        for length in [u64::from(PAYLOAD_MAX) + 1, 1 << 32, u64::MAX] {
            let limit = PAYLOAD_MAX;
            let expected = Parsed::Violation(Violation::PayloadTooLong { length, limit });
            assert_eq!(ask(number, PAYLOAD_LEN, 0, length), expected, "{number}");
        }
    }
}

#[test]
fn the_flag_means_nothing_in_compact_headers() {
    let plain = Transmission::new(&Session { headers: HeaderFormat::Compact, ..session(1) });
    for command in [command::READ, command::WRITE, command::BLOCK_STATUS] {
        let (flags, cookie, offset) = (PAYLOAD_LEN, COOKIE, Offset(0));
        let asked = RequestHeader { flags, command, cookie, offset, length: 12 };
        let Parsed::Refused { error, payload, .. } = plain.parse(&asked.encode()) else {
            unreachable!("{command} with an unknown flag")
        };
        let skip = if command == command::WRITE { 12 } else { 0 };
        assert_eq!((error, payload), (Errno::EINVAL, skip));
    }
}

#[test]
fn a_filter_names_contexts_and_the_bytes_to_cover() {
    let cases: [(&[u32], &[u32]); 4] =
        [(&[1], &[1]), (&[3], &[3]), (&[3, 1], &[1, 3]), (&[2, 3, 1], &[1, 2, 3])];
    for (named, meant) in cases {
        for flags in [0, command_flag::REQ_ONE] {
            let bytes = filtered(flags, 512, &filter(5 * TIB, named));
            for end in 0..bytes.len() {
                assert_eq!(gate().parse(&bytes[..end]), Parsed::Incomplete);
            }
            assert!(bytes.len() <= gate().question_len());
            let (found, consumed) = request(gate().parse(&bytes)).expect("a legal filter");
            assert_eq!((consumed, found.payload()), (bytes.len(), Bytes(0)));
            assert_eq!((found.offset, found.length), (Offset(512), Bytes(5 * TIB)));
            let Command::BlockStatus { req_one, contexts } = found.command else {
                unreachable!("{:?}", found.command)
            };
            let told: Vec<u32> = (0..70).filter(|&id| contexts.contains(ContextId(id))).collect();
            assert_eq!(told, meant);
            assert_eq!(contexts.last(), meant.last().copied().map(ContextId));
            assert_eq!(req_one, flags != 0);
        }
    }
    // Without a filter every selected context is told.
    let (found, _) = request(ask(command::BLOCK_STATUS, 0, 0, 512)).expect("a plain question");
    let contexts = ContextSet::first(3);
    assert_eq!(found.command, Command::BlockStatus { req_one: false, contexts });
}

#[test]
fn a_filter_that_makes_no_sense_is_skipped_whole_and_einval() {
    // Unknown ids, repeated ones, and lengths that no list of selected ids has.
    for ids in [&[4][..], &[0], &[u32::MAX], &[1, 1], &[1, 4], &[65]] {
        let bytes = filtered(0, 0, &filter(4096, ids));
        let payload = (bytes.len() - 32) as u32;
        assert_eq!(refusal(gate().parse(&bytes), 0), Some((Errno::EINVAL, payload)), "{ids:?}");
    }
    for length in [0, 1, 4, 8, 9, 11, 13, 15, 24, 4096] {
        let bytes = filtered(0, 0, &vec![0; length]);
        // Known from the header alone: nobody waits for a payload that is wrong already.
        for end in [32, bytes.len()] {
            let found = refusal(gate().parse(&bytes[..end]), 0);
            assert_eq!(found, Some((Errno::EINVAL, length as u32)), "{length}");
        }
    }
    // The bytes covered are checked as ever, and the payload is not left in the stream.
    for covers in [0, 8 * TIB + 1, u64::MAX] {
        let bytes = filtered(0, 0, &filter(covers, &[1]));
        assert_eq!(refusal(gate().parse(&bytes), 0), Some((Errno::EINVAL, 12)));
    }
}

#[test]
fn disconnect_needs_nothing_but_its_number_here_too() {
    assert_eq!(ask(command::DISC, 0xffff, 1, u64::MAX), Parsed::Disconnect);
}

#[test]
fn context_sets_hold_64_and_end() {
    assert_eq!(ContextSet::first(0).last(), None);
    assert_eq!(ContextSet::first(64).last(), Some(ContextId(64)));
    assert_eq!(ContextSet::first(99), ContextSet::first(64));
    assert!(!ContextSet::first(64).contains(ContextId(0)));
    assert!(!ContextSet::first(64).contains(ContextId(65)));
}

fn asked(command: Command, length: u64) -> Request {
    Request { cookie: COOKIE, command, offset: Offset(TIB), length: Bytes(length) }
}

fn status(length: u64, req_one: bool) -> Request {
    asked(Command::BlockStatus { req_one, contexts: ContextSet::first(2) }, length)
}

/// Chunks of a stream as (flags, kind, payload); each repeats cookie and offset of its request.
fn chunks(mut stream: &[u8]) -> Vec<(u16, u16, Vec<u8>)> {
    let mut found = Vec::new();
    while let Ok(Some((header, length))) = ReplyHeader::decode(stream) {
        let ReplyHeader::Extended { flags, kind, cookie, offset, length: payload } = header else {
            unreachable!("{header:?} in an extended session")
        };
        assert_eq!((cookie, offset, length), (COOKIE, Offset(TIB), 32));
        let (body, rest) = stream[length..].split_at(payload.0 as usize);
        found.push((flags, kind, body.to_vec()));
        stream = rest;
    }
    assert!(stream.is_empty(), "{} bytes out of step", stream.len());
    found
}

fn words64(payload: &[u8]) -> Vec<u64> {
    let word = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().expect("eight bytes"));
    payload.chunks(8).map(word).collect()
}

#[test]
fn replies_have_32_byte_headers_that_repeat_the_offset() {
    let echo = status(1, false).echo();
    let style = ReplyStyle::Extended;
    let done = style.done(echo);
    assert_eq!((done.len(), &done[..4]), (32, &[0x6e, 0x8a, 0x27, 0x8c][..]));
    assert_eq!(chunks(&done), [(chunk::FLAG_DONE, chunk::NONE, vec![])]);

    let mut out = Vec::new();
    style.error(&mut out, echo, Errno::ENOSPC, None, "full");
    let failed = (chunk::FLAG_DONE, chunk::ERROR, b"\0\0\0\x1c\0\x04full".to_vec());
    assert_eq!(chunks(&out), [failed]);
    out.clear();
    // The place of the failure is the payload's; the header's is the request's.
    style.error(&mut out, echo, Errno::EIO, Some(Offset(9)), "bad");
    let at = b"\0\0\0\x05\0\x03bad\0\0\0\0\0\0\0\x09".to_vec();
    assert_eq!(chunks(&out), [(chunk::FLAG_DONE, chunk::ERROR_OFFSET, at)]);

    let head = style.before_data(echo, 3);
    let found = chunks(&[&head[..], b"abc"].concat());
    assert_eq!(found[0].2, [&TIB.to_be_bytes()[..], b"abc"].concat());
}

#[test]
fn a_read_is_told_in_chunks_with_the_long_headers() {
    let segments = [Segment::Data(Bytes(2)), Segment::Hole(Bytes(4)), Segment::Data(Bytes(1))];
    let (mut headers, mut pieces, mut stream) = (Vec::new(), Vec::new(), Vec::new());
    let request = asked(Command::Read { df: false }, 7);
    let planned = ReplyStyle::Extended.plan_read(&request, &segments, &mut headers, &mut pieces);
    planned.expect("the segments add up");
    for Piece { header, body } in pieces {
        stream.extend_from_slice(&headers[header]);
        if let Body::Data { skip, length } = body {
            stream.extend((skip..skip + length).map(|at| at as u8));
        }
    }
    let found = chunks(&stream);
    let at = |skip: u64, rest: &[u8]| [&(TIB + skip).to_be_bytes()[..], rest].concat();
    let expected = [
        (0, chunk::OFFSET_DATA, at(0, &[0, 1])),
        (0, chunk::OFFSET_HOLE, at(2, &4_u32.to_be_bytes())),
        (chunk::FLAG_DONE, chunk::OFFSET_DATA, at(6, &[6])),
    ];
    assert_eq!(found, expected);
}

/// The descriptors of the one chunk that tells these extents.
fn told(request: &Request, extents: &[(u64, u32)]) -> Vec<(u64, u64)> {
    let mut out = Vec::new();
    let extents = extents.iter().map(|&(length, flags)| Extent { length: Bytes(length), flags });
    let style = ReplyStyle::Extended;
    style.block_status(&mut out, request, ContextId(2), extents, true).expect("an extent");
    let found = chunks(&out);
    // Only the wide kind of chunk may be used, even for extents that would fit the other.
    assert_eq!((found[0].0, found[0].1), (chunk::FLAG_DONE, chunk::BLOCK_STATUS_EXT));
    let words = words64(&found[0].2);
    let count = words.len() as u64 / 2;
    assert_eq!(words[0], (2 << 32) | count, "the context and the count come first");
    words[1..].chunks(2).map(|pair| (pair[0], pair[1])).collect()
}

#[test]
fn extents_have_64_bits_and_need_no_cutting() {
    let found = told(&status(6 * TIB, false), &[(TIB, 0), (TIB, 0), (9 * TIB, 3), (1, 0)]);
    assert_eq!(found, [(2 * TIB, 0), (9 * TIB, 3)]);
    assert_eq!(told(&status(512, false), &[(512, 1)]), [(512, 1)]);
    assert_eq!(told(&status(3 * TIB, true), &[(9 * TIB, 1)]), [(3 * TIB, 1)]);
}

#[test]
fn one_chunk_answers_each_context_and_done_stands_on_the_last() {
    let mut out = Vec::new();
    for (id, done) in [(1, false), (2, true)] {
        let extent = Extent { length: Bytes(8), flags: id };
        let style = ReplyStyle::Extended;
        let told = style.block_status(&mut out, &status(8, false), ContextId(id), [extent], done);
        told.expect("an extent");
    }
    let flags: Vec<u16> = chunks(&out).iter().map(|chunk| chunk.0).collect();
    assert_eq!(flags, [0, chunk::FLAG_DONE]);
    // Simple replies cannot tell metadata at all.
    let extent = Extent { length: Bytes(8), flags: 0 };
    let style = ReplyStyle::Simple;
    let told = style.block_status(&mut out, &status(8, false), ContextId(1), [extent], true);
    assert_eq!(told, Err(ReplyError::Kind));
}

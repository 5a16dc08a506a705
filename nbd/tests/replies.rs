//! Replies as a client would read them: framing, DONE, holes, and the rules of block status.

use orlop_nbd::reply::EXTENTS_MAX;
use orlop_nbd::wire::{ReplyHeader, chunk};
use orlop_nbd::{
    Body, Bytes, Command, ContextId, ContextSet, Cookie, Echo, Errno, Extent, Offset, Piece,
    ReplyError, ReplyStyle, Request, Segment,
};

const COOKIE: Cookie = Cookie(0x0102_0304_0506_0708);
const ECHO: Echo = Echo { cookie: COOKIE, offset: Offset(5) };

fn read(length: u64, df: bool) -> Request {
    let (command, offset) = (Command::Read { df }, Offset(1 << 40));
    Request { cookie: COOKIE, command, offset, length: Bytes(length) }
}

fn status(length: u64, req_one: bool) -> Request {
    let command = Command::BlockStatus { req_one, contexts: ContextSet::first(1) };
    Request { cookie: COOKIE, command, offset: Offset(0), length: Bytes(length) }
}

fn data(length: u64) -> Segment {
    Segment::Data(Bytes(length))
}

fn hole(length: u64) -> Segment {
    Segment::Hole(Bytes(length))
}

/// What a client sees of a planned READ: the whole stream, data being the low byte of its position.
fn sent(style: ReplyStyle, request: &Request, segments: &[Segment]) -> Vec<u8> {
    let (mut headers, mut pieces) = (vec![0xee; 3], Vec::new());
    style.plan_read(request, segments, &mut headers, &mut pieces).expect("the segments add up");
    let mut stream = Vec::new();
    for Piece { header, body } in pieces {
        stream.extend_from_slice(&headers[header]);
        match body {
            Body::None => {}
            Body::Data { skip, length } => stream.extend((skip..skip + length).map(|at| at as u8)),
            Body::Zeroes { length } => stream.resize(stream.len() + length as usize, 0),
        }
    }
    stream
}

/// Chunks of a stream as (flags, kind, payload).
fn chunks(mut stream: &[u8]) -> Vec<(u16, u16, Vec<u8>)> {
    let mut found = Vec::new();
    while let Ok(Some((header, length))) = ReplyHeader::decode(stream) {
        let ReplyHeader::Chunk { flags, kind, cookie, length: payload } = header else { break };
        assert_eq!(cookie, COOKIE);
        let (body, rest) = stream[length..].split_at(payload as usize);
        found.push((flags, kind, body.to_vec()));
        stream = rest;
    }
    assert!(stream.is_empty(), "{} bytes out of step", stream.len());
    found
}

fn word64(payload: &[u8]) -> u64 {
    u64::from_be_bytes(payload[..8].try_into().expect("eight bytes"))
}

fn word32(payload: &[u8]) -> u32 {
    u32::from_be_bytes(payload[..4].try_into().expect("four bytes"))
}

/// The descriptors of a block status chunk.
fn descriptors(payload: &[u8]) -> Vec<(u32, u32)> {
    payload[4..].chunks(8).map(|pair| (word32(pair), word32(&pair[4..]))).collect()
}

fn told(request: &Request, extents: &[(u64, u32)]) -> Result<Vec<(u32, u32)>, ReplyError> {
    let mut out = Vec::new();
    let extents = extents.iter().map(|&(length, flags)| Extent { length: Bytes(length), flags });
    ReplyStyle::Structured.block_status(&mut out, request, ContextId(3), extents, true)?;
    let found = chunks(&out);
    assert_eq!(found.len(), 1, "one chunk per context");
    assert_eq!((found[0].0, found[0].1), (chunk::FLAG_DONE, chunk::BLOCK_STATUS));
    assert_eq!(word32(&found[0].2), 3, "the context's id comes first");
    Ok(descriptors(&found[0].2))
}

#[test]
fn a_simple_read_is_one_header_and_then_every_byte() {
    let segments = [data(2), hole(3), hole(1), data(2)];
    let stream = sent(ReplyStyle::Simple, &read(8, false), &segments);
    let header = ReplyHeader::Simple { cookie: COOKIE, error: None };
    assert_eq!(ReplyHeader::decode(&stream), Ok(Some((header, 16))));
    assert_eq!(stream[16..], [0, 1, 0, 0, 0, 0, 6, 7]);
}

#[test]
fn a_structured_read_has_a_chunk_per_run_and_done_on_the_last_only() {
    let segments = [data(1), data(1), hole(3), hole(0), hole(1), data(0), data(2)];
    let found = chunks(&sent(ReplyStyle::Structured, &read(8, false), &segments));
    let kinds: Vec<_> = found.iter().map(|chunk| (chunk.0, chunk.1)).collect();
    let expected =
        [(0, chunk::OFFSET_DATA), (0, chunk::OFFSET_HOLE), (chunk::FLAG_DONE, chunk::OFFSET_DATA)];
    assert_eq!(kinds, expected);
    assert_eq!((word64(&found[0].2), &found[0].2[8..]), (1 << 40, &[0, 1][..]));
    assert_eq!((word64(&found[1].2), word32(&found[1].2[8..])), ((1 << 40) + 2, 4));
    assert_eq!((word64(&found[2].2), &found[2].2[8..]), ((1 << 40) + 6, &[6, 7][..]));
}

#[test]
fn a_read_of_one_hole_is_one_small_chunk() {
    let length = 64 << 20;
    for df in [false, true] {
        let stream = sent(ReplyStyle::Structured, &read(length, df), &[hole(length)]);
        assert_eq!(stream.len(), 32);
        assert_eq!(chunks(&stream)[0].0, chunk::FLAG_DONE);
        // An empty run of data is no data.
        let segments = [data(0), hole(length)];
        assert_eq!(sent(ReplyStyle::Structured, &read(length, df), &segments), stream);
    }
}

#[test]
fn an_unfragmented_read_has_one_content_chunk_holes_included() {
    let found = chunks(&sent(ReplyStyle::Structured, &read(4, true), &[hole(2), data(2)]));
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].0, found[0].1), (chunk::FLAG_DONE, chunk::OFFSET_DATA));
    assert_eq!(found[0].2[8..], [0, 0, 2, 3]);
}

#[test]
fn segments_that_do_not_add_up_never_reach_the_wire() {
    for style in [ReplyStyle::Simple, ReplyStyle::Structured] {
        for segments in [&[][..], &[data(7)], &[data(8), hole(1)], &[hole(u64::MAX), hole(9)]] {
            let (mut headers, mut pieces) = (Vec::new(), Vec::new());
            let answer = style.plan_read(&read(8, false), segments, &mut headers, &mut pieces);
            assert!(matches!(answer, Err(ReplyError::Length { .. })));
            assert!(headers.is_empty() && pieces.is_empty());
        }
    }
    let (mut headers, mut pieces) = (Vec::new(), Vec::new());
    let style = ReplyStyle::Structured;
    let answer = style.plan_read(&status(8, false), &[data(8)], &mut headers, &mut pieces);
    assert_eq!(answer, Err(ReplyError::Kind));
}

#[test]
fn errors_are_a_word_in_simple_replies_and_carry_text_in_structured_ones() {
    let mut out = Vec::new();
    ReplyStyle::Simple.error(&mut out, ECHO, Errno::ENOSPC, Some(Offset(9)), "full");
    let header = ReplyHeader::Simple { cookie: COOKIE, error: Some(Errno::ENOSPC) };
    assert_eq!((ReplyHeader::decode(&out), out.len()), (Ok(Some((header, 16))), 16));

    out.clear();
    ReplyStyle::Structured.error(&mut out, ECHO, Errno::ENOSPC, None, "full");
    let found = chunks(&out);
    assert_eq!((found[0].0, found[0].1), (chunk::FLAG_DONE, chunk::ERROR));
    assert_eq!(found[0].2, b"\0\0\0\x1c\0\x04full");

    out.clear();
    ReplyStyle::Structured.error(&mut out, ECHO, Errno::EIO, Some(Offset(9)), "bad");
    let found = chunks(&out);
    assert_eq!((found[0].0, found[0].1), (chunk::FLAG_DONE, chunk::ERROR_OFFSET));
    assert_eq!(found[0].2, b"\0\0\0\x05\0\x03bad\0\0\0\0\0\0\0\x09");
}

#[test]
fn error_text_is_cut_at_a_character_within_4096_bytes() {
    let mut out = Vec::new();
    let text = format!("x{}", "\u{e9}".repeat(4096));
    ReplyStyle::Structured.error(&mut out, ECHO, Errno::EIO, None, &text);
    let found = chunks(&out);
    assert_eq!(str::from_utf8(&found[0].2[6..]).map(str::len), Ok(4095));
}

#[test]
fn success_without_data_is_one_frame() {
    assert_eq!(ReplyStyle::Simple.done(ECHO).len(), 16);
    let out = ReplyStyle::Structured.done(ECHO);
    assert_eq!(chunks(&out), [(chunk::FLAG_DONE, chunk::NONE, vec![])]);
}

#[test]
fn equal_neighbours_are_one_extent_and_empty_ones_none() {
    let extents = [(4, 0), (4, 0), (0, 9), (8, 3), (8, 3), (1, 0)];
    assert_eq!(told(&status(100, false), &extents), Ok(vec![(8, 0), (16, 3), (1, 0)]));
}

#[test]
fn only_the_last_extent_may_reach_beyond_the_request() {
    let extents = [(8, 0), (80, 3), (8, 0)];
    assert_eq!(told(&status(16, false), &extents), Ok(vec![(8, 0), (80, 3)]));
    // Exactly at the end, nothing more may start.
    assert_eq!(told(&status(8, false), &extents), Ok(vec![(8, 0)]));
}

#[test]
fn req_one_is_one_extent_inside_the_request() {
    let extents = [(8, 0), (8, 0), (80, 3)];
    assert_eq!(told(&status(20, true), &extents), Ok(vec![(16, 0)]));
    assert_eq!(told(&status(12, true), &extents), Ok(vec![(12, 0)]));
}

#[test]
fn extents_too_long_for_32_bits_are_cut_on_block_boundaries() {
    let all = u64::from(u32::MAX);
    let expected = vec![(0xffff_0000, 3), (0xffff_0000, 3)];
    assert_eq!(told(&status(all, false), &[(1 << 40, 3)]), Ok(expected));
    assert_eq!(told(&status(all, true), &[(1 << 40, 3)]), Ok(vec![(0xffff_0000, 3)]));
    // A cut that ends where the request ends leaves nothing to say.
    let whole = status(0xffff_0000, false);
    assert_eq!(told(&whole, &[(1 << 40, 3)]), Ok(vec![(0xffff_0000, 3)]));
    let endless = [(u64::MAX, 3), (u64::MAX, 3)];
    assert_eq!(told(&status(4096, false), &endless), Ok(vec![(0xffff_0000, 3)]));
}

#[test]
fn tiny_extents_do_not_amplify_a_request_without_bound() {
    let extents: Vec<_> = (0..1 << 18).map(|at| (1, at & 1)).collect();
    let found = told(&status(1 << 30, false), &extents);
    assert_eq!(found.map(|found| found.len()), Ok(EXTENTS_MAX));
}

#[test]
fn block_status_without_an_extent_is_our_mistake_and_leaves_nothing_behind() {
    let mut out = vec![1, 2, 3];
    let empty = [Extent { length: Bytes(0), flags: 0 }];
    let style = ReplyStyle::Structured;
    let answer = style.block_status(&mut out, &status(8, false), ContextId(1), empty, true);
    assert_eq!((answer, out.len()), (Err(ReplyError::NoExtent), 3));
    let answer = style.block_status(&mut out, &read(8, false), ContextId(1), empty, true);
    assert_eq!((answer, out.len()), (Err(ReplyError::Kind), 3));
}

#[test]
fn done_waits_for_the_last_context() {
    let mut out = Vec::new();
    let extent = Extent { length: Bytes(8), flags: 3 };
    for (id, done) in [(1, false), (2, true)] {
        let request = status(8, false);
        let style = ReplyStyle::Structured;
        style.block_status(&mut out, &request, ContextId(id), [extent], done).expect("an extent");
    }
    let found = chunks(&out);
    let seen: Vec<_> = found.iter().map(|chunk| (chunk.0, word32(&chunk.2))).collect();
    assert_eq!(seen, [(0, 1), (chunk::FLAG_DONE, 2)]);
}

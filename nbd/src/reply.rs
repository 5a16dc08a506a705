//! Replies of the transmission phase, appended to buffers the caller owns.
//!
//! Data never passes through here: [`ReplyStyle::plan_read`] writes the headers and says where the
//! caller's bytes or zeroes go between them. It refuses segments that do not add up, because a
//! reply of the wrong length would put the whole connection out of step.

use std::ops::Range;

use thiserror::Error;

use crate::transmission::{Command, Request};
use crate::units::{Bytes, ContextId, Cookie, Offset};
use crate::wire::{self, CHUNK_HEADER_LEN, Errno, STRING_MAX, chunk};

/// Most extents in one BLOCK_STATUS chunk, so that a small request cannot ask for a large reply.
pub const EXTENTS_MAX: usize = 1 << 16;

/// Header of an OFFSET_DATA chunk up to the data: chunk header and offset.
pub const OFFSET_DATA_LEN: usize = CHUNK_HEADER_LEN + 8;
/// A whole OFFSET_HOLE chunk: chunk header, offset and size.
pub const OFFSET_HOLE_LEN: usize = CHUNK_HEADER_LEN + 12;

/// Longest extent in a 32-bit descriptor. A multiple of 64 KiB, so that cutting a longer one
/// keeps every legal minimum block size whole.
const EXTENT_BYTES_MAX: u64 = 0xffff_0000;

/// Which kind of replies a session uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyStyle {
    /// One 16-byte header, data behind it, no text.
    Simple,
    /// Chunks, with holes and error texts.
    Structured,
}

/// A run of a READ's range, in order, as the engine answers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Bytes the caller has.
    Data(Bytes),
    /// Bytes that read as zero and were not fetched.
    Hole(Bytes),
}

/// What follows a header in a READ's reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Nothing.
    None,
    /// The caller's bytes for this part of the request, counted from the request's start.
    Data {
        /// Bytes of the request before this part.
        skip: u32,
        /// Bytes of this part.
        length: u32,
    },
    /// Zero bytes.
    Zeroes {
        /// How many.
        length: u32,
    },
}

/// One step of sending a READ's reply: some header bytes, then a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where the header lies in the buffer it was appended to; may be empty.
    pub header: Range<usize>,
    /// What follows it.
    pub body: Body,
}

/// A run of equal metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// How long it is; runs of no bytes are ignored.
    pub length: Bytes,
    /// The context's own flags, as [`wire::allocation`] for `base:allocation`.
    pub flags: u32,
}

/// An answer from the engine that cannot be put on the wire: our own mistake, to be answered EIO.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReplyError {
    /// The segments of a READ do not add up to the request.
    #[error("segments of {found} answer a read of {wanted}")]
    Length {
        /// What the client asked for.
        wanted: Bytes,
        /// What the segments hold, as far as they were added.
        found: Bytes,
    },
    /// A plan was asked for a request that is not READ, or extents for one not BLOCK_STATUS.
    #[error("the request is of another kind")]
    Kind,
    /// The metadata of a range has no first extent.
    #[error("no extent answers a block status request")]
    NoExtent,
}

impl ReplyStyle {
    /// Appends the reply of a request that succeeded and returns no data.
    pub fn done(self, out: &mut Vec<u8>, cookie: Cookie) {
        match self {
            ReplyStyle::Simple => out.extend_from_slice(&wire::simple_reply(cookie, None)),
            ReplyStyle::Structured => out.extend_from_slice(&none_done(cookie)),
        }
    }

    /// Appends the reply of a request that failed. `text` is for people and reaches the client in
    /// structured replies only, cut at 4096 bytes. May also end a reply whose chunks were
    /// partly sent.
    pub fn error(self, out: &mut Vec<u8>, cookie: Cookie, error: Errno, text: &str) {
        match self {
            ReplyStyle::Simple => out.extend_from_slice(&wire::simple_reply(cookie, Some(error))),
            ReplyStyle::Structured => error_chunk(out, cookie, error, text, None),
        }
    }

    /// The same as [`ReplyStyle::error`], and says where in the export it happened.
    pub fn error_at(self, out: &mut Vec<u8>, cookie: Cookie, error: Errno, at: Offset, text: &str) {
        match self {
            ReplyStyle::Simple => out.extend_from_slice(&wire::simple_reply(cookie, Some(error))),
            ReplyStyle::Structured => error_chunk(out, cookie, error, text, Some(at)),
        }
    }

    /// Plans the reply of a READ that succeeded: appends its headers to `headers` and the steps of
    /// sending it to `pieces`. Neighbours of one kind are joined. Structured replies turn each
    /// hole into one small chunk; simple ones, and DF with any data at all, ask for zeroes.
    ///
    /// # Errors
    /// The request is no READ, or the segments do not add up to it; both buffers are then as they
    /// were.
    pub fn plan_read(
        self,
        request: &Request,
        segments: &[Segment],
        headers: &mut Vec<u8>,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), ReplyError> {
        let Command::Read { df } = request.command else { return Err(ReplyError::Kind) };
        let length = check_segments(request, segments)?;
        let all_hole = !segments.iter().any(|segment| matches!(segment, Segment::Data(Bytes(1..))));
        let start = headers.len();
        match self {
            ReplyStyle::Simple => {
                headers.extend_from_slice(&wire::simple_reply(request.cookie, None));
            }
            ReplyStyle::Structured if df && !all_hole => {
                let header = offset_data(request.cookie, request.offset, length, true);
                headers.extend_from_slice(&header);
            }
            ReplyStyle::Structured => {
                chunks(request, segments, length, headers, pieces);
                return Ok(());
            }
        }
        let mut header = start..headers.len();
        for run in joined(segments) {
            pieces.push(Piece { header, body: run.body() });
            header = headers.len()..headers.len();
        }
        Ok(())
    }
}

/// The single chunk that ends a structured reply without data.
#[must_use]
pub fn none_done(cookie: Cookie) -> [u8; CHUNK_HEADER_LEN] {
    wire::chunk_header(chunk::FLAG_DONE, chunk::NONE, cookie, 0)
}

/// The header of a chunk of data: `length` bytes, more than none and at most 64 MiB, must follow.
#[must_use]
pub fn offset_data(cookie: Cookie, at: Offset, length: u32, done: bool) -> [u8; OFFSET_DATA_LEN] {
    let payload = length.saturating_add(8);
    let mut bytes = [0; OFFSET_DATA_LEN];
    let (head, offset) = bytes.split_at_mut(CHUNK_HEADER_LEN);
    head.copy_from_slice(&wire::chunk_header(done_flag(done), chunk::OFFSET_DATA, cookie, payload));
    offset.copy_from_slice(&at.0.to_be_bytes());
    bytes
}

/// A whole chunk that says `length` bytes, more than none, read as zero.
#[must_use]
pub fn offset_hole(cookie: Cookie, at: Offset, length: u32, done: bool) -> [u8; OFFSET_HOLE_LEN] {
    let mut bytes = [0; OFFSET_HOLE_LEN];
    let (head, rest) = bytes.split_at_mut(CHUNK_HEADER_LEN);
    head.copy_from_slice(&wire::chunk_header(done_flag(done), chunk::OFFSET_HOLE, cookie, 12));
    let (offset, size) = rest.split_at_mut(8);
    offset.copy_from_slice(&at.0.to_be_bytes());
    size.copy_from_slice(&length.to_be_bytes());
    bytes
}

/// Appends one context's BLOCK_STATUS chunk; a request is answered with one per selected context,
/// `done` on the last.
///
/// `extents` start at the request's offset and must not leave the export. Equal neighbours are
/// joined, and reading stops at the request's end: the last extent may reach beyond it, except
/// under REQ_ONE, which gets one extent inside the range. Fewer extents than the range needs are
/// a legal answer, and so is stopping after [`EXTENTS_MAX`].
///
/// # Errors
/// The request is not BLOCK_STATUS, or there is no extent; `out` is then as it was.
pub fn block_status(
    out: &mut Vec<u8>,
    request: &Request,
    context: ContextId,
    extents: impl IntoIterator<Item = Extent>,
    done: bool,
) -> Result<(), ReplyError> {
    let Command::BlockStatus { req_one } = request.command else { return Err(ReplyError::Kind) };
    let start = out.len();
    out.extend_from_slice(&[0; CHUNK_HEADER_LEN]);
    out.extend_from_slice(&context.0.to_be_bytes());
    let limit = if req_one { 1 } else { EXTENTS_MAX };
    let mut descriptors = Descriptors { out, written: 0, limit, covered_bytes: 0 };
    let mut run: Option<Extent> = None;
    for extent in extents.into_iter().filter(|extent| extent.length.0 > 0) {
        match &mut run {
            Some(run) if run.flags == extent.flags => {
                run.length.0 = run.length.0.saturating_add(extent.length.0);
            }
            _ => {
                if let Some(full) = run.replace(extent) {
                    descriptors.put(full, request.length, req_one);
                }
            }
        }
        let pending = run.map_or(0, |run| run.length.0);
        // Only the run in hand may cross the end; what comes after it is nobody's question.
        if descriptors.full()
            || descriptors.covered_bytes.saturating_add(pending) >= request.length.0
        {
            break;
        }
    }
    if let Some(last) = run {
        descriptors.put(last, request.length, req_one);
    }
    if descriptors.written == 0 {
        out.truncate(start);
        return Err(ReplyError::NoExtent);
    }
    let payload = out.len() - start - CHUNK_HEADER_LEN;
    let payload = u32::try_from(payload).expect("65536 extents of 8 bytes fit");
    let header = wire::chunk_header(done_flag(done), chunk::BLOCK_STATUS, request.cookie, payload);
    out[start..start + CHUNK_HEADER_LEN].copy_from_slice(&header);
    Ok(())
}

/// Writes extents as 32-bit descriptors, cutting what is too long for one.
struct Descriptors<'a> {
    out: &'a mut Vec<u8>,
    written: usize,
    limit: usize,
    covered_bytes: u64,
}

impl Descriptors<'_> {
    fn full(&self) -> bool {
        self.written >= self.limit
    }

    fn put(&mut self, extent: Extent, requested: Bytes, inside: bool) {
        let mut left = extent.length.0;
        // Once the range is covered no further descriptor may start, not even the rest of this one.
        while left > 0 && !self.full() && self.covered_bytes < requested.0 {
            let ceiling = if inside { requested.0 - self.covered_bytes } else { u64::MAX };
            let length = left.min(ceiling).min(EXTENT_BYTES_MAX);
            let word = u32::try_from(length).expect("EXTENT_BYTES_MAX has 32 bits");
            self.out.extend_from_slice(&word.to_be_bytes());
            self.out.extend_from_slice(&extent.flags.to_be_bytes());
            self.written += 1;
            self.covered_bytes = self.covered_bytes.saturating_add(length);
            left -= length;
        }
    }
}

/// A joined run of segments, placed within its request.
#[derive(Clone, Copy)]
struct Run {
    hole: bool,
    skip: u32,
    length: u32,
}

impl Run {
    fn body(self) -> Body {
        let Run { hole, skip, length } = self;
        if hole { Body::Zeroes { length } } else { Body::Data { skip, length } }
    }
}

/// The request's length in 32 bits, once the segments are known to add up to it.
fn check_segments(request: &Request, segments: &[Segment]) -> Result<u32, ReplyError> {
    let total = segments.iter().try_fold(0_u64, |total, segment| {
        let (Segment::Data(length) | Segment::Hole(length)) = segment;
        total.checked_add(length.0)
    });
    let found = Bytes(total.unwrap_or(u64::MAX));
    let wanted = request.length;
    match u32::try_from(wanted.0) {
        Ok(length) if length > 0 && found == wanted => Ok(length),
        _ => Err(ReplyError::Length { wanted, found }),
    }
}

/// The segments with equal neighbours joined and empty ones left out. They add up to 32 bits.
fn joined(segments: &[Segment]) -> impl Iterator<Item = Run> {
    let mut rest = segments
        .iter()
        .map(|segment| match *segment {
            Segment::Data(length) => (false, length.0 as u32),
            Segment::Hole(length) => (true, length.0 as u32),
        })
        .filter(|(_, length)| *length > 0)
        .peekable();
    let mut skip = 0;
    std::iter::from_fn(move || {
        let (hole, mut length) = rest.next()?;
        while let Some((_, more)) = rest.next_if(|(next, _)| *next == hole) {
            length += more;
        }
        let run = Run { hole, skip, length };
        skip += length;
        Some(run)
    })
}

fn chunks(
    request: &Request,
    segments: &[Segment],
    length: u32,
    headers: &mut Vec<u8>,
    pieces: &mut Vec<Piece>,
) {
    for run in joined(segments) {
        // The gate placed the whole range inside the export, so this cannot wrap.
        let at = Offset(request.offset.0.saturating_add(run.skip.into()));
        let done = run.skip + run.length == length;
        let start = headers.len();
        let body = if run.hole {
            headers.extend_from_slice(&offset_hole(request.cookie, at, run.length, done));
            Body::None
        } else {
            headers.extend_from_slice(&offset_data(request.cookie, at, run.length, done));
            run.body()
        };
        pieces.push(Piece { header: start..headers.len(), body });
    }
}

fn error_chunk(out: &mut Vec<u8>, cookie: Cookie, error: Errno, text: &str, at: Option<Offset>) {
    let text = &text[..text.floor_char_boundary(STRING_MAX)];
    let text_len = u16::try_from(text.len()).expect("cut at 4096 bytes");
    let (kind, tail_len) = match at {
        Some(_) => (chunk::ERROR_OFFSET, 8),
        None => (chunk::ERROR, 0),
    };
    let payload = 4 + 2 + u32::from(text_len) + tail_len;
    out.extend_from_slice(&wire::chunk_header(chunk::FLAG_DONE, kind, cookie, payload));
    out.extend_from_slice(&error.code().to_be_bytes());
    out.extend_from_slice(&text_len.to_be_bytes());
    out.extend_from_slice(text.as_bytes());
    if let Some(at) = at {
        out.extend_from_slice(&at.0.to_be_bytes());
    }
}

fn done_flag(done: bool) -> u16 {
    if done { chunk::FLAG_DONE } else { 0 }
}

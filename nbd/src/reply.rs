//! Replies of the transmission phase, appended to buffers the caller owns.
//!
//! Data never passes through here: [`ReplyStyle::plan_read`] writes the headers and says where the
//! caller's bytes or zeroes go between them. It refuses segments that do not add up, because a
//! reply of the wrong length would put the whole connection out of step.

use std::ops::{Deref, Range};

use thiserror::Error;

use crate::transmission::{Command, Request};
use crate::units::{Bytes, ContextId, Cookie, Offset};
use crate::wire::{self, EXTENDED_CHUNK_HEADER_LEN, Errno, STRING_MAX, chunk};

/// Most extents in one BLOCK_STATUS chunk, so that a small request cannot ask for a large reply.
pub const EXTENTS_MAX: usize = 1 << 16;

/// The longest [`Head`]: a whole OFFSET_HOLE chunk with an extended header, offset and size.
const HEAD_MAX: usize = EXTENDED_CHUNK_HEADER_LEN + 12;

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
    /// The same with extended headers: 32 bytes each, and extents of 64 bits.
    Extended,
}

/// What a reply repeats of the request it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// The client's name for it.
    pub cookie: Cookie,
    /// Where it starts; only extended replies say so.
    pub offset: Offset,
}

/// The fixed part of a reply, on the stack: good replies need no memory of their own.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    bytes: [u8; HEAD_MAX],
    len: usize,
}

impl Head {
    fn of(bytes: &[u8]) -> Head {
        Head { bytes: [0; HEAD_MAX], len: 0 }.and(bytes)
    }

    fn and(mut self, more: &[u8]) -> Head {
        self.bytes[self.len..self.len + more.len()].copy_from_slice(more);
        self.len += more.len();
        self
    }
}

impl Deref for Head {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
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
    /// The whole reply of a request that succeeded and returns no data.
    #[must_use]
    pub fn done(self, echo: Echo) -> Head {
        match self {
            ReplyStyle::Simple => Head::of(&wire::simple_reply(echo.cookie, None)),
            _ => self.chunk(chunk::FLAG_DONE, chunk::NONE, echo, 0),
        }
    }

    /// What stands before the data of a READ that is answered in one piece; `length` bytes, more
    /// than none and at most 64 MiB, must follow.
    #[must_use]
    pub fn before_data(self, echo: Echo, length: u32) -> Head {
        match self {
            ReplyStyle::Simple => Head::of(&wire::simple_reply(echo.cookie, None)),
            _ => self.offset_data(echo, echo.offset, length, true),
        }
    }

    /// Appends the reply of a request that failed. `text` is for people and reaches the client in
    /// chunks only, cut at 4096 bytes; so does `at`, the place in the export where it happened.
    /// May also end a reply whose chunks were partly sent.
    pub fn error(
        self,
        out: &mut Vec<u8>,
        echo: Echo,
        error: Errno,
        at: Option<Offset>,
        text: &str,
    ) {
        if self == ReplyStyle::Simple {
            out.extend_from_slice(&wire::simple_reply(echo.cookie, Some(error)));
            return;
        }
        let text = &text[..text.floor_char_boundary(STRING_MAX)];
        let text_len = u16::try_from(text.len()).expect("cut at 4096 bytes");
        let (kind, tail_len) = match at {
            Some(_) => (chunk::ERROR_OFFSET, 8),
            None => (chunk::ERROR, 0),
        };
        let payload = 4 + 2 + u32::from(text_len) + tail_len;
        out.extend_from_slice(&self.chunk(chunk::FLAG_DONE, kind, echo, payload));
        out.extend_from_slice(&error.code().to_be_bytes());
        out.extend_from_slice(&text_len.to_be_bytes());
        out.extend_from_slice(text.as_bytes());
        if let Some(at) = at {
            out.extend_from_slice(&at.0.to_be_bytes());
        }
    }

    /// The header of a chunk, in the layout of this style. Simple replies have none, and nothing
    /// here asks for one.
    fn chunk(self, flags: u16, kind: u16, echo: Echo, payload: u32) -> Head {
        let Echo { cookie, offset } = echo;
        match self {
            ReplyStyle::Extended => {
                let length = Bytes(payload.into());
                Head::of(&wire::extended_chunk_header(flags, kind, cookie, offset, length))
            }
            _ => Head::of(&wire::chunk_header(flags, kind, cookie, payload)),
        }
    }

    fn offset_data(self, echo: Echo, at: Offset, length: u32, done: bool) -> Head {
        let payload = length.saturating_add(8);
        self.chunk(done_flag(done), chunk::OFFSET_DATA, echo, payload).and(&at.0.to_be_bytes())
    }

    /// A whole chunk that says `length` bytes read as zero.
    fn offset_hole(self, echo: Echo, at: Offset, length: u32, done: bool) -> Head {
        self.chunk(done_flag(done), chunk::OFFSET_HOLE, echo, 12)
            .and(&at.0.to_be_bytes())
            .and(&length.to_be_bytes())
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
            _ if df && !all_hole => {
                headers.extend_from_slice(&self.before_data(request.echo(), length));
            }
            _ => {
                chunks(self, request, segments, length, headers, pieces);
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

    /// Appends one context's BLOCK_STATUS chunk; a request is answered with one per context it
    /// asks about, `done` on the last.
    ///
    /// `extents` start at the request's offset and must not leave the export. Equal neighbours are
    /// joined, and reading stops at the request's end: the last extent may reach beyond it, except
    /// under REQ_ONE, which gets one extent inside the range. Fewer extents than the range needs
    /// are a legal answer, and so is stopping after [`EXTENTS_MAX`].
    ///
    /// # Errors
    /// The request is not BLOCK_STATUS, replies are simple, or there is no extent; `out` is then as
    /// it was.
    pub fn block_status(
        self,
        out: &mut Vec<u8>,
        request: &Request,
        context: ContextId,
        extents: impl IntoIterator<Item = Extent>,
        done: bool,
    ) -> Result<(), ReplyError> {
        let Command::BlockStatus { req_one, .. } = request.command else {
            return Err(ReplyError::Kind);
        };
        if self == ReplyStyle::Simple {
            return Err(ReplyError::Kind);
        }
        let wide = self == ReplyStyle::Extended;
        let kind = if wide { chunk::BLOCK_STATUS_EXT } else { chunk::BLOCK_STATUS };
        let flags = done_flag(done);
        let start = out.len();
        // How long it gets, and how many descriptors, is known only behind them.
        out.extend_from_slice(&self.chunk(flags, kind, request.echo(), 0));
        let payload_at = out.len();
        out.extend_from_slice(&context.0.to_be_bytes());
        if wide {
            out.extend_from_slice(&[0; 4]);
        }
        let limit = if req_one { 1 } else { EXTENTS_MAX };
        let mut descriptors = Descriptors { out, written: 0, limit, covered_bytes: 0, wide };
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
        let count = u32::try_from(descriptors.written).expect("there are at most 65536");
        if wide {
            out[payload_at + 4..payload_at + 8].copy_from_slice(&count.to_be_bytes());
        }
        let payload = u32::try_from(out.len() - payload_at).expect("65536 extents of 16 bytes fit");
        out[start..payload_at].copy_from_slice(&self.chunk(flags, kind, request.echo(), payload));
        Ok(())
    }
}

/// Writes extents as descriptors, cutting what is too long for one of 32 bits.
struct Descriptors<'a> {
    out: &'a mut Vec<u8>,
    written: usize,
    limit: usize,
    covered_bytes: u64,
    /// Descriptors of two 64-bit words, not two of 32.
    wide: bool,
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
            let mut length = left.min(ceiling);
            if self.wide {
                self.out.extend_from_slice(&length.to_be_bytes());
                self.out.extend_from_slice(&u64::from(extent.flags).to_be_bytes());
            } else {
                length = length.min(EXTENT_BYTES_MAX);
                let word = u32::try_from(length).expect("EXTENT_BYTES_MAX has 32 bits");
                self.out.extend_from_slice(&word.to_be_bytes());
                self.out.extend_from_slice(&extent.flags.to_be_bytes());
            }
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
    style: ReplyStyle,
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
            headers.extend_from_slice(&style.offset_hole(request.echo(), at, run.length, done));
            Body::None
        } else {
            headers.extend_from_slice(&style.offset_data(request.echo(), at, run.length, done));
            run.body()
        };
        pieces.push(Piece { header: start..headers.len(), body });
    }
}

fn done_flag(done: bool) -> u16 {
    if done { chunk::FLAG_DONE } else { 0 }
}

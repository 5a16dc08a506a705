//! The transmission phase's one gate: a request header becomes a [`Request`] that cannot be wrong.
//!
//! Everything a client can say about a request is judged here and nowhere else: flags, bounds,
//! permission, alignment and size. Behind this gate nobody validates again. It never looks at
//! written data and never allocates; payloads of refused requests are for the caller to skip. The
//! one payload it reads is the filter of a BLOCK_STATUS, a few words that are part of the question.

use crate::export::Capabilities;
use crate::handshake::{Session, Violation};
use crate::options::CONTEXTS_MAX;
use crate::reply::{Echo, ReplyStyle};
use crate::units::{Bytes, ContextId, Cookie, Offset};
use crate::wire::{
    Errno, ExtendedRequestHeader, Fields, HeaderFormat, RequestHeader, WireError, command,
    command_flag,
};

/// The longest payload of one request, in bytes, either way. Twice what is advertised by default,
/// because clients exist that send 50 MB whatever they were told.
pub const PAYLOAD_MAX: u32 = 64 << 20;

/// What a client wants done, with the flags that were valid for it.
///
/// FUA is legal on every command once offered; where it has no meaning it is dropped here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read the range.
    Read {
        /// Answer in one piece.
        df: bool,
    },
    /// Write the payload that follows the header.
    Write {
        /// Answer only when it is durable.
        fua: bool,
    },
    /// Make every answered write durable. Carries no range: offset and length are zero.
    Flush {
        /// What the client left in the field for the offset, which a reply repeats.
        reserved: Offset,
    },
    /// The range is no longer needed.
    Trim {
        /// Answer only when it is durable.
        fua: bool,
    },
    /// The range shall read as zeroes.
    WriteZeroes {
        /// Answer only when it is durable.
        fua: bool,
        /// The range must be allocated afterwards.
        no_hole: bool,
        /// Fail with ENOTSUP at once unless this is faster than writing.
        fast: bool,
    },
    /// The range will be read soon.
    Cache,
    /// Tell the selected metadata contexts of the range.
    BlockStatus {
        /// One extent, not beyond the range.
        req_one: bool,
        /// The contexts to tell; at least one.
        contexts: ContextSet,
    },
    /// Change the export's size. Carries no range: offset and length are zero.
    Resize {
        /// The size to have: at least 1, whole minimum blocks, and at most 2^63 - 1.
        size: Bytes,
    },
}

/// Some of a session's selected contexts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContextSet(u64);

impl ContextSet {
    /// The first `count` of a session's contexts, at most [`CONTEXTS_MAX`].
    #[must_use]
    pub fn first(count: usize) -> ContextSet {
        let missing = CONTEXTS_MAX.saturating_sub(count) as u32;
        ContextSet(u64::MAX.checked_shr(missing).unwrap_or(0))
    }

    /// Whether the context is one of these.
    #[must_use]
    pub fn contains(self, context: ContextId) -> bool {
        self.0 & ContextSet::only(context).0 != 0
    }

    /// The one with the highest number: the one whose chunk ends a reply.
    #[must_use]
    pub fn last(self) -> Option<ContextId> {
        self.0.checked_ilog2().map(|place| ContextId(place + 1))
    }

    fn count(self) -> u32 {
        self.0.count_ones()
    }

    fn only(context: ContextId) -> ContextSet {
        let place = context.0.checked_sub(1);
        ContextSet(place.and_then(|place| 1_u64.checked_shl(place)).unwrap_or(0))
    }
}

/// A request that passed every check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The client's name for it.
    pub cookie: Cookie,
    /// What to do.
    pub command: Command,
    /// Where the range starts.
    pub offset: Offset,
    /// How long it is: at least 1, inside the export, whole minimum blocks, and at most
    /// [`PAYLOAD_MAX`] for READ and WRITE. Zero for FLUSH and RESIZE only.
    pub length: Bytes,
}

impl Request {
    /// What replies repeat of it.
    #[must_use]
    pub const fn echo(&self) -> Echo {
        let offset = match self.command {
            // The request had its size in that field, and a reply repeats the field.
            Command::Resize { size } => Offset(size.0),
            Command::Flush { reserved } => reserved,
            _ => self.offset,
        };
        Echo { cookie: self.cookie, offset }
    }

    /// Bytes of payload still in the stream behind what the gate consumed: a WRITE's length, else
    /// none.
    #[must_use]
    pub const fn payload(&self) -> Bytes {
        match self.command {
            Command::Write { .. } => self.length,
            _ => Bytes(0),
        }
    }
}

/// What the bytes at the front of the stream are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Not yet a whole header, or not yet the whole filter behind it: at most
    /// [`Transmission::question_len`] bytes are needed.
    Incomplete,
    /// A request to carry out.
    Request {
        /// The request.
        request: Request,
        /// Bytes to take off the stream: the header, and a BLOCK_STATUS's filter with it.
        /// [`Request::payload`] says how many bytes of payload follow them.
        consumed: usize,
    },
    /// A request to answer with an error, now; the stream stays in step.
    Refused {
        /// What the reply repeats of it.
        echo: Echo,
        /// The error to answer with.
        error: Errno,
        /// The reason, for a structured reply.
        text: &'static str,
        /// Header bytes to take off the stream.
        consumed: usize,
        /// Payload bytes behind the header, to be read and thrown away.
        payload: u32,
    },
    /// The client is done: finish what is in flight, then close.
    Disconnect,
    /// The stream makes no sense: drop the connection.
    Violation(Violation),
}

/// What one connection agreed on, as the gate needs it.
#[derive(Clone, Copy, Debug)]
pub struct Transmission {
    size: Bytes,
    able: Capabilities,
    alignment_bytes: u32,
    structured: bool,
    contexts: ContextSet,
    headers: HeaderFormat,
}

/// What a request is about, once payload and range are told apart.
#[derive(Clone, Copy, Debug)]
struct Subject {
    length: Bytes,
    contexts: ContextSet,
    /// Bytes of payload that were read as part of the question.
    taken_bytes: usize,
}

/// Why a request is refused.
type Refusal = (Errno, &'static str);

impl Transmission {
    /// The gate for a session. Later changes to the session do not reach it, but
    /// [`Transmission::set_size`] does.
    #[must_use]
    pub fn new(session: &Session) -> Transmission {
        Transmission {
            size: session.export.size,
            able: session.export.capabilities.effective(),
            alignment_bytes: session.export.block_size.minimum(),
            structured: session.structured,
            contexts: ContextSet::first(session.contexts.len()),
            headers: session.headers,
        }
    }

    /// Follows a change of the export's size, by this connection or another: requests are from now
    /// on held against `size`. Those that passed before may lie beyond it; that is for the disk
    /// to notice.
    pub const fn set_size(&mut self, size: Bytes) {
        self.size = size;
    }

    /// How replies look in this session.
    #[must_use]
    pub fn reply_style(&self) -> ReplyStyle {
        match self.headers {
            HeaderFormat::Extended => ReplyStyle::Extended,
            HeaderFormat::Compact if self.structured => ReplyStyle::Structured,
            HeaderFormat::Compact => ReplyStyle::Simple,
        }
    }

    /// Length of this session's request headers, in bytes.
    #[must_use]
    pub fn header_len(&self) -> usize {
        self.headers.request_len()
    }

    /// The most bytes this gate needs to see of one request: a header and, with extended headers,
    /// the longest filter.
    #[must_use]
    pub fn question_len(&self) -> usize {
        match self.headers {
            HeaderFormat::Compact => self.header_len(),
            HeaderFormat::Extended => self.header_len() + 8 + 4 * CONTEXTS_MAX,
        }
    }

    /// Judges the request at the front of `bytes`. A wrong magic is noticed at four bytes.
    #[must_use]
    pub fn parse(&self, bytes: &[u8]) -> Parsed {
        let decoded = match self.headers {
            HeaderFormat::Compact => {
                RequestHeader::decode(bytes).map(|found| found.map(Into::into))
            }
            HeaderFormat::Extended => ExtendedRequestHeader::decode(bytes),
        };
        let header: ExtendedRequestHeader = match decoded {
            Ok(None) => return Parsed::Incomplete,
            Ok(Some(header)) => header,
            Err(WireError::Magic { found, .. }) => {
                let found = u32::try_from(found).unwrap_or(u32::MAX);
                return Parsed::Violation(Violation::RequestMagic { found });
            }
        };
        if header.command == command::DISC {
            return Parsed::Disconnect;
        }
        let payload = match self.payload_behind(&header) {
            Ok(payload) => payload,
            Err(violation) => return Parsed::Violation(violation),
        };
        let consumed = self.header_len();
        let behind = bytes.get(consumed..).unwrap_or_default();
        let judged = match self.subject(&header, payload, behind) {
            Ok(None) => return Parsed::Incomplete,
            Ok(Some(subject)) => {
                self.judge(&header, subject).map(|request| (request, subject.taken_bytes))
            }
            Err(refusal) => Err(refusal),
        };
        match judged {
            Ok((request, taken)) => Parsed::Request { request, consumed: consumed + taken },
            Err((error, text)) => {
                let echo = Echo { cookie: header.cookie, offset: header.offset };
                Parsed::Refused { echo, error, text, consumed, payload }
            }
        }
    }

    /// Bytes of payload behind a header, even if nothing else about it is right.
    fn payload_behind(&self, header: &ExtendedRequestHeader) -> Result<u32, Violation> {
        // A WRITE must carry PAYLOAD_LEN with extended headers, but QEMU (seen with 10.0.2) never
        // sets it and sends its payload all the same, so nothing else could be read from it.
        let carries = header.command == command::WRITE
            || (self.headers == HeaderFormat::Extended
                && header.flags & command_flag::PAYLOAD_LEN != 0);
        // A compact length has 32 bits and can be skipped; nobody sits through 2^64 bytes.
        let limit = match self.headers {
            HeaderFormat::Compact => u32::MAX,
            HeaderFormat::Extended => PAYLOAD_MAX,
        };
        let length = if carries { header.length.0 } else { 0 };
        match u32::try_from(length) {
            Ok(length) if length <= limit => Ok(length),
            _ => Err(Violation::PayloadTooLong { length, limit }),
        }
    }

    /// What a request is about; `Ok(None)` while its filter is incomplete.
    fn subject(
        &self,
        header: &ExtendedRequestHeader,
        payload: u32,
        behind: &[u8],
    ) -> Result<Option<Subject>, Refusal> {
        let filtered = self.headers == HeaderFormat::Extended
            && header.command == command::BLOCK_STATUS
            && header.flags & command_flag::PAYLOAD_LEN != 0
            && self.contexts.count() > 0;
        if !filtered {
            let (length, contexts) = (header.length, self.contexts);
            return Ok(Some(Subject { length, contexts, taken_bytes: 0 }));
        }
        let longest = 8 + 4 * self.contexts.count();
        if payload < 12 || payload > longest || !payload.is_multiple_of(4) {
            return Err((Errno::EINVAL, "the payload is no list of selected contexts"));
        }
        let taken_bytes = payload as usize;
        let mut fields = Fields(behind.get(..taken_bytes).unwrap_or_default());
        let Some(length) = fields.u64().map(Bytes) else { return Ok(None) };
        let mut contexts = ContextSet::default();
        while let Some(id) = fields.u32().map(ContextId) {
            if !self.contexts.contains(id) || contexts.contains(id) {
                return Err((Errno::EINVAL, "a context was not selected, or is named twice"));
            }
            contexts = ContextSet(contexts.0 | ContextSet::only(id).0);
        }
        Ok(Some(Subject { length, contexts, taken_bytes }))
    }

    fn judge(&self, header: &ExtendedRequestHeader, subject: Subject) -> Result<Request, Refusal> {
        let command = self.command(header, subject.contexts)?;
        self.check_permission(command)?;
        let (cookie, mut offset, mut length) = (header.cookie, header.offset, subject.length);
        match command {
            // Offset and length are reserved here; clients exist that leave something in them.
            Command::Flush { .. } => (offset, length) = (Offset(0), Bytes(0)),
            Command::Resize { size } => {
                self.check_new_size(size, length)?;
                (offset, length) = (Offset(0), Bytes(0));
            }
            _ => self.check_range(command, offset, length)?,
        }
        Ok(Request { cookie, command, offset, length })
    }

    /// The command with its flags; a flag that is unknown, not offered or not for this command is
    /// an error, but FUA goes with everything.
    fn command(
        &self,
        header: &ExtendedRequestHeader,
        contexts: ContextSet,
    ) -> Result<Command, Refusal> {
        let payload_len = match self.headers {
            HeaderFormat::Extended => command_flag::PAYLOAD_LEN,
            HeaderFormat::Compact => 0,
        };
        let has = |flag: u16| header.flags & flag != 0;
        let fua = has(command_flag::FUA);
        let (command, mut legal) = match header.command {
            command::READ => {
                let legal = if self.structured { command_flag::DF } else { 0 };
                (Command::Read { df: has(command_flag::DF) }, legal)
            }
            command::WRITE => (Command::Write { fua }, payload_len),
            command::FLUSH => (Command::Flush { reserved: header.offset }, 0),
            command::TRIM => (Command::Trim { fua }, 0),
            command::CACHE => (Command::Cache, 0),
            command::WRITE_ZEROES => {
                let fast = if self.able.fast_zero { command_flag::FAST_ZERO } else { 0 };
                let no_hole = has(command_flag::NO_HOLE);
                let fast_asked = has(command_flag::FAST_ZERO);
                let command = Command::WriteZeroes { fua, no_hole, fast: fast_asked };
                (command, command_flag::NO_HOLE | fast)
            }
            command::BLOCK_STATUS => {
                let req_one = has(command_flag::REQ_ONE);
                let command = Command::BlockStatus { req_one, contexts };
                (command, command_flag::REQ_ONE | payload_len)
            }
            command::RESIZE => (Command::Resize { size: Bytes(header.offset.0) }, 0),
            _ => return Err((Errno::EINVAL, "unknown command")),
        };
        if self.able.fua {
            legal |= command_flag::FUA;
        }
        if header.flags & !legal != 0 {
            return Err((Errno::EINVAL, "a flag is not valid for this command"));
        }
        Ok(command)
    }

    fn check_permission(&self, command: Command) -> Result<(), Refusal> {
        let writes = matches!(
            command,
            Command::Write { .. }
                | Command::Trim { .. }
                | Command::WriteZeroes { .. }
                | Command::Resize { .. }
        );
        if writes && self.able.read_only {
            return Err((Errno::EPERM, "the export is read-only"));
        }
        let offered = match command {
            Command::Read { .. } | Command::Write { .. } => true,
            Command::Flush { .. } => self.able.flush,
            Command::Trim { .. } => self.able.trim,
            Command::WriteZeroes { .. } => self.able.write_zeroes,
            Command::Cache => self.able.cache,
            Command::BlockStatus { .. } => self.contexts.count() > 0,
            Command::Resize { .. } => self.able.resize,
        };
        if offered { Ok(()) } else { Err((Errno::EINVAL, "the command was not offered")) }
    }

    /// A size says nothing about where the export ends now, so no range applies to it.
    fn check_new_size(&self, size: Bytes, length: Bytes) -> Result<(), Refusal> {
        if length.0 != 0 {
            return Err((Errno::EINVAL, "a resize has its size for an offset, and no length"));
        }
        if size.0 == 0 {
            return Err((Errno::EINVAL, "an export cannot shrink to nothing"));
        }
        if !size.0.is_multiple_of(self.alignment_bytes.into()) {
            return Err((Errno::EINVAL, "the size is not aligned to the minimum block size"));
        }
        // Offsets are signed numbers to many a client and to every file system.
        if i64::try_from(size.0).is_err() {
            return Err((Errno::ENOSPC, "no export can have that size"));
        }
        Ok(())
    }

    fn check_range(&self, command: Command, at: Offset, length: Bytes) -> Result<(), Refusal> {
        if length.0 == 0 {
            return Err((Errno::EINVAL, "the request covers no bytes"));
        }
        // Commands without a payload may be as long as their length field can say.
        if length.0 > PAYLOAD_MAX.into() {
            match command {
                Command::Read { df: true } => {
                    return Err((Errno::EOVERFLOW, "one piece can hold at most 64 MiB"));
                }
                Command::Read { .. } | Command::Write { .. } => {
                    return Err((Errno::EINVAL, "the request is larger than 64 MiB"));
                }
                _ => {}
            }
        }
        let end = at.0.checked_add(length.0);
        if end.is_none_or(|end| end > self.size.0) {
            let grows = matches!(command, Command::Write { .. } | Command::WriteZeroes { .. });
            let error = if grows { Errno::ENOSPC } else { Errno::EINVAL };
            return Err((error, "the request goes beyond the end of the export"));
        }
        let alignment = u64::from(self.alignment_bytes);
        if !at.0.is_multiple_of(alignment) || !length.0.is_multiple_of(alignment) {
            return Err((Errno::EINVAL, "the request is not aligned to the minimum block size"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

//! The layouts and numbers of the NBD wire, for both ends: fixed newstyle, simple and structured
//! replies. Everything is big-endian.
//!
//! This module decides nothing: it refuses a wrong magic and otherwise hands over what was sent.
//! Whether a number is acceptable is the business of the handshake and the transmission phase.

use thiserror::Error;

use crate::units::{Bytes, Cookie, Offset};

/// First word of the server's greeting: `NBDMAGIC`.
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second word of the greeting and start of every option: `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Start of every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Start of every request with a compact header.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Start of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Start of a structured reply chunk.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Length of the greeting: two magics and 16 bits of handshake flags.
pub const GREETING_LEN: usize = 18;
/// Length of the client's flags that answer the greeting.
pub const CLIENT_FLAGS_LEN: usize = 4;
/// Length of an option's header, before its data.
pub const OPTION_HEADER_LEN: usize = 16;
/// Length of an option reply's header, before its data.
pub const OPTION_REPLY_HEADER_LEN: usize = 20;
/// Length of a compact request header.
pub const REQUEST_LEN: usize = 28;
/// Length of a simple reply.
pub const SIMPLE_REPLY_LEN: usize = 16;
/// Length of a structured reply chunk's header, before its payload.
pub const CHUNK_HEADER_LEN: usize = 20;
/// Zero bytes behind the answer to EXPORT_NAME, unless both sides agreed to leave them out.
pub const EXPORT_NAME_PADDING: usize = 124;
/// Longest string the protocol allows, in bytes.
pub const STRING_MAX: usize = 4096;

/// Bits of the greeting and of the client's answer to it.
pub mod handshake_flag {
    /// The fixed newstyle handshake: unknown options are answered, not fatal.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// The padding behind EXPORT_NAME's answer is left out.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Option numbers.
pub mod option {
    /// Names an export and ends the handshake; has no error reply.
    pub const EXPORT_NAME: u32 = 1;
    /// Ends the connection politely.
    pub const ABORT: u32 = 2;
    /// Asks for the names of all exports.
    pub const LIST: u32 = 3;
    /// Withdrawn from the protocol; only its number is reserved.
    pub const PEEK_EXPORT: u32 = 4;
    /// Asks to go on under TLS.
    pub const STARTTLS: u32 = 5;
    /// Asks about an export.
    pub const INFO: u32 = 6;
    /// Asks about an export and, on success, ends the handshake.
    pub const GO: u32 = 7;
    /// Asks for structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Asks which metadata contexts an export has.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Selects metadata contexts for BLOCK_STATUS.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Asks for 64-bit headers.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Types of option replies.
pub mod option_reply {
    /// The option is done.
    pub const ACK: u32 = 1;
    /// One export of a list.
    pub const SERVER: u32 = 2;
    /// One piece of information about an export.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// The bit all errors have.
    pub const ERROR_BIT: u32 = 1 << 31;
    /// The server does not know this option.
    pub const ERR_UNSUP: u32 = ERROR_BIT | 1;
    /// The server knows the option and will not do it.
    pub const ERR_POLICY: u32 = ERROR_BIT | 2;
    /// The option's data makes no sense, or not now.
    pub const ERR_INVALID: u32 = ERROR_BIT | 3;
    /// Not on this platform.
    pub const ERR_PLATFORM: u32 = ERROR_BIT | 4;
    /// TLS must come first.
    pub const ERR_TLS_REQD: u32 = ERROR_BIT | 5;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = ERROR_BIT | 6;
    /// The server is going away.
    pub const ERR_SHUTDOWN: u32 = ERROR_BIT | 7;
    /// The client must ask for the block size first.
    pub const ERR_BLOCK_SIZE_REQD: u32 = ERROR_BIT | 8;
    /// The request or its answer is too large.
    pub const ERR_TOO_BIG: u32 = ERROR_BIT | 9;
    /// Extended headers must come first.
    pub const ERR_EXT_HEADER_REQD: u32 = ERROR_BIT | 10;
}

/// Types of information in answers to INFO and GO.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// The export's canonical name.
    pub const NAME: u16 = 1;
    /// Text for people.
    pub const DESCRIPTION: u16 = 2;
    /// Minimum, preferred and maximum block size.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Bits that tell a client what an export can do.
pub mod transmission_flag {
    /// The other bits mean something.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH works.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// The FUA flag works.
    pub const SEND_FUA: u16 = 1 << 3;
    /// The disk behaves as one that turns.
    pub const ROTATIONAL: u16 = 1 << 4;
    /// TRIM works.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES works.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// The DF flag works on READ.
    pub const SEND_DF: u16 = 1 << 7;
    /// Several connections see one coherent disk.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// CACHE works.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// The FAST_ZERO flag works on WRITE_ZEROES.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Request types.
pub mod command {
    /// Reads bytes.
    pub const READ: u16 = 0;
    /// Writes the payload behind the header.
    pub const WRITE: u16 = 1;
    /// Ends the connection; has no reply.
    pub const DISC: u16 = 2;
    /// Makes answered writes durable.
    pub const FLUSH: u16 = 3;
    /// Says that a range is no longer needed.
    pub const TRIM: u16 = 4;
    /// Says that a range will be read soon.
    pub const CACHE: u16 = 5;
    /// Makes a range read as zeroes.
    pub const WRITE_ZEROES: u16 = 6;
    /// Asks for the metadata of a range.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Bits of a request.
pub mod command_flag {
    /// The reply comes after the data is durable.
    pub const FUA: u16 = 1 << 0;
    /// WRITE_ZEROES must allocate.
    pub const NO_HOLE: u16 = 1 << 1;
    /// READ must be answered in one piece.
    pub const DF: u16 = 1 << 2;
    /// BLOCK_STATUS wants one extent.
    pub const REQ_ONE: u16 = 1 << 3;
    /// WRITE_ZEROES must be fast or fail at once.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Types and bits of structured reply chunks.
pub mod chunk {
    /// Flag: the last chunk of its reply.
    pub const FLAG_DONE: u16 = 1 << 0;
    /// No payload.
    pub const NONE: u16 = 0;
    /// An offset and data.
    pub const OFFSET_DATA: u16 = 1;
    /// An offset and a count of zero bytes.
    pub const OFFSET_HOLE: u16 = 2;
    /// A context id and extents.
    pub const BLOCK_STATUS: u16 = 5;
    /// The bit all errors have.
    pub const ERROR_BIT: u16 = 1 << 15;
    /// An error and its text.
    pub const ERROR: u16 = ERROR_BIT | 1;
    /// An error, its text and where it happened.
    pub const ERROR_OFFSET: u16 = ERROR_BIT | 2;
}

/// Bits of `base:allocation`.
pub mod allocation {
    /// Not allocated.
    pub const HOLE: u32 = 1 << 0;
    /// Every byte reads as zero.
    pub const ZERO: u32 = 1 << 1;
}

/// Name of the standard allocation context.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// The errors a reply may carry. Values are the protocol's own, whatever the host calls them.
#[allow(clippy::upper_case_acronyms, reason = "these are the protocol's names")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Errno {
    /// Not permitted, as a write to a read-only export.
    EPERM = 1,
    /// The disk failed.
    EIO = 5,
    /// The server is out of memory.
    ENOMEM = 12,
    /// The request makes no sense.
    EINVAL = 22,
    /// A write beyond the end, or a full disk.
    ENOSPC = 28,
    /// The answer would be too large.
    EOVERFLOW = 75,
    /// Not supported, as a fast zero that would be slow.
    ENOTSUP = 95,
    /// The server is going away.
    ESHUTDOWN = 108,
}

impl Errno {
    /// The number on the wire.
    #[must_use]
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// What a client makes of a reply's error word; `None` for success. Unknown numbers mean
    /// EINVAL, as the protocol asks.
    #[must_use]
    pub const fn from_code(code: u32) -> Option<Errno> {
        match code {
            0 => None,
            1 => Some(Errno::EPERM),
            5 => Some(Errno::EIO),
            12 => Some(Errno::ENOMEM),
            28 => Some(Errno::ENOSPC),
            75 => Some(Errno::EOVERFLOW),
            95 => Some(Errno::ENOTSUP),
            108 => Some(Errno::ESHUTDOWN),
            _ => Some(Errno::EINVAL),
        }
    }
}

/// Which request headers the two sides agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeaderFormat {
    /// 28-byte requests with 32-bit lengths.
    #[default]
    Compact,
}

impl HeaderFormat {
    /// Length of a request header, in bytes.
    #[must_use]
    pub const fn request_len(self) -> usize {
        match self {
            HeaderFormat::Compact => REQUEST_LEN,
        }
    }
}

/// A frame that does not start as it must.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// The first bytes are not the magic of the frame that belongs here.
    #[error("magic {found:#x} where {expected:#x} belongs")]
    Magic {
        /// What was there.
        found: u64,
        /// What should have been.
        expected: u64,
    },
}

/// Reads big-endian fields off the front of a slice; `None` once it is too short.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }
}

/// Fills a fixed frame from the front; too much is our own mistake and caught by the slice bounds.
struct Frame<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Frame<N> {
    const fn new() -> Frame<N> {
        Frame { bytes: [0; N], at: 0 }
    }

    fn put(mut self, field: &[u8]) -> Frame<N> {
        self.bytes[self.at..self.at + field.len()].copy_from_slice(field);
        self.at += field.len();
        self
    }
}

/// A compact request header, not yet judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// Bits of [`command_flag`].
    pub flags: u16,
    /// One of [`command`].
    pub command: u16,
    /// The client's name for the request.
    pub cookie: Cookie,
    /// Where it starts.
    pub offset: Offset,
    /// How many bytes it covers.
    pub length: u32,
}

impl RequestHeader {
    /// The 28 bytes to send.
    #[must_use]
    pub fn encode(&self) -> [u8; REQUEST_LEN] {
        Frame::new()
            .put(&REQUEST_MAGIC.to_be_bytes())
            .put(&self.flags.to_be_bytes())
            .put(&self.command.to_be_bytes())
            .put(&self.cookie.0.to_be_bytes())
            .put(&self.offset.0.to_be_bytes())
            .put(&self.length.to_be_bytes())
            .bytes
    }

    /// Reads the header at the front of `bytes`; `Ok(None)` while it is incomplete.
    ///
    /// # Errors
    /// A wrong magic, reported as soon as its four bytes are there.
    pub fn decode(bytes: &[u8]) -> Result<Option<RequestHeader>, WireError> {
        let mut fields = Fields(bytes);
        let Some(magic) = fields.u32() else { return Ok(None) };
        expect_magic(magic.into(), REQUEST_MAGIC.into())?;
        Ok((|| {
            Some(RequestHeader {
                flags: fields.u16()?,
                command: fields.u16()?,
                cookie: Cookie(fields.u64()?),
                offset: Offset(fields.u64()?),
                length: fields.u32()?,
            })
        })())
    }
}

/// The header of a reply in the transmission phase, as a client reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyHeader {
    /// A simple reply; READ data follows if `error` is none.
    Simple {
        /// The request it answers.
        cookie: Cookie,
        /// Why it failed.
        error: Option<Errno>,
    },
    /// A structured reply chunk; `length` bytes of payload follow.
    Chunk {
        /// Bits of [`chunk`], [`chunk::FLAG_DONE`] being the only one.
        flags: u16,
        /// One of the types in [`chunk`].
        kind: u16,
        /// The request it answers.
        cookie: Cookie,
        /// Payload bytes behind the header.
        length: u32,
    },
}

impl ReplyHeader {
    /// Reads the header at the front of `bytes` and says how long it is; `Ok(None)` while it is
    /// incomplete.
    ///
    /// # Errors
    /// A magic that is neither of a simple reply nor of a chunk.
    pub fn decode(bytes: &[u8]) -> Result<Option<(ReplyHeader, usize)>, WireError> {
        let mut fields = Fields(bytes);
        let Some(magic) = fields.u32() else { return Ok(None) };
        if magic == SIMPLE_REPLY_MAGIC {
            return Ok((|| {
                let error = Errno::from_code(fields.u32()?);
                let cookie = Cookie(fields.u64()?);
                Some((ReplyHeader::Simple { cookie, error }, SIMPLE_REPLY_LEN))
            })());
        }
        expect_magic(magic.into(), STRUCTURED_REPLY_MAGIC.into())?;
        Ok((|| {
            let (flags, kind) = (fields.u16()?, fields.u16()?);
            let (cookie, length) = (Cookie(fields.u64()?), fields.u32()?);
            Some((ReplyHeader::Chunk { flags, kind, cookie, length }, CHUNK_HEADER_LEN))
        })())
    }
}

/// The header of a reply to an option, as a client reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReply {
    /// The option it answers.
    pub option: u32,
    /// One of [`option_reply`].
    pub kind: u32,
    /// Bytes of data behind the header.
    pub length: u32,
}

impl OptionReply {
    /// The 20 bytes to send before the data.
    #[must_use]
    pub fn encode(&self) -> [u8; OPTION_REPLY_HEADER_LEN] {
        Frame::new()
            .put(&OPTION_REPLY_MAGIC.to_be_bytes())
            .put(&self.option.to_be_bytes())
            .put(&self.kind.to_be_bytes())
            .put(&self.length.to_be_bytes())
            .bytes
    }

    /// Reads the header at the front of `bytes`; `Ok(None)` while it is incomplete.
    ///
    /// # Errors
    /// A wrong magic.
    pub fn decode(bytes: &[u8]) -> Result<Option<OptionReply>, WireError> {
        let mut fields = Fields(bytes);
        let Some(magic) = fields.u64() else { return Ok(None) };
        expect_magic(magic, OPTION_REPLY_MAGIC)?;
        Ok((|| {
            let (option, kind, length) = (fields.u32()?, fields.u32()?, fields.u32()?);
            Some(OptionReply { option, kind, length })
        })())
    }
}

/// The 18 bytes a server starts with, carrying bits of [`handshake_flag`].
#[must_use]
pub fn greeting(flags: u16) -> [u8; GREETING_LEN] {
    Frame::new()
        .put(&GREETING_MAGIC.to_be_bytes())
        .put(&OPTION_MAGIC.to_be_bytes())
        .put(&flags.to_be_bytes())
        .bytes
}

/// The handshake flags of a server's greeting; `Ok(None)` while it is incomplete.
///
/// # Errors
/// A server that is not NBD, or speaks oldstyle.
pub fn decode_greeting(bytes: &[u8]) -> Result<Option<u16>, WireError> {
    let mut fields = Fields(bytes);
    let Some(magic) = fields.u64() else { return Ok(None) };
    expect_magic(magic, GREETING_MAGIC)?;
    let Some(style) = fields.u64() else { return Ok(None) };
    expect_magic(style, OPTION_MAGIC)?;
    Ok(fields.u16())
}

/// The 16 bytes a client sends before an option's `length` bytes of data.
#[must_use]
pub fn option_header(option: u32, length: u32) -> [u8; OPTION_HEADER_LEN] {
    Frame::new()
        .put(&OPTION_MAGIC.to_be_bytes())
        .put(&option.to_be_bytes())
        .put(&length.to_be_bytes())
        .bytes
}

/// The data of an INFO or GO option, as a client sends it.
///
/// # Panics
/// Never for a name of at most [`STRING_MAX`] bytes and fewer than 2^16 requests, which the caller
/// owes; longer ones would not be answered anyway.
#[must_use]
pub fn info_request(name: &str, wanted: &[u16]) -> Vec<u8> {
    let length = u32::try_from(name.len()).expect("export names are at most 4096 bytes");
    let count = u16::try_from(wanted.len()).expect("there are four kinds of information");
    let mut data = length.to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&count.to_be_bytes());
    for kind in wanted {
        data.extend_from_slice(&kind.to_be_bytes());
    }
    data
}

/// The data of a LIST_META_CONTEXT or SET_META_CONTEXT option, as a client sends it.
///
/// # Panics
/// Never for strings of at most [`STRING_MAX`] bytes and fewer than 2^32 of them.
#[must_use]
pub fn context_request(name: &str, queries: &[&str]) -> Vec<u8> {
    let word = |count: usize| u32::try_from(count).expect("strings are at most 4096 bytes");
    let mut data = word(name.len()).to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&word(queries.len()).to_be_bytes());
    for query in queries {
        data.extend_from_slice(&word(query.len()).to_be_bytes());
        data.extend_from_slice(query.as_bytes());
    }
    data
}

/// Size and transmission flags out of the data of an INFO reply; `None` if it is another kind of
/// information or malformed.
#[must_use]
pub fn decode_export_info(data: &[u8]) -> Option<(Bytes, u16)> {
    let mut fields = Fields(data);
    let kind = fields.u16()?;
    let answer = (Bytes(fields.u64()?), fields.u16()?);
    (kind == info::EXPORT && fields.0.is_empty()).then_some(answer)
}

/// The 16 bytes of a simple reply; READ data follows a successful one.
#[must_use]
pub fn simple_reply(cookie: Cookie, error: Option<Errno>) -> [u8; SIMPLE_REPLY_LEN] {
    Frame::new()
        .put(&SIMPLE_REPLY_MAGIC.to_be_bytes())
        .put(&error.map_or(0, Errno::code).to_be_bytes())
        .put(&cookie.0.to_be_bytes())
        .bytes
}

/// The 20 bytes before a chunk's `length` bytes of payload.
#[must_use]
pub fn chunk_header(flags: u16, kind: u16, cookie: Cookie, length: u32) -> [u8; CHUNK_HEADER_LEN] {
    Frame::new()
        .put(&STRUCTURED_REPLY_MAGIC.to_be_bytes())
        .put(&flags.to_be_bytes())
        .put(&kind.to_be_bytes())
        .put(&cookie.0.to_be_bytes())
        .put(&length.to_be_bytes())
        .bytes
}

fn expect_magic(found: u64, expected: u64) -> Result<(), WireError> {
    if found == expected { Ok(()) } else { Err(WireError::Magic { found, expected }) }
}

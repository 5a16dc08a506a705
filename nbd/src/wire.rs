//! The layouts and numbers of the NBD wire, for both ends: fixed newstyle, compact and extended
//! headers, simple and structured replies. Everything is big-endian.
//!
//! This module decides nothing: it refuses a wrong magic and otherwise hands over what was sent.
//! Whether a number is acceptable is the business of the handshake and the transmission phase.

mod numbers;

use thiserror::Error;

use crate::units::{Bytes, ContextId, Cookie, Offset};

pub use numbers::{
    allocation, chunk, command, command_flag, dirty, handshake_flag, info, option, option_reply,
    transmission_flag,
};

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
/// Start of every request with an extended header.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Start of an extended reply chunk.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

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
/// Length of an extended request header.
pub const EXTENDED_REQUEST_LEN: usize = 32;
/// Length of an extended reply chunk's header, before its payload.
pub const EXTENDED_CHUNK_HEADER_LEN: usize = 32;
/// Zero bytes behind the answer to EXPORT_NAME, unless both sides agreed to leave them out.
pub const EXPORT_NAME_PADDING: usize = 124;
/// Longest string the protocol allows, in bytes.
pub const STRING_MAX: usize = 4096;

/// Name of the standard allocation context.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// Name of QEMU's context that tells the layer in which each extent lies: 0 for none, 1 for the
/// top, 2 for the one below it.
pub const ALLOCATION_DEPTH: &str = "qemu:allocation-depth";
/// What names of QEMU's dirty bitmaps start with.
pub const DIRTY_BITMAP: &str = "qemu:dirty-bitmap:";

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
    /// 32-byte requests with 64-bit lengths, and 32-byte reply chunks.
    Extended,
}

impl HeaderFormat {
    /// Length of a request header, in bytes.
    #[must_use]
    pub const fn request_len(self) -> usize {
        match self {
            HeaderFormat::Compact => REQUEST_LEN,
            HeaderFormat::Extended => EXTENDED_REQUEST_LEN,
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

/// An extended request header, not yet judged. A compact one fits into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedRequestHeader {
    /// Bits of [`command_flag`].
    pub flags: u16,
    /// One of [`command`].
    pub command: u16,
    /// The client's name for the request.
    pub cookie: Cookie,
    /// Where it starts.
    pub offset: Offset,
    /// Payload behind the header if [`command_flag::PAYLOAD_LEN`] is set, else bytes it covers.
    pub length: Bytes,
}

impl From<RequestHeader> for ExtendedRequestHeader {
    fn from(header: RequestHeader) -> ExtendedRequestHeader {
        let RequestHeader { flags, command, cookie, offset, length } = header;
        let length = Bytes(length.into());
        ExtendedRequestHeader { flags, command, cookie, offset, length }
    }
}

impl ExtendedRequestHeader {
    /// The 32 bytes to send.
    #[must_use]
    pub fn encode(&self) -> [u8; EXTENDED_REQUEST_LEN] {
        Frame::new()
            .put(&EXTENDED_REQUEST_MAGIC.to_be_bytes())
            .put(&self.flags.to_be_bytes())
            .put(&self.command.to_be_bytes())
            .put(&self.cookie.0.to_be_bytes())
            .put(&self.offset.0.to_be_bytes())
            .put(&self.length.0.to_be_bytes())
            .bytes
    }

    /// Reads the header at the front of `bytes`; `Ok(None)` while it is incomplete.
    ///
    /// # Errors
    /// A wrong magic, reported as soon as its four bytes are there.
    pub fn decode(bytes: &[u8]) -> Result<Option<ExtendedRequestHeader>, WireError> {
        let mut fields = Fields(bytes);
        let Some(magic) = fields.u32() else { return Ok(None) };
        expect_magic(magic.into(), EXTENDED_REQUEST_MAGIC.into())?;
        Ok((|| {
            Some(ExtendedRequestHeader {
                flags: fields.u16()?,
                command: fields.u16()?,
                cookie: Cookie(fields.u64()?),
                offset: Offset(fields.u64()?),
                length: Bytes(fields.u64()?),
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
    /// An extended reply chunk; `length` bytes of payload follow.
    Extended {
        /// Bits of [`chunk`], [`chunk::FLAG_DONE`] being the only one.
        flags: u16,
        /// One of the types in [`chunk`].
        kind: u16,
        /// The request it answers.
        cookie: Cookie,
        /// Where that request starts.
        offset: Offset,
        /// Payload bytes behind the header.
        length: Bytes,
    },
}

impl ReplyHeader {
    /// Reads the header at the front of `bytes` and says how long it is; `Ok(None)` while it is
    /// incomplete.
    ///
    /// # Errors
    /// A magic that is neither of a simple reply nor of either kind of chunk.
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
        if magic == EXTENDED_REPLY_MAGIC {
            return Ok((|| {
                let (flags, kind) = (fields.u16()?, fields.u16()?);
                let (cookie, offset) = (Cookie(fields.u64()?), Offset(fields.u64()?));
                let length = Bytes(fields.u64()?);
                let header = ReplyHeader::Extended { flags, kind, cookie, offset, length };
                Some((header, EXTENDED_CHUNK_HEADER_LEN))
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

/// The 32 bytes before an extended chunk's `length` bytes of payload; `offset` is that of the
/// request.
#[must_use]
pub fn extended_chunk_header(
    flags: u16,
    kind: u16,
    cookie: Cookie,
    offset: Offset,
    length: Bytes,
) -> [u8; EXTENDED_CHUNK_HEADER_LEN] {
    Frame::new()
        .put(&EXTENDED_REPLY_MAGIC.to_be_bytes())
        .put(&flags.to_be_bytes())
        .put(&kind.to_be_bytes())
        .put(&cookie.0.to_be_bytes())
        .put(&offset.0.to_be_bytes())
        .put(&length.0.to_be_bytes())
        .bytes
}

/// The payload of a BLOCK_STATUS that names the contexts it asks about, as a client sends it:
/// the bytes it covers, then the ids.
#[must_use]
pub fn status_filter(covers: Bytes, contexts: &[ContextId]) -> Vec<u8> {
    let mut payload = covers.0.to_be_bytes().to_vec();
    for context in contexts {
        payload.extend_from_slice(&context.0.to_be_bytes());
    }
    payload
}

fn expect_magic(found: u64, expected: u64) -> Result<(), WireError> {
    if found == expected { Ok(()) } else { Err(WireError::Magic { found, expected }) }
}

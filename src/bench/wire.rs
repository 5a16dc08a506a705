//! The client's half of the NBD wire: the frames a load generator sends and receives.
//!
//! Written apart from the server's own layouts on purpose: a number that is wrong on both sides
//! would otherwise agree with itself. Does no I/O and judges no sizes but those of control chunks.

use thiserror::Error;

use crate::engine::units::{ByteLen, DiskOffset};

/// First word of a greeting.
pub(super) const GREETING_MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
/// Second word of a newstyle greeting, and first word of an option.
pub(super) const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
/// First word of the answer to an option.
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Handshake flag: options can be refused without losing the connection.
pub(super) const FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag: no padding behind the answer to EXPORT_NAME.
pub(super) const NO_ZEROES: u16 = 2;

/// Option: choose an export, the old way.
pub(super) const OPT_EXPORT_NAME: u32 = 1;
/// Option: choose an export and hear about it.
pub(super) const OPT_GO: u32 = 7;
/// Option: replies in chunks.
pub(super) const OPT_STRUCTURED_REPLY: u32 = 8;
/// Answer to an option: done.
pub(super) const REP_ACK: u32 = 1;
/// Answer to an option: information follows.
pub(super) const REP_INFO: u32 = 3;
/// Answer to an option: not known.
pub(super) const REP_ERR_UNSUP: u32 = (1 << 31) | 1;
/// Bit of every answer that is an error.
pub(super) const REP_ERR_BIT: u32 = 1 << 31;
/// Information: size and flags.
pub(super) const INFO_EXPORT: u16 = 0;
/// Information: sizes of blocks.
pub(super) const INFO_BLOCK_SIZE: u16 = 3;

/// Transmission flag: writes are refused.
pub(super) const FLAG_READ_ONLY: u16 = 1 << 1;
/// Transmission flag: FLUSH works.
pub(super) const FLAG_FLUSH: u16 = 1 << 2;
/// Transmission flag: FUA works.
pub(super) const FLAG_FUA: u16 = 1 << 3;
/// Transmission flag: connections see one coherent disk.
pub(super) const FLAG_MULTI_CONN: u16 = 1 << 8;

/// Command: read.
pub(super) const CMD_READ: u16 = 0;
/// Command: write.
pub(super) const CMD_WRITE: u16 = 1;
/// Command: goodbye.
pub(super) const CMD_DISC: u16 = 2;
/// Command: flush.
pub(super) const CMD_FLUSH: u16 = 3;
/// Command flag: durable before the reply.
pub(super) const CMD_FLAG_FUA: u16 = 1;

const SIMPLE_LEN: usize = 16;
const CHUNK_LEN: usize = 20;
const CHUNK_NONE: u16 = 0;
const CHUNK_DATA: u16 = 1;
const CHUNK_HOLE: u16 = 2;
const CHUNK_ERROR: u16 = (1 << 15) | 1;
const CHUNK_ERROR_OFFSET: u16 = (1 << 15) | 2;
const CHUNK_ERROR_BIT: u16 = 1 << 15;
const CHUNK_DONE: u16 = 1;
/// An error chunk holds a code, a length, at most 4096 bytes of text and an offset.
const ERROR_CHUNK_MAX: u32 = 4 + 2 + 4096 + 8;

/// What stands at the front of the received bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// A simple reply; the data of a successful read follows it.
    Simple {
        /// The request it answers.
        cookie: u64,
        /// 0, or why it failed.
        error: u32,
    },
    /// Read data; `len` bytes follow.
    Data {
        /// The request it answers.
        cookie: u64,
        /// Whether this ends the reply.
        done: bool,
        /// Where the data belongs.
        at: DiskOffset,
        /// How much follows.
        len: ByteLen,
    },
    /// A run of zeroes; nothing follows.
    Hole {
        /// The request it answers.
        cookie: u64,
        /// Whether this ends the reply.
        done: bool,
        /// Where the zeroes belong.
        at: DiskOffset,
        /// How many.
        len: ByteLen,
    },
    /// No data.
    Nothing {
        /// The request it answers.
        cookie: u64,
        /// Whether this ends the reply.
        done: bool,
    },
    /// Part of the reply failed.
    Failed {
        /// The request it answers.
        cookie: u64,
        /// Whether this ends the reply.
        done: bool,
        /// The protocol's error number.
        error: u32,
        /// What the server has to say.
        text: String,
    },
}

/// A reply that breaks the protocol, after which the stream cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum FrameError {
    /// Neither a simple reply nor a chunk.
    #[error("a reply starts with {0:#010x}, which is no NBD reply")]
    Magic(u32),
    /// A chunk type we did not ask for.
    #[error("a reply chunk of unknown type {0}")]
    Kind(u16),
    /// A chunk whose length does not fit its type.
    #[error("a reply chunk of type {kind} with {len} bytes, which its type does not allow")]
    Length {
        /// The chunk's type.
        kind: u16,
        /// The chunk's length.
        len: u32,
    },
}

/// The 28 bytes before a request's payload.
pub(super) fn request(command: u16, flags: u16, cookie: u64, at: DiskOffset, len: u32) -> [u8; 28] {
    let mut frame = [0; 28];
    frame[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    frame[4..6].copy_from_slice(&flags.to_be_bytes());
    frame[6..8].copy_from_slice(&command.to_be_bytes());
    frame[8..16].copy_from_slice(&cookie.to_be_bytes());
    frame[16..24].copy_from_slice(&at.get().to_be_bytes());
    frame[24..28].copy_from_slice(&len.to_be_bytes());
    frame
}

/// Reads the frame at the front of `bytes`; `None` while it is incomplete. The count is how many
/// bytes the frame takes, not counting the data that follows it.
pub(super) fn frame(bytes: &[u8]) -> Result<Option<(Frame, usize)>, FrameError> {
    let Some(magic) = word32(bytes, 0) else { return Ok(None) };
    match magic {
        SIMPLE_MAGIC => {
            let (Some(error), Some(cookie)) = (word32(bytes, 4), word64(bytes, 8)) else {
                return Ok(None);
            };
            Ok(Some((Frame::Simple { cookie, error }, SIMPLE_LEN)))
        }
        CHUNK_MAGIC => chunk(bytes),
        other => Err(FrameError::Magic(other)),
    }
}

fn chunk(bytes: &[u8]) -> Result<Option<(Frame, usize)>, FrameError> {
    let (Some(flags), Some(kind)) = (word16(bytes, 4), word16(bytes, 6)) else { return Ok(None) };
    let (Some(cookie), Some(len)) = (word64(bytes, 8), word32(bytes, 16)) else { return Ok(None) };
    let done = flags & CHUNK_DONE != 0;
    let wrong = FrameError::Length { kind, len };
    let body = &bytes[CHUNK_LEN..];
    match kind {
        CHUNK_NONE if len == 0 => Ok(Some((Frame::Nothing { cookie, done }, CHUNK_LEN))),
        CHUNK_DATA if len > 8 => Ok(word64(body, 0).map(|at| {
            let len = ByteLen::new(u64::from(len - 8));
            (Frame::Data { cookie, done, at: DiskOffset::new(at), len }, CHUNK_LEN + 8)
        })),
        CHUNK_HOLE if len == 12 => Ok(word64(body, 0).zip(word32(body, 8)).map(|(at, len)| {
            let len = ByteLen::new(u64::from(len));
            (Frame::Hole { cookie, done, at: DiskOffset::new(at), len }, CHUNK_LEN + 12)
        })),
        CHUNK_NONE | CHUNK_DATA | CHUNK_HOLE => Err(wrong),
        _ if kind & CHUNK_ERROR_BIT == 0 => Err(FrameError::Kind(kind)),
        _ if !(6..=ERROR_CHUNK_MAX).contains(&len) => Err(wrong),
        _ => {
            let Some(body) = body.get(..len as usize) else { return Ok(None) };
            let known = matches!(kind, CHUNK_ERROR | CHUNK_ERROR_OFFSET);
            let (Some(error), Some(text_len)) = (word32(body, 0), word16(body, 4)) else {
                return Err(wrong);
            };
            let text = body.get(6..6 + usize::from(text_len)).filter(|_| known).unwrap_or(&[]);
            let text = String::from_utf8_lossy(text).into_owned();
            Ok(Some((Frame::Failed { cookie, done, error, text }, CHUNK_LEN + body.len())))
        }
    }
}

/// The name of a protocol error, for people.
pub(super) fn errno_name(error: u32) -> &'static str {
    match error {
        1 => "EPERM",
        5 => "EIO",
        12 => "ENOMEM",
        22 => "EINVAL",
        28 => "ENOSPC",
        75 => "EOVERFLOW",
        95 => "ENOTSUP",
        108 => "ESHUTDOWN",
        _ => "unknown error",
    }
}

/// The big-endian word at `at`, if all of it is there.
pub(super) fn word16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The big-endian word at `at`, if all of it is there.
pub(super) fn word32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The big-endian word at `at`, if all of it is there.
pub(super) fn word64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::{CHUNK_MAGIC, Frame, FrameError, SIMPLE_MAGIC, frame};
    use crate::engine::units::{ByteLen, DiskOffset};

    fn chunk(flags: u16, kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = CHUNK_MAGIC.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(9_u64.to_be_bytes());
        bytes.extend((body.len() as u32).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn no_frame_is_found_until_all_of_it_is_there() {
        let mut body = 4096_u64.to_be_bytes().to_vec();
        body.extend(512_u32.to_be_bytes());
        let whole = chunk(1, 2, &body);
        for cut in 0..whole.len() {
            assert_eq!(frame(&whole[..cut]), Ok(None), "{cut}");
        }
        let (at, len) = (DiskOffset::new(4096), ByteLen::new(512));
        let hole = Frame::Hole { cookie: 9, done: true, at, len };
        assert_eq!(frame(&whole), Ok(Some((hole, whole.len()))));
    }

    #[test]
    fn a_simple_reply_gives_its_error_and_cookie() {
        let mut bytes = SIMPLE_MAGIC.to_be_bytes().to_vec();
        bytes.extend(5_u32.to_be_bytes());
        bytes.extend(77_u64.to_be_bytes());
        assert_eq!(frame(&bytes), Ok(Some((Frame::Simple { cookie: 77, error: 5 }, 16))));
    }

    #[test]
    fn an_error_chunk_gives_its_text() {
        let mut body = 28_u32.to_be_bytes().to_vec();
        body.extend(4_u16.to_be_bytes());
        body.extend(b"full");
        let whole = chunk(1, 0x8001, &body);
        let failed = Frame::Failed { cookie: 9, done: true, error: 28, text: "full".into() };
        assert_eq!(frame(&whole), Ok(Some((failed, whole.len()))));
    }

    #[test]
    fn chunks_that_make_no_sense_are_refused() {
        assert_eq!(frame(&[1, 2, 3, 4]), Err(FrameError::Magic(0x0102_0304)));
        assert_eq!(frame(&chunk(1, 7, b"")), Err(FrameError::Kind(7)));
        assert_eq!(frame(&chunk(1, 0, b"x")), Err(FrameError::Length { kind: 0, len: 1 }));
        assert_eq!(frame(&chunk(1, 1, &[0; 8])), Err(FrameError::Length { kind: 1, len: 8 }));
        assert_eq!(
            frame(&chunk(1, 0x8001, b"x")),
            Err(FrameError::Length { kind: 0x8001, len: 1 })
        );
    }
}

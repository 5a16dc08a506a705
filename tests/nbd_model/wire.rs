//! The protocol as a client sees it, written down from its specification: requests as bytes, and
//! replies judged frame by frame.
//!
//! Refuses to share a line with the server's own crate.

/// Which headers were agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Simple,
    Structured,
    Extended,
}

pub(crate) const STYLES: [Style; 3] = [Style::Simple, Style::Structured, Style::Extended];

/// Numbers of commands.
pub(crate) mod command {
    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITE: u16 = 1;
    pub(crate) const DISC: u16 = 2;
    pub(crate) const FLUSH: u16 = 3;
    pub(crate) const TRIM: u16 = 4;
    pub(crate) const CACHE: u16 = 5;
    pub(crate) const WRITE_ZEROES: u16 = 6;
    pub(crate) const BLOCK_STATUS: u16 = 7;
}

/// Flags of commands.
pub(crate) mod flag {
    pub(crate) const FUA: u16 = 1;
    pub(crate) const NO_HOLE: u16 = 2;
    pub(crate) const DF: u16 = 4;
    pub(crate) const REQ_ONE: u16 = 8;
    pub(crate) const FAST_ZERO: u16 = 16;
    pub(crate) const PAYLOAD_LEN: u16 = 32;
}

/// Not supported: what a fast zero may be told.
pub(crate) const ENOTSUP: u32 = 95;
/// The server is going away.
pub(crate) const ESHUTDOWN: u32 = 108;
/// The longest frame of a reply, its payload apart from data: a map of 8192 extents.
const FRAME_MAX: u64 = (8 << 20) + 4096;

/// The header of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) command: u16,
    pub(crate) flags: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl Header {
    /// Its bytes; a WRITE with extended headers says that it has a payload.
    pub(crate) fn bytes(self, style: Style) -> Vec<u8> {
        let wide = style == Style::Extended;
        let magic: u32 = if wide { 0x21E4_1C71 } else { 0x2560_9513 };
        let payload = wide && self.command == command::WRITE;
        let flags = self.flags | if payload { flag::PAYLOAD_LEN } else { 0 };
        let mut bytes = magic.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(self.command.to_be_bytes());
        bytes.extend(self.cookie.to_be_bytes());
        bytes.extend(self.offset.to_be_bytes());
        if wide {
            bytes.extend(self.length.to_be_bytes());
        } else {
            bytes.extend((self.length as u32).to_be_bytes());
        }
        bytes
    }
}

/// A part of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Data from this offset of the disk on.
    Data(u64, Vec<u8>),
    /// Zeroes from this offset on.
    Hole(u64, u64),
    /// Extents of a context: length and flags.
    Map(u32, Vec<(u64, u64)>),
    /// An error.
    Failed(u32),
    /// Nothing.
    Plain,
}

/// A frame: whose, what, whether it is the last of its reply, and how many bytes it took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) cookie: u64,
    pub(crate) part: Part,
    pub(crate) done: bool,
    pub(crate) taken: usize,
}

struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn number(&mut self, len: usize) -> Option<u64> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    }
}

/// The first frame of `bytes`; `Ok(None)` while it is not all there. `asked` tells offset and
/// length of the READ that a cookie belongs to, or a length of 0 for any other request.
///
/// # Errors
/// What breaks the protocol.
pub(crate) fn frame(
    bytes: &[u8],
    style: Style,
    asked: impl Fn(u64) -> Option<(u64, u64)>,
) -> Result<Option<Frame>, String> {
    let mut cursor = Cursor(bytes);
    let Some(magic) = cursor.number(4) else { return Ok(None) };
    match (magic, style) {
        (0x6744_6698, Style::Simple | Style::Structured) => simple(bytes, style, asked),
        (0x668E_33EF, Style::Structured) | (0x6E8A_278C, Style::Extended) => {
            chunk(bytes, style, asked)
        }
        _ => Err(format!("a reply begins with {magic:#x} in style {style:?}")),
    }
}

fn simple(
    bytes: &[u8],
    style: Style,
    asked: impl Fn(u64) -> Option<(u64, u64)>,
) -> Result<Option<Frame>, String> {
    let mut cursor = Cursor(&bytes[4..]);
    let (Some(error), Some(cookie)) = (cursor.number(4), cursor.number(8)) else { return Ok(None) };
    let (offset, length) = asked(cookie).ok_or(format!("a reply to cookie {cookie:#x}"))?;
    if style == Style::Structured && length > 0 {
        return Err("a READ is answered by a simple reply after structured ones were agreed".into());
    }
    let part = match (error, length) {
        (0, 0) => Part::Plain,
        (0, _) => {
            let Some(data) = cursor.0.get(..length as usize) else { return Ok(None) };
            Part::Data(offset, data.to_vec())
        }
        _ => Part::Failed(error as u32),
    };
    let data = if let Part::Data(_, data) = &part { data.len() } else { 0 };
    Ok(Some(Frame { cookie, part, done: true, taken: 16 + data }))
}

fn chunk(
    bytes: &[u8],
    style: Style,
    asked: impl Fn(u64) -> Option<(u64, u64)>,
) -> Result<Option<Frame>, String> {
    let wide = style == Style::Extended;
    let head = if wide { 32 } else { 20 };
    if bytes.len() < head {
        return Ok(None);
    }
    let mut cursor = Cursor(&bytes[4..]);
    let mut next = |len| cursor.number(len).unwrap_or_default();
    let (flags, kind, cookie) = (next(2), next(2), next(8));
    if wide {
        let _offset = next(8);
    }
    let length = next(if wide { 8 } else { 4 });
    let (_, wanted) = asked(cookie).ok_or(format!("a chunk for cookie {cookie:#x}"))?;
    if flags > 1 {
        return Err(format!("chunk flags {flags:#x}"));
    }
    if length > FRAME_MAX + wanted {
        return Err(format!("a chunk of {length} bytes"));
    }
    let taken = head + length as usize;
    let Some(payload) = bytes.get(head..taken) else { return Ok(None) };
    let part = part(kind, payload, wide).ok_or(format!("chunk {kind:#x} of {length} bytes"))?;
    let whole = matches!(part, Part::Plain | Part::Failed(_));
    if whole && flags != 1 {
        return Err(format!("chunk {kind:#x} is not the last of its reply"));
    }
    Ok(Some(Frame { cookie, part, done: flags == 1, taken }))
}

fn part(kind: u64, payload: &[u8], wide: bool) -> Option<Part> {
    let mut cursor = Cursor(payload);
    let part = match kind {
        0 => Part::Plain,
        1 => {
            let at = cursor.number(8)?;
            let data = std::mem::take(&mut cursor.0).to_vec();
            if data.is_empty() {
                return None;
            }
            Part::Data(at, data)
        }
        2 => Part::Hole(cursor.number(8)?, cursor.number(4).filter(|len| *len > 0)?),
        5 | 6 => {
            let (wide, width) = (kind == 6, if kind == 6 { 8 } else { 4 });
            let context = cursor.number(4)? as u32;
            let count = if wide { cursor.number(4)? } else { cursor.0.len() as u64 / 8 };
            let mut extents = Vec::new();
            for _ in 0..count {
                let len = cursor.number(width)?;
                extents.push((len, cursor.number(width)?));
            }
            if extents.is_empty() || extents.iter().any(|(len, _)| *len == 0) {
                return None;
            }
            Part::Map(context, extents)
        }
        0x8001 | 0x8002 => {
            let error = cursor.number(4).filter(|error| *error != 0)?;
            let text = cursor.number(2)? as usize;
            cursor.0 = cursor.0.get(text..)?;
            if kind == 0x8002 {
                cursor.number(8)?;
            }
            Part::Failed(error as u32)
        }
        _ => return None,
    };
    let told_wide = kind != 5 || !wide;
    let told_compact = kind != 6 || wide;
    (cursor.0.is_empty() && told_wide && told_compact).then_some(part)
}

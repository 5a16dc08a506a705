//! Replies of the transmission phase, put together chunk by chunk and judged on the way.

use crate::case::{Outcome, ensure};
use crate::peer::a_string;
use crate::session::{Request, Session, Style};
use crate::wire::{Fields, bit, chunk, cmd, err};

/// A chunk of a READ's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    /// Whether it was told as a hole, without its zeroes.
    pub(crate) hole: bool,
}

/// One context's answer to a BLOCK_STATUS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) id: u32,
    /// Whether it came with 64-bit lengths.
    pub(crate) wide: bool,
    /// Lengths and flags of consecutive extents.
    pub(crate) extents: Vec<(u64, u32)>,
}

impl Status {
    /// Length of all extents.
    pub(crate) fn length(&self) -> u64 {
        self.extents.iter().fold(0, |sum, (length, _)| sum.saturating_add(*length))
    }
}

/// A whole reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) simple: bool,
    /// The first error, if any.
    pub(crate) error: Option<u32>,
    /// The error's words.
    pub(crate) text: String,
    /// The offset the error was told with.
    pub(crate) error_offset: Option<u64>,
    /// What a READ read, put together.
    pub(crate) data: Vec<u8>,
    /// The chunks it came in.
    pub(crate) contents: Vec<Content>,
    pub(crate) statuses: Vec<Status>,
    /// Chunks of any type.
    pub(crate) chunks: usize,
}

/// What every error value must be.
pub(crate) fn check_error(error: u32) -> Outcome {
    ensure!(err::ALL.contains(&error), "error {error} is none of the protocol's");
    Ok(())
}

impl Reply {
    /// A reply of which nothing came yet.
    pub(crate) fn new(request: &Request) -> Self {
        // Only what a server could send is put together; larger reads are refused, or found out.
        let reads = request.command == cmd::READ && request.length <= 64 << 20;
        let length = if reads { request.length as usize } else { 0 };
        Self { data: vec![0; length], ..Self::default() }
    }

    /// Expects success.
    pub(crate) fn succeeded(&self) -> Outcome {
        ensure!(self.error.is_none(), "failed with {:?}: {}", self.error, self.text);
        Ok(())
    }

    /// Expects one of these errors, and no content.
    pub(crate) fn failed(&self, errors: &[u32]) -> Outcome {
        match self.error {
            None => Err(format!("it succeeded instead of failing with {errors:?}").into()),
            Some(error) if errors.contains(&error) => {
                ensure!(self.statuses.is_empty(), "a status beside error {error}");
                Ok(())
            }
            Some(error) => {
                Err(format!("error {error} ({}) is none of {errors:?}", self.text).into())
            }
        }
    }

    /// The answer of one context.
    pub(crate) fn status(&self, id: u32) -> Outcome<&Status> {
        let found = self.statuses.iter().find(|status| status.id == id);
        found.ok_or_else(|| format!("no status for context {id}").into())
    }

    /// Takes in one chunk.
    pub(crate) fn take_chunk(
        &mut self,
        request: &Request,
        kind: u16,
        done: bool,
        extended: bool,
        payload: &[u8],
    ) -> Outcome {
        self.chunks += 1;
        let mut fields = Fields(payload);
        let length = payload.len();
        match kind {
            chunk::NONE => {
                ensure!(done, "a NONE chunk that is not the last");
                ensure!(length == 0, "a NONE chunk with {length} bytes");
            }
            chunk::OFFSET_DATA => {
                ensure!(length >= 9, "an OFFSET_DATA chunk of {length} bytes");
                let offset = fields.u64().unwrap_or_default();
                self.content(request, offset, fields.0.len() as u64, Some(fields.0))?;
            }
            chunk::OFFSET_HOLE => {
                ensure!(length == 12, "an OFFSET_HOLE chunk of {length} bytes");
                let offset = fields.u64().unwrap_or_default();
                let size = fields.u32().unwrap_or_default();
                self.content(request, offset, size.into(), None)?;
            }
            chunk::BLOCK_STATUS => self.narrow_status(request, payload)?,
            chunk::BLOCK_STATUS_EXT => {
                ensure!(extended, "a 64-bit status without extended headers");
                self.wide_status(request, payload)?;
            }
            chunk::ERROR | chunk::ERROR_OFFSET => self.error_chunk(request, kind, payload)?,
            _ => return Err(format!("a chunk of type {kind:#x}").into()),
        }
        Ok(())
    }

    fn content(
        &mut self,
        request: &Request,
        offset: u64,
        length: u64,
        data: Option<&[u8]>,
    ) -> Outcome {
        ensure!(request.command == cmd::READ, "content in reply to command {}", request.command);
        ensure!(length > 0, "a content chunk of no bytes");
        let end = offset.checked_add(length);
        let inside = offset >= request.offset
            && end.is_some_and(|end| end <= request.offset.saturating_add(request.length));
        ensure!(inside, "{length} bytes at {offset} were not asked for");
        for other in &self.contents {
            let apart = offset >= other.offset + other.length || offset + length <= other.offset;
            ensure!(apart, "{length} bytes at {offset} come twice");
        }
        if request.flags & bit::DF != 0 {
            ensure!(self.contents.is_empty(), "a second content chunk in spite of DF");
        }
        if let Some(data) = data {
            let place = (offset - request.offset) as usize;
            let room = self.data.get_mut(place..place + data.len());
            room.ok_or("more data than a case ever asks for")?.copy_from_slice(data);
        }
        self.contents.push(Content { offset, length, hole: data.is_none() });
        Ok(())
    }

    fn narrow_status(&mut self, request: &Request, payload: &[u8]) -> Outcome {
        let whole = payload.len() >= 12 && (payload.len() - 4).is_multiple_of(8);
        ensure!(whole, "a status chunk of {} bytes", payload.len());
        let mut fields = Fields(payload);
        let id = fields.u32().unwrap_or_default();
        let mut extents = Vec::new();
        while let (Some(length), Some(flags)) = (fields.u32(), fields.u32()) {
            extents.push((u64::from(length), flags));
        }
        self.status_chunk(request, Status { id, wide: false, extents })
    }

    fn wide_status(&mut self, request: &Request, payload: &[u8]) -> Outcome {
        let whole = payload.len() >= 24 && (payload.len() - 8).is_multiple_of(16);
        ensure!(whole, "a 64-bit status chunk of {} bytes", payload.len());
        let mut fields = Fields(payload);
        let id = fields.u32().unwrap_or_default();
        let count = fields.u32().unwrap_or_default() as usize;
        let mut extents = Vec::new();
        while let (Some(length), Some(padding), Some(flags)) =
            (fields.u64(), fields.u32(), fields.u32())
        {
            ensure!(padding == 0, "padding {padding:#x} in a 64-bit status");
            extents.push((length, flags));
        }
        let counted = count == 0 || count == extents.len();
        ensure!(counted, "{count} descriptors announced, {} sent", extents.len());
        self.status_chunk(request, Status { id, wide: true, extents })
    }

    fn status_chunk(&mut self, request: &Request, status: Status) -> Outcome {
        let id = status.id;
        ensure!(request.command == cmd::BLOCK_STATUS, "a status nobody asked for");
        let twice = self.statuses.iter().any(|other| other.id == id);
        ensure!(!twice, "two status chunks for context {id}");
        ensure!(status.extents.len() <= 1 << 20, "more than 2^20 descriptors");
        let empty = status.extents.iter().any(|(length, _)| *length == 0);
        ensure!(!empty, "an extent of no bytes in context {id}");
        self.statuses.push(status);
        Ok(())
    }

    fn error_chunk(&mut self, request: &Request, kind: u16, payload: &[u8]) -> Outcome {
        let mut fields = Fields(payload);
        let error = fields.u32().ok_or("an error chunk without an error")?;
        let length = fields.u16().ok_or("an error chunk without a message length")?;
        check_error(error)?;
        let text = fields.bytes(length.into()).ok_or("a message longer than its chunk")?;
        let text = a_string(text)?.to_owned();
        let mut offset = None;
        if kind == chunk::ERROR_OFFSET {
            let at = fields.u64().ok_or("an ERROR_OFFSET chunk without an offset")?;
            let end = request.offset.saturating_add(request.length.max(1));
            let inside = at >= request.offset && at < end;
            ensure!(inside, "an error at {at}, which was not asked for");
            offset = Some(at);
        }
        ensure!(fields.0.is_empty(), "{} bytes behind an error's message", fields.0.len());
        if self.error.is_none() {
            (self.error, self.text, self.error_offset) = (Some(error), text, offset);
        }
        Ok(())
    }

    /// What holds for a reply when its last frame has come.
    pub(crate) fn check_whole(&self, request: &Request, session: &Session) -> Outcome {
        let chunked = !self.simple && self.error.is_none();
        if chunked && request.command == cmd::READ {
            let told: u64 = self.contents.iter().map(|content| content.length).sum();
            ensure!(told == request.length, "{told} bytes told of {}", request.length);
        }
        let filtered = session.style == Style::Extended && request.flags & bit::PAYLOAD_LEN != 0;
        if chunked && request.command == cmd::BLOCK_STATUS && !filtered {
            let (found, wanted) = (self.statuses.len(), session.contexts.len());
            ensure!(found == wanted, "{found} status chunks for {wanted} contexts");
            for status in &self.statuses {
                check_extents(request, status)?;
            }
        }
        Ok(())
    }
}

/// The arithmetic of one context's extents.
pub(crate) fn check_extents(request: &Request, status: &Status) -> Outcome {
    let count = status.extents.len();
    ensure!(count > 0, "no extent for context {}", status.id);
    if request.flags & bit::REQ_ONE != 0 {
        ensure!(count == 1, "{count} extents in spite of REQ_ONE");
        let length = status.length();
        ensure!(length <= request.length, "{length} bytes told of {}", request.length);
    }
    let but_last: u64 = status.extents[..count - 1].iter().map(|(length, _)| *length).sum();
    ensure!(but_last < request.length, "an extent starts behind the range");
    Ok(())
}

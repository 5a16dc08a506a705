//! The client's side of the transmission phase: requests as bytes, replies judged frame by frame.
//!
//! Whatever a case is about, a reply that breaks a rule of the protocol's framing stops it. What
//! only some cases care about is left to them.

use std::io::Write;

use crate::case::{Outcome, Stop, during, ensure};
use crate::link::Ending;
use crate::peer::Peer;
use crate::reply::{Reply, check_error};
use crate::wire::{
    EXTENDED_REPLY, EXTENDED_REQUEST, Fields, REQUEST, SIMPLE_REPLY, STRING_MAX, STRUCTURED_REPLY,
    bit, can, chunk, cmd, opt,
};
use crate::world::Target;

/// Longest payload of one frame: 64 MiB and the few bytes around it.
const FRAME_MAX: u64 = (64 << 20) + 4096;

/// Which headers were agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Simple,
    Structured,
    Extended,
}

impl Style {
    pub(crate) const ALL: [Self; 3] = [Self::Simple, Self::Structured, Self::Extended];
    /// The styles whose replies come in chunks.
    pub(crate) const CHUNKED: [Self; 2] = [Self::Structured, Self::Extended];
}

/// A request as it went out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) command: u16,
    pub(crate) flags: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// A connection in transmission.
pub(crate) struct Session {
    pub(crate) peer: Peer,
    pub(crate) style: Style,
    pub(crate) size: u64,
    pub(crate) flags: u16,
    /// Ids and names of the selected contexts.
    pub(crate) contexts: Vec<(u32, String)>,
    /// The cookie of the next request, unless a case brings its own.
    pub(crate) next_cookie: u64,
    pending: Vec<(Request, Reply)>,
}

impl Session {
    /// Negotiates this style and enters transmission.
    pub(crate) fn start(target: &Target, style: Style) -> Outcome<Self> {
        Self::with(target, style, &[])
    }

    /// The same, with metadata contexts selected, all of which must be to be had.
    pub(crate) fn with(target: &Target, style: Style, contexts: &[&str]) -> Outcome<Self> {
        let mut peer = Peer::open(&target.connector)?;
        agree_on(&mut peer, style)?;
        let mut selected = Vec::new();
        if !contexts.is_empty() {
            let queries: Vec<&[u8]> = contexts.iter().map(|name| name.as_bytes()).collect();
            let answer = peer.contexts(opt::SET_META_CONTEXT, target.name(), &queries)?;
            selected = answer.contexts()?;
            for wanted in contexts {
                if !selected.iter().any(|(_, name)| name == wanted) {
                    return Err(Stop::Lacking(format!("context {wanted}")));
                }
            }
        }
        let mut session = Self::go(peer, target, style)?;
        session.contexts = selected;
        Ok(session)
    }

    /// Enters transmission with what was negotiated.
    pub(crate) fn go(mut peer: Peer, target: &Target, style: Style) -> Outcome<Self> {
        let answer = peer.ask(opt::GO, target.name(), &[])?;
        let (size, flags) = answer.export()?;
        Ok(Self::over(peer, style, size, flags))
    }

    /// A peer that has just entered transmission.
    pub(crate) fn over(peer: Peer, style: Style, size: u64, flags: u16) -> Self {
        let (contexts, pending) = (Vec::new(), Vec::new());
        Self { peer, style, size, flags, contexts, next_cookie: 0x1122_3344_5566_0001, pending }
    }

    /// Expects that a feature is advertised, or calls the case off.
    pub(crate) fn needs(&self, flag: u16, what: &str) -> Outcome {
        if self.flags & flag == 0 { Err(Stop::Lacking(what.to_owned())) } else { Ok(()) }
    }

    /// The bytes of a request header in this session's style.
    pub(crate) fn header(&self, request: &Request) -> Vec<u8> {
        let extended = self.style == Style::Extended;
        let magic = if extended { EXTENDED_REQUEST } else { REQUEST };
        let mut bytes = magic.to_be_bytes().to_vec();
        bytes.extend_from_slice(&request.flags.to_be_bytes());
        bytes.extend_from_slice(&request.command.to_be_bytes());
        bytes.extend_from_slice(&request.cookie.to_be_bytes());
        bytes.extend_from_slice(&request.offset.to_be_bytes());
        if extended {
            bytes.extend_from_slice(&request.length.to_be_bytes());
        } else {
            bytes.extend_from_slice(&(request.length as u32).to_be_bytes());
        }
        bytes
    }

    /// A request with the next cookie; a WRITE gets the flag its style wants.
    pub(crate) fn request(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u64,
    ) -> Request {
        let payload = command == cmd::WRITE && self.style == Style::Extended;
        let flags = if payload { flags | bit::PAYLOAD_LEN } else { flags };
        let cookie = self.next_cookie;
        self.next_cookie = cookie.wrapping_add(1);
        Request { command, flags, cookie, offset, length }
    }

    /// Sends a request and remembers that a reply is owed.
    pub(crate) fn send(&mut self, request: Request, payload: &[u8]) -> Outcome {
        let mut bytes = self.header(&request);
        bytes.extend_from_slice(payload);
        self.owe(request);
        self.peer.send(&bytes)
    }

    /// Remembers that a reply to a request is owed, however it went out.
    pub(crate) fn owe(&mut self, request: Request) {
        self.pending.push((request, Reply::new(&request)));
    }

    /// Receives frames until one owed reply is whole.
    pub(crate) fn reply(&mut self) -> Outcome<(Request, Reply)> {
        loop {
            let head = self.peer.take(4)?;
            let magic = Fields(&head).u32();
            let simple = magic == Some(SIMPLE_REPLY) && self.style != Style::Extended;
            let whole = match self.style {
                _ if simple => Some(self.simple()?),
                Style::Structured if magic == Some(STRUCTURED_REPLY) => self.chunk(false)?,
                Style::Extended if magic == Some(EXTENDED_REPLY) => self.chunk(true)?,
                style => {
                    return Err(format!("a {style:?} session got a frame of {head:x?}").into());
                }
            };
            if let Some(place) = whole {
                let (request, reply) = self.pending.remove(place);
                reply.check_whole(&request, self)?;
                return Ok((request, reply));
            }
        }
    }

    /// Receives the replies to everything that was sent, in the order they end.
    pub(crate) fn replies(&mut self) -> Outcome<Vec<(Request, Reply)>> {
        let mut all = Vec::new();
        while !self.pending.is_empty() {
            all.push(self.reply()?);
        }
        Ok(all)
    }

    fn owed(&self, cookie: u64) -> Outcome<usize> {
        let place = self.pending.iter().position(|(request, _)| request.cookie == cookie);
        place.ok_or_else(|| format!("a reply with cookie {cookie:#x}, which is not owed").into())
    }

    fn simple(&mut self) -> Outcome<usize> {
        let rest = self.peer.take(12)?;
        let mut fields = Fields(&rest);
        let error = fields.u32().unwrap_or_default();
        let place = self.owed(fields.u64().unwrap_or_default())?;
        let request = self.pending[place].0;
        let reads = request.command == cmd::READ;
        if self.style == Style::Structured {
            ensure!(!reads, "a simple reply to READ although replies are structured");
            let status = request.command == cmd::BLOCK_STATUS && error == 0;
            ensure!(!status, "a simple reply says that BLOCK_STATUS succeeded");
        }
        let data =
            if reads && error == 0 { self.peer.take(request.length as usize)? } else { Vec::new() };
        let reply = &mut self.pending[place].1;
        reply.simple = true;
        if error == 0 {
            reply.data = data;
        } else {
            check_error(error)?;
            reply.error = Some(error);
        }
        Ok(place)
    }

    /// One chunk; the place of its reply if it was the last one.
    fn chunk(&mut self, extended: bool) -> Outcome<Option<usize>> {
        let rest = self.peer.take(if extended { 28 } else { 16 })?;
        let mut fields = Fields(&rest);
        let flags = fields.u16().unwrap_or_default();
        let kind = fields.u16().unwrap_or_default();
        let place = self.owed(fields.u64().unwrap_or_default())?;
        let request = self.pending[place].0;
        let length = if extended {
            let offset = fields.u64().unwrap_or_default();
            let same = offset == request.offset;
            ensure!(same, "the reply repeats offset {offset}, not {}", request.offset);
            fields.u64().unwrap_or_default()
        } else {
            u64::from(fields.u32().unwrap_or_default())
        };
        ensure!(length <= FRAME_MAX, "a chunk of {length} bytes");
        ensure!(flags & !chunk::DONE == 0, "unknown reply flags {flags:#x}");
        let done = flags & chunk::DONE != 0;
        let payload = self.peer.take(length as usize)?;
        let reply = &mut self.pending[place].1;
        reply.take_chunk(&request, kind, done, extended, &payload)?;
        Ok(done.then_some(place))
    }

    /// Sends a request and receives its reply, with nothing else under way.
    pub(crate) fn ask(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u64,
        payload: &[u8],
    ) -> Outcome<Reply> {
        let request = self.request(command, flags, offset, length);
        self.send(request, payload)?;
        self.reply().map(|(_, reply)| reply)
    }

    /// A command without payload that must succeed.
    pub(crate) fn ok(&mut self, command: u16, flags: u16, offset: u64, length: u64) -> Outcome {
        self.ask(command, flags, offset, length, &[])?.succeeded()
    }

    /// A command without payload that must fail with this error, and leave the stream in step.
    pub(crate) fn fails(
        &mut self,
        command: u16,
        flags: u16,
        (offset, length): (u64, u64),
        errors: &[u32],
    ) -> Outcome {
        self.ask(command, flags, offset, length, &[])?.failed(errors)?;
        self.in_step()
    }

    /// Reads a range that must be readable.
    pub(crate) fn read(&mut self, offset: u64, length: u64) -> Outcome<Vec<u8>> {
        let reply = self.ask(cmd::READ, 0, offset, length, &[])?;
        reply.succeeded()?;
        Ok(reply.data)
    }

    /// Writes a range that must be writable.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Outcome {
        self.ask(cmd::WRITE, 0, offset, data.len() as u64, data)?.succeeded()
    }

    /// Writes something that must be refused, and expects the stream in step behind it.
    pub(crate) fn refuses_write(
        &mut self,
        flags: u16,
        offset: u64,
        length: usize,
        errors: &[u32],
    ) -> Outcome {
        let data = vec![0x5a; length];
        let reply = self.ask(cmd::WRITE, flags, offset, length as u64, &data)?;
        reply.failed(errors)?;
        self.in_step()
    }

    /// Expects that a read works, so nothing that was sent before is left in the stream.
    pub(crate) fn in_step(&mut self) -> Outcome {
        let reply = self.ask(cmd::READ, 0, 0, 512, &[])?;
        reply.succeeded()?;
        ensure!(reply.data.len() == 512, "a READ of 512 bytes gave {}", reply.data.len());
        Ok(())
    }

    /// Says good-bye and expects that the server closes without another byte.
    pub(crate) fn leave(mut self) -> Outcome<Ending> {
        let request = self.request(cmd::DISC, 0, 0, 0);
        let bytes = self.header(&request);
        self.peer.send(&bytes)?;
        self.peer.dropped()
    }

    /// Expects that the server ends the connection without another byte.
    pub(crate) fn dropped(self) -> Outcome<Ending> {
        self.peer.dropped()
    }

    /// Expects that the server ends the connection, be it with an error's last words.
    pub(crate) fn gone(mut self) -> Outcome {
        let (bytes, _) = during("waiting for the end", self.peer.link.drain())?;
        ensure!(bytes.len() <= 128 + STRING_MAX, "{} bytes came before the end", bytes.len());
        Ok(())
    }

    /// Sends bytes that the server may not want to hear to their end.
    pub(crate) fn send_unheard(&mut self, bytes: &[u8]) {
        // A server that hangs up in the middle is what such a case looks for.
        let _ = self.peer.link.write_all(bytes);
        let _ = self.peer.link.flush();
    }

    /// Ends what we send; the server's replies can still be read.
    pub(crate) fn half_close(&mut self) -> Outcome {
        during("closing our half", self.peer.link.half_close())
    }

    /// Whether the server filters BLOCK_STATUS by payload.
    pub(crate) fn filters(&self) -> Outcome {
        self.needs(can::BLOCK_STATUS_PAYLOAD, "BLOCK_STATUS with a payload")
    }
}

/// Negotiates a style of headers.
pub(crate) fn agree_on(peer: &mut Peer, style: Style) -> Outcome {
    match style {
        Style::Simple => Ok(()),
        Style::Structured => peer.agree(opt::STRUCTURED_REPLY),
        Style::Extended => peer.agree(opt::EXTENDED_HEADERS),
    }
}

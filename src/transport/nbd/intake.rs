//! The client's byte stream: headers, payloads and what is to be skipped.

use std::time::Instant;

use ::nbd::transmission::{Command, Parsed, Request as NbdRequest};
use ::nbd::wire::Errno;

use super::{Ending, InFlight, MAX_BYTES, MAX_REQUESTS, NbdClient};
use crate::engine::effect::IoError;
use crate::engine::request::Request;
use crate::engine::units::{ByteLen, DiskOffset, Extent};
use crate::host::ReceiveInto;
use crate::host::memory::Lease;
use crate::shard::Context;

/// Room for what arrives: some thirty 4 KiB writes, or thousands of read headers.
const INBOX_BYTES: usize = 128 << 10;
/// A payload with more than this missing is received straight into its memory.
const DIRECT_BYTES: u32 = 32 << 10;
/// Runs asked for in one block status.
const MAX_RUNS: u32 = 8192;
/// What the answer to one block status may take: three contexts, 16 bytes a run.
const MAP_REPLY_BYTES: usize = MAX_RUNS as usize * 16 * 3;
/// Bytes of replies, data left out, that may wait to be sent, those of maps in flight included.
const MAX_REPLY_BYTES: usize = 256 << 10;
/// A cache request reads at most this much ahead.
const MAX_CACHE_BYTES: u64 = 8 << 20;

/// Bytes received and not yet understood.
pub(super) struct Inbox {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Inbox {
    pub(super) fn new(leftover: &[u8]) -> Self {
        let mut bytes = vec![0; INBOX_BYTES.max(leftover.len())];
        bytes[..leftover.len()].copy_from_slice(leftover);
        Self { bytes, start: 0, end: leftover.len() }
    }

    fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    fn skip(&mut self, count: usize) {
        self.start += count;
    }

    /// Moves what is unread to the front and lends the room behind it.
    fn lend(&mut self) -> ReceiveInto {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        ReceiveInto::Buffer { bytes: std::mem::take(&mut self.bytes), filled: self.end }
    }
}

/// What the next bytes of the stream are.
pub(super) enum Input {
    /// A request's header.
    Header,
    /// The payload of a WRITE: memory is granted, so much of it is filled.
    Payload { request: NbdRequest, lease: Lease, filled: u32 },
    /// The same, with a receive into the memory under way.
    Direct { request: NbdRequest, lease: Lease },
    /// A refused payload: so many bytes to throw away.
    Skip { left: u64 },
    /// A request whose memory was not granted yet.
    Stalled { request: NbdRequest },
}

impl Input {
    /// The memory held for a payload that will not come any more.
    pub(super) fn take_lease(&mut self) -> Option<Lease> {
        match std::mem::replace(self, Self::Header) {
            Self::Payload { lease, .. } | Self::Direct { lease, .. } => Some(lease),
            _ => None,
        }
    }
}

/// Whether the loop over the stream goes on.
enum Step {
    On,
    /// More bytes are needed.
    Starve,
    /// Something else must happen first.
    Pause,
}

impl NbdClient {
    /// Understands as much of the stream as limits and memory allow, then asks for more.
    pub(super) fn advance(&mut self, cx: &mut Context<'_>) {
        loop {
            if self.receiving || self.ending >= Ending::Disconnecting {
                return;
            }
            let step = match std::mem::replace(&mut self.input, Input::Header) {
                Input::Header => self.header(cx),
                Input::Stalled { request } => self.grant(cx, request),
                Input::Skip { left } => self.skip(left),
                Input::Payload { request, lease, filled } => {
                    self.payload(cx, request, lease, filled)
                }
                direct @ Input::Direct { .. } => {
                    self.input = direct;
                    Step::Pause
                }
            };
            match step {
                Step::On => {}
                Step::Pause => return,
                Step::Starve => {
                    self.receiving = true;
                    let into = self.inbox.lend();
                    cx.receive(into);
                    return;
                }
            }
        }
    }

    /// Takes what a receive brought.
    pub(super) fn take_in(&mut self, into: ReceiveInto, result: Result<u32, IoError>) {
        match into {
            ReceiveInto::Buffer { bytes, filled } => {
                self.inbox.bytes = bytes;
                self.inbox.end = filled;
            }
            ReceiveInto::Span(_) => {
                if let Input::Direct { request, lease } =
                    std::mem::replace(&mut self.input, Input::Header)
                {
                    let filled = lease.len();
                    self.input = Input::Payload { request, lease, filled };
                }
            }
        }
        match result {
            Ok(count) if count > 0 => {}
            // It may only have closed its half: what it asked is answered.
            Ok(_) if matches!(self.input, Input::Header) => self.end(Ending::Disconnecting),
            // A torn payload never reaches the disk.
            _ => self.end(Ending::Dead),
        }
    }

    fn header(&mut self, cx: &mut Context<'_>) -> Step {
        // Replies wait in our own memory: who does not read them is not listened to either.
        let replies = self.out.own_len() + self.maps * MAP_REPLY_BYTES;
        if self.requests.len() >= MAX_REQUESTS || replies >= MAX_REPLY_BYTES {
            return Step::Pause;
        }
        match self.gate.parse(self.inbox.unread()) {
            Parsed::Incomplete => Step::Starve,
            Parsed::Disconnect => {
                self.end(Ending::Disconnecting);
                Step::Pause
            }
            Parsed::Violation(violation) => {
                tracing::debug!(%violation, "dropping a client");
                self.end(Ending::Dead);
                Step::Pause
            }
            Parsed::Refused { echo, error, text, consumed, payload } => {
                self.inbox.skip(consumed);
                self.push_error(echo, error, None, text);
                self.input = Input::Skip { left: u64::from(payload) };
                Step::On
            }
            Parsed::Request { request, consumed } => {
                self.inbox.skip(consumed);
                if self.ending == Ending::Draining {
                    self.refuse(&request, Errno::ESHUTDOWN, "the server is shutting down");
                    return Step::On;
                }
                self.grant(cx, request)
            }
        }
    }

    /// Refuses a request here and now; its payload is skipped.
    fn refuse(&mut self, request: &NbdRequest, error: Errno, text: &str) {
        self.push_error(request.echo(), error, None, text);
        self.input = Input::Skip { left: request.payload().0 };
    }

    /// Finds memory for a request, if it needs some, and carries it out or reads its payload.
    fn grant(&mut self, cx: &mut Context<'_>, request: NbdRequest) -> Step {
        let wanted = match request.command {
            Command::Read { .. } | Command::Write { .. } => request.length.0,
            Command::Cache => request.length.0.min(MAX_CACHE_BYTES),
            Command::WriteZeroes { no_hole: true, fast: true, .. } => {
                self.refuse(&request, Errno::ENOTSUP, "allocating zeroes is not fast");
                return Step::On;
            }
            _ => {
                self.submit(cx, request, None);
                return Step::On;
            }
        };
        let crowded = self.leased_bytes > 0 && self.leased_bytes + wanted > MAX_BYTES;
        let lease = if crowded { None } else { cx.take(wanted as u32) };
        let Some(lease) = lease else {
            self.input = Input::Stalled { request };
            return Step::Pause;
        };
        self.leased_bytes += u64::from(lease.len());
        if matches!(request.command, Command::Write { .. }) {
            self.payload_since = Some(Instant::now());
            self.input = Input::Payload { request, lease, filled: 0 };
        } else {
            self.submit(cx, request, Some(lease));
        }
        Step::On
    }

    fn payload(
        &mut self,
        cx: &mut Context<'_>,
        request: NbdRequest,
        lease: Lease,
        filled: u32,
    ) -> Step {
        let here = self.inbox.unread();
        let count = here.len().min((lease.len() - filled) as usize);
        let end = filled + count as u32;
        cx.arena().copy_in(lease.part(filled..end), &here[..count]);
        self.inbox.skip(count);
        let missing = lease.len() - end;
        if missing == 0 {
            self.payload_since = None;
            self.submit(cx, request, Some(lease));
            return Step::On;
        }
        if missing >= DIRECT_BYTES {
            self.receiving = true;
            cx.receive(ReceiveInto::Span(lease.part(end..lease.len())));
            self.input = Input::Direct { request, lease };
            return Step::Pause;
        }
        self.input = Input::Payload { request, lease, filled: end };
        Step::Starve
    }

    fn skip(&mut self, left: u64) -> Step {
        let count = self.inbox.unread().len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.inbox.skip(count);
        let left = left - count as u64;
        if left == 0 {
            return Step::On;
        }
        self.input = Input::Skip { left };
        Step::Starve
    }

    /// Hands a complete request to the disk.
    fn submit(&mut self, cx: &mut Context<'_>, request: NbdRequest, lease: Option<Lease>) {
        let extent = Extent::new(DiskOffset::new(request.offset.0), ByteLen::new(request.length.0));
        let span = lease.as_ref().map(Lease::span);
        let asked = match (request.command, span) {
            (Command::Read { .. }, Some(into)) => Request::Read { extent, into },
            (Command::Cache, Some(into)) => {
                Request::Read { extent: extent.first(into.bytes()), into }
            }
            (Command::Write { fua }, Some(from)) => Request::Write { extent, from, fua },
            (Command::Trim { fua }, _) => Request::Discard { extent, fua },
            (Command::WriteZeroes { fua, no_hole, .. }, _) => {
                Request::Zero { extent, may_unmap: !no_hole, fua }
            }
            (Command::BlockStatus { req_one, .. }, _) => {
                Request::Map { extent, limit: if req_one { 1 } else { MAX_RUNS } }
            }
            _ => Request::Flush,
        };
        self.maps += usize::from(matches!(request.command, Command::BlockStatus { .. }));
        let slot = self.requests.insert(InFlight { request, lease });
        cx.submit(slot as u32, asked);
    }
}

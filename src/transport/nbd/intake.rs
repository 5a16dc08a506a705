//! The client's byte stream: headers, payloads and what is to be skipped.

use std::time::Instant;

use ::nbd::Bytes;
use ::nbd::transmission::{Command, Parsed, Request as NbdRequest};
use ::nbd::wire::Errno;

use super::gauge::{op_of, op_of_header};
use super::{Ask, Ending, InFlight, NbdClient};
use crate::engine::effect::IoError;
use crate::engine::request::Request;
use crate::engine::units::{ByteLen, Extent};
use crate::host::ReceiveInto;
use crate::host::memory::Lease;
use crate::meter::{Admission, Ticket};
use crate::shard::Context;

/// Room for what arrives: some thirty 4 KiB writes, or thousands of read headers.
const INBOX_BYTES: usize = 128 << 10;
/// A payload with more than this missing is received straight into its memory.
const DIRECT_BYTES: u32 = 32 << 10;
/// As much of a payload is received at once, so that a slow peer can be told from a dead one: a
/// receive is over only when all of it is there.
const DIRECT_MAX_BYTES: u32 = 2 << 20;
/// A read of at least this may be answered from the page cache.
const FETCHED_MIN: ByteLen = ByteLen::new(8 << 10);
/// Runs asked for in one block status.
const MAX_RUNS: u32 = 8192;
/// What the answer to one block status may take: three contexts, 16 bytes a run.
const MAP_REPLY_BYTES: usize = MAX_RUNS as usize * 16 * 3;
/// Bytes of replies, data left out, that may wait to be sent, those of maps in flight included.
const MAX_REPLY_BYTES: usize = 256 << 10;
const SHUTTING_DOWN: &str = "the server is shutting down, or the export goes away";
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

    /// Whether there is anything not yet understood.
    pub(super) const fn has_part(&self) -> bool {
        self.end > self.start
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
    /// A request that waits for its turn under the export's limits, so that it is looked at again
    /// then.
    Throttled { ask: Ask, ticket: Ticket, since: Instant, until: Instant },
    /// A request whose memory was not granted yet.
    Stalled { ask: Ask },
    /// The payload of a WRITE: memory is granted, so much of it is filled.
    Payload { ask: Ask, lease: Lease, filled: u32 },
    /// The same, with a receive into the memory under way that fills it so far.
    Direct { ask: Ask, lease: Lease, filling: u32 },
    /// A refused payload: so many bytes to throw away.
    Skip { left: u64 },
}

impl Input {
    /// Whether a request is being read whose memory was granted.
    pub(super) const fn is_payload(&self) -> bool {
        matches!(self, Self::Payload { .. } | Self::Direct { .. })
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
            if self.receiving_since.is_some() || self.ending >= Ending::Disconnecting {
                return;
            }
            let step = match std::mem::replace(&mut self.input, Input::Header) {
                Input::Header => self.header(cx),
                Input::Throttled { ask, ticket, since, until } => {
                    if cx.now() < until {
                        self.input = Input::Throttled { ask, ticket, since, until };
                        return;
                    }
                    self.turn(cx, ask, ticket, since)
                }
                Input::Stalled { ask } => self.grant(cx, ask),
                Input::Skip { left } => self.skip(left),
                Input::Payload { ask, lease, filled } => self.payload(cx, ask, lease, filled),
                direct @ Input::Direct { .. } => {
                    self.input = direct;
                    Step::Pause
                }
            };
            match step {
                Step::On => {}
                Step::Pause => return,
                Step::Starve => {
                    self.receiving_since = Some(cx.now());
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
                let input = std::mem::replace(&mut self.input, Input::Header);
                self.input = match input {
                    Input::Direct { ask, lease, filling } => {
                        Input::Payload { ask, lease, filled: filling }
                    }
                    other => other,
                };
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
        if self.requests.len() >= self.limits.requests || replies >= MAX_REPLY_BYTES {
            return Step::Pause;
        }
        if self.whole.is_some() {
            // Another connection may have changed it.
            self.window.len = cx.disk_size();
            self.gate.set_size(Bytes(cx.disk_size().get()));
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
                self.gauge.refused(op_of_header(self.inbox.unread()));
                self.inbox.skip(consumed);
                self.push_error(echo, error, None, text);
                self.input = Input::Skip { left: u64::from(payload) };
                Step::On
            }
            Parsed::Request { request, consumed } => {
                self.inbox.skip(consumed);
                self.begin(cx, Ask { request, at: cx.now() })
            }
        }
    }

    /// Refuses a request here and now; its payload is skipped.
    fn refuse(&mut self, request: &NbdRequest, error: Errno, text: &str) {
        self.gauge.refused(Some(op_of(&request.command)));
        self.push_error(request.echo(), error, None, text);
        self.input = Input::Skip { left: request.payload().0 };
    }

    /// Refuses the request that waits for its turn or for memory, because the server goes away.
    pub(super) fn refuse_waiting(&mut self) {
        let request = match std::mem::replace(&mut self.input, Input::Header) {
            Input::Throttled { ask, ticket, .. } => {
                self.throttle.cancel(ticket);
                ask.request
            }
            Input::Stalled { ask } => ask.request,
            other => {
                self.input = other;
                return;
            }
        };
        self.refuse(&request, Errno::ESHUTDOWN, SHUTTING_DOWN);
    }

    /// Takes on a new request: refuses it, or asks for its turn under the export's limits.
    fn begin(&mut self, cx: &mut Context<'_>, ask: Ask) -> Step {
        let request = &ask.request;
        if self.ending == Ending::Draining {
            self.refuse(request, Errno::ESHUTDOWN, SHUTTING_DOWN);
            return Step::On;
        }
        if matches!(request.command, Command::WriteZeroes { no_hole: true, fast: true, .. }) {
            self.refuse(request, Errno::ENOTSUP, "allocating zeroes is not fast");
            return Step::On;
        }
        // The gate saw to it; but what lies beyond is somebody else's.
        let end = request.offset.0.checked_add(request.length.0);
        if end.is_none_or(|end| end > self.window.len.get()) {
            self.refuse(request, Errno::EINVAL, "the request goes beyond the end of the export");
            return Step::On;
        }
        match self.throttle.admit(cx.now(), moved_bytes(request)) {
            Admission::Now => self.grant(cx, ask),
            Admission::Later(ticket) => self.turn(cx, ask, ticket, cx.now()),
        }
    }

    /// Goes on with a request that waited for its turn, if it has come.
    fn turn(&mut self, cx: &mut Context<'_>, ask: Ask, ticket: Ticket, since: Instant) -> Step {
        if let Some(until) = self.throttle.turn(&ticket, cx.now()) {
            self.input = Input::Throttled { ask, ticket, since, until };
            return Step::Pause;
        }
        self.farewell_since = None;
        self.gauge.throttled(cx.now().saturating_duration_since(since));
        self.grant(cx, ask)
    }

    /// Finds memory for a request, if it needs some, and carries it out or reads its payload.
    fn grant(&mut self, cx: &mut Context<'_>, ask: Ask) -> Step {
        let wanted = match ask.request.command {
            Command::Read { .. } | Command::Write { .. } | Command::Cache => {
                moved_bytes(&ask.request)
            }
            _ => {
                self.submit(cx, ask, None);
                return Step::On;
            }
        };
        let crowded = self.leased_bytes > 0 && self.leased_bytes + wanted > self.limits.bytes;
        let lease = if crowded { None } else { cx.take(wanted as u32) };
        let Some(lease) = lease else {
            self.input = Input::Stalled { ask };
            return Step::Pause;
        };
        self.leased_bytes += u64::from(lease.len());
        if matches!(ask.request.command, Command::Write { .. }) {
            self.payload_since = Some(cx.now());
            self.input = Input::Payload { ask, lease, filled: 0 };
        } else {
            self.submit(cx, ask, Some(lease));
        }
        Step::On
    }

    fn payload(&mut self, cx: &mut Context<'_>, ask: Ask, lease: Lease, filled: u32) -> Step {
        let here = self.inbox.unread();
        let count = here.len().min((lease.len() - filled) as usize);
        let end = filled + count as u32;
        cx.arena().copy_in(lease.part(filled..end), &here[..count]);
        self.inbox.skip(count);
        let missing = lease.len() - end;
        if missing == 0 {
            self.payload_since = None;
            self.submit(cx, ask, Some(lease));
            return Step::On;
        }
        if missing >= DIRECT_BYTES {
            self.receiving_since = Some(cx.now());
            let filling = end + missing.min(DIRECT_MAX_BYTES);
            cx.receive(ReceiveInto::Span(lease.part(end..filling)));
            self.input = Input::Direct { ask, lease, filling };
            return Step::Pause;
        }
        self.input = Input::Payload { ask, lease, filled: end };
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
    fn submit(&mut self, cx: &mut Context<'_>, ask: Ask, lease: Option<Lease>) {
        let request = ask.request;
        let at = self.window.at + ByteLen::new(request.offset.0);
        let extent = Extent::new(at, ByteLen::new(request.length.0));
        let asked = asked_of_disk(request.command, extent, lease.as_ref());
        self.maps += usize::from(matches!(request.command, Command::BlockStatus { .. }));
        self.gauge.began();
        let slot = self.requests.insert(InFlight { ask, lease });
        cx.submit(slot as u32, asked);
    }
}

/// Bytes that a request moves: memory it needs, and what counts for the limits.
fn moved_bytes(request: &NbdRequest) -> u64 {
    match request.command {
        Command::Read { .. } | Command::Write { .. } => request.length.0,
        Command::Cache => request.length.0.min(MAX_CACHE_BYTES),
        Command::Flush { .. }
        | Command::Trim { .. }
        | Command::WriteZeroes { .. }
        | Command::BlockStatus { .. }
        | Command::Resize { .. } => 0,
    }
}

/// A command as the engine knows it.
fn asked_of_disk(command: Command, extent: Extent, lease: Option<&Lease>) -> Request {
    let span = || lease.expect("whatever moves bytes was granted memory").span();
    match command {
        // Small ones are quicker copied.
        Command::Read { .. } if extent.len >= FETCHED_MIN => {
            Request::Fetch { extent, into: span() }
        }
        Command::Read { .. } => Request::Read { extent, into: span() },
        Command::Cache => Request::Read { extent: extent.first(span().bytes()), into: span() },
        Command::Write { fua } => Request::Write { extent, from: span(), fua },
        Command::Trim { fua } => Request::Discard { extent, fua },
        Command::WriteZeroes { fua, no_hole, .. } => {
            Request::Zero { extent, may_unmap: !no_hole, fua }
        }
        Command::BlockStatus { req_one, .. } => {
            Request::Map { extent, limit: if req_one { 1 } else { MAX_RUNS } }
        }
        Command::Flush { .. } => Request::Flush,
        Command::Resize { size } => Request::Resize { size: ByteLen::new(size.0) },
    }
}

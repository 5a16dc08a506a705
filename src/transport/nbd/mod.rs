//! One NBD connection in its transmission phase.
//!
//! Bounded in everything: requests and bytes in flight, and a WRITE's payload is read only once
//! memory for it was granted. A slow reader stalls itself and nobody else.

mod answer;
mod intake;

use std::time::Instant;

use slab::Slab;

use ::nbd::export::{BlockSize, Capabilities, Export};
use ::nbd::handshake::{Context as Metadata, Session};
use ::nbd::transmission::{Request as NbdRequest, Transmission};
use ::nbd::{Bytes, ContextName, ReplyStyle};

use crate::engine::effect::IoError;
use crate::engine::request::{Answer, Fault};
use crate::host::memory::{Arena, Lease};
use crate::host::{ReceiveInto, SendList};
use crate::shard::{Client, Context, Fate};
use intake::{Inbox, Input};

/// Requests one connection may have in flight.
const MAX_REQUESTS: usize = 256;
/// Bytes of payload one connection may have in flight, in both directions; one request may be
/// larger when it is alone.
const MAX_BYTES: u64 = 64 << 20;

/// The dirty bitmap every disk has: what its top layer holds, so what changed since its parent.
const LEAF_BITMAP: &str = "leaf";

/// The export of a disk: what it is called and what it can do.
#[must_use]
pub fn export_of(name: &str, description: &str, size_bytes: u64, read_only: bool) -> Export {
    Export {
        name: name.to_owned(),
        description: description.to_owned(),
        size: Bytes(size_bytes),
        capabilities: Capabilities {
            read_only,
            flush: true,
            fua: true,
            trim: true,
            write_zeroes: true,
            fast_zero: true,
            cache: true,
            multi_conn: true,
            rotational: false,
            resize: false,
        },
        block_size: BlockSize::default(),
        contexts: vec![
            ContextName::Allocation,
            ContextName::AllocationDepth,
            ContextName::DirtyBitmap(LEAF_BITMAP.to_owned()),
        ],
    }
}

/// A request of the client that was not answered yet.
struct InFlight {
    request: NbdRequest,
    lease: Option<Lease>,
}

/// How far the connection is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ending {
    /// It is not.
    No,
    /// The server goes away: new requests are refused, and it ends when nothing is in flight.
    Draining,
    /// The client said goodbye: it ends when everything was answered.
    Disconnecting,
    /// The connection broke: it ends when the disk has answered.
    Dead,
}

/// The state of a connection.
pub struct NbdClient {
    gate: Transmission,
    style: ReplyStyle,
    /// The selected metadata contexts, in the order of their ids.
    contexts: Vec<Metadata>,
    inbox: Inbox,
    input: Input,
    receiving: bool,
    requests: Slab<InFlight>,
    /// How many of them are block status.
    maps: usize,
    /// Bytes of leases taken and not given back.
    leased_bytes: u64,
    /// What is to be sent next, and the memory it names.
    out: SendList,
    out_leases: Vec<Lease>,
    /// The memory of the send in flight.
    sent_leases: Vec<Lease>,
    sending: bool,
    /// Since when the peer has been due to take the send in flight.
    sending_since: Option<Instant>,
    /// Since when the payload whose memory was granted has been due.
    payload_since: Option<Instant>,
    /// A list whose buffers wait to be used again.
    spare: SendList,
    ending: Ending,
}

impl NbdClient {
    /// The connection behind a finished handshake.
    #[must_use]
    pub fn new(session: &Session) -> Self {
        let gate = Transmission::new(session);
        Self {
            gate,
            style: gate.reply_style(),
            contexts: session.contexts.clone(),
            inbox: Inbox::new(&session.leftover),
            input: Input::Header,
            receiving: false,
            requests: Slab::new(),
            maps: 0,
            leased_bytes: 0,
            out: SendList::new(),
            out_leases: Vec::new(),
            sent_leases: Vec::new(),
            sending: false,
            sending_since: None,
            payload_since: None,
            spare: SendList::new(),
            ending: Ending::No,
        }
    }

    fn end(&mut self, how: Ending) {
        self.ending = self.ending.max(how);
    }

    /// Whether it is time to leave.
    fn fate(&self) -> Fate {
        let quiet = self.requests.is_empty() && self.out.is_empty() && !self.sending;
        let leave = match self.ending {
            Ending::No => false,
            Ending::Draining => quiet && !matches!(self.input, Input::Payload { .. }),
            Ending::Disconnecting => quiet,
            Ending::Dead => self.requests.is_empty(),
        };
        if leave { Fate::Leave } else { Fate::Stay }
    }

    fn give(&mut self, cx: &mut Context<'_>, lease: Lease) {
        self.leased_bytes -= u64::from(lease.len());
        cx.give(lease);
    }

    fn flush(&mut self, cx: &mut Context<'_>) {
        if self.sending || self.out.is_empty() || self.ending == Ending::Dead {
            return;
        }
        let list = std::mem::replace(&mut self.out, std::mem::take(&mut self.spare));
        self.sent_leases.append(&mut self.out_leases);
        self.sending = true;
        self.sending_since = Some(Instant::now());
        cx.send(list);
    }
}

impl Client for NbdClient {
    fn start(&mut self, cx: &mut Context<'_>) -> Fate {
        self.advance(cx);
        self.fate()
    }

    fn received(
        &mut self,
        cx: &mut Context<'_>,
        into: ReceiveInto,
        result: Result<u32, IoError>,
    ) -> Fate {
        self.receiving = false;
        self.take_in(into, result);
        self.advance(cx);
        self.fate()
    }

    fn sent(&mut self, cx: &mut Context<'_>, list: SendList, result: Result<(), IoError>) -> Fate {
        self.sending = false;
        self.sending_since = None;
        self.spare = list;
        self.spare.clear();
        for lease in std::mem::take(&mut self.sent_leases) {
            self.give(cx, lease);
        }
        if result.is_err() {
            self.end(Ending::Dead);
        }
        self.fate()
    }

    fn replied(&mut self, cx: &mut Context<'_>, slot: u32, result: Result<Answer, Fault>) -> Fate {
        self.answer(cx, slot, result);
        self.fate()
    }

    fn settle(&mut self, cx: &mut Context<'_>) -> Fate {
        self.advance(cx);
        self.flush(cx);
        self.fate()
    }

    fn unstall(&mut self, cx: &mut Context<'_>) -> Fate {
        self.advance(cx);
        self.flush(cx);
        self.fate()
    }

    fn drain(&mut self, cx: &mut Context<'_>) -> Fate {
        self.end(Ending::Draining);
        self.flush(cx);
        self.fate()
    }

    fn cut(&mut self, _cx: &mut Context<'_>) -> Fate {
        self.end(Ending::Dead);
        self.fate()
    }

    fn owes_since(&self) -> Option<Instant> {
        let send = self.sending_since.filter(|_| !self.sent_leases.is_empty());
        send.into_iter().chain(self.payload_since).min()
    }

    fn closed(&mut self, arena: &mut Arena) {
        // The fate said that the disk holds none of these any more.
        let requests = std::mem::take(&mut self.requests);
        let of_requests = requests.into_iter().filter_map(|(_, request)| request.lease);
        let of_sends = self.out_leases.drain(..).chain(self.sent_leases.drain(..));
        let of_payload = self.input.take_lease();
        for lease in of_requests.chain(of_sends).chain(of_payload) {
            arena.give(lease);
        }
    }
}

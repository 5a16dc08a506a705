//! One NBD connection in its transmission phase.
//!
//! Bounded in everything: requests and bytes in flight, and a WRITE's payload is read only once
//! memory for it was granted. A slow reader stalls itself and nobody else.

mod answer;
mod clocks;
mod gauge;
mod intake;
mod outgoing;
mod settings;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use slab::Slab;

use ::nbd::ReplyStyle;
use ::nbd::handshake::{Context as Metadata, Session};
use ::nbd::transmission::{Request as NbdRequest, Transmission};

use crate::engine::effect::IoError;
use crate::engine::request::{Answer, Fault};
use crate::engine::units::Extent;
use crate::host::memory::{Arena, Lease};
use crate::host::{ReceiveInto, SendList};
use crate::meter::Throttle;
use crate::shard::{Client, Context, Fate};
use gauge::Gauge;
use intake::{Inbox, Input};
use outgoing::Outgoing;

pub use settings::{ClientLimits, ClientSettings, ExportShape, export_of};

/// How long a connection with nothing left to do stays when the server goes away: a request that
/// was sent before its client could know deserves an answer, not a reset.
const LINGER: Duration = Duration::from_millis(100);
/// The most requests that one connection may be allowed to have in flight.
const REQUESTS_MAX: usize = 1024;

/// A request, and when it came.
#[derive(Clone, Copy)]
struct Ask {
    request: NbdRequest,
    /// When its header was understood.
    at: Instant,
}

/// A request of the client that was not answered yet.
struct InFlight {
    ask: Ask,
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
    /// The part of the disk that is the export.
    window: Extent,
    /// Where the disk's size is told, if the export is the whole disk.
    whole: Option<Arc<AtomicU64>>,
    limits: ClientLimits,
    throttle: Arc<Throttle>,
    gauge: Gauge,
    inbox: Inbox,
    input: Input,
    /// Since when a receive has been under way.
    receiving_since: Option<Instant>,
    requests: Slab<InFlight>,
    /// How many of them are block status.
    maps: usize,
    /// Bytes of leases taken and not given back.
    leased_bytes: u64,
    out: Outgoing,
    /// Since when the peer has been due to take the send in flight.
    sending_since: Option<Instant>,
    /// Since when the payload whose memory was granted has been due.
    payload_since: Option<Instant>,
    /// Since when a peer whose request waits for its turn has said nothing more to come.
    farewell_since: Option<Instant>,
    /// While the server goes away: until when requests that are on their way are still refused in
    /// words.
    lingers_until: Option<Instant>,
    /// Failed requests so far, of those the log was to hear of.
    faults_told: u32,
    /// When bytes last moved.
    active_at: Option<Instant>,
    ending: Ending,
}

impl NbdClient {
    /// The connection behind a finished handshake.
    #[must_use]
    pub fn new(session: &Session, settings: ClientSettings) -> Self {
        let gate = Transmission::new(session);
        let mut limits = settings.limits;
        limits.requests = limits.requests.clamp(1, REQUESTS_MAX);
        Self {
            gate,
            style: gate.reply_style(),
            contexts: session.contexts.clone(),
            window: settings.window,
            whole: settings.whole,
            limits,
            throttle: settings.throttle,
            gauge: Gauge::new(settings.export_meter, settings.meter),
            inbox: Inbox::new(&session.leftover),
            input: Input::Header,
            receiving_since: None,
            requests: Slab::new(),
            maps: 0,
            leased_bytes: 0,
            out: Outgoing::default(),
            sending_since: None,
            payload_since: None,
            farewell_since: None,
            lingers_until: None,
            faults_told: 0,
            active_at: None,
            ending: Ending::No,
        }
    }

    fn end(&mut self, how: Ending) {
        self.ending = self.ending.max(how);
    }

    /// Whether it is time to leave.
    fn fate(&self) -> Fate {
        let quiet = self.requests.is_empty() && self.out.is_idle();
        let leave = match self.ending {
            Ending::No => false,
            Ending::Draining => quiet && !self.input.is_payload() && self.lingers_until.is_none(),
            Ending::Disconnecting => quiet,
            Ending::Dead => self.requests.is_empty(),
        };
        if leave { Fate::Leave } else { Fate::Stay }
    }

    fn give(&mut self, cx: &mut Context<'_>, lease: Lease) {
        self.leased_bytes -= u64::from(lease.len());
        cx.give(lease);
    }

    /// Goes on with everything that may.
    fn go_on(&mut self, cx: &mut Context<'_>) {
        if self.out.is_muted() {
            // First, because what was refused for want of memory is tried again only now.
            for lease in self.out.take_leases() {
                self.give(cx, lease);
            }
        }
        self.advance(cx);
        self.flush(cx);
    }

    fn flush(&mut self, cx: &mut Context<'_>) {
        if self.ending == Ending::Dead {
            return;
        }
        if let Some(list) = self.out.next() {
            self.sending_since = Some(cx.now());
            cx.send(list);
        }
        // Unless all that is left to do is to listen, the end of a send lets something go on.
        let listens = self.receiving_since.is_some() && self.ending == Ending::No;
        if !listens || self.out.is_behind() || self.limits.idle.is_some() {
            cx.hurry();
        }
    }
}

impl Client for NbdClient {
    fn start(&mut self, cx: &mut Context<'_>) -> Fate {
        self.gauge.connect();
        self.active_at = Some(cx.now());
        self.advance(cx);
        self.fate()
    }

    fn received(
        &mut self,
        cx: &mut Context<'_>,
        into: ReceiveInto,
        result: Result<u32, IoError>,
    ) -> Fate {
        self.receiving_since = None;
        self.active_at = Some(cx.now());
        self.take_in(into, result);
        self.advance(cx);
        self.fate()
    }

    fn sent(&mut self, cx: &mut Context<'_>, list: SendList, result: Result<(), IoError>) -> Fate {
        self.sending_since = None;
        self.active_at = Some(cx.now());
        if self.lingers_until.is_some() {
            self.lingers_until = cx.now().checked_add(LINGER);
        }
        for lease in self.out.sent(list) {
            self.give(cx, lease);
        }
        if result.is_err() {
            // It takes no replies any more, but it may have said goodbye and closed at once: what
            // it asked before is carried out. Whether it is gone is what receiving tells.
            self.out.mute();
        }
        self.fate()
    }

    fn replied(&mut self, cx: &mut Context<'_>, slot: u32, result: Result<Answer, Fault>) -> Fate {
        self.answer(cx, slot, result);
        self.fate()
    }

    fn settle(&mut self, cx: &mut Context<'_>) -> Fate {
        self.go_on(cx);
        self.fate()
    }

    fn unstall(&mut self, cx: &mut Context<'_>) -> Fate {
        self.go_on(cx);
        self.fate()
    }

    fn due(&self) -> Option<Instant> {
        self.next_due()
    }

    fn tick(&mut self, cx: &mut Context<'_>) -> Fate {
        self.check_clocks(cx);
        self.go_on(cx);
        self.fate()
    }

    fn drain(&mut self, cx: &mut Context<'_>) -> Fate {
        self.gauge.connect();
        self.end(Ending::Draining);
        self.lingers_until = cx.now().checked_add(LINGER);
        self.refuse_waiting();
        self.flush(cx);
        self.fate()
    }

    fn cut(&mut self, _cx: &mut Context<'_>) -> Fate {
        self.end(Ending::Dead);
        self.fate()
    }

    fn owes_since(&self) -> Option<Instant> {
        let send = self.sending_since.filter(|_| self.out.holds_leases());
        send.into_iter().chain(self.payload_since).min()
    }

    fn closed(&mut self, arena: &mut Arena) {
        self.gauge.disconnect();
        // The fate said that the disk holds none of these any more.
        let requests = std::mem::take(&mut self.requests);
        let of_requests = requests.into_iter().filter_map(|(_, request)| request.lease);
        let of_payload = match std::mem::replace(&mut self.input, Input::Header) {
            Input::Payload { lease, .. } | Input::Direct { lease, .. } => Some(lease),
            Input::Throttled { ticket, .. } => {
                self.throttle.cancel(ticket);
                None
            }
            Input::Header | Input::Skip { .. } | Input::Stalled { .. } => None,
        };
        for lease in of_requests.chain(self.out.take_leases()).chain(of_payload) {
            arena.give(lease);
        }
    }
}

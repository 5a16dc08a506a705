//! The client that acts for a guest at the owner of a disk: what the guest hands over is carried
//! out here like any other client's, in memory of this shard, and answered by the line.
//!
//! Refuses to leave before its guest: a guest's clients may ask until they are gone. Only when it
//! is cut, because those of this shard that go had time enough, it leaves as soon as the disk has
//! answered.

use std::time::Instant;

use slab::Slab;

use super::client::{Client, Context, Fate};
use super::line::{Outcome, OwnerEnd, Parcel, nobody};
use crate::engine::request::{Answer, Fault, Request, RequestId, Segment};
use crate::host::memory::{Arena, Lease};

/// A request of the guest that the disk has.
struct Held {
    id: RequestId,
    request: Request,
    lease: Option<Lease>,
}

/// Acts for one guest.
pub(super) struct Steward {
    line: OwnerEnd,
    requests: Slab<Held>,
    /// The next one, for which there is no memory yet.
    waiting: Option<Parcel>,
    /// The guest has no clients, as the shard was told.
    absent: bool,
    cut: bool,
}

impl Steward {
    pub(super) fn new(line: OwnerEnd) -> Self {
        Self { line, requests: Slab::new(), waiting: None, absent: false, cut: false }
    }

    /// Takes on what the guest has handed over, as far as there is memory.
    fn go_on(&mut self, cx: &mut Context<'_>) -> Fate {
        while !self.cut
            && let Some(parcel) = self.waiting.take().or_else(|| self.line.next())
        {
            let lease = match moved_bytes(&parcel.request) {
                0 => None,
                len => match cx.take(len) {
                    Some(lease) => Some(lease),
                    None => {
                        self.waiting = Some(parcel);
                        break;
                    }
                },
            };
            let Parcel { id, request, bytes } = parcel;
            if let (Some(lease), false) = (&lease, bytes.is_empty()) {
                cx.arena().copy_in(lease.span(), &bytes);
            }
            let asked = in_memory_of(request, lease.as_ref());
            let slot = self.requests.insert(Held { id, request, lease });
            cx.submit(slot as u32, asked);
        }
        self.fate(cx)
    }

    fn fate(&mut self, cx: &mut Context<'_>) -> Fate {
        let busy = !self.requests.is_empty() || self.waiting.is_some();
        let leaves = !busy && (self.cut || self.line.is_over());
        // Who is about to leave is counted as any other.
        let absent = !leaves && !busy && !self.line.is_used();
        cx.note_absence(std::mem::replace(&mut self.absent, absent), absent);
        if leaves { Fate::Leave } else { Fate::Stay }
    }
}

/// Bytes of memory that a request needs.
fn moved_bytes(request: &Request) -> u32 {
    match request {
        Request::Read { into, .. } | Request::Fetch { into, .. } => into.len,
        Request::Write { from, .. } => from.len,
        Request::Zero { .. }
        | Request::Discard { .. }
        | Request::Map { .. }
        | Request::Flush
        | Request::Resize { .. }
        | Request::Hold => 0,
    }
}

/// The same request over memory of this shard. Nothing is fetched: what is lent here cannot be sent
/// there.
fn in_memory_of(request: Request, lease: Option<&Lease>) -> Request {
    match (request, lease) {
        (Request::Read { extent, .. } | Request::Fetch { extent, .. }, Some(lease)) => {
            Request::Read { extent, into: lease.span() }
        }
        (Request::Write { extent, fua, .. }, Some(lease)) => {
            Request::Write { extent, from: lease.span(), fua }
        }
        (other, _) => other,
    }
}

impl Client for Steward {
    fn start(&mut self, cx: &mut Context<'_>) -> Fate {
        self.go_on(cx)
    }

    fn nudged(&mut self, cx: &mut Context<'_>) -> Fate {
        self.go_on(cx)
    }

    fn replied(&mut self, cx: &mut Context<'_>, slot: u32, result: Result<Answer, Fault>) -> Fate {
        let Held { id, request, lease } = self.requests.remove(slot as usize);
        let mut bytes = Vec::new();
        if let Some(lease) = lease {
            if !matches!(request, Request::Write { .. }) {
                match &result {
                    Ok(Answer::Segments(segments)) => {
                        for segment in segments {
                            if let Segment::Data(span) = segment {
                                bytes.extend_from_slice(cx.arena().bytes(*span));
                            }
                        }
                    }
                    Ok(_) => bytes.extend_from_slice(cx.arena().bytes(lease.span())),
                    Err(_) => {}
                }
            }
            cx.give(lease);
        }
        self.line.answer(Outcome { id, request, result, bytes });
        self.fate(cx)
    }

    fn settle(&mut self, cx: &mut Context<'_>) -> Fate {
        self.fate(cx)
    }

    fn unstall(&mut self, cx: &mut Context<'_>) -> Fate {
        self.go_on(cx)
    }

    fn due(&self) -> Option<Instant> {
        None
    }

    fn tick(&mut self, _cx: &mut Context<'_>) -> Fate {
        Fate::Stay
    }

    fn drain(&mut self, cx: &mut Context<'_>) -> Fate {
        self.go_on(cx)
    }

    fn owes_since(&self) -> Option<Instant> {
        None
    }

    fn cut(&mut self, cx: &mut Context<'_>) -> Fate {
        self.cut = true;
        if let Some(Parcel { id, request, .. }) = self.waiting.take() {
            let result = Err(nobody(&request));
            self.line.answer(Outcome { id, request, result, bytes: Vec::new() });
        }
        self.fate(cx)
    }

    fn closed(&mut self, arena: &mut Arena) {
        for held in std::mem::take(&mut self.requests) {
            if let Some(lease) = held.1.lease {
                arena.give(lease);
            }
        }
    }
}

//! What is on its way to the peer: replies gather in batches, one of which is being sent.
//!
//! Batches are bounded, because a send is over only when all of it went out: the size of a batch
//! and the patience with it say how slow a peer may be.

use std::collections::VecDeque;

use crate::engine::request::Stored;
use crate::engine::units::{ByteLen, Span};
use crate::host::SendList;
use crate::host::memory::Lease;

/// A batch that holds this much takes nothing more, and no piece of it is longer; so a batch is
/// less than twice as long, a map left out.
const BATCH_BYTES: ByteLen = ByteLen::new(2 << 20);

#[derive(Default)]
struct Batch {
    list: SendList,
    /// Memory that is free again when this batch and those before it are sent.
    leases: Vec<Lease>,
}

/// The replies of a connection.
#[derive(Default)]
pub(super) struct Outgoing {
    full: VecDeque<Batch>,
    filling: Batch,
    /// Bytes of the lists' own that wait in `full`.
    full_own_len: usize,
    sending: bool,
    muted: bool,
    /// The memory of the batch being sent.
    sent_leases: Vec<Lease>,
    /// A list whose buffers wait to be used again.
    spare: SendList,
}

impl Outgoing {
    /// Whether nothing waits and nothing is being sent.
    pub(super) fn is_idle(&self) -> bool {
        !self.sending && self.filling.list.is_empty() && self.full.is_empty()
    }

    /// Whether replies wait for the send under way.
    pub(super) fn is_behind(&self) -> bool {
        self.sending && !(self.filling.list.is_empty() && self.full.is_empty())
    }

    /// Bytes of replies, data left out, that wait to be sent.
    pub(super) fn own_len(&self) -> usize {
        self.full_own_len + self.filling.list.own_len()
    }

    /// Whether memory waits for the peer.
    pub(super) fn holds_leases(&self) -> bool {
        !self.sent_leases.is_empty() || !self.filling.leases.is_empty() || !self.full.is_empty()
    }

    pub(super) fn push_bytes(&mut self, bytes: &[u8]) {
        if self.muted {
            return;
        }
        self.make_room();
        self.filling.list.push_bytes(bytes);
    }

    pub(super) fn push_span(&mut self, span: Span) {
        if self.muted {
            return;
        }
        let mut skip = ByteLen::ZERO;
        while skip < span.bytes() {
            self.make_room();
            let len = (span.bytes() - skip).min(BATCH_BYTES);
            self.filling.list.push_span(span.part(skip, len));
            skip += len;
        }
    }

    pub(super) fn push_stored(&mut self, stored: Stored) {
        if self.muted {
            return;
        }
        let mut skip = ByteLen::ZERO;
        while skip < stored.len {
            self.make_room();
            let len = (stored.len - skip).min(BATCH_BYTES);
            self.filling.list.push_stored(Stored { file: stored.file, at: stored.at + skip, len });
            skip += len;
        }
    }

    pub(super) fn push_zeroes(&mut self, len: ByteLen) {
        if self.muted {
            return;
        }
        let mut left = len;
        while !left.is_zero() {
            self.make_room();
            let some = left.min(BATCH_BYTES);
            self.filling.list.push_zeroes(some);
            left = left - some;
        }
    }

    /// Keeps memory until all that was pushed is sent.
    pub(super) fn keep(&mut self, lease: Lease) {
        self.filling.leases.push(lease);
    }

    fn make_room(&mut self) {
        if self.filling.list.total() >= BATCH_BYTES {
            let next = Batch { list: std::mem::take(&mut self.spare), leases: Vec::new() };
            let full = std::mem::replace(&mut self.filling, next);
            self.full_own_len += full.list.own_len();
            self.full.push_back(full);
        }
    }

    /// The next batch to send, when none is being sent.
    pub(super) fn next(&mut self) -> Option<SendList> {
        if self.sending {
            return None;
        }
        let list = if let Some(mut batch) = self.full.pop_front() {
            self.full_own_len -= batch.list.own_len();
            self.sent_leases.append(&mut batch.leases);
            batch.list
        } else if self.filling.list.is_empty() {
            return None;
        } else {
            self.sent_leases.append(&mut self.filling.leases);
            std::mem::replace(&mut self.filling.list, std::mem::take(&mut self.spare))
        };
        self.sending = true;
        Some(list)
    }

    /// A batch was sent, or will never be: its list comes back, its memory is free.
    pub(super) fn sent(&mut self, list: SendList) -> Vec<Lease> {
        self.sending = false;
        self.spare = list;
        self.spare.clear();
        std::mem::take(&mut self.sent_leases)
    }

    /// Nobody takes replies any more: what waits is forgotten, and so is what comes. Nothing may
    /// be under way. The memory that is kept is to be taken by [`Self::take_leases`].
    pub(super) fn mute(&mut self) {
        debug_assert!(!self.sending, "what is being sent comes back by itself");
        self.muted = true;
        self.filling.list.clear();
        self.full_own_len = 0;
        for mut batch in self.full.drain(..) {
            self.filling.leases.append(&mut batch.leases);
        }
    }

    pub(super) const fn is_muted(&self) -> bool {
        self.muted
    }

    /// All memory that is kept; nothing is sent any more.
    pub(super) fn take_leases(&mut self) -> Vec<Lease> {
        let mut leases = std::mem::take(&mut self.sent_leases);
        leases.append(&mut self.filling.leases);
        self.full.drain(..).for_each(|mut batch| leases.append(&mut batch.leases));
        leases
    }
}

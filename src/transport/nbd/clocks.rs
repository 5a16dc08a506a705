//! When a connection has waited long enough for its peer, and what happens then.

use std::time::{Duration, Instant};

use super::intake::Input;
use super::{Ending, NbdClient};
use crate::host::HangUp;
use crate::shard::Context;

impl NbdClient {
    /// When the next of the connection's patiences ends.
    pub(super) fn next_due(&self) -> Option<Instant> {
        if self.ending == Ending::Dead {
            return None;
        }
        let after = |since: Option<Instant>, limit: Duration| since?.checked_add(limit);
        let turn = match self.input {
            Input::Throttled { until, .. } => Some(until),
            _ => None,
        };
        let limits = &self.limits;
        [
            turn,
            after(self.sending_since, limits.send_stall),
            after(self.half_since(), limits.payload_stall),
            limits.idle.and_then(|limit| after(self.idle_since(), limit)),
            after(self.farewell_since, limits.payload_stall),
            self.lingers_until,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Cuts or closes the connection if it has been waited for long enough.
    pub(super) fn check_clocks(&mut self, cx: &Context<'_>) {
        let over = |since: Option<Instant>, limit: Duration| {
            since.is_some_and(|since| cx.now().saturating_duration_since(since) >= limit)
        };
        if self.lingers_until.is_some_and(|until| until <= cx.now()) {
            self.lingers_until = None;
        }
        if over(self.sending_since, self.limits.send_stall) {
            tracing::info!("a client does not take its replies, and is cut off");
            self.end(Ending::Dead);
        } else if over(self.half_since(), self.limits.payload_stall) {
            tracing::info!("a client stopped in the middle of a request, and is cut off");
            self.end(Ending::Dead);
        } else if self.limits.idle.is_some_and(|limit| over(self.idle_since(), limit)) {
            tracing::info!("a client was idle for long, and its connection is closed");
            self.end(Ending::Disconnecting);
        }
        if !matches!(self.input, Input::Throttled { .. }) {
            self.farewell_since = None;
            return;
        }
        // Nothing is received while a request waits for its turn, so nobody else would notice.
        match cx.hang_up() {
            HangUp::No => {}
            HangUp::Half => {
                self.farewell_since.get_or_insert(cx.now());
            }
            HangUp::Whole => self.end(Ending::Dead),
        }
        if over(self.farewell_since, self.limits.payload_stall) {
            self.end(Ending::Dead);
        }
    }

    /// Since when the rest of a header or payload has been due.
    fn half_since(&self) -> Option<Instant> {
        let half = match self.input {
            Input::Header => self.inbox.has_part(),
            Input::Payload { .. } | Input::Direct { .. } | Input::Skip { .. } => true,
            Input::Throttled { .. } | Input::Stalled { .. } => false,
        };
        self.receiving_since.filter(|_| half)
    }

    /// Since when nothing has happened, and nothing is left to do.
    fn idle_since(&self) -> Option<Instant> {
        let idle = self.receiving_since.is_some()
            && self.requests.is_empty()
            && self.out.is_idle()
            && matches!(self.input, Input::Header)
            && !self.inbox.has_part();
        self.active_at.filter(|_| idle)
    }
}

//! STARTTLS, and what a server says until it was used.
//!
//! TLS itself is the caller's. This module decides when it begins, and keeps both sides of that
//! moment apart: no byte and no agreement from before it counts behind it.

use super::{Handshake, State, Then};
use crate::violation::Violation;
use crate::wire::{HeaderFormat, option, option_reply};

/// Whether a connection may, or must, go on under TLS; the protocol's NOTLS, SELECTIVETLS and
/// FORCEDTLS. One connection keeps one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsOffer {
    /// There is no TLS.
    #[default]
    None,
    /// The client may start it; some exports may require it.
    Optional,
    /// Nothing else is answered before the client started it.
    Required,
}

impl Handshake {
    /// Goes on under TLS, after [`Progress::StartTls`](super::Progress::StartTls) and a successful
    /// TLS handshake of the caller's: what the client sends from now on comes out of it, and what
    /// is said goes into it.
    ///
    /// Everything agreed on before is forgotten, as if the client had only just sent its flags;
    /// the flags stay, and what was spent of the limits stays spent. At any other time this does
    /// nothing.
    pub fn secured(&mut self) {
        if !matches!(self.state, State::StartTls) {
            return;
        }
        self.state = State::Header;
        self.secure = true;
        self.structured = false;
        self.headers = HeaderFormat::Compact;
        self.selected = None;
        self.buffer = Vec::new();
        self.output = Vec::new();
    }

    /// Whether the client must start TLS before anything else.
    pub(super) fn awaits_tls(&self) -> bool {
        self.tls == TlsOffer::Required && !self.secure
    }

    /// Whether a client may be told that TLS is required: only where that is of use to it.
    pub(super) fn can_start_tls(&self) -> bool {
        self.tls != TlsOffer::None && !self.secure
    }

    /// What becomes of STARTTLS, by its header alone. Its data is never looked at.
    pub(super) fn judge_starttls(&self, length: u32) -> Then {
        if self.secure {
            return Then::Refuse(option_reply::ERR_INVALID, "TLS was started already");
        }
        if self.tls == TlsOffer::None {
            return Then::Refuse(option_reply::ERR_POLICY, "TLS is not offered here");
        }
        if length > 0 {
            return Then::Refuse(option_reply::ERR_INVALID, "STARTTLS carries no data");
        }
        Then::StartTls
    }

    /// Acknowledges STARTTLS. What follows it in the same input was sent in the clear by somebody
    /// who did not wait for the answer, perhaps not even the client: it must not be taken for the
    /// beginning of the secured conversation.
    pub(super) fn start_tls(&mut self, rest: &[u8]) -> Result<(), Violation> {
        self.acknowledge(option::STARTTLS)?;
        self.state = State::StartTls;
        if rest.is_empty() { Ok(()) } else { Err(Violation::PlainBehindStartTls) }
    }
}

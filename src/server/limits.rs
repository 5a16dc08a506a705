//! What clients may cost a server: every bound in one value, with its range.
//!
//! Refuses to be unbounded: there is no way to say "no limit" here but the idle time, because an
//! idle connection holds a slot and no memory of the disks.

use std::time::Duration;

use nbd::HandshakeLimits;

use crate::transport::nbd::ClientLimits;

/// The bounds of one server (section 5.4 of the security notes).
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections of the process. When they are taken, a new one waits in the backlog.
    pub connections: usize,
    /// Connections of one export, unless it has its own number. One more is refused (ERR_POLICY).
    pub per_export: usize,
    /// Connections of one listener that have not finished their handshake. One more ends the
    /// oldest of them.
    pub half_open: usize,
    /// From accepting a connection to the end of its handshake, TLS included.
    pub handshake_time: Duration,
    /// Options and bytes of one handshake.
    pub handshake: HandshakeLimits,
    /// What one connection may have in flight, and how long it may stand still.
    pub client: ClientLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            per_export: 64,
            half_open: 16,
            handshake_time: Duration::from_secs(10),
            handshake: HandshakeLimits::default(),
            client: ClientLimits::default(),
        }
    }
}

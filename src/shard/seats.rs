//! What a shard keeps of each client, and when clients are due.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::belfry::Bell;
use super::client::Client;
use super::mailbox::ExportKey;
use crate::host::SocketId;

/// A client that stays due is called this often and no more.
const LEAST_WAIT: Duration = Duration::from_millis(1);

/// What a client is reached by.
pub(super) enum Line {
    Socket(SocketId),
    Bell(Arc<Bell>),
}

pub(super) struct ClientSeat {
    pub(super) client: Box<dyn Client>,
    /// The place of its disk.
    pub(super) disk: usize,
    pub(super) export: ExportKey,
    pub(super) line: Line,
    /// Waits in the list of those to settle.
    pub(super) touched: bool,
    /// It is being closed; it hears of nothing but `closed`.
    pub(super) leaving: bool,
    /// The time it stands in the list of those due.
    pub(super) armed: Option<Instant>,
    /// Held for as long as the connection lives.
    pub(super) _guard: Box<dyn std::any::Any + Send>,
}

/// When clients are due: at most one entry for each.
#[derive(Debug, Default)]
pub(super) struct Dues {
    line: BTreeSet<(Instant, usize)>,
}

impl Dues {
    /// The earliest.
    pub(super) fn first(&self) -> Option<Instant> {
        self.line.first().map(|(at, _)| *at)
    }

    /// Takes the key of one whose time has come.
    pub(super) fn pop(&mut self, now: Instant) -> Option<usize> {
        let (at, _) = self.line.first()?;
        if *at > now { None } else { self.line.pop_first().map(|(_, key)| key) }
    }

    /// Sees to it that a client is called when it is due. One that became due later than it stands
    /// here is called too early once; so a timeout that is put off again and again costs nothing.
    pub(super) fn arm(&mut self, key: usize, seat: &mut ClientSeat, now: Instant) {
        let Some(due) = seat.client.due() else { return };
        let due = due.max(now + LEAST_WAIT);
        if seat.armed.is_some_and(|armed| armed <= due) {
            return;
        }
        self.disarm(key, seat);
        self.line.insert((due, key));
        seat.armed = Some(due);
    }

    /// Forgets a client.
    pub(super) fn disarm(&mut self, key: usize, seat: &mut ClientSeat) {
        if let Some(armed) = seat.armed.take() {
            self.line.remove(&(armed, key));
        }
    }
}

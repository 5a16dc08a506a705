//! What a shard keeps of each disk and each client, and when clients are due.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::client::Client;
use super::mailbox::{DiskTag, ExportKey};
use super::nudge::Bell;
use super::watch::Watches;
use crate::engine::Disk;
use crate::engine::effect::FileId;
use crate::host::SocketId;

/// A client that stays due is called this often and no more.
const LEAST_WAIT: Duration = Duration::from_millis(1);

pub(super) struct DiskSeat {
    pub(super) tag: DiskTag,
    pub(super) disk: Disk,
    /// Its files, in the host.
    pub(super) files: Vec<FileId>,
    /// Clients that use it.
    pub(super) clients: usize,
    /// Those of them that keep copies of its bytes.
    pub(super) watches: Watches,
    /// When metadata was first seen dirty.
    pub(super) dirty_since: Option<Instant>,
    /// The shard's own requests under way.
    pub(super) own: usize,
    /// Metadata is being committed because of its age.
    pub(super) committing: bool,
    /// The last such commit failed, so the next waits for its age.
    pub(super) commit_failed: bool,
    /// It is to go: what came of the commit that comes last.
    pub(super) last: Last,
    /// It is to go.
    pub(super) detach: Option<Detach>,
}

/// Told when a disk or the shard is gone, and what could not be made durable.
pub(super) type Farewell = oneshot::Sender<Result<(), String>>;

/// What is known of a disk that is to go.
pub(super) struct Detach {
    /// Until when its clients have time.
    pub(super) deadline: Instant,
    /// Who wants it to go.
    pub(super) answers: Vec<Farewell>,
}

/// How far the last commit of a disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Last {
    No,
    UnderWay,
    Over(Result<(), String>),
}

impl DiskSeat {
    pub(super) const fn new(tag: DiskTag, disk: Disk, files: Vec<FileId>) -> Self {
        Self {
            tag,
            disk,
            files,
            clients: 0,
            watches: Watches::new(),
            dirty_since: None,
            own: 0,
            committing: false,
            commit_failed: false,
            last: Last::No,
            detach: None,
        }
    }

    /// Whether nothing of it is in flight.
    pub(super) fn is_quiet(&self) -> bool {
        self.own == 0
            && self.disk.in_flight() == 0
            && self.disk.effects_in_flight() == 0
            && !self.disk.has_output()
    }
}

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

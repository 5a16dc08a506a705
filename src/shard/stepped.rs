//! A shard without a thread, over a host that follows a script: whoever drives it decides when a
//! turn of its loop is taken and what time it is. For tests that must repeat themselves exactly.
//!
//! Refuses to do anything the real loop does not: a turn is a turn of [`Shard`].

use std::io;
use std::time::{Duration, Instant};

use super::disks::DiskSeat;
use super::mailbox::{Mailbox, unstarted};
use super::run::Shard;
use crate::host::memory::{Arena, ArenaSize};
use crate::host::sim::script::ScriptHost;
use crate::host::{Aio, Host};

/// A shard that is stepped by hand.
pub struct Stepped {
    shard: Shard,
    done: bool,
}

impl Stepped {
    /// A shard over memory of this size, whose host follows `seed`. Its mailbox works as always;
    /// what is posted is read in the next turn.
    ///
    /// # Errors
    /// When no memory is to be had.
    pub fn new(size: ArenaSize, drain_limit: Duration, seed: u64) -> io::Result<(Mailbox, Self)> {
        let arena = Arena::new(size)?;
        let host = Host::Script(Box::new(ScriptHost::new(&arena, seed)?));
        let (mailbox, shard) = unstarted(host, arena, drain_limit);
        Ok((mailbox, Self { shard, done: false }))
    }

    /// The same over a ring of this machine, to count what turns cost. There is no script then.
    ///
    /// # Errors
    /// When no memory or no ring is to be had.
    pub fn over_ring(size: ArenaSize, drain_limit: Duration) -> io::Result<(Mailbox, Self)> {
        let arena = Arena::new(size)?;
        let (host, _) = Host::new(Aio::Uring, &arena)?;
        let (mailbox, shard) = unstarted(host, arena, drain_limit);
        Ok((mailbox, Self { shard, done: false }))
    }

    /// Takes one turn: what the host has to tell is handed out as seen `now`. True when the shard
    /// has ended; later turns do nothing.
    ///
    /// # Errors
    /// When the host cannot tell any more.
    pub fn turn(&mut self, now: Instant) -> io::Result<bool> {
        if !self.done {
            let mut events = Vec::new();
            self.shard.host.wait(Some(Duration::ZERO), &mut events)?;
            self.done = self.shard.turn(&mut events, now);
        }
        Ok(self.done)
    }

    /// The host.
    pub fn script(&mut self) -> &mut ScriptHost {
        self.shard.host.script().expect("it was made with such a host")
    }

    /// When the loop would look again, if nothing happens before.
    #[must_use]
    pub fn next_look(&self) -> Option<Instant> {
        self.shard.next_look()
    }

    /// Connections that are not closed.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.shard.clients.len()
    }

    /// Leases that are out.
    #[must_use]
    pub fn lent(&self) -> usize {
        self.shard.arena.lent()
    }

    /// Requests at disks, and operations at the host, that are not over.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        let at_disk =
            |seat: &DiskSeat| seat.disk.in_flight() + seat.disk.effects_in_flight() + seat.own;
        self.shard.disks.iter().map(at_disk).sum::<usize>() + self.shard.host.in_flight()
    }
}

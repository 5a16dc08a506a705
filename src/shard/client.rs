//! What a shard asks of those who use its disks, and what it offers them.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use super::stalled::{Class, Stalled};
use super::watch::{Changes, Watch, Watches};
use crate::engine::Disk;
use crate::engine::effect::IoError;
use crate::engine::request::{Answer, Fault, Request, RequestId};
use crate::engine::units::ByteLen;
use crate::host::inlet::Asked;
use crate::host::memory::{Arena, Lease};
use crate::host::{HangUp, Host, ReceiveInto, SendList, SocketId};

/// Whether a client goes on after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on.
    Stay,
    /// It is done: nothing of its is in flight any more, and its socket may be closed.
    Leave,
}

/// A connection to one disk, as the shard drives it. Every call may start I/O through the context.
pub trait Client: Send {
    /// It was added to the shard, with its socket.
    fn start(&mut self, cx: &mut Context<'_>) -> Fate;

    /// Somebody used its [`Nudge`](super::Nudge). Only a client without a socket has one.
    fn nudged(&mut self, cx: &mut Context<'_>) -> Fate {
        let _ = cx;
        Fate::Stay
    }

    /// A [`Reader`](super::Reader) of the same shard has something for it; what that is, the two
    /// agree on. What it does not take stays where it is.
    fn handed(&mut self, cx: &mut Context<'_>, parcel: &mut dyn Any) -> Fate {
        let _ = (cx, parcel);
        Fate::Stay
    }

    /// A receive is over. A client without a socket never hears of one.
    fn received(
        &mut self,
        _cx: &mut Context<'_>,
        _into: ReceiveInto,
        _result: Result<u32, IoError>,
    ) -> Fate {
        Fate::Stay
    }

    /// A send is over. A client without a socket never hears of one.
    fn sent(
        &mut self,
        _cx: &mut Context<'_>,
        _list: SendList,
        _result: Result<(), IoError>,
    ) -> Fate {
        Fate::Stay
    }

    /// The disk answered the request submitted as `slot`.
    fn replied(&mut self, cx: &mut Context<'_>, slot: u32, result: Result<Answer, Fault>) -> Fate;

    /// All events of a batch were given out: a good moment to send what has gathered.
    fn settle(&mut self, cx: &mut Context<'_>) -> Fate;

    /// Memory came free after `cx.take` had refused.
    fn unstall(&mut self, cx: &mut Context<'_>) -> Fate;

    /// When [`Self::tick`] is to be called, if nothing else happens before. Asked after every batch
    /// of events in which the client was called.
    fn due(&self) -> Option<Instant>;

    /// The time it was due has come, or a little more.
    fn tick(&mut self, cx: &mut Context<'_>) -> Fate;

    /// Its export or the server is going away: finish what is in flight, then leave. May come more
    /// than once, and instead of `start`.
    fn drain(&mut self, cx: &mut Context<'_>) -> Fate;

    /// Since when the peer has owed bytes, or the reading of bytes, that lent memory waits for.
    fn owes_since(&self) -> Option<Instant>;

    /// The connection is over, whatever is in flight: leave as soon as the disk has answered.
    fn cut(&mut self, cx: &mut Context<'_>) -> Fate;

    /// The socket is closed and the kernel let go of all memory: give the leases back.
    fn closed(&mut self, arena: &mut Arena);
}

/// Memory set aside for watchers: as much as the largest request of a mount.
const SPARE_BYTES: u32 = 1 << 20;

/// What a client may use while it is being called.
pub struct Context<'a> {
    pub(super) host: &'a mut Host,
    pub(super) arena: &'a mut Arena,
    pub(super) disk: &'a mut Disk,
    pub(super) socket: Option<SocketId>,
    pub(super) key: u32,
    pub(super) now: Instant,
    pub(super) stalled: &'a mut Stalled,
    pub(super) freed: &'a mut bool,
    pub(super) refused: &'a mut bool,
    pub(super) hurry: &'a mut bool,
    pub(super) place: usize,
    pub(super) watches: &'a mut Watches,
    pub(super) absent: &'a mut usize,
    pub(super) changes: &'a mut Changes,
}

impl Context<'_> {
    /// The time, as of this batch of events: costs no clock.
    #[must_use]
    pub const fn now(&self) -> Instant {
        self.now
    }

    /// Whether the peer has hung up, although what it sent may not have been received yet.
    #[must_use]
    pub fn hang_up(&self) -> HangUp {
        self.socket.map_or(HangUp::No, |socket| self.host.hang_up(socket))
    }

    /// Submits a request; the answer comes as `replied` with the same slot.
    pub fn submit(&mut self, slot: u32, request: Request) {
        let id = RequestId(u64::from(self.key) << 32 | u64::from(slot));
        if self.watches.is_empty() {
            return self.disk.submit(id, request);
        }
        if let Some(request) = self.changes.admit(self.place, self.watches, id, request) {
            self.disk.submit(id, request);
        }
    }

    /// Whether the client acts for somebody who is not there: then it is nobody who could ask for
    /// what is to be done when the last client has gone.
    pub(super) fn note_absence(&mut self, was: bool, is: bool) {
        *self.absent = *self.absent + usize::from(is) - usize::from(was);
    }

    /// From now on changes of the disk by other clients wait until this one gave up its copies of
    /// the bytes, until it leaves.
    pub fn watch(&mut self, watch: Arc<dyn Watch>) {
        self.watches.push((self.key, watch));
        self.arena.want_spare(SPARE_BYTES);
    }

    /// Takes memory. `None`: there is none now, and `unstall` will come when there may be.
    pub fn take(&mut self, len: u32) -> Option<Lease> {
        // Whoever waits already comes first, or large requests would starve.
        let watches = self.watches.iter().any(|(watcher, _)| *watcher == self.key);
        let class = if watches { Class::Watcher } else { Class::of(self.arena, len) };
        let may_take = self.stalled.front(class).is_none_or(|first| first == self.key);
        let large_wait = self.stalled.front(Class::Large).is_some();
        let lease = match class {
            _ if !may_take => None,
            // Whoever holds the rest may be waiting for this one.
            Class::Watcher => self.arena.take(len).or_else(|| self.arena.take_spare(len)),
            Class::Small if large_wait => self.arena.take_apart(len),
            _ => self.arena.take(len),
        };
        if lease.is_some() {
            // Its turn is over: what it wants next waits behind the others.
            *self.freed |= self.stalled.leave(self.key);
        } else {
            *self.refused = true;
            self.stalled.wait(self.key, class);
        }
        lease
    }

    /// Takes memory only if nobody waits for any, and nothing that is set aside.
    pub fn take_idle(&mut self, len: u32) -> Option<Lease> {
        if self.stalled.is_empty() { self.arena.take(len) } else { None }
    }

    /// Gives memory back; nothing in flight may name it (I6).
    pub fn give(&mut self, lease: Lease) {
        self.arena.give(lease);
        *self.freed = true;
    }

    /// Answers what a reader has handed over from its inlet: an error number or, with none, bytes
    /// at the start of the payload.
    pub fn answer(&mut self, asked: Asked, errno: i32, payload_bytes: u32) {
        self.host.answer(asked, errno, payload_bytes);
    }

    /// The bytes behind spans.
    pub fn arena(&mut self) -> &mut Arena {
        self.arena
    }

    /// The disk's size now.
    pub fn disk_size(&self) -> ByteLen {
        self.disk.size()
    }

    /// Starts a receive on the client's socket. One at a time.
    pub fn receive(&mut self, into: ReceiveInto) {
        self.host.receive(self.socket.expect("only clients with a socket receive"), into);
    }

    /// Something is to be done as soon as the send under way is over: until the next wait has
    /// ended, `sent` comes without delay. Who does not say so each time may hear of it only when
    /// something else happens.
    pub const fn hurry(&mut self) {
        *self.hurry = true;
    }

    /// Starts a send on the client's socket. One at a time.
    pub fn send(&mut self, list: SendList) {
        self.host.send(self.socket.expect("only clients with a socket send"), list);
    }
}

//! The loop of a shard: wait, hand out what happened, let disks and clients go on, send.

use std::collections::VecDeque;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use slab::Slab;
use tokio::sync::oneshot;

use super::client::{Client, Context, Fate};
use super::mailbox::{DiskTag, Message, NewClient};
use crate::engine::Disk;
use crate::engine::request::{Answer, Fault, Request, RequestId};
use crate::host::memory::Arena;
use crate::host::{Event, Host, SocketId};

/// Metadata older than this is committed without being asked for.
const COMMIT_AGE: Duration = Duration::from_secs(30);
/// The key of requests the shard makes for itself.
const OWN: u32 = u32::MAX;
/// How long clients may take to finish when the server goes away.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// How long a peer may keep memory waiting that others want.
const OWING_LIMIT: Duration = Duration::from_secs(15);

struct DiskSeat {
    disk: Disk,
    /// When metadata was first seen dirty.
    dirty_since: Option<Instant>,
    /// The shard's own flushes under way: at the end there may be a second one.
    flushing: u32,
    /// Why the last own flush failed.
    flush_fault: Option<String>,
}

struct ClientSeat {
    client: Box<dyn Client>,
    disk: usize,
    socket: SocketId,
    /// Waits in the list of those to settle.
    touched: bool,
    /// Its socket is being closed; it hears of nothing but `closed`.
    leaving: bool,
    /// Held for as long as the connection lives.
    _guard: Box<dyn std::any::Any + Send>,
}

enum Phase {
    Serving,
    /// Clients finish until the deadline.
    Draining(Instant, oneshot::Sender<Result<(), String>>),
    /// Disks are being committed.
    Flushing(oneshot::Sender<Result<(), String>>),
}

/// A running shard.
pub(super) struct Shard {
    host: Host,
    arena: Arena,
    disks: Slab<DiskSeat>,
    clients: Slab<ClientSeat>,
    /// Who owns a socket.
    sockets: Vec<Option<usize>>,
    touched: Vec<usize>,
    stalled: VecDeque<u32>,
    /// Memory was given back since the stalled last tried.
    freed: bool,
    /// The client called last was refused memory.
    refused: bool,
    replies: Vec<(u32, u32, Result<Answer, Fault>)>,
    messages: Receiver<Message>,
    phase: Phase,
}

impl Shard {
    pub(super) fn new(host: Host, arena: Arena, messages: Receiver<Message>) -> Self {
        Self {
            host,
            arena,
            disks: Slab::new(),
            clients: Slab::new(),
            sockets: Vec::new(),
            touched: Vec::new(),
            stalled: VecDeque::new(),
            freed: false,
            refused: false,
            replies: Vec::new(),
            messages,
            phase: Phase::Serving,
        }
    }

    pub(super) fn run(mut self) {
        let mut events = Vec::new();
        loop {
            self.host
                .wait(self.timeout(), &mut events)
                .expect("a host that cannot wait any more has lost what is in flight");
            for event in events.drain(..) {
                self.dispatch(event);
            }
            self.pump();
            self.age();
            self.cut_off_hoarders();
            if self.advance_shutdown() {
                return;
            }
        }
    }

    fn timeout(&self) -> Option<Duration> {
        match &self.phase {
            Phase::Draining(..) => Some(Duration::from_millis(100)),
            Phase::Flushing(_) => None,
            Phase::Serving => {
                let dirty = self.disks.iter().any(|(_, seat)| seat.dirty_since.is_some());
                (dirty || !self.stalled.is_empty()).then(|| Duration::from_secs(1))
            }
        }
    }

    fn dispatch(&mut self, event: Event) {
        match event {
            Event::Effect { tag, id, outcome } => {
                self.disks[tag as usize].disk.complete(id, outcome);
            }
            Event::Received { socket, into, result } => {
                self.call(socket, |client, cx| client.received(cx, into, result));
            }
            Event::Sent { socket, list, result } => {
                self.call(socket, |client, cx| client.sent(cx, list, result));
            }
            Event::Closed { socket } => self.closed(socket),
            Event::Woken => self.read_mail(),
        }
    }

    fn read_mail(&mut self) {
        while let Ok(message) = self.messages.try_recv() {
            match message {
                Message::Attach(attachment, answer) => {
                    let host = &mut self.host;
                    let made = attachment(&mut |fd, mode| host.add_file(fd, mode));
                    let tag = made.map(|disk| {
                        DiskTag(self.disks.insert(DiskSeat {
                            disk,
                            dirty_since: None,
                            flushing: 0,
                            flush_fault: None,
                        }) as u32)
                    });
                    // Nobody waits any more: the disk stays unused until the end.
                    let _ = answer.send(tag);
                }
                Message::Connect(new) => self.connect(new),
                Message::Shutdown(answer) => {
                    self.phase = Phase::Draining(Instant::now() + DRAIN_LIMIT, answer);
                    self.drain_clients();
                }
            }
        }
    }

    fn connect(&mut self, new: NewClient) {
        let disk = new.disk.0 as usize;
        if !self.disks.contains(disk) {
            tracing::warn!(disk, "a client wants a disk that is gone");
            return;
        }
        let socket = match self.host.add_socket(new.socket) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(%error, "a client's socket cannot be used");
                return;
            }
        };
        let client = new.client;
        let seat =
            ClientSeat { client, disk, socket, touched: false, leaving: false, _guard: new.guard };
        let key = self.clients.insert(seat);
        let index = socket.0 as usize;
        if self.sockets.len() <= index {
            self.sockets.resize(index + 1, None);
        }
        self.sockets[index] = Some(key);
        let draining = !matches!(self.phase, Phase::Serving);
        self.call_key(key, |client, cx| if draining { client.drain(cx) } else { client.start(cx) });
    }

    fn call(
        &mut self,
        socket: SocketId,
        act: impl FnOnce(&mut dyn Client, &mut Context<'_>) -> Fate,
    ) {
        if let Some(Some(key)) = self.sockets.get(socket.0 as usize).copied() {
            self.call_key(key, act);
        }
    }

    fn call_key(
        &mut self,
        key: usize,
        act: impl FnOnce(&mut dyn Client, &mut Context<'_>) -> Fate,
    ) {
        let Some(seat) = self.clients.get_mut(key) else { return };
        if seat.leaving {
            return;
        }
        let mut cx = Context {
            host: &mut self.host,
            arena: &mut self.arena,
            disk: &mut self.disks[seat.disk].disk,
            socket: seat.socket,
            key: key as u32,
            stalled: &mut self.stalled,
            freed: &mut self.freed,
            refused: &mut self.refused,
        };
        let fate = act(seat.client.as_mut(), &mut cx);
        if fate == Fate::Leave {
            seat.leaving = true;
            self.host.close_socket(seat.socket);
        } else if !seat.touched {
            seat.touched = true;
            self.touched.push(key);
        }
    }

    /// Gives a disk's answer to a client. One that is leaving only takes its memory back.
    fn answer(&mut self, key: usize, slot: u32, result: Result<Answer, Fault>) {
        self.call_key(key, |client, cx| client.replied(cx, slot, result));
    }

    fn closed(&mut self, socket: SocketId) {
        let Some(key) = self.sockets.get_mut(socket.0 as usize).and_then(Option::take) else {
            return;
        };
        let mut seat = self.clients.remove(key);
        seat.client.closed(&mut self.arena);
        self.stalled.retain(|other| *other as usize != key);
        self.touched.retain(|other| *other != key);
        self.freed = true;
    }

    /// Lets disks and clients go on until nothing moves any more.
    fn pump(&mut self) {
        loop {
            while self.disks.iter().any(|(_, seat)| seat.disk.has_output()) {
                self.pump_disks();
            }
            for key in std::mem::take(&mut self.touched) {
                self.call_key(key, |client, cx| client.settle(cx));
                if let Some(seat) = self.clients.get_mut(key) {
                    seat.touched = false;
                }
            }
            let moving = self.disks.iter().any(|(_, seat)| seat.disk.has_output());
            if !moving && !self.unstall() {
                return;
            }
        }
    }

    fn pump_disks(&mut self) {
        let mut replies = std::mem::take(&mut self.replies);
        for (tag, seat) in &mut self.disks {
            while let Some(effect) = seat.disk.poll_effect() {
                self.host.start(tag as u32, effect);
            }
            while let Some(reply) = seat.disk.poll_reply() {
                let (key, slot) = ((reply.id.0 >> 32) as u32, reply.id.0 as u32);
                if key == OWN {
                    seat.flushing -= 1;
                    seat.flush_fault = reply.result.err().map(|fault| fault.to_string());
                    if let Some(fault) = &seat.flush_fault {
                        tracing::warn!(%fault, "a commit failed");
                    }
                } else {
                    replies.push((key, slot, reply.result));
                }
            }
        }
        for (key, slot, result) in replies.drain(..) {
            self.answer(key as usize, slot, result);
        }
        self.replies = replies;
    }

    /// Memory came free: whoever waited longest tries first. True when somebody got some.
    fn unstall(&mut self) -> bool {
        if !std::mem::take(&mut self.freed) {
            return false;
        }
        let Some(key) = self.stalled.front().copied() else { return false };
        // It stays in front while it tries, so that it may take.
        self.refused = false;
        self.call_key(key as usize, |client, cx| client.unstall(cx));
        if !self.refused {
            self.stalled.retain(|other| *other != key);
        } else if self.stalled.front() == Some(&key) {
            return false;
        }
        self.freed = true;
        true
    }

    /// Commits metadata that has been dirty for long.
    fn age(&mut self) {
        for (_, seat) in &mut self.disks {
            if !seat.disk.has_dirty_metadata() || seat.disk.stopped().is_some() {
                seat.dirty_since = None;
                continue;
            }
            let since = *seat.dirty_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= COMMIT_AGE && seat.flushing == 0 {
                seat.flushing += 1;
                seat.dirty_since = None;
                seat.disk.submit(RequestId(u64::from(OWN) << 32), Request::Flush);
            }
        }
        if self.disks.iter().any(|(_, seat)| seat.disk.has_output()) {
            self.pump();
        }
    }

    /// While somebody waits for memory, nobody may keep some for a peer that has long owed us.
    fn cut_off_hoarders(&mut self) {
        if self.stalled.is_empty() {
            return;
        }
        let late = |seat: &ClientSeat| {
            !seat.leaving && seat.client.owes_since().is_some_and(|at| at.elapsed() >= OWING_LIMIT)
        };
        let keys: Vec<usize> =
            self.clients.iter().filter(|(_, seat)| late(seat)).map(|(key, _)| key).collect();
        for key in keys {
            tracing::warn!("a client held memory that others wait for, and is cut off");
            self.call_key(key, |client, cx| client.cut(cx));
        }
    }

    fn drain_clients(&mut self) {
        let keys: Vec<usize> = self.clients.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.call_key(key, |client, cx| client.drain(cx));
        }
        self.pump();
    }

    /// Takes the next step of a shutdown; true when the shard is done.
    fn advance_shutdown(&mut self) -> bool {
        match std::mem::replace(&mut self.phase, Phase::Serving) {
            Phase::Serving => false,
            Phase::Draining(deadline, answer) => {
                if !self.clients.is_empty() {
                    if Instant::now() >= deadline {
                        self.cut_off_clients();
                    }
                    self.phase = Phase::Draining(deadline, answer);
                    return false;
                }
                self.phase = Phase::Flushing(answer);
                for (_, seat) in &mut self.disks {
                    seat.flushing += 1;
                    seat.disk.submit(RequestId(u64::from(OWN) << 32), Request::Flush);
                }
                self.pump();
                self.advance_shutdown()
            }
            Phase::Flushing(answer) => {
                if self.disks.iter().any(|(_, seat)| seat.flushing > 0) {
                    self.phase = Phase::Flushing(answer);
                    return false;
                }
                let fault = self.disks.iter().find_map(|(_, seat)| seat.flush_fault.clone());
                let _ = answer.send(fault.map_or(Ok(()), Err));
                true
            }
        }
    }

    /// The clients that did not finish in time lose their connection. What they have at the disk
    /// is waited for all the same: it names their memory (I6).
    fn cut_off_clients(&mut self) {
        let keys: Vec<usize> = self.clients.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.call_key(key, |client, cx| client.cut(cx));
        }
        self.pump();
    }
}

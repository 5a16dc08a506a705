//! The loop of a shard: wait, hand out what happened, let disks and clients go on, send.

use std::io;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use slab::Slab;

use super::belfry::Belfry;
use super::client::{Client, Context, Fate};
use super::disks::{DiskSeat, Disks};
use super::ending::{Drain, Phase};
use super::line::GuestEnd;
use super::mailbox::{Attachment, DiskTag, Link, Message, NewClient};
use super::nudge::Nudge;
use super::own::{OWN, OwnRequests};
use super::reader::ReaderSeat;
use super::seats::{ClientSeat, Dues, Line};
use super::stalled::{Class, Stalled};
use super::watch::{Changes, Next};
use crate::engine::request::{Answer, Fault, Request, RequestId};
use crate::host::memory::Arena;
use crate::host::{Event, Host, SocketId};

/// How long a peer may keep memory waiting that others want.
const OWING_LIMIT: Duration = Duration::from_secs(15);
/// How often peers that keep memory, and what was left over for another turn, are looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// So often what was done at once may lead to more of the kind in one turn, before the system is
/// asked what others want.
const READY_ROUNDS: usize = 4;

/// A running shard.
pub(super) struct Shard {
    pub(super) host: Host,
    pub(super) arena: Arena,
    pub(super) disks: Disks,
    pub(super) clients: Slab<ClientSeat>,
    pub(super) readers: Slab<ReaderSeat>,
    pub(super) own: OwnRequests,
    pub(super) drains: Vec<Drain>,
    pub(super) phase: Phase,
    /// How long clients may take to finish when they must go.
    pub(super) drain_limit: Duration,
    /// The time of this batch of events.
    pub(super) now: Instant,
    /// Memory was given back since the stalled last tried.
    pub(super) freed: bool,
    dues: Dues,
    /// Disks attached so far; their tags are never used again.
    attached: u32,
    /// Who owns a socket.
    sockets: Vec<Option<usize>>,
    touched: Vec<usize>,
    stalled: Stalled,
    /// When all clients were last looked at for what they keep.
    looked: Instant,
    /// The client called last was refused memory.
    refused: bool,
    /// A client wants to hear at once of the end of its send.
    hurry: bool,
    replies: Vec<(usize, RequestId, Result<Answer, Fault>)>,
    /// What guests leave to their owners.
    elsewhere: Vec<(usize, RequestId, Request)>,
    /// Changes of disks that somebody keeps copies of.
    changes: Changes,
    /// Local clients that left and were not told yet that they are closed.
    left: Vec<usize>,
    messages: Receiver<Message>,
    belfry: Belfry,
}

impl Shard {
    pub(super) fn new(
        host: Host,
        arena: Arena,
        messages: Receiver<Message>,
        belfry: Belfry,
        drain_limit: Duration,
    ) -> Self {
        let waker = host.wake_handle();
        Self {
            host,
            arena,
            disks: Disks::default(),
            clients: Slab::new(),
            readers: Slab::new(),
            own: OwnRequests::default(),
            drains: Vec::new(),
            phase: Phase::Serving,
            drain_limit,
            now: Instant::now(),
            freed: false,
            dues: Dues::default(),
            attached: 0,
            sockets: Vec::new(),
            touched: Vec::new(),
            stalled: Stalled::default(),
            looked: Instant::now(),
            refused: false,
            hurry: false,
            replies: Vec::new(),
            elsewhere: Vec::new(),
            changes: Changes::new(waker),
            left: Vec::new(),
            messages,
            belfry,
        }
    }

    pub(super) fn run(mut self) {
        let mut events = Vec::new();
        loop {
            let timeout =
                if self.belfry.may_sleep() { self.timeout() } else { Some(Duration::ZERO) };
            if self.may_defer_sent() {
                self.host.defer_sent();
            }
            self.host
                .wait(timeout, &mut events)
                .expect("a host that cannot wait any more has lost what is in flight");
            self.belfry.is_up();
            if self.turn(&mut events, Instant::now()) {
                return self.end_readers();
            }
        }
    }

    /// One turn of the loop: what happened, as seen `now`, and all that follows at once. True when
    /// the shard is done.
    pub(super) fn turn(&mut self, events: &mut Vec<Event>, now: Instant) -> bool {
        self.now = now;
        for event in events.drain(..) {
            self.dispatch(event);
        }
        for key in self.belfry.answer() {
            if !self.nudge_reader(key) && !self.hear_line(key) {
                self.call_key(key, |client, cx| client.nudged(cx));
            }
        }
        self.call_the_due();
        // Answers first: whoever waits for them goes on while the next requests are read.
        self.pump();
        if self.read_on() {
            self.pump();
        }
        self.pump_ready(events);
        self.age();
        self.cut_off_hoarders();
        self.advance_ends()
    }

    /// Whether nobody waits for the end of a send: for the memory it names, or to leave.
    fn may_defer_sent(&mut self) -> bool {
        let hurry = std::mem::take(&mut self.hurry);
        let ends = !self.is_serving() || !self.drains.is_empty();
        let goes = !self.disks.going().is_empty();
        !hurry && !ends && !goes && self.stalled.is_empty() && !self.reads_wait()
    }

    /// What was done at once is answered before anything is asked of the system.
    fn pump_ready(&mut self, events: &mut Vec<Event>) {
        for _ in 0..READY_ROUNDS {
            self.host.take_ready(events);
            if events.is_empty() {
                return;
            }
            for event in events.drain(..) {
                self.dispatch(event);
            }
            self.pump();
        }
    }

    fn timeout(&self) -> Option<Duration> {
        if self.has_eager_readers() {
            return Some(Duration::ZERO);
        }
        Some(self.next_look()?.saturating_duration_since(Instant::now()))
    }

    /// When the next turn is due, if nothing happens before.
    pub(super) fn next_look(&self) -> Option<Instant> {
        let again = self.disks.are_touched() || !self.stalled.is_empty();
        let look = again.then(|| self.now + LOOK_AGAIN);
        let times = [look, self.disks.next_due(), self.dues.first(), self.next_deadline()];
        times.into_iter().flatten().min()
    }

    fn dispatch(&mut self, event: Event) {
        match event {
            Event::Effect { tag, id, outcome } => {
                self.disks.touch(tag as usize).disk.complete(id, outcome);
            }
            Event::Received { socket, into, result } => {
                self.call(socket, |client, cx| client.received(cx, into, result));
            }
            Event::Sent { socket, list, result } => {
                self.call(socket, |client, cx| client.sent(cx, list, result));
            }
            Event::Closed { socket } => self.closed(socket),
            Event::Readable { poll } => self.readable(poll),
            Event::Asked { inlet } => self.asked(inlet),
            Event::Woken => {
                self.read_mail();
                self.go_on_with_changes();
            }
        }
    }

    fn read_mail(&mut self) {
        while let Ok(message) = self.messages.try_recv() {
            match message {
                // Nobody waits any more: the disk stays unused until the end.
                Message::Attach(attachment, line, answer) => {
                    drop(answer.send(self.attach(attachment, line)));
                }
                Message::Publish(tag, answer) => self.publish(tag, answer),
                Message::Connect(new) => self.connect(new),
                Message::Read(tag, extent, answer) => self.read(tag, extent, answer),
                Message::AddReader(new, answer) => drop(answer.send(self.add_reader(new))),
                Message::Drain(export, answer) => self.begin_drain(export, answer),
                Message::Detach(tag, answer) => self.begin_detach(tag, answer),
                Message::Flush(tag, answer) => self.flush(tag, answer),
                Message::Cut(tag, step) => self.take_step(tag, step),
                Message::Shutdown(answer) => self.begin_shutdown(answer),
            }
        }
    }

    fn attach(&mut self, attachment: Attachment, line: Option<GuestEnd>) -> io::Result<DiskTag> {
        if !self.is_serving() {
            return Err(io::Error::other("the server is going away"));
        }
        let attached = self.attached.checked_add(1);
        let attached = attached.ok_or_else(|| io::Error::other("no names for disks are left"))?;
        let (host, mut files) = (&mut self.host, Vec::new());
        let made = attachment(&mut |file| {
            let file = host.add_file(file)?;
            files.push(file);
            Ok(file)
        });
        match made {
            Ok(disk) => {
                let tag = DiskTag(std::mem::replace(&mut self.attached, attached));
                let place = self.disks.insert(tag, disk, files);
                if let Some(line) = line {
                    self.hang_line(place, line);
                }
                Ok(tag)
            }
            Err(error) => {
                files.into_iter().for_each(|file| self.host.remove_file(file));
                Err(error)
            }
        }
    }

    fn connect(&mut self, new: NewClient) {
        let Some(disk) = self.disks.place_of(new.disk) else {
            tracing::warn!(disk = new.disk.0, "a client wants a disk that is gone");
            return;
        };
        let line = match new.link {
            Link::Local(nudge) => Line::Bell(nudge.bell()),
            Link::Socket(socket) => match self.host.add_socket(socket) {
                Ok(socket) => Line::Socket(socket),
                Err(error) => {
                    tracing::warn!(%error, "a client's socket cannot be used");
                    return;
                }
            },
        };
        let seat = self.disks.touch(disk);
        seat.count_clients(seat.clients + 1);
        let draining = seat.detach().is_some() || self.is_draining(new.export);
        let key = self.clients.insert(ClientSeat {
            client: new.client,
            disk,
            export: new.export,
            line,
            touched: false,
            leaving: false,
            armed: None,
            _guard: new.guard,
        });
        match &self.clients[key].line {
            Line::Bell(bell) => bell.hang(key),
            Line::Socket(socket) => {
                let index = socket.0 as usize;
                if self.sockets.len() <= index {
                    self.sockets.resize(index + 1, None);
                }
                self.sockets[index] = Some(key);
            }
        }
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

    pub(super) fn call_key(
        &mut self,
        key: usize,
        act: impl FnOnce(&mut dyn Client, &mut Context<'_>) -> Fate,
    ) {
        let Some(seat) = self.clients.get_mut(key) else { return };
        if seat.leaving {
            return;
        }
        let DiskSeat { disk, watches, absent, .. } = self.disks.touch(seat.disk);
        let mut cx = Context {
            host: &mut self.host,
            arena: &mut self.arena,
            disk,
            place: seat.disk,
            watches,
            absent,
            changes: &mut self.changes,
            socket: match seat.line {
                Line::Socket(socket) => Some(socket),
                Line::Bell(_) => None,
            },
            key: key as u32,
            now: self.now,
            stalled: &mut self.stalled,
            freed: &mut self.freed,
            refused: &mut self.refused,
            hurry: &mut self.hurry,
        };
        let fate = act(seat.client.as_mut(), &mut cx);
        if fate == Fate::Leave {
            seat.leaving = true;
            match &seat.line {
                Line::Socket(socket) => self.host.close_socket(*socket),
                Line::Bell(bell) => {
                    bell.take_down();
                    self.left.push(key);
                }
            }
        } else if !seat.touched {
            seat.touched = true;
            self.touched.push(key);
        }
    }

    /// The client that a nudge of this shard calls.
    pub(super) fn key_behind(&self, nudge: &Nudge) -> Option<usize> {
        nudge.key_in(&self.belfry)
    }

    fn closed(&mut self, socket: SocketId) {
        let Some(key) = self.sockets.get_mut(socket.0 as usize).and_then(Option::take) else {
            return;
        };
        self.forget(key);
    }

    /// Lets a client go of which nothing is in flight.
    fn forget(&mut self, key: usize) {
        let mut seat = self.clients.remove(key);
        self.dues.disarm(key, &mut seat);
        let disk = self.disks.touch(seat.disk);
        disk.count_clients(disk.clients - 1);
        disk.watches.retain(|(watcher, _)| *watcher as usize != key);
        seat.client.closed(&mut self.arena);
        self.stalled.leave(key as u32);
        if seat.touched {
            self.touched.retain(|other| *other != key);
        }
        self.freed = true;
    }

    /// Lets disks and clients go on until nothing moves any more.
    pub(super) fn pump(&mut self) {
        loop {
            while self.disks.are_stirred() {
                self.pump_disks();
            }
            while let Some(key) = self.left.pop() {
                self.forget(key);
            }
            let mut touched = std::mem::take(&mut self.touched);
            for key in touched.drain(..) {
                self.call_key(key, |client, cx| client.settle(cx));
                if let Some(seat) = self.clients.get_mut(key) {
                    seat.touched = false;
                    self.dues.arm(key, seat, self.now);
                }
            }
            // Its room is used again.
            touched.append(&mut self.touched);
            self.touched = touched;
            let moving = self.disks.are_stirred() || !self.left.is_empty();
            // Who was refused more memory may have used some first.
            if !moving && !self.unstall() && !self.disks.are_stirred() {
                return;
            }
        }
    }

    fn pump_disks(&mut self) {
        let mut replies = std::mem::take(&mut self.replies);
        let mut elsewhere = std::mem::take(&mut self.elsewhere);
        let host = &mut self.host;
        self.disks.for_each_stirred(|place, disk| {
            while let Some(effect) = disk.poll_effect() {
                host.start(place as u32, effect);
            }
            while let Some(reply) = disk.poll_reply() {
                replies.push((place, reply.id, reply.result));
            }
            while let Some((id, request)) = disk.poll_elsewhere() {
                elsewhere.push((place, id, request));
            }
        });
        for (place, id, request) in elsewhere.drain(..) {
            self.hand_over(place, id, request);
        }
        self.elsewhere = elsewhere;
        for (place, id, result) in replies.drain(..) {
            let (key, slot) = ((id.0 >> 32) as u32, id.0 as u32);
            if key == OWN {
                self.own_answered(place, slot, result);
                continue;
            }
            let watches = &self.disks[place].watches;
            let passed = if self.changes.is_empty() {
                Some(result)
            } else {
                self.changes.pass(watches, id, result)
            };
            if let Some(result) = passed {
                self.call_key(key as usize, |client, cx| client.replied(cx, slot, result));
            }
        }
        self.replies = replies;
    }

    /// Lets changes go on whose copies were given up.
    fn go_on_with_changes(&mut self) {
        for (id, next) in self.changes.over() {
            match next {
                Next::Submit(disk, request) => self.disks.touch(disk).disk.submit(id, request),
                Next::Tell(result) => {
                    let (key, slot) = ((id.0 >> 32) as usize, id.0 as u32);
                    self.call_key(key, |client, cx| client.replied(cx, slot, result));
                }
            }
        }
    }

    /// Memory came free: whoever waited longest tries first. True when somebody got some.
    fn unstall(&mut self) -> bool {
        if !std::mem::take(&mut self.freed) {
            return false;
        }
        if self.start_reads() {
            self.freed = true;
            return true;
        }
        Class::ALL.into_iter().any(|class| self.unstall_first(class))
    }

    /// Whether the first of a queue got memory, or made way for the next.
    fn unstall_first(&mut self, class: Class) -> bool {
        let Some(key) = self.stalled.front(class) else { return false };
        // It stays in front while it tries, so that it may take.
        self.refused = false;
        self.call_key(key as usize, |client, cx| client.unstall(cx));
        if !self.refused {
            self.stalled.leave(key);
        } else if self.stalled.front(class) == Some(key) {
            return false;
        }
        self.freed = true;
        true
    }

    /// Calls the clients whose time has come.
    fn call_the_due(&mut self) {
        while let Some(key) = self.dues.pop(self.now) {
            if let Some(seat) = self.clients.get_mut(key) {
                seat.armed = None;
            }
            self.call_key(key, |client, cx| client.tick(cx));
        }
    }

    /// While somebody waits for memory, nobody may keep some for a peer that has long owed us.
    fn cut_off_hoarders(&mut self) {
        let now = self.now;
        let again = now.saturating_duration_since(self.looked) >= LOOK_AGAIN;
        if self.stalled.is_empty() || !again {
            return;
        }
        self.looked = now;
        let keys = self.keys_of(|seat| {
            let owing = seat.client.owes_since();
            !seat.leaving
                && owing.is_some_and(|since| now.saturating_duration_since(since) >= OWING_LIMIT)
        });
        for key in keys {
            tracing::warn!("a client held memory that others wait for, and is cut off");
            self.call_key(key, |client, cx| client.cut(cx));
        }
    }

    /// The keys of some clients.
    pub(super) fn keys_of(&self, which: impl Fn(&ClientSeat) -> bool) -> Vec<usize> {
        self.clients.iter().filter(|(_, seat)| which(seat)).map(|(key, _)| key).collect()
    }
}

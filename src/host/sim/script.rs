//! A host for a whole shard that follows a script: files and sockets live in memory, and nothing
//! moves but in the steps whoever drives it asks for, in an order its seed chooses.
//!
//! Refuses to wait, and to serve more than one disk at a time. A breach of the contract of
//! [`super::super::Host`] is a panic: this host exists to find those.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

use super::fs::SimFile;
use super::ground::Ground;
use super::host::{SimHost, Step};
use super::line::Line;
use super::rng::Rng;
use crate::engine::effect::{Effect, FileId};
use crate::host::memory::{Arena, Memory};
use crate::host::{Counters, Event, HangUp, ReceiveInto, SendList, SocketId, Waker};

pub use super::line::Leave;

/// A peer's end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerId(usize);

/// A host whose every move is asked for.
#[derive(Debug)]
pub struct ScriptHost {
    disk: SimHost,
    memory: Arc<Memory>,
    rng: Rng,
    waker: Waker,
    /// The disk whose effects are in flight.
    tag: u32,
    /// Whether the shard has a file open.
    open: Vec<bool>,
    lines: Vec<Line>,
    /// Which line a socket is.
    sockets: Vec<Option<usize>>,
    ready: Vec<Event>,
    longest_send: u64,
    counters: Counters,
}

/// What one step may move.
#[derive(Clone, Copy)]
enum Move {
    Disk,
    Receive(usize),
    Send(usize),
    Close(usize),
}

impl ScriptHost {
    /// A host on the memory of `arena`.
    ///
    /// # Errors
    /// What the system says to an eventfd.
    pub fn new(arena: &Arena, seed: u64) -> io::Result<Self> {
        let mut rng = Rng::new(seed);
        Ok(Self {
            disk: SimHost::on(Ground::Lent(arena.memory()), rng.bits()),
            memory: arena.memory(),
            rng,
            waker: Waker::new(EventfdFlags::NONBLOCK)?,
            tag: 0,
            open: Vec::new(),
            lines: Vec::new(),
            sockets: Vec::new(),
            ready: Vec::new(),
            longest_send: 0,
            counters: Counters::default(),
        })
    }

    /// The files, and what fails.
    pub fn disk(&mut self) -> &mut SimHost {
        &mut self.disk
    }

    /// Chooses anew what is chosen from now on.
    pub fn reseed(&mut self, seed: u64) {
        self.rng = Rng::new(seed);
    }

    /// Lays a file ready; gives the descriptor that stands for it.
    ///
    /// # Errors
    /// What the system says to an eventfd.
    pub fn lay(&mut self, file: SimFile) -> io::Result<OwnedFd> {
        let id = self.disk.add_file(file);
        self.open.push(false);
        ticket(usize::from(id.0))
    }

    /// A peer, and the descriptor that stands for the server's end of its connection.
    ///
    /// # Errors
    /// What the system says to an eventfd.
    pub fn dial(&mut self) -> io::Result<(PeerId, OwnedFd)> {
        self.lines.push(Line::new());
        let line = self.lines.len() - 1;
        Ok((PeerId(line), ticket(line)?))
    }

    /// Bytes of a peer arrive.
    pub fn feed(&mut self, peer: PeerId, bytes: &[u8]) {
        self.lines[peer.0].feed(bytes);
    }

    /// Takes what arrived at a peer.
    pub fn drain(&mut self, peer: PeerId) -> Vec<u8> {
        self.lines[peer.0].drain()
    }

    /// How many more bytes a peer has room for; `u64::MAX` for any number.
    pub fn set_room(&mut self, peer: PeerId, bytes: u64) {
        self.lines[peer.0].set_room(bytes);
    }

    /// A peer leaves.
    pub fn leave(&mut self, peer: PeerId, how: Leave) {
        self.lines[peer.0].leave(how);
    }

    /// Bytes of a peer that the server has not received.
    pub fn unread(&self, peer: PeerId) -> usize {
        self.lines[peer.0].unread()
    }

    /// Whether the server's end of a peer's connection is open.
    pub fn is_connected(&self, peer: PeerId) -> bool {
        self.sockets.contains(&Some(peer.0))
    }

    /// Whether it ever was.
    pub fn was_connected(&self, peer: PeerId) -> bool {
        self.lines[peer.0].joined
    }

    /// Moves one thing of the seed's choice. False when nothing can move.
    pub fn step(&mut self) -> bool {
        let mut moves = Vec::new();
        if self.disk.in_flight() > 0 {
            moves.push(Move::Disk);
        }
        for (at, line) in self.sockets.iter().enumerate() {
            let Some(line) = line.map(|line| &self.lines[line]) else { continue };
            if line.can_receive() {
                moves.push(Move::Receive(at));
            }
            if line.can_send() {
                moves.push(Move::Send(at));
            }
            if line.is_closing() {
                moves.push(Move::Close(at));
            }
        }
        if moves.is_empty() {
            return false;
        }
        let pick = moves[self.rng.below(moves.len())];
        let event = self.carry_out(pick);
        self.ready.extend(event);
        true
    }

    fn carry_out(&mut self, pick: Move) -> Option<Event> {
        let memory = &self.memory;
        match pick {
            Move::Disk => match self.disk.step() {
                Step::Delivered(id, outcome) => Some(Event::Effect { tag: self.tag, id, outcome }),
                Step::Idle | Step::Executed => None,
            },
            Move::Receive(at) => {
                let line = &mut self.lines[self.sockets[at]?];
                line.step_receive(SocketId(at as u32), memory, &mut self.rng)
            }
            Move::Send(at) => {
                let line = &mut self.lines[self.sockets[at]?];
                line.step_send(SocketId(at as u32), memory, &mut self.rng)
            }
            Move::Close(at) => {
                self.lines[self.sockets[at].take()?].let_go(memory);
                Some(Event::Closed { socket: SocketId(at as u32) })
            }
        }
    }

    /// Bytes of the longest list that was to be sent.
    pub const fn longest_send(&self) -> u64 {
        self.longest_send
    }

    /// Events that wait to be told.
    pub fn told(&self) -> usize {
        self.ready.len()
    }

    pub(in crate::host) fn add_file(&mut self, fd: &OwnedFd) -> io::Result<FileId> {
        let no = redeem(fd)?;
        let open = self.open.get_mut(no).ok_or(io::ErrorKind::NotFound)?;
        assert!(!std::mem::replace(open, true), "file {no} is opened twice");
        Ok(FileId(no as u16))
    }

    pub(in crate::host) fn remove_file(&mut self, file: FileId) {
        let open = std::mem::replace(&mut self.open[usize::from(file.0)], false);
        assert!(open, "{file:?} is closed twice");
        assert_eq!(self.disk.in_flight(), 0, "{file:?} is closed under its effects");
    }

    pub(in crate::host) fn start(&mut self, tag: u32, effect: Effect) {
        assert!(self.disk.in_flight() == 0 || self.tag == tag, "one disk at a time");
        assert!(self.open[usize::from(effect.file().0)], "{effect:?} on a file that is closed");
        self.tag = tag;
        self.counters.effects += 1;
        self.disk.start(effect);
    }

    pub(in crate::host) fn add_socket(&mut self, fd: &OwnedFd) -> io::Result<SocketId> {
        let line = redeem(fd)?;
        assert!(line < self.lines.len() && !self.sockets.contains(&Some(line)), "line {line}");
        let free = self.sockets.iter().position(Option::is_none);
        let at = free.unwrap_or(self.sockets.len());
        self.sockets.resize(self.sockets.len().max(at + 1), None);
        self.sockets[at] = Some(line);
        self.lines[line].joined = true;
        Ok(SocketId(at as u32))
    }

    fn line(&mut self, socket: SocketId) -> &mut Line {
        let line = self.sockets.get(socket.0 as usize).copied().flatten();
        let line = &mut self.lines[line.expect("a socket is used while it is open")];
        assert!(!line.is_closing(), "{socket:?} is used after its end");
        line
    }

    pub(in crate::host) fn close_socket(&mut self, socket: SocketId) {
        let of_it = |event: &Event| match event {
            Event::Received { socket: at, .. } | Event::Sent { socket: at, .. } => *at == socket,
            _ => false,
        };
        // What was in flight is not told any more.
        self.ready.retain(|event| !of_it(event));
        self.line(socket).close();
    }

    pub(in crate::host) fn receive(&mut self, socket: SocketId, into: ReceiveInto) {
        self.counters.transfers += 1;
        if let ReceiveInto::Span(span) = into {
            self.memory.lend(span).bytes_mut().fill(0xA5);
        }
        self.line(socket).receive(into);
    }

    pub(in crate::host) fn send(&mut self, socket: SocketId, list: SendList) {
        self.counters.transfers += 1;
        self.longest_send = self.longest_send.max(list.total().get());
        self.line(socket).send(list);
    }

    pub(in crate::host) fn hang_up(&self, socket: SocketId) -> HangUp {
        let line = self.sockets.get(socket.0 as usize).copied().flatten();
        line.map_or(HangUp::Whole, |line| self.lines[line].hang_up())
    }

    pub(in crate::host) fn wake_handle(&self) -> Waker {
        self.waker.clone()
    }

    /// Tells what happened; never waits.
    pub(in crate::host) fn wait(&mut self, events: &mut Vec<Event>) {
        self.counters.enters += 1;
        events.append(&mut self.ready);
        let mut count = [0; 8];
        if rustix::io::read(self.waker.fd(), &mut count).is_ok() {
            events.push(Event::Woken);
        }
    }

    pub(in crate::host) fn in_flight(&self) -> usize {
        let of_lines = self.sockets.iter().flatten().map(|line| self.lines[*line].in_flight());
        self.disk.in_flight() + of_lines.sum::<usize>() + self.ready.len()
    }

    pub(in crate::host) const fn counters(&self) -> Counters {
        self.counters
    }
}

/// A descriptor that stands for something numbered.
fn ticket(no: usize) -> io::Result<OwnedFd> {
    Ok(eventfd(no as u32 + 1, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?)
}

/// What a descriptor stands for.
fn redeem(ticket: &OwnedFd) -> io::Result<usize> {
    let mut count = [0; 8];
    rustix::io::read(ticket.as_fd(), &mut count)?;
    Ok(u64::from_ne_bytes(count) as usize - 1)
}

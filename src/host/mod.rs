//! The acting: carries out the effects of one shard's disks and moves the bytes of its sockets,
//! through io_uring where the system allows it and through a few threads where not.
//!
//! Refuses to know disks, formats or protocols, and to be used from two threads: a host belongs to
//! the thread that made it. Others may only wake it.
//!
//! I6 is the contract of every call that names memory: what an effect, receive or send names stays
//! lent, untouched by the caller, until its event came ([`Event::Closed`] for the operations of a
//! closed socket).

mod blocking;
mod buddy;
mod direct;
mod event;
mod files;
pub mod inherited;
pub mod inlet;
mod mapped;
pub mod memory;
mod read;
mod regions;
mod residency;
mod ring_setup;
pub mod sim;
mod slab;
mod task;
mod threads;
mod uring;
mod wake;
mod window;
mod write;
mod zero;

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

pub use event::{Event, HangUp, PollId, ReceiveInto, SendList, SendPiece, SocketId};
pub use files::{Descriptors, MAX_FILES, OpenMode, OutOfFiles};
pub use wake::Waker;

use crate::engine::effect::{Effect, FileId};
use inlet::{Asked, EntryPlace, InletId, InletState};
use mapped::Leftovers;
use memory::Arena;
use sim::script::ScriptHost;
use threads::Threads;
use uring::Uring;

/// Takes as many descriptors as the system gives: images and connections need some each.
pub fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit of open files stays");
    }
}

/// Which host is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Aio {
    /// io_uring, or threads where it is forbidden or too old.
    #[default]
    Auto,
    /// io_uring or nothing.
    Uring,
    /// Threads.
    Threads,
}

/// Which host was taken, and why, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// What was taken: never `Auto`.
    pub aio: Aio,
    /// What it can do, or why io_uring was not taken.
    pub reason: String,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.aio {
            Aio::Auto => "auto",
            Aio::Uring => "io_uring",
            Aio::Threads => "threads",
        };
        write!(f, "{name} ({})", self.reason)
    }
}

/// Sockets a host keeps at most.
pub const MAX_SOCKETS: usize = 1024;

/// Descriptors a host watches at most.
pub const MAX_POLLS: usize = 64;

/// What a host counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Calls into the system to submit or wait.
    pub enters: u64,
    /// Effects started.
    pub effects: u64,
    /// Receives and sends started.
    pub transfers: u64,
    /// Small cached transfers and the like, done at once instead of by the ring.
    pub inline_writes: u64,
    /// Reads that were alone, and found in the page cache without the ring.
    pub inline_reads: u64,
    /// Reads of what the page cache holds, copied without a call.
    pub mapped_reads: u64,
    /// Reads that were not done, because their bytes can be sent as they are.
    pub lent_reads: u64,
}

/// Socket buffer asked for, each way.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Prepares a client's socket. Asks for buffers that hold several large requests; with the
/// default of a unix socket, both sides wait for each other within one. The system may grant
/// less.
fn prepare(socket: &OwnedFd) {
    use rustix::net::sockopt;
    let sent = sockopt::set_socket_send_buffer_size(socket, SOCKET_BUFFER_BYTES);
    let received = sockopt::set_socket_recv_buffer_size(socket, SOCKET_BUFFER_BYTES);
    if let Err(error) = sent.and(received) {
        tracing::debug!(%error, "a socket keeps its buffer sizes");
    }
    // A peer that is gone without a word gives its slot back in the end. Means nothing for a
    // unix socket, whose peer cannot go unnoticed.
    if let Err(error) = sockopt::set_socket_keepalive(socket, true) {
        tracing::debug!(%error, "a socket is not kept alive");
    }
}

/// Asks the system whether the peer of a socket has hung up; nothing is received.
fn hang_up_of(fd: &OwnedFd) -> HangUp {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut asked = [PollFd::new(fd, PollFlags::RDHUP)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    if poll(&mut asked, Some(&at_once)).is_err() {
        return HangUp::No;
    }
    let told = asked[0].revents();
    if told.intersects(PollFlags::HUP | PollFlags::ERR) {
        HangUp::Whole
    } else if told.contains(PollFlags::RDHUP) {
        HangUp::Half
    } else {
        HangUp::No
    }
}

/// The host of one shard.
#[derive(Debug)]
pub enum Host {
    /// Through io_uring.
    Uring(Box<Uring>),
    /// Through a small pool of threads.
    Threads(Box<Threads>),
    /// In memory, as a test's script says. Nothing outside tests makes one.
    Script(Box<ScriptHost>),
}

macro_rules! forward {
    ($self:ident, $host:ident => $call:expr) => {
        match $self {
            Self::Uring($host) => $call,
            Self::Threads($host) => $call,
            Self::Script($host) => $call,
        }
    };
}

impl Host {
    /// Makes a host for the calling thread, working on the memory of `arena`.
    ///
    /// # Errors
    /// When what was asked for is not to be had; with `Auto`, only when threads fail too.
    pub fn new(aio: Aio, arena: &Arena) -> io::Result<(Self, Choice)> {
        Self::with(aio, arena, false)
    }

    /// Makes a host as [`Self::new`] does, with inlets where the kernel has them.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub fn with_inlets(aio: Aio, arena: &Arena) -> io::Result<(Self, Choice)> {
        Self::with(aio, arena, true)
    }

    fn with(aio: Aio, arena: &Arena, inlets: bool) -> io::Result<(Self, Choice)> {
        let refusal = match aio {
            Aio::Threads => "asked for".to_owned(),
            Aio::Auto | Aio::Uring => match Uring::new(arena.memory(), inlets) {
                Ok((host, reason)) => {
                    let choice = Choice { aio: Aio::Uring, reason };
                    return Ok((Self::Uring(Box::new(host)), choice));
                }
                Err(error) if aio == Aio::Uring => return Err(error),
                Err(error) => format!("io_uring cannot be used: {error}"),
            },
        };
        let host = Threads::new(arena.memory())?;
        let choice = Choice { aio: Aio::Threads, reason: refusal };
        Ok((Self::Threads(Box::new(host)), choice))
    }

    /// Takes an open file over. See [`OpenMode::probe`].
    ///
    /// # Errors
    /// [`OutOfFiles`], an unsound mode, or a descriptor that is missing.
    pub fn add_file(&mut self, file: Descriptors) -> io::Result<FileId> {
        match self {
            Self::Uring(host) => host.add_file(file),
            Self::Threads(host) => host.add_file(file),
            Self::Script(host) => host.add_file(&file.main),
        }
    }

    /// Closes a file. No effect on it may be in flight.
    pub fn remove_file(&mut self, file: FileId) {
        forward!(self, host => host.remove_file(file));
    }

    /// What removed files have left that takes long to drop, and keeps them from being closed.
    pub(crate) fn take_leftovers(&mut self) -> Leftovers {
        match self {
            Self::Uring(host) => host.take_leftovers(),
            Self::Threads(host) => host.take_leftovers(),
            Self::Script(_) => Leftovers::default(),
        }
    }

    /// Starts an effect of the disk called `tag`; its event tells the tag. Submission may wait for
    /// [`Self::wait`]. An effect on a file that is not open fails with EBADF.
    pub fn start(&mut self, tag: u32, effect: Effect) {
        match self {
            Self::Uring(host) => {
                if host.lend(tag, &effect) {
                    return;
                }
                let (name, work) = task::split(tag, effect);
                host.start(name, work);
            }
            Self::Threads(host) => {
                let (name, work) = task::split(tag, effect);
                host.start(name, work);
            }
            Self::Script(host) => host.start(tag, effect),
        }
    }

    /// Takes a connected stream socket over.
    ///
    /// # Errors
    /// Too many sockets, or what the system says.
    pub fn add_socket(&mut self, fd: OwnedFd) -> io::Result<SocketId> {
        match self {
            Self::Uring(host) => {
                prepare(&fd);
                host.add_socket(fd)
            }
            Self::Threads(host) => {
                prepare(&fd);
                host.add_socket(fd)
            }
            Self::Script(host) => host.add_socket(&fd),
        }
    }

    /// Closes a socket: cancels what is in flight, whose events do not come any more, and tells
    /// [`Event::Closed`] when the kernel let go of all memory.
    pub fn close_socket(&mut self, socket: SocketId) {
        forward!(self, host => host.close_socket(socket));
    }

    /// Starts a receive. One at a time per socket.
    pub fn receive(&mut self, socket: SocketId, into: ReceiveInto) {
        forward!(self, host => host.receive(socket, into));
    }

    /// Starts a send of all pieces of a list. One at a time per socket.
    pub fn send(&mut self, socket: SocketId, list: SendList) {
        forward!(self, host => host.send(socket, list));
    }

    /// Whether the peer of a socket has hung up. For those who do not receive at present.
    pub fn hang_up(&self, socket: SocketId) -> HangUp {
        forward!(self, host => host.hang_up(socket))
    }

    /// Takes a descriptor over to watch it. It is not armed yet.
    ///
    /// # Errors
    /// Too many of them, or what the system says. A script's host watches nothing.
    pub fn add_poll(&mut self, fd: OwnedFd) -> io::Result<PollId> {
        match self {
            Self::Uring(host) => host.add_poll(fd),
            Self::Threads(host) => host.add_poll(fd),
            Self::Script(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Tells once, as [`Event::Readable`], when a watched descriptor has something to read or is
    /// broken; at once if it is so now. Does nothing while it is armed.
    pub fn arm_poll(&mut self, poll: PollId) {
        match self {
            Self::Uring(host) => host.arm_poll(poll),
            Self::Threads(host) => host.arm_poll(poll),
            Self::Script(_) => {}
        }
    }

    /// Watches a descriptor no more; it is closed. An event that is on its way may still come.
    pub fn remove_poll(&mut self, poll: PollId) {
        match self {
            Self::Uring(host) => host.remove_poll(poll),
            Self::Threads(host) => host.remove_poll(poll),
            Self::Script(_) => {}
        }
    }

    /// Takes a connection over and registers these places for its requests: all the kernel needs
    /// before it sends any. A refusal shows in [`Self::inlet_state`].
    ///
    /// # Errors
    /// Too many inlets, a host without [`Self::with_inlets`], or what the system says; what was
    /// lent may be the kernel's until the connection is ended then.
    pub fn add_inlet(&mut self, fuse: OwnedFd, places: &[EntryPlace]) -> io::Result<InletId> {
        match self {
            Self::Uring(host) => host.add_inlet(fuse, places),
            Self::Threads(_) | Self::Script(_) => Err(io::Error::other("no io_uring here")),
        }
    }

    /// The next request that nobody has looked at.
    pub fn next_asked(&mut self, inlet: InletId) -> Option<Asked> {
        match self {
            Self::Uring(host) => host.next_asked(inlet),
            Self::Threads(_) | Self::Script(_) => None,
        }
    }

    /// The block of a request: 128 bytes with its header at the start, then its operation.
    pub fn block_of(&self, asked: &Asked) -> &[u8] {
        match self {
            Self::Uring(host) => host.block_of(asked),
            Self::Threads(_) | Self::Script(_) => &[],
        }
    }

    /// Answers a request with an error number (0: none) and, without one, so many bytes that stand
    /// at the start of its payload, which is the kernel's again.
    pub fn answer(&mut self, asked: Asked, errno: i32, payload_bytes: u32) {
        if let Self::Uring(host) = self {
            host.answer(asked, errno, payload_bytes);
        }
    }

    /// How an inlet stands.
    pub fn inlet_state(&self, inlet: InletId) -> InletState {
        match self {
            Self::Uring(host) => host.inlet_state(inlet),
            Self::Threads(_) | Self::Script(_) => InletState::default(),
        }
    }

    /// Lets a connection go, as soon as the kernel has none of its places.
    pub fn remove_inlet(&mut self, inlet: InletId) {
        if let Self::Uring(host) = self {
            host.remove_inlet(inlet);
        }
    }

    /// A handle for other threads to wake this host.
    pub fn wake_handle(&self) -> Waker {
        forward!(self, host => host.wake_handle())
    }

    /// Submits everything started, waits until at least one event is there or the timeout is over,
    /// and appends all events that are there.
    ///
    /// # Errors
    /// A host that cannot wait any more is broken; nothing is known about what is in flight.
    pub fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        match self {
            Self::Uring(host) => host.wait(timeout, events),
            Self::Threads(host) => host.wait(timeout, events),
            Self::Script(host) => {
                host.wait(events);
                Ok(())
            }
        }
    }

    /// The next wait need not end because a send is over: its event may come with the next one of
    /// another kind, or when the timeout is over. For when nobody has anything to do then.
    pub fn defer_sent(&mut self) {
        if let Self::Uring(host) = self {
            host.defer_sent();
        }
    }

    /// Appends the events that are there without asking the system: of what was done at once.
    pub fn take_ready(&mut self, events: &mut Vec<Event>) {
        if let Self::Uring(host) = self {
            host.take_ready(events);
        }
    }

    /// Effects, receives and sends whose events have not come.
    pub fn in_flight(&self) -> usize {
        forward!(self, host => host.in_flight())
    }

    /// The script, if this host follows one.
    pub fn script(&mut self) -> Option<&mut ScriptHost> {
        match self {
            Self::Script(host) => Some(host),
            Self::Uring(_) | Self::Threads(_) => None,
        }
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        forward!(self, host => host.counters())
    }
}

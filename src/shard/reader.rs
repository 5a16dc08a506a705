//! Readers: what brings requests from a descriptor that is no socket (the device of a mount), or
//! through an inlet of the host, to the clients of a shard, on the shard's own thread. A reader
//! belongs to the shard and to no disk: disks come and go while it reads, and some may be another
//! shard's.
//!
//! Refuses to know what is read. A reader hands a parcel to a client, and the two agree on it.

use std::any::Any;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::belfry::Bell;
use super::nudge::Nudge;
use super::run::Shard;
use crate::host::PollId;
use crate::host::inlet::{Asked, EntryPlace, InletId, InletState};
use crate::host::memory::{Arena, Lease};

/// How a reader goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There was nothing more to read, neither from the descriptor nor from the inlet: it is called
    /// when there is.
    Dry,
    /// There may be more, but others have their turn first.
    More,
    /// Something read waits for somebody, who will use the reader's [`Nudge`].
    Waits,
    /// The descriptor is over. It is called no more.
    Over,
}

/// Brings requests. Must not wait, nor use what it serves itself.
pub trait Reader: Send {
    /// It was added to the shard.
    ///
    /// # Errors
    /// When it cannot do its work here; it is dropped then.
    fn start(&mut self, cx: &mut Reading<'_>) -> io::Result<()>;

    /// Reads a bounded number of requests.
    fn read(&mut self, cx: &mut Reading<'_>) -> Progress;

    /// It is over, or the shard is: leases go back.
    fn closed(&mut self, arena: &mut Arena);
}

/// A reader that moves into a shard.
pub struct NewReader {
    /// What tells that there is something to read.
    pub watched: OwnedFd,
    /// What others call it with.
    pub nudge: Nudge,
    /// It.
    pub reader: Box<dyn Reader>,
}

/// What a reader may use while it is being called.
pub struct Reading<'a> {
    shard: &'a mut Shard,
    readable: bool,
    inlet: Option<InletId>,
}

impl Reading<'_> {
    /// Whether the descriptor may have something to read.
    #[must_use]
    pub const fn is_readable(&self) -> bool {
        self.readable
    }

    /// Takes memory that nobody waits for; what is set aside for watchers stays there.
    pub fn take(&mut self, len: u32) -> Option<Lease> {
        self.shard.arena.take(len)
    }

    /// The bytes behind spans.
    pub fn arena(&mut self) -> &mut Arena {
        &mut self.shard.arena
    }

    /// Opens the reader's inlet; once. See [`Host::add_inlet`](crate::host::Host::add_inlet).
    ///
    /// # Errors
    /// When the host has none.
    pub fn open_inlet(&mut self, fuse: OwnedFd, places: &[EntryPlace]) -> io::Result<()> {
        self.inlet = Some(self.shard.host.add_inlet(fuse, places)?);
        Ok(())
    }

    /// The next request of the inlet.
    pub fn next_asked(&mut self) -> Option<Asked> {
        self.inlet.and_then(|inlet| self.shard.host.next_asked(inlet))
    }

    /// The block of a request, and what came along.
    #[must_use]
    pub fn request(&self, asked: &Asked) -> (&[u8], &[u8]) {
        (self.shard.host.block_of(asked), self.shard.arena.bytes(asked.brought()))
    }

    /// Answers a request: an error number or, with none, bytes at the start of its payload.
    pub fn answer(&mut self, asked: Asked, errno: i32, payload_bytes: u32) {
        self.shard.host.answer(asked, errno, payload_bytes);
    }

    /// How the inlet stands.
    #[must_use]
    pub fn inlet_state(&self) -> InletState {
        self.inlet.map_or_else(InletState::default, |inlet| self.shard.host.inlet_state(inlet))
    }

    /// Hands something to the client this nudge calls. False: it is not in this shard.
    pub fn hand(&mut self, to: &Nudge, parcel: &mut dyn Any) -> bool {
        let Some(key) = self.shard.key_behind(to) else { return false };
        self.shard.call_key(key, |client, cx| client.handed(cx, parcel));
        true
    }
}

/// What a shard keeps of a reader.
pub(super) struct ReaderSeat {
    /// Out while it is being called.
    reader: Option<Box<dyn Reader>>,
    poll: PollId,
    inlet: Option<InletId>,
    bell: Arc<Bell>,
    /// It is to be called.
    eager: bool,
    /// Its descriptor has something to read, as far as is known.
    readable: bool,
}

/// Told apart from the keys of clients in the hook of a bell.
const READER: usize = 1 << 31;

impl Shard {
    /// Takes a reader over.
    pub(super) fn add_reader(&mut self, new: NewReader) -> io::Result<()> {
        let NewReader { watched, nudge, mut reader } = new;
        if !self.is_serving() {
            return Err(io::Error::other("the server is going away"));
        }
        let poll = self.host.add_poll(watched)?;
        let mut cx = Reading { shard: self, readable: true, inlet: None };
        let started = reader.start(&mut cx);
        let inlet = cx.inlet;
        if let Err(error) = started {
            self.host.remove_poll(poll);
            if let Some(inlet) = inlet {
                self.host.remove_inlet(inlet);
            }
            reader.closed(&mut self.arena);
            return Err(error);
        }
        let bell = nudge.bell();
        let reader = Some(reader);
        let seat = ReaderSeat { reader, poll, inlet, bell, eager: true, readable: true };
        let index = self.readers.insert(seat);
        self.readers[index].bell.hang(READER | index);
        Ok(())
    }

    /// Whether a reader is to be called without anything happening before.
    pub(super) fn has_eager_readers(&self) -> bool {
        self.readers.iter().any(|(_, seat)| seat.eager)
    }

    /// The descriptor of a reader has something to read.
    pub(super) fn readable(&mut self, poll: PollId) {
        for (_, seat) in self.readers.iter_mut().filter(|(_, seat)| seat.poll == poll) {
            (seat.eager, seat.readable) = (true, true);
        }
    }

    /// The inlet of a reader has something.
    pub(super) fn asked(&mut self, inlet: InletId) {
        for (_, seat) in self.readers.iter_mut().filter(|(_, seat)| seat.inlet == Some(inlet)) {
            seat.eager = true;
        }
    }

    /// Whether a bell that was rung is a reader's.
    pub(super) fn nudge_reader(&mut self, key: usize) -> bool {
        if let Some(seat) = self.readers.get_mut(key & !READER).filter(|_| key & READER != 0) {
            seat.eager = true;
        }
        key & READER != 0
    }

    /// Lets the readers that have something to read read; true if any did.
    pub(super) fn read_on(&mut self) -> bool {
        let eager = self.readers.iter().filter(|(_, seat)| seat.eager);
        let eager: Vec<usize> = eager.map(|(index, _)| index).collect();
        for index in &eager {
            let seat = &mut self.readers[*index];
            let Some(mut reader) = seat.reader.take() else { continue };
            let (readable, inlet) = (seat.readable, seat.inlet);
            let progress = reader.read(&mut Reading { shard: self, readable, inlet });
            let seat = &mut self.readers[*index];
            seat.reader = Some(reader);
            seat.eager = progress == Progress::More;
            seat.readable &= progress != Progress::Dry;
            match progress {
                Progress::Dry => self.host.arm_poll(seat.poll),
                Progress::Over => self.end_reader(*index),
                Progress::More | Progress::Waits => {}
            }
        }
        !eager.is_empty()
    }

    fn end_reader(&mut self, index: usize) {
        let seat = self.readers.remove(index);
        seat.bell.take_down();
        self.host.remove_poll(seat.poll);
        if let Some(inlet) = seat.inlet {
            self.host.remove_inlet(inlet);
        }
        if let Some(mut reader) = seat.reader {
            reader.closed(&mut self.arena);
            let_go(reader);
        }
        self.freed = true;
    }

    /// The shard reads nothing any more.
    pub(super) fn end_readers(&mut self) {
        let all: Vec<usize> = self.readers.iter().map(|(index, _)| index).collect();
        all.into_iter().for_each(|index| self.end_reader(index));
    }
}

/// Drops a reader on a thread of its own: the end of what it served may wait for somebody who asks
/// this shard.
fn let_go(reader: Box<dyn Reader>) {
    let end = std::thread::Builder::new().name("orlop-reader-end".to_owned());
    if let Err(error) = end.spawn(move || drop(reader)) {
        tracing::debug!(%error, "no thread for the end of a reader: it ended here");
    }
}

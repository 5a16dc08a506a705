//! Readers: what brings requests from a descriptor that is no socket (the device of a mount) to the
//! clients of a shard, on the shard's own thread. A reader belongs to the shard and to no disk:
//! disks come and go while it reads, and some may be another shard's.
//!
//! Refuses to know what is read. A reader hands a parcel to a client, and the two agree on it.

use std::any::Any;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::nudge::{Bell, Nudge};
use super::run::Shard;
use crate::host::PollId;
use crate::host::memory::{Arena, Lease};

/// How a reader goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There was nothing more to read: it is called when there is.
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
pub struct Reading<'a>(&'a mut Shard);

impl Reading<'_> {
    /// Takes memory that nobody waits for; what is set aside for watchers stays there.
    pub fn take(&mut self, len: u32) -> Option<Lease> {
        self.0.arena.take(len)
    }

    /// The bytes behind spans.
    pub fn arena(&mut self) -> &mut Arena {
        &mut self.0.arena
    }

    /// Hands something to the client this nudge calls. False: it is not in this shard.
    pub fn hand(&mut self, to: &Nudge, parcel: &mut dyn Any) -> bool {
        let Some(key) = self.0.key_behind(to) else { return false };
        self.0.call_key(key, |client, cx| client.handed(cx, parcel));
        true
    }
}

/// What a shard keeps of a reader.
pub(super) struct ReaderSeat {
    /// Out while it is being called.
    reader: Option<Box<dyn Reader>>,
    poll: PollId,
    bell: Arc<Bell>,
    /// It is to be called.
    eager: bool,
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
        if let Err(error) = reader.start(&mut Reading(self)) {
            self.host.remove_poll(poll);
            reader.closed(&mut self.arena);
            return Err(error);
        }
        let bell = nudge.bell();
        let seat = ReaderSeat { reader: Some(reader), poll, bell, eager: true };
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
            let Some(mut reader) = self.readers[*index].reader.take() else { continue };
            let progress = reader.read(&mut Reading(self));
            let seat = &mut self.readers[*index];
            seat.reader = Some(reader);
            seat.eager = progress == Progress::More;
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

//! The device of a mount, read by the thread of a shard: reads and writes of disks of that shard
//! are carried out at once, without a queue between; those of disks elsewhere, and those there is
//! no memory for now, take the way of questions from other threads.
//!
//! One lease is always there for the data of the next write, so that the device can be read
//! whatever others do: changes of theirs may be waiting for a write that comes from here. Refuses
//! to wait: what has no place anywhere is kept, and then nothing more is read until it has one.

use std::io::{self, IoSliceMut};
use std::sync::Arc;

use orlop_fuse::channel::{
    ChannelHost, DATA_BYTES_MAX, HEAD_BYTES, Line, Mail, Order, Stamp, unique,
};
use orlop_fuse::ring::Connection;
use orlop_fuse::{Bytes, Errno, ReadReply, Reply};
use rustix::io::Errno as OsError;

use super::port::{Entry, Files};
use super::queue::Ask;
use crate::engine::units::Extent;
use crate::host::memory::{Arena, Lease};
use crate::shard::{Mailbox, NewReader, Nudge, Progress, Reader, Reading};

/// Requests, and bytes of them, that are read before others have their turn.
const TURN: usize = 32;
const TURN_BYTES: usize = 2 << 20;

/// Reads the devices of mounts on the thread of one shard. To be given as
/// [`orlop_fuse::Options::channel`].
pub struct Channel {
    mailbox: Mailbox,
    files: Arc<Files>,
}

impl Channel {
    /// On the shard behind this mailbox, best one with many of the disks, which are all in `files`.
    #[must_use]
    pub fn new(mailbox: Mailbox, files: Arc<Files>) -> Arc<Self> {
        Arc::new(Self { mailbox, files })
    }
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").finish_non_exhaustive()
    }
}

impl ChannelHost for Channel {
    fn start(&self, connection: Connection) -> io::Result<()> {
        let (watched, nudge) = (connection.fuse().try_clone_to_owned()?, self.mailbox.bell());
        let reader = DeviceReader::new(connection, Arc::clone(&self.files), nudge.clone())?;
        self.mailbox.add_reader(NewReader { watched, nudge, reader: Box::new(reader) })
    }
}

/// A read or write on its way into the client of its disk.
pub(super) struct Parcel {
    /// Taken by the client that takes the parcel.
    pub(super) mail: Option<Mail>,
    pub(super) wanted: Wanted,
    /// The standing lease, with the data of a write at its start. Comes back, this or another.
    pub(super) standing: Option<Lease>,
}

/// What is wanted of a disk.
#[derive(Clone)]
pub(super) enum Wanted {
    Read(Extent),
    Write { extent: Extent, durable: bool, stamp: Stamp },
}

/// Reads the device.
pub(super) struct DeviceReader {
    connection: Connection,
    line: Arc<Line>,
    files: Arc<Files>,
    /// Calls this one when there is room for what is kept.
    nudge: Nudge,
    standing: Option<Lease>,
    /// A question for which its disk's queue had no room.
    kept: Option<(Arc<Entry>, Ask)>,
}

impl Reader for DeviceReader {
    fn start(&mut self, cx: &mut Reading<'_>) -> io::Result<()> {
        // What stands ready is missing elsewhere: others need room for the largest request too.
        let mut leases: Vec<Lease> = (0..3).map_while(|_| cx.take(DATA_BYTES_MAX)).collect();
        let enough = leases.len() == 3;
        self.standing = leases.pop();
        leases.into_iter().for_each(|lease| cx.arena().give(lease));
        if enough { Ok(()) } else { Err(io::Error::other("there is too little memory")) }
    }

    fn read(&mut self, cx: &mut Reading<'_>) -> Progress {
        if let Some((entry, ask)) = self.kept.take()
            && !self.ask(entry, ask)
        {
            return Progress::Waits;
        }
        let mut turn_bytes = 0;
        for _ in 0..TURN {
            if turn_bytes >= TURN_BYTES {
                break;
            }
            let mut head = [0; HEAD_BYTES];
            let Some(standing) = &self.standing else { return Progress::Over };
            let data = cx.arena().bytes_mut(standing.span());
            let mut room = [IoSliceMut::new(&mut head), IoSliceMut::new(data)];
            let bytes = match rustix::io::readv(self.connection.fuse(), &mut room) {
                Ok(bytes) => bytes,
                // Somebody was killed while the kernel told of it.
                Err(OsError::INTR | OsError::NOENT) => continue,
                Err(OsError::AGAIN) => return Progress::Dry,
                Err(OsError::NODEV | OsError::CONNABORTED) => return Progress::Over,
                Err(error) => {
                    tracing::error!(%error, "the device of a mount cannot be read any more");
                    return Progress::Over;
                }
            };
            turn_bytes += bytes;
            if !self.serve(cx, &head, bytes) {
                return Progress::Waits;
            }
        }
        Progress::More
    }

    fn closed(&mut self, arena: &mut Arena) {
        if let Some(lease) = self.standing.take() {
            arena.give(lease);
        }
    }
}

impl DeviceReader {
    pub(super) fn new(connection: Connection, files: Arc<Files>, nudge: Nudge) -> io::Result<Self> {
        let fuse = connection.fuse();
        let flags = rustix::fs::fcntl_getfl(fuse)?;
        rustix::fs::fcntl_setfl(fuse, flags | rustix::fs::OFlags::NONBLOCK)?;
        let line = Line::of(&connection)?;
        Ok(Self { connection, line, files, nudge, standing: None, kept: None })
    }

    pub(super) const fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(super) fn files(&self) -> &Files {
        &self.files
    }

    /// Sees to one request; false if nothing more may be read for now.
    fn serve(&mut self, cx: &mut Reading<'_>, head: &[u8; HEAD_BYTES], bytes: usize) -> bool {
        let unique = unique(head);
        let behind = u32::try_from(bytes.saturating_sub(HEAD_BYTES)).unwrap_or(0);
        let order = self.connection.requests().order(head, behind);
        if matches!(order, Order::Nothing) {
            return true;
        }
        let mail = Mail::new(&self.line, unique);
        match order {
            Order::Nothing => {}
            Order::Answer(result) => mail.wrote(result),
            Order::Read { disk, extent } => match self.files.place(disk, extent) {
                Ok((entry, extent)) => return self.pass(cx, entry, Wanted::Read(extent), mail),
                Err(errno) => mail.read(Err(errno)),
            },
            Order::Write { disk, at, count, durable, stamp } => {
                let extent = orlop_fuse::Extent { at, len: Bytes(u64::from(count)) };
                match self.files.place(disk, extent) {
                    Ok((entry, extent)) => {
                        let wanted = Wanted::Write { extent, durable, stamp };
                        return self.pass(cx, entry, wanted, mail);
                    }
                    Err(errno) => mail.wrote(Err(errno)),
                }
            }
            Order::Other => {
                let mut request = head[..bytes.min(HEAD_BYTES)].to_vec();
                if let Some(standing) = &self.standing {
                    let behind = standing.part(0..behind.min(standing.len()));
                    request.extend_from_slice(cx.arena().bytes(behind));
                }
                self.connection.requests().answer(&request, mail);
            }
        }
        true
    }

    /// Hands a read or write to its disk; false if nothing more may be read for now.
    fn pass(
        &mut self,
        cx: &mut Reading<'_>,
        entry: Arc<Entry>,
        wanted: Wanted,
        mail: Mail,
    ) -> bool {
        let standing = self.standing.take();
        let mut parcel = Parcel { mail: Some(mail), wanted, standing };
        cx.hand(entry.queue.nudge(), &mut parcel);
        let Parcel { mail, wanted, standing } = parcel;
        self.standing = standing;
        let Some(mail) = mail else { return true };
        let ask = match wanted {
            Wanted::Read(extent) => {
                Ask::Read { extent, reply: ReadReply::new(move |result| mail.read(result)) }
            }
            Wanted::Write { extent, durable, stamp } => {
                let count = extent.len.get() as u32;
                let data = self.standing.as_ref().map(|lease| lease.part(0..count));
                let data = data.map(|span| cx.arena().bytes(span).to_vec()).unwrap_or_default();
                let reply = Reply::new(move |result: Result<(), Errno>| {
                    stamp.touch();
                    mail.wrote(result.map(|()| count));
                });
                Ask::Write { at: extent.at, data, durable, reply }
            }
        };
        self.ask(entry, ask)
    }

    /// Puts a question into the queue of its disk; false if it must be kept until there is room.
    fn ask(&mut self, entry: Arc<Entry>, ask: Ask) -> bool {
        match entry.queue.offer(ask, &self.nudge) {
            Ok(()) => true,
            Err(ask) => {
                self.kept = Some((entry, ask));
                false
            }
        }
    }
}

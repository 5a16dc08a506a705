//! The way into a shard from other threads: a bounded queue of messages and a wake-up.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use super::belfry::Belfry;
use super::client::Client;
use super::cut::Step;
use super::guests::Told;
use super::line::GuestEnd;
use super::nudge::Nudge;
use super::reader::NewReader;
use super::run::Shard;
use crate::engine::Disk;
use crate::engine::effect::FileId;
use crate::engine::units::Extent;
use crate::host::memory::{Arena, ArenaSize};
use crate::host::{Aio, Choice, Descriptors, Host, Waker};

/// Messages that may wait in the mailbox.
const MAILBOX_DEPTH: usize = 256;
/// How often a message of control is offered to a full mailbox before the shard counts as stuck.
/// It empties all of it at once, so once is mostly enough.
const MAX_OFFERS: usize = 100_000;
/// How long clients may take to finish when their export or the server goes away.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// Names a disk of a shard. Never used again, so it cannot come to mean another disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskTag(pub u32);

/// Names an export: those of its clients that are to go when it goes. The shard only compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExportKey(pub u64);

/// The host of a shard as an attachment sees it: it takes files over and names them.
pub(crate) type AddFile<'a> = &'a mut dyn FnMut(Descriptors) -> io::Result<FileId>;

/// Makes a disk out of open files, on the shard's own thread.
pub type Attachment = Box<dyn FnOnce(AddFile<'_>) -> io::Result<Disk> + Send>;

/// What joins a client to the world outside its shard.
pub enum Link {
    /// A connected socket: the client receives and sends.
    Socket(OwnedFd),
    /// Other threads of this process, which call it: see [`Client::nudged`].
    Local(Nudge),
}

/// A client that moves into the shard: a connection that has been negotiated, or a local one.
pub struct NewClient {
    /// The disk it uses.
    pub disk: DiskTag,
    /// The export it came for.
    pub export: ExportKey,
    /// How it is reached.
    pub link: Link,
    /// Who speaks on it.
    pub client: Box<dyn Client>,
    /// Dropped when the connection is gone: a slot in somebody's limit.
    pub guard: Box<dyn std::any::Any + Send>,
}

pub(super) enum Message {
    /// A disk; a guest with the line to its owner.
    Attach(Attachment, Option<GuestEnd>, oneshot::Sender<io::Result<DiskTag>>),
    Publish(DiskTag, Told),
    Connect(NewClient),
    AddReader(NewReader, SyncSender<io::Result<()>>),
    /// Let every client of an export finish.
    Drain(ExportKey, oneshot::Sender<()>),
    /// Let every client of a disk finish, make it durable, close its files.
    Detach(DiskTag, oneshot::Sender<Result<(), String>>),
    Read(DiskTag, Extent, oneshot::Sender<io::Result<Vec<u8>>>),
    Flush(DiskTag, oneshot::Sender<io::Result<()>>),
    Cut(DiskTag, Step),
    /// Let every client finish, make everything durable, end the thread.
    Shutdown(oneshot::Sender<Result<(), String>>),
}

/// The shard did not take a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Its mailbox is full.
    #[error("the shard is too busy to take another connection now")]
    Full,
    /// Its thread has ended.
    #[error("the shard has ended")]
    Gone,
}

/// A handle on a shard.
#[derive(Clone)]
pub struct Mailbox {
    sender: SyncSender<Message>,
    waker: Waker,
    belfry: Belfry,
}

impl Mailbox {
    /// A bell for one client that is to come without a socket.
    #[must_use]
    pub fn bell(&self) -> Nudge {
        Nudge::new(self.belfry.clone(), self.waker.clone())
    }

    fn post(&self, message: Message) -> Result<(), (Refused, Message)> {
        self.sender.try_send(message).map_err(|error| match error {
            TrySendError::Full(message) => (Refused::Full, message),
            TrySendError::Disconnected(message) => (Refused::Gone, message),
        })?;
        self.waker.wake();
        Ok(())
    }

    /// Posts a message of control, and waits for the answer.
    pub(super) async fn ask<T>(
        &self,
        message: impl FnOnce(oneshot::Sender<T>) -> Message,
    ) -> Result<T, Refused> {
        let (sender, answer) = oneshot::channel();
        let mut message = message(sender);
        for _ in 0..MAX_OFFERS {
            match self.post(message) {
                Ok(()) => return answer.await.map_err(|_| Refused::Gone),
                Err((Refused::Gone, _)) => return Err(Refused::Gone),
                // Connections fill it, and the shard is about to read them all.
                Err((Refused::Full, back)) => message = back,
            }
            tokio::task::yield_now().await;
        }
        Err(Refused::Full)
    }

    /// Gives the shard a disk to own.
    ///
    /// # Errors
    /// What the attachment said, or that the shard does not answer or is ending.
    pub async fn attach(&self, attachment: Attachment) -> io::Result<DiskTag> {
        let asked = self.ask(|answer| Message::Attach(attachment, None, answer)).await;
        asked.map_err(io::Error::other)?
    }

    /// Moves a connection into the shard. One for a disk that is gone or going is closed.
    ///
    /// # Errors
    /// When the shard does not take it; the connection is closed then.
    pub fn connect(&self, client: NewClient) -> Result<(), Refused> {
        self.post(Message::Connect(client)).map_err(|(refused, _)| refused)
    }

    /// Moves a reader into the shard, and waits until it reads. Never to be called on a shard's
    /// thread, nor on one that others wait for.
    ///
    /// # Errors
    /// When the shard does not take it; the reader is dropped then.
    pub fn add_reader(&self, reader: NewReader) -> io::Result<()> {
        let (answer, answered) = sync_channel(1);
        let posted = self.post(Message::AddReader(reader, answer));
        posted.map_err(|(refused, _)| io::Error::other(refused))?;
        answered.recv().map_err(|_| io::Error::other(Refused::Gone))?
    }

    /// Lets the clients of an export go: their new requests are refused as on a shutdown, those in
    /// flight finish, then the connections close; those that take longer than ten seconds are cut.
    /// Returns when none is left. Connections that come for the export meanwhile go as well; later
    /// ones do not, so the caller forgets the export first.
    ///
    /// # Errors
    /// When the shard has ended, or is stuck.
    pub async fn drain(&self, export: ExportKey) -> Result<(), Refused> {
        self.ask(|answer| Message::Drain(export, answer)).await
    }

    /// Takes a disk from the shard: lets its clients go as [`Self::drain`] does, makes everything
    /// durable, and closes its files. Nothing of it is in flight when this returns, and it is gone
    /// whether or not the result is an error.
    ///
    /// # Errors
    /// What kept it from becoming durable, or that there is no such disk.
    pub async fn detach(&self, disk: DiskTag) -> Result<(), String> {
        let answer = self.ask(|answer| Message::Detach(disk, answer)).await;
        answer.unwrap_or_else(|refused| Err(refused.to_string()))
    }

    /// Reads bytes of a disk, at most [`READ_MAX`](super::READ_MAX), as a client would.
    ///
    /// # Errors
    /// A range outside the disk or too long, what the disk says, or that there is no such disk.
    pub async fn read(&self, disk: DiskTag, extent: Extent) -> io::Result<Vec<u8>> {
        let asked = self.ask(|answer| Message::Read(disk, extent, answer)).await;
        asked.map_err(io::Error::other)?
    }

    /// Makes everything that was written to a disk durable.
    ///
    /// # Errors
    /// What the disk says, or that there is no such disk.
    pub async fn flush(&self, disk: DiskTag) -> io::Result<()> {
        let asked = self.ask(|answer| Message::Flush(disk, answer)).await;
        asked.map_err(io::Error::other)?
    }

    /// Ends the shard: clients finish what is in flight, every disk is committed.
    ///
    /// # Errors
    /// What kept a disk from becoming durable.
    pub async fn shut_down(&self) -> Result<(), String> {
        let answer = self.ask(Message::Shutdown).await;
        answer.unwrap_or_else(|refused| Err(refused.to_string()))
    }
}

/// Starts a shard's thread.
///
/// # Errors
/// When no host or memory is to be had.
pub fn spawn(aio: Aio, size: ArenaSize) -> io::Result<(Mailbox, Choice, JoinHandle<()>)> {
    spawn_within(aio, size, DRAIN_LIMIT)
}

/// Starts a shard's thread, as [`spawn`] does, that may serve mounts through inlets of its ring
/// where the kernel has them.
///
/// # Errors
/// When no host or memory is to be had.
pub fn spawn_with_inlets(
    aio: Aio,
    size: ArenaSize,
) -> io::Result<(Mailbox, Choice, JoinHandle<()>)> {
    spawn_on(size, DRAIN_LIMIT, move |arena| Host::with_inlets(aio, arena))
}

/// Starts a shard's thread, as [`spawn`] does, whose clients have so long to finish when they must
/// go.
///
/// # Errors
/// When no host or memory is to be had.
pub fn spawn_within(
    aio: Aio,
    size: ArenaSize,
    drain_limit: Duration,
) -> io::Result<(Mailbox, Choice, JoinHandle<()>)> {
    spawn_on(size, drain_limit, move |arena| Host::new(aio, arena))
}

fn spawn_on(
    size: ArenaSize,
    drain_limit: Duration,
    host: impl FnOnce(&Arena) -> io::Result<(Host, Choice)> + Send + 'static,
) -> io::Result<(Mailbox, Choice, JoinHandle<()>)> {
    let (sender, messages) = sync_channel(MAILBOX_DEPTH);
    let belfry = Belfry::default();
    let bells = belfry.clone();
    let (ready, is_ready) = sync_channel::<io::Result<(Waker, Choice)>>(1);
    let thread = std::thread::Builder::new().name("orlop-shard".to_owned()).spawn(move || {
        let made = Arena::new(size).and_then(|arena| {
            let (host, choice) = host(&arena)?;
            Ok((arena, host, choice))
        });
        match made {
            Err(error) => drop(ready.send(Err(error))),
            Ok((arena, host, choice)) => {
                let waker = host.wake_handle();
                if ready.send(Ok((waker, choice))).is_ok() {
                    run_or_abort(Shard::new(host, arena, messages, bells, drain_limit));
                }
            }
        }
    })?;
    let (waker, choice) = is_ready.recv().map_err(io::Error::other)??;
    Ok((Mailbox { sender, waker, belfry }, choice, thread))
}

/// A shard over a host of the caller's, with the mailbox that leads to it.
pub(super) fn unstarted(host: Host, arena: Arena, drain_limit: Duration) -> (Mailbox, Shard) {
    let (sender, messages) = sync_channel(MAILBOX_DEPTH);
    let waker = host.wake_handle();
    let belfry = Belfry::default();
    let shard = Shard::new(host, arena, messages, belfry.clone(), drain_limit);
    (Mailbox { sender, waker, belfry }, shard)
}

/// A shard that lost its way must not go on writing, and without it the process serves nobody:
/// clients find a broken connection instead of one that hangs.
fn run_or_abort(shard: Shard) {
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| shard.run()));
    if ended.is_err() {
        tracing::error!("the shard failed by a defect of orlop; the process ends at once");
        std::process::abort();
    }
}

//! The way into a shard from other threads: a bounded queue of messages and a wake-up.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use super::client::Client;
use super::run::Shard;
use crate::engine::Disk;
use crate::engine::effect::FileId;
use crate::host::memory::ArenaSize;
use crate::host::{Aio, Choice, Host, OpenMode, Waker};

/// Messages that may wait in the mailbox.
const MAILBOX_DEPTH: usize = 256;

/// Names a disk of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DiskTag(pub u32);

/// The host of a shard as an attachment sees it: it takes files over and names them.
pub(crate) type AddFile<'a> = &'a mut dyn FnMut(OwnedFd, OpenMode) -> io::Result<FileId>;

/// Makes a disk out of open files, on the shard's own thread.
pub type Attachment = Box<dyn FnOnce(AddFile<'_>) -> io::Result<Disk> + Send>;

/// A connection that has been negotiated and moves into the shard.
pub struct NewClient {
    /// The disk it uses.
    pub disk: DiskTag,
    /// Its connected socket.
    pub socket: OwnedFd,
    /// Who speaks on it.
    pub client: Box<dyn Client>,
    /// Dropped when the connection is gone: a slot in somebody's limit.
    pub guard: Box<dyn std::any::Any + Send>,
}

pub(super) enum Message {
    Attach(Attachment, oneshot::Sender<io::Result<DiskTag>>),
    Connect(NewClient),
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
}

impl Mailbox {
    fn post(&self, message: Message) -> Result<(), Refused> {
        self.sender.try_send(message).map_err(|error| match error {
            TrySendError::Full(_) => Refused::Full,
            TrySendError::Disconnected(_) => Refused::Gone,
        })?;
        self.waker.wake();
        Ok(())
    }

    /// Gives the shard a disk to own.
    ///
    /// # Errors
    /// What the attachment said, or that the shard does not answer.
    pub async fn attach(&self, attachment: Attachment) -> io::Result<DiskTag> {
        let (sender, answer) = oneshot::channel();
        self.post(Message::Attach(attachment, sender)).map_err(io::Error::other)?;
        answer.await.map_err(|_| io::Error::other(Refused::Gone))?
    }

    /// Moves a connection into the shard.
    ///
    /// # Errors
    /// When the shard does not take it; the connection is closed then.
    pub fn connect(&self, client: NewClient) -> Result<(), Refused> {
        self.post(Message::Connect(client))
    }

    /// Ends the shard: clients finish what is in flight, every disk is committed.
    ///
    /// # Errors
    /// What kept a disk from becoming durable.
    pub async fn shut_down(&self) -> Result<(), String> {
        let (sender, answer) = oneshot::channel();
        self.post(Message::Shutdown(sender)).map_err(|refused| refused.to_string())?;
        answer.await.unwrap_or_else(|_| Err(Refused::Gone.to_string()))
    }
}

/// Starts a shard's thread.
///
/// # Errors
/// When no host or memory is to be had.
pub fn spawn(aio: Aio, size: ArenaSize) -> io::Result<(Mailbox, Choice, JoinHandle<()>)> {
    let (sender, messages) = sync_channel(MAILBOX_DEPTH);
    let (ready, is_ready) = sync_channel::<io::Result<(Waker, Choice)>>(1);
    let thread = std::thread::Builder::new().name("orlop-shard".to_owned()).spawn(move || {
        let made = crate::host::memory::Arena::new(size).and_then(|arena| {
            let (host, choice) = Host::new(aio, &arena)?;
            Ok((arena, host, choice))
        });
        match made {
            Err(error) => drop(ready.send(Err(error))),
            Ok((arena, host, choice)) => {
                let waker = host.wake_handle();
                if ready.send(Ok((waker, choice))).is_ok() {
                    run_or_abort(Shard::new(host, arena, messages));
                }
            }
        }
    })?;
    let (waker, choice) = is_ready.recv().map_err(io::Error::other)??;
    Ok((Mailbox { sender, waker }, choice, thread))
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

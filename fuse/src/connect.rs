//! Making a connection: the mount itself, `fuser`'s greeting and, where they are wanted, the ring
//! or the reader of the device.
//!
//! A failure leaves nothing behind. A kernel that has agreed to a ring waits for it with every
//! request, so from there on whatever goes wrong ends the connection before anything else.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use fuser::{BackgroundSession, Config, Notifier, Session, SessionACL};
use rustix::fs::{AtFlags, CWD, StatxFlags};

use crate::attach::{KIND, MountError, Options, attach, detach, open_device};
use crate::channel::ChannelHost;
use crate::ended::Ended;
use crate::filesystem::{Glue, RingWish};
use crate::manner::Manner;
use crate::mountinfo::{table, topmost};
use crate::ops::Ops;
use crate::ring::{Connection, Ending, REQUEST_BYTES_MAX, REQUEST_BYTES_MIN, Requests, RingHost};

/// Threads that read requests; they only pass them on.
const THREADS_MAX: usize = 16;
/// How long the first request over a ring may take. It asks nothing of any disk.
const FIRST_ANSWER_MAX: Duration = Duration::from_secs(10);

/// What carries the requests of a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// The FUSE device, as was asked for.
    Classic,
    /// The FUSE device, but read by threads of the mount, although somebody else was to; why.
    Threads(String),
    /// A ring; the device only what the kernel sends nowhere else.
    Ring,
    /// The device, although rings were asked for; why.
    Fallback(String),
}

/// A connection that is served.
pub(crate) struct Served {
    /// The mount's device number.
    pub(crate) device: String,
    pub(crate) ended: Arc<Ended>,
    pub(crate) notifier: Notifier,
    /// The threads that read the device, unless somebody else reads it.
    pub(crate) session: Option<BackgroundSession>,
    pub(crate) transport: Transport,
}

enum Failure {
    Mount(MountError),
    /// The ring was agreed on and is not there. The mount is gone again.
    Ring(io::Error),
    /// Nobody reads the device. The mount is gone again.
    Channel(io::Error),
}

/// How requests are to come, other than to threads of the mount.
#[derive(Clone, Copy)]
struct Ways<'a> {
    ring: Option<&'a Arc<dyn RingHost>>,
    channel: Option<&'a Arc<dyn ChannelHost>>,
}

impl From<MountError> for Failure {
    fn from(error: MountError) -> Self {
        Self::Mount(error)
    }
}

/// Mounts and serves; with the classic transport where a ring turns out not to work, and by threads
/// of the mount where nobody else reads the device.
pub(crate) fn connect(at: &Path, options: &Options, ops: &Arc<Ops>) -> Result<Served, MountError> {
    let channel = options.channel.as_ref().filter(|_| !options.passthrough);
    let mut ways = Ways { ring: options.ring.as_ref(), channel };
    let mut instead = None;
    loop {
        match attempt(at, options, ops, ways) {
            Ok(served) => {
                let transport = instead.unwrap_or(served.transport);
                return Ok(Served { transport, ..served });
            }
            Err(Failure::Mount(error)) => return Err(error),
            Err(Failure::Ring(why)) if ways.ring.take().is_some() => {
                let why = format!("the ring could not be used: {why}");
                instead = Some(Transport::Fallback(why));
            }
            Err(Failure::Channel(why)) if ways.channel.take().is_some() => {
                instead = instead.or(Some(Transport::Threads(why.to_string())));
            }
            Err(Failure::Ring(cause) | Failure::Channel(cause)) => {
                return Err(MountError::Session { at: at.to_owned(), cause });
            }
        }
    }
}

fn attempt(
    at: &Path,
    options: &Options,
    ops: &Arc<Ops>,
    ways: Ways<'_>,
) -> Result<Served, Failure> {
    let ring = ways.ring;
    let opened = open_device(&options.device);
    let clone_fd = opened.is_ok();
    let fd = attach(at, options, opened)?;
    // From here on a failure has something to take away.
    let mut taken_away = TakenAway { at, ending: None, armed: true };
    let session = |cause| MountError::Session { at: at.to_owned(), cause };
    let Some(found) = topmost(&table(), at).filter(|mount| mount.kind == KIND) else {
        let missing = io::Error::other("the mount is not in the table of mounts");
        return Err(session(missing).into());
    };
    let ending = Arc::new(Ending::new(at.to_owned(), found.device.clone()));
    taken_away.ending = Some(ending.clone());

    let ended = Arc::new(Ended::new());
    let manner = Manner {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        passthrough: options.passthrough,
    };
    let agreed = Arc::new(AtomicBool::new(false));
    let request_bytes = ring.map_or(REQUEST_BYTES_MAX, |ring| request_bytes_of(&**ring));
    let wish = ring.map(|_| RingWish { request_bytes, agreed: agreed.clone() });
    let glue = Glue::new(ops.clone(), manner, ended.clone()).wishing(wish);
    let acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    let mut config = Config::default();
    config.acl = acl;
    config.n_threads = Some(options.threads.clamp(1, THREADS_MAX));
    config.clone_fd = clone_fd;
    let fuser = Session::from_fd(glue, fd, acl, config).map_err(session)?;

    let connection = |request_bytes| {
        let fuse = fuser.as_fd().try_clone_to_owned().map_err(session)?;
        let requests = Requests::new(ops.clone(), manner);
        let (ending, ended) = (ending.clone(), ended.clone());
        Ok::<_, MountError>(Connection::new(fuse, requests, request_bytes, ending, ended))
    };
    let mut transport = Transport::Classic;
    if let Some(ring) = ring {
        transport = if agreed.load(Ordering::Acquire) {
            ring.start(connection(request_bytes)?).map_err(Failure::Ring)?;
            Transport::Ring
        } else {
            let why = "the kernel does not offer FUSE over io_uring (6.14 and later do, with the \
                fuse module's parameter enable_uring=Y)";
            Transport::Fallback(why.to_owned())
        };
    }
    let notifier = fuser.notifier();
    let session = match ways.channel {
        // It has greeted the kernel, and that was all.
        _ if transport == Transport::Ring => {
            drop(fuser);
            None
        }
        Some(channel) => {
            channel.start(connection(REQUEST_BYTES_MAX)?).map_err(Failure::Channel)?;
            drop(fuser);
            None
        }
        None => Some(fuser.spawn().map_err(session)?),
    };
    if transport == Transport::Ring {
        first_answer(at, &found.device).map_err(Failure::Ring)?;
    }
    taken_away.armed = false;
    Ok(Served { device: found.device, ended, notifier, session, transport })
}

fn request_bytes_of(ring: &dyn RingHost) -> u32 {
    // Whole pages, whatever their size is here.
    ring.request_bytes().clamp(REQUEST_BYTES_MIN, REQUEST_BYTES_MAX) & !(REQUEST_BYTES_MIN - 1)
}

/// Asks for the root's attributes, as the kernel must send a request for. Where every queue is
/// registered it is answered; waiting for ever is what this is here to prevent.
fn first_answer(at: &Path, device: &str) -> io::Result<()> {
    let (tell, told) = sync_channel(1);
    let at: PathBuf = at.to_owned();
    let ask = move || {
        let flags = AtFlags::STATX_FORCE_SYNC | AtFlags::SYMLINK_NOFOLLOW;
        let asked = rustix::fs::statx(CWD, &at, flags, StatxFlags::BASIC_STATS);
        // Nobody listens any more when it took too long.
        let _ =
            tell.send(asked.map(|root| format!("{}:{}", root.stx_dev_major, root.stx_dev_minor)));
    };
    thread::Builder::new().name("orlop-fuse-first".to_owned()).spawn(ask)?;
    match told.recv_timeout(FIRST_ANSWER_MAX) {
        Ok(Ok(answered)) if answered == device => Ok(()),
        Ok(Ok(_)) => Err(io::Error::other("the mount was taken away at once")),
        Ok(Err(cause)) => Err(cause.into()),
        Err(_) => {
            let text = format!("no request was answered within {FIRST_ANSWER_MAX:?}");
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        }
    }
}

/// Takes a mount away again that did not come to be served.
struct TakenAway<'a> {
    at: &'a Path,
    ending: Option<Arc<Ending>>,
    armed: bool,
}

impl Drop for TakenAway<'_> {
    fn drop(&mut self) {
        if self.armed {
            if let Some(ending) = &self.ending {
                ending.abort();
            }
            let _ = detach(self.at);
        }
    }
}

//! From the start to the end: what is claimed, attached and opened in which order, and how all of
//! it is given back.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::config::{Fuse, Settings};
use super::home::{self, Home, HomeError};
use super::{pulse, system};
use crate::api::{self, ApiLimits};
use crate::control::{Control, Error};
use crate::live::{Live, LiveError, LiveSettings};

/// Threads for sockets; calls that block have others.
const WORKERS: usize = 2;
/// Calls that may block at once; more wait.
const BLOCKING_MAX: usize = 64;
/// How long threads have that nobody waits for any more.
const LINGERING: Duration = Duration::from_secs(2);

/// Why the daemon did not start, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Its directory cannot be had.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// Disks cannot be served, or could not be closed.
    #[error("cannot {doing}: {error}")]
    Live {
        /// What was tried.
        doing: &'static str,
        /// Why not.
        error: Box<LiveError>,
    },
    /// What was attached is not known.
    #[error("{0}")]
    Control(Box<Error>),
    /// The management socket.
    #[error("{}: the management socket: {error}", place.display())]
    Socket {
        /// Where.
        place: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The system.
    #[error("cannot {doing}: {error}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// Why not.
        error: io::Error,
    },
    /// Something did not end in its time.
    #[error("{what} did not end within {} s; what was flushed is safe", within.as_secs())]
    Late {
        /// What.
        what: &'static str,
        /// How long it had.
        within: Duration,
    },
}

impl From<Error> for DaemonError {
    fn from(error: Error) -> Self {
        Self::Control(Box::new(error))
    }
}

impl DaemonError {
    fn live(doing: &'static str) -> impl Fn(LiveError) -> Self {
        move |error| Self::Live { doing, error: Box::new(error) }
    }
}

/// Reads the configuration again: what changed and needs a new start, or why it was not read.
pub type Reload<'a> = &'a mut dyn FnMut() -> Result<Vec<&'static str>, String>;

/// Lives until SIGTERM or SIGINT.
///
/// # Errors
/// Why it did not start, or what could not be closed.
pub fn run(settings: &Settings, reload: Reload<'_>) -> Result<(), DaemonError> {
    let system = |doing| move |error| DaemonError::System { doing, error };
    let passed = system::passed_socket().map_err(system("take the passed socket over"))?;
    let home = Home::claim(&settings.state)?;
    let places = [&settings.api_socket, &settings.nbd_socket, &settings.fuse_mount];
    for parent in places.into_iter().filter_map(|place| place.parent()) {
        home::make_runtime(parent)?;
    }
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(WORKERS).max_blocking_threads(BLOCKING_MAX).enable_all();
    let runtime = builder.thread_name("orlop-control").build();
    let runtime = runtime.map_err(system("start threads"))?;
    let outcome = runtime.block_on(live(settings, &home, passed, reload));
    runtime.shutdown_timeout(LINGERING);
    outcome
}

async fn live(
    settings: &Settings,
    home: &Home,
    passed: Option<OwnedFd>,
    reload: Reload<'_>,
) -> Result<(), DaemonError> {
    // From the first moment: a signal that comes while things are attached must not kill.
    let mut signals = Signals::new()?;
    let live = start_live(settings).await?;
    let settled = crate::control::Settings {
        host: home.host().to_string(),
        state: settings.state.clone(),
        mounts: settings.sr_mounts.clone(),
        patience: settings.patience,
    };
    let (ended, control) = match Control::new(settled, Arc::clone(&live) as _).map(Arc::new) {
        Ok(control) => {
            (answer(settings, (&live, &control), passed, &mut signals, reload).await, Some(control))
        }
        Err(error) => (Err(error.into()), None),
    };
    let stopped = within(settings.stop, "the disks", live.stop()).await;
    let stopped =
        stopped.and_then(|stopped| stopped.map_err(DaemonError::live("make all disks durable")));
    if let Some(control) = control {
        // What hangs with its storage is the kernel's to end.
        let released = within(settings.stop, "the SRs", blocking(move || control.release())).await;
        match released {
            Ok(failures) => failures?.into_iter().for_each(|failure| {
                tracing::warn!(%failure, "it stays as it is; the next start takes it over");
            }),
            Err(error) => {
                tracing::warn!(%error, "an SR cannot be let go; the next start takes it over")
            }
        }
    }
    tracing::info!(well = stopped.is_ok(), "stopped");
    ended.and(stopped)
}

/// Attaches what was attached, opens the door, and shuts it when a signal comes.
async fn answer(
    settings: &Settings,
    (live, control): (&Live, &Arc<Control>),
    passed: Option<OwnedFd>,
    signals: &mut Signals,
    reload: Reload<'_>,
) -> Result<(), DaemonError> {
    if !attach_again(settings, control, signals).await? {
        tracing::info!("told to stop before everything was attached again; the next start goes on");
        return Ok(());
    }
    let door = Door::open(settings, control, passed)
        .map_err(|error| DaemonError::Socket { place: settings.api_socket.clone(), error })?;
    tracing::info!(socket = %door.place.display(), nbd = %settings.nbd_socket.display(), "ready");
    system::tell(&[NotifyState::Ready, NotifyState::Status("answering")]);
    let ended = stay(settings, live, &door, signals, reload).await;
    system::tell(&[NotifyState::Stopping, NotifyState::Status("making disks durable")]);
    tracing::info!("stopping: calls under way end, disks are made durable");
    door.close(settings.stop).await.and(ended)
}

/// Attaches what was attached; false: a signal came, and the rest is left for the next start.
async fn attach_again(
    settings: &Settings,
    control: &Arc<Control>,
    signals: &mut Signals,
) -> Result<bool, DaemonError> {
    system::tell(&[NotifyState::Status("attaching what was attached")]);
    let told = Arc::new(AtomicBool::new(false));
    let restoring = blocking({
        let (control, told) = (Arc::clone(control), Arc::clone(&told));
        move || control.restore(|| !told.load(Ordering::Relaxed))
    });
    tokio::pin!(restoring);
    let failures = tokio::select! {
        failures = &mut restoring => failures??,
        () = signals.end() => {
            told.store(true, Ordering::Relaxed);
            // One of them may hang with its storage.
            within(settings.stop, "attaching what was attached", restoring).await???
        }
    };
    for failure in failures {
        tracing::warn!(%failure, "not attached again; the next start tries again");
    }
    Ok(!told.load(Ordering::Relaxed))
}

/// What arrives while the daemon lives.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> Result<Self, DaemonError> {
        let listen = |kind| {
            signal(kind).map_err(|error| DaemonError::System { doing: "wait for signals", error })
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// Returns when one comes that wants an end.
    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Serves disks; without the tree of files where it may be missing and cannot be had.
async fn start_live(settings: &Settings) -> Result<Arc<Live>, DaemonError> {
    let mut wanted = LiveSettings {
        mount: Some(settings.fuse_mount.clone()),
        nbd: settings.nbd_socket.clone(),
        nbd_mode: settings.nbd_mode,
        shards: settings.threads,
        memory_mib: settings.memory_mib,
        aio: settings.aio,
        allow_other: settings.allow_other,
    };
    let failed = DaemonError::live("serve disks");
    let without = match settings.fuse {
        Fuse::Off => None,
        Fuse::On => return Live::start(wanted).await.map_err(failed),
        Fuse::Auto => match why_not_mount() {
            Some(why) => Some(why.to_owned()),
            None => match Live::start(wanted.clone()).await {
                Ok(live) => return Ok(live),
                Err(error) => Some(error.to_string()),
            },
        },
    };
    if let Some(why) = without {
        tracing::warn!(why, "no files: attached VDIs are served over NBD only");
    }
    wanted.mount = None;
    Live::start(wanted).await.map_err(failed)
}

/// Why this process need not try to mount.
fn why_not_mount() -> Option<&'static str> {
    let device = std::fs::File::options().read(true).write(true).open("/dev/fuse");
    if device.is_err() {
        return Some("/dev/fuse is not there, or not for this user");
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has = |name: &str| std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    let may = rustix::process::geteuid().is_root() || has("fusermount3");
    (!may).then_some("fusermount3 is not installed, and without it only root may mount")
}

/// The management socket, while it is open.
struct Door {
    /// Where it is.
    place: PathBuf,
    /// Whether it is ours to remove.
    ours: bool,
    shut: oneshot::Sender<()>,
    serving: JoinHandle<io::Result<()>>,
}

impl Door {
    fn open(
        settings: &Settings,
        control: &Arc<Control>,
        passed: Option<OwnedFd>,
    ) -> io::Result<Self> {
        let ours = passed.is_none();
        let (listener, place) = listen(settings, passed)?;
        let (shut, is_shut) = oneshot::channel();
        let until = async move {
            // Whoever drops the other end wants it shut as well.
            let _ = is_shut.await;
        };
        let control = Arc::clone(control);
        let serving = tokio::spawn(api::serve(listener, control, ApiLimits::default(), until));
        Ok(Self { place, ours, shut, serving })
    }

    /// Takes no more calls, and waits for those under way.
    async fn close(self, limit: Duration) -> Result<(), DaemonError> {
        let Self { place, ours, shut, serving } = self;
        // It may have ended by itself.
        let _ = shut.send(());
        let ended = within(limit, "calls under way", serving).await;
        if ours {
            remove(&place);
        }
        match ended? {
            Ok(served) => served.map_err(|error| DaemonError::Socket { place, error }),
            Err(panic) => {
                let doing = "serve the management socket";
                Err(DaemonError::System { doing, error: panic.into() })
            }
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, DaemonError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| DaemonError::System { doing: "wait for a thread", error: error.into() })
}

fn listen(settings: &Settings, passed: Option<OwnedFd>) -> io::Result<(UnixListener, PathBuf)> {
    let socket = match passed {
        Some(socket) => socket,
        None => crate::server::bind_unix(&settings.api_socket, settings.api_mode)?,
    };
    let listener = std::os::unix::net::UnixListener::from(socket);
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let place = address.as_pathname().unwrap_or(&settings.api_socket).to_owned();
    Ok((UnixListener::from_std(listener)?, place))
}

/// Answers until a signal says that it is over.
async fn stay(
    settings: &Settings,
    live: &Live,
    door: &Door,
    signals: &mut Signals,
    reload: Reload<'_>,
) -> Result<(), DaemonError> {
    let watched = pulse::tell(door.place.clone(), settings.nbd_socket.clone(), || live.has_room());
    tokio::pin!(watched);
    let mut look = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return Ok(()),
            _ = signals.interrupt.recv() => return Ok(()),
            _ = signals.hang_up.recv() => read_again(reload),
            never = &mut watched => match never {},
            _ = look.tick() => if door.serving.is_finished() {
                let error = io::Error::other("nobody accepts connections any more");
                return Err(DaemonError::Socket { place: door.place.clone(), error });
            },
        }
    }
}

fn read_again(reload: Reload<'_>) {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        system::tell(&[NotifyState::Reloading, now]);
    }
    match reload() {
        Ok(waiting) if waiting.is_empty() => tracing::info!("the configuration was read again"),
        Ok(waiting) => {
            let waiting = waiting.join(", ");
            tracing::warn!(waiting, "the configuration was read again; these need a new start");
        }
        Err(why) => tracing::warn!(why, "the configuration stays as it was"),
    }
    system::tell(&[NotifyState::Ready]);
}

async fn within<T>(
    limit: Duration,
    what: &'static str,
    ending: impl Future<Output = T>,
) -> Result<T, DaemonError> {
    tokio::time::timeout(limit, ending).await.map_err(|_| DaemonError::Late { what, within: limit })
}

fn remove(socket: &Path) {
    if let Err(error) = std::fs::remove_file(socket)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(%error, "the management socket's name stays");
    }
}

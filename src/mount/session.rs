//! The life of a mount in the process that serves it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use orlop_fuse::{Bytes, DiskId, Layout, NewDisk, Options, Window};

use super::about::{Chain, ImageAbout};
use super::ending::{End, Signals};
use super::failure::MountFailure;
use super::opening::{self, Opened};
use super::passing::{Mapped, Passed};
use super::standing::{Plan, Standing, stand};
use super::windows::windows;
use super::{Ready, Wish, guard, place, way};
use crate::host::memory::ArenaSize;
use crate::meter::Meter;
use crate::server::{Bound, Control, Estate, Limits, Listen, Part, Registry, Seat, Service, bind};
use crate::shard::{self, Mailbox};
use crate::transport::files::{Channel, FileDisk, Files};

/// The one disk of the mount.
pub(super) const DISK: DiskId = DiskId(1);
/// The one export.
const EXPORT: &str = "";
/// Where the kernel tells when a file was written.
const UNKNOWN: SystemTime = SystemTime::UNIX_EPOCH;

/// Mounts, tells that it answers, and serves until it is unmounted or a signal comes. What `tell`
/// cannot say is a reason to unmount again: whoever waits for it is gone.
///
/// # Errors
/// What kept it from being mounted, or from being durable in the end. Nothing is left behind.
pub fn run(
    wish: &Wish,
    tell: &mut dyn FnMut(&Ready) -> io::Result<()>,
) -> Result<(), MountFailure> {
    // Looked at before the image is: opening one to write may change it.
    let at = &place::make_ready(&wish.at)?;
    let inside = wish.file_system.as_deref().map(|wanted| place_inside(at, wanted)).transpose()?;
    let wish = &Wish { at: at.clone(), file_system: inside, ..wish.clone() };
    let mut opened = opening::open(wish)?;
    let not_passed = way::why_not_passed(wish, &mut opened);
    let bound = wish.nbd.clone().map(|path| bind(&[Listen::Unix(path)])).transpose();
    let bound = bound.map_err(MountFailure::Nbd)?;
    guard::flush_nothing_for_memory();
    guard::stay_in_memory();
    let failed = |what| move |error| MountFailure::System { what, error };
    let arena = ArenaSize { large_bytes: wish.memory_mib << 20, ..ArenaSize::default() };
    let passes = matches!(opened.passed, Some(Ok(_)));
    let wanted = way::wants_rings(wish, passes);
    let spawned = if wanted.is_ok() {
        shard::spawn_with_inlets(wish.aio, arena)
    } else {
        shard::spawn(wish.aio, arena)
    };
    let (mailbox, choice, thread) = spawned.map_err(failed("no I/O host (try --aio threads)"))?;
    tracing::debug!("I/O by {choice}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed("no runtime"))?;
    let outcome = runtime.block_on(async {
        let ways = (not_passed, wanted);
        let outcome = serve(wish, opened, ways, bound, mailbox.clone(), tell).await;
        // Whatever happened, what was answered becomes durable.
        let closed = mailbox.shut_down().await.map_err(MountFailure::NotDurable);
        outcome.and(closed)
    });
    drop(thread.join());
    outcome
}

/// Where the file system inside goes, without links: so the kernel will name it.
fn place_inside(at: &Path, wanted: &Path) -> Result<PathBuf, MountFailure> {
    let wrong =
        |why: String, absent| Err(MountFailure::InsidePlace { at: wanted.to_owned(), why, absent });
    let place = match std::fs::canonicalize(wanted) {
        Ok(place) => place,
        Err(error) => return wrong(error.to_string(), error.kind() == io::ErrorKind::NotFound),
    };
    let why = if place == at {
        "it is the mount point itself, where the disk's files go; name another directory"
    } else if place.starts_with(at) {
        "it lies below the mount point, where the disk's files go; name another directory"
    } else if at.starts_with(&place) {
        "it lies above the mount point, which would be covered; name another directory"
    } else if !place.is_dir() {
        "it is not a directory"
    } else {
        return Ok(place);
    };
    wrong(why.to_owned(), false)
}

async fn serve(
    wish: &Wish,
    opened: Opened,
    (not_passed, wanted): (Option<String>, Result<(), &str>),
    bound: Option<Bound>,
    mailbox: Mailbox,
    tell: &mut dyn FnMut(&Ready) -> io::Result<()>,
) -> Result<(), MountFailure> {
    let failed = |what| move |error| MountFailure::System { what, error };
    let mut signals = Signals::new().map_err(failed("no signals"))?;
    let Opened { prepared, spec, chain, read_only_because, fresh, passed } = opened;
    let (registry, limits) = (Arc::new(Registry::default()), Limits::default());
    let estate = Estate::new(vec![mailbox], prepared);
    let control = Control::new(Arc::clone(&registry), estate, limits.per_export, None);
    let seat = control.add(spec).await?;
    let nbd = bound.as_ref().and_then(|bound| bound.addresses().find_map(|a| a.uri("", false)));
    let about = about(wish, &seat, chain, read_only_because, nbd);
    let (windows, notices) = match wish.spec.part {
        Part::WHOLE => windows(&control, &seat).await,
        _ => (Vec::new(), Vec::new()),
    };
    let files = Files::new();
    let (passed, mapped) =
        (passed.and_then(Result::ok), Arc::new(Mapped::new(DISK, seat.extent())));
    let passes = passed.is_some();
    show(&files, &seat, &about, passed, &mapped)?;
    let plan = plan(wish, &seat, windows, &files, mapped);
    let channel = Channel::new(seat.disk.mailbox.clone(), Arc::clone(&files));
    let ring = wanted.is_ok().then(|| way::rings(&seat.disk.mailbox, &files));
    let channel = Some(channel as _);
    let options = Options { passthrough: passes, ring, channel, ..plan.options };
    let plan = Plan { options, ..plan };
    let standing = tokio::task::spawn_blocking(move || stand(plan)).await;
    let standing = standing.map_err(|panic| failed("mounting")(io::Error::other(panic)))??;
    let _ = about.made.set(standing.made());
    let mut way = way::taken(wish, passes, wanted, standing.transport())?;
    if let Some(why) = not_passed {
        way.why = format!("{}; no passthrough: {why}", way.why);
    }
    tracing::info!("requests come by {}: {}", way.name, way.why);
    let _ = about.way.set(way);
    let notices = notices.into_iter().chain(about.read_only_because.clone()).collect();
    let ready = Ready { info: about.info(), notices, ..standing.ready() };
    let service =
        Service::new(Arc::clone(&registry), limits, None, tokio::runtime::Handle::current());
    let told = tell(&ready).map_err(failed("it was unmounted again: nobody waits for it"));
    let end = if told.is_err() {
        End::Asked
    } else {
        if let Some(fresh) = fresh {
            fresh.keep();
        }
        tokio::select! {
            () = standing.unmounted() => End::Unmounted,
            () = signals.come() => End::Asked,
            () = serve_nbd(&service, bound) => End::Asked,
        }
    };
    let flushed = take_down(standing, end, signals).await;
    registry.drain();
    let passed = files.close(DISK).map_err(|error| MountFailure::NotDurable(error.to_string()));
    control.remove(EXPORT).await?;
    told.and(flushed).and(passed)
}

/// Never comes back: without its socket, the mount goes on.
async fn serve_nbd(service: &Service, bound: Option<Bound>) {
    if let Some(bound) = bound
        && let Err(error) = service.serve(bound).await
    {
        tracing::error!(%error, "NBD clients are no longer let in");
    }
    std::future::pending().await
}

async fn take_down(standing: Standing, end: End, mut signals: Signals) -> Result<(), MountFailure> {
    let hurry = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let told = Arc::clone(&hurry);
    let mut down = tokio::task::spawn_blocking(move || standing.take_down(end, &told));
    loop {
        tokio::select! {
            done = &mut down => {
                let failed = |error| MountFailure::NotDurable(io::Error::other(error).to_string());
                return done.map_err(failed)?;
            }
            // A second signal: no more patience with those who keep it busy.
            () = signals.come() => hurry.store(true, std::sync::atomic::Ordering::Relaxed),
        }
    }
}

fn about(
    wish: &Wish,
    seat: &Arc<Seat>,
    chain: Chain,
    read_only_because: Option<String>,
    nbd: Option<String>,
) -> Arc<ImageAbout> {
    let partition = match wish.spec.part {
        Part::Partition(number) => Some(number),
        Part::Window { .. } => None,
    };
    Arc::new(ImageAbout {
        chain,
        seat: Arc::clone(seat),
        meter: Arc::new(Meter::new()),
        overlay: wish.kept_overlay.clone().or_else(|| wish.spec.overlay.clone()),
        partition,
        read_only_because,
        nbd,
        way: OnceLock::new(),
        made: OnceLock::new(),
        since: Instant::now(),
    })
}

/// Lets mounts ask the disk.
fn show(
    files: &Files,
    seat: &Seat,
    about: &Arc<ImageAbout>,
    passed: Option<Passed>,
    mapped: &Arc<Mapped>,
) -> Result<(), MountFailure> {
    let disk = FileDisk {
        mailbox: seat.disk.mailbox.clone(),
        tag: seat.disk.tag,
        export: seat.key,
        window: seat.extent(),
        about: Arc::clone(about) as _,
        passing: passed.map(|passed| Arc::new(passed) as _),
        watch: Some(Arc::clone(mapped) as _),
        meter: Arc::clone(&about.meter),
    };
    let what = "the disk cannot be asked";
    files.open(DISK, disk).map_err(|e| MountFailure::System { what, error: io::Error::other(e) })
}

fn plan(
    wish: &Wish,
    seat: &Seat,
    windows: Vec<Window>,
    files: &Arc<Files>,
    mapped: Arc<Mapped>,
) -> Plan {
    let path = &seat.disk.path;
    let modified = std::fs::metadata(path).and_then(|meta| meta.modified()).unwrap_or(UNKNOWN);
    let label = path.file_name().unwrap_or_default().as_encoded_bytes().to_vec();
    Plan {
        at: wish.at.clone(),
        options: Options {
            layout: Layout::Single,
            source: source_of(path),
            allow_other: wish.allow_other,
            read_only: seat.read_only,
            threads: wish.threads,
            ..Options::default()
        },
        disk: NewDisk {
            id: DISK,
            label,
            len: Bytes(seat.extent().len.get()),
            read_only: seat.read_only,
            windows,
            modified,
        },
        port: Arc::clone(files) as _,
        mapped,
        loop_device: wish.loop_device,
        file_system: wish.file_system.clone(),
        file_system_options: wish.file_system_options.clone(),
    }
}

/// What the table of mounts names: the image by its whole path.
fn source_of(image: &Path) -> String {
    let whole = std::fs::canonicalize(image).unwrap_or_else(|_| image.to_owned());
    whole.to_string_lossy().into_owned()
}

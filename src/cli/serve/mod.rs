//! `orlop serve`: images, served over NBD until it is told to stop.
//!
//! The order is the point: descriptors and images first, then the locks on ourselves, then the
//! threads that talk to strangers.

mod announce;
mod exports;
mod limits;
mod listening;
mod tls;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::output::{Exit, Failure};
use crate::admin::{Admin, Look};
use crate::host::Aio;
use crate::host::memory::ArenaSize;
use crate::image::ImageError;
use crate::sandbox::{self, Allowed, Calls, Captive, Mode, Report, User};
use crate::server::{
    Bound, Control, ControlError, DiskError, Estate, ExportSpec, Prepared, Registry, Service,
};
use crate::shard::{self, Mailbox};
use exports::ExportOptions;
use limits::LimitOptions;
use listening::ListenOptions;
use tls::TlsOptions;

/// Threads for handshakes and TLS, where there is TLS.
const TLS_THREADS: usize = 2;
/// How often `--stats` tells.
const STATS_EVERY: Duration = Duration::from_secs(1);

/// How the I/O is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum AioArg {
    /// io_uring if the kernel offers it, else threads; says which it took.
    Auto,
    /// io_uring or nothing.
    Uring,
    /// A small pool of threads.
    Threads,
}

/// How much of the sandbox is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum SandboxArg {
    /// As much as the kernel offers; says what is missing.
    On,
    /// All of it, or no service.
    Required,
    /// None.
    Off,
}

impl From<SandboxArg> for Mode {
    fn from(arg: SandboxArg) -> Self {
        match arg {
            SandboxArg::On => Self::On,
            SandboxArg::Required => Self::Required,
            SandboxArg::Off => Self::Off,
        }
    }
}

/// Serve disk images over NBD.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  orlop serve disk.vhd --create 1G               make a 1 GiB VHD if there is none, and serve it
  orlop serve disk.vhd --socket /run/x.sock      on a unix socket
  orlop serve a.vhd b.vhd                        two exports, called a.vhd and b.vhd
  orlop serve --add name=p1,image=disk.vhd,partition=1,read-only
  orlop serve disk.vhd --overlay                 try things out: the image never changes
  orlop serve disk.vhd --bind 0.0.0.0 --tls-certs /etc/pki/orlop
  orlop serve disk.vhd --read-only --run 'qemu-img info \"$uri\"'")]
pub struct ServeOptions {
    #[command(flatten)]
    exports: ExportOptions,
    #[command(flatten)]
    listen: ListenOptions,
    #[command(flatten)]
    tls: TlsOptions,
    #[command(flatten)]
    limits: LimitOptions,
    #[command(flatten)]
    process: ProcessOptions,
}

/// How the process runs.
#[derive(Debug, Args)]
#[command(next_help_heading = "The process")]
struct ProcessOptions {
    /// Let `orlop export` add, remove, limit and watch exports through this unix socket
    #[arg(long, value_name = "PATH")]
    admin: Option<PathBuf>,
    /// Print what clients do to standard error, every second in which they do something
    #[arg(long)]
    stats: bool,
    /// Run this shell command with the URI in $uri, and stop when it ends
    #[arg(long, value_name = "COMMAND", conflicts_with = "stdio")]
    run: Option<String>,
    /// How the I/O is done
    #[arg(long, value_enum, default_value_t = AioArg::Auto)]
    aio: AioArg,
    /// Threads that serve disks; one of them does all that a written disk needs, and others read it
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=64))]
    threads: usize,
    /// Memory for requests in flight, in MiB, for each of those threads
    #[arg(long, value_name = "MIB", default_value_t = 256,
        value_parser = clap::value_parser!(u32).range(128..=2048))]
    memory: u32,
    /// Confine the server to what it has opened: no other files, programs or connections
    #[arg(long, value_enum, default_value_t = SandboxArg::On)]
    sandbox: SandboxArg,
    /// Where images lie that `orlop export add` may name; the sandbox keeps all others away (may
    /// be repeated)
    #[arg(long, value_name = "DIR", requires = "admin")]
    allow_dir: Vec<PathBuf>,
    /// Become this user once the sockets are bound (must be started as root)
    #[arg(long, value_name = "USER[:GROUP]")]
    user: Option<User>,
    /// Print one JSON object (a line) when the server is ready, and errors as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command and says how it ended.
pub(super) fn main(options: &ServeOptions, out: &mut dyn Write) -> ExitCode {
    match run(options, out) {
        Ok(status) => status.into(),
        Err(error) => failure(error).report(options.process.json, out).into(),
    }
}

/// What scripts tell apart has an exit code and a hint of its own.
fn failure(error: anyhow::Error) -> Failure {
    let causes = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    if causes.into_iter().any(|cause| cause.kind() == std::io::ErrorKind::AddrInUse) {
        let hint = "end who listens there, or choose another --socket or --port".to_owned();
        return Failure::new(Exit::Busy, "address-in-use", format!("{error:#}"), hint);
    }
    match error.downcast::<ControlError>() {
        Ok(ControlError::Disk(DiskError::Image(error))) => Failure::from(error),
        Ok(error @ ControlError::Partition { .. }) => {
            let hint = "leave the partition away to serve the whole disk".to_owned();
            Failure::new(Exit::NotFound, "no-partition", error.to_string(), hint)
        }
        Ok(error) => Failure::other(&anyhow::Error::from(error)),
        Err(error) => match error.downcast::<ImageError>() {
            Ok(error) => Failure::from(error),
            Err(error) => Failure::other(&error),
        },
    }
}

/// Opens what is to be exported, and serves it until a signal, the end of the command given with
/// `--run`, or the end of the last connection there can be.
fn run(options: &ServeOptions, out: &mut dyn Write) -> Result<u8> {
    crate::host::raise_open_files();
    let tls = options.tls.load()?;
    let (specs, usual) = (options.exports.specs()?, options.exports.usual()?);
    if options.tls.knows_nobody() && specs.iter().chain([&usual]).any(|s| !s.allow.is_empty()) {
        bail!("with --tls-no-client-certs nobody can be on a list of who may use an export");
    }
    // Before there is anything that an end by the system's hand would leave behind.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let stop = Stop::new(&runtime)?;
    // Bound before disks are opened: a port in use must not cost a commit.
    let open_to_all = specs.iter().any(|spec| spec.plaintext) || usual.plaintext;
    let mut bound = options.listen.bind(tls.is_some() && !open_to_all)?;
    let admin = options.process.admin.as_deref().map(Admin::bind);
    let admin = admin.transpose().context("--admin")?;
    // Before anything is confined: the command is not. After inherited sockets were taken over, so
    // that it does not inherit them as well.
    let captive = options.process.run.as_deref().map(Captive::spawn);
    let captive = captive.transpose().context("--run")?;
    if let Some(user) = &options.process.user {
        give_sockets(&bound, admin.as_ref(), user)?;
        sandbox::assume(user)?;
    }
    options.exports.create_if_absent()?;
    let mut prepared = Prepared::default();
    for spec in &specs {
        prepared.open(spec)?;
    }
    let mut report = confine(options, &bound, admin.as_ref())?;
    // From here on there are threads.
    let last_words = options.listen.add_stdio(&mut bound)?;
    let (shards, threads, ring) = spawn_shards(&options.process)?;
    let crew = Crew::new(tls.is_some())?;
    report.add(sandbox::confine_calls(Calls { ring }, options.process.sandbox.into())?);
    report.tell();
    let estate = Estate::new(shards.clone(), prepared);
    let limits = options.limits.limits();
    let registry = Arc::new(Registry::default());
    let per_export = limits.per_export;
    let control = Control::new(Arc::clone(&registry), estate, per_export, tls.clone())
        .only_tls(options.listen.needs_tls(&bound));
    let server = Server { bound, admin, control: Arc::new(control), captive, specs, usual };
    let outcome = runtime.block_on(async {
        let handle = crew.handle();
        let service = Service::new(Arc::clone(&registry), limits, tls.clone(), handle);
        let outcome = tokio::select! {
            // A word that came while disks were opened comes before anything is told.
            biased;
            () = stop.told() => Ok(0),
            ended = serve(options, server, &service, out) => ended,
        };
        registry.drain();
        let closed = shut_down(&shards).await;
        service.farewell().await;
        closed.and(outcome)
    });
    for thread in threads {
        drop(thread.join());
    }
    last_words.wait();
    outcome
}

/// Makes the user the server becomes the owner of its sockets.
fn give_sockets(bound: &Bound, admin: Option<&Admin>, user: &User) -> Result<()> {
    for path in bound.socket_paths().chain(admin.map(Admin::path)) {
        std::os::unix::fs::lchown(path, Some(user.uid()), Some(user.gid()))
            .with_context(|| format!("{}: cannot give it to the user", path.display()))?;
    }
    Ok(())
}

/// Gives up what serving does not need, as far as that must happen before threads start.
fn confine(options: &ServeOptions, bound: &Bound, admin: Option<&Admin>) -> Result<Report> {
    let mode = options.process.sandbox.into();
    let mut allowed = Allowed::new();
    for path in bound.socket_paths().chain(admin.map(Admin::path)) {
        allowed = allowed.remove(path);
    }
    for path in &options.process.allow_dir {
        allowed = allowed.write(path);
    }
    if let Some(place) = options.tls.place() {
        allowed = allowed.read(place);
    }
    let mut report = sandbox::drop_privileges(mode)?;
    report.add(sandbox::confine_files(&allowed, mode)?);
    Ok(report)
}

/// Shards, their threads, and whether they use rings.
type Shards = (Vec<Mailbox>, Vec<JoinHandle<()>>, bool);

fn spawn_shards(options: &ProcessOptions) -> Result<Shards> {
    let aio = match options.aio {
        AioArg::Auto => Aio::Auto,
        AioArg::Uring => Aio::Uring,
        AioArg::Threads => Aio::Threads,
    };
    let arena = ArenaSize { large_bytes: options.memory << 20, ..ArenaSize::default() };
    let mut shards = Vec::new();
    let mut threads = Vec::new();
    let mut ring = false;
    for _ in 0..options.threads {
        let (mailbox, choice, thread) =
            shard::spawn(aio, arena).context("no I/O host; try --aio threads")?;
        tracing::info!("I/O by {choice}");
        ring |= choice.aio == Aio::Uring;
        shards.push(mailbox);
        threads.push(thread);
    }
    Ok((shards, threads, ring))
}

/// The signals that end a server in order. From here on they wait to be heard.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn new(runtime: &tokio::runtime::Runtime) -> Result<Self> {
        let _inside = runtime.enter();
        let (interrupt, terminate) = (SignalKind::interrupt(), SignalKind::terminate());
        Ok(Self { interrupt: signal(interrupt)?, terminate: signal(terminate)? })
    }

    async fn told(mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// What a running server is made of.
struct Server {
    bound: Bound,
    admin: Option<Admin>,
    control: Arc<Control>,
    captive: Option<Captive>,
    specs: Vec<ExportSpec>,
    usual: ExportSpec,
}

async fn serve(
    options: &ServeOptions,
    server: Server,
    service: &Service,
    out: &mut dyn Write,
) -> Result<u8> {
    let Server { bound, admin, control, captive, specs, usual } = server;
    open_all(&control, specs, options.exports.default.as_deref()).await?;
    let registry = control.registry();
    let secure = control.tls().is_some();
    announce::announce(options, &bound, registry, secure, out)?;
    let uri = announce::first_uri(&bound, registry, secure);
    tokio::select! {
        ended = service.serve(bound) => ended.map(|()| 0).map_err(Into::into),
        ended = administer(admin.as_ref(), &control, usual) => Err(ended),
        () = watch(options.process.stats, registry) => Ok(0),
        status = outcome_of(captive, uri) => status,
    }
}

async fn open_all(control: &Control, specs: Vec<ExportSpec>, default: Option<&str>) -> Result<()> {
    for spec in specs {
        control.add(spec).await?;
    }
    if let Some(name) = default {
        control.registry().seat(name).context("--default")?;
        control.registry().set_default(Some(name.to_owned()));
    }
    Ok(())
}

/// Ends all shards, side by side; what was not made durable is an error.
async fn shut_down(shards: &[Mailbox]) -> Result<()> {
    let mut ending = tokio::task::JoinSet::new();
    for shard in shards {
        let shard = shard.clone();
        ending.spawn(async move { shard.shut_down().await });
    }
    let mut failed = Vec::new();
    while let Some(ended) = ending.join_next().await {
        failed.extend(ended?.err());
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("the last changes could not be made durable: {}", failed.join("; "))
}

async fn administer(
    admin: Option<&Admin>,
    control: &Arc<Control>,
    usual: ExportSpec,
) -> anyhow::Error {
    let Some(admin) = admin else { return std::future::pending().await };
    match admin.serve(Arc::clone(control), usual).await {
        Ok(()) => anyhow::anyhow!("the admin socket ended"),
        Err(error) => anyhow::Error::from(error).context("the admin socket"),
    }
}

/// Tells what clients do, for as long as it is polled.
async fn watch(wanted: bool, registry: &Registry) {
    if !wanted {
        return std::future::pending().await;
    }
    let mut before = Look::at(registry);
    loop {
        tokio::time::sleep(STATS_EVERY).await;
        let now = Look::at(registry);
        // Where standard error is gone, nobody watches.
        let _ = std::io::stderr().write_all(now.since(&before).as_bytes());
        before = now;
    }
}

/// The threads that negotiate and encrypt; without TLS, the control thread does it.
struct Crew(Option<tokio::runtime::Runtime>);

impl Crew {
    fn new(tls: bool) -> Result<Self> {
        if !tls {
            return Ok(Self(None));
        }
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(TLS_THREADS).thread_name("orlop-tls").enable_all();
        Ok(Self(Some(builder.build()?)))
    }

    /// To be called on the control thread's runtime.
    fn handle(&self) -> tokio::runtime::Handle {
        match &self.0 {
            Some(runtime) => runtime.handle().clone(),
            None => tokio::runtime::Handle::current(),
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Lets the captive command run, if there is one; its exit status becomes ours.
async fn outcome_of(captive: Option<Captive>, uri: String) -> Result<u8> {
    let Some(mut captive) = captive else { return std::future::pending().await };
    captive.release(&uri)?;
    let (done, is_done) = tokio::sync::oneshot::channel();
    // A thread of its own: the server must go on while the command runs.
    std::thread::spawn(move || {
        // Nobody waits any more when a signal came first.
        let _ = done.send(captive.wait());
    });
    let status = is_done.await??;
    Ok(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1))
}

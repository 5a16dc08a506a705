//! `orlop serve`: one image, served over NBD until it is told to stop.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use nbd::Export;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::options::ParentOptions;
use super::output::{Failure, SCHEMA_VERSION};
use crate::engine::units::ByteLen;
use crate::host::Aio;
use crate::host::memory::ArenaSize;
use crate::image::{
    self, CacheMode, Format, ImageError, NewImage, NewKind, OpenOptions, OpenedChain,
};
use crate::server::{self, Listen};
use crate::shard;
use crate::transport::nbd::{ExportShape, export_of};

/// The port NBD is known under.
const NBD_PORT: u16 = 10809;
/// Block size of a VHD made with `--create`.
const DEFAULT_BLOCK: ByteLen = ByteLen::new(2 << 20);

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

/// What the image's bytes pass through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum CacheArg {
    /// The kernel's page cache.
    Writeback,
    /// Nothing: O_DIRECT.
    None,
}

/// Serve a disk image over NBD.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  orlop serve disk.vhd --create 1G               make a 1 GiB VHD if there is none, and serve it
  orlop serve disk.vhd --socket /run/x.sock      on a unix socket
  orlop serve disk.vhd --read-only --run 'qemu-img info \"$uri\"'")]
pub struct ServeOptions {
    /// The image: .vhd, .raw, .img or a block device (or say --format).
    image: PathBuf,
    /// Create a dynamic VHD (or raw image) of this size if the file does not exist.
    #[arg(long, value_name = "SIZE", value_parser = super::size::parse_sectors)]
    create: Option<ByteLen>,
    /// Listen on this unix socket instead of TCP.
    #[arg(short = 'k', long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Listen on this TCP port (0: any free one); with --socket, on both.
    #[arg(short, long, value_name = "PORT")]
    port: Option<u16>,
    /// TCP address to listen on. Other than loopback needs --allow-remote.
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    bind: IpAddr,
    /// Listen beyond loopback although the connection is neither encrypted nor authenticated.
    #[arg(long)]
    allow_remote: bool,
    /// Name of the export; clients that ask for no name get it as well.
    #[arg(short, long, value_name = "NAME", default_value = "")]
    export: String,
    /// Refuse writes.
    #[arg(short, long)]
    read_only: bool,
    /// The image's format, if its name does not tell.
    #[arg(short, long)]
    format: Option<Format>,
    /// What the image's bytes pass through.
    #[arg(long, value_enum, default_value_t = CacheArg::Writeback)]
    cache: CacheArg,
    /// How the I/O is done.
    #[arg(long, value_enum, default_value_t = AioArg::Auto)]
    aio: AioArg,
    /// Open a parent's image for writing although children depend on it.
    #[arg(long)]
    force_rw_parent: bool,
    /// Run this shell command with the URI in $uri, and stop when it ends.
    #[arg(long, value_name = "COMMAND")]
    run: Option<String>,
    /// Memory for requests in flight, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 256,
        value_parser = clap::value_parser!(u32).range(128..=2048))]
    memory: u32,
    /// Print one JSON object (a line) when the server is ready, and errors as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    parents: ParentOptions,
}

impl ServeOptions {
    fn open_options(&self) -> OpenOptions {
        let mut options = self.parents.open(&self.image);
        options.format = self.format;
        options.read_only = self.read_only;
        options.cache = match self.cache {
            CacheArg::Writeback => CacheMode::Writeback,
            CacheArg::None => CacheMode::None,
        };
        options.force_rw_parent = self.force_rw_parent;
        options
    }

    fn addresses(&self) -> Result<Vec<Listen>> {
        let mut addresses = Vec::new();
        if let Some(path) = &self.socket {
            // The URI must lead there from any directory.
            addresses.push(Listen::Unix(std::path::absolute(path)?));
        }
        if self.port.is_some() || addresses.is_empty() {
            if !self.bind.is_loopback() && !self.allow_remote {
                bail!(
                    "{} is not a loopback address, and NBD without TLS lets anyone who reaches it \
                     read and write the disk; add --allow-remote if that is what you want",
                    self.bind
                );
            }
            let port = self.port.unwrap_or(NBD_PORT);
            addresses.push(Listen::Tcp(SocketAddr::new(self.bind, port)));
        }
        Ok(addresses)
    }
}

/// Runs the command and says how it ended.
pub(super) fn main(options: &ServeOptions, out: &mut dyn Write) -> ExitCode {
    match run(options, out) {
        Ok(status) => status.into(),
        Err(error) => {
            let failure = match error.downcast::<ImageError>() {
                Ok(error) => Failure::from(error),
                Err(error) => Failure::other(&error),
            };
            failure.report(options.json, out).into()
        }
    }
}

/// Opens the image and serves it until a signal, or the end of the command given with `--run`.
fn run(options: &ServeOptions, out: &mut dyn Write) -> Result<u8> {
    let addresses = options.addresses()?;
    create_if_absent(options)?;
    let chain = image::open(&options.open_options())?;
    for notice in &chain.notices {
        tracing::warn!("{notice}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(options, chain, &addresses, out))
}

fn create_if_absent(options: &ServeOptions) -> Result<()> {
    let Some(size) = options.create else { return Ok(()) };
    if options.image.try_exists()? {
        return Ok(());
    }
    let raw = options.open_options().format.or_else(|| Format::of_name(&options.image))
        == Some(Format::Raw);
    image::create(&NewImage {
        path: options.image.clone(),
        size: Some(size),
        kind: if raw { NewKind::Raw } else { NewKind::Vhd { block_bytes: DEFAULT_BLOCK } },
        parent: None,
        uuid: None,
        replace: false,
    })?;
    Ok(())
}

async fn serve(
    options: &ServeOptions,
    chain: OpenedChain,
    addresses: &[Listen],
    out: &mut dyn Write,
) -> Result<u8> {
    let aio = match options.aio {
        AioArg::Auto => Aio::Auto,
        AioArg::Uring => Aio::Uring,
        AioArg::Threads => Aio::Threads,
    };
    let arena = ArenaSize { large_bytes: options.memory << 20, ..ArenaSize::default() };
    let (mailbox, choice, thread) =
        shard::spawn(aio, arena).context("no I/O host; try --aio threads")?;
    tracing::info!("I/O by {choice}");
    let description = options.image.file_name().map(|name| name.to_string_lossy().into_owned());
    let export = export_of(ExportShape {
        name: options.export.clone(),
        description: description.unwrap_or_default(),
        size: chain.size,
        read_only: chain.read_only,
        resize: false,
    });
    // Bound before the disk moves: a port in use must not cost a commit.
    let bound = server::bind(addresses)?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let disk = mailbox.attach(Box::new(move |add_file| chain.attach(add_file))).await?;
    announce(options, &bound, &export, out)?;
    let uri = bound.addresses().next().map(|address| address.uri(&options.export));
    let outcome = tokio::select! {
        () = server::serve(bound, export, disk, mailbox.clone()) => 0,
        _ = interrupt.recv() => 0,
        _ = terminate.recv() => 0,
        status = captive(options.run.as_deref(), uri.unwrap_or_default()) => status?,
    };
    let closed = mailbox.shut_down().await;
    drop(thread.join());
    match closed {
        Ok(()) => Ok(outcome),
        Err(why) => {
            bail!("{}: the last changes could not be made durable: {why}", options.image.display())
        }
    }
}

/// Tells where the disk is to be found, once clients can connect.
fn announce(
    options: &ServeOptions,
    bound: &server::Bound,
    export: &Export,
    out: &mut dyn Write,
) -> Result<()> {
    let uris: Vec<String> = bound.addresses().map(|at| at.uri(&options.export)).collect();
    if options.json {
        let ready = json!({
            "schema_version": SCHEMA_VERSION,
            "uris": uris,
            "export": export.name,
            "size": export.size.0,
            "read_only": export.capabilities.read_only,
            "pid": std::process::id(),
        });
        writeln!(out, "{ready}")?;
    } else {
        for uri in uris {
            writeln!(out, "{uri}")?;
            if options.run.is_none() {
                writeln!(out, "  nbdinfo '{uri}'")?;
                writeln!(out, "  qemu-img convert -p '{uri}' copy.raw")?;
                writeln!(out, "  fio --name=x --ioengine=nbd --uri='{uri}' --rw=randread --bs=4k")?;
            }
        }
    }
    out.flush()?;
    Ok(())
}

/// Runs the captive command, if there is one; its exit status becomes ours.
async fn captive(command: Option<&str>, uri: String) -> Result<u8> {
    let Some(command) = command else { return std::future::pending().await };
    let command = command.to_owned();
    let (done, is_done) = tokio::sync::oneshot::channel();
    // A thread of its own: the server must go on while the command runs.
    std::thread::spawn(move || {
        let status =
            std::process::Command::new("sh").arg("-c").arg(&command).env("uri", uri).status();
        // Nobody waits any more when a signal came first.
        let _ = done.send(status);
    });
    let status = is_done.await??;
    Ok(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1))
}

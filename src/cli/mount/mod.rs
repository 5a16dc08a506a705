//! `orlop mount`: an image as files, served until it is unmounted.
//!
//! The process goes to the background only when the mount answers, so that whoever called it may
//! use the files at once, and hears every error before.

mod background;
mod failure;
mod helper;
mod words;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use clap::builder::RangedU64ValueParser;

use super::info;
use super::options::ParentOptions;
use super::output::{Exit, Failure};
use crate::host::Aio;
use crate::image::{self, Format, OpenedLayer};
use crate::mount::{Ready, Transport, Wish};
use crate::server::{ExportSpec, Part};

pub(super) use helper::ordinary;

/// How requests come from the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum TransportArg {
    /// The best there is; info.json says which it is and why.
    Auto,
    /// Through /dev/fuse.
    Classic,
    /// Through io_uring.
    Uring,
}

/// What to mount, and how.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  orlop mount disk.vhd /mnt/x                     /mnt/x/disk, /mnt/x/p1, ...
  orlop mount disk.vhd /mnt/x --mount-fs /mnt/fs  and the file system in it on /mnt/fs
  orlop mount disk.vhd /mnt/x --overlay tmp --mount-fs /mnt/fs
                                                  the same; the image never changes
  orlop umount /mnt/x                             all of it again

In /etc/fstab:
  /srv/disk.vhd  /mnt/x  fuse.orlop  ro,partition=1,nofail  0 0

The log goes to standard error until the mount answers, then to --log FILE, the journal of the unit
that started it, or nowhere.")]
pub(super) struct MountOptions {
    /// The image
    image: PathBuf,
    /// The mount point, a directory
    dir: PathBuf,
    /// Refuse writes
    #[arg(long, short)]
    read_only: bool,
    /// Show one partition of the disk (MBR or GPT), numbered as the kernel does, as the disk
    #[arg(long, value_name = "NUMBER")]
    partition: Option<u32>,
    /// Never change the image: what is written goes to this file and stays there (made if there is
    /// none), or is thrown away at the end with `tmp` or a directory that has room for it
    #[arg(long, value_name = "FILE|DIR|tmp", conflicts_with = "read_only")]
    overlay: Option<PathBuf>,
    /// Let other users in, as far as the files' modes do
    #[arg(long)]
    allow_other: bool,
    /// Stay in the foreground
    #[arg(long, short = 'f')]
    foreground: bool,
    /// Serve the same disk over NBD on this unix socket too
    #[arg(long, value_name = "SOCKET")]
    nbd: Option<PathBuf>,
    /// Let the kernel read and write a raw image by itself where its file is exactly the disk
    #[arg(long)]
    passthrough: bool,
    /// How requests come from the kernel
    #[arg(long, value_enum, default_value_t = TransportArg::Auto)]
    transport: TransportArg,
    /// Attach a loop device to the disk as well (root only)
    #[arg(long = "loop")]
    loop_device: bool,
    /// Mount the file system in the disk (or in its only partition, or in --partition) on this
    /// directory, through a loop device (root only)
    #[arg(long, value_name = "DIR")]
    mount_fs: Option<PathBuf>,
    /// Threads that take requests from the kernel where files pass through; else the thread that
    /// serves the disk takes them itself
    #[arg(long, value_name = "N", default_value_t = 2,
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=16))]
    threads: usize,
    /// The same as options of mount(8), comma-separated: ro, allow_other, partition=N, overlay=X,
    /// nbd=SOCKET, attach_loop, mount_fs=DIR, log=FILE, ...
    #[arg(short = 'o', value_name = "OPTIONS")]
    words: Vec<String>,
    /// Where the log goes once the process is in the background
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// The image's format, if its name does not tell
    #[arg(long)]
    format: Option<Format>,
    /// Open a parent's image for writing although children depend on it
    #[arg(long)]
    force_rw_parent: bool,
    /// How the I/O is done: auto, uring or threads
    #[arg(long, value_parser = aio, default_value = "auto")]
    aio: Aio,
    /// Memory for requests in flight, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 128,
        value_parser = clap::value_parser!(u32).range(128..=2048))]
    memory: u32,
    /// Print one JSON object when the mount answers, and errors as JSON
    #[arg(long)]
    json: bool,
    /// End as a program that mount(8) has run: 1 for wrong usage, 32 for any other failure
    #[arg(long, hide = true)]
    mount_codes: bool,
    /// Do nothing, as mount(8)'s -f
    #[arg(long, hide = true)]
    fake: bool,
    /// What `-o` says of the file system inside
    #[arg(skip)]
    file_system_options: Vec<String>,
    #[command(flatten)]
    parents: ParentOptions,
}

fn aio(text: &str) -> Result<Aio, String> {
    match text {
        "auto" => Ok(Aio::Auto),
        "uring" => Ok(Aio::Uring),
        "threads" => Ok(Aio::Threads),
        _ => Err(format!("{text:?} is none of auto, uring, threads")),
    }
}

/// Mounts.
pub(super) fn main(options: &MountOptions, out: &mut dyn Write) -> ExitCode {
    if options.fake {
        return Exit::Ok.into();
    }
    let result = complete(options).and_then(|options| start(&options, out));
    match result {
        Ok(code) => code,
        Err(failure) => match failure.report(options.json, out) {
            Exit::Ok => Exit::Ok.into(),
            Exit::Usage if options.mount_codes => ExitCode::from(1),
            _ if options.mount_codes => ExitCode::from(32),
            exit => exit.into(),
        },
    }
}

/// The options, those of `-o` included, with whole paths: the process will work elsewhere.
fn complete(options: &MountOptions) -> Result<MountOptions, Failure> {
    let mut all = options.clone();
    for words in &options.words {
        words::apply(words, &mut all)
            .map_err(|why| Failure::usage(format!("-o {words}: {why}"), words::KNOWN))?;
    }
    if all.overlay.is_some() && all.read_only {
        let hint = "leave one of them away";
        return Err(Failure::usage("an overlay is there to be written, and ro forbids it", hint));
    }
    let paths = [&mut all.image, &mut all.dir].into_iter();
    let overlay =
        if all.overlay.as_deref() == Some(Path::new("tmp")) { &mut None } else { &mut all.overlay };
    let maybe = [&mut all.nbd, &mut all.mount_fs, &mut all.log, overlay];
    for path in paths.chain(maybe.into_iter().filter_map(Option::as_mut)) {
        *path = std::path::absolute(&*path).map_err(|error| {
            Failure::usage(format!("{}: {error}", path.display()), "name a path")
        })?;
    }
    if (all.loop_device || all.mount_fs.is_some()) && !rustix::process::geteuid().is_root() {
        let hint = "leave --loop and --mount-fs away, or run it as root".to_owned();
        let text = "only root may attach loop devices and mount what is in them".to_owned();
        return Err(Failure::new(Exit::Failed, "not-permitted", text, hint));
    }
    Ok(all)
}

fn start(options: &MountOptions, out: &mut dyn Write) -> Result<ExitCode, Failure> {
    if !options.foreground && !background::is_there() {
        return background::launch(out);
    }
    background::take_name();
    let wish = options.wish()?;
    let log = options.log.as_deref();
    let mut stage = background::Stage::new(log)?;
    let mut tell = |ready: &Ready| {
        options.announce(ready, out)?;
        stage.ready(out)
    };
    crate::mount::run(&wish, &mut tell).map_err(failure::of)?;
    Ok(Exit::Ok.into())
}

impl MountOptions {
    fn wish(&self) -> Result<Wish, Failure> {
        let mut image = self.parents.open(&self.image);
        image.format = self.format;
        image.read_only = self.read_only;
        image.force_rw_parent = self.force_rw_parent;
        let mut spec = ExportSpec::new(String::new(), image);
        if let Some(number) = self.partition {
            spec.part = Part::Partition(number);
        }
        let mut kept_overlay = None;
        match self.overlay.as_deref() {
            None => {}
            Some(tmp) if tmp == Path::new("tmp") => spec.overlay = Some(image::default_place()),
            Some(dir) if dir.is_dir() => spec.overlay = Some(dir.to_owned()),
            Some(file) => kept_overlay = Some(file.to_owned()),
        }
        Ok(Wish {
            spec,
            kept_overlay,
            at: self.dir.clone(),
            allow_other: self.allow_other,
            passthrough: self.passthrough,
            transport: match self.transport {
                TransportArg::Auto => Transport::Auto,
                TransportArg::Classic => Transport::Classic,
                TransportArg::Uring => Transport::Uring,
            },
            threads: self.threads,
            nbd: self.nbd.clone(),
            loop_device: self.loop_device,
            file_system: self.mount_fs.clone(),
            file_system_options: self.file_system_options.clone(),
            aio: self.aio,
            memory_mib: self.memory,
            describe,
        })
    }

    fn announce(&self, ready: &Ready, out: &mut dyn Write) -> io::Result<()> {
        for notice in &ready.notices {
            tracing::warn!("{notice}");
        }
        if self.json {
            let mut object = ready.info.clone();
            object["mount"] = ready.at.to_string_lossy().into();
            object["files"] = ready.files.clone().into();
            return writeln!(out, "{object}");
        }
        let mode = if ready.info["read_only"] == true { "read-only" } else { "read-write" };
        let (at, files) = (ready.at.display(), ready.files.join(", "));
        writeln!(out, "{}: {mode} on {at}: {files}", self.image.display())?;
        for key in ["nbd", "loop_device", "file_system"] {
            if let Some(made) = ready.info[key].as_str() {
                writeln!(out, "  {}: {made}", key.replace('_', " "))?;
            }
        }
        Ok(())
    }
}

/// An image for people, as `orlop info` tells it.
fn describe(layer: &OpenedLayer) -> String {
    let mut text = Vec::new();
    info::show(layer, &mut text).expect("memory takes all that is written");
    String::from_utf8_lossy(&text).into_owned()
}

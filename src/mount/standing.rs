//! A mount that stands, with what lies on it; and how it is taken down.
//!
//! Blocks: it waits for the kernel and for programs. Never to be called on a thread that answers
//! requests, and never itself a user of the mount: see `tool`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use orlop_fuse::{Mounted, NewDisk, Options, Port, UnmountError, UnmountHow, Window};
use serde_json::Value;

use super::Ready;
use super::about::Made;
use super::busy;
use super::ending::End;
use super::failure::MountFailure;
use super::inside::Inside;
use super::passing::Mapped;
use super::session::DISK;
use super::tool::{self, LONG_PATIENCE, ToolError};

/// How long those who keep a mount busy have, when its server is to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is tried meanwhile.
const TRY_EVERY: Duration = Duration::from_millis(100);
/// How long one wait for the end of a mount is.
const LONG: Duration = Duration::from_secs(3600);

/// What is to stand.
pub(super) struct Plan {
    pub(super) at: PathBuf,
    pub(super) options: Options,
    pub(super) disk: NewDisk,
    pub(super) port: Arc<dyn Port>,
    pub(super) mapped: Arc<Mapped>,
    pub(super) loop_device: bool,
    pub(super) file_system: Option<PathBuf>,
    pub(super) file_system_options: Vec<String>,
}

/// A mount, and what lies on it. Dropped, all of it is undone in reverse.
pub(super) struct Standing {
    inside: Option<Inside>,
    mounted: Arc<Mounted>,
    files: Vec<String>,
}

/// Makes the mount, sees that it answers, and makes what is to lie on it.
pub(super) fn stand(plan: Plan) -> Result<Standing, MountFailure> {
    let Plan { at, options, disk, port, mapped, loop_device, file_system, .. } = &plan;
    let over = file_system.as_ref().map(|_| file_with(&disk.windows)).transpose()?;
    let disks = std::slice::from_ref(disk);
    let mounted = orlop_fuse::mount(Arc::clone(port), at, options, disks)?;
    let at = mounted.at().to_owned();
    let mut files = vec!["disk".to_owned()];
    files.extend(disk.windows.iter().map(|window| format!("p{}", window.number)));
    let mut standing = Standing { inside: None, mounted: Arc::new(mounted), files };
    mapped.are_of(&standing.mounted);
    see_that_it_answers(&at)?;
    if *loop_device || file_system.is_some() {
        let step = if file_system.is_some() { "--mount-fs" } else { "--loop" };
        let file = over.as_deref().unwrap_or("disk");
        let more = plan.file_system_options.join(",");
        let file_system = file_system.as_deref().map(|at| (at, &*more));
        let made = Inside::make(&at, file, disk.read_only, file_system);
        standing.inside = Some(made.map_err(|error| MountFailure::Inside { step, error })?);
    }
    Ok(standing)
}

fn see_that_it_answers(at: &Path) -> Result<(), MountFailure> {
    match tool::run("cat", &[OsStr::new("--"), at.join("status").as_os_str()]) {
        Ok(_) => Ok(()),
        Err(ToolError::Missing { program }) => {
            tracing::debug!("no {program}: whether the mount answers, its users will see");
            Ok(())
        }
        Err(error) => Err(MountFailure::Silent { at: at.to_owned(), error }),
    }
}

/// The file with the file system that is meant.
fn file_with(windows: &[Window]) -> Result<String, MountFailure> {
    match windows {
        [] => Ok("disk".to_owned()),
        [only] => Ok(format!("p{}", only.number)),
        several => {
            let numbers: Vec<String> = several.iter().map(|w| w.number.to_string()).collect();
            Err(MountFailure::WhichFileSystem(format!(
                "the disk has the partitions {}; say which with --partition",
                numbers.join(", ")
            )))
        }
    }
}

impl Standing {
    pub(super) fn made(&self) -> Made {
        let inside = self.inside.as_ref();
        Made {
            loop_device: inside.and_then(Inside::node).map(Path::to_owned),
            file_system: inside.and_then(Inside::file_system).map(Path::to_owned),
        }
    }

    /// What carries the requests.
    pub(super) fn transport(&self) -> &orlop_fuse::Transport {
        self.mounted.transport()
    }

    /// What there is to be told; the rest is its teller's.
    pub(super) fn ready(&self) -> Ready {
        let (at, files) = (self.mounted.at().to_owned(), self.files.clone());
        Ready { at, files, info: Value::Null, notices: Vec::new() }
    }

    /// Comes when the kernel has let go of the mount.
    pub(super) async fn unmounted(&self) {
        let (ended, has_ended) = tokio::sync::oneshot::channel();
        let mounted = Arc::clone(&self.mounted);
        // A thread of its own: it waits for years.
        std::thread::spawn(move || {
            while !mounted.wait(LONG) {}
            // Nobody listens any more when a signal came first.
            let _ = ended.send(());
        });
        let _ = has_ended.await;
    }

    /// Unmounts, if that has not happened. Those who keep it busy are told to the log and have ten
    /// seconds, or until `hurry`; then what they have open answers that the disk is gone.
    ///
    /// # Errors
    /// What was written could not be made durable.
    pub(super) fn take_down(mut self, end: End, hurry: &AtomicBool) -> Result<(), MountFailure> {
        if end == End::Unmounted {
            return Ok(());
        }
        let mut flushed = self.flush();
        let until = Instant::now() + PATIENCE;
        let mut said = false;
        while let Err(who) = self.try_down() {
            if !said {
                tracing::warn!("in use by {who}; they have {} seconds", PATIENCE.as_secs());
                said = true;
            }
            let patient = Instant::now() < until && !hurry.load(Ordering::Relaxed);
            // They have written all the while, and what fails as it is unmounted is told to nobody.
            if !patient || !self.has_users() {
                flushed = flushed.and(self.flush());
            }
            if !patient {
                self.force_down();
                break;
            }
            std::thread::sleep(TRY_EVERY);
        }
        flushed.map_err(|error| MountFailure::NotDurable(error.to_string()))
    }

    /// Whether somebody can be seen to use the file system inside.
    fn has_users(&self) -> bool {
        let at = self.inside.as_ref().and_then(Inside::file_system);
        at.is_none_or(|at| !busy::process_users(at).is_empty())
    }

    /// Makes durable what was written so far, mapped pages and the file system inside included.
    fn flush(&self) -> Result<(), ToolError> {
        let inside = self.inside.as_ref().and_then(Inside::file_system);
        let inside = inside.map(|path| (Some("--file-system"), path.to_owned()));
        let node = self.inside.as_ref().and_then(Inside::node);
        let inside = inside.into_iter().chain(node.map(|node| (None, node.to_owned())));
        let files = self.files.iter().map(|file| (None, self.mounted.at().join(file)));
        for (what, path) in inside.chain(files) {
            let words = what.into_iter().chain(["--"]).map(OsStr::new);
            let words: Vec<&OsStr> = words.chain([path.as_os_str()]).collect();
            match tool::run_for(LONG_PATIENCE, "sync", &words) {
                // What programs have mapped and changed comes with the end of the mount then.
                Err(ToolError::Missing { program }) => tracing::debug!("no {program}"),
                result => drop(result?),
            }
        }
        Ok(())
    }

    /// Unmounts if nobody uses it; else says who does.
    fn try_down(&mut self) -> Result<(), String> {
        if let Some(inside) = &mut self.inside {
            let at = inside.file_system().map(Path::to_owned);
            inside.unmake(false).map_err(|error| {
                let users = at.map(|at| busy::process_users(&at)).unwrap_or_default();
                format!("{} ({error})", busy::listed(&users))
            })?;
        }
        match self.mounted.unmount(UnmountHow::Clean) {
            Ok(()) => Ok(()),
            Err(UnmountError::Busy(at)) => Err(busy::listed(&busy::users(&at))),
            Err(error) => Err(error.to_string()),
        }
    }

    fn force_down(&mut self) {
        tracing::warn!("{}: taken away from its users", self.mounted.at().display());
        if let Some(inside) = &mut self.inside
            && let Err(error) = inside.unmake(true)
        {
            tracing::warn!(%error, "something is left behind");
        }
        // While it can still be reached: a file the kernel serves by itself is fenced by its path.
        if let Err(error) = self.mounted.remove(DISK, true) {
            tracing::debug!(%error, "the disk was not shown any more");
        }
        if let Err(error) = self.mounted.unmount(UnmountHow::Detach) {
            tracing::warn!(%error, "the mount is left behind");
        }
    }
}

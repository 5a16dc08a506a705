//! Taking a mount away that another process serves, or served until it died: the file system
//! inside, the loop device, a flush, the mount, and the end of its server, in this order.
//!
//! Whom it is about is asked of the kernel and of the mount itself; no file says it that could be
//! out of date.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use orlop_fuse::UnmountError;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::Value;

use super::about::started;
use super::busy;
use super::failure::LeaveFailure;
use super::inside::{self, InsideError};
use super::loops;

/// How long a mount may take to say who serves it.
const ANSWER: Duration = Duration::from_secs(10);
/// Links to a mount point that are followed.
const LINKS_MAX: usize = 8;
/// How long a server may take to commit and end.
const ENDING: Duration = Duration::from_secs(120);

/// How it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left {
    /// All is on disk and the server has ended.
    Done,
    /// It was what a dead server had left.
    Stale,
    /// Out of sight; its users keep what they have open, and its server ends after them.
    Lazily,
    /// Unmounted; who served it could not be told, so nobody waited for its end.
    Unwatched,
}

/// Takes the mount at this place away.
///
/// # Errors
/// What keeps it.
pub fn leave(at: &Path, lazily: bool) -> Result<Left, LeaveFailure> {
    let place = place_of(at);
    if orlop_fuse::mounted_at(&place).is_none() {
        return Err(not_mounted(place));
    }
    if clear_dead(&place)? {
        return Ok(Left::Stale);
    }
    let (server, silent) = match within(ANSWER, &place, Server::of) {
        Ok(server) => (server, false),
        Err(_) if lazily => (None, true),
        Err(error) => return Err(LeaveFailure::Silent { at: place, error }),
    };
    let own = server.as_ref().and_then(|server| server.file_system.clone());
    if !lazily {
        refuse_if_busy(&place, own.as_deref())?;
    }
    let done = leave_inside(&place, own.as_deref(), lazily)?;
    if !silent
        && let Err(error) = flush(&place)
        && !lazily
    {
        return Err(LeaveFailure::Flush { at: place.join("disk"), error });
    }
    match orlop_fuse::unmount_foreign(&place, lazily) {
        Err(UnmountError::Busy(at)) => {
            let users = busy::users(&at);
            return Err(LeaveFailure::Busy { at, users, done });
        }
        result => result?,
    }
    match server {
        _ if lazily => Ok(Left::Lazily),
        None => Ok(Left::Unwatched),
        Some(server) => server.wait(place),
    }
}

/// The mount point that is meant, links followed, without a look at what is mounted there: that
/// may be dead.
pub(super) fn place_of(at: &Path) -> PathBuf {
    let mut place = orlop_fuse::resolved(at).unwrap_or_else(|| at.to_owned());
    for _ in 0..LINKS_MAX {
        // A mount is no link, and the kernel says so without asking its server.
        let Ok(target) = std::fs::read_link(&place) else { break };
        let target = place.parent().unwrap_or(Path::new("/")).join(target);
        place = orlop_fuse::resolved(&target).unwrap_or(target);
    }
    place
}

fn not_mounted(at: PathBuf) -> LeaveFailure {
    let top = orlop_fuse::mounts().into_iter().rfind(|mount| mount.point == at);
    let found = match top {
        Some(mount) => {
            format!("{} ({}) is mounted there, which is not orlop's", mount.source, mount.kind)
        }
        None => "nothing is mounted there".to_owned(),
    };
    LeaveFailure::NotMounted { at, found }
}

/// Refuses before anything is undone.
fn refuse_if_busy(at: &Path, own: Option<&Path>) -> Result<(), LeaveFailure> {
    let mut users = busy::process_users(at);
    let foreign = |user: &busy::User| match user {
        busy::User::Loop { mounted: Some(mounted), .. } => Some(mounted.as_path()) != own,
        _ => false,
    };
    users.extend(busy::loop_users(at).into_iter().filter(foreign));
    if !users.is_empty() {
        return Err(LeaveFailure::Busy { at: at.to_owned(), users, done: "" });
    }
    let Some(own) = own else { return Ok(()) };
    let users = busy::process_users(own);
    if users.is_empty() {
        return Ok(());
    }
    Err(LeaveFailure::Busy { at: own.to_owned(), users, done: "" })
}

/// Unmounts the file system that came with the mount, and lets go of every loop device over its
/// files. Says what was undone, for whoever has to tell that the rest was not.
fn leave_inside(at: &Path, own: Option<&Path>, lazily: bool) -> Result<&'static str, LeaveFailure> {
    let devices = loops::below(at);
    let mut done = "";
    for device in &devices {
        if let Some(own) = own {
            match inside::unmount(own, &device.node(), lazily) {
                Err(InsideError::Busy(at)) => {
                    let users = busy::process_users(&at);
                    return Err(LeaveFailure::Busy { at, users, done: "" });
                }
                result => result?,
            }
        }
        loops::detach(&device.node())?;
        done = "; its loop device was let go";
    }
    Ok(done)
}

fn flush(at: &Path) -> io::Result<()> {
    File::open(at.join("disk"))?.sync_all()
}

/// Clears away what a dead server left at this place: file systems in loop devices over its files,
/// which can only fail, the devices, and the mount. Says whether there was anything. A server that
/// says nothing counts as alive.
///
/// # Errors
/// What kept it.
pub fn clear_dead(at: &Path) -> Result<bool, LeaveFailure> {
    let place = place_of(at);
    let stale = within(ANSWER, &place, |at| Ok(orlop_fuse::is_stale(at)));
    if !stale.unwrap_or(false) {
        return Ok(false);
    }
    for device in loops::below(&place) {
        for mount in orlop_fuse::mounts().into_iter().rev().filter(|mount| device.holds(mount)) {
            inside::unmount(&mount.point, &device.node(), true)?;
        }
        loops::detach(&device.node())?;
    }
    Ok(orlop_fuse::clear_stale(&place)?)
}

/// Who serves a mount.
struct Server {
    pid: u32,
    process: OwnedFd,
    file_system: Option<PathBuf>,
}

impl Server {
    /// Asks the mount. `None`: it does not let us look, or its server is nobody we can see.
    fn of(at: &Path) -> io::Result<Option<Self>> {
        let text = match std::fs::read(at.join("info.json")) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => return Ok(None),
            // A tree of many disks has none here.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            result => result?,
        };
        let info: Value = serde_json::from_slice(&text).unwrap_or_default();
        Ok(Self::named_by(&info))
    }

    fn named_by(info: &Value) -> Option<Self> {
        let pid: u32 = info["pid"].as_u64()?.try_into().ok()?;
        let number = Pid::from_raw(pid.try_into().ok()?)?;
        let process = pidfd_open(number, PidfdFlags::empty()).ok()?;
        // Its number may be another process by now, or one of another namespace.
        if started(pid) != info["pid_started"].as_u64() {
            return None;
        }
        let file_system = info["file_system"].as_str().map(PathBuf::from);
        Some(Self { pid, process, file_system })
    }

    fn wait(self, at: PathBuf) -> Result<Left, LeaveFailure> {
        let mut fds = [PollFd::new(&self.process, PollFlags::IN)];
        let limit = Timespec { tv_sec: ENDING.as_secs().cast_signed(), tv_nsec: 0 };
        match rustix::io::retry_on_intr(|| poll(&mut fds, Some(&limit))) {
            Ok(0) => Err(LeaveFailure::Lingering { at, pid: self.pid }),
            Ok(_) => Ok(Left::Done),
            Err(_) => Ok(Left::Unwatched),
        }
    }
}

/// Asks something that may never answer.
pub(super) fn within<T: Send + 'static>(
    limit: Duration,
    at: &Path,
    ask: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (answer, is_there) = mpsc::channel();
    let at = at.to_owned();
    // Left behind if it hangs; it ends with the mount or with this process.
    std::thread::spawn(move || answer.send(ask(&at)));
    match is_there.recv_timeout(limit) {
        Ok(answer) => answer,
        Err(_) => Err(io::Error::new(
            ErrorKind::TimedOut,
            format!("no answer within {} seconds", limit.as_secs()),
        )),
    }
}

//! Taking a mount away that another process serves, or served until it died: the file system
//! inside, the loop device, a flush, the mount, and the end of its server, in this order.
//!
//! Whom it is about is asked of the kernel and of the mount itself; no file says it that could be
//! out of date.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use orlop_fuse::{Mount, UnmountError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::Value;

use super::about::started;
use super::ask::{self, Known};
use super::busy::{self, User};
use super::failure::LeaveFailure;
use super::inside::{self, InsideError};
use super::loops::{self, LoopDevice};

/// Links to a mount point that are followed.
const LINKS_MAX: usize = 8;
/// How long those have who look at each new device, and the kernel, which lets go of a file a
/// little after its device is gone.
const PASSING: Duration = Duration::from_secs(2);
/// How often it is looked whether they have gone.
const LOOK_EVERY: Duration = Duration::from_millis(50);
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
    let Some(mount) = orlop_fuse::mounted_at(&place) else { return Err(not_mounted(place)) };
    let known = match ask::look(&place) {
        Ok(Known::Dead) => return clear(&mount).map(|()| Left::Stale),
        Ok(Known::Denied) if !rustix::process::geteuid().is_root() => {
            return Err(LeaveFailure::Denied(place));
        }
        Ok(known) => Some(known),
        Err(_) if lazily => None,
        Err(error) => {
            let connection = mount.device.rsplit(':').next().unwrap_or_default().to_owned();
            return Err(LeaveFailure::Silent { at: place, error, connection });
        }
    };
    let info = match &known {
        Some(Known::Described(info)) => Some(info),
        _ => None,
    };
    let server = info.and_then(Server::named_by);
    let devices = loops::over(&mount);
    let own = info.and_then(|info| own_file_system(info, &devices));
    if !lazily {
        refuse_if_busy(&place, own.as_deref(), &devices)?;
    }
    // Where nobody may look or nobody answers, nobody can be asked to flush.
    let disk = info.map(|_| place.join("disk"));
    let flushed = flush(own.as_deref(), disk.as_deref());
    unless(lazily, flushed)?;
    let done = leave_inside(own.as_deref(), &devices, lazily)?;
    let flushed = flush(None, disk.as_deref()).map_err(|failure| failure.after(done));
    unless(lazily, flushed)?;
    unmount(&place, lazily, done)?;
    match server {
        _ if lazily => Ok(Left::Lazily),
        None => Ok(Left::Unwatched),
        Some(server) => server.wait(place),
    }
}

/// A failure, unless it is to be left all the same.
fn unless(lazily: bool, result: Result<(), LeaveFailure>) -> Result<(), LeaveFailure> {
    match result {
        Err(failure) if lazily => {
            tracing::warn!("{failure}");
            Ok(())
        }
        result => result,
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

/// Where the file system is that came with the mount. The description is text, in which a path may
/// have lost its odd bytes: the kernel's table has them.
fn own_file_system(info: &Value, devices: &[LoopDevice]) -> Option<PathBuf> {
    let (node, said) = (info["loop_device"].as_str()?, info["file_system"].as_str()?);
    let device = devices.iter().find(|device| device.node() == Path::new(node))?;
    let held = orlop_fuse::mounts()
        .into_iter()
        .rfind(|mount| device.holds(mount) && mount.point.to_string_lossy() == said);
    held.map(|mount| mount.point)
}

/// Refuses before anything is undone.
fn refuse_if_busy(
    at: &Path,
    own: Option<&Path>,
    devices: &[LoopDevice],
) -> Result<(), LeaveFailure> {
    let busy = |at: &Path, users: Vec<User>| match users.is_empty() {
        true => Ok(()),
        false => Err(LeaveFailure::Busy { at: at.to_owned(), users, done: "" }),
    };
    let mut users = busy::process_users(at);
    users.extend(busy::mounts_below(at));
    let foreign = |user: &User| match user {
        User::Loop { mounted: Some(mounted), .. } => Some(mounted.as_path()) != own,
        _ => false,
    };
    users.extend(devices.iter().flat_map(busy::loop_users).filter(foreign));
    busy(at, users)?;
    if let Some(own) = own {
        busy(own, busy::users(own))?;
    }
    let until = Instant::now() + PASSING;
    loop {
        let users: Vec<User> = devices.iter().flat_map(busy::node_users).collect();
        if users.is_empty() || Instant::now() >= until {
            return busy(at, users);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Unmounts the file system that came with the mount, and lets go of every loop device over its
/// files. Says what was undone, for whoever has to tell that the rest was not.
fn leave_inside(
    own: Option<&Path>,
    devices: &[LoopDevice],
    lazily: bool,
) -> Result<&'static str, LeaveFailure> {
    let mut done = "";
    for device in devices {
        let is_there = |mount: &Mount| Some(mount.point.as_path()) == own && device.holds(mount);
        if let Some(own) = own
            && orlop_fuse::mounts().iter().any(is_there)
        {
            match inside::unmount(own, device, lazily) {
                Err(InsideError::Busy(at)) => {
                    let users = busy::users(&at);
                    return Err(LeaveFailure::Busy { at, users, done });
                }
                result => result?,
            }
        }
        loops::detach(device)?;
        done = "; its loop device was let go";
    }
    Ok(done)
}

/// Makes durable what was written so far: first what the file system inside keeps in memory, which
/// becomes writes to the disk, then the disk.
fn flush(own: Option<&Path>, disk: Option<&Path>) -> Result<(), LeaveFailure> {
    let failed = |at: &Path| {
        let at = at.to_owned();
        move |error| LeaveFailure::Flush { at, error, done: "" }
    };
    if let Some(own) = own {
        ask::flush_file_system(own).map_err(failed(own))?;
    }
    if let Some(disk) = disk {
        ask::flush(disk).map_err(failed(disk))?;
    }
    Ok(())
}

/// Takes the mount itself away.
fn unmount(at: &Path, lazily: bool, done: &'static str) -> Result<(), LeaveFailure> {
    let until = Instant::now() + PASSING;
    loop {
        match orlop_fuse::unmount_foreign(at, lazily) {
            // What lay on it may be on its way out.
            Err(UnmountError::Busy(_)) if !done.is_empty() && Instant::now() < until => {
                std::thread::sleep(LOOK_EVERY);
            }
            Err(UnmountError::Busy(at)) => {
                let users = busy::users(&at);
                return Err(LeaveFailure::Busy { at, users, done });
            }
            result => return Ok(result?),
        }
    }
}

/// Clears away what a dead server left at this place: file systems in loop devices over its files,
/// which can only fail, the devices, and the mount. Says whether there was anything. A server that
/// says nothing counts as alive.
///
/// # Errors
/// What kept it.
pub fn clear_dead(at: &Path) -> Result<bool, LeaveFailure> {
    let place = place_of(at);
    let Some(mount) = orlop_fuse::mounted_at(&place) else { return Ok(false) };
    if !ask::is_dead(&place).unwrap_or(false) {
        return Ok(false);
    }
    clear(&mount).map(|()| true)
}

fn clear(dead: &Mount) -> Result<(), LeaveFailure> {
    for device in loops::over_dead(dead) {
        let mounts = orlop_fuse::mounts();
        for mount in mounts.into_iter().rev().filter(|mount| device.holds(mount)) {
            inside::unmount(&mount.point, &device, true)?;
        }
        loops::detach(&device)?;
    }
    orlop_fuse::clear_stale(&dead.point)?;
    Ok(())
}

/// Who serves a mount.
struct Server {
    pid: u32,
    process: OwnedFd,
}

impl Server {
    /// `None`: it is nobody we can see.
    fn named_by(info: &Value) -> Option<Self> {
        let pid: u32 = info["pid"].as_u64()?.try_into().ok()?;
        let number = Pid::from_raw(pid.try_into().ok()?)?;
        let process = pidfd_open(number, PidfdFlags::empty()).ok()?;
        // Its number may be another process by now, or one of another namespace.
        if started(pid) != info["pid_started"].as_u64() {
            return None;
        }
        Some(Self { pid, process })
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

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
use super::tool::ToolError;

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
    let own = info.and_then(|info| Own::of(info, &devices));
    if !lazily {
        let file_system = own.as_ref().and_then(|own| own.file_system.as_deref());
        refuse_if_busy(&place, file_system, &devices)?;
    }
    // What the file system inside keeps in memory becomes writes to the disk.
    let flushed = own.as_ref().map_or(Ok(()), Own::flush);
    // Where nobody may look or nobody answers, nobody can be asked to flush.
    let disk = info.map(|_| place.join("disk"));
    unless(lazily, flushed.and_then(|()| flush(disk.as_deref())))?;
    let done = leave_inside(own.as_ref(), &devices, lazily)?;
    unless(lazily, flush(disk.as_deref()).map_err(|failure| failure.after(done)))?;
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

/// What came with the mount.
struct Own<'a> {
    device: &'a LoopDevice,
    /// Where the file system on it is mounted.
    file_system: Option<PathBuf>,
}

impl<'a> Own<'a> {
    /// As the mount describes it, and the kernel has it: the description is text, in which a path
    /// may have lost its odd bytes.
    fn of(info: &Value, devices: &'a [LoopDevice]) -> Option<Self> {
        let node = Path::new(info["loop_device"].as_str()?);
        let device = devices.iter().find(|device| device.node() == node)?;
        let said = info["file_system"].as_str();
        let held = orlop_fuse::mounts()
            .into_iter()
            .rfind(|mount| device.holds(mount) && Some(&*mount.point.to_string_lossy()) == said);
        Some(Self { device, file_system: held.map(|mount| mount.point) })
    }

    /// Makes durable what the file system and the device keep in memory. Whatever is lost was lost
    /// since the device was made: others' failures were asked for then.
    fn flush(&self) -> Result<(), LeaveFailure> {
        if let Some(at) = &self.file_system {
            ask::flush_file_system(at).map_err(not_durable(at))?;
        }
        self.flush_device()
    }

    fn flush_device(&self) -> Result<(), LeaveFailure> {
        // Where nobody makes nodes for partitions, nobody has written to one.
        for node in self.device.nodes().into_iter().filter(|node| node.exists()) {
            ask::flush(&node).map_err(not_durable(&node))?;
        }
        Ok(())
    }
}

fn not_durable(at: &Path) -> impl FnOnce(ToolError) -> LeaveFailure {
    let at = at.to_owned();
    move |error| LeaveFailure::Flush { at, error, done: "" }
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
    own: Option<&Own<'_>>,
    devices: &[LoopDevice],
    lazily: bool,
) -> Result<&'static str, LeaveFailure> {
    if let Some(own) = own
        && let Some(at) = &own.file_system
    {
        match inside::unmount(at, own.device, lazily) {
            Err(InsideError::Busy(at)) => {
                let users = busy::users(&at);
                return Err(LeaveFailure::Busy { at, users, done: "" });
            }
            result => result?,
        }
        let undone = "; the file system inside was unmounted";
        unless(lazily, own.flush_device().map_err(|failure| failure.after(undone)))?;
    }
    let mut done = "";
    for device in devices {
        loops::detach(device)?;
        done = "; its loop device was let go";
    }
    Ok(done)
}

fn flush(disk: Option<&Path>) -> Result<(), LeaveFailure> {
    disk.map_or(Ok(()), |disk| ask::flush(disk).map_err(not_durable(disk)))
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

//! The system's side of a mount: the mount point, the call or `fusermount3`, and their errors.
//!
//! The mount is made here and not by `fuser`: its errors keep their numbers, the table of mounts
//! says `fuse.orlop`, and nothing is unmounted that this program has not mounted. As root it is
//! the system call; without that right `fusermount3` does it. Serves no request.

use std::ffi::CString;
use std::fs;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::io::Errno as OsError;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::channel::ChannelHost;
use crate::mountinfo::{Mount, table, topmost};
use crate::ring::RingHost;
use crate::tree::{Layout, TreeError};

/// What the table of mounts calls this kind of mount.
pub const KIND: &str = "fuse.orlop";
const SUBTYPE: &str = "orlop";
const UNMOUNTER: &str = "fusermount3";

/// How the mount is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// By the system call; by `fusermount3` where that is not permitted.
    Auto,
    /// By `fusermount3` only.
    Unprivileged,
}

/// How to mount.
#[derive(Clone, Debug)]
pub struct Options {
    /// One disk or many.
    pub layout: Layout,
    /// What the table of mounts names as the source: the image, or the program.
    pub source: String,
    /// Other users may use it too, as far as the files' modes let them.
    pub allow_other: bool,
    /// The mount as a whole is read-only.
    pub read_only: bool,
    /// The kernel may read and write files by itself where
    /// [`crate::port::Port::passthrough`] offers one.
    pub passthrough: bool,
    /// Threads that read requests, 1 to 16, where no [`Options::channel`] does.
    pub threads: usize,
    /// How the mount is made.
    pub route: Route,
    /// The device; another one only in tests.
    pub device: PathBuf,
    /// Rings that are to carry the requests where the kernel offers it. They pass no file through.
    pub ring: Option<Arc<dyn RingHost>>,
    /// Who reads the device instead of threads of the mount. They read it all the same where files
    /// are passed through: registering one takes a reply of theirs.
    pub channel: Option<Arc<dyn ChannelHost>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            layout: Layout::Many,
            source: SUBTYPE.to_owned(),
            allow_other: false,
            read_only: false,
            passthrough: false,
            threads: 2,
            route: Route::Auto,
            device: PathBuf::from("/dev/fuse"),
            ring: None,
            channel: None,
        }
    }
}

/// Why nothing was mounted. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount point cannot be used.
    #[error("{}: cannot be used as a mount point: {cause}", at.display())]
    Place {
        /// The mount point.
        at: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// It is no directory.
    #[error("{}: is not a directory, and disks are mounted on directories", .0.display())]
    NotDirectory(PathBuf),
    /// Something is mounted exactly there.
    #[error("{}: something is mounted there already ({kind}, from {from}); unmount it first",
        at.display())]
    Occupied {
        /// The mount point.
        at: PathBuf,
        /// Its kind.
        kind: String,
        /// Its source.
        from: String,
    },
    /// A mount of this program lies there whose server is dead.
    #[error("{}: a mount whose server has died is left there; `clear_stale` removes it",
        .0.display())]
    Stale(PathBuf),
    /// No FUSE in this kernel or container.
    #[error("{}: {cause}; the kernel's FUSE is needed (modprobe fuse; in a container, pass \
        the device in)", device.display())]
    NoDevice {
        /// The device.
        device: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// Not allowed to mount.
    #[error("not permitted to mount on {}: {why}", at.display())]
    NotPermitted {
        /// The mount point.
        at: PathBuf,
        /// What was tried and what is missing.
        why: String,
    },
    /// The kernel refused.
    #[error("mounting on {} failed: {cause}", at.display())]
    Mount {
        /// The mount point.
        at: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The kernel and this program did not agree, or no thread could be started.
    #[error("the kernel's FUSE connection for {} could not be set up: {cause}", at.display())]
    Session {
        /// The mount point.
        at: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A disk that cannot be shown.
    #[error(transparent)]
    Disk(#[from] TreeError),
}

/// Why a mount is still there.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// Files are open, or a directory is somebody's working directory, or a loop device uses one.
    #[error("{}: in use; close what is open below it, or detach it", .0.display())]
    Busy(PathBuf),
    /// The system refused.
    #[error("unmounting {} failed: {cause}", at.display())]
    Failed {
        /// The mount point.
        at: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// Unmounted, but the kernel has not let go of the connection: somebody still uses it.
    #[error("{}: unmounted, but its last users are not gone yet", .0.display())]
    Lingering(PathBuf),
}

/// Whether a mount of this program is left at this place whose server is dead.
#[must_use]
pub fn is_stale(at: &Path) -> bool {
    // The path of a dead mount cannot be resolved, so its parent's is. Nobody else's mount is
    // touched: it could hang.
    let Some(place) = resolved(at) else { return false };
    let ours = topmost(&table(), &place).is_some_and(|mount| mount.kind == KIND);
    // Asked of the server every time; attributes the kernel would tell from memory.
    // A server with rings dies slowly: what is asked meanwhile is aborted, or found cancelled.
    let dead = |error| matches!(error, OsError::NOTCONN | OsError::CONNABORTED | OsError::CANCELED);
    ours && rustix::fs::statfs(&place).is_err_and(dead)
}

/// Takes a dead server's mount away; says whether there was one.
///
/// # Errors
///
/// [`UnmountError::Failed`].
pub fn clear_stale(at: &Path) -> Result<bool, UnmountError> {
    if !is_stale(at) {
        return Ok(false);
    }
    let place = resolved(at).unwrap_or_else(|| at.to_owned());
    match detach(&place) {
        Ok(()) => Ok(true),
        Err(cause) => Err(UnmountError::Failed { at: place, cause }),
    }
}

pub(crate) fn number(error: OsError) -> i32 {
    error.raw_os_error()
}

/// The mount of this program at this place, by whatever process, if there is one.
#[must_use]
pub fn mounted_at(at: &Path) -> Option<Mount> {
    topmost(&table(), &resolved(at)?).filter(|mount| mount.kind == KIND)
}

/// Unmounts what another process serves there; `lazily`, whoever has files open keeps them.
///
/// # Errors
///
/// [`UnmountError::Busy`], [`UnmountError::Failed`].
pub fn unmount_foreign(at: &Path, lazily: bool) -> Result<(), UnmountError> {
    let flags = if lazily { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    let place = resolved(at).unwrap_or_else(|| at.to_owned());
    match unmount_at(&place, flags) {
        Ok(()) => Ok(()),
        Err(cause) if cause.raw_os_error() == Some(number(OsError::BUSY)) => {
            Err(UnmountError::Busy(place))
        }
        Err(cause) => Err(UnmountError::Failed { at: place, cause }),
    }
}

/// The path without links, its last part unseen: that may be a dead mount.
#[must_use]
pub fn resolved(at: &Path) -> Option<PathBuf> {
    let at = std::path::absolute(at).ok()?;
    Some(fs::canonicalize(at.parent()?).ok()?.join(at.file_name()?))
}

/// The place as a mount point, without links.
///
/// # Errors
///
/// What forbids mounting there.
pub fn check_place(at: &Path) -> Result<PathBuf, MountError> {
    if is_stale(at) {
        return Err(MountError::Stale(at.to_owned()));
    }
    let wrong = |cause| MountError::Place { at: at.to_owned(), cause };
    let place = fs::canonicalize(at).map_err(wrong)?;
    if !fs::metadata(&place).map_err(wrong)?.is_dir() {
        return Err(MountError::NotDirectory(place));
    }
    match topmost(&table(), &place) {
        Some(Mount { kind, source: from, .. }) => {
            Err(MountError::Occupied { at: place, kind, from })
        }
        None => Ok(place),
    }
}

pub(crate) fn open_device(device: &Path) -> io::Result<OwnedFd> {
    fs::File::options().read(true).write(true).open(device).map(OwnedFd::from)
}

/// Mounts; gives the connection to the kernel.
pub(crate) fn attach(
    at: &Path,
    options: &Options,
    device: io::Result<OwnedFd>,
) -> Result<OwnedFd, MountError> {
    let unprivileged = match device {
        Ok(fd) if options.route == Route::Auto => match attach_directly(at, options, &fd) {
            Ok(()) => return Ok(fd),
            Err(OsError::PERM | OsError::ACCESS) => "mount(2) needs CAP_SYS_ADMIN".to_owned(),
            Err(cause) => {
                return Err(MountError::Mount { at: at.to_owned(), cause: cause.into() });
            }
        },
        Ok(_) => "asked for".to_owned(),
        // Its owner's helper may open it all the same.
        Err(cause) if cause.kind() == io::ErrorKind::PermissionDenied => {
            format!("{}: {cause}", options.device.display())
        }
        Err(cause) => return Err(MountError::NoDevice { device: options.device.clone(), cause }),
    };
    attach_by_helper(at, options).map_err(|cause| MountError::NotPermitted {
        at: at.to_owned(),
        why: format!("{unprivileged}; {UNMOUNTER}: {cause}"),
    })
}

fn attach_directly(at: &Path, options: &Options, fd: &OwnedFd) -> Result<(), OsError> {
    let mode = fs::metadata(at).map_or(0o40000, |place| place.permissions().mode() & 0o170_000);
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let mut data = format!(
        "fd={},rootmode={mode:o},user_id={},group_id={},default_permissions,subtype={SUBTYPE}",
        fd.as_raw_fd(),
        uid.as_raw(),
        gid.as_raw(),
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let data = CString::new(data).map_err(|_| OsError::INVAL)?;
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    flags.set(MountFlags::RDONLY, options.read_only);
    rustix::mount::mount(source_of(options), at, "fuse", flags, &*data)
}

/// The source without what the table of mounts or `fusermount3`'s list of options would misread.
fn source_of(options: &Options) -> String {
    let plain = |c: char| if c == ',' || c == '\\' || c.is_control() { '_' } else { c };
    let source: String = options.source.chars().take(1024).map(plain).collect();
    if source.is_empty() { SUBTYPE.to_owned() } else { source }
}

/// `fusermount3` mounts and sends the connection over a socket.
fn attach_by_helper(at: &Path, options: &Options) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut list = format!(
        "fsname={},subtype={SUBTYPE},default_permissions,nosuid,nodev,noexec",
        source_of(options)
    );
    for (wanted, option) in [(options.allow_other, ",allow_other"), (options.read_only, ",ro")] {
        if wanted {
            list.push_str(option);
        }
    }
    // The child's end has to outlive the start of the program, so it is put where a child has
    // its standard input: no descriptor is ever inheritable in this process.
    let mut child = Command::new(UNMOUNTER)
        .args(["-o", &list, "--"])
        .arg(at)
        .env("_FUSE_COMMFD", "0")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let received = receive(&ours);
    let output = child.stderr.take().map(io::read_to_string);
    let status = child.wait()?;
    match received? {
        Some(fd) => Ok(fd),
        None => {
            let said = output.and_then(Result::ok).unwrap_or_default();
            Err(io::Error::other(format!("{} ({status})", said.trim())))
        }
    }
}

fn receive(from: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::CMSG_CLOEXEC;
    rustix::io::retry_on_intr(|| {
        let mut buffers = [IoSliceMut::new(&mut byte)];
        rustix::net::recvmsg(from.as_fd(), &mut buffers, &mut ancillary, flags)
    })?;
    let mut messages = ancillary.drain();
    Ok(messages.find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    }))
}

pub(crate) fn detach(at: &Path) -> io::Result<()> {
    unmount_at(at, UnmountFlags::DETACH)
}

pub(crate) fn unmount_at(at: &Path, flags: UnmountFlags) -> io::Result<()> {
    match rustix::mount::unmount(at, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(OsError::PERM) => unmount_by_helper(at, flags),
        Err(error) => Err(error.into()),
    }
}

fn unmount_by_helper(at: &Path, flags: UnmountFlags) -> io::Result<()> {
    let lazy = flags.contains(UnmountFlags::DETACH);
    let mut command = Command::new(UNMOUNTER);
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(at).stdin(Stdio::null());
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(())
    } else if said.contains("busy") {
        Err(OsError::BUSY.into())
    } else {
        Err(io::Error::other(format!("{UNMOUNTER}: {}", said.trim())))
    }
}

#[cfg(test)]
mod tests {
    use super::{Options, source_of};

    #[test]
    fn a_source_cannot_smuggle_options() {
        let with =
            |source: &str| source_of(&Options { source: source.into(), ..Options::default() });
        assert_eq!(with("a,allow_other,b\n\\"), "a_allow_other_b__");
        assert_eq!(with(""), "orlop");
    }
}

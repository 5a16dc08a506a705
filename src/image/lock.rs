//! Locks on image files, on the bytes QEMU locks: its tools and we refuse each other's images.
//!
//! An image is claimed with read locks: byte 100+p says "I use permission p", byte 200+p "nobody
//! else may use p". Read locks never collide, so both sides can see each other; then each looks
//! whether another description holds the opposite byte. Of two that come at once, both may see
//! the other and give up: that is safe. The locks belong to the open file description and go with
//! it. Refuses to wait for a program that lives.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::{F_RDLCK, F_UNLCK, F_WRLCK, SEEK_SET, c_short, flock, off_t};

/// Byte of the first "in use" lock.
const HELD_BASE: off_t = 100;
/// Byte of the first "not shared" lock.
const UNSHARED_BASE: off_t = 200;
/// Most users of a file that an error names.
const HOLDERS_MAX: usize = 4;

/// What a user of an image may do; the number is the byte's place in both ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Read bytes that stay as they are.
    ConsistentRead = 0,
    /// Write.
    Write = 1,
    /// Write what is there already.
    WriteUnchanged = 2,
    /// Change the length.
    Resize = 3,
}

const ALL: [Permission; 4] =
    [Permission::ConsistentRead, Permission::Write, Permission::WriteUnchanged, Permission::Resize];

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConsistentRead => "consistent read",
            Self::Write => "write",
            Self::WriteUnchanged => "write unchanged",
            Self::Resize => "resize",
        })
    }
}

/// What an image is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// To read: others may read, nobody may write.
    Read,
    /// To write: nobody else may write. Reading is shared by name only, since every reader wants
    /// that nobody writes; readers that waive even that (`qemu-img info -U`) may look.
    Write,
}

impl Claim {
    const fn holds(self, permission: Permission) -> bool {
        match permission {
            Permission::ConsistentRead => true,
            Permission::Write | Permission::Resize => matches!(self, Self::Write),
            Permission::WriteUnchanged => false,
        }
    }

    const fn shares(self, permission: Permission) -> bool {
        match permission {
            Permission::ConsistentRead => true,
            Permission::WriteUnchanged => matches!(self, Self::Read),
            Permission::Write | Permission::Resize => false,
        }
    }
}

/// Why an image could not be claimed.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody uses what we cannot share.
    #[error("it is in use: another program holds the \"{permission}\" lock{}", by(holders))]
    Held {
        /// What they use.
        permission: Permission,
        /// Who has the file open, as far as we may know.
        holders: Vec<String>,
    },
    /// Somebody does not share what we need.
    #[error(
        "it is in use: another program does not share the \"{permission}\" lock{}",
        by(holders)
    )]
    Unshared {
        /// What they keep to themselves.
        permission: Permission,
        /// Who has the file open, as far as we may know.
        holders: Vec<String>,
    },
    /// The file system has no locks.
    #[error("it cannot be locked: {0}")]
    Unavailable(io::Error),
}

impl LockError {
    /// A stable word for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Held { .. } | Self::Unshared { .. } => "locked",
            Self::Unavailable(_) => "no-locks",
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Held { permission: Permission::Write | Permission::Resize, .. } => {
                "stop the program that writes to it; to look at it all the same, \
                 'orlop info -U' takes no locks"
                    .to_owned()
            }
            Self::Held { .. } | Self::Unshared { .. } => {
                "stop the program that uses it, or open it with --read-only".to_owned()
            }
            Self::Unavailable(_) => {
                "move it to a file system with locks (for NFS: with its lock service)".to_owned()
            }
        }
    }
}

fn by(holders: &[String]) -> String {
    if holders.is_empty() {
        return String::new();
    }
    format!(" (open in {})", holders.join(", "))
}

/// How long a lock without a holder is waited for. A process that was killed leaves its ring, and
/// the files in it, to a worker of the kernel: the lock outlives it for some milliseconds.
const ORPHAN_WAIT: Duration = Duration::from_secs(2);
const ORPHAN_PAUSE: Duration = Duration::from_millis(5);

/// Claims the file behind a descriptor for as long as its open file description lives.
pub(super) fn take(fd: &impl AsFd, claim: Claim, path: &Path) -> Result<(), LockError> {
    let deadline = Instant::now() + ORPHAN_WAIT;
    loop {
        match take_now(fd, claim, path) {
            Err(LockError::Held { holders, .. } | LockError::Unshared { holders, .. })
                if holders.is_empty() && Instant::now() < deadline =>
            {
                std::thread::sleep(ORPHAN_PAUSE);
            }
            taken => return taken,
        }
    }
}

/// Claims a file for writing for as long as its open file description lives: for changes that are
/// made to an image without serving it. `path` is for messages.
///
/// # Errors
/// Who has it, when somebody does.
pub fn claim_to_write(fd: &impl AsFd, path: &Path) -> Result<(), LockError> {
    take(fd, Claim::Write, path)
}

/// Turns a claim to write into one to read.
pub(super) fn weaken(fd: &impl AsFd) -> Result<(), LockError> {
    for permission in ALL {
        let offset = permission as off_t;
        if Claim::Write.holds(permission) && !Claim::Read.holds(permission) {
            set(fd, F_UNLCK, HELD_BASE + offset)?;
        }
        if !Claim::Write.shares(permission) && Claim::Read.shares(permission) {
            set(fd, F_UNLCK, UNSHARED_BASE + offset)?;
        }
    }
    Ok(())
}

fn take_now(fd: &impl AsFd, claim: Claim, path: &Path) -> Result<(), LockError> {
    for permission in ALL {
        let offset = permission as off_t;
        if claim.holds(permission) {
            set(fd, F_RDLCK, HELD_BASE + offset)?;
        }
        if !claim.shares(permission) {
            set(fd, F_RDLCK, UNSHARED_BASE + offset)?;
        }
    }
    let refusal = conflict(fd, claim, path);
    if refusal.is_err() {
        // The description may live on; what it did not get must not keep others out.
        release(fd)?;
    }
    refusal
}

fn conflict(fd: &impl AsFd, claim: Claim, path: &Path) -> Result<(), LockError> {
    // What others do comes first: a writer does not share writing either, and only who is told of
    // the writing knows that reading is refused as well.
    for permission in ALL {
        if !claim.shares(permission) && is_locked(fd, HELD_BASE + permission as off_t)? {
            return Err(LockError::Held { permission, holders: holders(path) });
        }
    }
    for permission in ALL {
        if claim.holds(permission) && is_locked(fd, UNSHARED_BASE + permission as off_t)? {
            return Err(LockError::Unshared { permission, holders: holders(path) });
        }
    }
    Ok(())
}

fn release(fd: &impl AsFd) -> Result<(), LockError> {
    for permission in ALL {
        set(fd, F_UNLCK, HELD_BASE + permission as off_t)?;
        set(fd, F_UNLCK, UNSHARED_BASE + permission as off_t)?;
    }
    Ok(())
}

fn byte(kind: i32, at: off_t) -> flock {
    flock {
        l_type: kind as c_short,
        l_whence: SEEK_SET as c_short,
        l_start: at,
        l_len: 1,
        l_pid: 0,
    }
}

fn set(fd: &impl AsFd, kind: i32, at: off_t) -> Result<(), LockError> {
    fcntl(fd, FcntlArg::F_OFD_SETLK(&byte(kind, at)))
        .map(drop)
        .map_err(|errno| LockError::Unavailable(errno.into()))
}

/// Whether another description has any lock on the byte.
fn is_locked(fd: &impl AsFd, at: off_t) -> Result<bool, LockError> {
    let mut probe = byte(F_WRLCK, at);
    fcntl(fd, FcntlArg::F_OFD_GETLK(&mut probe))
        .map_err(|errno| LockError::Unavailable(errno.into()))?;
    Ok(i32::from(probe.l_type) != F_UNLCK)
}

/// How long the search for the holders of a lock may take.
const SEARCH_LIMIT: Duration = Duration::from_secs(1);

/// Which processes have the file open, for an error's sake: the kernel does not tell who owns a
/// lock of this kind. Sees what we are allowed to see.
fn holders(path: &Path) -> Vec<String> {
    let path = path.to_owned();
    within(SEARCH_LIMIT, move || open_in(&path)).unwrap_or_default()
}

/// What a search finds, if it ends in time. Looking at the links of a process waits while that
/// process starts a program, which may be for ever if the program lies on a dead file system.
fn within<T: Send + 'static>(
    limit: Duration,
    search: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, found) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name("orlop-search".to_owned()).spawn(move || {
        // Nobody waits any more if it took too long.
        let _ = sender.send(search());
    });
    let thread = thread.ok()?;
    let found = found.recv_timeout(limit).ok()?;
    // It is past its last word; whoever counts threads must not find it.
    drop(thread.join());
    Some(found)
}

fn open_in(path: &Path) -> Vec<String> {
    let mut found = Vec::new();
    // The kernel names open files by their whole paths.
    let Ok(path) = path.canonicalize() else { return found };
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let fds = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let uses = fds.filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == path)).count();
        if pid == std::process::id() {
            // Our own descriptor for the attempt that just failed does not count.
            if uses > 1 {
                found.push("this process".to_owned());
            }
        } else if uses > 0 && !is_being_started(&process.path()) {
            let comm = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!("{} (pid {pid})", comm.trim()));
        }
        if found.len() == HOLDERS_MAX {
            break;
        }
    }
    found
}

/// Whether a process is a child of ours that has not become its own program yet: it has copies of
/// all our descriptors until then, and lets go of them by itself.
fn is_being_started(process: &Path) -> bool {
    let ours = fs::read_link("/proc/self/exe").ok();
    if ours.is_none() || fs::read_link(process.join("exe")).ok() != ours {
        return false;
    }
    let status = fs::read_to_string(process.join("status")).unwrap_or_default();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    parent.and_then(|pid| pid.trim().parse().ok()) == Some(std::process::id())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::PathBuf;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::{Claim, LockError, Permission, take};

    fn image() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("image.raw");
        std::fs::write(&path, [0; 512]).unwrap();
        (dir, path)
    }

    fn open(path: &PathBuf) -> File {
        File::options().read(true).write(true).open(path).unwrap()
    }

    #[test]
    fn a_search_that_never_ends_is_not_waited_for() {
        let short = Duration::from_millis(20);
        let endless = super::within(short, || std::thread::sleep(Duration::from_secs(600)));
        assert_eq!(endless, None);
        assert_eq!(super::within(Duration::from_secs(600), || 7), Some(7));
    }

    /// Run as a child by the test below, with an image as its standard input.
    #[test]
    #[ignore = "a part of another test"]
    fn child_that_is_slow_to_start() {
        std::thread::sleep(Duration::from_millis(400));
    }

    #[test]
    fn a_child_that_is_being_started_is_waited_for() {
        let (_dir, path) = image();
        let ours = open(&path);
        take(&ours, Claim::Write, &path).unwrap();
        let name = "image::lock::tests::child_that_is_slow_to_start";
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", name])
            .stdin(ours.try_clone().unwrap())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        drop(ours);
        let taken = take(&open(&path), Claim::Write, &path);
        assert!(child.wait().unwrap().success());
        taken.unwrap();
    }

    #[test]
    fn readers_share_and_a_writer_is_alone() {
        let (_dir, path) = image();
        let (a, b, c) = (open(&path), open(&path), open(&path));
        take(&a, Claim::Read, &path).unwrap();
        take(&b, Claim::Read, &path).unwrap();
        let error = take(&c, Claim::Write, &path).unwrap_err();
        let LockError::Unshared { permission: Permission::Write, holders } = error else {
            unreachable!("{error}")
        };
        assert_eq!(holders, ["this process"]);
        assert!(take(&c, Claim::Write, &path).unwrap_err().hint().contains("--read-only"));
        drop((a, b));
        take(&c, Claim::Write, &path).unwrap();
    }

    #[test]
    fn a_weakened_writer_is_a_reader_to_others() {
        let (_dir, path) = image();
        let (was, reader, writer) = (open(&path), open(&path), open(&path));
        take(&was, Claim::Write, &path).unwrap();
        super::weaken(&was).unwrap();
        take(&reader, Claim::Read, &path).unwrap();
        drop(reader);
        assert_eq!(take(&writer, Claim::Write, &path).unwrap_err().code(), "locked");
        drop(was);
        take(&writer, Claim::Write, &path).unwrap();
    }

    #[test]
    fn a_writer_keeps_readers_and_writers_out_and_a_refused_claim_leaves_nothing_behind() {
        let (_dir, path) = image();
        let (writer, late) = (open(&path), open(&path));
        take(&writer, Claim::Write, &path).unwrap();
        for claim in [Claim::Read, Claim::Write] {
            let error = take(&late, claim, &path).unwrap_err();
            assert_eq!(error.code(), "locked", "{error}");
            // Whoever would try to read next would only be refused again.
            assert!(!error.hint().contains("--read-only"), "{}", error.hint());
        }
        drop(writer);
        let next = open(&path);
        take(&next, Claim::Write, &path).unwrap();
        drop(late);
    }
}

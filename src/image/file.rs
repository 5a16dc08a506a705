//! One open image file: found without side effects, opened without surprises, read and repaired at
//! positions, never mapped into memory.
//!
//! Refuses everything but regular files and block devices: a FIFO would block, a character device
//! has effects, a socket is a mistake. Opens by path once; what is asked later is asked of the
//! descriptor, so that nobody can swap the file in between.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use vhd::{Limits, Opening, RepairStep, Step};

use super::error::{Cause, ImageError};
use super::lock::{self, Claim};

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A character device.
    CharacterDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A symbolic link.
    Symlink,
    /// What the system has no name for.
    Unknown,
}

impl FileKind {
    pub(super) fn of(mode: rustix::fs::RawMode) -> Self {
        match FileType::from_raw_mode(mode) {
            FileType::RegularFile => Self::Regular,
            FileType::BlockDevice => Self::BlockDevice,
            FileType::Directory => Self::Directory,
            FileType::CharacterDevice => Self::CharacterDevice,
            FileType::Fifo => Self::Fifo,
            FileType::Socket => Self::Socket,
            FileType::Symlink => Self::Symlink,
            _ => Self::Unknown,
        }
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Regular => "regular file",
            Self::BlockDevice => "block device",
            Self::Directory => "directory",
            Self::CharacterDevice => "character device",
            Self::Fifo => "named pipe",
            Self::Socket => "socket",
            Self::Symlink => "symbolic link",
            Self::Unknown => "file of an unknown kind",
        })
    }
}

/// An open directory and its canonical path. The path is for comparing and for messages.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) dir: OwnedFd,
    pub(super) path: PathBuf,
}

impl Place {
    /// Opens a directory that the user named; links in its path are the user's own.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let path = path.canonicalize()?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&path, flags, Mode::empty())?;
        Ok(Self { dir, path })
    }

    /// The directory that holds (or will hold) a file that the user named, and the file's name.
    pub(super) fn around(path: &Path) -> io::Result<(Self, OsString)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let parent = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        Ok((Self::open(parent)?, name.to_owned()))
    }

    /// A second handle on the same directory.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { dir: self.dir.try_clone()?, path: self.path.clone() })
    }
}

/// What makes two descriptors the same file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
}

/// A file that was found and looked at, but not opened yet: that has no side effect on anything.
#[derive(Debug)]
pub(super) struct FoundFile {
    handle: OwnedFd,
    pub(super) place: Place,
    pub(super) name: OsString,
    pub(super) kind: FileKind,
    pub(super) identity: Identity,
    pub(super) mode: u32,
}

impl FoundFile {
    /// Finds a file that the user named; links in its path are the user's own.
    pub(super) fn named(path: &Path) -> Result<Self, ImageError> {
        let lost = |error: io::Error| ImageError::new(path, Cause::io("find it", error));
        let real = path.canonicalize().map_err(lost)?;
        let (place, name) = match Place::around(&real) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                return Err(ImageError::new(path, Cause::NotAnImage(FileKind::Directory)));
            }
            around => around.map_err(lost)?,
        };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = rustix::fs::openat(&place.dir, &*name, flags, Mode::empty())
            .map_err(|errno| lost(errno.into()))?;
        let found = Self::held(handle, place, &name).map_err(lost)?;
        match found.kind {
            FileKind::Regular | FileKind::BlockDevice => Ok(found),
            other => Err(ImageError::new(path, Cause::NotAnImage(other))),
        }
    }

    /// Looks at what a path handle holds.
    pub(super) fn held(handle: OwnedFd, place: Place, name: &OsStr) -> io::Result<Self> {
        let stat = rustix::fs::fstat(&handle)?;
        let identity = Identity { device: stat.st_dev, inode: stat.st_ino };
        let kind = FileKind::of(stat.st_mode);
        let name = name.to_owned();
        Ok(Self { handle, place, name, kind, identity, mode: stat.st_mode })
    }

    /// The file's canonical path.
    pub(super) fn path(&self) -> PathBuf {
        self.place.path.join(&self.name)
    }

    /// Opens the very file that was found, and claims it. Without a claim nobody is kept from
    /// writing meanwhile.
    pub(super) fn open(self, write: bool, claim: Option<Claim>) -> Result<ImageFile, Cause> {
        let device = self.kind == FileKind::BlockDevice;
        let mut flags = OFlags::CLOEXEC | OFlags::NOCTTY;
        flags |= if write { OFlags::RDWR } else { OFlags::RDONLY };
        // A device that is mounted must not be written; a file whose lease somebody holds must not
        // make us wait.
        flags |= match (device, write) {
            (true, true) => OFlags::EXCL,
            (true, false) => OFlags::empty(),
            (false, _) => OFlags::NONBLOCK,
        };
        let link = format!("/proc/self/fd/{}", self.handle.as_raw_fd());
        let doing = if write { "open it for writing" } else { "open it" };
        // It was found, so a path that is not there is /proc itself: not `NotFound`.
        let fd = rustix::fs::open(link, flags, Mode::empty())
            .map_err(|errno| Cause::Io { doing, error: errno.into() })?;
        if !device {
            // Left on, io_uring would report EAGAIN where it should wait for the disk.
            rustix::fs::fcntl_setfl(&fd, OFlags::empty()).map_err(|e| Cause::io(doing, e))?;
        }
        let path = self.path();
        let (identity, place, name, mode) = (self.identity, self.place, self.name, self.mode);
        drop(self.handle);
        if let Some(claim) = claim {
            lock::take(&fd, claim, &path)?;
        }
        let fd = File::from(fd);
        let mut file =
            ImageFile { fd, path, place, name, identity, device, mode, len: vhd::ByteLen::ZERO };
        file.measure()?;
        Ok(file)
    }
}

/// An open image file.
#[derive(Debug)]
pub(super) struct ImageFile {
    fd: File,
    /// Canonical.
    pub(super) path: PathBuf,
    pub(super) place: Place,
    pub(super) name: OsString,
    pub(super) identity: Identity,
    pub(super) device: bool,
    /// Type and permission bits.
    pub(super) mode: u32,
    /// Bytes of the file or device.
    pub(super) len: vhd::ByteLen,
}

impl ImageFile {
    fn measure(&mut self) -> Result<(), Cause> {
        let len = if self.device {
            rustix::fs::seek(&self.fd, SeekFrom::End(0)).map_err(|e| Cause::io("measure it", e))?
        } else {
            self.fd.metadata().map_err(|e| Cause::io("measure it", e))?.len()
        };
        self.len = vhd::ByteLen::new(len);
        Ok(())
    }

    /// Bytes that the file takes on its file system.
    pub(super) fn allocated(&self) -> Result<vhd::ByteLen, Cause> {
        let stat = rustix::fs::fstat(&self.fd).map_err(|e| Cause::io("measure it", e))?;
        Ok(vhd::ByteLen::new(u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512)))
    }

    /// Reads exactly these bytes.
    pub(super) fn read(&self, at: vhd::FileOffset, bytes: &mut [u8]) -> Result<(), Cause> {
        read_exact(self.fd.as_fd(), at, bytes)
    }

    /// Opens the image inside, as a VHD.
    pub(super) fn survey(&self) -> Result<vhd::Image, Cause> {
        let mut opening = Opening::new(self.len, Limits::default());
        let mut bytes = Vec::new();
        let mut step = opening.step(None)?;
        loop {
            match step {
                Step::Done(image) => return Ok(image),
                Step::Read { at, len } => {
                    bytes.resize(len, 0);
                    self.read(at, &mut bytes)?;
                    step = opening.step(Some(&bytes))?;
                }
            }
        }
    }

    /// Checks the image inside, as a VHD.
    pub(super) fn check(&self, data: bool) -> Result<vhd::Report, Cause> {
        check(self.fd.as_fd(), self.len, data)
    }

    /// Where the image lives, for the repair.
    pub(super) const fn backing(&self) -> vhd::Backing {
        if self.device { vhd::Backing::Device { len: self.len } } else { vhd::Backing::File }
    }

    /// Makes durable what the page cache holds of the file.
    pub(super) fn sync(&self) -> Result<(), Cause> {
        self.fd.sync_data().map_err(|error| Cause::Io { doing: "sync it", error })
    }

    /// Carries out the steps of a repair, one after the other, and measures the file again.
    pub(super) fn carry_out(&mut self, steps: &[RepairStep]) -> Result<(), Cause> {
        for step in steps {
            match step {
                RepairStep::Write { at, bytes } => self.fd.write_all_at(bytes, at.get()),
                RepairStep::Truncate { len } => self.fd.set_len(len.get()),
                // The length is part of what fdatasync keeps: it is needed to find the bytes.
                RepairStep::Sync => self.fd.sync_data(),
            }
            .map_err(|error| Cause::Io { doing: "repair it", error })?;
        }
        self.measure()
    }

    /// A second descriptor of the same file, which stays with the page cache when this one leaves
    /// it: for what the host writes that is not aligned. `None` when nothing is written, or by
    /// aligned requests only, as on a device. It holds no claim.
    pub(super) fn open_cached(&self) -> Result<Option<OwnedFd>, Cause> {
        let doing = "open it once more, through the page cache";
        let flags = rustix::fs::fcntl_getfl(&self.fd).map_err(|e| Cause::io(doing, e))?;
        if self.device || !flags.contains(OFlags::RDWR) {
            return Ok(None);
        }
        let link = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        let fd = rustix::fs::open(link, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        // An O_PATH handle was followed to get here, so what is not there is /proc itself.
        fd.map(Some).map_err(|errno| Cause::Io { doing, error: errno.into() })
    }

    /// From now on past the page cache.
    pub(super) fn make_direct(&self) -> Result<(), Cause> {
        let flags = rustix::fs::fcntl_getfl(&self.fd).map_err(|e| Cause::io("open it", e))?;
        rustix::fs::fcntl_setfl(&self.fd, flags | OFlags::DIRECT).map_err(|_| Cause::NoDirect)
    }

    /// The descriptor, which holds the claim, and the canonical path.
    pub(super) fn into_parts(self) -> (OwnedFd, PathBuf) {
        (self.fd.into(), self.path)
    }
}

impl AsFd for ImageFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Reads exactly these bytes, wherever the descriptor's own position is.
fn read_exact(fd: BorrowedFd<'_>, at: vhd::FileOffset, bytes: &mut [u8]) -> Result<(), Cause> {
    let failed = |error: io::Error| Cause::Io { doing: "read it", error };
    let mut done = 0;
    while done < bytes.len() {
        let at = at.get().checked_add(done as u64);
        let at = at.ok_or_else(|| failed(io::ErrorKind::UnexpectedEof.into()))?;
        match rustix::io::pread(fd, &mut bytes[done..], at) {
            Ok(0) => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
    }
    Ok(())
}

/// Checks a VHD of `len` bytes.
pub(super) fn check(
    fd: BorrowedFd<'_>,
    len: vhd::ByteLen,
    data: bool,
) -> Result<vhd::Report, Cause> {
    let options = vhd::CheckOptions { data, limits: Limits::default() };
    let mut check = vhd::Check::new(len, options);
    let shrunk = |error: vhd::CheckError| Cause::Io {
        doing: "read it",
        error: io::Error::new(io::ErrorKind::UnexpectedEof, error.to_string()),
    };
    let mut bytes = Vec::new();
    let mut step = check.step(None).map_err(shrunk)?;
    loop {
        match step {
            Step::Done(report) => return Ok(report),
            Step::Read { at, len } => {
                bytes.resize(len, 0);
                read_exact(fd, at, &mut bytes)?;
                step = check.step(Some(&bytes)).map_err(shrunk)?;
            }
        }
    }
}

/// Unix seconds as VHD counts them: since 2000-01-01 00:00 UTC, in 32 bits.
pub(super) fn vhd_seconds(unix: i64) -> u32 {
    const VHD_EPOCH: i64 = 946_684_800;
    u32::try_from(unix.saturating_sub(VHD_EPOCH)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::{Cause, FileKind, FoundFile};

    fn refusal(path: &std::path::Path) -> Cause {
        FoundFile::named(path).unwrap_err().cause
    }

    #[test]
    fn only_regular_files_and_block_devices_are_images() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(refusal(dir.path()), Cause::NotAnImage(FileKind::Directory)));
        assert!(matches!(refusal("/".as_ref()), Cause::NotAnImage(FileKind::Directory)));
        let zero = refusal("/dev/zero".as_ref());
        assert!(matches!(zero, Cause::NotAnImage(FileKind::CharacterDevice)));
        let fifo = dir.path().join("fifo");
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert!(matches!(refusal(&fifo), Cause::NotAnImage(FileKind::Fifo)));
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        let socket = refusal(&dir.path().join("socket"));
        assert!(matches!(socket, Cause::NotAnImage(FileKind::Socket)));
        assert!(matches!(refusal(&dir.path().join("none")), Cause::NotFound));
    }

    #[test]
    fn a_link_that_the_user_names_leads_to_the_place_of_the_image_itself() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap().join("real");
        std::fs::create_dir(&real).unwrap();
        std::fs::write(real.join("image.raw"), [7; 512]).unwrap();
        symlink(real.join("image.raw"), dir.path().join("link.raw")).unwrap();
        let found = FoundFile::named(&dir.path().join("link.raw")).unwrap();
        assert_eq!(found.place.path, real);
        let file = found.open(false, None).unwrap();
        assert_eq!((file.path.clone(), file.len.get()), (real.join("image.raw"), 512));
        let mut byte = [0];
        file.read(vhd::FileOffset::new(511), &mut byte).unwrap();
        assert_eq!(byte, [7]);
    }
}

//! A directory as a store. Every name is resolved by the kernel beneath the open directory, with no
//! link followed anywhere; only regular files are opened.
//!
//! Refuses names with a separator before the kernel sees them, and links, devices, pipes and
//! sockets afterwards: a directory's content is as untrusted as an image's.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FallocateFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags,
    ResolveFlags, StatxFlags,
};
use rustix::io::Errno;

use super::dying;
use super::store::{Claim, DataPlace, DirOp, Entry, EntryKind, Space, Stamp, Store};
use crate::engine::units::{ByteLen, FileOffset};

const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Images of one owner: nobody else reads a guest's disk.
const FILE_MODE: u32 = 0o600;

/// An open directory.
#[derive(Debug)]
pub struct Directory {
    dir: OwnedFd,
    path: PathBuf,
    /// For tests: as on a file system that cannot rename without replacing.
    lacks_noreplace: bool,
}

impl Directory {
    /// Opens a directory that an administrator named; links in its path are their own.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let path = path.canonicalize()?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&path, flags, Mode::empty())?;
        Ok(Self { dir, path, lacks_noreplace: false })
    }

    /// As on a file system that cannot rename without replacing, whatever this one can.
    #[must_use]
    pub fn without_noreplace(mut self) -> Self {
        self.lacks_noreplace = true;
        self
    }

    /// Its canonical path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn open_file(&self, name: &str, flags: OFlags) -> io::Result<File> {
        plain(name)?;
        // NONBLOCK: opening a pipe that somebody put here must not wait.
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::NOFOLLOW;
        let mode = if flags.contains(OFlags::CREATE) { FILE_MODE } else { 0 };
        let mode = Mode::from_raw_mode(mode);
        let fd = match rustix::fs::openat2(&self.dir, name, flags, mode, BENEATH) {
            Err(Errno::NOSYS) => rustix::fs::openat(&self.dir, name, flags, mode),
            opened => opened,
        };
        let fd = fd.map_err(|errno| match errno {
            Errno::LOOP | Errno::NXIO | Errno::ISDIR => irregular(name),
            other => other.into(),
        })?;
        let file = File::from(fd);
        if file.metadata()?.is_file() { Ok(file) } else { Err(irregular(name)) }
    }

    fn change_file(&self, op: DirOp<'_>) -> io::Result<()> {
        match op {
            DirOp::Write { name, at, bytes } => {
                self.open_file(name, OFlags::WRONLY)?.write_all_at(bytes, at.get())
            }
            DirOp::SetLength { name, len } => {
                self.open_file(name, OFlags::WRONLY)?.set_len(len.get())
            }
            DirOp::Punch { name, at, len } => {
                let file = self.open_file(name, OFlags::WRONLY)?;
                punch(&file, at, len)
            }
            DirOp::SyncFile { name } => self.open_file(name, OFlags::RDONLY)?.sync_all(),
            DirOp::Create { name } => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                self.open_file(name, flags).map(drop)
            }
            DirOp::Overwrite { name, seen, bytes } => {
                let file = self.open_file(name, OFlags::WRONLY)?;
                let now = rustix::fs::fstat(&file)?;
                let modified = nanoseconds(now.st_mtime, now.st_mtime_nsec);
                // Of the open file: whoever moves it aside from here on takes what is written
                // along.
                if (now.st_ino, modified) != (seen.file, seen.modified_ns) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                file.write_all_at(bytes, 0)?;
                file.set_len(bytes.len() as u64)
            }
            DirOp::Rename { .. }
            | DirOp::Take { .. }
            | DirOp::Unlink { .. }
            | DirOp::SyncDirectory => Ok(()),
        }
    }

    fn rename(&self, from: &str, to: &str, replace: bool) -> io::Result<()> {
        plain(from)?;
        plain(to)?;
        let dir = &self.dir;
        if replace {
            return Ok(rustix::fs::renameat(dir, from, dir, to)?);
        }
        match self.rename_to_free(from, to) {
            // Not every file system can. A link and an unlink could: but between them a disk would
            // have two names, and after a crash there one would be written to and one be a
            // snapshot.
            Err(Errno::INVAL | Errno::NOSYS) => self.rename_after_a_look(from, to),
            renamed => Ok(renamed?),
        }
    }

    fn rename_to_free(&self, from: &str, to: &str) -> Result<(), Errno> {
        if self.lacks_noreplace {
            return Err(Errno::INVAL);
        }
        rustix::fs::renameat_with(&self.dir, from, &self.dir, to, RenameFlags::NOREPLACE)
    }

    /// In this process the turns see to it that nobody else makes the name in between.
    fn rename_after_a_look(&self, from: &str, to: &str) -> io::Result<()> {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        match rustix::fs::statx(&self.dir, to, flags, StatxFlags::TYPE) {
            Err(Errno::NOENT) => Ok(rustix::fs::renameat(&self.dir, from, &self.dir, to)?),
            Ok(_) => Err(Errno::EXIST.into()),
            Err(other) => Err(other.into()),
        }
    }

    fn take(&self, from: &str, to: &str) -> io::Result<()> {
        plain(from)?;
        plain(to)?;
        match self.rename_to_free(from, to) {
            Err(Errno::INVAL | Errno::NOSYS) => {
                let dir = &self.dir;
                rustix::fs::linkat(dir, from, dir, to, AtFlags::empty())?;
                Ok(rustix::fs::unlinkat(dir, from, AtFlags::empty())?)
            }
            renamed => Ok(renamed?),
        }
    }
}

impl Store for Directory {
    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn list(&self) -> io::Result<Vec<Entry>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut entries = Vec::new();
        for entry in Dir::new(rustix::fs::openat(&self.dir, ".", flags, Mode::empty())?)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy();
            if name == "." || name == ".." {
                continue;
            }
            // A name that is not UTF-8 is none of ours.
            let is_text = entry.file_name().to_str().is_ok();
            let kind = match entry.file_type() {
                FileType::RegularFile | FileType::Unknown if !is_text => EntryKind::Nameless,
                FileType::RegularFile => EntryKind::Data,
                FileType::Unknown => EntryKind::Unknown,
                other => EntryKind::Other(words_for(other)),
            };
            entries.push(Entry { name: name.into_owned(), kind, file: Some(entry.ino()) });
        }
        Ok(entries)
    }

    fn stamp(&self, name: &str) -> io::Result<Stamp> {
        plain(name)?;
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let stat = rustix::fs::statx(&self.dir, name, flags, StatxFlags::BASIC_STATS)?;
        if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::RegularFile {
            return Err(irregular(name));
        }
        let modified = stat.stx_mtime;
        Ok(Stamp {
            file: stat.stx_ino,
            len: ByteLen::new(stat.stx_size),
            allocated: ByteLen::new(stat.stx_blocks.saturating_mul(512)),
            modified_ns: nanoseconds(modified.tv_sec, modified.tv_nsec),
        })
    }

    fn read(&self, name: &str, at: FileOffset, bytes: &mut [u8]) -> io::Result<()> {
        self.open_file(name, OFlags::RDONLY)?.read_exact_at(bytes, at.get())
    }

    fn apply(&self, op: DirOp<'_>) -> io::Result<()> {
        dying::step();
        match op {
            DirOp::Rename { from, to, replace } => self.rename(from, to, replace),
            DirOp::Take { from, to } => self.take(from, to),
            DirOp::Unlink { name } => {
                plain(name)?;
                Ok(rustix::fs::unlinkat(&self.dir, name, AtFlags::empty())?)
            }
            DirOp::SyncDirectory => Ok(rustix::fs::fsync(&self.dir)?),
            other => self.change_file(other),
        }
    }

    fn space(&self) -> io::Result<Space> {
        let figures = rustix::fs::fstatvfs(self.dir.as_fd())?;
        let bytes = |blocks: u64| ByteLen::new(blocks.saturating_mul(figures.f_frsize));
        let used = figures.f_blocks.saturating_sub(figures.f_bfree);
        Ok(Space { size: bytes(figures.f_blocks), used: bytes(used) })
    }

    fn occupy(&self, shared: bool) -> io::Result<()> {
        let how = if shared {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        match rustix::fs::flock(&self.dir, how) {
            Err(Errno::WOULDBLOCK) => {
                let why = "another daemon, or another SR here, uses the directory";
                Err(io::Error::new(io::ErrorKind::ResourceBusy, why))
            }
            // Not every file system can; those of other hosts are not kept away by it anyway.
            _ => Ok(()),
        }
    }

    fn claim(&self, name: &str) -> io::Result<Claim> {
        let file = self.open_file(name, OFlags::RDWR)?;
        let path = self.path.join(name);
        crate::image::claim_to_write(&file, &path)
            .map_err(|error| io::Error::new(io::ErrorKind::ResourceBusy, error.to_string()))?;
        Ok(Box::new(file))
    }

    fn data_place(&self, name: &str) -> DataPlace {
        DataPlace::Path(self.path.join(name))
    }
}

impl Drop for Directory {
    /// Gives it up by word: a child that is being started has a copy of the descriptor until it
    /// becomes its program, and would occupy the directory for that long.
    fn drop(&mut self) {
        // Where there are no locks there is nothing to give up.
        let _ = rustix::fs::flock(&self.dir, FlockOperation::Unlock);
    }
}

/// Refuses what is no single component. Our own names never are, so this is the second lock.
fn plain(name: &str) -> io::Result<()> {
    let odd = name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']);
    if odd { Err(io::ErrorKind::InvalidInput.into()) } else { Ok(()) }
}

fn nanoseconds(seconds: impl Into<i128>, rest: impl Into<i128>) -> i128 {
    seconds.into() * 1_000_000_000 + rest.into()
}

fn irregular(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is no regular file"))
}

fn words_for(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a named pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        _ => "no regular file",
    }
}

fn punch(file: &File, at: FileOffset, len: ByteLen) -> io::Result<()> {
    /// Zeroes written at once where the file system has no holes.
    const CHUNK_BYTES: u64 = 1 << 20;
    let end = file.metadata()?.len().min(at.get().saturating_add(len.get()));
    let Some(rest) = end.checked_sub(at.get()).filter(|rest| *rest > 0) else { return Ok(()) };
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, mode, at.get(), rest) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
        punched => return Ok(punched?),
    }
    let zeroes = vec![0; usize::try_from(rest.min(CHUNK_BYTES)).unwrap_or(0)];
    let mut done = 0;
    while done < rest {
        let part = (rest - done).min(CHUNK_BYTES);
        file.write_all_at(&zeroes[..usize::try_from(part).unwrap_or(0)], at.get() + done)?;
        done += part;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Directory, Store};

    #[test]
    fn who_still_has_a_copy_of_the_descriptor_does_not_occupy_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) =
            (Directory::open(dir.path()).unwrap(), Directory::open(dir.path()).unwrap());
        first.occupy(false).unwrap();
        assert_eq!(second.occupy(true).unwrap_err().kind(), std::io::ErrorKind::ResourceBusy);
        let copy = first.dir.try_clone().unwrap();
        drop(first);
        second.occupy(false).unwrap();
        drop(copy);
    }
}

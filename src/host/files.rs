//! The open files of a host: descriptors, how each wants to be used, and the order of its writes.
//!
//! Refuses to open images: whoever opened one (through the gate) hands the descriptor over.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, FileType, OFlags, StatxFlags};
use rustix::process::{Resource, getrlimit};

use super::direct::{Grid, Order};
use super::slab::Slab;
use super::task::Task;
use crate::engine::effect::FileId;
use crate::engine::units::ByteLen;

/// Files a host keeps open at most: so many have a [`FileId`].
pub const MAX_FILES: usize = 1 << 16;

/// Descriptors, and places in the table of a ring, that files leave to connections and to control.
const KEPT: u64 = 64;

/// There is no room for another file. The disks that are there are none the worse for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutOfFiles {
    /// All names are given.
    #[error(
        "this I/O thread has {MAX_FILES} image files open and can have no more: start with more \
         --threads, or attach fewer disks"
    )]
    Names,
    /// The process has nearly all the descriptors it may have.
    #[error(
        "of the {limit} files this process may have open only the last {kept} are left, which \
         are kept for connections: raise LimitNOFILE= of its service, or `ulimit -n`, and start it \
         again; each image of a chain needs one, some two"
    )]
    Descriptors {
        /// RLIMIT_NOFILE as it was when the host was made.
        limit: u64,
        /// The part of it that files do not get.
        kept: u64,
    },
    /// The ring knows nearly as many as it can.
    #[error(
        "of the {slots} files this I/O thread's ring can know only the last {kept} are left, \
         which are kept for connections: start with more --threads or with --aio threads, or \
         raise LimitNOFILE= of its service, or `ulimit -n`, if it is lower than 65536"
    )]
    Slots {
        /// Places in its table.
        slots: u32,
        /// Those that files do not get.
        kept: u64,
    },
}

impl From<OutOfFiles> for io::Error {
    fn from(error: OutOfFiles) -> Self {
        Self::new(io::ErrorKind::QuotaExceeded, error)
    }
}

/// RLIMIT_NOFILE, which may be none.
pub(super) fn open_files_limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// How many of so many are kept for others than files.
pub(super) fn kept_of(all: u64) -> u64 {
    KEPT.min(all / 8)
}

/// The alignment assumed where the system does not tell; no known device asks for more.
const UNKNOWN_ALIGN: u32 = 4096;

/// The largest alignment believed; beyond it the file is broken or hostile.
const MAX_ALIGN: u32 = 64 * 1024;

/// How a file wants to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenMode {
    /// Opened with O_DIRECT: requests must be aligned.
    pub direct: bool,
    /// Alignment of memory in bytes, a power of two. Means nothing without `direct`.
    pub mem_align: u32,
    /// Alignment of positions and lengths in bytes, a power of two. Means nothing without `direct`.
    pub offset_align: u32,
    /// A block device: its size is fixed and whole units.
    pub device: bool,
}

impl OpenMode {
    /// A regular file through the page cache.
    pub const BUFFERED: Self = Self { direct: false, mem_align: 1, offset_align: 1, device: false };

    /// Asks the system how the descriptor wants to be used.
    ///
    /// # Errors
    /// What the system says about a descriptor it cannot describe.
    pub fn probe(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let direct = rustix::fs::fcntl_getfl(fd)?.contains(OFlags::DIRECT);
        let stat = rustix::fs::fstat(fd)?;
        let device = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
        if !direct {
            return Ok(Self { device, ..Self::BUFFERED });
        }
        let mut mode =
            Self { direct, mem_align: UNKNOWN_ALIGN, offset_align: UNKNOWN_ALIGN, device };
        if let Ok(told) = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
            && told.stx_mask & StatxFlags::DIOALIGN.bits() != 0
            && told.stx_dio_offset_align != 0
        {
            mode.mem_align = told.stx_dio_mem_align.max(1);
            mode.offset_align = told.stx_dio_offset_align;
        } else if device && let Ok(sector) = rustix::fs::ioctl_blksszget(fd) {
            mode.offset_align = sector;
        }
        Ok(mode)
    }

    fn is_sound(&self) -> bool {
        let fine = |align: u32| align.is_power_of_two() && align <= MAX_ALIGN;
        !self.direct || (fine(self.mem_align) && fine(self.offset_align))
    }
}

/// A file on its way to a host.
#[derive(Debug)]
pub struct Descriptors {
    /// The file. What others hold by it (locks, a claim on a device) lasts as long as it is open.
    pub main: OwnedFd,
    /// The same file through the page cache, for the ragged ends of direct writes: needed beside a
    /// writable `main` with O_DIRECT, unless it is a device. Whoever opened `main` opens it,
    /// because a host may run where that user's rights are gone.
    pub cached: Option<OwnedFd>,
    /// How they want to be used.
    pub mode: OpenMode,
}

impl Descriptors {
    /// A file that needs no second descriptor.
    pub const fn new(main: OwnedFd, mode: OpenMode) -> Self {
        Self { main, cached: None, mode }
    }
}

/// An open file, shared with the operations in flight on it.
pub(super) struct OpenFile {
    fd: OwnedFd,
    /// The same file through the page cache, for the ragged end of direct writes.
    cached: Option<OwnedFd>,
    mode: OpenMode,
    /// Small cached transfers are faster done at once than by the ring (see `INLINE_MAX_BYTES`).
    inline_writes: bool,
    inline_reads: bool,
    /// Whether the page cache can be read without waiting for anything.
    lone_reads: AtomicBool,
    /// Whether parts of it may be sent from the page cache, as far as is known.
    lends: AtomicBool,
    /// Whether it may be read through a mapping, as far as is known.
    maps: AtomicBool,
    /// The file system said no to fallocate once; asking again costs a call per effect.
    no_punch: AtomicBool,
    no_zero: AtomicBool,
}

/// Cached transfers up to this many bytes are done at once on file systems where io_uring hands
/// them to a worker thread: the copy costs less than the thread switches.
pub(super) const INLINE_MAX_BYTES: u64 = 64 * 1024;

/// File systems (statfs magic) that cannot do cached writes without waiting, so that io_uring
/// always hands them to a worker: ext2, ext3 and ext4 share the number. XFS and btrfs can.
/// Network file systems cannot either, but waiting for a server would stop the shard.
const PUNTING_MAGIC: u64 = 0xEF53;
/// tmpfs, whose reads and writes io_uring hands to a worker as well, although both are copies of
/// memory.
const MEMORY_MAGIC: u64 = 0x0102_1994;

/// File systems on local storage (ext2 to 4, tmpfs, XFS, btrfs): what was cached and is not any
/// more is soon there again. A server of a network file system may take for ever.
const LOCAL_MAGIC: [u64; 4] = [PUNTING_MAGIC, MEMORY_MAGIC, 0x5846_5342, 0x9123_683E];

impl OpenFile {
    fn new(file: Descriptors) -> io::Result<Self> {
        let Descriptors { main: fd, cached: twin, mode } = file;
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        let writable = flags.intersects(OFlags::WRONLY | OFlags::RDWR);
        if mode.direct && !mode.device && writable && twin.is_none() {
            let missing = "a file written with O_DIRECT came without its buffered descriptor";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, missing));
        }
        let cached = !mode.direct && !mode.device;
        let magic = rustix::fs::fstatfs(&fd).map_or(0, |fs| fs.f_type as u64);
        let inline_reads = cached && magic == MEMORY_MAGIC;
        let inline_writes = inline_reads || (cached && magic == PUNTING_MAGIC);
        let (no_punch, no_zero) = (AtomicBool::new(false), AtomicBool::new(false));
        let lone_reads = AtomicBool::new(!mode.direct);
        let local = LOCAL_MAGIC.contains(&magic);
        let lends = AtomicBool::new(!mode.direct && (mode.device || local));
        let maps = AtomicBool::new(cached && local);
        Ok(Self {
            fd,
            cached: twin,
            mode,
            inline_writes,
            inline_reads,
            lone_reads,
            lends,
            maps,
            no_punch,
            no_zero,
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The descriptor whose writes need no alignment.
    pub(super) fn cached(&self) -> Option<BorrowedFd<'_>> {
        self.cached.as_ref().map(OwnedFd::as_fd)
    }

    /// The grid of requests; none through the page cache.
    pub(super) fn grid(&self) -> Option<Grid> {
        self.mode.direct.then(|| Grid::new(self.mode.offset_align))
    }

    pub(super) const fn mem_align(&self) -> usize {
        self.mode.mem_align as usize
    }

    /// Whether it is a block device.
    pub(super) const fn is_device(&self) -> bool {
        self.mode.device
    }

    pub(super) const fn inline_writes(&self) -> bool {
        self.inline_writes
    }

    pub(super) const fn inline_reads(&self) -> bool {
        self.inline_reads
    }

    /// Whether a cached read may be tried without waiting.
    pub(super) fn lone_reads(&self) -> bool {
        self.lone_reads.load(Ordering::Relaxed)
    }

    /// Its file system does not know reads that never wait.
    pub(super) fn cannot_tell(&self) {
        self.lone_reads.store(false, Ordering::Relaxed);
    }

    /// Whether parts of it may be sent from the page cache.
    pub(super) fn lends(&self) -> bool {
        self.lends.load(Ordering::Relaxed)
    }

    /// It turned out that they may not.
    pub(super) fn lends_no_more(&self) {
        self.lends.store(false, Ordering::Relaxed);
    }

    /// Whether it may be read through a mapping.
    pub(super) fn maps(&self) -> bool {
        self.maps.load(Ordering::Relaxed)
    }

    /// It turned out that it may not.
    pub(super) fn maps_no_more(&self) {
        self.maps.store(false, Ordering::Relaxed);
    }

    /// Current size. A device is endless here: it cannot grow, and writing behind its end fails.
    pub(super) fn size(&self) -> io::Result<ByteLen> {
        if self.mode.device {
            return Ok(ByteLen::new(u64::MAX));
        }
        let size = rustix::fs::fstat(&self.fd)?.st_size;
        Ok(ByteLen::new(u64::try_from(size).unwrap_or(0)))
    }

    pub(super) const fn no_punch(&self) -> &AtomicBool {
        &self.no_punch
    }

    pub(super) const fn no_zero(&self) -> &AtomicBool {
        &self.no_zero
    }
}

impl fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let no_punch = self.no_punch.load(Ordering::Relaxed);
        f.debug_struct("OpenFile")
            .field("fd", &self.fd)
            .field("mode", &self.mode)
            .field("no_punch", &no_punch)
            .finish_non_exhaustive()
    }
}

/// All open files, by the engine's name.
#[derive(Debug)]
pub(super) struct FileTable {
    entries: Slab<Entry>,
    /// The limit of descriptors when this was made.
    limit: u64,
}

#[derive(Debug)]
struct Entry {
    file: Arc<OpenFile>,
    order: Order<Task>,
    /// Ranges that are being changed through the page cache: where they begin, how long they are.
    changing: Vec<(u64, u64)>,
}

impl FileTable {
    /// An empty one, bounded by the limit of descriptors as it is now.
    pub(super) fn new() -> Self {
        Self { entries: Slab::new(), limit: open_files_limit() }
    }

    /// Takes a descriptor over.
    pub(super) fn add(&mut self, file: Descriptors) -> io::Result<FileId> {
        if !file.mode.is_sound() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "alignment of the file"));
        }
        if self.entries.len() >= MAX_FILES {
            return Err(OutOfFiles::Names.into());
        }
        let kept = kept_of(self.limit);
        // The system gives the lowest number that is free.
        if u64::from(file.main.as_raw_fd().unsigned_abs()) >= self.limit - kept {
            return Err(OutOfFiles::Descriptors { limit: self.limit, kept }.into());
        }
        let file = Arc::new(OpenFile::new(file)?);
        let entry = Entry { file, order: Order::new(), changing: Vec::new() };
        Ok(FileId(self.entries.insert(entry) as u16))
    }

    /// The file, while it is open.
    pub(super) fn file(&self, id: FileId) -> Option<&Arc<OpenFile>> {
        Some(&self.entries.of(id.0.into())?.file)
    }

    /// Forgets a file; its descriptor closes when the last operation in flight is over. Nothing may
    /// wait for its turn any more.
    pub(super) fn remove(&mut self, id: FileId) {
        if let Some(entry) = self.entries.remove(id.0.into()) {
            debug_assert!(entry.order.is_idle(), "file {id:?} removed under its writes");
        }
    }

    /// Lets a task run now, or keeps it until a conflicting write is over.
    pub(super) fn admit(&mut self, task: Task) -> Option<Task> {
        let changes = task.changes();
        let Some(claim) = task.claim() else {
            if let (Some(changes), Some(entry)) = (changes, self.entry_of(&task)) {
                entry.changing.push(changes);
            }
            return Some(task);
        };
        let Some(entry) = self.entry_of(&task) else { return Some(task) };
        let (ticket, mut task) = entry.order.admit(claim, task)?;
        task.set_ticket(ticket);
        Some(task)
    }

    /// Takes note that a task is over; tells which others may run now.
    pub(super) fn release(&mut self, task: &Task) -> Vec<Task> {
        let Some(entry) = self.entry_of(task) else { return Vec::new() };
        if let Some(changes) = task.changes()
            && let Some(place) = entry.changing.iter().position(|range| *range == changes)
        {
            entry.changing.swap_remove(place);
        }
        let Some(ticket) = task.ticket() else { return Vec::new() };
        let started = entry.order.release(ticket);
        let with_ticket = |(ticket, mut task): (_, Task)| {
            task.set_ticket(ticket);
            task
        };
        started.into_iter().map(with_ticket).collect()
    }

    /// Whether a part of a range of a file is being changed.
    pub(super) fn is_changing(&self, file: FileId, at: u64, len: u64) -> bool {
        let Some(entry) = self.entries.of(file.0.into()) else { return false };
        entry
            .changing
            .iter()
            .any(|(from, part)| *from < at + len && at < from.saturating_add(*part))
    }

    fn entry_of(&mut self, task: &Task) -> Option<&mut Entry> {
        self.entries.of_mut(task.file_id().0.into())
    }
}

//! The `fuser` side: the kernel's requests as `fuser` gives them, handed to [`Ops`], and the
//! replies handed back. Decides nothing but how the kernel is to treat an open file.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BackingId, BsdFileFlags, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::OFlags;

use crate::ended::Ended;
use crate::manner::{
    ATTRIBUTE_TTL, ENTRY_TTL, GENERATION, GOOD_IO, Manner, SECTOR, change, is_durable, open_how,
    sought,
};
use crate::name::NAME_MAX;
use crate::ops::{Attributes, Fit, ImageOpening, Kind, Opened, Opening, Ops, fit};
use crate::port::{Errno, ReadReply, Reply};

/// The kernel's own ceiling of one request.
const MAX_WRITE: u32 = 1 << 20;
/// Asynchronous requests the kernel may have outstanding, and where it slows down.
const MAX_BACKGROUND: u16 = 128;
const CONGESTION: u16 = 96;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) struct Glue {
    ops: Arc<Ops>,
    manner: Manner,
    ended: Arc<Ended>,
    backings: Mutex<Backings>,
    ring: Option<RingWish>,
}

/// That the requests shall go over a ring, if the kernel offers it.
pub(crate) struct RingWish {
    /// Bytes one request may carry there.
    pub(crate) request_bytes: u32,
    /// Set when it was agreed on: the kernel then waits for the ring.
    pub(crate) agreed: Arc<AtomicBool>,
}

/// Files the kernel serves by itself. Its rules, each of which it enforces by failing the open:
/// all open handles of an inode share one registration; none may be without it while one has it;
/// and an inode that is mapped through its pages gets none. So an inode starts to pass only while
/// it is closed, and from then until it is closed again each handle carries the registration.
#[derive(Default)]
struct Backings {
    by_inode: HashMap<u64, (Weak<BackingId>, Arc<OwnedFd>)>,
    by_handle: HashMap<u64, Arc<BackingId>>,
    /// Open handles without a registration, by inode.
    plain: HashMap<u64, u32>,
}

/// How a handle with a registration is used.
struct Way {
    backing: Arc<BackingId>,
    /// Reads and writes are asked of the port all the same.
    asks: bool,
}

impl Glue {
    pub(crate) fn new(ops: Arc<Ops>, manner: Manner, ended: Arc<Ended>) -> Self {
        Self { ops, manner, ended, backings: Mutex::default(), ring: None }
    }

    pub(crate) fn wishing(mut self, ring: Option<RingWish>) -> Self {
        self.ring = ring;
        self
    }

    fn open_image(&self, inode: u64, mut opening: ImageOpening, reply: ReplyOpen) {
        let wanted = opening.backing.take();
        let mut backings = lock(&self.backings);
        let way = backings.way(inode, wanted, &reply);
        let opened = match self.ops.open_image(opening, way.is_some()) {
            Ok(opened) => opened,
            Err(errno) => return reply.error(number(errno)),
        };
        let handle = FileHandle(opened.handle);
        let direct = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        let Some(Way { backing, asks }) = way else {
            *backings.plain.entry(inode).or_default() += 1;
            return reply.opened(handle, direct | opened_flags(opened));
        };
        let flags = if asks { direct } else { FopenFlags::empty() };
        backings.by_handle.insert(opened.handle, backing.clone());
        reply.opened_passthrough(handle, flags | opened_flags(opened), &backing);
    }

    fn attr(&self, shape: &Attributes) -> FileAttr {
        file_attr(shape, self.manner)
    }

    fn refuse(&self) -> fuser::Errno {
        number(self.ops.refusal())
    }

    fn reply_attr(&self, reply: ReplyAttr) -> Reply<Attributes> {
        let manner = self.manner;
        Reply::new(move |result| match result {
            Ok(shape) => reply.attr(&ATTRIBUTE_TTL, &file_attr(&shape, manner)),
            Err(errno) => reply.error(number(errno)),
        })
    }
}

impl Backings {
    /// None: without a registration. A kernel or a file that cannot do it fails no open.
    fn way(&mut self, inode: u64, wanted: Option<Arc<OwnedFd>>, reply: &ReplyOpen) -> Option<Way> {
        if let Some((known, of)) = self.by_inode.get(&inode)
            && let Some(backing) = known.upgrade()
        {
            let asks = !wanted.is_some_and(|file| Arc::ptr_eq(of, &file));
            return Some(Way { backing, asks });
        }
        let file = wanted.filter(|_| !self.plain.contains_key(&inode))?;
        let backing = Arc::new(reply.open_backing(&file).ok()?);
        self.by_inode.insert(inode, (Arc::downgrade(&backing), file));
        Some(Way { backing, asks: false })
    }

    fn close(&mut self, inode: u64, handle: u64) {
        if self.by_handle.remove(&handle).is_some() {
            self.by_inode.retain(|_, (backing, _)| backing.strong_count() > 0);
        } else if let Some(count) = self.plain.get_mut(&inode) {
            *count -= 1;
            self.plain.retain(|_, count| *count > 0);
        }
    }
}

fn opened_flags(opened: Opened) -> FopenFlags {
    // A close that has nothing to say is not told, and does not hang where nobody listens.
    if opened.flush_on_close { FopenFlags::empty() } else { FopenFlags::FOPEN_NOFLUSH }
}

fn file_attr(shape: &Attributes, manner: Manner) -> FileAttr {
    FileAttr {
        ino: INodeNo(shape.inode),
        size: shape.len.0,
        blocks: shape.stored.0.div_ceil(SECTOR),
        atime: shape.modified,
        mtime: shape.modified,
        ctime: shape.modified,
        crtime: SystemTime::UNIX_EPOCH,
        kind: file_type(shape.kind),
        perm: shape.mode,
        nlink: shape.links,
        uid: manner.uid,
        gid: manner.gid,
        rdev: 0,
        blksize: GOOD_IO,
        flags: 0,
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::File => FileType::RegularFile,
    }
}

fn number(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.number())
}

fn reply_empty(reply: ReplyEmpty) -> Reply<()> {
    Reply::new(move |result| match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(number(errno)),
    })
}

fn reply_xattr(reply: ReplyXattr, room: u32) -> Reply<Vec<u8>> {
    Reply::new(move |result: Result<Vec<u8>, Errno>| {
        match result.and_then(|value| Ok((fit(&value, room)?, value))) {
            Ok((Fit::Size(len), _)) => reply.size(len),
            Ok((Fit::Whole, value)) => reply.data(&value),
            Err(errno) => reply.error(number(errno)),
        }
    })
}

fn flags_of(flags: OpenFlags) -> OFlags {
    OFlags::from_bits_retain(flags.0.cast_unsigned())
}

// The kernel's requests have the arguments they have.
#[allow(clippy::too_many_arguments)]
impl Filesystem for Glue {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for wanted in [
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
            InitFlags::FUSE_PARALLEL_DIROPS,
            // No file here is ever set-user-id, so there is nothing to take away on a write.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ] {
            // What an older kernel does not offer is done the slower way.
            let _ = config.add_capabilities(wanted);
        }
        let mut max_write = MAX_WRITE;
        if let Some(ring) = &self.ring
            && config.add_capabilities(InitFlags::FUSE_OVER_IO_URING).is_ok()
        {
            // The larger of the two is what an entry of the ring must have room for.
            max_write = ring.request_bytes.min(MAX_WRITE);
            let _ = config.set_max_readahead(max_write);
            ring.agreed.store(true, Ordering::Release);
            // Its registration goes through a reply of the classic channel.
            self.manner.passthrough = false;
        }
        if self.manner.passthrough {
            let offered = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok();
            self.manner.passthrough = offered && config.set_max_stack_depth(1).is_ok();
        }
        // These refuse zero and more than the kernel may be told, which these are not.
        let _ = config.set_max_write(max_write);
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_congestion_threshold(CONGESTION);
        Ok(())
    }

    fn destroy(&mut self) {
        self.ended.tell();
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let generation = Generation(GENERATION);
        match self.ops.lookup(parent.0, name.as_bytes()) {
            // The block count is the last one known; whoever wants it asks for attributes.
            Ok(shape) => {
                reply.entry_with_ttls(&Duration::ZERO, &ENTRY_TTL, &self.attr(&shape), generation)
            }
            Err(errno) => reply.error(number(errno)),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.ops.attributes(ino.0, self.reply_attr(reply));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let owner = mode.is_some() || uid.is_some() || gid.is_some();
        let change = change(size, owner, atime.is_some() || mtime.is_some());
        self.ops.set_attributes(ino.0, change, self.reply_attr(reply));
    }

    fn readlink(&self, _: &Request, _: INodeNo, reply: ReplyData) {
        reply.error(fuser::Errno::EINVAL);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(self.refuse());
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(self.refuse());
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(self.refuse());
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(self.refuse());
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(self.refuse());
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(self.refuse());
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(self.refuse());
    }

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        reply.error(self.refuse());
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.ops.open(ino.0, open_how(flags_of(flags)), self.manner.passthrough) {
            Err(errno) => reply.error(number(errno)),
            Ok(Opening::Image(opening)) => self.open_image(ino.0, opening, reply),
            Ok(Opening::Text(opening)) => {
                let answer = move |result: Result<Opened, Errno>| match result {
                    Ok(opened) => {
                        let flags = FopenFlags::FOPEN_DIRECT_IO | opened_flags(opened);
                        reply.opened(FileHandle(opened.handle), flags);
                    }
                    Err(errno) => reply.error(number(errno)),
                };
                self.ops.open_text(opening, Reply::new(answer));
            }
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let answer = move |result: Result<&[u8], Errno>| match result {
            Ok(bytes) => reply.data(bytes),
            Err(errno) => reply.error(number(errno)),
        };
        self.ops.read(fh.0, offset, size, ReadReply::new(answer));
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let durable = is_durable(flags_of(flags));
        let answer = move |result: Result<u32, Errno>| match result {
            Ok(count) => reply.written(count),
            Err(errno) => reply.error(number(errno)),
        };
        self.ops.write(fh.0, offset, data, durable, Reply::new(answer));
    }

    fn flush(&self, _: &Request, _: INodeNo, fh: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.ops.flush(fh.0, reply_empty(reply));
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        lock(&self.backings).close(ino.0, fh.0);
        self.ops.close(fh.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, fh: FileHandle, _: bool, reply: ReplyEmpty) {
        self.ops.sync(fh.0, reply_empty(reply));
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        // Cookies 1 and 2 are `.` and `..`; the tree's follow.
        let entries = match self.ops.list(ino.0, offset.saturating_sub(2)) {
            Ok(entries) => entries,
            Err(errno) => return reply.error(number(errno)),
        };
        let dots = [(1, "."), (2, "..")].into_iter().filter(|(cookie, _)| *cookie > offset);
        for (cookie, name) in dots {
            if reply.add(ino, cookie, FileType::Directory, name) {
                return reply.ok();
            }
        }
        for entry in entries {
            let kind = file_type(entry.kind);
            if reply.add(INodeNo(entry.inode), entry.cookie + 2, kind, &entry.name) {
                break;
            }
        }
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let room = self.ops.room();
        let name = NAME_MAX as u32;
        reply.statfs(room.blocks, 0, 0, room.files, 0, room.block, name, room.block);
    }

    fn setxattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: &[u8],
        _: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(self.refuse());
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.ops.attribute(ino.0, name.as_bytes(), reply_xattr(reply, size));
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.ops.attribute_names(ino.0, reply_xattr(reply, size));
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(self.refuse());
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks the mode bits by itself, and stops asking.
        reply.error(number(Errno::NotImplemented));
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(fuser::Errno::ENOTTY);
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.ops.allocate(fh.0, offset, length, mode, reply_empty(reply));
    }

    fn lseek(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let want = match sought(whence) {
            Ok(want) => want,
            Err(errno) => return reply.error(number(errno)),
        };
        let answer = move |result: Result<u64, Errno>| {
            let place = result.and_then(|at| i64::try_from(at).map_err(|_| Errno::TooBig));
            match place {
                Ok(at) => reply.offset(at),
                Err(errno) => reply.error(number(errno)),
            }
        };
        self.ops.seek(fh.0, offset, want, Reply::new(answer));
    }
}

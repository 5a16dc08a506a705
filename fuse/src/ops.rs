//! The requests of any FUSE transport, checked and turned into questions to the port.
//!
//! Names, attributes, bounds, permissions and error numbers are decided here, in plain types; no
//! wire is known and nothing waits. A transport calls these methods from as many threads as it
//! likes and sends what the replies bring. A range past a file's end never reaches the port.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::port::{
    Bytes, DiskId, Errno, Extent, Fact, Offset, Port, ReadReply, Reply, Run, RunKind, Text,
};
pub use crate::shape::{Attributes, Change, Fit, Kind, Listed, OpenHow, Opened, Room, fit};
use crate::tree::{Disk, Handle, Image, Layout, NewDisk, Node, ROOT_INODE, Table, TreeError};

/// The largest text a port may give.
pub const TEXT_MAX: usize = 1 << 20;
/// What every extended attribute's name starts with.
pub const ATTRIBUTE_PREFIX: &str = "user.orlop.";
/// `fallocate`: the size stays (`FALLOC_FL_KEEP_SIZE`).
pub const KEEP_SIZE: i32 = 0x01;
/// `fallocate`: the range becomes a hole (`FALLOC_FL_PUNCH_HOLE`).
pub const PUNCH_HOLE: i32 = 0x02;
/// `fallocate`: the range reads as zeroes (`FALLOC_FL_ZERO_RANGE`).
pub const ZERO_RANGE: i32 = 0x10;

/// Linux's bounds of an attribute's name, its value and a list of names, in bytes.
const ATTRIBUTE_NAME_MAX: usize = 255;
const ATTRIBUTE_VALUE_MAX: usize = 65_536;
/// Answers of the port one search for data or a hole may take. A search that ends here says what
/// is always true: that there may be data where it stopped, or no hole before the end.
const SEEK_STEPS_MAX: u32 = 256;
/// What a file system says its block is; st_blocks counts sectors by itself.
const BLOCK: u64 = 4096;

/// A file found and allowed to be opened, but not open yet.
pub enum Opening {
    /// Bytes of a disk: to be finished with [`Ops::open_image`].
    Image(ImageOpening),
    /// A text: to be finished with [`Ops::open_text`].
    Text(TextOpening),
}

/// See [`Opening::Image`].
pub struct ImageOpening {
    image: Arc<Image>,
    write: bool,
    /// What the kernel may use by itself.
    pub backing: Option<Arc<OwnedFd>>,
}

/// See [`Opening::Text`].
pub struct TextOpening(Arc<Disk>, Text);

/// What a read is to read.
pub(crate) enum Reading {
    /// It is behind the end.
    Nothing,
    /// A text, of which a part is wanted.
    Text(Arc<[u8]>),
    /// A part of a disk.
    Disk(DiskId, Extent),
}

/// What a write is to write.
pub(crate) struct Writing {
    pub(crate) disk: Arc<Disk>,
    pub(crate) at: Offset,
    /// So many bytes of what was brought.
    pub(crate) count: u32,
}

/// The requests, over one port and one table.
pub struct Ops {
    port: Arc<dyn Port>,
    table: RwLock<Table>,
    shared: bool,
}

impl Ops {
    /// A mount with nothing in it. `shared`: users other than the owner may look inside.
    #[must_use]
    pub fn new(port: Arc<dyn Port>, layout: Layout, shared: bool) -> Arc<Self> {
        Arc::new(Self { port, table: RwLock::new(Table::new(layout)), shared })
    }

    /// Shows a disk; gives the name it got. The kernel is not told: see [`crate::Mounted::add`].
    ///
    /// # Errors
    ///
    /// [`TreeError`] where the disk cannot be shown.
    pub fn add(&self, disk: &NewDisk) -> Result<String, TreeError> {
        self.change().add(disk, false).map(|disk| disk.name.clone())
    }

    /// Shows a disk that cannot be served: what is told of it, without its bytes.
    ///
    /// # Errors
    ///
    /// As [`Self::add`].
    pub fn add_broken(&self, disk: &NewDisk) -> Result<String, TreeError> {
        self.change().add(disk, true).map(|disk| disk.name.clone())
    }

    /// The entry of that name.
    ///
    /// # Errors
    ///
    /// [`Errno::NotFound`], [`Errno::NotDirectory`].
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<Attributes, Errno> {
        let node = self.look().child(parent, name)?;
        Ok(self.shape(&node))
    }

    /// The attributes, with what the port says is stored.
    pub fn attributes(&self, inode: u64, reply: Reply<Attributes>) {
        let node = match self.look().node(inode) {
            Ok(node) => node,
            Err(errno) => return reply.fail(errno),
        };
        let shape = self.shape(&node);
        let Node::Image(image) = node else { return reply.done(shape) };
        if image.check_there().is_err() || shape.len.0 == 0 {
            return reply.done(shape);
        }
        let (disk, extent) = (image.disk.id, image.on_disk(0, shape.len.0));
        let answer = move |stored: Result<Bytes, Errno>| {
            // A disk that fails still has a name and a size.
            let stored = stored.unwrap_or(shape.stored);
            image.stored.store(stored.0, Ordering::Relaxed);
            reply.done(Attributes { stored, ..shape });
        };
        self.port.allocated(disk, extent, Reply::new(answer));
    }

    /// Refuses every change but none at all: a file here has the size of its disk.
    pub fn set_attributes(&self, inode: u64, change: Change, reply: Reply<Attributes>) {
        let allowed = self.look().node(inode).and_then(|node| check_change(&node, change));
        match allowed {
            Ok(()) => self.attributes(inode, reply),
            Err(errno) => reply.fail(errno),
        }
    }

    /// The entries behind this cookie (0: all). `.` and `..` are the transport's.
    ///
    /// # Errors
    ///
    /// [`Errno::NotFound`], [`Errno::NotDirectory`].
    pub fn list(&self, inode: u64, after: u64) -> Result<Vec<Listed>, Errno> {
        let entries = self.look().list(inode, after)?;
        let listed = entries.into_iter().map(|(cookie, name, node)| {
            let shape = self.shape(&node);
            Listed { cookie, name, inode: shape.inode, kind: shape.kind }
        });
        Ok(listed.collect())
    }

    /// Sizes of the whole mount.
    #[must_use]
    pub fn room(&self) -> Room {
        let (files, bytes) = self.look().totals();
        Room { blocks: bytes.0.div_ceil(BLOCK), block: BLOCK as u32, files: files + 1 }
    }

    /// What creating, removing and renaming get.
    #[must_use]
    pub fn refusal(&self) -> Errno {
        if self.look().all_read_only() { Errno::ReadOnly } else { Errno::NotPermitted }
    }

    /// Whether this may be opened. `may_pass`: the transport can let the kernel do the I/O.
    ///
    /// # Errors
    ///
    /// [`Errno::ReadOnly`] and [`Errno::Access`] for writing what is not written,
    /// [`Errno::NotPermitted`] for emptying a disk, [`Errno::Gone`].
    pub fn open(&self, inode: u64, how: OpenHow, may_pass: bool) -> Result<Opening, Errno> {
        let node = self.look().node(inode)?;
        match node {
            Node::Root | Node::Dir(_) => Err(Errno::IsDirectory),
            Node::Text(..) if how.write || how.truncate => Err(Errno::Access),
            Node::Text(disk, which) => Ok(Opening::Text(TextOpening(disk, which))),
            Node::Image(image) => {
                image.check_there()?;
                if (how.write || how.truncate) && image.disk.read_only.load(Ordering::Relaxed) {
                    return Err(Errno::ReadOnly);
                }
                if how.truncate {
                    return Err(Errno::NotPermitted);
                }
                let passes = may_pass && image.slot == crate::tree::Slot::Disk;
                let ask = || self.port.passthrough(image.disk.id, how.write);
                let backing = if passes { ask() } else { None };
                Ok(Opening::Image(ImageOpening { image, write: how.write, backing }))
            }
        }
    }

    /// Opens a file of a disk; `passthrough`: the transport gave the kernel its backing.
    ///
    /// # Errors
    ///
    /// [`Errno::Gone`], [`Errno::TooManyOpen`].
    pub fn open_image(&self, opening: ImageOpening, passthrough: bool) -> Result<Opened, Errno> {
        let ImageOpening { image, write, .. } = opening;
        let mut table = self.change();
        // Asked under the lock that a removal takes: it either sees this handle or stops it.
        image.check_there()?;
        let handle = table.open(Handle::Image { image, write, passthrough })?;
        Ok(Opened { handle, flush_on_close: write })
    }

    /// Opens a text, as the port tells it now.
    pub fn open_text(self: &Arc<Self>, opening: TextOpening, reply: Reply<Opened>) {
        let TextOpening(disk, which) = opening;
        let (ops, id) = (self.clone(), disk.id);
        let answer = move |text: Result<Vec<u8>, Errno>| {
            let open = |text: Vec<u8>| {
                if text.len() > TEXT_MAX {
                    return Err(Errno::Io);
                }
                let handle = ops.change().open(Handle::Text { disk, text: text.into() })?;
                Ok(Opened { handle, flush_on_close: false })
            };
            reply.answer(text.and_then(open));
        };
        self.port.text(id, which, Reply::new(answer));
    }

    /// Closes. The handle's number is never used again.
    pub fn close(&self, handle: u64) {
        // Freed outside the lock.
        let closed = self.change().close(handle);
        drop(closed);
    }

    /// Reads; fewer bytes than asked for only at the file's end.
    pub fn read(&self, handle: u64, at: u64, len: u32, reply: ReadReply) {
        match self.reading(handle, at, len) {
            Err(errno) => reply.fail(errno),
            Ok(Reading::Nothing) => reply.data(&[]),
            Ok(Reading::Text(text)) => {
                let start = usize::try_from(at).unwrap_or(usize::MAX).min(text.len());
                let end = start.saturating_add(len as usize).min(text.len());
                reply.data(&text[start..end]);
            }
            Ok(Reading::Disk(disk, extent)) => {
                let expected = usize::try_from(extent.len.0).unwrap_or(usize::MAX);
                self.port.read(disk, extent, reply.expecting(expected));
            }
        }
    }

    /// What a read is to read.
    pub(crate) fn reading(&self, handle: u64, at: u64, len: u32) -> Result<Reading, Errno> {
        match &*self.look().handle(handle)? {
            Handle::Text { disk, .. } if disk.is_gone() => Err(Errno::Gone),
            Handle::Text { text, .. } => Ok(Reading::Text(Arc::clone(text))),
            Handle::Image { image, .. } => {
                image.check_there()?;
                let len = u64::from(len).min(image.len().saturating_sub(at));
                if len == 0 {
                    return Ok(Reading::Nothing);
                }
                Ok(Reading::Disk(image.disk.id, image.on_disk(at, len)))
            }
        }
    }

    /// Writes, up to the file's end; answers how many bytes that were.
    pub fn write(&self, handle: u64, at: u64, data: &[u8], durable: bool, reply: Reply<u32>) {
        let Writing { disk, at, count } = match self.writing(handle, at, data.len()) {
            Ok(writing) => writing,
            Err(errno) => return reply.fail(errno),
        };
        if count == 0 {
            return reply.done(0);
        }
        let id = disk.id;
        let answer = move |written: Result<(), Errno>| {
            disk.touch();
            reply.answer(written.map(|()| count));
        };
        self.port.write(id, at, &data[..count as usize], durable, Reply::new(answer));
    }

    /// What a write of so many bytes is to write.
    pub(crate) fn writing(&self, handle: u64, at: u64, len: usize) -> Result<Writing, Errno> {
        let image = self.writable(handle)?;
        let room = usize::try_from(image.len().saturating_sub(at)).unwrap_or(usize::MAX);
        let count = u32::try_from(len.min(room)).map_err(|_| Errno::Invalid)?;
        if count == 0 && len > 0 {
            return Err(Errno::TooBig);
        }
        let at = image.on_disk(at, u64::from(count)).at;
        Ok(Writing { disk: image.disk.clone(), at, count })
    }

    /// A close of one descriptor: what was written through it becomes durable.
    pub fn flush(&self, handle: u64, reply: Reply<()>) {
        let handle = self.look().handle(handle);
        match handle.as_deref() {
            Err(errno) => reply.fail(*errno),
            Ok(Handle::Image { image, write: true, .. }) => self.flush_image(image, reply),
            Ok(_) => reply.done(()),
        }
    }

    /// `fsync` and `fdatasync`.
    pub fn sync(&self, handle: u64, reply: Reply<()>) {
        let handle = self.look().handle(handle);
        match handle.as_deref() {
            Err(errno) => reply.fail(*errno),
            Ok(Handle::Image { image, .. }) => self.flush_image(image, reply),
            Ok(Handle::Text { .. }) => reply.done(()),
        }
    }

    /// `fallocate`: holes and zeroes within the file. Space is never promised beforehand: the
    /// image may share it, so that is refused rather than faked.
    pub fn allocate(&self, handle: u64, at: u64, len: u64, mode: i32, reply: Reply<()>) {
        let image = match self.writable(handle) {
            Ok(image) => image,
            Err(errno) => return reply.fail(errno),
        };
        let size = image.len();
        let Some(end) = at.checked_add(len) else { return reply.fail(Errno::TooBig) };
        if len == 0 {
            return reply.fail(Errno::Invalid);
        }
        let keeps = mode & KEEP_SIZE != 0;
        let inside = end.min(size).saturating_sub(at);
        let (id, extent) = (image.disk.id, image.on_disk(at.min(size), inside));
        let disk = image.disk.clone();
        let done = move |result: Result<(), Errno>| {
            disk.touch();
            reply.answer(result);
        };
        let reply = Reply::new(done);
        match mode & !KEEP_SIZE {
            _ if end > size && !keeps => reply.fail(Errno::TooBig),
            // The kernel takes PUNCH_HOLE only together with KEEP_SIZE.
            PUNCH_HOLE if !keeps => reply.fail(Errno::NotSupported),
            PUNCH_HOLE | ZERO_RANGE if inside == 0 => reply.done(()),
            PUNCH_HOLE => self.port.punch(id, extent, reply),
            ZERO_RANGE => self.port.zero(id, extent, reply),
            _ => reply.fail(Errno::NotSupported),
        }
    }

    /// `SEEK_DATA` and `SEEK_HOLE`: the first place from here on of this kind. The end counts as
    /// a hole.
    pub fn seek(self: &Arc<Self>, handle: u64, at: i64, want: RunKind, reply: Reply<u64>) {
        let handle = self.look().handle(handle);
        let image = match handle.as_deref() {
            Err(errno) => return reply.fail(*errno),
            Ok(Handle::Text { .. }) => return reply.fail(Errno::Invalid),
            Ok(Handle::Image { image, .. }) => image.clone(),
        };
        let Ok(at) = u64::try_from(at) else { return reply.fail(Errno::NoSuchPlace) };
        let size = image.len();
        if at >= size {
            return reply.fail(Errno::NoSuchPlace);
        }
        Search { ops: self.clone(), image, size, want, reply }.step(at, SEEK_STEPS_MAX);
    }

    /// The value of an extended attribute.
    pub fn attribute(&self, inode: u64, name: &[u8], reply: Reply<Vec<u8>>) {
        let Some(key) = name.strip_prefix(ATTRIBUTE_PREFIX.as_bytes()) else {
            // The kernel asks for `security.` ones by itself and often: never the port's matter.
            return reply.fail(Errno::NoData);
        };
        let key = key.to_vec();
        let answer = move |facts: Result<Vec<Fact>, Errno>| {
            let found = facts.and_then(|facts| {
                let mut usable = facts.into_iter().filter(is_usable);
                let fact = usable.find(|fact| fact.key.as_bytes() == key);
                fact.map(|fact| fact.value).ok_or(Errno::NoData)
            });
            reply.answer(found);
        };
        self.ask_facts(inode, Errno::NoData, Reply::new(answer));
    }

    /// The names of the extended attributes, each followed by a NUL.
    pub fn attribute_names(&self, inode: u64, reply: Reply<Vec<u8>>) {
        let answer = move |facts: Result<Vec<Fact>, Errno>| {
            let facts = match facts {
                Err(Errno::NoData) => Vec::new(),
                Err(errno) => return reply.fail(errno),
                Ok(facts) => facts,
            };
            let mut names = Vec::new();
            for fact in facts.iter().filter(|fact| is_usable(fact)) {
                names.extend_from_slice(ATTRIBUTE_PREFIX.as_bytes());
                names.extend_from_slice(fact.key.as_bytes());
                names.push(0);
            }
            // The kernel's bound of a list is that of a value.
            names.truncate(names.len().min(ATTRIBUTE_VALUE_MAX));
            reply.done(names);
        };
        self.ask_facts(inode, Errno::NoData, Reply::new(answer));
    }

    pub(crate) fn look(&self) -> RwLockReadGuard<'_, Table> {
        // Nothing panics half-way through a change, so a poisoned table is a whole one.
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn change(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn shape(&self, node: &Node) -> Attributes {
        let (directory, text) = if self.shared { (0o755, 0o444) } else { (0o700, 0o400) };
        let of = |inode, kind, mode, len, stored, modified| Attributes {
            inode,
            kind,
            mode,
            links: if kind == Kind::Directory { 2 } else { 1 },
            len: Bytes(len),
            stored: Bytes(stored),
            modified,
        };
        match node {
            Node::Root => {
                let started = self.look().started;
                of(ROOT_INODE, Kind::Directory, directory, 0, 0, started)
            }
            Node::Dir(disk) => {
                let inode = disk.inode_of(crate::tree::Slot::Dir);
                of(inode, Kind::Directory, directory, 0, 0, disk.modified())
            }
            Node::Text(disk, which) => {
                // No size: what it will be is known when it is opened, and read until it ends.
                let inode = disk.inode_of(crate::tree::Slot::Text(*which));
                of(inode, Kind::File, text, 0, 0, disk.modified())
            }
            Node::Image(image) => {
                let disk = &image.disk;
                let mode = if disk.read_only.load(Ordering::Relaxed) { 0o400 } else { 0o600 };
                let stored = image.stored.load(Ordering::Relaxed);
                let fenced = disk.fenced.load(Ordering::Acquire);
                let kind = if fenced { Kind::Directory } else { Kind::File };
                of(image.inode(), kind, mode, image.len(), stored, disk.modified())
            }
        }
    }

    fn writable(&self, handle: u64) -> Result<Arc<Image>, Errno> {
        let handle = self.look().handle(handle)?;
        match &*handle {
            Handle::Image { image, write: true, .. } => {
                image.check_there()?;
                if image.disk.read_only.load(Ordering::Relaxed) {
                    return Err(Errno::ReadOnly);
                }
                Ok(image.clone())
            }
            _ => Err(Errno::BadHandle),
        }
    }

    fn flush_image(&self, image: &Image, reply: Reply<()>) {
        match image.check_there() {
            Ok(()) => self.port.flush(image.disk.id, reply),
            Err(errno) => reply.fail(errno),
        }
    }

    fn ask_facts(&self, inode: u64, without: Errno, reply: Reply<Vec<Fact>>) {
        match self.disk_of(inode) {
            Ok(Some(id)) => self.port.facts(id, reply),
            Ok(None) => reply.fail(without),
            Err(errno) => reply.fail(errno),
        }
    }

    /// The disk an inode belongs to; the root of a single disk's mount belongs to that disk.
    fn disk_of(&self, inode: u64) -> Result<Option<DiskId>, Errno> {
        let table = self.look();
        Ok(match table.node(inode)? {
            Node::Dir(disk) | Node::Text(disk, _) => Some(disk.id),
            Node::Image(image) => Some(image.disk.id),
            Node::Root if table.layout() == Layout::Single => {
                let first = table.list(ROOT_INODE, 0)?.into_iter().next();
                first.and_then(|(.., node)| match node {
                    Node::Image(image) => Some(image.disk.id),
                    _ => None,
                })
            }
            Node::Root => None,
        })
    }
}

/// A search for data or a hole, on its way from answer to answer of the port.
struct Search {
    ops: Arc<Ops>,
    image: Arc<Image>,
    size: u64,
    want: RunKind,
    reply: Reply<u64>,
}

impl Search {
    fn step(self, at: u64, steps: u32) {
        if let Err(errno) = self.image.check_there() {
            return self.reply.fail(errno);
        }
        let (port, id) = (self.ops.port.clone(), self.image.disk.id);
        let extent = self.image.on_disk(at, self.size - at);
        let answer = move |runs: Result<Vec<Run>, Errno>| match runs {
            Ok(runs) => self.walk(at, &runs, steps),
            Err(errno) => self.reply.fail(errno),
        };
        port.map(id, extent, Reply::new(answer));
    }

    fn walk(self, at: u64, runs: &[Run], steps: u32) {
        let mut place = at;
        for run in runs {
            if place >= self.size {
                break;
            }
            if run.kind == self.want {
                return self.reply.done(place);
            }
            place = place.saturating_add(run.len.0);
        }
        match self.want {
            RunKind::Hole if place >= self.size || steps == 0 => self.reply.done(self.size),
            RunKind::Data if place >= self.size => self.reply.fail(Errno::NoSuchPlace),
            RunKind::Data if steps == 0 => self.reply.done(place),
            // An answer that says nothing would be asked for again for ever.
            _ if place == at => self.reply.fail(Errno::Io),
            _ => self.step(place, steps - 1),
        }
    }
}

fn is_usable(fact: &Fact) -> bool {
    let graphic = fact.key.bytes().all(|byte| byte.is_ascii_graphic());
    let len = ATTRIBUTE_PREFIX.len() + fact.key.len();
    let fits = len <= ATTRIBUTE_NAME_MAX && fact.value.len() <= ATTRIBUTE_VALUE_MAX;
    graphic && fits && !fact.key.is_empty()
}

fn check_change(node: &Node, change: Change) -> Result<(), Errno> {
    let Some(size) = change.size else {
        return if change.other { Err(Errno::NotPermitted) } else { Ok(()) };
    };
    let Node::Image(image) = node else { return Err(Errno::NotPermitted) };
    image.check_there()?;
    let len = image.len();
    if image.disk.read_only.load(Ordering::Relaxed) {
        Err(Errno::ReadOnly)
    } else if size > len {
        Err(Errno::TooBig)
    } else if size < len || change.other {
        Err(Errno::NotPermitted)
    } else {
        Ok(())
    }
}

impl Ops {
    /// The place of a file's byte on its disk, for notices about changes. None: outside.
    pub(crate) fn place_in(image: &Image, at: Offset, len: Bytes) -> Option<(u64, u64)> {
        let all = image.on_disk(0, image.len());
        let start = at.0.max(all.at.0);
        let end = at.0.saturating_add(len.0).min(all.at.0.saturating_add(all.len.0));
        (start < end).then(|| (start - all.at.0, end - start))
    }
}

//! The table of what the mount shows: disks, their files and their inode numbers, open handles.
//!
//! An inode number is the disk's serial number and a slot, so it stays the same while the disk is
//! there and is never used for another one. The table lives behind one lock, held for look-ups
//! and changes only; what an open file needs while it is used is shared with it and atomic.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

pub use crate::disk::{Layout, NewDisk, TreeError, Usage, Window};
use crate::name::safe_name;
use crate::port::{Bytes, DiskId, Errno, Extent, Offset, Text};

/// The inode number of the mount's root.
pub const ROOT_INODE: u64 = 1;
/// Disks in one mount.
pub const DISKS_MAX: usize = 4096;
/// Partitions of one disk, and the highest number of one.
pub const PARTITIONS_MAX: u32 = 4096;
/// Open files in one mount.
pub const HANDLES_MAX: usize = 65_536;
/// The name of the file that is the whole disk.
pub const DISK_NAME: &str = "disk";

const SLOT_BITS: u32 = 16;
const DIR_SLOT: u64 = 0;
const DISK_SLOT: u64 = 1;
const TEXT_SLOT: u64 = 2;
const PARTITION_SLOT: u64 = 0x100;

/// A disk as the data path sees it.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) id: DiskId,
    pub(crate) name: String,
    serial: u64,
    pub(crate) read_only: AtomicBool,
    gone: AtomicBool,
    /// The kernel is to be told that its inode is of another kind, so that it stops using it.
    pub(crate) fenced: AtomicBool,
    modified_us: AtomicU64,
    pub(crate) readers: AtomicU32,
    pub(crate) writers: AtomicU32,
    pub(crate) passthrough: AtomicU32,
}

impl Disk {
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    pub(crate) fn modified(&self) -> SystemTime {
        let since = Duration::from_micros(self.modified_us.load(Ordering::Relaxed));
        SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    pub(crate) fn touch(&self) {
        self.modified_us.store(micros(SystemTime::now()), Ordering::Relaxed);
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage {
            readers: self.readers.load(Ordering::Relaxed),
            writers: self.writers.load(Ordering::Relaxed),
            passthrough: self.passthrough.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn inode_of(&self, slot: Slot) -> u64 {
        self.serial << SLOT_BITS
            | match slot {
                Slot::Dir => DIR_SLOT,
                Slot::Disk => DISK_SLOT,
                Slot::Text(which) => TEXT_SLOT + which as u64,
                Slot::Partition(number) => PARTITION_SLOT + u64::from(number),
            }
    }
}

fn micros(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// What a disk shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    Dir,
    Disk,
    Text(Text),
    Partition(u32),
}

/// A file with bytes of a disk: all of it or a window.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) disk: Arc<Disk>,
    pub(crate) slot: Slot,
    start: u64,
    len: AtomicU64,
    /// The window was replaced by another one; the disk may well be there.
    replaced: AtomicBool,
    /// What the port last said is stored, for look-ups, which do not ask it.
    pub(crate) stored: AtomicU64,
}

impl Image {
    fn new(disk: &Arc<Disk>, slot: Slot, extent: Extent) -> Arc<Self> {
        Arc::new(Self {
            disk: disk.clone(),
            slot,
            start: extent.at.0,
            len: AtomicU64::new(extent.len.0),
            replaced: AtomicBool::new(false),
            stored: AtomicU64::new(0),
        })
    }

    pub(crate) fn inode(&self) -> u64 {
        self.disk.inode_of(self.slot)
    }

    pub(crate) fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    /// Where the file's bytes lie on the disk. The caller keeps the range within [`Self::len`].
    pub(crate) fn on_disk(&self, at: u64, len: u64) -> Extent {
        Extent { at: Offset(self.start + at), len: Bytes(len) }
    }

    pub(crate) fn check_there(&self) -> Result<(), Errno> {
        let gone = self.disk.is_gone() || self.replaced.load(Ordering::Acquire);
        if gone { Err(Errno::Gone) } else { Ok(()) }
    }

    fn extent(&self) -> Extent {
        self.on_disk(0, self.len())
    }
}

/// What an inode number stands for.
#[derive(Clone, Debug)]
pub(crate) enum Node {
    Root,
    Dir(Arc<Disk>),
    Image(Arc<Image>),
    Text(Arc<Disk>, Text),
}

/// An open file.
#[derive(Debug)]
pub(crate) enum Handle {
    Image { image: Arc<Image>, write: bool, passthrough: bool },
    Text { disk: Arc<Disk>, text: Arc<[u8]> },
}

struct Entry {
    disk: Arc<Disk>,
    /// Of no bytes and without a name, where there is only something to be told of the disk.
    whole: Arc<Image>,
    broken: bool,
    parts: BTreeMap<u32, Arc<Image>>,
}

/// Everything the mount shows.
pub(crate) struct Table {
    layout: Layout,
    pub(crate) started: SystemTime,
    /// By serial number.
    disks: BTreeMap<u64, Entry>,
    last_serial: u64,
    handles: HashMap<u64, Arc<Handle>>,
    last_handle: u64,
}

impl Table {
    pub(crate) fn new(layout: Layout) -> Self {
        Self {
            layout,
            started: SystemTime::now(),
            disks: BTreeMap::new(),
            last_serial: 0,
            handles: HashMap::new(),
            last_handle: 0,
        }
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    /// The disk by the port's name of it.
    pub(crate) fn disk(&self, id: DiskId) -> Result<&Arc<Disk>, TreeError> {
        self.entry(id).map(|entry| &entry.disk)
    }

    /// The whole disk's file.
    pub(crate) fn whole(&self, id: DiskId) -> Result<&Arc<Image>, TreeError> {
        self.entry(id).map(|entry| &entry.whole)
    }

    /// The disk's file and its partitions.
    pub(crate) fn images(&self, id: DiskId) -> Vec<Arc<Image>> {
        let Ok(entry) = self.entry(id) else { return Vec::new() };
        let whole = (!entry.broken).then_some(&entry.whole);
        whole.into_iter().chain(entry.parts.values()).cloned().collect()
    }

    /// Shows a disk; a broken one without the files that are its bytes.
    pub(crate) fn add(&mut self, new: &NewDisk, broken: bool) -> Result<Arc<Disk>, TreeError> {
        let full = match self.layout {
            Layout::Single => 1,
            Layout::Many => DISKS_MAX,
        };
        if self.entry(new.id).is_ok() {
            return Err(TreeError::Known(new.id));
        }
        if self.disks.len() >= full {
            return Err(TreeError::Full(full));
        }
        check_len(new.len)?;
        check_windows(&new.windows, new.len)?;
        self.last_serial += 1;
        let taken = |name: &str| self.disks.values().any(|entry| entry.disk.name == name);
        let disk = Arc::new(Disk {
            id: new.id,
            name: safe_name(&new.label, taken),
            serial: self.last_serial,
            read_only: AtomicBool::new(new.read_only),
            gone: AtomicBool::new(false),
            fenced: AtomicBool::new(false),
            modified_us: AtomicU64::new(micros(new.modified)),
            readers: AtomicU32::new(0),
            writers: AtomicU32::new(0),
            passthrough: AtomicU32::new(0),
        });
        let len = if broken { Bytes(0) } else { new.len };
        let all = Extent { at: Offset(0), len };
        let whole = Image::new(&disk, Slot::Disk, all);
        let windows = if broken { &[] } else { new.windows.as_slice() };
        let parts = windows.iter().map(|window| part(&disk, window)).collect();
        self.disks.insert(self.last_serial, Entry { disk: disk.clone(), whole, broken, parts });
        Ok(disk)
    }

    /// From here on every use of the disk's files is refused; their names stay.
    pub(crate) fn retire(&self, id: DiskId, force: bool) -> Result<Arc<Disk>, TreeError> {
        let disk = self.disk(id)?;
        let usage = disk.usage();
        if !force && usage.readers + usage.writers > 0 {
            return Err(TreeError::InUse(id, usage.readers + usage.writers));
        }
        disk.gone.store(true, Ordering::Release);
        Ok(disk.clone())
    }

    /// Takes a retired disk's names away.
    pub(crate) fn forget(&mut self, disk: &Disk) {
        self.disks.remove(&disk.serial);
    }

    /// Gives the disk another size. Windows that no longer fit go.
    pub(crate) fn resize(&mut self, id: DiskId, len: Bytes) -> Result<(), TreeError> {
        check_len(len)?;
        let entry = self.entry_mut(id)?;
        entry.whole.len.store(len.0, Ordering::Release);
        entry.parts.retain(|_, image| {
            let fits = image.extent().end().is_some_and(|end| end.0 <= len.0);
            image.replaced.store(!fits, Ordering::Release);
            fits
        });
        Ok(())
    }

    /// Replaces the partitions. Those that did not change stay open.
    pub(crate) fn repartition(&mut self, id: DiskId, windows: &[Window]) -> Result<(), TreeError> {
        let entry = self.entry_mut(id)?;
        check_windows(windows, Bytes(entry.whole.len()))?;
        let mut old = std::mem::take(&mut entry.parts);
        for window in windows {
            let kept = old.remove(&window.number).filter(|image| {
                let same = image.extent() == window.extent;
                image.replaced.store(!same, Ordering::Release);
                same
            });
            let (number, fresh) = part(&entry.disk, window);
            entry.parts.insert(number, kept.unwrap_or(fresh));
        }
        for image in old.values() {
            image.replaced.store(true, Ordering::Release);
        }
        Ok(())
    }

    pub(crate) fn node(&self, inode: u64) -> Result<Node, Errno> {
        if inode == ROOT_INODE {
            return Ok(Node::Root);
        }
        let entry = self.disks.get(&(inode >> SLOT_BITS)).ok_or(Errno::NotFound)?;
        let slot = inode & ((1 << SLOT_BITS) - 1);
        let text = slot.checked_sub(TEXT_SLOT).and_then(|index| usize::try_from(index).ok());
        if slot == DIR_SLOT {
            Ok(Node::Dir(entry.disk.clone()))
        } else if slot == DISK_SLOT && !entry.broken {
            Ok(Node::Image(entry.whole.clone()))
        } else if let Some(which) = text.and_then(|index| Text::ALL.get(index)) {
            Ok(Node::Text(entry.disk.clone(), *which))
        } else {
            let number = slot.checked_sub(PARTITION_SLOT).and_then(|n| u32::try_from(n).ok());
            let image = number.and_then(|number| entry.parts.get(&number));
            image.cloned().map(Node::Image).ok_or(Errno::NotFound)
        }
    }

    /// The entry of that name in a directory.
    pub(crate) fn child(&self, parent: u64, name: &[u8]) -> Result<Node, Errno> {
        let entry = match (self.node(parent)?, self.layout) {
            (Node::Root, Layout::Single) => self.disks.values().next().ok_or(Errno::NotFound)?,
            (Node::Root, Layout::Many) => {
                let mut all = self.disks.values();
                let entry = all.find(|entry| entry.disk.name.as_bytes() == name);
                return entry.map(|entry| Node::Dir(entry.disk.clone())).ok_or(Errno::NotFound);
            }
            (Node::Dir(disk), _) => self.disks.get(&disk.serial).ok_or(Errno::NotFound)?,
            _ => return Err(Errno::NotDirectory),
        };
        let all = entry.children();
        all.into_iter().find(|(_, n, _)| n.as_bytes() == name).map(|c| c.2).ok_or(Errno::NotFound)
    }

    /// The entries of a directory whose cookie is above this one, in the cookies' order: cookies
    /// stay what they are when others come and go. `.` and `..` are not among them.
    pub(crate) fn list(
        &self,
        directory: u64,
        after: u64,
    ) -> Result<Vec<(u64, String, Node)>, Errno> {
        let entry = match (self.node(directory)?, self.layout) {
            (Node::Root, Layout::Many) => {
                let later = self.disks.range(after.saturating_add(1)..);
                return Ok(later
                    .map(|(serial, e)| (*serial, e.disk.name.clone(), Node::Dir(e.disk.clone())))
                    .collect());
            }
            (Node::Root, Layout::Single) => self.disks.values().next(),
            (Node::Dir(disk), _) => self.disks.get(&disk.serial),
            _ => return Err(Errno::NotDirectory),
        };
        let mut all = entry.map(Entry::children).unwrap_or_default();
        all.retain(|(cookie, ..)| *cookie > after);
        Ok(all)
    }

    pub(crate) fn open(&mut self, handle: Handle) -> Result<u64, Errno> {
        if self.handles.len() >= HANDLES_MAX {
            return Err(Errno::TooManyOpen);
        }
        self.last_handle += 1;
        handle.count(1);
        self.handles.insert(self.last_handle, Arc::new(handle));
        Ok(self.last_handle)
    }

    pub(crate) fn handle(&self, number: u64) -> Result<Arc<Handle>, Errno> {
        self.handles.get(&number).cloned().ok_or(Errno::BadHandle)
    }

    pub(crate) fn close(&mut self, number: u64) -> Option<Arc<Handle>> {
        let handle = self.handles.remove(&number)?;
        handle.count(u32::MAX);
        Some(handle)
    }

    /// Files of any kind, and the bytes of all whole disks.
    pub(crate) fn totals(&self) -> (u64, Bytes) {
        let files = self.disks.values().map(|entry| entry.children().len() as u64 + 1).sum();
        let bytes = self.disks.values().fold(0_u64, |sum, e| sum.saturating_add(e.whole.len()));
        (files, Bytes(bytes))
    }

    /// Whether every disk refuses writing.
    pub(crate) fn all_read_only(&self) -> bool {
        self.disks.values().all(|entry| entry.disk.read_only.load(Ordering::Relaxed))
    }

    fn entry(&self, id: DiskId) -> Result<&Entry, TreeError> {
        let mut all = self.disks.values();
        all.find(|entry| entry.disk.id == id).ok_or(TreeError::Unknown(id))
    }

    fn entry_mut(&mut self, id: DiskId) -> Result<&mut Entry, TreeError> {
        let mut all = self.disks.values_mut();
        all.find(|entry| entry.disk.id == id).ok_or(TreeError::Unknown(id))
    }
}

impl Handle {
    /// Adds to the disk's counters (wrapping: `u32::MAX` takes one away).
    fn count(&self, one: u32) {
        if let Self::Image { image, write, passthrough } = self {
            let side = if *write { &image.disk.writers } else { &image.disk.readers };
            side.fetch_add(one, Ordering::Relaxed);
            if *passthrough {
                image.disk.passthrough.fetch_add(one, Ordering::Relaxed);
            }
        }
    }
}

impl Entry {
    /// Cookie, name and node of everything in the disk's directory.
    fn children(&self) -> Vec<(u64, String, Node)> {
        let whole = (DISK_SLOT, DISK_NAME.to_owned(), Node::Image(self.whole.clone()));
        let texts = Text::ALL.into_iter().map(|which| {
            let node = Node::Text(self.disk.clone(), which);
            (TEXT_SLOT + which as u64, which.file_name().to_owned(), node)
        });
        let parts = self.parts.iter().map(|(number, image)| {
            let cookie = PARTITION_SLOT + u64::from(*number);
            (cookie, format!("p{number}"), Node::Image(image.clone()))
        });
        (!self.broken).then_some(whole).into_iter().chain(texts).chain(parts).collect()
    }
}

fn part(disk: &Arc<Disk>, window: &Window) -> (u32, Arc<Image>) {
    (window.number, Image::new(disk, Slot::Partition(window.number), window.extent))
}

fn check_len(len: Bytes) -> Result<(), TreeError> {
    if i64::try_from(len.0).is_ok() { Ok(()) } else { Err(TreeError::TooLong(len)) }
}

fn check_windows(windows: &[Window], disk: Bytes) -> Result<(), TreeError> {
    for (index, window) in windows.iter().enumerate() {
        let numbered = (1..=PARTITIONS_MAX).contains(&window.number);
        let repeated = windows[..index].iter().any(|other| other.number == window.number);
        let fits = window.extent.end().is_some_and(|end| end.0 <= disk.0);
        if !numbered || repeated || !fits {
            return Err(TreeError::BadWindow(*window));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::{DISKS_MAX, Layout, NewDisk, Node, ROOT_INODE, Table, TreeError, Window};
    use crate::port::{Bytes, DiskId, Errno, Extent, Offset};

    fn disk(id: u64, label: &str) -> NewDisk {
        NewDisk {
            id: DiskId(id),
            label: label.as_bytes().to_vec(),
            len: Bytes(1 << 20),
            read_only: false,
            windows: vec![window(1, 4096, 8192)],
            modified: SystemTime::UNIX_EPOCH,
        }
    }

    fn window(number: u32, at: u64, len: u64) -> Window {
        Window { number, extent: Extent { at: Offset(at), len: Bytes(len) } }
    }

    #[test]
    fn an_inode_number_is_never_given_to_another_disk() {
        let mut table = Table::new(Layout::Many);
        let first = table.add(&disk(1, "a"), false).unwrap();
        let inode = first.inode_of(super::Slot::Disk);
        assert!(matches!(table.node(inode), Ok(Node::Image(_))));
        table.retire(DiskId(1), false).unwrap();
        table.forget(&first);
        table.add(&disk(1, "a"), false).unwrap();
        assert_eq!(table.node(inode).err(), Some(Errno::NotFound));
    }

    #[test]
    fn cookies_of_a_listing_survive_changes() {
        let mut table = Table::new(Layout::Many);
        for id in 0..10 {
            table.add(&disk(id, "x"), false).unwrap();
        }
        let first: Vec<_> = table.list(ROOT_INODE, 0).unwrap().into_iter().take(4).collect();
        let (cookie, gone) = (first[3].0, table.retire(DiskId(2), false).unwrap());
        table.forget(&gone);
        table.add(&disk(99, "y"), false).unwrap();
        let rest = table.list(ROOT_INODE, cookie).unwrap();
        assert_eq!(rest.len(), 7);
        assert!(rest.iter().all(|entry| first.iter().all(|seen| seen.1 != entry.1)));
    }

    #[test]
    fn windows_outside_the_disk_are_refused() {
        let mut table = Table::new(Layout::Many);
        for bad in [
            vec![window(1, 1 << 20, 1)],
            vec![window(0, 0, 512)],
            vec![window(1, u64::MAX, 2)],
            vec![window(2, 0, 512), window(2, 512, 512)],
            vec![window(super::PARTITIONS_MAX + 1, 0, 512)],
        ] {
            let new = NewDisk { windows: bad, ..disk(1, "a") };
            assert!(matches!(table.add(&new, false), Err(TreeError::BadWindow(_))));
        }
        let long = NewDisk { len: Bytes(1 << 63), windows: Vec::new(), ..disk(1, "a") };
        assert_eq!(table.add(&long, false).err(), Some(TreeError::TooLong(Bytes(1 << 63))));
    }

    #[test]
    fn a_mount_is_full_at_its_bound() {
        let mut single = Table::new(Layout::Single);
        single.add(&disk(1, "a"), false).unwrap();
        assert_eq!(single.add(&disk(2, "b"), false).err(), Some(TreeError::Full(1)));
        let mut many = Table::new(Layout::Many);
        for id in 0..DISKS_MAX as u64 {
            many.add(&disk(id, &id.to_string()), false).unwrap();
        }
        assert_eq!(many.add(&disk(u64::MAX, "b"), false).err(), Some(TreeError::Full(DISKS_MAX)));
        assert_eq!(many.add(&disk(1, "b"), false).err(), Some(TreeError::Known(DiskId(1))));
    }

    #[test]
    fn a_broken_disk_has_its_texts_and_no_bytes() {
        let mut table = Table::new(Layout::Many);
        let broken = table.add(&disk(1, "a"), true).unwrap();
        let directory = broken.inode_of(super::Slot::Dir);
        let names: Vec<_> = table.list(directory, 0).unwrap().into_iter().map(|e| e.1).collect();
        assert_eq!(names, ["info.json", "stats.json", "chain.txt", "status"]);
        assert_eq!(table.node(broken.inode_of(super::Slot::Disk)).err(), Some(Errno::NotFound));
        assert!(table.images(DiskId(1)).is_empty());
    }

    #[test]
    fn a_partition_that_did_not_change_stays_open() {
        let mut table = Table::new(Layout::Single);
        table.add(&disk(1, "a"), false).unwrap();
        let Ok(Node::Image(before)) = table.child(ROOT_INODE, b"p1") else { panic!("no p1") };
        table.repartition(DiskId(1), &[window(1, 4096, 8192), window(2, 65536, 512)]).unwrap();
        assert_eq!(before.check_there(), Ok(()));
        table.repartition(DiskId(1), &[window(1, 4096, 4096)]).unwrap();
        assert_eq!(before.check_there(), Err(Errno::Gone));
        table.resize(DiskId(1), Bytes(4096)).unwrap();
        assert!(table.child(ROOT_INODE, b"p1").is_err());
    }
}

//! A port over memory, with faults, and mounts that are always taken away again.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use orlop_fuse::{
    Bytes, DiskId, Errno, Extent, Fact, Layout, Mounted, NewDisk, Offset, Options, Port, ReadReply,
    Reply, Run, RunKind, Text, Transport, UnmountHow, Window, mount,
};

pub(crate) const BLOCK: usize = 4096;
pub(crate) const DISK: DiskId = DiskId(7);

/// What the port does with what it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Answers from another thread.
    Well,
    /// Answers on the calling thread.
    AtOnce,
    /// Fails reads, writes, flushes and the rest with this.
    Failing(Errno),
    /// Drops every reply.
    Dropping,
    /// Answers reads with one byte too few.
    Short,
    /// Keeps reads, writes and texts until told to go on.
    Holding,
}

#[derive(Default)]
pub(crate) struct Store {
    pub(crate) bytes: Vec<u8>,
    pub(crate) stored: Vec<bool>,
}

impl Store {
    fn mark(&mut self, extent: Extent) {
        let (at, len) = (extent.at.0 as usize, extent.len.0 as usize);
        for block in at / BLOCK..(at + len).div_ceil(BLOCK) {
            self.stored[block] = true;
        }
    }

    fn punch(&mut self, extent: Extent, release: bool) {
        let (at, end) = (extent.at.0 as usize, (extent.at.0 + extent.len.0) as usize);
        self.bytes[at..end].fill(0);
        if release {
            for block in at.div_ceil(BLOCK)..end / BLOCK {
                self.stored[block] = false;
            }
        }
    }

    fn runs(&self, extent: Extent, most: usize) -> Vec<Run> {
        let end = extent.at.0 + extent.len.0;
        let mut at = extent.at.0;
        let mut runs: Vec<Run> = Vec::new();
        while at < end {
            let stop = ((at / BLOCK as u64 + 1) * BLOCK as u64).min(end);
            let stored = self.stored[at as usize / BLOCK];
            let kind = if stored { RunKind::Data } else { RunKind::Hole };
            let full = runs.len() == most;
            match runs.last_mut() {
                Some(run) if run.kind == kind => run.len.0 += stop - at,
                _ if full => break,
                _ => runs.push(Run { kind, len: Bytes(stop - at) }),
            }
            at = stop;
        }
        runs
    }
}

type Stores = Arc<Mutex<HashMap<DiskId, Store>>>;
type Job = Box<dyn FnOnce() + Send>;

pub(crate) struct Memory {
    pub(crate) stores: Stores,
    pub(crate) mood: Mutex<Mood>,
    pub(crate) held: Mutex<Vec<Job>>,
    pub(crate) backing: Mutex<Option<Arc<OwnedFd>>>,
    pub(crate) reads: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) durable: AtomicU64,
    pub(crate) flushes: AtomicU64,
    pub(crate) punches: AtomicU64,
    pub(crate) zeroes: AtomicU64,
    pub(crate) maps: AtomicU64,
    jobs: Mutex<Sender<Job>>,
}

impl Memory {
    pub(crate) fn new() -> Arc<Self> {
        let (jobs, list) = channel::<Job>();
        // Ends with the sender.
        std::thread::spawn(move || list.into_iter().for_each(|job| job()));
        Arc::new(Self {
            stores: Stores::default(),
            mood: Mutex::new(Mood::Well),
            held: Mutex::default(),
            backing: Mutex::default(),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            punches: AtomicU64::new(0),
            zeroes: AtomicU64::new(0),
            maps: AtomicU64::new(0),
            jobs: Mutex::new(jobs),
        })
    }

    pub(crate) fn with_disk(len: usize) -> Arc<Self> {
        let port = Self::new();
        port.insert(DISK, len);
        port
    }

    pub(crate) fn insert(&self, id: DiskId, len: usize) {
        let store = Store { bytes: vec![0; len], stored: vec![false; len.div_ceil(BLOCK)] };
        self.stores.lock().unwrap().insert(id, store);
    }

    pub(crate) fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    /// Does all that was held.
    pub(crate) fn go_on(&self) {
        self.set(Mood::Well);
        let held = std::mem::take(&mut *self.held.lock().unwrap());
        held.into_iter().for_each(|job| job());
    }

    pub(crate) fn held(&self) -> usize {
        self.held.lock().unwrap().len()
    }

    pub(crate) fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        self.stores.lock().unwrap()[&DISK].bytes[at..at + len].to_vec()
    }

    fn ask<T: Send + 'static>(
        &self,
        id: DiskId,
        reply: Reply<T>,
        act: impl FnOnce(&mut Store) -> T + Send + 'static,
    ) {
        match *self.mood.lock().unwrap() {
            Mood::Failing(errno) => return reply.fail(errno),
            Mood::Dropping => return,
            _ => {}
        }
        let stores = self.stores.clone();
        self.act(Box::new(move || {
            // The lock is not held while answering: the answer may lead to the next question.
            let value = stores.lock().unwrap().get_mut(&id).map(act);
            reply.answer(value.ok_or(Errno::Gone));
        }));
    }

    fn act(&self, job: Job) {
        let mood = *self.mood.lock().unwrap();
        match mood {
            Mood::AtOnce => job(),
            Mood::Holding => self.held.lock().unwrap().push(job),
            _ => self.jobs.lock().unwrap().send(job).unwrap(),
        }
    }
}

impl Port for Memory {
    fn read(&self, disk: DiskId, extent: Extent, reply: ReadReply) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let mut len = extent.len.0 as usize;
        match *self.mood.lock().unwrap() {
            Mood::Failing(errno) => return reply.fail(errno),
            Mood::Dropping => return,
            Mood::Short => len -= 1,
            _ => {}
        }
        let stores = self.stores.clone();
        self.act(Box::new(move || {
            let at = extent.at.0 as usize;
            let bytes = stores.lock().unwrap().get(&disk).map(|s| s.bytes[at..at + len].to_vec());
            reply.answer(bytes.as_deref().ok_or(Errno::Gone));
        }));
    }

    fn write(&self, disk: DiskId, at: Offset, data: &[u8], durable: bool, reply: Reply<()>) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.durable.fetch_add(u64::from(durable), Ordering::Relaxed);
        let data = data.to_vec();
        self.ask(disk, reply, move |store| {
            let extent = Extent { at, len: Bytes(data.len() as u64) };
            store.bytes[at.0 as usize..][..data.len()].copy_from_slice(&data);
            store.mark(extent);
        });
    }

    fn flush(&self, disk: DiskId, reply: Reply<()>) {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        let mood = *self.mood.lock().unwrap();
        match mood {
            // Never held: a test that ends badly closes its files before anybody can go on.
            Mood::Holding | Mood::Well => reply.done(()),
            _ => self.ask(disk, reply, |_| ()),
        }
    }

    fn punch(&self, disk: DiskId, extent: Extent, reply: Reply<()>) {
        self.punches.fetch_add(1, Ordering::Relaxed);
        self.ask(disk, reply, move |store| store.punch(extent, true));
    }

    fn zero(&self, disk: DiskId, extent: Extent, reply: Reply<()>) {
        self.zeroes.fetch_add(1, Ordering::Relaxed);
        self.ask(disk, reply, move |store| store.punch(extent, false));
    }

    fn map(&self, disk: DiskId, extent: Extent, reply: Reply<Vec<Run>>) {
        self.maps.fetch_add(1, Ordering::Relaxed);
        self.ask(disk, reply, move |store| store.runs(extent, 1));
    }

    fn allocated(&self, disk: DiskId, extent: Extent, reply: Reply<Bytes>) {
        // From memory in every mood but these: a disk that is slow still has its table.
        let stores = self.stores.lock().unwrap();
        let Some(store) = stores.get(&disk) else { return reply.fail(Errno::Gone) };
        let runs = store.runs(extent, usize::MAX);
        drop(stores);
        let data = runs.iter().filter(|run| run.kind == RunKind::Data);
        reply.done(Bytes(data.map(|run| run.len.0).sum()));
    }

    fn text(&self, disk: DiskId, which: Text, reply: Reply<Vec<u8>>) {
        let reads = self.reads.load(Ordering::Relaxed);
        self.ask(disk, reply, move |_| format!("{} {reads}\n", which.file_name()).into_bytes());
    }

    fn facts(&self, disk: DiskId, reply: Reply<Vec<Fact>>) {
        let fact = |key: &str, value: &[u8]| Fact { key: key.into(), value: value.into() };
        let all = vec![
            fact("format", b"vhd"),
            fact("big", &[b'x'; 3000]),
            fact("bad name", b"not shown"),
            fact("", b"not shown"),
        ];
        self.ask(disk, reply, move |_| all);
    }

    fn passthrough(&self, _: DiskId, _: bool) -> Option<Arc<OwnedFd>> {
        self.backing.lock().unwrap().clone()
    }
}

pub(crate) fn new_disk(id: DiskId, label: &str, len: usize) -> NewDisk {
    NewDisk {
        id,
        label: label.into(),
        len: Bytes(len as u64),
        read_only: false,
        windows: Vec::new(),
        modified: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000),
    }
}

pub(crate) fn window(number: u32, at: u64, len: u64) -> Window {
    Window { number, extent: Extent { at: Offset(at), len: Bytes(len) } }
}

/// A mount that is gone when this is, whatever the test did.
pub(crate) struct Fixture {
    pub(crate) port: Arc<Memory>,
    pub(crate) mounted: Option<Mounted>,
    dir: Option<tempfile::TempDir>,
}

impl Fixture {
    /// One disk under the mount point.
    pub(crate) fn single(len: usize) -> Self {
        let port = Memory::with_disk(len);
        let options = Options { layout: Layout::Single, ..Options::default() };
        Self::new(port, &options, &[new_disk(DISK, "disk", len)])
    }

    pub(crate) fn new(port: Arc<Memory>, options: &Options, disks: &[NewDisk]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options = options.clone();
        // A ring passes nothing through; tests of that are the classic transport's.
        if options.ring.is_none() && !options.passthrough {
            options.ring = crate::ring::chosen();
        }
        let mounted = mount(port.clone(), dir.path(), &options, disks).unwrap();
        let ringed = matches!(mounted.transport(), Transport::Ring);
        assert_eq!(ringed, options.ring.is_some(), "{:?}", mounted.transport());
        Self { port, mounted: Some(mounted), dir: Some(dir) }
    }

    pub(crate) fn at(&self) -> &Path {
        self.dir.as_ref().unwrap().path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.at().join(name)
    }

    pub(crate) fn mounted(&self) -> &Mounted {
        self.mounted.as_ref().unwrap()
    }

    pub(crate) fn disk(&self) -> File {
        File::options().read(true).write(true).open(self.path("disk")).unwrap()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // What still waits for an answer must not keep the process.
        self.port.go_on();
        let result = self.mounted.take().map(|mounted| mounted.unmount(UnmountHow::Abort));
        let place = self.at().to_owned();
        if is_mounted(&place) {
            // Not to be cleaned up through: leave the directory.
            std::mem::forget(self.dir.take());
        }
        if !std::thread::panicking() {
            result.map(Result::unwrap);
            assert!(!is_mounted(&place), "{} is still mounted", place.display());
        }
    }
}

pub(crate) fn is_mounted(at: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let at = at.to_str().unwrap();
    table.lines().any(|line| line.split(' ').nth(1) == Some(at))
}

/// Whether this machine can mount; says so aloud where it cannot.
pub(crate) fn can_mount() -> bool {
    let can = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !can {
        eprintln!("skipped: needs root and /dev/fuse");
    }
    can
}

/// Waits for what another thread brings about, up to ten seconds.
pub(crate) fn until(what: &str, mut is: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if is() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{what} did not happen");
}

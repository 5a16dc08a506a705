//! A directory that forgets: what was not synced may be lost at a crash, in every way that a
//! journalling file system allows (crash model, 4.2).
//!
//! Names: any prefix of the changes since the last directory sync survives. Files: of the changes
//! since the file's last sync any subset of sectors and lengths may survive. A whole state is a
//! value that can be copied, so each crash can be looked at from every side.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use orlop::engine::units::{ByteLen, FileOffset};
use orlop::sr::store::{Entry, EntryKind, Space, Stamp};
use orlop::sr::{DataPlace, DirOp, Store};

const SECTOR: u64 = 512;
const ENOSPC: i32 = 28;
const EIO: i32 = 5;

type Sector = Arc<[u8; 512]>;

/// Bytes as sectors that were written; the others are holes.
#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Bytes {
    len: u64,
    sectors: BTreeMap<u64, Sector>,
}

impl Bytes {
    fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.sectors.retain(|index, _| index * SECTOR < len);
            let (last, keep) = (len / SECTOR, (len % SECTOR) as usize);
            if let Some(sector) = self.sectors.get_mut(&last) {
                Arc::make_mut(sector)[keep..].fill(0);
            }
        }
        self.len = len;
    }

    fn store(&mut self, index: u64, bytes: &[u8; 512], end: u64) {
        self.sectors.insert(index, Arc::new(*bytes));
        self.len = self.len.max(end);
    }

    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        if at + into.len() as u64 > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        while done < into.len() {
            let at = at + done as u64;
            let within = (at % SECTOR) as usize;
            let part = (512 - within).min(into.len() - done);
            let into = &mut into[done..done + part];
            match self.sectors.get(&(at / SECTOR)) {
                Some(sector) => into.copy_from_slice(&sector[within..within + part]),
                None => into.fill(0),
            }
            done += part;
        }
        Ok(())
    }
}

/// A change of a file that may survive or not, for itself.
#[derive(Clone, Hash, Debug)]
enum Change {
    /// This sector has these bytes; the file reaches at least to `end`.
    Sector {
        index: u64,
        bytes: Sector,
        end: u64,
    },
    Hole {
        index: u64,
    },
    Length {
        len: u64,
    },
}

impl Change {
    fn apply(&self, bytes: &mut Bytes) {
        match self {
            Self::Sector { index, bytes: new, end } => bytes.store(*index, new, *end),
            Self::Hole { index } => drop(bytes.sectors.remove(index)),
            Self::Length { len } => bytes.set_len(*len),
        }
    }
}

#[derive(Clone, Default, Debug)]
struct Inode {
    durable: Bytes,
    live: Bytes,
    pending: Vec<Change>,
    touched: i128,
}

#[derive(Clone, Hash, Debug)]
enum NameChange {
    Put { name: String, inode: u64 },
    Move { from: String, to: String },
    Drop { name: String },
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            Self::Put { name, inode } => drop(names.insert(name.clone(), *inode)),
            Self::Move { from, to } => {
                if let Some(inode) = names.remove(from) {
                    names.insert(to.clone(), inode);
                }
            }
            Self::Drop { name } => drop(names.remove(name)),
        }
    }
}

/// A directory with everything in it.
#[derive(Clone, Default, Debug)]
pub(crate) struct World {
    inodes: BTreeMap<u64, Arc<Inode>>,
    durable: BTreeMap<String, u64>,
    live: BTreeMap<String, u64>,
    pending: Vec<NameChange>,
    next: u64,
    clock: i128,
    pub(crate) flaw: Flaw,
}

/// What a directory promises and does not keep. A simulator that finds nothing wrong with these
/// would find nothing at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Flaw {
    #[default]
    None,
    /// Syncs of files are ignored.
    FilesNeverSynced,
    /// Syncs of the directory are ignored.
    NamesNeverSynced,
    /// Intents are never written.
    NoIntents,
    /// Another host takes each name of data a moment before it is given.
    Intruder,
    /// A name without replacing is given by a link and an unlink, and both may be lost apart.
    LinkAndUnlink,
}

/// How the content of unsynced files looks after a crash.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Survival {
    Nothing,
    Everything,
    /// A subset, drawn from this seed.
    Some(u64),
}

impl World {
    /// How many changes of names may be lost.
    pub(crate) fn unsynced_names(&self) -> usize {
        self.pending.len()
    }

    /// Whether the bytes of any file may be lost.
    pub(crate) fn has_unsynced_bytes(&self) -> bool {
        self.inodes.values().any(|inode| !inode.pending.is_empty())
    }

    /// What a crash leaves: the first `names` unsynced changes of names, and of bytes what
    /// `survival` says.
    pub(crate) fn crashed(&self, names: usize, survival: Survival) -> Self {
        let mut after = self.clone();
        after.pending.iter().take(names).for_each(|change| change.apply(&mut after.durable));
        after.live = after.durable.clone();
        after.pending.clear();
        let kept: Vec<u64> = after.live.values().copied().collect();
        after.inodes.retain(|inode, _| kept.contains(inode));
        for (number, inode) in &mut after.inodes {
            if inode.pending.is_empty() {
                continue;
            }
            let inode = Arc::make_mut(inode);
            let mut bytes = std::mem::take(&mut inode.durable);
            for (index, change) in inode.pending.iter().enumerate() {
                if survives(survival, *number, index) {
                    change.apply(&mut bytes);
                }
            }
            inode.pending.clear();
            // Beyond the length that survived there is nothing.
            let len = bytes.len;
            bytes.sectors.retain(|index, _| index * SECTOR < len);
            (inode.live, inode.durable) = (bytes.clone(), bytes);
        }
        after
    }

    /// A number for what is there, as a reader would see it.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (name, inode) in &self.live {
            name.hash(&mut hasher);
            self.inodes[inode].live.hash(&mut hasher);
        }
        hasher.finish()
    }

    /// All names.
    pub(crate) fn names(&self) -> Vec<String> {
        self.live.keys().cloned().collect()
    }

    fn inode(&self, name: &str) -> io::Result<&Arc<Inode>> {
        let number = self.live.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(&self.inodes[number])
    }

    fn inode_mut(&mut self, name: &str) -> io::Result<&mut Inode> {
        let number = *self.live.get(name).ok_or(io::ErrorKind::NotFound)?;
        self.clock += 1;
        let inode = Arc::make_mut(self.inodes.get_mut(&number).expect("a name has its inode"));
        inode.touched = self.clock;
        Ok(inode)
    }

    fn change(&mut self, op: DirOp<'_>) -> io::Result<()> {
        match (self.flaw, op) {
            (Flaw::FilesNeverSynced, DirOp::SyncFile { .. })
            | (Flaw::NamesNeverSynced, DirOp::SyncDirectory) => return Ok(()),
            (Flaw::Intruder, DirOp::Rename { to, replace: false, .. }) if is_data(to) => {
                let _there_already = self.create(to);
            }
            (Flaw::NoIntents, op) if name_of(&op).contains("orlop-intent") => return Ok(()),
            _ => {}
        }
        match op {
            DirOp::Create { name } => self.create(name)?,
            DirOp::Write { name, at, bytes } => write(self.inode_mut(name)?, at.get(), bytes),
            DirOp::SetLength { name, len } => {
                let inode = self.inode_mut(name)?;
                let change = Change::Length { len: len.get() };
                change.apply(&mut inode.live);
                inode.pending.push(change);
            }
            DirOp::Punch { name, at, len } => punch(self.inode_mut(name)?, at.get(), len.get()),
            DirOp::SyncFile { name } => {
                let inode = self.inode_mut(name)?;
                inode.durable = inode.live.clone();
                inode.pending.clear();
            }
            DirOp::Overwrite { name, seen, bytes } => {
                let now = self.inode(name)?.touched;
                if (self.live[name], now) != (seen.file, seen.modified_ns) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                let inode = self.inode_mut(name)?;
                write(inode, 0, bytes);
                let len = bytes.len() as u64;
                if inode.live.len != len {
                    let change = Change::Length { len };
                    change.apply(&mut inode.live);
                    inode.pending.push(change);
                }
            }
            DirOp::Rename { from, to, replace: true } => {
                self.inode(from)?;
                self.rename(NameChange::Move { from: from.to_owned(), to: to.to_owned() });
            }
            DirOp::Rename { from, to, replace: false } | DirOp::Take { from, to } => {
                self.inode(from)?;
                if self.live.contains_key(to) {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                let (from, to, inode) = (from.to_owned(), to.to_owned(), self.live[from]);
                if self.flaw == Flaw::LinkAndUnlink {
                    self.rename(NameChange::Put { name: to, inode });
                    self.rename(NameChange::Drop { name: from });
                } else {
                    self.rename(NameChange::Move { from, to });
                }
            }
            DirOp::Unlink { name } => {
                self.inode(name)?;
                self.rename(NameChange::Drop { name: name.to_owned() });
            }
            DirOp::SyncDirectory => {
                self.durable = self.live.clone();
                self.pending.clear();
            }
        }
        Ok(())
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        if self.live.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.next += 1;
        self.inodes.insert(self.next, Arc::default());
        self.rename(NameChange::Put { name: name.to_owned(), inode: self.next });
        Ok(())
    }

    fn rename(&mut self, change: NameChange) {
        change.apply(&mut self.live);
        self.pending.push(change);
    }

    /// Whether the change takes space that was not taken before.
    fn takes_space(&self, op: &DirOp<'_>) -> bool {
        match op {
            DirOp::Create { .. } => true,
            DirOp::Write { name, at, bytes } => self.inode(name).is_ok_and(|inode| {
                let last = (at.get() + bytes.len() as u64).div_ceil(SECTOR);
                (at.get() / SECTOR..last).any(|index| !inode.live.sectors.contains_key(&index))
            }),
            _ => false,
        }
    }
}

fn is_data(name: &str) -> bool {
    name.ends_with(".vhd") || name.ends_with(".raw")
}

fn name_of<'a>(op: &DirOp<'a>) -> &'a str {
    match op {
        DirOp::Create { name }
        | DirOp::Write { name, .. }
        | DirOp::SetLength { name, .. }
        | DirOp::Punch { name, .. }
        | DirOp::SyncFile { name }
        | DirOp::Unlink { name } => name,
        DirOp::Overwrite { name, .. } => name,
        DirOp::Rename { from, .. } | DirOp::Take { from, .. } => from,
        DirOp::SyncDirectory => "",
    }
}

fn write(inode: &mut Inode, at: u64, bytes: &[u8]) {
    let end = at + bytes.len() as u64;
    for index in at / SECTOR..end.div_ceil(SECTOR) {
        let mut sector = inode.live.sectors.get(&index).map_or([0; 512], |old| **old);
        let (from, to) = (at.max(index * SECTOR), end.min((index + 1) * SECTOR));
        let within = (from - index * SECTOR) as usize..(to - index * SECTOR) as usize;
        sector[within].copy_from_slice(&bytes[(from - at) as usize..(to - at) as usize]);
        let change = Change::Sector { index, bytes: Arc::new(sector), end: to };
        change.apply(&mut inode.live);
        inode.pending.push(change);
    }
}

fn punch(inode: &mut Inode, at: u64, len: u64) {
    let end = (at + len).min(inode.live.len);
    let whole = at.div_ceil(SECTOR)..end / SECTOR;
    let present: Vec<u64> = inode.live.sectors.range(whole).map(|(index, _)| *index).collect();
    for index in present {
        let change = Change::Hole { index };
        change.apply(&mut inode.live);
        inode.pending.push(change);
    }
}

fn survives(survival: Survival, inode: u64, index: usize) -> bool {
    match survival {
        Survival::Nothing => false,
        Survival::Everything => true,
        Survival::Some(seed) => {
            let mut hasher = DefaultHasher::new();
            (seed, inode, index).hash(&mut hasher);
            hasher.finish().is_multiple_of(2)
        }
    }
}

/// What goes wrong, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Before this step everything stops for good.
    Crash(usize),
    /// This step has no space, the later ones have.
    NoSpaceOnce(usize),
    /// From this step on nothing new finds space.
    NoSpace(usize),
    /// This step fails.
    Io(usize),
}

#[derive(Debug)]
struct Inner {
    world: World,
    fault: Fault,
    steps: usize,
    /// Whether the fault came about.
    met: bool,
    /// Files that cannot be read.
    sick: BTreeSet<String>,
    /// What somebody else does just before this step.
    meanwhile: Option<(usize, Meanwhile)>,
}

/// What somebody else does.
pub(crate) struct Meanwhile(pub(crate) Box<dyn FnOnce() + Send>);

impl std::fmt::Debug for Meanwhile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meanwhile")
    }
}

/// A store over a world.
#[derive(Debug)]
pub(crate) struct Sim(Mutex<Inner>, Arc<Mutex<BTreeSet<u64>>>);

impl Sim {
    pub(crate) fn new(world: World, fault: Fault) -> Arc<Self> {
        let sick = BTreeSet::new();
        let inner = Inner { world, fault, steps: 0, met: false, sick, meanwhile: None };
        Arc::new(Self(Mutex::new(inner), Arc::default()))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    pub(crate) fn world(&self) -> World {
        self.inner().world.clone()
    }

    /// A number for the bytes of a file.
    pub(crate) fn digest(&self, name: &str) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.inner().world.inode(name).map(|inode| &inode.live).ok().hash(&mut hasher);
        hasher.finish()
    }

    pub(crate) fn steps(&self) -> usize {
        self.inner().steps
    }

    pub(crate) fn met_its_fault(&self) -> bool {
        self.inner().met
    }

    /// From now on these, and no others, cannot be read.
    pub(crate) fn sicken(&self, names: &[String]) {
        self.inner().sick = names.iter().cloned().collect();
    }

    /// Lets somebody else act just before a step from now on.
    pub(crate) fn interrupt(&self, step: usize, act: impl FnOnce() + Send + 'static) {
        let mut inner = self.inner();
        inner.steps = 0;
        inner.meanwhile = Some((step, Meanwhile(Box::new(act))));
    }

    /// Lets a file be older.
    pub(crate) fn age(&self, name: &str, seconds: i128) {
        let mut inner = self.inner();
        let number = inner.world.live[name];
        let inode = inner.world.inodes.get_mut(&number).unwrap();
        Arc::make_mut(inode).touched -= seconds * 1_000_000_000;
    }

    /// From now on, so many steps further.
    pub(crate) fn plan(&self, fault: Fault) {
        let mut inner = self.inner();
        (inner.fault, inner.steps, inner.met) = (fault, 0, false);
    }
}

impl Inner {
    fn alive(&self) -> io::Result<()> {
        let crashed = matches!(self.fault, Fault::Crash(at) if self.steps > at);
        if crashed { Err(io::Error::from_raw_os_error(EIO)) } else { Ok(()) }
    }

    fn meet(&mut self, op: &DirOp<'_>) -> io::Result<()> {
        let step = self.steps;
        self.steps += 1;
        let error = match self.fault {
            Fault::Crash(at) if step >= at => EIO,
            Fault::Io(at) if step == at => EIO,
            Fault::NoSpace(at) if step >= at && self.world.takes_space(op) => ENOSPC,
            Fault::NoSpaceOnce(at) if step == at && may_lack_space(op) => ENOSPC,
            _ => return Ok(()),
        };
        self.met = true;
        Err(io::Error::from_raw_os_error(error))
    }
}

/// Removing a name and making names durable need no space on any file system that we know.
fn may_lack_space(op: &DirOp<'_>) -> bool {
    !matches!(op, DirOp::Unlink { .. } | DirOp::SyncDirectory)
}

/// A file that nobody else may claim.
struct Claimed(u64, Arc<Mutex<BTreeSet<u64>>>);

impl Drop for Claimed {
    fn drop(&mut self) {
        self.1.lock().unwrap().remove(&self.0);
    }
}

impl Store for Sim {
    fn place(&self) -> String {
        "the simulated directory".to_owned()
    }

    fn list(&self) -> io::Result<Vec<Entry>> {
        let inner = self.inner();
        inner.alive()?;
        let entry = |(name, file): (&String, &u64)| Entry {
            name: name.clone(),
            kind: EntryKind::Data,
            file: Some(*file),
        };
        Ok(inner.world.live.iter().map(entry).collect())
    }

    fn stamp(&self, name: &str) -> io::Result<Stamp> {
        let inner = self.inner();
        inner.alive()?;
        let inode = inner.world.inode(name)?;
        Ok(Stamp {
            file: inner.world.live[name],
            len: ByteLen::new(inode.live.len),
            allocated: ByteLen::new(inode.live.sectors.len() as u64 * SECTOR),
            modified_ns: inode.touched,
        })
    }

    fn read(&self, name: &str, at: FileOffset, bytes: &mut [u8]) -> io::Result<()> {
        let inner = self.inner();
        inner.alive()?;
        if inner.sick.contains(name) {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        inner.world.inode(name)?.live.read(at.get(), bytes)
    }

    fn apply(&self, op: DirOp<'_>) -> io::Result<()> {
        let mut inner = self.inner();
        let steps = inner.steps;
        if let Some((step, Meanwhile(act))) = inner.meanwhile.take_if(|(at, _)| *at == steps) {
            // Somebody else comes here too.
            drop(inner);
            act();
            inner = self.inner();
            inner.steps = step;
        }
        inner.alive()?;
        inner.meet(&op)?;
        inner.world.change(op)
    }

    fn space(&self) -> io::Result<Space> {
        Ok(Space { size: ByteLen::new(1 << 30), used: ByteLen::new(1 << 20) })
    }

    fn claim(&self, name: &str) -> io::Result<Box<dyn Any + Send>> {
        let file = self.stamp(name)?.file;
        if !self.1.lock().unwrap().insert(file) {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "another program uses it"));
        }
        Ok(Box::new(Claimed(file, Arc::clone(&self.1))))
    }

    fn data_place(&self, _name: &str) -> DataPlace {
        DataPlace::Inside
    }
}

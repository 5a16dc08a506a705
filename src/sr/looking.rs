//! Looking at what is in an SR, without reading again what did not change.
//!
//! A scan looks at every file. A glance is for verbs on a few VDIs: those and their parents are
//! looked at as closely, of the others only whether they are still the same files under the same
//! names. So a program of others' that changes a VDI in place, behind our back and without a
//! rename, is noticed by the next scan, not by every glance. Where other hosts may do that a glance
//! looks at everything, and so does whatever takes data away. Files under names that are no VDI's
//! are few, and nobody keeps rules with them: everybody looks at all of them.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::Hash;
use std::io;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use super::catalogue::{Catalogue, Finding, Found, Lock, Raw};
use super::facts::{self, Facts};
use super::failure::{Failure, Kind};
use super::fields::FIELDS_MAX_BYTES;
use super::leasing::StoreClock;
use super::names::{DataFormat, Named, VdiUuid, aside_of, data_name, lease_name, record_name};
use super::record::VdiRecord;
use super::repository::{Repository, since_epoch};
use super::store::{self, Entry, EntryKind, Stamp};
use super::strays::{self, STRAYS_MAX, Stray};

/// Below this age a stamp does not tell whether the file changed again: clocks are coarse.
const STAMP_AGE: Duration = Duration::from_secs(2);
/// Files in an SR, ours and others'; more are not listed.
const ENTRIES_MAX: usize = 1 << 20;
/// VDIs that were forgotten while somebody looked; if it were more, what was seen is not kept.
const FORGOTTEN_MAX: usize = 1024;
/// Glances until the parents of what was asked for are known. More: something changes all the time.
const GLANCES_MAX: usize = 4;

/// What was read of a file, and when its stamp was what.
#[derive(Clone, Debug)]
struct Cached<T> {
    stamp: Stamp,
    read_ns: i128,
    value: Result<Arc<T>, String>,
}

/// What was seen when somebody looked last.
#[derive(Clone, Debug, Default)]
struct Seen {
    facts: HashMap<(VdiUuid, DataFormat), Cached<Facts>>,
    records: HashMap<VdiUuid, Cached<VdiRecord>>,
    strays: HashMap<String, Cached<strays::Content>>,
    parents: HashMap<VdiUuid, VdiUuid>,
}

/// What is known of an SR without looking.
#[derive(Debug, Default)]
pub(super) struct Known {
    seen: Arc<Seen>,
    /// How many VDIs were forgotten so far, and the last of them.
    forgotten: u64,
    latest: VecDeque<VdiUuid>,
}

impl Known {
    fn forget(&mut self, vdi: VdiUuid) {
        self.forgotten += 1;
        self.latest.push_back(vdi);
        if self.latest.len() > FORGOTTEN_MAX {
            self.latest.pop_front();
        }
        Arc::make_mut(&mut self.seen).forget(vdi);
    }

    /// Keeps what was seen since so many were forgotten, but for what was forgotten meanwhile.
    fn keep(&mut self, mut seen: Seen, since: u64) {
        let meanwhile = usize::try_from(self.forgotten - since).unwrap_or(usize::MAX);
        if meanwhile <= self.latest.len() {
            self.latest.iter().rev().take(meanwhile).for_each(|vdi| seen.forget(*vdi));
            self.seen = Arc::new(seen);
        }
    }
}

impl Seen {
    fn forget(&mut self, vdi: VdiUuid) {
        for format in [DataFormat::Vhd, DataFormat::Raw] {
            self.facts.remove(&(vdi, format));
        }
        self.records.remove(&vdi);
    }
}

/// What is to be looked at closely.
#[derive(Clone, Copy)]
enum Closely<'a> {
    All,
    Only(&'a BTreeSet<VdiUuid>),
}

impl Closely<'_> {
    fn includes(self, vdi: VdiUuid) -> bool {
        match self {
            Self::All => true,
            Self::Only(vdis) => vdis.contains(&vdi),
        }
    }
}

/// What somebody who looks knows from before, learns, and finds amiss.
struct Look {
    old: Arc<Seen>,
    new: Seen,
    found: Found,
    clock: StoreClock,
}

impl Look {
    fn find(&mut self, finding: Finding) {
        self.found.findings.push(finding);
    }

    /// Finds something that may be anybody's child.
    fn find_obscure(&mut self, finding: Finding) {
        let why = || {
            let Finding { name, problem, .. } = &finding;
            format!("it may have a child that cannot be told: {name}: {problem}")
        };
        self.found.obscure.get_or_insert_with(why);
        self.find(finding);
    }
}

impl Repository {
    /// Everything in the SR. What did not change since the last time is not read again.
    ///
    /// # Errors
    /// When the store cannot be listed. What is wrong with single files is among the findings.
    pub fn scan(&self) -> Result<Catalogue, Failure> {
        self.look_over(Closely::All)
    }

    /// What a verb on these VDIs needs to know: they and their parents as a scan tells them, their
    /// children, and which identities are taken. Of other VDIs it tells what was known before, and
    /// no locks.
    ///
    /// # Errors
    /// As [`Repository::scan`].
    pub fn glance(&self, vdis: &[VdiUuid]) -> Result<Catalogue, Failure> {
        let seen = Arc::clone(&self.known().seen);
        let mut closely: BTreeSet<VdiUuid> = vdis.iter().copied().collect();
        for vdi in vdis {
            // It ends where it comes to what is in it already.
            let mut next = seen.parents.get(vdi);
            while let Some(parent) = next.filter(|parent| closely.insert(**parent)) {
                next = seen.parents.get(parent);
            }
        }
        if self.shared {
            return self.scan();
        }
        for _ in 0..GLANCES_MAX {
            let catalogue = self.look_over(Closely::Only(&closely))?;
            let before = closely.len();
            for vdi in vdis {
                let mut next = catalogue.any(*vdi).and_then(|vdi| vdi.parent);
                while let Some(parent) = next.and_then(|parent| catalogue.any(parent)) {
                    closely.insert(parent.uuid);
                    next = parent.parent;
                }
            }
            if catalogue.findings.iter().any(|finding| finding.broken.is_some()) {
                // It may have been mended, or be broken only as far as is known: then it could be
                // the child of what is asked for.
                break;
            }
            if closely.len() == before {
                return Ok(catalogue);
            }
        }
        self.scan()
    }

    /// Drops what was read of a VDI that we changed: stamps are too coarse to tell.
    pub(super) fn forget(&self, vdi: VdiUuid) {
        self.known().forget(vdi);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look_over(&self, closely: Closely<'_>) -> Result<Catalogue, Failure> {
        let (old, since) = {
            let known = self.known();
            (Arc::clone(&known.seen), known.forgotten)
        };
        let entries = self.store.list().map_err(|e| self.failed("list it", &e))?;
        if entries.len() > ENTRIES_MAX {
            let why = format!("it has {} files, more than {ENTRIES_MAX}", entries.len());
            return Err(Failure::new(Kind::Invalid, self.place(), why));
        }
        let space = self.store.space().map_err(|e| self.failed("measure it", &e))?;
        let unfinished = self.unfinished(&entries);
        let sides = Sides::of(&entries);
        let (new, found) = (Seen::default(), Found::default());
        let mut look = Look { old, new, found, clock: StoreClock::default() };
        look.new.facts.reserve(sides.data.len());
        for data in &sides.data {
            match self.look(data, &sides, closely.includes(data.vdi), &mut look) {
                Ok(Some(raw)) => drop(look.found.raws.insert(data.vdi, raw)),
                // It went while we looked.
                Ok(None) => {}
                Err(problem) => {
                    let name = data_name(data.vdi, data.format);
                    let finding = Finding { name, broken: Some(data.vdi), problem };
                    let readable = !matches!(data.kind, EntryKind::Other(_));
                    if readable && data.format == DataFormat::Vhd {
                        look.find_obscure(finding);
                    } else {
                        look.find(finding);
                    }
                }
            }
        }
        for vdi in &sides.twice {
            look.found.raws.remove(vdi);
            let problem = "there are data of this VDI in two formats".to_owned();
            look.find_obscure(Finding { name: vdi.to_string(), broken: Some(*vdi), problem });
        }
        self.look_at_strays(&sides, &mut look);
        for (name, problem) in sides.orphans() {
            look.find(finding(name, problem));
        }
        let Look { mut new, found, .. } = look;
        let catalogue = Catalogue::assemble(self.sr, found, unfinished, space);
        let parents = catalogue.vdis.values().filter_map(|vdi| Some((vdi.uuid, vdi.parent?)));
        new.parents = parents.collect();
        self.known().keep(new, since);
        Ok(catalogue)
    }

    /// Looks at what lies under names that are no VDI's, for images among it.
    fn look_at_strays(&self, sides: &Sides, look: &mut Look) {
        for Entry { name, kind, .. } in sides.others.iter().take(STRAYS_MAX) {
            match kind {
                EntryKind::Nameless => look.find_obscure(strays::nameless(name.clone())),
                EntryKind::Other(words) => look.find(strays::no_file(name.clone(), words)),
                EntryKind::Data | EntryKind::Unknown => self.look_at_stray(name, look),
            }
        }
        if let Some(first) = sides.others.get(STRAYS_MAX) {
            let count = sides.others.len() - STRAYS_MAX;
            look.find_obscure(strays::too_many(first.name.clone(), count));
        }
    }

    fn look_at_stray(&self, name: &str, look: &mut Look) {
        let stamp = match self.store.stamp(name) {
            Ok(stamp) => stamp,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            // No file, as the list could not tell.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
            Err(error) => {
                return look.find_obscure(strays::unreadable(name.to_owned(), &error.to_string()));
            }
        };
        let read = || strays::read(self.store.as_ref(), name, &stamp).map_err(|e| e.to_string());
        let (old, new) = (&look.old.strays, &mut look.new.strays);
        match cached(old, new, name.to_owned(), stamp, read) {
            Err(why) => look.find_obscure(strays::unreadable(name.to_owned(), &why)),
            Ok(content) => {
                if let strays::Content::Image(facts) = &*content {
                    let facts = Facts::clone(facts);
                    look.found.strays.push(Stray { name: name.to_owned(), facts });
                }
            }
        }
    }

    /// Looks at one data file and what lies beside it. `None`: it is not there any more.
    fn look(
        &self,
        data: &Data,
        sides: &Sides,
        closely: bool,
        look: &mut Look,
    ) -> Result<Option<Raw>, String> {
        let (vdi, format) = (data.vdi, data.format);
        if let EntryKind::Other(words) = data.kind {
            return Err(format!("it is {words}; data are regular files"));
        }
        let (old, new) = (&look.old.facts, &mut look.new.facts);
        let file = data.file.filter(|_| !closely);
        let (facts, utilisation) = match kept(old, new, &(vdi, format), file) {
            Some(kept) => kept,
            None => {
                let name = data_name(vdi, format);
                let stamp = match self.store.stamp(&name) {
                    Ok(stamp) => stamp,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(format!("cannot look at it: {error}")),
                };
                let store = self.store.as_ref();
                let read = || facts::read(store, &name, format, &stamp).map_err(|e| e.to_string());
                (cached(old, new, (vdi, format), stamp, read)?, stamp.allocated)
            }
        };
        let mut record = Ok(VdiRecord::default());
        if let Some(file) = sides.records.get(&vdi) {
            let file = file.filter(|_| !closely);
            match self.record_of(vdi, file, &look.old.records, &mut look.new.records) {
                Ok(found) => record = Ok(VdiRecord::clone(&found)),
                Err(problem) => {
                    look.find(finding(record_name(vdi), problem.clone()));
                    record = Err(problem);
                }
            }
        }
        let mut lock = Lock::Free;
        if let Some(name) = sides.lock_of(vdi).filter(|_| closely) {
            lock = self.lock_in(&name, &look.clock);
            if let Lock::Unknown(problem) = &lock {
                look.find(finding(lease_name(vdi), problem.clone()));
            }
        }
        let facts = Facts::clone(&facts);
        Ok(Some(Raw { format, facts, utilisation, record, lock }))
    }

    fn record_of(
        &self,
        vdi: VdiUuid,
        file: Option<u64>,
        old: &HashMap<VdiUuid, Cached<VdiRecord>>,
        new: &mut HashMap<VdiUuid, Cached<VdiRecord>>,
    ) -> Result<Arc<VdiRecord>, String> {
        if let Some((record, _)) = kept(old, new, &vdi, file) {
            return Ok(record);
        }
        let name = record_name(vdi);
        let stamp = match self.store.stamp(&name) {
            Ok(stamp) => stamp,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Arc::default()),
            Err(error) => return Err(error.to_string()),
        };
        let read = || {
            let bytes = store::read_small(self.store.as_ref(), &name, FIELDS_MAX_BYTES)
                .map_err(|error| error.to_string())?;
            VdiRecord::from_bytes(&bytes).map_err(|error| error.to_string())
        };
        cached(old, new, vdi, stamp, read)
    }
}

/// Something about a VDI that is lost without breaking it.
fn finding(name: String, problem: String) -> Finding {
    Finding { name, broken: None, problem }
}

/// A data file as its name tells it.
struct Data {
    vdi: VdiUuid,
    format: DataFormat,
    kind: EntryKind,
    file: Option<u64>,
}

/// What lies in a store, by what it is.
#[derive(Default)]
struct Sides<'a> {
    data: Vec<Data>,
    /// What is no VDI's; first what is called a VHD.
    others: Vec<&'a Entry>,
    /// Whether a verb may be making or removing what lies beside data.
    changing: bool,
    twice: BTreeSet<VdiUuid>,
    records: HashMap<VdiUuid, Option<u64>>,
    leases: BTreeSet<VdiUuid>,
    /// Locks that somebody has moved aside.
    asides: HashMap<VdiUuid, String>,
}

impl<'a> Sides<'a> {
    fn of(entries: &'a [Entry]) -> Self {
        let mut sides = Self::default();
        for entry in entries {
            let Entry { name, kind, file } = entry;
            if *kind == EntryKind::Nameless {
                sides.others.push(entry);
                continue;
            }
            match Named::of(name) {
                Named::Data(vdi, format) => {
                    sides.data.push(Data { vdi, format, kind: *kind, file: *file });
                }
                Named::Record(vdi) => drop(sides.records.insert(vdi, *file)),
                Named::Lease(vdi) => drop(sides.leases.insert(vdi)),
                Named::Temporary => {
                    sides.asides.extend(aside_of(name).map(|vdi| (vdi, name.clone())));
                }
                Named::Intent(_) => sides.changing = true,
                // Directories of others' and the like are none of anybody's concern here.
                Named::Foreign
                    if matches!(kind, EntryKind::Other(_)) && !strays::is_called_vhd(name) => {}
                Named::Foreign if strays::is_removed(name) => {}
                Named::Foreign => sides.others.push(entry),
                Named::Sr => {}
            }
        }
        // Those that are likely images must not be lost in a crowd, and each scan tells the same.
        sides.others.sort_by_key(|entry| (!strays::is_called_vhd(&entry.name), &entry.name));
        sides.data.sort_unstable_by_key(|data| data.vdi);
        let pairs = sides.data.windows(2).filter(|pair| pair[0].vdi == pair[1].vdi);
        sides.twice = pairs.map(|pair| pair[0].vdi).collect();
        sides
    }
}

impl Sides<'_> {
    /// What tells of VDIs that have no data.
    fn orphans(&self) -> Vec<(String, String)> {
        let is_one = |vdi: &&VdiUuid| {
            !self.changing && self.data.binary_search_by_key(*vdi, |data| data.vdi).is_err()
        };
        let problem = |what: &str| {
            format!(
                "it is {what} of a VDI whose data are not here; if they were moved aside, give \
                 them back their name; unless some file has the VDI's uuid in its name, this one \
                 goes when the SR is attached again"
            )
        };
        let records = self.records.keys().filter(is_one);
        let records = records.map(|vdi| (record_name(*vdi), problem("the record")));
        let leases = self.leases.iter().filter(is_one);
        records.chain(leases.map(|vdi| (lease_name(*vdi), problem("the lock")))).collect()
    }

    /// The file that tells who holds a VDI's lock. One that is aside is held until it is known that
    /// it goes: its host may have died there, and gives it its name back.
    fn lock_of(&self, vdi: VdiUuid) -> Option<String> {
        let lies = self.leases.contains(&vdi);
        if lies { Some(lease_name(vdi)) } else { self.asides.get(&vdi).cloned() }
    }
}

/// What was read well of this very file before, whether or not it changed, and the space it took.
fn kept<K: Copy + Eq + Hash, T>(
    old: &HashMap<K, Cached<T>>,
    new: &mut HashMap<K, Cached<T>>,
    key: &K,
    file: Option<u64>,
) -> Option<(Arc<T>, crate::engine::units::ByteLen)> {
    let known = old.get(key).filter(|known| Some(known.stamp.file) == file)?;
    let value = Arc::clone(known.value.as_ref().ok()?);
    let Cached { stamp, read_ns, .. } = *known;
    new.insert(*key, Cached { stamp, read_ns, value: Ok(Arc::clone(&value)) });
    Some((value, stamp.allocated))
}

/// What was read before, if the file is still the same and was not too young to tell. What could
/// not be read is tried anew: storage comes back.
fn cached<K: Clone + Eq + Hash, T>(
    old: &HashMap<K, Cached<T>>,
    new: &mut HashMap<K, Cached<T>>,
    key: K,
    stamp: Stamp,
    read: impl FnOnce() -> Result<T, String>,
) -> Result<Arc<T>, String> {
    let same = |known: &&Cached<T>| {
        let age = known.read_ns - known.stamp.modified_ns;
        known.value.is_ok()
            && known.stamp.is_same_state(&stamp)
            && age > i128::try_from(STAMP_AGE.as_nanos()).unwrap_or(i128::MAX)
    };
    let (value, read_ns) = match old.get(&key).filter(same) {
        Some(known) => (known.value.clone(), known.read_ns),
        None => {
            let read_ns = since_epoch().as_nanos();
            (read().map(Arc::new), i128::try_from(read_ns).unwrap_or(i128::MAX))
        }
    };
    new.insert(key, Cached { stamp, read_ns, value: value.clone() });
    value
}

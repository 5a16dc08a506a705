//! What is in an SR: every VDI with its parent, found by names and identities within the SR only.
//!
//! A parent is never looked for where a file says it is: it is another data file of this SR with
//! the identity that its child names (for a raw one, which has no identity, with the plain name).
//! So no path of an untrusted file is ever followed. One unreadable file is one finding, and the
//! rest of the list stands.

use std::collections::{BTreeMap, HashMap};

use super::facts::{Facts, ParentClaim};
use super::failure::{Failure, Kind};
use super::names::{DataFormat, Named, SrUuid, VdiUuid, data_name, record_name};
use super::record::{Lease, VdiRecord};
use super::store::Space;
use super::strays::Stray;
use super::unfinished::Unfinished;
use crate::engine::units::ByteLen;

/// The longest chain of VDIs, a leaf and all its parents, that is made or served.
pub const CHAIN_MAX: usize = 30;

/// A VDI as its SR has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vdi {
    /// Its identity.
    pub uuid: VdiUuid,
    /// The format of its data.
    pub format: DataFormat,
    /// Bytes of the disk.
    pub size: ByteLen,
    /// Space that its own data takes; what its parents hold is theirs.
    pub utilisation: ByteLen,
    /// The identity in its VHD.
    pub identity: Option<[u8; 16]>,
    /// Whether it may never be written: it says so, or it has children.
    pub read_only: bool,
    /// Whether it lives for its children only; no VDI for anybody outside.
    pub hidden: bool,
    /// Its parent.
    pub parent: Option<VdiUuid>,
    /// Its children, hidden ones included.
    pub children: Vec<VdiUuid>,
    /// Images under names that are no VDI's, and that are children of it too.
    pub strays: Vec<String>,
    /// Who holds its lock.
    pub lock: Lock,
    /// What we know beyond its data.
    pub record: VdiRecord,
    /// Why that is not known; it is taken for read-only then.
    pub record_lost: Option<String>,
}

/// Who holds the lock of a VDI. One whose time is over holds nobody up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Lock {
    /// Nobody.
    #[default]
    Free,
    /// Somebody.
    Held(Lease),
    /// There is one that cannot be read, and why: it may be anybody's.
    Unknown(String),
}

impl Vdi {
    /// The name of its data file.
    pub fn data_name(&self) -> String {
        data_name(self.uuid, self.format)
    }

    /// Refuses when somebody holds its lock who is not among these, or nobody knows who does.
    ///
    /// # Errors
    /// [`Kind::Busy`].
    pub fn unlocked_for(&self, among: impl FnOnce(&Lease) -> bool) -> Result<(), Failure> {
        let why = match &self.lock {
            Lock::Free => return Ok(()),
            Lock::Held(lease) if among(lease) => return Ok(()),
            Lock::Held(lease) => lease.in_words(),
            Lock::Unknown(why) => format!("who holds its lock cannot be told: {why}"),
        };
        Err(Failure::new(Kind::Busy, format!("VDI {}", self.uuid), why)
            .advise("let the holder unlock it, or force the lock if the holder is dead"))
    }

    /// Whether others need its data.
    pub fn is_needed(&self) -> bool {
        !self.children.is_empty() || !self.strays.is_empty()
    }

    /// Refuses when it may only be read, and says why.
    ///
    /// # Errors
    /// [`Kind::NotPermitted`]; [`Kind::Corrupt`] when nobody knows whether it may be written.
    pub fn writable(&self) -> Result<(), Failure> {
        if !self.read_only {
            return Ok(());
        }
        self.known_record()?;
        self.free_of_strays()?;
        let why = "it may only be read: it is a snapshot, or others depend on it";
        Err(Failure::new(Kind::NotPermitted, format!("VDI {}", self.uuid), why)
            .advise("attach it read-only, or write to a clone of it"))
    }

    /// Refuses when nothing but images that are no VDIs keeps it from being written. It gets no
    /// children of ours then, which would keep it so when those are gone.
    ///
    /// # Errors
    /// [`Kind::NotPermitted`], with one of them.
    pub fn free_of_strays(&self) -> Result<(), Failure> {
        let Some(stray) = self.strays.first() else { return Ok(()) };
        if !self.children.is_empty() || self.record.read_only {
            return Ok(());
        }
        let why = format!("the file {stray:?} in its SR is a child of it");
        Err(Failure::new(Kind::NotPermitted, format!("VDI {}", self.uuid), why).advise(
            "move that file out of the SR; or make it a VDI: rename it to a fresh uuid \
                     and .vhd",
        ))
    }

    /// What we know beyond its data, for whoever would build on it.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] when it cannot be read.
    pub fn known_record(&self) -> Result<&VdiRecord, Failure> {
        match &self.record_lost {
            None => Ok(&self.record),
            Some(why) => {
                let name = record_name(self.uuid);
                let why = format!("its record {name} cannot be read: {why}");
                Err(Failure::new(Kind::Corrupt, format!("VDI {}", self.uuid), why).advise(
                    "try again; restore the file if it is damaged, or remove it for a VDI \
                             that is no snapshot",
                ))
            }
        }
    }
}

/// Something in an SR that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file.
    pub name: String,
    /// The VDI that cannot be used because of it; `None` when only something about it is lost.
    pub broken: Option<VdiUuid>,
    /// What is wrong, for people.
    pub problem: String,
}

/// Everything in an SR at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Catalogue {
    /// The SR.
    pub sr: SrUuid,
    /// All VDIs that can be used, hidden ones included.
    pub vdis: BTreeMap<VdiUuid, Vdi>,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// Why nobody can tell of every file whose child it is: there is a VHD that cannot be read.
    /// Until that is mended nothing is removed or merged that could be its parent.
    pub obscure: Option<String>,
    /// Operations of others that are not over.
    pub unfinished: Unfinished,
    /// The space there is.
    pub space: Space,
}

/// What lies in an SR, before it is known who is whose parent.
#[derive(Default)]
pub(super) struct Found {
    pub(super) raws: BTreeMap<VdiUuid, Raw>,
    pub(super) strays: Vec<Stray>,
    pub(super) findings: Vec<Finding>,
    pub(super) obscure: Option<String>,
}

/// A data file, before its relations are known.
#[derive(Clone, Debug)]
pub(super) struct Raw {
    pub(super) format: DataFormat,
    pub(super) facts: Facts,
    pub(super) utilisation: ByteLen,
    pub(super) record: Result<VdiRecord, String>,
    pub(super) lock: Lock,
}

impl Catalogue {
    /// The VDI, hidden or not.
    pub fn any(&self, vdi: VdiUuid) -> Option<&Vdi> {
        self.vdis.get(&vdi)
    }

    /// The VDI, if it is one for others.
    ///
    /// # Errors
    /// When there is none, with what is known of its file.
    pub fn visible(&self, vdi: VdiUuid) -> Result<&Vdi, Failure> {
        if let Some(found) = self.vdis.get(&vdi).filter(|found| !found.hidden) {
            return Ok(found);
        }
        let place = format!("SR {}", self.sr);
        match self.findings.iter().find(|finding| finding.broken == Some(vdi)) {
            Some(finding) => {
                let why = format!("the VDI {vdi} cannot be used: {}", finding.problem);
                Err(Failure::new(Kind::Corrupt, place, why))
            }
            None => Err(Failure::new(Kind::NoVdi, place, format!("it has no VDI {vdi}"))),
        }
    }

    /// Whether the identity is free: no data file of that name, sound or not, seen or hidden.
    pub fn is_free(&self, vdi: VdiUuid) -> bool {
        let broken = self.findings.iter().any(|finding| finding.broken == Some(vdi));
        !broken && !self.vdis.contains_key(&vdi)
    }

    /// A VDI and its parents, the VDI first.
    ///
    /// # Errors
    /// When it is longer than [`CHAIN_MAX`].
    pub fn chain(&self, vdi: VdiUuid) -> Result<Vec<&Vdi>, Failure> {
        let mut chain = Vec::new();
        let mut next = Some(vdi);
        while let Some(link) = next.and_then(|uuid| self.vdis.get(&uuid)) {
            chain.push(link);
            next = link.parent;
            if chain.len() > CHAIN_MAX {
                let why = format!("its chain of parents has more than {CHAIN_MAX} images");
                return Err(Failure::new(Kind::ChainTooLong, format!("VDI {vdi}"), why));
            }
        }
        Ok(chain)
    }

    /// Bytes of all disks that are somebody's.
    pub fn virtual_allocation(&self) -> ByteLen {
        let visible = self.vdis.values().filter(|vdi| !vdi.hidden);
        ByteLen::new(visible.fold(0, |sum: u64, vdi| sum.saturating_add(vdi.size.get())))
    }

    /// Finds out who is whose parent.
    pub(super) fn assemble(sr: SrUuid, found: Found, unfinished: Unfinished, space: Space) -> Self {
        let Found { raws, strays, mut findings, obscure } = found;
        let mut by_identity: HashMap<[u8; 16], Vec<VdiUuid>> = HashMap::new();
        for (uuid, raw) in &raws {
            if let Some(identity) = raw.facts.identity {
                by_identity.entry(identity).or_default().push(*uuid);
            }
        }
        let mut parents: HashMap<VdiUuid, VdiUuid> = HashMap::new();
        let mut broken: HashMap<VdiUuid, String> = HashMap::new();
        let mut needed: Vec<(VdiUuid, String)> = Vec::new();
        for (uuid, raw) in &raws {
            let Some(claim) = &raw.facts.parent else { continue };
            match find_parent(&raws, &by_identity, *uuid, claim) {
                Ok(parent) => drop(parents.insert(*uuid, parent)),
                Err(problem) => {
                    let moved = moved_aside(&strays, claim).unwrap_or_default();
                    broken.insert(*uuid, problem + &moved);
                    // Whichever it is, it must stay as it is.
                    let name = data_name(*uuid, raw.format);
                    let meant = possible_parents(&raws, &by_identity, claim);
                    let meant = meant.into_iter().filter(|parent| parent != uuid);
                    needed.extend(meant.map(|parent| (parent, name.clone())));
                }
            }
        }
        spread(&raws, &parents, &mut broken);
        for stray in strays {
            let claim = stray.facts.parent.as_ref();
            let meant = claim.map(|claim| possible_parents(&raws, &by_identity, claim));
            let meant = meant.unwrap_or_default();
            findings.push(stray.finding(&meant));
            needed.extend(meant.into_iter().map(|parent| (parent, stray.name.clone())));
        }
        let mut vdis = BTreeMap::new();
        for (uuid, raw) in raws {
            let parent = parents.get(&uuid).copied();
            match broken.remove(&uuid) {
                None => drop(vdis.insert(uuid, raw.into_vdi(uuid, parent))),
                Some(problem) => {
                    let name = data_name(uuid, raw.format);
                    findings.push(Finding { name, broken: Some(uuid), problem });
                }
            }
        }
        // Also of children that cannot be used: whoever writes to a parent harms them for good.
        for (child, parent) in &parents {
            if let Some(parent) = vdis.get_mut(parent) {
                parent.children.push(*child);
                parent.read_only = true;
            }
        }
        for (parent, stray) in needed {
            if let Some(parent) = vdis.get_mut(&parent) {
                parent.read_only = true;
                if parent.strays.len() < STRAYS_TOLD_MAX {
                    parent.strays.push(stray);
                }
            }
        }
        vdis.values_mut().for_each(|vdi| vdi.children.sort());
        findings.sort_by(|a, b| a.name.cmp(&b.name));
        Self { sr, vdis, findings, obscure, unfinished, space }
    }
}

impl Raw {
    fn into_vdi(self, uuid: VdiUuid, parent: Option<VdiUuid>) -> Vdi {
        let (record, record_lost) = match self.record {
            Ok(record) => (record, None),
            Err(why) => (VdiRecord::default(), Some(why)),
        };
        Vdi {
            uuid,
            format: self.format,
            size: self.facts.size,
            utilisation: self.utilisation,
            identity: self.facts.identity,
            read_only: record.read_only || record_lost.is_some(),
            hidden: self.facts.hidden || record.hidden,
            parent,
            children: Vec::new(),
            strays: Vec::new(),
            lock: self.lock,
            record,
            record_lost,
        }
    }
}

/// So many of the files that need a VDI are named.
const STRAYS_TOLD_MAX: usize = 16;

/// The last component of a stored name, whichever way its separators lean.
fn last_part(name: &str) -> &str {
    name.rsplit(['/', '\\']).next().unwrap_or_default()
}

fn find_parent(
    raws: &BTreeMap<VdiUuid, Raw>,
    by_identity: &HashMap<[u8; 16], Vec<VdiUuid>>,
    child: VdiUuid,
    claim: &ParentClaim,
) -> Result<VdiUuid, String> {
    let shown: String = claim.name.chars().take(128).collect();
    let Some(identity) = claim.identity else {
        // Nothing but the name tells a raw parent, so it must be a plain one.
        let plain = claim.name.strip_prefix("./").unwrap_or(&claim.name);
        let parent = raws.iter().find(|(uuid, raw)| {
            raw.format == DataFormat::Raw && data_name(**uuid, raw.format) == plain
        });
        let missing = || format!("its raw parent {shown:?} is no data file of this SR");
        return parent.map(|(uuid, _)| *uuid).ok_or_else(missing);
    };
    let candidates = by_identity.get(&identity).map(Vec::as_slice).unwrap_or_default();
    let named = candidates.iter().find(|uuid| {
        last_part(&claim.name) == data_name(**uuid, DataFormat::Vhd) && **uuid != child
    });
    match (named, candidates) {
        (Some(parent), _) => Ok(*parent),
        (None, [only]) if *only != child => Ok(*only),
        (None, []) => Err(no_parent(raws, &shown, &claim.name, identity)),
        (None, [_]) => Err("it names itself as its parent".to_owned()),
        (None, _) => Err(format!("several images could be its parent {shown:?}")),
    }
}

/// All data files that an image may mean by its parent if the name it has for it decides nothing:
/// it has no VDI's name itself and may come from anywhere, or its parent is not certain.
fn possible_parents(
    raws: &BTreeMap<VdiUuid, Raw>,
    by_identity: &HashMap<[u8; 16], Vec<VdiUuid>>,
    claim: &ParentClaim,
) -> Vec<VdiUuid> {
    if let Some(identity) = claim.identity {
        return by_identity.get(&identity).cloned().unwrap_or_default();
    }
    match Named::of(last_part(&claim.name)) {
        Named::Data(vdi, DataFormat::Raw) => {
            raws.get(&vdi).filter(|raw| raw.format == DataFormat::Raw).map(|_| vdi)
        }
        _ => None,
    }
    .into_iter()
    .collect()
}

/// Where the parent of a broken VDI may be after all.
fn moved_aside(strays: &[Stray], claim: &ParentClaim) -> Option<String> {
    let identity = claim.identity?;
    let stray = strays.iter().find(|stray| stray.facts.identity == Some(identity))?;
    Some(format!("; the file {:?} has its identity: give it back its name", stray.name))
}

/// Why nothing is the parent of an identity: whoever restored another image under its name is to
/// learn that.
fn no_parent(raws: &BTreeMap<VdiUuid, Raw>, shown: &str, name: &str, identity: [u8; 16]) -> String {
    let same_name =
        raws.iter().find(|(uuid, raw)| data_name(**uuid, raw.format) == last_part(name));
    let expected = VdiUuid::from_bytes(identity);
    match same_name.map(|(_, raw)| raw.facts.identity) {
        Some(Some(found)) => format!(
            "its parent {shown:?} is another image: identity {expected} is wanted, and that of \
             the file is {}",
            VdiUuid::from_bytes(found)
        ),
        _ => format!("its parent {shown:?} is not in this SR"),
    }
}

/// A VDI over a broken one is broken too, and so is every member of a circle.
fn spread(
    raws: &BTreeMap<VdiUuid, Raw>,
    parents: &HashMap<VdiUuid, VdiUuid>,
    broken: &mut HashMap<VdiUuid, String>,
) {
    // Those known to end well, so that each link is walked once.
    let mut sound: HashMap<VdiUuid, ()> = HashMap::new();
    for start in raws.keys() {
        let mut way = Vec::new();
        let mut at = *start;
        let problem = loop {
            if sound.contains_key(&at) {
                break None;
            }
            if broken.contains_key(&at) {
                break Some(format!("its parent {at} cannot be used"));
            }
            if way.contains(&at) {
                break Some("its parents form a circle".to_owned());
            }
            way.push(at);
            // A chain that long is refused when it is used; here it must only end.
            if way.len() > 4 * CHAIN_MAX {
                break Some("its chain of parents has no end in sight".to_owned());
            }
            match parents.get(&at) {
                Some(parent) => at = *parent,
                None => break None,
            }
        };
        match problem {
            None => sound.extend(way.into_iter().map(|uuid| (uuid, ()))),
            Some(problem) => {
                for uuid in way {
                    broken.entry(uuid).or_insert_with(|| problem.clone());
                }
            }
        }
    }
}

//! What anybody outside can see of an SR, as a value, and the rules that hold at every moment.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use orlop::engine::request::MapKind;
use orlop::engine::units::{ByteLen, DiskOffset, Extent};
use orlop::sr::{
    Catalogue, DataFormat, Lock, Named, OfflineDisk, Repository, SrUuid, Store, Vdi, VdiUuid,
};

use super::sim::{Fault, Sim, World};

/// A VDI as its owner knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    size: u64,
    content: u64,
    label: String,
    read_only: bool,
    holder: Option<String>,
}

/// All VDIs that anybody sees.
pub(crate) type State = BTreeMap<VdiUuid, Seen>;

/// Attaches, which recovers.
pub(crate) fn attach(sr: SrUuid, store: Arc<Sim>) -> Result<Repository, String> {
    Repository::open(sr, "host", store, false).map_err(|failure| failure.to_string())
}

thread_local! {
    /// What was found out about files of these bytes: most states share most files.
    static KNOWN: RefCell<HashMap<u64, Result<u64, String>>> = RefCell::default();
}

fn once(
    key: &[(String, u64)],
    find_out: impl FnOnce() -> Result<u64, String>,
) -> Result<u64, String> {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    let key = hasher.finish();
    if let Some(known) = KNOWN.with_borrow(|known| known.get(&key).cloned()) {
        return known;
    }
    let found = find_out();
    KNOWN.with_borrow_mut(|known| known.insert(key, found.clone()));
    found
}

/// A number for the content of a disk, the same for the same bytes however they are kept.
fn content(store: &Arc<Sim>, catalogue: &Catalogue, vdi: &Vdi) -> Result<u64, String> {
    let chain = catalogue.chain(vdi.uuid).map_err(|failure| failure.to_string())?;
    let key = chain.iter().map(|link| link.data_name()).map(|name| {
        let digest = store.digest(&name);
        (name, digest)
    });
    once(&key.collect::<Vec<_>>(), || read_content(store, catalogue, vdi))
}

fn read_content(store: &Arc<Sim>, catalogue: &Catalogue, vdi: &Vdi) -> Result<u64, String> {
    let chain = catalogue.chain(vdi.uuid).map_err(|failure| failure.to_string())?;
    let chain: Vec<_> = chain.iter().map(|link| (link.data_name(), link.format)).collect();
    let store: Arc<dyn Store> = Arc::clone(store) as Arc<dyn Store>;
    let failed = |error: std::io::Error| format!("{}: {error}", vdi.data_name());
    let mut disk = OfflineDisk::open(store, &chain, true).map_err(failed)?;
    let mut hasher = DefaultHasher::new();
    let mut at = 0;
    let size = disk.size().get();
    while at < size {
        let rest = Extent::new(DiskOffset::new(at), ByteLen::new(size - at));
        for run in disk.map(rest).map_err(failed)? {
            if matches!(run.kind, MapKind::Data { .. } | MapKind::Sparse { .. }) {
                let len = u32::try_from(run.len.get()).expect("small disks");
                let bytes = disk.read(DiskOffset::new(at), len).map_err(failed)?;
                for (index, sector) in (at / 512..).zip(bytes.chunks(512)) {
                    if sector.iter().any(|byte| *byte != 0) {
                        (index, sector).hash(&mut hasher);
                    }
                }
            }
            at += run.len.get();
        }
    }
    Ok(hasher.finish())
}

/// What can be seen, or what breaks a rule: C (nothing refers to what is gone) and that every image
/// is sound.
pub(crate) fn observe(repository: &Repository, store: &Arc<Sim>) -> Result<State, String> {
    let catalogue = repository.scan().map_err(|failure| failure.to_string())?;
    let mut findings = catalogue.findings.iter();
    if let Some(finding) = findings.find(|found| found.name != super::strays::STRAY) {
        return Err(format!("a scan finds {finding:?}"));
    }
    let mut state = State::new();
    for vdi in catalogue.vdis.values() {
        check_image(store, vdi)?;
        if vdi.hidden {
            continue;
        }
        state.insert(vdi.uuid, seen(store, &catalogue, vdi)?);
    }
    Ok(state)
}

fn seen(store: &Arc<Sim>, catalogue: &Catalogue, vdi: &Vdi) -> Result<Seen, String> {
    Ok(Seen {
        size: vdi.size.get(),
        content: content(store, catalogue, vdi)?,
        label: vdi.record.label.clone(),
        read_only: vdi.read_only,
        holder: match &vdi.lock {
            Lock::Held(lease) => Some(lease.user.clone()),
            _ => None,
        },
    })
}

/// One VDI, whatever is wrong with the others.
pub(crate) fn look_at(
    repository: &Repository,
    store: &Arc<Sim>,
    vdi: VdiUuid,
) -> Result<Seen, String> {
    let catalogue = repository.scan().map_err(|failure| failure.to_string())?;
    let vdi = catalogue.visible(vdi).map_err(|failure| failure.to_string())?;
    seen(store, &catalogue, vdi)
}

fn check_image(store: &Arc<Sim>, vdi: &Vdi) -> Result<(), String> {
    if vdi.format == DataFormat::Raw {
        return Ok(());
    }
    let name = vdi.data_name();
    let key = [(name.clone(), store.digest(&name)), ("check".to_owned(), 0)];
    once(&key, || run_check(store, &name).map(|()| 0)).map(drop)
}

fn run_check(store: &Arc<Sim>, name: &str) -> Result<(), String> {
    let len = store.stamp(name).map_err(|error| error.to_string())?.len.get();
    let mut check = vhd::Check::new(vhd::ByteLen::new(len), vhd::CheckOptions::default());
    let mut bytes = Vec::new();
    let mut step = check.step(None).map_err(|error| error.to_string())?;
    loop {
        match step {
            vhd::Step::Done(report) => {
                let bad = report.findings.iter().find(|f| f.severity == vhd::Severity::Error);
                return bad.map_or(Ok(()), |finding| Err(format!("{name}: {finding:?}")));
            }
            vhd::Step::Read { at, len } => {
                bytes.resize(len, 0);
                let at = orlop::engine::units::FileOffset::new(at.get());
                store.read(name, at, &mut bytes).map_err(|error| error.to_string())?;
                step = check.step(Some(&bytes)).map_err(|error| error.to_string())?;
            }
        }
    }
}

/// D: nothing is left over. Every name is the SR's, or belongs to a VDI that has data.
pub(crate) fn orphans(world: &World) -> Vec<String> {
    let names = world.names();
    let data: BTreeSet<VdiUuid> = names
        .iter()
        .filter_map(|name| match Named::of(name) {
            Named::Data(vdi, _) => Some(vdi),
            _ => None,
        })
        .collect();
    let is_orphan = |name: &String| match Named::of(name) {
        Named::Data(..) | Named::Sr | Named::Foreign => false,
        Named::Record(vdi) | Named::Lease(vdi) => !data.contains(&vdi),
        Named::Intent(_) | Named::Temporary => true,
    };
    names.into_iter().filter(is_orphan).collect()
}

/// Recovers a world and says what is seen, and the world after.
pub(crate) fn recovered(sr: SrUuid, world: World) -> Result<(State, World), String> {
    let store = Sim::new(world, Fault::None);
    let repository = attach(sr, Arc::clone(&store))?;
    let state = observe(&repository, &store)?;
    let world = store.world();
    let orphans = orphans(&world);
    if !orphans.is_empty() {
        return Err(format!("left over: {orphans:?}"));
    }
    Ok((state, world))
}

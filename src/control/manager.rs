//! The use cases: every verb with its preconditions, its idempotence and its errors, as the
//! specification has them.
//!
//! Calls block until what they promise is durable; a server calls them where blocking is allowed.
//! What happens inside an SR is `sr`'s, what a disk does once it is served the [`Attacher`]'s.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::attaching::{Access, AttachRequest, Attacher};
use super::command::{About, AttachMode, AttachedSr, Command, Outcome};
use super::error::Error;
use super::listing::Listing;
use super::memory::{Memory, RememberedVdi};
use super::turns::{Need, Turn, Turns};
use crate::engine::units::ByteLen;
use crate::sr::{
    Capabilities, Cut, DeviceConfig, Driver, Failure, Idle, Kind, LockWish, NewVdi, Repository,
    SrRecord, SrUuid, Still, Surroundings, Vdi, VdiRecord, VdiUuid, driver,
};

/// Settings of a [`Control`].
#[derive(Clone, Debug)]
pub struct Settings {
    /// This host's identity, as other hosts that share an SR see it.
    pub host: String,
    /// Where it is remembered what was attached.
    pub state: PathBuf,
    /// The directory under which SRs are mounted.
    pub mounts: PathBuf,
    /// How long a call waits for another that it must not overlap with, before it is told EBUSY.
    pub patience: Duration,
}

/// For so long an SR that goes waits for those who only look at it.
const ASIDE: Duration = Duration::from_secs(1);

/// Every SR of this host, and the verbs.
pub struct Control {
    pub(super) around: Surroundings,
    patience: Duration,
    pub(super) memory: Memory,
    attacher: Arc<dyn Attacher>,
    pub(super) srs: Mutex<BTreeMap<SrUuid, Arc<Attached>>>,
    /// SRs that a verb is making, removing, attaching or detaching.
    changing: Mutex<BTreeSet<SrUuid>>,
}

/// An SR that is attached.
pub(super) struct Attached {
    kind: String,
    config: DeviceConfig,
    /// As it was when the SR was attached: who lists SRs does not wait for storage.
    label: String,
    pub(super) driver: Box<dyn Driver>,
    pub(super) repository: Repository,
    turns: Turns,
    vdis: Mutex<BTreeMap<VdiUuid, (bool, Access)>>,
}

impl Attached {
    fn new(
        kind: String,
        config: DeviceConfig,
        driver: Box<dyn Driver>,
        repository: Repository,
    ) -> Arc<Self> {
        let record = repository.record().unwrap_or_else(|error| {
            tracing::warn!(sr = %repository.uuid(), %error, "its label is not known");
            None
        });
        let label = record.map(|record| record.label).unwrap_or_default();
        let (turns, vdis) = (Turns::default(), Mutex::default());
        Arc::new(Self { kind, config, label, driver, repository, turns, vdis })
    }
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("around", &self.around).finish_non_exhaustive()
    }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn shown(identity: Option<impl ToString>) -> String {
    identity.map(|identity| identity.to_string()).unwrap_or_default()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl Control {
    /// Nothing attached yet; see [`Control::restore`].
    ///
    /// # Errors
    /// When the state directory cannot be used.
    pub fn new(settings: Settings, attacher: Arc<dyn Attacher>) -> Result<Self, Error> {
        let Settings { host, state, mounts, patience } = settings;
        Ok(Self {
            around: Surroundings { host, mounts },
            patience,
            memory: Memory::open(&state)?,
            attacher,
            srs: Mutex::default(),
            changing: Mutex::default(),
        })
    }

    /// Carries out a call.
    ///
    /// # Errors
    /// With the specification's code, and what to do.
    pub fn call(&self, command: Command) -> Result<Outcome, Error> {
        let (name, sr, vdi) = (command.name(), command.sr(), command.vdi());
        let begun = Instant::now();
        let result: Result<_, Error> =
            self.dispatch(command).map_err(|failure| failure.during(name).into());
        let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (sr, vdi) = (shown(sr), shown(vdi));
        match &result {
            Ok(_) => tracing::info!(verb = name, sr, vdi, ms, "done"),
            Err(error) => tracing::info!(verb = name, sr, vdi, ms, code = %error.code, %error,
                "failed"),
        }
        result
    }

    fn dispatch(&self, command: Command) -> Result<Outcome, Failure> {
        let done = |result: Result<(), Failure>| result.map(|()| Outcome::Done);
        match command {
            Command::SrCreate { sr, driver, config, size, about } => {
                done(self.sr_create(sr, &driver, &config, size, about))
            }
            Command::SrDelete { sr, driver, config } => done(self.sr_delete(sr, &driver, &config)),
            Command::SrAttach { sr, driver, config } => done(self.sr_attach(sr, &driver, &config)),
            Command::SrDetach { sr } => done(self.sr_detach(sr)),
            Command::SrContentType { sr } => {
                let sr = self.attached(sr)?;
                Ok(Outcome::ContentType(sr.driver.capabilities().content_type))
            }
            Command::SrScan { sr } => self.sr_scan(sr),
            Command::SrGc { sr } => self.sr_gc(sr),
            Command::SrList => self.sr_list(),
            Command::VdiCreate { sr, vdi, size, format, about, shareable, read_only } => {
                let record = VdiRecord { shareable, read_only, ..record_of(about) };
                let vdi = vdi.unwrap_or_else(VdiUuid::random);
                self.vdi_create(sr, NewVdi { vdi, size, format, record })
            }
            Command::VdiDelete { sr, vdi } => done(self.vdi_delete(sr, vdi)),
            Command::VdiAttach { sr, vdi, mode, user } => {
                self.vdi_attach(sr, vdi, mode, user.as_deref()).map(Outcome::Attached)
            }
            Command::VdiDetach { sr, vdi } => done(self.vdi_detach(sr, vdi)),
            Command::VdiClone { sr, source, dest, about } => {
                self.vdi_clone(sr, source, dest.unwrap_or_else(VdiUuid::random), about)
            }
            Command::VdiSnapshot { sr, source, dest, about } => {
                self.vdi_snapshot(sr, source, dest.unwrap_or_else(VdiUuid::random), about)
            }
            Command::VdiResize { sr, vdi, size } => done(self.vdi_resize(sr, vdi, size)),
            Command::VdiLock { sr, vdi, force, user, lease_seconds } => {
                let wish = LockWish { user, force, lease_seconds };
                done(self.with_lockable(sr, vdi, |repository| repository.lock(vdi, &wish)))
            }
            Command::VdiUnlock { sr, vdi, user } => {
                done(self.with_lockable(sr, vdi, |repository| repository.unlock(vdi, &user)))
            }
            Command::VdiDescribe { sr, vdi, label, description } => {
                done(self.vdi_describe(sr, vdi, label, description))
            }
        }
    }

    fn sr_create(
        &self,
        sr: SrUuid,
        kind: &str,
        config: &DeviceConfig,
        size: ByteLen,
        about: About,
    ) -> Result<(), Failure> {
        let _change = self.change(sr)?;
        let driver = driver(kind, config, &self.around)?;
        if self.attached(sr).is_ok() {
            return Err(Failure::new(Kind::SrExists, format!("SR {sr}"), "it is attached here"));
        }
        let record = SrRecord {
            uuid: sr,
            driver: kind.to_ascii_lowercase(),
            label: about.label,
            description: about.description,
            made_directory: false,
            created: Some(now()),
        };
        driver.create(&record, size)
    }

    fn sr_delete(&self, sr: SrUuid, kind: &str, config: &DeviceConfig) -> Result<(), Failure> {
        let _change = self.change(sr)?;
        let driver = driver(kind, config, &self.around)?;
        if !driver.capabilities().delete {
            return Err(cannot(sr, "be deleted"));
        }
        if self.attached(sr).is_ok() {
            return Err(Failure::new(Kind::Busy, format!("SR {sr}"), "it is attached here")
                .advise("detach it first (sr_detach)"));
        }
        driver.delete(sr)
    }

    pub(super) fn sr_attach(
        &self,
        sr: SrUuid,
        kind: &str,
        config: &DeviceConfig,
    ) -> Result<(), Failure> {
        let _change = self.change(sr)?;
        let kind = kind.to_ascii_lowercase();
        if let Ok(attached) = self.attached(sr) {
            if attached.kind == kind && attached.config == *config {
                return Ok(());
            }
            let (place, own) = (attached.repository.place(), &attached.kind);
            let (why, same) = if *own == kind {
                (format!("it is attached from {place}"), "device_config")
            } else {
                (format!("it is attached from {place}, as of type {own:?}, not {kind:?}"), "type")
            };
            return Err(Failure::new(Kind::Busy, format!("SR {sr}"), why)
                .advise(format!("detach it first (sr_detach), or pass the same {same}")));
        }
        let driver = driver(&kind, config, &self.around)?;
        let substrate = driver.attach(sr)?;
        let host = &self.around.host;
        let opened = Repository::open(sr, host, substrate.store, substrate.shared);
        let remembered = opened.and_then(|repository| {
            self.memory.keep_sr(sr, &kind, config)?;
            Ok(repository)
        });
        match remembered {
            Ok(repository) => {
                let attached = Attached::new(kind, config.clone(), driver, repository);
                locked(&self.srs).insert(sr, attached);
                Ok(())
            }
            Err(failure) => {
                // The first failure is the one to tell.
                let _still_mounted = driver.detach(sr);
                Err(failure)
            }
        }
    }

    fn sr_detach(&self, sr: SrUuid) -> Result<(), Failure> {
        let _change = self.change(sr)?;
        let Ok(attached) = self.attached(sr) else { return self.forget_sr(sr) };
        let turn = self.turn(&attached, Need::All)?;
        let vdis: Vec<_> = locked(&attached.vdis).keys().map(VdiUuid::to_string).collect();
        if !vdis.is_empty() {
            let why = format!("these VDIs are attached: {}", vdis.join(", "));
            return Err(Failure::new(Kind::Busy, format!("SR {sr}"), why)
                .advise("detach them first (vdi_detach)"));
        }
        // From here on nobody new finds it; whoever found it before gets no turn any more.
        locked(&self.srs).remove(&sr);
        turn.close();
        let attached = match alone(attached, self.patience.max(ASIDE)) {
            Ok(alone) => alone,
            Err(shared) => {
                shared.turns.open_again();
                locked(&self.srs).insert(sr, shared);
                let why = "another operation in the SR is running";
                return Err(Failure::new(Kind::Busy, format!("SR {sr}"), why));
            }
        };
        let Attached { kind, config, driver, repository, .. } = attached;
        // It holds the substrate open.
        drop(repository);
        if let Err(failure) = driver.detach(sr) {
            let again = driver.attach(sr).and_then(|substrate| {
                Repository::open(sr, &self.around.host, substrate.store, substrate.shared)
            });
            if let Ok(repository) = again {
                locked(&self.srs).insert(sr, Attached::new(kind, config, driver, repository));
            }
            return Err(failure);
        }
        self.attacher.left(sr);
        self.memory.drop_sr(sr)
    }

    fn sr_scan(&self, sr: SrUuid) -> Result<Outcome, Failure> {
        let attached = self.attached(sr)?;
        let _turn = self.turn(&attached, Need::All)?;
        let catalogue = attached.repository.scan()?;
        for finding in &catalogue.findings {
            tracing::warn!(%sr, file = finding.name, problem = finding.problem, "found by a scan");
        }
        let record = attached.repository.record()?;
        Ok(Outcome::Scanned(Box::new(Listing::new(catalogue, record))))
    }

    fn sr_gc(&self, sr: SrUuid) -> Result<Outcome, Failure> {
        let attached = self.attached(sr)?;
        let _turn = self.turn(&attached, Need::All)?;
        let in_use = |vdi: VdiUuid| locked(&attached.vdis).contains_key(&vdi);
        attached.repository.gc(&in_use).map(Outcome::Collected)
    }

    fn sr_list(&self) -> Result<Outcome, Failure> {
        let srs: Vec<_> = locked(&self.srs).values().cloned().collect();
        let list = srs.into_iter().map(|attached| AttachedSr {
            sr: attached.repository.uuid(),
            driver: attached.kind.clone(),
            config: attached.config.clone(),
            label: attached.label.clone(),
            place: attached.repository.place(),
            vdis: locked(&attached.vdis).keys().copied().collect(),
        });
        Ok(Outcome::Srs(list.collect()))
    }

    fn vdi_create(&self, sr: SrUuid, new: NewVdi) -> Result<Outcome, Failure> {
        let attached = self.able(sr, "hold new VDIs", |can| can.create_vdi)?;
        let _turn = self.turn(&attached, Need::Structure(vec![new.vdi]))?;
        let vdi = new.vdi;
        let record = VdiRecord { created: Some(now()), ..new.record };
        attached.repository.create(&NewVdi { record, ..new })?;
        Ok(Outcome::Vdi(vdi))
    }

    fn vdi_delete(&self, sr: SrUuid, vdi: VdiUuid) -> Result<(), Failure> {
        let attached = self.able(sr, "delete VDIs", |can| can.create_vdi)?;
        let _turn = self.turn(&attached, Need::Structure(vec![vdi]))?;
        refuse_attached(&attached, vdi)?;
        attached.repository.delete(vdi)
    }

    pub(super) fn vdi_attach(
        &self,
        sr: SrUuid,
        vdi: VdiUuid,
        mode: AttachMode,
        user: Option<&str>,
    ) -> Result<Access, Failure> {
        let attached = self.attached(sr)?;
        let _turn = self.turn(&attached, Need::One(vdi))?;
        if let Some((read_only, access)) = locked(&attached.vdis).get(&vdi) {
            return match (mode, read_only) {
                (AttachMode::ReadWrite, true) | (AttachMode::ReadOnly, false) => {
                    let how = if *read_only { "to be read" } else { "to be written" };
                    let why = format!("it is attached {how} already");
                    Err(Failure::new(Kind::Busy, format!("VDI {vdi}"), why)
                        .advise("detach it first (vdi_detach)"))
                }
                _ => Ok(access.clone()),
            };
        }
        // What failed before must not be set right under a disk that is served.
        attached.repository.ready()?;
        let catalogue = attached.repository.glance(&[vdi])?;
        let found = catalogue.visible(vdi).inspect_err(|failure| {
            if let Some(file) = attached.repository.data_of_broken(&catalogue, vdi) {
                self.attacher.broken(sr, &file, failure);
            }
        })?;
        catalogue.untouched(vdi)?;
        let read_only = self.mode_of(found, mode, user)?;
        let chain = attached.repository.chain(&catalogue, vdi)?;
        let request = AttachRequest { sr, vdi, chain, size: found.size, read_only };
        let user = user.map(str::to_owned);
        self.memory.keep_vdi(sr, vdi, &RememberedVdi { read_only, user })?;
        match self.attacher.attach(&request) {
            Ok(access) => {
                locked(&attached.vdis).insert(vdi, (read_only, access.clone()));
                Ok(access)
            }
            Err(failure) => {
                // The first failure is the one to tell; at worst the next start tries again.
                let _remembered = self.memory.drop_vdi(sr, vdi);
                Err(failure)
            }
        }
    }

    /// Whether a VDI is attached to be read only.
    fn mode_of(&self, vdi: &Vdi, mode: AttachMode, user: Option<&str>) -> Result<bool, Failure> {
        let read_only = match mode {
            AttachMode::ReadOnly => return Ok(true),
            AttachMode::Auto => vdi.read_only,
            AttachMode::ReadWrite => {
                vdi.writable()?;
                false
            }
        };
        if !read_only {
            let host = &self.around.host;
            vdi.unlocked_for(|lease| lease.host == *host || user == Some(lease.user.as_str()))?;
        }
        Ok(read_only)
    }

    fn vdi_detach(&self, sr: SrUuid, vdi: VdiUuid) -> Result<(), Failure> {
        let Ok(attached) = self.attached(sr) else {
            // It was to be attached again with its SR, and is not any more.
            self.memory.drop_vdi(sr, vdi)?;
            return self.attached(sr).map(drop);
        };
        let _turn = self.turn(&attached, Need::One(vdi))?;
        if !locked(&attached.vdis).contains_key(&vdi) {
            // What it tells of one that could not be attached goes.
            self.attacher.detach(sr, vdi)?;
            self.memory.drop_vdi(sr, vdi)?;
            return match attached.repository.glance(&[vdi])?.visible(vdi) {
                // It is there; whatever is wrong with it, it is not attached.
                Err(failure) if failure.kind != Kind::Corrupt => Err(failure),
                _ => Ok(()),
            };
        }
        let detached = self.attacher.detach(sr, vdi);
        if detached.as_ref().is_err_and(|failure| failure.kind == Kind::Busy) {
            return detached;
        }
        // Also when its last bytes could not be made durable: it is served no longer.
        locked(&attached.vdis).remove(&vdi);
        detached.and(self.memory.drop_vdi(sr, vdi))
    }

    fn vdi_clone(
        &self,
        sr: SrUuid,
        source: VdiUuid,
        dest: VdiUuid,
        about: Option<About>,
    ) -> Result<Outcome, Failure> {
        let attached = self.able(sr, "clone", |can| can.fork)?;
        let _turn = self.turn(&attached, Need::Structure(vec![source, dest]))?;
        refuse_attached(&attached, source)?;
        let record_of = |found: &Vdi| {
            found.unlocked_for(|_| false)?;
            Ok(derived(found, about))
        };
        attached.repository.clone_vdi(source, dest, record_of, &mut Idle)?;
        Ok(Outcome::Vdi(dest))
    }

    fn vdi_snapshot(
        &self,
        sr: SrUuid,
        source: VdiUuid,
        dest: VdiUuid,
        about: Option<About>,
    ) -> Result<Outcome, Failure> {
        let attached = self.able(sr, "snapshot", |can| can.fork)?;
        let _turn = self.turn(&attached, Need::Structure(vec![source, dest]))?;
        let served = locked(&attached.vdis).get(&source).map(|(read_only, _)| *read_only);
        let mut cut: Box<dyn Cut + '_> = match served {
            None => Box::new(Idle),
            Some(true) => Box::new(Still),
            Some(false) => self.attacher.cut(sr, source).ok_or_else(|| {
                let why = "it is attached, and whoever serves it cannot change its files meanwhile";
                Failure::new(Kind::Busy, format!("VDI {source}"), why)
                    .advise("detach it first (vdi_detach)")
            })?,
        };
        let record_of = |found: &Vdi| Ok(derived(found, about));
        attached.repository.snapshot(source, dest, record_of, cut.as_mut())?;
        Ok(Outcome::Vdi(dest))
    }

    fn vdi_resize(&self, sr: SrUuid, vdi: VdiUuid, size: ByteLen) -> Result<(), Failure> {
        let attached = self.able(sr, "resize VDIs", |can| can.resize)?;
        let _turn = self.turn(&attached, Need::One(vdi))?;
        refuse_attached(&attached, vdi)?;
        attached.repository.resize(vdi, size)
    }

    fn with_lockable(
        &self,
        sr: SrUuid,
        vdi: VdiUuid,
        verb: impl FnOnce(&Repository) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let attached = self.able(sr, "lock VDIs", |can| can.lock)?;
        let _turn = self.turn(&attached, Need::One(vdi))?;
        verb(&attached.repository)
    }

    fn vdi_describe(
        &self,
        sr: SrUuid,
        vdi: VdiUuid,
        label: Option<String>,
        description: Option<String>,
    ) -> Result<(), Failure> {
        let attached = self.attached(sr)?;
        let _turn = self.turn(&attached, Need::One(vdi))?;
        attached.repository.describe(vdi, |record| {
            record.label = label.unwrap_or(std::mem::take(&mut record.label));
            record.description = description.unwrap_or(std::mem::take(&mut record.description));
        })
    }

    fn attached(&self, sr: SrUuid) -> Result<Arc<Attached>, Failure> {
        locked(&self.srs)
            .get(&sr)
            .cloned()
            .ok_or_else(|| Failure::new(Kind::NoSr, format!("SR {sr}"), "it is not attached here"))
    }

    /// The SR, if its kind can do that.
    fn able(
        &self,
        sr: SrUuid,
        what: &str,
        can: impl FnOnce(&Capabilities) -> bool,
    ) -> Result<Arc<Attached>, Failure> {
        let attached = self.attached(sr)?;
        if can(&attached.driver.capabilities()) { Ok(attached) } else { Err(cannot(sr, what)) }
    }

    fn turn<'a>(&self, attached: &'a Attached, need: Need) -> Result<Turn<'a>, Failure> {
        let place = format!("SR {}", attached.repository.uuid());
        attached.turns.take(need, place, self.patience)
    }

    /// One at a time changes whether and where an SR is.
    fn change(&self, sr: SrUuid) -> Result<Change<'_>, Failure> {
        if locked(&self.changing).insert(sr) {
            return Ok(Change { control: self, sr });
        }
        let why = "it is being created, deleted, attached or detached";
        Err(Failure::new(Kind::Busy, format!("SR {sr}"), why))
    }
}

struct Change<'a> {
    control: &'a Control,
    sr: SrUuid,
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        locked(&self.control.changing).remove(&self.sr);
    }
}

/// What is nobody else's, once those who only look have let it go.
fn alone(mut shared: Arc<Attached>, patience: Duration) -> Result<Attached, Arc<Attached>> {
    let until = Instant::now() + patience;
    loop {
        shared = match Arc::try_unwrap(shared) {
            Ok(alone) => return Ok(alone),
            Err(shared) if Instant::now() < until => shared,
            Err(shared) => return Err(shared),
        };
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn cannot(sr: SrUuid, what: &str) -> Failure {
    Failure::new(Kind::Unsupported, format!("SR {sr}"), format!("SRs of its type cannot {what}"))
}

fn refuse_attached(attached: &Attached, vdi: VdiUuid) -> Result<(), Failure> {
    if !locked(&attached.vdis).contains_key(&vdi) {
        return Ok(());
    }
    Err(Failure::new(Kind::Busy, format!("VDI {vdi}"), "it is attached")
        .advise("detach it first (vdi_detach)"))
}

fn record_of(about: About) -> VdiRecord {
    let About { label, description, properties } = about;
    VdiRecord { label, description, properties, ..VdiRecord::default() }
}

/// What is known of a VDI that comes from another.
fn derived(source: &Vdi, about: Option<About>) -> VdiRecord {
    let about = about.unwrap_or_else(|| About {
        label: source.record.label.clone(),
        description: source.record.description.clone(),
        properties: source.record.properties.clone(),
    });
    let shareable = source.record.shareable;
    VdiRecord { created: Some(now()), shareable, ..record_of(about) }
}

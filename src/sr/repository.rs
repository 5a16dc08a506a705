//! An SR that is attached: what is in it, and the verbs that change it.
//!
//! Every verb that takes several steps writes its intent first (I7) and takes the steps in an order
//! in which any prefix can be finished or undone (crash model, 4.5): data are complete and durable
//! under a name of their own before they get the one that counts. A verb that fails leaves what was
//! there. Refuses to decide who may call what at the same time: that is `control`'s; but two calls
//! that break its rules end with an error of the store, not with a lost disk.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use vhd::{CreateOptions, NewLayout, Plan};

use super::catalogue::{Catalogue, Vdi};
use super::failure::{Failure, Kind};
use super::fields::FIELDS_MAX_BYTES;
use super::grow::too_large;
use super::intent::Intent;
use super::looking::Known;
use super::names::{
    DataFormat, SR_RECORD, SrUuid, VdiUuid, data_name, fresh_temporary, intent_name, record_name,
    temporary_name,
};
use super::record::{SrRecord, VdiRecord};
use super::stale::Stale;
use super::store::{self, DataPlace, DirOp, Store};
use crate::engine::units::{ByteLen, SECTOR};

/// A VDI to be made.
#[derive(Clone, Debug)]
pub struct NewVdi {
    /// Its identity.
    pub vdi: VdiUuid,
    /// Bytes of the disk: any whole number of sectors.
    pub size: ByteLen,
    /// The format of its data.
    pub format: DataFormat,
    /// What is known of it.
    pub record: VdiRecord,
}

/// A data file for whoever serves a VDI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFile {
    /// The VDI whose data it holds.
    pub vdi: VdiUuid,
    /// Its format.
    pub format: DataFormat,
    /// How it is reached.
    pub place: DataPlace,
}

/// An attached SR.
#[derive(Debug)]
pub struct Repository {
    pub(super) sr: SrUuid,
    pub(super) host: String,
    pub(super) store: Arc<dyn Store>,
    pub(super) shared: bool,
    pub(super) known: Mutex<Known>,
    /// What failed on its way and on its way back: the next verb settles it first. Held while it
    /// does, so that no other verb starts on what is half done.
    pub(super) stale: Mutex<Vec<Stale>>,
    /// Subjects of our own intents from before that could not be settled.
    pub(super) left: BTreeSet<VdiUuid>,
    /// Whether there is a record of the SR.
    recorded: AtomicBool,
}

impl Repository {
    /// Attaches to what lies in a store, and finishes or undoes what was left unfinished there.
    /// `host` is this host's identity; `shared` says that other hosts may use the store now.
    ///
    /// # Errors
    /// When the store holds another SR, or cannot be read or set right.
    pub fn open(
        sr: SrUuid,
        host: &str,
        store: Arc<dyn Store>,
        shared: bool,
    ) -> Result<Self, Failure> {
        let record = sr_record(store.as_ref())?;
        if let Some(record) = &record
            && record.uuid != sr
        {
            let why = format!("it holds the SR {}, not {sr}", record.uuid);
            return Err(Failure::new(Kind::NoSr, store.place(), why));
        }
        let (host, known, stale) = (host.to_owned(), Mutex::default(), Mutex::default());
        let recorded = AtomicBool::new(record.is_some());
        if let Err(error) = store.occupy(shared) {
            return Err(Failure::io(store.place(), "use it as an SR", &error)
                .advise("detach it there, or attach it everywhere with shared=true"));
        }
        let left = BTreeSet::new();
        let mut repository = Self { sr, host, store, shared, known, stale, left, recorded };
        repository.left = repository.recover()?;
        Ok(repository)
    }

    /// Its identity.
    pub const fn uuid(&self) -> SrUuid {
        self.sr
    }

    /// Where it lies, for messages.
    pub fn place(&self) -> String {
        self.store.place()
    }

    /// What is known of the SR; `None` when another program made it.
    ///
    /// # Errors
    /// When its record cannot be read.
    pub fn record(&self) -> Result<Option<SrRecord>, Failure> {
        sr_record(self.store.as_ref())
    }

    /// A data file and the files of its parents, the VDI's own first.
    ///
    /// # Errors
    /// When there is no such VDI, or its chain is too long.
    pub fn chain(&self, catalogue: &Catalogue, vdi: VdiUuid) -> Result<Vec<DataFile>, Failure> {
        catalogue.visible(vdi)?;
        let file = |link: &Vdi| DataFile {
            vdi: link.uuid,
            format: link.format,
            place: self.store.data_place(&link.data_name()),
        };
        Ok(catalogue.chain(vdi)?.into_iter().map(file).collect())
    }

    /// Makes an empty VDI.
    ///
    /// # Errors
    /// When the identity is taken, the size impossible, or the store fails; nothing is left then.
    pub fn create(&self, new: &NewVdi) -> Result<(), Failure> {
        self.ready()?;
        new.record.check()?;
        self.check_free(&self.glance(&[new.vdi])?, new.vdi)?;
        let plan = self.plan(new)?;
        self.make(new.vdi, new.format, &plan, &new.record)
    }

    /// Changes what is known of a VDI.
    ///
    /// # Errors
    /// When there is none, or the store fails; the old record stays then.
    pub fn describe(
        &self,
        vdi: VdiUuid,
        change: impl FnOnce(&mut VdiRecord),
    ) -> Result<(), Failure> {
        self.ready()?;
        let catalogue = self.glance(&[vdi])?;
        let mut record = catalogue.visible(vdi)?.known_record()?.clone();
        catalogue.untouched(vdi)?;
        change(&mut record);
        record.check()?;
        self.write_record(vdi, &record)
            .and_then(|()| self.sync_directory())
            .map_err(|e| self.failed("write its record", &e))
    }

    /// Makes a data file and its record: both appear, or none.
    pub(super) fn make(
        &self,
        vdi: VdiUuid,
        format: DataFormat,
        plan: &Plan,
        record: &VdiRecord,
    ) -> Result<(), Failure> {
        let intent = Intent::Create { vdi, format };
        self.carry_out(&intent, || {
            let name = data_name(vdi, format);
            let draft = self.temporary(&name);
            self.draft_image(&name, plan)?;
            self.draft_record(vdi, record)?;
            self.sync_drafts(&[&name, &record_name(vdi)])?;
            self.place_record(vdi)?;
            self.store.apply(DirOp::Rename { from: &draft, to: &name, replace: false })?;
            // Taken back here: only here it is certain that the file of that name is ours.
            self.sync_directory().inspect_err(|_| {
                let _kept_at_worst = store::remove(self.store.as_ref(), &name);
            })
        })
    }

    fn plan(&self, new: &NewVdi) -> Result<Plan, Failure> {
        const MOST: u64 = i64::MAX as u64 / SECTOR * SECTOR;
        let refused = |why: String| Failure::new(Kind::Invalid, format!("VDI {}", new.vdi), why);
        let size = vhd::ByteLen::new(new.size.get());
        if new.format == DataFormat::Raw {
            if size.get() == 0 || !size.get().is_multiple_of(SECTOR) || size.get() > MOST {
                return Err(refused(format!(
                    "a raw disk has a multiple of 512 bytes, up to {MOST}, not {size}"
                )));
            }
            return Ok(Plan { pieces: Vec::new(), file_len: size });
        }
        let layout = NewLayout::Dynamic { block_bytes: vhd::create::DEFAULT_BLOCK_BYTES };
        let uuid = VdiUuid::random().bytes();
        let timestamp = vhd_now();
        vhd::create(&CreateOptions { size, layout, uuid, timestamp })
            .map_err(|error| refused(too_large(new.size).unwrap_or_else(|| error.to_string())))
    }

    /// Refuses an identity that is taken.
    pub(super) fn check_free(&self, catalogue: &Catalogue, vdi: VdiUuid) -> Result<(), Failure> {
        if catalogue.is_free(vdi) {
            // It may be about to appear.
            return catalogue.unfinished.check(vdi);
        }
        let why = match catalogue.any(vdi) {
            Some(found) if found.hidden => "its identity belongs to a deleted VDI whose children \
                                            still need its data"
                .to_owned(),
            _ => format!("there is a VDI {vdi} already"),
        };
        Err(Failure::new(Kind::VdiExists, format!("SR {}", self.sr), why))
    }

    /// Makes sure that nothing is left half done by verbs that have ended. Those that run now are
    /// none of its business.
    ///
    /// # Errors
    /// When that cannot be set right.
    pub fn ready(&self) -> Result<(), Failure> {
        let mut stale = self.stale();
        while let Some(last) = stale.last() {
            self.set_right(last)
                .map_err(|error| self.failed("settle what failed before", &error))?;
            stale.pop();
        }
        Ok(())
    }

    /// Leaves our record in an SR that another program made, once we change it: emptied, it could
    /// not be told from any directory.
    fn adopt(&self) {
        if self.recorded.load(Ordering::Relaxed) {
            return;
        }
        // Of two first verbs at once either may win; the other finds it there.
        let record = SrRecord {
            uuid: self.sr,
            driver: String::new(),
            label: String::new(),
            description: String::new(),
            made_directory: false,
            created: None,
        };
        let draft = self.fresh_temporary(SR_RECORD);
        let written = store::place(self.store.as_ref(), SR_RECORD, &draft, &record.to_bytes());
        // Without room for it the verb may still succeed, and the next one tries again.
        let there =
            written.as_ref().err().map(io::Error::kind) == Some(io::ErrorKind::AlreadyExists);
        self.recorded.store(written.is_ok() || there, Ordering::Relaxed);
    }

    /// Writes the intent, takes the steps, drops the intent; what fails is undone.
    pub(super) fn carry_out(
        &self,
        intent: &Intent,
        steps: impl FnOnce() -> io::Result<()>,
    ) -> Result<(), Failure> {
        self.carry_out_under(intent, false, steps)
    }

    /// The same, where this process may be serving the files that are changed.
    pub(super) fn carry_out_under(
        &self,
        intent: &Intent,
        served: bool,
        steps: impl FnOnce() -> io::Result<()>,
    ) -> Result<(), Failure> {
        self.adopt();
        let done = self.begin(intent).and_then(|()| steps());
        let subject = intent.subject();
        let Err(error) = done else {
            self.forget(subject);
            // Its effects are durable; if it stays, the next recovery finds them so.
            if store::remove(self.store.as_ref(), &intent_name(subject)).is_err() {
                self.stale().push(Stale::Verb { intent: intent.clone(), failed: false, served });
            }
            return Ok(());
        };
        if let Err(second) = self.undo(intent) {
            tracing::warn!(sr = %self.sr, vdi = %subject, verb = intent.verb(), error = %second,
                "could not undo what failed; it will be settled before the next operation");
            self.stale().push(Stale::Verb { intent: intent.clone(), failed: true, served });
        }
        self.forget(subject);
        Err(self.failed("change it", &error))
    }

    /// I7: durable before the first effect.
    fn begin(&self, intent: &Intent) -> io::Result<()> {
        let name = intent_name(intent.subject());
        let bytes = intent.to_bytes(&self.host);
        store::replace(self.store.as_ref(), &name, &self.temporary(&name), &bytes)?;
        self.sync_directory()
    }

    pub(super) fn write_record(&self, vdi: VdiUuid, record: &VdiRecord) -> io::Result<()> {
        let name = record_name(vdi);
        self.forget(vdi);
        store::replace(self.store.as_ref(), &name, &self.temporary(&name), &record.to_bytes())
    }

    pub(super) fn sync_directory(&self) -> io::Result<()> {
        self.store.apply(DirOp::SyncDirectory)
    }

    pub(super) fn temporary(&self, name: &str) -> String {
        temporary_name(name, &self.host)
    }

    /// A name of a file in the making that no other call uses.
    pub(super) fn fresh_temporary(&self, name: &str) -> String {
        fresh_temporary(name, &self.host)
    }

    /// A failure of the store.
    pub(super) fn failed(&self, doing: &str, error: &io::Error) -> Failure {
        if error.kind() == io::ErrorKind::AlreadyExists {
            let why = "a file of that name appeared meanwhile";
            return Failure::new(Kind::VdiExists, self.place(), why);
        }
        Failure::io(format!("SR {} in {}", self.sr, self.place()), doing, error)
    }
}

/// The SR record in a store.
pub(super) fn sr_record(store: &dyn Store) -> Result<Option<SrRecord>, Failure> {
    let bytes = match store::read_small(store, SR_RECORD, FIELDS_MAX_BYTES) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::io(store.place(), "read its record", &error)),
    };
    SrRecord::from_bytes(&bytes).map(Some).map_err(|error| {
        let why = format!("its record {SR_RECORD} cannot be read: {error}");
        Failure::new(Kind::Corrupt, store.place(), why)
            .advise("restore the record, or remove it to attach the SR without its label")
    })
}

pub(super) fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Seconds since 1970.
pub(super) fn unix_now() -> u64 {
    since_epoch().as_secs()
}

/// Seconds as VHD counts them: since 2000-01-01 00:00 UTC, in 32 bits.
pub(super) fn vhd_now() -> u32 {
    const VHD_EPOCH: u64 = 946_684_800;
    u32::try_from(unix_now().saturating_sub(VHD_EPOCH)).unwrap_or(0)
}

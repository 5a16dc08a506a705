//! What this host must remember across its own end: which SRs were attached, and which VDIs. Small
//! files in the state directory, written before what they say is done and removed after it ended,
//! so that a restart finds at least what was there.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use crate::sr::store::{self, read_small};
use crate::sr::{DeviceConfig, DirOp, Directory, Failure, Fields, SrUuid, Store, VdiUuid};

/// Most bytes of one of these files.
const MEMORY_MAX_BYTES: usize = 64 << 10;

/// An SR that was attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RememberedSr {
    pub(super) driver: String,
    pub(super) config: DeviceConfig,
    /// VDIs that were attached.
    pub(super) vdis: BTreeMap<VdiUuid, RememberedVdi>,
}

/// A VDI that was attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RememberedVdi {
    /// Whether only to be read.
    pub(super) read_only: bool,
    /// The user string of its lock, if whoever attached it gave one.
    pub(super) user: Option<String>,
}

/// The state directory.
#[derive(Debug)]
pub(super) struct Memory(Directory);

impl Memory {
    /// Opens the directory, making it if need be.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        std::fs::create_dir_all(path)
            .and_then(|()| Directory::open(path))
            .map(Self)
            .map_err(|error| Failure::io(path.display(), "open the state directory", &error))
    }

    /// Remembers an SR.
    pub(super) fn keep_sr(
        &self,
        sr: SrUuid,
        driver: &str,
        config: &DeviceConfig,
    ) -> Result<(), Failure> {
        let mut fields = Fields::default();
        fields.add("kind", "attached-sr");
        fields.add("driver", driver);
        config.0.iter().for_each(|(name, value)| fields.add(&format!("config.{name}"), value));
        self.keep(&sr_name(sr), &fields)
    }

    /// Remembers a VDI.
    pub(super) fn keep_vdi(
        &self,
        sr: SrUuid,
        vdi: VdiUuid,
        remembered: &RememberedVdi,
    ) -> Result<(), Failure> {
        let mut fields = Fields::default();
        fields.add("kind", "attached-vdi");
        fields.add("read-only", remembered.read_only);
        fields.add_some("user", remembered.user.as_ref());
        self.keep(&vdi_name(sr, vdi), &fields)
    }

    /// What is remembered of an SR, if it is.
    pub(super) fn recall_sr(&self, sr: SrUuid) -> Result<Option<RememberedSr>, Failure> {
        Ok(self.recall()?.remove(&sr))
    }

    /// Forgets an SR and its VDIs.
    pub(super) fn drop_sr(&self, sr: SrUuid) -> Result<(), Failure> {
        let entries = self.0.list().map_err(|error| self.failed("list it", &error))?;
        // Its VDIs last: without it they mean nothing, and the next one to forget it forgets them.
        self.drop_name(&sr_name(sr))?;
        for entry in entries {
            if matches!(Remembered::of(&entry.name), Some(Remembered::Vdi(of, _)) if of == sr) {
                self.drop_name(&entry.name)?;
            }
        }
        Ok(())
    }

    /// Forgets a VDI.
    pub(super) fn drop_vdi(&self, sr: SrUuid, vdi: VdiUuid) -> Result<(), Failure> {
        self.drop_name(&vdi_name(sr, vdi))
    }

    /// Everything remembered. What cannot be read is logged and left alone.
    pub(super) fn recall(&self) -> Result<BTreeMap<SrUuid, RememberedSr>, Failure> {
        let entries = self.0.list().map_err(|error| self.failed("list it", &error))?;
        let mut srs = BTreeMap::new();
        let mut vdis = Vec::new();
        for entry in entries {
            let read = read_small(&self.0, &entry.name, MEMORY_MAX_BYTES);
            let fields = read
                .map_err(|e| e.to_string())
                .and_then(|bytes| Fields::from_bytes(&bytes).map_err(|error| error.to_string()));
            let named = Remembered::of(&entry.name);
            match (named, fields) {
                (None, _) => {}
                (Some(_), Err(error)) => {
                    tracing::warn!(file = entry.name, error, "what was attached cannot be read");
                }
                (Some(Remembered::Sr(sr)), Ok(fields)) => drop(srs.insert(sr, of_fields(&fields))),
                (Some(Remembered::Vdi(sr, vdi)), Ok(fields)) => {
                    let read_only = fields.parse_some("read-only").ok().flatten().unwrap_or(true);
                    let user = fields.value("user").map(str::to_owned);
                    vdis.push((sr, vdi, RememberedVdi { read_only, user }));
                }
            }
        }
        for (sr, vdi, remembered_vdi) in vdis {
            if let Some(remembered) = srs.get_mut(&sr) {
                remembered.vdis.insert(vdi, remembered_vdi);
            }
        }
        Ok(srs)
    }

    fn keep(&self, name: &str, fields: &Fields) -> Result<(), Failure> {
        let temporary = format!("{name}.tmp");
        store::replace(&self.0, name, &temporary, &fields.to_bytes())
            .and_then(|()| self.0.apply(DirOp::SyncDirectory))
            .map_err(|error| self.failed("write what is attached", &error))
    }

    fn drop_name(&self, name: &str) -> Result<(), Failure> {
        store::remove(&self.0, name)
            .and_then(|()| self.0.apply(DirOp::SyncDirectory))
            .map_err(|error| self.failed("write what is attached", &error))
    }

    fn failed(&self, doing: &str, error: &io::Error) -> Failure {
        Failure::io(format!("the state directory {}", self.0.place()), doing, error)
    }
}

fn sr_name(sr: SrUuid) -> String {
    format!("{sr}.sr")
}

fn vdi_name(sr: SrUuid, vdi: VdiUuid) -> String {
    format!("{sr}.{vdi}.vdi")
}

enum Remembered {
    Sr(SrUuid),
    Vdi(SrUuid, VdiUuid),
}

impl Remembered {
    fn of(name: &str) -> Option<Self> {
        if let Some(sr) = name.strip_suffix(".sr") {
            return sr.parse().ok().map(Self::Sr);
        }
        let (sr, vdi) = name.strip_suffix(".vdi")?.split_once('.')?;
        Some(Self::Vdi(sr.parse().ok()?, vdi.parse().ok()?))
    }
}

fn of_fields(fields: &Fields) -> RememberedSr {
    let config = fields.with_prefix("config.");
    RememberedSr {
        driver: fields.value("driver").unwrap_or_default().to_owned(),
        config: DeviceConfig(config.map(|(name, value)| (name.into(), value.into())).collect()),
        vdis: BTreeMap::new(),
    }
}

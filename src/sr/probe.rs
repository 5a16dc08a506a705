//! What lies at a place where an SR may be. Opens to read only, changes nothing and attaches
//! nothing: of a device only the identity of its file system is told.

use std::path::PathBuf;

use super::directory::Directory;
use super::driver::{DeviceConfig, Surroundings, at, driver};
use super::ext;
use super::failure::{Failure, Kind};
use super::names::{Named, SrUuid};
use super::repository::sr_record;
use super::store::Store;

/// What lies at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// The place.
    pub place: PathBuf,
    /// What it is.
    pub holds: Holds,
    /// The SR, if it says who it is.
    pub sr: Option<SrUuid>,
    /// Its label.
    pub label: String,
    /// Data files of VDIs, where they can be seen.
    pub vdis: Option<usize>,
}

/// What a place may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// An SR of ours.
    Sr,
    /// Data files of VDIs, without a record of ours: as XenServer leaves them.
    Vdis,
    /// A file system that may hold an SR.
    FileSystem,
    /// Nothing: an SR can be made there.
    Nothing,
    /// Something else.
    Else,
}

/// Looks at the place that the parameters of a driver name.
///
/// # Errors
/// As [`driver`] has them, and when there is no such place.
pub fn probe(kind: &str, config: &DeviceConfig) -> Result<Probed, Failure> {
    let around = Surroundings { host: String::new(), mounts: PathBuf::new() };
    // It refuses parameters that cannot be.
    let _unused = driver(kind, config, &around)?;
    match kind.to_ascii_lowercase().as_str() {
        "file" => directory(config.path("location")?),
        "ext" => device(config.path("device")?),
        other => Err(Failure::new(Kind::Unsupported, other, "nobody knows how to look there")),
    }
}

fn directory(place: PathBuf) -> Result<Probed, Failure> {
    let directory = Directory::open(&place).map_err(|error| at(&place, "open it", &error))?;
    let record = sr_record(&directory)?;
    let entries = directory.list().map_err(|error| at(&place, "list it", &error))?;
    let is_data = |name: &str| matches!(Named::of(name), Named::Data(..));
    let vdis = entries.iter().filter(|entry| is_data(&entry.name)).count();
    let alone = entries.iter().all(|entry| entry.name == "lost+found");
    let holds = match (&record, vdis) {
        (Some(_), _) => Holds::Sr,
        (None, 0) if alone => Holds::Nothing,
        (None, 0) => Holds::Else,
        (None, _) => Holds::Vdis,
    };
    let sr = record.as_ref().map(|record| record.uuid);
    let label = record.map(|record| record.label).unwrap_or_default();
    Ok(Probed { place, holds, sr, label, vdis: Some(vdis) })
}

fn device(place: PathBuf) -> Result<Probed, Failure> {
    let opened = std::fs::File::open(&place).map_err(|error| at(&place, "open it", &error))?;
    let identity = ext::identity(&place, &opened)?;
    let sr = identity.map(SrUuid::from_bytes);
    let holds = if sr.is_some() { Holds::FileSystem } else { Holds::Nothing };
    Ok(Probed { place, holds, sr, label: String::new(), vdis: None })
}

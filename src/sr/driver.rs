//! Kinds of repositories: what makes the place an SR lies in, finds it again, and lets it go.
//!
//! A driver answers for the substrate only (a directory, a mount, later an export, a volume group,
//! a target); everything inside is [`Repository`](super::Repository)'s, over the [`Store`] that an
//! attach gives. What a kind cannot do it says in its [`Capabilities`], and nobody asks it then.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ext::Ext;
use super::failure::{Failure, Kind};
use super::file::FileDriver;
use super::names::SrUuid;
use super::record::SrRecord;
use super::store::Store;
use crate::engine::units::ByteLen;

/// Parameters of a driver, as the caller gave them (`device_config`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceConfig(pub BTreeMap<String, String>);

impl DeviceConfig {
    /// A parameter that the driver cannot do without.
    ///
    /// # Errors
    /// When it is missing or empty.
    pub fn required(&self, name: &str) -> Result<&str, Failure> {
        self.optional(name).ok_or_else(|| {
            let why = format!("the parameter {name:?} is missing");
            Failure::new(Kind::Invalid, "device_config", why).advise(format!("pass {name}=..."))
        })
    }

    /// A parameter that may be missing.
    pub fn optional(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A parameter that is true or false, false when missing.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn flag(&self, name: &str) -> Result<bool, Failure> {
        match self.optional(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => {
                let why = format!("the parameter {name:?} is true or false, not {other:?}");
                Err(Failure::new(Kind::Invalid, "device_config", why))
            }
        }
    }

    /// An absolute path.
    ///
    /// # Errors
    /// When it is missing, relative or leads through `..`.
    pub(super) fn path(&self, name: &str) -> Result<PathBuf, Failure> {
        use std::path::Component;
        let path = PathBuf::from(self.required(name)?);
        let odd = path.components().any(|part| part == Component::ParentDir);
        if path.is_absolute() && !odd {
            return Ok(path);
        }
        let why = format!("the parameter {name:?} is an absolute path without .., not {path:?}");
        Err(Failure::new(Kind::Invalid, "device_config", why))
    }
}

/// What an SR of some kind can do beyond holding VDIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// The SR itself can be removed.
    pub delete: bool,
    /// VDIs can be made and deleted.
    pub create_vdi: bool,
    /// VDIs can be snapshotted and cloned.
    pub fork: bool,
    /// VDIs can grow.
    pub resize: bool,
    /// VDIs can be locked persistently.
    pub lock: bool,
    /// What sr_content_type says.
    pub content_type: &'static str,
}

impl Capabilities {
    /// Of everything that keeps data files in a directory.
    pub const FILES: Self = Self {
        delete: true,
        create_vdi: true,
        fork: true,
        resize: true,
        lock: true,
        content_type: "vhd",
    };
}

/// The place of an SR, attached.
#[derive(Debug)]
pub struct Substrate {
    /// What lies in it.
    pub store: Arc<dyn Store>,
    /// Whether other hosts may be using it now.
    pub shared: bool,
}

/// One SR's substrate.
pub trait Driver: Send + Sync + fmt::Debug {
    /// What such an SR can do.
    fn capabilities(&self) -> Capabilities;

    /// Prepares the substrate and leaves an empty SR there, detached. `size` is a wish, for
    /// substrates that have none of their own.
    ///
    /// # Errors
    /// [`Kind::SrExists`] when something is there already, [`Kind::NoDevice`] when the place for it
    /// is not.
    fn create(&self, record: &SrRecord, size: ByteLen) -> Result<(), Failure>;

    /// Removes an SR without VDIs and leaves the substrate clean; nothing happens when there is
    /// none. The SR is not attached.
    ///
    /// # Errors
    /// [`Kind::NotEmpty`] when it still has VDIs.
    fn delete(&self, sr: SrUuid) -> Result<(), Failure>;

    /// Makes the substrate accessible on this host. May be called again.
    ///
    /// # Errors
    /// [`Kind::NoDevice`] when it is not there.
    fn attach(&self, sr: SrUuid) -> Result<Substrate, Failure>;

    /// Takes back what an attach did, once nothing uses the store any more. May be called again.
    ///
    /// # Errors
    /// [`Kind::Busy`] when something still does.
    fn detach(&self, sr: SrUuid) -> Result<(), Failure>;
}

/// Where drivers work.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// This host's identity.
    pub host: String,
    /// The directory under which SRs are mounted.
    pub mounts: PathBuf,
}

/// The driver of that type with these parameters. Types are as in the specification, in lower
/// case: "file", "ext".
///
/// # Errors
/// When there is no such driver (yet), or a parameter is missing or wrong.
pub fn driver(
    kind: &str,
    config: &DeviceConfig,
    around: &Surroundings,
) -> Result<Box<dyn Driver>, Failure> {
    match kind.to_ascii_lowercase().as_str() {
        "file" => Ok(Box::new(FileDriver::new(config, around)?)),
        "ext" => Ok(Box::new(Ext::new(config, around)?)),
        "nfs" | "lvm" | "iscsi" | "lvmoiscsi" | "extoiscsi" => {
            let why = format!("there is no driver for SRs of the type {kind} yet");
            Err(Failure::new(Kind::Unsupported, "the SR's type", why)
                .advise("use an SR of the type file or ext"))
        }
        other => {
            let why = format!("{other:?} is no type of SR");
            Err(Failure::new(Kind::Invalid, "the SR's type", why).advise("use file or ext"))
        }
    }
}

/// A failure of the system at a path.
pub(super) fn at(path: &Path, doing: &str, error: &std::io::Error) -> Failure {
    match error.kind() {
        kind @ (std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            let missing = kind == std::io::ErrorKind::NotFound;
            let what = if missing { "it is not there" } else { "it is no directory" };
            let why = format!("cannot {doing}: {what}");
            Failure::new(Kind::NoDevice, path.display(), why)
        }
        _ => Failure::io(path.display(), doing, error),
    }
}

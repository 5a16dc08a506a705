//! An SR in a directory that an administrator names (`location`). One that XenServer's file SR
//! made is attached as it is.
//!
//! Refuses to make an SR where anything else lies, and removes a directory only if it made it.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::directory::Directory;
use super::driver::{Capabilities, DeviceConfig, Driver, Substrate, Surroundings, at};
use super::failure::{Failure, Kind};
use super::names::{Named, SR_RECORD, SrUuid, fresh_temporary};
use super::record::SrRecord;
use super::repository::{Repository, sr_record};
use super::store::{self, DirOp, Store};
use crate::engine::units::ByteLen;

/// Nobody but the owner looks at guests' disks.
const DIRECTORY_MODE: u32 = 0o700;

/// A directory as an SR.
#[derive(Debug)]
pub(super) struct FileDriver {
    location: PathBuf,
    shared: bool,
    host: String,
}

impl FileDriver {
    pub(super) fn new(config: &DeviceConfig, around: &Surroundings) -> Result<Self, Failure> {
        let location = config.path("location")?;
        let shared = config.flag("shared")?;
        Ok(Self { location, shared, host: around.host.clone() })
    }

    /// In a directory that another driver has made accessible.
    pub(super) fn inside(location: &Path, host: &str) -> Self {
        Self { location: location.to_owned(), shared: false, host: host.to_owned() }
    }

    /// Makes the directory, if it is not there.
    fn make_directory(&self) -> Result<bool, Failure> {
        let location = &self.location;
        match std::fs::DirBuilder::new().mode(DIRECTORY_MODE).create(location) {
            Ok(()) => {
                let parent = location.parent().unwrap_or(Path::new("/"));
                let synced = std::fs::File::open(parent).and_then(|dir| dir.sync_all());
                synced.map_err(|error| at(parent, "sync it", &error))?;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(at(location, "make the directory", &error)),
        }
    }

    fn open(&self) -> Result<Directory, Failure> {
        Directory::open(&self.location).map_err(|error| at(&self.location, "open it", &error))
    }

    fn remove_directory(&self) -> Result<(), Failure> {
        match std::fs::remove_dir(&self.location) {
            // Something of somebody else's lies there.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(|error| at(&self.location, "remove it", &error)),
        }
    }
}

impl Driver for FileDriver {
    fn capabilities(&self) -> Capabilities {
        Capabilities::FILES
    }

    fn create(&self, record: &SrRecord, _size: ByteLen) -> Result<(), Failure> {
        let made_directory = self.make_directory()?;
        let record = SrRecord { made_directory, ..record.clone() };
        let made = self.open().and_then(|directory| write_first(&directory, &record, &self.host));
        if made.is_err() && made_directory {
            // The first failure is the one to tell; an empty directory may be used again.
            let _left_behind = self.remove_directory();
        }
        made
    }

    fn delete(&self, sr: SrUuid) -> Result<(), Failure> {
        let directory = match self.open() {
            Err(failure) if failure.kind == Kind::NoDevice => return Ok(()),
            opened => opened?,
        };
        let record = sr_record(&directory)?;
        if record.as_ref().is_some_and(|record| record.uuid != sr) {
            // Another SR is there, so this one does not exist.
            return Ok(());
        }
        Repository::open(sr, &self.host, Arc::new(directory), self.shared)?.dismantle()?;
        if record.is_some_and(|record| record.made_directory) {
            self.remove_directory()?;
        }
        Ok(())
    }

    fn attach(&self, sr: SrUuid) -> Result<Substrate, Failure> {
        let directory = self.open()?;
        if sr_record(&directory)?.is_none() {
            let entries = directory.list();
            let entries = entries.map_err(|error| at(&self.location, "list it", &error))?;
            // One that XenServer made has no record, but it has VDIs.
            if !entries.iter().any(|entry| matches!(Named::of(&entry.name), Named::Data(..))) {
                let why = format!("there is no SR in it, neither {sr} nor another");
                return Err(Failure::new(Kind::NoSr, directory.place(), why)
                    .advise("check the location, or make the SR first (sr_create)"));
            }
        }
        Ok(Substrate { store: Arc::new(directory), shared: self.shared })
    }

    fn detach(&self, _sr: SrUuid) -> Result<(), Failure> {
        Ok(())
    }
}

/// Makes an SR of an empty directory.
fn write_first(directory: &Directory, record: &SrRecord, host: &str) -> Result<(), Failure> {
    let failed = |doing: &str, error: &io::Error| at(directory.path(), doing, error);
    if let Some(found) = sr_record(directory)? {
        let why = format!("the SR {} is there already", found.uuid);
        return Err(Failure::new(Kind::SrExists, directory.place(), why));
    }
    let entries = directory.list().map_err(|error| failed("list it", &error))?;
    let taken = entries.iter().find(|entry| {
        // A new file system has this; a creation that was cut off leaves a temporary.
        entry.name != "lost+found" && Named::of(&entry.name) != Named::Temporary
    });
    if let Some(entry) = taken {
        let why = format!("it is not empty: there is {:?}", entry.name);
        return Err(Failure::new(Kind::SrExists, directory.place(), why)
            .advise("choose an empty directory; to use an SR that is there, attach it"));
    }
    // Until the record is there nobody else may take it for a place of theirs.
    directory.occupy(false).map_err(|error| failed("use it as an SR", &error))?;
    let temporary = fresh_temporary(SR_RECORD, host);
    let placed = store::place(directory, SR_RECORD, &temporary, &record.to_bytes());
    if placed.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists) {
        let why = "another SR has just been made there";
        return Err(Failure::new(Kind::SrExists, directory.place(), why));
    }
    placed
        .and_then(|()| directory.apply(DirOp::SyncDirectory))
        .map_err(|error| failed("write its record", &error))
}

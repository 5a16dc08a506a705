//! An SR in an ext4 file system of its own, on a whole device or a partition (`device`).
//!
//! The file system carries the SR's identity as its own, so that no other is taken for it. Makes a
//! file system only where there is none, and wipes only one that is this SR's, unmounted and
//! without VDIs.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::driver::{Capabilities, DeviceConfig, Driver, Substrate, Surroundings, at};
use super::failure::{Failure, Kind};
use super::file::FileDriver;
use super::names::{Named, SrUuid};
use super::record::SrRecord;
use crate::engine::units::ByteLen;

/// What a deletion wipes at least of the device's head (the specification's figure).
const WIPE_BYTES: u64 = 100 << 20;
/// What is wiped of a device whose SR did not come to be: what tells a file system.
const HEAD_BYTES: u64 = 1 << 20;
/// What blkid ends with when it finds nothing, and when it finds more than one thing.
const BLANK: i32 = 2;
const AMBIVALENT: i32 = 8;
/// The superblock of ext2 and its successors: where it lies, and where in it the magic number and
/// the identity are.
const SUPERBLOCK_AT: u64 = 1024;
const MAGIC_AT: usize = 56;
const MAGIC: [u8; 2] = [0x53, 0xEF];
const IDENTITY_AT: usize = 104;

/// A device as an SR.
#[derive(Debug)]
pub(super) struct Ext {
    device: PathBuf,
    around: Surroundings,
}

impl Ext {
    pub(super) fn new(config: &DeviceConfig, around: &Surroundings) -> Result<Self, Failure> {
        Ok(Self { device: config.path("device")?, around: around.clone() })
    }

    fn mount_point(&self, sr: SrUuid) -> PathBuf {
        self.around.mounts.join(sr.to_string())
    }

    fn inside(&self, sr: SrUuid) -> FileDriver {
        FileDriver::inside(&self.mount_point(sr), &self.around.host)
    }

    /// Refuses to go on where files lie that are no part of the SR: with the device they would be
    /// gone.
    fn expect_nothing_else(&self, sr: SrUuid) -> Result<(), Failure> {
        let root = self.mount_point(sr);
        let listed = std::fs::read_dir(&root).and_then(|names| {
            names.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
        });
        let names: Vec<String> = listed.map_err(|error| at(&root, "list it", &error))?;
        let other = |name: &&String| *name != "lost+found" && Named::of(name) == Named::Foreign;
        let Some(name) = names.iter().find(other) else { return Ok(()) };
        let why = format!("{name:?} in it is no part of the SR, and would be gone with it");
        Err(Failure::new(Kind::NotEmpty, self.device.display(), why)
            .advise("attach the SR and move that file elsewhere, or remove it"))
    }

    /// Opens the device with nobody else using it: a mounted one refuses.
    fn open_alone(&self, write: bool) -> Result<File, Failure> {
        let device = &self.device;
        let meta = std::fs::metadata(device).map_err(|error| at(device, "find it", &error))?;
        if !meta.file_type().is_block_device() {
            return Err(Failure::new(Kind::Invalid, device.display(), "it is no block device"));
        }
        let flags = i32::try_from(OFlags::EXCL.bits()).unwrap_or_default();
        let opened = File::options().read(true).write(write).custom_flags(flags).open(device);
        opened.map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::BUSY) => {
                Failure::new(Kind::Busy, device.display(), "it is mounted or otherwise in use")
            }
            Some(Errno::NXIO | Errno::NODEV | Errno::NOMEDIUM) => {
                Failure::new(Kind::NoDevice, device.display(), error)
            }
            _ => at(device, "open it", &error),
        })
    }

    /// Refuses a device that holds something, whatever it is: a file system, a partition table, a
    /// part of an array or of a volume group.
    fn expect_blank(&self) -> Result<(), Failure> {
        let failed = |why: String| Failure::new(Kind::Io, self.device.display(), why);
        let looked = Command::new("blkid")
            .args(["--probe", "--output", "export"])
            .arg(&self.device)
            .stdin(Stdio::null())
            .output();
        let looked = looked.map_err(|error| {
            failed(format!("cannot run blkid, which says what is on it: {error}"))
                .advise("install util-linux")
        })?;
        match looked.status.code() {
            Some(BLANK) => Ok(()),
            Some(0 | AMBIVALENT) => {
                let why = format!("there is {} on it already", named(&looked.stdout));
                Err(Failure::new(Kind::SrExists, self.device.display(), why)
                    .advise("wipe the device if nobody needs what is on it: wipefs -a"))
            }
            _ => {
                let said = String::from_utf8_lossy(&looked.stderr);
                let said: String = said.trim().chars().take(1000).collect();
                Err(failed(format!("blkid cannot say what is on it: {said}")))
            }
        }
    }

    fn make_file_system(&self, sr: SrUuid) -> Result<(), Failure> {
        let failed = |why: String| Failure::new(Kind::Io, self.device.display(), why);
        let made = Command::new("mkfs.ext4")
            .args(["-q", "-F", "-m", "0", "-L", "orlop-sr", "-U", &sr.to_string()])
            .arg(&self.device)
            .stdin(Stdio::null())
            .output();
        let made = made.map_err(|error| {
            failed(format!("cannot run mkfs.ext4: {error}")).advise("install e2fsprogs")
        })?;
        if made.status.success() {
            return Ok(());
        }
        let said: String = String::from_utf8_lossy(&made.stderr).chars().take(1000).collect();
        Err(failed(format!("mkfs.ext4 failed: {}", said.trim())))
    }

    /// Whether the SR's mount point is this device's file system already.
    fn is_mounted(&self, sr: SrUuid) -> Result<bool, Failure> {
        let place = self.mount_point(sr);
        let device = std::fs::metadata(&self.device);
        let device = device.map_err(|error| at(&self.device, "find it", &error))?;
        match std::fs::metadata(&place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(at(&place, "look at it", &error)),
            Ok(found) => Ok(found.dev() == device.rdev()),
        }
    }

    fn mount(&self, sr: SrUuid) -> Result<(), Failure> {
        if self.is_mounted(sr)? {
            return Ok(());
        }
        let device = self.open_alone(false)?;
        if identity(&self.device, &device)? != Some(sr.bytes()) {
            let why = format!("there is no file system of the SR {sr} on it");
            return Err(Failure::new(Kind::NoDevice, self.device.display(), why));
        }
        drop(device);
        let place = self.mount_point(sr);
        std::fs::create_dir_all(&place).map_err(|error| at(&place, "make it", &error))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        rustix::mount::mount(&self.device, &place, "ext4", flags, None).map_err(|errno| {
            // Nothing lies in it.
            let _left_behind = std::fs::remove_dir(&place);
            at(&self.device, "mount it", &errno.into())
        })
    }

    fn unmount(&self, sr: SrUuid) -> Result<(), Failure> {
        let place = self.mount_point(sr);
        if self.device.exists() && !self.is_mounted(sr)? {
            return remove_mount_point(&place);
        }
        match rustix::mount::unmount(&place, UnmountFlags::NOFOLLOW) {
            Err(Errno::BUSY) => {
                let why = "files in it are still open";
                Err(Failure::new(Kind::Busy, place.display(), why))
            }
            Err(Errno::INVAL | Errno::NOENT) => remove_mount_point(&place),
            Err(errno) => Err(at(&place, "unmount it", &errno.into())),
            Ok(()) => remove_mount_point(&place),
        }
    }

    fn wipe(&self, device: &File, bytes: u64) -> io::Result<()> {
        const CHUNK_BYTES: u64 = 1 << 20;
        let len = rustix::fs::seek(device, rustix::fs::SeekFrom::End(0))?;
        let zeroes = vec![0; usize::try_from(CHUNK_BYTES).unwrap_or(0)];
        let mut done = 0;
        let end = len.min(bytes);
        while done < end {
            let part = (end - done).min(CHUNK_BYTES);
            device.write_all_at(&zeroes[..usize::try_from(part).unwrap_or(0)], done)?;
            done += part;
        }
        device.sync_all()
    }
}

impl Driver for Ext {
    fn capabilities(&self) -> Capabilities {
        Capabilities::FILES
    }

    fn create(&self, record: &SrRecord, size: ByteLen) -> Result<(), Failure> {
        drop(self.open_alone(true)?);
        self.expect_blank()?;
        let made = self.make_file_system(record.uuid).and_then(|()| {
            self.mount(record.uuid)?;
            let made = self.inside(record.uuid).create(record, size);
            made.and(self.unmount(record.uuid))
        });
        if made.is_err() {
            // It was blank, and is to be taken for blank when it is tried again.
            let wiped = self.open_alone(true).map(|device| self.wipe(&device, HEAD_BYTES));
            tracing::debug!(device = %self.device.display(), ?wiped, "made blank again");
        }
        made
    }

    fn delete(&self, sr: SrUuid) -> Result<(), Failure> {
        let device = self.open_alone(true)?;
        if identity(&self.device, &device)? != Some(sr.bytes()) {
            return Ok(());
        }
        drop(device);
        self.mount(sr)?;
        let emptied = self.expect_nothing_else(sr).and_then(|()| self.inside(sr).delete(sr));
        emptied.and(self.unmount(sr))?;
        let device = self.open_alone(true)?;
        self.wipe(&device, WIPE_BYTES).map_err(|error| at(&self.device, "wipe it", &error))
    }

    fn attach(&self, sr: SrUuid) -> Result<Substrate, Failure> {
        self.mount(sr)?;
        self.inside(sr).attach(sr).inspect_err(|_| {
            // The first failure is the one to tell.
            let _still_mounted = self.unmount(sr);
        })
    }

    fn detach(&self, sr: SrUuid) -> Result<(), Failure> {
        self.unmount(sr)
    }
}

fn remove_mount_point(place: &Path) -> Result<(), Failure> {
    match std::fs::remove_dir(place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(|error| at(place, "remove it", &error)),
    }
}

/// What blkid found, in its words.
fn named(found: &[u8]) -> String {
    let found = String::from_utf8_lossy(found);
    let value = |key: &str| {
        let value = found.lines().find_map(|line| line.strip_prefix(key))?;
        Some(value.chars().filter(|char| !char.is_control()).take(40).collect::<String>())
    };
    match (value("TYPE="), value("PTTYPE=")) {
        (Some(kind), _) => format!("something of type {kind}"),
        (None, Some(table)) => format!("a partition table of type {table}"),
        (None, None) => "something".to_owned(),
    }
}

/// The identity of the ext file system on a device, if there is one.
pub(super) fn identity(place: &Path, device: &File) -> Result<Option<[u8; 16]>, Failure> {
    let mut block = [0; 1024];
    match device.read_exact_at(&mut block, SUPERBLOCK_AT) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read.map_err(|error| at(place, "read it", &error))?,
    }
    if block[MAGIC_AT..MAGIC_AT + 2] != MAGIC {
        return Ok(None);
    }
    let mut identity = [0; 16];
    identity.copy_from_slice(&block[IDENTITY_AT..IDENTITY_AT + 16]);
    Ok(Some(identity))
}

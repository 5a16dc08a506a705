//! The tree of files: a directory for each attached VDI, and for each that could not be attached.
//!
//! Blocks where the kernel must be told of a change: never to be called on a thread that answers
//! the mount's requests.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use orlop_fuse::{
    Bytes, DiskId, Layout, Mounted, NewDisk, Offset, Options, TreeError, UnmountError, UnmountHow,
    Usage,
};

use super::LiveError;
use crate::mount::{self, Mapped};
use crate::shard::Mailbox;
use crate::transport::files::{Channel, Files};

/// Threads that read requests where no shard can.
const THREADS: usize = 4;
/// How long those who keep the mount busy have, when it is to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is tried meanwhile.
const TRY_EVERY: Duration = Duration::from_millis(100);

/// The mounted tree.
pub(super) struct Tree {
    mounted: Arc<Mounted>,
    files: Arc<Files>,
}

impl Tree {
    /// Mounts an empty tree at a directory, which is made if only it is missing. One shard reads
    /// its requests; it answers those for its own disks, and passes the others on.
    pub(super) fn mount(
        at: &Path,
        allow_other: bool,
        shards: &[Mailbox],
    ) -> Result<Self, LiveError> {
        match std::fs::create_dir(at) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            // Why it cannot be mounted on is told below.
            Err(error) => tracing::debug!(%error, "{} is not made", at.display()),
            Ok(()) => tracing::debug!("{} was made", at.display()),
        }
        let at = mount::make_ready(at)?;
        let files = Files::new();
        let channel = shards.first().map(|reads| Channel::new(reads.clone(), Arc::clone(&files)));
        let options = Options {
            layout: Layout::Many,
            allow_other,
            threads: THREADS,
            channel: channel.map(|channel| channel as _),
            ..Options::default()
        };
        let mounted = orlop_fuse::mount(Arc::clone(&files) as _, &at, &options, &[]);
        let mounted = Arc::new(mounted.map_err(mount::MountFailure::from)?);
        Ok(Self { mounted, files })
    }

    pub(super) fn files(&self) -> &Files {
        &self.files
    }

    /// Where a disk of this name has its files.
    pub(super) fn place(&self, name: &str) -> PathBuf {
        self.mounted.at().join(name)
    }

    /// Shows a disk that can be asked; gives the name of its directory.
    pub(super) fn add(&self, disk: &NewDisk, mapped: &Mapped) -> Result<String, TreeError> {
        mapped.are_of(&self.mounted);
        self.mounted.add(disk)
    }

    pub(super) fn add_broken(&self, disk: &NewDisk) -> Result<String, TreeError> {
        self.mounted.add_broken(disk)
    }

    /// Takes a disk's names away, if nobody has a file of it open.
    pub(super) fn remove(&self, disk: DiskId) -> Result<(), TreeError> {
        self.mounted.remove(disk, false)
    }

    /// Who has files of a disk open.
    pub(super) fn usage(&self, disk: DiskId) -> Usage {
        // One that is not shown has no users.
        self.mounted.usage(disk).unwrap_or_default()
    }

    /// Unmounts. Those who keep it busy are told to the log and have ten seconds; then what they
    /// have open answers that the disk is gone. `disks` are shown, with their lengths.
    pub(super) fn take_down(&self, disks: &[(DiskId, Bytes)]) {
        let until = Instant::now() + PATIENCE;
        let mut said = false;
        loop {
            self.flush_mapped(disks);
            match self.mounted.unmount(UnmountHow::Clean) {
                Ok(()) => return,
                Err(UnmountError::Busy(at)) if Instant::now() < until => {
                    if !said {
                        let who = mount::listed(&mount::users(&at));
                        let seconds = PATIENCE.as_secs();
                        tracing::warn!("in use by {who}; they have {seconds} seconds");
                        said = true;
                    }
                    std::thread::sleep(TRY_EVERY);
                }
                Err(error) => {
                    tracing::warn!(%error, "taken away from its users");
                    break;
                }
            }
        }
        for (disk, _) in disks {
            if let Err(error) = self.mounted.remove(*disk, true) {
                tracing::debug!(%error, "a disk was not shown any more");
            }
        }
        if let Err(error) = self.mounted.unmount(UnmountHow::Detach) {
            tracing::warn!(%error, "the mount is left behind");
        }
    }

    /// Lets what programs have changed in mapped pages come home, as far as it is known now.
    fn flush_mapped(&self, disks: &[(DiskId, Bytes)]) {
        for (disk, len) in disks {
            if self.usage(*disk) != Usage::default() {
                // It is shown, or was: then it has no pages.
                let _ = self.mounted.changed_elsewhere(*disk, Offset(0), *len);
            }
        }
    }
}

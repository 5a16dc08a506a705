//! Putting a tree of disks on a mount point, changing what it shows, and taking it away again.
//!
//! Every mount made here is taken away when its [`Mounted`] is dropped, and nothing else is. What
//! changes in the tree is told to the kernel, which believes names and sizes for a while.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fuser::{BackgroundSession, INodeNo, Notifier};
use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::Errno as OsError;
use rustix::mount::UnmountFlags;

use crate::attach::{
    MountError, Options, UnmountError, check_place, detach, is_stale, number, unmount_at,
};
use crate::connect::{Served, Transport, connect};
use crate::ended::Ended;
use crate::mountinfo::{table, topmost};
use crate::ops::Ops;
use crate::port::{Bytes, DiskId, Offset, Port};
use crate::tree::{Disk, Image, Layout, NewDisk, ROOT_INODE, Slot, TreeError, Usage, Window};

/// How long the kernel's goodbye may take once a mount point is free.
const GOODBYE: Duration = Duration::from_secs(10);

/// How to unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnmountHow {
    /// Only if nobody uses it.
    Clean,
    /// Takes it out of sight now; whoever has files open keeps them.
    Detach,
    /// Takes it out of sight, and every use that waits or comes fails.
    Abort,
}

/// A mount that is being served. Dropping it detaches it.
pub struct Mounted {
    at: PathBuf,
    /// The device number: what tells this mount from another one at the same place.
    device: String,
    ops: Arc<Ops>,
    ended: Arc<Ended>,
    notifier: Notifier,
    transport: Transport,
    _session: Option<BackgroundSession>,
}

/// Mounts these disks on a directory and serves them from threads of its own.
///
/// # Errors
///
/// [`MountError`]; nothing is left mounted then.
pub fn mount(
    port: Arc<dyn Port>,
    at: &Path,
    options: &Options,
    disks: &[NewDisk],
) -> Result<Mounted, MountError> {
    let at = check_place(at)?;
    let ops = Ops::new(port, options.layout, options.allow_other);
    for disk in disks {
        ops.add(disk)?;
    }
    let Served { device, ended, notifier, session, transport } = connect(&at, options, &ops)?;
    Ok(Mounted { at, device, ops, ended, notifier, transport, _session: session })
}

impl Mounted {
    /// The mount point.
    #[must_use]
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// What carries the requests, for the log.
    #[must_use]
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    /// The requests' other door, for another transport over the same connection.
    #[must_use]
    pub fn ops(&self) -> &Arc<Ops> {
        &self.ops
    }

    /// Shows one more disk; gives the name it got. May wait for the kernel, never for a disk.
    ///
    /// # Errors
    ///
    /// [`TreeError`] where it cannot be shown.
    pub fn add(&self, disk: &NewDisk) -> Result<String, TreeError> {
        let name = self.ops.add(disk)?;
        self.tell_attributes(ROOT_INODE);
        Ok(name)
    }

    /// Shows a disk that cannot be served: a directory with what is told of it, without its bytes.
    ///
    /// # Errors
    ///
    /// As [`Self::add`].
    pub fn add_broken(&self, disk: &NewDisk) -> Result<String, TreeError> {
        let name = self.ops.add_broken(disk)?;
        self.tell_attributes(ROOT_INODE);
        Ok(name)
    }

    /// Takes a disk away: its open files answer "no such device" (those the kernel serves by
    /// itself "input/output error") and its names go. Unless forced, only where none is open.
    ///
    /// May wait for the kernel, never for a disk; requests the port has taken before are answered
    /// as the port answers them. What a process has mapped of a passthrough file stays mapped:
    /// Linux offers no way to take it back.
    ///
    /// # Errors
    ///
    /// [`TreeError::Unknown`], [`TreeError::InUse`].
    pub fn remove(&self, id: DiskId, force: bool) -> Result<(), TreeError> {
        let images = self.ops.look().images(id);
        let disk = self.ops.change().retire(id, force)?;
        if disk.usage().passthrough > 0 {
            self.fence(&disk);
        }
        for image in &images {
            // Mapped pages would go on showing a disk that is not there.
            self.tell_bytes(image.inode(), 0, 0);
        }
        let single = self.ops.look().layout() == Layout::Single;
        let names = self.ops.list(disk.inode_of(Slot::Dir), 0).unwrap_or_default();
        self.ops.change().forget(&disk);
        let parent = self.directory_of(&disk);
        for entry in names {
            self.tell_entry(parent, &entry.name);
        }
        if !single {
            self.tell_entry(ROOT_INODE, &disk.name);
        }
        self.tell_attributes(ROOT_INODE);
        Ok(())
    }

    /// Gives a disk another size; partitions that no longer fit go.
    ///
    /// # Errors
    ///
    /// [`TreeError::Unknown`], [`TreeError::TooLong`].
    pub fn resize(&self, id: DiskId, len: Bytes) -> Result<(), TreeError> {
        let before = self.ops.look().images(id);
        let old = self.ops.look().whole(id)?.len();
        self.ops.change().resize(id, len)?;
        let after = self.ops.look().images(id);
        let inode = self.ops.look().whole(id)?.inode();
        self.tell_attributes(inode);
        if len.0 < old {
            self.tell_bytes(inode, len.0, 0);
        }
        self.tell_windows(&before, &after);
        Ok(())
    }

    /// Replaces a disk's partitions; those that did not change stay open.
    ///
    /// # Errors
    ///
    /// [`TreeError::Unknown`], [`TreeError::BadWindow`].
    pub fn repartition(&self, id: DiskId, windows: &[Window]) -> Result<(), TreeError> {
        let before = self.ops.look().images(id);
        self.ops.change().repartition(id, windows)?;
        let after = self.ops.look().images(id);
        self.tell_windows(&before, &after);
        Ok(())
    }

    /// Lets a disk be written or not from now on, handles that are open included (passthrough
    /// ones excepted: see [`Usage::passthrough`]).
    ///
    /// # Errors
    ///
    /// [`TreeError::Unknown`].
    pub fn set_read_only(&self, id: DiskId, read_only: bool) -> Result<(), TreeError> {
        self.ops.look().disk(id)?.read_only.store(read_only, Ordering::Relaxed);
        for image in self.ops.look().images(id) {
            self.tell_attributes(image.inode());
        }
        Ok(())
    }

    /// Tells the kernel that these bytes were changed by somebody else (an NBD client), so that
    /// what is mapped of them is read again. Called before that write is answered, a reader here
    /// never sees older bytes after it. May wait for writes of mapped pages, and so for the port:
    /// never to be called on a thread that answers the port's questions.
    ///
    /// # Errors
    ///
    /// [`TreeError::Unknown`].
    pub fn changed_elsewhere(&self, id: DiskId, at: Offset, len: Bytes) -> Result<(), TreeError> {
        self.ops.look().disk(id)?.touch();
        for image in self.ops.look().images(id) {
            if let Some((start, len)) = Ops::place_in(&image, at, len) {
                self.tell_bytes(image.inode(), start, len);
            }
        }
        Ok(())
    }

    /// Who has files of a disk open.
    ///
    /// # Errors
    ///
    /// [`TreeError::Unknown`].
    pub fn usage(&self, id: DiskId) -> Result<Usage, TreeError> {
        self.ops.look().disk(id).map(|disk| disk.usage())
    }

    /// Whether the kernel has let go: unmounted by somebody and the last user gone, or aborted.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended.is()
    }

    /// Waits until the kernel has let go, or this long; says whether it has.
    #[must_use]
    pub fn wait(&self, at_most: Duration) -> bool {
        self.ended.wait(at_most)
    }

    /// Unmounts. When this returns well, no request is on its way to the port any more.
    ///
    /// # Errors
    ///
    /// [`UnmountError`]; after [`UnmountError::Busy`] it is mounted and served as before.
    pub fn unmount(&self, how: UnmountHow) -> Result<(), UnmountError> {
        if self.is_ours() {
            let flags = match how {
                UnmountHow::Clean => UnmountFlags::empty(),
                UnmountHow::Detach => UnmountFlags::DETACH,
                UnmountHow::Abort => UnmountFlags::DETACH | UnmountFlags::FORCE,
            };
            match unmount_at(&self.at, flags) {
                Ok(()) => {}
                Err(cause) if cause.raw_os_error() == Some(number(OsError::BUSY)) => {
                    return Err(UnmountError::Busy(self.at.clone()));
                }
                Err(cause) => return Err(UnmountError::Failed { at: self.at.clone(), cause }),
            }
        }
        let at_most = if how == UnmountHow::Detach { Duration::ZERO } else { GOODBYE };
        if self.ended.wait(at_most) || how == UnmountHow::Detach {
            Ok(())
        } else {
            Err(UnmountError::Lingering(self.at.clone()))
        }
    }

    fn is_ours(&self) -> bool {
        let found = topmost(&table(), &self.at).is_some_and(|mount| mount.device == self.device);
        // Once the kernel has let go the number may be another mount's; but a connection that was
        // aborted leaves its mount in place, dead, and that is nobody else's.
        found && (!self.ended.is() || is_stale(&self.at))
    }

    /// Makes the kernel stop serving a file by itself. It goes on with an open passthrough file
    /// whatever the daemon says, until it finds the inode to be of another kind than it was: then
    /// it calls the inode bad and refuses every use. So that is what it is made to find.
    fn fence(&self, disk: &Disk) {
        disk.fenced.store(true, Ordering::Release);
        let single = self.ops.look().layout() == Layout::Single;
        let directory = if single { self.at.clone() } else { self.at.join(&disk.name) };
        let file = directory.join(crate::tree::DISK_NAME);
        let flags = AtFlags::STATX_FORCE_SYNC | AtFlags::SYMLINK_NOFOLLOW;
        // It answers "input/output error" when it has worked.
        let _ = rustix::fs::statx(CWD, &file, flags, StatxFlags::BASIC_STATS);
    }

    fn tell_windows(&self, before: &[Arc<Image>], after: &[Arc<Image>]) {
        for image in before.iter().filter(|image| image.check_there().is_err()) {
            self.tell_bytes(image.inode(), 0, 0);
            let kept = after.iter().any(|new| new.slot == image.slot);
            if let Slot::Partition(number) = image.slot
                && !kept
            {
                self.tell_entry(self.directory_of(&image.disk), &format!("p{number}"));
            }
        }
    }

    fn directory_of(&self, disk: &Disk) -> u64 {
        match self.ops.look().layout() {
            Layout::Single => ROOT_INODE,
            Layout::Many => disk.inode_of(Slot::Dir),
        }
    }

    // A kernel that has dropped the inode by itself, or the whole mount, need not be told.
    fn tell_entry(&self, parent: u64, name: &str) {
        let _ = self.notifier.inval_entry(INodeNo(parent), name.as_ref());
    }

    fn tell_attributes(&self, inode: u64) {
        let _ = self.notifier.inval_inode(INodeNo(inode), -1, 0);
    }

    /// `len` 0: up to the end.
    fn tell_bytes(&self, inode: u64, at: u64, len: u64) {
        let clamp = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let _ = self.notifier.inval_inode(INodeNo(inode), clamp(at), clamp(len));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.is_ours() {
            let _ = detach(&self.at);
        }
    }
}

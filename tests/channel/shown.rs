//! Disks of shards as files of one mount whose device one of the shards reads. Judges nothing.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::SystemTime;

use orlop::engine::units::{ByteLen, DiskOffset, Extent};
use orlop::meter::Meter;
use orlop::shard::{DiskTag, ExportKey, Watch};
use orlop::transport::files::{About, Channel, FileDisk, Files, Rings};
use orlop_fuse::{
    Bytes, DiskId, Errno, Fact, Layout, Mounted, NewDisk, Offset, Options, Text, Transport, mount,
};
use tempfile::TempDir;

use crate::rig::Rig;

pub(crate) fn may_mount() -> bool {
    let may = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    assert!(may || !std::env::var("CI").is_ok_and(|ci| ci == "true"), "CI must be able to mount");
    if !may {
        println!("SKIPPED: mounting needs root and /dev/fuse");
    }
    may
}

struct Plain;

impl About for Plain {
    fn text(&self, which: Text) -> Result<Vec<u8>, Errno> {
        Ok(which.file_name().into())
    }

    fn facts(&self) -> Vec<Fact> {
        Vec::new()
    }
}

/// What the mount maps of one disk.
struct Mapped {
    id: DiskId,
    mounted: Arc<OnceLock<Weak<Mounted>>>,
}

impl Watch for Mapped {
    fn has_copies(&self) -> bool {
        let mounted = self.mounted.get().and_then(Weak::upgrade);
        let usage = mounted.and_then(|mounted| mounted.usage(self.id).ok());
        usage.is_some_and(|usage| usage.readers > 0 || usage.writers > 0)
    }

    fn give_up(&self, extent: Extent) {
        if let Some(mounted) = self.mounted.get().and_then(Weak::upgrade) {
            let (at, len) = (Offset(extent.at.get()), Bytes(extent.len.get()));
            let _ = mounted.changed_elsewhere(self.id, at, len);
        }
    }
}

/// The mount.
pub(crate) struct Shown {
    mounted: Arc<Mounted>,
    names: Vec<String>,
    tags: Vec<DiskTag>,
    place: TempDir,
}

impl Shown {
    /// Shows new disks of these shards; disk `n` has export key `n`.
    pub(crate) fn new(reads: &Rig, disks: &[(&Rig, u64)]) -> Self {
        static NAMES: AtomicU64 = AtomicU64::new(0);
        let (files, told) = (Files::new(), Arc::new(OnceLock::new()));
        let (mut names, mut tags, mut new_disks) = (Vec::new(), Vec::new(), Vec::new());
        for (number, (rig, len)) in disks.iter().enumerate() {
            let id = DiskId(number as u64);
            let name = format!("disk-{}", NAMES.fetch_add(1, Ordering::Relaxed));
            let tag = rig.disk(&name, *len);
            let disk = FileDisk {
                mailbox: rig.mailbox.clone(),
                tag,
                export: ExportKey(id.0),
                window: Extent::new(DiskOffset::new(0), ByteLen::new(*len)),
                about: Arc::new(Plain),
                passing: None,
                watch: Some(Arc::new(Mapped { id, mounted: Arc::clone(&told) })),
                meter: Arc::new(Meter::new()),
            };
            files.open(id, disk).unwrap();
            let (label, len) = (name.clone().into_bytes(), Bytes(*len));
            let modified = SystemTime::UNIX_EPOCH;
            new_disks.push(NewDisk { id, label, len, read_only: false, windows: vec![], modified });
            names.push(name);
            tags.push(tag);
        }
        let place = TempDir::new().unwrap();
        let channel = Channel::new(reads.mailbox.clone(), Arc::clone(&files));
        let (mailbox, disks) = (reads.mailbox.clone(), Arc::clone(&files));
        let rings = || Arc::new(Rings { mailbox, files: disks, request_bytes: None }) as _;
        let options = Options {
            layout: Layout::Many,
            ring: reads.inlets.then(rings),
            channel: Some(channel),
            ..Options::default()
        };
        let mounted = Arc::new(mount(files, place.path(), &options, &new_disks).unwrap());
        let wanted = if reads.inlets { Transport::Ring } else { Transport::Classic };
        assert_eq!(mounted.transport(), &wanted);
        told.set(Arc::downgrade(&mounted)).unwrap();
        Self { mounted, names, tags, place }
    }

    pub(crate) fn mounted(&self) -> &Mounted {
        &self.mounted
    }

    pub(crate) fn path(&self, number: usize) -> PathBuf {
        self.place.path().join(&self.names[number]).join("disk")
    }

    pub(crate) fn open(&self, number: usize) -> File {
        File::options().read(true).write(true).open(self.path(number)).unwrap()
    }

    pub(crate) fn tag(&self, number: usize) -> DiskTag {
        self.tags[number]
    }

    /// The image's name of the one disk that is a shard's.
    pub(crate) fn name_in(&self, rig: &Rig) -> String {
        self.names.iter().find(|name| rig.image(name).exists()).unwrap().clone()
    }
}

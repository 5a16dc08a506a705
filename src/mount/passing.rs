//! When the kernel may read and write an image's file by itself, and copies that it keeps of a
//! disk's bytes.
//!
//! Only a raw image that is the disk, byte for byte and no longer, and that nobody else here can
//! write: what the kernel does by itself passes by the engine, so the engine must have no part in
//! it. Refuses in words, which end up in `info.json`.

use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock, Weak};

use orlop_fuse::{Bytes, DiskId, Mounted, Offset};

use super::Wish;
use crate::engine::units::Extent;
use crate::image::OpenedChain;
use crate::server::Part;
use crate::shard::Watch;
use crate::transport::files::Passing;

/// The file of a raw image.
#[derive(Debug)]
pub(super) struct Passed {
    file: Arc<OwnedFd>,
    read_only: bool,
}

impl Passed {
    /// The file, if it may be passed; else why not.
    pub(super) fn of(chain: &OpenedChain, wish: &Wish) -> Result<Self, String> {
        let [layer] = chain.layers.as_slice() else {
            return Err("the disk is more than one file".to_owned());
        };
        let whole = wish.spec.part == Part::WHOLE;
        let exact = layer.content.vhd().is_none() && layer.file_bytes == layer.content.size();
        let why = if layer.content.vhd().is_some() {
            "a VHD's file is not the disk"
        } else if !whole || !exact {
            "the file is longer than what is shown of it"
        } else if wish.nbd.is_some() && !chain.read_only {
            "NBD clients may write the disk too"
        } else if !rustix::process::geteuid().is_root() {
            "the kernel takes a file from root only"
        } else {
            // Another name of the same open file: the claim on the image goes with it.
            let file = layer.fd.try_clone().map_err(|error| error.to_string())?;
            return Ok(Self { file: Arc::new(file), read_only: chain.read_only });
        };
        Err(why.to_owned())
    }
}

impl Passing for Passed {
    fn backing(&self, write: bool) -> Option<Arc<OwnedFd>> {
        (!write || !self.read_only).then(|| Arc::clone(&self.file))
    }
}

/// Pages of the mount that programs have mapped: copies that others' changes must not miss.
pub(crate) struct Mapped {
    disk: DiskId,
    /// The part of the disk that is shown.
    window: Extent,
    mounted: OnceLock<Weak<Mounted>>,
}

impl Mapped {
    pub(crate) fn new(disk: DiskId, window: Extent) -> Self {
        Self { disk, window, mounted: OnceLock::new() }
    }

    /// From now on it is mounted.
    pub(crate) fn are_of(&self, mounted: &Arc<Mounted>) {
        // There is one mount, and it is told once.
        let _ = self.mounted.set(Arc::downgrade(mounted));
    }

    fn mounted(&self) -> Option<Arc<Mounted>> {
        self.mounted.get()?.upgrade()
    }
}

impl Watch for Mapped {
    /// An open is where the kernel forgets pages of before, and what is mapped counts as open.
    fn has_copies(&self) -> bool {
        let usage = self.mounted().and_then(|mounted| mounted.usage(self.disk).ok());
        usage.is_some_and(|usage| usage.readers > 0 || usage.writers > 0)
    }

    fn give_up(&self, extent: Extent) {
        let Some(mounted) = self.mounted() else { return };
        let start = extent.at.max(self.window.at).get();
        let end = extent.end().min(self.window.end()).get();
        if start < end {
            let at = Offset(start - self.window.at.get());
            // It is there for as long as it is mounted, and has no copies after.
            let _ = mounted.changed_elsewhere(self.disk, at, Bytes(end - start));
        }
    }
}

//! FUSE over io_uring against the kernel: the FUSE crate's own tests over rings, and what becomes
//! of rings that fail.
//!
//! Needs root, /dev/fuse and a kernel with FUSE over io_uring; skips aloud without. The fuse
//! module's parameter `enable_uring` is Y while this process lives.
#![allow(clippy::unwrap_used, clippy::panic)]
// The FUSE crate's tests each bring what they share, and are several here.
#![allow(clippy::duplicate_mod)]

mod fuse_ring {
    pub(crate) mod faults;
    pub(crate) mod timing;
    pub(crate) mod traffic;
}

#[path = "../fuse/tests/common/mod.rs"]
mod common;
#[path = "../fuse/tests/files.rs"]
mod files;
#[path = "../fuse/tests/fio.rs"]
mod fio;
#[path = "../fuse/tests/live.rs"]
mod live;

#[path = "support/ring_switch.rs"]
mod ring_switch;

/// Rings for every mount of these tests.
mod ring {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, OnceLock};

    use orlop::host::Aio;
    use orlop::host::memory::ArenaSize;
    use orlop::shard::{Mailbox, spawn_with_inlets};
    use orlop::transport::files::{Files, Rings};
    use orlop_fuse::RingHost;

    pub(crate) use crate::ring_switch::is_on;

    /// The ring of one of a few shards, each of which serves several mounts. None of the disks is
    /// theirs.
    pub(crate) fn chosen() -> Option<Arc<dyn RingHost>> {
        is_on().then(|| Arc::new(rings(None)) as Arc<dyn RingHost>)
    }

    pub(crate) fn rings(request_bytes: Option<u32>) -> Rings {
        static MOUNTS: AtomicUsize = AtomicUsize::new(0);
        static SHARDS: OnceLock<[Mailbox; 3]> = OnceLock::new();
        let shards = SHARDS.get_or_init(|| [(); 3].map(|()| shard()));
        let mailbox = shards[MOUNTS.fetch_add(1, Ordering::Relaxed) % 3].clone();
        Rings { mailbox, files: Files::new(), request_bytes }
    }

    pub(crate) fn shard() -> Mailbox {
        spawn_with_inlets(Aio::Uring, ArenaSize::default()).unwrap().0
    }
}

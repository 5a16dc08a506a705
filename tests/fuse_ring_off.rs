//! A kernel that does not offer FUSE over io_uring: the mount works, and says why it is classic.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../fuse/tests/common/mod.rs"]
mod common;

/// Mounts of the shared fixture use no ring; this test asks for one itself.
mod ring {
    use std::sync::Arc;

    pub(crate) fn chosen() -> Option<Arc<dyn orlop_fuse::RingHost>> {
        None
    }
}

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use common::{DISK, Memory, can_mount, is_mounted, new_disk};
use orlop::host::Aio;
use orlop::host::memory::ArenaSize;
use orlop::shard::spawn_with_inlets;
use orlop::transport::files::{Files, Rings};
use orlop_fuse::{Layout, Options, Transport, UnmountHow, mount};

const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";

#[test]
fn without_the_kernels_switch_the_classic_channel_serves() {
    if !can_mount() {
        return;
    }
    // The tests that need the switch hold a share of this while it is on.
    let path = std::env::temp_dir().join("orlop-fuse-ring-tests.lock");
    let lock = File::options().create(true).append(true).open(path).unwrap();
    lock.lock().unwrap();
    if fs::read_to_string(SWITCH).is_ok_and(|value| value.trim() == "Y") {
        eprintln!("skipped: {SWITCH} is Y here");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (mailbox, ..) = spawn_with_inlets(Aio::Auto, ArenaSize::default()).unwrap();
    let ring = Rings { mailbox, files: Files::new(), request_bytes: None };
    let ring = Some(Arc::new(ring) as Arc<dyn orlop_fuse::RingHost>);
    let options = Options { layout: Layout::Single, ring, ..Options::default() };
    let port = Memory::with_disk(1 << 20);
    let mounted = mount(port, dir.path(), &options, &[new_disk(DISK, "x", 1 << 20)]).unwrap();
    let Transport::Fallback(why) = mounted.transport() else {
        panic!("{:?}", mounted.transport());
    };
    assert!(why.contains("enable_uring"), "{why}");
    let file = File::options().read(true).write(true).open(dir.path().join("disk")).unwrap();
    file.write_all_at(b"classic", 77).unwrap();
    let mut back = [0; 7];
    file.read_exact_at(&mut back, 77).unwrap();
    assert_eq!(&back, b"classic");
    drop(file);
    mounted.unmount(UnmountHow::Clean).unwrap();
    assert!(!is_mounted(dir.path()));
}

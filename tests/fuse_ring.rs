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

/// Rings for every mount of these tests.
mod ring {
    use std::fs::{self, File};
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, OnceLock};

    use orlop::host::Aio;
    use orlop::host::memory::ArenaSize;
    use orlop::shard::{Mailbox, spawn_with_inlets};
    use orlop::transport::files::{Files, Rings};
    use orlop_fuse::RingHost;

    const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";

    /// Puts the switch back when this process is gone, however it ends: its input closes then. It
    /// waits for other processes of these tests, each of which holds a share of the lock.
    static RESTORER: OnceLock<Option<(File, Option<Child>)>> = OnceLock::new();

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

    /// Whether the kernel can; says so aloud where it cannot.
    pub(crate) fn is_on() -> bool {
        RESTORER.get_or_init(switch_on);
        let on = fs::read_to_string(SWITCH).is_ok_and(|value| value.trim() == "Y");
        if !on {
            eprintln!("skipped: this kernel has no FUSE over io_uring");
        }
        on
    }

    fn switch_on() -> Option<(File, Option<Child>)> {
        let path = std::env::temp_dir().join("orlop-fuse-ring-tests.lock");
        let lock = File::options().create(true).append(true).open(&path).ok()?;
        lock.lock_shared().ok()?;
        if fs::read_to_string(SWITCH).ok()?.trim() == "Y" {
            return Some((lock, None));
        }
        let script = "trap '' INT TERM HUP; cat >/dev/null; flock -x \"$1\" sh -c \"echo N > $2\"";
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "restorer"]).arg(path).arg(SWITCH).stdin(Stdio::piped());
        // Whoever kills this process may kill its group.
        shell.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let restorer = shell.spawn().ok()?;
        fs::write(SWITCH, "Y").ok()?;
        Some((lock, Some(restorer)))
    }
}

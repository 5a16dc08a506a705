//! FUSE over io_uring against the kernel: the FUSE crate's own tests over rings, and what becomes
//! of rings that fail.
//!
//! Needs root, /dev/fuse and a kernel with FUSE over io_uring; skips aloud without. The fuse
//! module's parameter `enable_uring` is Y while this process lives.
#![allow(clippy::unwrap_used, clippy::panic)]
// The FUSE crate's tests each bring what they share, and are several here.
#![allow(clippy::duplicate_mod)]

extern crate fuse as orlop_fuse;

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
    use std::fs;
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};
    use std::sync::atomic::{AtomicU16, Ordering};
    use std::sync::{Arc, OnceLock};

    use orlop::transport::fuse_ring::Rings;
    use orlop_fuse::RingHost;

    const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";

    /// Puts the switch back when this process is gone, however it ends: its input closes then.
    static RESTORER: OnceLock<Option<Child>> = OnceLock::new();

    /// One ring and several in turn: with several, threads meet that have one connection.
    pub(crate) fn chosen() -> Option<Arc<dyn RingHost>> {
        static MOUNTS: AtomicU16 = AtomicU16::new(0);
        let rings = MOUNTS.fetch_add(1, Ordering::Relaxed) % 3 + 1;
        is_on().then(|| Arc::new(Rings { rings, ..Rings::default() }) as Arc<dyn RingHost>)
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

    fn switch_on() -> Option<Child> {
        if fs::read_to_string(SWITCH).ok()?.trim() == "Y" {
            return None;
        }
        let script = format!("trap '' INT TERM HUP; cat >/dev/null; echo N > {SWITCH}");
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::null());
        // Whoever kills this process may kill its group.
        shell.process_group(0);
        let restorer = shell.stderr(Stdio::null()).spawn().ok()?;
        fs::write(SWITCH, "Y").ok()?;
        Some(restorer)
    }
}

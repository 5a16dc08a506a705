//! The fuse module's parameter `enable_uring`: Y while a test process lives that needs it.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";

/// Puts the switch back when this process is gone, however it ends: its input closes then. It
/// waits for other processes of these tests, each of which holds a share of the lock.
static RESTORER: OnceLock<Option<(File, Option<Child>)>> = OnceLock::new();

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

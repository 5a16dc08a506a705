//! Scripts that are clients of the management socket, and what they need.

use std::path::Path;
use std::process::Command;

/// A small file system, where that may be mounted.
pub(crate) struct Small(Option<tempfile::TempDir>);

impl Small {
    pub(crate) fn new(bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={bytes}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "none"])
            .arg(dir.path())
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Self(Some(dir));
        }
        eprintln!("SKIPPED in part: no file system can be mounted here");
        Self(None)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.as_ref().map_or(Path::new(""), tempfile::TempDir::path)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        if self.0.is_some() {
            let ended = Command::new("umount").arg("-l").arg(self.path()).status();
            assert!(ended.is_ok_and(|status| status.success()) || std::thread::panicking());
        }
    }
}

/// Runs a script of the tests to its end, and gives what it said.
pub(crate) fn run_script(name: &str, arguments: &[&Path]) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop").join(name);
    // Sure to end: every call in it has a time limit of its own.
    let output = Command::new("python3")
        .arg("-B")
        .arg(script)
        .args(arguments)
        .output()
        .expect("python3 is there");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let wrong = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}:\n{said}\n{wrong}");
    said
}

//! A running `orlop mount`, and what is made on top of it; all of it goes with the test that made
//! it, in the reverse order.
#![allow(dead_code, unreachable_pub)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::foreign::{run, run_any, text, unmount};

/// How long a mount may take to come or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A mounted image.
pub struct Mounted {
    child: Child,
    place: PathBuf,
    _folder: TempDir,
}

impl Mounted {
    /// Mounts an image on a folder of its own, served by a process of its own.
    pub fn new(image: &Path, options: &[&str]) -> Self {
        let folder = TempDir::new().expect("the temporary folder takes files");
        let place = folder.path().join("mount");
        std::fs::create_dir(&place).expect("the folder is ours");
        let mut command = Command::new(env!("CARGO_BIN_EXE_orlop"));
        command.arg("mount").arg(image).arg(&place).arg("--foreground").args(options);
        command.env("ORLOP_LOG", "warn").stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().expect("the program under test starts");
        let mut mounted = Self { child, place, _folder: folder };
        let start = Instant::now();
        while !mounted.path("info.json").exists() {
            let ended = mounted.child.try_wait().expect("it is our child");
            assert!(ended.is_none(), "orlop mount ended at once: {ended:?}");
            assert!(start.elapsed() < PATIENCE, "orlop mount does not come to the point");
            std::thread::sleep(Duration::from_millis(5));
        }
        mounted
    }

    /// A file of the mount.
    pub fn path(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }

    /// The whole disk.
    pub fn disk(&self) -> PathBuf {
        self.path("disk")
    }

    /// Unmounts as an admin does, and expects both to end well.
    pub fn close(mut self) {
        run(env!("CARGO_BIN_EXE_orlop"), &["umount", text(&self.place)]);
        self.await_end();
    }

    /// Asks the process to end, and expects that it does.
    pub fn terminate(mut self) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).expect("a child has a number");
        kill_process(pid, Signal::TERM).expect("it runs");
        self.await_end();
    }

    fn await_end(&mut self) {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                assert!(status.success(), "orlop mount ended with {status}");
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("orlop mount does not end");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
            run_any(env!("CARGO_BIN_EXE_orlop"), &["umount", text(&self.place)]);
            run_any("umount", &["-l", text(&self.place)]);
        }
    }
}

/// A loop device over a part of a file.
pub struct Loop(pub String);

impl Loop {
    pub fn new(file: &Path, offset: u64, len: u64) -> Self {
        let (offset, len) = (offset.to_string(), len.to_string());
        let part = ["--offset", &offset, "--sizelimit", &len, text(file)];
        let options = ["--find", "--show", "--direct-io=on"];
        Self(run("losetup", &[&options[..], &part].concat()).trim().to_owned())
    }

    /// Detaches it, and waits until the kernel has let go.
    pub fn close(self) {
        run("losetup", &["-d", &self.0]);
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run_any("losetup", &["-d", &self.0]);
        for _ in 0..200 {
            let told = run_any("losetup", &[&self.0]);
            if !told.status.success() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A file system that the kernel mounted.
pub struct FileSystem {
    place: PathBuf,
    _folder: TempDir,
}

impl FileSystem {
    pub fn new(device: &str, options: &[&str]) -> Self {
        let folder = TempDir::new().expect("the temporary folder takes files");
        let place = folder.path().join("inside");
        std::fs::create_dir(&place).expect("the folder is ours");
        run("mount", &[options, &[device, text(&place)]].concat());
        Self { place, _folder: folder }
    }

    pub fn path(&self) -> &Path {
        &self.place
    }

    pub fn close(self) {
        unmount(text(&self.place));
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        // After a good end there is nothing mounted, and this says so to nobody.
        run_any("umount", &["-l", text(&self.place)]);
    }
}

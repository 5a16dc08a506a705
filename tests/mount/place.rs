//! A folder with an image, a mount point and a place for the file system inside; and the proof that
//! nothing is left of any of it.
#![allow(unreachable_pub)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::foreign::{orlop, run, run_any, text};

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);
pub const ORLOP: &str = env!("CARGO_BIN_EXE_orlop");
pub const MIB: u64 = 1 << 20;

pub struct Place {
    folder: TempDir,
}

/// Whether this process may mount; CI must.
pub fn may_mount() -> bool {
    let may = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    assert!(may || !std::env::var("CI").is_ok_and(|ci| ci == "true"), "CI must be able to mount");
    if !may {
        println!("SKIPPED: mounting needs root and /dev/fuse");
    }
    may
}

impl Place {
    /// A place of its own, if there is somebody who may mount.
    pub fn new() -> Option<Self> {
        if !may_mount() {
            return None;
        }
        let folder = TempDir::new().expect("the temporary folder takes files");
        for name in ["m", "fs"] {
            fs::create_dir(folder.path().join(name)).expect("the folder is ours");
        }
        // Other users look in, too.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
        Some(Self { folder })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A path as an argument.
    pub fn name(&self, name: &str) -> String {
        text(&self.path(name)).to_owned()
    }

    pub fn mount_point(&self) -> PathBuf {
        self.path("m")
    }

    pub fn disk(&self) -> PathBuf {
        self.path("m/disk")
    }

    /// A new image of so many MiB.
    pub fn image(&self, name: &str, mib: u64) -> PathBuf {
        let path = self.path(name);
        if name.ends_with(".raw") {
            fs::File::create(&path).unwrap().set_len(mib * MIB).unwrap();
        } else {
            orlop(&["create", text(&path), "-s", &format!("{mib}M")]);
        }
        path
    }

    fn command(&self, words: &[&str], image: &str, options: &[&str]) -> Vec<String> {
        let mut all: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        all.extend([self.name(image), self.name("m")]);
        all.extend(options.iter().map(|option| (*option).to_owned()));
        all
    }

    /// `orlop mount` to its end, however it ends.
    pub fn try_mount(&self, image: &str, options: &[&str]) -> Output {
        run_any(ORLOP, &self.command(&["mount"], image, options))
    }

    /// `orlop mount`, which must succeed; gives what it said.
    pub fn mount(&self, image: &str, options: &[&str]) -> String {
        run(ORLOP, &self.command(&["mount"], image, options))
    }

    /// A server in the foreground, once it answers.
    pub fn mount_here(&self, image: &str, options: &[&str]) -> Child {
        let words = self.command(&["mount", "--foreground"], image, options);
        let log = fs::File::create(self.path("log")).unwrap();
        let mut command = Command::new(ORLOP);
        command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // Of its own: the kernel ends a stopped process whose group loses its last parent.
        let mut child = command.process_group(0).spawn().expect("the program under test starts");
        let start = Instant::now();
        while fs::read(self.path("m/info.json")).is_err() {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", self.log());
            assert!(start.elapsed() < PATIENCE, "{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        child
    }

    /// What the server in the foreground said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub fn umount(&self) {
        run(ORLOP, &["umount", &self.name("m")]);
    }

    pub fn try_umount(&self, options: &[&str]) -> Output {
        run_any(ORLOP, &[&["umount", &self.name("m")], options].concat())
    }

    /// What the mount says of itself.
    pub fn info(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path("m/info.json")).unwrap()).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = self.info()["pid"].as_i64().unwrap();
        kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
    }

    /// Mount points below the folder.
    fn mounts(&self) -> Vec<String> {
        let table = fs::read("/proc/self/mountinfo").unwrap();
        let table = String::from_utf8_lossy(&table);
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        points.filter(|at| Path::new(at).starts_with(self.folder.path())).map(Into::into).collect()
    }

    /// Loop devices over files below the folder.
    pub fn loops(&self) -> Vec<String> {
        let listed = run("losetup", &["--list", "--noheadings", "--output", "NAME,BACK-FILE"]);
        let ours = listed.lines().filter(|line| line.contains(text(self.folder.path())));
        ours.filter_map(|line| line.split_whitespace().next()).map(Into::into).collect()
    }

    /// Servers that were told of the folder.
    fn processes(&self) -> Vec<Pid> {
        let all = fs::read_dir("/proc").unwrap().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let ours = pids.filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.contains(text(self.folder.path())) && line.contains("mount")
        });
        ours.filter_map(Pid::from_raw).collect()
    }

    /// Waits until something is so.
    pub fn until(&self, what: &str, is: impl Fn() -> bool) {
        let start = Instant::now();
        while !is() {
            assert!(start.elapsed() < PATIENCE, "never: {what}; {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Nothing was made, or all of it is undone; a server may still be on its way out.
    pub fn nothing_is_left(&self) {
        self.until("the server ends", || self.processes().is_empty());
        assert_eq!(self.mounts(), Vec::<String>::new());
        // The kernel lets go of a device when its last user's work is done.
        self.until("the loop devices go", || self.loops().is_empty());
    }
}

impl Drop for Place {
    /// Also after a failure nothing stays.
    fn drop(&mut self) {
        for at in self.mounts().iter().rev() {
            run_any("umount", &["-l", at]);
        }
        for device in self.loops() {
            run_any("losetup", &["-d", &device]);
        }
        for pid in self.processes() {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// How requests come where nobody asks for anything.
pub fn usual_transport() -> &'static str {
    let offered = fs::read_to_string("/sys/module/fuse/parameters/enable_uring");
    if offered.is_ok_and(|told| told.trim() == "Y") { "uring" } else { "classic" }
}

/// An answer that must be a refusal with this code; gives what was said.
pub fn refused(output: &Output, code: i32) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    said
}

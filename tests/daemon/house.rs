//! A running `orlop daemon` in a directory of its own, which goes with the test that started it,
//! with whatever it mounted.

#![allow(dead_code, reason = "each program of tests uses a part")]

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// How long a daemon may take to be ready, or to end.
const PATIENCE: Duration = Duration::from_secs(120);

/// The directory of a daemon.
pub(crate) struct House {
    dir: TempDir,
}

impl House {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("orlop-daemon-").tempdir().unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The directory given to the daemon.
    pub(crate) fn state(&self) -> PathBuf {
        self.path("d")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.state().join("run/api.sock")
    }

    /// A daemon, ready.
    pub(crate) fn start(&self, options: &[&str]) -> Daemon {
        self.start_with(options, &[])
    }

    /// A daemon that attaches again what was attached.
    pub(crate) fn begin(&self, options: &[&str]) -> Daemon {
        let mut command = Command::new(env!("CARGO_BIN_EXE_orlop"));
        command.args(["daemon", "--state-dir"]).arg(self.state()).args(options);
        self.wait_under(command, 0o700, "STATUS=attaching what was attached")
    }

    /// A daemon, ready, with more in its environment.
    pub(crate) fn start_with(&self, options: &[&str], env: &[(&str, &str)]) -> Daemon {
        let mut command = Command::new(env!("CARGO_BIN_EXE_orlop"));
        command.args(["daemon", "--state-dir"]).arg(self.state()).args(options);
        command.envs(env.iter().copied());
        self.wait_for(command)
    }

    /// What this command starts, ready; as a user who may do less than this one.
    pub(crate) fn wait_for_nobody(&self, command: Command) -> Daemon {
        self.wait_under(command, 0o777, "READY=1")
    }

    /// What this command starts, ready.
    pub(crate) fn wait_for(&self, command: Command) -> Daemon {
        self.wait_under(command, 0o700, "READY=1")
    }

    fn wait_under(&self, mut command: Command, mode: u32, word: &str) -> Daemon {
        let notify = self.path("notify");
        let _earlier = std::fs::remove_file(&notify);
        let told = UnixDatagram::bind(&notify).unwrap();
        std::fs::set_permissions(&notify, std::fs::Permissions::from_mode(mode)).unwrap();
        told.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let log = self.path("log");
        let err = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        command.env("NOTIFY_SOCKET", &notify).env_remove("ORLOP_LOG");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(err);
        let child = command.spawn().unwrap();
        let mut daemon = Daemon { child, told, log, state: self.state() };
        assert!(daemon.hears(word), "the daemon never says {word}:\n{}", daemon.log());
        daemon
    }

    /// Runs orlop with the daemon's socket; its exit code, and what it said on both.
    pub(crate) fn orlop(&self, args: &[&str]) -> (i32, String, String) {
        let mut command = Command::new("timeout");
        command.args(["-k", "5", "120", env!("CARGO_BIN_EXE_orlop")]).args(args);
        command.env("ORLOP_SOCKET", self.socket()).env("ORLOP_LOG", "warn").stdin(Stdio::null());
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    }

    /// What orlop says when all goes well.
    pub(crate) fn done(&self, args: &[&str]) -> String {
        let (code, out, err) = self.orlop(args);
        assert_eq!(code, 0, "{args:?}: {out}{err}");
        out.trim_end().to_owned()
    }

    /// What orlop says when it ends with this code.
    pub(crate) fn fails(&self, code: i32, args: &[&str]) -> String {
        let (found, out, err) = self.orlop(args);
        assert_eq!(found, code, "{args:?}: {out}{err}");
        out + &err
    }

    /// The same as JSON.
    pub(crate) fn json(&self, code: i32, args: &[&str]) -> Value {
        let (found, out, err) = self.orlop(&[args, &["--json"]].concat());
        assert_eq!(found, code, "{args:?}: {out}{err}");
        let object: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(object["schema_version"], 1, "{object}");
        object
    }

    /// A file SR, attached.
    pub(crate) fn sr(&self, name: &str) -> String {
        let location = format!("location={}", self.path(name).display());
        self.done(&["sr", "create", "--type", "file", "-o", &location, "--label", name])
    }

    /// A VDI, attached: its file and its NBD URI.
    pub(crate) fn attached(&self, vdi: &str) -> (PathBuf, String) {
        let answer = self.json(0, &["vdi", "attach", vdi]);
        let text = |key: &str| answer[key].as_str().unwrap().to_owned();
        (text("path").into(), text("nbd_uri"))
    }

    /// Lines of mounts under this directory.
    pub(crate) fn mounts(&self) -> Vec<String> {
        let all = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let own = self.dir.path().to_str().unwrap().to_owned();
        all.lines().filter(|line| line.contains(&own)).map(str::to_owned).collect()
    }
}

/// A running daemon.
pub(crate) struct Daemon {
    child: Child,
    told: UnixDatagram,
    log: PathBuf,
    state: PathBuf,
}

impl Daemon {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it tells its service manager this, in time.
    pub(crate) fn hears(&mut self, word: &str) -> bool {
        let start = Instant::now();
        let mut bytes = [0; 4096];
        while start.elapsed() < PATIENCE {
            if let Ok(count) = self.told.recv(&mut bytes) {
                if String::from_utf8_lossy(&bytes[..count]).lines().any(|line| line == word) {
                    return true;
                }
                continue;
            }
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
        }
        false
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.id().cast_signed()).unwrap(), signal).unwrap();
    }

    /// Ends it as a service manager does, and expects that all went well.
    pub(crate) fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = self.await_end();
        assert!(status.success(), "the daemon ended with {status}:\n{}", self.log());
    }

    /// Ends it as the kernel does.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub(crate) fn await_end(&mut self) -> std::process::ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the daemon does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Resident memory, in bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the daemon said:\n{}", self.log());
        }
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        // Where it could not do it itself, what it mounted is taken away for it.
        clear(&self.state);
    }
}

/// Takes away every mount below a directory, where a test failed or killed.
fn clear(dir: &Path) {
    if !std::thread::panicking() {
        return;
    }
    let Ok(mounts) = std::fs::read_to_string("/proc/self/mounts") else { return };
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for place in places.filter(|place| Path::new(place).starts_with(dir)) {
        let _ = Command::new("umount").args(["-l", place]).status();
    }
}

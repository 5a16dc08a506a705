//! A running `orlop serve`, which dies with the test that started it.
#![allow(dead_code, unreachable_pub)]

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long a server may take to end after it was asked to.
const CLOSING: Duration = Duration::from_secs(30);

/// A served image.
pub struct Server {
    child: Child,
    uri: String,
    // Kept open, or the server's next line would end it.
    _out: BufReader<ChildStdout>,
    folder: TempDir,
    launched_in: Duration,
}

impl Server {
    /// Serves an image on a unix socket of its own.
    pub fn start(image: &Path, options: &[&str]) -> Self {
        let folder = TempDir::new().expect("the temporary folder takes files");
        let socket = folder.path().join("nbd");
        let mut arguments: Vec<OsString> = vec!["--socket".into(), socket.into()];
        arguments.extend(options.iter().map(OsString::from));
        Self::launch(Command::new(env!("CARGO_BIN_EXE_orlop")), folder, image, &arguments)
    }

    /// Serves what the arguments say on a unix socket of its own.
    pub fn start_many(arguments: &[&str]) -> Self {
        let folder = TempDir::new().expect("the temporary folder takes files");
        let mut all: Vec<OsString> = vec!["--socket".into(), folder.path().join("nbd").into()];
        all.extend(arguments.iter().map(OsString::from));
        let mut command = Command::new(env!("CARGO_BIN_EXE_orlop"));
        command.arg("serve").args(all);
        Self::wait_for(command, folder)
    }

    /// Serves an image on a free TCP port of this machine.
    pub fn start_tcp(image: &Path, options: &[&str]) -> Self {
        let folder = TempDir::new().expect("the temporary folder takes files");
        let mut arguments: Vec<OsString> = vec!["--port".into(), "0".into()];
        arguments.extend(options.iter().map(OsString::from));
        Self::launch(Command::new(env!("CARGO_BIN_EXE_orlop")), folder, image, &arguments)
    }

    /// Serves an image on a unix socket, started by another program that watches it.
    pub fn start_under(watcher: &[&str], image: &Path, options: &[&str]) -> Self {
        let folder = TempDir::new().expect("the temporary folder takes files");
        let socket = folder.path().join("nbd");
        let mut arguments: Vec<OsString> = vec!["--socket".into(), socket.into()];
        arguments.extend(options.iter().map(OsString::from));
        let mut command = Command::new(watcher[0]);
        command.args(&watcher[1..]).arg(env!("CARGO_BIN_EXE_orlop"));
        Self::launch(command, folder, image, &arguments)
    }

    fn launch(mut command: Command, folder: TempDir, image: &Path, options: &[OsString]) -> Self {
        command.arg("serve").arg(image).args(options);
        Self::wait_for(command, folder)
    }

    fn wait_for(mut command: Command, folder: TempDir) -> Self {
        let log = File::create(folder.path().join("log")).expect("a log can be written");
        command.env("ORLOP_LOG", "info").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let start = Instant::now();
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let out = child.stdout.take().expect("it was asked to be a pipe");
        let mut out = BufReader::new(out);
        let mut uri = String::new();
        out.read_line(&mut uri).expect("the server's standard output is text");
        let launched_in = start.elapsed();
        let server = Self { child, uri: uri.trim_end().to_owned(), _out: out, folder, launched_in };
        assert!(!server.uri.is_empty(), "no URI from {command:?}:\n{}", server.log());
        server
    }

    /// Where it serves.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// Where another export of it is.
    pub fn uri_of(&self, export: &str) -> String {
        let socket = self.folder.path().join("nbd");
        format!("nbd+unix:///{export}?socket={}", socket.display())
    }

    /// A path in a folder that goes with the server.
    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// The id of the process that was started.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// From its start to its first word.
    pub const fn launched_in(&self) -> Duration {
        self.launched_in
    }

    /// What it said on standard error.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Resident memory of the process in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id()));
        let status = status.expect("a running process has a status");
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        kib.expect("the status tells the resident memory") << 10
    }

    /// Ends it as a service would be, and expects it to say that all went well.
    pub fn close(mut self) {
        self.signal(Signal::TERM);
        let deadline = Instant::now() + CLOSING;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                assert!(status.success(), "the server ended with {status}:\n{}", self.log());
                return;
            }
            assert!(Instant::now() < deadline, "the server does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends it as a power cut of the process would.
    pub fn kill(mut self) {
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it is our child");
    }

    fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.id()).ok().and_then(Pid::from_raw);
        kill_process(id.expect("a child has an id"), signal).expect("it is our child");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A watcher ends with what it watches, so the grandchild must be asked, not killed.
        if std::thread::panicking() {
            eprintln!("the server said:\n{}", self.log());
            self.signal(Signal::TERM);
            std::thread::sleep(Duration::from_millis(200));
        }
        // It has ended already when it was closed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

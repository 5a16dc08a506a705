//! Another server between ours and a client, which dies with the test that started it.
#![allow(unreachable_pub)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::foreign::text;

/// How long it may take to listen or to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server by others that exports what ours does, on a unix socket.
pub struct Companion {
    child: Child,
    socket: PathBuf,
    uri: String,
}

impl Companion {
    /// QEMU's storage daemon, with ours below it at a socket.
    pub fn storage_daemon(folder: &Path, ours: &str) -> Self {
        let socket = folder.join("daemon");
        let ours =
            format!("driver=nbd,node-name=ours,discard=unmap,server.type=unix,server.path={ours}");
        let listen = format!("addr.type=unix,addr.path={}", text(&socket));
        let export = "type=nbd,id=again,node-name=ours,writable=on,name=again";
        let mut command = Command::new("qemu-storage-daemon");
        command.args(["--blockdev", &ours, "--nbd-server", &listen, "--export", export]);
        Self::start(command, socket, "again")
    }

    /// nbdkit with its client of NBD as the plugin, with ours below it at a URI.
    pub fn nbdkit(folder: &Path, ours: &str) -> Self {
        let socket = folder.join("nbdkit");
        let mut command = Command::new("nbdkit");
        command.args(["-f", "-U", text(&socket), "nbd", &format!("uri={ours}"), "shared=true"]);
        Self::start(command, socket, "")
    }

    fn start(mut command: Command, socket: PathBuf, export: &str) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let uri = format!("nbd+unix:///{export}?socket={}", text(&socket));
        let mut companion = Self { child, socket, uri };
        let deadline = Instant::now() + PATIENCE;
        while !companion.socket.exists() {
            let ended = companion.child.try_wait().expect("it is our child");
            assert!(ended.is_none(), "{command:?} ended with {ended:?}");
            assert!(Instant::now() < deadline, "{command:?} does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        companion
    }

    /// Where it serves.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// Asks it to end, and waits for that.
    pub fn close(mut self) {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(id.expect("a child has an id"), Signal::TERM).expect("it is our child");
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().expect("it is our child").is_none() {
            assert!(Instant::now() < deadline, "{} does not end", self.uri);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Companion {
    fn drop(&mut self) {
        // It has ended already when it was closed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! A server to be abused: it is watched, so that one that hangs fails its test instead of hanging
//! it, and it can be asked what it holds. Judges nothing by itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::server::Server;
use crate::sessions;

/// How long one abuse may take at all.
const LIMIT: Duration = Duration::from_secs(240);

/// Kills the server when its time is up: every peer that waits for it, even in `connect`, then
/// gets an error.
struct Watchdog {
    done: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    fn new(id: u32) -> Self {
        let (done, is_done) = channel();
        let thread = spawn(move || {
            if is_done.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
                eprintln!("the server is killed: after {LIMIT:?} its peers are not done with it");
                let id = i32::try_from(id).ok().and_then(Pid::from_raw);
                // It may have died by itself.
                let _ = kill_process(id.expect("a child has an id"), Signal::KILL);
            }
        });
        Self { done: Some(done), thread: Some(thread) }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.done.take());
        // A watchdog that panicked has said why.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A server of a new, empty VHD of 1 GiB.
pub(crate) struct Victim {
    // Called off before the server's id can be another process's: fields drop in this order.
    watchdog: Watchdog,
    server: Server,
    socket: PathBuf,
    _folder: TempDir,
}

impl Victim {
    fn new(aio: &str) -> Self {
        let folder = TempDir::new().expect("the temporary folder takes files");
        let image = folder.path().join("disk.vhd");
        let server =
            Server::start(&image, &["--create", "1G", "--aio", aio, "--export-connections", "256"]);
        let (_, socket) = server.uri().split_once("?socket=").expect("it serves a unix socket");
        let socket = PathBuf::from(socket);
        Self { watchdog: Watchdog::new(server.id()), server, socket, _folder: folder }
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// How many descriptors it has open.
    pub(crate) fn descriptors(&self) -> usize {
        let open = fs::read_dir(format!("/proc/{}/fd", self.server.id()));
        open.expect("a running process has descriptors").count()
    }

    /// Waits until it has at most so many descriptors open.
    pub(crate) fn await_descriptors(&self, most: usize) {
        for _ in 0..600 {
            if self.descriptors() <= most {
                return;
            }
            sleep(Duration::from_millis(100));
        }
        panic!("{} descriptors are open, not {most}", self.descriptors());
    }

    /// Watches its memory for a second, and expects it to stay below so many bytes.
    pub(crate) fn expect_resident_below(&self, limit: u64, what: &str) {
        for _ in 0..20 {
            let resident = self.server.resident_bytes();
            assert!(resident < limit, "{what}: {} KiB are resident", resident >> 10);
            sleep(Duration::from_millis(50));
        }
    }

    /// Asks it to end, and expects it to do so and to say that all went well.
    pub(crate) fn close(self) {
        drop(self.watchdog);
        self.server.close();
    }
}

/// Abuses a server with each kind of I/O that this machine has.
pub(crate) fn each_aio(abuse: impl Fn(Victim)) {
    for aio in ["threads", "uring"] {
        if aio == "uring" && !sessions::has_ring() {
            continue;
        }
        println!("--aio {aio}");
        abuse(Victim::new(aio));
    }
}

//! What durability costs in system calls, counted by strace: random writes without a client's flush
//! sync nothing, a flush syncs at most twice. Only the threads host makes calls that strace can
//! see; what the ring is asked for is the engine's doing all the same (tests/layers.rs counts it).
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/foreign.rs"]
mod foreign;
#[path = "support/server.rs"]
mod server;
#[path = "interop/sessions.rs"]
mod sessions;

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use foreign::{PYTHON, have, run, run_any, script, text};
use server::Server;
use sessions::{Kind, image};

/// Syncs in a trace so far, of any sort: calls, and writes that wait for stable storage.
fn syncs(trace: &Path) -> usize {
    // A line is written when its call returns, which may be a moment after the client knows.
    std::thread::sleep(Duration::from_millis(100));
    let text = std::fs::read_to_string(trace).unwrap();
    let is_sync = |line: &&str| {
        let durable = line.contains("pwritev2(") && line.contains("RWF_DSYNC");
        durable || ["fdatasync(", "fsync(", "syncfs("].iter().any(|call| line.contains(call))
    };
    text.lines().filter(is_sync).count()
}

fn client(check: &str, server: &Server) {
    run(PYTHON, &[&script("nbd_client.py"), check, server.uri()]);
}

/// Whether strace may look at processes here; containers often forbid it.
fn may_trace() -> bool {
    let may = run_any("strace", &["-D", "-o", "/dev/null", "true"]).status.success();
    if !may {
        println!("SKIPPED: strace may not trace here");
    }
    may
}

#[test]
fn writes_without_a_flush_sync_nothing_and_a_flush_at_most_twice() {
    if !have(&["strace", "libnbd for Python"]) || !may_trace() {
        return;
    }
    for kind in Kind::ALL {
        let folder = TempDir::new().unwrap();
        let path = image(&folder, kind, 16 << 20);
        let trace = folder.path().join("trace");
        // The tracer as a grandchild, so that the child we signal is the server itself.
        let watcher = ["strace", "-D", "-f", "-qq", "-o", text(&trace)];
        let calls = ["-e", "trace=fdatasync,fsync,syncfs,pwritev2"];
        let watcher = [&watcher[..], &calls[..]].concat();
        let server = Server::start_under(&watcher, &path, &["--aio", "threads"]);
        client("fill", &server);
        let filled = syncs(&trace);
        assert!(filled > 0, "{kind:?}: a flush that syncs nothing, or a trace that sees nothing");
        client("scatter", &server);
        let scattered = syncs(&trace);
        client("flush", &server);
        let flushed = syncs(&trace);
        client("flush", &server);
        let idle = syncs(&trace);
        println!("{kind:?}: {filled} syncs to fill, {} for a flush", flushed - scattered);
        assert_eq!(scattered, filled, "{kind:?}: writes without a flush caused syncs");
        assert!(
            (1..=2).contains(&(flushed - scattered)),
            "{kind:?}: {} syncs",
            flushed - scattered
        );
        assert_eq!(idle, flushed, "{kind:?}: a flush with nothing to do caused a sync");
        server.close();
    }
}

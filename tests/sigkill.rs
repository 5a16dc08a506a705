//! The server killed for real, with SIGKILL, at random moments under load: every sector that a
//! flush covered is found by the next server, and `check` has nothing to say.
//!
//! A killed process leaves the page cache behind, so this shows that nothing acknowledged lives in
//! the process alone. What a power cut takes is the crash simulator's business (tests/crash.rs).
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/foreign.rs"]
mod foreign;
#[path = "support/server.rs"]
mod server;
#[path = "interop/sessions.rs"]
mod sessions;

use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use foreign::{PYTHON, assert_same, content, have, orlop, run, script, text};
use server::Server;

/// Lives of one test; several tests make up for at least fifty in all.
const LIVES: &str = "20";

fn live(options: &[&str]) {
    if !have(&["libnbd for Python"]) || (options.contains(&"uring") && !sessions::has_ring()) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let image = folder.path().join("disk.vhd");
    let seed = std::env::var("ORLOP_KILL_SEED").unwrap_or_else(|_| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.unwrap().subsec_nanos().to_string()
    });
    let lives = std::env::var("ORLOP_KILL_LIVES").unwrap_or_else(|_| LIVES.to_owned());
    println!("ORLOP_KILL_SEED={seed} {options:?}");
    let (script, image) = (script("sigkill.py"), text(&image));
    let common = [&script, env!("CARGO_BIN_EXE_orlop"), image, "--lives", &lives, "--seed", &seed];
    println!("{}", run(PYTHON, &[&common[..], options].concat()));
}

#[test]
fn a_killed_server_on_io_uring_loses_nothing_that_was_flushed() {
    live(&["--aio", "uring"]);
}

#[test]
fn a_killed_server_on_threads_loses_nothing_that_was_flushed() {
    live(&["--aio", "threads"]);
}

#[test]
fn a_killed_server_of_a_child_loses_nothing_and_shows_nothing_old() {
    live(&["--aio", "auto", "--parent"]);
}

#[test]
fn a_killed_server_whose_disk_has_guests_loses_nothing_that_was_flushed() {
    live(&["--aio", "auto", "--threads", "2"]);
    live(&["--aio", "auto", "--threads", "3", "--parent"]);
}

#[test]
fn a_killed_server_past_the_page_cache_loses_nothing_that_was_flushed() {
    live(&["--aio", "auto", "--cache", "none", "--parent"]);
}

/// Many programs copy a disk and hang up without a flush. Nobody can ask for one any more then, so
/// what they wrote does not wait until it is half a minute old.
#[test]
fn a_copy_without_a_flush_is_kept_once_its_client_has_gone() {
    const BYTES: u64 = 16 << 20;
    const BLOCKS: u64 = 8;
    const SOON: Duration = Duration::from_secs(20);
    if !have(&["nbdcopy"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let [image, source, copy] =
        ["disk.vhd", "source.raw", "copy.raw"].map(|name| folder.path().join(name));
    let bytes = content(BYTES, 17);
    std::fs::write(&source, &bytes).unwrap();
    let server = Server::start(&image, &["--create", "16M"]);
    run("nbdcopy", &[text(&source), server.uri()]);
    let allocated = || {
        let told = orlop(&["info", "-U", "--json", text(&image)]);
        let info: Value = serde_json::from_str(&told).unwrap();
        info["allocated_blocks"].as_u64().unwrap()
    };
    let start = Instant::now();
    while allocated() < BLOCKS {
        assert!(start.elapsed() < SOON, "{} of {BLOCKS} blocks", allocated());
        std::thread::sleep(Duration::from_millis(20));
    }
    server.kill();
    orlop(&["check", text(&image)]);
    let server = Server::start(&image, &["--read-only"]);
    run("nbdcopy", &[server.uri(), text(&copy)]);
    server.close();
    assert_same(&std::fs::read(&copy).unwrap(), &bytes, "the copy");
}

//! `orlop bench` against other people's servers, and against one that lies.
//!
//! Skips aloud where qemu-nbd or nbdkit is missing.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use orlop::bench::{BenchOptions, Report, Verdict, measure, run};
use tempfile::TempDir;

use crate::liar::Lie;

#[path = "bench/liar.rs"]
mod liar;

const DISK: u64 = 16 << 20;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    bench: BenchOptions,
}

fn options(target: &str, rest: &str) -> BenchOptions {
    let words = ["bench", target].into_iter().chain(rest.split_ascii_whitespace());
    Cli::try_parse_from(words).unwrap().bench
}

fn report(target: &str, rest: &str) -> Report {
    measure(&options(target, rest)).unwrap()
}

fn refusal(target: &str, rest: &str) -> String {
    format!("{:#}", measure(&options(target, rest)).expect_err(rest))
}

/// A server of somebody else's, ended with the test however that ends.
struct Server {
    child: Child,
    uri: String,
    image: PathBuf,
    dir: TempDir,
}

impl Server {
    /// `None`, aloud, if the program is not installed. `SOCKET` and `IMAGE` are filled in.
    fn start(program: &str, arguments: &str) -> Option<Server> {
        let dir = tempfile::tempdir().unwrap();
        let (socket, image) = (dir.path().join("s.sock"), dir.path().join("disk.raw"));
        File::create(&image).unwrap().set_len(DISK).unwrap();
        let fill = |word: &str| match word {
            "SOCKET" => socket.clone().into_os_string(),
            "IMAGE" => image.clone().into_os_string(),
            other => other.into(),
        };
        let mut command = Command::new(program);
        command.args(arguments.split_ascii_whitespace().map(fill)).stderr(Stdio::null());
        let Ok(child) = command.spawn() else {
            eprintln!("SKIPPED: {program} is not installed");
            return None;
        };
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        let server = Server { child, uri, image, dir };
        let patience = Instant::now() + Duration::from_secs(10);
        // A socket may exist a moment before anybody listens; a pid file is there when it is.
        let ready = || socket.is_file() || UnixStream::connect(&socket).is_ok();
        while !ready() {
            assert!(Instant::now() < patience, "{program} makes no socket");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(server)
    }

    fn nbdkit(rest: &str) -> Option<Server> {
        Server::start("nbdkit", &format!("-f -U SOCKET {rest}"))
    }

    fn qemu(rest: &str) -> Option<Server> {
        Server::start("qemu-nbd", &format!("-t -e 8 -f raw -k SOCKET {rest} IMAGE"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone after this.
        let _ = self.child.kill();
        let _ = self.child.wait();
        assert!(self.dir.path().exists(), "the directory outlives its server");
    }
}

fn assert_clean(report: &Report, at_least: u64) {
    assert!(report.is_clean(), "{report}");
    assert!(report.verify.as_ref().unwrap().checked_bytes >= at_least, "{report}");
}

fn every_depth_and_width(server: &Server) {
    for depth in [1, 16, 64] {
        for jobs in [1, 4] {
            for style in ["", "--structured"] {
                let load = format!(
                    "--rw randrw --verify --yes --ops 2000 --qd {depth} --jobs {jobs} {style}"
                );
                let report = report(&server.uri, &load);
                assert_clean(&report, DISK);
                assert_eq!(report.total.ops, 2000);
                assert!(report.cpu.server_us_per_op.unwrap() > 0.0, "{report}");
                assert_eq!(report.cpu.server_pid, Some(server.child.id()));
            }
        }
    }
}

#[test]
fn qemu_nbd_serves_what_was_written_at_every_depth() {
    let Some(server) = Server::qemu("") else { return };
    every_depth_and_width(&server);
}

#[test]
fn nbdkit_serves_what_was_written_at_every_depth() {
    let Some(server) = Server::nbdkit("file IMAGE") else { return };
    every_depth_and_width(&server);
}

#[test]
fn every_pattern_block_size_and_durability_is_served() {
    let Some(server) = Server::qemu("") else { return };
    for load in [
        "--rw read --bs 1M --qd 8",
        "--rw write --bs 1M --qd 8",
        "--rw randwrite --bs 512 --flush-every 10",
        "--rw randwrite --bs 64K --fua --jobs 2",
        "--rw randrw --mix 90 --bs 192K --offset 1M --size 9M",
        "--rw randrw --bs 1M --qd 16 --structured",
    ] {
        assert_clean(&report(&server.uri, &format!("{load} --verify --yes --ops 300")), 0);
    }
}

#[test]
fn two_big_windows_do_not_lock_each_other_up() {
    // Both sockets fill up: a client that only wrote, or only read, would hang here.
    let Some(server) = Server::nbdkit("file IMAGE") else { return };
    let load = "--rw randrw --bs 512K --qd 64 --size 16M --ops 400 --yes";
    assert!(report(&server.uri, load).is_clean());
}

#[test]
fn a_server_on_tcp_is_found_by_its_port() {
    // The port is free again by the time nbdkit takes it, and nobody else asks for just this one.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    // It writes its pid file, here in the socket's place, once it listens.
    let arguments = format!("-f -P SOCKET -i 127.0.0.1 -p {port} memory 4M");
    let Some(server) = Server::start("nbdkit", &arguments) else { return };
    let load = format!("--verify --yes --ops 500 --jobs 2 --server-pid {}", server.child.id());
    let found = report(&format!("nbd://127.0.0.1:{port}/"), &load);
    assert_clean(&found, 4 << 20);
    assert!(found.cpu.server_us_per_op.unwrap() > 0.0, "{found}");
}

#[test]
fn a_byte_changed_behind_the_server_is_found_where_it_is() {
    let Some(server) = Server::nbdkit("file IMAGE") else { return };
    assert_clean(&report(&server.uri, "--rw randwrite --verify --yes --ops 500 --seed 5"), DISK);
    let again = "--rw randread --verify-only --ops 10 --seed 5";
    assert_clean(&report(&server.uri, again), DISK);
    // Another block size than it was written with.
    assert_clean(&report(&server.uri, &format!("{again} --bs 64K")), DISK);

    let spot = 7_654_321;
    let file = File::options().read(true).write(true).open(&server.image).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, spot).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], spot).unwrap();
    let found = report(&server.uri, again);
    assert_eq!(found.fault_count, 1, "{found}");
    assert_eq!((found.faults[0].kind.as_str(), found.faults[0].offset), ("mismatch", Some(spot)));
    assert!(found.faults[0].found.contains("1 of 512 bytes differ"), "{found}");
    assert!(!report(&server.uri, &again.replace("5", "6")).is_clean(), "another run's stamps");
}

#[test]
fn a_server_that_drops_writes_is_found_out() {
    let Some(server) = Server::nbdkit("null 16M") else { return };
    let found = report(&server.uri, "--rw randwrite --verify --yes --ops 100");
    assert!(found.faults[0].found.contains("0x00 in all 512 bytes"), "{found}");
}

#[test]
fn a_filter_that_swaps_bytes_on_one_way_only_is_found_out() {
    let Some(plain) = Server::nbdkit("file IMAGE") else { return };
    assert_clean(&report(&plain.uri, "--rw randwrite --verify --yes --ops 100 --seed 5"), DISK);
    let socket = plain.dir.path().join("s.sock");
    fs::rename(&socket, plain.dir.path().join("plain.sock")).unwrap();
    let behind = format!("--filter=swab nbd socket={}/plain.sock", plain.dir.path().display());
    let Some(swapped) = Server::nbdkit(&behind) else { return };
    let found = report(&swapped.uri, "--verify-only --ops 10 --seed 5 --qd 4");
    assert_eq!(found.faults[0].kind, "mismatch", "{found}");
}

#[test]
fn an_error_of_the_server_is_reported_with_its_offset() {
    let filter = "--filter=error memory 16M error-pread=ENOSPC error-pread-rate=2%";
    let Some(server) = Server::nbdkit(filter) else { return };
    let load = "--rw randread --ops 5000 --size 8M --offset 4M";
    for style in ["", "--structured"] {
        let found = report(&server.uri, &format!("{load} {style}"));
        assert_eq!(found.faults[0].kind, "refused", "{found}");
        assert!(found.faults[0].found.contains("ENOSPC"), "{found}");
        let at = found.faults[0].offset.unwrap();
        assert!((4 << 20..12 << 20).contains(&at) && at.is_multiple_of(4096), "{found}");
        let mut out = Vec::new();
        let verdict = run(&options(&server.uri, &format!("{load} {style}")), &mut out).unwrap();
        assert_eq!(verdict, Verdict::Faulty);
        assert_eq!(verdict.exit_status(), 1);
    }
}

#[test]
fn a_server_that_dies_under_load_is_a_fault_and_no_hang() {
    let Some(mut server) = Server::nbdkit("file IMAGE") else { return };
    let options = options(&server.uri, "--time 20 --jobs 2");
    let load = std::thread::spawn(move || measure(&options));
    std::thread::sleep(Duration::from_millis(300));
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    let begun = Instant::now();
    // The processor's account of a dead server cannot be read, which must not hide the fault.
    let found = load.join().unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(found.faults[0].kind, "broken", "{found}");
}

const MIXED: &str = "--rw randrw --ops 6000";

/// Writes each block of the liar's disk twice after the stamping. Its lie comes in the last of
/// those writes or the first read after it, so nothing can heal it before it is looked for.
const TWICE_EACH: &str = "--rw write --ops 512";

fn told(lie: Lie, load: &str, jobs: u32) -> Report {
    let dir = tempfile::tempdir().unwrap();
    let socket = liar::start(dir.path(), lie);
    let load = format!("{load} --verify --yes --qd 16 --jobs {jobs}");
    report(&format!("nbd+unix:///x?socket={}", socket.display()), &load)
}

#[test]
fn answers_out_of_order_are_no_lies() {
    for jobs in [1, 4] {
        assert_clean(&told(Lie::None, MIXED, jobs), liar::DISK as u64);
    }
}

#[test]
fn each_lie_about_data_is_a_mismatch() {
    for lie in [Lie::LostWrite, Lie::Misdirected, Lie::FlippedBit, Lie::Stale] {
        for jobs in [1, 4] {
            let found = told(lie, TWICE_EACH, jobs);
            assert!(!found.is_clean(), "{lie:?} with {jobs} jobs went unnoticed");
            assert_eq!(found.faults[0].kind, "mismatch", "{lie:?} {found}");
        }
    }
}

#[test]
fn each_breach_of_the_protocol_ends_the_load() {
    let lies = [
        (Lie::UnknownCookie, "not in flight"),
        (Lie::Hangup, "closed the connection"),
        (Lie::Garbage, "no NBD reply"),
    ];
    for (lie, words) in lies {
        let found = told(lie, MIXED, 1);
        assert_eq!(found.faults[0].kind, "broken", "{lie:?} {found}");
        assert!(found.faults[0].found.contains(words), "{lie:?} {found}");
    }
    let found = told(Lie::Refusal, MIXED, 1);
    assert_eq!(found.faults[0].kind, "refused", "{found}");
    assert!(found.faults[0].found.contains("ENOSPC"), "{found}");
}

#[test]
fn a_file_is_loaded_and_checked_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    File::create(&path).unwrap().set_len(4 << 20).unwrap();
    let name = path.to_str().unwrap();
    let load = "--rw randrw --verify --yes --ops 2000 --jobs 2 --flush-every 100";
    assert_clean(&report(name, load), 4 << 20);
}

#[test]
fn two_reports_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk.raw");
    File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let save = |name: &str| {
        let mut out = Vec::new();
        let load = options(disk.to_str().unwrap(), "--ops 1000 --json");
        assert_eq!(run(&load, &mut out).unwrap(), Verdict::Clean);
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["schema_version"], 1);
        assert!(value["total"]["latency_us"]["p99_9"].as_f64().unwrap() > 0.0);
        let path = dir.path().join(name);
        fs::write(&path, out).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let compared = |rest: &[&str]| {
        let words = ["bench", "--compare"].iter().chain(rest);
        let mut out = Vec::new();
        let outcome = run(&Cli::try_parse_from(words).unwrap().bench, &mut out);
        outcome.map(|_| String::from_utf8(out).unwrap())
    };
    let (a, b) = (save("a.json"), save("b.json"));
    let table = compared(&[&a, &b]).unwrap();
    assert!(table.contains("iops") && table.contains("B/A"), "{table}");
    let json: serde_json::Value =
        serde_json::from_str(&compared(&[&a, &b, "--json"]).unwrap()).unwrap();
    assert!(json["b_over_a"]["iops"].as_f64().unwrap() > 0.0);
    fs::write(&b, "{\"schema_version\":9}").unwrap();
    assert!(format!("{:#}", compared(&[&a, &b]).unwrap_err()).contains("schema_version"));
}

#[test]
fn loads_that_make_no_sense_are_refused_with_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let disk = path.to_str().unwrap();
    for (load, hint) in [
        ("--rw randwrite", "--yes"),
        ("--verify", "--yes"),
        ("--bs 0", "--bs"),
        ("--bs 2M", "smaller --bs"),
        ("--offset 2M", "behind the end"),
        ("--size 2M", "behind the end"),
        ("--bs 1000 --verify --yes", "512"),
        ("--verify-only --seed 1 --rw randrw", "--verify-only writes nothing"),
        ("--flush-every 3", "--flush-every counts writes"),
        ("--ops 0", "--ops 0"),
    ] {
        let words = refusal(disk, load);
        assert!(words.contains(hint), "{load}: {words}");
    }
    let absent = dir.path().join("absent");
    assert!(refusal(absent.to_str().unwrap(), "").contains("absent"));
    let nobody = format!("nbd+unix:///?socket={}", absent.display());
    assert!(refusal(&nobody, "").contains("is the server running?"));
    assert!(refusal("nbds://x/", "").contains("TLS"));
}

#[test]
fn exports_that_cannot_take_the_load_say_why() {
    let Some(server) = Server::qemu("-r") else { return };
    assert!(refusal(&server.uri, "--rw randwrite --yes").contains("read-only"));
    let unknown = server.uri.replace(":///", ":///nothing-of-that-name");
    assert!(refusal(&unknown, "").contains("nothing-of-that-name"));
    assert!(!Path::new("nothing-of-that-name").exists());
}

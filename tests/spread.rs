//! Disks that several threads serve at once: those that nobody writes, those that keep nothing, and
//! those that are written, of which one thread owns each. Images and clients are QEMU's and
//! libnbd's.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/foreign.rs"]
mod foreign;
#[path = "support/server.rs"]
mod server;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use foreign::{PYTHON, assert_same, content, have, orlop, run, run_any, text};
use server::Server;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 24 * MIB;

/// A VHD that QEMU made of random content, and that content as a file.
fn vhd(folder: &TempDir) -> (PathBuf, PathBuf) {
    let (raw, vhd) = (folder.path().join("wanted"), folder.path().join("base.vhd"));
    std::fs::write(&raw, content(SIZE, 11)).unwrap();
    let convert = ["convert", "-f", "raw", "-O", "vpc", "-o", "subformat=dynamic,force_size=on"];
    run("qemu-img", &[convert.as_slice(), &[text(&raw), text(&vhd)]].concat());
    (vhd, raw)
}

/// A server of two threads with an admin.
struct Served {
    server: Server,
    admin: PathBuf,
}

impl Served {
    fn with(folder: &TempDir, spec: &str) -> Self {
        let admin = folder.path().join("admin");
        let options = ["--add", spec, "--threads", "2", "--admin", text(&admin)];
        let server = Server::start_many(&options);
        Self { server, admin }
    }

    fn ask(&self, words: &[&str]) -> Value {
        let all = [&["export", "--json", "--admin", text(&self.admin)], words].concat();
        serde_json::from_str(&orlop(&all)).unwrap()
    }

    fn stats(&self) -> Value {
        self.ask(&["stats"])["answer"]["x"].clone()
    }

    /// The threads of the connections there are, sorted.
    fn threads(&self) -> Vec<u64> {
        let stats = self.stats();
        let connections = stats["connections"].as_array().unwrap();
        let thread = |one: &Value| one["thread"].as_u64().unwrap();
        let mut threads: Vec<_> = connections.iter().map(thread).collect();
        threads.sort_unstable();
        threads
    }

    /// For how many nanoseconds each thread that serves disks has run, as the system tells; in the
    /// order of its threads' numbers.
    fn worked_ns(&self) -> Vec<u64> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.server.id())).unwrap();
        let mut paths: Vec<_> = tasks.map(|task| task.unwrap().path()).collect();
        paths.sort();
        let read = |path: &Path, name: &str| std::fs::read_to_string(path.join(name)).unwrap();
        let shards = paths.iter().filter(|path| read(path, "comm").trim() == "orlop-shard");
        let first = |text: String| text.split_whitespace().next().unwrap().parse().unwrap();
        shards.map(|path| first(read(path, "schedstat"))).collect()
    }
}

/// What was counted of reads: requests, bytes, errors.
fn reads(of: &Value) -> [u64; 3] {
    ["requests", "bytes", "errors"].map(|what| of["counters"]["read"][what].as_u64().unwrap_or(0))
}

/// Connections that stay; they die with the test.
struct Readers {
    child: Child,
    say: ChildStdin,
    hear: BufReader<ChildStdout>,
}

impl Readers {
    fn connect(uri: &str, count: usize, wanted: &Path) -> Self {
        let mut command = Command::new("timeout");
        command.args(["-k", "5", "120", PYTHON, "-c", include_str!("spread/readers.py"), uri]);
        command.arg(count.to_string()).arg(wanted).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (say, hear) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut readers = Self { child, say, hear: BufReader::new(hear) };
        assert_eq!(readers.hears(), "connected");
        readers
    }

    fn says(&mut self, words: &str) {
        self.say.write_all(format!("{words}\n").as_bytes()).unwrap();
    }

    fn hears(&mut self) -> String {
        let mut line = String::new();
        self.hear.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Lets each read the whole disk, and gives the seconds it took.
    fn read_all(&mut self) -> f64 {
        self.says("read");
        let said = self.hears();
        let (word, seconds) = said.rsplit_once(' ').unwrap_or_default();
        assert_eq!(word, "right", "{said}");
        seconds.parse().unwrap()
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_chain_is_read_right_on_two_threads_and_everything_is_counted() {
    if !have(&["qemu-img", "qemu-io", "nbdcopy", "nbdinfo", "libnbd for Python"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (base, wanted) = vhd(&folder);
    let child = folder.path().join("child.vhd");
    orlop(&["create", text(&child), "--parent", text(&base)]);
    let writing = Server::start(&child, &[]);
    let writes = ["-c", "write -P 9 70k 3M", "-c", "write -P 3 20M 513", "-c", "flush"];
    run("qemu-io", &[["-f", "raw"].as_slice(), &writes, &[writing.uri()]].concat());
    writing.close();
    run("qemu-io", &[["-f", "raw"].as_slice(), &writes, &[text(&wanted)]].concat());
    let served = Served::with(&folder, &format!("name=x,image={},read-only", text(&child)));
    let uri = served.server.uri_of("x");
    let copy = folder.path().join("copy");
    run("nbdcopy", &["--connections=4", "--threads=4", &uri, text(&copy)]);
    let bytes = std::fs::read(&wanted).unwrap();
    assert_same(&std::fs::read(&copy).unwrap(), &bytes, "nbdcopy");
    let before = reads(&served.stats());
    let idle_ns = served.worked_ns();
    let mut readers = Readers::connect(&uri, 4, &wanted);
    for _ in 0..3 {
        assert_eq!(run("nbdinfo", &["--size", &uri]).trim(), SIZE.to_string());
    }
    assert_eq!(served.threads(), [0, 0, 1, 1]);
    readers.read_all();
    let worked_ns = served.worked_ns();
    assert!(worked_ns.len() == 2 && worked_ns[0] > idle_ns[0] && worked_ns[1] > idle_ns[1]);
    let stats = served.stats();
    for one in stats["connections"].as_array().unwrap() {
        assert_eq!(reads(one), [SIZE >> 16, SIZE, 0], "{stats}");
    }
    let after = reads(&stats);
    assert_eq!(after[0] - before[0], 4 * (SIZE >> 16), "{stats}");
    assert_eq!(after[1] - before[1], 4 * SIZE, "{stats}");
    drop(readers);
    served.server.close();
    // Nothing was changed by all that, as others see it.
    let base_raw = folder.path().join("base.raw");
    run("qemu-img", &["convert", "-f", "vpc", "-O", "raw", text(&base), text(&base_raw)]);
    assert_same(&std::fs::read(&base_raw).unwrap(), &content(SIZE, 11), "the parent");
}

#[test]
fn an_export_is_removed_while_eight_clients_on_two_threads_read() {
    if !have(&["qemu-img", "qemu-io", "libnbd for Python"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (image, wanted) = vhd(&folder);
    let served = Served::with(&folder, &format!("name=x,image={},read-only", text(&image)));
    let mut readers = Readers::connect(&served.server.uri_of("x"), 8, &wanted);
    assert_eq!(served.threads(), [0, 0, 0, 0, 1, 1, 1, 1]);
    readers.says("read until refused");
    assert_eq!(readers.hears(), "reading");
    let write = ["-f", "vpc", "-c", "write -P 5 0 64k", text(&image)];
    let refused = run_any("qemu-io", &write);
    assert!(!refused.status.success(), "{refused:?}");
    served.ask(&["remove", "x"]);
    // No thread has the image open any more, though the server lives and clients do not hurry.
    run("qemu-io", &write);
    assert_eq!(readers.hears(), "right");
    drop(readers);
    served.server.close();
}

#[test]
fn a_limit_set_while_clients_are_on_two_threads_is_one_for_all() {
    if !have(&["qemu-img", "libnbd for Python"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (image, wanted) = vhd(&folder);
    let served = Served::with(&folder, &format!("name=x,image={},read-only", text(&image)));
    let mut readers = Readers::connect(&served.server.uri_of("x"), 4, &wanted);
    assert_eq!(served.threads(), [0, 0, 1, 1]);
    readers.read_all();
    // 96 MiB at 64 MiB/s, the first tenth of a second's worth being free: no less than 1.4 s. Two
    // lines would be through in 0.65 s.
    served.ask(&["limit", "x", "--bps", "64M"]);
    let seconds = readers.read_all();
    assert!(seconds >= 1.3, "{seconds} s");
    drop(readers);
    served.server.close();
}

/// Images that can be written and hold the same bytes, each with its format for QEMU.
fn writable(folder: &TempDir) -> (Vec<(PathBuf, &'static str)>, PathBuf) {
    let (dynamic, wanted) = vhd(folder);
    let place = |name: &str| folder.path().join(name);
    // Apart, since the parent is a copy of an image that is to be written.
    std::fs::create_dir(place("chain")).unwrap();
    let (parent, child) = (place("chain/parent.vhd"), place("chain/child.vhd"));
    let raw = place("image.raw");
    std::fs::copy(&wanted, &raw).unwrap();
    std::fs::copy(&dynamic, &parent).unwrap();
    orlop(&["create", text(&child), "--parent", text(&parent)]);
    (vec![(raw, "raw"), (dynamic, "vpc"), (child, "nbd")], wanted)
}

#[test]
fn what_is_written_on_two_threads_is_read_on_both_and_lies_in_the_image() {
    if !have(&["qemu-img", "nbdcopy", "libnbd for Python"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (images, wanted) = writable(&folder);
    for (image, format) in images {
        let served = Served::with(&folder, &format!("name=x,image={}", text(&image)));
        let uri = served.server.uri_of("x");
        let mut readers = Readers::connect(&uri, 4, &wanted);
        assert_eq!(served.threads(), [0, 0, 1, 1]);
        readers.read_all();
        let idle_ns = served.worked_ns();
        readers.read_all();
        let worked_ns = served.worked_ns();
        assert!(worked_ns[0] > idle_ns[0] && worked_ns[1] > idle_ns[1], "{worked_ns:?}");
        drop(readers);
        let new = folder.path().join("new");
        std::fs::write(&new, content(SIZE, 12)).unwrap();
        run("nbdcopy", &["--connections=4", "--threads=4", "--flush", text(&new), &uri]);
        let mut readers = Readers::connect(&uri, 4, &new);
        assert_eq!(served.threads(), [0, 0, 1, 1]);
        readers.read_all();
        served.ask(&["remove", "x"]);
        drop(readers);
        served.server.close();
        if format == "nbd" {
            let again = Server::start(&image, &["--read-only"]);
            Readers::connect(again.uri(), 2, &new).read_all();
            again.close();
        } else {
            let raw = folder.path().join("raw");
            run("qemu-img", &["convert", "-f", format, "-O", "raw", text(&image), text(&raw)]);
            assert_same(&std::fs::read(&raw).unwrap(), &content(SIZE, 12), format);
        }
        if format != "raw" {
            orlop(&["check", text(&image)]);
        }
    }
}

#[test]
fn what_keeps_nothing_has_all_threads() {
    if !have(&["libnbd for Python"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let zeroes = folder.path().join("zeroes");
    std::fs::write(&zeroes, vec![0; MIB as usize]).unwrap();
    let served = Served::with(&folder, "name=x,image=null:1M");
    let mut readers = Readers::connect(&served.server.uri_of("x"), 4, &zeroes);
    assert_eq!(served.threads(), [0, 0, 1, 1]);
    readers.read_all();
    // Both threads let theirs go.
    served.server.close();
}

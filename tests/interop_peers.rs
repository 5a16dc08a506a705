//! More clients by others before `orlop serve`, each against bytes made without it: servers that
//! pass our export on, copies over several connections, fio with mixed sizes and trims, the client
//! of Xen Orchestra, the one that knows no options but a name, and negotiation in any order.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "interop_peers/companion.rs"]
mod companion;
#[path = "support/foreign.rs"]
mod foreign;
#[path = "interop_peers/model.rs"]
mod model;
#[path = "support/server.rs"]
mod server;
#[path = "interop/sessions.rs"]
mod sessions;

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nbd_client::client::{NbdClient, NbdExt, handshake};
use tempfile::TempDir;

use companion::Companion;
use foreign::{PYTHON, assert_same, content, have, orlop, run, run_any, script, text};
use model::Model;
use server::Server;
use sessions::{Kind, MODES, image};

const MIB: u64 = 1 << 20;

/// The server's socket, for a client that knows no URIs.
fn socket_of(server: &Server) -> &str {
    server.uri().split_once("socket=").unwrap().1
}

/// A file of bytes no server had a hand in.
fn source(folder: &TempDir, len: u64, seed: u64) -> (PathBuf, Vec<u8>) {
    let path = folder.path().join(format!("source-{seed}"));
    let bytes = content(len, seed);
    std::fs::write(&path, &bytes).unwrap();
    (path, bytes)
}

fn compare(file: &Path, uri: &str) {
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(file), uri]);
}

fn sound(path: &Path) {
    if path.extension().is_some_and(|extension| extension == "vhd") {
        orlop(&["check", "--data", text(path)]);
    }
}

/// Writes, trims and reads through a server that is a client of ours.
fn through(kind: Kind, folder: &TempDir, ours: &Server, other: &Companion) {
    let (path, mut bytes) = source(folder, 24 * MIB, 21);
    run("nbdcopy", &["--flush", "--connections=4", text(&path), other.uri()]);
    compare(&path, ours.uri());
    let copy = folder.path().join("copy");
    run("nbdcopy", &["--connections=4", other.uri(), text(&copy)]);
    assert_same(&std::fs::read(&copy).unwrap(), &bytes, "read through both");
    let steps = ["write -P 9 3000001 77777", "write -z -u 4M 2M", "discard 8M 4M", "flush"];
    let words = steps.iter().flat_map(|step| ["-c", step]);
    let words: Vec<&str> = ["-f", "raw", "-d", "unmap"].into_iter().chain(words).collect();
    run("qemu-io", &[&words[..], &[other.uri()]].concat());
    bytes[3_000_001..3_000_001 + 77_777].fill(9);
    bytes[4 << 20..6 << 20].fill(0);
    // Whole blocks that were flushed: a trim empties them.
    bytes[8 << 20..12 << 20].fill(0);
    std::fs::write(&path, &bytes).unwrap();
    compare(&path, ours.uri());
    compare(&path, other.uri());
    // Both tell of the same holes.
    let holes = |uri: &str| {
        let map = run("nbdinfo", &["--json", "--map", uri]);
        let map: Vec<serde_json::Value> = serde_json::from_str(&map).unwrap();
        let hole = |run: &&serde_json::Value| run["type"].as_u64().unwrap() & 1 == 1;
        map.iter().filter(hole).map(|run| run["length"].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!(holes(other.uri()), holes(ours.uri()));
    // In other images each byte has its place.
    if kind == Kind::Dynamic {
        assert!(holes(ours.uri()) >= 4 * MIB);
    }
}

#[test]
fn qemus_storage_daemon_passes_our_export_on() {
    if !have(&["qemu-storage-daemon", "nbdcopy", "nbdinfo", "qemu-io", "qemu-img"]) {
        return;
    }
    for kind in Kind::ALL {
        let folder = TempDir::new().unwrap();
        let path = image(&folder, kind, 24 * MIB);
        let ours = Server::start(&path, &[]);
        let daemon = Companion::storage_daemon(folder.path(), socket_of(&ours));
        through(kind, &folder, &ours, &daemon);
        daemon.close();
        ours.close();
        sound(&path);
    }
}

#[test]
fn nbdkits_nbd_plugin_passes_our_export_on() {
    if !have(&["nbdkit", "nbdcopy", "nbdinfo", "qemu-io", "qemu-img"]) {
        return;
    }
    for kind in Kind::ALL {
        let folder = TempDir::new().unwrap();
        let path = image(&folder, kind, 24 * MIB);
        let ours = Server::start(&path, &[]);
        let nbdkit = Companion::nbdkit(folder.path(), ours.uri());
        through(kind, &folder, &ours, &nbdkit);
        nbdkit.close();
        ours.close();
        sound(&path);
    }
}

#[test]
fn nbdcopy_copies_over_many_connections_and_from_one_of_ours_to_another() {
    if !have(&["nbdcopy", "qemu-img"]) {
        return;
    }
    let ways: [&[&str]; 5] = [
        &["--connections=8", "--requests=64", "--threads=2", "--request-size=262144"],
        &["--connections=4", "--requests=16", "--no-extents", "--request-size=4194304"],
        &["--synchronous", "--allocated"],
        &["--connections=1", "--sparse=512", "--request-size=65536"],
        &["--connections=4", "--destination-is-zero", "--queue-size=67108864"],
    ];
    for (n, way) in ways.into_iter().enumerate() {
        let folder = TempDir::new().unwrap();
        // No multiple of any block, and all nbdcopy can do: whole sectors.
        let size = 30 * MIB + 512 * 7;
        let (path, bytes) = source(&folder, size, 31 + n as u64);
        let (first, second) = (Kind::ALL[n % 4], Kind::ALL[(n + 2) % 4]);
        let images = [image(&folder, first, size), image(&folder, second, size)];
        let servers = [Server::start(&images[0], MODES[n % 4]), Server::start(&images[1], &[])];
        let copy = |from: &str, to: &str| run("nbdcopy", &[way, &["--flush", from, to]].concat());
        copy(text(&path), servers[0].uri());
        copy(servers[0].uri(), servers[1].uri());
        let out = folder.path().join("out");
        copy(servers[1].uri(), text(&out));
        assert_same(&std::fs::read(&out).unwrap(), &bytes, &format!("{way:?}"));
        servers.into_iter().for_each(Server::close);
        images.iter().for_each(|image| sound(image));
        let again = Server::start(&images[1], &["--read-only"]);
        compare(&path, again.uri());
        again.close();
    }
}

#[test]
fn qemu_io_finds_what_a_model_of_the_disk_says() {
    if !have(&["qemu-io", "qemu-img"]) {
        return;
    }
    for (n, mode) in MODES.into_iter().enumerate() {
        let kind = Kind::ALL[(n + 1) % 4];
        if mode.contains(&"uring") && !sessions::has_ring() {
            continue;
        }
        let folder = TempDir::new().unwrap();
        let path = image(&folder, kind, 12 * MIB);
        let expected = folder.path().join("expected");
        let mut model = Model::new(12 << 20, 1000 + n as u64);
        let server = Server::start(&path, mode);
        for _ in 0..4 {
            (0..120).for_each(|_| model.step());
            model.burst();
            model.play(server.uri());
            std::fs::write(&expected, &model.bytes).unwrap();
            compare(&expected, server.uri());
        }
        server.close();
        sound(&path);
        let server = Server::start(&path, &["--read-only"]);
        compare(&expected, server.uri());
        server.close();
    }
}

#[test]
fn qemu_img_bench_leaves_its_pattern() {
    if !have(&["qemu-img"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let mut bytes = vec![0; 16 << 20];
    let file = folder.path().join("expected");
    for (n, kind) in Kind::ALL.into_iter().enumerate() {
        let path = image(&folder, kind, 16 * MIB);
        let server = Server::start(&path, MODES[n]);
        // Every second piece of 12 KiB from 4 KiB on, 600 of them, 16 at once.
        let bench = ["bench", "-f", "raw", "-w", "--pattern=90", "-c", "600", "-d", "16"];
        let layout = ["-s", "12k", "-S", "24k", "-o", "4096", "--flush-interval=50"];
        run("qemu-img", &[&bench[..], &layout, &[server.uri()]].concat());
        bytes.fill(0);
        for piece in 0..600 {
            bytes[4096 + piece * 24576..][..12288].fill(90);
        }
        std::fs::write(&file, &bytes).unwrap();
        compare(&file, server.uri());
        run(
            "qemu-img",
            &["bench", "-f", "raw", "-c", "2000", "-d", "64", "-s", "5k", server.uri()],
        );
        server.close();
        sound(&path);
    }
}

#[test]
fn fio_verifies_mixed_sizes_and_trims_over_four_connections() {
    if !have(&["fio"]) {
        return;
    }
    for (n, rw) in ["randwrite", "randtrimwrite", "trimwrite", "randrw"].into_iter().enumerate() {
        let folder = TempDir::new().unwrap();
        let (kind, mode) = (Kind::ALL[n], MODES[n]);
        let path = image(&folder, kind, 64 * MIB);
        let server = Server::start(&path, mode);
        let arguments = [
            format!("--name={rw}"),
            "--ioengine=nbd".to_owned(),
            format!("--uri={}", server.uri()),
            format!("--rw={rw}"),
            "--iodepth=24".to_owned(),
            // Each has a connection and a quarter of the disk of its own.
            "--numjobs=4".to_owned(),
            "--size=16M".to_owned(),
            "--offset_increment=16M".to_owned(),
            "--bssplit=512/20:4k/40:13k/10:64k/20:1m/10".to_owned(),
            "--verify=crc32c".to_owned(),
            "--verify_fatal=1".to_owned(),
            "--verify_backlog=64".to_owned(),
            "--verify_state_save=0".to_owned(),
            "--fsync=50".to_owned(),
            "--group_reporting".to_owned(),
            format!("--aux-path={}", folder.path().display()),
        ];
        let said = run("fio", &arguments);
        assert!(said.contains("err= 0"), "{said}");
        server.close();
        sound(&path);
    }
}

#[test]
fn nbd_client_and_nbdinfo_list_the_export_by_its_name() {
    if !have(&["nbd-client", "nbdinfo", "libnbd for Python"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let path = image(&folder, Kind::Dynamic, 8 * MIB);
    let server = Server::start_tcp(&path, &["--export", "the disk's name"]);
    let address = server.uri().strip_prefix("nbd://").unwrap();
    let (host, port) = address.split_once('/').unwrap().0.split_once(':').unwrap();
    let output = run_any("nbd-client", &["-l", host, port]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(said.contains("\nthe disk's name"), "{said}");
    let list = run("nbdinfo", &["--list", "--json", &format!("nbd://{host}:{port}")]);
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["exports"].as_array().unwrap().len(), 1);
    assert_eq!(list["exports"][0]["export-name"], "the disk's name");
    assert_eq!(list["exports"][0]["export-size"], 8 * MIB);
    for can in ["cache", "connect", "structured-reply", "fast-zero"] {
        run("nbdinfo", &["--can", can, server.uri()]);
    }
    for is in ["tls", "rotational", "read-only"] {
        assert_eq!(run_any("nbdinfo", &["--is", is, server.uri()]).status.code(), Some(2), "{is}");
    }
    let shell = "assert h.get_size() == 8 << 20; h.pwrite(b'shell', 77); print(h.pread(5, 77))";
    // What nbdsh is, with the Python that has the module.
    let said = run(PYTHON, &["-m", "nbd", "-u", server.uri(), "-c", shell]);
    assert_eq!(said.trim(), "bytearray(b'shell')");
    server.close();
}

#[test]
fn a_client_that_knows_only_names_reads_and_writes() {
    let folder = TempDir::new().unwrap();
    for kind in Kind::ALL {
        let path = image(&folder, kind, 6 * MIB);
        let server = Server::start(&path, &["--export", "old"]);
        let connect = |name: &[u8]| {
            let socket = UnixStream::connect(socket_of(&server)).unwrap();
            handshake(&socket, name).map(|export| (NbdClient::new(socket, &export), export))
        };
        let (mut client, export) = connect(b"old").unwrap();
        assert_eq!(export.size, 6 * MIB);
        assert!(!export.readonly && export.send_flush && export.send_trim && !export.resizeable);
        let mut bytes = content(6 * MIB, 77);
        for piece in bytes.chunks(99_991) {
            client.write_all(piece).unwrap();
        }
        client.flush().unwrap();
        client.seek(SeekFrom::Start(2 << 20)).unwrap();
        client.trim(2 << 20).unwrap();
        client.write_all(&[5; 2 << 20]).unwrap();
        bytes[2 << 20..4 << 20].fill(5);
        // Another connection sees it; a name nobody exports ends without an answer.
        assert!(connect(b"new").is_err());
        let (mut other, _) = connect(b"").unwrap();
        let mut found = Vec::new();
        other.read_to_end(&mut found).unwrap();
        assert_same(&found, &bytes, "the second connection");
        drop((client, other));
        server.close();
        sound(&path);
        let file = folder.path().join("expected");
        std::fs::write(&file, &bytes).unwrap();
        let server = Server::start(&path, &["--read-only", "--export", "old"]);
        if have(&["qemu-img"]) {
            compare(&file, server.uri());
        }
        server.close();
    }
}

#[test]
fn libnbd_and_raw_sockets_negotiate_in_any_order() {
    if !have(&["libnbd for Python"]) {
        return;
    }
    let script = script("nbd_negotiation.py");
    for (n, kind) in Kind::ALL.into_iter().enumerate() {
        let folder = TempDir::new().unwrap();
        let path = image(&folder, kind, 32 * MIB);
        let server = Server::start(&path, &[MODES[n], &["--export", "disk-7"]].concat());
        run(PYTHON, &[script.as_str(), server.uri(), "disk-7"]);
        server.close();
        sound(&path);
    }
}

/// The folder with Xen Orchestra's client and our script beside it; `None` where npm cannot.
fn xen_orchestra() -> Option<PathBuf> {
    if !have(&["node", "npm", "nbdinfo"]) {
        return None;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("xo");
    std::fs::create_dir_all(&folder).unwrap();
    let lock = std::fs::read(script("xo/package-lock.json")).unwrap();
    let installed = folder.join("installed");
    let done = std::fs::read(&installed).is_ok_and(|installed| installed == lock);
    for name in ["package.json", "package-lock.json", "client.mjs"] {
        std::fs::copy(script(&format!("xo/{name}")), folder.join(name)).unwrap();
    }
    if !done {
        let quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"];
        let words = [&["ci", "--prefix", text(&folder)], &quiet[..]].concat();
        let output = run_any("npm", &words);
        if !output.status.success() {
            let said = foreign::told("npm", &words, &output);
            assert!(!std::env::var("CI").is_ok_and(|ci| ci == "true"), "{said}");
            println!("SKIPPED: no client of Xen Orchestra: {said}");
            return None;
        }
        std::fs::write(&installed, &lock).unwrap();
    }
    Some(folder)
}

#[test]
fn xen_orchestra_backs_up_every_kind_of_image() {
    let Some(client) = xen_orchestra() else { return };
    let client = client.join("client.mjs");
    for (n, kind) in Kind::ALL.into_iter().enumerate() {
        let folder = TempDir::new().unwrap();
        // The last block is short, and there are holes of several blocks.
        let size = 29 * MIB + 512 * 3;
        let (_, mut bytes) = source(&folder, size, 91);
        bytes[6 << 20..20 << 20].fill(0);
        let file = folder.path().join("file");
        std::fs::write(&file, &bytes).unwrap();
        let path = image(&folder, kind, size);
        let server = Server::start_tcp(&path, &[MODES[n], &["--export", "vdi"]].concat());
        run("nbdcopy", &["--flush", text(&file), server.uri()]);
        let address = server.uri().strip_prefix("nbd://").unwrap().split_once('/').unwrap().0;
        let (host, port) = address.split_once(':').unwrap();
        let words = [text(&client), host, port, "vdi", text(&file)];
        let sparse: &[&str] = match kind {
            Kind::Raw | Kind::Fixed => &[],
            Kind::Dynamic | Kind::Chain => &["sparse"],
        };
        println!("{kind:?}: {}", run("node", &[&words[..], sparse].concat()));
        server.close();
        sound(&path);
    }
}

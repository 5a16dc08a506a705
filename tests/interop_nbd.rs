//! `orlop serve` before clients no one here wrote: libnbd's tools, QEMU's, fio and scripts over
//! libnbd's Python module, on every kind of image, both I/O hosts and both cache modes.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/foreign.rs"]
mod foreign;
#[path = "support/server.rs"]
mod server;
#[path = "interop/sessions.rs"]
mod sessions;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use foreign::{PYTHON, assert_same, content, have, orlop, run, run_any, script, text};
use server::Server;
use sessions::{Kind, MODES, each_mode, image};

const MIB: u64 = 1 << 20;

/// Copies a file in through nbdcopy and out again through nbdcopy and qemu-img.
fn copy_both_ways(kind: Kind, mode: &[&str]) {
    let folder = TempDir::new().unwrap();
    let bytes = content(24 * MIB, 11);
    let source = folder.path().join("source");
    std::fs::write(&source, &bytes).unwrap();
    let path = image(&folder, kind, 24 * MIB);
    let server = Server::start(&path, mode);
    run("nbdcopy", &["--flush", text(&source), server.uri()]);
    check_copies(&folder, &source, &bytes, server.uri());
    server.close();
    check(kind, &path);
    // Opened anew, nothing has changed.
    let server = Server::start(&path, &[mode, &["--read-only"]].concat());
    check_copies(&folder, &source, &bytes, server.uri());
    server.close();
}

/// A raw image has no metadata that could be wrong.
fn check(kind: Kind, path: &Path) {
    if kind != Kind::Raw {
        orlop(&["check", "--data", text(path)]);
    }
}

fn check_copies(folder: &TempDir, source: &Path, bytes: &[u8], uri: &str) {
    let copy = folder.path().join("copy");
    run("nbdcopy", &[uri, text(&copy)]);
    assert_same(&std::fs::read(&copy).unwrap(), bytes, "nbdcopy out");
    run("qemu-img", &["convert", "-f", "raw", "-O", "raw", uri, text(&copy)]);
    assert_same(&std::fs::read(&copy).unwrap(), bytes, "qemu-img convert");
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(source), uri]);
}

#[test]
fn nbdcopy_and_qemu_img_find_what_they_wrote_on_every_image_and_host() {
    if have(&["nbdcopy", "qemu-img"]) {
        each_mode(copy_both_ways);
    }
}

#[test]
fn qemu_img_writes_a_raw_file_into_each_kind_of_image() {
    if !have(&["qemu-img"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let bytes = content(20 * MIB, 5);
    let source = folder.path().join("source");
    std::fs::write(&source, &bytes).unwrap();
    for kind in Kind::ALL {
        let path = image(&folder, kind, 20 * MIB);
        let server = Server::start(&path, &[]);
        let target = ["convert", "-n", "-f", "raw", "-O", "raw", text(&source), server.uri()];
        run("qemu-img", &target);
        run("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&source), server.uri()]);
        let speed =
            run("qemu-img", &["bench", "-f", "raw", "-c", "5000", "-d", "32", server.uri()]);
        println!("{kind:?}: {}", speed.lines().last().unwrap_or_default());
        server.close();
        check(kind, &path);
    }
}

#[test]
fn nbdinfo_understands_everything_it_is_told() {
    if !have(&["nbdinfo"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    for kind in Kind::ALL {
        let path = image(&folder, kind, 16 * MIB);
        let server = Server::start(&path, &[]);
        let told: serde_json::Value =
            serde_json::from_str(&run("nbdinfo", &["--json", server.uri()])).unwrap();
        assert_eq!(told["protocol"], "newstyle-fixed");
        assert_eq!(told["structured"], true);
        let export = &told["exports"][0];
        assert_eq!(export["export-size"], 16 * MIB);
        assert_eq!(export["is_read_only"], false);
        let contexts = ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:leaf"];
        assert_eq!(export["contexts"], serde_json::json!(contexts));
        for can in ["flush", "fua", "trim", "zero", "df", "multi-conn", "write"] {
            run("nbdinfo", &["--can", can, server.uri()]);
        }
        assert_eq!(run("nbdinfo", &["--size", server.uri()]).trim(), (16 * MIB).to_string());
        run("nbdinfo", &["--list", server.uri()]);
        run("nbdinfo", &["--map", server.uri()]);
        server.close();
        let server = Server::start(&path, &["--read-only"]);
        run("nbdinfo", &["--is", "read-only", server.uri()]);
        assert!(!run_any("nbdinfo", &["--can", "write", server.uri()]).status.success());
        server.close();
    }
}

#[test]
fn the_first_command_of_the_readme_serves_a_new_disk_to_every_client() {
    if !have(&["nbdinfo", "nbdcopy", "qemu-img", "qemu-io", "fio"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("disk.vhd");
    let server = Server::start(&path, &["--create", "1G"]);
    assert_eq!(run("nbdinfo", &["--size", server.uri()]).trim(), (1_u64 << 30).to_string());
    for depth in [1, 16, 64] {
        fio(&folder, server.uri(), depth, "randwrite", 0);
    }
    run("qemu-io", &["-f", "raw", "-c", "write -P 7 1000M 1M", "-c", "flush", server.uri()]);
    let copy = folder.path().join("copy");
    run("nbdcopy", &[server.uri(), text(&copy)]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&copy), server.uri()]);
    run("nbdcopy", &[text(&copy), server.uri()]);
    run("qemu-img", &["convert", "-f", "raw", "-O", "raw", server.uri(), text(&copy)]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&copy), server.uri()]);
    server.close();
    check(Kind::Dynamic, &path);
    // The second time the file is there, and is served as it is.
    let server = Server::start(&path, &["--create", "2G"]);
    run("qemu-io", &["-f", "raw", "-r", "-c", "read -P 7 1000M 1M", server.uri()]);
    server.close();
}

#[test]
fn what_is_trimmed_before_the_first_flush_is_a_hole_and_stays_one() {
    if !have(&["nbdinfo", "libnbd for Python"]) {
        return;
    }
    each_mode(|kind, mode| {
        // In a child a hole shows the parent.
        if kind == Kind::Chain {
            return;
        }
        let folder = TempDir::new().unwrap();
        let path = image(&folder, kind, 16 * MIB);
        let server = Server::start(&path, mode);
        python("trimmed", &[server.uri()]);
        server.close();
        check(kind, &path);
        assert!(std::fs::metadata(&path).unwrap().blocks() * 512 < 9 * MIB);
        let server = Server::start(&path, mode);
        let map = run("nbdinfo", &["--map", "--totals", server.uri()]);
        let map: Vec<&str> = map.lines().map(str::trim).collect();
        assert_eq!(map.len(), 2, "{map:?}");
        assert!(map.iter().all(|line| line.starts_with("8388608") && line.contains("50.0%")));
        server.close();
    });
}

#[test]
fn trimming_gives_the_space_back_to_the_file_system() {
    if !have(&["qemu-io", "libnbd for Python"]) {
        return;
    }
    each_mode(|kind, mode| {
        let folder = TempDir::new().unwrap();
        let path = image(&folder, kind, 16 * MIB);
        let held = || std::fs::metadata(&path).unwrap().blocks() * 512;
        let server = Server::start(&path, mode);
        python("fill", &[server.uri()]);
        assert!(held() >= 16 * MIB, "{} bytes held when full", held());
        run("qemu-io", &["-f", "raw", "-c", "discard 0 16M", "-c", "flush", server.uri()]);
        server.close();
        assert!(held() <= 2 * MIB, "{kind:?} {mode:?}: {} bytes held when trimmed", held());
        check(kind, &path);
    });
}

#[test]
fn qemu_io_zeroes_discards_flushes_and_verifies_patterns() {
    if !have(&["qemu-io"]) {
        return;
    }
    each_mode(|kind, mode| {
        let folder = TempDir::new().unwrap();
        let path = image(&folder, kind, 16 * MIB);
        let server = Server::start(&path, mode);
        let steps = [
            "write -P 0x11 0 4M",
            "write -P 0x22 1000k 3000",
            "write -f -P 0x33 5M 64k",
            "write -z 2M 512k",
            "write -z -u 3M 300000",
            "write -P 0x44 8388607 2",
            "flush",
            "read -P 0x11 0 1000k",
            "read -P 0x22 1000k 3000",
            "read -P 0 2M 512k",
            "read -P 0x11 2560k 512k",
            "read -P 0 3M 300000",
            "read -P 0x33 5M 64k",
            "read -P 0x44 8388607 2",
            "discard 5M 64k",
            "discard 0 16M",
            "write -P 0x55 7M 1M",
            "flush",
            "read -P 0x55 7M 1M",
        ];
        let mut words = vec!["-f", "raw"];
        words.extend(steps.iter().flat_map(|step| ["-c", step]));
        words.push(server.uri());
        let said = run("qemu-io", &words);
        assert!(!said.contains("failed"), "{said}");
        server.close();
        check(kind, &path);
    });
}

/// The server's socket, for a client that knows no URIs.
fn socket_of(server: &Server) -> &str {
    server.uri().split_once("socket=").unwrap().1
}

#[test]
fn qemu_asks_for_extended_headers_and_zeroes_more_than_32_bits_can_say() {
    if !have(&["qemu-io"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    for kind in Kind::ALL {
        let path = image(&folder, kind, 12 << 30);
        let server = Server::start(&path, &[]);
        let steps =
            ["write -P 7 6G 64k", "write -z -n -u 0 11G", "read -P 0 6G 64k", "map", "flush"];
        let mut words = vec!["--trace", "nbd_receive_option_reply", "--trace", "nbd_send_request"];
        words.extend(["-f", "raw"]);
        words.extend(steps.iter().flat_map(|step| ["-c", step]));
        words.push(server.uri());
        let output = run_any("qemu-io", &words);
        let said = foreign::told("qemu-io", &words, &output);
        assert!(output.status.success() && !said.contains("failed"), "{said}");
        // Nothing is shown without a request that only a 64-bit length can carry.
        assert!(said.contains("11 (extended headers), type 1 (ack)"), "{said}");
        let zeroed = said.lines().find(|line| line.contains("type = 6 (write zeroes)"));
        assert!(zeroed.unwrap().contains(".len = 11811160064"), "{said}");
        server.close();
        check(kind, &path);
    }
}

#[test]
fn extended_headers_hold_every_rule_over_a_raw_socket() {
    let folder = TempDir::new().unwrap();
    let script = script("nbd_extended.py");
    for mode in MODES.iter().filter(|mode| sessions::has_ring() || !mode.contains(&"uring")) {
        let path = image(&folder, Kind::Chain, 16 << 30);
        let server = Server::start(&path, mode);
        run(PYTHON, &[script.as_str(), socket_of(&server)]);
        server.close();
        check(Kind::Chain, &path);
    }
}

/// A child over a parent: 8 MiB in the parent, 64 KiB over them in the child and 64 KiB beside.
fn two_layers(folder: &TempDir) -> PathBuf {
    let (base, top) = (folder.path().join("base.vhd"), folder.path().join("top.vhd"));
    orlop(&["create", text(&base), "-s", "64M"]);
    let server = Server::start(&base, &[]);
    run("qemu-io", &["-f", "raw", "-c", "write -P 1 0 8M", server.uri()]);
    server.close();
    orlop(&["create", text(&top), "--parent", text(&base)]);
    let server = Server::start(&top, &[]);
    let over = ["-c", "write -P 2 4M 64k", "-c", "write -P 3 20M 64k"];
    run("qemu-io", &[&["-f", "raw"], &over[..], &[server.uri()]].concat());
    server.close();
    top
}

/// What nbdinfo and qemu-img must say of `two_layers`, as (start, length, value).
const DEPTHS: [(u64, u64, u64); 6] = [
    (0, 4 * MIB, 2),
    (4 * MIB, 65536, 1),
    (4 * MIB + 65536, 4 * MIB - 65536, 2),
    (8 * MIB, 12 * MIB, 0),
    (20 * MIB, 65536, 1),
    (20 * MIB + 65536, 44 * MIB - 65536, 0),
];
const DIRTY: [(u64, u64, u64); 5] = [
    (0, 4 * MIB, 0),
    (4 * MIB, 65536, 1),
    (4 * MIB + 65536, 16 * MIB - 65536, 0),
    (20 * MIB, 65536, 1),
    (20 * MIB + 65536, 44 * MIB - 65536, 0),
];

#[test]
fn nbdinfo_tells_the_layer_of_each_extent_and_what_the_leaf_changed() {
    if !have(&["nbdinfo", "qemu-io"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let server = Server::start(&two_layers(&folder), &["--read-only"]);
    for (context, expected) in
        [("qemu:allocation-depth", &DEPTHS[..]), ("qemu:dirty-bitmap:leaf", &DIRTY)]
    {
        let map = run("nbdinfo", &["--json", &format!("--map={context}"), server.uri()]);
        let map: Vec<serde_json::Value> = serde_json::from_str(&map).unwrap();
        let word = |run: &serde_json::Value, name: &str| run[name].as_u64().unwrap();
        let found: Vec<_> = map
            .iter()
            .map(|run| (word(run, "offset"), word(run, "length"), word(run, "type")))
            .collect();
        assert_eq!(found, expected, "{context}");
    }
    server.close();
}

#[test]
fn qemu_img_maps_allocation_depth_and_the_leafs_bitmap() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let server = Server::start(&two_layers(&folder), &["--read-only"]);
    for context in ["qemu:allocation-depth", "qemu:dirty-bitmap:leaf"] {
        let options = format!(
            "driver=nbd,server.type=unix,server.path={},x-dirty-bitmap={context}",
            socket_of(&server)
        );
        let map = run("qemu-img", &["map", "--output=json", "--image-opts", &options]);
        let map: Vec<serde_json::Value> = serde_json::from_str(&map).unwrap();
        // QEMU reports a bitmap as holes: what is set is no data, and what is above 1 is zero.
        let found: Vec<_> = map
            .iter()
            .map(|run| {
                let data = run["data"].as_bool().unwrap();
                let value = if !data { 1 } else { 2 * u64::from(run["zero"] == true) };
                (run["start"].as_u64().unwrap(), run["length"].as_u64().unwrap(), value)
            })
            .collect();
        let expected = if context.ends_with("leaf") { &DIRTY[..] } else { &DEPTHS };
        assert_eq!(found, expected, "{context}");
    }
    server.close();
}

#[test]
fn fio_verifies_its_checksums_at_every_depth() {
    if !have(&["fio"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    for (n, mode) in MODES.iter().enumerate() {
        for (kind, depth) in [(Kind::Dynamic, 1), (Kind::Chain, 16), (Kind::Dynamic, 64)] {
            let path = image(&folder, kind, 48 * MIB);
            let server = Server::start(&path, mode);
            fio(&folder, server.uri(), depth, "randwrite", n);
            fio(&folder, server.uri(), depth, "randtrimwrite", n);
            server.close();
            check(kind, &path);
        }
    }
}

fn fio(folder: &TempDir, uri: &str, depth: u32, rw: &str, n: usize) {
    let arguments = [
        format!("--name={rw}-{depth}-{n}"),
        "--ioengine=nbd".to_owned(),
        format!("--uri={uri}"),
        format!("--rw={rw}"),
        format!("--iodepth={depth}"),
        "--bsrange=512-64k".to_owned(),
        "--bs_unaligned=1".to_owned(),
        "--size=48M".to_owned(),
        "--io_size=24M".to_owned(),
        "--verify=crc32c".to_owned(),
        "--verify_fatal=1".to_owned(),
        "--fsync=200".to_owned(),
        "--verify_state_save=0".to_owned(),
        format!("--aux-path={}", folder.path().display()),
    ];
    let said = run("fio", &arguments);
    assert!(said.contains("err= 0"), "{said}");
}

fn python(check: &str, uris: &[&str]) {
    let script = script("nbd_client.py");
    run(PYTHON, &[&[script.as_str(), check], uris].concat());
}

#[test]
fn libnbd_scripts_find_nothing_wrong_on_any_image_and_host() {
    if !have(&["libnbd for Python"]) {
        return;
    }
    each_mode(|kind, mode| {
        let folder = TempDir::new().unwrap();
        let path = image(&folder, kind, 96 * MIB);
        let server = Server::start(&path, mode);
        for check in
            ["options", "unaligned", "chunks", "status", "contexts", "connections", "pipeline"]
        {
            python(check, &[server.uri()]);
        }
        python("large", &[server.uri()]);
        server.close();
        check(kind, &path);
    });
}

#[test]
fn nonsense_is_refused_with_the_error_the_protocol_names() {
    if !have(&["libnbd for Python"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    for kind in Kind::ALL {
        let path = image(&folder, kind, 8 * MIB);
        let other = image(&folder, Kind::Dynamic, 8 * MIB);
        let server = Server::start(&path, &[]);
        let frozen = Server::start(&other, &["--read-only"]);
        python("refusals", &[server.uri(), frozen.uri()]);
        server.close();
        frozen.close();
    }
}

#[test]
fn tcp_serves_as_the_unix_socket_does() {
    if !have(&["libnbd for Python", "nbdcopy"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let path = image(&folder, Kind::Dynamic, 96 * MIB);
    for mode in MODES {
        let server = Server::start_tcp(&path, mode);
        assert!(server.uri().starts_with("nbd://127.0.0.1:"), "{}", server.uri());
        for check in ["unaligned", "connections", "pipeline", "large"] {
            python(check, &[server.uri()]);
        }
        let copy = folder.path().join("copy");
        run("nbdcopy", &[server.uri(), text(&copy)]);
        server.close();
    }
}

#[test]
fn a_file_system_survives_the_way_in_and_out() {
    if !have(&["mkfs.ext4", "e2fsck", "nbdcopy"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let tree = folder.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    for n in 0..40_u64 {
        std::fs::write(tree.join(n.to_string()), content(n * 9000, n)).unwrap();
    }
    let disk = folder.path().join("disk");
    std::fs::File::create(&disk).unwrap().set_len(64 * MIB).unwrap();
    run("mkfs.ext4", &["-q", "-F", "-d", text(&tree), text(&disk)]);
    for kind in Kind::ALL {
        let path = image(&folder, kind, 64 * MIB);
        let server = Server::start(&path, &[]);
        run("nbdcopy", &["--flush", text(&disk), server.uri()]);
        server.close();
        let server = Server::start(&path, &["--read-only"]);
        let out: PathBuf = folder.path().join("out");
        run("nbdcopy", &[server.uri(), text(&out)]);
        run("e2fsck", &["-f", "-n", text(&out)]);
        assert_same(&std::fs::read(&out).unwrap(), &std::fs::read(&disk).unwrap(), "the disk");
        server.close();
    }
}

#[test]
fn the_largest_disk_starts_at_once_in_little_memory_and_is_one_hole() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("huge.vhd");
    orlop(&["create", text(&path), "-s", "2040G"]);
    let server = Server::start(&path, &[]);
    let launched = server.launched_in();
    println!("serving 2040 GiB after {launched:?}, {} KiB resident", server.resident_bytes() >> 10);
    if have(&["nbdinfo"]) {
        let start = std::time::Instant::now();
        let totals = run("nbdinfo", &["--map", "--totals", server.uri()]);
        println!("mapped in {:?}:\n{totals}", start.elapsed());
        let line: Vec<&str> = totals.split_whitespace().collect();
        assert_eq!(line[0], (2040_u64 << 30).to_string(), "{totals}");
        assert!(totals.contains("hole,zero") && totals.lines().count() == 1, "{totals}");
    }
    let resident = server.resident_bytes();
    println!("{} KiB resident after the map", resident >> 10);
    assert!(resident < 30 * MIB, "{resident} bytes resident");
    server.close();
}

#[test]
fn a_null_disk_takes_everything_and_gives_zeroes() {
    if !have(&["nbdinfo", "nbdcopy", "qemu-img", "qemu-io"]) {
        return;
    }
    let null = Path::new("null:64G");
    for mode in MODES.iter().filter(|mode| sessions::has_ring() || !mode.contains(&"uring")) {
        let server = Server::start(null, mode);
        let told = run("nbdinfo", &["--json", server.uri()]);
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert_eq!(told["exports"][0]["export-size"], 64_u64 << 30);
        assert_eq!(told["exports"][0]["is_read_only"], false);
        // The last word is what qemu-io says of each request; a wrong pattern is an error.
        let requests = [
            "write -P 7 0 2M",
            "write -P 7 1000 77",
            "write -f -P 7 64K 4K",
            "write -z 1M 1M",
            "write -z -u 1M 1M",
            "discard 0 1M",
            "flush",
            "read -P 0 0 4M",
            "read -P 0 900 300",
            "read -P 0 68719476224 512",
        ];
        let words = requests.iter().flat_map(|request| ["-c", request]);
        let all: Vec<&str> = ["-f", "raw"].into_iter().chain(words).chain([server.uri()]).collect();
        let said = run("qemu-io", &all);
        assert!(!said.contains("fail"), "{said}");
        let map = run("nbdinfo", &["--map", server.uri()]);
        assert_eq!(map.split_whitespace().collect::<Vec<_>>()[..3], ["0", "68719476736", "2"]);
        server.close();
    }
    let folder = TempDir::new().unwrap();
    let (source, copy) = (folder.path().join("source"), folder.path().join("copy"));
    std::fs::write(&source, content(8 * MIB, 3)).unwrap();
    let server = Server::start(Path::new("null:8M"), &["--read-only"]);
    run("nbdcopy", &[server.uri(), text(&copy)]);
    assert_same(&std::fs::read(&copy).unwrap(), &vec![0; 8 << 20], "nbdcopy out");
    assert!(!run_any("nbdcopy", &[text(&source), server.uri()]).status.success());
    server.close();
    // What is shown is no file of this name.
    let info = orlop(&["info", "null:8M"]);
    assert!(info.contains("null (it keeps nothing)"), "{info}");
    let overlay = format!("--overlay={}", folder.path().display());
    let server = Server::start(Path::new("null:8M"), &[&overlay]);
    run("nbdcopy", &["--flush", text(&source), server.uri()]);
    run("nbdcopy", &[server.uri(), text(&copy)]);
    assert_same(&std::fs::read(&copy).unwrap(), &content(8 * MIB, 3), "an overlay over it");
    server.close();
}

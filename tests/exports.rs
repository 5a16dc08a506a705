//! One server, many exports: names, defaults, parts of disks, throwaway layers, and changes while
//! clients are connected. The clients are libnbd's and QEMU's.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/foreign.rs"]
mod foreign;
#[path = "support/server.rs"]
mod server;

use std::path::PathBuf;

use serde_json::Value;
use tempfile::TempDir;

use foreign::{PYTHON, assert_same, content, have, orlop, run, run_any, text};
use server::Server;

const MIB: u64 = 1 << 20;

/// A raw image of random content.
fn raw(folder: &TempDir, name: &str, len: u64, seed: u64) -> (PathBuf, Vec<u8>) {
    let (path, bytes) = (folder.path().join(name), content(len, seed));
    std::fs::write(&path, &bytes).unwrap();
    (path, bytes)
}

fn read_all(uri: &str, folder: &TempDir) -> Vec<u8> {
    let copy = folder.path().join("copy");
    run("nbdcopy", &[uri, text(&copy)]);
    std::fs::read(&copy).unwrap()
}

fn names(uri: &str) -> Vec<(String, String)> {
    let listed: Value = serde_json::from_str(&run("nbdinfo", &["--list", "--json", uri])).unwrap();
    let exports = listed["exports"].as_array().unwrap();
    let word = |export: &Value, key: &str| export[key].as_str().unwrap_or_default().to_owned();
    exports.iter().map(|one| (word(one, "export-name"), word(one, "description"))).collect()
}

#[test]
fn several_images_are_called_by_their_file_names_and_listed_with_descriptions() {
    if !have(&["nbdinfo", "nbdcopy"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (a, in_a) = raw(&folder, "a.raw", 3 * MIB, 1);
    let (b, in_b) = raw(&folder, "b.raw", 2 * MIB, 2);
    let add = format!("name=only to read,image={},read-only,description=b again", text(&b));
    let server = Server::start_many(&[text(&a), text(&b), "--add", &add]);
    let listed = names(&server.uri_of(""));
    let pairs: Vec<(&str, &str)> = listed.iter().map(|(n, d)| (n.as_str(), d.as_str())).collect();
    assert_eq!(pairs, [("a.raw", "a.raw"), ("b.raw", "b.raw"), ("only to read", "b again")]);
    assert_same(&read_all(&server.uri_of("a.raw"), &folder), &in_a, "a");
    assert_same(&read_all(&server.uri_of("b.raw"), &folder), &in_b, "b");
    // Two exports of one image are one disk: what one writes the other reads.
    let uri = server.uri_of("b.raw");
    run("qemu-io", &["-f", "raw", "-c", "write -P 7 1M 64k", &uri]);
    let mut wanted = in_b;
    wanted[MIB as usize..][..65536].fill(7);
    assert_same(&read_all(&server.uri_of("only%20to%20read"), &folder), &wanted, "b again");
    let refused = run_any("nbdinfo", &["--size", &server.uri_of("c")]);
    assert!(!refused.status.success());
    // With several, no name means none of them.
    assert!(!run_any("nbdinfo", &["--size", &server.uri_of("")]).status.success());
    let can_write = run_any("nbdinfo", &["--is", "read-only", &server.uri_of("only%20to%20read")]);
    assert!(can_write.status.success());
    server.close();
}

#[test]
fn the_default_export_is_the_one_that_was_chosen() {
    if !have(&["nbdinfo"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (a, _) = raw(&folder, "a.raw", 3 * MIB, 1);
    let (b, _) = raw(&folder, "b.raw", 2 * MIB, 2);
    let server = Server::start_many(&[text(&a), text(&b), "--default", "b.raw"]);
    assert_eq!(run("nbdinfo", &["--size", &server.uri_of("")]).trim(), (2 * MIB).to_string());
    server.close();
}

#[test]
fn a_window_shows_its_bytes_and_no_others() {
    if !have(&["nbdinfo", "nbdcopy", "qemu-io"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (path, mut bytes) = raw(&folder, "a.raw", 4 * MIB, 3);
    let add = format!("name=w,image={},offset=1000000,size=123457", text(&path));
    let server = Server::start_many(&["--add", &add]);
    assert_eq!(run("nbdinfo", &["--size", server.uri()]).trim(), "123457");
    assert_same(&read_all(server.uri(), &folder), &bytes[1_000_000..1_123_457], "window");
    // The last byte of it, and the byte behind it.
    let script = "import nbd,sys\nh=nbd.NBD()\nh.set_strict_mode(0)\nh.connect_uri(sys.argv[1])\n\
        h.pwrite(b'Z',123456)\nh.zero(1000,10)\n\
        try:\n  h.pwrite(b'ZZ',123456)\n  sys.exit('past the end')\n\
        except nbd.Error as e:\n  assert e.errnum==28, e\n\
        try:\n  h.pread(1,123457)\n  sys.exit('past the end')\n\
        except nbd.Error as e:\n  assert e.errnum==22, e\n\
        h.flush()\nh.shutdown()";
    run(PYTHON, &["-c", script, server.uri()]);
    server.close();
    bytes[1_123_456] = b'Z';
    bytes[1_000_010..1_001_010].fill(0);
    assert_same(&std::fs::read(&path).unwrap(), &bytes, "the whole file");
    let add = format!("name=w,image={},offset=4M,size=1", text(&path));
    let refused = run_any(env!("CARGO_BIN_EXE_orlop"), &["serve", "--stdio", "--add", &add]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("does not lie in it"), "{said}");
}

#[test]
fn a_partition_is_an_export_of_its_own() {
    if !have(&["sfdisk", "nbdinfo", "nbdcopy"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (path, _) = raw(&folder, "disk.raw", 16 * MIB, 5);
    for label in ["gpt", "dos"] {
        let table = folder.path().join("table");
        let lines = format!("label: {label}\nstart=2048, size=4096\nstart=8192, size=10001\n");
        std::fs::write(&table, lines).unwrap();
        let command = format!("sfdisk -q --wipe never {} < {}", text(&path), text(&table));
        run("sh", &["-c", &command]);
        let bytes = std::fs::read(&path).unwrap();
        let server = Server::start(&path, &["--partition", "2", "--read-only"]);
        let found = read_all(server.uri(), &folder);
        assert_same(&found, &bytes[8192 * 512..][..10001 * 512], label);
        server.close();
        let wrong = ["serve", text(&path), "--stdio", "--partition", "3"];
        let refused = run_any(env!("CARGO_BIN_EXE_orlop"), &wrong);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains("1, 2"), "{label}: {said}");
    }
}

#[test]
fn an_overlay_takes_writes_and_the_image_none() {
    if !have(&["qemu-io", "nbdcopy"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (path, bytes) = raw(&folder, "a.raw", 4 * MIB, 6);
    let overlay = format!("--overlay={}", text(folder.path()));
    let server = Server::start(&path, &[&overlay]);
    run("qemu-io", &["-f", "raw", "-c", "write -P 9 70k 300k", "-c", "flush", server.uri()]);
    let mut wanted = bytes.clone();
    wanted[70 << 10..][..300 << 10].fill(9);
    assert_same(&read_all(server.uri(), &folder), &wanted, "with the overlay");
    server.close();
    assert_same(&std::fs::read(&path).unwrap(), &bytes, "the image");
    let left: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(left.len(), 2, "nothing but the image and our copy stays: {left:?}");
}

#[test]
fn exports_come_and_go_while_others_are_used() {
    if !have(&["nbdinfo", "nbdcopy", "qemu-io", "libnbd for Python"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (a, in_a) = raw(&folder, "a.raw", 3 * MIB, 1);
    let b = folder.path().join("b.vhd");
    orlop(&["create", text(&b), "--size", "8M"]);
    let admin = folder.path().join("admin");
    let place = text(folder.path());
    let server = Server::start(&a, &["--admin", text(&admin), "--allow-dir", place]);
    let ask = |words: &[&str]| {
        run_any(
            env!("CARGO_BIN_EXE_orlop"),
            &[&["export", "--json", "--admin", text(&admin)], words].concat(),
        )
    };
    let spec = format!("name=b,image={}", text(&b));
    let added = ask(&["add", &spec]);
    assert!(added.status.success(), "{added:?}\n{}", server.log());
    assert_eq!(names(&server.uri_of("")).len(), 2);
    let uri = server.uri_of("b");
    run("qemu-io", &["-f", "raw", "-c", "write -P 5 0 1M", &uri]);
    // Taken, unknown, unreadable: each its own words, and nothing changes.
    for (words, code, about) in [
        (["add", &spec].as_slice(), 1, "already"),
        (&["add", "image=/nowhere/x.raw"], 3, "x.raw"),
        (&["add", "image=b.raw,colour=red"], 1, "colour"),
        (
            &["add", &format!("{spec},name=p,partition=1").replacen("name=b,", "", 1)],
            3,
            "partition",
        ),
        (&["remove", "c"], 3, "no export"),
        (&["limit", "c", "--iops", "5"], 3, "no export"),
        (&["limit", "b"], 2, "--bps"),
    ] {
        let refused = ask(words);
        let said = String::from_utf8_lossy(&refused.stdout).into_owned();
        assert_eq!(refused.status.code(), Some(code), "{words:?}: {refused:?}");
        assert!(said.contains(about), "{words:?}: {refused:?}");
    }
    // Where the sandbox keeps a place away, the option that opens it is named.
    let elsewhere = TempDir::new().unwrap();
    let (far, _) = raw(&elsewhere, "far.raw", MIB, 5);
    let refused = ask(&["add", &format!("name=far,image={}", text(&far))]);
    let said = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert!(refused.status.success() || said.contains("--allow-dir"), "{said}");
    drop(ask(&["remove", "far"]));
    // A client in the middle of something hears that its export goes; the other does not.
    let script = "import nbd,sys,subprocess\n\
        h=nbd.NBD(); h.connect_uri(sys.argv[1]); o=nbd.NBD(); o.connect_uri(sys.argv[2])\n\
        h.pwrite(b'x'*4096,4<<20)\n\
        subprocess.run(sys.argv[3:],check=True)\n\
        try:\n  h.pread(512,0)\n  sys.exit('it was still served')\n\
        except nbd.Error as e:\n  print(e)\n\
        o.pread(512,0)\n";
    let remove = [env!("CARGO_BIN_EXE_orlop"), "export", "--admin", text(&admin), "remove", "b"];
    let uris = [uri.as_str(), &server.uri_of("")];
    run(PYTHON, &[&["-c", script], uris.as_slice(), &remove].concat());
    assert_eq!(names(&server.uri_of("")).len(), 1);
    // Its disk is closed and whole: others may have it.
    orlop(&["check", "--data", text(&b)]);
    run("qemu-io", &["-f", "vpc", "-c", "read -P 5 0 1M", text(&b)]);
    let added = ask(&["add", &spec]);
    assert!(added.status.success(), "again: {added:?}\n{}", server.log());
    run("qemu-io", &["-f", "raw", "-c", "read -P 120 4M 4k", &uri]);
    assert_same(&read_all(&server.uri_of("a.raw").replace("a.raw", ""), &folder), &in_a, "a");
    server.close();
}

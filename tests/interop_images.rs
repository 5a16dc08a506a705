//! Our images before other readers, and theirs before ours: QEMU for images without parents, 7-Zip
//! and a reader of our own in Python (from the format document alone) for chains as well. QEMU
//! ignores parents and libvhdi misreads partial bitmaps, so neither judges a chain's content.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/foreign.rs"]
mod foreign;
#[path = "support/server.rs"]
mod server;
#[path = "interop/sessions.rs"]
mod sessions;

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use foreign::{PYTHON, assert_same, content, have, orlop, run, run_any, script, text};
use server::Server;
use sessions::{Kind, image};

const MIB: u64 = 1 << 20;

/// What a read-only server of ours shows.
fn ours(folder: &TempDir, path: &Path, options: &[&str]) -> Vec<u8> {
    let out = folder.path().join("ours");
    let server = Server::start(path, &[&["--read-only"], options].concat());
    run("nbdcopy", &[server.uri(), text(&out)]);
    server.close();
    std::fs::read(&out).unwrap()
}

/// What 7-Zip extracts.
fn seven_zip(folder: &TempDir, path: &Path) -> Vec<u8> {
    let out = folder.path().join("7z");
    run("7zz", &["e", "-tvhd", "-y", &format!("-o{}", out.display()), text(path)]);
    let mut files = std::fs::read_dir(&out).unwrap();
    let file = files.next().unwrap().unwrap().path();
    assert!(files.next().is_none(), "7-Zip found more than a disk");
    let bytes = std::fs::read(file).unwrap();
    std::fs::remove_dir_all(out).unwrap();
    bytes
}

/// What the reader from the format document finds.
fn python_reads(folder: &TempDir, path: &Path) -> Vec<u8> {
    let out = folder.path().join("python");
    run(PYTHON, &[&script("vhd_reader.py"), text(path), "--out", text(&out)]);
    std::fs::read(&out).unwrap()
}

fn qemu_reads(folder: &TempDir, path: &Path, format: &str) -> Vec<u8> {
    let out = folder.path().join("qemu");
    run("qemu-img", &["convert", "-f", format, "-O", "raw", text(path), text(&out)]);
    std::fs::read(&out).unwrap()
}

/// Writes bytes into an image through a server.
fn fill(folder: &TempDir, path: &Path, bytes: &[u8], options: &[&str]) {
    let source = folder.path().join("fill");
    std::fs::write(&source, bytes).unwrap();
    let server = Server::start(path, options);
    run("nbdcopy", &["--flush", text(&source), server.uri()]);
    server.close();
}

/// Every program that knows images opens this one after a clean close.
fn all_open(path: &Path) {
    run("qemu-img", &["info", "-f", "vpc", text(path)]);
    run("7zz", &["t", "-tvhd", text(path)]);
    run("vhdiinfo", &[text(path)]);
    orlop(&["check", text(path), "--json"]);
}

const ALL_TOOLS: [&str; 4] = ["qemu-img", "7zz", "vhdiinfo", "nbdcopy"];

#[test]
fn others_read_from_our_images_what_we_wrote() {
    if !have(&ALL_TOOLS) {
        return;
    }
    // Sizes that geometry cannot express, and a last block that is not whole.
    for size in [20 * MIB, 5 * MIB + 512, 37 * MIB + 3 * 512] {
        let bytes = content(size, size);
        for kind in [Kind::Raw, Kind::Fixed, Kind::Dynamic] {
            let folder = TempDir::new().unwrap();
            let path = image(&folder, kind, size);
            if kind != Kind::Raw {
                all_open(&path);
            }
            fill(&folder, &path, &bytes, &[]);
            let format = if kind == Kind::Raw { "raw" } else { "vpc" };
            assert_same(&qemu_reads(&folder, &path, format), &bytes, "what qemu-img reads");
            if kind != Kind::Raw {
                all_open(&path);
                assert_same(&seven_zip(&folder, &path), &bytes, "what 7-Zip reads");
                assert_same(&python_reads(&folder, &path), &bytes, "what the reader reads");
            }
            assert_same(&ours(&folder, &path, &[]), &bytes, "what we read");
        }
    }
}

#[test]
fn we_read_from_qemus_images_what_qemu_wrote() {
    if !have(&["qemu-img", "7zz", "nbdcopy"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let bytes = content(21 * MIB + 512, 3);
    let source = folder.path().join("source.raw");
    std::fs::write(&source, &bytes).unwrap();
    for (n, options) in [
        "subformat=dynamic,force_size=on",
        "subformat=fixed,force_size=on",
        "subformat=dynamic",
        "subformat=fixed",
    ]
    .iter()
    .enumerate()
    {
        let path = folder.path().join(format!("{n}.vhd"));
        let common = ["convert", "-f", "raw", "-O", "vpc", "-o", options];
        run("qemu-img", &[&common[..], &[text(&source), text(&path)]].concat());
        let found = ours(&folder, &path, &[]);
        // Without force_size QEMU rounds the disk up to whole cylinders.
        let mut wanted = bytes.clone();
        if !options.contains("force_size") {
            assert!(found.len() >= wanted.len(), "{} bytes", found.len());
            wanted.resize(found.len(), 0);
        }
        assert_same(&found, &wanted, options);
        assert_same(&seven_zip(&folder, &path), &wanted, "what 7-Zip reads");
        assert_same(&python_reads(&folder, &path), &wanted, "what the reader reads");
        // And we write into it, and QEMU reads that.
        let others = content(found.len() as u64, 99);
        fill(&folder, &path, &others, &[]);
        assert_same(&qemu_reads(&folder, &path, "vpc"), &others, "what we wrote, by qemu-img");
        assert_same(&seven_zip(&folder, &path), &others, "what we wrote, by 7-Zip");
        orlop(&["check", text(&path)]);
    }
}

#[test]
fn qemu_writes_into_our_images_and_we_read_it() {
    if !have(&ALL_TOOLS) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let bytes = content(19 * MIB, 8);
    let source = folder.path().join("source.raw");
    std::fs::write(&source, &bytes).unwrap();
    for kind in [Kind::Raw, Kind::Fixed, Kind::Dynamic] {
        let path = image(&folder, kind, 19 * MIB);
        let format = if kind == Kind::Raw { "raw" } else { "vpc" };
        let words = ["convert", "-n", "-f", "raw", "-O", format, text(&source), text(&path)];
        run("qemu-img", &words);
        assert_same(&ours(&folder, &path, &[]), &bytes, "what qemu-img wrote");
    }
}

/// Builds a chain with the independent writer; gives its top and what it must read as.
fn foreign_chain(folder: &TempDir, options: &[&str]) -> (PathBuf, Vec<u8>) {
    let out = folder.path().join("expected");
    let script = script("vhd_writer.py");
    let common = [script.as_str(), text(folder.path()), "--out", text(&out)];
    let told: serde_json::Value =
        serde_json::from_str(&run(PYTHON, &[&common, options].concat())).unwrap();
    let top = PathBuf::from(told["path"].as_str().unwrap());
    (top, std::fs::read(out).unwrap())
}

#[test]
fn chains_from_the_format_document_read_the_same_to_us_and_to_7_zip() {
    if !have(&["7zz", "nbdcopy"]) {
        return;
    }
    let chains: [&[&str]; 11] = [
        &["--depth", "1", "--seed", "1"],
        &["--depth", "1", "--seed", "2", "--base", "fixed"],
        &["--depth", "1", "--seed", "3", "--base", "raw"],
        &["--depth", "1", "--seed", "4", "--base", "raw", "--ragged", "77"],
        &["--depth", "4", "--seed", "5"],
        &["--depth", "4", "--seed", "6", "--grow"],
        &["--depth", "4", "--seed", "7", "--grow", "--base", "fixed", "--blocks", "4096,8192"],
        &["--depth", "4", "--seed", "8", "--grow", "--base", "raw", "--ragged", "300"],
        &["--depth", "29", "--seed", "9", "--grow"],
        &["--depth", "29", "--seed", "10", "--blocks", "512,1024,65536,2097152"],
        &["--depth", "30", "--seed", "11"],
    ];
    for options in chains {
        let folder = TempDir::new().unwrap();
        let (top, wanted) = foreign_chain(&folder, options);
        assert_same(&python_reads(&folder, &top), &wanted, "reader and writer in Python");
        for mode in [&["--aio", "auto"][..], &["--aio", "threads", "--cache", "none"]] {
            let found = ours(&folder, &top, &[mode, &["--max-depth", "31"]].concat());
            assert_same(&found, &wanted, &format!("{options:?} {mode:?}"));
        }
        orlop(&["check", "--chain", "--max-depth", "31", text(&top)]);
        // Xen's raw parents are unknown to 7-Zip, and behind a smaller parent's end it gives up.
        if !options.contains(&"raw") && !options.contains(&"--grow") {
            assert_same(&seven_zip(&folder, &top), &wanted, &format!("7-Zip {options:?}"));
        }
    }
}

#[test]
fn what_we_write_into_a_foreign_chain_is_read_by_others() {
    if !have(&["7zz", "nbdcopy", "qemu-io", "vhdiinfo"]) {
        return;
    }
    for (depth, base) in [("1", "dynamic"), ("4", "fixed"), ("4", "raw"), ("29", "dynamic")] {
        let folder = TempDir::new().unwrap();
        let mut options = vec!["--depth", depth, "--base", base, "--seed", "21"];
        // A parent smaller than its child is beyond 7-Zip, as is a raw one.
        options.extend((base == "raw").then_some("--grow"));
        let (top, mut wanted) = foreign_chain(&folder, &options);
        let parents = hashes(&folder, &top);
        let server = Server::start(&top, &[]);
        let mut words = vec!["-f".to_owned(), "raw".to_owned()];
        for n in 0..60_usize {
            let at = n * 7919 * 131 % (wanted.len() - 70000);
            let len = [1, 512, 700, 4096, 65536][n % 5];
            let byte = if n % 7 == 3 { 0 } else { n as u8 + 1 };
            let how = if byte == 0 { "-z -u".to_owned() } else { format!("-P {byte}") };
            words.extend(["-c".to_owned(), format!("write {how} {at} {len}")]);
            wanted[at..at + len].fill(byte);
        }
        words.push(server.uri().to_owned());
        run("qemu-io", &words);
        server.close();
        assert_same(&ours(&folder, &top, &[]), &wanted, "what we read");
        assert_same(&python_reads(&folder, &top), &wanted, "what the reader reads");
        if base != "raw" {
            assert_same(&seven_zip(&folder, &top), &wanted, "what 7-Zip reads");
        }
        run("vhdiinfo", &[text(&top)]);
        orlop(&["check", text(&top)]);
        assert_eq!(hashes(&folder, &top), parents, "a parent was touched");
    }
}

/// Names and bytes of all images but the top.
fn hashes(folder: &TempDir, top: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            path != top && (name.starts_with("base") || name.starts_with("level"))
        })
        .map(|path| (path.clone(), std::fs::read(&path).unwrap()))
        .collect();
    all.sort();
    all
}

#[test]
fn our_own_chains_read_the_same_to_others() {
    if !have(&["7zz", "nbdcopy", "qemu-io", "vhdiinfo"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let size = 12 * MIB + 512;
    let mut wanted = vec![0; size as usize];
    let mut below: Option<PathBuf> = None;
    for level in 0..30_usize {
        let path = folder.path().join(format!("l{level}.vhd"));
        let block = ["2M", "64K", "512K", "4K"][level % 4];
        let size = size.to_string();
        match &below {
            None => orlop(&["create", text(&path), "-s", &size, "--block-size", block]),
            Some(parent) => {
                orlop(&["create", text(&path), "--parent", text(parent), "--block-size", block])
            }
        };
        let server = Server::start(&path, &[]);
        let mut words = vec!["-f".to_owned(), "raw".to_owned()];
        for n in 0..8_usize {
            let at = (level * 8 + n) * 15_485_863 % (wanted.len() - 40000);
            let (len, byte) = ([100, 512, 5000, 40000][n % 4], (level * 8 + n + 1) as u8);
            words.extend(["-c".to_owned(), format!("write -P {byte} {at} {len}")]);
            wanted[at..at + len].fill(byte);
        }
        words.push(server.uri().to_owned());
        run("qemu-io", &words);
        server.close();
        if [0, 1, 4, 29].contains(&level) {
            let what = format!("{level} images below");
            assert_same(&ours(&folder, &path, &[]), &wanted, &what);
            assert_same(&python_reads(&folder, &path), &wanted, &what);
            assert_same(&seven_zip(&folder, &path), &wanted, &what);
        }
        run("vhdiinfo", &[text(&path)]);
        orlop(&["check", text(&path)]);
        below = Some(path);
    }
    let top = below.unwrap();
    let told = orlop(&["info", "--chain", "--json", text(&top)]);
    assert!(told.contains("l0.vhd"), "{told}");
    orlop(&["map", "--json", text(&top)]);
    orlop(&["map", "--totals", text(&top)]);
}

#[test]
fn an_image_in_use_is_refused_to_qemu_and_by_us() {
    if !have(&["qemu-io", "qemu-nbd"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let path = image(&folder, Kind::Dynamic, 4 * MIB);
    let server = Server::start(&path, &[]);
    let refused = run_any("qemu-io", &["-f", "vpc", "-c", "write 0 512", text(&path)]);
    assert!(!refused.status.success(), "QEMU wrote into an image that is served");
    let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(complaint.contains("lock"), "{complaint}");
    let ours = run_any(env!("CARGO_BIN_EXE_orlop"), &["serve", text(&path), "--run", "true"]);
    assert_eq!(ours.status.code(), Some(4), "{}", String::from_utf8_lossy(&ours.stderr));
    server.close();
    run("qemu-io", &["-f", "vpc", "-c", "write 0 512", text(&path)]);
    // And the other way: QEMU has it.
    let socket = folder.path().join("qemu");
    let inner = format!(
        "timeout 20 qemu-nbd -f vpc -k {} {} & id=$!; while ! [ -S {0} ]; do sleep 0.05; done; \
         {} serve {1} --run true; code=$?; kill $id; exit $code",
        socket.display(),
        path.display(),
        env!("CARGO_BIN_EXE_orlop"),
    );
    let ours = run_any("sh", &["-c", &inner]);
    assert_eq!(ours.status.code(), Some(4), "{}", String::from_utf8_lossy(&ours.stderr));
}

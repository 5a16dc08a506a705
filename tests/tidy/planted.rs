//! One violation of each kind, planted in a file that is otherwise tidy: a rule that finds nothing
//! here would find nothing anywhere.

use super::reading::Source;
use super::{ROOMS, check, check_manifest, dependencies};

const HEAD: &str = "//! What it is for.\n";

/// Path, text behind the head, and a piece of what must be said about it.
const PLANTED: [(&str, &str, &str); 41] = [
    ("src/engine/disk.rs", "use vhd::Footer;", "engine must not name the crate vhd"),
    ("src/engine/disk.rs", "use ::vhd::Footer;", "engine must not name the crate vhd"),
    ("src/engine/disk.rs", "use nbd::Export;", "engine must not name the crate nbd"),
    ("src/engine/disk.rs", "fn f() { io_uring::f() }", "must not name the crate io_uring"),
    ("src/engine/disk.rs", "use tokio::sync::Mutex;", "must not name the crate tokio"),
    ("src/engine/disk.rs", "use rustix::fs::open;", "must not name the crate rustix"),
    ("src/engine/disk.rs", "use std::fs::File;", "no std::fs"),
    ("src/engine/disk.rs", "use std::{fmt, net::TcpStream};", "no std::net"),
    ("src/engine/disk.rs", "fn f() { std::thread::yield_now() }", "no std::thread"),
    ("src/engine/disk.rs", "use std::time::Instant;", "no std::time"),
    ("src/engine/disk.rs", "use crate::format::Flat;", "engine must not name format"),
    ("src/engine/disk.rs", "use super::super::host::Host;", "engine must not name host"),
    ("src/engine/disk.rs", "use crate::{engine::units, shard::spawn};", "must not name shard"),
    ("src/format/flat.rs", "use std::fs;", "no std::fs"),
    ("src/format/flat.rs", "use crate::host::Host;", "format must not name host"),
    ("src/format/flat.rs", "use nbd::Export;", "format must not name the crate nbd"),
    ("src/host/mod.rs", "use crate::format::Flat;", "host must not name format"),
    ("src/host/mod.rs", "use super::shard::spawn;", "host must not name shard"),
    ("src/shard/run.rs", "use io_uring::IoUring;", "shard must not name the crate io_uring"),
    ("src/shard/run.rs", "use crate::transport::nbd::X;", "shard must not name transport"),
    ("src/transport/nbd/mod.rs", "use crate::image::open;", "transport must not name image"),
    ("src/image/open.rs", "use nbd::Export;", "image must not name the crate nbd"),
    ("src/bench/mod.rs", "use crate::engine::Disk;", "bench must not name engine::Disk"),
    ("src/server.rs", "use crate::cli::size;", "server must not name cli"),
    ("src/attic/mod.rs", "", "the room attic has no row"),
    ("vhd/src/bat.rs", "use std::fs::File;", "no std::fs"),
    ("nbd/src/wire.rs", "use tokio::net::TcpStream;", "must not name the crate tokio"),
    ("nbd/src/lib.rs", "", "does not forbid unsafe code"),
    ("src/lib.rs", "", "does not deny unsafe code"),
    ("src/host/files.rs", "fn f() { unsafe { g() } }", "unsafe has one address"),
    ("src/host/files.rs", "#![allow(unsafe_code)]", "unsafe is allowed in"),
    ("src/host/uring.rs", "fn f() {\n    unsafe { g() }\n}", "which invariant"),
    ("src/engine/disk.rs", "fn get_size() {}", "`get_size`"),
    ("src/engine/disk.rs", "struct DiskManager;", "`DiskManager`"),
    ("src/engine/disk.rs", "use super::units::*;", "glob import"),
    ("src/engine/disk.rs", "fn f() { g().unwrap() }", "`.unwrap()` outside tests"),
    ("src/engine/disk.rs", "fn f() { panic!(\"no\") }", "`panic!` outside tests"),
    ("src/engine/disk.rs", "fn f() { todo!() }", "`todo!` outside tests"),
    ("src/engine/disk.rs", "// caf\u{e9}", "not ASCII"),
    ("src/engine/disk.rs", "use super::units;\nuse std::fmt;", "imports go std, outside, ours"),
    ("src/engine/disk.rs", "use super::units;\n\nuse slab::Slab;", "imports go std"),
];

/// Text that looks like a violation and is none.
const INNOCENT: [(&str, &str); 8] = [
    ("src/engine/disk.rs", "// panic! .unwrap() unsafe crate::host::Host"),
    ("src/engine/disk.rs", "const A: &str = \"unsafe { x.unwrap() } crate::host::Host\";"),
    ("src/engine/disk.rs", "const A: &str = r#\"a \" panic!()\"#; const B: char = '\\'';"),
    ("src/engine/disk.rs", "#[cfg(test)]\nmod tests {\n    fn f() { x().unwrap() }\n}"),
    ("src/engine/disk.rs", "/* /* crate::host::Host */ panic!() */ fn f<'a>(x: &'a u8) {}"),
    ("src/format/vhd/leaf.rs", "use ::vhd::Image;\n\nuse super::super::vhd::Backing;"),
    ("tests/crash.rs", "fn f() { x().unwrap(); panic!() }"),
    ("src/host/uring.rs", "fn f() {\n    // The buffer outlives it.\n    unsafe { g() }\n}"),
];

fn outside() -> Vec<String> {
    ["vhd", "nbd", "io_uring", "tokio", "rustix", "slab"].map(str::to_owned).to_vec()
}

#[test]
fn each_planted_violation_is_found() {
    for (path, text, expected) in PLANTED {
        let found = check(&Source::new(path, &format!("{HEAD}{text}\n")), &outside());
        assert!(found.iter().any(|what| what.contains(expected)), "{path}: {text}: {found:?}");
    }
}

#[test]
fn what_only_looks_like_a_violation_is_left_alone() {
    for (path, text) in INNOCENT {
        let found = check(&Source::new(path, &format!("{HEAD}{text}\n")), &outside());
        assert!(found.is_empty(), "{path}: {text}: {found:?}");
    }
}

#[test]
fn sizes_are_measured_to_the_line() {
    let judge = |text: String| check(&Source::new("tests/x.rs", &text), &[]).concat();
    let file = |lines: usize| format!("{HEAD}{}", "\n".repeat(lines - 1));
    assert_eq!(judge(file(600)), "");
    assert!(judge(file(601)).contains("601 lines are more than 600"));
    let function = |lines: usize| format!("{HEAD}fn long() {{{}}}\n", "\n".repeat(lines - 1));
    assert_eq!(judge(function(70)), "");
    assert!(judge(function(71)).contains("function long has 71 lines"));
    let line = |columns: usize| format!("{HEAD}// {}\n", "x".repeat(columns - 3));
    assert_eq!(judge(line(100)), "");
    assert!(judge(line(101)).contains("101 columns"));
    assert!(judge("fn f() {}\n".to_owned()).contains("does not open with what"));
}

#[test]
fn a_manifest_without_the_lints_is_found() {
    let judge = |text: &str| {
        let mut findings = Vec::new();
        check_manifest("Cargo.toml", text, &mut findings);
        findings.concat()
    };
    assert_eq!(judge("[lints]\nworkspace = true\n"), "");
    assert!(judge("[package]\n").contains("lints"));
    assert!(judge("[workspace]\n[lints]\nworkspace = true\n").contains("documented"));
    let manifest =
        "[package]\nname = \"x\"\n[dependencies]\nio-uring = \"1\"\n[profile.dev]\na = 1";
    assert_eq!(dependencies(manifest), ["io_uring"]);
}

#[test]
fn no_row_of_the_table_points_up() {
    for (index, room) in ROOMS.iter().enumerate() {
        for other in room.rooms {
            let first = other.split("::").next();
            let below = ROOMS[..index].iter().any(|below| Some(below.name) == first);
            assert!(below, "{} may name {other}, which does not lie below it", room.name);
        }
    }
}

//! The house rules that need no judgement, so that reviews need not look: which room may name
//! which, sizes of files and functions, where `unsafe` may stand, what no name may contain.
//!
//! Reads source by line and word, not as a compiler: what it cannot see, rustc and clippy do.
//! `planted` plants one violation of each kind and expects each to be found.

use std::fs;
use std::path::Path;

#[path = "tidy/planted.rs"]
mod planted;
#[path = "tidy/reading.rs"]
mod reading;

use reading::{Source, is_word, item_end, module_of, named, rooms_named, word_at, words};

const MAX_FILE_LINES: usize = 600;
const MAX_FUNCTION_LINES: usize = 70;
const MAX_COLUMNS: usize = 100;

/// The only files that may hold `unsafe`.
const UNSAFE_FILES: [&str; 6] = [
    "src/host/uring.rs",
    "src/host/memory.rs",
    "src/host/inherited.rs",
    "src/host/uring/ring.rs",
    "src/host/residency.rs",
    "src/host/window.rs",
];
/// What no name of a type may contain: such a name says nothing.
const EMPTY_WORDS: [&str; 3] = ["Manager", "Helper", "Util"];
/// What must not decide anything about a guest's bytes outside tests.
const ABRUPT: [&str; 5] = [".unwrap()", "panic!", "todo!", "unimplemented!", "dbg!"];
/// What thinking code does not touch: files, sockets, clocks, threads and its own process.
const WORLD: [&str; 7] = ["env", "fs", "net", "os", "process", "thread", "time"];
/// Crates every room may use: they only shape values.
const PLAIN: [&str; 2] = ["slab", "thiserror"];

/// A room of the root package and everything its code may name.
struct Room {
    name: &'static str,
    /// Rooms, all of them below; `room::module` allows just that module.
    rooms: &'static [&'static str],
    /// Crates from outside the root package, the plain ones apart.
    crates: &'static [&'static str],
    /// Whether it may touch the world through `std`.
    acts: bool,
}

/// From the ground up: a room may only name rooms further up in this list.
const ROOMS: [Room; 23] = [
    Room { name: "engine", rooms: &[], crates: &[], acts: false },
    Room { name: "meter", rooms: &[], crates: &[], acts: true },
    Room { name: "size", rooms: &["engine::units"], crates: &[], acts: false },
    Room { name: "format", rooms: &["engine"], crates: &["vhd"], acts: false },
    Room {
        name: "partition",
        rooms: &["engine::units"],
        crates: &["crc32fast", "uuid"],
        acts: false,
    },
    Room {
        name: "host",
        rooms: &["engine"],
        crates: &["io_uring", "memmap2", "nix", "rustix", "tracing"],
        acts: true,
    },
    Room {
        name: "image",
        rooms: &["engine", "format", "host", "size"],
        crates: &["clap", "nix", "rustix", "tracing", "uuid", "vhd"],
        acts: true,
    },
    Room {
        name: "sr",
        rooms: &["engine", "format", "image"],
        crates: &["crc32fast", "rustix", "tracing", "uuid", "vhd"],
        acts: true,
    },
    Room { name: "control", rooms: &["engine::units", "sr"], crates: &["tracing"], acts: true },
    Room {
        name: "dialect",
        rooms: &["control", "engine::units", "sr"],
        crates: &["quick_xml", "serde_json"],
        acts: false,
    },
    Room {
        name: "api",
        rooms: &["control", "dialect"],
        crates: &["axum", "hyper", "hyper_util", "rustix", "serde_json", "tokio", "tracing"],
        acts: true,
    },
    Room {
        name: "shard",
        rooms: &["engine", "format", "host", "meter"],
        crates: &["tokio", "tracing"],
        acts: true,
    },
    Room {
        name: "transport",
        rooms: &["engine", "host", "meter", "shard"],
        crates: &["nbd", "orlop_fuse", "rustix", "tracing"],
        acts: true,
    },
    Room {
        name: "bench",
        rooms: &["engine::units"],
        crates: &["anyhow", "clap", "hdrhistogram", "nbd", "rustix", "serde", "serde_json"],
        acts: true,
    },
    Room {
        name: "tls",
        rooms: &[],
        crates: &[
            "openssl",
            "rustls",
            "tokio",
            "tokio_openssl",
            "tokio_rustls",
            "tracing",
            "x509_parser",
        ],
        acts: true,
    },
    Room {
        name: "server",
        rooms: &[
            "engine",
            "host",
            "image",
            "meter",
            "partition",
            "shard",
            "size",
            "tls",
            "transport",
        ],
        crates: &["nbd", "nix", "rustix", "tokio", "tracing"],
        acts: true,
    },
    Room {
        name: "admin",
        rooms: &["meter", "server"],
        crates: &["rustix", "serde", "serde_json", "tokio", "tracing"],
        acts: true,
    },
    Room {
        name: "mount",
        rooms: &[
            "admin",
            "engine::units",
            "host",
            "image",
            "meter",
            "server",
            "shard",
            "transport::files",
        ],
        crates: &["orlop_fuse", "rustix", "serde_json", "tokio", "tracing", "uuid", "vhd"],
        acts: true,
    },
    Room {
        name: "live",
        rooms: &[
            "admin",
            "control",
            "engine::units",
            "host",
            "image",
            "meter",
            "mount",
            "partition",
            "server",
            "shard",
            "sr",
            "transport::files",
        ],
        crates: &["orlop_fuse", "rustix", "serde_json", "tokio", "tracing", "uuid"],
        acts: true,
    },
    Room {
        name: "sandbox",
        rooms: &[],
        crates: &["landlock", "nix", "rustix", "seccompiler", "tracing"],
        acts: true,
    },
    Room {
        name: "daemon",
        rooms: &["api", "control", "host", "live", "server"],
        crates: &["rustix", "sd_notify", "serde", "tokio", "toml", "tracing", "uuid"],
        acts: true,
    },
    Room {
        name: "cli",
        rooms: &[
            "engine",
            "format",
            "host",
            "image",
            "meter",
            "shard",
            "transport",
            "bench",
            "server",
            "admin",
            "api",
            "control",
            "daemon",
            "dialect",
            "sr",
            "mount",
            "sandbox",
            "size",
            "tls",
        ],
        crates: &[
            "anyhow",
            "clap",
            "nbd",
            "orlop_fuse",
            "rustix",
            "serde",
            "serde_json",
            "tokio",
            "tracing",
            "tracing_subscriber",
            "uuid",
            "vhd",
        ],
        acts: true,
    },
    Room {
        name: "main",
        rooms: &["cli"],
        crates: &["anyhow", "clap", "tracing_subscriber"],
        acts: true,
    },
];

/// The leaf crates: their own language and nothing else.
const LEAVES: [(&str, &[&str]); 3] =
    [("vhd", &["zerocopy"]), ("nbd", &["bytes"]), ("fuse", &["fuser", "rustix"])];

/// What was found: where, and which rule.
type Findings = Vec<String>;

fn note(findings: &mut Findings, source: &Source, at: usize, what: &str) {
    findings.push(format!("{}:{}: {what}", source.path, source.line_of(at)));
}

fn check_shape(source: &Source, findings: &mut Findings) {
    let Source { path, text, code, .. } = source;
    let lines = text.lines().count();
    if lines > MAX_FILE_LINES {
        findings.push(format!("{path}: {lines} lines are more than {MAX_FILE_LINES}"));
    }
    if !text.starts_with("//! ") {
        findings.push(format!("{path}:1: does not open with what the module is for (`//! ...`)"));
    }
    for (index, line) in text.lines().enumerate() {
        let place = format!("{path}:{}", index + 1);
        let columns = line.chars().count();
        if columns > MAX_COLUMNS {
            findings.push(format!("{place}: {columns} columns are more than {MAX_COLUMNS}"));
        }
        if !line.is_ascii() {
            findings.push(format!("{place}: not ASCII"));
        }
    }
    for at in words(code, "fn") {
        let name = word_at(code, at + 2);
        if name.is_empty() {
            continue;
        }
        let (_, end) = item_end(code.as_bytes(), at);
        let len = source.line_of(end - 1) - source.line_of(at) + 1;
        if len > MAX_FUNCTION_LINES {
            let what = format!("function {name} has {len} lines, over {MAX_FUNCTION_LINES}");
            note(findings, source, at, &what);
        }
    }
}

fn check_names(source: &Source, findings: &mut Findings) {
    let code = &source.code;
    for at in words(code, "fn") {
        let name = word_at(code, at + 2);
        if name.starts_with("get_") {
            note(findings, source, at, &format!("`{name}`: a getter is named after what it gives"));
        }
    }
    for keyword in ["struct", "enum", "trait", "type", "union"] {
        for at in words(code, keyword) {
            let name = word_at(code, at + keyword.len());
            if EMPTY_WORDS.iter().any(|word| name.contains(word)) {
                note(findings, source, at, &format!("`{name}` does not say what the thing is"));
            }
        }
    }
    for (at, _) in code.match_indices("::*") {
        note(findings, source, at, "glob import");
    }
    for what in ABRUPT {
        for (at, _) in source.lean.match_indices(what) {
            if what.starts_with('.') || at == 0 || !is_word(source.lean.as_bytes()[at - 1]) {
                note(findings, source, at, &format!("`{what}` outside tests"));
            }
        }
    }
}

fn check_unsafe(source: &Source, findings: &mut Findings) {
    let may = UNSAFE_FILES.contains(&source.path.as_str());
    let lines: Vec<&str> = source.text.lines().map(str::trim).collect();
    for at in words(&source.code, "unsafe") {
        let line = source.line_of(at) - 1;
        if !may {
            note(findings, source, at, "unsafe has one address: host/uring.rs and host/memory.rs");
        } else if !is_explained(&lines, line) {
            note(findings, source, at, "no comment says which invariant makes this sound");
        }
    }
    for at in words(&source.code, "unsafe_code") {
        let lint = source.code[..at].trim_end().trim_end_matches('(');
        if lint.ends_with("allow") && !may {
            note(
                findings,
                source,
                at,
                "unsafe is allowed in host/uring.rs and host/memory.rs only",
            );
        }
    }
}

/// Whether a comment stands right above the statement or item that holds this line.
fn is_explained(lines: &[&str], line: usize) -> bool {
    for above in lines[..line].iter().rev() {
        if above.starts_with("//") {
            return true;
        }
        // An attribute or the head of the same statement may stand in between.
        let ends = above.is_empty() || above.ends_with([';', '{', '}']);
        if ends && !above.starts_with('#') {
            return false;
        }
    }
    false
}

fn check_room(source: &Source, outside: &[String], findings: &mut Findings) {
    let Some((name, module)) = module_of(&source.path) else { return };
    if name == "lib" {
        return;
    }
    let Some(room) = ROOMS.iter().find(|room| room.name == name) else {
        findings.push(format!("{}: the room {name} has no row in tests/tidy.rs", source.path));
        return;
    };
    for (at, other) in rooms_named(&source.lean, &module) {
        let first = other.split("::").next().unwrap_or_default();
        let is_room = ROOMS.iter().any(|room| room.name == first);
        let may = room.rooms.iter().any(|allowed| *allowed == first || *allowed == other);
        if is_room && first != name && !may {
            note(findings, source, at, &format!("{name} must not name {other}"));
        }
    }
    check_crates(source, name, room.crates, outside, findings);
    if !room.acts {
        check_stillness(source, name, findings);
    }
}

fn check_crates(
    source: &Source,
    name: &str,
    allowed: &[&str],
    outside: &[String],
    findings: &mut Findings,
) {
    for other in outside {
        if allowed.contains(&other.as_str()) || PLAIN.contains(&other.as_str()) {
            continue;
        }
        for (at, _) in named(&source.lean, other) {
            note(findings, source, at, &format!("{name} must not name the crate {other}"));
        }
    }
}

fn check_stillness(source: &Source, name: &str, findings: &mut Findings) {
    for (at, part) in named(&source.lean, "std") {
        let first = part.split("::").next().unwrap_or_default();
        if WORLD.contains(&first) {
            note(findings, source, at, &format!("{name} thinks only: no std::{first}"));
        }
    }
}

/// Imports in three groups: std, outside, ours.
fn check_import_order(source: &Source, outside: &[String], findings: &mut Findings) {
    let rank = |line: &str| {
        let path = line.strip_prefix("use ")?;
        let first = word_at(path.trim_start_matches("::"), 0);
        Some(match first {
            "std" | "core" | "alloc" => 0,
            _ if outside.iter().any(|name| name == first) => 1,
            _ => 2,
        })
    };
    let mut last = 0;
    for (index, line) in source.lean.lines().enumerate() {
        let Some(rank) = rank(line) else { continue };
        if rank < last {
            let place = format!("{}:{}", source.path, index + 1);
            findings.push(format!("{place}: imports go std, outside, ours"));
        }
        last = rank;
    }
}

/// All rules of one file. `outside`: the crates its package depends on.
fn check(source: &Source, outside: &[String]) -> Findings {
    let mut findings = Findings::new();
    check_shape(source, &mut findings);
    check_names(source, &mut findings);
    check_unsafe(source, &mut findings);
    check_room(source, outside, &mut findings);
    if source.path.contains("src/") {
        check_import_order(source, outside, &mut findings);
    }
    for (leaf, allowed) in LEAVES {
        if source.path.starts_with(&format!("{leaf}/src/")) {
            // A mount is of this world; what answers it is behind a port.
            if leaf != "fuse" {
                check_stillness(source, leaf, &mut findings);
            }
            check_crates(source, leaf, allowed, outside, &mut findings);
        }
        let root = source.path == format!("{leaf}/src/lib.rs");
        if root && !source.code.contains("#![forbid(unsafe_code)]") {
            findings.push(format!("{}: does not forbid unsafe code", source.path));
        }
    }
    if source.path == "src/lib.rs" && !source.code.contains("#![deny(unsafe_code)]") {
        findings.push("src/lib.rs: does not deny unsafe code".to_owned());
    }
    findings
}

/// The names under `[dependencies]` of a manifest, as code spells them.
fn dependencies(manifest: &str) -> Vec<String> {
    let section = manifest.split("\n[").find_map(|part| part.strip_prefix("dependencies]"));
    let lines = section.unwrap_or_default().lines();
    lines.filter_map(|line| Some(line.split_once('=')?.0.trim().replace('-', "_"))).collect()
}

fn check_manifest(path: &str, manifest: &str, findings: &mut Findings) {
    if !manifest.contains("[lints]\nworkspace = true") {
        findings.push(format!("{path}: does not take over the workspace's lints"));
    }
    if manifest.contains("[workspace]") && !manifest.contains("missing_docs = ") {
        findings.push(format!("{path}: public items need not be documented"));
    }
}

fn collect(dir: &Path, root: &Path, files: &mut Vec<Source>) {
    let entries = fs::read_dir(dir).expect("a directory of the repository can be read");
    for entry in entries {
        let path = entry.expect("an entry of the repository can be read").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                collect(&path, root, files);
            }
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(&path).expect("source is UTF-8");
            let short = path.strip_prefix(root).expect("it lies in the repository");
            files.push(Source::new(&short.to_string_lossy(), &text));
        }
    }
}

#[test]
fn the_house_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut findings = Findings::new();
    let mut outside = Vec::new();
    for package in ["", "vhd/", "nbd/", "fuse/"] {
        let path = format!("{package}Cargo.toml");
        let manifest = fs::read_to_string(root.join(&path)).expect("each package has a manifest");
        check_manifest(&path, &manifest, &mut findings);
        outside.push((format!("{package}src/"), dependencies(&manifest)));
    }
    let mut files = Vec::new();
    collect(root, root, &mut files);
    assert!(files.len() > 50, "only {} files found under {}", files.len(), root.display());
    for source in &files {
        let names = outside.iter().find(|(dir, _)| source.path.starts_with(dir));
        findings.extend(check(source, names.map_or(&[], |(_, names)| names)));
    }
    findings.sort();
    assert!(findings.is_empty(), "{} violations:\n{}", findings.len(), findings.join("\n"));
}

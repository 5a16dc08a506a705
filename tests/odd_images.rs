//! Every odd image of the format notes as a real file, opened for reading and for writing: the
//! verdict is the table's, and what leads out of the directory has its own error.
#![allow(clippy::unwrap_used, reason = "a test stops where its set-up fails")]

#[path = "support/odd_images.rs"]
mod odd_images;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use odd_images::{Builder, Case, Node, Verdict, cases};
use orlop::image::{
    CacheMode, Cause, GateError, ImageError, NoticeKind, OpenOptions, OpenedChain, inspect, open,
    repair,
};

/// Lays a case out in a directory of its own; gives the image to open.
fn place(case: &Case, dir: &Path) -> PathBuf {
    for (name, node) in &case.files {
        let path = dir.join(name);
        match node {
            Node::File(file) => file.write_to(&path).unwrap(),
            Node::Symlink(target) => symlink(target, &path).unwrap(),
            // No mkfifo: a forked child would hold copies of other tests' locked descriptors.
            Node::Fifo => {
                let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
                rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
            }
        }
    }
    // Rows about a child's own bytes need a parent that does not get in the way.
    if !case.needs_directory && !case.files.contains_key("base.vhd") {
        Builder::dynamic().build().write_to(&dir.join("base.vhd")).unwrap();
    }
    dir.join(case.open)
}

fn reading(path: &Path) -> OpenOptions {
    OpenOptions { read_only: true, ..OpenOptions::new(path) }
}

fn is_repaired(chain: &OpenedChain) -> bool {
    chain.notices.iter().any(|notice| matches!(notice.kind, NoticeKind::Repaired(_)))
}

/// Whether the error is the one that the row must give.
fn is_expected(number: u32, error: &ImageError) -> bool {
    use GateError as G;
    let Cause::Parent(gate) = &error.cause else {
        return !(66..=76).contains(&number) && matches!(error.cause, Cause::Vhd(_));
    };
    match number {
        66 => matches!(gate, G::Missing { .. }),
        67 => matches!(gate, G::Identity { .. }),
        68 => matches!(gate, G::Itself),
        69 => matches!(gate, G::Cycle { .. }),
        72 => matches!(gate, G::Outside { .. }),
        73 => matches!(gate, G::Absolute { .. }),
        74 | 75 => matches!(gate, G::Symlink { .. }),
        76 => matches!(gate, G::NotRegular { .. }),
        87 => matches!(gate, G::TooDeep { most: 30 }),
        _ => false,
    }
}

#[test]
fn every_odd_image_has_its_verdict_as_a_real_file() {
    for case in cases() {
        let dir = tempfile::tempdir().unwrap();
        let path = place(&case, dir.path());
        let what = format!("{:02} {}", case.number, case.name);
        let before = fs::metadata(&path).unwrap().len();
        let read = open(&reading(&path));
        match (&read, case.verdict) {
            (Ok(chain), Verdict::Open | Verdict::Handle | Verdict::ReadOnlyRepair) => {
                assert!(chain.read_only, "{what}");
            }
            (Err(error), Verdict::Reject | Verdict::Handle) => {
                assert!(is_expected(case.number, error), "{what}: {error:?}");
                assert!(!error.hint().is_empty(), "{what}");
            }
            _ => unreachable!("{what}: {read:?}"),
        }
        assert_eq!(fs::metadata(&path).unwrap().len(), before, "{what}: reading changed it");
        let refused = read.is_err();
        drop(read);
        let written = open(&OpenOptions::new(&path));
        match (&written, case.verdict) {
            (Ok(chain), Verdict::Open) => assert!(!is_repaired(chain), "{what}"),
            (Ok(chain), Verdict::ReadOnlyRepair) => assert!(is_repaired(chain), "{what}"),
            (Ok(_), Verdict::Handle) => assert!(!refused, "{what}"),
            (Err(error), Verdict::Handle) if !refused => {
                assert!(matches!(error.cause, Cause::WriteRefused(_)), "{what}: {error:?}");
            }
            (Err(_), Verdict::Reject | Verdict::Handle) => assert!(refused, "{what}"),
            _ => unreachable!("{what}: {written:?}"),
        }
        drop(written);
        if case.verdict == Verdict::ReadOnlyRepair {
            let again = open(&OpenOptions::new(&path)).unwrap();
            assert!(!is_repaired(&again), "{what}: repaired twice");
            drop(again);
            let inspection = inspect(&OpenOptions::new(&path), true).unwrap();
            assert!(inspection.report.is_sound() && inspection.plan.is_empty(), "{what}");
        }
    }
}

fn case(number: u32) -> Case {
    cases().into_iter().find(|case| case.number == number).unwrap()
}

#[test]
fn a_deep_chain_opens_when_the_user_allows_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = place(&case(87), dir.path());
    let options = OpenOptions { max_depth: 65, ..reading(&path) };
    assert_eq!(open(&options).unwrap().layers.len(), 65);
    let options = OpenOptions { max_depth: 64, ..reading(&path) };
    let error = open(&options).unwrap_err();
    assert!(matches!(error.cause, Cause::Parent(GateError::TooDeep { most: 64 })), "{error}");
}

#[test]
fn a_parent_elsewhere_opens_only_beneath_an_allowed_directory() {
    let root = tempfile::tempdir().unwrap();
    let (home, base) = (root.path().join("home"), root.path().join("base"));
    fs::create_dir(&home).unwrap();
    fs::create_dir(&base).unwrap();
    Builder::dynamic().build().write_to(&base.join("base.vhd")).unwrap();
    let path = home.join("child.vhd");
    Builder::child("../base/base.vhd").build().write_to(&path).unwrap();
    let error = open(&reading(&path)).unwrap_err();
    assert!(matches!(error.cause, Cause::Parent(GateError::Outside { .. })), "{error}");
    let allowed = OpenOptions { allow_parents: vec![base.clone()], ..reading(&path) };
    let chain = open(&allowed).unwrap();
    assert_eq!(chain.layers[1].path, base.canonicalize().unwrap().join("base.vhd"));
    drop(chain);
    let elsewhere = OpenOptions { allow_parents: vec![home], ..reading(&path) };
    assert!(open(&elsewhere).is_err());
    let nowhere = OpenOptions { allow_parents: vec![root.path().join("none")], ..reading(&path) };
    assert!(matches!(open(&nowhere).unwrap_err().cause, Cause::AllowedDirectory(_)));
}

#[test]
fn a_raw_parent_opens_only_under_a_raw_name_or_on_the_users_word() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["base.raw", "passwords"] {
        fs::write(dir.path().join(name), vec![7; 4 << 20]).unwrap();
    }
    let child = |parent: &str| {
        let path = dir.path().join("child.vhd");
        let image = Builder::child(parent).with(|b| b.parent = [0; 16]);
        image.build().write_to(&path).unwrap();
        path
    };
    assert_eq!(open(&reading(&child("base.raw"))).unwrap().layers.len(), 2);
    let path = child("passwords");
    let error = open(&reading(&path)).unwrap_err();
    assert!(matches!(error.cause, Cause::Parent(GateError::RawRefused { .. })), "{error}");
    let trusted = OpenOptions { allow_raw_parent: true, ..reading(&path) };
    assert_eq!(open(&trusted).unwrap().layers.len(), 2);
}

#[test]
fn an_image_with_children_is_not_written_unless_forced() {
    let dir = tempfile::tempdir().unwrap();
    let path = place(&case(65), dir.path());
    let base = dir.path().join("base.vhd");
    let error = open(&OpenOptions::new(&base)).unwrap_err();
    let Cause::HasChildren { child } = &error.cause else { unreachable!("{error}") };
    assert_eq!(child.file_name(), path.file_name());
    assert!(open(&reading(&base)).is_ok());
    let forced = OpenOptions { force_rw_parent: true, ..OpenOptions::new(&base) };
    assert!(!open(&forced).unwrap().read_only);
    let hidden = dir.path().join("hidden.vhd");
    let image = Builder::dynamic().with(|b| b.uuid = [9; 16]).both(85, &[1]);
    image.build().write_to(&hidden).unwrap();
    assert!(matches!(open(&OpenOptions::new(&hidden)).unwrap_err().cause, Cause::Hidden));
}

#[test]
fn a_chain_in_use_keeps_writers_away_from_every_image_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = place(&case(65), dir.path());
    let chain = open(&OpenOptions::new(&path)).unwrap();
    assert!(matches!(open(&reading(&path)).unwrap_err().cause, Cause::Lock(_)));
    let base = dir.path().join("base.vhd");
    let forced = OpenOptions { force_rw_parent: true, ..OpenOptions::new(&base) };
    assert!(matches!(open(&forced).unwrap_err().cause, Cause::Lock(_)));
    assert!(open(&reading(&base)).is_ok());
    let peeking = OpenOptions { share: true, ..OpenOptions::new(&path) };
    assert!(open(&peeking).unwrap().read_only);
    drop(chain);
    let busy = open(&forced).unwrap();
    let error = open(&reading(&path)).unwrap_err();
    assert!(error.needed_by.is_some() && matches!(error.cause, Cause::Lock(_)), "{error}");
    drop(busy);
}

#[test]
fn a_repair_on_request_leaves_what_it_cannot_repair() {
    let dir = tempfile::tempdir().unwrap();
    let path = place(&case(1), dir.path());
    let bytes = fs::read(&path).unwrap();
    let done = repair(&OpenOptions::new(&path), false).unwrap();
    assert!(done.steps.is_empty() && !done.after.report.is_sound());
    assert_eq!(fs::read(&path).unwrap(), bytes);
    let path = place(&case(13), dir.path());
    let done = repair(&OpenOptions::new(&path), false).unwrap();
    assert!(!done.steps.is_empty() && !done.before.is_sound() && done.after.report.is_sound());
}

#[test]
fn without_the_page_cache_every_image_of_a_chain_is_direct_or_nothing_opens() {
    let dir = tempfile::tempdir().unwrap();
    let path = place(&case(65), dir.path());
    let options = OpenOptions { cache: CacheMode::None, ..OpenOptions::new(&path) };
    match open(&options) {
        Ok(chain) => assert!(chain.layers.iter().all(|layer| layer.mode.direct)),
        Err(error) => assert!(matches!(error.cause, Cause::NoDirect), "{error}"),
    }
    let cached = open(&OpenOptions::new(&path)).unwrap();
    assert!(cached.layers.iter().all(|layer| !layer.mode.direct));
}

//! Mounted disks before programs no one here wrote: fio with checksums, file systems of the kernel
//! in loop devices, QEMU's and libnbd's tools on what was written; and scripts that compare every
//! byte with a model while servers are killed or the same disk is written over NBD.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/foreign.rs"]
mod foreign;
#[path = "support/mounted.rs"]
mod mounted;
#[path = "support/ring_switch.rs"]
mod ring_switch;
#[path = "interop/sessions.rs"]
mod sessions;

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tempfile::TempDir;

use foreign::{PYTHON, have, orlop, run, script, text};
use mounted::{FileSystem, Loop, Mounted};
use sessions::{Kind, image};

const MIB: u64 = 1 << 20;
/// Where the partition begins in the tables made here.
const START: u64 = MIB;
/// Requests through the shard's ring.
const RINGS: &[&str] = &["--transport", "uring"];

/// Whether this process may mount; CI must.
fn may_mount() -> bool {
    let may = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    assert!(may || !std::env::var("CI").is_ok_and(|ci| ci == "true"), "CI must be able to mount");
    if !may {
        println!("SKIPPED: mounting needs root and /dev/fuse");
    }
    may
}

fn fio(disk: &Path, engine: &str, depth: u32, direct: bool, rw: &str) {
    let grain = if direct { "512-64k" } else { "1-64k" };
    let arguments = [
        format!("--name={engine}-{depth}"),
        format!("--filename={}", disk.display()),
        format!("--ioengine={engine}"),
        format!("--iodepth={depth}"),
        format!("--direct={}", u8::from(direct)),
        format!("--rw={rw}"),
        format!("--bsrange={grain}"),
        "--bs_unaligned=1".to_owned(),
        "--size=32M".to_owned(),
        "--io_size=12M".to_owned(),
        "--verify=crc32c".to_owned(),
        "--verify_fatal=1".to_owned(),
        "--verify_state_save=0".to_owned(),
        "--allow_file_create=0".to_owned(),
        "--fsync=200".to_owned(),
    ];
    // A block must have room for its checksum, and O_DIRECT for its grain.
    let arguments = arguments.map(|word| match word.as_str() {
        "--bs_unaligned=1" if direct => "--bs_unaligned=0".to_owned(),
        "--bsrange=1-64k" => "--bsrange=512-64k".to_owned(),
        _ => word,
    });
    let said = run("fio", &arguments);
    assert!(said.contains("err= 0"), "{said}");
}

/// Check 1: every engine, depth and mode, with writes and trims of mixed sizes.
fn fio_finds_nothing(kind: Kind, options: &[&str]) {
    if !may_mount() || !have(&["fio"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let path = image(&folder, kind, 32 * MIB);
    let mounted = Mounted::new(&path, options);
    for (engine, depths) in
        [("psync", &[1][..]), ("libaio", &[1, 4, 16, 64]), ("io_uring", &[1, 4, 16, 64])]
    {
        for depth in depths {
            for direct in [true, false] {
                fio(&mounted.disk(), engine, *depth, direct, "randwrite");
            }
        }
    }
    // fio trims devices only.
    let device = Loop::new(&mounted.disk(), 0, 32 * MIB);
    for (engine, depth) in [("psync", 1), ("libaio", 4), ("io_uring", 16), ("libaio", 64)] {
        fio(Path::new(&device.0), engine, depth, true, "randtrimwrite");
    }
    device.close();
    mounted.close();
    if kind != Kind::Raw {
        orlop(&["check", text(&path)]);
    }
}

#[test]
fn fio_finds_nothing_on_a_raw_image() {
    fio_finds_nothing(Kind::Raw, &[]);
}

#[test]
fn fio_finds_nothing_on_a_dynamic_image() {
    fio_finds_nothing(Kind::Dynamic, &[]);
}

#[test]
fn fio_finds_nothing_on_a_chain_of_four() {
    fio_finds_nothing(Kind::Chain, &[]);
}

#[test]
fn fio_finds_nothing_through_rings() {
    if ring_switch::is_on() {
        fio_finds_nothing(Kind::Raw, RINGS);
        fio_finds_nothing(Kind::Chain, RINGS);
    }
}

/// Check 2, for one kind of file system on one kind of image.
fn file_system_lives(kind: Kind, mkfs: &[&str], fsck: &[&str], mount: &[&str]) {
    if !may_mount() || !have(&["losetup", "sfdisk", "fstrim", "qemu-img", mkfs[0], fsck[0]]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let path = image(&folder, kind, 512 * MIB);
    let mounted = Mounted::new(&path, &[]);
    let table = folder.path().join("table");
    std::fs::write(&table, "label: gpt\nstart=1MiB, type=L\n").unwrap();
    let shell = format!("sfdisk --quiet --no-reread {} < {}", text(&mounted.disk()), text(&table));
    run("sh", &["-c", &shell]);
    mounted.close();
    let mounted = Mounted::new(&path, &[]);
    let len = mounted.path("p1").metadata().unwrap().len();
    let device = Loop::new(&mounted.disk(), START, len);
    run(mkfs[0], &[&mkfs[1..], &[&device.0]].concat());
    let inside = FileSystem::new(&device.0, mount);
    for number in 0..24 {
        let bytes = foreign::content(4 * MIB, number + 1);
        std::fs::write(inside.path().join(format!("file-{number}")), bytes).unwrap();
    }
    let sums = sums(inside.path(), 0..24);
    inside.close();
    let full = path.metadata().unwrap().blocks() * 512;
    let inside = FileSystem::new(&device.0, mount);
    assert_eq!(self::sums(inside.path(), 0..24), sums);
    for number in 0..16 {
        std::fs::remove_file(inside.path().join(format!("file-{number}"))).unwrap();
    }
    run("sync", &["-f", text(inside.path())]);
    run("fstrim", &["-v", text(inside.path())]);
    run("sync", &["-f", text(inside.path())]);
    let left = self::sums(inside.path(), 16..24);
    inside.close();
    run(fsck[0], &[&fsck[1..], &[&device.0]].concat());
    device.close();
    let stored = mounted.disk().metadata().unwrap().blocks() * 512;
    let through_the_mount = run("sha256sum", &[text(&mounted.disk())]);
    mounted.close();
    let trimmed = path.metadata().unwrap().blocks() * 512;
    let freed = 16 * 4 * MIB * 2 / 3;
    assert!(trimmed + freed / 2 < full, "{kind:?}: {full} bytes before fstrim, {trimmed} after");
    // What was trimmed in a child is told as data still, and what the removals wrote comes to it.
    let told = if kind == Kind::Chain { 4 * MIB } else { 0 };
    assert!(stored <= full + told, "{kind:?}: {stored} of {full}");
    by_others(kind, &path, &through_the_mount);
    read_only(&path, mount, &left);
}

fn sums(folder: &Path, which: std::ops::Range<u32>) -> String {
    let files: Vec<String> = which.map(|number| format!("file-{number}")).collect();
    run("sh", &["-c", &format!("cd {} && sha256sum {}", text(folder), files.join(" "))])
}

/// QEMU and libnbd read the same bytes; what they write is what the mount shows.
fn by_others(kind: Kind, path: &Path, expected: &str) {
    let folder = TempDir::new().unwrap();
    let copy = folder.path().join("copy.raw");
    let sum = |path: &Path| run("sha256sum", &[text(path)])[..64].to_owned();
    let socket = folder.path().join("nbd");
    let mounted = Mounted::new(path, &["--nbd", text(&socket)]);
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    run("nbdcopy", &[uri.as_str(), text(&copy)]);
    assert_eq!(sum(&copy), expected[..64]);
    // Between the table and the partition nobody else writes.
    run("qemu-io", &["-f", "raw", "-c", "write -P 9 128K 512K", "-c", "flush", &uri]);
    let written = sum(&mounted.disk());
    assert_ne!(written, expected[..64]);
    mounted.close();
    // QEMU reads a VHD, but not a child of one.
    if kind == Kind::Dynamic {
        run("qemu-img", &["convert", "-f", "vpc", "-O", "raw", text(path), text(&copy)]);
        // It rounds the size up to its idea of cylinders.
        std::fs::File::options().write(true).open(&copy).unwrap().set_len(512 * MIB).unwrap();
        assert_eq!(sum(&copy), written);
    }
}

/// The partition's file is all that mount(8) needs.
fn read_only(path: &Path, mount: &[&str], left: &str) {
    let mounted = Mounted::new(path, &["--read-only"]);
    let mut options = vec!["-o", "ro,loop"];
    options.extend(mount.iter().filter(|word| word.starts_with("-t")));
    let inside = FileSystem::new(text(&mounted.path("p1")), &options);
    assert_eq!(sums(inside.path(), 16..24), left);
    inside.close();
    mounted.close();
}

#[test]
fn ext4_lives_in_a_dynamic_image() {
    let (mkfs, fsck) = (["mkfs.ext4", "-q"], ["e2fsck", "-fn"]);
    file_system_lives(Kind::Dynamic, &mkfs, &fsck, &[]);
}

#[test]
fn ext4_lives_in_a_chain() {
    let (mkfs, fsck) = (["mkfs.ext4", "-q"], ["e2fsck", "-fn"]);
    file_system_lives(Kind::Chain, &mkfs, &fsck, &[]);
}

#[test]
fn xfs_lives_in_a_dynamic_image() {
    let (mkfs, fsck) = (["mkfs.xfs", "-q"], ["xfs_repair", "-n"]);
    file_system_lives(Kind::Dynamic, &mkfs, &fsck, &[]);
}

#[test]
fn btrfs_lives_in_a_raw_image() {
    let (mkfs, fsck) = (["mkfs.btrfs", "-q"], ["btrfs", "check", "--force"]);
    file_system_lives(Kind::Raw, &mkfs, &fsck, &[]);
}

fn number_from(name: &str, usual: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| usual.to_owned())
}

/// Check 4. `ORLOP_FSX_OPERATIONS=1000000 ORLOP_FSX_LIVES=50` for all of it.
fn fsx(kind: Kind, options: &[&str]) {
    if !may_mount() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let path = image(&folder, kind, 8 * MIB);
    let place = folder.path().join("mount");
    std::fs::create_dir(&place).unwrap();
    let script = script("fsx.py");
    let (operations, lives) =
        (number_from("ORLOP_FSX_OPERATIONS", "15000"), number_from("ORLOP_FSX_LIVES", "6"));
    let mut arguments =
        vec![&*script, env!("CARGO_BIN_EXE_orlop"), text(&path), text(&place), "--operations"];
    arguments.extend([&*operations, "--lives", &lives]);
    let seed = std::env::var("ORLOP_FSX_SEED");
    if let Ok(seed) = &seed {
        arguments.extend(["--seed", seed]);
    }
    let options: Vec<String> = options.iter().map(|o| format!("--option={o}")).collect();
    arguments.extend(options.iter().map(String::as_str));
    let output = std::process::Command::new(PYTHON).args(arguments).output().unwrap();
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{kind:?}: {said}");
    assert!(output.status.success(), "{said}\n{complained}");
    if kind != Kind::Raw {
        orlop(&["check", text(&path)]);
    }
}

#[test]
fn random_operations_and_kills_leave_no_difference_on_a_raw_image() {
    fsx(Kind::Raw, &[]);
}

#[test]
fn random_operations_and_kills_leave_no_difference_on_a_dynamic_image() {
    fsx(Kind::Dynamic, &[]);
}

#[test]
fn random_operations_and_kills_leave_no_difference_on_a_chain() {
    fsx(Kind::Chain, &[]);
}

/// Check 3. `ORLOP_TURNS` and `ORLOP_ROUNDS` for more of it.
fn coherent(kind: Kind, options: &[&str]) {
    if !may_mount() || !have(&["libnbd for Python"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let path = image(&folder, kind, 8 * MIB);
    let place = folder.path().join("mount");
    std::fs::create_dir(&place).unwrap();
    let script = script("coherence.py");
    let (turns, rounds) = (number_from("ORLOP_TURNS", "600"), number_from("ORLOP_ROUNDS", "200"));
    let words = [&script, env!("CARGO_BIN_EXE_orlop"), text(&path), text(&place)];
    let options: Vec<String> = options.iter().map(|o| format!("--option={o}")).collect();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let sizes = ["--turns", &turns, "--rounds", &rounds];
    println!("{}", run(PYTHON, &[&words[..], &sizes, &options].concat()));
}

#[test]
fn a_dynamic_image_is_the_same_through_nbd_files_and_mappings() {
    coherent(Kind::Dynamic, &[]);
}

#[test]
fn a_chain_is_the_same_through_nbd_files_and_mappings() {
    coherent(Kind::Chain, &[]);
}

#[test]
fn a_raw_image_is_the_same_through_nbd_files_and_mappings() {
    coherent(Kind::Raw, &[]);
}

#[test]
fn random_operations_kills_and_nbd_find_nothing_through_rings() {
    if ring_switch::is_on() {
        fsx(Kind::Chain, RINGS);
        coherent(Kind::Dynamic, RINGS);
        coherent(Kind::Raw, RINGS);
    }
}

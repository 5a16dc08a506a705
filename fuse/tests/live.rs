//! What changes while the mount is used: disks that come, go and change, slow and lost answers,
//! many users at once, and the ways a mount begins and ends.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;
mod ring;

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{DISK, Fixture, Memory, Mood, can_mount, is_mounted, new_disk, until, window};
use orlop_fuse::{
    Bytes, DiskId, Layout, MountError, NewDisk, Options, Route, TreeError, UnmountError,
    UnmountHow, Usage, clear_stale, is_stale, mount,
};

const MIB: usize = 1 << 20;

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.expect_err("it must be refused").raw_os_error().expect("it has a number")
}

fn names(at: &Path) -> Vec<String> {
    let entries = fs::read_dir(at).unwrap();
    let mut all: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    all.sort();
    all
}

fn many(disks: &[NewDisk]) -> Fixture {
    let port = Memory::new();
    for disk in disks {
        port.insert(disk.id, disk.len.0 as usize);
    }
    Fixture::new(port, &Options::default(), disks)
}

#[test]
fn disks_come_and_go() {
    if !can_mount() {
        return;
    }
    let fixture = many(&[new_disk(DiskId(1), "one", MIB)]);
    assert_eq!(names(fixture.at()), ["one"]);
    assert!(!fixture.path("two").exists());
    fixture.port.insert(DiskId(2), 2 * MIB);
    let two = NewDisk { windows: vec![window(3, 0, 512)], ..new_disk(DiskId(2), "two", 2 * MIB) };
    assert_eq!(fixture.mounted().add(&two).unwrap(), "two");
    assert_eq!(fixture.mounted().add(&two), Err(TreeError::Known(DiskId(2))));
    assert_eq!(names(fixture.at()), ["one", "two"]);
    assert_eq!(fs::metadata(fixture.path("two/disk")).unwrap().len(), 2 * MIB as u64);
    assert_eq!(fs::metadata(fixture.path("two/p3")).unwrap().len(), 512);
    let inode = fs::metadata(fixture.path("two/disk")).unwrap().ino();
    // Not while it is used, unless forced; then whoever has it open learns it at once.
    let reader = File::open(fixture.path("two/disk")).unwrap();
    let writer = File::options().write(true).open(fixture.path("two/p3")).unwrap();
    let text = File::open(fixture.path("two/status")).unwrap();
    let usage = fixture.mounted().usage(DiskId(2)).unwrap();
    assert_eq!(usage, Usage { readers: 1, writers: 1, passthrough: 0 });
    let busy = fixture.mounted().remove(DiskId(2), false);
    assert_eq!(busy, Err(TreeError::InUse(DiskId(2), 2)));
    assert_eq!(reader.read_at(&mut [0; 16], 0).unwrap(), 16);
    fixture.mounted().remove(DiskId(2), true).unwrap();
    for result in [
        reader.read_at(&mut [0; 16], 0),
        writer.write_at(&[0; 16], 0),
        text.read_at(&mut [0; 16], 0),
    ] {
        assert_eq!(errno(result), 19);
    }
    assert_eq!(errno(writer.sync_all()), 19);
    assert!(!fixture.path("two").exists() && !fixture.path("two/disk").exists());
    assert_eq!(names(fixture.at()), ["one"]);
    drop((reader, writer, text));
    // The name may come back; the file is another one.
    fixture.mounted().add(&two).unwrap();
    assert_ne!(fs::metadata(fixture.path("two/disk")).unwrap().ino(), inode);
    assert_eq!(fixture.mounted().usage(DiskId(2)).unwrap(), Usage::default());
}

#[test]
fn sizes_and_partitions_change_under_open_files() {
    if !can_mount() {
        return;
    }
    let first = NewDisk { windows: vec![window(1, 4096, 4096)], ..new_disk(DISK, "a", MIB) };
    let fixture = many(&[first]);
    let file = File::options().read(true).write(true).open(fixture.path("a/disk")).unwrap();
    let part = File::open(fixture.path("a/p1")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), MIB as u64);
    fixture.port.insert(DISK, 2 * MIB);
    fixture.mounted().resize(DISK, Bytes(2 * MIB as u64)).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 2 * MIB as u64);
    file.write_all_at(b"new", MIB as u64 + 5).unwrap();
    assert_eq!(part.read_at(&mut [0; 8], 0).unwrap(), 8);
    let windows = [window(1, 4096, 8192), window(2, MIB as u64, 512)];
    fixture.mounted().repartition(DISK, &windows).unwrap();
    assert_eq!(errno(part.read_at(&mut [0; 8], 0)), 19);
    assert_eq!(fs::metadata(fixture.path("a/p1")).unwrap().len(), 8192);
    assert_eq!(&fs::read(fixture.path("a/p2")).unwrap()[5..8], b"new");
    fixture.mounted().resize(DISK, Bytes(4096)).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 4096);
    assert_eq!(file.read_at(&mut [0; 8], 4096).unwrap(), 0);
    assert!(!fixture.path("a/p1").exists() && !fixture.path("a/p2").exists());
}

#[test]
fn labels_of_any_kind_become_names() {
    if !can_mount() {
        return;
    }
    let long = "z".repeat(400);
    let labels = ["..", ".", "/", "a/../../b", "", "x\0y\n", "same", "same", &long, &long];
    let disks: Vec<_> = labels
        .iter()
        .enumerate()
        .map(|(n, label)| new_disk(DiskId(n as u64), label, 4096))
        .collect();
    let fixture = many(&disks);
    let names = names(fixture.at());
    assert_eq!(names.len(), labels.len());
    for name in names {
        assert!(name.len() <= 255 && !name.starts_with('.') && !name.contains(char::is_control));
        assert_eq!(fs::read(fixture.path(&name).join("disk")).unwrap().len(), 4096);
    }
}

#[test]
fn a_large_directory_is_listed_whole() {
    if !can_mount() {
        return;
    }
    let disks: Vec<_> =
        (0..600).map(|n| new_disk(DiskId(n), &format!("disk-{n:0100}"), 4096)).collect();
    let fixture = many(&disks);
    assert_eq!(names(fixture.at()).len(), 600);
    assert_eq!(fs::metadata(fixture.path(&format!("disk-{:0100}/disk", 599))).unwrap().len(), 4096);
}

#[test]
fn a_slow_disk_holds_up_nobody_else() {
    if !can_mount() {
        return;
    }
    let fixture = Fixture::single(MIB);
    let file = Arc::new(fixture.disk());
    file.write_all_at(b"slow", 0).unwrap();
    fixture.port.set(Mood::Holding);
    // Far more waiting requests than threads that read them. A ring has places for as many as it
    // is deep, and whoever comes after them does wait.
    let many = if crate::ring::chosen().is_some() { 16 } else { 32 };
    let waiting: Vec<_> = (0..many)
        .map(|n| {
            let file = file.clone();
            std::thread::spawn(move || {
                let mut four = [0; 4];
                if n % 2 == 0 {
                    file.read_exact_at(&mut four, 0).map(|()| four)
                } else {
                    file.write_all_at(b"late", 4096 * n).map(|()| *b"slow")
                }
            })
        })
        .collect();
    until("every request waiting", || fixture.port.held() == many as usize);
    assert_eq!(names(fixture.at()).len(), 5);
    assert_eq!(fs::metadata(fixture.path("disk")).unwrap().len(), MIB as u64);
    drop(File::open(fixture.path("disk")).unwrap());
    assert!(matches!(fixture.mounted().unmount(UnmountHow::Clean), Err(UnmountError::Busy(_))));
    fixture.port.go_on();
    for thread in waiting {
        assert_eq!(&thread.join().unwrap().unwrap(), b"slow");
    }
    assert_eq!(fixture.port.bytes(4096, 4), b"late");
}

#[test]
fn many_writers_at_once_lose_nothing() {
    if !can_mount() {
        return;
    }
    let fixture = Fixture::single(8 * MIB);
    let path = fixture.path("disk");
    let threads: Vec<_> = (0..8_u64)
        .map(|n| {
            let path = path.clone();
            std::thread::spawn(move || {
                let file = File::options().read(true).write(true).open(path).unwrap();
                // Interleaved, so that neighbours are always somebody else's.
                for round in 0..128_u64 {
                    let at = (round * 8 + n) * 8192;
                    let data = [n as u8 + round as u8; 8192];
                    file.write_all_at(&data, at).unwrap();
                    let mut back = [0; 8192];
                    file.read_exact_at(&mut back, at).unwrap();
                    assert_eq!(back, data);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let bytes = fixture.port.bytes(0, 8 * MIB);
    for (index, chunk) in bytes.chunks(8192).enumerate() {
        let (round, n) = (index / 8, index % 8);
        assert!(chunk.iter().all(|byte| *byte == (n + round) as u8), "chunk {index}");
    }
}

#[test]
fn a_busy_mount_stays_until_it_is_free_or_forced() {
    if !can_mount() {
        return;
    }
    let fixture = Fixture::single(MIB);
    let file = fixture.disk();
    let busy = fixture.mounted().unmount(UnmountHow::Clean);
    assert!(matches!(busy, Err(UnmountError::Busy(_))), "{busy:?}");
    file.write_all_at(b"still", 0).unwrap();
    drop(file);
    fixture.mounted().unmount(UnmountHow::Clean).unwrap();
    assert!(!is_mounted(fixture.at()) && fixture.mounted().has_ended());
    // Twice is no error.
    fixture.mounted().unmount(UnmountHow::Clean).unwrap();
}

#[test]
fn a_detached_mount_serves_its_last_users() {
    if !can_mount() {
        return;
    }
    let fixture = Fixture::single(MIB);
    let file = fixture.disk();
    fixture.mounted().unmount(UnmountHow::Detach).unwrap();
    assert!(!is_mounted(fixture.at()) && !fixture.mounted().has_ended());
    file.write_all_at(b"last", 0).unwrap();
    assert_eq!(fixture.port.bytes(0, 4), b"last");
    drop(file);
    assert!(fixture.mounted().wait(Duration::from_secs(10)));
}

#[test]
fn an_aborted_mount_fails_whoever_waits() {
    if !can_mount() {
        return;
    }
    let fixture = Fixture::single(MIB);
    let file = fixture.disk();
    fixture.port.set(Mood::Holding);
    let reader = file.try_clone().unwrap();
    let waiting = std::thread::spawn(move || reader.read_at(&mut [0; 512], 0));
    until("the read", || fixture.port.held() > 0);
    fixture.mounted().unmount(UnmountHow::Abort).unwrap();
    assert!([103, 107].contains(&errno(waiting.join().unwrap())));
    // The late answer goes nowhere, quietly.
    fixture.port.go_on();
    assert!(file.read_at(&mut [0; 512], 0).is_err());
}

#[test]
fn an_unmount_by_somebody_else_is_noticed_and_nothing_else_is_unmounted() {
    if !can_mount() {
        return;
    }
    let fixture = Fixture::single(MIB);
    assert!(Command::new("umount").arg(fixture.at()).status().unwrap().success());
    assert!(fixture.mounted().wait(Duration::from_secs(10)));
    // Somebody mounts there now: not ours to take away.
    let status = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(fixture.at()).status();
    assert!(status.unwrap().success());
    fixture.mounted().unmount(UnmountHow::Clean).unwrap();
    let kept = is_mounted(fixture.at());
    assert!(Command::new("umount").arg(fixture.at()).status().unwrap().success());
    assert!(kept);
}

#[test]
fn places_that_cannot_be_mounted_on_say_why() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let port = Memory::with_disk(4096);
    let options = Options { layout: Layout::Single, ..Options::default() };
    let disk = [new_disk(DISK, "x", 4096)];
    let attempt = |place: &Path, options: &Options| {
        mount(port.clone(), place, options, &disk).err().expect("it cannot be mounted")
    };
    assert!(matches!(attempt(&at("none"), &options), MountError::Place { .. }));
    fs::write(at("file"), b"").unwrap();
    assert!(matches!(attempt(&at("file"), &options), MountError::NotDirectory(_)));
    let no_device = Options { device: at("none"), ..options.clone() };
    let error = attempt(dir.path(), &no_device);
    assert!(matches!(error, MountError::NoDevice { .. }) && error.to_string().contains("modprobe"));
    let mounted = mount(port.clone(), dir.path(), &options, &disk).unwrap();
    let occupied = attempt(dir.path(), &options);
    assert!(matches!(&occupied, MountError::Occupied { kind, .. } if kind == "fuse.orlop"));
    mounted.unmount(UnmountHow::Clean).unwrap();
    let twice = [disk[0].clone(), disk[0].clone()];
    let result = mount(port.clone(), dir.path(), &options, &twice);
    assert!(matches!(result.err(), Some(MountError::Disk(_))));
    assert!(!is_mounted(dir.path()));
}

#[test]
fn the_helper_mounts_where_the_call_may_not() {
    if !can_mount() || Command::new("fusermount3").arg("-V").output().is_err() {
        eprintln!("skipped: needs fusermount3");
        return;
    }
    let port = Memory::with_disk(MIB);
    let options = Options {
        layout: Layout::Single,
        route: Route::Unprivileged,
        source: "a, b".into(),
        ..Options::default()
    };
    let fixture = Fixture::new(port, &options, &[new_disk(DISK, "x", MIB)]);
    fixture.disk().write_all_at(b"helped", 0).unwrap();
    assert_eq!(fixture.port.bytes(0, 6), b"helped");
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.contains(fixture.at().to_str().unwrap())).unwrap();
    assert!(line.contains("fuse.orlop"), "{line}");
    for option in ["nosuid", "nodev", "noexec", "default_permissions"] {
        assert!(line.contains(option), "{option} in {line}");
    }
    assert!(!line.contains("allow_other"), "{line}");
    fixture.mounted().unmount(UnmountHow::Clean).unwrap();
}

#[test]
fn a_killed_servers_mount_is_recognised_and_cleared() {
    if !can_mount() {
        return;
    }
    // This very program, as a child that is killed (see `the_child_that_is_killed`).
    let dir = tempfile::tempdir().unwrap();
    // Tests are named by their module, without the program's own name.
    let module = module_path!().split_once("::").map_or(String::new(), |(_, m)| format!("{m}::"));
    let child_test = format!("{module}the_child_that_is_killed");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &child_test, "--nocapture"])
        .env("ORLOP_FUSE_CHILD", dir.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    until("the child's mount", || is_mounted(dir.path()) || child.try_wait().unwrap().is_some());
    assert!(!is_stale(dir.path()));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(is_stale(dir.path()));
    let options = Options { layout: Layout::Single, ..Options::default() };
    let disk = [new_disk(DISK, "x", 4096)];
    let again = mount(Memory::with_disk(4096), dir.path(), &options, &disk);
    assert!(matches!(again.err(), Some(MountError::Stale(_))));
    assert!(clear_stale(dir.path()).unwrap());
    assert!(!clear_stale(dir.path()).unwrap() && !is_mounted(dir.path()));
    drop(mount(Memory::with_disk(4096), dir.path(), &options, &disk).unwrap());
    assert!(!is_mounted(dir.path()));
}

#[test]
fn the_child_that_is_killed() {
    let Some(at) = std::env::var_os("ORLOP_FUSE_CHILD") else { return };
    let options =
        Options { layout: Layout::Single, ring: crate::ring::chosen(), ..Options::default() };
    let disk = [new_disk(DISK, "x", 4096)];
    let _mounted = mount(Memory::with_disk(4096), Path::new(&at), &options, &disk).unwrap();
    std::thread::sleep(Duration::from_secs(30));
}

#[test]
fn passthrough_serves_from_the_file_until_it_is_fenced() {
    if !can_mount() {
        return;
    }
    let port = Memory::with_disk(MIB);
    let mut image = tempfile::tempfile().unwrap();
    io::Write::write_all(&mut image, &vec![5; MIB]).unwrap();
    *port.backing.lock().unwrap() = Some(Arc::new(OwnedFd::from(image.try_clone().unwrap())));
    let options = Options { layout: Layout::Single, passthrough: true, ..Options::default() };
    let windows = vec![window(1, 4096, 4096)];
    let disk = NewDisk { windows, ..new_disk(DISK, "x", MIB) };
    let fixture = Fixture::new(port, &options, &[disk]);
    let (one, two) = (fixture.disk(), File::open(fixture.path("disk")).unwrap());
    if fixture.mounted().usage(DISK).unwrap().passthrough == 0 {
        eprintln!("skipped: this kernel has no passthrough for {}", fixture.at().display());
        return;
    }
    one.write_all_at(b"direct", 0).unwrap();
    let mut six = [0; 6];
    two.read_exact_at(&mut six, 0).unwrap();
    assert_eq!(&six, b"direct");
    image.read_exact_at(&mut six, 0).unwrap();
    assert_eq!(&six, b"direct");
    let asked = |of: &std::sync::atomic::AtomicU64| of.load(Ordering::Relaxed);
    assert_eq!((asked(&fixture.port.reads), asked(&fixture.port.writes)), (0, 0));
    // A sync still comes to the port, and a partition never passes.
    one.sync_all().unwrap();
    assert_eq!(asked(&fixture.port.flushes), 1);
    let part = File::open(fixture.path("p1")).unwrap();
    part.read_exact_at(&mut six, 0).unwrap();
    assert_eq!(asked(&fixture.port.reads), 1);
    // From now on the normal path, beside the open handles.
    *fixture.port.backing.lock().unwrap() = None;
    let three = File::open(fixture.path("disk")).unwrap();
    three.read_exact_at(&mut six, 0).unwrap();
    assert_eq!((six, asked(&fixture.port.reads)), ([0; 6], 2));
    let usage = fixture.mounted().usage(DISK).unwrap();
    assert_eq!(usage, Usage { readers: 3, writers: 1, passthrough: 3 });
    let busy = fixture.mounted().remove(DISK, false);
    assert_eq!(busy, Err(TreeError::InUse(DISK, 4)));
    fixture.mounted().remove(DISK, true).unwrap();
    assert!([5, 19].contains(&errno(one.write_at(b"x", 0))));
    assert!([5, 19].contains(&errno(two.read_at(&mut six, 0))));
    assert!([5, 19].contains(&errno(three.read_at(&mut six, 0))));
    image.read_exact_at(&mut six, 0).unwrap();
    assert_eq!(&six, b"direct");
    drop((one, two, three, part));
    // An inode with a handle on the normal path stays there until it is closed.
    fixture.port.insert(DiskId(8), MIB);
    fixture.mounted().add(&new_disk(DiskId(8), "y", MIB)).unwrap();
    let plain = fixture.disk();
    let backing = Some(Arc::new(OwnedFd::from(image.try_clone().unwrap())));
    *fixture.port.backing.lock().unwrap() = backing;
    drop(fixture.disk());
    assert_eq!(fixture.mounted().usage(DiskId(8)).unwrap().passthrough, 0);
    drop(plain);
    until("a passthrough open", || {
        let _open = fixture.disk();
        fixture.mounted().usage(DiskId(8)).unwrap().passthrough == 1
    });
    fixture.mounted().remove(DiskId(8), true).unwrap();
    assert!(names(fixture.at()).is_empty());
}

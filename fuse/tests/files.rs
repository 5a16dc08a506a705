//! The mounted files as programs use them: what is read, written, sought, punched and refused.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;
mod ring;

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::sync::atomic::Ordering;

use common::{BLOCK, DISK, Fixture, Memory, Mood, can_mount, new_disk, window};
use orlop_fuse::{Bytes, Errno, Layout, NewDisk, Options};
use rustix::fs::{FallocateFlags, SeekFrom as Seeking, fallocate, seek};
use rustix::io::Errno as Os;

const MIB: usize = 1 << 20;

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.expect_err("it must be refused").raw_os_error().expect("it has a number")
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|n| ((n * 31 + seed * 17) >> 3) as u8).collect()
}

#[test]
fn what_is_written_is_read_back_at_any_alignment() {
    if !can_mount() {
        return;
    }
    let fixture = Fixture::single(8 * MIB);
    let file = fixture.disk();
    for (seed, (at, len)) in
        [(0, 1), (511, 2), (4095, 4098), (MIB - 1, 2 * MIB + 2), (8 * MIB - 7, 7)]
            .into_iter()
            .enumerate()
    {
        let data = pattern(len, seed);
        file.write_all_at(&data, at as u64).unwrap();
        let mut back = vec![0; len];
        file.read_exact_at(&mut back, at as u64).unwrap();
        assert!(back == data && fixture.port.bytes(at, len) == data, "{len} at {at}");
    }
    // Bytes nobody wrote are zeroes, and a read over the end is cut there.
    let mut tail = vec![1; 100];
    assert_eq!(file.read_at(&mut tail, 8 * MIB as u64 - 10).unwrap(), 10);
    assert_eq!(file.read_at(&mut tail, 8 * MIB as u64).unwrap(), 0);
    assert_eq!(file.read_at(&mut tail, u64::MAX >> 2).unwrap(), 0);
}

#[test]
fn the_tree_shows_sizes_modes_and_texts() {
    if !can_mount() {
        return;
    }
    let port = Memory::with_disk(4 * MIB);
    let options = Options { layout: Layout::Single, ..Options::default() };
    let disk = NewDisk {
        windows: vec![window(1, MIB as u64, MIB as u64), window(5, 3 * MIB as u64, 512)],
        ..new_disk(DISK, "x", 4 * MIB)
    };
    let fixture = Fixture::new(port, &options, &[disk]);
    let mut names: Vec<_> = fs::read_dir(fixture.at())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["chain.txt", "disk", "info.json", "p1", "p5", "stats.json", "status"]);
    let about = |name: &str| fs::metadata(fixture.path(name)).unwrap();
    assert_eq!(about("disk").len(), 4 * MIB as u64);
    assert_eq!((about("p1").len(), about("p5").len()), (MIB as u64, 512));
    assert_eq!(about("disk").permissions().mode(), 0o100_600);
    assert_eq!(about("info.json").permissions().mode(), 0o100_400);
    assert_eq!(about(".").permissions().mode(), 0o40_700);
    assert_eq!(about("disk").mtime(), 1_000_000_000);
    let inode = about("disk").ino();
    assert_ne!(inode, about("p1").ino());
    for name in ["chain.txt", "info.json", "stats.json", "status"] {
        assert!(fs::read_to_string(fixture.path(name)).unwrap().starts_with(name));
        assert_eq!(errno(File::options().write(true).open(fixture.path(name))), 13);
    }
    // A window is the disk's bytes, and ends where it ends.
    let part = File::options().read(true).write(true).open(fixture.path("p1")).unwrap();
    part.write_all_at(b"boot", 510).unwrap();
    assert_eq!(fixture.port.bytes(MIB + 510, 4), b"boot");
    assert_eq!(errno(part.write_at(b"x", MIB as u64)), 27);
    assert_eq!(part.write_at(b"xyz", MIB as u64 - 1).unwrap(), 1);
    assert_eq!(fixture.port.bytes(2 * MIB, 2), [0, 0]);
    assert!(about("p1").mtime() > 1_000_000_000);
    // The kernel may believe what it knows of the other file for a second.
    common::until("the disk's time", || about("disk").mtime() > 1_000_000_000);
    assert_eq!(about("disk").ino(), inode);
}

#[test]
fn nothing_grows_shrinks_or_is_emptied() {
    if !can_mount() {
        return;
    }
    let fixture = Fixture::single(MIB);
    let file = fixture.disk();
    file.write_all_at(b"precious", 0).unwrap();
    assert_eq!(errno(file.set_len(MIB as u64 + 1)), 27);
    assert_eq!(errno(file.set_len(0)), 1);
    file.set_len(MIB as u64).unwrap();
    assert_eq!(errno(file.write_at(b"x", MIB as u64)), 27);
    assert_eq!(errno(file.write_at(b"x", 1 << 40)), 27);
    let mut append = File::options().append(true).open(fixture.path("disk")).unwrap();
    assert_eq!(errno(append.write(b"x")), 27);
    assert_eq!(errno(File::create(fixture.path("disk"))), 1);
    let direct = File::options()
        .write(true)
        .custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32)
        .open(fixture.path("disk"))
        .unwrap();
    assert_eq!(errno(direct.write_at(&[1; 512], MIB as u64)), 27);
    assert_eq!(fs::metadata(fixture.path("disk")).unwrap().len(), MIB as u64);
    assert_eq!(&fs::read(fixture.path("disk")).unwrap()[..8], b"precious");
}

#[test]
fn names_cannot_be_made_or_taken_away() {
    if !can_mount() {
        return;
    }
    let fixture = Fixture::single(MIB);
    let (disk, other) = (fixture.path("disk"), fixture.path("other"));
    assert_eq!(errno(File::create_new(&other)), 1);
    assert_eq!(errno(fs::remove_file(&disk)), 1);
    assert_eq!(errno(fs::rename(&disk, &other)), 1);
    assert_eq!(errno(fs::hard_link(&disk, &other)), 1);
    assert_eq!(errno(std::os::unix::fs::symlink(&disk, &other)), 1);
    assert_eq!(errno(fs::create_dir(&other)), 1);
    assert_eq!(errno(fs::set_permissions(&disk, fs::Permissions::from_mode(0o777))), 1);
    assert_eq!(errno(fs::read(fixture.path("nothing"))), 2);
    assert_eq!(errno(fs::read_dir(disk.join("below"))), 20);
    fixture.mounted().set_read_only(DISK, true).unwrap();
    assert_eq!(errno(fs::remove_file(&disk)), 30);
}

#[test]
fn a_read_only_disk_refuses_writers() {
    if !can_mount() {
        return;
    }
    let port = Memory::with_disk(MIB);
    let options = Options { layout: Layout::Single, ..Options::default() };
    let disk = NewDisk { read_only: true, ..new_disk(DISK, "x", MIB) };
    let fixture = Fixture::new(port, &options, &[disk]);
    let path = fixture.path("disk");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode(), 0o100_400);
    assert_eq!(errno(File::options().write(true).open(&path)), 30);
    assert_eq!(errno(File::create(&path)), 30);
    assert_eq!(fs::read(&path).unwrap().len(), MIB);
    // It may become writable, and stop being so under an open handle.
    fixture.mounted().set_read_only(DISK, false).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"x", 0).unwrap();
    fixture.mounted().set_read_only(DISK, true).unwrap();
    assert_eq!(errno(file.write_at(b"x", 0)), 30);
    assert_eq!(errno(fallocate(&file, FallocateFlags::ZERO_RANGE, 0, 512).map_err(Into::into)), 30);
}

#[test]
fn a_read_only_mount_refuses_writers_by_itself() {
    if !can_mount() {
        return;
    }
    let port = Memory::with_disk(MIB);
    let options = Options { layout: Layout::Single, read_only: true, ..Options::default() };
    let fixture = Fixture::new(port, &options, &[new_disk(DISK, "x", MIB)]);
    assert_eq!(errno(File::options().write(true).open(fixture.path("disk"))), 30);
    assert_eq!(fs::read(fixture.path("disk")).unwrap().len(), MIB);
}

#[test]
fn data_and_holes_are_found() {
    if !can_mount() {
        return;
    }
    let fixture = Fixture::single(16 * MIB);
    let file = fixture.disk();
    let size = 16 * MIB as u64;
    assert_eq!(seek(&file, Seeking::Data(0)), Err(Os::NXIO));
    assert_eq!(seek(&file, Seeking::Hole(0)), Ok(0));
    for block in [5, 6, 7, 100] {
        file.write_all_at(&[1; 10], block * BLOCK as u64).unwrap();
    }
    let block = |n: u64| n * BLOCK as u64;
    for (from, data, hole) in [
        (0, Ok(block(5)), Ok(0)),
        (block(5) + 1, Ok(block(5) + 1), Ok(block(8))),
        (block(8), Ok(block(100)), Ok(block(8))),
        (block(100), Ok(block(100)), Ok(block(101))),
        (block(101), Err(Os::NXIO), Ok(block(101))),
        (size - 1, Err(Os::NXIO), Ok(size - 1)),
        (size, Err(Os::NXIO), Err(Os::NXIO)),
    ] {
        assert_eq!(seek(&file, Seeking::Data(from)), data, "data from {from}");
        assert_eq!(seek(&file, Seeking::Hole(from)), hole, "hole from {from}");
    }
    let mut end = file.try_clone().unwrap();
    assert_eq!(end.seek(SeekFrom::End(0)).unwrap(), size);
    assert_eq!(file.metadata().unwrap().blocks(), 4 * 8);
    // A disk without a hole ends in one.
    file.write_all_at(&vec![1; 16 * MIB], 0).unwrap();
    assert_eq!(seek(&file, Seeking::Hole(0)), Ok(size));
    // A port that answers at once is no deeper a stack, whatever it answers.
    fixture.port.set(Mood::AtOnce);
    for n in (0..4096).step_by(2) {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file, hole, block(n), BLOCK as u64).unwrap();
    }
    assert_eq!(seek(&file, Seeking::Data(0)), Ok(block(1)));
}

#[test]
fn punching_and_zeroing_reach_the_disk() {
    if !can_mount() {
        return;
    }
    let fixture = Fixture::single(MIB);
    let file = fixture.disk();
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let zero = FallocateFlags::ZERO_RANGE;
    file.write_all_at(&vec![7; MIB], 0).unwrap();
    assert_eq!(file.metadata().unwrap().blocks(), MIB as u64 / 512);
    fallocate(&file, hole, 100, 2 * BLOCK as u64).unwrap();
    let mut back = vec![1; 3 * BLOCK];
    file.read_exact_at(&mut back, 0).unwrap();
    assert!(back[..100].iter().all(|byte| *byte == 7));
    assert!(back[100..100 + 2 * BLOCK].iter().all(|byte| *byte == 0));
    assert!(back[100 + 2 * BLOCK..].iter().all(|byte| *byte == 7));
    assert_eq!(file.metadata().unwrap().blocks(), MIB as u64 / 512 - 8);
    fallocate(&file, zero, 500_000, 1000).unwrap();
    assert_eq!(fixture.port.bytes(499_999, 3), [7, 0, 0]);
    assert_eq!(fixture.port.zeroes.load(Ordering::Relaxed), 1);
    // Over the end: cut where the size is kept, refused where it is not.
    fallocate(&file, hole, MIB as u64 - 10, 100).unwrap();
    assert_eq!(fixture.port.bytes(MIB - 11, 11), [7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    fallocate(&file, hole, 2 * MIB as u64, 100).unwrap();
    assert_eq!(fallocate(&file, zero, MIB as u64 - 10, 100), Err(Os::FBIG));
    fallocate(&file, zero | FallocateFlags::KEEP_SIZE, MIB as u64 - 10, 100).unwrap();
    // Space is not promised.
    assert_eq!(fallocate(&file, FallocateFlags::empty(), 0, 4096), Err(Os::OPNOTSUPP));
    assert_eq!(fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 4096), Err(Os::OPNOTSUPP));
    assert_eq!(fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, 4096), Err(Os::OPNOTSUPP));
    assert_eq!(file.metadata().unwrap().len(), MIB as u64);
}

#[test]
fn durability_is_passed_on() {
    if !can_mount() {
        return;
    }
    let fixture = Fixture::single(MIB);
    let count = |of: &std::sync::atomic::AtomicU64| of.load(Ordering::Relaxed);
    let file = fixture.disk();
    file.write_all_at(b"x", 0).unwrap();
    assert_eq!((count(&fixture.port.durable), count(&fixture.port.flushes)), (0, 0));
    file.sync_all().unwrap();
    file.sync_data().unwrap();
    assert_eq!(count(&fixture.port.flushes), 2);
    drop(file);
    assert_eq!(count(&fixture.port.flushes), 3, "a close by a writer flushes");
    drop(File::open(fixture.path("disk")).unwrap());
    assert_eq!(count(&fixture.port.flushes), 3, "a close by a reader does not");
    for flag in [rustix::fs::OFlags::SYNC, rustix::fs::OFlags::DSYNC] {
        let before = count(&fixture.port.durable);
        let mut options = File::options();
        let file = options.write(true).custom_flags(flag.bits() as i32);
        file.open(fixture.path("disk")).unwrap().write_all_at(b"x", 0).unwrap();
        assert_eq!(count(&fixture.port.durable), before + 1);
    }
    let file = fixture.disk();
    let before = count(&fixture.port.durable);
    let data = [io::IoSlice::new(b"x")];
    rustix::io::pwritev2(&file, &data, 0, rustix::io::ReadWriteFlags::DSYNC).unwrap();
    assert_eq!(count(&fixture.port.durable), before + 1);
}

#[test]
fn faults_arrive_as_themselves() {
    if !can_mount() {
        return;
    }
    let fixture = Fixture::single(MIB);
    let file = fixture.disk();
    let mut one = [0; 512];
    for fault in [Errno::Io, Errno::NoSpace, Errno::TimedOut, Errno::ReadOnly, Errno::Quota] {
        fixture.port.set(Mood::Failing(fault));
        assert_eq!(errno(file.read_at(&mut one, 0)), fault.number());
        assert_eq!(errno(file.write_at(&one, 0)), fault.number());
        assert_eq!(errno(file.sync_all()), fault.number());
        let zero = fallocate(&file, FallocateFlags::ZERO_RANGE, 0, 512);
        assert_eq!(errno(zero.map_err(Into::into)), fault.number());
        assert_eq!(errno(fs::read(fixture.path("status"))), fault.number());
        let data = seek(&file, Seeking::Data(0));
        assert_eq!(errno(data.map_err(Into::into)), fault.number());
    }
    // A reply that is lost, and one that has too few bytes, are errors and never zeroes.
    fixture.port.set(Mood::Dropping);
    assert_eq!(errno(file.read_at(&mut one, 0)), 5);
    assert_eq!(errno(file.write_at(&one, 0)), 5);
    assert_eq!(errno(file.sync_all()), 5);
    assert_eq!(errno(fs::read(fixture.path("info.json"))), 5);
    fixture.port.set(Mood::Short);
    assert_eq!(errno(file.read_at(&mut one, 0)), 5);
    fixture.port.set(Mood::Well);
    assert_eq!(file.read_at(&mut one, 0).unwrap(), 512);
}

#[test]
fn extended_attributes_follow_the_size_protocol() {
    if !can_mount() {
        return;
    }
    let fixture = Fixture::single(MIB);
    for name in ["disk", "status", "."] {
        let path = fixture.path(name);
        let mut value = [0; 4096];
        let ask = |key: &str, room: &mut [u8]| rustix::fs::getxattr(&path, key, room);
        assert_eq!(ask("user.orlop.format", &mut value), Ok(3));
        assert_eq!(&value[..3], b"vhd");
        assert_eq!(ask("user.orlop.format", &mut value[..2]), Err(Os::RANGE));
        assert_eq!(ask("user.orlop.big", &mut value), Ok(3000));
        assert_eq!(ask("user.orlop.none", &mut value), Err(Os::NODATA));
        assert_eq!(ask("user.other", &mut value), Err(Os::NODATA));
        assert_eq!(ask("security.capability", &mut value), Err(Os::NODATA));
        let names = b"user.orlop.format\0user.orlop.big\0";
        let list = |room: &mut [u8]| rustix::fs::listxattr(&path, room);
        assert_eq!(list(&mut value), Ok(names.len()));
        assert_eq!(&value[..names.len()], names);
        // Rust's bindings never ask for a size alone.
        let script = "import ctypes,sys\nc=ctypes.CDLL(None)\np=sys.argv[1].encode()\n\
            print(c.getxattr(p,b'user.orlop.format',None,0),c.listxattr(p,None,0))";
        let mut sizes = std::process::Command::new("python3");
        let sizes = sizes.args(["-c", script]).arg(&path).output().unwrap();
        assert_eq!(String::from_utf8(sizes.stdout).unwrap(), "3 33\n");
        assert_eq!(list(&mut value[..5]), Err(Os::RANGE));
        let set = rustix::fs::setxattr(
            &path,
            "user.orlop.format",
            b"raw",
            rustix::fs::XattrFlags::empty(),
        );
        assert_eq!(set, Err(Os::PERM));
        assert_eq!(rustix::fs::removexattr(&path, "user.orlop.format"), Err(Os::PERM));
    }
}

#[test]
fn a_text_is_made_when_it_is_opened() {
    if !can_mount() {
        return;
    }
    let fixture = Fixture::single(MIB);
    let mut open = File::open(fixture.path("stats.json")).unwrap();
    fixture.disk().read_at(&mut [0; 512], 0).unwrap();
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "stats.json 0\n");
    assert_eq!(fs::read_to_string(fixture.path("stats.json")).unwrap(), "stats.json 1\n");
}

#[test]
fn the_file_system_has_a_size_and_no_room() {
    if !can_mount() {
        return;
    }
    let fixture = Fixture::single(3 * MIB);
    let about = rustix::fs::statvfs(fixture.at()).unwrap();
    assert_eq!(about.f_blocks * about.f_frsize, 3 * MIB as u64);
    assert_eq!((about.f_bfree, about.f_bavail, about.f_namemax), (0, 0, 255));
}

#[test]
fn a_mapped_file_sees_what_is_written_anywhere() {
    if !can_mount() {
        return;
    }
    let fixture = Fixture::single(MIB);
    let file = fixture.disk();
    // Another process maps, as mapping is not safe in this one: python's mmap module.
    let script = "import mmap,sys,os\n\
        f=os.open(sys.argv[1],os.O_RDWR)\n\
        m=mmap.mmap(f,0)\n\
        def step(b): print(b,flush=True); sys.stdin.readline()\n\
        step(m[0:4])\n\
        step(m[0:4])\n\
        m[8192:8196]=b'page'; m.flush()\n\
        step(m[8192:8196])\n\
        print(m[4096:4100],flush=True)\n";
    let mut child = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(fixture.path("disk"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut go = child.stdin.take().unwrap();
    let mut lines = io::BufRead::lines(io::BufReader::new(child.stdout.take().unwrap()));
    let mut next = || lines.next().unwrap().unwrap();
    assert_eq!(next(), r"b'\x00\x00\x00\x00'");
    file.write_all_at(b"file", 0).unwrap();
    writeln!(go).unwrap();
    assert_eq!(next(), "b'file'");
    writeln!(go).unwrap();
    assert_eq!(next(), "b'page'");
    assert_eq!(fixture.port.bytes(8192, 4), b"page");
    // A write from the other side, and the notice of it.
    fixture.port.stores.lock().unwrap().get_mut(&DISK).unwrap().bytes[4096..4100]
        .copy_from_slice(b"else");
    let (at, len) = (orlop_fuse::Offset(4096), Bytes(4));
    fixture.mounted().changed_elsewhere(DISK, at, len).unwrap();
    writeln!(go).unwrap();
    assert_eq!(next(), "b'else'");
    assert!(child.wait().unwrap().success());
}

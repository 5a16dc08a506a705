//! Loop devices and file systems that come and go with a mount.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use rustix::process::Signal;

use crate::foreign::{have, run, text, unmount};
use crate::place::{ORLOP, Place, refused};

fn with_ext4(place: &Place) {
    let image = place.image("disk.raw", 32);
    run("mkfs.ext4", &["-q", "-F", text(&image)]);
}

fn is_clean(place: &Place) {
    run("e2fsck", &["-fn", &place.name("disk.raw")]);
}

#[test]
fn a_loop_device_comes_and_goes_with_the_mount() {
    let Some(place) = Place::new() else { return };
    place.image("disk.vhd", 16);
    place.mount("disk.vhd", &["--loop"]);
    let node = place.info()["loop_device"].as_str().unwrap().to_owned();
    let told = run("losetup", &["--noheadings", "--output", "BACK-FILE,DIO,LOG-SEC,RO", &node]);
    let words: Vec<&str> = told.split_whitespace().collect();
    assert_eq!(words, [text(&place.disk()), "1", "512", "0"]);
    place.umount();
    place.nothing_is_left();
    place.mount("disk.vhd", &["-o", "ro,attach_loop"]);
    let node = place.info()["loop_device"].as_str().unwrap().to_owned();
    assert_eq!(run("losetup", &["--noheadings", "--output", "RO", &node]).trim(), "1");
    place.umount();
    place.nothing_is_left();
}

#[test]
fn the_file_system_inside_is_mounted_and_unmounted_in_order() {
    let Some(place) = Place::new() else { return };
    if !have(&["mkfs.ext4", "e2fsck"]) {
        return;
    }
    with_ext4(&place);
    let options = ["--mount-fs", &place.name("fs")];
    place.mount("disk.raw", &options);
    fs::write(place.path("fs/hello"), "there").unwrap();
    place.umount();
    place.nothing_is_left();
    is_clean(&place);
    // To read, and as a throw-away.
    place.mount("disk.raw", &[&options[..], &["--read-only"]].concat());
    assert_eq!(fs::read_to_string(place.path("fs/hello")).unwrap(), "there");
    assert_eq!(fs::write(place.path("fs/x"), "").unwrap_err().raw_os_error(), Some(30));
    place.umount();
    place.mount("disk.raw", &[&options[..], &["--overlay", "tmp"]].concat());
    fs::remove_file(place.path("fs/hello")).unwrap();
    // Asked by a signal, the server does the same.
    place.signal(Signal::TERM);
    place.nothing_is_left();
    place.mount("disk.raw", &options);
    assert_eq!(fs::read_to_string(place.path("fs/hello")).unwrap(), "there");
    place.umount();
    place.nothing_is_left();
}

#[test]
fn the_file_system_of_a_partition_needs_no_arithmetic() {
    let Some(place) = Place::new() else { return };
    if !have(&["mkfs.ext4", "sgdisk"]) {
        return;
    }
    let image = place.image("disk.raw", 64);
    run("sgdisk", &["-n", "1:2048:+32M", text(&image)]);
    place.mount("disk.raw", &[]);
    run("mkfs.ext4", &["-q", "-F", &place.name("m/p1")]);
    place.umount();
    for options in [&[][..], &["--partition", "1"]] {
        place.mount("disk.raw", &[options, &["--mount-fs", &place.name("fs")]].concat());
        assert!(place.path("fs/lost+found").is_dir());
        place.umount();
        place.nothing_is_left();
    }
}

#[test]
fn whoever_uses_the_file_system_inside_is_named_and_nothing_is_undone() {
    let Some(place) = Place::new() else { return };
    if !have(&["mkfs.ext4"]) {
        return;
    }
    with_ext4(&place);
    place.mount("disk.raw", &["--mount-fs", &place.name("fs")]);
    let file = File::create(place.path("fs/mine")).unwrap();
    let said = refused(&place.try_umount(&[]), 4);
    let me = format!("pid {}", std::process::id());
    assert!(said.contains(&me) && said.contains("fs/mine"), "{said}");
    drop(file);
    fs::write(place.path("fs/mine"), "still there").unwrap();
    assert!(place.info()["loop_device"].is_string());
    place.umount();
    place.nothing_is_left();
    is_clean(&place);
}

#[test]
fn a_loop_device_of_somebody_else_is_named_if_mounted_and_let_go_if_not() {
    let Some(place) = Place::new() else { return };
    if !have(&["mkfs.ext4"]) {
        return;
    }
    with_ext4(&place);
    place.mount("disk.raw", &[]);
    let node = run("losetup", &["--find", "--show", text(&place.disk())]).trim().to_owned();
    run("mount", &[&node, &place.name("fs")]);
    let said = refused(&place.try_umount(&[]), 4);
    let named = said.contains(&node) && said.contains(&format!("on {}", place.name("fs")));
    assert!(named, "{said}");
    unmount(&place.name("fs"));
    place.umount();
    place.nothing_is_left();
}

#[test]
fn what_a_killed_server_left_is_cleared_with_all_that_lay_on_it() {
    let Some(place) = Place::new() else { return };
    if !have(&["mkfs.ext4"]) {
        return;
    }
    with_ext4(&place);
    let options = ["--mount-fs", &place.name("fs")];
    for by_mount in [true, false] {
        place.mount("disk.raw", &options);
        fs::write(place.path("fs/hello"), "there").unwrap();
        run("sync", &["-f", &place.name("fs/hello")]);
        place.signal(Signal::KILL);
        place.until("the server is dead", || fs::metadata(place.disk()).is_err());
        if by_mount {
            place.mount("disk.raw", &options);
            assert_eq!(fs::read_to_string(place.path("fs/hello")).unwrap(), "there");
            fs::remove_file(place.path("fs/hello")).unwrap();
        }
        place.umount();
        place.nothing_is_left();
    }
    place.mount("disk.raw", &options);
    assert_eq!(fs::read_to_string(place.path("fs/hello")).unwrap(), "there");
    place.umount();
    place.nothing_is_left();
}

#[test]
fn a_server_that_must_end_leaves_a_busy_file_system_behind_only_until_its_last_user_goes() {
    let Some(place) = Place::new() else { return };
    if !have(&["mkfs.ext4", "e2fsck"]) {
        return;
    }
    with_ext4(&place);
    let mut server = place.mount_here("disk.raw", &["--mount-fs", &place.name("fs")]);
    // It answers a little before it has made the rest.
    place.until("the file system is mounted", || place.path("fs/lost+found").exists());
    place.until("it is told", || place.info()["file_system"].is_string());
    fs::write(place.path("fs/kept"), "kept").unwrap();
    let file = File::create(place.path("fs/open")).unwrap();
    place.signal(Signal::TERM);
    let me = format!("(pid {})", std::process::id());
    place.until("the users are named", || place.log().contains(&me));
    (&file).write_all(b"late").unwrap();
    place.signal(Signal::TERM);
    assert!(server.wait().unwrap().success(), "{}", place.log());
    drop(file);
    place.nothing_is_left();
    // What was there when its users lost it was made durable.
    place.mount("disk.raw", &["--mount-fs", &place.name("fs")]);
    assert_eq!(fs::read_to_string(place.path("fs/kept")).unwrap(), "kept");
    assert_eq!(fs::read_to_string(place.path("fs/open")).unwrap(), "late");
    place.umount();
    place.nothing_is_left();
}

#[test]
fn what_the_disk_cannot_take_is_told_before_anything_is_undone() {
    let Some(place) = Place::new() else { return };
    if !have(&["mkfs.ext4"]) {
        return;
    }
    fs::create_dir(place.path("small")).unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=24m", "none", &place.name("small")]);
    let image = place.image("small/disk.raw", 128);
    run("mkfs.ext4", &["-q", "-F", text(&image)]);
    place.mount("small/disk.raw", &["--mount-fs", &place.name("fs")]);
    // Kept in memory: nobody is told yet.
    fs::write(place.path("fs/large"), vec![7; 60 << 20]).unwrap();
    let said = refused(&place.try_umount(&[]), 1);
    let told = said.contains("cannot be made durable") && said.contains("it stays mounted");
    assert!(told && said.contains(&place.name("fs")), "{said}");
    assert!(place.path("fs/large").exists() && place.info()["loop_device"].is_string());
    let _ = place.try_umount(&["--lazy"]);
    place.until("its server ends", || place.loops().is_empty() && !place.path("m/status").exists());
    unmount(&place.name("small"));
    place.nothing_is_left();
}

#[test]
fn a_file_of_the_same_path_elsewhere_is_left_alone() {
    let Some(place) = Place::new() else { return };
    if !have(&["mkfs.ext4"]) {
        return;
    }
    // Beneath the mount point, with the path that the mount's file will have.
    let hidden = place.disk();
    fs::rename(place.image("hidden.raw", 16), &hidden).unwrap();
    run("mkfs.ext4", &["-q", "-F", text(&hidden)]);
    let node = run("losetup", &["--find", "--show", text(&hidden)]).trim().to_owned();
    run("mount", &[&node, &place.name("fs")]);
    place.image("disk.raw", 16);
    for dead in [false, true] {
        place.mount("disk.raw", &["--loop"]);
        if dead {
            place.signal(Signal::KILL);
            place.until("the server is dead", || fs::metadata(place.disk()).is_err());
        }
        place.umount();
        assert!(place.path("fs/lost+found").is_dir());
        assert_eq!(place.loops(), [&*node], "only ours is let go");
    }
    unmount(&place.name("fs"));
    run("losetup", &["--detach", &node]);
    place.nothing_is_left();
}

#[test]
fn a_device_that_goes_by_itself_is_no_trouble() {
    let Some(place) = Place::new() else { return };
    if !have(&["mkfs.ext4"]) {
        return;
    }
    with_ext4(&place);
    for by_mount in [true, false] {
        place.mount("disk.raw", &[]);
        // Such a device goes with its last user.
        run("mount", &["-o", "loop", text(&place.disk()), &place.name("fs")]);
        place.signal(Signal::KILL);
        place.until("the server is dead", || fs::metadata(place.disk()).is_err());
        if by_mount {
            place.mount("disk.raw", &[]);
        }
        place.umount();
        place.nothing_is_left();
    }
}

#[test]
fn whoever_has_the_device_open_is_named_and_nothing_is_undone() {
    let Some(place) = Place::new() else { return };
    place.image("disk.raw", 16);
    place.mount("disk.raw", &["--loop"]);
    let node = place.info()["loop_device"].as_str().unwrap().to_owned();
    let file = File::open(&node).unwrap();
    let said = refused(&place.try_umount(&[]), 4);
    let me = format!("(pid {}) has {node} open", std::process::id());
    assert!(said.contains(&me) && !said.contains("let go"), "{said}");
    drop(file);
    place.umount();
    place.nothing_is_left();
}

#[test]
fn a_link_to_where_the_file_system_goes_is_followed_and_a_wrong_place_is_told() {
    let Some(place) = Place::new() else { return };
    if !have(&["mkfs.ext4"]) {
        return;
    }
    with_ext4(&place);
    std::os::unix::fs::symlink("fs", place.path("link")).unwrap();
    for name in ["link", "m/../fs", "link/."] {
        for by_signal in [false, true] {
            let at = place.path("").join(name);
            place.mount("disk.raw", &["--mount-fs", text(&at)]);
            assert_eq!(place.info()["file_system"], place.name("fs"), "{name}");
            assert!(place.path("fs/lost+found").is_dir());
            if by_signal {
                place.signal(Signal::TERM);
            } else {
                place.umount();
            }
            place.nothing_is_left();
        }
    }
    fs::create_dir(place.path("m/below")).unwrap();
    for (name, code, word) in [
        ("m", 2, "is the mount point itself"),
        ("m/below", 2, "lies below the mount point"),
        ("", 2, "lies above the mount point"),
        ("absent", 3, "No such file"),
        ("disk.raw", 2, "is not a directory"),
    ] {
        let at = place.name(name);
        let said = refused(&place.try_mount("disk.raw", &["--mount-fs", &at]), code);
        assert!(said.contains(word) && said.contains("--mount-fs"), "{said}");
        place.nothing_is_left();
    }
}

#[test]
fn a_file_system_that_was_moved_is_named_and_not_taken_for_gone() {
    let Some(place) = Place::new() else { return };
    if !have(&["mkfs.ext4", "unshare"]) {
        return;
    }
    with_ext4(&place);
    fs::create_dir(place.path("moved")).unwrap();
    let script = "mount --make-rprivate / && $1 mount $0/disk.raw $0/m --mount-fs $0/fs &&
        mount --move $0/fs $0/moved && if $1 umount $0/m; then exit 9; fi;
        test -d $0/moved/lost+found && umount $0/moved && $1 umount $0/m";
    let folder = place.name("");
    let words = ["--mount", "sh", "-c", script, folder.trim_end_matches('/'), ORLOP];
    run("unshare", &words);
    place.nothing_is_left();
}

#[test]
fn a_path_that_is_no_text_is_unmounted_like_any_other() {
    let Some(place) = Place::new() else { return };
    if !have(&["mkfs.ext4"]) {
        return;
    }
    with_ext4(&place);
    let at = place.path("").join(OsStr::from_bytes(b"m\xff\n"));
    let inner = place.path("").join(OsStr::from_bytes(b"fs\xff"));
    fs::create_dir(&at).unwrap();
    fs::create_dir(&inner).unwrap();
    let orlop = |words: &[&OsStr]| {
        let output = Command::new(ORLOP).args(words).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let image = place.path("disk.raw");
    let word = OsStr::new;
    orlop(&[word("mount"), image.as_os_str(), at.as_os_str(), word("--loop")]);
    orlop(&[word("umount"), at.as_os_str()]);
    place.nothing_is_left();
    let options = [word("--mount-fs"), inner.as_os_str()];
    orlop(&[&[word("mount"), image.as_os_str(), at.as_os_str()], &options[..]].concat());
    orlop(&[word("umount"), at.as_os_str()]);
    place.nothing_is_left();
}

#[test]
fn what_fstab_says_is_said_of_the_file_system_inside_too() {
    let Some(place) = Place::new() else { return };
    if !have(&["mkfs.ext4"]) {
        return;
    }
    with_ext4(&place);
    let words = format!("noexec,sync,noatime,suid,dev,mount_fs={}", place.name("fs"));
    place.mount("disk.raw", &["-o", &words]);
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.contains(&place.name("fs"))).unwrap();
    for word in ["noexec", "nosuid", "nodev", "noatime", "sync"] {
        assert!(line.split([',', ' ']).any(|said| said == word), "{word}: {line}");
    }
    place.umount();
    place.nothing_is_left();
}

#[test]
fn what_was_written_to_the_device_and_not_taken_is_told_once() {
    let Some(place) = Place::new() else { return };
    fs::create_dir(place.path("small")).unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=24m", "none", &place.name("small")]);
    place.image("small/disk.raw", 128);
    for _ in 0..2 {
        // In the second round the device is new, and all is well with it.
        place.mount("small/disk.raw", &["--loop"]);
        place.umount();
        place.mount("small/disk.raw", &["--loop"]);
        let node = place.info()["loop_device"].as_str().unwrap().to_owned();
        // The last to close a device writes what is in memory, and hears nothing.
        File::options().write(true).open(&node).unwrap().write_all(&vec![7; 60 << 20]).unwrap();
        let said = refused(&place.try_umount(&[]), 1);
        let told = said.contains("cannot be made durable") && said.contains(&node);
        assert!(told && place.info()["loop_device"] == *node, "{said}");
        place.umount();
        place.until("the device goes", || place.loops().is_empty());
    }
    unmount(&place.name("small"));
    place.nothing_is_left();
}

//! Loop devices and file systems that come and go with a mount.

use std::fs::{self, File};

use rustix::process::Signal;

use crate::foreign::{have, run, text};
use crate::place::{Place, refused};

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
    run("umount", &[&place.name("fs")]);
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
    place.signal(Signal::TERM);
    assert!(server.wait().unwrap().success(), "{}", place.log());
    drop(file);
    place.nothing_is_left();
    // What was there before the signal was made durable.
    place.mount("disk.raw", &["--mount-fs", &place.name("fs")]);
    assert_eq!(fs::read_to_string(place.path("fs/kept")).unwrap(), "kept");
    place.umount();
    place.nothing_is_left();
}

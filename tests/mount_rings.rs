//! Mounts whose requests come through the ring of the shard: when it is taken, and that such a
//! mount ends as any other does. In a process of its own: the fuse module's parameter
//! `enable_uring` is Y while it lives.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/foreign.rs"]
mod foreign;
#[path = "mount/place.rs"]
#[allow(dead_code)]
mod place;
#[path = "support/ring_switch.rs"]
mod ring_switch;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use foreign::{assert_same, content, have, orlop, run};
use place::{MIB, Place, refused};

fn ringed() -> Option<Place> {
    Place::new().filter(|_| ring_switch::is_on())
}

fn open(place: &Place) -> File {
    File::options().read(true).write(true).open(place.disk()).unwrap()
}

#[test]
fn the_ring_is_taken_where_it_is_offered_and_nothing_else_was_asked_for() {
    let Some(place) = ringed() else { return };
    place.image("disk.vhd", 8);
    place.image("disk.raw", 8);
    let ways: &[(&str, &[&str], &str, &str)] = &[
        ("disk.vhd", &[], "uring", "offers it"),
        ("disk.vhd", &["--transport", "uring"], "uring", "asked for"),
        ("disk.vhd", &["--transport", "classic"], "classic", "asked for"),
        ("disk.vhd", &["--aio", "threads"], "classic", "--aio threads"),
        ("disk.raw", &["--passthrough"], "passthrough", "raw file"),
        ("disk.raw", &["--passthrough", "--transport", "uring"], "uring", "no passthrough"),
    ];
    for (image, options, way, why) in ways {
        place.mount(image, options);
        let info = place.info();
        assert_eq!(&info["transport"], way, "{image} {options:?}: {info}");
        let because = info["transport_because"].as_str().unwrap();
        assert!(because.contains(why), "{image} {options:?}: {because}");
        let wanted = content(MIB, 7);
        open(&place).write_all_at(&wanted, 513).unwrap();
        let mut found = vec![0; wanted.len()];
        open(&place).read_exact_at(&mut found, 513).unwrap();
        assert_same(&found, &wanted, "through the mount");
        place.umount();
    }
    let options = ["--aio", "threads", "--transport", "uring"];
    let said = refused(&place.try_mount("disk.vhd", &options), 8);
    assert!(said.contains("no io_uring here"), "{said}");
    place.nothing_is_left();
}

#[test]
fn signals_and_kills_lose_nothing_that_was_flushed_and_leave_nothing() {
    let Some(place) = ringed() else { return };
    place.image("disk.vhd", 64);
    let wanted = content(16 * MIB, 3);
    for signal in [Signal::TERM, Signal::KILL] {
        let mut server = place.mount_here("disk.vhd", &["--transport", "uring"]);
        let file = open(&place);
        file.write_all_at(&wanted, 4096).unwrap();
        file.sync_all().unwrap();
        drop(file);
        // Somebody is always asking.
        let (disk, to) = (format!("if={}", place.disk().display()), "of=/dev/null");
        let mut readers: Vec<_> = (0..3)
            .map(|_| {
                let mut reader = Command::new("dd");
                reader.args([&*disk, to, "bs=4k"]).stderr(Stdio::null()).spawn().unwrap()
            })
            .collect();
        place.signal(signal);
        assert_eq!(server.wait().unwrap().success(), signal == Signal::TERM, "{}", place.log());
        for reader in &mut readers {
            reader.wait().unwrap();
        }
        place.mount("disk.vhd", &["--read-only", "--transport", "uring"]);
        let mut found = vec![0; wanted.len()];
        File::open(place.disk()).unwrap().read_exact_at(&mut found, 4096).unwrap();
        assert_same(&found, &wanted, "after the end");
        place.umount();
        orlop(&["check", &place.name("disk.vhd")]);
    }
    place.nothing_is_left();
}

#[test]
fn a_file_system_in_a_loop_device_comes_and_goes() {
    let Some(place) = ringed() else { return };
    if !have(&["losetup", "mkfs.ext4", "fstrim"]) {
        return;
    }
    place.image("disk.vhd", 64);
    place.mount("disk.vhd", &["--transport", "uring"]);
    run("mkfs.ext4", &["-q", "-F", &place.name("m/disk")]);
    place.umount();
    for round in 0..3 {
        place.mount("disk.vhd", &["--transport", "uring", "--mount-fs", &place.name("fs")]);
        fs::write(place.path("fs/file"), content(8 * MIB, round)).unwrap();
        run("fstrim", &[&place.name("fs")]);
        run("sync", &["-f", &place.name("fs")]);
        let found = fs::read(place.path("fs/file")).unwrap();
        assert_same(&found, &content(8 * MIB, round), "inside");
        place.umount();
    }
    place.nothing_is_left();
    orlop(&["check", &place.name("disk.vhd")]);
}

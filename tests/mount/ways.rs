//! What a mount shows, and the ways to ask for one.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use crate::foreign::{assert_same, content, have, orlop, run, run_any, text, unmount};
use crate::place::{MIB, ORLOP, Place, refused, usual_transport};

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

fn read(path: &Path, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    File::open(path).unwrap().read_exact_at(&mut bytes, at).unwrap();
    bytes
}

fn attribute(path: &Path, name: &str) -> Option<String> {
    let mut bytes = vec![0; 4096];
    let len = rustix::fs::getxattr(path, format!("user.orlop.{name}"), &mut bytes).ok()?;
    bytes.truncate(len);
    String::from_utf8(bytes).ok()
}

#[test]
fn what_was_written_is_there_for_the_next_mount_and_for_qemu() {
    let Some(place) = Place::new() else { return };
    let image = place.image("disk.vhd", 16);
    let said = place.mount("disk.vhd", &[]);
    assert!(said.contains("read-write") && said.contains(&place.name("m")), "{said}");
    let wanted = content(16 * MIB, 3);
    let file = open(&place.disk());
    file.write_all_at(&wanted, 0).unwrap();
    drop(file);
    place.umount();
    place.nothing_is_left();
    orlop(&["check", text(&image)]);
    place.mount("disk.vhd", &["--read-only"]);
    assert_same(&fs::read(place.disk()).unwrap(), &wanted, "the next mount");
    let errno = File::options().write(true).open(place.disk()).unwrap_err().raw_os_error();
    assert_eq!(errno, Some(30), "EROFS");
    place.umount();
    place.nothing_is_left();
    if have(&["qemu-img"]) {
        let raw = place.name("copy.raw");
        run("qemu-img", &["convert", "-f", "vpc", "-O", "raw", text(&image), &raw]);
        // QEMU rounds the size up to whole cylinders.
        assert_same(&fs::read(&raw).unwrap()[..wanted.len()], &wanted, "qemu-img");
    }
}

#[test]
fn the_small_files_and_attributes_tell_what_it_is() {
    let Some(place) = Place::new() else { return };
    let uuid = "12345678-1234-1234-1234-123456789abc";
    orlop(&["create", &place.name("base.vhd"), "-s", "8M"]);
    let parent = place.name("base.vhd");
    orlop(&["create", &place.name("disk.vhd"), "--parent", &parent, "--uuid", uuid]);
    let said = place.mount("disk.vhd", &["--json"]);
    let ready: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(ready["mount"], place.name("m"));
    let info = place.info();
    assert_eq!(info["uuid"], uuid);
    assert_eq!(info["size"], 8 * MIB);
    assert_eq!(info["format"], "vhd (differencing)");
    assert_eq!(info["layers"].as_array().unwrap().len(), 2);
    assert_eq!(info["layers"][1]["path"], parent);
    assert_eq!(
        (&info["read_only"], &info["transport"]),
        (&false.into(), &usual_transport().into())
    );
    assert!(!info["transport_because"].as_str().unwrap().is_empty());
    let chain = fs::read_to_string(place.path("m/chain.txt")).unwrap();
    assert!(chain.contains(uuid) && chain.contains("base.vhd"), "{chain}");
    assert_eq!(chain, orlop(&["info", "--chain", "-U", &place.name("disk.vhd")]));
    assert_eq!(fs::read_to_string(place.path("m/status")).unwrap(), "ok, read-write\n");
    for (name, value) in [("uuid", uuid), ("format", "vhd (differencing)"), ("layers", "2")] {
        assert_eq!(attribute(&place.disk(), name).as_deref(), Some(value), "{name}");
    }
    assert!(attribute(&place.disk(), "parent").is_some_and(|name| name.contains("base.vhd")));
    assert_eq!(attribute(&place.disk(), "error"), None);
    open(&place.disk()).write_all_at(&[1; 4096], 0).unwrap();
    let stats: serde_json::Value =
        serde_json::from_slice(&fs::read(place.path("m/stats.json")).unwrap()).unwrap();
    assert_eq!(stats["mount"]["write"]["bytes"], 4096, "{stats}");
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let ours = table.lines().find(|line| line.contains(&place.name("m"))).unwrap();
    assert!(ours.contains(&format!("fuse.orlop {}", place.name("disk.vhd"))), "{ours}");
    place.umount();
    place.nothing_is_left();
}

#[test]
fn partitions_are_files_and_one_can_be_the_disk() {
    let Some(place) = Place::new() else { return };
    if !have(&["sgdisk"]) {
        return;
    }
    let image = place.image("disk.raw", 64);
    let table = ["-n", "1:2048:+16M", "-n", "5:0:+8M"];
    run("sgdisk", &[&table[..], &[text(&image)]].concat());
    let said = place.mount("disk.raw", &[]);
    assert!(said.contains("disk, p1, p5"), "{said}");
    assert_eq!(fs::metadata(place.path("m/p1")).unwrap().size(), 16 * MIB);
    open(&place.path("m/p5")).write_all_at(b"five", 0).unwrap();
    assert_eq!(read(&place.disk(), 17 * MIB, 4), b"five");
    place.umount();
    place.mount("disk.raw", &["--partition", "5"]);
    assert_eq!(fs::metadata(place.disk()).unwrap().size(), 8 * MIB);
    assert_eq!((read(&place.disk(), 0, 4), place.path("m/p5").exists()), (b"five".into(), false));
    assert_eq!(place.info()["offset"], 17 * MIB);
    open(&place.disk()).write_all_at(b"FIVE", 0).unwrap();
    place.umount();
    assert_eq!(read(&image, 17 * MIB, 4), b"FIVE");
    let said = refused(&place.try_mount("disk.raw", &["--mount-fs", &place.name("fs")]), 2);
    assert!(said.contains("partitions 1, 5") && said.contains("--partition"), "{said}");
    place.nothing_is_left();
}

#[test]
fn an_overlay_takes_what_is_written_and_the_image_never_changes() {
    let Some(place) = Place::new() else { return };
    let image = place.image("disk.raw", 8);
    fs::write(&image, content(8 * MIB, 9)).unwrap();
    let before = fs::read(&image).unwrap();
    let layer = place.name("layer.vhd");
    for (overlay, kept) in [("tmp", false), (&*place.name(""), false), (&layer, true)] {
        for again in [false, true] {
            place.mount("disk.raw", &["--overlay", overlay]);
            let seen = read(&place.disk(), 4096, 4) == b"mine";
            assert_eq!(seen, kept && again, "{overlay}");
            open(&place.disk()).write_all_at(b"mine", 4096).unwrap();
            assert_eq!(read(&place.disk(), 4096, 4), b"mine");
            let status = fs::read_to_string(place.path("m/status")).unwrap();
            assert!(status.contains("in an overlay"), "{status}");
            place.umount();
            assert!(fs::read(&image).unwrap() == before, "{overlay}");
        }
    }
    let words = ["mount", "disk.raw", "m", "--overlay", "near.vhd"];
    let near = Command::new(ORLOP).args(words).current_dir(place.path("")).output().unwrap();
    assert!(near.status.success(), "{}", String::from_utf8_lossy(&near.stderr));
    assert_eq!(place.info()["overlay"], place.name("near.vhd"));
    place.umount();
    place.image("other.raw", 8);
    let said = refused(&place.try_mount("other.raw", &["--overlay", &layer]), 2);
    assert!(said.contains("lies over") && said.contains("disk.raw"), "{said}");
    let said = refused(&place.try_mount("disk.raw", &["-o", "ro,overlay=tmp"]), 2);
    assert!(said.contains("overlay"), "{said}");
    place.nothing_is_left();
}

/// The server in the background was started through /proc, which has a name for it of its own.
#[test]
fn whoever_finds_an_image_mounted_is_told_who_serves_it() {
    let Some(place) = Place::new() else { return };
    place.image("disk.vhd", 8);
    place.mount("disk.vhd", &[]);
    let said = refused(&run_any(ORLOP, &["info", &place.name("disk.vhd")]), 4);
    assert!(said.contains("(open in orlop (pid "), "{said}");
    place.umount();
    place.nothing_is_left();
}

#[test]
fn nbd_clients_and_the_mount_see_one_disk() {
    let Some(place) = Place::new() else { return };
    if !have(&["qemu-io"]) {
        return;
    }
    place.image("disk.vhd", 8);
    place.mount("disk.vhd", &["--nbd", &place.name("socket")]);
    let uri = place.info()["nbd"].as_str().unwrap().to_owned();
    let file = open(&place.disk());
    for round in 1..=8_u8 {
        file.write_all_at(&[round; 4096], 0).unwrap();
        let pattern = |op: &str, byte: u8, at| format!("{op} -P {byte} {at} 4096");
        let commands = [pattern("read", round, 0), pattern("write", round + 100, 8192)];
        run("qemu-io", &["-f", "raw", "-c", &commands[0], "-c", &commands[1], &uri]);
        assert_eq!(read(&place.disk(), 8192, 4096), [round + 100; 4096]);
    }
    drop(file);
    place.umount();
    assert!(!place.path("socket").exists());
    place.nothing_is_left();
}

#[test]
fn an_image_that_must_not_be_written_is_mounted_to_read_and_says_why() {
    let Some(place) = Place::new() else { return };
    place.image("base.vhd", 8);
    orlop(&["create", &place.name("child.vhd"), "--parent", &place.name("base.vhd")]);
    let said = place.mount("base.vhd", &[]);
    assert!(said.contains("read-only"), "{said}");
    let why = place.info()["read_only_because"].as_str().unwrap().to_owned();
    assert!(why.contains("child.vhd"), "{why}");
    let status = fs::read_to_string(place.path("m/status")).unwrap();
    assert!(status.starts_with("ok, read-only: ") && status.contains("child.vhd"), "{status}");
    let errno = File::options().write(true).open(place.disk()).unwrap_err().raw_os_error();
    assert_eq!(errno, Some(30), "EROFS");
    place.umount();
    place.mount("base.vhd", &["--force-rw-parent"]);
    assert_eq!(place.info()["read_only"], false);
    place.umount();
    place.nothing_is_left();
}

#[test]
fn a_raw_file_that_is_the_disk_can_be_passed_through_and_nothing_else() {
    let Some(place) = Place::new() else { return };
    let image = place.image("disk.raw", 8);
    place.mount("disk.raw", &["--passthrough"]);
    assert_eq!(place.info()["transport"], "passthrough");
    let wanted = content(8 * MIB, 21);
    let file = open(&place.disk());
    file.write_all_at(&wanted, 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    assert_same(&fs::read(place.disk()).unwrap(), &wanted, "through the mount");
    place.umount();
    assert_same(&fs::read(&image).unwrap(), &wanted, "in the file");
    orlop(&["create", &place.name("fixed.vhd"), "-s", "8M", "--format", "vhd-fixed"]);
    place.mount("fixed.vhd", &["--passthrough"]);
    let info = place.info();
    assert_eq!(info["transport"], usual_transport());
    let why = info["transport_because"].as_str().unwrap();
    assert!(why.contains("a VHD's file is not the disk"), "{why}");
    place.umount();
    place.mount("disk.raw", &["--passthrough", "--nbd", &place.name("socket")]);
    assert_eq!(place.info()["transport"], usual_transport());
    place.umount();
    place.nothing_is_left();
}

/// The program as mount(8) finds it, while the test runs.
struct Installed(&'static str);

impl Installed {
    fn new(link: &'static str) -> Option<Self> {
        if Path::new(link).symlink_metadata().is_ok() {
            println!("SKIPPED: {link} is there already");
            return None;
        }
        std::os::unix::fs::symlink(ORLOP, link).unwrap();
        Some(Self(link))
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.0);
    }
}

#[test]
fn mount_and_umount_of_the_system_do() {
    let Some(place) = Place::new() else { return };
    place.image("disk.vhd", 8);
    let (image, at) = (place.name("disk.vhd"), place.name("m"));
    let mount = |options: &str| run_any("mount", &["-t", "fuse.orlop", &image, &at, "-o", options]);
    // Without a link in /sbin, mount.fuse3 runs the program by its name.
    for link in ["/sbin/mount.fuse.orlop", "/usr/local/bin/orlop"] {
        let helper = link.starts_with("/sbin/");
        if !helper && !have(&["mount.fuse3"]) {
            return;
        }
        let Some(_installed) = Installed::new(link) else { return };
        if helper {
            // All but the mount.
            run("mount", &["-f", "-t", "fuse.orlop", &image, &at]);
            place.nothing_is_left();
        }
        let output = mount("ro,nofail,_netdev,x-systemd.automount,noauto,defaults");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(place.info()["read_only"], true);
        assert_eq!(place.info()["read_only_because"], serde_json::Value::Null);
        unmount(&at);
        place.nothing_is_left();
        assert!(mount("rw").status.success());
        open(&place.disk()).write_all_at(b"x", 0).unwrap();
        unmount(&at);
        place.nothing_is_left();
        if helper {
            let said = refused(&mount("ro,partition=7"), 32);
            assert!(said.contains('7'), "{said}");
            refused(&mount("ro,no_such_word"), 1);
        } else {
            assert!(!mount("ro,no_such_word").status.success());
        }
        place.nothing_is_left();
    }
}

#[test]
fn the_memory_of_a_mounts_server_stays_but_not_what_it_maps_of_the_image() {
    let Some(place) = Place::new() else { return };
    let image = place.path("disk.raw");
    fs::write(&image, content(4 * MIB, 9)).unwrap();
    let mut server = place.mount_here("disk.raw", &[]);
    let smaps = || fs::read_to_string(format!("/proc/{}/smaps", server.id())).unwrap();
    let locked = |smaps: &str| {
        let lines = smaps.lines().filter_map(|line| line.strip_prefix("Locked:"));
        lines.map(|kb| kb.trim_end_matches("kB").trim().parse::<u64>().unwrap()).sum::<u64>()
    };
    let before = locked(&smaps());
    if cfg!(target_arch = "x86_64") {
        place.until("what is read often is mapped", || {
            for _ in 0..100 {
                // What the kernel keeps of the file it need not ask for.
                assert_eq!(read(&place.disk(), 0, 64 << 10).len(), 64 << 10);
                open(&place.disk()).write_all_at(&[1; 4096], 0).unwrap();
            }
            smaps().contains(text(&image))
        });
    }
    let after = smaps();
    let mapping = after.split("VmFlags").find(|part| part.contains(text(&image)));
    assert_eq!(locked(mapping.unwrap_or_default()), 0, "the page cache must be able to drop it");
    println!("locked: {before} KiB before, {} after", locked(&after));
    place.umount();
    assert!(server.wait().unwrap().success());
    place.nothing_is_left();
}

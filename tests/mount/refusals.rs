//! Mounts that cannot be: each is told with its cause and its exit code, and leaves nothing.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::process::{Command, Stdio};

use crate::foreign::{content, have, orlop, run, run_any, text, unmount};
use crate::place::{MIB, ORLOP, Place, refused};

/// Directories of the programs that a server runs.
const WITHOUT_TOOLS: &str = "/nonexistent";

#[test]
fn a_bad_mount_point_is_told_before_the_image_is_touched() {
    let Some(place) = Place::new() else { return };
    let image = place.image("disk.vhd", 8);
    let before = fs::read(&image).unwrap();
    fs::write(place.path("file"), "").unwrap();
    run("mount", &["-t", "tmpfs", "none", &place.name("fs")]);
    for (at, code, word) in [
        ("absent", 3, "make the directory first"),
        ("file", 2, "is not a directory"),
        ("fs", 4, "something is mounted there already (tmpfs, from none)"),
    ] {
        let output = run_any(ORLOP, &["mount", text(&image), &place.name(at)]);
        let said = refused(&output, code);
        assert!(said.contains(word) && said.contains(&place.name(at)), "{said}");
    }
    unmount(&place.name("fs"));
    assert_eq!(fs::read(&image).unwrap(), before);
    place.mount("disk.vhd", &[]);
    let said = refused(&place.try_mount("disk.vhd", &[]), 4);
    assert!(said.contains("fuse.orlop"), "{said}");
    place.umount();
    place.nothing_is_left();
}

#[test]
fn errors_are_objects_where_a_program_asks() {
    let Some(place) = Place::new() else { return };
    place.image("disk.vhd", 8);
    let output = run_any(ORLOP, &["mount", &place.name("disk.vhd"), &place.name("no"), "--json"]);
    refused(&output, 3);
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["error"]["code"], "no-mount-point");
    let output = run_any(ORLOP, &["umount", &place.name("m"), "--json"]);
    refused(&output, 3);
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["error"]["code"], "not-mounted");
    place.nothing_is_left();
}

#[test]
fn rings_that_the_kernel_does_not_offer_are_refused_where_they_are_asked_for() {
    let Some(place) = Place::new() else { return };
    let offered = fs::read_to_string("/sys/module/fuse/parameters/enable_uring");
    if offered.is_ok_and(|told| told.trim() == "Y") {
        println!("SKIPPED: the kernel offers FUSE over io_uring");
        return;
    }
    place.image("disk.vhd", 8);
    let said = refused(&place.try_mount("disk.vhd", &["--transport", "uring"]), 8);
    assert!(said.contains("enable_uring") && said.contains("--transport auto"), "{said}");
    place.nothing_is_left();
    place.mount("disk.vhd", &["--transport", "auto"]);
    place.umount();
}

#[test]
fn without_the_fuse_device_it_says_how_to_get_one() {
    let Some(place) = Place::new() else { return };
    if !have(&["unshare"]) {
        return;
    }
    place.image("disk.vhd", 8);
    let script = format!(
        "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && \
         exec {ORLOP} mount {} {}",
        place.name("disk.vhd"),
        place.name("m")
    );
    let said = refused(&run_any("unshare", &["--mount", "sh", "-c", &script]), 8);
    assert!(said.contains("/dev/fuse") && said.contains("modprobe fuse"), "{said}");
    place.nothing_is_left();
}

/// A program as the user nobody, who must be able to run ours.
fn as_nobody(words: &[&str]) -> Option<std::process::Output> {
    let user = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let probe = run_any("setpriv", &[&user[..], &[ORLOP, "--version"]].concat());
    if !have(&["setpriv", "fusermount3"]) || !probe.status.success() {
        println!("SKIPPED: nobody cannot run {ORLOP}");
        return None;
    }
    Some(run_any("setpriv", &[&user[..], words].concat()))
}

#[test]
fn nobody_may_mount_where_nobody_may_write_and_hears_why_not_elsewhere() {
    let Some(place) = Place::new() else { return };
    let image = place.image("disk.vhd", 8);
    std::os::unix::fs::chown(&image, Some(65534), Some(65534)).unwrap();
    let mount = [ORLOP, "mount", &place.name("disk.vhd"), &place.name("m")];
    let Some(output) = as_nobody(&mount) else { return };
    // The directory is root's.
    let said = refused(&output, 1);
    assert!(said.contains("not permitted to mount") && said.contains("fusermount3"), "{said}");
    place.nothing_is_left();
    let env = ["env", &format!("PATH={WITHOUT_TOOLS}")];
    let said = refused(&as_nobody(&[&env[..], &mount].concat()).unwrap(), 1);
    assert!(said.contains("install fusermount3"), "{said}");
    for option in ["--loop", "--mount-fs=/mnt"] {
        let output = as_nobody(&[&mount[..], &[option]].concat()).unwrap();
        assert!(refused(&output, 1).contains("only root"));
    }
    place.nothing_is_left();

    std::os::unix::fs::chown(place.mount_point(), Some(65534), Some(65534)).unwrap();
    // Where udev does not run, the device is root's; here it is everybody's, as it usually is.
    let script = "mknod -m 666 $0/fuse c 10 229; mount --bind $0/fuse /dev/fuse && cd $0 &&
        exec setpriv --reuid=65534 --regid=65534 --clear-groups sh -exc '
        $1 mount $0/disk.vhd $0/m
        printf hello | dd of=m/disk conv=notrunc,fsync
        exec 3<m/disk; if $1 umount $0/m; then exit 9; fi; exec 3<&-
        $1 umount $0/m' $0 $1";
    let folder = place.name("");
    run("unshare", &["--mount", "sh", "-c", script, folder.trim_end_matches('/'), ORLOP]);
    place.nothing_is_left();
    place.mount("disk.vhd", &["--read-only"]);
    let mut hello = [0; 5];
    File::open(place.disk()).unwrap().read_exact_at(&mut hello, 0).unwrap();
    assert_eq!(&hello, b"hello");
    place.umount();
}

#[test]
fn whose_mount_it_is_decides_who_may_take_it_away() {
    let Some(place) = Place::new() else { return };
    let image = place.image("disk.vhd", 8);
    place.mount("disk.vhd", &[]);
    let umount = [ORLOP, "umount", &place.name("m")];
    let Some(output) = as_nobody(&umount) else { return };
    let said = refused(&output, 1);
    assert!(said.contains("another user has mounted it"), "{said}");
    place.umount();
    place.nothing_is_left();
    for path in [&image, &place.mount_point()] {
        std::os::unix::fs::chown(path, Some(65534), Some(65534)).unwrap();
    }
    // Root may not look into this one, and may unmount it all the same.
    let script = "mknod -m 666 $0/fuse c 10 229; mount --bind $0/fuse /dev/fuse && cd $0 &&
        setpriv --reuid=65534 --regid=65534 --clear-groups $1 mount $0/disk.vhd $0/m &&
        $1 umount $0/m";
    let folder = place.name("");
    let words = ["--mount", "sh", "-c", script, folder.trim_end_matches('/'), ORLOP];
    let said = run("unshare", &words);
    assert!(said.contains("cannot be seen from here"), "{said}");
    place.nothing_is_left();
}

#[test]
fn a_broken_chain_is_told_with_layer_and_identities() {
    let Some(place) = Place::new() else { return };
    place.image("base.vhd", 8);
    orlop(&["create", &place.name("child.vhd"), "--parent", &place.name("base.vhd")]);
    fs::rename(place.path("base.vhd"), place.path("elsewhere.vhd")).unwrap();
    let said = refused(&place.try_mount("child.vhd", &[]), 1);
    assert!(said.contains("base.vhd") && said.contains("is missing"), "{said}");
    place.nothing_is_left();

    let uuids = ["11111111-2222-3333-4444-555555555555", "66666666-7777-8888-9999-aaaaaaaaaaaa"];
    for (name, uuid) in [("base.vhd", uuids[0]), ("other.vhd", uuids[1])] {
        orlop(&["create", &place.name(name), "-s", "8M", "--uuid", uuid]);
    }
    orlop(&["create", &place.name("child.vhd"), "--force", "--parent", &place.name("base.vhd")]);
    fs::rename(place.path("other.vhd"), place.path("base.vhd")).unwrap();
    let said = refused(&place.try_mount("child.vhd", &[]), 1);
    let all = said.contains("child.vhd") && uuids.iter().all(|uuid| said.contains(uuid));
    assert!(all && said.contains("base.vhd"), "{said}");
    place.nothing_is_left();
}

#[test]
fn an_image_that_qemu_has_is_left_alone() {
    let Some(place) = Place::new() else { return };
    if !have(&["qemu-io"]) {
        return;
    }
    let image = place.image("disk.raw", 8);
    let mut qemu = Command::new("qemu-io")
        .args(["-f", "raw", text(&image)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It has opened the image when it answers.
    let mut pipe = qemu.stdin.take().unwrap();
    pipe.write_all(b"read 0 512\n").unwrap();
    let mut out = std::io::BufReader::new(qemu.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("512") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut out, &mut line).unwrap() > 0, "qemu-io ended");
    }
    let said = refused(&place.try_mount("disk.raw", &[]), 4);
    drop(pipe);
    qemu.wait().unwrap();
    assert!(said.contains("in use") && said.contains("qemu-io"), "{said}");
    place.nothing_is_left();
    // And the other way round.
    place.mount("disk.raw", &[]);
    let output = run_any("qemu-io", &["-f", "raw", "-c", "write 0 512", text(&image)]);
    assert!(!output.status.success());
    place.umount();
    run("qemu-io", &["-f", "raw", "-c", "write 0 512", text(&image)]);
}

#[test]
fn a_step_that_fails_undoes_those_before_it() {
    let Some(place) = Place::new() else { return };
    place.image("disk.vhd", 16);
    let said = refused(&place.try_mount("disk.vhd", &["--mount-fs", &place.name("fs")]), 1);
    assert!(said.contains("--mount-fs: mount:") && said.contains("left behind"), "{said}");
    place.nothing_is_left();
    // Without the programs it needs.
    let path = format!("PATH={WITHOUT_TOOLS}");
    let words = [&path, ORLOP, "mount", &place.name("disk.vhd"), &place.name("m"), "--loop"];
    let said = refused(&run_any("env", &words), 8);
    assert!(said.contains("losetup is not installed"), "{said}");
    place.nothing_is_left();
    fs::write(place.path("socket"), "not a socket").unwrap();
    let said = refused(&place.try_mount("disk.vhd", &["--nbd", &place.name("socket")]), 4);
    assert!(said.contains("--nbd") && said.contains(&place.name("socket")), "{said}");
    let said = refused(&place.try_mount("disk.vhd", &["--log", &place.name("no/log")]), 2);
    assert!(said.contains("no/log"), "{said}");
    let said = refused(&place.try_mount("disk.vhd", &["-o", "ro,colour=red"]), 2);
    assert!(said.contains("colour=red"), "{said}");
    let said = refused(&place.try_mount("disk.vhd", &["--partition", "3"]), 3);
    assert!(said.contains('3'), "{said}");
    let overlay = place.name("layer.vhd");
    let options = ["--overlay", &overlay, "--mount-fs", &place.name("fs")];
    refused(&place.try_mount("disk.vhd", &options), 1);
    assert!(!place.path("layer.vhd").exists(), "the layer was made for nothing");
    place.nothing_is_left();
}

#[test]
fn a_full_file_system_is_told_as_that_and_nothing_is_lost() {
    let Some(place) = Place::new() else { return };
    fs::create_dir(place.path("small")).unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=12m", "none", &place.name("small")]);
    fs::write(place.path("small/ballast"), vec![1; 4 << 20]).unwrap();
    let image = place.image("small/disk.vhd", 64);
    place.mount("small/disk.vhd", &[]);
    let wanted = content(16 * MIB, 7);
    let file = File::options().read(true).write(true).open(place.disk()).unwrap();
    let mut done = 0;
    let failed = loop {
        let piece = &wanted[done..done + 65536];
        // Zeroes may take no space.
        let piece: Vec<u8> = piece.iter().map(|byte| byte | 1).collect();
        match file.write_all_at(&piece, done as u64) {
            Ok(()) => done += 65536,
            Err(error) => break error,
        }
    };
    assert_eq!(failed.raw_os_error(), Some(28), "{failed}");
    assert!(done > 0);
    let status = fs::read_to_string(place.path("m/status")).unwrap();
    assert!(status.contains("failed"), "{status}");
    fs::remove_file(place.path("small/ballast")).unwrap();
    file.sync_all().unwrap();
    drop(file);
    place.umount();
    orlop(&["check", text(&image)]);
    place.mount("small/disk.vhd", &["--read-only"]);
    let mut found = vec![0; done];
    File::open(place.disk()).unwrap().read_exact_at(&mut found, 0).unwrap();
    assert!(found.iter().zip(&wanted).all(|(found, wanted)| *found == wanted | 1));
    place.umount();
    unmount(&place.name("small"));
    place.nothing_is_left();
}

#[test]
fn a_disk_that_fails_in_use_says_so_and_stays_until_it_is_let_go() {
    let Some(place) = Place::new() else { return };
    // The image lies in a mount of another server, which will die.
    let below = Place::new().unwrap();
    let raw = below.image("below.raw", 16);
    below.mount("below.raw", &[]);
    fs::set_permissions(&raw, fs::Permissions::from_mode(0o600)).unwrap();
    let disk = below.name("m/disk");
    run(ORLOP, &["mount", &disk, &place.name("m"), "--format", "raw"]);
    let file = File::options().read(true).write(true).open(place.disk()).unwrap();
    file.write_all_at(&[7; 4096], 0).unwrap();
    file.sync_all().unwrap();
    below.signal(rustix::process::Signal::KILL);
    below.until("the server is dead", || fs::metadata(below.disk()).is_err());
    let mut bytes = [0; 4096];
    let failed = file.read_exact_at(&mut bytes, 8 * MIB).unwrap_err();
    assert_eq!(failed.raw_os_error(), Some(5), "{failed}");
    assert_eq!(file.write_all_at(&[8; 4096], 4096).unwrap_err().raw_os_error(), Some(5));
    let status = fs::read_to_string(place.path("m/status")).unwrap();
    assert!(status.contains("failed"), "{status}");
    drop(file);
    place.signal(rustix::process::Signal::TERM);
    place.nothing_is_left();
    below.umount();
    below.nothing_is_left();
    assert_eq!(fs::read(&raw).unwrap()[..4096], [7; 4096]);
}

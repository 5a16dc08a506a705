//! The ways a mount ends: asked for, by a signal, by somebody else's umount, by SIGKILL.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::foreign::{orlop, run, run_any, text, unmount};
use crate::place::{ORLOP, Place, refused};

fn write(place: &Place, what: &[u8]) {
    let file = File::options().write(true).open(place.disk()).unwrap();
    file.write_all_at(what, 0).unwrap();
}

fn holds(place: &Place, what: &[u8]) {
    place.mount("disk.vhd", &["--read-only"]);
    let mut found = vec![0; what.len()];
    File::open(place.disk()).unwrap().read_exact_at(&mut found, 0).unwrap();
    place.umount();
    assert_eq!(found, what);
    orlop(&["check", &place.name("disk.vhd")]);
}

#[test]
fn a_signal_makes_all_durable_and_leaves_nothing() {
    let Some(place) = Place::new() else { return };
    place.image("disk.vhd", 8);
    let signals = [(Signal::TERM, b"term"), (Signal::INT, b"int "), (Signal::HUP, b"hup ")];
    for (signal, word) in signals {
        let mut server = place.mount_here("disk.vhd", &[]);
        write(&place, word);
        place.signal(signal);
        assert!(server.wait().unwrap().success(), "{}", place.log());
        place.nothing_is_left();
        holds(&place, word);
    }
}

#[test]
fn a_busy_mount_names_its_users_and_a_second_signal_ends_the_wait() {
    let Some(place) = Place::new() else { return };
    place.image("disk.vhd", 8);
    let mut server = place.mount_here("disk.vhd", &[]);
    let file = File::options().read(true).write(true).open(place.disk()).unwrap();
    file.write_all_at(b"kept", 0).unwrap();
    place.signal(Signal::TERM);
    let me = format!("(pid {})", std::process::id());
    place.until("the users are named", || place.log().contains(&me));
    // Served as before in the meantime.
    file.write_all_at(b"KEPT", 0).unwrap();
    let server_pid = Pid::from_raw(server.id().cast_signed()).unwrap();
    kill_process(server_pid, Signal::TERM).unwrap();
    assert!(server.wait().unwrap().success(), "{}", place.log());
    let mut bytes = [0; 4];
    assert!(file.read_exact_at(&mut bytes, 0).is_err(), "its disk is gone");
    drop(file);
    place.nothing_is_left();
    holds(&place, b"KEPT");
}

#[test]
fn umount_names_who_is_in_the_way_or_goes_lazily() {
    let Some(place) = Place::new() else { return };
    place.image("disk.vhd", 8);
    place.mount("disk.vhd", &[]);
    let file = File::options().read(true).write(true).open(place.disk()).unwrap();
    let said = refused(&place.try_umount(&[]), 4);
    let me = format!("(pid {}) has {} open", std::process::id(), place.name("m/disk"));
    assert!(said.contains(&me) && said.contains("--lazy"), "{said}");
    let mut worker = Command::new("sleep")
        .arg("100")
        .current_dir(place.mount_point())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let said = refused(&place.try_umount(&[]), 4);
    let in_it = format!("sleep (pid {}) works in {}", worker.id(), place.name("m"));
    worker.kill().unwrap();
    worker.wait().unwrap();
    assert!(said.contains(&in_it), "{said}");
    let output = place.try_umount(&["--lazy"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Whoever has it open goes on.
    file.write_all_at(b"lazy", 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    place.nothing_is_left();
    holds(&place, b"lazy");
}

#[test]
fn somebody_elses_umount_ends_the_server_too() {
    let Some(place) = Place::new() else { return };
    place.image("disk.vhd", 8);
    let mut server = place.mount_here("disk.vhd", &[]);
    write(&place, b"gone");
    unmount(text(&place.mount_point()));
    assert!(server.wait().unwrap().success(), "{}", place.log());
    place.nothing_is_left();
    holds(&place, b"gone");
}

#[test]
fn what_is_not_ours_is_not_unmounted() {
    let Some(place) = Place::new() else { return };
    let said = refused(&place.try_umount(&[]), 3);
    assert!(said.contains("nothing is mounted there"), "{said}");
    run("mount", &["-t", "tmpfs", "none", &place.name("m")]);
    let said = refused(&place.try_umount(&[]), 3);
    assert!(said.contains("tmpfs") && said.contains("not orlop's"), "{said}");
    unmount(&place.name("m"));
    refused(&run_any(ORLOP, &["umount", &place.name("absent/dir")]), 3);
}

#[test]
fn a_killed_server_loses_nothing_that_was_flushed_and_is_cleared_away() {
    let Some(place) = Place::new() else { return };
    place.image("disk.vhd", 8);
    for (round, by_mount) in [(1_u8, true), (2, false), (3, true)] {
        let mut server = place.mount_here("disk.vhd", &[]);
        let file = File::options().write(true).open(place.disk()).unwrap();
        file.write_all_at(&[round; 4], 0).unwrap();
        file.sync_all().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
        drop(file);
        if by_mount {
            holds(&place, &[round; 4]);
        } else {
            let output = place.try_umount(&[]);
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains("was dead"), "{said}");
            place.nothing_is_left();
            holds(&place, &[round; 4]);
        }
    }
    place.nothing_is_left();
}

#[test]
fn a_mount_nobody_waits_for_is_undone() {
    let Some(place) = Place::new() else { return };
    place.image("disk.vhd", 8);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(ORLOP)
        .args(["mount", "--foreground", &place.name("disk.vhd"), &place.name("m")])
        .stdin(Stdio::null())
        .stdout(writer)
        .output()
        .unwrap();
    refused(&output, 1);
    place.nothing_is_left();
}

#[test]
fn in_the_background_it_keeps_no_terminal_no_directory_and_a_log() {
    let Some(place) = Place::new() else { return };
    place.image("disk.vhd", 8);
    place.mount("disk.vhd", &["--log", &place.name("server.log")]);
    let pid = place.info()["pid"].as_u64().unwrap();
    let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).unwrap();
    assert_eq!(link("cwd"), std::path::Path::new("/"));
    for (number, file) in [(0, "/dev/null"), (1, "/dev/null"), (2, &*place.name("server.log"))] {
        assert_eq!(link(&format!("fd/{number}")), std::path::Path::new(file));
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session: u64 =
        stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap().parse().unwrap();
    assert_eq!(session, pid, "a session of its own");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
    assert_ne!(locked.trim(), "0 kB", "its memory is locked");
    place.umount();
    place.nothing_is_left();
}

#[test]
fn a_server_that_does_not_answer_is_told_and_can_be_left() {
    let Some(place) = Place::new() else { return };
    place.image("disk.vhd", 8);
    let mut server = place.mount_here("disk.vhd", &[]);
    place.signal(Signal::STOP);
    let said = refused(&place.try_umount(&[]), 7);
    assert!(said.contains("does not answer") && said.contains("--lazy"), "{said}");
    let connection = said.split("/sys/fs/fuse/connections/").nth(1).unwrap();
    assert!(connection.split('/').next().unwrap().parse::<u32>().is_ok(), "{said}");
    let said = refused(&place.try_mount("disk.vhd", &[]), 4);
    assert!(said.contains("mounted there already"), "{said}");
    let output = place.try_umount(&["--lazy"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    server.kill().unwrap();
    server.wait().unwrap();
    place.nothing_is_left();
}

#[test]
fn a_link_to_the_mount_point_does() {
    let Some(place) = Place::new() else { return };
    place.image("disk.vhd", 8);
    std::os::unix::fs::symlink(place.mount_point(), place.path("link")).unwrap();
    std::os::unix::fs::symlink("link", place.path("link2")).unwrap();
    let link = place.name("link2");
    for dead in [false, true] {
        run(ORLOP, &["mount", &place.name("disk.vhd"), &link]);
        if dead {
            place.signal(Signal::KILL);
            place.until("the server is dead", || fs::metadata(place.disk()).is_err());
        }
        run(ORLOP, &["umount", &link]);
        place.nothing_is_left();
    }
}

#[test]
fn a_file_the_kernel_serves_by_itself_is_fenced_when_its_server_ends() {
    let Some(place) = Place::new() else { return };
    let image = place.image("disk.raw", 8);
    let mut server = place.mount_here("disk.raw", &["--passthrough"]);
    let file = File::options().read(true).write(true).open(place.disk()).unwrap();
    file.write_all_at(b"mine", 0).unwrap();
    for _ in 0..2 {
        // The second one: no patience.
        kill_process(Pid::from_raw(server.id().cast_signed()).unwrap(), Signal::TERM).unwrap();
        place.until("the users are named", || place.log().contains("in use by"));
    }
    assert!(server.wait().unwrap().success(), "{}", place.log());
    let mut bytes = [0; 4];
    assert!(file.read_exact_at(&mut bytes, 0).is_err(), "it is read past its server");
    assert!(file.write_all_at(b"late", 0).is_err(), "it is written past its server");
    drop(file);
    place.nothing_is_left();
    assert_eq!(&fs::read(&image).unwrap()[..4], b"mine");
}

#[test]
fn it_may_be_asked_from_within() {
    let Some(place) = Place::new() else { return };
    place.image("disk.vhd", 8);
    for named in [".", "$PWD", "../m"] {
        place.mount("disk.vhd", &["--loop"]);
        let script = format!("cd $0 && exec $1 umount {named}");
        run("sh", &["-c", &script, &place.name("m"), ORLOP]);
        place.nothing_is_left();
    }
}

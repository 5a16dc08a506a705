//! What is left when a daemon ends, well or not, and what the next one makes of it.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use crate::foreign;
use crate::house::House;

#[test]
fn what_is_written_over_nbd_is_in_the_file_and_there_again_after_a_restart() {
    if !foreign::have(&["nbdcopy", "fusermount3"]) {
        return;
    }
    let house = House::new();
    let daemon = house.start(&[]);
    house.sr("sr");
    let vdi = house.done(&["vdi", "create", "-s", "9M", "--label", "root"]);
    let (file, uri) = house.attached("root");
    let content = foreign::content(9 << 20, 7);
    let source = house.path("source");
    std::fs::write(&source, &content).unwrap();
    foreign::run("nbdcopy", &["--flush", foreign::text(&source), &uri]);
    foreign::assert_same(&std::fs::read(&file).unwrap(), &content, "the file");
    assert!(file.starts_with(house.state().join("vdi")) && uri.contains(&vdi), "{uri}");
    let host = std::fs::read_to_string(house.state().join("state/host-id")).unwrap();
    daemon.stop();
    assert_eq!(house.mounts(), Vec::<String>::new());
    assert!(!house.socket().exists() && !house.state().join("run/nbd.sock").exists());

    let daemon = house.start(&[]);
    assert_eq!(std::fs::read_to_string(house.state().join("state/host-id")).unwrap(), host);
    assert!(house.done(&["vdi", "list"]).contains("attached"));
    assert_eq!(house.attached("root"), (file.clone(), uri.clone()));
    foreign::assert_same(&std::fs::read(&file).unwrap(), &content, "the file, after a restart");
    let copy = house.path("copy");
    foreign::run("nbdcopy", &[&uri, foreign::text(&copy)]);
    foreign::assert_same(&std::fs::read(&copy).unwrap(), &content, "NBD, after a restart");
    house.done(&["vdi", "detach", "root"]);
    assert!(!file.exists());
    daemon.stop();
    let daemon = house.start(&[]);
    assert!(!house.done(&["vdi", "list"]).contains("attached"));
    daemon.stop();
}

/// Stamps of 4 KiB: a number, over and over.
fn stamp(number: u64) -> [u8; 4096] {
    let mut block = [0; 4096];
    block.chunks_exact_mut(8).for_each(|place| place.copy_from_slice(&number.to_le_bytes()));
    block
}

#[test]
fn what_was_flushed_is_there_after_a_kill_in_the_middle_of_writing() {
    const BLOCKS: u64 = 512;
    if !foreign::have(&["fusermount3"]) {
        return;
    }
    let house = House::new();
    let mut daemon = house.start(&[]);
    house.sr("sr");
    house.done(&["vdi", "create", "-s", "2M", "--label", "root"]);
    let mut before = 0;
    for round in 0..4 {
        let (path, _) = house.attached("root");
        let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        let flushed = AtomicU64::new(before);
        let tried = AtomicU64::new(before);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in before + 1.. {
                    tried.store(number, Ordering::SeqCst);
                    let at = (number % BLOCKS) * 4096;
                    if file.write_all_at(&stamp(number), at).is_err() {
                        return;
                    }
                    if number % 8 == 0 {
                        if file.sync_data().is_err() {
                            return;
                        }
                        flushed.store(number, Ordering::SeqCst);
                    }
                }
            });
            std::thread::sleep(Duration::from_millis(300 + 150 * round));
            daemon.kill();
        });
        drop(file);
        let (flushed, tried) = (flushed.into_inner(), tried.into_inner());
        assert!(flushed > before, "nothing was flushed in round {round}");
        assert!(!house.mounts().is_empty(), "a killed daemon leaves its mount");
        daemon = house.start(&[]);
        assert_eq!(house.mounts().len(), 1, "one mount: {:?}", house.mounts());
        let sr = house.json(0, &["sr", "scan", "sr"]);
        assert_eq!(sr["findings"], serde_json::json!([]));
        let bytes = std::fs::read(&path).unwrap();
        for (block, bytes) in bytes.chunks_exact(4096).enumerate() {
            let found = u64::from_le_bytes(*bytes.first_chunk().unwrap());
            assert_eq!(bytes, stamp(found), "block {block} is torn");
            // The last number at or before `flushed` that fell on this block, or a later one.
            let block = block as u64;
            let least = flushed.saturating_sub((flushed + BLOCKS - block) % BLOCKS);
            let least = if least % BLOCKS == block { least } else { 0 };
            assert!(found >= least && found <= tried, "block {block}: {found}, not {least}");
        }
        before = tried;
    }
    daemon.stop();
    assert_eq!(house.mounts(), Vec::<String>::new());
}

#[test]
fn a_state_directory_has_one_daemon() {
    let house = House::new();
    let daemon = house.start(&["--no-fuse"]);
    let state = house.state();
    let second = ["daemon", "--state-dir", state.to_str().unwrap()];
    let told = house.fails(4, &second);
    assert!(told.contains(&format!("process {}", daemon.id())), "{told}");
    let told = house.json(4, &second);
    assert_eq!(told["error"]["code"], "busy");
    house.done(&["sr", "list"]);
    // Another directory, but a socket that is taken.
    let other = house.path("other");
    let socket = house.socket();
    let options = ["--socket", socket.to_str().unwrap(), "--no-fuse"];
    let told = house
        .fails(4, &[&["daemon", "--state-dir", other.to_str().unwrap()], &options[..]].concat());
    assert!(told.contains("another server is listening"), "{told}");
    // Or one whose other socket is.
    std::fs::create_dir_all(house.path("third/run")).unwrap();
    let _taken = std::os::unix::net::UnixListener::bind(house.path("third/run/nbd.sock")).unwrap();
    let third = house.path("third");
    let told = house.fails(4, &["daemon", "--state-dir", third.to_str().unwrap(), "--no-fuse"]);
    assert!(told.contains("NBD") && told.contains("another server is listening"), "{told}");
    house.done(&["sr", "list"]);
    daemon.stop();
}

#[test]
fn a_second_signal_changes_nothing_and_calls_under_way_end() {
    let house = House::new();
    let mut daemon = house.start(&["--no-fuse"]);
    house.sr("sr");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut made = Vec::new();
                loop {
                    let (code, out, _) = house.orlop(&["vdi", "create", "-s", "1M"]);
                    match code {
                        0 => made.push(out.trim().to_owned()),
                        // Refused, or cut off before it was a call.
                        7 | 1 => return made,
                        other => panic!("exit code {other}"),
                    }
                }
            });
        }
        std::thread::sleep(Duration::from_millis(400));
        daemon.signal(rustix::process::Signal::TERM);
        let _gone = rustix::process::kill_process(
            rustix::process::Pid::from_raw(daemon.id().cast_signed()).unwrap(),
            rustix::process::Signal::INT,
        );
        let status = daemon.await_end();
        assert!(status.success(), "{status}: {}", daemon.log());
    });
    let daemon = house.start(&["--no-fuse"]);
    let scan = house.json(0, &["sr", "scan", "sr"]);
    assert_eq!(scan["findings"], serde_json::json!([]));
    assert!(!scan["vdis"].as_array().unwrap().is_empty());
    daemon.stop();
}

#[test]
fn a_disk_whose_file_is_open_is_not_detached() {
    if !foreign::have(&["fusermount3"]) {
        return;
    }
    let house = House::new();
    let daemon = house.start(&[]);
    house.sr("sr");
    house.done(&["vdi", "create", "-s", "1M", "--label", "root"]);
    let (path, _) = house.attached("root");
    let open = std::fs::File::open(&path).unwrap();
    let told = house.json(4, &["vdi", "detach", "root"]);
    assert_eq!(told["error"]["code"], "EBUSY");
    drop(open);
    house.done(&["vdi", "detach", "root"]);
    assert!(!path.exists());
    daemon.stop();
}

#[test]
fn told_to_stop_while_it_attaches_a_daemon_stops_and_forgets_nothing() {
    let house = House::new();
    let options = ["--no-fuse"];
    let daemon = house.start(&options);
    house.sr("sr");
    let names: Vec<String> = (0..8).map(|number| format!("disk{number}")).collect();
    for name in &names {
        house.done(&["vdi", "create", "-s", "1M", "--label", name]);
        house.attached(name);
    }
    daemon.stop();
    for signal in [Signal::TERM, Signal::INT, Signal::TERM] {
        let mut daemon = house.begin(&options);
        daemon.signal(signal);
        let status = daemon.await_end();
        assert!(status.success(), "the daemon ended with {status}:\n{}", daemon.log());
    }
    let daemon = house.start(&options);
    let listed = house.done(&["vdi", "list"]);
    let attached = listed.lines().filter(|line| line.contains("attached")).count();
    assert!(attached >= names.len(), "{listed}\n{}", daemon.log());
    daemon.stop();
}

//! The device of a mount read by the thread of a shard, and its requests come through the shard's
//! ring: disks of several shards in one mount, and
//! what becomes of those who wait when memory is short, a mount is hammered, or something goes.
//!
//! Needs root and /dev/fuse; skips aloud without.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where its set-up fails")]

mod channel {
    pub(crate) mod shown;
}
#[path = "support/clean.rs"]
mod clean;
#[path = "shard/rig.rs"]
#[allow(dead_code)]
mod rig;
#[path = "support/ring_switch.rs"]
mod ring_switch;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use channel::shown::{Shown, may_mount};
use orlop::host::Aio;
use orlop::host::memory::ArenaSize;
use orlop::shard::ExportKey;
use orlop_fuse::{UnmountError, UnmountHow};
use rig::{MIB, Rig, Setup, request, until};

const PATIENCE: Duration = Duration::from_secs(10);

/// One shard for each way a mount's requests may come.
fn rigs_with(memory: ArenaSize) -> impl Iterator<Item = Rig> {
    let classic = [Aio::Auto, Aio::Threads].into_iter();
    let classic = classic.map(move |aio| Rig::on(aio, memory, PATIENCE));
    let ring = ring_switch::is_on().then(|| Rig::with_inlets(memory));
    classic.chain(ring)
}

fn rigs() -> impl Iterator<Item = Rig> {
    rigs_with(ArenaSize::default())
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|n| ((n * 37 + seed * 101) >> 2) as u8).collect()
}

/// Each of four threads owns a quarter of each mebibyte; every size a request can have.
fn churn(file: &File, mibs: usize) {
    let quarter = MIB as usize / 4;
    thread::scope(|scope| {
        for worker in 0..4 {
            scope.spawn(move || {
                for round in 0..3 {
                    for mib in 0..mibs {
                        let len = [quarter, 4096, 513, quarter - 1][(round + mib) % 4];
                        let data = pattern(len, worker * 100 + mib * 10 + round);
                        let at = (mib * 4 + worker) as u64 * quarter as u64;
                        file.write_all_at(&data, at).unwrap();
                        let mut back = vec![0; len];
                        file.read_exact_at(&mut back, at).unwrap();
                        assert!(back == data, "{worker} {round} {mib}");
                    }
                }
            });
        }
    });
}

#[test]
fn disks_of_two_shards_are_files_of_one_mount() {
    if !may_mount() {
        return;
    }
    for here in rigs() {
        let there = Rig::new();
        let shown = Shown::new(&here, &[(&here, 8 * MIB), (&there, 8 * MIB)]);
        let files = [shown.open(0), shown.open(1)];
        thread::scope(|scope| {
            for file in &files {
                scope.spawn(move || churn(file, 8));
            }
        });
        for (file, rig) in files.iter().zip([&here, &there]) {
            let whole = pattern(8 << 20, 5);
            file.write_all_at(&whole, 0).unwrap();
            file.sync_all().unwrap();
            assert!(std::fs::read(rig.image(&shown.name_in(rig))).unwrap() == whole);
            let mut back = vec![0; whole.len()];
            file.read_exact_at(&mut back, 0).unwrap();
            assert!(back == whole);
            // Past the end.
            assert_eq!(file.write_at(&[1], 8 * MIB).unwrap_err().raw_os_error(), Some(27));
            assert_eq!(file.read_at(&mut back, 8 * MIB).unwrap(), 0);
            assert_eq!(file.read_at(&mut back, 8 * MIB - 5).unwrap(), 5);
        }
        drop(files);
        clean::unmount(shown.mounted());
        drop(shown);
        here.close();
        there.close();
    }
}

#[test]
fn a_mount_is_taken_away_under_load_and_nobody_is_left_waiting() {
    if !may_mount() {
        return;
    }
    for rig in rigs() {
        let shown = Shown::new(&rig, &[(&rig, 8 * MIB)]);
        let file = shown.open(0);
        let done = AtomicU64::new(0);
        thread::scope(|scope| {
            for worker in 0..6 {
                let (file, done) = (&file, &done);
                scope.spawn(move || hammer(file, worker, done));
            }
            until("it is under load", || done.load(Ordering::Relaxed) > 500);
            let busy = shown.mounted().unmount(UnmountHow::Clean);
            assert!(matches!(busy, Err(UnmountError::Busy(_))), "{busy:?}");
            let _ = shown.mounted().unmount(UnmountHow::Abort);
        });
        drop(file);
        assert!(shown.mounted().wait(PATIENCE));
        drop(shown);
        rig.close();
    }
}

/// Uses the disk until it fails.
fn hammer(file: &File, worker: u64, done: &AtomicU64) {
    let mut bytes = vec![worker as u8; if worker.is_multiple_of(2) { 4096 } else { 300_000 }];
    for round in 0_u64.. {
        let at = (worker * 8 + round % 8) * 4096;
        let used = match round % 3 {
            0 => file.write_at(&bytes, at).map(drop),
            1 => file.read_at(&mut bytes, at).map(drop),
            _ => file.sync_data(),
        };
        if used.is_err() {
            return;
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_disk_that_is_drained_under_load_says_so_and_its_neighbour_goes_on() {
    if !may_mount() {
        return;
    }
    for rig in rigs() {
        let shown = Shown::new(&rig, &[(&rig, 8 * MIB), (&rig, 8 * MIB)]);
        let (going, staying) = (shown.open(0), shown.open(1));
        let done = AtomicU64::new(0);
        thread::scope(|scope| {
            for worker in 0..4 {
                let (going, done) = (&going, &done);
                scope.spawn(move || hammer(going, worker, done));
            }
            until("it is under load", || done.load(Ordering::Relaxed) > 500);
            rig.wait(rig.mailbox.drain(ExportKey(0))).unwrap();
        });
        assert_eq!(going.read_at(&mut [0; 512], 0).unwrap_err().raw_os_error(), Some(19));
        rig.wait(rig.mailbox.detach(shown.tag(0))).unwrap();
        assert_eq!(going.write_at(&[0; 512], 0).unwrap_err().raw_os_error(), Some(19));
        churn(&staying, 8);
        drop((going, staying));
        drop(shown);
        rig.close();
    }
}

#[test]
fn a_shard_that_ends_ends_its_mount_and_nobody_is_left_waiting() {
    if !may_mount() {
        return;
    }
    for rig in rigs() {
        let shown = Shown::new(&rig, &[(&rig, 8 * MIB)]);
        let file = shown.open(0);
        let done = AtomicU64::new(0);
        thread::scope(|scope| {
            for worker in 0..4 {
                let (file, done) = (&file, &done);
                scope.spawn(move || hammer(file, worker, done));
            }
            until("it is under load", || done.load(Ordering::Relaxed) > 500);
            rig.close();
        });
        assert!(shown.mounted().wait(PATIENCE), "the connection is over with its reader");
        assert!(file.read_at(&mut [0; 512], 0).is_err());
    }
}

#[test]
fn other_clients_have_their_turn_while_a_mount_is_hammered() {
    if !may_mount() {
        return;
    }
    for rig in rigs() {
        let shown = Shown::new(&rig, &[(&rig, 8 * MIB)]);
        let file = shown.open(0);
        let mut peer = rig.connect(shown.tag(0), Setup::of(8 * MIB));
        let (done, over) = (AtomicU64::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            for worker in 0..8 {
                let (file, done, over) = (&file, &done, &over);
                scope.spawn(move || {
                    let mut bytes = vec![worker as u8; 4096];
                    while !over.load(Ordering::Relaxed) {
                        file.read_exact_at(&mut bytes, worker * 4096).unwrap();
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            until("it is hammered", || done.load(Ordering::Relaxed) > 500);
            let before = done.load(Ordering::Relaxed);
            for round in 0..500 {
                peer.write(0, 4 * MIB, &[round as u8; 4096]).unwrap();
                assert_eq!(peer.read(4 * MIB, 4096).unwrap(), [round as u8; 4096]);
            }
            let meanwhile = done.load(Ordering::Relaxed) - before;
            over.store(true, Ordering::Relaxed);
            // A turn is 32 requests, and eight at most can wait here: far from starving.
            assert!(meanwhile < 1_000_000, "{meanwhile} requests of the mount came first");
        });
        drop(file);
        drop(shown);
        rig.close();
    }
}

/// Those who change a disk hold all memory there is and wait until mapped pages came home, which
/// takes memory too: it must be there.
#[test]
fn mapped_pages_come_home_when_there_is_no_memory_left() {
    if !may_mount() {
        return;
    }
    let memory = ArenaSize { registered_bytes: 1 << 20, large_bytes: 8 << 20 };
    for rig in rigs_with(memory) {
        let shown = Shown::new(&rig, &[(&rig, 8 * MIB)]);
        let file = shown.open(0);
        let piece = 256 << 10;
        // More than all of it at once, each over pages that were just changed.
        let mut peers: Vec<_> =
            (0..64).map(|_| rig.connect(shown.tag(0), Setup::of(8 * MIB))).collect();
        for round in 1..4_u8 {
            let script = "import mmap,os,sys\n\
                f = os.open(sys.argv[1], os.O_RDWR)\n\
                m = mmap.mmap(f, 8 << 20)\n\
                for at in range(0, 8 << 20, 4096): m[at] = int(sys.argv[2])\n\
                print('mapped', flush=True)\n\
                sys.stdin.read()\n";
            let mut mapper = Command::new("/usr/bin/python3");
            mapper.args(["-c", script]).arg(shown.path(0)).arg((100 + round).to_string());
            let mut mapper = mapper.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let mut said = [0; 6];
            std::io::Read::read_exact(mapper.stdout.as_mut().unwrap(), &mut said).unwrap();
            for (peer, number) in peers.iter_mut().zip(0_u64..) {
                let at = number % 32 * piece;
                peer.send(&request(rig::command::WRITE, number, at, piece as u32));
                peer.send(&vec![round; piece as usize]);
            }
            for (peer, number) in peers.iter_mut().zip(0_u64..) {
                assert_eq!(peer.reply(number, 0), Ok(vec![]));
            }
            drop(mapper.stdin.take());
            assert!(mapper.wait().unwrap().success());
            let mut all = vec![0; 8 << 20];
            file.read_exact_at(&mut all, 0).unwrap();
            assert!(all.iter().all(|byte| *byte == round), "round {round}: old bytes came back");
        }
        drop((file, peers));
        drop(shown);
        rig.close();
    }
}

/// What a busy shard cannot take stays with the kernel, and nothing of it is lost.
#[test]
fn a_device_is_read_again_when_the_queue_of_a_disk_has_room() {
    if !may_mount() {
        return;
    }
    for here in rigs() {
        let there = Rig::new();
        let shown = Shown::new(&here, &[(&here, 8 * MIB), (&there, 64 * MIB)]);
        let (mine, its) = (shown.open(0), shown.open(1));
        let ((enters, entered), (leave, may_leave)) = (mpsc::channel(), mpsc::channel::<()>());
        let mailbox = there.mailbox.clone();
        let busy = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let attached = mailbox.attach(Box::new(move |_| {
                enters.send(()).unwrap();
                may_leave.recv_timeout(PATIENCE * 6).unwrap();
                Err(std::io::Error::other("no disk"))
            }));
            runtime.block_on(attached).unwrap_err();
        });
        entered.recv_timeout(PATIENCE).unwrap();
        let begun = AtomicU64::new(0);
        thread::scope(|scope| {
            for number in 0..48 {
                let (its, begun) = (&its, &begun);
                scope.spawn(move || {
                    let piece = pattern(MIB as usize, number as usize);
                    begun.fetch_add(1, Ordering::Relaxed);
                    its.write_all_at(&piece, number * MIB).unwrap();
                });
            }
            until("all have begun", || begun.load(Ordering::Relaxed) == 48);
            thread::sleep(Duration::from_millis(200));
            leave.send(()).unwrap();
            mine.write_all_at(b"mine", 0).unwrap();
        });
        busy.join().unwrap();
        for number in 0..48 {
            let mut back = vec![0; MIB as usize];
            its.read_exact_at(&mut back, number * MIB).unwrap();
            assert!(back == pattern(MIB as usize, number as usize), "{number}");
        }
        drop((mine, its));
        drop(shown);
        here.close();
        there.close();
    }
}

#[test]
fn those_who_are_killed_while_they_wait_leave_nothing_behind() {
    if !may_mount() {
        return;
    }
    for rig in rigs() {
        let shown = Shown::new(&rig, &[(&rig, 8 * MIB)]);
        let (of, to) = (format!("of={}", shown.path(0).display()), "if=/dev/zero");
        for round in 0..30 {
            let mut writer = Command::new("dd");
            writer.args([to, &of, "bs=1M", "conv=notrunc", "oflag=direct"]);
            writer.stderr(Stdio::null());
            let mut writers: Vec<_> = (0..3).map(|_| writer.spawn().unwrap()).collect();
            thread::sleep(Duration::from_millis(round % 7));
            for writer in &mut writers {
                writer.kill().unwrap();
                writer.wait().unwrap();
            }
        }
        let file = shown.open(0);
        churn(&file, 8);
        drop(file);
        clean::unmount(shown.mounted());
        drop(shown);
        rig.close();
    }
}

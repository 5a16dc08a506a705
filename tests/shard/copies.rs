//! Copies of a disk's bytes that somebody keeps: asked for before a change and after it, and the
//! client that changes hears of it last.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use orlop::engine::units::{ByteLen, DiskOffset, Extent};
use orlop::host::memory::ArenaSize;
use orlop::meter::Meter;
use orlop::shard::{DiskTag, ExportKey, Watch};
use orlop::transport::files::{About, FileDisk, Files};
use orlop_fuse::{DiskId, Errno, Fact, Offset, Port, Reply, Text};

use crate::rig::{MIB, Rig, Setup, command, request};

const PATIENCE: Duration = Duration::from_secs(60);

struct Silent;

impl About for Silent {
    fn text(&self, _: Text) -> Result<Vec<u8>, Errno> {
        Ok(vec![])
    }

    fn facts(&self) -> Vec<Fact> {
        vec![]
    }
}

/// Tells which bytes it was asked for, and waits for leave to have given them up.
struct Keeper {
    keeps: AtomicBool,
    asked: Sender<Extent>,
    leave: Mutex<Receiver<()>>,
}

impl Watch for Keeper {
    fn has_copies(&self) -> bool {
        self.keeps.load(Ordering::SeqCst)
    }

    fn give_up(&self, extent: Extent) {
        self.asked.send(extent).unwrap();
        self.leave.lock().unwrap().recv_timeout(PATIENCE).unwrap();
    }
}

struct Kept {
    files: Arc<Files>,
    keeper: Arc<Keeper>,
    asked: Receiver<Extent>,
    leave: Sender<()>,
}

fn watched(rig: &Rig, tag: DiskTag) -> Kept {
    let ((asks, asked), (leave, has_leave)) = (channel(), channel());
    let keeper = Arc::new(Keeper {
        keeps: AtomicBool::new(true),
        asked: asks,
        leave: Mutex::new(has_leave),
    });
    let files = Files::new();
    let disk = FileDisk {
        mailbox: rig.mailbox.clone(),
        tag,
        export: ExportKey(9),
        window: Extent::new(DiskOffset::new(0), ByteLen::new(MIB)),
        about: Arc::new(Silent),
        passing: None,
        watch: Some(Arc::clone(&keeper) as Arc<dyn Watch>),
        meter: Arc::new(Meter::new()),
    };
    files.open(DiskId(1), disk).unwrap();
    Kept { files, keeper, asked, leave }
}

/// Gives a copy up as the kernel does: what was changed is written first, through the mount.
#[derive(Default)]
struct Launderer {
    files: OnceLock<Arc<Files>>,
    failed: AtomicBool,
}

impl Watch for Launderer {
    fn has_copies(&self) -> bool {
        true
    }

    fn give_up(&self, _: Extent) {
        let (sender, answered) = channel();
        let reply = Reply::new(move |result| {
            let _ = sender.send(result);
        });
        let files = self.files.get().unwrap();
        files.write(DiskId(1), Offset(0), &[3; 4096], false, reply);
        let home = answered.recv_timeout(PATIENCE).is_ok_and(|answer| answer.is_ok());
        self.failed.fetch_or(!home, Ordering::SeqCst);
    }
}

#[test]
fn copies_come_home_although_those_who_wait_for_them_hold_all_memory() {
    let memory = ArenaSize { registered_bytes: 4 << 20, large_bytes: 64 << 20 };
    let rig = Rig::with(memory, Duration::from_secs(10));
    let disk = rig.disk("disk", 8 * MIB);
    let (files, launderer) = (Files::new(), Arc::new(Launderer::default()));
    launderer.files.set(Arc::clone(&files)).ok().unwrap();
    let shown = FileDisk {
        mailbox: rig.mailbox.clone(),
        tag: disk,
        export: ExportKey(9),
        window: Extent::new(DiskOffset::new(0), ByteLen::new(8 * MIB)),
        about: Arc::new(Silent),
        passing: None,
        watch: Some(Arc::clone(&launderer) as Arc<dyn Watch>),
        meter: Arc::new(Meter::new()),
    };
    files.open(DiskId(1), shown).unwrap();
    // More than there is, in pieces that may lie in any region.
    let writers: Vec<_> = [(256 << 10, 256); 4]
        .map(|(len, count)| {
            let mut peer = rig.connect(disk, Setup::of(8 * MIB));
            let (payload, head) = (vec![9; len as usize], request(command::WRITE, 5, MIB, len));
            let mut sender = peer.try_clone();
            std::thread::spawn(move || {
                for _ in 0..count {
                    sender.send(&head);
                    sender.send(&payload);
                }
            });
            std::thread::spawn(move || (0..count).for_each(|_| drop(peer.reply(5, 0).unwrap())))
        })
        .into();
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    assert!(!launderer.failed.load(Ordering::SeqCst));
}

fn extent(at: u64, len: u64) -> Extent {
    Extent::new(DiskOffset::new(at), ByteLen::new(len))
}

#[test]
fn a_change_waits_for_copies_before_and_after_it() {
    let rig = Rig::new();
    let disk = rig.disk("disk", MIB);
    let kept = watched(&rig, disk);
    let mut peer = rig.connect(disk, Setup::of(MIB));
    let mut reader = rig.connect(disk, Setup::of(MIB));
    let writer = std::thread::spawn(move || {
        peer.write(0, 4096, &[7; 512]).unwrap();
        peer
    });
    assert_eq!(kept.asked.recv_timeout(PATIENCE).unwrap(), extent(4096, 512));
    assert_eq!(reader.read(4096, 1).unwrap(), [0], "copies come home before the change");
    assert!(!writer.is_finished());
    kept.leave.send(()).unwrap();
    assert_eq!(kept.asked.recv_timeout(PATIENCE).unwrap(), extent(4096, 512));
    assert_eq!(reader.read(4096, 1).unwrap(), [7], "old copies are given up after the change");
    assert!(!writer.is_finished(), "who changes hears of it last");
    kept.leave.send(()).unwrap();
    drop(writer.join().unwrap());
    drop(kept.files);
}

#[test]
fn nothing_waits_where_there_are_no_copies_or_for_reads() {
    let rig = Rig::new();
    let disk = rig.disk("disk", MIB);
    let kept = watched(&rig, disk);
    let mut peer = rig.connect(disk, Setup::of(MIB));
    assert_eq!(peer.read(0, 512).unwrap(), [0; 512]);
    kept.keeper.keeps.store(false, Ordering::SeqCst);
    peer.write(0, 0, &[1; 512]).unwrap();
    assert!(kept.asked.try_recv().is_err());
}

#[test]
fn copies_made_during_a_change_are_given_up_as_well() {
    let rig = Rig::new();
    let disk = rig.disk("disk", MIB);
    let kept = watched(&rig, disk);
    let mut peer = rig.connect(disk, Setup::of(MIB));
    let writer = std::thread::spawn(move || peer.write(0, 0, &[1; 512]).unwrap());
    let asked = kept.asked.recv_timeout(PATIENCE).unwrap();
    kept.keeper.keeps.store(false, Ordering::SeqCst);
    kept.leave.send(()).unwrap();
    writer.join().unwrap();
    assert_eq!(asked, extent(0, 512), "and none were there when it was over");
    assert!(kept.asked.try_recv().is_err());
}

#[test]
fn a_watcher_that_goes_during_a_change_holds_nobody_up() {
    let rig = Rig::new();
    let disk = rig.disk("disk", MIB);
    let kept = watched(&rig, disk);
    let mut peer = rig.connect(disk, Setup::of(MIB));
    let writer = std::thread::spawn(move || {
        peer.write(0, 0, &[1; 512]).unwrap();
        peer.write(0, 512, &[2; 512]).unwrap();
        peer.read(0, 1024).unwrap()
    });
    kept.asked.recv_timeout(PATIENCE).unwrap();
    rig.wait(rig.mailbox.drain(ExportKey(9))).unwrap();
    kept.leave.send(()).unwrap();
    assert_eq!(writer.join().unwrap(), [[1; 512], [2; 512]].concat());
}

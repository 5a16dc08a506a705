//! Exports and disks that go while their shard serves others.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::thread::scope;
use std::time::Duration;

use orlop::engine::units::{ByteLen, DiskOffset, Extent};
use orlop::host::{Descriptors, OpenMode};
use orlop::meter::{Rates, Throttle};
use orlop::shard::ExportKey;

use crate::rig::{MIB, Rig, Setup, command, is_open, request, until};

const ESHUTDOWN: u32 = 108;
const EIO: u32 = 5;
const FUA: u16 = 1;

/// A limit that lets one request through, and the next in a hundred years.
pub(crate) fn hardly_any() -> Arc<Throttle> {
    let bytes_per_s = NonZeroU64::new(1);
    Arc::new(Throttle::new(Rates { bytes_per_s, ops_per_s: None }))
}

#[test]
fn an_export_that_goes_leaves_the_others_on_its_disk_alone() {
    let rig = Rig::new();
    let disk = rig.disk("a", MIB);
    let mut goes = rig.connect(disk, Setup::of(MIB));
    let mut stays = rig.connect(disk, Setup { export: ExportKey(2), ..Setup::of(MIB) });
    assert_eq!(goes.write(0, 0, &[1; 512]), Ok(()));
    rig.wait(rig.mailbox.drain(ExportKey(1))).unwrap();
    assert_eq!(goes.await_end(), 0);
    assert_eq!(stays.read(0, 512), Ok(vec![1; 512]));
    // Nobody is there: nothing to wait for.
    rig.wait(rig.mailbox.drain(ExportKey(77))).unwrap();
    // Later ones are served: forgetting the export is the server's business.
    let mut later = rig.connect(disk, Setup::of(MIB));
    assert_eq!(later.read(0, 512), Ok(vec![1; 512]));
    rig.close();
}

#[test]
fn what_is_in_flight_when_an_export_goes_is_finished_first() {
    let rig = Rig::new();
    let disk = rig.disk("a", MIB);
    let setup = Setup::of(MIB);
    let meter = Arc::clone(&setup.meter);
    let mut peer = rig.connect(disk, setup);
    // Half a write, so long that it is received straight into memory.
    peer.send(&request(command::WRITE, 5, 0, 256 << 10));
    peer.send(&vec![6; 128 << 10]);
    until("it is connected", || meter.snapshot().connections == 1);
    // The disk has begun with what came when it answers something else.
    rig.wait(rig.mailbox.flush(disk)).unwrap();
    scope(|threads| {
        let mailbox = rig.mailbox.clone();
        let drained = threads.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(mailbox.drain(ExportKey(1)))
        });
        std::thread::sleep(Duration::from_millis(200));
        peer.send(&vec![6; 128 << 10]);
        assert_eq!(peer.reply(5, 0), Ok(vec![]));
        assert_eq!(peer.await_end(), 0);
        assert_eq!(drained.join().unwrap(), Ok(()));
    });
    let extent = Extent::new(DiskOffset::new(0), ByteLen::new(256 << 10));
    assert_eq!(rig.wait(rig.mailbox.read(disk, extent)).unwrap(), vec![6; 256 << 10]);
    assert_eq!(meter.snapshot().connections, 0);
    rig.close();
}

#[test]
fn a_request_that_waits_for_its_turn_is_refused_when_its_export_goes() {
    let rig = Rig::new();
    let disk = rig.disk("a", MIB);
    let setup = Setup { throttle: hardly_any(), ..Setup::of(MIB) };
    let mut peer = rig.connect(disk, setup);
    assert_eq!(peer.read(0, 4096), Ok(vec![0; 4096]));
    peer.send(&request(command::WRITE, 5, 0, 512));
    peer.send(&[1; 512]);
    // Its header was read by then, or is read on the way out: refused or hung up upon.
    std::thread::sleep(Duration::from_millis(300));
    rig.wait(rig.mailbox.drain(ExportKey(1))).unwrap();
    assert_eq!(peer.reply(5, 0), Err(ESHUTDOWN));
    assert_eq!(peer.await_end(), 0);
    let extent = Extent::new(DiskOffset::new(0), ByteLen::new(512));
    assert_eq!(rig.wait(rig.mailbox.read(disk, extent)).unwrap(), [0; 512]);
    rig.close();
}

#[test]
fn a_client_that_does_not_finish_in_time_is_cut() {
    let rig = Rig::with_drain_limit(Duration::from_millis(200));
    let disk = rig.disk("a", MIB);
    let setup = Setup::of(MIB);
    let meter = Arc::clone(&setup.meter);
    let mut peer = rig.connect(disk, setup);
    peer.send(&request(command::WRITE, 5, 0, 256 << 10));
    peer.send(&[6; 1000]);
    until("it is connected", || meter.snapshot().connections == 1);
    rig.wait(rig.mailbox.drain(ExportKey(1))).unwrap();
    assert_eq!(peer.await_end(), 0);
    rig.close();
}

#[test]
fn a_disk_that_goes_closes_its_files_and_its_name_means_nothing_more() {
    let rig = Rig::new();
    let (first, other) = (rig.disk("a", MIB), rig.disk("b", MIB));
    let mut peer = rig.connect(first, Setup::of(MIB));
    let mut stays = rig.connect(other, Setup { export: ExportKey(2), ..Setup::of(MIB) });
    assert_eq!(peer.write(0, 0, &[1; 512]), Ok(()));
    assert!(is_open(&rig.image("a")));
    assert_eq!(rig.wait(rig.mailbox.detach(first)), Ok(()));
    assert!(!is_open(&rig.image("a")), "its files are still open");
    assert_eq!(peer.await_end(), 0);
    assert_eq!(stays.read(0, 512), Ok(vec![0; 512]));
    // The next disk may sit where it sat, and must not be taken for it.
    let next = rig.disk("c", MIB);
    assert_ne!(next, first);
    assert_eq!(rig.connect(first, Setup::of(MIB)).await_end(), 0);
    let extent = Extent::new(DiskOffset::new(0), ByteLen::new(512));
    let read = rig.wait(rig.mailbox.read(first, extent));
    assert_eq!(read.map_err(|e| e.kind()), Err(ErrorKind::NotFound));
    assert!(rig.wait(rig.mailbox.flush(first)).is_err());
    assert!(rig.wait(rig.mailbox.detach(first)).is_err());
    assert_eq!(rig.connect(next, Setup::of(MIB)).read(0, 512), Ok(vec![0; 512]));
    rig.close();
}

#[test]
fn a_disk_under_load_goes_without_losing_what_it_answered() {
    let rig = Rig::new();
    let disk = rig.disk("a", MIB);
    let mut peers: Vec<_> = (0..4).map(|_| rig.connect(disk, Setup::of(MIB))).collect();
    for (number, peer) in peers.iter_mut().enumerate() {
        for step in 0..16 {
            let at = (number as u64 * 16 + step) * 4096;
            peer.send(&request(command::WRITE, step, at, 4096));
            peer.send(&[number as u8 + 1; 4096]);
        }
    }
    assert_eq!(rig.wait(rig.mailbox.detach(disk)), Ok(()));
    let file = std::fs::read(rig.image("a")).unwrap();
    for (number, peer) in peers.iter_mut().enumerate() {
        let answered = peer.await_good();
        let home = &file[number * 65536..][..65536];
        let written = home.chunks(4096).filter(|piece| *piece == [number as u8 + 1; 4096]);
        assert!(written.count() >= answered, "{answered} writes were answered");
    }
    rig.close();
}

#[test]
fn a_disk_that_cannot_be_made_durable_says_so_and_goes_all_the_same() {
    let rig = Rig::new();
    std::fs::write(rig.image("a"), vec![0; MIB as usize]).unwrap();
    // Every write to it fails, and a durable one stops the disk.
    let file = OpenOptions::new().read(true).open(rig.image("a")).unwrap();
    let disk = rig.attach(file, MIB);
    let mut peer = rig.connect(disk, Setup::of(MIB));
    assert_eq!(peer.write(FUA, 0, &[1; 512]), Err(EIO));
    let told = rig.wait(rig.mailbox.detach(disk)).unwrap_err();
    assert!(told.contains("stopped"), "{told}");
    assert!(!is_open(&rig.image("a")));
    assert_eq!(peer.await_end(), 0);
    rig.close();
}

#[test]
fn an_attachment_that_fails_leaves_no_file_open() {
    let rig = Rig::new();
    std::fs::write(rig.image("a"), [0; 512]).unwrap();
    let file = std::fs::File::open(rig.image("a")).unwrap();
    let attached = rig.mailbox.attach(Box::new(move |add_file| {
        add_file(Descriptors::new(file.into(), OpenMode::BUFFERED))?;
        Err(std::io::Error::other("on purpose"))
    }));
    assert!(rig.wait(attached).is_err());
    assert!(!is_open(&rig.image("a")));
    rig.close();
}

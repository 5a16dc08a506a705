//! How guests, owners and their clients go, what fails, and what waits for memory.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use orlop::engine::Disk;
use orlop::engine::units::{ByteLen, DiskOffset, Extent};
use orlop::format::Flat;
use orlop::host::memory::ArenaSize;
use orlop::host::{Aio, Descriptors, OpenMode};
use orlop::image::{self, OpenOptions};
use tempfile::TempDir;

use crate::house::{DRAIN_LIMIT, House, Kind, SIZE, ask, image};
use crate::rig::{MIB, Rig, Setup, command, flagged, is_open, request, until};

const EIO: u32 = 5;
const FUA: u16 = 1;

fn house(kind: Kind) -> (TempDir, std::path::PathBuf, House) {
    let folder = TempDir::new().unwrap();
    let path = image(&folder, kind);
    let house = House::over(Aio::Auto, &path);
    (folder, path, house)
}

fn first_mib() -> Extent {
    Extent::new(DiskOffset::new(0), ByteLen::new(MIB))
}

#[test]
fn a_guest_goes_and_its_owner_stays() {
    let (_folder, path, house) = house(Kind::Dynamic);
    let (mut here, mut there) = (house.at_owner(), house.at_guest());
    there.write(0, 0, &[5; 4096]).unwrap();
    house.guest.wait(house.guest.mailbox.detach(house.twin)).unwrap();
    assert_eq!(there.await_end(), 0);
    assert_eq!(here.read(0, 4096), Ok(vec![5; 4096]));
    assert!(is_open(&path));
    // Nobody acts for it any more: the owner goes at once.
    drop(here);
    let start = Instant::now();
    house.owner.wait(house.owner.mailbox.detach(house.disk)).unwrap();
    assert!(start.elapsed() < DRAIN_LIMIT, "{:?}", start.elapsed());
    assert!(!is_open(&path));
    house.close();
}

#[test]
fn both_go_at_once_while_clients_ask_and_everything_acknowledged_is_there() {
    for kind in [Kind::Raw, Kind::Dynamic, Kind::Child] {
        let (_folder, path, house) = house(kind);
        let mut peers = [house.at_owner(), house.at_guest(), house.at_guest()];
        for (n, peer) in peers.iter_mut().enumerate() {
            peer.write(0, n as u64 * MIB, &[n as u8 + 1; 4096]).unwrap();
            peer.send(&request(command::READ, 9, n as u64 * MIB, 4096));
        }
        let start = Instant::now();
        let owner = house.owner.mailbox.detach(house.disk);
        let guest = house.guest.mailbox.detach(house.twin);
        let (owner, guest) = house.owner.wait(async { tokio::join!(owner, guest) });
        assert_eq!((owner, guest), (Ok(()), Ok(())));
        assert!(start.elapsed() < DRAIN_LIMIT, "{:?}", start.elapsed());
        for (n, peer) in peers.iter_mut().enumerate() {
            if let Ok(bytes) = peer.reply(9, 4096) {
                assert_eq!(bytes, [n as u8 + 1; 4096]);
            }
        }
        assert!(!is_open(&path));
        house.close();
        let house = House::over(Aio::Threads, &path);
        let mut again = house.at_owner();
        for n in 0..3_u64 {
            assert_eq!(again.read(n * MIB, 4096), Ok(vec![n as u8 + 1; 4096]));
        }
        drop(again);
        house.close();
    }
}

#[test]
fn an_owner_that_goes_alone_leaves_its_guest_with_errors_and_not_with_old_bytes() {
    const LIMIT: Duration = Duration::from_secs(3);
    let folder = TempDir::new().unwrap();
    let house = House::with_limit(Aio::Auto, &image(&folder, Kind::Raw), LIMIT);
    let mut there = house.at_guest();
    there.write(0, 0, &[5; 4096]).unwrap();
    assert_eq!(there.read(0, 4096), Ok(vec![5; 4096]));
    let start = Instant::now();
    house.owner.wait(house.owner.mailbox.detach(house.disk)).unwrap();
    // The guest's clients had their time.
    assert!(start.elapsed() >= LIMIT, "{:?}", start.elapsed());
    assert_eq!(there.write(0, 0, &[6; 4096]), Err(EIO));
    assert_eq!(ask(&mut there, command::FLUSH, 0, 0), Err(EIO));
    assert_eq!(there.read(0, 512), Err(EIO));
    drop(there);
    house.close();
}

#[test]
fn shards_end_together_with_clients_on_both() {
    let (_folder, _path, house) = house(Kind::Dynamic);
    let (mut here, mut there) = (house.at_owner(), house.at_guest());
    there.write(0, 0, &[5; 4096]).unwrap();
    assert_eq!(here.read(0, 4096), Ok(vec![5; 4096]));
    let (owner, guest) = (house.owner.mailbox.shut_down(), house.guest.mailbox.shut_down());
    let start = Instant::now();
    assert_eq!(house.owner.wait(async { tokio::join!(owner, guest) }), (Ok(()), Ok(())));
    assert!(start.elapsed() < DRAIN_LIMIT, "{:?}", start.elapsed());
    assert_eq!((here.await_end(), there.await_end()), (0, 0));
}

#[test]
fn what_the_last_client_of_a_guest_wrote_is_committed_when_it_has_gone() {
    let (_folder, path, house) = house(Kind::Dynamic);
    // It was there all the time: only clients count.
    let mut here = house.at_owner();
    assert_eq!(here.read(0, 512), Ok(vec![0; 512]));
    drop(here);
    let mut there = house.at_guest();
    there.write(0, 0, &[5; 4096]).unwrap();
    // The first entry of the allocation table of an image of ours.
    let entry = || {
        let mut bytes = [0; 4];
        File::open(&path).unwrap().read_exact_at(&mut bytes, 1536).unwrap();
        bytes
    };
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(entry(), [0xFF; 4], "somebody is there to ask for a commit");
    let start = Instant::now();
    drop(there);
    until("it is committed", || entry() != [0xFF; 4]);
    assert!(start.elapsed() < Duration::from_secs(10), "only by its age");
    house.close();
}

#[test]
fn a_disk_that_stopped_fails_for_guests_as_well() {
    let (owner, guest) = (Rig::new(), Rig::new());
    let path = owner.image("a");
    std::fs::write(&path, vec![7; SIZE as usize]).unwrap();
    let open = |path: &std::path::Path| {
        let file = OwnedFd::from(File::open(path).unwrap());
        Descriptors::new(file, OpenMode::BUFFERED)
    };
    // A file that takes no writes, so the first durable one stops the disk.
    let mine = open(&path);
    let attached = owner.mailbox.attach(Box::new(move |add_file| {
        Ok(Disk::writable(Box::new(Flat::new(ByteLen::new(SIZE))), add_file(mine)?, vec![]))
    }));
    let disk = owner.wait(attached).unwrap();
    let its = open(&path);
    let make = move |published, add_file: &mut dyn FnMut(_) -> std::io::Result<_>| {
        Ok(Disk::guest(published, add_file(its)?, vec![]))
    };
    let shared = owner.mailbox.share(disk, &guest.mailbox, Box::new(make));
    let twin = owner.wait(shared).unwrap();
    let mut there = guest.connect(twin, Setup::of(SIZE));
    for _ in 0..3 {
        assert_eq!(there.read(0, 512), Ok(vec![7; 512]));
    }
    assert_eq!(there.write(FUA, 0, &[8; 512]), Err(EIO));
    for at in [0, MIB, 2 * MIB] {
        assert_eq!(there.read(at, 512), Err(EIO));
    }
    assert_eq!(ask(&mut there, command::FLUSH, 0, 0), Err(EIO));
    drop(there);
    guest.close();
    assert!(owner.wait(owner.mailbox.shut_down()).is_err(), "its changes are lost");
}

#[test]
fn a_disk_that_nobody_writes_has_no_guests() {
    let (owner, guest) = (Rig::new(), Rig::new());
    let path = owner.image("a");
    std::fs::write(&path, vec![7; SIZE as usize]).unwrap();
    let options = OpenOptions { read_only: true, ..OpenOptions::new(&path) };
    let chain = image::open(&OpenOptions { format: Some(image::Format::Raw), ..options }).unwrap();
    assert!(chain.guest().unwrap().is_none());
    let attached = owner.mailbox.attach(Box::new(move |add_file| chain.attach(add_file)));
    let disk = owner.wait(attached).unwrap();
    let make = |_, _: &mut dyn FnMut(_) -> std::io::Result<_>| unreachable!("it is not asked");
    assert!(owner.wait(owner.mailbox.share(disk, &guest.mailbox, Box::new(make))).is_err());
    guest.close();
    owner.close();
}

#[test]
fn more_than_the_owner_has_memory_for_waits_its_turn() {
    let folder = TempDir::new().unwrap();
    let path = image(&folder, Kind::Dynamic);
    let memory = ArenaSize { registered_bytes: 1 << 20, large_bytes: 2 << 20 };
    let chain = image::open(&OpenOptions::new(&path)).unwrap();
    let house = House::of(Aio::Auto, memory, chain, DRAIN_LIMIT);
    let mut peers = [house.at_guest(), house.at_guest(), house.at_owner()];
    for round in 0..4_u64 {
        for (n, peer) in (0..).zip(&mut peers) {
            for piece in 0..4_u64 {
                let at = (n * 4 + piece) * MIB;
                peer.send(&flagged(0, command::WRITE, piece, at, MIB as u32));
                peer.send(&vec![(round + n + piece) as u8; MIB as usize]);
            }
        }
        for peer in &mut peers {
            let mut cookies: Vec<u8> = (0..4).map(|_| peer.receive(16)[15]).collect();
            cookies.sort_unstable();
            assert_eq!(cookies, [0, 1, 2, 3]);
        }
        for (n, peer) in (0..).zip(&mut peers) {
            for piece in 0..4_u64 {
                let bytes = peer.read((n * 4 + piece) * MIB, MIB as u32).unwrap();
                assert!(bytes.iter().all(|byte| *byte == (round + n + piece) as u8));
            }
        }
    }
    let read = house.guest.mailbox.read(house.twin, first_mib());
    assert_eq!(house.guest.wait(read).unwrap(), vec![3; MIB as usize]);
    house.guest.wait(house.guest.mailbox.flush(house.twin)).unwrap();
    drop(peers);
    house.close();
}

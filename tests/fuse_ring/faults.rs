//! Rings that do not come about, break, or end: a mount is served or gone, never stuck.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use orlop::host::Aio;
use orlop::host::memory::ArenaSize;
use orlop::shard::Mailbox;
use orlop::transport::files::Rings;
use orlop_fuse::ring::Connection;
use orlop_fuse::{Layout, Options, RingHost, Transport, UnmountHow, mount};

use crate::common::{DISK, Fixture, Memory, Mood, can_mount, is_mounted, new_disk, until};

const MIB: usize = 1 << 20;

/// What a test's ring does with a connection the kernel waits for.
#[derive(Debug)]
enum Fault {
    /// Says it failed, before anything was registered.
    Refuses,
    /// Says it has begun, and lets the connection go.
    LetsGo,
    /// Says it has begun, and does nothing.
    Sleeps(Mutex<Option<Connection>>),
}

impl RingHost for Fault {
    fn request_bytes(&self) -> u32 {
        1 << 20
    }

    fn start(&self, connection: Connection) -> io::Result<()> {
        match self {
            Self::Refuses => Err(io::Error::other("no ring today")),
            Self::LetsGo => Ok(()),
            Self::Sleeps(place) => {
                *place.lock().unwrap() = Some(connection);
                Ok(())
            }
        }
    }
}

/// Mounts with a faulty ring; gives why the classic transport was taken, having used it.
fn falls_back(fault: impl RingHost + 'static) -> String {
    let port = Memory::with_disk(MIB);
    let dir = tempfile::tempdir().unwrap();
    let fault = Arc::new(fault);
    let options =
        Options { layout: Layout::Single, ring: Some(fault.clone()), ..Options::default() };
    let mounted = mount(port, dir.path(), &options, &[new_disk(DISK, "x", MIB)]).unwrap();
    let Transport::Fallback(why) = mounted.transport().clone() else {
        panic!("{fault:?}: {:?}", mounted.transport());
    };
    let file = fs::File::options().read(true).write(true).open(dir.path().join("disk")).unwrap();
    file.write_all_at(b"works", 4000).unwrap();
    let mut back = [0; 5];
    file.read_exact_at(&mut back, 4000).unwrap();
    assert_eq!(&back, b"works");
    drop(file);
    mounted.unmount(UnmountHow::Clean).unwrap();
    assert!(!is_mounted(dir.path()));
    why
}

#[test]
fn a_ring_that_does_not_come_about_leaves_a_working_mount_and_says_why() {
    if !can_mount() || !crate::ring::is_on() {
        return;
    }
    let why = falls_back(Fault::Refuses);
    assert!(why.contains("no ring today"), "{why}");
    // EINVAL, of the kernel.
    let why = falls_back(crate::ring::rings(Some(65_536)));
    assert!(why.contains("os error 22"), "{why}");
    // The connection is ended when it is let go: by the control file, or where there is none by
    // taking the mount away.
    let why = falls_back(Fault::LetsGo);
    let ended = ["os error 107", "os error 103", "taken away"];
    assert!(ended.iter().any(|ended| why.contains(ended)), "{why}");
    // A shard without room for entries, and one that is gone.
    let why = falls_back(crate::ring::rings(Some(256 << 20)));
    assert!(why.contains("too little memory"), "{why}");
    let rings = Rings { mailbox: ended_shard(), ..crate::ring::rings(None) };
    let why = falls_back(rings);
    assert!(why.contains("the shard has ended"), "{why}");
    let (threads, ..) = orlop::shard::spawn(Aio::Threads, ArenaSize::default()).unwrap();
    let why = falls_back(Rings { mailbox: threads, ..crate::ring::rings(None) });
    assert!(why.contains("no io_uring here"), "{why}");
    let (plain, ..) = orlop::shard::spawn(Aio::Uring, ArenaSize::default()).unwrap();
    let why = falls_back(Rings { mailbox: plain, ..crate::ring::rings(None) });
    assert!(why.contains("no room for commands"), "{why}");
    let why = falls_back(Fault::Sleeps(Mutex::default()));
    assert!(why.contains("no request was answered"), "{why}");
}

fn ended_shard() -> Mailbox {
    let shard = crate::ring::shard();
    end(&shard);
    shard
}

fn end(shard: &Mailbox) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(shard.shut_down()).unwrap();
}

#[test]
fn a_shard_that_ends_ends_the_mount_instead_of_hanging_it() {
    if !can_mount() || !crate::ring::is_on() {
        return;
    }
    let port = Memory::with_disk(MIB);
    let shard = crate::ring::shard();
    let ring = Rings { mailbox: shard.clone(), ..crate::ring::rings(None) };
    let options =
        Options { layout: Layout::Single, ring: Some(Arc::new(ring)), ..Options::default() };
    let fixture = Fixture::new(port, &options, &[new_disk(DISK, "x", MIB)]);
    let file = Arc::new(fixture.disk());
    let (tell, told) = channel();
    for worker in 0..8u64 {
        let (file, tell) = (file.clone(), tell.clone());
        thread::spawn(move || {
            let mut bytes = [0; 512];
            let mut reads = (0..1_000_000).map(|n| (worker + n) % 1000 * 512);
            let failed = reads.any(|at| file.read_exact_at(&mut bytes, at).is_err());
            let _ = tell.send(failed);
        });
    }
    until("reads at the port", || fixture.port.reads.load(Ordering::Relaxed) > 200);
    end(&shard);
    for _ in 0..8 {
        assert!(told.recv_timeout(Duration::from_secs(30)).unwrap());
    }
    assert!(fixture.mounted().wait(Duration::from_secs(30)));
}

#[test]
fn an_abort_ends_what_waits_for_a_slow_disk() {
    if !can_mount() || !crate::ring::is_on() {
        return;
    }
    let fixture = Fixture::single(MIB);
    let file = Arc::new(fixture.disk());
    fixture.port.set(Mood::Holding);
    let (tell, told) = channel();
    for n in 0..6u64 {
        let (file, tell) = (file.clone(), tell.clone());
        thread::spawn(move || {
            let mut bytes = [0; 512];
            let _ = tell.send(file.read_exact_at(&mut bytes, n * 4096));
        });
    }
    until("a read at the port", || fixture.port.held() >= 2);
    fixture.mounted().unmount(UnmountHow::Abort).unwrap();
    for _ in 0..6 {
        assert!(told.recv_timeout(Duration::from_secs(30)).unwrap().is_err());
    }
    assert!(fixture.mounted().has_ended());
    // Answers that come now go nowhere.
    fixture.port.go_on();
}

#[test]
fn a_server_that_goes_away_serves_its_last_users() {
    if !can_mount() || !crate::ring::is_on() {
        return;
    }
    let mut fixture = Fixture::single(MIB);
    let file = fixture.disk();
    file.write_all_at(b"before", 0).unwrap();
    drop(fixture.mounted.take());
    assert!(!is_mounted(fixture.at()));
    let mut back = [0; 6];
    file.read_exact_at(&mut back, 0).unwrap();
    assert_eq!(&back, b"before");
}

#[test]
fn mounts_come_and_go_without_leaving_threads_or_memory() {
    if !can_mount() || !crate::ring::is_on() {
        return;
    }
    for round in 0..20 {
        let fixture = Fixture::single(MIB);
        fixture.disk().write_all_at(&[round; 100], 5).unwrap();
        assert_eq!(fixture.port.bytes(5, 100), [round; 100]);
        fixture.mounted().unmount(UnmountHow::Clean).unwrap();
    }
}

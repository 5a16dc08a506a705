//! Throwaway layers on real files and real hosts: they show what was written and what lies below,
//! leave the base as it was, and nothing behind.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::{File, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use orlop::engine::Disk;
use orlop::engine::effect::FileId;
use orlop::engine::request::{Answer, Request, RequestId, Segment};
use orlop::engine::units::{ByteLen, DiskOffset, Extent};
use orlop::host::memory::{Arena, ArenaSize};
use orlop::host::{Aio, Event, Host};
use orlop::image::{
    CacheMode, Cause, Format, NewImage, NewKind, NoticeKind, OpenOptions, OpenedChain, create,
    open, open_overlay,
};

/// Bytes of most disks: several blocks, and no whole number of anything but sectors.
const SIZE: u64 = (5 << 20) + 3 * 512;

const MODES: [(Aio, CacheMode); 4] = [
    (Aio::Uring, CacheMode::Writeback),
    (Aio::Uring, CacheMode::None),
    (Aio::Threads, CacheMode::Writeback),
    (Aio::Threads, CacheMode::None),
];

/// A disk on a host of its own.
struct Served {
    host: Host,
    arena: Arena,
    disk: Disk,
    files: Vec<FileId>,
    events: Vec<Event>,
}

impl Served {
    /// `None` where there is no such host.
    fn start(chain: OpenedChain, aio: Aio) -> Option<Self> {
        let size = ArenaSize { registered_bytes: 1 << 20, large_bytes: 64 << 20 };
        let arena = Arena::new(size).unwrap();
        let (mut host, _) = match Host::new(aio, &arena) {
            Ok(host) => host,
            Err(error) => {
                println!("SKIPPED {aio:?}: {error}");
                return None;
            }
        };
        let mut files = Vec::new();
        let disk = chain.attach(&mut |file| {
            let file = host.add_file(file)?;
            files.push(file);
            Ok(file)
        });
        Some(Self { disk: disk.unwrap(), host, arena, files, events: Vec::new() })
    }

    fn ask(&mut self, request: Request) -> Answer {
        self.disk.submit(RequestId(1), request);
        loop {
            while let Some(effect) = self.disk.poll_effect() {
                self.host.start(5, effect);
            }
            if let Some(reply) = self.disk.poll_reply() {
                return reply.result.unwrap_or_else(|fault| panic!("{request:?}: {fault}"));
            }
            while self.events.is_empty() {
                self.host.wait(None, &mut self.events).unwrap();
            }
            for event in self.events.drain(..) {
                let Event::Effect { id, outcome, .. } = event else { panic!("{event:?}") };
                self.disk.complete(id, outcome);
            }
        }
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        let lease = self.arena.take(bytes.len() as u32).unwrap();
        let from = lease.span();
        self.arena.bytes_mut(from).copy_from_slice(bytes);
        let extent = Extent::new(DiskOffset::new(at), ByteLen::new(bytes.len() as u64));
        assert_eq!(self.ask(Request::Write { extent, from, fua: false }), Answer::Done);
        self.arena.give(lease);
    }

    fn read(&mut self, at: u64, len: u64) -> Vec<u8> {
        let lease = self.arena.take(len as u32).unwrap();
        let into = lease.span();
        self.arena.bytes_mut(into).fill(0xEE);
        let extent = Extent::new(DiskOffset::new(at), ByteLen::new(len));
        let answer = self.ask(Request::Read { extent, into });
        let mut bytes = self.arena.bytes_mut(into).to_vec();
        self.arena.give(lease);
        if let Answer::Segments(segments) = answer {
            let mut at = 0;
            for segment in segments {
                match segment {
                    Segment::Data(span) => at += span.len as usize,
                    Segment::Hole(len) => {
                        bytes[at..at + len.get() as usize].fill(0);
                        at += len.get() as usize;
                    }
                }
            }
        }
        bytes
    }

    /// Closes as a server does: what was written is flushed, then the files go.
    fn close(mut self) {
        assert_eq!(self.ask(Request::Flush), Answer::Done);
        for file in self.files.drain(..) {
            self.host.remove_file(file);
        }
    }
}

/// Bytes that look random.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (state >> 40) as u8
    };
    (0..len).map(next).collect()
}

fn new(path: &Path, kind: NewKind, parent: Option<&Path>) {
    let size = parent.is_none().then_some(ByteLen::new(SIZE));
    let parent = parent.map(OpenOptions::new);
    create(&NewImage { path: path.to_owned(), size, kind, parent, uuid: None, replace: false })
        .unwrap();
}

/// A base of each kind with the same content: files of the chain (the top first) and the content.
fn bases(folder: &Path) -> Vec<Vec<PathBuf>> {
    let path = |name: &str| folder.join(name);
    new(&path("a.raw"), NewKind::Raw, None);
    new(&path("b.vhd"), NewKind::VhdFixed, None);
    new(&path("c.vhd"), NewKind::dynamic(), None);
    new(&path("d.vhd"), NewKind::dynamic(), None);
    new(&path("e.vhd"), NewKind::dynamic(), Some(&path("d.vhd")));
    new(&path("f.vhd"), NewKind::dynamic(), Some(&path("a.raw")));
    let names: [&[&str]; 5] =
        [&["a.raw"], &["b.vhd"], &["c.vhd"], &["e.vhd", "d.vhd"], &["f.vhd", "a.raw"]];
    for top in ["a.raw", "b.vhd", "c.vhd", "d.vhd", "e.vhd"] {
        let options = OpenOptions { force_rw_parent: true, ..OpenOptions::new(path(top)) };
        let mut disk = Served::start(open(&options).unwrap(), Aio::Threads).unwrap();
        // Not the whole disk: a base has holes too.
        disk.write(0, &content()[..3 << 20]);
        disk.write(SIZE - 700, &content()[SIZE as usize - 700..]);
        disk.close();
    }
    names.iter().map(|names| names.iter().map(|name| path(name)).collect()).collect()
}

fn content() -> Vec<u8> {
    let mut bytes = noise(SIZE as usize, 7);
    bytes[3 << 20..SIZE as usize - 700].fill(0);
    bytes
}

/// What must not change about a file.
fn seal(path: &Path) -> (u32, u64, i64, i64, Vec<u8>) {
    let stat = path.metadata().unwrap();
    (stat.mode(), stat.len(), stat.mtime(), stat.mtime_nsec(), std::fs::read(path).unwrap())
}

fn is_empty(place: &Path) -> bool {
    std::fs::read_dir(place).unwrap().next().is_none()
}

/// Our open files that have no name any more and lie in that directory.
fn deleted(place: &Path) -> Vec<PathBuf> {
    let place = place.canonicalize().unwrap();
    let open = std::fs::read_dir("/proc/self/fd").unwrap().map(|fd| fd.unwrap().path());
    let gone = |fd: &PathBuf| {
        let link = std::fs::read_link(fd).unwrap_or_default();
        link.starts_with(&place) && link.to_string_lossy().ends_with(" (deleted)")
    };
    open.filter(gone).collect()
}

/// Writes here and there, and compares with a plain array.
fn work(disk: &mut Served, expected: &mut [u8], seed: u64) {
    let dice = noise(400, seed);
    for (round, dice) in dice.as_chunks::<4>().0.iter().enumerate() {
        let len = 1 + usize::from(dice[0]) * [1, 37, 512][round % 3];
        let at = (usize::from(dice[1]) << 16 | usize::from(dice[2]) << 8 | usize::from(dice[3]))
            % (SIZE as usize - len);
        let extent = Extent::new(DiskOffset::new(at as u64), ByteLen::new(len as u64));
        if round % 5 == 4 {
            expected[at..at + len].fill(0);
            let zero = Request::Zero { extent, may_unmap: round % 2 == 0, fua: false };
            assert_eq!(disk.ask(zero), Answer::Done);
        } else {
            let bytes = noise(len, round as u64);
            expected[at..at + len].copy_from_slice(&bytes);
            disk.write(at as u64, &bytes);
        }
        if round % 31 == 30 {
            assert_eq!(disk.ask(Request::Flush), Answer::Done);
        }
    }
}

#[test]
fn an_overlay_shows_what_was_written_over_any_base_and_the_base_stays_as_it_was() {
    let folder = TempDir::new().unwrap();
    let place = TempDir::new().unwrap();
    for chain in bases(folder.path()) {
        for path in &chain {
            std::fs::set_permissions(path, Permissions::from_mode(0o444)).unwrap();
        }
        let before: Vec<_> = chain.iter().map(|path| seal(path)).collect();
        for (seed, (aio, cache)) in MODES.into_iter().enumerate() {
            println!("{chain:?} {aio:?} {cache:?}");
            let base = OpenOptions { cache, ..OpenOptions::new(&chain[0]) };
            let opened = open_overlay(&base, place.path()).unwrap();
            assert!(!opened.read_only);
            assert_eq!((opened.size.get(), opened.layers.len()), (SIZE, chain.len() + 1));
            let Some(mut disk) = Served::start(opened, aio) else { continue };
            let mut expected = content();
            assert!(disk.read(0, SIZE) == expected, "the base shows through");
            work(&mut disk, &mut expected, seed as u64);
            let found = disk.read(0, SIZE);
            assert_eq!(found.iter().zip(&expected).position(|(a, b)| a != b), None);
            assert!(is_empty(place.path()));
            disk.close();
            let after: Vec<_> = chain.iter().map(|path| seal(path)).collect();
            assert!(before == after, "the base has changed");
        }
    }
    assert!(is_empty(place.path()));
}

#[test]
fn an_overlay_has_no_name_takes_its_space_in_its_place_and_goes_with_its_disk() {
    let folder = TempDir::new().unwrap();
    let place = TempDir::new().unwrap();
    let base = folder.path().join("base.raw");
    new(&base, NewKind::Raw, None);
    let chain = open_overlay(&OpenOptions::new(&base), place.path()).unwrap();
    let [file] = deleted(place.path()).try_into().unwrap();
    let stat = std::fs::metadata(&file).unwrap();
    assert_eq!((stat.nlink(), stat.mode() & 0o7777), (0, 0o600));
    assert_eq!(stat.dev(), place.path().metadata().unwrap().dev());
    let flags = rustix::fs::fcntl_getfl(&chain.layers[1].fd).unwrap();
    let writable = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::RDWR;
    assert!(!flags.intersects(writable), "the base is open for writing: {flags:?}");
    let mut disk = Served::start(chain, Aio::Threads).unwrap();
    let bytes = noise(2 << 20, 1);
    disk.write(1 << 20, &bytes);
    assert_eq!(disk.ask(Request::Flush), Answer::Done);
    let grown = std::fs::metadata(&file).unwrap().blocks() * 512;
    assert!((2 << 20..3 << 20).contains(&grown), "{grown} bytes for 2 MiB");
    assert!(is_empty(place.path()));
    drop(disk);
    assert_eq!(deleted(place.path()), Vec::<PathBuf>::new());
    assert!(std::fs::read(&base).unwrap().iter().all(|byte| *byte == 0));
}

#[test]
fn overlays_share_a_base_with_readers_and_with_nobody_who_writes() {
    let folder = TempDir::new().unwrap();
    let base = folder.path().join("base.vhd");
    new(&base, NewKind::dynamic(), None);
    let options = OpenOptions::new(&base);
    let writer = open(&options).unwrap();
    let error = open_overlay(&options, folder.path()).unwrap_err();
    assert_eq!((error.code(), &error.path), ("locked", &base.canonicalize().unwrap()));
    drop(writer);
    let first = open_overlay(&options, folder.path()).unwrap();
    let second = open_overlay(&options, folder.path()).unwrap();
    assert_eq!(open(&options).unwrap_err().code(), "locked");
    let mut first = Served::start(first, Aio::Threads).unwrap();
    let mut second = Served::start(second, Aio::Threads).unwrap();
    first.write(0, &[1; 512]);
    second.write(0, &[2; 512]);
    assert_eq!((first.read(0, 512), second.read(0, 512)), (vec![1; 512], vec![2; 512]));
    drop((first, second));
    open(&options).unwrap();
}

#[test]
fn an_overlay_counts_as_an_image_of_its_chain() {
    let folder = TempDir::new().unwrap();
    let (parent, base) = (folder.path().join("a.vhd"), folder.path().join("b.vhd"));
    new(&parent, NewKind::dynamic(), None);
    new(&base, NewKind::dynamic(), Some(&parent));
    for (max_depth, code) in [(1, "chain-too-deep"), (2, "chain-too-deep"), (3, "")] {
        let options = OpenOptions { max_depth, ..OpenOptions::new(&base) };
        let opened = open_overlay(&options, folder.path());
        assert_eq!(opened.map_or_else(|error| error.code(), |_| ""), code, "{max_depth}");
    }
}

#[test]
fn an_overlay_fits_over_2040_gib_and_says_so_of_a_byte_more() {
    let folder = TempDir::new().unwrap();
    let base = folder.path().join("disk.bin");
    let file = File::create_new(&base).unwrap();
    let reader = File::open(&base).unwrap();
    let options = OpenOptions { format: Some(Format::Raw), ..OpenOptions::new(&base) };
    for (size, fits) in [(512, true), (513, false), (2040 << 30, true), ((2040 << 30) + 512, false)]
    {
        file.set_len(size).unwrap();
        match open_overlay(&options, folder.path()) {
            Ok(chain) => {
                assert!(fits, "{size}");
                let mut disk = Served::start(chain, Aio::Threads).unwrap();
                disk.write(size - 512, &[9; 512]);
                assert_eq!(disk.read(size - 512, 512), [9; 512]);
                disk.close();
                let mut last = [1; 512];
                reader.read_exact_at(&mut last, size - 512).unwrap();
                assert_eq!(last, [0; 512]);
            }
            Err(error) => {
                assert!(!fits, "{error}");
                assert_eq!(error.code(), "overlay-base");
                assert!(error.to_string().contains("at most 2040 GiB"), "{error}");
            }
        }
    }
}

#[test]
fn a_place_that_is_none_is_an_error_that_names_it() {
    let folder = TempDir::new().unwrap();
    let base = folder.path().join("base.raw");
    new(&base, NewKind::Raw, None);
    for place in [base.clone(), folder.path().join("none"), PathBuf::from("/proc")] {
        let error = open_overlay(&OpenOptions::new(&base), &place).unwrap_err();
        assert_eq!((&error.path, error.code()), (&place, "overlay-place"), "{error}");
        assert!(matches!(error.cause, Cause::OverlayPlace(_)));
    }
    open(&OpenOptions::new(&base)).unwrap();
}

#[test]
fn a_place_without_direct_io_is_used_all_the_same() {
    let memory = Path::new("/dev/shm");
    let (folder, Ok(place)) = (TempDir::new().unwrap(), TempDir::new_in(memory)) else {
        println!("SKIPPED: no /dev/shm");
        return;
    };
    let base = folder.path().join("base.raw");
    new(&base, NewKind::Raw, None);
    let options = OpenOptions { cache: CacheMode::None, ..OpenOptions::new(&base) };
    let chain = open_overlay(&options, place.path()).unwrap();
    let direct = |layer: usize| {
        let fd = &chain.layers[layer].fd;
        rustix::fs::fcntl_getfl(fd).unwrap().contains(rustix::fs::OFlags::DIRECT)
    };
    let told = |kind| chain.notices.iter().any(|notice| notice.kind == kind);
    assert!(direct(1) && direct(0) != told(NoticeKind::OverlayCached));
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let mut mounts = mounts.lines().map(|line| line.split(' ').skip(1));
    let is_memory = mounts.any(|mut mount| mount.by_ref().take(2).eq(["/dev/shm", "tmpfs"]));
    assert_eq!(told(NoticeKind::OverlayInMemory), is_memory);
    let mut disk = Served::start(chain, Aio::Threads).unwrap();
    disk.write(700, &[5; 9000]);
    assert_eq!(disk.read(700, 9000), [5; 9000]);
    disk.close();
}

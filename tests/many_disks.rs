//! Shards with very many disks: five hundred with deep chains are served, and a shard that has no
//! room for another says what would help, and goes on.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where its set-up fails")]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "shard/rig.rs"]
mod rig;

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use orlop::host::memory::{Arena, ArenaSize};
use orlop::host::{Aio, Host, raise_open_files};
use orlop::image::{self, NewImage, NewKind, OpenOptions};
use orlop::shard::DiskTag;
use rig::{MIB, Rig, Setup};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;

const DISKS: usize = 500;
const DEPTH: usize = 8;

/// The limit of descriptors is the process's: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The hosts this machine has.
fn hosts() -> Vec<Aio> {
    let arena = Arena::new(ArenaSize::default()).unwrap();
    match Host::new(Aio::Uring, &arena) {
        Ok(_) => vec![Aio::Threads, Aio::Uring],
        Err(error) => {
            println!("SKIPPED io_uring: {error}");
            vec![Aio::Threads]
        }
    }
}

fn rig(aio: Aio) -> Rig {
    Rig::on(aio, ArenaSize::default(), Duration::from_secs(10))
}

/// Leaves in folders of their own, all over the same chain: with it, each is `DEPTH` images deep.
struct Family {
    folder: TempDir,
}

impl Family {
    /// The raw image at the end of the chain holds these bytes.
    fn over(bytes: &[u8], leaves: usize) -> Self {
        let folder = TempDir::new().unwrap();
        let family = Self { folder };
        fs::create_dir(family.path("chain")).unwrap();
        let mut parent = family.path("chain/0.raw");
        fs::write(&parent, bytes).unwrap();
        for layer in 1..DEPTH - 1 {
            let path = family.path(&format!("chain/{layer}.vhd"));
            child(&path, &parent, &[]);
            parent = path;
        }
        for leaf in 0..leaves {
            fs::create_dir(family.path(&format!("leaf-{leaf}"))).unwrap();
            let path = family.leaf(leaf);
            if leaf == 0 {
                child(&path, &parent, &[family.path("chain")]);
            } else {
                // It names its parent by the way from its own folder.
                fs::copy(family.leaf(0), path).unwrap();
            }
        }
        family
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn leaf(&self, leaf: usize) -> PathBuf {
        self.path(&format!("leaf-{leaf}/disk.vhd"))
    }

    fn attach(&self, rig: &Rig, leaf: usize) -> io::Result<DiskTag> {
        let mut options = OpenOptions::new(self.leaf(leaf));
        options.allow_parents.push(self.path("chain"));
        let chain = image::open(&options).unwrap();
        assert_eq!(chain.layers.len(), DEPTH);
        rig.wait(rig.mailbox.attach(Box::new(move |add_file| chain.attach(add_file))))
    }
}

fn child(path: &Path, parent: &Path, allow_parents: &[PathBuf]) {
    let mut parent = OpenOptions::new(parent);
    parent.allow_parents.extend_from_slice(allow_parents);
    let kind = NewKind::dynamic();
    let (path, parent) = (path.to_owned(), Some(parent));
    image::create(&NewImage { path, size: None, kind, parent, uuid: None, replace: false })
        .unwrap();
}

#[test]
fn five_hundred_disks_eight_images_deep_are_served_by_one_shard() {
    let _turn = alone();
    raise_open_files();
    let most = getrlimit(Resource::Nofile).current;
    if most.is_some_and(|most| most < 6000) {
        println!("SKIPPED: the limit of open files is {most:?}, and cannot be raised");
        return;
    }
    let bytes: Vec<u8> = (0..MIB).map(|at| (at / 512 % 251) as u8).collect();
    let family = Family::over(&bytes, DISKS);
    for aio in hosts() {
        let rig = rig(aio);
        let tags: Vec<_> = (0..DISKS).map(|leaf| family.attach(&rig, leaf).unwrap()).collect();
        let mut peers: Vec<_> =
            tags.iter().step_by(20).map(|tag| rig.connect(*tag, Setup::of(MIB))).collect();
        // Each writes of its own; what is below is everybody's.
        for (at, peer) in peers.iter_mut().enumerate() {
            assert_eq!(peer.write(0, 4096, &[at as u8; 4096]), Ok(()));
        }
        for (at, peer) in peers.iter_mut().enumerate() {
            let seen = peer.read(0, 16384).unwrap();
            assert_eq!(seen[4096..8192], [at as u8; 4096], "disk {}", at * 20);
            assert_eq!((&seen[..4096], &seen[8192..]), (&bytes[..4096], &bytes[8192..16384]));
        }
        drop(peers);
        // One goes and comes back while the others are there.
        assert_eq!(rig.wait(rig.mailbox.detach(tags[250])), Ok(()));
        let again = family.attach(&rig, 250).unwrap();
        let mut peer = rig.connect(again, Setup::of(MIB));
        assert_eq!(peer.read(512, 512).unwrap(), bytes[512..1024]);
        peer.finish();
        rig.close();
    }
}

#[test]
fn a_shard_without_descriptors_for_another_disk_says_what_would_help_and_serves_on() {
    let _turn = alone();
    let before = getrlimit(Resource::Nofile);
    let bytes = vec![7; MIB as usize];
    let family = Family::over(&bytes, 60);
    for aio in hosts() {
        // What a shard may have is what the process might have when it started. It is given back
        // at once: nothing else is to fail here.
        let few = Rlimit { current: Some(300), maximum: before.maximum };
        setrlimit(Resource::Nofile, few).unwrap();
        let rig = rig(aio);
        setrlimit(Resource::Nofile, before).unwrap();
        let mut tags = Vec::new();
        let refused = loop {
            match family.attach(&rig, tags.len()) {
                Ok(tag) => tags.push(tag),
                Err(error) => break error,
            }
        };
        assert_eq!(refused.kind(), ErrorKind::QuotaExceeded, "{refused}");
        let told = refused.to_string();
        for word in ["300", "LimitNOFILE=", "ulimit -n"] {
            assert!(told.contains(word), "{told} does not tell {word}");
        }
        // The descriptors of tests that run beside this are in the way of some.
        assert!((20..=300 / DEPTH).contains(&tags.len()), "{} disks with 300 files", tags.len());
        let mut peer = rig.connect(tags[0], Setup::of(MIB));
        assert_eq!(peer.read(0, 4096).unwrap(), bytes[..4096]);
        // What was begun in vain is undone: there is room for as many as before, less one for the
        // descriptors of the connection and those that opening a chain has for a moment.
        let most = tags.len();
        for _ in 0..10 {
            for _ in 0..2 {
                assert_eq!(rig.wait(rig.mailbox.detach(tags.pop().unwrap())), Ok(()));
            }
            while let Ok(tag) = family.attach(&rig, tags.len()) {
                tags.push(tag);
            }
            assert!((most - 1..=most).contains(&tags.len()), "{} of {most} disks", tags.len());
        }
        assert_eq!(peer.read(4096, 4096).unwrap(), bytes[4096..8192]);
        peer.finish();
        rig.close();
    }
}

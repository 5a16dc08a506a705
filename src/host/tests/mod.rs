//! Both hosts against real files and sockets, and tasks against a file that is unkind on purpose.

mod files;
mod lending;
mod mapped;
mod sockets;
mod tasks;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

use super::memory::{Arena, ArenaSize};
use super::task::{TaskName, Work};
use super::{Aio, Descriptors, Event, Host, OpenMode};
use crate::engine::effect::{EffectId, FileId, Outcome};

/// Numbers that look random and are the same for the same seed.
pub(super) struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }

    fn one_in(&mut self, chance: u64) -> bool {
        self.below(chance) == 0
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.below(256) as u8).collect()
    }
}

fn arena() -> Arena {
    Arena::new(ArenaSize { registered_bytes: 1 << 20, large_bytes: 64 << 20 }).unwrap()
}

/// The hosts this machine has.
fn hosts(arena: &Arena) -> Vec<Host> {
    let mut hosts = vec![Host::new(Aio::Threads, arena).unwrap().0];
    match Host::new(Aio::Uring, arena) {
        Ok((host, choice)) => {
            println!("{choice}");
            hosts.push(host);
        }
        Err(error) => println!("SKIPPED io_uring: {error}"),
    }
    hosts
}

/// Starts work without going through an effect: only the engine can name a leaf file.
fn start(host: &mut Host, id: u32, file: FileId, work: Work) {
    let name = TaskName { tag: 7, id: EffectId(id), file };
    match host {
        Host::Uring(host) => host.start(name, work),
        Host::Threads(host) => host.start(name, work),
        Host::Script(_) => panic!("its files are not real"),
    }
}

/// Waits for one effect's outcome, when it is the only thing in flight.
fn outcome(host: &mut Host) -> Outcome {
    let mut events = Vec::new();
    while events.is_empty() {
        host.wait(None, &mut events).unwrap();
    }
    match (events.pop(), events.len()) {
        (Some(Event::Effect { tag: 7, outcome, .. }), 0) => outcome,
        (event, more) => panic!("{event:?} and {more} more"),
    }
}

/// How a test opens its file.
#[derive(Clone, Copy, Debug)]
enum Way {
    Cached,
    /// O_DIRECT with the alignment the system tells.
    Direct,
    /// Direct with an alignment of our choice, at least what the system tells.
    Aligned(u32),
}

const WAYS: [Way; 4] = [Way::Cached, Way::Direct, Way::Aligned(512), Way::Aligned(4096)];

fn open(path: &Path, way: Way) -> Descriptors {
    let mut options = File::options();
    options.read(true).write(true).create(true);
    if !matches!(way, Way::Cached) {
        options.custom_flags(OFlags::DIRECT.bits() as i32);
    }
    let fd = match options.open(path) {
        Ok(file) => OwnedFd::from(file),
        Err(error) => {
            println!("SKIPPED O_DIRECT: {error}");
            OwnedFd::from(options.custom_flags(0).open(path).unwrap())
        }
    };
    let mut mode = OpenMode::probe(std::os::fd::AsFd::as_fd(&fd)).unwrap();
    if let Way::Aligned(align) = way {
        mode.direct = true;
        mode.mem_align = mode.mem_align.max(align);
        mode.offset_align = mode.offset_align.max(align);
    }
    let cached = mode
        .direct
        .then(|| OwnedFd::from(File::options().read(true).write(true).open(path).unwrap()));
    Descriptors { main: fd, cached, mode }
}

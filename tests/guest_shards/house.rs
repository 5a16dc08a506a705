//! Two shards, and a disk that one of them owns and the other has a guest of.

use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop::engine::units::ByteLen;
use orlop::host::Aio;
use orlop::host::memory::ArenaSize;
use orlop::image::{self, NewImage, NewKind, OpenOptions, OpenedChain};
use orlop::shard::DiskTag;
use tempfile::TempDir;

use crate::rig::{MIB, Peer, Rig, Setup, flagged};

pub(crate) const SIZE: u64 = 16 * MIB;
/// Longer than anything here takes.
pub(crate) const DRAIN_LIMIT: Duration = Duration::from_secs(60);

/// What the images of a disk are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Raw,
    Fixed,
    Dynamic,
    Child,
}

pub(crate) const KINDS: [Kind; 4] = [Kind::Raw, Kind::Fixed, Kind::Dynamic, Kind::Child];

fn create(path: &Path, kind: NewKind, parent: Option<&Path>) {
    let new = NewImage {
        path: path.to_owned(),
        size: parent.is_none().then_some(ByteLen::new(SIZE)),
        kind,
        parent: parent.map(OpenOptions::new),
        uuid: None,
        replace: false,
    };
    image::create(&new).unwrap();
}

/// A new image, full of zeroes; a child's parent has a pattern in its second half.
pub(crate) fn image(folder: &TempDir, kind: Kind) -> PathBuf {
    let place = |name: &str| folder.path().join(name);
    let (raw, vhd) = (place("image.raw"), place("image.vhd"));
    match kind {
        Kind::Raw => {
            create(&raw, NewKind::Raw, None);
            return raw;
        }
        Kind::Fixed => create(&vhd, NewKind::VhdFixed, None),
        Kind::Dynamic => create(&vhd, NewKind::dynamic(), None),
        Kind::Child => {
            let parent = place("parent.vhd");
            create(&parent, NewKind::dynamic(), None);
            let house = House::over(Aio::Threads, &parent);
            let mut peer = house.at_owner();
            for at in (SIZE / 2..SIZE).step_by(MIB as usize) {
                peer.write(0, at, &vec![0; MIB as usize]).unwrap();
            }
            drop(peer);
            house.close();
            create(&vhd, NewKind::dynamic(), Some(&parent));
        }
    }
    vhd
}

pub(crate) struct House {
    pub(crate) owner: Rig,
    pub(crate) guest: Rig,
    pub(crate) disk: DiskTag,
    pub(crate) twin: DiskTag,
}

impl House {
    pub(crate) fn over(aio: Aio, path: &Path) -> Self {
        Self::with_limit(aio, path, DRAIN_LIMIT)
    }

    /// With so much time for clients when their disk goes.
    pub(crate) fn with_limit(aio: Aio, path: &Path, limit: Duration) -> Self {
        let chain = image::open(&OpenOptions::new(path)).unwrap();
        Self::of(aio, ArenaSize::default(), chain, limit)
    }

    pub(crate) fn of(aio: Aio, memory: ArenaSize, chain: OpenedChain, limit: Duration) -> Self {
        let (owner, guest) = (Rig::on(aio, memory, limit), Rig::on(aio, memory, limit));
        let images = chain.guest().unwrap().expect("somebody writes it");
        let attached = owner.mailbox.attach(Box::new(move |add_file| chain.attach(add_file)));
        let disk = owner.wait(attached).unwrap();
        let make =
            move |published, add_file: &mut dyn FnMut(_) -> _| images.attach(published, add_file);
        let shared = owner.mailbox.share(disk, &guest.mailbox, Box::new(make));
        let twin = owner.wait(shared).unwrap();
        Self { owner, guest, disk, twin }
    }

    pub(crate) fn at_owner(&self) -> Peer {
        self.owner.connect(self.disk, Setup::of(SIZE))
    }

    pub(crate) fn at_guest(&self) -> Peer {
        self.guest.connect(self.twin, Setup::of(SIZE))
    }

    /// Ends both, which must say that all went well.
    pub(crate) fn close(self) {
        self.guest.close();
        self.owner.close();
    }
}

pub(crate) const TRIM: u16 = 4;
pub(crate) const WRITE_ZEROES: u16 = 6;

/// A request without a payload whose reply has none either.
pub(crate) fn ask(peer: &mut Peer, command: u16, at: u64, len: u32) -> Result<(), u32> {
    peer.send(&flagged(0, command, 21, at, len));
    peer.reply(21, 0).map(drop)
}

//! An SR with one VDI of every sort that a verb can meet, all with content.

use std::sync::Arc;

use orlop::engine::units::{ByteLen, DiskOffset};
use orlop::sr::{
    DataFormat, DirOp, Idle, LockWish, NewVdi, OfflineDisk, Repository, SR_RECORD, SrRecord,
    SrUuid, Store, VdiRecord, VdiUuid,
};

use super::observe::attach;
use super::sim::{Fault, Sim, World};

/// Who is on stage.
pub(crate) struct Cast {
    pub(crate) sr: SrUuid,
    pub(crate) world: World,
    /// A VHD of its own.
    pub(crate) plain: VdiUuid,
    /// A raw disk.
    pub(crate) raw: VdiUuid,
    /// Locked by "other".
    pub(crate) locked: VdiUuid,
    /// Has the child `running`.
    pub(crate) snapshot: VdiUuid,
    pub(crate) running: VdiUuid,
    /// Raw, with a child.
    pub(crate) raw_snapshot: VdiUuid,
    /// Over a hidden base, with a sibling.
    pub(crate) clone: VdiUuid,
}

pub(crate) fn vdi(number: u8) -> VdiUuid {
    VdiUuid::from_bytes([number; 16])
}

pub(crate) fn size_of(sectors: u64) -> ByteLen {
    ByteLen::new(sectors * 512)
}

fn record(label: &str) -> VdiRecord {
    VdiRecord { label: label.to_owned(), ..VdiRecord::default() }
}

/// Writes a few sectors that nobody else writes.
pub(crate) fn scribble(
    repository: &Repository,
    store: &Arc<Sim>,
    uuid: VdiUuid,
    mark: u8,
    sectors: &[u64],
) {
    let catalogue = repository.scan().unwrap();
    let chain = catalogue.chain(uuid).unwrap();
    let chain: Vec<_> = chain.iter().map(|link| (link.data_name(), link.format)).collect();
    let store = Arc::clone(store) as Arc<dyn Store>;
    let mut disk = OfflineDisk::open(store, &chain, false).unwrap();
    for sector in sectors {
        disk.write(DiskOffset::new(sector * 512), &[mark; 512]).unwrap();
    }
    disk.flush().unwrap();
}

impl Cast {
    pub(crate) fn new() -> Self {
        let sr = SrUuid::from_bytes([0xAA; 16]);
        let store = Sim::new(World::default(), Fault::None);
        let about = SrRecord {
            uuid: sr,
            driver: "file".to_owned(),
            label: "stage".to_owned(),
            description: String::new(),
            made_directory: false,
            created: None,
        };
        store.apply(DirOp::Create { name: SR_RECORD }).unwrap();
        let at = orlop::engine::units::FileOffset::new(0);
        let bytes = about.to_bytes();
        store.apply(DirOp::Write { name: SR_RECORD, at, bytes: &bytes }).unwrap();
        store.apply(DirOp::SyncFile { name: SR_RECORD }).unwrap();
        store.apply(DirOp::SyncDirectory).unwrap();
        let repository = attach(sr, Arc::clone(&store)).unwrap();
        fill(&repository, &store);
        store.apply(DirOp::SyncDirectory).unwrap();
        Self {
            sr,
            world: store.world(),
            plain: vdi(1),
            raw: vdi(2),
            locked: vdi(3),
            snapshot: vdi(11),
            running: vdi(10),
            raw_snapshot: vdi(21),
            clone: vdi(31),
        }
    }
}

fn fill(sr: &Repository, store: &Arc<Sim>) {
    let write = |uuid, mark, sectors: &[u64]| scribble(sr, store, uuid, mark, sectors);
    let make = |number, sectors, format, label: &str| {
        let new =
            NewVdi { vdi: vdi(number), size: size_of(sectors), format, record: record(label) };
        sr.create(&new).unwrap();
    };
    let snapshot =
        |from, to| sr.snapshot(vdi(from), vdi(to), |_| Ok(record("snap")), &mut Idle).unwrap();
    let clone =
        |from, to| sr.clone_vdi(vdi(from), vdi(to), |_| Ok(record("clone")), &mut Idle).unwrap();
    // No whole number of blocks, so that the last one has an end to it.
    make(1, 7001, DataFormat::Vhd, "plain");
    write(vdi(1), 1, &[0, 5, 4100, 7000]);
    make(2, 33, DataFormat::Raw, "raw");
    write(vdi(2), 2, &[0, 32]);
    make(3, 64, DataFormat::Vhd, "locked");
    let wish = LockWish { user: "other".to_owned(), force: false, lease_seconds: None };
    sr.lock(vdi(3), &wish).unwrap();
    make(10, 9000, DataFormat::Vhd, "running");
    write(vdi(10), 10, &[1, 2, 8999]);
    snapshot(10, 11);
    write(vdi(10), 12, &[2, 3]);
    make(20, 40, DataFormat::Raw, "running over raw");
    write(vdi(20), 20, &[1, 39]);
    snapshot(20, 21);
    write(vdi(20), 22, &[39]);
    make(30, 5000, DataFormat::Vhd, "original");
    write(vdi(30), 30, &[0, 1]);
    clone(30, 31);
    write(vdi(31), 31, &[1, 4999]);
    // For gc: a hidden base with one child, a snapshot that has a child itself...
    make(40, 5001, DataFormat::Vhd, "grown");
    write(vdi(40), 40, &[0, 1, 2]);
    clone(40, 41);
    sr.delete(vdi(41)).unwrap();
    write(vdi(40), 42, &[1, 5000]);
    snapshot(40, 43);
    write(vdi(40), 44, &[2]);
    // ... and a raw one under a leaf that has outgrown it.
    make(50, 50, DataFormat::Raw, "was raw");
    write(vdi(50), 50, &[0, 49]);
    clone(50, 51);
    sr.delete(vdi(51)).unwrap();
    sr.resize(vdi(50), size_of(60)).unwrap();
    write(vdi(50), 52, &[49, 59]);
}

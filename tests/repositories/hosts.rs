//! SRs that several processes know: at the same time, or one after the other.

use std::path::Path;
use std::sync::Arc;

use orlop::control::{AttachMode, Code, Command};
use orlop::sr::{
    DataFormat, Directory, Idle, Kind, NewVdi, Repository, SrUuid, Store, VdiRecord, VdiUuid,
};

use super::lot::{LOSES_ITS_LAST_BYTES, Lot, size_of, vdi};

fn repository(dir: &Path, sr: SrUuid, host: &str, shared: bool) -> Repository {
    let store: Arc<dyn Store> = Arc::new(Directory::open(dir).unwrap());
    Repository::open(sr, host, store, shared).unwrap()
}

fn snapshot(of: &Repository, source: VdiUuid, dest: VdiUuid) {
    of.snapshot(source, dest, |_| Ok(VdiRecord::default()), &mut Idle).unwrap();
}

#[test]
fn data_that_another_host_gave_a_child_stay() {
    let (dir, sr) = (tempfile::tempdir().unwrap(), SrUuid::random());
    let [a, b] = ["a", "b"].map(|host| repository(dir.path(), sr, host, true));
    let (size, format, record) = (size_of(64), DataFormat::Vhd, VdiRecord::default());
    a.create(&NewVdi { vdi: vdi(1), size, format, record }).unwrap();
    snapshot(&a, vdi(1), vdi(2));
    snapshot(&a, vdi(1), vdi(3));
    a.delete(vdi(2)).unwrap();
    // Known to one host as a child of 3; the other merges, and rewrites its parent in place.
    assert_eq!(a.scan().unwrap().visible(vdi(1)).unwrap().parent, Some(vdi(3)));
    b.gc(&|_| false).unwrap();
    a.delete(vdi(3)).unwrap();
    let catalogue = a.scan().unwrap();
    assert_eq!(catalogue.findings, []);
    assert!(catalogue.any(vdi(3)).unwrap().hidden);
    assert_eq!(catalogue.visible(vdi(1)).unwrap().parent, Some(vdi(3)));
}

#[test]
fn a_directory_is_one_sr_of_one_process_unless_it_is_shared() {
    let (dir, sr) = (tempfile::tempdir().unwrap(), SrUuid::random());
    let again = |shared| {
        let store: Arc<dyn Store> = Arc::new(Directory::open(dir.path()).unwrap());
        Repository::open(SrUuid::random(), "b", store, shared).map(drop).map_err(|f| f.kind)
    };
    let first = repository(dir.path(), sr, "a", false);
    assert_eq!((again(false), again(true)), (Err(Kind::Busy), Err(Kind::Busy)));
    drop(first);
    let _first = repository(dir.path(), sr, "a", true);
    assert_eq!((again(false), again(true)), (Err(Kind::Busy), Ok(())));
}

#[test]
fn what_was_detached_is_not_attached_again_although_it_could_not_be_attached() {
    let lot = Lot::new();
    lot.attach_new();
    lot.create(1, 8);
    lot.create(2, 8);
    lot.call(lot.attach(1, AttachMode::ReadWrite));
    lot.call(lot.attach(2, AttachMode::ReadWrite));
    // One VDI of it, when its data are away.
    let (data, aside) = (lot.data(1), lot.data(1).with_extension("aside"));
    std::fs::rename(&data, &aside).unwrap();
    let lot = lot.restarted();
    assert_eq!(lot.control.restore(|| true).unwrap().len(), 1);
    lot.fails(lot.detach(1), Code::Enodev);
    std::fs::rename(&aside, &data).unwrap();
    let lot = lot.restarted();
    assert_eq!(lot.control.restore(|| true).unwrap(), []);
    assert_eq!((lot.attached_read_only(1), lot.attached_read_only(2)), (None, Some(false)));
    // All of it, when its place is away.
    let (place, elsewhere) = (lot.location(), lot.location().with_extension("elsewhere"));
    std::fs::rename(&place, &elsewhere).unwrap();
    let lot = lot.restarted();
    assert_eq!(lot.control.restore(|| true).unwrap().len(), 1);
    lot.done(Command::SrDetach { sr: lot.sr });
    std::fs::rename(&elsewhere, &place).unwrap();
    let lot = lot.restarted();
    assert_eq!(lot.control.restore(|| true).unwrap(), []);
    lot.done(lot.sr_attach());
    let lot = lot.restarted();
    assert_eq!(lot.control.restore(|| true).unwrap(), []);
    assert_eq!(lot.attached_read_only(2), None);
}

#[test]
fn what_ends_badly_has_ended_all_the_same() {
    let (lot, number) = (Lot::new(), LOSES_ITS_LAST_BYTES);
    lot.attach_new();
    lot.create(number, 8);
    lot.call(lot.attach(number, AttachMode::ReadWrite));
    lot.fails(lot.detach(number), Code::Eio);
    lot.done(lot.detach(number));
    lot.call(lot.attach(number, AttachMode::ReadWrite));
    assert_eq!(lot.attached_read_only(number), Some(false), "it is served anew, not only said to");
    lot.fails(lot.detach(number), Code::Eio);
    let lot = lot.restarted();
    assert_eq!(lot.control.restore(|| true).unwrap(), []);
    assert_eq!(lot.attached_read_only(number), None);
}

//! SRs that several processes know: at the same time, or one after the other.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use orlop::control::{AttachMode, Code, Command};
use orlop::image::OpenOptions;
use orlop::sr::{
    DataFormat, DeviceConfig, DirOp, Directory, Idle, Intent, Kind, NewVdi, Repository, SrRecord,
    SrUuid, Store, Surroundings, VdiRecord, VdiUuid, driver, intent_name, temporary_name,
};

use super::lot::{self, LOSES_ITS_LAST_BYTES, Lot, size_of, vdi, write_plan};

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

#[test]
fn what_another_host_has_not_finished_is_busy_until_it_has() {
    let lot = Lot::new();
    lot.done(lot.sr_create());
    lot.done(lot.sr_attach_shared());
    for number in 1..=3 {
        lot.create(number, 8);
    }
    lot.call(lot.snapshot(1, 5));
    // As a host leaves it that dies in the middle of a snapshot of 1.
    let (source, base, format) = (vdi(1), vdi(9), DataFormat::Vhd);
    let intent = Intent::Fork { source, base, copy: None, format, hide: false };
    let name = lot.location().join(intent_name(source));
    std::fs::write(&name, intent.to_bytes("other")).unwrap();
    for busy in [
        lot.attach(1, AttachMode::ReadWrite),
        lot.attach(1, AttachMode::ReadOnly),
        lot.resize(1, 16),
        lot.clone(1, 2),
        lot.snapshot(1, 2),
        lot.delete(1),
        lot.vdi_create(9, 8),
    ] {
        lot.fails(busy, Code::Ebusy);
    }
    // Others are not held up, nor who holds its lock.
    lot.call(lot.attach(2, AttachMode::ReadWrite));
    lot.done(lot.lock(1, "a", false));
    lot.done(lot.unlock(1, "a"));
    let other = lot.other_host();
    assert!(!name.exists(), "it comes back, and settles it");
    drop(other);
    lot.call(lot.attach(1, AttachMode::ReadWrite));
}

#[test]
fn an_intent_that_cannot_be_read_keeps_its_files_and_what_nobody_sees() {
    let lot = Lot::new();
    lot.attach_new();
    lot.create(1, 8);
    lot.create(2, 8);
    lot.call(lot.snapshot(2, 3));
    lot.call(lot.clone(1, 4));
    let named = |name: &str| lot.location().join(name);
    let (intent, draft) = (intent_name(vdi(2)), format!("{}.vhd", vdi(2)));
    let draft = temporary_name(&draft, "host");
    std::fs::write(named(&intent), "garbage").unwrap();
    std::fs::write(named(&draft), "a child in the making").unwrap();
    lot.done(Command::SrDetach { sr: lot.sr });
    lot.done(lot.sr_attach());
    assert!(named(&draft).exists() && named(&intent).exists());
    lot.fails(lot.attach(2, AttachMode::ReadWrite), Code::Ebusy);
    lot.fails(lot.delete(2), Code::Ebusy);
    lot.done(lot.delete(3));
    lot.done(lot.delete(4));
    lot.call(Command::SrGc { sr: lot.sr });
    assert_eq!(lot.scan().hidden.len(), 2, "it may be what the damaged intent names");
    std::fs::remove_file(named(&intent)).unwrap();
    lot.call(Command::SrGc { sr: lot.sr });
    assert_eq!(lot.scan().hidden.len(), 0);
    lot.done(Command::SrDetach { sr: lot.sr });
    lot.done(lot.sr_attach());
    assert!(!named(&draft).exists());
}

#[test]
fn what_another_program_uses_is_neither_hidden_nor_collected() {
    let lot = Lot::new();
    lot.attach_new();
    lot.create(1, 8);
    lot.create(2, 8);
    let served = orlop::image::open(&OpenOptions::new(lot.data(1))).unwrap();
    write_plan(&lot.location(), vdi(8), &lot::image(8, b"tap\0", false, None));
    std::fs::write(lot.data(8), [7; 2048]).unwrap();
    let before = std::fs::read(lot.data(1)).unwrap();
    lot.fails(lot.delete(1), Code::Ebusy);
    assert_eq!(std::fs::read(lot.data(1)).unwrap(), before);
    std::fs::remove_file(lot.data(8)).unwrap();
    drop(served);
    // Deleted while it had a child, and still read by somebody who knows no SR.
    lot.call(lot.snapshot(1, 3));
    lot.done(lot.delete(3));
    lot.done(lot.delete(1));
    let read = OpenOptions { read_only: true, ..OpenOptions::new(lot.data(3)) };
    let reader = orlop::image::open(&read).unwrap();
    lot.call(Command::SrGc { sr: lot.sr });
    assert!(lot.data(3).exists());
    drop(reader);
    lot.call(Command::SrGc { sr: lot.sr });
    assert!(!lot.data(3).exists());
}

#[test]
fn a_file_system_that_cannot_rename_without_replacing_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Directory::open(dir.path()).unwrap().without_noreplace();
    let at = orlop::engine::units::FileOffset::new(0);
    for name in ["a", "b"] {
        store.apply(DirOp::Create { name }).unwrap();
        store.apply(DirOp::Write { name, at, bytes: name.as_bytes() }).unwrap();
    }
    let taken = |done: std::io::Result<()>| {
        done.is_err_and(|error| error.kind() == std::io::ErrorKind::AlreadyExists)
    };
    assert!(taken(store.apply(DirOp::Rename { from: "a", to: "b", replace: false })));
    assert!(taken(store.apply(DirOp::Take { from: "a", to: "b" })));
    assert_eq!(std::fs::read(dir.path().join("b")).unwrap(), b"b");
    store.apply(DirOp::Rename { from: "a", to: "c", replace: false }).unwrap();
    store.apply(DirOp::Take { from: "b", to: "d" }).unwrap();
    let mut names: Vec<_> = store.list().unwrap().into_iter().map(|entry| entry.name).collect();
    names.sort();
    assert_eq!(names, ["c", "d"]);
    // And everything works there.
    let (dir, sr) = (tempfile::tempdir().unwrap(), SrUuid::random());
    let store = Directory::open(dir.path()).unwrap().without_noreplace();
    let sr = Repository::open(sr, "a", Arc::new(store), false).unwrap();
    let (size, format, record) = (size_of(64), DataFormat::Vhd, VdiRecord::default());
    sr.create(&NewVdi { vdi: vdi(1), size, format, record }).unwrap();
    snapshot(&sr, vdi(1), vdi(2));
    assert_eq!(sr.scan().unwrap().visible(vdi(1)).unwrap().parent, Some(vdi(2)));
}

#[test]
fn a_record_that_is_replaced_while_it_is_read_is_not_taken_for_damaged() {
    let (dir, sr) = (tempfile::tempdir().unwrap(), SrUuid::random());
    let [a, b] = ["a", "b"].map(|host| repository(dir.path(), sr, host, true));
    let (size, format, record) = (size_of(64), DataFormat::Vhd, VdiRecord::default());
    a.create(&NewVdi { vdi: vdi(1), size, format, record }).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for n in 0..200 {
                a.describe(vdi(1), |record| record.label = "x".repeat(n % 7 * 1000)).unwrap();
            }
        });
        while !writer.is_finished() {
            assert_eq!(b.scan().unwrap().findings, []);
        }
    });
}

#[test]
fn two_who_are_first_at_once_leave_one_sound_record() {
    for _ in 0..20 {
        // Two first verbs in an SR that another program made.
        let dir = tempfile::tempdir().unwrap();
        for number in [1, 2] {
            write_plan(dir.path(), vdi(number), &lot::image_of(number, 64, None));
        }
        let sr = repository(dir.path(), SrUuid::random(), "a", false);
        std::thread::scope(|scope| {
            for number in [1, 2] {
                let sr = &sr;
                scope.spawn(move || sr.resize(vdi(number), size_of(128)).unwrap());
            }
        });
        assert_eq!(sr.record().unwrap().map(|record| record.uuid), Some(sr.uuid()));
        // Two SRs in one empty directory.
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("sr");
        let location = ("location".to_owned(), place.to_str().unwrap().to_owned());
        let config = DeviceConfig(BTreeMap::from([location]));
        let around = Surroundings { host: "a".to_owned(), mounts: dir.path().to_owned() };
        let make = |uuid| {
            let record = SrRecord {
                uuid,
                driver: "file".to_owned(),
                label: String::new(),
                description: String::new(),
                made_directory: false,
                created: None,
            };
            let driver = driver("file", &config, &around).unwrap();
            driver.create(&record, size_of(0)).is_ok()
        };
        let [one, two] = [(); 2].map(|()| SrUuid::random());
        let (second, first) = std::thread::scope(|scope| {
            let first = scope.spawn(|| make(one));
            (make(two), first.join().unwrap())
        });
        assert!(!(first && second), "both were told that they made it");
        // Who comes second may take its directory away from under the first: then nobody made one.
        let record = orlop::sr::probe("file", &config).ok().and_then(|probed| probed.sr);
        match (first, second) {
            (true, _) => assert_eq!(record, Some(one)),
            (_, true) => assert_eq!(record, Some(two)),
            _ => assert_eq!(record, None),
        }
    }
}

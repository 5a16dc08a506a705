//! Repositories in real directories and on real devices, through the verbs, with other programs as
//! judges. Disks are not served here: an attacher of the test's own stands in.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where its set-up fails")]

#[path = "repositories/devices.rs"]
mod devices;
#[path = "support/foreign.rs"]
mod foreign;
#[path = "repositories/glances.rs"]
mod glances;
#[path = "repositories/hostile.rs"]
mod hostile;
#[path = "repositories/hosts.rs"]
mod hosts;
#[path = "repositories/lot.rs"]
mod lot;
#[path = "repositories/strays.rs"]
mod strays;
#[path = "support/vhd_builder.rs"]
mod vhd_builder;

use std::path::Path;
use std::sync::Arc;

use orlop::control::{AttachMode, Code, Command, Outcome};
use orlop::engine::units::DiskOffset;
use orlop::image::OpenOptions;
use orlop::sr::{
    DataFormat, Directory, NewVdi, OfflineDisk, Repository, SrUuid, Store, VdiRecord, VdiUuid,
};

use lot::{Lot, child_of, image, size_of, vdi, write_plan};

#[test]
fn an_sr_lives_from_create_to_delete() {
    let lot = Lot::new();
    lot.fails(Command::SrScan { sr: lot.sr }, Code::Enodev);
    lot.done(lot.sr_create());
    lot.fails(lot.sr_create(), Code::Eexist);
    lot.done(lot.sr_attach());
    lot.done(lot.sr_attach());
    lot.fails(lot.sr_create(), Code::Eexist);
    let content_type = lot.call(Command::SrContentType { sr: lot.sr });
    assert_eq!(content_type, Outcome::ContentType("vhd"));
    let listing = lot.scan();
    assert_eq!((listing.label.as_str(), listing.vdis.len()), ("lot", 0));
    assert!(listing.physical_size.get() > 0 && listing.default_vdi_visibility);
    lot.create(1, 9);
    lot.fails(lot.sr_delete(), Code::Ebusy);
    lot.done(Command::SrDetach { sr: lot.sr });
    lot.done(Command::SrDetach { sr: lot.sr });
    lot.fails(lot.sr_delete(), Code::Ebusy);
    lot.done(lot.sr_attach());
    lot.done(lot.delete(1));
    lot.done(Command::SrDetach { sr: lot.sr });
    lot.done(lot.sr_delete());
    assert!(!lot.location().exists());
    lot.done(lot.sr_delete());
    lot.fails(lot.sr_attach(), Code::Enodev);
}

#[test]
fn parameters_that_cannot_be_are_refused() {
    let lot = Lot::new();
    let create = |driver: &str, config: &[(&str, &str)]| lot.sr_create_of(driver, config);
    lot.fails(create("file", &[]), Code::Einval);
    lot.fails(create("file", &[("location", "relative")]), Code::Einval);
    lot.fails(create("file", &[("location", "/tmp/../etc")]), Code::Einval);
    lot.fails(create("file", &[("location", "/nonexistent/a/b")]), Code::Enodev);
    lot.fails(create("ext", &[("device", "/dev/nonexistent")]), Code::Enodev);
    lot.fails(create("ext", &[("device", "/dev/null")]), Code::Einval);
    lot.fails(create("nfs", &[("server", "a")]), Code::Enosys);
    lot.fails(create("tape", &[]), Code::Einval);
    let used = lot.dir.path().join("used");
    std::fs::create_dir(&used).unwrap();
    std::fs::write(used.join("letter"), "dear").unwrap();
    lot.fails(create("file", &[("location", used.to_str().unwrap())]), Code::Eexist);
    std::fs::remove_dir_all(&used).unwrap();
    std::fs::create_dir(lot.location()).unwrap();
    lot.fails(lot.sr_attach(), Code::Enodev);
    lot.attach_new();
    for sectors in [0, 1 << 60] {
        lot.fails(lot.vdi_create(1, sectors), Code::Einval);
    }
}

#[test]
fn a_vdi_is_made_attached_and_deleted_as_the_specification_says() {
    let lot = Lot::new();
    lot.fails(lot.vdi_create(1, 8), Code::Enodev);
    lot.attach_new();
    lot.create(1, 8);
    lot.fails(lot.vdi_create(1, 8), Code::Eexist);
    let access = lot.call(lot.attach(1, AttachMode::Auto));
    assert_eq!(lot.call(lot.attach(1, AttachMode::Auto)), access);
    for busy in [lot.delete(1), lot.resize(1, 16), lot.clone(1, 2), lot.snapshot(1, 2)] {
        lot.fails(busy, Code::Ebusy);
    }
    lot.fails(lot.attach(1, AttachMode::ReadOnly), Code::Ebusy);
    lot.fails(Command::SrDetach { sr: lot.sr }, Code::Ebusy);
    lot.done(lot.detach(1));
    lot.done(lot.detach(1));
    lot.fails(lot.detach(9), Code::Enodev);
    lot.fails(lot.attach(9, AttachMode::Auto), Code::Enodev);
    lot.done(lot.resize(1, 16));
    lot.done(lot.resize(1, 16));
    lot.fails(lot.resize(1, 8), Code::Einval);
    lot.done(lot.delete(1));
    lot.done(lot.delete(1));
    lot.fails(lot.resize(1, 32), Code::Enodev);
}

#[test]
fn snapshots_stay_and_clones_part() {
    let lot = Lot::new();
    lot.attach_new();
    lot.create(1, 8193);
    assert_eq!(lot.call(lot.snapshot(1, 2)), Outcome::Vdi(vdi(2)));
    lot.fails(lot.snapshot(1, 2), Code::Eexist);
    lot.fails(lot.snapshot(9, 3), Code::Enodev);
    let listing = lot.scan();
    let find = |number| listing.vdis.iter().find(|found| found.uuid == vdi(number)).unwrap();
    assert!(find(2).read_only && !find(1).read_only);
    assert_eq!((find(1).parent, find(2).parent), (Some(vdi(2)), None));
    assert_eq!(find(2).record.snapshot_of, Some(vdi(1)));
    assert_eq!((find(1).size, find(2).size), (size_of(8193), size_of(8193)));
    lot.fails(lot.attach(2, AttachMode::ReadWrite), Code::Eperm);
    lot.fails(lot.resize(2, 9000), Code::Eperm);
    lot.call(lot.attach(2, AttachMode::Auto));
    assert_eq!(lot.attached_read_only(2), Some(true));
    lot.done(lot.detach(2));
    // Of what is read-only: one child, no base.
    lot.call(lot.clone(2, 3));
    assert_eq!(lot.scan().hidden.len(), 0);
    lot.call(lot.clone(1, 4));
    let listing = lot.scan();
    assert_eq!((listing.hidden.len(), listing.vdis.len()), (1, 4));
    lot.done(lot.delete(2));
    let listing = lot.scan();
    assert_eq!((listing.hidden.len(), listing.vdis.len()), (2, 3));
    lot.fails(lot.vdi_create(2, 8), Code::Eexist);
    lot.fails(lot.attach(2, AttachMode::Auto), Code::Enodev);
    lot.done(lot.delete(3));
    lot.done(lot.delete(4));
    let Outcome::Collected(collected) = lot.call(Command::SrGc { sr: lot.sr }) else {
        unreachable!()
    };
    assert_eq!(collected.merged.len(), 2, "{collected:?}");
    let listing = lot.scan();
    assert_eq!((listing.hidden.len(), listing.vdis.len()), (0, 1));
    assert_eq!(listing.vdis[0].parent, None);
}

#[test]
fn a_chain_has_a_greatest_length() {
    let lot = Lot::new();
    lot.attach_new();
    lot.create(1, 8);
    for number in 2..=30 {
        lot.call(lot.snapshot(1, number));
    }
    lot.fails(lot.snapshot(1, 31), Code::Eperm);
}

#[test]
fn locks_are_kept_for_who_took_them_and_seen_by_other_hosts() {
    let lot = Lot::new();
    lot.attach_new();
    lot.create(1, 8);
    let lock = |user: &str, force| lot.lock(1, user, force);
    lot.done(lock("a", false));
    lot.done(lock("a", false));
    lot.fails(lock("b", false), Code::Enolck);
    lot.fails(lot.unlock(1, "b"), Code::Enolck);
    lot.fails(lot.delete(1), Code::Ebusy);
    lot.fails(lot.clone(1, 2), Code::Ebusy);
    assert!(lot.scan().vdis[0].locked);
    // The same directory, seen by another host.
    lot.done(Command::SrDetach { sr: lot.sr });
    lot.done(lot.sr_attach_shared());
    let other = lot.other_host();
    other.fails(other.attach(1, AttachMode::ReadWrite), Code::Ebusy);
    other.fails(other.lock(1, "b", false), Code::Enolck);
    other.call(other.attach(1, AttachMode::ReadOnly));
    other.done(other.detach(1));
    lot.call(lot.attach(1, AttachMode::ReadWrite));
    lot.done(lot.detach(1));
    other.done(other.lock(1, "b", true));
    lot.fails(lot.unlock(1, "a"), Code::Enolck);
    lot.fails(lot.attach(1, AttachMode::Auto), Code::Ebusy);
    other.done(other.unlock(1, "b"));
    other.done(other.unlock(1, "b"));
    lot.fails(lot.unlock(9, "a"), Code::Enodev);
    lot.fails(lot.lock(9, "a", false), Code::Enodev);
    assert!(!lot.scan().vdis[0].locked);
}

#[test]
fn a_lock_with_a_time_may_be_taken_over_when_it_is_past() {
    let lot = Lot::new();
    lot.attach_new();
    lot.create(1, 8);
    let lock = |user: &str| Command::VdiLock {
        sr: lot.sr,
        vdi: vdi(1),
        force: false,
        user: user.to_owned(),
        lease_seconds: Some(60),
    };
    lot.done(lock("a"));
    lot.fails(lock("b"), Code::Enolck);
    let file = lot.location().join(format!("{}.orlop-lease", vdi(1)));
    let aged = |seconds| {
        let then = std::time::SystemTime::now() - std::time::Duration::from_secs(seconds);
        std::fs::File::open(&file).unwrap().set_modified(then).unwrap();
    };
    aged(50);
    lot.fails(lock("b"), Code::Enolck);
    assert!(lot.scan().vdis[0].locked);
    lot.fails(lot.delete(1), Code::Ebusy);
    aged(90);
    // Its time is over for everybody: who scans, who attaches elsewhere, who clones.
    assert!(!lot.scan().vdis[0].locked);
    lot.done(Command::SrDetach { sr: lot.sr });
    lot.done(lot.sr_attach_shared());
    let other = lot.other_host();
    assert!(!other.scan().vdis[0].locked);
    other.call(other.attach(1, AttachMode::ReadWrite));
    other.done(other.detach(1));
    lot.call(lot.clone(1, 2));
    lot.done(lot.delete(2));
    lot.done(lock("b"));
    assert!(other.scan().vdis[0].locked);
    other.done(Command::SrDetach { sr: lot.sr });
    lot.fails(lot.unlock(1, "a"), Code::Enolck);
    // One that cannot be read is nobody's; force breaks it.
    std::fs::write(&file, "garbage").unwrap();
    lot.fails(lock("a"), Code::Enolck);
    for busy in [lot.attach(1, AttachMode::ReadWrite), lot.delete(1), lot.clone(1, 3)] {
        lot.fails(busy, Code::Ebusy);
    }
    lot.done(lot.lock(1, "a", true));
    lot.done(lot.unlock(1, "a"));
    lot.call(lot.attach(1, AttachMode::ReadWrite));
}

#[test]
fn a_vdi_whose_record_is_damaged_is_not_written_and_its_record_is_not_replaced() {
    let lot = Lot::new();
    lot.attach_new();
    lot.create(1, 8);
    let record = lot.location().join(format!("{}.orlop", vdi(1)));
    let whole = std::fs::read(&record).unwrap();
    std::fs::write(&record, &whole[..whole.len() - 3]).unwrap();
    lot.fails(lot.attach(1, AttachMode::ReadWrite), Code::Eio);
    let (label, description) = (Some("new".to_owned()), None);
    lot.fails(Command::VdiDescribe { sr: lot.sr, vdi: vdi(1), label, description }, Code::Eio);
    lot.fails(lot.snapshot(1, 2), Code::Eio);
    lot.call(lot.attach(1, AttachMode::Auto));
    assert_eq!(lot.attached_read_only(1), Some(true));
    lot.done(lot.detach(1));
    std::fs::write(&record, whole).unwrap();
    assert_eq!(lot.scan().vdis[0].record.label, "disk 1");
    lot.call(lot.attach(1, AttachMode::ReadWrite));
}

#[test]
fn many_callers_at_once_end_with_a_consistent_sr() {
    const CALLERS: u64 = 16;
    const CALLS: u64 = 40;
    let lot = Lot::new();
    lot.attach_new();
    std::thread::scope(|scope| {
        for caller in 0..CALLERS {
            let lot = &lot;
            scope.spawn(move || {
                let mut state = caller.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
                let mut draw = |most: u64| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    (state >> 33) % most
                };
                for _ in 0..CALLS {
                    let [a, b] = [(); 2].map(|()| 1 + draw(6) as u8);
                    let command = match draw(10) {
                        0 | 1 => lot.vdi_create(a, 100),
                        2 => lot.delete(a),
                        3 => lot.snapshot(a, b),
                        4 => lot.clone(a, b),
                        5 => lot.resize(a, 100 + draw(100)),
                        6 => lot.attach(a, AttachMode::Auto),
                        7 => lot.detach(a),
                        8 => lot.lock(a, "someone", false),
                        _ => lot.unlock(a, "someone"),
                    };
                    if let Err(error) = lot.control.call(command.clone()) {
                        assert_ne!(error.code, Code::Eio, "{command:?}: {error}");
                    }
                }
            });
        }
    });
    assert_eq!(lot.scan().findings, []);
    for number in 1..=6 {
        let _ = lot.control.call(lot.detach(number));
        let _ = lot.control.call(lot.unlock(number, "someone"));
    }
    lot.call(Command::SrGc { sr: lot.sr });
    let listing = lot.scan();
    assert_eq!(listing.findings, []);
    let left = lot.names();
    let odd: Vec<_> = left.iter().filter(|n| n.contains("tmp") || n.contains("intent")).collect();
    assert!(odd.is_empty(), "{odd:?}");
    for vdi in listing.vdis {
        lot.done(Command::VdiDelete { sr: lot.sr, vdi: vdi.uuid });
    }
    lot.done(Command::SrDetach { sr: lot.sr });
    lot.done(lot.sr_delete());
}

#[test]
fn chains_open_for_serving_before_and_after_gc() {
    let lot = Lot::new();
    lot.attach_new();
    let depth = |number: u8, write: bool| {
        let options = OpenOptions { read_only: !write, ..OpenOptions::new(lot.data(number)) };
        let chain = orlop::image::open(&options).map(|chain| chain.layers.len());
        chain.map_err(|error| error.to_string())
    };
    lot.create(1, 8193);
    lot.write(1, 0, b"one");
    let served = orlop::image::open(&OpenOptions::new(lot.data(1))).unwrap();
    for command in [lot.clone(1, 2), lot.snapshot(1, 2), lot.resize(1, 9000), lot.delete(1)] {
        lot.fails(command, Code::Ebusy);
    }
    drop(served);
    lot.call(lot.clone(1, 2));
    lot.write(1, 1, b"two");
    lot.call(lot.snapshot(1, 3));
    lot.write(1, 2, b"three");
    lot.call(lot.snapshot(1, 4));
    lot.call(lot.clone(3, 5));
    assert_eq!(depth(1, true), Ok(4));
    assert_eq!((depth(5, true), depth(2, true)), (Ok(3), Ok(2)));
    assert!(depth(3, true).is_err(), "a parent was opened for writing");
    assert_eq!(depth(3, false), Ok(2));
    lot.done(lot.delete(2));
    lot.call(Command::SrGc { sr: lot.sr });
    // The snapshot took the base's data in; both its children found out.
    assert_eq!((depth(1, true), depth(5, true)), (Ok(3), Ok(2)));
    assert_eq!(depth(3, false), Ok(1));
    for (sector, text) in [(0, &b"one"[..]), (1, b"two"), (2, b"three")] {
        assert!(lot.read(1, sector).starts_with(text), "sector {sector}");
    }
    assert!(lot.read(5, 1).starts_with(b"two"));
}

#[test]
fn what_was_attached_is_attached_again_after_a_restart() {
    let lot = Lot::new();
    lot.attach_new();
    lot.create(1, 8);
    lot.create(2, 8);
    lot.call(lot.attach(1, AttachMode::ReadWrite));
    lot.call(lot.attach(2, AttachMode::ReadOnly));
    let lot = lot.restarted();
    // Told to stop after the SR and one VDI; the rest is for the next start.
    let asked = std::cell::Cell::new(0);
    let goes_on = || asked.replace(asked.get() + 1) < 2;
    assert_eq!(lot.control.restore(goes_on).unwrap(), []);
    assert_eq!((1..3).filter(|vdi| lot.attached_read_only(*vdi).is_some()).count(), 1);
    let lot = lot.restarted();
    assert_eq!(lot.control.restore(|| true).unwrap(), []);
    assert_eq!(lot.attached_read_only(1), Some(false));
    assert_eq!(lot.attached_read_only(2), Some(true));
    lot.done(lot.detach(1));
    let lot = lot.restarted();
    assert_eq!(lot.control.restore(|| true).unwrap(), []);
    assert_eq!(lot.attached_read_only(1), None);
    assert_eq!(lot.attached_read_only(2), Some(true));
}

#[test]
fn other_programs_see_the_exact_size_and_the_content_of_children() {
    let lot = Lot::new();
    lot.attach_new();
    let tools = ["qemu-img", "vhdiinfo", foreign::PYTHON].map(|tool| foreign::have(&[tool]));
    for (number, sectors) in [(1, 1), (2, 4097), (3, 8_388_609), (4, 77_777_777)] {
        lot.create(number, sectors);
        lot.call(lot.snapshot(number, number + 100));
        for file in [number, number + 100] {
            let path = lot.data(file);
            let path = path.to_str().unwrap();
            if tools[0] {
                let told = foreign::run("qemu-img", &["info", "--output=json", "-f", "vpc", path]);
                let told: serde_json::Value = serde_json::from_str(&told).unwrap();
                assert_eq!(told["virtual-size"], sectors * 512, "{path}");
            }
            if tools[1] {
                let told = foreign::run("vhdiinfo", &[path]);
                assert!(told.contains("VHD (version 1)"), "{told}");
            }
        }
    }
    // Written below and above the snapshot, read by a reader that follows relative locators.
    lot.create(9, 9000);
    lot.write(9, 0, b"below");
    lot.write(9, 8999, b"end");
    lot.call(lot.snapshot(9, 10));
    lot.write(9, 1, b"above");
    if tools[2] {
        let out = lot.dir.path().join("content");
        let script = foreign::script("vhd_reader.py");
        let (path, to) = (lot.data(9), out.to_str().unwrap().to_owned());
        let arguments = [script.as_str(), path.to_str().unwrap(), "--out", &to];
        foreign::run(foreign::PYTHON, &arguments);
        let bytes = std::fs::read(out).unwrap();
        assert_eq!(bytes.len(), 9000 * 512);
        assert!(bytes.starts_with(b"below") && bytes[512..].starts_with(b"above"));
        assert!(bytes[8999 * 512..].starts_with(b"end"));
    }
}

#[test]
fn a_directory_of_xenservers_is_attached_as_it_is() {
    let lot = Lot::new();
    let dir = lot.location();
    std::fs::create_dir(&dir).unwrap();
    let (base, child, sibling, raw) = (vdi(1), vdi(2), vdi(3), vdi(4));
    write_plan(&dir, base, &image(8192, b"tap\0", true, None));
    for (uuid, mark) in [(child, 2), (sibling, 3)] {
        write_plan(&dir, uuid, &child_of(8192, base, mark));
    }
    std::fs::write(dir.join(format!("{raw}.raw")), vec![7; 4096]).unwrap();
    let other = format!("coalesce_{}", vdi(9));
    for (name, text) in [("filelog.txt", "log"), ("sm-hardlink.conf", "1"), (&other, "1")] {
        std::fs::write(dir.join(name), text).unwrap();
    }
    if foreign::have(&["qemu-img"]) {
        let path = dir.join(format!("{}.vhd", vdi(5)));
        let path = path.to_str().unwrap();
        let options = ["create", "-q", "-f", "vpc", "-o", "force_size=on", path, "5M"];
        foreign::run("qemu-img", &options);
    } else {
        write_plan(&dir, vdi(5), &image(10240, b"qem2", false, None));
    }
    lot.done(lot.sr_attach());
    let listing = lot.scan();
    assert_eq!(listing.findings, []);
    let sizes: Vec<_> = listing.vdis.iter().map(|v| (v.uuid, v.size.get() / 512)).collect();
    assert_eq!(sizes, [(child, 8192), (sibling, 8192), (raw, 8), (vdi(5), 10240)]);
    assert_eq!(listing.hidden.iter().map(|v| v.uuid).collect::<Vec<_>>(), [base]);
    assert_eq!(listing.vdis[0].parent, Some(base));
    let before: Vec<_> = lot.names();
    lot.done(Command::SrDetach { sr: lot.sr });
    assert_eq!(lot.names(), before, "attaching and scanning wrote something");
    // And it can be worked with: one sibling goes, the other takes the base's data over.
    lot.done(lot.sr_attach());
    lot.done(lot.delete(3));
    lot.call(Command::SrGc { sr: lot.sr });
    let listing = lot.scan();
    assert_eq!((listing.hidden.len(), listing.vdis[0].parent), (0, None));
    assert_eq!(lot.names().iter().filter(|name| name.ends_with(".vhd")).count(), 2);
}

#[test]
fn a_full_disk_is_told_and_changes_nothing() {
    let Some(small) = lot::Loop::new("orlop-sr-full", 16 << 20) else { return };
    let lot = Lot::on_device(&small);
    lot.attach_new();
    lot.create(1, 64);
    let before = lot.names();
    let stuffing = lot.location().join("stuffing");
    lot::stuff(&stuffing);
    for command in [lot.vdi_create(2, 64), lot.snapshot(1, 2), lot.clone(1, 2)] {
        lot.fails(command, Code::Enospc);
        std::fs::remove_file(&stuffing).unwrap();
        assert_eq!(lot.names(), before);
        lot::stuff(&stuffing);
    }
    // Deleting is how one gets out of this.
    lot.done(lot.delete(1));
    lot.finish();
}

/// Prints how long it takes; a number of its own is no proof, so nothing is asserted about it.
#[test]
fn five_thousand_vdis_are_scanned() {
    const VDIS: u16 = 5000;
    const CHAIN: u16 = 5;
    let dir = tempfile::tempdir().unwrap();
    let many = |number: u16| {
        let mut bytes = [1; 16];
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        VdiUuid::from_bytes(bytes)
    };
    for number in 0..VDIS {
        let below = (number % CHAIN != 0).then(|| many(number - 1));
        let name = below.map(|below| format!("{below}.vhd"));
        let parent = below.zip(name.as_deref()).map(|(below, name)| (below.bytes(), name));
        write_plan(dir.path(), many(number), &lot::plain(many(number).bytes(), 8192, parent));
        let record = VdiRecord { label: format!("disk {number}"), ..VdiRecord::default() };
        let path = dir.path().join(format!("{}.orlop", many(number)));
        std::fs::write(path, record.to_bytes()).unwrap();
    }
    let store: Arc<dyn Store> = Arc::new(Directory::open(dir.path()).unwrap());
    let repository = Repository::open(SrUuid::random(), "host", store, false).unwrap();
    for pass in ["first", "second, too soon to trust stamps", "third, warm"] {
        if pass.starts_with("third") {
            std::thread::sleep(std::time::Duration::from_millis(2500));
            repository.scan().unwrap();
        }
        let cpu = || {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            now.tv_sec * 1000 + now.tv_nsec / 1_000_000
        };
        let (before, cpu_before) = (std::time::Instant::now(), cpu());
        let catalogue = repository.scan().unwrap();
        let (wall, cpu) = (before.elapsed().as_millis(), cpu() - cpu_before);
        println!("{pass} scan of {VDIS} VDIs: {wall} ms, {cpu} ms of CPU");
        assert_eq!((catalogue.vdis.len(), &*catalogue.findings), (usize::from(VDIS), &[][..]));
        let chain = catalogue.chain(many(VDIS - 1)).unwrap();
        assert_eq!(chain.len(), usize::from(CHAIN));
    }
}

#[test]
fn the_largest_disk_and_a_clone_of_it_are_made() {
    let lot = Lot::new();
    lot.attach_new();
    lot.create(1, 2040 << 30 >> 9);
    lot.fails(lot.vdi_create(2, (2040 << 30 >> 9) + 1), Code::Einval);
    lot.call(lot.clone(1, 2));
    assert_eq!(lot.scan().vdis[1].size.get(), 2040 << 30);
    // No whole number of blocks, to be sure.
    lot.create(3, (1 << 40 >> 9) + 1);
    for turn in 0..3 {
        for (what, command) in
            [("snapshot", lot.snapshot(3, 10 + turn)), ("clone", lot.clone(3, 20 + turn))]
        {
            let before = std::time::Instant::now();
            lot.call(command);
            println!("a {what} of 1 TiB: {} ms", before.elapsed().as_millis());
        }
    }
}

/// What a disk of a repository holds, for tests that have no server.
fn disk(directory: &Path, repository: &Repository, uuid: VdiUuid, write: bool) -> OfflineDisk {
    let catalogue = repository.scan().unwrap();
    let chain = catalogue.chain(uuid).unwrap();
    let chain: Vec<_> = chain.iter().map(|link| (link.data_name(), link.format)).collect();
    let store: Arc<dyn Store> = Arc::new(Directory::open(directory).unwrap());
    OfflineDisk::open(store, &chain, !write).unwrap()
}

#[test]
fn raw_disks_are_forked_merged_and_keep_their_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(Directory::open(dir.path()).unwrap());
    let sr = Repository::open(SrUuid::random(), "host", store, false).unwrap();
    let (format, record) = (DataFormat::Raw, VdiRecord::default());
    sr.create(&NewVdi { vdi: vdi(1), size: size_of(17), format, record: record.clone() }).unwrap();
    let mut below = disk(dir.path(), &sr, vdi(1), true);
    below.write(DiskOffset::new(16 * 512), &[1; 512]).unwrap();
    below.flush().unwrap();
    sr.clone_vdi(vdi(1), vdi(2), |_| Ok(record), &mut orlop::sr::Idle).unwrap();
    let mut above = disk(dir.path(), &sr, vdi(2), true);
    above.write(DiskOffset::new(0), &[2; 512]).unwrap();
    above.flush().unwrap();
    sr.delete(vdi(1)).unwrap();
    let collected = sr.gc(&|_| false).unwrap();
    assert_eq!(collected.merged, [vdi(2)]);
    assert_eq!(sr.scan().unwrap().any(vdi(2)).unwrap().format, DataFormat::Raw);
    let mut merged = disk(dir.path(), &sr, vdi(2), false);
    assert_eq!(merged.read(DiskOffset::new(0), 512).unwrap(), [2; 512]);
    assert_eq!(merged.read(DiskOffset::new(16 * 512), 512).unwrap(), [1; 512]);
}

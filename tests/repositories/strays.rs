//! Images that somebody put into an SR under names that are no VDI's. The images are copies that
//! the system makes, or built byte by byte from the format's description.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use orlop::control::{AttachMode, Code, Command, Outcome};
use orlop::engine::units::FileOffset;
use orlop::sr::store::{Claim, Entry, Space, Stamp};
use orlop::sr::{
    Catalogue, Collected, Cut, DataFile, DataPlace, DirOp, Directory, Kind, Repository, SrUuid,
    Store, VdiRecord,
};

use super::lot::{Lot, image, vdi};
use super::vhd_builder::Builder;

/// What the guest has: everything between the copies of the footer.
fn middle(path: &Path) -> Vec<u8> {
    let bytes = std::fs::read(path).unwrap();
    bytes[512..bytes.len() - 512].to_vec()
}

fn problem(lot: &Lot, name: &str) -> Option<String> {
    let findings = lot.scan().findings;
    findings.into_iter().find(|found| found.name == name).map(|found| found.problem)
}

fn refusal(lot: &Lot, command: Command) -> (Code, String) {
    let error = lot.control.call(command).unwrap_err();
    (error.code, error.to_string())
}

fn gc(lot: &Lot) -> Collected {
    match lot.call(Command::SrGc { sr: lot.sr }) {
        Outcome::Collected(collected) => collected,
        other => panic!("{other:?}"),
    }
}

fn write(lot: &Lot, number: u8) -> Command {
    lot.attach(number, AttachMode::ReadWrite)
}

/// A VDI that another program made, and in a file of this name a child of it, byte by byte.
fn with_child_called(name: &str) -> Lot {
    let lot = Lot::new();
    lot.attach_new();
    Builder::dynamic().build().write_to(&lot.data(1)).unwrap();
    let child = Builder::child(&format!("{}.vhd", vdi(1))).build();
    child.write_to(&lot.location().join(name)).unwrap();
    lot
}

#[test]
fn a_child_under_any_name_keeps_its_parent_as_it_is() {
    let upper = format!("{}.vhd", vdi(0xAB).to_string().to_uppercase());
    let backup = format!("{}.vhd.bak", vdi(1));
    for name in ["golden child.vhd", "backup", &upper, &backup, "x.AVHD", "disk.raw"] {
        let lot = with_child_called(name);
        let before = std::fs::read(lot.data(1)).unwrap();
        let told = problem(&lot, name).unwrap();
        assert!(told.contains(&vdi(1).to_string()) && told.contains("rename it"), "{told}");
        for command in [write(&lot, 1), lot.resize(1, 99999), lot.clone(1, 2), lot.snapshot(1, 2)] {
            let shown = format!("{command:?}");
            let (code, text) = refusal(&lot, command);
            assert!(code == Code::Eperm && text.contains(name), "{shown}: {text}");
        }
        lot.call(lot.attach(1, AttachMode::Auto));
        assert_eq!(lot.attached_read_only(1), Some(true));
        lot.done(lot.detach(1));
        assert_eq!(std::fs::read(lot.data(1)).unwrap(), before, "{name}");
        // Deleted as what has children is: nobody sees it, and all that the child needs is there.
        lot.done(lot.delete(1));
        lot.done(lot.delete(1));
        assert_eq!((lot.scan().vdis.len(), lot.scan().hidden.len()), (0, 1));
        let collected = gc(&lot);
        assert!(collected.removed.is_empty() && collected.left[0].1.contains(name), "{name}");
        assert!(middle(&lot.data(1)) == before[512..before.len() - 512], "{name}");
        std::fs::rename(lot.location().join(name), lot.dir.path().join("elsewhere")).unwrap();
        assert_eq!(gc(&lot).removed, [vdi(1)]);
        assert_eq!(lot.scan().findings, []);
    }
}

#[test]
fn what_is_almost_a_vdi_is_told_its_name_and_becomes_one_by_it() {
    let right = format!("{}.vhd", vdi(0xAB));
    let wrong = right.to_uppercase();
    let lot = with_child_called(&wrong);
    assert!(problem(&lot, &wrong).unwrap().contains(&right));
    std::fs::rename(lot.location().join(wrong), lot.location().join(&right)).unwrap();
    let listing = lot.scan();
    assert_eq!((listing.vdis.len(), listing.findings.len()), (2, 0));
    assert_eq!(listing.vdis[1].parent, Some(vdi(1)));
}

#[test]
fn who_may_be_the_parent_of_a_child_without_a_certain_one_stays_as_it_is() {
    let lot = Lot::new();
    lot.attach_new();
    Builder::dynamic().build().write_to(&lot.data(1)).unwrap();
    std::fs::copy(lot.data(1), lot.data(2)).unwrap();
    Builder::child("golden.vhd").build().write_to(&lot.data(3)).unwrap();
    let child = format!("{}.vhd", vdi(3));
    let told = problem(&lot, &child).unwrap();
    assert!(told.contains("several images could be its parent"), "{told}");
    for number in [1, 2] {
        let (code, text) = refusal(&lot, write(&lot, number));
        assert!(code == Code::Eperm && text.contains(&child), "{text}");
        lot.done(lot.delete(number));
        assert!(gc(&lot).removed.is_empty() && lot.data(number).exists());
    }
}

#[test]
fn what_a_network_file_system_keeps_of_a_removed_file_is_gone() {
    let lot = with_child_called(".nfs00000000a1b2c3d400000001");
    assert_eq!(lot.scan().findings, []);
    lot.call(write(&lot, 1));
    lot.done(lot.detach(1));
    lot.done(lot.delete(1));
    assert_eq!((lot.scan().vdis.len(), lot.scan().hidden.len()), (0, 0));
}

/// A hidden base with two clones, of which the second goes.
fn with_base() -> (Lot, std::path::PathBuf) {
    let lot = Lot::new();
    lot.attach_new();
    lot.create(1, 9000);
    lot.write(1, 0, b"below");
    lot.call(lot.clone(1, 2));
    lot.write(1, 1, b"above");
    let base = lot.scan().hidden[0].uuid;
    let base = lot.location().join(format!("{base}.vhd"));
    (lot, base)
}

#[test]
fn what_a_copy_of_a_child_needs_is_not_merged() {
    let (lot, base) = with_base();
    let copy = lot.location().join(format!("{}.vhd.bak", vdi(2)));
    std::fs::copy(lot.data(2), &copy).unwrap();
    let before = std::fs::read(&base).unwrap();
    lot.done(lot.delete(2));
    let collected = gc(&lot);
    assert_eq!((collected.merged.len(), collected.removed.len()), (0, 0));
    assert!(collected.left[0].1.contains("vhd.bak"), "{collected:?}");
    assert!(std::fs::read(&base).unwrap() == before);
    // The other clone lives on as before.
    lot.call(write(&lot, 1));
    lot.done(lot.detach(1));
    lot.call(lot.snapshot(1, 3));
    std::fs::remove_file(copy).unwrap();
    assert_eq!(gc(&lot).merged.len(), 1);
    assert!(!base.exists());
    assert!(lot.read(1, 0).starts_with(b"below") && lot.read(1, 1).starts_with(b"above"));
}

#[test]
fn what_a_stray_child_names_is_not_given_another_identity_by_a_merge() {
    let (lot, base) = with_base();
    lot.done(lot.delete(2));
    // A child of the only clone left: after a merge its parent would be another image.
    let stray = lot.location().join("of a clone");
    super::glances::child_of(&lot.data(1), &lot.location().join("of a clone.vhd"));
    std::fs::rename(lot.location().join("of a clone.vhd"), &stray).unwrap();
    let (below, above) = (std::fs::read(&base).unwrap(), std::fs::read(lot.data(1)).unwrap());
    let collected = gc(&lot);
    assert!(collected.merged.is_empty() && collected.left[0].1.contains("of a clone"));
    assert!(std::fs::read(&base).unwrap() == below && std::fs::read(lot.data(1)).unwrap() == above);
    std::fs::remove_file(stray).unwrap();
    assert_eq!(gc(&lot).merged, [vdi(1)]);
}

#[test]
fn a_raw_parent_is_known_by_its_name_but_not_to_what_a_guest_may_have_written() {
    let lot = Lot::new();
    lot.attach_new();
    let raw = |number| lot.location().join(format!("{}.raw", vdi(number)));
    for number in [1, 2] {
        std::fs::write(raw(number), [number; 4096]).unwrap();
    }
    let put = |name: &str, parent: u8| {
        let parent = format!("/srv/elsewhere/{}.raw", vdi(parent));
        let plan = image(8, b"tap\0", false, Some(([0; 16], &parent)));
        super::lot::write_plan(&lot.location(), vdi(9), &plan);
        std::fs::rename(lot.data(9), lot.location().join(name)).unwrap();
    };
    put("child", 1);
    put("somebodys disk.img", 2);
    lot.fails(write(&lot, 1), Code::Eperm);
    lot.done(lot.delete(1));
    assert!(gc(&lot).removed.is_empty() && raw(1).exists());
    assert_eq!(std::fs::read(raw(1)).unwrap(), [1; 4096]);
    lot.done(lot.delete(2));
    assert!(!raw(2).exists());
}

#[test]
fn a_stray_that_cannot_be_read_may_be_anybodys_child() {
    let (lot, _) = with_base();
    let whole = std::fs::read(lot.data(2)).unwrap();
    lot.create(5, 8);
    // Each of them for itself; what a guest may have written into a raw disk stops nobody.
    let cut = whole.len() - 600;
    let mut torn = whole.clone();
    torn[512..600].fill(7);
    for (name, bytes, stops) in [
        ("empty.vhd", &[][..], true),
        ("short.vhd", &whole[..100], true),
        ("no header", &torn, true),
        ("no image.vhd", &[1; 4096], true),
        ("torn.avhd", &whole[..700], true),
        ("cut", &whole[..700], true),
        ("guests.img", &torn, false),
        // A guest that wrote a footer leads beyond the end of its disk.
        ("forged.img", &whole[whole.len() - 512..], false),
        ("letter.txt", b"conect", false),
        ("empty", &[], false),
        ("no end", &whole[..cut], false),
    ] {
        let path = lot.location().join(name);
        std::fs::write(&path, bytes).unwrap();
        let told = problem(&lot, name);
        let collected = gc(&lot);
        assert_eq!(collected.left.iter().any(|(_, why)| why.contains(name)), stops, "{name}");
        if stops {
            let told = told.unwrap();
            assert!(told.contains("move it out") && told.contains("removed or merged"), "{told}");
            // Who is nobody's parent for certain goes as ever.
            lot.call(write(&lot, 5));
            lot.done(lot.detach(5));
        }
        std::fs::remove_file(&path).unwrap();
    }
    std::fs::write(lot.location().join("x.vhd"), "").unwrap();
    lot.done(lot.delete(5));
    assert!(gc(&lot).removed.is_empty() && lot.data(5).exists());
    std::fs::remove_file(lot.location().join("x.vhd")).unwrap();
    assert_eq!(gc(&lot).removed, [vdi(5)]);
}

#[test]
fn what_is_no_file_is_told_and_neither_followed_nor_waited_for() {
    let lot = with_child_called("child.vhd");
    let elsewhere = lot.dir.path().join("elsewhere.vhd");
    std::fs::rename(lot.location().join("child.vhd"), &elsewhere).unwrap();
    let at = |name: &str| lot.location().join(name);
    symlink(&elsewhere, at("link.vhd")).unwrap();
    symlink(&elsewhere, at("link")).unwrap();
    std::fs::create_dir(at("directory.vhd")).unwrap();
    std::fs::create_dir(at("lost+found")).unwrap();
    let (mode, fifo) = (rustix::fs::Mode::RUSR, rustix::fs::FileType::Fifo);
    for name in ["pipe.vhd", "pipe"] {
        rustix::fs::mknodat(rustix::fs::CWD, at(name), fifo, mode, 0).unwrap();
    }
    let _socket = std::os::unix::net::UnixListener::bind(at("socket.vhd")).unwrap();
    let found: Vec<_> = lot.scan().findings.into_iter().map(|found| found.name).collect();
    assert_eq!(found, ["directory.vhd", "link.vhd", "pipe.vhd", "socket.vhd"]);
    lot.call(write(&lot, 1));
    lot.done(lot.detach(1));
    lot.done(lot.delete(1));
    assert!(!lot.data(1).exists() && elsewhere.exists());
}

#[test]
fn a_name_that_is_no_text_may_be_a_childs() {
    let lot = Lot::new();
    lot.attach_new();
    lot.create(1, 8);
    let path = lot.location().join(OsStr::from_bytes(b"caf\xe9.vhd"));
    std::fs::copy(lot.data(1), &path).unwrap();
    let findings = lot.scan().findings;
    assert!(findings.len() == 1 && findings[0].problem.contains("UTF-8"), "{findings:?}");
    lot.done(lot.delete(1));
    assert!(lot.data(1).exists());
    std::fs::remove_file(path).unwrap();
    assert_eq!(gc(&lot).removed, [vdi(1)]);
}

#[test]
fn a_crowd_of_other_files_hides_no_child() {
    let lot = with_child_called("zzz.vhd");
    for number in 0..4096 {
        std::fs::write(lot.location().join(format!("letter {number}")), "dear").unwrap();
    }
    let findings = lot.scan().findings;
    assert_eq!(findings.len(), 2, "{findings:?}");
    assert!(findings.iter().any(|found| found.problem.contains("more than 4096")));
    lot.fails(write(&lot, 1), Code::Eperm);
    lot.create(5, 8);
    lot.done(lot.delete(5));
    assert!(gc(&lot).removed.is_empty() && lot.data(5).exists());
    for number in 0..2 {
        std::fs::remove_file(lot.location().join(format!("letter {number}"))).unwrap();
    }
    assert_eq!(gc(&lot).removed, [vdi(5)]);
}

#[test]
fn who_misses_a_parent_is_told_which_file_it_is() {
    let (lot, base) = with_base();
    let aside = lot.location().join("base.old");
    std::fs::rename(&base, &aside).unwrap();
    let listing = lot.scan();
    let broken: Vec<_> = listing.findings.iter().filter(|found| found.broken.is_some()).collect();
    assert_eq!(broken.len(), 2);
    assert!(broken.iter().all(|found| found.problem.contains("base.old")), "{broken:?}");
    // Its record lies there alone.
    let record = base.with_extension("orlop");
    let name = record.file_name().unwrap().to_str().unwrap();
    assert!(problem(&lot, name).unwrap().contains("data are not here"));
    std::fs::rename(&aside, &base).unwrap();
    assert_eq!(lot.scan().findings, []);
    // It stays while a file has its uuid in the name, and goes with the last of them.
    for (aside, stays) in [(base.with_extension("vhd.old"), true), (aside, false)] {
        std::fs::rename(&base, &aside).unwrap();
        lot.done(Command::SrDetach { sr: lot.sr });
        lot.done(lot.sr_attach());
        assert_eq!(record.exists(), stays);
        std::fs::rename(&aside, &base).unwrap();
        assert_eq!(lot.scan().findings, []);
    }
}

#[test]
fn an_sr_with_data_that_a_stray_needs_is_not_removed() {
    for (name, stray) in [("child.vhd", true), ("empty.vhd", false)] {
        let lot = with_child_called(name);
        if !stray {
            std::fs::write(lot.location().join(name), "").unwrap();
        }
        lot.done(lot.delete(1));
        lot.done(Command::SrDetach { sr: lot.sr });
        let (code, text) = refusal(&lot, lot.sr_delete());
        assert!(code == Code::Ebusy && text.contains(name), "{text}");
        assert!(lot.data(1).exists());
        std::fs::remove_file(lot.location().join(name)).unwrap();
        lot.done(lot.sr_delete());
    }
}

/// Serves a disk that is being written.
struct Served;

impl Cut for Served {
    fn hold(&mut self) -> io::Result<()> {
        panic!("nothing is to be held")
    }

    fn switch(&mut self, _leaf: &DataFile) -> io::Result<()> {
        panic!("nothing is to be switched")
    }

    fn release(&mut self) {}
}

#[test]
fn what_is_written_gets_no_child_because_somebody_gave_it_one() {
    let lot = Lot::new();
    lot.attach_new();
    lot.create(1, 8);
    lot.finish();
    let store: Arc<dyn Store> = Arc::new(Directory::open(&lot.location()).unwrap());
    let repository = Repository::open(lot.sr, "host", store, false).unwrap();
    super::glances::child_of(&lot.data(1), &lot.data(8));
    let record = |_: &_| Ok(VdiRecord::default());
    for (name, kind) in [(lot.data(8), Kind::Busy), (lot.location().join("x"), Kind::NotPermitted)]
    {
        if name != lot.data(8) {
            std::fs::rename(lot.data(8), name).unwrap();
        }
        let failure = repository.snapshot(vdi(1), vdi(9), record, &mut Served).unwrap_err();
        assert_eq!(failure.kind, kind, "{failure}");
        assert!(!lot.data(9).exists());
    }
}

/// Counts what is read of files of one name.
#[derive(Debug)]
struct Counting {
    inside: Directory,
    name: &'static str,
    reads: Mutex<Vec<(u64, usize)>>,
    stamps: AtomicU64,
}

impl Store for Counting {
    fn place(&self) -> String {
        self.inside.place()
    }

    fn list(&self) -> io::Result<Vec<Entry>> {
        self.inside.list()
    }

    fn stamp(&self, name: &str) -> io::Result<Stamp> {
        self.stamps.fetch_add(u64::from(name == self.name), Ordering::Relaxed);
        self.inside.stamp(name)
    }

    fn read(&self, name: &str, at: FileOffset, bytes: &mut [u8]) -> io::Result<()> {
        if name == self.name {
            self.reads.lock().unwrap().push((at.get(), bytes.len()));
        }
        self.inside.read(name, at, bytes)
    }

    fn apply(&self, op: DirOp<'_>) -> io::Result<()> {
        self.inside.apply(op)
    }

    fn space(&self) -> io::Result<Space> {
        self.inside.space()
    }

    fn claim(&self, name: &str) -> io::Result<Claim> {
        self.inside.claim(name)
    }

    fn data_place(&self, name: &str) -> DataPlace {
        self.inside.data_place(name)
    }
}

#[test]
fn a_big_file_costs_two_short_reads_and_then_none() {
    const LEN: u64 = 1 << 40;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("big");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(LEN).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
    let inside = Directory::open(dir.path()).unwrap();
    let (reads, stamps) = (Mutex::default(), AtomicU64::new(0));
    let store = Arc::new(Counting { inside, name: "big", reads, stamps });
    let as_store = Arc::clone(&store) as Arc<dyn Store>;
    let repository = Repository::open(SrUuid::random(), "host", as_store, false).unwrap();
    let nothing_found = |catalogue: Catalogue| assert_eq!(catalogue.findings, []);
    nothing_found(repository.scan().unwrap());
    assert_eq!(*store.reads.lock().unwrap(), [(LEN - 512, 512), (0, 512)]);
    for _ in 0..3 {
        nothing_found(repository.scan().unwrap());
        nothing_found(repository.glance(&[vdi(1)]).unwrap());
    }
    assert_eq!((store.reads.lock().unwrap().len(), store.stamps.load(Ordering::Relaxed)), (2, 7));
    // Another content, in place: the footer of an image at the end of it.
    let mut child = Builder::dynamic().build();
    let footer = child.read(child.len - 512, 512);
    child.pieces.clear();
    std::os::unix::fs::FileExt::write_all_at(&file, &footer, LEN - 512).unwrap();
    assert_eq!(repository.glance(&[vdi(1)]).unwrap().findings.len(), 1);
}

//! A process that changes a repository is killed at random, over and over: each time the SR
//! attaches again without help, every VDI is whole, and nothing is left over.
//!
//! The victim is this program once more, told by its environment.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where its set-up fails")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use orlop::engine::units::{ByteLen, DiskOffset};
use orlop::sr::{
    Catalogue, DataFormat, Directory, Idle, LockWish, Named, NewVdi, OfflineDisk, Repository,
    SrUuid, Store, VdiRecord, VdiUuid,
};

const ROUNDS: u64 = 40;
const VDIS: u64 = 8;
const SECTORS: u64 = 5000;
const PLACE: &str = "ORLOP_TEST_KILL_PLACE";
const SEED: &str = "ORLOP_TEST_KILL_SEED";

fn vdi(number: u64) -> VdiUuid {
    VdiUuid::from_bytes([u8::try_from(number).unwrap() + 1; 16])
}

fn open(place: &Path) -> Repository {
    let store: Arc<dyn Store> = Arc::new(Directory::open(place).unwrap());
    Repository::open(SrUuid::from_bytes([7; 16]), "host", store, false).unwrap()
}

fn disk(place: &Path, catalogue: &Catalogue, uuid: VdiUuid, write: bool) -> OfflineDisk {
    let chain = catalogue.chain(uuid).unwrap();
    let chain: Vec<_> = chain.iter().map(|link| (link.data_name(), link.format)).collect();
    let store: Arc<dyn Store> = Arc::new(Directory::open(place).unwrap());
    OfflineDisk::open(store, &chain, !write).unwrap()
}

/// Numbers that look random and are the same for the same seed.
struct Dice(u64);

impl Dice {
    fn draw(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) % most
    }
}

/// A VDI is made with its label and its mark, so that both must be there whenever it is.
fn make(place: &Path, repository: &Repository, number: u64) {
    let label = format!("disk {number}");
    let record = VdiRecord { label, ..VdiRecord::default() };
    let size = ByteLen::new(SECTORS * 512);
    let format = if number == 0 { DataFormat::Raw } else { DataFormat::Vhd };
    let new = NewVdi { vdi: vdi(number), size, format, record };
    if repository.create(&new).is_ok() {
        let mut disk = disk(place, &repository.scan().unwrap(), vdi(number), true);
        disk.write(DiskOffset::new(0), &[number as u8 + 1; 512]).unwrap();
        disk.flush().unwrap();
    }
}

/// Changes the repository until somebody ends it.
fn victim(place: &Path, seed: u64) {
    let repository = open(place);
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    loop {
        let (a, b) = (dice.draw(VDIS), dice.draw(VDIS));
        let record = VdiRecord { label: format!("disk {b}"), ..VdiRecord::default() };
        let wish = LockWish { user: "me".to_owned(), force: true, lease_seconds: None };
        // Which of them are possible depends on what there is.
        let _refused = match dice.draw(9) {
            0 | 1 => {
                make(place, &repository, a);
                Ok(())
            }
            2 => repository.delete(vdi(a)),
            3 => repository.snapshot(vdi(a), vdi(b), |_| Ok(record), &mut Idle),
            4 => repository.clone_vdi(vdi(a), vdi(b), |_| Ok(record), &mut Idle),
            5 => repository.resize(vdi(a), ByteLen::new((SECTORS + dice.draw(9999)) * 512)),
            6 => repository.gc(&|_| false).map(drop),
            7 => repository.lock(vdi(a), &wish),
            _ => repository.unlock(vdi(a), "me"),
        };
    }
}

/// Ends the victim even where the test fails.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run_and_kill(place: &Path, seed: u64, after: Duration) {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_process_leaves_a_sound_repository", "--nocapture"])
        .env(PLACE, place)
        .env(SEED, seed.to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut guard = Guard(child);
    std::thread::sleep(after);
    assert_eq!(guard.0.try_wait().unwrap(), None, "seed {seed}: the victim ended by itself");
}

fn check(place: &Path, round: &str) -> BTreeMap<VdiUuid, usize> {
    let repository = open(place);
    let catalogue = repository.scan().unwrap();
    assert_eq!(catalogue.findings, [], "{round}");
    for entry in std::fs::read_dir(place).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        match Named::of(&name) {
            Named::Data(..) | Named::Sr => {}
            Named::Record(uuid) | Named::Lease(uuid) => {
                assert!(catalogue.any(uuid).is_some(), "{round}: {name} is left over");
            }
            other => panic!("{round}: {name} is left over: {other:?}"),
        }
    }
    let mut seen = BTreeMap::new();
    for found in catalogue.vdis.values().filter(|found| !found.hidden) {
        let number = u64::from(found.uuid.bytes()[0]) - 1;
        assert_eq!(found.record.label, format!("disk {number}"), "{round}");
        let mut disk = disk(place, &catalogue, found.uuid, false);
        // Of itself or of the VDI it comes from, whole; nothing where the mark was not made yet.
        let bytes = disk.read(DiskOffset::new(0), 512).unwrap();
        assert!(u64::from(bytes[0]) <= VDIS, "{round}");
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "{round}");
        seen.insert(found.uuid, usize::from(bytes[0]));
    }
    seen
}

#[test]
fn a_killed_process_leaves_a_sound_repository() {
    if let (Ok(place), Ok(seed)) = (std::env::var(PLACE), std::env::var(SEED)) {
        victim(Path::new(&place), seed.parse().unwrap());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut dice = Dice(0x0123_4567_89AB_CDEF);
    let mut vdis = 0;
    for round in 0..ROUNDS {
        let after = Duration::from_millis(40 + dice.draw(160));
        run_and_kill(dir.path(), round + 1, after);
        let name = format!("seed {} killed after {after:?}", round + 1);
        let seen = check(dir.path(), &name);
        assert_eq!(check(dir.path(), &name), seen, "{name}: another attach changed something");
        vdis += seen.len();
    }
    println!("{ROUNDS} rounds, {vdis} VDIs looked at");
    assert!(vdis > 20, "the victim hardly did anything");
}

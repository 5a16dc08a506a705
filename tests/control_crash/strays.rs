//! An image under a name that is no VDI's, a child of the SR's data: whatever is deleted, collected
//! or cut off, what it holds stays what it was.

use std::collections::HashSet;
use std::sync::Arc;

use orlop::engine::units::{DiskOffset, FileOffset};
use orlop::sr::{DataFormat, DirOp, OfflineDisk, Repository, Store, data_name};

use super::observe::{attach, recovered};
use super::sim::{Fault, Sim, World};
use super::stage::{Cast, vdi};
use super::{Tally, Trial, Verb, ends};

pub(crate) const STRAY: &str = "a copy";

/// Copies a file as a program does that knows nothing of SRs.
fn copy(store: &Arc<Sim>, from: &str, to: &str) {
    let len = store.stamp(from).unwrap().len;
    store.apply(DirOp::Create { name: to }).unwrap();
    store.apply(DirOp::SetLength { name: to, len }).unwrap();
    for at in (0..len.get()).step_by(512) {
        let (at, mut bytes) = (FileOffset::new(at), [0; 512]);
        store.read(from, at, &mut bytes).unwrap();
        if bytes.iter().any(|byte| *byte != 0) {
            store.apply(DirOp::Write { name: to, at, bytes: &bytes }).unwrap();
        }
    }
    store.apply(DirOp::SyncFile { name: to }).unwrap();
    store.apply(DirOp::SyncDirectory).unwrap();
}

/// What the copy of the clone holds: its own data, and those of the base that it names.
fn content(world: &World, base: &str) -> Vec<u8> {
    let store = Sim::new(world.clone(), Fault::None) as Arc<dyn Store>;
    let chain = [STRAY, base].map(|name| (name.to_owned(), DataFormat::Vhd));
    let mut disk = OfflineDisk::open(store, &chain, true).unwrap();
    let mut all = Vec::new();
    let mut at = 0;
    while at < disk.size().get() {
        let len = (disk.size().get() - at).min(1 << 20);
        all.extend(disk.read(DiskOffset::new(at), u32::try_from(len).unwrap()).unwrap());
        at += len;
    }
    all
}

/// What would leave the base to the other clone alone, which gc makes one of.
const VERB: Verb = |sr: &Repository, cast| {
    sr.delete(cast.clone)?;
    sr.gc(&|_| false).map(drop)
};

#[test]
fn what_a_stray_needs_outlives_a_deletion_and_a_collection_that_are_cut_off_anywhere() {
    let mut cast = Cast::new();
    let store = Sim::new(cast.world.clone(), Fault::None);
    let repository = attach(cast.sr, Arc::clone(&store)).unwrap();
    let base = repository.scan().unwrap().any(cast.clone).unwrap().parent.unwrap();
    let base = data_name(base, DataFormat::Vhd);
    copy(&store, &data_name(cast.clone, DataFormat::Vhd), STRAY);
    let told = repository.scan().unwrap();
    assert!(told.findings.iter().any(|found| found.name == STRAY), "{:?}", told.findings);
    cast.world = store.world();
    let before = content(&cast.world, &base);
    assert!(before[..512].iter().all(|byte| *byte == 30) && before[512..1024] == [31; 512]);
    let trial = Trial::new("delete and gc beside a stray", VERB, &cast);
    let mut tally = Tally::default();
    for step in 0..=trial.steps {
        let (result, store, _) = trial.run(Fault::Crash(step));
        let mut seen = HashSet::new();
        for (crashed, how) in ends(&store.world(), 2) {
            if !seen.insert(crashed.fingerprint()) {
                continue;
            }
            tally.states += 1;
            let place = format!("crashed before step {step}, {how}");
            let (state, world) = recovered(cast.sr, crashed).unwrap_or_else(|w| panic!("{w}"));
            trial.judge(&state, result.is_ok(), &place);
            let again = Sim::new(world, Fault::None);
            let repository = attach(cast.sr, Arc::clone(&again)).unwrap();
            let collected = repository.gc(&|_| false).unwrap();
            assert!(!collected.merged.contains(&vdi(30)), "{place}: {collected:?}");
            assert!(content(&again.world(), &base) == before, "{place}");
        }
    }
    println!("{} crash states, 0 violations", tally.states);
    assert!(tally.states > 20);
}

//! Two hosts that share an SR: one dies in the middle of a verb and comes back, and the other has
//! worked there meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;

use orlop::sr::{Kind, Repository, Store, VdiUuid};

use super::observe::{Seen, look_at, recovered};
use super::sim::{Fault, Sim, Survival, World};
use super::stage::{Cast, scribble, size_of};
use super::{Trial, VERBS};

pub(crate) fn open(cast: &Cast, host: &str, store: &Arc<Sim>) -> Repository {
    let store: Arc<dyn Store> = Arc::clone(store) as _;
    Repository::open(cast.sr, host, store, true).unwrap_or_else(|failure| panic!("{failure}"))
}

/// Writes to whatever may be written to. What was granted, as it looks then, must last.
fn meddle(other: &Repository, store: &Arc<Sim>, place: &str) -> BTreeMap<VdiUuid, Seen> {
    let mut granted = BTreeMap::new();
    let found: Vec<_> = other.scan().unwrap().vdis.into_values().filter(|v| !v.hidden).collect();
    for of in found {
        let sectors = of.size.get() / 512;
        match other.resize(of.uuid, size_of(sectors + 7)) {
            Ok(()) => {
                scribble(other, store, of.uuid, 0x77, &[0, sectors / 2, sectors + 6]);
                granted.insert(of.uuid, look_at(other, store, of.uuid).unwrap());
            }
            Err(failure) => {
                let expected = [Kind::Busy, Kind::NotPermitted];
                assert!(expected.contains(&failure.kind), "{place}: {failure}");
            }
        }
    }
    granted
}

/// After a crash of this host the other collects, and perhaps writes; then this one comes back.
fn come_back(trial: &Trial<'_>, left: &World, meddles: bool, place: &str) {
    let store = Sim::new(left.clone(), Fault::None);
    let other = open(trial.cast, "neighbour", &store);
    let collected = other.gc(&|_| false).unwrap_or_else(|failure| panic!("{place}: {failure}"));
    let granted = if meddles { meddle(&other, &store, place) } else { BTreeMap::new() };
    drop(open(trial.cast, "host", &store));
    let (state, _) = recovered(trial.cast.sr, store.world())
        .unwrap_or_else(|why| panic!("{} {place}: {why} after {collected:?}", trial.name));
    if !meddles {
        trial.judge(&state, false, place);
    }
    for (uuid, seen) in &granted {
        assert_eq!(state.get(uuid), Some(seen), "{} {place}: {uuid}", trial.name);
    }
}

#[test]
fn another_host_at_work_after_a_crash_harms_nothing_and_is_not_harmed() {
    let cast = Cast::new();
    for (name, verb) in VERBS {
        let trial = Trial::new(name, verb, &cast);
        for step in 0..=trial.steps {
            let (result, store, _) = trial.run(Fault::Crash(step));
            if result.is_ok() {
                continue;
            }
            let left = store.world().crashed(usize::MAX, Survival::Everything);
            for meddles in [false, true] {
                come_back(&trial, &left, meddles, &format!("crashed before step {step}"));
            }
        }
    }
}

#[test]
fn what_another_host_uses_is_not_settled_under_it() {
    let cast = Cast::new();
    for (name, verb) in VERBS.into_iter().filter(|(name, _)| ["clone", "resize"].contains(name)) {
        let trial = Trial::new(name, verb, &cast);
        for step in 0..trial.steps {
            let (_, store, _) = trial.run(Fault::Crash(step));
            let left = store.world().crashed(usize::MAX, Survival::Everything);
            let store = Sim::new(left.clone(), Fault::None);
            let intents = left.names().iter().filter(|name| name.ends_with("-intent")).count();
            // As a program that knows of no intents: it has whatever lies there under that name.
            let claim = store.claim(&format!("{}.vhd", cast.plain));
            let (claimed, names) = (claim.is_ok(), store.world().names());
            let host = open(&cast, "host", &store);
            if claimed && intents > 0 {
                assert_eq!(store.world().names(), names, "{name} at {step}");
                let failure = host.resize(cast.plain, size_of(20_000)).unwrap_err();
                assert_eq!(failure.kind, Kind::Busy, "{name} at {step}: {failure}");
            }
            drop((claim, host));
            let (state, _) = recovered(cast.sr, store.world()).unwrap();
            trial.judge(&state, false, &format!("at {step}"));
        }
    }
}

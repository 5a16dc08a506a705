//! Every verb that changes a repository, cut off at every step with every loss that a file system
//! allows, and denied space or failed at every step: afterwards the SR is what it was or what it
//! was to become, and nothing else (crash model, 4.5, invariants A to F).
//!
//! A: the old or the new state, the new one once acknowledged. B: content of all others unchanged
//! (the states hold everybody's content). C: nothing refers to what is gone. D: nothing is left
//! over. E: a recovery done twice, or cut off itself, ends the same. F: without space everything is
//! as before.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where its set-up fails")]

#[path = "control_crash/locks.rs"]
mod locks;
#[path = "control_crash/observe.rs"]
mod observe;
#[path = "control_crash/sim.rs"]
mod sim;
#[path = "control_crash/stage.rs"]
mod stage;
#[path = "control_crash/strays.rs"]
mod strays;
#[path = "control_crash/two_hosts.rs"]
mod two_hosts;

use std::collections::HashSet;
use std::sync::Arc;

use orlop::sr::{
    Cut, DataFile, DataFormat, DirOp, Failure, Idle, Kind, LockWish, NewVdi, Repository, Store,
    VdiRecord,
};

use observe::{State, attach, observe, orphans, recovered};
use sim::{Fault, Flaw, Sim, Survival, World};
use stage::{Cast, size_of, vdi};

type Verb = fn(&Repository, &Cast) -> Result<(), Failure>;

fn named(label: &str) -> VdiRecord {
    VdiRecord { label: label.to_owned(), ..VdiRecord::default() }
}

fn wish(user: &str, force: bool) -> LockWish {
    LockWish { user: user.to_owned(), force, lease_seconds: None }
}

const VERBS: [(&str, Verb); 24] = [
    ("create", |sr, _| {
        let record = named("new");
        let size = size_of(8193);
        sr.create(&NewVdi { vdi: vdi(90), size, format: DataFormat::Vhd, record })
    }),
    ("create raw", |sr, _| {
        let record = named("new");
        let size = size_of(77);
        sr.create(&NewVdi { vdi: vdi(90), size, format: DataFormat::Raw, record })
    }),
    ("delete", |sr, cast| sr.delete(cast.plain)),
    ("delete raw", |sr, cast| sr.delete(cast.raw)),
    ("delete what has children", |sr, cast| sr.delete(cast.snapshot)),
    ("delete raw that has children", |sr, cast| sr.delete(cast.raw_snapshot)),
    ("delete a clone", |sr, cast| sr.delete(cast.clone)),
    ("snapshot", |sr, cast| sr.snapshot(cast.plain, vdi(90), |_| Ok(named("snap")), &mut Idle)),
    ("snapshot of raw", |sr, cast| {
        sr.snapshot(cast.raw, vdi(90), |_| Ok(named("snap")), &mut Idle)
    }),
    ("snapshot of a child", |sr, cast| {
        sr.snapshot(cast.running, vdi(90), |_| Ok(named("snap")), &mut Idle)
    }),
    ("snapshot of a snapshot", |sr, cast| {
        sr.snapshot(cast.snapshot, vdi(90), |_| Ok(named("snap")), &mut Idle)
    }),
    ("clone", |sr, cast| sr.clone_vdi(cast.plain, vdi(90), |_| Ok(named("clone")), &mut Idle)),
    ("clone of raw", |sr, cast| sr.clone_vdi(cast.raw, vdi(90), |_| Ok(named("clone")), &mut Idle)),
    ("clone of a snapshot", |sr, cast| {
        sr.clone_vdi(cast.snapshot, vdi(90), |_| Ok(named("clone")), &mut Idle)
    }),
    ("resize", |sr, cast| sr.resize(cast.plain, size_of(8000))),
    ("resize with a larger table", |sr, cast| sr.resize(cast.plain, size_of(130 * 4096 + 1))),
    ("resize raw", |sr, cast| sr.resize(cast.raw, size_of(999))),
    ("resize of a child", |sr, cast| sr.resize(cast.running, size_of(12345))),
    ("lock", |sr, cast| sr.lock(cast.plain, &wish("me", false))),
    ("renew a lock", |sr, cast| sr.lock(cast.locked, &wish("other", false))),
    ("force a lock", |sr, cast| sr.lock(cast.locked, &wish("me", true))),
    ("unlock", |sr, cast| sr.unlock(cast.locked, "other")),
    ("describe", |sr, cast| sr.describe(cast.plain, |record| record.label = "else".to_owned())),
    ("gc", |sr, _| sr.gc(&|_| false).map(drop)),
];

/// How many crash states were looked at.
#[derive(Default)]
struct Tally {
    states: usize,
    recoveries: usize,
    faults: usize,
}

struct Trial<'a> {
    name: &'a str,
    verb: Verb,
    cast: &'a Cast,
    before: State,
    after: State,
    steps: usize,
}

impl<'a> Trial<'a> {
    fn new(name: &'a str, verb: Verb, cast: &'a Cast) -> Self {
        let store = Sim::new(cast.world.clone(), Fault::None);
        let repository = attach(cast.sr, Arc::clone(&store)).unwrap();
        let before = observe(&repository, &store).unwrap();
        store.plan(Fault::None);
        verb(&repository, cast).unwrap_or_else(|failure| panic!("{name}: {failure}"));
        let steps = store.steps();
        let after = observe(&repository, &store).unwrap_or_else(|why| panic!("{name}: {why}"));
        assert_eq!(orphans(&store.world()), Vec::<String>::new(), "{name}");
        Self { name, verb, cast, before, after, steps }
    }

    /// Runs the verb with a fault: whether it was acknowledged, and what there is then.
    fn run(&self, fault: Fault) -> (Result<(), Failure>, Arc<Sim>, Repository) {
        let store = Sim::new(self.cast.world.clone(), Fault::None);
        let repository = attach(self.cast.sr, Arc::clone(&store)).unwrap();
        store.plan(fault);
        let result = (self.verb)(&repository, self.cast);
        (result, store, repository)
    }

    /// A: which states are right.
    fn judge(&self, state: &State, acknowledged: bool, place: &str) {
        let right = *state == self.after || (!acknowledged && *state == self.before);
        assert!(right, "{} {place}: {state:#?}\nbefore: {:#?}", self.name, self.before);
    }

    fn crash_everywhere(&self, tally: &mut Tally) {
        for step in 0..=self.steps {
            let (result, store, _) = self.run(Fault::Crash(step));
            let acknowledged = result.is_ok();
            let mut seen = HashSet::new();
            for (crashed, how) in ends(&store.world(), 4) {
                if !seen.insert(crashed.fingerprint()) {
                    continue;
                }
                tally.states += 1;
                let place = format!("crashed before step {step}, {how}");
                self.recover(crashed, acknowledged, &place, &mut seen, tally);
            }
        }
    }

    /// Recovers, twice, and cut off at every step.
    fn recover(
        &self,
        crashed: World,
        acknowledged: bool,
        place: &str,
        seen: &mut HashSet<u64>,
        tally: &mut Tally,
    ) {
        let sr = self.cast.sr;
        let settle = |world: World, place: &str| {
            let (state, world) =
                recovered(sr, world).unwrap_or_else(|why| panic!("{} {place}: {why}", self.name));
            self.judge(&state, acknowledged, place);
            (state, world)
        };
        let (state, world) = settle(crashed.clone(), place);
        tally.recoveries += 1;
        let once = world.fingerprint();
        let (again, world) = settle(world, &format!("{place}, recovered twice"));
        assert_eq!((&again, world.fingerprint()), (&state, once), "{} {place}", self.name);
        for step in 0.. {
            let store = Sim::new(crashed.clone(), Fault::Crash(step));
            let whole = attach(sr, Arc::clone(&store)).is_ok() && !store.met_its_fault();
            for (torn, how) in ends(&store.world(), 1) {
                if seen.insert(torn.fingerprint()) {
                    tally.recoveries += 1;
                    settle(torn, &format!("{place}, recovery crashed before step {step}, {how}"));
                }
            }
            if whole {
                break;
            }
        }
    }

    fn fail_everywhere(&self, tally: &mut Tally) {
        for step in 0..self.steps {
            for fault in [Fault::NoSpaceOnce(step), Fault::NoSpace(step), Fault::Io(step)] {
                let (result, store, repository) = self.run(fault);
                if !store.met_its_fault() {
                    continue;
                }
                tally.faults += 1;
                self.judge_failure(fault, result, &store, &repository);
            }
        }
    }

    fn judge_failure(
        &self,
        fault: Fault,
        result: Result<(), Failure>,
        store: &Arc<Sim>,
        repository: &Repository,
    ) {
        let place = format!("{} with {fault:?}", self.name);
        let space = !matches!(fault, Fault::Io(_));
        if let Err(failure) = &result
            && space
        {
            assert_eq!(failure.kind, Kind::NoSpace, "{place}: {failure}");
            let state = observe(repository, store).unwrap_or_else(|why| panic!("{place}: {why}"));
            assert_eq!(state, self.before, "{place}");
        }
        store.plan(Fault::None);
        let (state, _) = recovered(self.cast.sr, store.world())
            .unwrap_or_else(|why| panic!("{place}, attached again: {why}"));
        match (&result, space) {
            (Ok(()), _) => assert_eq!(state, self.after, "{place}"),
            (Err(_), true) => assert_eq!(state, self.before, "{place}"),
            (Err(_), false) => self.judge(&state, false, &place),
        }
    }
}

/// What crashes leave of a world.
fn ends(world: &World, subsets: u64) -> Vec<(World, String)> {
    let mut ends = Vec::new();
    let mut survivals = vec![Survival::Nothing];
    if world.has_unsynced_bytes() {
        survivals.push(Survival::Everything);
        survivals.extend((0..subsets).map(Survival::Some));
    }
    for names in 0..=world.unsynced_names() {
        for survival in &survivals {
            let how = format!("{names} names and {survival:?} survive");
            ends.push((world.crashed(names, *survival), how));
        }
    }
    ends
}

#[test]
fn every_verb_survives_a_crash_at_every_step_with_every_loss() {
    let cast = Cast::new();
    let mut tally = Tally::default();
    for (name, verb) in VERBS {
        let trial = Trial::new(name, verb, &cast);
        let (states, recoveries) = (tally.states, tally.recoveries);
        trial.crash_everywhere(&mut tally);
        let (states, recoveries) = (tally.states - states, tally.recoveries - recoveries);
        println!("{name}: {} steps, {states} crash states, {recoveries} recoveries", trial.steps);
    }
    println!("{} crash states, {} recoveries, 0 violations", tally.states, tally.recoveries);
    assert!(tally.states > 1000);
}

#[test]
fn every_verb_that_fails_at_any_step_leaves_what_was_there() {
    let cast = Cast::new();
    let mut tally = Tally::default();
    for (name, verb) in VERBS {
        Trial::new(name, verb, &cast).fail_everywhere(&mut tally);
    }
    println!("{} faults, 0 violations", tally.faults);
    assert!(tally.faults > 500);
}

#[test]
fn a_directory_that_breaks_its_promises_is_found_out() {
    let verbs = ["create", "snapshot", "clone", "clone of raw", "gc"];
    for (flaw, expected) in [
        (Flaw::FilesNeverSynced, &verbs[..4]),
        (Flaw::NamesNeverSynced, &verbs[..4]),
        (Flaw::NoIntents, &["snapshot", "clone", "clone of raw", "gc"][..]),
    ] {
        let mut cast = Cast::new();
        cast.world.flaw = flaw;
        for (name, verb) in VERBS.into_iter().filter(|(name, _)| expected.contains(name)) {
            let trial = Trial::new(name, verb, &cast);
            let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                trial.crash_everywhere(&mut Tally::default());
            }));
            assert!(found.is_err(), "{flaw:?} was not found with {name}");
        }
    }
}

/// Serves a disk, and fails in one way.
struct Awkward {
    hold_fails: bool,
    held: bool,
    switched: bool,
    released: bool,
}

impl Cut for Awkward {
    fn hold(&mut self) -> std::io::Result<()> {
        self.held = true;
        if self.hold_fails { Err(std::io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }

    fn switch(&mut self, leaf: &DataFile) -> std::io::Result<()> {
        assert!(self.held && !self.released);
        assert_eq!((leaf.vdi, leaf.format), (vdi(1), DataFormat::Vhd));
        self.switched = true;
        Err(std::io::ErrorKind::InvalidData.into())
    }

    fn release(&mut self) {
        self.released = true;
    }
}

#[test]
fn a_cut_that_fails_is_undone() {
    let cast = Cast::new();
    for hold_fails in [true, false] {
        let store = Sim::new(cast.world.clone(), Fault::None);
        let repository = attach(cast.sr, Arc::clone(&store)).unwrap();
        let before = observe(&repository, &store).unwrap();
        let mut cut = Awkward { hold_fails, held: false, switched: false, released: false };
        let failure =
            repository.snapshot(cast.plain, vdi(90), |_| Ok(named("s")), &mut cut).unwrap_err();
        assert_eq!(failure.kind, Kind::Io);
        assert_eq!((cut.switched, cut.released), (!hold_fails, true));
        assert_eq!(observe(&repository, &store).unwrap(), before);
        let (state, _) = recovered(cast.sr, store.world()).unwrap();
        assert_eq!(state, before);
        repository.snapshot(cast.plain, vdi(90), |_| Ok(named("s")), &mut Idle).unwrap();
    }
}

/// What cannot be undone at once is settled before the next verb, and no other's work with it.
#[test]
fn what_could_not_be_undone_is_settled_by_the_next_verb() {
    let cast = Cast::new();
    for (name, verb) in VERBS {
        let trial = Trial::new(name, verb, &cast);
        for step in 0..trial.steps {
            // Everything fails from here on, as when a cable is pulled; then it works again.
            let (result, store, repository) = trial.run(Fault::Crash(step));
            store.plan(Fault::None);
            let probe = vdi(77);
            let new = NewVdi {
                vdi: probe,
                size: size_of(8),
                format: DataFormat::Vhd,
                record: named("probe"),
            };
            let place = format!("{name}, cable pulled at {step}");
            repository.create(&new).unwrap_or_else(|failure| panic!("{place}: {failure}"));
            repository.delete(probe).unwrap_or_else(|failure| panic!("{place}: {failure}"));
            let state = observe(&repository, &store).unwrap_or_else(|w| panic!("{place}: {w}"));
            trial.judge(&state, result.is_ok(), &place);
        }
    }
}

/// Attaching asks for it first: what is settled later would be settled under a disk that is served.
#[test]
fn after_the_word_that_all_is_ready_nothing_is_left_to_settle() {
    let cast = Cast::new();
    for (name, verb) in VERBS {
        let trial = Trial::new(name, verb, &cast);
        for step in 0..trial.steps {
            let (_, store, repository) = trial.run(Fault::Crash(step));
            store.plan(Fault::None);
            repository.ready().unwrap();
            let ready = store.world().fingerprint();
            repository.lock(vdi(77), &wish("nobody", false)).unwrap_err();
            assert_eq!(store.world().fingerprint(), ready, "{name}, cable pulled at {step}");
            let leftovers = |name: &String| name.ends_with("-intent") || name.ends_with("-aside");
            assert!(!store.world().names().iter().any(leftovers), "{name} at {step}");
        }
    }
}

/// Serves a disk, and loses the SR when it is to switch.
struct Cable(Arc<Sim>);

impl Cut for Cable {
    fn hold(&mut self) -> std::io::Result<()> {
        Ok(())
    }

    fn switch(&mut self, _leaf: &DataFile) -> std::io::Result<()> {
        self.0.plan(Fault::Crash(0));
        Err(std::io::ErrorKind::TimedOut.into())
    }

    fn release(&mut self) {}
}

/// The disk goes on writing to the file it had: that must be the source again.
#[test]
fn a_cut_of_a_served_disk_that_was_not_undone_is_undone_and_never_finished() {
    let cast = Cast::new();
    let store = Sim::new(cast.world.clone(), Fault::None);
    let repository = attach(cast.sr, Arc::clone(&store)).unwrap();
    let before = observe(&repository, &store).unwrap();
    let name = format!("{}.vhd", cast.plain);
    let file = store.stamp(&name).unwrap().file;
    // As whoever serves it has.
    let _served = store.claim(&name).unwrap();
    let mut cut = Cable(Arc::clone(&store));
    repository.snapshot(cast.plain, vdi(90), |_| Ok(named("s")), &mut cut).unwrap_err();
    store.plan(Fault::None);
    repository.ready().unwrap();
    assert_eq!(store.stamp(&name).unwrap().file, file);
    assert_eq!(observe(&repository, &store).unwrap(), before);
}

#[test]
fn a_rename_made_of_a_link_and_an_unlink_leaves_no_disk_with_two_names() {
    let mut cast = Cast::new();
    cast.world.flaw = Flaw::LinkAndUnlink;
    let verbs = ["snapshot", "snapshot of raw", "clone", "clone of raw", "create", "force a lock"];
    for (name, verb) in VERBS.into_iter().filter(|(name, _)| verbs.contains(name)) {
        Trial::new(name, verb, &cast).crash_everywhere(&mut Tally::default());
    }
}

#[test]
fn what_is_claimed_is_neither_collected_nor_hidden() {
    let cast = Cast::new();
    let store = Sim::new(cast.world.clone(), Fault::None);
    let repository = attach(cast.sr, Arc::clone(&store)).unwrap();
    // With a VHD that cannot be read, a deletion only hides.
    let (odd, plain) = (format!("{}.vhd", vdi(99)), format!("{}.vhd", cast.plain));
    store.apply(DirOp::Create { name: &odd }).unwrap();
    let (claim, before) = (store.claim(&plain).unwrap(), store.digest(&plain));
    assert_eq!(repository.delete(cast.plain).unwrap_err().kind, Kind::Busy);
    assert_eq!(store.digest(&plain), before);
    drop(claim);
    repository.delete(cast.plain).unwrap();
    store.apply(DirOp::Unlink { name: &odd }).unwrap();
    let claim = store.claim(&plain).unwrap();
    let collected = repository.gc(&|_| false).unwrap();
    assert!(collected.left.iter().any(|(vdi, _)| *vdi == cast.plain), "{collected:?}");
    assert!(store.stamp(&plain).is_ok());
    assert_eq!(repository.dismantle().unwrap_err().kind, Kind::NotEmpty);
    drop(claim);
    assert_eq!(repository.gc(&|_| false).unwrap().removed, [cast.plain]);
}

#[test]
fn what_another_host_made_in_the_same_moment_is_not_touched() {
    let mut cast = Cast::new();
    let store = Sim::new(cast.world.clone(), Fault::None);
    let before = attach(cast.sr, store).unwrap().scan().unwrap().vdis;
    cast.world.flaw = Flaw::Intruder;
    let names = ["create", "create raw", "snapshot", "snapshot of raw", "clone", "clone of raw"];
    for (name, verb) in VERBS.into_iter().filter(|(name, _)| names.contains(name)) {
        let store = Sim::new(cast.world.clone(), Fault::None);
        let repository = attach(cast.sr, Arc::clone(&store)).unwrap();
        let failure = verb(&repository, &cast).unwrap_err();
        assert_eq!(failure.kind, Kind::VdiExists, "{name}: {failure}");
        let catalogue = repository.scan().unwrap();
        assert_eq!(catalogue.vdis, before, "{name}");
        assert_eq!(catalogue.findings.len(), 1, "{name}: the intruder's file went");
    }
}

#[test]
fn another_hosts_unfinished_work_is_left_to_it() {
    let cast = Cast::new();
    let (_, clone) = VERBS.into_iter().find(|(name, _)| *name == "clone").unwrap();
    let trial = Trial::new("clone", clone, &cast);
    let (result, store, _) = trial.run(Fault::Crash(30));
    assert!(result.is_err());
    let left = store.world().crashed(usize::MAX, Survival::Everything);
    let open = |host, world: &World| {
        let store = Sim::new(world.clone(), Fault::None);
        Repository::open(cast.sr, host, store.clone(), true).unwrap();
        store.world()
    };
    assert_eq!(open("neighbour", &left).fingerprint(), left.fingerprint());
    let settled = open("host", &left);
    assert_eq!(orphans(&settled), Vec::<String>::new());
}

#[test]
fn what_gc_leaves_is_what_somebody_needs() {
    let cast = Cast::new();
    let store = Sim::new(cast.world.clone(), Fault::None);
    let repository = attach(cast.sr, Arc::clone(&store)).unwrap();
    let before = observe(&repository, &store).unwrap();
    let collected = repository.gc(&|_| false).unwrap();
    assert_eq!(observe(&repository, &store).unwrap(), before);
    assert_eq!(collected.merged.len(), 2, "{collected:?}");
    let catalogue = repository.scan().unwrap();
    let hidden = catalogue.vdis.values().filter(|vdi| vdi.hidden);
    for base in hidden {
        assert!(base.children.len() > 1, "{base:?}");
    }
    let again = repository.gc(&|_| false).unwrap();
    assert!(again.merged.is_empty() && again.removed.is_empty());
}

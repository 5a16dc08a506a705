//! Locks that several hosts want in the same moment, and locks and records that cannot be read.

use std::sync::{Arc, Mutex};

use orlop::sr::{Failure, Kind, Lock, LockWish, VdiUuid, lease_name, record_name};

use super::named;
use super::observe::{attach, observe};
use super::sim::{Fault, Sim};
use super::stage::{Cast, size_of};
use super::two_hosts::open;

type Act = fn(&orlop::sr::Repository, VdiUuid) -> Result<(), Failure>;

fn wish(user: &str) -> LockWish {
    LockWish { user: user.to_owned(), force: false, lease_seconds: Some(60) }
}

fn holder(store: &Arc<Sim>, cast: &Cast) -> Option<String> {
    let catalogue = open(cast, "judge", store).scan().unwrap();
    match &catalogue.visible(cast.plain).unwrap().lock {
        Lock::Held(lease) => Some(lease.user.clone()),
        Lock::Free => None,
        Lock::Unknown(why) => panic!("{why}"),
    }
}

/// What "b" does, with what "a" does before each of its steps: both results and who holds the lock
/// then, until "b" needs fewer steps than that.
fn interleave(b: Act, a: Act, mut judge: impl FnMut([bool; 2], Option<String>, &str)) {
    let cast = Cast::new();
    for step in 0.. {
        let store = Sim::new(cast.world.clone(), Fault::None);
        let [first, second] = ["a", "b"].map(|host| Arc::new(open(&cast, host, &store)));
        first.lock(cast.plain, &wish("a")).unwrap();
        store.age(&lease_name(cast.plain), 90);
        let said = Arc::new(Mutex::new(None));
        let (tell, plain) = (Arc::clone(&said), cast.plain);
        store.interrupt(step, move || *tell.lock().unwrap() = Some(a(&first, plain).is_ok()));
        let b_did = b(&second, cast.plain).is_ok();
        let Some(a_did) = said.lock().unwrap().take() else {
            assert!(step > 2, "it took {step} steps only");
            return;
        };
        judge([a_did, b_did], holder(&store, &cast), &format!("before step {step}"));
    }
}

#[test]
fn of_two_who_want_an_expired_lock_one_gets_it() {
    // "a" renews too late, while "b" takes over; then "a" is somebody new.
    for a in [|sr, vdi| sr_lock(sr, vdi, "a"), |sr, vdi| sr_lock(sr, vdi, "c")] as [Act; 2] {
        interleave(
            |sr, vdi| sr_lock(sr, vdi, "b"),
            a,
            |[a_did, b_did], holder, place| {
                assert!(a_did != b_did, "{place}: {a_did} {b_did}");
                assert_eq!(holder.as_deref() == Some("b"), b_did, "{place}: {holder:?}");
                assert!(holder.is_some(), "{place}");
            },
        );
    }
}

fn sr_lock(sr: &orlop::sr::Repository, vdi: VdiUuid, user: &str) -> Result<(), Failure> {
    sr.lock(vdi, &wish(user))
}

#[test]
fn who_gives_back_a_lock_that_was_taken_over_takes_nothing_from_the_new_holder() {
    // "b" is the host that unlocks the old holder's, and "a" the one that takes over in between.
    interleave(
        |sr, vdi| sr.unlock(vdi, "a"),
        |sr, vdi| sr_lock(sr, vdi, "c"),
        |[a_did, _], holder, place| {
            assert_eq!(holder.as_deref() == Some("c"), a_did, "{place}: {holder:?}");
        },
    );
}

#[test]
fn a_lock_that_cannot_be_read_is_somebodys() {
    let cast = Cast::new();
    let store = Sim::new(cast.world.clone(), Fault::None);
    let sr = attach(cast.sr, Arc::clone(&store)).unwrap();
    let before = store.world().fingerprint();
    store.sicken(&[lease_name(cast.locked)]);
    let catalogue = sr.scan().unwrap();
    let found = catalogue.visible(cast.locked).unwrap();
    assert!(matches!(found.lock, Lock::Unknown(_)), "{:?}", found.lock);
    assert_eq!(found.unlocked_for(|_| true).unwrap_err().kind, Kind::Busy);
    assert_eq!(sr.delete(cast.locked).unwrap_err().kind, Kind::Busy);
    let wish = LockWish { user: "other".to_owned(), force: false, lease_seconds: None };
    assert_eq!(sr.lock(cast.locked, &wish).unwrap_err().kind, Kind::Locked);
    assert_eq!(sr.unlock(cast.locked, "other").unwrap_err().kind, Kind::Locked);
    store.sicken(&[]);
    assert_eq!(store.world().fingerprint(), before);
    sr.unlock(cast.locked, "other").unwrap();
    sr.delete(cast.locked).unwrap();
}

#[test]
fn a_vdi_whose_record_cannot_be_read_is_only_read_and_keeps_its_record() {
    let cast = Cast::new();
    let store = Sim::new(cast.world.clone(), Fault::None);
    let sr = attach(cast.sr, Arc::clone(&store)).unwrap();
    let before = observe(&sr, &store).unwrap();
    drop(sr);
    let vdis = [cast.plain, cast.raw_snapshot];
    store.sicken(&vdis.map(record_name));
    // Somebody who has not read it before.
    let sr = attach(cast.sr, Arc::clone(&store)).unwrap();
    let catalogue = sr.scan().unwrap();
    for vdi in vdis {
        let found = catalogue.visible(vdi).unwrap();
        assert!(found.read_only && found.known_record().is_err());
        let idle = &mut orlop::sr::Idle;
        for refused in [
            sr.describe(vdi, |record| record.description = "new".to_owned()),
            sr.resize(vdi, size_of(20_000)),
            sr.snapshot(vdi, super::vdi(90), |_| Ok(named("snap")), idle),
            sr.clone_vdi(vdi, super::vdi(90), |_| Ok(named("clone")), idle),
        ] {
            let kind = refused.unwrap_err().kind;
            assert!([Kind::Corrupt, Kind::NotPermitted].contains(&kind), "{kind:?}");
        }
    }
    // Hidden by its record, which would be written anew.
    assert_eq!(sr.delete(cast.raw_snapshot).unwrap_err().kind, Kind::Corrupt);
    // It comes back without any change of the file.
    store.sicken(&[]);
    assert_eq!(observe(&sr, &store).unwrap(), before);
    sr.resize(cast.plain, size_of(20_000)).unwrap();
}

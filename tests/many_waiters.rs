//! Thousands of requests that wait for one another: they end, and need no deep stack to do so.

use orlop::engine::Disk;
use orlop::engine::effect::{Effect, FileId, Outcome};
use orlop::engine::request::{Request, RequestId};
use orlop::engine::units::{ByteLen, DiskOffset, Extent};
use orlop::format::Flat;

const MANY: u64 = 50_000;

fn zero_all(disk: &mut Disk, id: u64) {
    let extent = Extent::new(DiskOffset::new(0), ByteLen::new(1 << 20));
    disk.submit(RequestId(id), Request::Zero { extent, may_unmap: true, fua: false });
}

#[test]
fn many_overlapping_erasures_end_one_after_the_other() {
    let mut disk = Disk::writable(Box::new(Flat::new(ByteLen::new(1 << 20))), FileId(0), vec![]);
    (0..1000).for_each(|id| zero_all(&mut disk, id));
    let mut ended = 0;
    while let Some(effect) = disk.poll_effect() {
        assert!(matches!(effect, Effect::Punch { .. }), "{effect:?}");
        assert_eq!(disk.effects_in_flight(), 1, "they run alone");
        disk.complete(effect.id(), Outcome::Done);
        while let Some(reply) = disk.poll_reply() {
            assert!(reply.result.is_ok());
            ended += 1;
        }
    }
    assert_eq!(ended, 1000);
}

#[test]
fn many_waiters_that_need_nothing_end_without_a_deep_stack() {
    let mut disk = Disk::writable(Box::new(Flat::new(ByteLen::new(1 << 20))), FileId(0), vec![]);
    zero_all(&mut disk, MANY);
    // An empty inside: nothing of a ragged discard within one sector is erased, so it ends the
    // moment it is admitted.
    let extent = Extent::new(DiskOffset::new(1), ByteLen::new(2));
    for id in 0..MANY {
        disk.submit(RequestId(id), Request::Discard { extent, fua: false });
    }
    let effect = disk.poll_effect().expect("the first one runs");
    disk.complete(effect.id(), Outcome::Done);
    let ended = std::iter::from_fn(|| disk.poll_reply()).count();
    assert_eq!(ended as u64, MANY + 1);
}

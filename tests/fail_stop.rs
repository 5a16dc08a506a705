//! W8: after a failed sync, by whatever name, a disk takes nothing more until it is opened again.

use orlop::engine::Disk;
use orlop::engine::effect::{Effect, FileId, IoError, Outcome};
use orlop::engine::request::{FaultKind, Request, RequestId};
use orlop::engine::units::{ByteLen, DiskOffset, Extent, RegionId, Span};
use orlop::format::Flat;

fn written(error: IoError) -> Disk {
    let mut disk = Disk::writable(Box::new(Flat::new(ByteLen::new(4096))), FileId(0), vec![]);
    let extent = Extent::new(DiskOffset::new(0), ByteLen::new(512));
    let from = Span { region: RegionId(0), start: 0, len: 512 };
    disk.submit(RequestId(1), Request::Write { extent, from, fua: true });
    let effect = disk.poll_effect().expect("the write goes out");
    assert!(matches!(effect, Effect::Write { durable: true, .. }), "{effect:?}");
    disk.complete(effect.id(), Outcome::Failed(error));
    let reply = disk.poll_reply().expect("the write is answered");
    assert_eq!(reply.result.map_err(|fault| fault.kind), Err(FaultKind::Io(error)));
    disk
}

#[test]
fn a_durable_write_that_failed_may_have_told_of_an_older_one_and_stops_the_disk() {
    let mut disk = written(IoError::EIO);
    assert!(disk.stopped().is_some());
    disk.submit(RequestId(2), Request::Flush);
    let reply = disk.poll_reply().expect("the flush is answered");
    assert!(matches!(reply.result.map_err(|fault| fault.kind), Err(FaultKind::Stopped(_))));
}

#[test]
fn a_full_file_system_stops_nothing() {
    assert_eq!(written(IoError::ENOSPC).stopped(), None);
}

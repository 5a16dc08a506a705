//! Fills an image with data through the engine, gently: one request at a time, then a flush.
//!
//! Refuses to crash; what it leaves is the ground on which lives are lived.

use orlop::engine::request::{Request, RequestId};
use orlop::engine::units::{ByteLen, DiskOffset, Extent, Span};
use orlop::host::sim::fs::{Backing, SimFile};
use orlop::host::sim::host::{ARENA, SimHost, Step};
use orlop::host::sim::rng::Rng;

use crate::tag::{CELL, Tag};
use crate::world::World;

/// Writes `eighths` eighths of the disk's sectors, in no order, as disk number `disk`; returns the
/// leaf's bytes after a flush. Write numbers count down from the largest, so that no life's own
/// write is taken for one of these.
pub(crate) fn populate(world: &World, disk: u8, eighths: usize, rng: &mut Rng) -> Vec<u8> {
    let mut host = SimHost::new(rng.bits(), ByteLen::new(4 * CELL as u64));
    let file = host.add_file(SimFile::new(world.backing(), world.leaf()));
    for parent in world.parents() {
        host.add_file(SimFile::new(Backing::File, parent));
    }
    let mut subject = world.open(world.leaf(), None).expect("a fresh image opens");
    let sectors = world.cells() / 4;
    let mut order: Vec<u32> = (0..sectors).collect();
    for at in (1..order.len()).rev() {
        order.swap(at, rng.below(at + 1));
    }
    let chosen = order.iter().filter(|_| eighths > 0 && rng.chance(eighths, 8));
    let mut requests: Vec<Option<u32>> = chosen.copied().map(Some).collect();
    requests.push(None);
    for (no, sector) in requests.into_iter().enumerate() {
        let version = 0xFFF_FFFF - no as u32;
        let request = match sector {
            Some(sector) => write(&mut host, disk, sector, version),
            None => Request::Flush,
        };
        subject.submit(RequestId(no as u64), request);
        loop {
            while let Some(effect) = subject.poll_effect() {
                host.start(effect);
            }
            match host.step() {
                Step::Idle => break,
                Step::Executed => {}
                Step::Delivered(id, outcome) => subject.complete(id, outcome),
            }
        }
        let reply = subject.poll_reply().expect("an idle disk has replied");
        reply.result.expect("nothing fails while populating");
    }
    host.file(file).live().bytes().to_vec()
}

fn write(host: &mut SimHost, disk: u8, sector: u32, version: u32) -> Request {
    let span = Span { region: ARENA, start: 0, len: 4 * CELL as u32 };
    for (cell, bytes) in (sector * 4..).zip(host.bytes_mut(span).chunks_exact_mut(CELL)) {
        Tag::new(disk, cell, version).fill(bytes);
    }
    let at = DiskOffset::new(u64::from(sector) * 512);
    Request::Write { extent: Extent::new(at, ByteLen::new(512)), from: span, fua: false }
}

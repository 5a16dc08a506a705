//! Limits of an export, and what is counted of its clients.

use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use orlop::meter::{Op, Rates};
use orlop::transport::nbd::ClientLimits;

use crate::going::hardly_any;
use crate::rig::{MIB, Rig, Setup, command, request, until};

#[test]
fn a_removed_limit_lets_everyone_go_who_waits() {
    let rig = Rig::new();
    let disk = rig.disk("a", MIB);
    let throttle = hardly_any();
    let setup = || Setup { throttle: Arc::clone(&throttle), ..Setup::of(MIB) };
    let mut peers: Vec<_> = (0..5).map(|_| rig.connect(disk, setup())).collect();
    assert_eq!(peers[0].read(0, 4096), Ok(vec![0; 4096]));
    for (peer, cookie) in peers.iter_mut().zip(0..) {
        peer.send(&request(command::WRITE, cookie, cookie * 512, 512));
        peer.send(&[cookie as u8; 512]);
    }
    sleep(Duration::from_millis(300));
    throttle.set(Rates::default());
    for (peer, cookie) in peers.iter_mut().zip(0..) {
        assert_eq!(peer.reply(cookie, 0), Ok(vec![]));
    }
    assert_eq!(peers[0].read(3 * 512, 512), Ok(vec![3; 512]));
    rig.close();
}

#[test]
fn who_hangs_up_while_waiting_for_its_turn_frees_everything() {
    let rig = Rig::new();
    let disk = rig.disk("a", MIB);
    let throttle = hardly_any();
    let meter = Arc::default();
    let limits =
        ClientLimits { payload_stall: Duration::from_millis(300), ..ClientLimits::default() };
    let setup = || Setup {
        throttle: Arc::clone(&throttle),
        export_meter: Arc::clone(&meter),
        limits,
        ..Setup::of(MIB)
    };
    let mut first = rig.connect(disk, setup());
    assert_eq!(first.read(0, 4096), Ok(vec![0; 4096]));
    let write = [request(command::WRITE, 1, 0, 512 << 10), vec![9; 100_000]].concat();
    let read = request(command::READ, 1, 0, 512);
    let mut halves = Vec::new();
    for number in 0..20 {
        let mut peer = rig.connect(disk, setup());
        peer.send(if number % 2 == 0 { &write } else { &read });
        if number < 15 {
            until("it is connected", || meter.snapshot().connections > 1);
        } else {
            peer.finish();
            halves.push(peer);
        }
    }
    until("only the first one is left", || meter.snapshot().connections == 1);
    halves.iter_mut().for_each(|peer| assert_eq!(peer.await_end(), 0));
    throttle.set(Rates::default());
    assert_eq!(first.read(0, 4096), Ok(vec![0; 4096]), "a torn write reached the disk");
    rig.close();
}

#[test]
fn what_a_half_closed_peer_asked_is_answered_when_its_turn_comes() {
    let rig = Rig::new();
    let disk = rig.disk("a", MIB);
    let throttle = hardly_any();
    let setup = Setup { throttle: Arc::clone(&throttle), ..Setup::of(MIB) };
    let mut peer = rig.connect(disk, setup);
    assert_eq!(peer.read(0, 4096), Ok(vec![0; 4096]));
    peer.send(&request(command::READ, 3, 0, 512));
    peer.finish();
    sleep(Duration::from_millis(300));
    throttle.set(Rates::default());
    assert_eq!(peer.reply(3, 512), Ok(vec![0; 512]));
    assert_eq!(peer.await_end(), 0);
    rig.close();
}

#[test]
fn everything_a_client_does_is_counted_for_it_and_for_its_export() {
    let rig = Rig::new();
    let disk = rig.disk("a", MIB);
    let export = Arc::default();
    let setup = || Setup { export_meter: Arc::clone(&export), ..Setup::of(MIB) };
    let (one, two) = (setup(), setup());
    let meters = [Arc::clone(&one.meter), Arc::clone(&two.meter)];
    let (mut one, mut two) = (rig.connect(disk, one), rig.connect(disk, two));
    for step in 0..10 {
        assert_eq!(one.write(0, step * 4096, &[1; 4096]), Ok(()));
        assert_eq!(two.read(step * 4096, 512), Ok(vec![1; 512]));
    }
    assert!(two.read(MIB, 512).is_err());
    one.send(&request(command::FLUSH, 9, 0, 0));
    assert_eq!(one.reply(9, 0), Ok(vec![]));
    let of = |meter: &orlop::meter::Meter, op| {
        let told = meter.snapshot();
        let op = told.op(op);
        (op.requests, op.bytes, op.errors)
    };
    assert_eq!(of(&meters[0], Op::Write), (10, 40960, 0));
    assert_eq!(of(&meters[0], Op::Flush), (1, 0, 0));
    assert_eq!(of(&meters[0], Op::Read), (0, 0, 0));
    assert_eq!(of(&meters[1], Op::Read), (11, 5120, 1));
    assert_eq!(of(&export, Op::Write), (10, 40960, 0));
    assert_eq!(of(&export, Op::Read), (11, 5120, 1));
    let told = export.snapshot();
    assert_eq!((told.in_flight, told.connections), (0, 2));
    let reads = told.op(Op::Read);
    assert!(reads.percentile(0.5) <= reads.percentile(0.99));
    assert!(reads.percentile(1.0) <= reads.max());
    assert!(reads.max() > Duration::ZERO, "a read of a file takes time");
    drop(one);
    until("one is gone", || export.snapshot().connections == 1);
    assert_eq!(meters[0].snapshot().connections, 0);
    drop(two);
    rig.close();
}

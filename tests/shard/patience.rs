//! Peers that stop: each is waited for as long as its connection's limits say, and no longer.

use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use orlop::transport::nbd::ClientLimits;

use crate::rig::{MIB, Peer, Rig, Setup, command, request};

const SHORT: Duration = Duration::from_millis(300);

fn impatient() -> ClientLimits {
    ClientLimits { payload_stall: SHORT, send_stall: SHORT, ..ClientLimits::default() }
}

/// What a peer does, and how many bytes it is told before it is cut off.
fn expect_cut(limits: ClientLimits, act: impl FnOnce(&mut Peer)) -> usize {
    let rig = Rig::new();
    let disk = rig.disk("a", 64 * MIB);
    let mut peer = rig.connect(disk, Setup { limits, ..Setup::of(64 * MIB) });
    let mut good = rig.connect(disk, Setup::of(64 * MIB));
    act(&mut peer);
    let told = peer.await_end();
    assert_eq!(good.read(0, 512), Ok(vec![0; 512]), "others are served");
    rig.close();
    told
}

#[test]
fn who_stops_inside_a_header_is_cut() {
    let header = request(command::READ, 1, 0, 512);
    assert_eq!(expect_cut(impatient(), |peer| peer.send(&header[..13])), 0);
}

#[test]
fn who_stops_inside_a_payload_is_cut() {
    for (len, sent) in [(4096, 0), (4096, 4095), (8 << 20, 100_000), (8 << 20, 5 << 20)] {
        let told = expect_cut(impatient(), |peer| {
            peer.send(&request(command::WRITE, 1, 0, len));
            peer.send(&vec![1; sent]);
        });
        assert_eq!(told, 0, "{sent} of {len}");
    }
}

#[test]
fn who_stops_inside_a_refused_payload_is_cut() {
    let told = expect_cut(impatient(), |peer| {
        peer.send(&request(command::WRITE, 1, 64 * MIB, 4096));
        peer.send(&[1; 1000]);
    });
    assert_eq!(told, 16, "the refusal");
}

#[test]
fn who_does_not_take_its_replies_is_cut() {
    let told = expect_cut(impatient(), |peer| {
        peer.send(&request(command::READ, 1, 0, 64 << 20));
        sleep(3 * SHORT);
    });
    assert!(told < 64 << 20, "all of it was sent");
}

#[test]
fn who_is_idle_for_long_is_closed_and_was_served_before() {
    let limits = ClientLimits { idle: Some(SHORT), ..ClientLimits::default() };
    let told = expect_cut(limits, |peer| {
        peer.send(&request(command::READ, 1, 0, 512));
        peer.send(&request(command::FLUSH, 2, 0, 0));
    });
    assert_eq!(told, 16 + 512 + 16);
}

#[test]
fn who_is_slow_but_goes_on_is_served() {
    const STALL: Duration = Duration::from_secs(4);
    const STEPS: u32 = 8;
    let limits =
        ClientLimits { payload_stall: STALL, send_stall: STALL, ..ClientLimits::default() };
    let rig = Rig::new();
    let disk = rig.disk("a", 64 * MIB);
    let mut peer = rig.connect(disk, Setup { limits, ..Setup::of(64 * MIB) });
    let len = STEPS << 20;
    peer.send(&request(command::WRITE, 1, 0, len));
    // Longer than the patience in all, and each part well within it.
    for _ in 0..STEPS {
        sleep(STALL * 5 / 4 / STEPS);
        peer.send(&vec![4; MIB as usize]);
    }
    assert_eq!(peer.reply(1, 0), Ok(vec![]));
    peer.send(&request(command::READ, 2, 0, len));
    for step in 0..STEPS {
        sleep(STALL * 5 / 4 / STEPS);
        if step == 0 {
            peer.receive(16);
        }
        assert!(peer.receive(MIB as usize).iter().all(|byte| *byte == 4));
    }
    rig.close();
}

#[test]
fn a_connection_of_one_request_answers_all_it_is_sent() {
    let rig = Rig::new();
    let disk = rig.disk("a", MIB);
    let limits = ClientLimits { requests: 0, bytes: 0, ..ClientLimits::default() };
    let setup = Setup { limits, ..Setup::of(MIB) };
    let meter = Arc::clone(&setup.meter);
    let mut peer = rig.connect(disk, setup);
    let many: Vec<u8> =
        (0..100).flat_map(|cookie| request(command::READ, cookie, cookie * 512, 512)).collect();
    peer.send(&many);
    for cookie in 0..100 {
        assert_eq!(peer.reply(cookie, 512), Ok(vec![0; 512]), "in their order: one at a time");
    }
    assert_eq!(meter.snapshot().in_flight, 0);
    rig.close();
}

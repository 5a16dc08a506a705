//! Many VDIs at once, and what they cost. The numbers are told, not judged: machines differ. Only
//! the memory has a bound.

use std::time::{Duration, Instant};

use orlop::sr::DataFormat;

use super::peer::{Changer, Kind, Op, Peer};
use super::rig::{MIB, Rig, Shape, may_mount, vdi};

/// Resident memory of this process, in KiB.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn told(name: &str, times: &mut [Duration]) {
    times.sort();
    let (middle, most) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{name}: median {middle:?}, most {most:?}");
}

/// `cargo test --test live -- --ignored --exact crowd::five_hundred_vdis --nocapture`
#[test]
#[ignore = "takes long; measures, and wants the machine for itself"]
fn five_hundred_vdis() {
    let rig = Rig::new(Shape { mount: may_mount(), shards: 2, ..Shape::default() });
    let before = resident_kib();
    for number in 1..=500 {
        rig.create(number, 100 << 30, DataFormat::Vhd);
    }
    let made = resident_kib();
    let mut verbs = Vec::new();
    for number in 1..=500 {
        let start = Instant::now();
        let access = rig.attach(number);
        verbs.push(start.elapsed());
        assert!(!access.nbd_uri.is_empty());
    }
    told("vdi_attach", &mut verbs);
    told("of that, to open and show it", &mut rig.times.lock().unwrap());
    let attached = resident_kib();
    println!("resident: {before} KiB, {made} with the files made, {attached} with 500 attached");
    assert!(attached < 300 << 10, "{attached} KiB");
    rig.stop();
}

/// `cargo test --test live -- --ignored --exact crowd::how_long_writers_wait --nocapture`
#[test]
#[ignore = "measures, and wants the machine for itself"]
fn how_long_writers_wait() {
    let rig = Rig::new(Shape { mount: may_mount(), ..Shape::default() });
    rig.create(1, 1 << 40, DataFormat::Vhd);
    rig.attach(1);
    let mut peer = Peer::connect(&rig.socket(), &vdi(1).to_string()).unwrap();
    let (over, is_over) = std::sync::mpsc::channel::<()>();
    let writer = std::thread::spawn(move || {
        let mut waits = Vec::new();
        for step in 0.. {
            if is_over.try_recv().is_ok() {
                break;
            }
            let op = Op { kind: Kind::Write, first: step * 64 % (MIB / 8), count: 8, stamp: step };
            let start = Instant::now();
            peer.carry_out(&op).unwrap();
            waits.push(start.elapsed());
        }
        waits
    });
    let mut calls = Vec::new();
    for number in 10..30 {
        std::thread::sleep(Duration::from_millis(100));
        let start = Instant::now();
        rig.call(rig.snapshot(1, number));
        calls.push(start.elapsed());
    }
    over.send(()).unwrap();
    let mut waits = writer.join().unwrap();
    told("vdi_snapshot of a TiB in use", &mut calls);
    waits.sort();
    let longest: Vec<_> = waits.iter().rev().take(25).collect();
    println!("{} writes, the longest: {longest:?}", waits.len());
    rig.stop();
}

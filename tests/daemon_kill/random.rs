//! Many callers, and a daemon that is killed at random, over and over.

use std::path::Path;
use std::time::Duration;

use orlop::api::client::{CallError, call};
use orlop::engine::units::DiskOffset;
use serde_json::{Value, json};

use crate::house::House;
use crate::looking::{Seen, disk, done, is_gone, vdi};

/// Rounds, unless ORLOP_DAEMON_KILL_ROUNDS says how many.
const ROUNDS: u64 = 12;
const CALLERS: u64 = 3;
const VDIS: u64 = 8;
const SECTORS: u64 = 5000;

/// Numbers that look random and are the same for the same seed.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn draw(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) % most
    }
}

fn number_of(draw: u64) -> u8 {
    u8::try_from(draw + 1).unwrap()
}

/// Some call; which of them are possible depends on what there is.
fn any_call(dice: &mut Dice, sr: &str) -> (&'static str, Value) {
    let (a, b) = (number_of(dice.draw(VDIS)), number_of(dice.draw(VDIS)));
    let (one, two) = (vdi(a).to_string(), vdi(b).to_string());
    let label = format!("disk {b}");
    let fork = json!({ "sr": sr, "source": one, "dest": two, "label": label });
    let of_one = json!({ "sr": sr, "vdi": one });
    let with = |more: Value| {
        let mut params = of_one.clone();
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        params
    };
    match dice.draw(14) {
        0..=2 => {
            let format = if a == 1 { "raw" } else { "vhd" };
            let label = format!("disk {a}");
            ("vdi_create", with(json!({ "size": SECTORS * 512, "format": format, "label": label })))
        }
        3 => ("vdi_delete", of_one),
        4 | 5 => ("vdi_snapshot", fork),
        6 | 7 => ("vdi_clone", fork),
        8 => ("vdi_resize", with(json!({ "size": (SECTORS + dice.draw(9999)) * 512 }))),
        9 => ("sr_gc", json!({ "sr": sr })),
        10 => ("vdi_lock", with(json!({ "user": "me", "force": true }))),
        11 => ("vdi_unlock", with(json!({ "user": "me" }))),
        12 => ("vdi_attach", of_one),
        _ => ("vdi_detach", of_one),
    }
}

/// Calls until nobody answers any more; how many calls succeeded.
fn pester(socket: &Path, sr: &str, seed: u64) -> u64 {
    let mut dice = Dice::new(seed);
    let mut done = 0;
    loop {
        let (method, params) = any_call(&mut dice, sr);
        match call(socket, method, params) {
            Ok(_) => done += 1,
            Err(error) if is_gone(&error) => return done,
            Err(CallError::Failed { name, message, .. }) => {
                assert!(name != "EIO", "seed {seed}: {method}: {message}");
            }
            Err(error) => panic!("seed {seed}: {method}: {error}"),
        }
    }
}

#[test]
fn a_daemon_killed_at_random_leaves_a_sound_repository() {
    let set = std::env::var("ORLOP_DAEMON_KILL_ROUNDS").ok();
    let rounds = set.map_or(ROUNDS, |set| set.parse().unwrap());
    let house = House::new();
    let mut daemon = house.start(&["--no-fuse"]);
    let sr = house.sr("sr");
    let (socket, place) = (house.socket(), house.path("sr"));
    let mut dice = Dice::new(0x0123_4567);
    let (mut looked, mut calls) = (0, 0);
    for round in 0..rounds {
        let after = Duration::from_millis(30 + dice.draw(300));
        std::thread::scope(|scope| {
            let callers: Vec<_> = (0..CALLERS)
                .map(|caller| {
                    let (socket, sr) = (&socket, &sr);
                    scope.spawn(move || pester(socket, sr, round * CALLERS + caller + 1))
                })
                .collect();
            std::thread::sleep(after);
            daemon.kill();
            calls += callers.into_iter().map(|caller| caller.join().unwrap()).sum::<u64>();
        });
        println!("round {round}: killed after {after:?}");
        daemon = house.start(&["--no-fuse"]);
        // What was attached is attached again, and lets itself be detached.
        let srs = done(&socket, "sr_list", json!({}));
        for attached in srs["srs"][0]["vdis"].as_array().unwrap() {
            done(&socket, "vdi_detach", json!({ "sr": sr, "vdi": attached }));
        }
        looked += look_and_mark(&socket, &sr, &place);
    }
    daemon.stop();
    println!("{rounds} rounds, {calls} calls succeeded, {looked} VDIs looked at");
    assert!(calls > rounds && looked as u64 > rounds / 2, "the callers hardly did anything");
}

/// Labels and marks are of one VDI each; new VDIs get a mark.
fn look_and_mark(socket: &Path, sr: &str, place: &Path) -> usize {
    let seen = Seen::at(socket, sr, place);
    let scan = done(socket, "sr_scan", json!({ "sr": sr }));
    for (uuid, facts) in &seen.vdis {
        let number = u8::from_str_radix(&uuid[..2], 16).unwrap();
        assert_eq!(facts["label"], format!("\"disk {number}\""));
        let mark: u8 = facts["mark"].parse().unwrap();
        assert!(u64::from(mark) <= VDIS, "{uuid} begins with {mark}");
        if mark == 0 && facts["read_only"] == "false" {
            let mut disk = disk(place, &scan, uuid, true);
            disk.write(DiskOffset::new(0), &[number; 512]).unwrap();
            disk.flush().unwrap();
        }
    }
    seen.vdis.len()
}

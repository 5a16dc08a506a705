//! Every verb, with the daemon killed before each of its steps.

use std::path::Path;
use std::process::Command;

use orlop::api::client::call;
use orlop::engine::units::DiskOffset;
use orlop::sr::{DeviceConfig, Probed, SrUuid, probe};
use serde_json::{Value, json};

use crate::house::House;
use crate::looking::{Seen, disk, done, is_gone, vdi};

/// Most steps of a verb.
const STEPS_MAX: u32 = 200;

/// An SR with something of everything, and a daemon's memory of it, kept to begin from.
struct Stage {
    house: House,
    sr: String,
    /// An SR that is made, attached, detached and removed.
    other: String,
}

/// A verb, and what must be called before.
struct Verb {
    name: &'static str,
    before: Vec<(&'static str, Value)>,
    method: &'static str,
    params: Value,
}

impl Stage {
    fn new() -> Self {
        let house = House::new();
        let daemon = house.start(&["--no-fuse"]);
        let socket = house.socket();
        let (sr, other) = (SrUuid::random().to_string(), SrUuid::random().to_string());
        let stage = Self { house, sr, other };
        let config = json!({ "location": stage.house.path("sr").to_str().unwrap() });
        let named = json!({ "sr": stage.sr, "driver": "file", "config": config });
        done(&socket, "sr_create", named.clone());
        done(&socket, "sr_attach", named);
        let of = |number: u8, more: Value| stage.of(number, more);
        for (number, format) in [(1, "vhd"), (2, "vhd"), (4, "vhd"), (5, "raw")] {
            let more = json!({ "size": 40_000 * 512, "format": format, "label": format!("disk {number}") });
            done(&socket, "vdi_create", of(number, more));
        }
        let label = json!({ "label": "disk 3" });
        done(&socket, "vdi_snapshot", stage.derive(2, 3, label));
        done(&socket, "vdi_lock", of(4, json!({ "user": "me" })));
        let scan = done(&socket, "sr_scan", json!({ "sr": stage.sr }));
        daemon.stop();
        for number in [1, 2, 5] {
            let uuid = vdi(number).to_string();
            let mut disk = disk(&stage.house.path("sr"), &scan, &uuid, true);
            disk.write(DiskOffset::new(0), &[number; 512]).unwrap();
            disk.flush().unwrap();
        }
        stage.copy("", "master");
        stage
    }

    fn of(&self, number: u8, more: Value) -> Value {
        let mut params = json!({ "sr": self.sr, "vdi": vdi(number).to_string() });
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        params
    }

    fn derive(&self, from: u8, to: u8, more: Value) -> Value {
        let (source, dest) = (vdi(from).to_string(), vdi(to).to_string());
        let mut params = json!({ "sr": self.sr, "source": source, "dest": dest });
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        params
    }

    fn copy(&self, from: &str, to: &str) {
        let (from, to) = (self.house.path(from), self.house.path(to));
        std::fs::create_dir_all(to.join("d")).unwrap();
        for name in ["sr", "other", "d/state"] {
            let _missing = std::fs::remove_dir_all(to.join(name));
            if from.join(name).exists() {
                let mut copy = Command::new("cp");
                copy.args(["-a", "--sparse=always"]).arg(from.join(name)).arg(to.join(name));
                assert!(copy.status().unwrap().success());
            }
        }
    }

    fn other(&self) -> Value {
        let config = json!({ "location": self.house.path("other").to_str().unwrap() });
        json!({ "sr": self.other, "driver": "file", "config": config })
    }

    /// The other SR, if it is there.
    fn probed(&self) -> Option<SrUuid> {
        let place = self.house.path("other").to_str().unwrap().to_owned();
        let config = DeviceConfig([("location".to_owned(), place)].into());
        let probed: Option<Probed> = probe("file", &config).ok();
        probed.and_then(|probed| probed.sr)
    }

    fn seen(&self) -> (Seen, Option<SrUuid>) {
        let seen = Seen::at(&self.house.socket(), &self.sr, &self.house.path("sr"));
        (seen, self.probed())
    }

    fn verbs(&self) -> Vec<Verb> {
        let sr = || json!({ "sr": self.sr });
        let named = |label: &str| json!({ "label": label });
        let mut verbs = Vec::new();
        let mut verb = |name, before: Vec<(&'static str, Value)>, method, params| {
            verbs.push(Verb { name, before, method, params });
        };
        let attached = |number| ("vdi_attach", self.of(number, json!({})));
        let size = json!({ "size": 9000 * 512, "label": "new" });
        verb("create", vec![], "vdi_create", self.of(9, size.clone()));
        let mut raw = size;
        raw["format"] = json!("raw");
        verb("create raw", vec![], "vdi_create", self.of(9, raw));
        verb("delete", vec![], "vdi_delete", self.of(1, json!({})));
        verb("delete what has children", vec![], "vdi_delete", self.of(3, json!({})));
        verb("snapshot", vec![], "vdi_snapshot", self.derive(1, 9, named("s")));
        verb("snapshot of raw", vec![], "vdi_snapshot", self.derive(5, 9, named("s")));
        let live = self.derive(1, 9, named("s"));
        verb("snapshot of what is in use", vec![attached(1)], "vdi_snapshot", live);
        verb("clone", vec![], "vdi_clone", self.derive(1, 9, named("c")));
        verb("clone of a snapshot", vec![], "vdi_clone", self.derive(3, 9, named("c")));
        let large = json!({ "size": 9_000_000_u64 * 512 });
        verb("resize", vec![], "vdi_resize", self.of(1, large));
        verb("lock", vec![], "vdi_lock", self.of(1, json!({ "user": "me" })));
        verb("unlock", vec![], "vdi_unlock", self.of(4, json!({ "user": "me" })));
        verb("describe", vec![], "vdi_describe", self.of(1, named("else")));
        verb("attach", vec![], "vdi_attach", self.of(1, json!({})));
        verb("detach", vec![attached(1)], "vdi_detach", self.of(1, json!({})));
        let deleted = ("vdi_delete", self.of(3, json!({})));
        verb("gc", vec![deleted], "sr_gc", sr());
        verb("create an SR", vec![], "sr_create", self.other());
        let made = ("sr_create", self.other());
        verb("delete an SR", vec![made.clone()], "sr_delete", self.other());
        verb("attach an SR", vec![made.clone()], "sr_attach", self.other());
        let there = vec![made, ("sr_attach", self.other())];
        verb("detach an SR", there, "sr_detach", json!({ "sr": self.other }));
        verbs
    }

    /// Begins anew, and kills the daemon before this step of the verb: what the next one finds, and
    /// whether the verb was done before it came to that.
    fn run(&self, verb: &Verb, step: u32) -> ((Seen, Option<SrUuid>), bool) {
        self.copy("master", "");
        let die = self.house.path("die");
        let mut daemon =
            self.house.start_with(&["--no-fuse"], &[("ORLOP_TEST_DIE", die.to_str().unwrap())]);
        let socket = self.house.socket();
        for (method, params) in &verb.before {
            done(&socket, method, params.clone());
        }
        put(&die, step);
        let result = call(&socket, verb.method, verb.params.clone());
        let place = format!("{}, step {step}", verb.name);
        let whole = match &result {
            Ok(_) => true,
            Err(error) => {
                assert!(is_gone(error), "{place}: {error}");
                let _killed = daemon.await_end();
                false
            }
        };
        assert_eq!(daemon.has_ended(), !whole, "{place}");
        std::fs::remove_file(&die).unwrap();
        daemon.kill();
        let daemon = self.house.start(&["--no-fuse"]);
        let seen = self.seen();
        daemon.kill();
        (seen, whole)
    }

    /// What there is before the verb, as a new daemon sees it.
    fn before(&self, verb: &Verb) -> (Seen, Option<SrUuid>) {
        self.copy("master", "");
        let daemon = self.house.start(&["--no-fuse"]);
        for (method, params) in &verb.before {
            done(&self.house.socket(), method, params.clone());
        }
        let seen = self.seen();
        daemon.kill();
        seen
    }
}

/// Whole before it has its name: the daemon looks at any time.
fn put(die: &Path, step: u32) {
    let temporary = die.with_extension("tmp");
    std::fs::write(&temporary, step.to_string()).unwrap();
    std::fs::rename(&temporary, die).unwrap();
}

#[test]
fn a_daemon_killed_at_any_step_of_any_verb_leaves_the_old_or_the_new() {
    if !cfg!(debug_assertions) {
        println!("SKIPPED: only a debug build can be told where to end");
        return;
    }
    let stage = Stage::new();
    let mut kills = 0;
    for verb in stage.verbs() {
        let before = stage.before(&verb);
        let mut found = Vec::new();
        let after = loop {
            let step = u32::try_from(found.len()).unwrap();
            assert!(step < STEPS_MAX, "{} does not end", verb.name);
            let (seen, whole) = stage.run(&verb, step);
            if whole {
                break seen;
            }
            found.push(seen);
        };
        kills += found.len();
        let new = found.iter().filter(|seen| **seen == after).count();
        println!("{}: {} steps, the new state after {new} kills", verb.name, found.len());
        assert!(!found.is_empty(), "{} changes nothing", verb.name);
        for (step, seen) in found.iter().enumerate() {
            assert!(
                *seen == before || *seen == after,
                "{}, killed before step {step}: {seen:#?}\nbefore: {before:#?}\nafter: {after:#?}",
                verb.name
            );
        }
    }
    println!("{kills} kills");
}

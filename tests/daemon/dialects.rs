//! The management socket where VDIs are really served: the same scripts that `tests/management.rs`
//! runs over a stand-in.

use std::path::Path;

use crate::foreign;
use crate::house::House;
use crate::scripts::{Small, run_script};

/// Where VDIs are served, their own files are in use or not.
const SERVED: &str = "";

#[test]
fn the_specification_holds_where_vdis_are_served() {
    if !foreign::have(&["fusermount3", "python3"]) {
        return;
    }
    let (one, other) = (House::new(), House::new());
    let (first, second) = (one.start(&[]), other.start(&[]));
    let small = Small::new(1 << 20);
    let sockets = [one.socket(), other.socket()];
    let place = one.path("place");
    std::fs::create_dir(&place).unwrap();
    let arguments = [&sockets[0], &sockets[1], &*place, small.path(), Path::new(SERVED)];
    let said = run_script("sm_conformance.py", &arguments);
    println!("{}", said.lines().last().unwrap_or_default());
    first.stop();
    second.stop();
}

#[test]
fn xapis_calls_and_many_clients_are_served_where_vdis_are() {
    if !foreign::have(&["fusermount3", "python3"]) {
        return;
    }
    let house = House::new();
    let daemon = house.start(&[]);
    let place = house.path("place");
    std::fs::create_dir(&place).unwrap();
    run_script("smapi.py", &[&house.socket(), &place, Path::new(SERVED)]);
    let hammer = [&*house.socket(), &place, Path::new("16"), Path::new("40")];
    println!("{}", run_script("sm_hammer.py", &hammer));
    daemon.stop();
}

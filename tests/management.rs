//! The management socket, from outside: its dialects, its limits, and the specification's sentences
//! one by one, with Python's own XML-RPC client as the caller.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where its set-up fails")]

#[path = "management/daemon.rs"]
mod daemon;

use orlop::api::ApiLimits;
use orlop::api::client::{self, CallError};
use serde_json::json;

use daemon::{Daemon, Small, run_script};

/// A call as it was sent in 2010 (spec 000).
const VDI_CREATE: &[u8] = include_bytes!("management/vdi_create.xml");

const SR: &str = "87b8646b-b800-9500-cb7b-af3b74e02f5c";

#[test]
fn our_own_client_makes_an_sr_and_lists_it() {
    let daemon = Daemon::new();
    let config = json!({"location": daemon.location()});
    let sr = json!({"sr": SR, "driver": "file", "config": config, "label": "lot"});
    assert_eq!(daemon.json("sr_create", sr).unwrap(), json!(null));
    let sr = json!({"sr": SR, "driver": "file", "config": config});
    assert_eq!(daemon.json("sr_attach", sr).unwrap(), json!(null));
    let made = daemon.json("vdi_create", json!({"sr": SR, "size": 1 << 20, "label": "a"})).unwrap();
    let listing = daemon.json("sr_scan", json!({"sr": SR})).unwrap();
    assert_eq!(listing["label"], "lot");
    assert_eq!(listing["vdis"][0]["uuid"], made["vdi"]);
    assert_eq!(listing["vdis"][0]["label"], "a");
    let srs = daemon.json("sr_list", json!({})).unwrap();
    assert_eq!(srs["srs"][0]["sr"], SR);
    let failed = daemon.json("vdi_resize", json!({"sr": SR, "vdi": SR, "size": 512})).unwrap_err();
    let CallError::Failed { errno, name, message, hint } = failed else { panic!("{failed}") };
    assert_eq!((errno, name.as_str()), (19, "ENODEV"));
    assert!(message.contains(SR) && hint.is_some());
}

#[test]
fn the_specification_holds_sentence_by_sentence() {
    let one = Daemon::new();
    let other = Daemon::with("other", ApiLimits::default());
    let small = Small::new(1 << 20);
    let place = tempfile::tempdir().unwrap();
    let in_use = one.dir.path().join("in-use");
    let said = run_script(
        "sm_conformance.py",
        &[&one.socket(), &other.socket(), place.path(), small.path(), &in_use],
    );
    assert!(said.lines().filter(|line| line.starts_with("ok ")).count() >= 90, "{said}");
    println!("{}", said.lines().last().unwrap_or_default());
}

#[test]
fn the_call_of_the_specification_is_understood_byte_for_byte() {
    let daemon = Daemon::new();
    let sr = "668da5be-32e8-1fac-6d1f-7590e2fa1c09";
    let config = json!({"location": daemon.location()});
    for verb in ["sr_create", "sr_attach"] {
        daemon.json(verb, json!({"sr": sr, "driver": "file", "config": config})).unwrap();
    }
    for route in ["/sm", "/sm/file", "/smapi", "/smapi/file"] {
        let answer = client::post(&daemon.socket(), route, "text/xml", VDI_CREATE).unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.contains("<name>uuid</name>"), "{answer}");
        assert!(answer.contains("<name>location</name>"), "{answer}");
    }
    let listing = daemon.json("sr_scan", json!({"sr": sr})).unwrap();
    let sizes: Vec<_> =
        listing["vdis"].as_array().unwrap().iter().map(|vdi| &vdi["size"]).collect();
    assert_eq!(sizes, [104_857_600; 4]);
}

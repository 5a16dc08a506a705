//! The management socket, from outside: its dialects, its limits, and the specification's sentences
//! one by one, with Python's own XML-RPC client as the caller.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where its set-up fails")]

#[path = "management/daemon.rs"]
mod daemon;

use orlop::api::client::CallError;
use serde_json::json;

use daemon::Daemon;

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

//! The management socket, from outside: its dialects, its limits, and the specification's sentences
//! one by one, with Python's own XML-RPC client as the caller.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where its set-up fails")]

#[path = "management/daemon.rs"]
mod daemon;
#[path = "support/foreign.rs"]
mod foreign;
#[path = "management/hostile.rs"]
mod hostile;
#[path = "support/scripts.rs"]
mod scripts;

use std::path::Path;

use orlop::api::ApiLimits;
use orlop::api::client::{self, CallError};
use orlop::dialect::argv;
use serde_json::{Value, json};

use daemon::Daemon;
use scripts::{Small, run_script};

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
    if !foreign::have(&["python3"]) {
        return;
    }
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

#[test]
fn xapis_calls_are_answered_as_its_plugins_answer() {
    if !foreign::have(&["python3"]) {
        return;
    }
    let daemon = Daemon::new();
    let place = tempfile::tempdir().unwrap();
    let in_use = daemon.dir.path().join("in-use");
    run_script("smapi.py", &[&daemon.socket(), place.path(), &in_use]);
}

#[test]
fn many_clients_with_mixed_verbs_leave_a_whole_sr() {
    if !foreign::have(&["python3"]) {
        return;
    }
    let daemon = Daemon::new();
    let place = tempfile::tempdir().unwrap();
    let calls = std::env::var("ORLOP_HAMMER_CALLS").unwrap_or_else(|_| "60".to_owned());
    let arguments = [&daemon.socket(), place.path(), Path::new("16"), Path::new(&calls)];
    println!("{}", run_script("sm_hammer.py", &arguments));
}

#[test]
fn a_command_line_of_the_original_form_is_a_call() {
    let daemon = Daemon::new();
    let dconf = format!("<dconf><location>{}</location></dconf>", daemon.location().display());
    let run = |words: &[&str]| {
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        let body = match argv::call(&dconf, &words) {
            Ok(body) => body,
            Err(printed) => return printed,
        };
        let answer = client::post(&daemon.socket(), "/sm/file", "text/xml", &body).unwrap();
        argv::printed(&answer)
    };
    let vdi = "98de866e-b035-4b1a-a571-613bff542b89";
    for words in [
        &["sr_create", SR, "0"][..],
        &["sr_attach", SR],
        &["vdi_create", SR, vdi, "1048576"],
        &["vdi_lock", SR, vdi, "FALSE", "me"],
        &["vdi_unlock", SR, vdi, "me"],
    ] {
        assert_eq!(run(words), argv::Printed::default(), "{words:?}");
    }
    let attached = run(&["vdi_attach", SR, vdi]);
    assert!(attached.stdout.contains("<path>") && attached.status == 0, "{attached:?}");
    let scanned = run(&["sr_scan", SR]);
    assert!(scanned.stdout.contains(&format!("<uuid>{vdi}</uuid>")), "{scanned:?}");
    let busy = run(&["vdi_delete", SR, vdi]);
    assert_eq!((busy.status, busy.stdout.as_str()), (16, ""));
    assert!(busy.stderr.contains("vdi_detach"), "{busy:?}");
    assert_eq!(run(&["vdi_create", SR, vdi]).status, 22);
    assert_eq!(run(&["vdi_paint", SR, vdi]).status, 38);
}

/// The keys of an object of the description, all the way down.
fn as_described(schema: &Value, found: &Value, place: &str) {
    match found {
        Value::Object(found) if schema.get("properties").is_some() => {
            let known = schema["properties"].as_object().unwrap();
            let keys = |map: &serde_json::Map<String, Value>| {
                map.keys().cloned().collect::<std::collections::BTreeSet<_>>()
            };
            assert_eq!(keys(found), keys(known), "{place}");
            for (name, value) in found {
                as_described(&known[name], value, &format!("{place}.{name}"));
            }
        }
        Value::Array(items) => {
            for item in items {
                as_described(&schema["items"], item, place);
            }
        }
        other => {
            let kind = match other {
                Value::Null => "null",
                Value::Bool(_) => "boolean",
                Value::Number(_) => "integer",
                Value::String(_) => "string",
                Value::Array(_) => "array",
                Value::Object(_) => "object",
            };
            assert!(schema["type"].to_string().contains(kind), "{place}: {other} as {schema}");
        }
    }
}

#[test]
fn results_are_what_the_description_says() {
    let daemon = Daemon::new();
    let openrpc = orlop::dialect::openrpc();
    let config = json!({"location": daemon.location()});
    let sr = json!({"sr": SR, "driver": "file", "config": config});
    let (one, two) =
        ("98de866e-b035-4b1a-a571-613bff542b89", "98de866e-b035-4b1a-a571-613bff542b8a");
    let of_sr = json!({"sr": SR});
    let of_vdi = json!({"sr": SR, "vdi": one});
    let mut seen = 0;
    for (method, params) in [
        ("sr_create", sr.clone()),
        ("sr_attach", sr.clone()),
        ("vdi_create", json!({"sr": SR, "vdi": one, "size": 1 << 20, "properties": {"a": "b"}})),
        ("vdi_describe", json!({"sr": SR, "vdi": one, "label": "new"})),
        ("vdi_resize", json!({"sr": SR, "vdi": one, "size": 2 << 20})),
        ("vdi_clone", json!({"sr": SR, "source": one, "dest": two})),
        ("vdi_snapshot", json!({"sr": SR, "source": one})),
        ("vdi_lock", json!({"sr": SR, "vdi": one, "user": "me", "lease_seconds": 60})),
        ("sr_scan", of_sr.clone()),
        ("vdi_unlock", json!({"sr": SR, "vdi": one, "user": "me"})),
        ("vdi_attach", of_vdi.clone()),
        ("sr_list", json!({})),
        ("sr_content_type", of_sr.clone()),
        ("vdi_detach", of_vdi.clone()),
        ("vdi_delete", of_vdi),
        ("sr_gc", of_sr.clone()),
        ("sr_detach", of_sr),
    ] {
        let result =
            daemon.json(method, params).unwrap_or_else(|error| panic!("{method}: {error}"));
        let methods = openrpc["methods"].as_array().unwrap();
        let row = methods.iter().find(|row| row["name"] == method).unwrap();
        as_described(&row["result"]["schema"], &result, method);
        seen += 1;
    }
    // All but the deletion of the SR, which still has a VDI.
    assert_eq!(seen + 1, openrpc["methods"].as_array().unwrap().len());
    let failed = daemon.json("sr_delete", sr).unwrap_err();
    assert!(matches!(failed, CallError::Failed { errno: 16, .. }), "{failed}");
}

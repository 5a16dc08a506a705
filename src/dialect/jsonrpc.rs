//! Our own dialect: JSON-RPC 2.0 with named parameters, for the command line and for scripts.
//!
//! Calls that are none have the negative codes of JSON-RPC; a verb that fails has the positive
//! number of the specification's error. Refuses parameters by position, and batches without end.

use serde_json::{Map, Value, json};

use super::Verbs;
use super::methods::Method;
use crate::control::command::AttachedSr;
use crate::control::{Command, Error, Listed, Listing, Outcome};
use crate::sr::{Collected, Failure, Kind};

/// Calls in a batch.
pub const BATCH_MAX: usize = 64;

const PARSE_ERROR: i32 = -32700;
const INVALID_REQUEST: i32 = -32600;
const METHOD_NOT_FOUND: i32 = -32601;
const INVALID_PARAMS: i32 = -32602;

/// Answers a body. `None` when it asks for no answer: all of it are notifications.
pub fn respond(body: &[u8], verbs: Verbs<'_>) -> Option<Vec<u8>> {
    let answer = match serde_json::from_slice(body) {
        Err(error) => {
            let failure = Failure::new(Kind::Invalid, "the body", format!("{error}"))
                .advise("send one JSON object, or an array of them");
            Some(refused(Value::Null, PARSE_ERROR, failure.during("read the call")))
        }
        Ok(Value::Array(calls)) => batch(calls, verbs),
        Ok(call) => one(call, verbs),
    };
    answer.map(|answer| answer.to_string().into_bytes())
}

fn batch(calls: Vec<Value>, verbs: Verbs<'_>) -> Option<Value> {
    if calls.is_empty() || calls.len() > BATCH_MAX {
        let why = format!("it has {} calls, and 1 to {BATCH_MAX} may be sent at once", calls.len());
        return Some(not_a_call(Value::Null, "the batch", &why));
    }
    let answers: Vec<Value> = calls.into_iter().filter_map(|call| one(call, verbs)).collect();
    (!answers.is_empty()).then_some(Value::Array(answers))
}

fn one(call: Value, verbs: Verbs<'_>) -> Option<Value> {
    let Value::Object(mut call) = call else {
        return Some(not_a_call(Value::Null, "the call", "it is no JSON object"));
    };
    let id = call.remove("id");
    let answered = id.clone().unwrap_or(Value::Null);
    if !matches!(answered, Value::Null | Value::Number(_) | Value::String(_)) {
        return Some(not_a_call(Value::Null, "the member \"id\"", "it is no string and no number"));
    }
    if call.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return Some(not_a_call(answered, "the member \"jsonrpc\"", "it is not \"2.0\""));
    }
    let Some(Value::String(name)) = call.remove("method") else {
        return Some(not_a_call(answered, "the member \"method\"", "it is missing or no string"));
    };
    let answer = match understood(&name, call.remove("params")) {
        Err((code, failure)) => refused(answered, code, failure),
        Ok(command) => match verbs(command) {
            Ok(outcome) => json!({"jsonrpc": "2.0", "id": answered, "result": result(&outcome)}),
            Err(error) => failed(answered, i32::from(error.code.number()), &error),
        },
    };
    // A call without an id asks for no answer, whatever comes of it.
    id.is_some().then_some(answer)
}

fn understood(name: &str, params: Option<Value>) -> Result<Command, (i32, Failure)> {
    let method = Method::named(name).ok_or_else(|| {
        let name: String = name.chars().take(64).collect();
        let failure = Failure::new(Kind::Unsupported, format!("{name:?}"), "there is no such call");
        (METHOD_NOT_FOUND, failure.advise("GET /v1/openrpc.json lists the calls").during("call"))
    })?;
    let params = match params {
        None => Map::new(),
        Some(Value::Object(params)) => params,
        Some(_) => {
            let why = "parameters are passed by name, in an object";
            let failure = Failure::new(Kind::Invalid, "the member \"params\"", why);
            return Err((INVALID_PARAMS, failure.during(method.name)));
        }
    };
    method.command(&params).map_err(|failure| (INVALID_PARAMS, failure))
}

fn not_a_call(id: Value, place: &str, why: &str) -> Value {
    let failure = Failure::new(Kind::Invalid, place, why)
        .advise("send {\"jsonrpc\": \"2.0\", \"id\": 1, \"method\": ..., \"params\": {...}}");
    refused(id, INVALID_REQUEST, failure.during("understand the call"))
}

fn refused(id: Value, code: i32, failure: Failure) -> Value {
    failed(id, code, &failure.into())
}

fn failed(id: Value, code: i32, error: &Error) -> Value {
    let Failure { what, place, why, remedy, .. } = &error.failure;
    let hint = if remedy.is_empty() { Value::Null } else { json!(remedy) };
    let name = error.code.name();
    let data = json!({"name": name, "what": what, "where": place, "why": why, "hint": hint});
    let error = json!({"code": code, "message": error.to_string(), "data": data});
    json!({"jsonrpc": "2.0", "id": id, "error": error})
}

/// A result as JSON.
pub(super) fn result(outcome: &Outcome) -> Value {
    match outcome {
        Outcome::Done => Value::Null,
        Outcome::ContentType(content_type) => json!({"content_type": content_type}),
        Outcome::Scanned(listing) => of_listing(listing),
        Outcome::Vdi(vdi) => json!({"vdi": vdi.to_string()}),
        Outcome::Attached(access) => json!({
            "path": access.path,
            "nbd_uri": access.nbd_uri,
            "read_only": access.read_only,
        }),
        Outcome::Collected(collected) => of_collected(collected),
        Outcome::Srs(srs) => json!({"srs": srs.iter().map(of_sr).collect::<Vec<_>>()}),
    }
}

fn of_listing(listing: &Listing) -> Value {
    let findings = listing.findings.iter().map(|finding| {
        let broken = finding.broken.map(|vdi| vdi.to_string());
        json!({"name": finding.name, "problem": finding.problem, "vdi": broken})
    });
    json!({
        "sr": listing.sr.to_string(),
        "label": listing.label,
        "description": listing.description,
        "physical_utilisation": listing.physical_utilisation.get(),
        "virtual_allocation": listing.virtual_allocation.get(),
        "physical_size": listing.physical_size.get(),
        "default_vdi_visibility": listing.default_vdi_visibility,
        "vdis": listing.vdis.iter().map(of_listed).collect::<Vec<_>>(),
        "hidden": listing.hidden.iter().map(of_listed).collect::<Vec<_>>(),
        "findings": findings.collect::<Vec<_>>(),
    })
}

fn of_listed(vdi: &Listed) -> Value {
    let record = &vdi.record;
    json!({
        "uuid": vdi.uuid.to_string(),
        "size": vdi.size.get(),
        "utilisation": vdi.utilisation.get(),
        "locked": vdi.locked,
        "shareable": vdi.shareable,
        "read_only": vdi.read_only,
        "parent": vdi.parent.map(|parent| parent.to_string()),
        "strays": vdi.strays,
        "format": vdi.format.to_string(),
        "label": record.label,
        "description": record.description,
        "properties": record.properties,
        "snapshot_of": record.snapshot_of.map(|source| source.to_string()),
        "snapshot_time": record.snapshot_time,
        "created": record.created,
    })
}

fn of_collected(collected: &Collected) -> Value {
    let texts = |vdis: &[_]| vdis.iter().map(ToString::to_string).collect::<Vec<_>>();
    let left = collected.left.iter().map(|(vdi, why)| json!({"vdi": vdi.to_string(), "why": why}));
    json!({
        "removed": texts(&collected.removed),
        "merged": texts(&collected.merged),
        "left": left.collect::<Vec<_>>(),
        "space_before": collected.space.0.get(),
        "space_after": collected.space.1.get(),
    })
}

fn of_sr(sr: &AttachedSr) -> Value {
    json!({
        "sr": sr.sr.to_string(),
        "driver": sr.driver,
        "config": sr.config.0,
        "label": sr.label,
        "place": sr.place,
        "vdis": sr.vdis.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{BATCH_MAX, respond};
    use crate::control::{Command, Error, Outcome};
    use crate::sr::{Failure, Kind, VdiUuid};

    const SR: &str = "87b8646b-b800-9500-cb7b-af3b74e02f5c";

    fn asked(body: &str) -> (Option<Value>, usize) {
        let mut calls = 0;
        let mut verbs = |command: Command| {
            calls += 1;
            match command {
                Command::VdiCreate { vdi, .. } => {
                    Ok(Outcome::Vdi(vdi.unwrap_or(VdiUuid::from_bytes([1; 16]))))
                }
                Command::SrDetach { .. } => Ok(Outcome::Done),
                _ => Err(Error::from(Failure::new(Kind::NoSr, "SR x", "gone").during("sr_scan"))),
            }
        };
        let answer = respond(body.as_bytes(), &mut verbs);
        (answer.map(|bytes| serde_json::from_slice(&bytes).unwrap()), calls)
    }

    fn code(body: &str) -> i64 {
        let answer = asked(body).0.unwrap();
        answer["error"]["code"].as_i64().unwrap_or_else(|| unreachable!("{answer}"))
    }

    #[test]
    fn results_and_errors_have_their_shapes() {
        let call = json!({"jsonrpc": "2.0", "id": "a", "method": "vdi_create",
            "params": {"sr": SR, "size": 512}});
        let uuid = "01010101-0101-0101-0101-010101010101";
        let answer = json!({"jsonrpc": "2.0", "id": "a", "result": {"vdi": uuid}});
        assert_eq!(asked(&call.to_string()), (Some(answer), 1));
        let call = json!({"jsonrpc": "2.0", "id": 1, "method": "sr_scan", "params": {"sr": SR}});
        let answer = asked(&call.to_string()).0.unwrap();
        assert_eq!(answer["error"]["code"], 19);
        let data = &answer["error"]["data"];
        assert_eq!((&data["name"], &data["where"]), (&json!("ENODEV"), &json!("SR x")));
        assert!(data["hint"].is_string() && data["why"] == "gone" && data["what"] == "sr_scan");
    }

    #[test]
    fn calls_that_are_none_have_the_codes_of_json_rpc() {
        assert_eq!(code("{"), -32700);
        assert_eq!(code("\u{fffd}"), -32700);
        for none in ["1", "[]", "{}", r#"{"jsonrpc": "1.0", "id": 1, "method": "sr_list"}"#] {
            assert_eq!(code(none), -32600, "{none}");
        }
        assert_eq!(code(r#"{"jsonrpc": "2.0", "id": {}, "method": "sr_list"}"#), -32600);
        assert_eq!(code(r#"{"jsonrpc": "2.0", "id": 1, "method": "sr_paint"}"#), -32601);
        assert_eq!(code(r#"{"jsonrpc": "2.0", "id": 1, "method": "sr_scan"}"#), -32602);
        let by_place = r#"{"jsonrpc": "2.0", "id": 1, "method": "sr_scan", "params": ["x"]}"#;
        assert_eq!(code(by_place), -32602);
        let deep = "[".repeat(100_000);
        assert_eq!(code(&deep), -32700);
    }

    #[test]
    fn a_batch_is_answered_call_by_call_and_notifications_are_not() {
        let call = |id: Option<u32>| {
            let mut call = json!({"jsonrpc": "2.0", "method": "sr_detach", "params": {"sr": SR}});
            if let Some(id) = id {
                call["id"] = json!(id);
            }
            call
        };
        let (answer, calls) = asked(&json!([call(Some(1)), call(None), 7]).to_string());
        let answer = answer.unwrap();
        assert_eq!((answer.as_array().map(Vec::len), calls), (Some(2), 2));
        assert_eq!(answer[0], json!({"jsonrpc": "2.0", "id": 1, "result": null}));
        assert_eq!(answer[1]["error"]["code"], -32600);
        assert_eq!(asked(&json!([call(None)]).to_string()), (None, 1));
        assert_eq!(asked(&call(None).to_string()), (None, 1));
        let many = vec![call(None); BATCH_MAX + 1];
        assert_eq!(
            (code(&json!(many).to_string()), asked(&json!(many).to_string()).1),
            (-32600, 0)
        );
    }
}

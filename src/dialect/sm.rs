//! The Storage Manager API of the specification (spec 003) in its XML-RPC form (spec 000), as
//! `POST /sm` has it.
//!
//! A fault's code is the specification's error number, its string says what, where, why and what to
//! do. Success is the number zero, or what the call gives back: a document, or of a new VDI its
//! uuid and location. Refuses nothing that the verbs could decide.

use super::Verbs;
use super::documents;
use super::request::Request;
use super::xmlrpc::{self, Response, Value};
use crate::control::{Error, Outcome};
use crate::sr::{Failure, Kind, VdiUuid};

/// Answers a body. `driver`: the type of the SR, where the route names it.
pub fn respond(body: &[u8], driver: Option<&str>, verbs: Verbs<'_>) -> Vec<u8> {
    let response = match called(body, driver, verbs) {
        Ok(outcome) => Response::Value(result(&outcome)),
        Err(error) => Response::Fault(i32::from(error.code.number()), error.to_string()),
    };
    xmlrpc::write_response(&response)
}

fn called(body: &[u8], driver: Option<&str>, verbs: Verbs<'_>) -> Result<Outcome, Error> {
    let call = xmlrpc::read_call(body).map_err(|error| {
        Failure::new(Kind::Invalid, "the request", error)
            .advise("send one XML-RPC methodCall")
            .during("understand the call")
    })?;
    let command = Request::of(call, driver)?.command()?;
    verbs(command)
}

/// A new VDI: what its backend calls it, and where it is.
pub(super) fn new_vdi(vdi: VdiUuid) -> Value {
    let text = vdi.to_string();
    Value::map([("location", Value::text(&text)), ("uuid", Value::text(&text))])
}

fn result(outcome: &Outcome) -> Value {
    match outcome {
        Outcome::ContentType(content_type) => Value::Text(documents::content_type(content_type)),
        Outcome::Scanned(listing) => Value::Text(documents::listing(listing)),
        Outcome::Attached(access) => Value::Text(documents::access(access)),
        Outcome::Vdi(vdi) => new_vdi(*vdi),
        // Of ours, and not asked for here.
        Outcome::Done | Outcome::Collected(_) | Outcome::Srs(_) => Value::Int(0),
    }
}

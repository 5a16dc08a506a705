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
use crate::control::{Code, Command, Error, Outcome};
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
    let forks = matches!(command, Command::VdiClone { .. } | Command::VdiSnapshot { .. });
    verbs(command).map_err(|error| match error.failure.kind {
        // What these two answer where they are not supported the specification says by itself.
        Kind::Unsupported if forks => Error { code: Code::Eperm, ..error },
        _ => error,
    })
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

#[cfg(test)]
mod tests {
    use super::respond;
    use crate::control::{Command, Error};
    use crate::dialect::argv;
    use crate::sr::{Failure, Kind};

    /// What a call fails with on an SR that can do nothing.
    fn status(words: &[&str]) -> u8 {
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        let body = argv::call("<dconf/>", &words).expect("it is a call");
        let mut verbs = |command: Command| {
            let failure = Failure::new(Kind::Unsupported, "SR", "cannot").during(command.name());
            Err(Error::from(failure))
        };
        argv::printed(&respond(&body, Some("lvm"), &mut verbs)).status
    }

    #[test]
    fn what_an_sr_cannot_do_has_the_code_that_the_specification_gives_the_call() {
        const ID: &str = "87b8646b-b800-9500-cb7b-af3b74e02f5c";
        assert_eq!(status(&["vdi_clone", ID, ID, ID]), 1);
        assert_eq!(status(&["vdi_snapshot", ID, ID, ID]), 1);
        assert_eq!(status(&["vdi_lock", ID, ID, "FALSE", "me"]), 38);
        assert_eq!(status(&["vdi_unlock", ID, ID, "me"]), 38);
        assert_eq!(status(&["sr_delete", ID]), 38);
        assert_eq!(status(&["vdi_create", ID, ID, "512"]), 38);
        assert_eq!(status(&["vdi_resize", ID, ID, "512"]), 38);
    }
}

//! The command lines in which the Storage Manager API is spoken: the specification's original form,
//! and that of today's plugins.
//!
//! Words become the body of a request, and an answer becomes what is printed; whoever runs the
//! process carries both. Refuses command lines with words missing, and names them.

use std::collections::BTreeMap;

use super::faults;
use super::xml::{self, shown};
use super::xmlrpc::{self, Response, Value};
use crate::control::{Code, Error};
use crate::sr::{Failure, Kind};

/// What a process prints, and how it ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Printed {
    /// On standard output.
    pub stdout: String,
    /// On standard error.
    pub stderr: String,
    /// The exit status.
    pub status: u8,
}

impl Printed {
    /// A failure with one of the specification's codes.
    pub fn failed(code: Code, text: impl std::fmt::Display) -> Self {
        Self { stderr: format!("{text}\n"), status: code.number(), ..Self::default() }
    }
}

/// What stands behind the uuid of the SR, verb by verb: the specification's "Arguments". A word in
/// lower case becomes the VDI, the others arguments.
const VERBS: [(&str, &[&str]); 15] = [
    ("sr_create", &["SIZE"]),
    ("sr_delete", &[]),
    ("sr_attach", &[]),
    ("sr_detach", &[]),
    ("sr_content_type", &[]),
    ("sr_scan", &[]),
    ("vdi_create", &["vdi-uuid", "SIZE"]),
    ("vdi_delete", &["vdi-uuid"]),
    ("vdi_attach", &["vdi-uuid"]),
    ("vdi_detach", &["vdi-uuid"]),
    ("vdi_clone", &["source-vdi-uuid", "DEST-VDI-UUID"]),
    ("vdi_snapshot", &["source-vdi-uuid", "DEST-VDI-UUID"]),
    ("vdi_resize", &["vdi-uuid", "NEW-SIZE"]),
    ("vdi_lock", &["vdi-uuid", "FORCE", "USER-STRING"]),
    ("vdi_unlock", &["vdi-uuid", "USER-STRING"]),
];

/// The body for `POST /sm/<driver>` that says what a command line says: the driver's parameters as
/// an XML document, a verb, the uuid of the SR, and what the verb needs. Words beyond these are
/// further arguments of the call, such as a label.
///
/// # Errors
/// What to print when the words are no call.
pub fn call(dconf: &str, words: &[String]) -> Result<Vec<u8>, Printed> {
    body(dconf, words).map_err(|failure| {
        let error = Error::from(failure.during("understand the command line"));
        Printed::failed(error.code, error)
    })
}

fn body(dconf: &str, words: &[String]) -> Result<Vec<u8>, Failure> {
    let missing = |what: &str, usage: &str| {
        Failure::new(Kind::Invalid, format!("the argument {what}"), "it is missing")
            .advise(format!("orlop sm DRIVER DCONF-XML {usage}"))
    };
    let (verb, rest) = words.split_first().ok_or_else(|| missing("COMMAND", "COMMAND SR-UUID"))?;
    let (name, needed) = VERBS.iter().find(|(name, _)| name == verb).ok_or_else(|| {
        let known: Vec<_> = VERBS.iter().map(|(name, _)| *name).collect();
        let place = format!("the command {:?}", shown(verb));
        Failure::new(Kind::Unsupported, place, "there is no such command")
            .advise(format!("use one of {}", known.join(", ")))
    })?;
    let usage = format!("{name} SR-UUID {}", needed.join(" ").to_uppercase());
    let (sr, rest) = rest.split_first().ok_or_else(|| missing("SR-UUID", &usage))?;
    if let Some(what) = needed.get(rest.len()) {
        return Err(missing(&what.to_uppercase(), &usage));
    }
    let mut members = BTreeMap::from(
        [("command", *name), ("sr_uuid", sr)].map(|(name, text)| (name.into(), Value::text(text))),
    );
    let mut args = rest;
    if needed.first().is_some_and(|what| what.ends_with("vdi-uuid"))
        && let Some((vdi, rest)) = rest.split_first()
    {
        members.insert("vdi_uuid".to_owned(), Value::text(vdi));
        args = rest;
    }
    members.insert("args".to_owned(), Value::List(args.iter().map(Value::text).collect()));
    members.insert("device_config".to_owned(), Value::Map(parameters(dconf)?));
    Ok(xmlrpc::write_call(name, &[Value::Map(members)]))
}

/// The driver's parameters: one element in the document's element for each.
fn parameters(dconf: &str) -> Result<BTreeMap<String, Value>, Failure> {
    const EXAMPLE: &str = "pass a document such as <dconf><location>/srv/sr</location></dconf>";
    let wrong = |why: String| Failure::new(Kind::Invalid, "DCONF-XML", why).advise(EXAMPLE);
    let document = xml::parse(dconf.as_bytes()).map_err(|error| wrong(error.to_string()))?;
    let root = &document.root;
    if !root.text.trim().is_empty() {
        let why = format!("<{}> holds text, not parameters", shown(&root.name));
        return Err(wrong(document.wrong(root, why).to_string()));
    }
    let mut parameters = BTreeMap::new();
    for element in &root.children {
        let name = element.name.clone();
        let odd = |why: &str| wrong(document.wrong(element, format!("<{name}> {why}")).to_string());
        if !element.children.is_empty() {
            return Err(odd("holds more than text"));
        }
        if parameters.insert(name.clone(), Value::text(element.text.trim())).is_some() {
            return Err(odd("is there twice"));
        }
    }
    Ok(parameters)
}

/// What to print of the answer to such a request: a document, or nothing, or why it failed.
pub fn printed(answer: &[u8]) -> Printed {
    match xmlrpc::read_response(answer) {
        Ok(Response::Value(Value::Text(stdout))) => Printed { stdout, ..Printed::default() },
        Ok(Response::Value(_)) => Printed::default(),
        Ok(Response::Fault(code, text)) => Printed {
            stderr: format!("{text}\n"),
            status: u8::try_from(code).ok().filter(|code| *code != 0).unwrap_or(Code::Eio.number()),
            ..Printed::default()
        },
        Err(error) => Printed::failed(Code::Eio, format!("the daemon's answer is none: {error}")),
    }
}

/// The type of the SRs that a plugin of this name is for: `FileSR` is for `file`. `None` when the
/// name is no plugin's.
pub fn plugin_driver(name: &str) -> Option<String> {
    let driver = name.strip_suffix("SR")?;
    let sound = !driver.is_empty() && driver.bytes().all(|letter| letter.is_ascii_alphanumeric());
    sound.then(|| driver.to_ascii_lowercase())
}

/// What a plugin prints when it was not called with one word that is a call. It ends with 0, as
/// always.
pub fn plugin_misused(why: &str) -> Vec<u8> {
    let text = faults::bad_request(why);
    xmlrpc::write_response(&Response::Fault(faults::BAD_REQUEST, text))
}

/// What a plugin prints when the daemon does not answer.
pub fn plugin_unanswered(why: &str) -> Vec<u8> {
    xmlrpc::write_response(&Response::Fault(faults::UNEXPECTED, faults::unanswered(why)))
}

#[cfg(test)]
mod tests {
    use super::{Printed, VERBS, call, plugin_driver, plugin_misused, printed};
    use crate::control::{Command, Outcome};
    use crate::dialect;

    const SR: &str = "87b8646b-b800-9500-cb7b-af3b74e02f5c";
    const VDI: &str = "98de866e-b035-4b1a-a571-613bff542b89";
    const DCONF: &str = "<?xml version=\"1.0\"?>\n<dconf>\n\t<location> /srv/a&amp;b </location>\n\
        </dconf>";

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn command(line: &[&str]) -> Result<Command, Printed> {
        let body = call(DCONF, &words(line))?;
        let mut heard = None;
        let mut verbs = |command| {
            heard = Some(command);
            Ok(Outcome::Done)
        };
        let answer = dialect::sm(&body, Some("file"), &mut verbs);
        heard.ok_or_else(|| printed(&answer))
    }

    #[test]
    fn every_verb_is_a_command_line_and_every_word_is_needed() {
        for (verb, needed) in VERBS {
            let mut line = vec![verb, SR];
            line.extend(needed.iter().map(|what| match *what {
                "SIZE" | "NEW-SIZE" => "1048576",
                "FORCE" => "TRUE",
                "USER-STRING" => "me",
                _ => VDI,
            }));
            let understood = command(&line).unwrap_or_else(|why| unreachable!("{why:?}"));
            assert_eq!(understood.name(), verb);
            assert_eq!(understood.sr(), SR.parse().ok());
            for short in 0..line.len() {
                let refused = command(&line[..short]).unwrap_err();
                assert_eq!(refused.status, 22, "{:?}", &line[..short]);
                assert!(refused.stderr.contains("missing"), "{refused:?}");
            }
        }
        let Ok(Command::SrAttach { driver, config, .. }) = command(&["sr_attach", SR]) else {
            unreachable!("it is understood")
        };
        assert_eq!((driver.as_str(), config.0["location"].as_str()), ("file", "/srv/a&b"));
        assert_eq!(command(&["sr_paint", SR]).unwrap_err().status, 38);
    }

    #[test]
    fn parameters_that_are_no_document_are_refused() {
        let refused = |dconf: &str| call(dconf, &words(&["sr_attach", SR])).unwrap_err().status;
        for dconf in ["", "/srv", "<a>x</a>", "<a><b/><b/></a>", "<a><b><c/></b></a>", "<a>"] {
            assert_eq!(refused(dconf), 22, "{dconf}");
        }
        assert!(call("<dconf/>", &words(&["sr_scan", SR])).is_ok());
    }

    #[test]
    fn answers_become_output_and_status() {
        let answer =
            |body: &str| printed(format!("<methodResponse>{body}</methodResponse>").as_bytes());
        let text = answer("<params><param><value>&lt;sr/&gt;</value></param></params>");
        assert_eq!(text, Printed { stdout: "<sr/>".to_owned(), ..Printed::default() });
        let zero = answer("<params><param><value><int>0</int></value></param></params>");
        assert_eq!(zero, Printed::default());
        let fault = answer(
            "<fault><value><struct><member><name>faultCode</name><value><int>19</int></value>\
             </member><member><name>faultString</name><value>gone</value></member></struct>\
             </value></fault>",
        );
        assert_eq!((fault.status, fault.stderr.as_str()), (19, "gone\n"));
        assert_eq!(answer("").status, 5);
    }

    #[test]
    fn plugins_are_known_by_their_names() {
        assert_eq!(plugin_driver("FileSR").as_deref(), Some("file"));
        assert_eq!(plugin_driver("EXTSR").as_deref(), Some("ext"));
        for odd in ["SR", "orlop", "FileSRx", "../SR", "fi leSR"] {
            assert_eq!(plugin_driver(odd), None, "{odd}");
        }
        assert!(String::from_utf8_lossy(&plugin_misused("no")).contains("<int>143</int>"));
    }
}

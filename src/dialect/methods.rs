//! The calls of our own dialect as one table: names, parameters, results, and how a command is made
//! of them. What is understood and what is described come from the same rows.
//!
//! Refuses parameters that are not in the table, of another type than it says, or missing.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::str::FromStr;

use serde_json::{Map, Value};

use crate::control::command::About;
use crate::control::{AttachMode, Command};
use crate::engine::units::ByteLen;
use crate::sr::{DataFormat, DeviceConfig, Failure, Kind, NotAUuid};

/// What a parameter may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    /// A uuid with hyphens.
    Uuid,
    /// Text.
    Text,
    /// A whole number, not negative.
    Count,
    /// True or false.
    Flag,
    /// Texts by name.
    Texts,
    /// One of these words.
    Choice(&'static [&'static str]),
}

impl Type {
    /// What it is, for people.
    fn described(self) -> String {
        match self {
            Self::Uuid => "a uuid in a string".to_owned(),
            Self::Text => "a string".to_owned(),
            Self::Count => "a whole number that is not negative".to_owned(),
            Self::Flag => "true or false".to_owned(),
            Self::Texts => "an object whose values are strings".to_owned(),
            Self::Choice(words) => format!("one of {}", words.join(", ")),
        }
    }

    fn allows(self, value: &Value) -> bool {
        match self {
            Self::Uuid | Self::Text => value.is_string(),
            Self::Count => value.is_u64(),
            Self::Flag => value.is_boolean(),
            Self::Texts => value.as_object().is_some_and(|map| map.values().all(Value::is_string)),
            Self::Choice(words) => value.as_str().is_some_and(|word| words.contains(&word)),
        }
    }
}

/// A parameter.
#[derive(Debug)]
pub(super) struct Param {
    pub(super) name: &'static str,
    pub(super) of: Type,
    pub(super) required: bool,
    pub(super) about: &'static str,
}

const fn must(name: &'static str, of: Type, about: &'static str) -> Param {
    Param { name, of, required: true, about }
}

const fn may(name: &'static str, of: Type, about: &'static str) -> Param {
    Param { name, of, required: false, about }
}

/// The shape of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Nothing,
    ContentType,
    Vdi,
    Access,
    Listing,
    Collected,
    Srs,
}

/// A call.
pub(super) struct Method {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    pub(super) params: &'static [Param],
    pub(super) result: Shape,
    build: fn(&Params<'_>) -> Result<Command, Failure>,
}

const SR: Param = must("sr", Type::Uuid, "The SR.");
const VDI: Param = must("vdi", Type::Uuid, "The VDI.");
const SOURCE: Param = must("source", Type::Uuid, "The VDI it is made of.");
const DEST: Param = may("dest", Type::Uuid, "The new VDI; a fresh uuid when missing.");
const DRIVER: Param = must("driver", Type::Text, "The type of the SR, such as file or ext.");
const CONFIG: Param = must("config", Type::Texts, "The driver's parameters (device_config).");
const SIZE: Param = must("size", Type::Count, "Bytes: a multiple of 512.");
const LABEL: Param = may("label", Type::Text, "A name for people.");
const DESCRIPTION: Param = may("description", Type::Text, "More for people.");
const PROPERTIES: Param = may("properties", Type::Texts, "The user's own strings, by name.");
const USER: Param = must("user", Type::Text, "The user string of the lock.");

/// All calls.
pub(super) const METHODS: [Method; 18] = [
    Method {
        name: "sr_create",
        about: "Make an SR; it is not attached by that.",
        params: &[
            SR,
            DRIVER,
            CONFIG,
            may("size", Type::Count, "Bytes it is to have, where the substrate does not say."),
            LABEL,
            DESCRIPTION,
        ],
        result: Shape::Nothing,
        build: |p| {
            let (sr, driver, config) = (p.uuid("sr")?, p.text("driver"), p.config());
            let size = ByteLen::new(p.count("size").unwrap_or(0));
            let (label, description) = (p.text("label"), p.text("description"));
            let about = About { label, description, ..About::default() };
            Ok(Command::SrCreate { sr, driver, config, size, about })
        },
    },
    Method {
        name: "sr_delete",
        about: "Remove an SR without VDIs. Idempotent.",
        params: &[SR, DRIVER, CONFIG],
        result: Shape::Nothing,
        build: |p| {
            let (sr, driver, config) = (p.uuid("sr")?, p.text("driver"), p.config());
            Ok(Command::SrDelete { sr, driver, config })
        },
    },
    Method {
        name: "sr_attach",
        about: "Make an SR accessible on this host. Idempotent.",
        params: &[SR, DRIVER, CONFIG],
        result: Shape::Nothing,
        build: |p| {
            let (sr, driver, config) = (p.uuid("sr")?, p.text("driver"), p.config());
            Ok(Command::SrAttach { sr, driver, config })
        },
    },
    Method {
        name: "sr_detach",
        about: "Take that back. Idempotent.",
        params: &[SR],
        result: Shape::Nothing,
        build: |p| Ok(Command::SrDetach { sr: p.uuid("sr")? }),
    },
    Method {
        name: "sr_content_type",
        about: "What kind of data the SR holds.",
        params: &[SR],
        result: Shape::ContentType,
        build: |p| Ok(Command::SrContentType { sr: p.uuid("sr")? }),
    },
    Method {
        name: "sr_scan",
        about: "List what the SR holds.",
        params: &[SR],
        result: Shape::Listing,
        build: |p| Ok(Command::SrScan { sr: p.uuid("sr")? }),
    },
    Method {
        name: "sr_gc",
        about: "Give back what nobody needs.",
        params: &[SR],
        result: Shape::Collected,
        build: |p| Ok(Command::SrGc { sr: p.uuid("sr")? }),
    },
    Method {
        name: "sr_list",
        about: "The SRs attached here.",
        params: &[],
        result: Shape::Srs,
        build: |_| Ok(Command::SrList),
    },
    Method {
        name: "vdi_create",
        about: "Make an empty VDI.",
        params: &[
            SR,
            may("vdi", Type::Uuid, "The new VDI; a fresh uuid when missing."),
            SIZE,
            LABEL,
            DESCRIPTION,
            PROPERTIES,
            may(
                "format",
                Type::Choice(&["vhd", "raw"]),
                "The format of its data; vhd when missing.",
            ),
            may("shareable", Type::Flag, "Whether several hosts may use it at once."),
            may("read_only", Type::Flag, "Whether it may never be written."),
        ],
        result: Shape::Vdi,
        build: |p| {
            let raw = p.text("format") == DataFormat::Raw.ending();
            Ok(Command::VdiCreate {
                sr: p.uuid("sr")?,
                vdi: p.uuid_if_given("vdi")?,
                size: p.size(),
                format: if raw { DataFormat::Raw } else { DataFormat::Vhd },
                about: p.about().unwrap_or_default(),
                shareable: p.flag("shareable"),
                read_only: p.flag("read_only"),
            })
        },
    },
    Method {
        name: "vdi_delete",
        about: "Delete a VDI. Idempotent.",
        params: &[SR, VDI],
        result: Shape::Nothing,
        build: |p| Ok(Command::VdiDelete { sr: p.uuid("sr")?, vdi: p.uuid("vdi")? }),
    },
    Method {
        name: "vdi_attach",
        about: "Serve a VDI on this host. Idempotent.",
        params: &[
            SR,
            VDI,
            may(
                "mode",
                Type::Choice(&["auto", "read_only", "read_write"]),
                "What for; auto, when missing, is to be written if it may be.",
            ),
            may("user", Type::Text, "The user string of its lock, if the caller holds it."),
        ],
        result: Shape::Access,
        build: |p| {
            let mode = match p.text("mode").as_str() {
                "read_only" => AttachMode::ReadOnly,
                "read_write" => AttachMode::ReadWrite,
                _ => AttachMode::Auto,
            };
            let (sr, vdi) = (p.uuid("sr")?, p.uuid("vdi")?);
            Ok(Command::VdiAttach { sr, vdi, mode, user: p.text_if_given("user") })
        },
    },
    Method {
        name: "vdi_detach",
        about: "Serve it no longer. Idempotent.",
        params: &[SR, VDI],
        result: Shape::Nothing,
        build: |p| Ok(Command::VdiDetach { sr: p.uuid("sr")?, vdi: p.uuid("vdi")? }),
    },
    Method {
        name: "vdi_clone",
        about: "Make a writable VDI of the same content. What is said of the new one is as of the \
            source unless a label, a description or properties are given.",
        params: &[SR, SOURCE, DEST, LABEL, DESCRIPTION, PROPERTIES],
        result: Shape::Vdi,
        build: |p| {
            let (sr, source, dest) = (p.uuid("sr")?, p.uuid("source")?, p.uuid_if_given("dest")?);
            Ok(Command::VdiClone { sr, source, dest, about: p.about() })
        },
    },
    Method {
        name: "vdi_snapshot",
        about: "Keep the content of a VDI as a read-only one. What is said of the new one is as of \
            the source unless a label, a description or properties are given.",
        params: &[SR, SOURCE, DEST, LABEL, DESCRIPTION, PROPERTIES],
        result: Shape::Vdi,
        build: |p| {
            let (sr, source, dest) = (p.uuid("sr")?, p.uuid("source")?, p.uuid_if_given("dest")?);
            Ok(Command::VdiSnapshot { sr, source, dest, about: p.about() })
        },
    },
    Method {
        name: "vdi_resize",
        about: "Let a VDI grow. Idempotent.",
        params: &[SR, VDI, SIZE],
        result: Shape::Nothing,
        build: |p| {
            let (sr, vdi) = (p.uuid("sr")?, p.uuid("vdi")?);
            Ok(Command::VdiResize { sr, vdi, size: p.size() })
        },
    },
    Method {
        name: "vdi_lock",
        about: "Take a VDI's persistent lock, or renew it.",
        params: &[
            SR,
            VDI,
            USER,
            may("force", Type::Flag, "Whether another's lock is broken."),
            may(
                "lease_seconds",
                Type::Count,
                "How long it holds unless renewed; for ever when missing.",
            ),
        ],
        result: Shape::Nothing,
        build: |p| {
            let (sr, vdi, user) = (p.uuid("sr")?, p.uuid("vdi")?, p.text("user"));
            let (force, lease_seconds) = (p.flag("force"), p.count("lease_seconds"));
            Ok(Command::VdiLock { sr, vdi, force, user, lease_seconds })
        },
    },
    Method {
        name: "vdi_unlock",
        about: "Give a VDI's lock back. Idempotent.",
        params: &[SR, VDI, USER],
        result: Shape::Nothing,
        build: |p| {
            let (sr, vdi, user) = (p.uuid("sr")?, p.uuid("vdi")?, p.text("user"));
            Ok(Command::VdiUnlock { sr, vdi, user })
        },
    },
    Method {
        name: "vdi_describe",
        about: "Change what is said of a VDI. What is missing stays.",
        params: &[SR, VDI, LABEL, DESCRIPTION],
        result: Shape::Nothing,
        build: |p| {
            let (sr, vdi) = (p.uuid("sr")?, p.uuid("vdi")?);
            let (label, description) = (p.text_if_given("label"), p.text_if_given("description"));
            Ok(Command::VdiDescribe { sr, vdi, label, description })
        },
    },
];

impl Method {
    /// The call of that name.
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        const ALL: &[Method] = &METHODS;
        ALL.iter().find(|method| method.name == name)
    }

    /// The command these parameters make.
    ///
    /// # Errors
    /// What is missing, unknown or of the wrong type.
    pub(super) fn command(&self, given: &Map<String, Value>) -> Result<Command, Failure> {
        let params = Params { method: self, given, read: Cell::new(0) };
        let command = params.check().and_then(|()| (self.build)(&params));
        command.map_err(|failure| failure.during(self.name))
    }
}

/// The parameters of a call, checked against its row.
struct Params<'a> {
    method: &'a Method,
    given: &'a Map<String, Value>,
    /// One bit for each parameter that was asked for: a row must not promise more than is read.
    read: Cell<u32>,
}

impl Params<'_> {
    fn check(&self) -> Result<(), Failure> {
        let rows = self.method.params;
        if let Some(name) = self.given.keys().find(|name| rows.iter().all(|row| row.name != **name))
        {
            let known: Vec<_> = rows.iter().map(|row| row.name).collect();
            let name: String = name.chars().take(64).collect();
            return Err(wrong(&name, "there is no such parameter")
                .advise(format!("the parameters are: {}", known.join(", "))));
        }
        for row in rows {
            match self.given.get(row.name) {
                None if row.required => {
                    return Err(wrong(row.name, "it is missing").advise(format!(
                        "pass {}: {}",
                        row.name,
                        row.of.described()
                    )));
                }
                Some(Value::Null) if !row.required => {}
                Some(value) if !row.of.allows(value) => {
                    let why = format!("it is {}, not {}", row.of.described(), shown(value));
                    return Err(wrong(row.name, &why));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn value(&self, name: &str) -> Option<&Value> {
        let place = self.method.params.iter().position(|row| row.name == name);
        let place = place.expect("a call reads only what its row names");
        self.read.set(self.read.get() | 1 << place);
        self.given.get(name).filter(|value| !value.is_null())
    }

    fn uuid<T: FromStr<Err = NotAUuid>>(&self, name: &str) -> Result<T, Failure> {
        self.text(name).parse().map_err(|error| wrong(name, &format!("{error}")))
    }

    fn uuid_if_given<T: FromStr<Err = NotAUuid>>(&self, name: &str) -> Result<Option<T>, Failure> {
        self.value(name).is_some().then(|| self.uuid(name)).transpose()
    }

    fn text_if_given(&self, name: &str) -> Option<String> {
        self.value(name).and_then(Value::as_str).map(str::to_owned)
    }

    fn text(&self, name: &str) -> String {
        self.text_if_given(name).unwrap_or_default()
    }

    fn count(&self, name: &str) -> Option<u64> {
        self.value(name).and_then(Value::as_u64)
    }

    fn size(&self) -> ByteLen {
        ByteLen::new(self.count("size").unwrap_or(0))
    }

    fn flag(&self, name: &str) -> bool {
        self.value(name).and_then(Value::as_bool).unwrap_or(false)
    }

    fn texts(&self, name: &str) -> BTreeMap<String, String> {
        let map = self.value(name).and_then(Value::as_object).into_iter().flatten();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        map.map(|(name, value)| (name.clone(), text(value))).collect()
    }

    fn config(&self) -> DeviceConfig {
        DeviceConfig(self.texts("config"))
    }

    fn about(&self) -> Option<About> {
        let given = ["label", "description", "properties"].map(|name| self.value(name).is_some());
        given.contains(&true).then(|| About {
            label: self.text("label"),
            description: self.text("description"),
            properties: self.texts("properties"),
        })
    }
}

fn wrong(name: &str, why: &str) -> Failure {
    Failure::new(Kind::Invalid, format!("the parameter {name:?}"), why)
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.len() <= 64 {
        text
    } else {
        format!("{}...", text.chars().take(60).collect::<String>())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use serde_json::{Map, Value, json};

    use super::{METHODS, Method, Params, Type};
    use crate::sr::{Kind, VdiUuid};

    fn sample(of: Type) -> Value {
        match of {
            Type::Uuid => json!(VdiUuid::from_bytes([7; 16]).to_string()),
            Type::Text => json!("text"),
            Type::Count => json!(512),
            Type::Flag => json!(true),
            Type::Texts => json!({"a": "b"}),
            Type::Choice(words) => json!(words[1]),
        }
    }

    fn all_given(method: &Method) -> Map<String, Value> {
        method.params.iter().map(|row| (row.name.to_owned(), sample(row.of))).collect()
    }

    #[test]
    fn each_row_makes_the_command_it_names_and_reads_all_it_promises() {
        for method in &METHODS {
            let given = all_given(method);
            let command = method.command(&given).unwrap();
            assert_eq!(command.name(), method.name);
            let params = Params { method, given: &given, read: Cell::new(0) };
            (method.build)(&params).unwrap();
            let all = (1_u32 << method.params.len()) - 1;
            assert_eq!(params.read.get(), all, "{} promises more than it reads", method.name);
        }
    }

    #[test]
    fn what_is_missing_wrong_or_unknown_is_named() {
        for method in &METHODS {
            for row in method.params {
                let mut given = all_given(method);
                given.insert(row.name.to_owned(), json!([1]));
                let failure = method.command(&given).unwrap_err();
                assert!(failure.place.contains(row.name), "{failure}");
                given.remove(row.name);
                let without = method.command(&given);
                assert_eq!(without.is_err(), row.required, "{} {}", method.name, row.name);
                if let Err(failure) = without {
                    assert!(failure.place.contains(row.name), "{failure}");
                }
            }
            let mut given = all_given(method);
            given.insert("colour".to_owned(), json!("red"));
            let failure = method.command(&given).unwrap_err();
            assert!(failure.place.contains("colour") && failure.kind == Kind::Invalid);
        }
    }
}

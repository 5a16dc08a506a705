//! A call of the Storage Manager API as a command: the members and arguments of its one struct, in
//! the specification's form and as today's callers fill it.
//!
//! Unknown members are ignored. Refuses a command that is missing or another than the method, and
//! names whatever is missing or cannot be.

use std::collections::BTreeMap;
use std::str::FromStr;

use super::xml::shown;
use super::xmlrpc::{Call, Value};
use crate::control::command::About;
use crate::control::{AttachMode, Command};
use crate::engine::units::{ByteLen, SECTOR};
use crate::sr::{DataFormat, DeviceConfig, Failure, Kind, NotAUuid, SrUuid, VdiUuid};

/// Members of `device_config` that xapi adds for itself. They change from call to call, and say
/// nothing of the place.
const OF_XAPI: [&str; 1] = ["SRmaster"];

/// A call's struct.
#[derive(Debug)]
pub(super) struct Request {
    /// The command.
    pub(super) name: String,
    members: BTreeMap<String, Value>,
    /// The type of the SR, where the route names it.
    driver: Option<String>,
    /// Whether a size that is no whole number of sectors is taken for the next that is.
    pub(super) rounds_up: bool,
}

fn missing(place: &str, advice: &str) -> Failure {
    Failure::new(Kind::Invalid, place, "it is missing").advise(advice)
}

fn wrong(place: &str, why: &str) -> Failure {
    Failure::new(Kind::Invalid, place, why)
}

fn member(name: &str) -> String {
    format!("the member {name:?}")
}

/// Scalars travel as strings; what is a number or a boolean already is taken too.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Text(text) | Value::Time(text) => Some(text.clone()),
        Value::Int(number) => Some(number.to_string()),
        Value::Flag(flag) => Some(flag.to_string()),
        Value::Nil => Some(String::new()),
        Value::Double(_) | Value::Bytes(_) | Value::List(_) | Value::Map(_) => None,
    }
}

fn flag_of(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

impl Request {
    /// The struct of a call.
    ///
    /// # Errors
    /// When it has none, or its command is missing or another.
    pub(super) fn of(call: Call, driver: Option<&str>) -> Result<Self, Failure> {
        let name = call.name;
        let Ok([Value::Map(members)]) = <[Value; 1]>::try_from(call.params) else {
            let failure = wrong("the parameters", "they are not one struct")
                .advise("pass one struct with the members command, args, sr_uuid and so on");
            return Err(failure.during(shown(&name)));
        };
        let driver = driver.map(str::to_owned);
        let request = Self { name, members, driver, rounds_up: false };
        let command = request.text("command").map_err(|failure| failure.during(&request.name))?;
        if command != request.name {
            let why = format!("it is {:?}, not the method's name", shown(&command));
            let failure = wrong(&member("command"), &why)
                .advise(format!("pass {:?} in both places", shown(&request.name)));
            return Err(failure.during(shown(&request.name)));
        }
        Ok(request)
    }

    /// A member that may be missing or empty.
    pub(super) fn some_text(&self, name: &str) -> Result<Option<String>, Failure> {
        let Some(value) = self.members.get(name) else { return Ok(None) };
        let text = scalar(value).ok_or_else(|| {
            wrong(&member(name), &format!("it is {}, not a string", value.kind()))
        })?;
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    /// A member that must be there.
    pub(super) fn text(&self, name: &str) -> Result<String, Failure> {
        self.some_text(name)?
            .ok_or_else(|| missing(&member(name), &format!("add a member {name} to the struct")))
    }

    /// A map from names to texts; empty when missing.
    pub(super) fn texts(&self, name: &str) -> Result<BTreeMap<String, String>, Failure> {
        let members = match self.members.get(name) {
            None | Some(Value::Nil) => return Ok(BTreeMap::new()),
            Some(Value::Map(members)) => members,
            Some(other) => {
                let why = format!("it is {}, not a struct", other.kind());
                return Err(wrong(&member(name), &why));
            }
        };
        let text = |(key, value): (&String, &Value)| {
            let text = scalar(value).ok_or_else(|| {
                let why = format!("{:?} in it is {}, not a string", shown(key), value.kind());
                wrong(&member(name), &why)
            })?;
            Ok((key.clone(), text))
        };
        members.iter().map(text).collect()
    }

    /// An argument, counted from zero; `what` it is, for people. `None` when missing or empty.
    fn some_arg(&self, index: usize, what: &str) -> Result<Option<String>, Failure> {
        let args: &[Value] = match self.members.get("args") {
            None | Some(Value::Nil) => &[],
            Some(Value::List(args)) => args,
            Some(other) => {
                let why = format!("it is {}, not an array", other.kind());
                return Err(wrong(&member("args"), &why));
            }
        };
        let Some(value) = args.get(index) else { return Ok(None) };
        let place = format!("args[{index}] ({what})");
        let text = scalar(value)
            .ok_or_else(|| wrong(&place, &format!("it is {}, not a string", value.kind())))?;
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    fn arg(&self, index: usize, what: &str) -> Result<String, Failure> {
        self.some_arg(index, what)?.ok_or_else(|| {
            missing(&format!("args[{index}] ({what})"), &format!("pass the {what} in args"))
        })
    }

    fn some_flag(&self, index: usize, what: &str) -> Result<Option<bool>, Failure> {
        let Some(text) = self.some_arg(index, what)? else { return Ok(None) };
        flag_of(&text).map(Some).ok_or_else(|| {
            let why = format!("it is true or false, not {:?}", shown(&text));
            wrong(&format!("args[{index}] ({what})"), &why)
        })
    }

    fn count(&self, index: usize, what: &str) -> Result<u64, Failure> {
        let text = self.arg(index, what)?;
        text.trim().parse().map_err(|_| {
            let why = format!("it is a whole number, not {:?}", shown(&text));
            wrong(&format!("args[{index}] ({what})"), &why)
        })
    }

    fn size(&self, what: &str) -> Result<ByteLen, Failure> {
        let bytes = self.count(0, what)?;
        let rounded = bytes.checked_next_multiple_of(SECTOR).filter(|_| self.rounds_up);
        Ok(ByteLen::new(rounded.unwrap_or(bytes)))
    }

    fn uuid<T: FromStr<Err = NotAUuid>>(place: &str, text: &str) -> Result<T, Failure> {
        text.trim().parse().map_err(|error| wrong(place, &format!("{error}")))
    }

    /// The SR.
    ///
    /// # Errors
    /// When it is not named, or by no uuid.
    pub(super) fn sr(&self) -> Result<SrUuid, Failure> {
        Self::uuid(&member("sr_uuid"), &self.text("sr_uuid")?)
    }

    /// The VDI: by its location, which its backend gave it, else by its uuid.
    ///
    /// # Errors
    /// When it is named by neither, or by what no VDI has.
    pub(super) fn vdi(&self) -> Result<VdiUuid, Failure> {
        if let Some(location) = self.some_text("vdi_location")? {
            return location.trim().parse().map_err(|_| {
                let location = shown(&location);
                Failure::new(Kind::NoVdi, format!("the location {location:?}"), "no VDI is there")
                    .advise("the location of a VDI is its uuid; sr_scan lists them")
            });
        }
        match self.some_text("vdi_uuid")? {
            Some(uuid) => Self::uuid(&member("vdi_uuid"), &uuid),
            None => Err(missing(&member("vdi_uuid"), "pass vdi_uuid or vdi_location")),
        }
    }

    fn new_vdi(&self) -> Result<Option<VdiUuid>, Failure> {
        let uuid = self.some_text("vdi_uuid")?;
        uuid.map(|uuid| Self::uuid(&member("vdi_uuid"), &uuid)).transpose()
    }

    fn dest(&self) -> Result<Option<VdiUuid>, Failure> {
        let dest = self.some_arg(0, "uuid of the new VDI")?;
        dest.map(|uuid| Self::uuid("args[0] (uuid of the new VDI)", &uuid)).transpose()
    }

    /// The driver's parameters.
    ///
    /// # Errors
    /// When they are not there or no map.
    pub(super) fn config(&self) -> Result<DeviceConfig, Failure> {
        if !self.members.contains_key("device_config") {
            let place = member("device_config");
            return Err(missing(&place, "pass the driver's parameters, such as location"));
        }
        let mut config = self.texts("device_config")?;
        config.retain(|name, _| !OF_XAPI.contains(&name.as_str()));
        Ok(DeviceConfig(config))
    }

    /// The type of the SR: as the route or a member says, else the one that has such parameters.
    ///
    /// # Errors
    /// When nothing says.
    pub(super) fn driver(&self) -> Result<String, Failure> {
        if let Some(driver) = &self.driver {
            return Ok(driver.clone());
        }
        for name in ["driver", "sr_type"] {
            if let Some(driver) = self.some_text(name)? {
                return Ok(driver);
            }
        }
        let config = self.config()?;
        let given = |name| config.optional(name).is_some();
        Ok(match () {
            () if given("location") => "file",
            () if given("server") => "nfs",
            () if given("target") && given("LUNid") => "lvmoiscsi",
            () if given("target") => "iscsi",
            () if given("device") => "ext",
            () => {
                return Err(wrong(&member("device_config"), "nothing in it tells the SR's type")
                    .advise("pass location (file) or device (ext), or a member driver"));
            }
        }
        .to_owned())
    }

    /// Label and description from the arguments behind this one, if there are any.
    fn about(&self, first: usize) -> Result<Option<About>, Failure> {
        let label = self.some_arg(first, "label")?;
        let description = self.some_arg(first + 1, "description")?;
        if label.is_none() && description.is_none() {
            return Ok(None);
        }
        let (label, description) = (label.unwrap_or_default(), description.unwrap_or_default());
        Ok(Some(About { label, description, ..About::default() }))
    }

    fn vdi_create(&self) -> Result<Command, Failure> {
        let mut properties = self.texts("vdi_sm_config")?;
        let format = match properties.remove("type").as_deref() {
            None | Some("" | "vhd" | "user" | "system") => DataFormat::Vhd,
            Some("raw") => DataFormat::Raw,
            Some(other) => {
                let why = format!("its type is vhd or raw, not {:?}", shown(other));
                return Err(wrong(&member("vdi_sm_config"), &why));
            }
        };
        let about = self.about(1)?.unwrap_or_default();
        Ok(Command::VdiCreate {
            sr: self.sr()?,
            vdi: self.new_vdi()?,
            size: self.size("size in bytes")?,
            format,
            about: About { properties, ..about },
            shareable: match self.some_text("shareable")? {
                None => false,
                Some(text) => flag_of(&text)
                    .ok_or_else(|| wrong(&member("shareable"), "it is true or false"))?,
            },
            read_only: self.some_flag(7, "read_only")?.unwrap_or(false),
        })
    }

    fn vdi_attach(&self) -> Result<Command, Failure> {
        let mode = match self.some_flag(0, "writable")? {
            None => AttachMode::Auto,
            Some(true) => AttachMode::ReadWrite,
            Some(false) => AttachMode::ReadOnly,
        };
        let user = self.some_arg(1, "user string of the lock")?;
        Ok(Command::VdiAttach { sr: self.sr()?, vdi: self.vdi()?, mode, user })
    }

    fn vdi_lock(&self) -> Result<Command, Failure> {
        let lease = self.some_arg(2, "lease in seconds")?;
        Ok(Command::VdiLock {
            sr: self.sr()?,
            vdi: self.vdi()?,
            force: self.some_flag(0, "force")?.unwrap_or(false),
            user: self.arg(1, "user string")?,
            lease_seconds: lease.map(|_| self.count(2, "lease in seconds")).transpose()?,
        })
    }

    /// The command of a call of the specification.
    ///
    /// # Errors
    /// What is missing or wrong; [`Kind::Unsupported`] when there is no such call.
    pub(super) fn command(&self) -> Result<Command, Failure> {
        self.command_as(&self.name)
    }

    /// The same as if the call had another name.
    ///
    /// # Errors
    /// As of [`Request::command`].
    pub(super) fn command_as(&self, name: &str) -> Result<Command, Failure> {
        self.understood(name).map_err(|failure| failure.during(shown(&self.name)))
    }

    fn understood(&self, name: &str) -> Result<Command, Failure> {
        Ok(match name {
            "sr_create" => Command::SrCreate {
                sr: self.sr()?,
                driver: self.driver()?,
                config: self.config()?,
                size: ByteLen::new(self.count(0, "size in bytes")?),
                about: self.about(1)?.unwrap_or_default(),
            },
            "sr_delete" => {
                let (sr, driver, config) = (self.sr()?, self.driver()?, self.config()?);
                Command::SrDelete { sr, driver, config }
            }
            "sr_attach" => {
                let (sr, driver, config) = (self.sr()?, self.driver()?, self.config()?);
                Command::SrAttach { sr, driver, config }
            }
            "sr_detach" => Command::SrDetach { sr: self.sr()? },
            "sr_content_type" => Command::SrContentType { sr: self.sr()? },
            "sr_scan" => Command::SrScan { sr: self.sr()? },
            "vdi_create" => self.vdi_create()?,
            "vdi_delete" => Command::VdiDelete { sr: self.sr()?, vdi: self.vdi()? },
            "vdi_attach" => self.vdi_attach()?,
            "vdi_detach" => Command::VdiDetach { sr: self.sr()?, vdi: self.vdi()? },
            "vdi_clone" => {
                let (sr, source, dest) = (self.sr()?, self.vdi()?, self.dest()?);
                Command::VdiClone { sr, source, dest, about: self.about(1)? }
            }
            "vdi_snapshot" => {
                let (sr, source, dest) = (self.sr()?, self.vdi()?, self.dest()?);
                Command::VdiSnapshot { sr, source, dest, about: self.about(1)? }
            }
            "vdi_resize" => {
                let (sr, vdi) = (self.sr()?, self.vdi()?);
                Command::VdiResize { sr, vdi, size: self.size("new size in bytes")? }
            }
            "vdi_lock" => self.vdi_lock()?,
            "vdi_unlock" => {
                let user = self.arg(0, "user string")?;
                Command::VdiUnlock { sr: self.sr()?, vdi: self.vdi()?, user }
            }
            other => {
                let why = "the Storage Manager API has no such call";
                return Err(Failure::new(Kind::Unsupported, format!("{:?}", shown(other)), why)
                    .advise(
                        "call one of sr_create, sr_delete, sr_attach, sr_detach, \
                        sr_content_type, sr_scan, vdi_create, vdi_delete, vdi_attach, vdi_detach, \
                        vdi_clone, vdi_snapshot, vdi_resize, vdi_lock, vdi_unlock",
                    ));
            }
        })
    }
}

//! The Storage Manager API as xapi speaks it today, as `POST /smapi` and the plugin links have it:
//! nil results, VDIs as structures, backend fault numbers.
//!
//! What has a meaning here is done. What only concerns xapi's database is answered and ignored, and
//! what these repositories cannot do is said to be so (38). Refuses the calls that are gone (143).

use super::request::Request;
use super::sm::new_vdi;
use super::xml::shown;
use super::xmlrpc::{self, Response, Value};
use super::{Verbs, attachment, faults};
use crate::control::{Command, Error, Outcome};
use crate::sr::{Failure, Kind};

/// What an answer is made of.
enum Answer {
    Nil,
    Value(Value),
}

/// Answers a body. `driver`: the type of the SR, where the route names it.
pub fn respond(body: &[u8], driver: Option<&str>, verbs: Verbs<'_>) -> Vec<u8> {
    let response = match xmlrpc::read_call(body) {
        Err(error) => Response::Fault(faults::BAD_REQUEST, faults::bad_request(&error.to_string())),
        Ok(call) => match Request::of(call, driver) {
            Err(failure) => {
                Response::Fault(faults::BAD_REQUEST, faults::bad_request(&failure.to_string()))
            }
            Ok(mut request) => {
                request.rounds_up = true;
                match answer(&request, driver, verbs) {
                    Ok(Answer::Nil) => Response::Value(Value::Nil),
                    Ok(Answer::Value(value)) => Response::Value(value),
                    Err(error) => {
                        let (code, text) = faults::of(&request.name, &error);
                        Response::Fault(code, text)
                    }
                }
            }
        },
    };
    xmlrpc::write_response(&response)
}

/// Deletes an SR, also an attached one.
fn delete(request: &Request, verbs: Verbs<'_>) -> Result<Answer, Error> {
    let (deletion, again) = (request.command()?, request.command_as("sr_attach")?);
    let sr = request.sr().map_err(|failure| failure.during("sr_delete"))?;
    let was_attached = verbs(Command::SrContentType { sr }).is_ok();
    verbs(request.command_as("sr_detach")?)?;
    let deleted = verbs(deletion);
    if was_attached && deleted.is_err() {
        // It is as it was; why it was not deleted is what its caller wants to hear.
        let _attached_at_best = verbs(again);
    }
    deleted.map(|_| Answer::Nil)
}

fn answer(request: &Request, driver: Option<&str>, verbs: Verbs<'_>) -> Result<Answer, Error> {
    match request.name.as_str() {
        "sr_get_driver_info" => Ok(Answer::Value(driver_info(driver.unwrap_or("file")))),
        // Its callers attach an SR to delete it.
        "sr_delete" => delete(request, verbs),
        "sr_create" | "sr_attach" | "sr_detach" | "sr_scan" | "vdi_delete" | "vdi_detach" => {
            verbs(request.command()?).map(|_| Answer::Nil)
        }
        "sr_content_type" => match verbs(request.command()?)? {
            Outcome::ContentType(content_type) => Ok(Answer::Value(Value::text(content_type))),
            _ => Ok(Answer::Nil),
        },
        "vdi_create" | "vdi_snapshot" | "vdi_clone" => match verbs(request.command()?)? {
            Outcome::Vdi(vdi) => Ok(Answer::Value(new_vdi(vdi))),
            _ => Ok(Answer::Nil),
        },
        "vdi_resize" => {
            verbs(request.command()?)?;
            Ok(Answer::Value(new_vdi(request.vdi()?)))
        }
        "vdi_attach" => attach(request, verbs),
        // To attach is all it takes to be used, and what is attached may be used.
        "vdi_activate" => verbs(request.command_as("vdi_attach")?).map(|_| Answer::Nil),
        // The place is known, or there is no such SR.
        "sr_update" => {
            let sr = request.sr().map_err(|failure| failure.during("sr_update"))?;
            verbs(Command::SrContentType { sr }).map(|_| Answer::Nil)
        }
        // What xapi's database says of a VDI is xapi's; of these nothing is kept here.
        "vdi_deactivate" | "vdi_update" | "vdi_epoch_end" => Ok(Answer::Nil),
        "vdi_epoch_begin" => match request.some_text("vdi_on_boot")?.as_deref() {
            Some("reset") => Err(cannot(&request.name, "disks are not reset when a VM starts")),
            _ => Ok(Answer::Nil),
        },
        "vdi_generate_config" => {
            generate_config(request).map_err(|failure| failure.during("vdi_generate_config").into())
        }
        "vdi_attach_from_config" => {
            verbs(sr_attach(request)?)?;
            attach(request, verbs)
        }
        "vdi_detach_from_config" => {
            let (sr, vdi) = (request.sr()?, request.vdi()?);
            verbs(Command::VdiDetach { sr, vdi }).map(|_| Answer::Nil)
        }
        "sr_probe" => Err(cannot(&request.name, "SRs of these types are not looked for")),
        "vdi_introduce" => Err(cannot(&request.name, "sr_scan finds every VDI by itself")),
        "vdi_resize_online" => Err(cannot(&request.name, "a VDI grows while it is detached")),
        "vdi_compose"
        | "vdi_revert"
        | "vdi_enable_cbt"
        | "vdi_disable_cbt"
        | "vdi_data_destroy"
        | "vdi_list_changed_blocks" => Err(cannot(&request.name, "there is no such function")),
        _ => {
            let name = shown(&request.name);
            let failure = Failure::new(Kind::Invalid, format!("{name:?}"), faults::NO_COMMAND);
            Err(failure.advise("sr_get_driver_info says what can be called").into())
        }
    }
}

fn cannot(name: &str, why: &str) -> Error {
    Failure::new(Kind::Unsupported, name, why).during(name).into()
}

fn attach(request: &Request, verbs: Verbs<'_>) -> Result<Answer, Error> {
    let vdi = request.vdi()?;
    let driver = request.driver().unwrap_or_else(|_| "file".to_owned());
    match verbs(request.command_as("vdi_attach")?)? {
        Outcome::Attached(access) => attachment::describe(&access, vdi, &driver).map(Answer::Value),
        _ => Ok(Answer::Nil),
    }
}

fn sr_attach(request: &Request) -> Result<Command, Failure> {
    let (sr, driver, config) = (request.sr()?, request.driver()?, request.config()?);
    Ok(Command::SrAttach { sr, driver, config })
}

/// A whole call that attaches the VDI without anybody's database: for times when xapi is not there.
fn generate_config(request: &Request) -> Result<Answer, Failure> {
    const NAME: &str = "vdi_attach_from_config";
    let config = request.config()?.0;
    let config = config.into_iter().map(|(name, value)| (name, Value::Text(value))).collect();
    let call = Value::map([
        ("command", Value::text(NAME)),
        ("device_config", Value::Map(config)),
        ("driver", Value::text(request.driver()?)),
        ("sr_uuid", Value::text(request.sr()?.to_string())),
        ("vdi_uuid", Value::text(request.vdi()?.to_string())),
    ]);
    let call = xmlrpc::write_call(NAME, &[call]);
    Ok(Answer::Value(Value::Text(String::from_utf8_lossy(&call).into_owned())))
}

/// What the driver is and can do.
fn driver_info(driver: &str) -> Value {
    const CAPABILITIES: [&str; 16] = [
        "SR_CREATE",
        "SR_DELETE",
        "SR_ATTACH",
        "SR_DETACH",
        "SR_SCAN",
        "SR_UPDATE",
        "VDI_CREATE",
        "VDI_DELETE",
        "VDI_ATTACH",
        "VDI_DETACH",
        "VDI_CLONE",
        "VDI_SNAPSHOT",
        "VDI_RESIZE",
        "VDI_UPDATE",
        "VDI_GENERATE_CONFIG",
        "THIN_PROVISIONING",
    ];
    let text = |text: &str| Value::text(text);
    let configuration: &[(&str, &str)] = match driver.to_ascii_lowercase().as_str() {
        "ext" => &[("device", "The device or partition to hold the SR (required)")],
        _ => &[
            ("location", "The directory to hold the SR (required)"),
            ("shared", "Whether other hosts use the directory too: true or false (optional)"),
        ],
    };
    let configuration = configuration.iter().map(|(key, description)| {
        Value::map([("key", text(key)), ("description", text(description))])
    });
    Value::map([
        ("name", Value::Text(format!("orlop {driver}"))),
        ("description", Value::Text(format!("SRs of the type {driver}, kept by orlop"))),
        ("vendor", text("orlop")),
        ("copyright", text("the authors of orlop")),
        ("driver_version", text(env!("CARGO_PKG_VERSION"))),
        ("required_api_version", text("1.0")),
        ("capabilities", Value::List(CAPABILITIES.map(Value::text).into())),
        ("configuration", Value::List(configuration.collect())),
        ("supported_image_formats", Value::List(vec![text("vhd"), text("raw")])),
    ])
}

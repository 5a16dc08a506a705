//! What xapi wants to know of an attached VDI: where its bytes are served, and what a guest is told
//! of the disk.

use super::base64;
use super::xmlrpc::Value;
use crate::control::{Access, Error};
use crate::sr::{Failure, Kind, VdiUuid};

/// How xapi is told of an attached VDI.
///
/// # Errors
/// When its NBD socket cannot be said in the form that xapi reads.
pub(super) fn describe(access: &Access, vdi: VdiUuid, driver: &str) -> Result<Value, Error> {
    let socket = socket_of(&access.nbd_uri).filter(|socket| !socket.contains(':'));
    let socket = socket.ok_or_else(|| {
        let why = format!(
            "xapi cannot be told of {:?}: it is no unix socket without a colon in \
            its path",
            access.nbd_uri
        );
        Failure::new(Kind::Unsupported, format!("VDI {vdi}"), why)
            .advise("give the daemon's NBD socket another path")
            .during("vdi_attach")
    })?;
    let serial = vdi.to_string();
    let xenstore = Value::map([
        ("scsi/0x12/0x80", Value::Text(base64::encode(&serial_page(&serial)))),
        ("scsi/0x12/0x83", Value::Text(base64::encode(&identity_page(&serial)))),
        ("storage-type", Value::text(driver)),
        ("vdi-uuid", Value::text(&serial)),
    ]);
    Ok(Value::map([
        ("params_nbd", Value::Text(format!("nbd:unix:{socket}:exportname={vdi}"))),
        ("o_direct", Value::Flag(true)),
        ("o_direct_reason", Value::text("")),
        ("xenstore_data", xenstore),
    ]))
}

/// The path in `nbd+unix:///NAME?socket=PATH`.
fn socket_of(uri: &str) -> Option<String> {
    let (_, query) = uri.strip_prefix("nbd+unix://")?.split_once('?')?;
    let socket = query.split('&').find_map(|part| part.strip_prefix("socket="))?;
    percent_decoded(socket)
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let byte = match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? << 4 | digit()?).ok()?
            }
            plain => plain,
        };
        bytes.push(byte);
    }
    String::from_utf8(bytes).ok()
}

/// The unit serial number page of SCSI INQUIRY (SPC-4, 7.8.15).
fn serial_page(serial: &str) -> Vec<u8> {
    let len = u8::try_from(serial.len()).expect("a uuid is short");
    [&[0, 0x80, 0, len], serial.as_bytes()].concat()
}

/// The device identification page of SCSI INQUIRY (SPC-4, 7.8.6): one designator of the type "T10
/// vendor", in ASCII. Guests' drivers know disks of a Xen host by this vendor.
fn identity_page(serial: &str) -> Vec<u8> {
    const VENDOR: &[u8; 8] = b"XENSRC  ";
    let name = [VENDOR, serial.as_bytes()].concat();
    let len = u8::try_from(name.len()).expect("a uuid is short");
    [&[0, 0x83, 0, len + 4, 2, 1, 0, len], &name[..]].concat()
}

#[cfg(test)]
mod tests {
    use super::{describe, socket_of};
    use crate::control::Access;
    use crate::dialect::xmlrpc::Value;
    use crate::sr::VdiUuid;

    #[test]
    fn the_socket_is_found_in_the_uri() {
        let uri = "nbd+unix:///name?socket=/run/a%20b.sock";
        assert_eq!(socket_of(uri).as_deref(), Some("/run/a b.sock"));
        for odd in ["nbd://host/name", "nbd+unix:///name", "nbd+unix:///a?socket=%2", "x"] {
            assert_eq!(socket_of(odd), None, "{odd}");
        }
    }

    #[test]
    fn xapi_finds_four_parts() {
        let vdi = VdiUuid::from_bytes([1; 16]);
        let access = |socket: &str| Access {
            path: String::new(),
            nbd_uri: format!("nbd+unix:///{vdi}?socket={socket}"),
            read_only: false,
        };
        let Ok(Value::Map(told)) = describe(&access("/run/nbd"), vdi, "file") else {
            unreachable!("it can be told")
        };
        let Value::Text(params) = &told["params_nbd"] else { unreachable!("it is text") };
        assert_eq!(params, &format!("nbd:unix:/run/nbd:exportname={vdi}"));
        let Value::Map(data) = &told["xenstore_data"] else { unreachable!("it is a map") };
        let Value::Text(serial) = &data["scsi/0x12/0x80"] else { unreachable!("it is text") };
        assert!(serial.starts_with("AIAAJDAx"), "{serial}");
        assert!(describe(&access("/run/a:b"), vdi, "file").is_err());
    }
}

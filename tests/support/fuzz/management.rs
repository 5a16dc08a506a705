//! Bodies of management requests in every dialect: what is answered can be read, whatever was sent
//! and whatever the verbs say.

use orlop::control::command::AttachedSr;
use orlop::control::{Access, Command, Error, Outcome};
use orlop::dialect::{self, argv};
use orlop::sr::{Collected, DeviceConfig, Failure, Kind, VdiUuid};

/// Text that is hard to write in any of the dialects.
const TEXT: &str = "a<b>&\"'\r\n\t\u{1}\u{FFFE}]]>&amp;\u{e9}\u{1F600}";

/// A body behind a byte that chooses the dialect and what the verbs say.
pub fn management(bytes: &[u8]) {
    let Some((choice, body)) = bytes.split_first() else { return };
    let mut verbs = |command: Command| said(choice >> 3, &command);
    let driver = [None, Some("file"), Some(TEXT)][usize::from(choice >> 2 & 1) * 2];
    match choice & 3 {
        0 => check(&dialect::sm(body, driver, &mut verbs)),
        1 => check(&dialect::smapi(body, driver, &mut verbs)),
        2 => {
            if let Some(answer) = dialect::jsonrpc(body, &mut verbs) {
                serde_json::from_slice::<serde_json::Value>(&answer).expect("an answer is JSON");
            }
        }
        _ => {
            let text = String::from_utf8_lossy(body);
            let mut words = text.split('\u{0}').map(str::to_owned);
            let dconf = words.next().unwrap_or_default();
            match argv::call(&dconf, &words.collect::<Vec<_>>()) {
                Ok(call) => check(&dialect::sm(&call, Some("file"), &mut verbs)),
                Err(printed) => assert_ne!(printed.status, 0),
            }
            argv::printed(body);
        }
    }
}

/// An answer is a response that our own reader takes.
fn check(answer: &[u8]) {
    let printed = argv::printed(answer);
    assert!(!printed.stderr.starts_with("the daemon's answer is none"), "{}", printed.stderr);
}

fn said(choice: u8, command: &Command) -> Result<Outcome, Error> {
    let vdi = command.vdi().unwrap_or(VdiUuid::from_bytes([1; 16]));
    match choice % 8 {
        0 => Ok(Outcome::Done),
        1 => Ok(Outcome::Vdi(vdi)),
        2 => Ok(Outcome::ContentType("vhd")),
        3 => {
            let (path, nbd_uri) = (TEXT.to_owned(), TEXT.to_owned());
            Ok(Outcome::Attached(Access { path, nbd_uri, read_only: false }))
        }
        4 => {
            let nbd_uri = format!("nbd+unix:///{vdi}?socket=/run/%3C{}", choice);
            Ok(Outcome::Attached(Access { path: String::new(), nbd_uri, read_only: true }))
        }
        5 => {
            let left = vec![(vdi, TEXT.to_owned())];
            Ok(Outcome::Collected(Collected { left, ..Collected::default() }))
        }
        6 => Ok(Outcome::Srs(vec![AttachedSr {
            sr: orlop::sr::SrUuid::from_bytes([2; 16]),
            driver: TEXT.to_owned(),
            config: DeviceConfig([(TEXT.to_owned(), TEXT.to_owned())].into()),
            label: TEXT.to_owned(),
            place: TEXT.to_owned(),
            vdis: vec![vdi],
        }])),
        _ => {
            const KINDS: [Kind; 5] =
                [Kind::NoSr, Kind::Busy, Kind::NotPermitted, Kind::Corrupt, Kind::Invalid];
            let kind = KINDS[usize::from(choice) / 8 % KINDS.len()];
            Err(Failure::new(kind, TEXT, TEXT).during(command.name()).into())
        }
    }
}

fn call(name: &str, members: &[(&str, &str)]) -> Vec<u8> {
    let mut call = format!(
        "<?xml version=\"1.0\"?><methodCall><methodName>{name}</methodName><params><param><value>\
         <struct><member><name>command</name><value>{name}</value></member>"
    );
    for (name, value) in members {
        call += &format!("<member><name>{name}</name><value>{value}</value></member>");
    }
    call += "</struct></value></param></params></methodCall>";
    call.into_bytes()
}

/// Names and bytes of the seeds.
pub fn requests() -> Vec<(&'static str, Vec<u8>)> {
    const SR: (&str, &str) = ("sr_uuid", "87b8646b-b800-9500-cb7b-af3b74e02f5c");
    const VDI: (&str, &str) = ("vdi_uuid", "98de866e-b035-4b1a-a571-613bff542b89");
    const ARGS: (&str, &str) = (
        "args",
        "<array><data><value><string>1048576</string></value><value><i4>1</i4></value>\
         <value><boolean>1</boolean></value></data></array>",
    );
    const CONFIG: (&str, &str) = (
        "device_config",
        "<struct><member><name>location</name><value>/srv/&lt;a&gt;</value></member></struct>",
    );
    const ODD: (&str, &str) = (
        "odd",
        "<array><data><value><nil/></value><value><double>1.5</double></value><value><base64>Zm9v\
         </base64></value><value><dateTime.iso8601>19700101T00:00:00Z</dateTime.iso8601></value>\
         <value><![CDATA[<x>]]>&#65;</value><value/></data></array>",
    );
    let choose = |choice: u8, body: Vec<u8>| [vec![choice], body].concat();
    let line = b"<dconf><location>/srv</location></dconf>\0vdi_lock\0\
        87b8646b-b800-9500-cb7b-af3b74e02f5c\098de866e-b035-4b1a-a571-613bff542b89\0TRUE\0me";
    let json = br#"[{"jsonrpc": "2.0", "id": 1, "method": "vdi_create", "params": {"sr":
        "87b8646b-b800-9500-cb7b-af3b74e02f5c", "size": 512, "properties": {"a": "b"}}},
        {"jsonrpc": "2.0", "method": "sr_list"}]"#;
    let answer = b"<methodResponse><fault><value><struct><member><name>faultCode</name><value>\
        <int>19</int></value></member><member><name>faultString</name><value>gone</value></member>\
        </struct></value></fault></methodResponse>";
    vec![
        ("sm_create", choose(0, call("sr_create", &[SR, ARGS, CONFIG, ODD]))),
        ("sm_vdi_create", choose(8, include_bytes!("../../management/vdi_create.xml").into())),
        ("sm_attach", choose(24, call("vdi_attach", &[SR, VDI]))),
        ("sm_lock", choose(56, call("vdi_lock", &[SR, VDI, ARGS]))),
        ("smapi_attach", choose(33, call("vdi_attach", &[SR, VDI, ("args", "<nil/>")]))),
        ("smapi_config", choose(1, call("vdi_generate_config", &[SR, VDI, CONFIG]))),
        ("smapi_info", choose(5, call("sr_get_driver_info", &[]))),
        ("smapi_clone", choose(57, call("vdi_clone", &[SR, VDI, ODD]))),
        ("json_batch", choose(10, json.into())),
        ("line", choose(3, line.into())),
        ("answer", choose(3, answer.into())),
    ]
}

//! Requests that are none, peers that are slow, silent or many, and others who are served all the
//! while.

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use orlop::api::ApiLimits;
use orlop::api::client;
use serde_json::{Value, json};

use super::SR;
use super::daemon::Daemon;

/// Sends bytes and gives back all that comes, until the other end closes or nothing comes.
fn said(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    // Who is refused early may close before everything is sent.
    let _sent = stream.write_all(bytes);
    let _closed = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _end = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn head(line: &str, rest: &str) -> Vec<u8> {
    format!("{line} HTTP/1.1\r\nHost: x\r\n{rest}\r\n").into_bytes()
}

fn posted(daemon: &Daemon, route: &str, body: &[u8]) -> String {
    let content_type = if route.starts_with("/v1") { "application/json" } else { "text/xml" };
    let answer = client::post(&daemon.socket(), route, content_type, body).unwrap();
    String::from_utf8(answer).unwrap()
}

fn alive(daemon: &Daemon) {
    assert_eq!(daemon.json("sr_list", json!({})).unwrap(), json!({"srs": []}));
}

fn call(name: &str, members: &str) -> Vec<u8> {
    format!(
        "<methodCall><methodName>{name}</methodName><params><param><value><struct>\
         <member><name>command</name><value>{name}</value></member>{members}\
         </struct></value></param></params></methodCall>"
    )
    .into_bytes()
}

fn member(name: &str, value: &str) -> String {
    format!("<member><name>{name}</name><value>{value}</value></member>")
}

#[test]
fn xml_that_is_no_call_gets_a_fault_that_says_where() {
    let daemon = Daemon::new();
    let bomb = "<!DOCTYPE b [<!ENTITY a 'ha'><!ENTITY b '&a;&a;&a;&a;'>]><methodCall>\
        <methodName>&b;</methodName></methodCall>";
    let deep = "<a>".repeat(60_000);
    let wide = format!("<methodCall>{}</methodCall>", "<a/>".repeat(60_000));
    let bodies: [(&[u8], &str); 10] = [
        (b"", "line 1"),
        (b"hello", "line 1"),
        (b"<methodCall>\n<methodName>", "line 2"),
        (b"<methodCall>\n</methodCal>", "line 2"),
        (b"<methodCall><methodName>\xFF", "UTF-8"),
        (b"\x00\x01\x02", "U+0000"),
        (bomb.as_bytes(), "document type"),
        (b"<methodCall><methodName>&lol;</methodName></methodCall>", "&amp;lol; is unknown"),
        (deep.as_bytes(), "more than 32"),
        (wide.as_bytes(), "more than 16384"),
    ];
    for (body, why) in bodies {
        for (route, code) in [("/sm", 22), ("/smapi", 143)] {
            let answer = posted(&daemon, route, body);
            assert!(answer.contains(&format!("<int>{code}</int>")), "{answer}");
            assert!(answer.contains(why), "{why}: {answer}");
        }
        alive(&daemon);
    }
    for body in [&b"{"[..], b"", b"\xFF", b"[[[[", "[".repeat(60_000).as_bytes()] {
        assert!(posted(&daemon, "/v1", body).contains("-32700"));
    }
}

#[test]
fn calls_that_cannot_be_are_refused_and_what_is_missing_is_named() {
    let daemon = Daemon::new();
    let sr = member("sr_uuid", SR);
    let args = |values: &str| member("args", &format!("<array><data>{values}</data></array>"));
    let two = "<methodCall><methodName>sr_scan</methodName><params><param><value>1</value></param>\
        <param><value>2</value></param></params></methodCall>";
    let other = String::from_utf8(call("sr_scan", &sr)).unwrap();
    let other = other.replace("<methodName>sr_scan", "<methodName>sr_detach");
    let cases: [(Vec<u8>, u8, &str); 13] = [
        (call("sr_scan", ""), 22, "\"sr_uuid\""),
        (call("sr_scan", &member("sr_uuid", "<int>7</int>")), 22, "no uuid"),
        (call("sr_scan", &member("sr_uuid", "<struct/>")), 22, "a struct, not a string"),
        (call("sr_attach", &sr), 22, "\"device_config\""),
        (call("sr_attach", &(sr.clone() + &member("device_config", "x"))), 22, "not a struct"),
        (call("vdi_create", &sr), 22, "size in bytes"),
        (call("vdi_create", &(sr.clone() + &args("<value>-1</value>"))), 22, "whole number"),
        (call("vdi_create", &(sr.clone() + &member("args", "x"))), 22, "not an array"),
        (call("vdi_attach", &sr), 22, "vdi_location"),
        (call("sr_paint", &sr), 38, "sr_paint"),
        (two.into(), 22, "one struct"),
        (other.into_bytes(), 22, "\"command\""),
        (b"<methodCall><methodName>sr_scan</methodName></methodCall>".into(), 22, "one struct"),
    ];
    for (body, code, why) in cases {
        let answer = posted(&daemon, "/sm", &body);
        assert!(answer.contains(&format!("<int>{code}</int>")), "{why}: {answer}");
        assert!(answer.contains(why), "{why}: {answer}");
    }
    let unknown = posted(&daemon, "/sm", &call("sr_scan", &(sr + &member("colour", "red"))));
    assert!(unknown.contains("<int>19</int>"), "{unknown}");
    let by_type = posted(
        &daemon,
        "/sm/tape",
        &call("sr_attach", &(member("sr_uuid", SR) + &member("device_config", "<struct/>"))),
    );
    assert!(by_type.contains("tape") && by_type.contains("<int>22</int>"), "{by_type}");
}

#[test]
fn requests_for_nothing_that_is_there_say_what_to_do() {
    let daemon = Daemon::new();
    let limit = ApiLimits::default().body_bytes;
    let long = format!("Content-Length: {}\r\nContent-Type: text/xml\r\n", limit + 1);
    let endless = "Content-Length: 99999999999\r\n";
    let plain = "Content-Length: 1\r\nContent-Type: text/plain\r\n";
    let cases = [
        (head("GET /", ""), "404", "POST /sm"),
        (head("POST /v2", "Content-Length: 0\r\n"), "404", "/v1"),
        (head("GET /sm", ""), "405", "send POST"),
        (head("PUT /smapi/file", "Content-Length: 0\r\n"), "405", "send POST"),
        (head("POST /v1/health", "Content-Length: 0\r\n"), "405", "send GET"),
        ([head("POST /sm", plain), b"x".to_vec()].concat(), "415", "text/xml"),
        ([head("POST /v1", plain), b"x".to_vec()].concat(), "415", "application/json"),
        ([head("POST /sm", &long), vec![b' '; limit + 1]].concat(), "413", "send less"),
        (head("POST /sm", endless), "413", "send less"),
        (head("POST /sm", &format!("X: {}\r\n", "x".repeat(100_000))), "431", ""),
        (b"hello\r\n\r\n".to_vec(), "400", ""),
    ];
    for (request, status, what) in cases {
        let answer = said(&daemon.socket(), &request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {answer}");
        assert!(answer.contains(what), "{status}: {answer}");
        alive(&daemon);
    }
    let chunk = format!("{:x}\r\n{}\r\n", 60_000, " ".repeat(60_000));
    let chunked = head("POST /sm", "Transfer-Encoding: chunked\r\nContent-Type: text/xml\r\n");
    let body = chunk.repeat(limit / 60_000 + 1) + "0\r\n\r\n";
    let answer = said(&daemon.socket(), &[chunked, body.into_bytes()].concat());
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    let full = vec![b' '; limit];
    assert!(posted(&daemon, "/sm", &full).contains("there is no element"));
}

#[test]
fn half_a_request_costs_only_its_own_connection() {
    let limits = ApiLimits {
        header_time: Duration::from_millis(400),
        body_time: Duration::from_millis(200),
        ..ApiLimits::default()
    };
    let daemon = Daemon::with("one", limits);
    let halves = [
        Vec::new(),
        b"POST /sm HTT".to_vec(),
        head("POST /sm", "Content-Type: text/xml\r\nContent-Length: 100\r\n"),
        [head("POST /v1", "Content-Length: 100\r\n"), b"{".to_vec()].concat(),
    ];
    let mut streams: Vec<_> = halves
        .iter()
        .map(|half| {
            let mut stream = UnixStream::connect(daemon.socket()).unwrap();
            stream.write_all(half).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            stream
        })
        .collect();
    alive(&daemon);
    // Each of them ends without anything more being said.
    let ends = streams.iter_mut().map(|stream| {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let ends: Vec<_> = ends.collect();
    assert_eq!(ends[..2], ["", ""]);
    for end in &ends[2..] {
        assert!(end.starts_with("HTTP/1.1 408 ") && end.contains("send it at once"), "{end}");
    }
    alive(&daemon);
}

#[test]
fn a_crowd_of_silent_peers_keeps_nobody_out() {
    let limits = ApiLimits { connections: 4, calls: 1, ..ApiLimits::default() };
    let daemon = Daemon::with("one", limits);
    let crowd: Vec<_> = (0..12).map(|_| UnixStream::connect(daemon.socket()).unwrap()).collect();
    for _ in 0..3 {
        alive(&daemon);
    }
    // Also one that speaks now and then is served, on the connection it has.
    let mut regular = UnixStream::connect(daemon.socket()).unwrap();
    regular.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut answer = [0; 12];
    for _ in 0..3 {
        regular.write_all(&head("GET /v1/health", "")).unwrap();
        regular.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        let mut rest = [0; 4096];
        assert!(regular.read(&mut rest).unwrap() > 0);
    }
    drop(crowd);
    alive(&daemon);
}

/// A daemon's call that has begun and does not end while a file is there.
struct LastingCall {
    hold: std::path::PathBuf,
    asking: std::thread::JoinHandle<Result<Value, client::CallError>>,
}

impl LastingCall {
    fn begin(daemon: &Daemon) -> Self {
        let config = json!({"location": daemon.location()});
        let sr = json!({"sr": SR, "driver": "file", "config": config});
        daemon.json("sr_create", sr.clone()).unwrap();
        daemon.json("sr_attach", sr).unwrap();
        let vdi = daemon.json("vdi_create", json!({"sr": SR, "size": 4096})).unwrap();
        let hold = daemon.dir.path().join("in-use").join("hold");
        std::fs::write(&hold, "").unwrap();
        let socket = daemon.socket();
        let asking = std::thread::spawn({
            let socket = socket.clone();
            move || client::call(&socket, "vdi_attach", json!({"sr": SR, "vdi": vdi["vdi"]}))
        });
        let running = || {
            let answer = said(&socket, &head("GET /v1/health", "Connection: close\r\n"));
            let health = answer.split("\r\n\r\n").nth(1).unwrap();
            serde_json::from_str::<Value>(health).unwrap()["calls"]["running"] == 1
        };
        let begun = (0..6000).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            running()
        });
        assert!(begun, "the call never begins");
        Self { hold, asking }
    }

    /// Lets it end well.
    fn end(self) {
        std::fs::remove_file(&self.hold).unwrap();
        assert!(self.asking.join().unwrap().unwrap()["path"].is_string());
    }
}

#[test]
fn a_call_that_has_waited_long_for_its_turn_is_told_so() {
    let turn_time = Duration::from_millis(200);
    let daemon = Daemon::with("one", ApiLimits { calls: 1, turn_time, ..ApiLimits::default() });
    let lasting = LastingCall::begin(&daemon);
    let body = br#"{"jsonrpc":"2.0","id":1,"method":"sr_list"}"#;
    let length = format!("Connection: close\r\nContent-Length: {}\r\n", body.len());
    let asked = [&head("POST /v1", &length), &body[..]].concat();
    let answer = said(&daemon.socket(), &asked);
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("try again later"), "{answer}");
    lasting.end();
    assert!(said(&daemon.socket(), &asked).starts_with("HTTP/1.1 200 "));
}

#[test]
fn the_end_waits_for_calls_and_for_nobody_else() {
    let mut daemon = Daemon::new();
    let mut silent = UnixStream::connect(daemon.socket()).unwrap();
    silent.write_all(b"POST /sm HTTP").unwrap();
    let socket = daemon.socket();
    let lasting = LastingCall::begin(&daemon);
    daemon.ask_to_end();
    let refused = (0..6000).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        UnixStream::connect(&socket).is_err()
    });
    assert!(refused && !lasting.asking.is_finished(), "it listens on, or the call was cut");
    lasting.end();
    daemon.end();
}

/// What is logged while the tests run.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn each_call_is_logged_with_its_caller() {
    tracing_subscriber::fmt().with_ansi(false).with_writer(|| Log).init();
    let daemon = Daemon::new();
    let missing = "d0d0d0d0-1111-2222-3333-444444444444";
    daemon.json("sr_scan", json!({"sr": missing})).unwrap_err();
    let log = String::from_utf8(LOG.lock().unwrap().clone()).unwrap();
    let lines: Vec<_> = log.lines().filter(|line| line.contains(missing)).collect();
    let [line] = lines[..] else { panic!("not one line but {lines:?}") };
    let uid = std::fs::metadata(daemon.socket()).map(|meta| meta.uid()).unwrap();
    for part in ["sr_scan", "ENODEV", "/v1", &format!("uid={uid}"), "gid="] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert!(line.contains(&format!("pid={}", std::process::id())), "{line}");
}

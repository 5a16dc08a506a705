//! TLS end to end: who gets in with which programs, who is refused and hears why, what a client
//! may see, and how a session under TLS ends. With the feature `psk`, the same for keys.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where its set-up fails")]

#[path = "support/foreign.rs"]
mod foreign;
#[cfg(feature = "psk")]
#[path = "tls/keys.rs"]
mod keys;
#[path = "support/server.rs"]
mod server;
#[path = "tls/yard.rs"]
mod yard;

use std::path::PathBuf;

use foreign::{PYTHON, assert_same, content, have, orlop, run, run_any, text, told};
use server::Server;
use tempfile::TempDir;
use yard::Yard;

const ORLOP: &str = env!("CARGO_BIN_EXE_orlop");
const CLIENT: &str = include_str!("support/raw_nbd.py");
const MIB: u64 = 1 << 20;
const TOOLS: &[&str] = &["certtool", "openssl"];

/// Runs a script of a raw client.
fn script(text: &str, words: &[&str]) -> String {
    run(PYTHON, &[&["-c", &format!("{CLIENT}\n{text}")], words].concat())
}

fn raw(folder: &TempDir, name: &str, len: u64, seed: u64) -> (PathBuf, Vec<u8>) {
    let (path, bytes) = (folder.path().join(name), content(len, seed));
    std::fs::write(&path, &bytes).unwrap();
    (path, bytes)
}

/// The same URI over TLS with a client's certificate, for libnbd's programs.
fn with(uri: &str, folder: &str) -> String {
    let uri = uri.replacen("nbd+", "nbds+", 1).replacen("nbd://", "nbds://", 1);
    let joint = if uri.contains('?') { '&' } else { '?' };
    format!("{uri}{joint}tls-certificates={folder}")
}

/// A socket path, for the raw client.
fn socket(server: &Server) -> String {
    text(&server.path("nbd")).to_owned()
}

/// Options for QEMU's programs: credentials, and where the disk is.
fn for_qemu(socket: &str, folder: &str) -> (String, String) {
    let credentials = format!("tls-creds-x509,id=t,dir={folder},endpoint=client");
    let place = format!("server.type=unix,server.path={socket}");
    (credentials, format!("driver=nbd,{place},tls-creds=t,tls-hostname=localhost"))
}

#[test]
fn foreign_clients_read_and_write_through_tls() {
    if !have(TOOLS) || !have(&["nbdinfo", "nbdcopy", "qemu-img", "qemu-io"]) {
        return;
    }
    let (yard, folder) = (Yard::new(), TempDir::new().unwrap());
    let disk = folder.path().join("disk.vhd");
    orlop(&["create", text(&disk), "--size", "64M"]);
    let words = ["--tls-certs", &yard.server(), "--port", "0", "--bind", "::1", "--json"];
    let server = Server::start(&disk, &words);
    let ready: serde_json::Value = serde_json::from_str(server.uri()).unwrap();
    let uris: Vec<String> =
        ready["uris"].as_array().unwrap().iter().map(|u| u.as_str().unwrap().to_owned()).collect();
    assert!(
        uris[0].starts_with("nbds+unix://") && uris[1].starts_with("nbds://[::1]:"),
        "{uris:?}"
    );
    let (source, bytes) = raw(&folder, "source", 64 * MIB, 8);
    let copy = folder.path().join("copy");
    for (uri, connections) in uris.iter().zip(["4", "1"]) {
        let uri = with(uri, &yard.of("laptop"));
        let told = run("nbdinfo", &["--json", &uri]);
        assert!(told.contains("\"TLS\": true") && told.contains("67108864"), "{told}");
        let connections = format!("--connections={connections}");
        run("nbdcopy", &[&connections, "--flush", text(&source), &uri]);
        run("nbdcopy", &[&connections, &uri, text(&copy)]);
        assert_same(&std::fs::read(&copy).unwrap(), &bytes, &uri);
        run("nbdcopy", &["--destination-is-zero", "--allocated", text(&source), &uri]);
    }
    let (credentials, place) = for_qemu(&socket(&server), &yard.of("desk"));
    let object = ["--object", credentials.as_str(), "--image-opts", place.as_str()];
    let file = format!("driver=raw,file.driver=file,file.filename={}", text(&source));
    let compare = [&["compare"], &object[..], &[&file]].concat();
    run("qemu-img", &compare);
    let write = ["-c", "write -P 0xa5 1000 3M", "-c", "read -P 0xa5 1000 3M", "-c", "flush"];
    run("qemu-io", &[&object[..], &write].concat());
    let map = run("qemu-img", &[&["map", "--output=json"], &object[..]].concat());
    assert!(map.contains("\"start\": 0"), "{map}");
    server.close();
    run("qemu-io", &["-f", "vpc", "-c", "read -P 0xa5 1000 3M", text(&disk)]);
}

/// The log from a place on. Its line about a client may come after the client has gone.
fn log_with(server: &Server, from: usize, about: &str) -> String {
    let mut log = String::new();
    for _ in 0..3000 {
        log = server.log()[from..].to_owned();
        if log.contains(about) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    log
}

#[test]
fn who_is_refused_fails_and_the_log_says_why() {
    if !have(TOOLS) || !have(&["nbdinfo", "qemu-img"]) {
        return;
    }
    let (yard, folder) = (Yard::new(), TempDir::new().unwrap());
    let (disk, _) = raw(&folder, "disk.raw", MIB, 1);
    yard.authority("other");
    yard.client("stranger", "other", "expiration_days=9\n");
    let past = "activation_date=\"2020-01-01 00:00:00 UTC\"\n\
                expiration_date=\"2021-01-01 00:00:00 UTC\"\n";
    yard.client("late", "ca", past);
    yard.nobody("nobody", "ca");
    yard.revoke("desk");
    let server = Server::start(&disk, &["--tls-certs", &yard.server()]);
    let cases = [
        ("nobody", "sent no certificate, and one is required"),
        // GnuTLS keeps a certificate to itself that the server's authority did not sign.
        ("stranger", "sent no certificate, and one is required"),
        ("late", "the client's certificate has expired"),
        ("desk", "is revoked by ca-crl.pem"),
    ];
    for (client, about) in cases {
        let before = server.log().len();
        let uri = with(server.uri_of("").as_str(), &yard.of(client));
        let refused = run_any("nbdinfo", &[&uri]);
        let all = told("nbdinfo", &[&uri], &refused);
        assert!(!refused.status.success(), "{client} got in: {all}");
        let log = log_with(&server, before, about);
        assert!(log.contains(about) && log.contains("peer="), "{client}: {log}\n{all}");
        // Not only that the connection broke.
        let clear = ["alert", "certificate"].iter().any(|word| all.contains(word));
        assert!(clear && !all.contains("push function"), "{client}: {all}");
        let (credentials, place) = for_qemu(&socket(&server), &yard.of(client));
        let words = ["info", "--object", &credentials, "--image-opts", &place];
        let all = told("qemu-img", &words, &run_any("qemu-img", &words));
        assert!(!all.contains("virtual size"), "{client} got in with QEMU: {all}");
        assert!(!all.contains("key encipherment"), "QEMU does not like our certificates: {all}");
    }
    script(
        "try: go(secure(sys.argv[1], context(sys.argv[2])))\n\
         except ssl.SSLError as e: assert 'ALERT_UNKNOWN_CA' in str(e), e\n\
         else: sys.exit('a stranger got in')\n\
         c = ssl.create_default_context(cafile=sys.argv[3])\n\
         try: secure(sys.argv[1], c)\n\
         except ssl.SSLCertVerificationError: pass\n\
         else: sys.exit('the server is taken for another')\n",
        &[&socket(&server), &yard.of("stranger"), &yard.of("other.pem")],
    );
    for about in ["not signed by an authority in ca-cert.pem", "ended TLS with the alert"] {
        let log = log_with(&server, 0, about);
        assert!(log.contains(about), "{log}");
    }
    // Who comes without TLS hears what is missing.
    let plain = server.uri_of("");
    for (program, words) in [("nbdinfo", vec![plain.as_str()]), ("qemu-img", vec!["info", &plain])]
    {
        let refused = run_any(program, &words);
        let all = told(program, &words, &refused);
        assert!(!refused.status.success() && all.to_lowercase().contains("tls"), "{all}");
    }
    run("nbdinfo", &[&with(&plain, &yard.of("laptop"))]);
    server.close();
}

#[test]
fn there_is_no_way_around_tls() {
    if !have(TOOLS) {
        return;
    }
    let (yard, folder) = (Yard::new(), TempDir::new().unwrap());
    let (disk, _) = raw(&folder, "disk.raw", MIB, 1);
    let server = Server::start(&disk, &["--tls-certs", &yard.server()]);
    script(
        r"
path, certs = sys.argv[1:]
for flags in (0, 2, 1, 3):
    s = connect(path); hello(s, flags)
    try: s.sendall(option(EXPORT_NAME))
    except BrokenPipeError: pass
    assert rest(s) == b'', flags
for behind in (option(LIST), option(GO, named()), b'I', bytes(300)):
    s = greeted(path)
    s.sendall(option(STARTTLS) + behind)
    told = rest(s)
    assert len(told) <= 20, told
s = greeted(path)
for number in (LIST, GO, INFO, 8, 9, 10, 11, 4711):
    assert ask(s, number, named() if number in (GO, INFO) else b'')[0] == TLS_REQD
assert ask(s, STARTTLS) == (ACK, b'')
s = context(certs).wrap_socket(s, server_hostname='localhost')
go(s); s.sendall(request(READ, 5, 0, 512)); assert reply(s) == (0, 5)
# TLS 1.1 has no defence against what is known today.
import warnings; warnings.simplefilter('ignore')
for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
    c = context(certs); c.set_ciphers('ALL:@SECLEVEL=0')
    c.minimum_version = ssl.TLSVersion.TLSv1; c.maximum_version = version
    try: secure(path, c)
    except (ssl.SSLError, ConnectionResetError) as e: pass
    else: sys.exit('%s was accepted' % version)
for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
    c = context(certs); c.minimum_version = c.maximum_version = version
    go(secure(path, c))
",
        &[&socket(&server), &yard.of("laptop")],
    );
    assert!(server.log().contains("needs TLS 1.2 or 1.3"), "{}", server.log());
    server.close();
}

#[test]
fn each_export_has_its_list_of_who_may_use_it() {
    if !have(TOOLS) || !have(&["nbdinfo"]) {
        return;
    }
    let (yard, folder) = (Yard::new(), TempDir::new().unwrap());
    let (a, _) = raw(&folder, "a.raw", MIB, 1);
    let (b, _) = raw(&folder, "b.raw", 2 * MIB, 2);
    let specs = [
        format!("name=a,image={},allow=CN=laptop,,O=Example", text(&a)),
        format!("name=b,image={},allow=CN=desk,,O=Example,allow=CN=lap,,O=Example", text(&b)),
        format!("name=all,image={},read-only", text(&a)),
    ];
    let [x, y, z] = specs.each_ref();
    let words = ["--tls-certs", &yard.server(), "--add", x, "--add", y, "--add", z];
    let server = Server::start_many(&words);
    let uri = server.uri_of("");
    for (client, mine, other) in [("laptop", "a", "b"), ("desk", "b", "a")] {
        let listed = run("nbdinfo", &["--list", "--json", &with(&uri, &yard.of(client))]);
        let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
        let names: Vec<_> = listed["exports"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| e["export-name"].as_str().unwrap().to_owned())
            .collect();
        let mut wanted = ["all", mine];
        wanted.sort_unstable();
        assert_eq!(names, wanted);
        run("nbdinfo", &[&with(&server.uri_of(mine), &yard.of(client))]);
        script(
            r"
path, certs, name = sys.argv[1:]
s = secure(path, context(certs))
for number in (GO, INFO):
    kind, text = ask(s, number, named(name.encode()))
    assert kind == POLICY and b'is not on the list' in text and b'CN=' in text, (kind, text)
assert ask(s, GO, named(b'nothing'))[0] == UNKNOWN
s.sendall(option(EXPORT_NAME, name.encode()))
try: assert rest(s) == b''
except ssl.SSLError: pass
",
            &[&socket(&server), &yard.of(client), other],
        );
        assert!(server.log().contains("may not use an export"), "{}", server.log());
    }
    server.close();
    let refused = run_any(ORLOP, &["serve", "--add", x, "--port", "0"]);
    let said = told(ORLOP, &["serve"], &refused);
    assert!(!refused.status.success() && said.contains("no TLS credentials"), "{said}");
    let hopeless = ["serve", "--add", x, "--tls-certs", &yard.server(), "--tls-no-client-certs"];
    let refused = run_any(ORLOP, &[&hopeless[..], &["--port", "0"]].concat());
    let said = told(ORLOP, &["serve"], &refused);
    assert!(!refused.status.success() && said.contains("--tls-no-client-certs"), "{said}");
}

#[test]
fn an_export_can_do_without_tls_while_others_cannot() {
    if !have(TOOLS) || !have(&["nbdinfo"]) {
        return;
    }
    let (yard, folder) = (Yard::new(), TempDir::new().unwrap());
    let (a, _) = raw(&folder, "a.raw", MIB, 1);
    let (b, _) = raw(&folder, "b.raw", 2 * MIB, 2);
    let admin = folder.path().join("admin");
    let open = format!("name=open,image={},tls=optional", text(&a));
    let shut = format!("name=shut,image={}", text(&b));
    let words = ["--tls-certs", &yard.server(), "--add", &open, "--add", &shut];
    let server = Server::start_many(&[&words[..], &["--admin", text(&admin)]].concat());
    run("nbdinfo", &[&server.uri_of("open")]);
    for name in ["open", "shut"] {
        run("nbdinfo", &[&with(&server.uri_of(name), &yard.of("laptop"))]);
    }
    assert!(!run_any("nbdinfo", &[&server.uri_of("shut")]).status.success());
    let listed = run("nbdinfo", &["--list", "--json", &server.uri_of("")]);
    assert!(listed.contains("\"open\"") && !listed.contains("\"shut\""), "{listed}");
    script(
        r"
s = greeted(sys.argv[1])
for number in (GO, INFO): assert ask(s, number, named(b'shut'))[0] == TLS_REQD
go(s, b'open'); s.sendall(request(READ, 1, 0, 512)); assert reply(s) == (0, 1)
",
        &[&socket(&server)],
    );
    // Once no export is open, nothing is.
    run(ORLOP, &["export", "--admin", text(&admin), "remove", "open"]);
    script("s = greeted(sys.argv[1]); assert ask(s, LIST)[0] == TLS_REQD", &[&socket(&server)]);
    server.close();
    // Where strangers reach the server, no export may be open to them: not at the start, not later.
    let remote = ["--tls-certs", &yard.server(), "--bind", "0.0.0.0", "--port", "0"];
    let refused = run_any(ORLOP, &[&["serve", "--add", &open], &remote[..]].concat());
    assert!(!refused.status.success(), "{refused:?}");
    let words = [&["--add", &shut, "--admin", text(&admin)], &remote[..]].concat();
    let place = text(folder.path());
    let server = Server::start_many(&[&words[..], &["--allow-dir", place]].concat());
    let add = ["export", "--admin", text(&admin), "add", &open];
    let said = told(ORLOP, &add, &run_any(ORLOP, &add));
    assert!(said.contains("without TLS beyond this machine"), "{said}");
    server.close();
}

#[test]
fn new_certificates_reach_new_connections_only() {
    if !have(TOOLS) || !have(&["nbdinfo"]) {
        return;
    }
    let (yard, folder) = (Yard::new(), TempDir::new().unwrap());
    let (disk, _) = raw(&folder, "disk.raw", MIB, 1);
    let admin = folder.path().join("admin");
    let words = ["--tls-certs", &yard.server(), "--admin", text(&admin)];
    let server = Server::start(&disk, &words);
    let reload = ["export", "--admin", text(&admin), "reload-tls"];
    // One client is there all the time; another is revoked while it is connected.
    yard.install_server();
    yard.revoke("desk");
    script(
        r"
path, laptop, desk = sys.argv[1:4]
kept = go(secure(path, context(desk)))
before = kept.getpeercert(True)
subprocess.run(sys.argv[4:], check=True)
kept.sendall(request(READ, 1, 0, 512)); assert reply(kept) == (0, 1); take(kept, 512)
new = go(secure(path, context(laptop)))
assert new.getpeercert(True) != before, 'the old certificate is still shown'
try: go(secure(path, context(desk)))
except (ssl.SSLError, ConnectionResetError, EOFError): pass
else: sys.exit('a revoked client got in')
",
        &[&[&socket(&server), &yard.of("laptop"), &yard.of("desk"), ORLOP], &reload[..]].concat(),
    );
    // What cannot be read changes nothing.
    std::fs::write(format!("{}/server-cert.pem", yard.server()), "no certificate").unwrap();
    let said = told(ORLOP, &reload, &run_any(ORLOP, &reload));
    assert!(said.contains("server-cert.pem"), "{said}");
    run("nbdinfo", &[&with(&server.uri_of(""), &yard.of("laptop"))]);
    server.close();
}

#[test]
fn a_stalled_tls_handshake_ends_with_the_deadline() {
    if !have(TOOLS) {
        return;
    }
    let (yard, folder) = (Yard::new(), TempDir::new().unwrap());
    let (disk, _) = raw(&folder, "disk.raw", MIB, 1);
    let words = ["--tls-certs", &yard.server(), "--handshake-time", "1"];
    let server = Server::start(&disk, &words);
    script(
        r"
path, certs = sys.argv[1:]
starts = b'', b'\x16', b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03'
stalled = []
for start in starts:
    s = greeted(path); assert ask(s, STARTTLS) == (ACK, b'')
    s.sendall(start); stalled.append(s)
# Under TLS the deadline goes on.
stalled.append(secure(path, context(certs)))
for s in stalled:
    try: assert len(rest(s)) <= 100
    except ssl.SSLError: pass
go(secure(path, context(certs)))
",
        &[&socket(&server), &yard.of("laptop")],
    );
    assert_eq!(server.log().matches("its handshake took too long").count(), 4, "{}", server.log());
    server.close();
}

#[test]
fn a_farewell_under_tls_loses_no_write() {
    if !have(TOOLS) {
        return;
    }
    let (yard, folder) = (Yard::new(), TempDir::new().unwrap());
    let (disk, _) = raw(&folder, "disk.raw", 32 * MIB, 1);
    let server = Server::start(&disk, &["--tls-certs", &yard.server()]);
    script(
        r"
path, certs, image = sys.argv[1:]
size = 256 << 10
for round in range(1, 31):
    s = go(secure(path, context(certs)))
    fill = bytes([round]) * size
    for i in range(64): s.sendall(request(WRITE, i, i * size, size) + fill)
    s.sendall(request(DISC, 99, 0, 0))
    if round % 3 == 0: pass
    elif round % 3 == 1: assert len(rest(s)) == 64 * 16
    else:
        # Whoever hangs up has the writes done all the same.
        s.settimeout(60)
        for i in range(64): assert reply(s)[0] == 0
    s.close()
    if round % 3:
        with open(image, 'rb') as f: assert f.read(64 * size) == fill * 64, round
",
        &[&socket(&server), &yard.of("laptop"), text(&disk)],
    );
    server.close();
}

#[test]
fn a_client_that_never_reads_is_cut_and_its_slot_is_free() {
    if !have(TOOLS) || !have(&["nbdinfo"]) {
        return;
    }
    let (yard, folder) = (Yard::new(), TempDir::new().unwrap());
    let (disk, _) = raw(&folder, "disk.raw", 32 * MIB, 1);
    let words = ["--tls-certs", &yard.server(), "--stall-time", "1", "--export-connections", "1"];
    let server = Server::start(&disk, &words);
    script(
        r"
path, certs = sys.argv[1:]
deaf = go(secure(path, context(certs)))
for i in range(32): deaf.sendall(request(READ, i, i << 20, 1 << 20))
kind, text = ask(secure(path, context(certs)), GO, named())
assert kind == POLICY and b'connections of this export are taken' in text, (kind, text)
for _ in range(600):
    s = secure(path, context(certs))
    if ask(s, GO, named())[0] == ACK: break
    time.sleep(.1)
else: sys.exit('the slot is never free')
s.sendall(request(READ, 1, 0, 512)); assert reply(s) == (0, 1)
",
        &[&socket(&server), &yard.of("laptop")],
    );
    assert!(server.log().contains("does not take its replies"), "{}", server.log());
    server.close();
}

#[test]
fn a_server_that_ends_says_farewell_under_tls() {
    if !have(TOOLS) {
        return;
    }
    let (yard, folder) = (Yard::new(), TempDir::new().unwrap());
    let (disk, _) = raw(&folder, "disk.raw", 32 * MIB, 1);
    let server = Server::start(&disk, &["--tls-certs", &yard.server()]);
    script(
        r"
path, certs, pid = sys.argv[1:]
idle = [go(secure(path, context(certs))) for _ in range(3)]
half = secure(path, context(certs))
busy = go(secure(path, context(certs)))
for i in range(16): busy.sendall(request(READ, i, i << 20, 1 << 20))
assert reply(busy) == (0, 0) or True
os.kill(int(pid), signal.SIGTERM)
# A stream that is cut without a farewell raises SSLEOFError here.
for s in idle: assert rest(s) == b''
while rest(busy): pass
try: rest(half)
except ssl.SSLError: pass
",
        &[&socket(&server), &yard.of("laptop"), &server.id().to_string()],
    );
    server.close();
}

//! Every bound of `orlop serve`, at it and one past it; rates that are changed while clients work;
//! counters that say what was done; and lengths that lie, in every field that has one.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where its set-up fails")]

#[path = "support/foreign.rs"]
mod foreign;
#[path = "support/server.rs"]
mod server;

use std::path::PathBuf;

use foreign::{PYTHON, content, run, run_any, text, told};
use server::Server;
use tempfile::TempDir;

const ORLOP: &str = env!("CARGO_BIN_EXE_orlop");
const CLIENT: &str = include_str!("support/raw_nbd.py");
const MIB: u64 = 1 << 20;

/// A served raw disk of 8 MiB, with its admin socket.
struct Served {
    server: Server,
    folder: TempDir,
    disk: PathBuf,
}

impl Served {
    fn with(options: &[&str]) -> Self {
        let folder = TempDir::new().unwrap();
        let disk = folder.path().join("disk.raw");
        std::fs::write(&disk, content(8 * MIB, 3)).unwrap();
        let admin = folder.path().join("admin");
        let words = ["--admin", text(&admin), "--allow-dir", text(folder.path())];
        let words = [options, &words].concat();
        let server = Server::start(&disk, &words);
        Self { server, folder, disk }
    }

    /// Runs a script of a raw client; its first word is the socket.
    fn script(&self, script: &str, words: &[&str]) -> String {
        let socket = self.server.path("nbd");
        let script = format!("{CLIENT}\npath = sys.argv[1]\n{script}");
        run(PYTHON, &[&["-c", &script, text(&socket)], words].concat())
    }

    fn admin(&self) -> String {
        text(&self.folder.path().join("admin")).to_owned()
    }

    /// Asks the server, as an admin.
    fn ask(&self, words: &[&str]) -> serde_json::Value {
        let admin = self.admin();
        let said = run(ORLOP, &[&["export", "--json", "--admin", &admin], words].concat());
        serde_json::from_str(&said).unwrap()
    }

    /// The server is still there for those who do nothing wrong.
    fn close(self) {
        self.script(
            "s = go(greeted(path)); s.sendall(request(READ, 7, 0, 512))\n\
            assert reply(s) == (0, 7) and len(take(s, 512)) == 512",
            &[],
        );
        self.server.close();
    }
}

#[test]
fn one_connection_more_than_all_waits_until_one_leaves() {
    let served = Served::with(&["--max-connections", "3"]);
    served.script(
        r"
inside = [go(greeted(path)) for _ in range(3)]
late = connect(path); late.settimeout(1)
try: late.recv(1); sys.exit('a fourth is greeted')
except TimeoutError: pass
for s in inside: s.sendall(request(READ, 1, 0, 512)); assert reply(s) == (0, 1); take(s, 512)
inside.pop().close()
late.settimeout(60); hello(late); go(late)
late.sendall(request(READ, 2, 0, 512)); assert reply(late) == (0, 2)
",
        &[],
    );
    served.close();
}

#[test]
fn one_connection_more_than_an_exports_is_refused_with_the_reason() {
    let served = Served::with(&["--export-connections", "2"]);
    served.script(
        r"
inside = [go(greeted(path)) for _ in range(2)]
s = greeted(path)
kind, said = ask(s, GO, named())
assert kind == POLICY and b'all 2 connections of this export are taken' in said, (kind, said)
e = greeted(path); e.sendall(option(EXPORT_NAME)); assert rest(e) == b''
inside.pop().close()
for _ in range(600):
    if ask(s, GO, named())[0] != POLICY: break
    time.sleep(.02)
else: sys.exit('the slot never came free')
",
        &[],
    );
    served.close();
    // An export's own number goes before that of all.
    let served = Served::with(&["--max-connections", "9"]);
    let spec = format!("name=x,image={},max-connections=1", text(&served.disk));
    served.ask(&["remove", ""]);
    served.ask(&["add", &spec]);
    served.script(
        "a = go(greeted(path), b'x')\n\
         kind, said = ask(greeted(path), GO, named(b'x'))\n\
         assert kind == POLICY and b'all 1 connections' in said, (kind, said)",
        &[],
    );
    served.server.close();
}

#[test]
fn of_too_many_unfinished_handshakes_the_oldest_ends() {
    let served = Served::with(&["--half-open", "2"]);
    served.script(
        r"
a, b = greeted(path), greeted(path)
assert ask(a, INFO, named())[0] == ACK and ask(b, INFO, named())[0] == ACK
done = go(greeted(path))
c = greeted(path)
assert rest(a) == b''
assert ask(c, INFO, named())[0] == ACK
d = greeted(path)
assert rest(b) == b'' or True
for s in (c, d): go(s)
done.sendall(request(READ, 1, 0, 512)); assert reply(done) == (0, 1)
",
        &[],
    );
    served.close();
}

#[test]
fn a_handshake_has_its_time() {
    let served = Served::with(&["--handshake-time", "2"]);
    served.script(
        r"
silent, trickling, fast = connect(path), greeted(path), greeted(path)
go(fast)
end = time.monotonic() + 60
while time.monotonic() < end:
    # Whoever says something now and then has no more time.
    try: trickling.sendall(option(4711)); take(trickling, 20); time.sleep(.2)
    except (EOFError, BrokenPipeError, ConnectionResetError): break
else: sys.exit('it goes on for ever')
assert len(rest(silent)) == 18
fast.sendall(request(READ, 1, 0, 512)); assert reply(fast) == (0, 1)
",
        &[],
    );
    assert!(served.server.log().contains("its handshake took too long"), "{}", served.server.log());
    served.close();
}

#[test]
fn options_are_counted_and_weighed() {
    // Two more for each export, so that a client may ask about all of them.
    let served = Served::with(&["--max-options", "8", "--option-bytes", "16384"]);
    served.script(
        r"
def endures(number, data, count):
    s = greeted(path)
    for i in range(count):
        try:
            ask(s, number, data)
        except (EOFError, BrokenPipeError, ConnectionResetError): return i
    return count
assert endures(4711, b'', 10) == 10, endures(4711, b'', 10)
assert endures(4711, b'', 11) == 10, endures(4711, b'', 11)
assert endures(INFO, named(), 11) == 10
# 16 KiB, and 600 bytes for each export: four times 4096 fit, a fifth does not.
wish = struct.pack('>I', 0) + struct.pack('>I', 1) + struct.pack('>I', 4084) + b'x' * 4084
assert len(wish) == 4096
assert endures(9, wish, 4) == 4
assert endures(9, wish, 5) == 4, endures(9, wish, 5)
# Ten thousand that nobody knows, all at once: it ends, and long before the last.
s = greeted(path)
try:
    for _ in range(100): s.sendall(option(0x7777) * 100)
except (BrokenPipeError, ConnectionResetError): pass
assert len(rest(s)) < 100 * 100
# The same with data that is skipped.
s = greeted(path)
try:
    for _ in range(100): s.sendall(option(0x7777, bytes(1 << 20)))
except (BrokenPipeError, ConnectionResetError): pass
rest(s)
",
        &[],
    );
    served.close();
    let served = Served::with(&[]);
    served.script(
        r"
s = greeted(path); count = 0
try:
    for _ in range(10000): ask(s, 0x7777); count += 1
except (EOFError, BrokenPipeError, ConnectionResetError): pass
assert count == 66, count
",
        &[],
    );
    served.close();
}

#[test]
fn requests_and_bytes_in_flight_are_bounded_and_all_are_answered() {
    for options in [
        &["--requests", "1"][..],
        &["--requests", "1024"],
        &["--request-mib", "1"],
        &["--requests", "2", "--request-mib", "1"],
    ] {
        let served = Served::with(options);
        served.script(
            r"
import threading
s = go(greeted(path))
# One request may be larger than the bound when it is alone.
sizes = [4 << 20, 512, 1 << 20, 3 << 20] + [4096] * 3000
def send():
    for i, size in enumerate(sizes): s.sendall(request(READ, i, 0, size))
t = threading.Thread(target=send); t.start()
seen = set()
for _ in sizes:
    error, cookie = reply(s); assert error == 0 and cookie not in seen
    take(s, sizes[cookie]); seen.add(cookie)
t.join()
for i in range(40): s.sendall(request(WRITE, i, i * 4096, 4096) + bytes([i]) * 4096)
assert {reply(s) for _ in range(40)} == {(0, i) for i in range(40)}
",
            &[],
        );
        served.close();
    }
}

#[test]
fn who_does_nothing_or_stops_halfway_is_let_go() {
    let served = Served::with(&["--idle-time", "1", "--stall-time", "2"]);
    served.script(
        r"
idle = go(greeted(path))
half = go(greeted(path)); half.sendall(request(WRITE, 1, 0, 4096) + bytes(4095))
head = go(greeted(path)); head.sendall(request(READ, 1, 0, 512)[:27])
deaf = go(greeted(path))
for i in range(64): deaf.sendall(request(READ, i, 0, 1 << 20))
for s in (idle, half, head): assert rest(s) == b''
# What was not taken in time is lost; what the system holds already is not.
time.sleep(5)
assert len(rest(deaf)) < 64 << 20
",
        &[],
    );
    let log = served.server.log();
    for about in ["was idle for long", "in the middle of a request", "does not take its replies"] {
        assert!(log.contains(about), "not {about}: {log}");
    }
    served.close();
    let served = Served::with(&["--stall-time", "1"]);
    served.script(
        r"
s = go(greeted(path)); time.sleep(3)
s.sendall(request(READ, 1, 0, 512)); assert reply(s) == (0, 1)
",
        &[],
    );
    served.close();
}

#[test]
fn values_out_of_range_are_usage_errors() {
    for (option, wrong) in [
        ("--max-connections", ["0", "1001", "-1", "x"]),
        ("--export-connections", ["0", "1001", "1.5", ""]),
        ("--half-open", ["0", "1001", "99999999999999999999", "x"]),
        ("--handshake-time", ["0", "3601", "10s", "-5"]),
        ("--max-options", ["7", "10001", "0", "x"]),
        ("--option-bytes", ["16383", "16777217", "0", "64K"]),
        ("--requests", ["0", "1025", "-1", "x"]),
        ("--request-mib", ["0", "1025", "-1", "x"]),
        ("--idle-time", ["1073741825", "-1", "x", "1.5"]),
        ("--stall-time", ["0", "1048577", "-1", "x"]),
        ("--iops", ["0", "-1", "x", "1.5"]),
        ("--bps", ["-1", "x", "1.5", "99999999999999999999"]),
    ] {
        for value in wrong {
            let words = ["serve", "x.raw", &format!("{option}={value}")];
            let output = run_any(ORLOP, &words);
            let all = told(ORLOP, &words, &output);
            assert!(output.status.code() == Some(2) && all.contains(option), "{all}");
        }
    }
}

#[test]
fn rates_hold_and_can_be_changed_while_clients_work() {
    let served = Served::with(&["--iops", "50"]);
    served.script(
        r"
import threading
orlop, admin = sys.argv[2:]
def limit(*words):
    subprocess.run([orlop, 'export', '--admin', admin, 'limit', ''] + list(words), check=True)
def burst(seconds, size):
    '''Requests that were answered within so many seconds, and the seconds it was.'''
    s = go(greeted(path)); s.settimeout(1); start = time.monotonic(); done = sent = 0
    while time.monotonic() - start < seconds:
        while sent - done < 32: s.sendall(request(READ, sent, 0, size)); sent += 1
        try: reply(s); take(s, size); done += 1
        except TimeoutError: break
    s.close(); return done, time.monotonic() - start
# What may have been saved up, once, and what comes in a second; nothing is said of the least.
done, took = burst(2, 512)
assert done <= 50 * took + 50 + 32, (done, took)
assert done >= 1
limit('--iops', '10')
done, took = burst(2, 512)
assert done <= 10 * took + 50 + 32, (done, took)
limit('--iops', '0', '--bps', '1M')
done, took = burst(2, 65536)
assert done * 65536 <= (took + 1) * (1 << 20) + 32 * 65536, (done, took)
# No limit: what took seconds before is done at once.
limit('--bps', '0')
s = go(greeted(path))
for i in range(3000): 
    s.sendall(request(READ, i, 0, 512)); assert reply(s) == (0, i); take(s, 512)
",
        &[ORLOP, &served.admin()],
    );
    served.close();
}

#[test]
fn a_slow_export_slows_no_other() {
    let folder = TempDir::new().unwrap();
    let disk = folder.path().join("disk.raw");
    std::fs::write(&disk, content(MIB, 4)).unwrap();
    let [slow, free] =
        [",iops=1", ""].map(|rest| format!("name=x{},image={}{rest}", rest.len(), text(&disk)));
    let server = Server::start_many(&["--add", &slow, "--add", &free]);
    let script = format!(
        "{CLIENT}\npath = sys.argv[1]\n\
         slow = go(greeted(path), b'x7')\n\
         for i in range(100): slow.sendall(request(READ, i, 0, 512))\n\
         free = go(greeted(path), b'x0')\n\
         for i in range(5000):\n  free.sendall(request(READ, i, 0, 512))\n\
         \u{20} assert reply(free) == (0, i); take(free, 512)\n"
    );
    run(PYTHON, &["-c", &script, text(&server.path("nbd"))]);
    // A server that is told to end does not wait for its turn.
    server.close();
}

#[test]
fn counters_tell_exactly_what_a_client_did() {
    let served = Served::with(&["--stats"]);
    let admin = served.admin();
    let before = served.ask(&["stats"]);
    assert_eq!(before["answer"][""]["connections"].as_array().map(Vec::len), Some(0), "{before}");
    let told = served.script(
        r"
orlop, admin = sys.argv[2:]
a, b = go(greeted(path)), go(greeted(path))
for i in range(7): a.sendall(request(READ, i, 0, 4096)); assert reply(a) == (0, i); take(a, 4096)
for i in range(3): a.sendall(request(WRITE, i, 0, 1024) + bytes(1024)); assert reply(a) == (0, i)
for i in range(2): a.sendall(request(FLUSH, i, 0, 0)); assert reply(a) == (0, i)
# Refused by the disk's end: an error, and no bytes.
for i in range(4): a.sendall(request(READ, i, 1 << 40, 512)); assert reply(a)[0] == 22
for i in range(5): b.sendall(request(READ, i, 0, 512)); assert reply(b) == (0, i); take(b, 512)
time.sleep(2)
print(subprocess.run([orlop, 'export', '--json', '--admin', admin, 'stats'], check=True,
    capture_output=True, text=True).stdout)
",
        &[ORLOP, &admin],
    );
    let stats: serde_json::Value = serde_json::from_str(&told).unwrap();
    let export = &stats["answer"][""];
    let counts = |of: &serde_json::Value, op: &str| {
        ["requests", "bytes", "errors"].map(|what| of["counters"][op][what].as_u64().unwrap_or(0))
    };
    let connections = export["connections"].as_array().unwrap();
    assert_eq!(connections.len(), 2, "{stats}");
    let [a, b] = [&connections[0], &connections[1]];
    assert_eq!(counts(a, "write"), [3, 3072, 0], "{stats}");
    assert_eq!(counts(a, "flush"), [2, 0, 0], "{stats}");
    assert_eq!(counts(a, "read"), [11, 7 * 4096, 4], "{stats}");
    assert_eq!(counts(b, "read"), [5, 2560, 0], "{stats}");
    assert_eq!(counts(export, "read"), [16, 7 * 4096 + 2560, 4], "{stats}");
    assert_eq!(counts(export, "write"), [3, 3072, 0], "{stats}");
    assert!(a["peer"].as_str().is_some_and(|peer| peer.starts_with("pid ")), "{stats}");
    let log = served.server.log();
    let line = log.lines().find(|line| line.contains("(default): 2 connections, read "));
    assert!(line.is_some_and(|line| line.contains("p99") && line.contains("errors")), "{log}");
    served.close();
}

#[test]
fn lengths_that_lie_harm_nobody() {
    let served = Served::with(&["--handshake-time", "2", "--stall-time", "1"]);
    let words = include_str!("limits/lies.py");
    served.script(words, &[]);
    served.close();
}

#[test]
fn the_abuse_that_felled_others_is_answered() {
    let served = Served::with(&["--handshake-time", "2", "--stall-time", "1"]);
    served.script(include_str!("limits/abuse.py"), &[]);
    served.close();
}

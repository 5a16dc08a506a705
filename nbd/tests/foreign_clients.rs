//! Clients made by others against this crate's server side: libnbd's tools and QEMU's.
//!
//! The server here is the smallest that can be: one thread per connection, one disk in memory. It
//! exists to let foreign code judge our bytes, not to be fast. Missing tools are skipped aloud.

use std::io::{ErrorKind, Read, Result, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command as Process, id};
use std::sync::{Arc, Mutex};
use std::thread;

use orlop_nbd::fuzz::OneDisk;
use orlop_nbd::wire::{allocation, dirty};
use orlop_nbd::{
    Body, Bytes, Command, ContextName, Errno, Extent, Handshake, HandshakeLimits, Parsed, Piece,
    Progress, Request, Segment, Session, TlsOffer, Transmission,
};

const DISK_LEN: usize = 8 << 20;
/// Runs of this many zero bytes are shown as holes.
const GRAIN: usize = 4096;

type Disk = Arc<Mutex<Vec<u8>>>;

/// A disk that listens until the test process ends.
struct Server {
    path: PathBuf,
    disk: Disk,
}

impl Server {
    fn start(name: &str) -> Server {
        Server::offering(name, TlsOffer::None, false)
    }

    /// A server that offers TLS, which it does not speak, and to be resized, which it refuses.
    fn offering(name: &str, tls: TlsOffer, resize: bool) -> Server {
        let path = std::env::temp_dir().join(format!("orlop-nbd-{name}-{}.sock", id()));
        let _absent_is_fine = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).expect("the temporary folder takes sockets");
        let disk: Disk = Arc::new(Mutex::new(vec![0; DISK_LEN]));
        let shared = Arc::clone(&disk);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let disk = Arc::clone(&shared);
                // A client that goes away mid-sentence is none of this test's business.
                thread::spawn(move || serve(stream, &disk, tls, resize).ok());
            }
        });
        Server { path, disk }
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///disk?socket={}", self.path.display())
    }

    /// What a tool printed, or `None` if it is not installed; a failing tool fails the test.
    fn run(&self, tool: &str, arguments: &[&str]) -> Option<String> {
        self.run_all(tool, arguments).map(|(text, _)| text)
    }

    /// The same, and what it printed as errors.
    fn run_all(&self, tool: &str, arguments: &[&str]) -> Option<(String, String)> {
        let output = match Process::new(tool).args(arguments).output() {
            Ok(output) => output,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                eprintln!("SKIPPED: {tool} is not installed");
                return None;
            }
            Err(error) => unreachable!("{tool}: {error}"),
        };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        if complaint.contains("No module named") {
            eprintln!("SKIPPED: {tool} does not find its own parts under this PATH");
            return None;
        }
        assert!(output.status.success(), "{tool} {arguments:?}: {text}{complaint}");
        let complaint = complaint.into_owned();
        Some((text, complaint))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone_is_fine = std::fs::remove_file(&self.path);
    }
}

fn serve(mut stream: UnixStream, disk: &Disk, tls: TlsOffer, resize: bool) -> Result<()> {
    let mut exports = OneDisk::new();
    exports.0.size = Bytes(DISK_LEN as u64);
    exports.0.capabilities.resize = resize;
    let mut handshake = Handshake::new(HandshakeLimits::default(), tls);
    stream.write_all(&handshake.take_output())?;
    let mut buffer = vec![0; 4096];
    let session = loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        let progress = handshake.receive(&buffer[..count], &exports);
        stream.write_all(&handshake.take_output())?;
        match progress {
            Ok(Progress::More) => {}
            Ok(Progress::Ready(session)) => break session,
            Ok(Progress::Closed | Progress::StartTls) | Err(_) => return Ok(()),
        }
    };
    let gate = Transmission::new(&session);
    let mut input = session.leftover.clone();
    loop {
        let want = |input: &mut Vec<u8>, count: usize| -> Result<()> {
            let start = input.len();
            input.resize(start.max(count), 0);
            (&stream).read_exact(&mut input[start..])
        };
        want(&mut input, gate.header_len())?;
        let mut out = Vec::new();
        match gate.parse(&input) {
            // A filter is a row of words, so at least one of them is missing.
            Parsed::Incomplete => {
                let more = input.len() + 4;
                want(&mut input, more)?;
                continue;
            }
            Parsed::Disconnect | Parsed::Violation(_) => return Ok(()),
            Parsed::Refused { echo, error, text, consumed, payload } => {
                gate.reply_style().error(&mut out, echo, error, None, text);
                want(&mut input, consumed + payload as usize)?;
                input.drain(..consumed + payload as usize);
            }
            Parsed::Request { request, consumed } => {
                let payload = request.payload().0 as usize;
                want(&mut input, consumed + payload)?;
                let bytes = &input[consumed..consumed + payload];
                let mut disk = disk.lock().expect("no server thread panics");
                carry_out(&mut disk, &gate, &session, &request, bytes, &mut out);
                input.drain(..consumed + payload);
            }
        }
        (&stream).write_all(&out)?;
    }
}

fn carry_out(
    disk: &mut [u8],
    gate: &Transmission,
    session: &Session,
    request: &Request,
    payload: &[u8],
    out: &mut Vec<u8>,
) {
    let style = gate.reply_style();
    let start = request.offset.0 as usize;
    let range = start..start + request.length.0 as usize;
    match request.command {
        Command::Read { .. } => {
            let bytes = &disk[range];
            let segments: Vec<_> = bytes
                .chunks(GRAIN)
                .map(|run| {
                    let length = Bytes(run.len() as u64);
                    if is_zero(run) { Segment::Hole(length) } else { Segment::Data(length) }
                })
                .collect();
            let (mut headers, mut pieces) = (Vec::new(), Vec::new());
            let planned = style.plan_read(request, &segments, &mut headers, &mut pieces);
            planned.expect("the runs cover the range");
            for Piece { header, body } in pieces {
                out.extend_from_slice(&headers[header]);
                match body {
                    Body::None => {}
                    Body::Zeroes { length } => out.resize(out.len() + length as usize, 0),
                    Body::Data { skip, length } => {
                        let data = &bytes[skip as usize..(skip + length) as usize];
                        out.extend_from_slice(data);
                    }
                }
            }
        }
        Command::BlockStatus { contexts, .. } => {
            for context in session.contexts.iter().filter(|one| contexts.contains(one.id)) {
                let extents = disk[start..].chunks(GRAIN).map(|run| {
                    let flags = flags_of(&context.name, is_zero(run));
                    Extent { length: Bytes(run.len() as u64), flags }
                });
                let done = contexts.last() == Some(context.id);
                let told = style.block_status(out, request, context.id, extents, done);
                told.expect("the disk goes on");
            }
        }
        Command::Resize { .. } => {
            let text = "this disk keeps its size";
            style.error(out, request.echo(), Errno::ENOSPC, None, text);
        }
        Command::WriteZeroes { fast: true, .. } => {
            let text = "zeroing is not fast here";
            style.error(out, request.echo(), Errno::ENOTSUP, None, text);
        }
        Command::Write { .. } => {
            disk[range].copy_from_slice(payload);
            out.extend_from_slice(&style.done(request.echo()));
        }
        Command::WriteZeroes { .. } | Command::Trim { .. } => {
            disk[range].fill(0);
            out.extend_from_slice(&style.done(request.echo()));
        }
        Command::Flush { .. } | Command::Cache => {
            out.extend_from_slice(&style.done(request.echo()))
        }
    }
}

/// One layer that holds what is not zero.
fn flags_of(context: &ContextName, zero: bool) -> u32 {
    match context {
        ContextName::Allocation if zero => allocation::HOLE | allocation::ZERO,
        ContextName::Allocation => 0,
        ContextName::AllocationDepth => u32::from(!zero),
        ContextName::DirtyBitmap(_) => u32::from(!zero) * dirty::DIRTY,
    }
}

fn is_zero(run: &[u8]) -> bool {
    run.iter().all(|byte| *byte == 0)
}

#[test]
fn nbdinfo_reads_what_is_offered() {
    let server = Server::start("info");
    let Some(text) = server.run("nbdinfo", &["--json", &server.uri()]) else { return };
    for expected in [
        r#""protocol": "newstyle-fixed""#,
        r#""structured": true"#,
        r#""description": "a disk for tests""#,
        r#""base:allocation""#,
        r#""export-size": 8388608"#,
        r#""can_fast_zero": true"#,
        r#""can_df": true"#,
        r#""can_multi_conn": true"#,
        r#""block_size_preferred": 4096"#,
    ] {
        assert!(text.contains(expected), "no {expected} in {text}");
    }
    let listed = server.run("nbdinfo", &["--list", &server.uri()]);
    assert!(listed.is_some_and(|text| text.contains("export=\"disk\"")));
}

#[test]
fn nbdinfo_maps_holes_and_nbdcopy_copies_around_them() {
    let server = Server::start("copy");
    server.disk.lock().expect("no server thread panics")[GRAIN..3 * GRAIN].fill(7);
    let Some(map) = server.run("nbdinfo", &["--map", &server.uri()]) else { return };
    let words: Vec<Vec<&str>> =
        map.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
    let rest = (DISK_LEN - 3 * GRAIN).to_string();
    assert_eq!(words, [["0", "4096", "3"], ["4096", "8192", "0"], ["12288", &rest, "3"]]);

    let copy = server.path.with_extension("img");
    let name = copy.display().to_string();
    if server.run("nbdcopy", &[&server.uri(), &name]).is_some() {
        let bytes = std::fs::read(&copy).expect("nbdcopy made it");
        std::fs::remove_file(&copy).expect("it is ours");
        assert!(bytes == *server.disk.lock().expect("no server thread panics"));
    }
}

#[test]
fn qemu_io_writes_reads_zeroes_and_discards() {
    let server = Server::start("qemu");
    let uri = server.uri();
    let script = [
        "write -P 7 5000 128k",
        "write -f -P 8 1M 64k",
        "read -P 7 5000 128k",
        "read -P 0 0 5000",
        "write -z 1M 4k",
        "read -P 0 1M 4k",
        "discard 1M 64k",
        "flush",
        "read -P 0 1M 64k",
    ];
    let mut arguments = vec!["--trace", "nbd_receive_option_reply", "-f", "raw"];
    arguments.extend(script.iter().flat_map(|command| ["-c", command]));
    arguments.push(&uri);
    if let Some((text, traced)) = server.run_all("qemu-io", &arguments) {
        assert!(!text.contains("failed") && !text.contains("error"), "{text}");
        // Since 8.2 QEMU asks for extended headers by itself, so all of this went through them.
        assert!(traced.contains("11 (extended headers), type 1 (ack)"), "{traced}");
    }
}

#[test]
fn nbdinfo_and_qemu_img_map_the_contexts_of_qemu() {
    let server = Server::start("contexts");
    server.disk.lock().expect("no server thread panics")[GRAIN..3 * GRAIN].fill(7);
    let rest = (DISK_LEN - 3 * GRAIN).to_string();
    for context in ["qemu:allocation-depth", "qemu:dirty-bitmap:leaf"] {
        let map = format!("--map={context}");
        if let Some(map) = server.run("nbdinfo", &[&map, &server.uri()]) {
            let words: Vec<Vec<&str>> =
                map.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
            let expected = [["0", "4096", "0"], ["4096", "8192", "1"], ["12288", &rest, "0"]];
            assert_eq!(words, expected, "{context}");
        }
        let options = format!(
            "driver=nbd,server.type=unix,server.path={},export=disk,x-dirty-bitmap={context}",
            server.path.display()
        );
        let arguments = ["map", "--output=json", "--image-opts", &options];
        if let Some(map) = server.run("qemu-img", &arguments) {
            // What is dirty, or of the top layer, QEMU shows as no data.
            let dirty: Vec<&str> =
                map.lines().filter(|line| line.contains(r#""data": false"#)).collect();
            assert_eq!(dirty.len(), 1, "{map}");
            assert!(dirty[0].contains(r#""start": 4096, "length": 8192"#), "{map}");
        }
    }
}

/// libnbd with its own checks off, so that what is wrong reaches the server.
const RUDE: &str = r#"
import errno
h.set_strict_mode(0)
def refused(code, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except nbd.Error as error:
        assert error.errnum == code, (code, error)
        return
    raise AssertionError("accepted")
size = h.get_size()
refused(errno.EINVAL, h.pread, 512, size)
refused(errno.ENOSPC, h.pwrite, b"x" * 512, size - 1)
refused(errno.ENOSPC, h.zero, 512, size)
refused(errno.EINVAL, h.trim, 512, size)
refused(errno.EINVAL, h.pread, 0, 0)
refused(errno.EINVAL, h.pread, 512, 0, 1 << 9)
refused(errno.EINVAL, h.pwrite, b"x" * 512, 0, nbd.CMD_FLAG_REQ_ONE)
refused(errno.ENOTSUP, h.zero, 512, 0, nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(512, 0, nbd.CMD_FLAG_FUA) == bytes(512)
h.pwrite(b"orlop" * 100, 4000, nbd.CMD_FLAG_FUA)
seen = []
def chunk(data, offset, kind, error):
    seen.append((offset, len(data), kind))
h.pread_structured(8192, 4096, chunk)
assert seen == [(4096, 4096, nbd.READ_DATA), (8192, 4096, nbd.READ_HOLE)], seen
seen.clear()
h.pread_structured(8192, 4096, chunk, nbd.CMD_FLAG_DF)
assert seen == [(4096, 8192, nbd.READ_DATA)], seen
entries = []
def extent(context, offset, found, error):
    entries.append((context, offset, list(found)))
h.block_status(100, 10, extent, nbd.CMD_FLAG_REQ_ONE)
assert entries == [("base:allocation", 10, [100, 0])], entries
h.cache(4096, 0)
h.flush()
print("polite")
"#;

#[test]
fn a_rude_libnbd_client_gets_the_right_errors_and_stays_in_step() {
    let server = Server::start("rude");
    let uri = server.uri();
    for simple in [false, true] {
        let script = if simple { SIMPLE } else { RUDE };
        let connect = format!("h.connect_uri('{uri}')");
        let setup = if simple { "h.set_request_structured_replies(False)" } else { SELECT };
        let arguments = ["-c", setup, "-c", &connect, "-c", script];
        if let Some(text) = server.run("nbdsh", &arguments) {
            assert_eq!(text.trim(), "polite");
        }
    }
}

const SELECT: &str = "h.add_meta_context('base:allocation')";

/// The same manners without structured replies.
const SIMPLE: &str = r#"
h.set_strict_mode(0)
assert not h.get_structured_replies_negotiated() and not h.can_df()
try:
    h.pread(512, h.get_size())
    raise AssertionError("accepted")
except nbd.Error as error:
    assert error.errnum == 22, error
assert h.pread(500, 4000) == b"orlop" * 100
assert h.pread(1 << 20, 1 << 20) == bytes(1 << 20)
print("polite")
"#;

#[test]
fn qemu_reads_bit_nine_as_resize() {
    for resize in [false, true] {
        let server = Server::offering(&format!("bits-{resize}"), TlsOffer::None, resize);
        let path = server.path.display().to_string();
        let Some(text) = server.run("qemu-nbd", &["--list", "--socket", &path]) else { return };
        let flags = text.lines().find(|line| line.contains("flags:"));
        assert_eq!(flags.map(|line| line.contains(" resize ")), Some(resize), "{text}");
    }
}

#[test]
fn libnbd_goes_on_without_tls_when_it_is_refused() {
    let server = Server::start("no-tls");
    let connect = format!("h.connect_uri('{}')", server.uri());
    let check = "assert not h.get_tls_negotiated() and h.pread(512, 0) == bytes(512)";
    let script = ["-c", "h.set_tls(nbd.TLS_ALLOW)", "-c", &connect, "-c", check];
    let _skipped_aloud = server.run("nbdsh", &script);
}

/// Connects in the clear; this libnbd has one error for what it cannot do without TLS.
const IN_THE_CLEAR: &str = r#"
import errno
h.set_opt_mode(True)
h.connect_unix(PATH)
h.set_export_name("disk")
for ask in [h.opt_info, h.opt_go, lambda: h.opt_list(lambda *entry: 0)]:
    try:
        ask()
        raise AssertionError("answered")
    except nbd.Error as error:
        assert error.errnum == errno.ENOTSUP, error
h.opt_abort()
print("polite")
"#;

#[test]
fn libnbd_is_told_that_tls_is_required_and_may_leave_politely() {
    let server = Server::offering("forced", TlsOffer::Required, false);
    let path = format!("PATH = '{}'", server.path.display());
    if let Some(text) = server.run("nbdsh", &["-c", &path, "-c", IN_THE_CLEAR]) {
        assert_eq!(text.trim(), "polite");
    }
}

#[test]
fn qemu_understands_that_tls_is_required() {
    let server = Server::offering("forced-qemu", TlsOffer::Required, false);
    let Ok(output) = Process::new("qemu-img").args(["info", &server.uri()]).output() else {
        eprintln!("SKIPPED: qemu-img is not installed");
        return;
    };
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && complaint.contains("requires TLS"), "{complaint}");
}

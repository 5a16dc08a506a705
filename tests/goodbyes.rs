//! Clients that are in a hurry, against the real server over a unix socket: what they asked before
//! they said goodbye is done, and a flush is a flush for everybody.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where its set-up fails")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

#[path = "support/server.rs"]
mod server;
#[allow(dead_code)]
#[path = "nbd_model/wire.rs"]
mod wire;

use server::Server;
use wire::{Frame, Header, Part, STYLES, Style, command, frame};

/// Goodbyes said.
const TRIES: u64 = 1000;
/// What each of them may write, in a place of its own.
const PLACE_BYTES: u64 = 256 << 10;
/// How long anything may take at all.
const PATIENCE: Duration = Duration::from_secs(60);

const STRUCTURED_REPLY: u32 = 8;
const EXTENDED_HEADERS: u32 = 11;
const GO: u32 = 7;

/// A connection past its handshake.
struct Client {
    stream: UnixStream,
    style: Style,
}

impl Client {
    /// Connects; while the server has too many connections, again.
    fn new(socket: &Path, style: Style) -> Self {
        let start = Instant::now();
        loop {
            if let Some(client) = Self::attempt(socket, style) {
                return client;
            }
            assert!(start.elapsed() < PATIENCE, "the server lets nobody in");
            sleep(Duration::from_millis(5));
        }
    }

    fn attempt(socket: &Path, style: Style) -> Option<Self> {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.read_exact(&mut [0; 18]).unwrap();
        let mut said = 3_u32.to_be_bytes().to_vec();
        let options: &[u32] = match style {
            Style::Simple => &[GO],
            Style::Structured => &[STRUCTURED_REPLY, GO],
            Style::Extended => &[EXTENDED_HEADERS, GO],
        };
        for option in options {
            said.extend(b"IHAVEOPT");
            said.extend(option.to_be_bytes());
            let data: &[u8] = if *option == GO { &[0; 6] } else { &[] };
            said.extend((data.len() as u32).to_be_bytes());
            said.extend(data);
        }
        stream.write_all(&said).unwrap();
        let mut client = Self { stream, style };
        options.iter().all(|option| client.await_ack(*option)).then_some(client)
    }

    /// Whether an option was granted; a full server refuses the last one by policy.
    fn await_ack(&mut self, option: u32) -> bool {
        loop {
            let mut head = [0; 20];
            self.stream.read_exact(&mut head).unwrap();
            let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
            assert_eq!(word(8), option, "a reply to another option");
            self.stream.read_exact(&mut vec![0; word(16) as usize]).unwrap();
            match word(12) {
                1 => return true,
                0x8000_0002 if option == GO => return false,
                kind => assert_eq!(kind >> 31, 0, "option {option} was refused: {kind:#x}"),
            }
        }
    }

    /// The bytes of a request.
    fn request(&self, command: u16, cookie: u64, offset: u64, payload: &[u8]) -> Vec<u8> {
        let length = payload.len() as u64;
        let header = Header { command, flags: 0, cookie, offset, length };
        [&header.bytes(self.style), payload].concat()
    }

    /// Sends a request and takes its reply.
    fn ask(&mut self, command: u16, offset: u64, length: u64, payload: &[u8]) -> Vec<u8> {
        let header = Header { command, flags: 0, cookie: 5, offset, length };
        self.stream.write_all(&[&header.bytes(self.style), payload].concat()).unwrap();
        let wanted = if command == command::READ { length } else { 0 };
        let (mut said, mut data) = (Vec::new(), vec![0; wanted as usize]);
        loop {
            let about = |cookie| (cookie == 5).then_some((offset, wanted));
            let Some(found) = frame(&said, self.style, about).unwrap() else {
                let mut more = [0; 64 << 10];
                let count = self.stream.read(&mut more).unwrap();
                assert!(count > 0, "the server hung up");
                said.extend(&more[..count]);
                continue;
            };
            let Frame { part, done, taken, .. } = found;
            said.drain(..taken);
            match part {
                Part::Data(at, bytes) => {
                    data[(at - offset) as usize..][..bytes.len()].copy_from_slice(&bytes);
                }
                Part::Hole(..) | Part::Plain => {}
                other => panic!("{other:?}"),
            }
            if done {
                return data;
            }
        }
    }
}

/// A dynamic VHD with room for all.
fn image(folder: &TempDir) -> PathBuf {
    let path = folder.path().join("disk.vhd");
    let mut create = Command::new(env!("CARGO_BIN_EXE_orlop"));
    let size = (TRIES * PLACE_BYTES).to_string();
    assert!(create.arg("create").arg(&path).args(["--size", &size]).status().unwrap().success());
    path
}

/// What try number `number` writes: a few pieces one behind the other, from bytes to many pages.
fn pieces(number: u64) -> Vec<Vec<u8>> {
    let count = 1 + number % 9;
    let lens = [512, 4096, 100, 20_000, 512, 1, 70_000, 4096, 3000];
    let of_piece = |no: u64| {
        let len = lens[((number / 9 + no) % 9) as usize];
        (0..len).map(|at| (number * 31 + no * 7 + at / 3) as u8 | 1).collect()
    };
    (0..count).map(of_piece).collect()
}

#[test]
fn writes_right_before_a_goodbye_are_never_lost() {
    let folder = TempDir::new().unwrap();
    let server = Server::start(&image(&folder), &[]);
    let socket = server.path("nbd");
    for number in 0..TRIES {
        let mut client = Client::new(&socket, STYLES[(number % 3) as usize]);
        let (mut said, mut at) = (Vec::new(), number * PLACE_BYTES);
        for (cookie, piece) in (0..).zip(pieces(number)) {
            said.extend(client.request(command::WRITE, cookie, at, &piece));
            at += piece.len() as u64;
        }
        said.extend(client.request(command::DISC, 99, 0, &[]));
        client.stream.write_all(&said).unwrap();
        // And off, with every reply unread.
        drop(client);
    }
    let mut reader = Client::new(&socket, Style::Simple);
    for number in 0..TRIES {
        let wanted = pieces(number).concat();
        let (at, len) = (number * PLACE_BYTES, wanted.len() as u64);
        // The last of them may still be under way.
        let start = Instant::now();
        while reader.ask(command::READ, at, len, &[]) != wanted {
            assert!(start.elapsed() < PATIENCE, "goodbye {number} lost a write");
            sleep(Duration::from_millis(5));
        }
    }
    drop(reader);
    server.close();
}

#[test]
fn a_flush_covers_what_other_connections_were_told_is_written() {
    let folder = TempDir::new().unwrap();
    let path = image(&folder);
    for round in 0..5 {
        let server = Server::start(&path, &[]);
        let socket = server.path("nbd");
        let mut writer = Client::new(&socket, STYLES[round % 3]);
        let mut flusher = Client::new(&socket, STYLES[(round + 1) % 3]);
        let place = |no: usize| (round * 40 + no) as u64 * 3 * PLACE_BYTES / 2;
        let data = |no: usize| vec![(round * 40 + no) as u8 | 1; 3000];
        for no in 0..40 {
            writer.ask(command::WRITE, place(no), 3000, &data(no));
        }
        flusher.ask(command::FLUSH, 0, 0, &[]);
        // No chance to tidy up; what is not in the image now never will be.
        server.kill();
        let server = Server::start(&path, &[]);
        let mut reader = Client::new(&server.path("nbd"), Style::Simple);
        for no in 0..40 {
            assert_eq!(reader.ask(command::READ, place(no), 3000, &[]), data(no), "write {no}");
        }
        drop(reader);
        server.close();
    }
}

//! What of an image a running server maps, as the kernel tells it, and when it maps nothing; and
//! answers in which data and holes take turns thousands of times.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where its set-up fails")]

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::OFlags;
use tempfile::TempDir;

#[path = "support/foreign.rs"]
mod foreign;
#[path = "support/server.rs"]
mod server;
#[allow(dead_code)]
#[path = "nbd_model/wire.rs"]
mod wire;

use foreign::{assert_same, orlop, text};
use server::Server;
use wire::{Frame, Header, Part, STYLES, Style, command, frame};

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
/// Where the reads go that come again and again, and how much of the image they are.
const OFTEN_AT: u64 = MIB + (192 << 10);
const OFTEN_BYTES: u64 = 64 << 10;
/// How long anything may take at all.
const PATIENCE: Duration = Duration::from_secs(60);

/// File systems of this machine, of which images are mapped: ext4, tmpfs, XFS, btrfs.
const LOCAL: [u64; 4] = [0xEF53, 0x0102_1994, 0x5846_5342, 0x9123_683E];
/// Somebody who owns nothing and may do nothing.
const NOBODY: u32 = 65534;

const STRUCTURED_REPLY: u32 = 8;
const EXTENDED_HEADERS: u32 = 11;
const SET_META_CONTEXT: u32 = 10;
const GO: u32 = 7;

/// A connection past its handshake.
struct Client {
    stream: UnixStream,
    style: Style,
    /// What came and was not understood yet.
    said: Vec<u8>,
}

impl Client {
    /// Connects; where replies have chunks, maps of `base:allocation` may be asked for.
    fn new(server: &Server, style: Style) -> Self {
        let mut stream = UnixStream::connect(server.path("nbd")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.read_exact(&mut [0; 18]).unwrap();
        stream.write_all(&3_u32.to_be_bytes()).unwrap();
        let mut client = Self { stream, style, said: Vec::new() };
        let context = b"base:allocation";
        let contexts = [&[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, context.len() as u8], &context[..]];
        match style {
            Style::Simple => {}
            Style::Structured => client.option(STRUCTURED_REPLY, &[]),
            Style::Extended => client.option(EXTENDED_HEADERS, &[]),
        }
        if style != Style::Simple {
            client.option(SET_META_CONTEXT, &contexts.concat());
        }
        client.option(GO, &[0; 6]);
        client
    }

    /// Asks for an option, which must be granted.
    fn option(&mut self, option: u32, data: &[u8]) {
        let head = [option, data.len() as u32].map(u32::to_be_bytes).concat();
        self.stream.write_all(&[&b"IHAVEOPT"[..], &head, data].concat()).unwrap();
        let granted = (0..100).find_map(|_| {
            let mut head = [0; 20];
            self.stream.read_exact(&mut head).unwrap();
            let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
            assert_eq!(word(8), option, "a reply to another option");
            self.stream.read_exact(&mut vec![0; word(16) as usize]).unwrap();
            assert_eq!(word(12) >> 31, 0, "option {option} was refused: {:#x}", word(12));
            (word(12) == 1).then_some(())
        });
        granted.expect("an option has an end");
    }

    fn send(&mut self, header: Header, payload: &[u8]) {
        self.stream.write_all(&[&header.bytes(self.style), payload].concat()).unwrap();
    }

    /// The next reply, in parts.
    fn reply(&mut self, asked: Header) -> Vec<Part> {
        let wanted = if asked.command == command::READ { asked.length } else { 0 };
        let about = |cookie| (cookie == asked.cookie).then_some((asked.offset, wanted));
        let (mut parts, mut at) = (Vec::new(), 0);
        loop {
            let Some(found) = frame(&self.said[at..], self.style, about).unwrap() else {
                let mut more = [0; 64 << 10];
                let count = self.stream.read(&mut more).unwrap();
                assert!(count > 0, "the server hung up");
                self.said.extend(&more[..count]);
                continue;
            };
            let Frame { part, done, taken, .. } = found;
            at += taken;
            parts.push(part);
            if done {
                self.said.drain(..at);
                return parts;
            }
        }
    }

    fn ask(&mut self, command: u16, offset: u64, length: u64) -> Vec<Part> {
        let header = Header { command, flags: 0, cookie: offset, offset, length };
        self.send(header, &[]);
        self.reply(header)
    }

    /// Bytes, and in how many chunks of data and of nothing they came. Each may come once.
    fn read(&mut self, offset: u64, length: u64) -> (Vec<u8>, usize, usize) {
        let mut bytes = vec![0xEE; length as usize];
        let (mut data, mut holes, mut covered) = (0, 0, 0);
        for part in self.ask(command::READ, offset, length) {
            let (at, len) = match part {
                Part::Data(at, found) => {
                    data += 1;
                    bytes[(at - offset) as usize..][..found.len()].copy_from_slice(&found);
                    (at, found.len() as u64)
                }
                Part::Hole(at, len) => {
                    holes += 1;
                    bytes[(at - offset) as usize..][..len as usize].fill(0);
                    (at, len)
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(at, offset + covered, "the chunks come in the order of the disk");
            covered += len;
        }
        assert_eq!(covered, length);
        (bytes, data, holes)
    }

    /// Writes many places, some of them at once.
    fn write_all(&mut self, places: &[(u64, Vec<u8>)]) {
        for some in places.chunks(32) {
            let headers = some.iter().map(|(offset, bytes)| {
                let length = bytes.len() as u64;
                Header { command: command::WRITE, flags: 0, cookie: 7, offset: *offset, length }
            });
            let headers: Vec<Header> = headers.collect();
            headers.iter().zip(some).for_each(|(header, (_, bytes))| self.send(*header, bytes));
            for header in headers {
                assert_eq!(self.reply(header), [Part::Plain]);
            }
        }
    }
}

/// An image of bytes without a zero, in a folder anybody may look into.
struct Image {
    folder: TempDir,
    bytes: Vec<u8>,
}

impl Image {
    fn new(under: &Path) -> Self {
        let folder = TempDir::new_in(under).unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let bytes: Vec<u8> =
            (0..4 * MIB).map(|at| (at * 31 + at / 251 + at / PAGE) as u8 | 1).collect();
        let image = Self { folder, bytes };
        fs::write(image.path(), &image.bytes).unwrap();
        image
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("disk.raw")
    }

    /// How many mappings a server has of it.
    fn mappings(&self, server: &Server) -> usize {
        let maps = fs::read_to_string(format!("/proc/{}/maps", server.id())).unwrap();
        assert!(maps.contains("orlop"), "these are not the mappings of a server:\n{maps}");
        maps.lines().filter(|line| line.ends_with(text(&self.path()))).count()
    }

    /// Reads the same 64 KiB a few times in pages, some hundred reads. They must be right.
    fn read_often(&self, client: &mut Client) {
        for _ in 0..16 {
            for at in (OFTEN_AT..OFTEN_AT + OFTEN_BYTES).step_by(PAGE as usize) {
                let (found, ..) = client.read(at, PAGE);
                assert_same(&found, &self.bytes[at as usize..][..PAGE as usize], "what was read");
            }
        }
    }

    /// Whether a server maps it, sooner or later, because it is read often.
    fn is_mapped(&self, server: &Server) -> bool {
        let mut client = Client::new(server, Style::Structured);
        (0..100).any(|_| {
            self.read_often(&mut client);
            self.mappings(server) > 0
        })
    }

    /// Reads it as often as it takes a server by far that maps it, and expects none of it mapped.
    fn assert_never_mapped(&self, server: &Server, why: &str) {
        let mut client = Client::new(server, Style::Structured);
        for round in 0..8 {
            self.read_often(&mut client);
            assert_eq!(self.mappings(server), 0, "{why}, after {round} rounds");
            // Some rounds later than what was learnt first is believed.
            sleep(Duration::from_millis(100));
        }
    }
}

/// Where images are tried: on a disk, and in memory, as far as images there are mapped at all.
/// Nowhere without root, the only one to see what a confined server maps or to become another user.
fn folders() -> Vec<&'static Path> {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: only root sees what a confined server maps");
        return Vec::new();
    }
    let all = ["/var/tmp", "/dev/shm"].map(Path::new);
    let here = all.into_iter().filter(|folder| {
        let magic = rustix::fs::statfs(*folder).map_or(0, |fs| fs.f_type as u64);
        let local = LOCAL.contains(&magic);
        if !local {
            println!("SKIPPED: {} has a file system that is not mapped: {magic:#x}", text(folder));
        }
        local
    });
    here.collect()
}

/// Without this the tests below that expect no mapping would show nothing.
#[test]
fn an_image_that_is_read_often_is_mapped_and_reads_as_it_is() {
    for folder in folders() {
        for options in [&[][..], &["--read-only"], &["--aio", "threads"]] {
            let mut image = Image::new(folder);
            let server = Server::start(&image.path(), options);
            assert_eq!(image.mappings(&server), 0, "nobody has read it");
            assert_eq!(image.is_mapped(&server), cfg!(target_arch = "x86_64"), "{options:?}");
            // What is written meanwhile, by the server or behind its back, is what is read.
            let (at, page) = (OFTEN_AT + 8 * PAGE, vec![0xA5; PAGE as usize]);
            let mut client = Client::new(&server, Style::Simple);
            if options.contains(&"--read-only") {
                let theirs = File::options().write(true).open(image.path()).unwrap();
                theirs.write_all_at(&page, at).unwrap();
            } else {
                client.write_all(&[(at, page.clone())]);
            }
            image.bytes[at as usize..][..page.len()].copy_from_slice(&page);
            image.read_often(&mut client);
            drop(client);
            server.close();
            assert_same(&fs::read(image.path()).unwrap(), &image.bytes, "the image");
        }
    }
}

#[test]
fn under_a_limit_of_address_space_nothing_is_mapped() {
    for folder in folders() {
        let image = Image::new(folder);
        // 64 GiB, in KiB: far more than the server and windows over this image need.
        let limited = ["sh", "-c", "ulimit -v 67108864 && exec \"$@\"", "sh"];
        let server = Server::start_under(&limited, &image.path(), &[]);
        let limits = fs::read_to_string(format!("/proc/{}/limits", server.id())).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max address space")).unwrap();
        assert!(line.contains("68719476736"), "{line}");
        image.assert_never_mapped(&server, "address space is limited");
        server.close();
    }
}

/// To those who neither own a file nor may write it, the kernel says that all of it is in memory.
#[test]
fn what_the_kernel_does_not_tell_the_server_about_is_not_mapped() {
    let user = format!("{NOBODY}:{NOBODY}");
    for folder in folders() {
        for (owner, mode, told) in [(NOBODY, 0o400, true), (0, 0o646, true), (0, 0o644, false)] {
            let image = Image::new(folder);
            fs::set_permissions(image.path(), Permissions::from_mode(mode)).unwrap();
            std::os::unix::fs::chown(image.path(), Some(owner), Some(owner)).unwrap();
            let server = Server::start(&image.path(), &["--read-only", "--user", &user]);
            let status = fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
            assert!(status.contains(&format!("Uid:\t{NOBODY}\t{NOBODY}")), "{status}");
            if told {
                let mapped = image.is_mapped(&server);
                assert_eq!(mapped, cfg!(target_arch = "x86_64"), "of {owner}, mode {mode:o}");
            } else {
                image.assert_never_mapped(&server, "the image is another's");
            }
            server.close();
        }
    }
}

#[test]
fn past_the_page_cache_nothing_is_mapped() {
    for folder in folders() {
        let image = Image::new(folder);
        let direct = OFlags::DIRECT.bits() as i32;
        if OpenOptions::new().read(true).custom_flags(direct).open(image.path()).is_err() {
            println!("SKIPPED: no O_DIRECT in {}", text(folder));
            continue;
        }
        for options in [&["--cache", "none"][..], &["--cache", "none", "--read-only"]] {
            let server = Server::start(&image.path(), options);
            image.assert_never_mapped(&server, "--cache none");
            server.close();
        }
    }
}

/// A VHD over an empty parent in which every second piece of that length was written, and its
/// bytes. What a layer does not hold, down to the sector, is a hole.
fn striped(folder: &TempDir, len: u64, piece: u64) -> (PathBuf, Vec<u8>) {
    let [base, disk] = ["base.vhd", "disk.vhd"].map(|name| folder.path().join(name));
    orlop(&["create", text(&base), "--size", &len.to_string()]);
    orlop(&["create", text(&disk), "--parent", text(&base)]);
    let mut bytes = vec![0; len as usize];
    let mut places = Vec::new();
    for at in (0..len).step_by(2 * piece as usize) {
        let data: Vec<u8> = (at..at + piece).map(|at| (at / 512 * 7 + at) as u8 | 1).collect();
        bytes[at as usize..][..data.len()].copy_from_slice(&data);
        places.push((at, data));
    }
    let server = Server::start(&disk, &[]);
    Client::new(&server, Style::Simple).write_all(&places);
    server.close();
    (disk, bytes)
}

/// An answer to a read of 32 MiB whose every sector, or page, or 16 KiB is followed by a hole. The
/// last are sent from the page cache, where nobody writes the image.
#[test]
fn an_answer_of_very_many_holes_has_a_chunk_for_each_and_the_right_bytes() {
    const LEN: u64 = 32 * MIB;
    for piece in [512, PAGE, 4 * PAGE] {
        let folder = TempDir::new().unwrap();
        let (disk, bytes) = striped(&folder, LEN, piece);
        let pieces = (LEN / piece / 2) as usize;
        for options in [&[][..], &["--read-only"]] {
            let server = Server::start(&disk, options);
            for style in STYLES {
                let what = format!("pieces of {piece}, {options:?}, {style:?}");
                let mut client = Client::new(&server, style);
                let (found, data, holes) = client.read(0, LEN);
                assert_same(&found, &bytes, &what);
                let chunks = if style == Style::Simple { (1, 0) } else { (pieces, pieces) };
                assert_eq!((data, holes), chunks, "{what}");
                // From within one piece of data to within another.
                let (from, len) = (piece / 2, LEN - 2 * piece);
                let (found, data, holes) = client.read(from, len);
                assert_same(&found, &bytes[from as usize..][..len as usize], &what);
                let chunks = if style == Style::Simple { (1, 0) } else { (pieces, pieces - 1) };
                assert_eq!((data, holes), chunks, "{what}");
                if style != Style::Simple {
                    assert_mapped_in_pieces(&mut client, LEN, piece, &what);
                }
            }
            server.close();
        }
    }
}

/// Asks for the map of a striped disk from start to end: each answer is of some length and tells
/// the pieces one by one.
fn assert_mapped_in_pieces(client: &mut Client, len: u64, piece: u64, what: &str) {
    let (mut at, mut answers) = (0, 0);
    while at < len {
        let parts = client.ask(command::BLOCK_STATUS, at, len - at);
        let [Part::Map(_, extents)] = &parts[..] else { panic!("{what}: {parts:?}") };
        for extent in extents {
            let data = (at / piece).is_multiple_of(2);
            assert_eq!(*extent, (piece, if data { 0 } else { 3 }), "{what}, at {at}");
            at += piece;
        }
        answers += 1;
    }
    assert_eq!(at, len, "{what}");
    assert!(answers <= 1 + len / piece / 1024, "{what}: {answers} answers");
}

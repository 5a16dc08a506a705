//! A server in memory that serves well, answers out of order, and lies once in a chosen way.
//!
//! Written for `orlop bench` to catch. Speaks just enough NBD, refuses nothing.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

/// Size of the disk, in bytes.
pub(crate) const DISK: usize = 1 << 20;

/// When the lie is told: at the how-manieth read or write.
pub(crate) const WHEN: u64 = 710;

/// What it does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    /// Nothing.
    None,
    /// Answers a write it has dropped.
    LostWrite,
    /// Writes a block where another belongs.
    Misdirected,
    /// Flips one bit of what is read.
    FlippedBit,
    /// Answers a read with what was there before the last write to it.
    Stale,
    /// Answers a request nobody sent.
    UnknownCookie,
    /// Ends the connection with requests open.
    Hangup,
    /// Sends bytes that are no reply.
    Garbage,
    /// Fails a write, once.
    Refusal,
}

struct Disk {
    now: Vec<u8>,
    /// What each byte was before its last write.
    before: Vec<u8>,
    served: u64,
}

/// Starts a server on a socket in `dir`; it lives until the test process ends.
pub(crate) fn start(dir: &Path, lie: Lie) -> PathBuf {
    let path = dir.join("liar.sock");
    let listener = UnixListener::bind(&path).expect("a fresh directory");
    let disk = Disk { now: vec![0; DISK], before: vec![0; DISK], served: 0 };
    let disk = Arc::new(Mutex::new(disk));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, disk) = (stream.expect("accepting"), Arc::clone(&disk));
            thread::spawn(move || {
                // A client that gives up early is no concern of this test.
                let _ = serve(stream, &disk, lie);
            });
        }
    });
    path
}

fn serve(mut stream: UnixStream, disk: &Mutex<Disk>, lie: Lie) -> std::io::Result<()> {
    stream.write_all(b"NBDMAGICIHAVEOPT\x00\x03")?;
    let mut flags = [0; 4];
    stream.read_exact(&mut flags)?;
    let mut option = [0; 16];
    stream.read_exact(&mut option)?;
    let mut data = vec![0; word(&option[12..]) as usize];
    stream.read_exact(&mut data)?;
    // EXPORT, the size, and HAS_FLAGS | FLUSH | FUA | MULTI_CONN.
    let mut info = vec![0, 0];
    info.extend((DISK as u64).to_be_bytes());
    info.extend(0x010d_u16.to_be_bytes());
    for (kind, data) in [(3_u32, info), (1, Vec::new())] {
        stream.write_all(&0x0003_e889_0455_65a9_u64.to_be_bytes())?;
        stream.write_all(&option[8..12])?;
        stream.write_all(&kind.to_be_bytes())?;
        stream.write_all(&(data.len() as u32).to_be_bytes())?;
        stream.write_all(&data)?;
    }
    let mut held = VecDeque::new();
    loop {
        let mut request = [0; 28];
        stream.read_exact(&mut request)?;
        if request[7] == 2 {
            return Ok(());
        }
        let mut payload = vec![0; if request[7] == 1 { word(&request[24..]) as usize } else { 0 }];
        stream.read_exact(&mut payload)?;
        let Some(reply) = answer(&request, &payload, disk, lie) else { return Ok(()) };
        // Two replies change places now and then, which a client must not mind; nothing is held
        // for long, since the client may be waiting for it.
        held.push_back(reply);
        stream.set_nonblocking(true)?;
        let more = stream.peek_any();
        stream.set_nonblocking(false)?;
        if more && held.len() < 3 {
            continue;
        }
        while let Some(reply) = held.pop_back() {
            stream.write_all(&reply)?;
        }
    }
}

trait PeekAny {
    fn peek_any(&self) -> bool;
}

impl PeekAny for UnixStream {
    /// Whether another request is there already.
    fn peek_any(&self) -> bool {
        let mut byte = [0];
        let flags = rustix::net::RecvFlags::PEEK;
        rustix::net::recv(self, &mut byte, flags).is_ok_and(|(_, count)| count > 0)
    }
}

fn answer(request: &[u8], payload: &[u8], disk: &Mutex<Disk>, lie: Lie) -> Option<Vec<u8>> {
    let mut disk = disk.lock().expect("no panic under this lock");
    let mut cookie = request[8..16].to_vec();
    let (at, len) = (word(&request[20..]) as usize, word(&request[24..]) as usize);
    let mut error = 0_u32;
    let mut magic = 0x6744_6698_u32;
    let mut data = Vec::new();
    disk.served += 1;
    // Each lie waits for the kind of request it needs.
    let writes = request[7] == 1;
    let wants_write = matches!(lie, Lie::LostWrite | Lie::Misdirected | Lie::Refusal);
    let fits = lie != Lie::None
        && match lie {
            Lie::FlippedBit | Lie::Stale => request[7] == 0,
            _ => !wants_write || writes,
        };
    let now = fits && disk.served >= WHEN && disk.served < u64::MAX / 2;
    // A block never written twice has nothing stale to show.
    let now = now && (lie != Lie::Stale || disk.before[at..at + len] != vec![0; len][..]);
    if now {
        disk.served = u64::MAX / 2;
    }
    let told = now.then_some(lie);
    match request[7] {
        0 => data.extend(&disk.now[at..at + len]),
        1 => {
            let place = if told == Some(Lie::Misdirected) { (at + len) % DISK } else { at };
            if !matches!(told, Some(Lie::LostWrite | Lie::Refusal)) {
                let old = disk.now[place..place + len].to_vec();
                disk.before[place..place + len].copy_from_slice(&old);
                disk.now[place..place + len].copy_from_slice(payload);
            }
        }
        _ => {}
    }
    match told {
        Some(Lie::FlippedBit) => data[1234] ^= 4,
        Some(Lie::Stale) => data = disk.before[at..at + len].to_vec(),
        Some(Lie::UnknownCookie) => cookie[0] ^= 0x55,
        Some(Lie::Garbage) => magic = 0x1234_5678,
        Some(Lie::Refusal) => error = 28,
        Some(Lie::Hangup) => return None,
        _ => {}
    }
    let mut reply = magic.to_be_bytes().to_vec();
    reply.extend(error.to_be_bytes());
    reply.extend(cookie);
    reply.extend(data);
    Some(reply)
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

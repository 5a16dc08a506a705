//! A peer that speaks just enough NBD to misbehave: it negotiates, sends what it is told to, and
//! reads replies only when asked. Judges nothing; what the server must do is in the tests.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long any answer may take at all.
const PATIENCE: Duration = Duration::from_secs(60);
const NO_ZEROES_FIXED_NEWSTYLE: u32 = 3;
const OPTION_GO: u32 = 7;
const OPTION_STRUCTURED_REPLY: u32 = 8;
const OPTION_SET_META_CONTEXT: u32 = 10;
const OPTION_ACK: u32 = 1;
const GREETING_BYTES: usize = 18;
pub(crate) const SIMPLE_REPLY_BYTES: usize = 16;

/// Commands of the transmission phase.
pub(crate) mod command {
    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITE: u16 = 1;
    pub(crate) const DISCONNECT: u16 = 2;
    pub(crate) const BLOCK_STATUS: u16 = 7;
    /// No server knows it.
    pub(crate) const UNKNOWN: u16 = 99;
}

/// A connection to the server.
pub(crate) struct Peer {
    stream: UnixStream,
}

/// The header of a request.
pub(crate) fn request(command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(28);
    bytes.extend(0x2560_9513u32.to_be_bytes());
    bytes.extend(0u16.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// An option of the handshake.
fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// Everything a client with simple replies sends before its first request.
pub(crate) fn plain_handshake() -> Vec<u8> {
    // The default export, and no wishes about what is told of it.
    let go = option(OPTION_GO, &[0; 6]);
    [&NO_ZEROES_FIXED_NEWSTYLE.to_be_bytes()[..], &go].concat()
}

impl Peer {
    /// Connects and says nothing.
    pub(crate) fn silent(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("the server listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("the time is not zero");
        stream.set_write_timeout(Some(PATIENCE)).expect("the time is not zero");
        Self { stream }
    }

    /// Negotiates simple replies.
    pub(crate) fn plain(socket: &Path) -> Self {
        let mut peer = Self::silent(socket);
        peer.receive(GREETING_BYTES);
        peer.send(&plain_handshake());
        peer.await_ack(OPTION_GO);
        peer
    }

    /// Negotiates structured replies, and block status.
    pub(crate) fn structured(socket: &Path) -> Self {
        let mut peer = Self::silent(socket);
        peer.receive(GREETING_BYTES);
        peer.send(&NO_ZEROES_FIXED_NEWSTYLE.to_be_bytes());
        peer.send(&option(OPTION_STRUCTURED_REPLY, &[]));
        peer.await_ack(OPTION_STRUCTURED_REPLY);
        let context = b"base:allocation";
        let mut wish = vec![0; 4];
        wish.extend(1u32.to_be_bytes());
        wish.extend((context.len() as u32).to_be_bytes());
        wish.extend(context);
        peer.send(&option(OPTION_SET_META_CONTEXT, &wish));
        peer.await_ack(OPTION_SET_META_CONTEXT);
        peer.send(&option(OPTION_GO, &[0; 6]));
        peer.await_ack(OPTION_GO);
        peer
    }

    /// Negotiates after a silence, simple replies; whether the server went along.
    pub(crate) fn gets_in(&mut self) -> bool {
        let stream = &mut self.stream;
        let mut heard = [0; GREETING_BYTES];
        stream.read_exact(&mut heard).is_ok()
            && stream.write_all(&plain_handshake()).is_ok()
            && stream.read_exact(&mut heard).is_ok()
    }

    /// Reads the replies to an option up to the last one, which must be its acknowledgement.
    fn await_ack(&mut self, number: u32) {
        loop {
            let head = self.receive(20);
            let [option, kind, len] = [8, 12, 16].map(|at| word(&head, at));
            assert_eq!(option, number, "a reply to another option: {head:02x?}");
            self.receive(len as usize);
            if kind == OPTION_ACK {
                return;
            }
            assert_eq!(kind >> 31, 0, "option {number} was refused: {kind:#x}");
        }
    }

    /// Sends all of it.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server takes what it is sent");
    }

    /// Sends this again and again, up to so many bytes in all, until the server has taken nothing
    /// for a second. Gives how many bytes went out.
    pub(crate) fn send_until_stuck(&mut self, bytes: &[u8], most: usize) -> usize {
        self.stream.set_write_timeout(Some(Duration::from_secs(1))).expect("it is not zero");
        let mut sent = 0;
        while sent < most {
            // Goes on in the middle of the piece where the last write was cut short.
            match self.stream.write(&bytes[sent % bytes.len()..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => panic!("after {sent} bytes: {error}"),
            }
        }
        sent
    }

    /// Reads exactly so many bytes.
    pub(crate) fn receive(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).expect("the server answers");
        bytes
    }

    /// Reads one simple reply that says that all went well, and `len` bytes of data.
    pub(crate) fn receive_reply(&mut self, cookie: u64, len: usize) -> Vec<u8> {
        let head = self.receive(SIMPLE_REPLY_BYTES);
        let wanted = [&0x6744_6698u32.to_be_bytes()[..], &[0; 4], &cookie.to_be_bytes()].concat();
        assert_eq!(head, wanted, "not a good reply to request {cookie}");
        self.receive(len)
    }

    /// Reads from the disk.
    pub(crate) fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        let cookie = 0x0DD5 ^ offset;
        self.send(&request(command::READ, cookie, offset, len));
        self.receive_reply(cookie, len as usize)
    }

    /// How many runs the disk's map has there; the reply must be one chunk.
    pub(crate) fn map_runs(&mut self, offset: u64, len: u32) -> usize {
        self.send(&request(command::BLOCK_STATUS, 7, offset, len));
        let head = self.receive(20);
        assert_eq!(word(&head, 0), 0x668E_33EF, "not a structured reply: {head:02x?}");
        assert_eq!(head[4..8], [0, 1, 0, 5], "not a last chunk of block status");
        let payload = self.receive(word(&head, 16) as usize);
        (payload.len() - 4) / 8
    }

    /// Says that nothing more will come, and reads what the server has to say to its end.
    pub(crate) fn finish(mut self) {
        self.stream.shutdown(std::net::Shutdown::Write).expect("the connection is ours");
        self.await_end();
    }

    /// Reads until the server hangs up.
    pub(crate) fn await_end(&mut self) {
        let mut sink = [0; 4096];
        loop {
            match self.stream.read(&mut sink) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // It hung up on what was still under way.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return,
                Err(error) => panic!("the server does not hang up: {error}"),
            }
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes[at..at + 4].try_into().expect("four bytes are four bytes");
    u32::from_be_bytes(word)
}

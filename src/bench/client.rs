//! A connection to an NBD server, up to the point where requests may be sent.
//!
//! Fixed newstyle with GO; EXPORT_NAME for servers that know nothing newer. Refuses oldstyle
//! servers, TLS, and answers longer than the protocol allows.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::cpu::Pid;
use super::uri::Address;
use super::wire;
use crate::engine::units::ByteLen;

/// How long a server may keep us waiting, in the handshake and for any reply.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Longest answer to an option: a string of 4096 bytes and what stands around it.
const ANSWER_MAX: u32 = 4096 + 64;

/// How many answers one option may have.
const ANSWERS_MAX: usize = 64;

/// Send buffer asked of the kernel, in bytes, so that a window of writes goes out at once.
const SEND_BUFFER: usize = 1 << 20;

/// What the server said about the export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Export {
    /// Its size.
    pub(super) size: ByteLen,
    /// Its transmission flags.
    pub(super) flags: u16,
    /// The smallest and largest request, if it said so.
    pub(super) limits: Option<(u32, u32)>,
    /// Whether replies come in chunks.
    pub(super) structured: bool,
}

impl Export {
    /// Whether it has any of these flags.
    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// A stream socket, read and written by plain system calls.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    is_unix: bool,
}

impl Socket {
    /// The process that listens at the other end, which only a unix socket tells.
    pub(super) fn peer(&self) -> Option<Pid> {
        // A TCP socket answers as well, but with a process that cannot be.
        if !self.is_unix {
            return None;
        }
        let peer = sockopt::socket_peercred(&self.fd).ok()?;
        Some(Pid(peer.pid.as_raw_nonzero().get().unsigned_abs()))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        Ok(recv(&self.fd, into, RecvFlags::empty())?.0)
    }
}

impl Write for Socket {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        Ok(send(&self.fd, from, SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection ready for requests.
#[derive(Debug)]
pub(super) struct Connection {
    /// The socket.
    pub(super) socket: Socket,
    /// What is at the other end.
    pub(super) export: Export,
}

impl Connection {
    /// Connects and chooses the export called `name`.
    ///
    /// # Errors
    /// When nobody listens, the server speaks another language, or it refuses the export.
    pub(super) fn open(address: &Address, name: &str, structured: bool) -> Result<Connection> {
        let socket = dial(address)?;
        let handshake = Handshake { socket, name, wants_structured: structured };
        handshake.run().context("the NBD handshake failed")
    }

    /// Says goodbye. The server may be gone already, which is as good.
    pub(super) fn close(mut self) {
        let goodbye = wire::request(wire::CMD_DISC, 0, 0, Default::default(), 0);
        let _ = self.socket.write_all(&goodbye);
    }
}

fn dial(address: &Address) -> Result<Socket> {
    let fd: OwnedFd = match address {
        Address::Unix(path) => UnixStream::connect(path)
            .with_context(|| {
                format!("cannot connect to socket {}; is the server running?", path.display())
            })?
            .into(),
        Address::Tcp { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port)).with_context(|| {
                format!("cannot connect to {host} port {port}; is the server running?")
            })?;
            stream.set_nodelay(true).context("cannot turn off Nagle's delay")?;
            stream.into()
        }
    };
    for side in [Timeout::Recv, Timeout::Send] {
        sockopt::set_socket_timeout(&fd, side, Some(PATIENCE)).context("cannot set a timeout")?;
    }
    // Only an optimisation: the kernel may grant less or nothing.
    let _ = sockopt::set_socket_send_buffer_size(&fd, SEND_BUFFER);
    Ok(Socket { fd, is_unix: matches!(address, Address::Unix(_)) })
}

struct Handshake<'a> {
    socket: Socket,
    name: &'a str,
    wants_structured: bool,
}

impl Handshake<'_> {
    fn run(mut self) -> Result<Connection> {
        let greeting: [u8; 18] = self.take()?;
        let (first, second) = (wire::word64(&greeting, 0), wire::word64(&greeting, 8));
        ensure!(first == Some(wire::GREETING_MAGIC), "this is no NBD server");
        ensure!(
            second == Some(wire::OPTION_MAGIC),
            "the server speaks the oldstyle protocol, given up in 2016; use a newer server"
        );
        let offered = wire::word16(&greeting, 16).unwrap_or(0);
        let accepted = offered & (wire::FIXED_NEWSTYLE | wire::NO_ZEROES);
        self.socket.write_all(&u32::from(accepted).to_be_bytes())?;
        let mut export = None;
        if accepted & wire::FIXED_NEWSTYLE != 0 {
            let structured = self.wants_structured && self.ask_structured()?;
            export = self.go()?.map(|export| Export { structured, ..export });
        }
        let export = match export {
            Some(export) => export,
            None => self.export_name(accepted & wire::NO_ZEROES == 0)?,
        };
        ensure!(
            export.structured || !self.wants_structured,
            "the server knows no structured replies; leave out --structured"
        );
        Ok(Connection { socket: self.socket, export })
    }

    fn ask_structured(&mut self) -> Result<bool> {
        self.option(wire::OPT_STRUCTURED_REPLY, &[])?;
        let (kind, _) = self.answer(wire::OPT_STRUCTURED_REPLY)?;
        Ok(kind == wire::REP_ACK)
    }

    /// `None` if the server does not know GO.
    fn go(&mut self) -> Result<Option<Export>> {
        let name_len = u32::try_from(self.name.len()).context("the export name is too long")?;
        let mut data = name_len.to_be_bytes().to_vec();
        data.extend(self.name.as_bytes());
        data.extend(1_u16.to_be_bytes());
        data.extend(wire::INFO_BLOCK_SIZE.to_be_bytes());
        self.option(wire::OPT_GO, &data)?;
        let mut export = Export::default();
        let mut described = false;
        for _ in 0..ANSWERS_MAX {
            let (kind, data) = self.answer(wire::OPT_GO)?;
            match kind {
                wire::REP_ACK => {
                    ensure!(described, "the server accepted the export without giving its size");
                    return Ok(Some(export));
                }
                wire::REP_INFO if wire::word16(&data, 0) == Some(wire::INFO_EXPORT) => {
                    let facts = wire::word64(&data, 2).zip(wire::word16(&data, 10));
                    let (size, flags) = facts.context("the server's export information is cut")?;
                    export = Export { size: ByteLen::new(size), flags, ..export };
                    described = true;
                }
                wire::REP_INFO if wire::word16(&data, 0) == Some(wire::INFO_BLOCK_SIZE) => {
                    export.limits = wire::word32(&data, 2).zip(wire::word32(&data, 10));
                }
                wire::REP_INFO => {}
                wire::REP_ERR_UNSUP => return Ok(None),
                _ => {
                    let text = String::from_utf8_lossy(&data).into_owned();
                    bail!(
                        "the server refused export '{}' with reply {kind:#x} {text}; \
                         'nbdinfo --list' shows the names it has",
                        self.name
                    );
                }
            }
        }
        bail!("the server answered one option more than {ANSWERS_MAX} times")
    }

    fn export_name(&mut self, padded: bool) -> Result<Export> {
        self.option(wire::OPT_EXPORT_NAME, self.name.as_bytes())?;
        let refused =
            || format!("the server refused export '{}' by closing the connection", self.name);
        let facts: [u8; 10] = take(&mut self.socket).with_context(refused)?;
        if padded {
            let _: [u8; 124] = self.take()?;
        }
        let size = wire::word64(&facts, 0).unwrap_or(0);
        let flags = wire::word16(&facts, 8).unwrap_or(0);
        Ok(Export { size: ByteLen::new(size), flags, ..Export::default() })
    }

    fn option(&mut self, option: u32, data: &[u8]) -> Result<()> {
        let mut frame = wire::OPTION_MAGIC.to_be_bytes().to_vec();
        frame.extend(option.to_be_bytes());
        frame.extend(u32::try_from(data.len()).context("an option is too long")?.to_be_bytes());
        frame.extend(data);
        Ok(self.socket.write_all(&frame)?)
    }

    fn answer(&mut self, option: u32) -> Result<(u32, Vec<u8>)> {
        let header: [u8; 20] = self.take()?;
        let magic = wire::word64(&header, 0);
        ensure!(magic == Some(wire::OPTION_REPLY_MAGIC), "the answer to an option has no magic");
        let about = wire::word32(&header, 8);
        ensure!(about == Some(option), "the server answered option {about:?}, not {option}");
        let kind = wire::word32(&header, 12).unwrap_or(wire::REP_ERR_BIT);
        let len = wire::word32(&header, 16).unwrap_or(u32::MAX);
        ensure!(len <= ANSWER_MAX, "the answer to option {option} has {len} bytes");
        let mut data = vec![0; len as usize];
        self.socket.read_exact(&mut data)?;
        Ok((kind, data))
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        take(&mut self.socket)
    }
}

fn take<const N: usize>(socket: &mut Socket) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    socket.read_exact(&mut bytes).context("no answer from the server")?;
    Ok(bytes)
}

//! How a case reaches the server: in the clear over a unix socket or TCP, or through TLS that
//! begins inside the handshake.
//!
//! Blocking and bounded: no read or write waits longer than [`PATIENCE`].

use std::fmt::Debug;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

/// How long a server may be silent before a case gives up on it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Where a server listens.
#[derive(Clone, Debug)]
pub(crate) enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// How to reach a server.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    pub(crate) address: Address,
    /// What TLS needs, for a server that insists on it.
    pub(crate) tls: Option<Arc<ClientConfig>>,
}

impl Connector {
    /// A connection, before anything was said.
    pub(crate) fn open(&self) -> io::Result<Link> {
        let socket = match &self.address {
            Address::Unix(path) => Socket::Unix(UnixStream::connect(path)?),
            Address::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, PATIENCE)?;
                stream.set_nodelay(true)?;
                Socket::Tcp(stream)
            }
        };
        socket.patience(PATIENCE)?;
        Ok(Link::Clear(socket))
    }

    /// Whether STARTTLS comes before everything else.
    pub(crate) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// The same server, reached by a client that knows no TLS.
    pub(crate) fn in_the_clear(&self) -> Self {
        Self { address: self.address.clone(), tls: None }
    }
}

/// A plain socket.
#[derive(Debug)]
pub(crate) enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Socket {
    fn patience(&self, time: Duration) -> io::Result<()> {
        match self {
            Self::Unix(stream) => {
                stream.set_read_timeout(Some(time))?;
                stream.set_write_timeout(Some(time))
            }
            Self::Tcp(stream) => {
                stream.set_read_timeout(Some(time))?;
                stream.set_write_timeout(Some(time))
            }
        }
    }
}

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(into),
            Self::Tcp(stream) => stream.read(into),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The stream ended, and under TLS it was said so.
    Clean,
    /// The connection was reset, or TLS was cut off.
    Torn,
}

/// A connection.
pub(crate) enum Link {
    Clear(Socket),
    Tls(Box<StreamOwned<ClientConnection, Socket>>),
}

impl Link {
    /// The TLS handshake, after STARTTLS was acknowledged.
    pub(crate) fn secure(self, config: &Arc<ClientConfig>) -> io::Result<Self> {
        let Self::Clear(mut socket) = self else {
            return Err(io::Error::other("TLS inside TLS"));
        };
        let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
        let client = ClientConnection::new(Arc::clone(config), name);
        let mut client = client.map_err(io::Error::other)?;
        while client.is_handshaking() {
            client.complete_io(&mut socket)?;
        }
        Ok(Self::Tls(Box::new(StreamOwned::new(client, socket))))
    }

    /// No more will be sent; replies can still be read.
    pub(crate) fn half_close(&mut self) -> io::Result<()> {
        let socket = match self {
            Self::Clear(socket) => socket,
            Self::Tls(stream) => {
                stream.conn.send_close_notify();
                stream.flush()?;
                &mut stream.sock
            }
        };
        match socket {
            Socket::Unix(stream) => stream.shutdown(Shutdown::Write),
            Socket::Tcp(stream) => stream.shutdown(Shutdown::Write),
        }
    }

    /// What is left to read until the server closes: its bytes, and how it ended.
    pub(crate) fn drain(&mut self) -> io::Result<(Vec<u8>, Ending)> {
        let mut bytes = Vec::new();
        let mut piece = vec![0; 1 << 16];
        loop {
            match self.read(&mut piece) {
                Ok(0) => return Ok((bytes, Ending::Clean)),
                Ok(count) => bytes.extend_from_slice(&piece[..count]),
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::ConnectionReset
                    | ErrorKind::BrokenPipe
                    | ErrorKind::ConnectionAborted
                    | ErrorKind::UnexpectedEof => return Ok((bytes, Ending::Torn)),
                    _ => return Err(error),
                },
            }
        }
    }
}

impl Read for Link {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Clear(socket) => socket.read(into),
            Self::Tls(stream) => stream.read(into),
        }
    }
}

impl Write for Link {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Clear(socket) => socket.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Clear(socket) => socket.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

//! Where a server listens: unix sockets, TCP, vsock, and sockets it was given.
//!
//! Refuses to take over a unix socket somebody listens on, and to accept anything: that is for
//! `accept`.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, VsockAddr};
use rustix::fs::Mode;
use rustix::net::sockopt;
use rustix::process::umask;

/// Connections the system keeps waiting for `accept`.
const BACKLOG: i32 = 128;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A unix socket at this path.
    Unix(PathBuf),
    /// A TCP address.
    Tcp(SocketAddr),
    /// A port of the virtual-machine sockets.
    Vsock {
        /// The machine to listen as; `u32::MAX` is any.
        cid: u32,
        /// The port.
        port: u32,
    },
    /// A unix socket at this path on which connected sockets are passed, not spoken on.
    Passed(PathBuf),
}

/// Any machine of the virtual-machine sockets (VMADDR_CID_ANY).
pub const CID_ANY: u32 = u32::MAX;
/// The address under which a machine reaches itself (VMADDR_CID_LOCAL).
const CID_LOCAL: u32 = 1;

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Vsock { cid: CID_ANY, port } => write!(f, "vsock port {port}"),
            Self::Vsock { cid, port } => write!(f, "vsock {cid}:{port}"),
            Self::Passed(path) => write!(f, "{} (for descriptors)", path.display()),
        }
    }
}

impl Listen {
    /// The NBD URI that leads to an export here, if one can (the NBD URI specification knows no
    /// passed descriptors). `secure`: the scheme says that TLS is to be used.
    #[must_use]
    pub fn uri(&self, export: &str, secure: bool) -> Option<String> {
        let scheme = if secure { "nbds" } else { "nbd" };
        let name = escape(export);
        let slash = if name.is_empty() { "" } else { "/" };
        Some(match self {
            Self::Unix(path) => {
                let socket = escape(&path.to_string_lossy());
                format!("{scheme}+unix:///{name}?socket={socket}")
            }
            Self::Tcp(address) => format!("{scheme}://{address}{slash}{name}"),
            Self::Vsock { cid, port } => {
                let cid = if *cid == CID_ANY { CID_LOCAL } else { *cid };
                format!("{scheme}+vsock://{cid}:{port}{slash}{name}")
            }
            Self::Passed(_) => return None,
        })
    }
}

/// Percent-encodes what a URI cannot hold as it is.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/:@".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// What is done with who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It is spoken to.
    Speak,
    /// It passes descriptors of connections.
    Pass,
}

/// A socket that listens.
pub(super) struct Listener {
    pub(super) socket: OwnedFd,
    pub(super) purpose: Purpose,
    /// Removed again when the server ends.
    path: Option<PathBuf>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Listeners that are bound and not served yet.
pub struct Bound {
    pub(super) listeners: Vec<Listener>,
    /// Connections that were there from the start.
    pub(super) connected: Vec<OwnedFd>,
    addresses: Vec<Listen>,
}

/// Binds every address.
///
/// # Errors
/// The address that could not be bound, and why.
pub fn bind(addresses: &[Listen]) -> io::Result<Bound> {
    let mut bound = Bound { listeners: Vec::new(), connected: Vec::new(), addresses: Vec::new() };
    for address in addresses {
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
        };
        let (listener, actual) = bind_one(address).map_err(named)?;
        bound.listeners.push(listener);
        bound.addresses.push(actual);
    }
    Ok(bound)
}

/// Binds one unix socket, of this mode.
///
/// # Errors
/// Why it could not be bound.
pub fn bind_one_unix(path: &Path, mode: u32) -> io::Result<Bound> {
    let address = Listen::Unix(path.to_owned());
    let socket = bind_unix(path, mode).map_err(|error| {
        io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
    })?;
    let listener = Listener { socket, purpose: Purpose::Speak, path: Some(path.to_owned()) };
    Ok(Bound { listeners: vec![listener], connected: Vec::new(), addresses: vec![address] })
}

fn bind_one(address: &Listen) -> io::Result<(Listener, Listen)> {
    let plain = |socket| Listener { socket, purpose: Purpose::Speak, path: None };
    Ok(match address {
        Listen::Unix(path) | Listen::Passed(path) => {
            let purpose =
                if matches!(address, Listen::Unix(_)) { Purpose::Speak } else { Purpose::Pass };
            let listener =
                Listener { socket: bind_unix(path, 0o660)?, purpose, path: Some(path.clone()) };
            (listener, address.clone())
        }
        Listen::Tcp(socket) => {
            let listener = std::net::TcpListener::bind(socket)?;
            // Port 0 asks the system to choose: say what it chose.
            let actual = Listen::Tcp(listener.local_addr()?);
            (plain(listener.into()), actual)
        }
        Listen::Vsock { cid, port } => {
            let kind = (AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC);
            let socket = socket::socket(kind.0, kind.1, kind.2, None)?;
            socket::bind(socket.as_raw_fd(), &VsockAddr::new(*cid, *port))?;
            socket::listen(&socket, Backlog::new(BACKLOG)?)?;
            (plain(socket), address.clone())
        }
    })
}

/// Makes a unix socket that listens, under a mode that holds before anybody can connect. The
/// left-over of a server that died is replaced.
///
/// # Errors
/// What the system says, or that somebody listens there.
pub fn bind_unix(path: &Path, mode: u32) -> io::Result<OwnedFd> {
    let is_socket = std::fs::symlink_metadata(path)
        .is_ok_and(|meta| std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()));
    if is_socket {
        if is_served(path)? {
            let text = "another server is listening there";
            return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
        }
        std::fs::remove_file(path)?;
    }
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // It has its mode from the start: a mode that is set afterwards, by path, could be set on what
    // somebody put there meanwhile. Only threads that make files just now would notice.
    let usual = umask(Mode::from_raw_mode(0o777 & !mode));
    let address = socket::UnixAddr::new(path);
    let bound = address.and_then(|address| socket::bind(socket.as_raw_fd(), &address));
    umask(usual);
    bound?;
    socket::listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(socket)
}

/// Whether anybody listens on a unix socket. Does not wait for one that does not answer.
fn is_served(path: &Path) -> io::Result<bool> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let connected = socket::connect(socket.as_raw_fd(), &socket::UnixAddr::new(path)?);
    Ok(connected != Err(nix::errno::Errno::ECONNREFUSED))
}

impl Bound {
    /// Adds a socket the process was started with: one that listens, or a connection.
    ///
    /// # Errors
    /// It is no stream socket, or neither listens nor is connected.
    pub fn add_inherited(&mut self, socket: OwnedFd) -> io::Result<()> {
        let number = socket.as_raw_fd();
        let refused = |why: &str| {
            let text = format!("descriptor {number} {why}");
            io::Error::new(io::ErrorKind::InvalidInput, text)
        };
        let kind = sockopt::socket_type(&socket).map_err(|_| refused("is no socket"))?;
        if kind != rustix::net::SocketType::STREAM {
            return Err(refused("is no stream socket"));
        }
        if sockopt::socket_acceptconn(&socket)? {
            self.addresses.extend(local_address(&socket));
            self.listeners.push(Listener { socket, purpose: Purpose::Speak, path: None });
        } else if rustix::net::getpeername(&socket).is_ok() {
            self.connected.push(socket);
        } else {
            return Err(refused("neither listens nor is connected"));
        }
        Ok(())
    }

    /// Adds a connection to serve.
    pub fn add_connected(&mut self, socket: OwnedFd) {
        self.connected.push(socket);
    }

    /// Where the listeners are.
    pub fn addresses(&self) -> impl Iterator<Item = &Listen> {
        self.addresses.iter()
    }

    /// Whether somebody beyond this machine (a virtual machine counts) can reach a listener.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        self.addresses.iter().any(|address| match address {
            Listen::Tcp(address) => !address.ip().is_loopback(),
            Listen::Vsock { .. } => true,
            Listen::Unix(_) | Listen::Passed(_) => false,
        })
    }

    /// The unix sockets that are to be removed at the end.
    pub fn socket_paths(&self) -> impl Iterator<Item = &Path> {
        self.listeners.iter().filter_map(|listener| listener.path.as_deref())
    }
}

/// Where a given listener listens, if that can be told.
fn local_address(socket: &impl AsFd) -> Option<Listen> {
    let address = rustix::net::getsockname(socket).ok()?;
    if let Ok(address) = SocketAddr::try_from(address.clone()) {
        return Some(Listen::Tcp(address));
    }
    let unix = rustix::net::SocketAddrUnix::try_from(address).ok();
    if let Some(path) = unix.as_ref().and_then(rustix::net::SocketAddrUnix::path_bytes) {
        use std::os::unix::ffi::OsStrExt;
        return Some(Listen::Unix(PathBuf::from(std::ffi::OsStr::from_bytes(path))));
    }
    let vsock = socket::getsockname::<VsockAddr>(socket.as_fd().as_raw_fd()).ok()?;
    Some(Listen::Vsock { cid: vsock.cid(), port: vsock.port() })
}

#[cfg(test)]
mod tests {
    use super::{CID_ANY, Listen};

    #[test]
    fn uris_name_transport_export_and_tls() {
        let unix = Listen::Unix("/run/a b.sock".into());
        assert_eq!(unix.uri("", false).as_deref(), Some("nbd+unix:///?socket=/run/a%20b.sock"));
        let secure = unix.uri("d 1", true);
        assert_eq!(secure.as_deref(), Some("nbds+unix:///d%201?socket=/run/a%20b.sock"));
        let tcp = Listen::Tcp("[::1]:10809".parse().expect("an address"));
        assert_eq!(tcp.uri("", false).as_deref(), Some("nbd://[::1]:10809"));
        assert_eq!(tcp.uri("x", true).as_deref(), Some("nbds://[::1]:10809/x"));
        let vsock = Listen::Vsock { cid: CID_ANY, port: 10809 };
        assert_eq!(vsock.uri("x", false).as_deref(), Some("nbd+vsock://1:10809/x"));
        assert_eq!(Listen::Passed("/x".into()).uri("", false), None);
    }
}

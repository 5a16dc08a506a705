//! What a load is aimed at: an NBD URI, or a plain file as the ceiling to compare with.
//!
//! Parses names and opens nothing. Refuses TLS (`nbds`), relative socket paths without a path, and
//! parameters it would have to ignore.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

/// The port NBD owns.
const DEFAULT_PORT: u16 = 10809;

/// Longest export name the protocol allows, in bytes.
const NAME_MAX: usize = 4096;

/// Where to find a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A host name or IP address, and a TCP port.
    Tcp {
        /// Name or address, without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// A unix socket.
    Unix(PathBuf),
}

/// What a load is aimed at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An export of an NBD server.
    Nbd {
        /// The server.
        address: Address,
        /// The export's name; empty for the default one.
        export: String,
    },
    /// A file or block device, read and written with plain system calls.
    File(PathBuf),
}

/// Why a target cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum UriError {
    /// The scheme is not one of ours.
    #[error(
        "scheme '{0}' is not known; use nbd://HOST:PORT/NAME, nbd+unix:///NAME?socket=PATH \
             or the path of a file"
    )]
    Scheme(String),
    /// TLS was asked for.
    #[error(
        "'{0}' asks for TLS, which this load generator does not speak; \
             use nbd:// or nbd+unix://, or a server without TLS"
    )]
    Tls(String),
    /// No server is named.
    #[error("no server is named; write nbd://HOST:PORT/NAME")]
    NoHost,
    /// A unix URI without its socket.
    #[error("no socket is named; write nbd+unix:///NAME?socket=PATH")]
    NoSocket,
    /// A unix URI with a host in it.
    #[error("a unix URI has no host, but '{0}' stands there; write nbd+unix:///NAME with three /")]
    HostInUnix(String),
    /// The port is no number from 1 to 65535.
    #[error("port '{0}' is not a number from 1 to 65535")]
    Port(String),
    /// An IPv6 address that is not closed.
    #[error("the address '{0}' has no closing bracket")]
    Bracket(String),
    /// A parameter we would have to ignore.
    #[error("parameter '{0}' is not known; only socket=PATH is, and only with nbd+unix")]
    Parameter(String),
    /// `%` not followed by two hexadecimal digits, or bytes that are not UTF-8.
    #[error("'{0}' is not valid percent-encoded UTF-8")]
    Encoding(String),
    /// The export's name is longer than the protocol allows.
    #[error("the export name has {0} bytes; NBD allows 4096")]
    NameLength(usize),
    /// Nothing at all.
    #[error("the target is empty")]
    Empty,
}

impl FromStr for Target {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Target, UriError> {
        if text.is_empty() {
            return Err(UriError::Empty);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(Target::File(PathBuf::from(text)));
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
        let export = decoded(export)?;
        if export.len() > NAME_MAX {
            return Err(UriError::NameLength(export.len()));
        }
        let address = match scheme {
            "nbd" => tcp_address(authority, query)?,
            "nbd+unix" => unix_address(authority, query)?,
            "nbds" | "nbds+unix" => return Err(UriError::Tls(scheme.into())),
            other => return Err(UriError::Scheme(other.into())),
        };
        Ok(Target::Nbd { address, export })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::File(path) => path.display().fmt(f),
            Target::Nbd { address: Address::Unix(path), export } => {
                let socket = path.to_string_lossy();
                write!(f, "nbd+unix:///{}?socket={}", encoded(export), encoded(&socket))
            }
            Target::Nbd { address: Address::Tcp { host, port }, export } => {
                let bracketed = host.contains(':');
                let (open, close) = if bracketed { ("[", "]") } else { ("", "") };
                write!(f, "nbd://{open}{host}{close}:{port}/{}", encoded(export))
            }
        }
    }
}

fn tcp_address(authority: &str, query: &str) -> Result<Address, UriError> {
    if !query.is_empty() {
        return Err(UriError::Parameter(query.into()));
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, tail) =
                rest.split_once(']').ok_or_else(|| UriError::Bracket(authority.into()))?;
            match tail.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if tail.is_empty() => (host, None),
                None => return Err(UriError::Port(tail.into())),
            }
        }
        None => match authority.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if host.is_empty() {
        return Err(UriError::NoHost);
    }
    let port = match port {
        None => DEFAULT_PORT,
        Some(text) => match text.parse() {
            Ok(port) if port != 0 => port,
            _ => return Err(UriError::Port(text.into())),
        },
    };
    Ok(Address::Tcp { host: decoded(host)?, port })
}

fn unix_address(authority: &str, query: &str) -> Result<Address, UriError> {
    if !authority.is_empty() {
        return Err(UriError::HostInUnix(authority.into()));
    }
    let mut socket = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("socket", path)) if socket.is_none() => socket = Some(decoded(path)?),
            _ => return Err(UriError::Parameter(pair.into())),
        }
    }
    match socket {
        Some(path) if !path.is_empty() => Ok(Address::Unix(PathBuf::from(path))),
        _ => Err(UriError::NoSocket),
    }
}

fn decoded(text: &str) -> Result<String, UriError> {
    let wrong = || UriError::Encoding(text.into());
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let (digits, tail) = tail.split_at_checked(2).ok_or_else(wrong)?;
        let mut value = 0;
        for &digit in digits {
            value = value * 16 + char::from(digit).to_digit(16).ok_or_else(wrong)?;
        }
        // Two hexadecimal digits are at most 255.
        bytes.push(value as u8);
        rest = tail;
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

fn encoded(text: &str) -> String {
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

#[cfg(test)]
mod tests {
    use super::{Address, Target, UriError};

    fn tcp(host: &str, port: u16, export: &str) -> Target {
        let address = Address::Tcp { host: host.into(), port };
        Target::Nbd { address, export: export.into() }
    }

    #[test]
    fn a_host_a_port_and_a_name_are_found() {
        assert_eq!("nbd://a.example:7/x/y".parse(), Ok(tcp("a.example", 7, "x/y")));
        assert_eq!("nbd://a".parse(), Ok(tcp("a", 10809, "")));
        assert_eq!("nbd://[::1]:7/".parse(), Ok(tcp("::1", 7, "")));
        assert_eq!("nbd://[::1]".parse(), Ok(tcp("::1", 10809, "")));
    }

    #[test]
    fn a_socket_and_an_escaped_name_are_found() {
        let address = Address::Unix("/tmp/a b".into());
        let wanted = Target::Nbd { address, export: "d?k".into() };
        assert_eq!("nbd+unix:///d%3fk?socket=/tmp/a%20b".parse(), Ok(wanted.clone()));
        assert_eq!(wanted.to_string().parse(), Ok(wanted));
    }

    #[test]
    fn anything_without_a_scheme_is_a_file() {
        assert_eq!("/srv/a.raw".parse(), Ok(Target::File("/srv/a.raw".into())));
    }

    #[test]
    fn what_it_would_have_to_guess_is_refused() {
        let error = |text: &str| text.parse::<Target>().expect_err(text);
        assert_eq!(error(""), UriError::Empty);
        assert_eq!(error("http://x/"), UriError::Scheme("http".into()));
        assert_eq!(error("nbds://x/"), UriError::Tls("nbds".into()));
        assert_eq!(error("nbd:///x"), UriError::NoHost);
        assert_eq!(error("nbd://x:0/"), UriError::Port("0".into()));
        assert_eq!(error("nbd://[::1/"), UriError::Bracket("[::1".into()));
        assert_eq!(error("nbd://x/?a=b"), UriError::Parameter("a=b".into()));
        assert_eq!(error("nbd+unix:///x"), UriError::NoSocket);
        assert_eq!(error("nbd+unix://h/x?socket=/s"), UriError::HostInUnix("h".into()));
        assert_eq!(error("nbd+unix:///%4?socket=/s"), UriError::Encoding("%4".into()));
        assert_eq!(error("nbd+unix:///%ff?socket=/s"), UriError::Encoding("%ff".into()));
    }
}

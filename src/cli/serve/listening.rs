//! Where `serve` listens: options to addresses.
//!
//! Refuses to let strangers in by accident: beyond this machine only with TLS, or when told twice.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use rustix::net::SocketType;

use crate::host::inherited;
use crate::server::{self, Bound, CID_ANY, Listen};

/// How long a client on standard output may take to read its last replies.
const FAREWELL: Duration = Duration::from_secs(10);
/// Bytes carried at once between a pipe and the server.
const PIECE_BYTES: usize = 128 << 10;
/// The port NBD is known under.
const NBD_PORT: u16 = 10809;

/// Where to listen.
#[derive(Debug, Args)]
#[command(next_help_heading = "Where to listen")]
pub(super) struct ListenOptions {
    /// Listen on this unix socket instead of TCP (may be repeated)
    #[arg(short = 'k', long, value_name = "PATH")]
    socket: Vec<PathBuf>,
    /// Listen on this TCP port (0: any free one); with --socket, on both
    #[arg(short, long, value_name = "PORT")]
    port: Option<u16>,
    /// TCP address to listen on (may be repeated). Other than loopback needs TLS or --allow-remote
    #[arg(long, value_name = "ADDRESS")]
    bind: Vec<IpAddr>,
    /// Listen beyond this machine although connections are neither encrypted nor authenticated
    #[arg(long)]
    allow_remote: bool,
    /// Listen on this port of the virtual-machine sockets (vsock)
    #[arg(long, value_name = "PORT")]
    vsock: Option<u32>,
    /// Serve one connection on standard input and output, then end
    #[arg(long, conflicts_with_all = ["socket", "port", "bind", "vsock", "fd", "fd_socket"])]
    pub(super) stdio: bool,
    /// Serve this inherited socket, listening or connected (may be repeated)
    #[arg(long, value_name = "NUMBER")]
    fd: Vec<RawFd>,
    /// Take connections that are passed as descriptors over this unix socket
    #[arg(long, value_name = "PATH")]
    fd_socket: Option<PathBuf>,
}

/// What the client on standard output has still to read when the server has ended.
pub(super) struct LastWords(Option<Receiver<()>>);

impl LastWords {
    /// Waits until they are said, but not for ever.
    pub(super) fn wait(self) {
        let Some(is_done) = self.0 else { return };
        if is_done.recv_timeout(FAREWELL) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("the client did not read its last replies in time");
        }
    }
}

impl ListenOptions {
    /// Binds everything that was asked for. `secure`: every connection will need credentials.
    pub(super) fn bind(&self, secure: bool) -> Result<Bound> {
        // First of all, while the numbers still mean what the parent meant.
        let inherited = self.inherited()?;
        let mut addresses = Vec::new();
        for path in &self.socket {
            // The URI must lead there from any directory.
            addresses.push(Listen::Unix(std::path::absolute(path)?));
        }
        if let Some(path) = &self.fd_socket {
            addresses.push(Listen::Passed(std::path::absolute(path)?));
        }
        if let Some(port) = self.vsock {
            if !secure && !self.allow_remote {
                bail!(
                    "on vsock every virtual machine of this host can reach the disk; configure \
                     TLS, or add --allow-remote if that is what you want"
                );
            }
            addresses.push(Listen::Vsock { cid: CID_ANY, port });
        }
        let alone = addresses.is_empty() && inherited.is_empty() && !self.stdio;
        if self.port.is_some() || !self.bind.is_empty() || alone {
            addresses.extend(self.tcp(secure)?);
        }
        let mut bound = server::bind(&addresses)?;
        for socket in inherited {
            bound.add_inherited(socket).context("an inherited socket cannot be served")?;
        }
        if !secure && !self.allow_remote && bound.is_remote() {
            bail!(
                "an inherited socket listens beyond this machine, and NBD without TLS lets anyone \
                 who reaches it read and write the disk; configure TLS (--tls-certs), or add \
                 --allow-remote if that is what you want"
            );
        }
        Ok(bound)
    }

    /// Whether a service manager, or a program that acts as one, has passed sockets.
    pub(super) fn is_activated() -> bool {
        let passed = activated(|name| std::env::var(name).ok(), std::process::id());
        passed.is_ok_and(|numbers| !numbers.is_empty())
    }

    /// Whether whoever listens so must serve nothing without TLS.
    pub(super) fn needs_tls(&self, bound: &Bound) -> bool {
        bound.is_remote() && !self.allow_remote
    }

    /// Adds the connection on standard input and output, if it was asked for. It may start
    /// threads, so the process is confined first.
    pub(super) fn add_stdio(&self, bound: &mut Bound) -> Result<LastWords> {
        if !self.stdio {
            return Ok(LastWords(None));
        }
        let (socket, last_words) = stdio()?;
        bound.add_connected(socket);
        Ok(last_words)
    }

    fn tcp(&self, secure: bool) -> Result<Vec<Listen>> {
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST)];
        let hosts = if self.bind.is_empty() { &loopback[..] } else { &self.bind };
        let strange = hosts.iter().find(|host| !host.is_loopback());
        if let Some(host) = strange.filter(|_| !secure && !self.allow_remote) {
            bail!(
                "{host} is not a loopback address, and NBD without TLS lets anyone who reaches it \
                 read and write the disk; configure TLS (--tls-certs), or add --allow-remote if \
                 that is what you want"
            );
        }
        let port = self.port.unwrap_or(NBD_PORT);
        Ok(hosts.iter().map(|host| Listen::Tcp(SocketAddr::new(*host, port))).collect())
    }

    /// Sockets this process was started with: named with `--fd`, or by a service manager.
    fn inherited(&self) -> Result<Vec<OwnedFd>> {
        let mut numbers = self.fd.clone();
        numbers.extend(activated(|name| std::env::var(name).ok(), std::process::id())?);
        numbers
            .into_iter()
            .map(|number| inherited::adopt(number).context("cannot use an inherited socket"))
            .collect()
    }
}

/// The numbers a service manager passed (sd_listen_fds(3)), if they are meant for this process.
fn activated(env: impl Fn(&str) -> Option<String>, own: u32) -> Result<Vec<RawFd>> {
    let (Some(pid), Some(count)) = (env("LISTEN_PID"), env("LISTEN_FDS")) else {
        return Ok(Vec::new());
    };
    if pid.trim().parse() != Ok(own) {
        return Ok(Vec::new());
    }
    let count: RawFd =
        count.trim().parse().ok().filter(|n| (0..=1024).contains(n)).with_context(|| {
            format!("LISTEN_FDS={count} in the environment is no number of descriptors")
        })?;
    Ok((inherited::FIRST..inherited::FIRST + count).collect())
}

/// The connection that standard input and output are. Two pipes become one through a pair of
/// threads.
fn stdio() -> Result<(OwnedFd, LastWords)> {
    let input = std::io::stdin().as_fd().try_clone_to_owned()?;
    match rustix::net::sockopt::socket_type(&input) {
        Ok(SocketType::STREAM) => return Ok((input, LastWords(None))),
        Ok(_) => bail!("--stdio: standard input is a socket, but no stream"),
        // Not a socket.
        Err(_) => {}
    }
    let output = std::io::stdout().as_fd().try_clone_to_owned()?;
    let (inner, outer) = std::os::unix::net::UnixStream::pair()?;
    let to_server = outer.try_clone()?;
    std::thread::Builder::new().name("orlop-stdin".to_owned()).spawn(move || {
        let mut to_server = to_server;
        // However it ends, nothing more will come: the server sees the end of the stream.
        let _ = carry(std::fs::File::from(input), &mut to_server);
        let _ = to_server.shutdown(std::net::Shutdown::Write);
    })?;
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::Builder::new().name("orlop-stdout".to_owned()).spawn(move || {
        let mut from_server = outer;
        // A reader that is gone is told by the broken pair.
        let _ = carry(&mut from_server, std::fs::File::from(output));
        let _ = from_server.shutdown(std::net::Shutdown::Both);
        // Nobody waits when the server gave up first.
        let _ = done.send(());
    })?;
    Ok((inner.into(), LastWords(Some(is_done))))
}

/// Passes on what comes as soon as it comes. The library's own copy moves pipes with `splice`, and
/// then a handshake on two pipes got no further than its greeting.
fn carry(mut from: impl Read, mut to: impl Write) -> std::io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&piece[..count])?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::activated;

    #[test]
    fn a_service_managers_sockets_are_taken_only_when_meant_for_us() {
        let env = |pid: &'static str, fds: &'static str| {
            move |name: &str| match name {
                "LISTEN_PID" => Some(pid.to_owned()),
                "LISTEN_FDS" => Some(fds.to_owned()),
                _ => None,
            }
        };
        assert_eq!(activated(env("7", "2"), 7).ok(), Some(vec![3, 4]));
        assert_eq!(activated(env("8", "2"), 7).ok(), Some(vec![]));
        assert_eq!(activated(|_| None, 7).ok(), Some(vec![]));
        assert!(activated(env("7", "-1"), 7).is_err());
        assert!(activated(env("7", "many"), 7).is_err());
    }
}

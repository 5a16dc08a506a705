//! TLS of the server's connections: who is at the other end, and the bytes under it.
//!
//! Certificates lie in a directory as QEMU and libvirt have them, or pre-shared keys in a file as
//! GnuTLS' `psktool` writes it (feature `psk`). TLS 1.2 and 1.3, no resumption, no early data: a
//! connection is made once and lasts, and each proves its identity against the present lists.
//!
//! It knows nothing of NBD, of exports or of disks, and it keeps no deadlines over a handshake:
//! whoever calls [`Tls::accept`] gives it a deadline and bounds how many there are at once.

use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub use self::bridge::{Ended, bridge};
pub use self::directory::{LoadError, Notice};
pub use self::error::TlsError;
pub use self::name::NameError;
pub use self::peer::{Certificate, Peer, Rule, RuleError};
pub use self::secured::Secured;
use self::secured::{poll_receive, poll_send_all};
use self::session::Session;

mod bridge;
mod directory;
mod error;
mod key;
mod name;
mod peer;
#[cfg(feature = "psk")]
mod psk;
mod secured;
mod session;
#[cfg(test)]
mod tests;

/// Whether clients must prove who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientVerify {
    /// No client certificate is asked for: whoever can connect may talk.
    Off,
    /// Only clients with a certificate that `ca-cert.pem` has signed and `ca-crl.pem` (if there is
    /// one) does not revoke. QEMU's `verify-peer=yes`.
    Required,
}

/// The server's TLS settings. Clones share them, and see a reload.
#[derive(Clone)]
pub struct Tls {
    shared: Arc<Shared>,
}

struct Shared {
    source: Source,
    /// Held to copy or replace a pointer, never while anything is read or awaited.
    terms: Mutex<Terms>,
}

enum Source {
    Directory(PathBuf, ClientVerify),
    #[cfg(feature = "psk")]
    Keys(PathBuf),
}

#[derive(Clone)]
enum Terms {
    Certificates(Arc<ServerConfig>),
    #[cfg(feature = "psk")]
    Keys(psk::Acceptor),
}

impl Tls {
    /// Reads `ca-cert.pem`, `server-cert.pem`, `server-key.pem` and, if there is one,
    /// `ca-crl.pem` of a directory. What is odd but no reason to refuse comes as notices, for the
    /// log.
    ///
    /// # Errors
    /// Names the file, what is wrong with it and what to do.
    pub fn from_directory(
        path: &Path,
        clients: ClientVerify,
    ) -> Result<(Self, Vec<Notice>), LoadError> {
        Self::load(Source::Directory(path.to_owned(), clients))
    }

    /// Reads lines `user:hexkey`, as `psktool` writes them; of a directory its `keys.psk`, as QEMU
    /// does.
    ///
    /// # Errors
    /// As [`Tls::from_directory`]; and [`LoadError::NoPsk`] if orlop was built without the feature
    /// `psk`.
    pub fn from_psk_file(path: &Path) -> Result<(Self, Vec<Notice>), LoadError> {
        #[cfg(feature = "psk")]
        return Self::load(Source::Keys(path.to_owned()));
        #[cfg(not(feature = "psk"))]
        Err(LoadError::NoPsk { path: path.to_owned() })
    }

    /// Reads everything again. Connections that are open stay as they are; new ones get what was
    /// read. After an error all is as before.
    ///
    /// # Errors
    /// As when it was made.
    pub fn reload(&self) -> Result<Vec<Notice>, LoadError> {
        let (terms, notices) = self.shared.source.read()?;
        *self.shared.terms.lock().unwrap_or_else(PoisonError::into_inner) = terms;
        Ok(notices)
    }

    /// Shakes hands as the server, and says who the client is.
    ///
    /// The caller bounds the time, by dropping this. The stream must hold nothing that was sent
    /// in the clear: what came before in the same segment was read by the caller already, and is
    /// not to be given to anyone.
    ///
    /// # Errors
    /// Says what failed, for the log; the client was sent TLS's alert for it. The stream is closed.
    pub async fn accept<S>(&self, stream: S) -> Result<(Secured<S>, Peer), TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let terms = self.shared.terms.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (secured, peer) = match terms {
            Terms::Certificates(config) => accept(stream, config).await?,
            #[cfg(feature = "psk")]
            Terms::Keys(acceptor) => acceptor.accept(stream).await?,
        };
        Ok((secured, peer))
    }

    fn load(source: Source) -> Result<(Self, Vec<Notice>), LoadError> {
        let (terms, notices) = source.read()?;
        let shared = Shared { source, terms: Mutex::new(terms) };
        Ok((Self { shared: Arc::new(shared) }, notices))
    }
}

impl Source {
    fn read(&self) -> Result<(Terms, Vec<Notice>), LoadError> {
        match self {
            Self::Directory(path, clients) => {
                let (config, notices) = directory::read(path, *clients)?;
                Ok((Terms::Certificates(Arc::new(config)), notices))
            }
            #[cfg(feature = "psk")]
            Self::Keys(path) => {
                let (acceptor, notices) = psk::Acceptor::read(path)?;
                Ok((Terms::Keys(acceptor), notices))
            }
        }
    }
}

async fn accept<S>(mut stream: S, config: Arc<ServerConfig>) -> Result<(Secured<S>, Peer), TlsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut session = Session::new(config)?;
    if let Err(error) = shake_hands(&mut stream, &mut session).await {
        poll_fn(|cx| poll_hang_up(&mut stream, &mut session, cx)).await;
        return Err(error);
    }
    let peer = match session.peer_certificate() {
        Some(certificate) => Peer::Certificate(Certificate::read(certificate)?),
        None => Peer::Anonymous,
    };
    let (version, suite) = session.terms();
    tracing::debug!(%peer, version, suite, "TLS is up");
    Ok((Secured::new(stream, session), peer))
}

async fn shake_hands<S>(stream: &mut S, session: &mut Session) -> Result<(), TlsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        poll_fn(|cx| poll_send_all(stream, session, cx)).await?;
        if !session.is_shaking_hands() {
            return Ok(());
        }
        let count = poll_fn(|cx| poll_receive(stream, session, cx)).await?;
        if count == 0 || session.peer_closed() {
            return Err(TlsError::CutOff);
        }
        session.fed(count)?;
    }
}

/// Sends the alert, if it fits into the socket, and closes in a way that lets it arrive.
fn poll_hang_up<S>(stream: &mut S, session: &mut Session, cx: &mut Context<'_>) -> Poll<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let _ = poll_send_all(stream, session, cx);
    let _ = Pin::new(&mut *stream).poll_shutdown(cx);
    // A socket closed with bytes unread is reset, and takes the alert with it.
    let mut scrap = [0; 4096];
    for _ in 0..16 {
        let mut into = ReadBuf::new(&mut scrap);
        match Pin::new(&mut *stream).poll_read(cx, &mut into) {
            Poll::Ready(Ok(())) if !into.filled().is_empty() => {}
            _ => break,
        }
    }
    Poll::Ready(())
}

//! The server of one process: listeners, handshakes with a deadline, and the hand-over of
//! negotiated connections to the shard. Refuses to touch data: that is the shard's.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nbd::handshake::{Handshake, HandshakeLimits, Progress, Session};
use nbd::{Export, ExportEntry, Exports};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, JoinSet};

use crate::engine::units::{ByteLen, DiskOffset, Extent};
use crate::meter::{Meter, Rates, Throttle};
use crate::shard::{DiskTag, ExportKey, Mailbox, NewClient};
use crate::transport::nbd::{ClientLimits, ClientSettings, NbdClient};

/// How long a client may take to negotiate.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Connections of one process.
const MAX_CONNECTIONS: usize = 256;
/// Connections of one listener that have not finished their handshake.
const MAX_HALF_OPEN: usize = 16;
/// Connections the system keeps waiting for `accept`.
const BACKLOG: u32 = 128;
/// Pause after `accept` failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A unix socket at this path.
    Unix(PathBuf),
    /// A TCP address.
    Tcp(SocketAddr),
}

impl Listen {
    /// The NBD URI that leads to an export here.
    #[must_use]
    pub fn uri(&self, export: &str) -> String {
        match self {
            Self::Unix(path) => {
                let socket = escape(&path.to_string_lossy());
                format!("nbd+unix:///{}?socket={socket}", escape(export))
            }
            Self::Tcp(address) if export.is_empty() => format!("nbd://{address}"),
            Self::Tcp(address) => format!("nbd://{address}/{}", escape(export)),
        }
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

/// One export: the default one, also found by its name.
struct OneExport(Export);

impl Exports for OneExport {
    fn list(&self) -> Vec<ExportEntry> {
        let Export { name, description, .. } = &self.0;
        vec![ExportEntry { name: name.clone(), description: description.clone() }]
    }

    fn find(&self, name: &str) -> Option<Export> {
        (name.is_empty() || name == self.0.name).then(|| self.0.clone())
    }
}

enum Listener {
    /// Removed again when the server ends.
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Listeners that are bound and not served yet.
pub struct Bound {
    listeners: Vec<(Listener, Listen)>,
}

/// Binds every address.
///
/// # Errors
/// The address that could not be bound, and why.
pub fn bind(addresses: &[Listen]) -> io::Result<Bound> {
    let mut listeners = Vec::new();
    for address in addresses {
        let named = |error: io::Error| {
            let what = match address {
                Listen::Unix(path) => path.display().to_string(),
                Listen::Tcp(address) => address.to_string(),
            };
            io::Error::new(error.kind(), format!("cannot listen on {what}: {error}"))
        };
        listeners.push(match address {
            Listen::Unix(path) => {
                (Listener::Unix(bind_unix(path).map_err(named)?, path.clone()), address.clone())
            }
            Listen::Tcp(socket) => {
                let listener = std::net::TcpListener::bind(socket).map_err(named)?;
                listener.set_nonblocking(true)?;
                let listener = TcpListener::from_std(listener)?;
                // Port 0 asks the system to choose: say what it chose.
                let actual = Listen::Tcp(listener.local_addr()?);
                (Listener::Tcp(listener), actual)
            }
        });
    }
    Ok(Bound { listeners })
}

impl Bound {
    /// Where the listeners are.
    pub fn addresses(&self) -> impl Iterator<Item = &Listen> {
        self.listeners.iter().map(|(_, address)| address)
    }
}

/// A socket only its owner and group may use; a left-over of a server that died is replaced.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let is_socket = std::fs::symlink_metadata(path)
        .is_ok_and(|meta| std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()));
    if is_socket {
        match std::os::unix::net::UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)?;
            }
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    "another server is listening there",
                ));
            }
        }
    }
    let socket = tokio::net::UnixSocket::new_stream()?;
    socket.bind(path)?;
    // Nobody can connect before it listens, so nobody gets in under a wider mode.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    socket.listen(BACKLOG)
}

/// What every listener needs.
#[derive(Clone)]
struct Offer {
    exports: Arc<OneExport>,
    disk: DiskTag,
    mailbox: Mailbox,
    connections: Arc<Semaphore>,
    meter: Arc<Meter>,
    throttle: Arc<Throttle>,
}

/// Serves an export on the bound listeners until the returned future is dropped.
pub async fn serve(bound: Bound, export: Export, disk: DiskTag, mailbox: Mailbox) {
    let offer = Offer {
        exports: Arc::new(OneExport(export)),
        disk,
        mailbox,
        connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        meter: Arc::default(),
        throttle: Arc::new(Throttle::new(Rates::default())),
    };
    let mut listening = JoinSet::new();
    for (listener, _) in bound.listeners {
        listening.spawn(accept_all(listener, offer.clone()));
    }
    while listening.join_next().await.is_some() {}
}

async fn accept_all(listener: Listener, offer: Offer) {
    // Handshakes end with the listener.
    let mut handshakes = JoinSet::new();
    let mut half_open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        while handshakes.try_join_next().is_some() {}
        half_open.retain(|handshake| !handshake.is_finished());
        // No slot, no accept: the peer waits in the backlog.
        let Ok(slot) = Arc::clone(&offer.connections).acquire_owned().await else { return };
        let offer = offer.clone();
        let accepted = match &listener {
            Listener::Unix(listener, _) => listener.accept().await.map(|(stream, _)| {
                handshakes.spawn(async move { welcome_unix(stream, offer, slot).await })
            }),
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                handshakes.spawn(async move { welcome_tcp(stream, offer, slot).await })
            }),
        };
        match accepted {
            Ok(handshake) => half_open.push_back(handshake),
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        // Peers that say nothing must not keep out those who do: the one that has had the most
        // time makes room.
        if half_open.len() > MAX_HALF_OPEN
            && let Some(oldest) = half_open.pop_front()
        {
            oldest.abort();
        }
    }
}

async fn welcome_unix(
    mut stream: tokio::net::UnixStream,
    offer: Offer,
    slot: OwnedSemaphorePermit,
) {
    if let Some(session) = negotiate(&mut stream, &offer).await {
        hand_over(stream.into_std().map(OwnedFd::from), &session, &offer, slot);
    }
}

async fn welcome_tcp(mut stream: tokio::net::TcpStream, offer: Offer, slot: OwnedSemaphorePermit) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    if let Some(session) = negotiate(&mut stream, &offer).await {
        hand_over(stream.into_std().map(OwnedFd::from), &session, &offer, slot);
    }
}

/// Carries a handshake through, within its deadline. `None`: there is no session.
async fn negotiate(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    offer: &Offer,
) -> Option<Session> {
    match tokio::time::timeout(HANDSHAKE_LIMIT, converse(stream, offer)).await {
        Ok(Ok(session)) => session,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a handshake failed");
            None
        }
        Err(_) => {
            tracing::debug!("a handshake took too long");
            None
        }
    }
}

async fn converse(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    offer: &Offer,
) -> io::Result<Option<Session>> {
    let mut handshake = Handshake::new(HandshakeLimits::default());
    let mut buffer = vec![0; 16 << 10];
    loop {
        stream.write_all(&handshake.take_output()).await?;
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(None);
        }
        let progress = handshake.receive(&buffer[..count], offer.exports.as_ref());
        let output = handshake.take_output();
        stream.write_all(&output).await?;
        match progress {
            Ok(Progress::More) => {}
            Ok(Progress::Ready(session)) => return Ok(Some(session)),
            Ok(Progress::Closed) => return Ok(None),
            Err(violation) => {
                tracing::debug!(%violation, "dropping a client in its handshake");
                return Ok(None);
            }
        }
    }
}

fn hand_over(
    socket: io::Result<OwnedFd>,
    session: &Session,
    offer: &Offer,
    slot: OwnedSemaphorePermit,
) {
    let moved = socket.map_err(|error| error.to_string()).and_then(|socket| {
        let size = ByteLen::new(session.export.size.0);
        let settings = ClientSettings {
            window: Extent::new(DiskOffset::new(0), size),
            limits: ClientLimits::default(),
            export_meter: Arc::clone(&offer.meter),
            meter: Arc::default(),
            throttle: Arc::clone(&offer.throttle),
        };
        let client = Box::new(NbdClient::new(session, settings));
        let (disk, export, guard) = (offer.disk, ExportKey(0), Box::new(slot));
        let new = NewClient { disk, export, socket, client, guard };
        offer.mailbox.connect(new).map_err(|refused| refused.to_string())
    });
    if let Err(error) = moved {
        tracing::warn!(%error, "a negotiated connection was dropped");
    }
}

//! Carries bytes between a TLS connection and a plain socket, both ways at once.
//!
//! The shard speaks plain NBD on its end of a socket pair; this is the other end. It knows nothing
//! of NBD and keeps no deadlines while the plain side lives, for that side has them: it sees a
//! client that stopped reading as a full socket, and a silent one as silence. Only once the plain
//! side has said its last, nobody else watches, and a last deadline starts.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::time::timeout;

use super::error::TlsError;
use super::secured::Secured;
use super::session::CHUNK_BYTES;

/// How long the client may take to read what is left, and to hang up, after the plain side ended.
const FAREWELL: Duration = Duration::from_secs(15);

/// How a bridge ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Both sides were told everything, and said farewell.
    Closed,
    /// The client's stream ended without a farewell (`close_notify`): it may have been cut. All
    /// that came before was handed over.
    Truncated,
    /// The plain side was done, and the client did not hang up in time. It may not have read all.
    Abandoned,
}

/// Moves bytes both ways until both sides are done.
///
/// An end of the plain side becomes a TLS farewell and an end of the stream; the farewell or the
/// end of the TLS side becomes an end of the plain side's input. Bytes that either side has sent
/// before its end are delivered. Memory is bounded: a chunk of 128 KiB plaintext and one of
/// ciphertext each way, whatever the peer does.
///
/// Whoever calls this guards the number of bridges. The time a client may take is guarded by the
/// plain side, as long as it holds its socket: it must close it to be rid of a client.
///
/// # Errors
/// When the client breaks TLS, or either socket fails. Both are then closed.
pub async fn bridge<S>(secured: Secured<S>, plain: UnixStream) -> Result<Ended, TlsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    bridge_for(secured, plain, FAREWELL).await
}

/// The bridge with another deadline for the end, so that tests need not wait.
pub(super) async fn bridge_for<S>(
    secured: Secured<S>,
    plain: UnixStream,
    farewell: Duration,
) -> Result<Ended, TlsError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (reads, writes) = plain.into_split();
    let plain = reads.as_ref();
    let mut span = Span::new(secured, plain, writes);
    // Also comes while the client reads nothing, and we therefore nothing of the plain side.
    let mut plain_ends = pin!(async {
        while !plain.ready(Interest::PRIORITY).await?.is_read_closed() {}
        Ok::<(), TlsError>(())
    });
    let ended = poll_fn(|cx| match span.poll_both(cx) {
        Poll::Ready(done) => Poll::Ready(done.map(|()| true)),
        Poll::Pending => plain_ends.as_mut().poll(cx).map_ok(|()| false),
    });
    if !ended.await? {
        // The plain side will never send more. What it sent is delivered, but not for ever.
        let in_time = timeout(farewell, poll_fn(|cx| span.poll_both(cx)));
        match in_time.await {
            Ok(done) => done?,
            Err(_) => return Ok(Ended::Abandoned),
        }
    }
    Ok(if span.truncated { Ended::Truncated } else { Ended::Closed })
}

struct Span<'p, S> {
    secured: Secured<S>,
    plain: &'p UnixStream,
    writes: OwnedWriteHalf,
    /// What was read from the plain side and is encrypted next.
    chunk: Vec<u8>,
    incoming: Way,
    outgoing: Way,
    /// Nobody reads the plain side any more: what the client still sends is dropped.
    deaf: bool,
    truncated: bool,
}

/// How far one direction has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    /// Its source has ended; its end is to be passed on.
    Ending,
    Done,
}

impl<'p, S: AsyncRead + AsyncWrite + Unpin> Span<'p, S> {
    fn new(mut secured: Secured<S>, plain: &'p UnixStream, writes: OwnedWriteHalf) -> Self {
        secured.widen();
        Self {
            secured,
            plain,
            writes,
            chunk: vec![0; CHUNK_BYTES],
            incoming: Way::Open,
            outgoing: Way::Open,
            deaf: false,
            truncated: false,
        }
    }

    /// Moves what can be moved. Ready when both ways are done.
    fn poll_both(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TlsError>> {
        let incoming = self.poll_inwards(cx)?;
        // After it, since what came in may want an answer of TLS itself.
        let outgoing = self.poll_outwards(cx)?;
        if incoming.is_ready() && outgoing.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// From the client to the plain side.
    fn poll_inwards(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TlsError>> {
        while self.incoming == Way::Open {
            let bytes = match ready!(self.secured.poll_incoming(cx)) {
                Ok(bytes) => bytes,
                Err(TlsError::Truncated) => {
                    tracing::debug!("a client's TLS stream ended without a farewell");
                    self.truncated = true;
                    &[]
                }
                // A client that hangs up while it is owed bytes it does not want.
                Err(TlsError::Io(error)) if is_hangup(&error) && self.outgoing == Way::Done => &[],
                Err(error) => return Poll::Ready(Err(error)),
            };
            if bytes.is_empty() {
                self.incoming = Way::Ending;
                break;
            }
            let mut count = bytes.len();
            if !self.deaf {
                match ready!(Pin::new(&mut self.writes).poll_write(cx, bytes)) {
                    Ok(written) => count = written,
                    // Its last words may still be unread, so the other way goes on.
                    Err(error) if is_hangup(&error) => self.deaf = true,
                    Err(error) => return Poll::Ready(Err(error.into())),
                }
            }
            self.secured.take(count);
        }
        if self.incoming == Way::Ending {
            // Fails only if the plain side is gone already, which the other way will find.
            let _ = ready!(Pin::new(&mut self.writes).poll_shutdown(cx));
            self.incoming = Way::Done;
        }
        Poll::Ready(Ok(()))
    }

    /// From the plain side to the client.
    fn poll_outwards(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TlsError>> {
        while self.outgoing == Way::Open {
            ready!(self.secured.poll_send(cx))?;
            ready!(self.plain.poll_read_ready(cx))?;
            let count = match self.plain.try_read(&mut self.chunk) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                // Closed with bytes of ours unread; what it sent before was read by now.
                Err(error) if is_hangup(&error) => 0,
                Err(error) => return Poll::Ready(Err(error.into())),
            };
            if count == 0 {
                self.outgoing = Way::Ending;
            } else {
                self.secured.put(&self.chunk[..count])?;
            }
        }
        if self.outgoing == Way::Ending {
            ready!(self.secured.poll_farewell(cx))?;
            self.outgoing = Way::Done;
        }
        Poll::Ready(Ok(()))
    }
}

fn is_hangup(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

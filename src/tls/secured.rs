//! A byte stream under TLS: the session and the stream that carries its records.
//!
//! It offers the steps that the bridge is made of, and reads and writes as any tokio stream does,
//! for the rest of the handshake of NBD. It has no deadlines of its own.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::error::TlsError;
#[cfg(feature = "psk")]
use super::psk::PskStream;
use super::session::{CHUNK_BYTES, Session};

/// A stream whose bytes go through TLS. Made by [`Tls::accept`](super::Tls::accept).
///
/// Reading gives an end once the peer has said farewell, and an error of kind
/// `UnexpectedEof` if the stream ended without it. Shutting down says farewell first.
pub struct Secured<S> {
    side: Side<S>,
}

enum Side<S> {
    Certificates(Box<Certified<S>>),
    #[cfg(feature = "psk")]
    Keys(Box<PskStream<S>>),
}

struct Certified<S> {
    stream: S,
    session: Session,
    ended: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Secured<S> {
    pub(super) fn new(stream: S, session: Session) -> Self {
        Self { side: Side::Certificates(Box::new(Certified { stream, session, ended: false })) }
    }

    #[cfg(feature = "psk")]
    pub(super) fn with_keys(stream: PskStream<S>) -> Self {
        Self { side: Side::Keys(Box::new(stream)) }
    }

    /// Makes the buffers as large as the data path wants them.
    pub(super) fn widen(&mut self) {
        match &mut self.side {
            Side::Certificates(side) => side.session.widen(),
            #[cfg(feature = "psk")]
            Side::Keys(_) => {}
        }
    }

    /// Plaintext from the peer; no bytes mean that it said farewell.
    pub(super) fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<Result<&[u8], TlsError>> {
        match &mut self.side {
            Side::Certificates(side) => side.poll_incoming(cx),
            #[cfg(feature = "psk")]
            Side::Keys(side) => side.poll_incoming(cx),
        }
    }

    /// Takes away the first `count` bytes of what `poll_incoming` gave.
    pub(super) fn take(&mut self, count: usize) {
        match &mut self.side {
            Side::Certificates(side) => side.session.plain.take(count),
            #[cfg(feature = "psk")]
            Side::Keys(side) => side.take(count),
        }
    }

    /// Sends what waits. Ready when nothing does.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TlsError>> {
        match &mut self.side {
            Side::Certificates(side) => side.poll_send(cx),
            #[cfg(feature = "psk")]
            Side::Keys(side) => side.poll_send(cx),
        }
    }

    /// Lets at most a chunk of plaintext wait to be sent. Only after `poll_send` was ready.
    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<(), TlsError> {
        match &mut self.side {
            Side::Certificates(side) => side.session.seal(bytes),
            #[cfg(feature = "psk")]
            Side::Keys(side) => side.put(bytes),
        }
    }

    /// Says farewell behind all that waits, sends it, and ends the stream's writing side.
    pub(super) fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TlsError>> {
        match &mut self.side {
            Side::Certificates(side) => {
                side.session.say_goodbye()?;
                ready!(side.poll_send(cx))?;
                Poll::Ready(Ok(ready!(Pin::new(&mut side.stream).poll_shutdown(cx))?))
            }
            #[cfg(feature = "psk")]
            Side::Keys(side) => side.poll_farewell(cx),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Certified<S> {
    fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<Result<&[u8], TlsError>> {
        while self.session.plain.is_empty() && !self.session.peer_closed() {
            if self.ended {
                return Poll::Ready(Err(TlsError::Truncated));
            }
            let count = ready!(poll_receive(&mut self.stream, &mut self.session, cx))?;
            self.ended = count == 0;
            if let Err(error) = self.session.fed(count) {
                // The alert is worth one try; the connection is lost anyway.
                let _ = self.poll_send(cx);
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(self.session.plain.waiting()))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TlsError>> {
        poll_send_all(&mut self.stream, &mut self.session, cx)
    }
}

/// Receives ciphertext into the session's room, without processing it. 0: the stream ended.
pub(super) fn poll_receive<S: AsyncRead + Unpin>(
    stream: &mut S,
    session: &mut Session,
    cx: &mut Context<'_>,
) -> Poll<Result<usize, TlsError>> {
    let room = session.room();
    if room.is_empty() {
        let what = "a message is longer than TLS allows";
        return Poll::Ready(Err(TlsError::Protocol(what.to_owned())));
    }
    let mut into = ReadBuf::new(room);
    ready!(Pin::new(stream).poll_read(cx, &mut into))?;
    Poll::Ready(Ok(into.filled().len()))
}

/// Sends all ciphertext that waits in the session.
pub(super) fn poll_send_all<S: AsyncWrite + Unpin>(
    stream: &mut S,
    session: &mut Session,
    cx: &mut Context<'_>,
) -> Poll<Result<(), TlsError>> {
    let mut sent = false;
    while !session.outgoing.is_empty() {
        let count = ready!(Pin::new(&mut *stream).poll_write(cx, session.outgoing.waiting()))?;
        if count == 0 {
            return Poll::Ready(Err(io::Error::from(io::ErrorKind::WriteZero).into()));
        }
        session.outgoing.take(count);
        sent = true;
    }
    if sent {
        ready!(Pin::new(stream).poll_flush(cx))?;
    }
    Poll::Ready(Ok(()))
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Secured<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let bytes = ready!(self.poll_incoming(cx))?;
        let count = bytes.len().min(into.remaining());
        into.put_slice(&bytes[..count]);
        self.take(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Secured<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_send(cx))?;
        let count = bytes.len().min(CHUNK_BYTES);
        self.put(&bytes[..count])?;
        // Taken over: what does not go out now goes before the next write, or with a flush.
        if let Poll::Ready(Err(error)) = self.poll_send(cx) {
            return Poll::Ready(Err(error.into()));
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send(cx).map_err(io::Error::from)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_farewell(cx).map_err(io::Error::from)
    }
}

//! A connected stream socket of any family, for the time it is negotiated on.
//!
//! Refuses to know who is at the other end: unix, TCP, vsock and inherited sockets are the same
//! here, and leave as the descriptor that the shard takes over.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::{RecvFlags, SendFlags, Shutdown};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection, registered with the runtime it was made in.
///
/// Each call says that it must not wait: whoever passed the socket shares its flags, and could let
/// our thread wait by clearing one.
#[derive(Debug)]
pub(super) struct Stream(AsyncFd<OwnedFd>);

impl Stream {
    /// Takes a connected stream socket over.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self(watched(socket)?))
    }

    /// The same socket once more, for when this one is gone.
    pub(super) fn twin(&self) -> io::Result<OwnedFd> {
        self.0.get_ref().try_clone()
    }

    /// The socket, for whoever goes on with it.
    pub(super) fn into_fd(self) -> OwnedFd {
        self.0.into_inner()
    }
}

/// Has the runtime watch a socket.
pub(super) fn watched<F: AsFd + AsRawFd>(socket: F) -> io::Result<AsyncFd<F>> {
    rustix::io::ioctl_fionbio(&socket, true)?;
    // Its successor is the same behind an unsafe promise: that the descriptor stays the same one.
    // Owned and borrowed descriptors keep it.
    #[expect(deprecated)]
    AsyncFd::new(socket)
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            let room = into.initialize_unfilled();
            let tried = ready.try_io(|fd| {
                let received = rustix::net::recv(fd.as_fd(), &mut *room, RecvFlags::DONTWAIT);
                received.map(|(_, count)| count).map_err(io::Error::from)
            });
            match tried {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result.map(|count| into.advance(count))),
                Err(_not_ready) => {}
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(cx))?;
            let tried = ready.try_io(|fd| {
                rustix::net::send(fd.as_fd(), bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
                    .map_err(io::Error::from)
            });
            match tried {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_not_ready) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(match rustix::net::shutdown(self.0.get_ref(), Shutdown::Write) {
            // A peer that is gone already needs to be told nothing.
            Err(rustix::io::Errno::NOTCONN) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        })
    }
}

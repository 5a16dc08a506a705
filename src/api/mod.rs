//! The management socket: HTTP/1.1 on a unix socket, and behind its routes the dialects of the
//! verbs.
//!
//! Carries bytes between peers, dialects and [`Control`]; knows no verb itself. Refuses to wait for
//! a peer without a limit, to hold more of a request than a limit, and to run more calls at once
//! than one: who sends half a request, or nothing, loses the connection and nobody else's.

pub mod client;
mod lines;
mod routes;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::control::Control;
use lines::{Held, Line, Lines, Phase};
use routes::{House, Peer};

/// Longest head of a request.
const HEAD_MAX_BYTES: usize = 32 << 10;
/// How long a listener rests that has no descriptor left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a peer that is asking nothing is waited for at the end.
const FAREWELL: Duration = Duration::from_secs(2);

/// What the socket allows.
#[derive(Clone, Debug)]
pub struct ApiLimits {
    /// Bytes of the longest body of a request.
    pub body_bytes: usize,
    /// How long a connection may take, from its beginning or its last answer, until the head of
    /// the next request is there. The reading of that answer is part of it.
    pub header_time: Duration,
    /// How long a body may take after its head.
    pub body_time: Duration,
    /// Connections at once. Of more, the one that has been silent longest makes room.
    pub connections: usize,
    /// Calls that run at once; more wait.
    pub calls: usize,
    /// For so long a call waits for others to end. Whoever waits holds a connection, and the last
    /// of those must not be gone while storage hangs.
    pub turn_time: Duration,
}

impl Default for ApiLimits {
    fn default() -> Self {
        Self {
            body_bytes: 256 << 10,
            header_time: Duration::from_secs(30),
            body_time: Duration::from_secs(10),
            connections: 128,
            calls: 16,
            turn_time: Duration::from_secs(10),
        }
    }
}

/// Serves the management socket until `until` is there; then calls under way end, and nothing of
/// the socket is left running.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve(
    listener: UnixListener,
    control: Arc<Control>,
    limits: ApiLimits,
    until: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let lines = Arc::new(Lines::new(limits.connections));
    let house = Arc::new(House::new(control, limits));
    let (ending, ended) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let mut until = std::pin::pin!(until);
    let result = loop {
        tokio::select! {
            biased;
            () = &mut until => break Ok(()),
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            accepted = next(&listener, &lines) => match accepted {
                Ok((stream, line)) => {
                    let (house, ended) = (Arc::clone(&house), ended.clone());
                    tasks.spawn(async move { converse(stream, &line, house, ended).await });
                }
                Err(error) => break Err(error),
            },
        }
    };
    drop(listener);
    ending.send_replace(true);
    while tasks.join_next().await.is_some() {}
    house.quiet().await;
    result
}

/// The next connection, once there is room for it.
async fn next(listener: &UnixListener, lines: &Arc<Lines>) -> io::Result<(UnixStream, Held)> {
    loop {
        lines.room().await;
        match listener.accept().await {
            Ok((stream, _)) => return Ok((stream, lines.add())),
            Err(error) if is_passing(&error) => {
                tracing::warn!(%error, "the management socket cannot take a connection now");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::MFILE
                | Errno::NFILE
                | Errno::NOBUFS
                | Errno::NOMEM
                | Errno::CONNABORTED
                | Errno::INTR
        )
    )
}

/// A connection, from its first request to its end.
async fn converse(
    stream: UnixStream,
    line: &Line,
    house: Arc<House>,
    mut ended: watch::Receiver<bool>,
) {
    let header_time = house.limits().header_time;
    let peer = Peer::of(&stream);
    let router = TowerToHyperService::new(routes::router(house));
    let service = service_fn(|mut request: hyper::Request<hyper::body::Incoming>| {
        line.enter(Phase::Asking);
        request.extensions_mut().insert(peer);
        let answer = router.call(request);
        async {
            let answer = answer.await;
            line.enter(Phase::silent());
            answer
        }
    });
    let mut builder = http1::Builder::new();
    // A peer may close its own direction and still read the answer, as `nc -N` does.
    builder.max_buf_size(HEAD_MAX_BYTES).header_read_timeout(None).half_close(true);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let mut phases = line.phases();
    let mut end = None;
    loop {
        let phase = *phases.borrow_and_update();
        let patience = match (phase, end) {
            (Phase::Asking, _) => None,
            (Phase::Silent(since), None) => Some(since + header_time),
            (Phase::Silent(since), Some(end)) => Some((since + header_time).min(end)),
        };
        let over = tokio::time::sleep_until(patience.unwrap_or_else(Instant::now));
        tokio::select! {
            _ = connection.as_mut() => break,
            _ = phases.changed() => {}
            // Who began to ask at that very moment is answered.
            () = over, if patience.is_some() => if line.is_silent() { break },
            () = line.is_cut() => if line.is_silent() { break },
            _ = ended.wait_for(|ended| *ended), if end.is_none() => {
                end = Some(Instant::now() + FAREWELL);
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

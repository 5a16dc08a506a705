//! From a connection to a session: accepting, negotiating with a deadline, TLS, and the hand-over
//! to the shard.
//!
//! Refuses to touch data in the clear: that is the shard's. A connection under TLS stays here as a
//! pump between its socket and the shard's end of a pair.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nbd::TlsOffer;
use nbd::handshake::{Handshake, Progress, Session};
use nix::sys::socket::VsockAddr;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, accept_with, sockopt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, JoinSet};

use super::homes::Stay;
use super::limits::Limits;
use super::listen::{Listener, Purpose};
use super::passed;
use super::registry::{Connection, Registry, Seat, Sight};
use super::stream::{Stream, watched};
use crate::meter::Meter;
use crate::shard::{Link, NewClient};
use crate::tls::{Ended, Secured, Tls, TlsError, bridge};
use crate::transport::nbd::{ClientSettings, NbdClient};

/// Pause after `accept` failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long what was said last may take to reach a peer under TLS after the shard closed.
const FAREWELL: Duration = Duration::from_secs(10);
/// How long a refused peer under TLS may take to hang up, and how much it may say until then.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_PIECES: usize = 64;
/// Peers at once that pass connections.
const PASSERS_MAX: usize = 16;
/// How long a TCP peer may be silent before the system asks whether it is still there. One that
/// lost its power says nothing, and would keep its slot.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// Bytes the pair between a session under TLS and the shard holds each way, as far as the system
/// allows: fewer turns of the two.
const PAIR_BYTES: usize = 1 << 20;
/// Bytes taken from a handshake's socket at once.
const PIECE_BYTES: usize = 16 << 10;

/// What every connection needs to get in.
pub(super) struct Door {
    pub(super) registry: Arc<Registry>,
    pub(super) limits: Limits,
    pub(super) tls: Option<Tls>,
    /// Slots for connections of the process.
    slots: Arc<Semaphore>,
    /// Slots for peers that pass connections: they hold none of their own.
    passers: Arc<Semaphore>,
    /// Handshakes. They outlive their listener, so that a peer hears that the server ends.
    handshakes: Mutex<JoinSet<()>>,
    /// Sessions under TLS.
    pumps: Mutex<JoinSet<()>>,
}

/// Handshakes that have begun, the oldest first.
type HalfOpen = VecDeque<(Instant, AbortHandle)>;
/// For so long a handshake keeps its slot from others although they wait.
const GIVES_WAY: Duration = Duration::from_secs(1);
/// For so long no crowd can end it: a handshake that goes on is over by then.
const LEFT_ALONE: Duration = Duration::from_millis(200);
/// How often those who wait for room look whether a handshake is over.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The slot of a connection, held by everyone who still works for it.
pub(super) type Slot = Arc<OwnedSemaphorePermit>;

impl Door {
    pub(super) fn new(registry: Arc<Registry>, limits: Limits, tls: Option<Tls>) -> Self {
        let slots = Arc::new(Semaphore::new(limits.connections));
        let passers = Arc::new(Semaphore::new(PASSERS_MAX));
        let (handshakes, pumps) = (Mutex::default(), Mutex::default());
        Self { registry, limits, tls, slots, passers, handshakes, pumps }
    }

    /// Waits for a slot: without one nothing is accepted, and the peer waits in the backlog.
    pub(super) async fn slot(&self) -> Slot {
        self.slot_for(Purpose::Speak).await
    }

    /// Who passes connections must not take the slots they are to have.
    const fn slots_for(&self, purpose: Purpose) -> &Arc<Semaphore> {
        match purpose {
            Purpose::Speak => &self.slots,
            Purpose::Pass => &self.passers,
        }
    }

    /// A slot for somebody who waits. Whoever has not even negotiated after a while gives way.
    async fn slot_or_room(&self, purpose: Purpose, half_open: &mut HalfOpen) -> Slot {
        loop {
            half_open.retain(|(_, handshake)| !handshake.is_finished());
            let Some((since, oldest)) = half_open.front() else {
                return self.slot_for(purpose).await;
            };
            let patience = GIVES_WAY.saturating_sub(since.elapsed());
            if let Ok(slot) = tokio::time::timeout(patience, self.slot_for(purpose)).await {
                return slot;
            }
            oldest.abort();
            half_open.pop_front();
        }
    }

    async fn slot_for(&self, purpose: Purpose) -> Slot {
        let slot = Arc::clone(self.slots_for(purpose)).acquire_owned().await;
        Arc::new(slot.expect("nobody closes the semaphore"))
    }

    /// Whether one more may connect.
    pub(super) fn has_room(&self) -> bool {
        self.slots.available_permits() > 0
    }

    /// Waits until nobody is connected.
    pub(super) async fn all_gone(&self) {
        let all = u32::try_from(self.limits.connections).unwrap_or(u32::MAX);
        // Every slot is free when every connection has ended.
        let every = self.slots.acquire_many(all).await;
        drop(every);
    }

    /// Whether a handshake must, may or cannot go over to TLS.
    fn offer(&self) -> TlsOffer {
        match &self.tls {
            None => TlsOffer::None,
            Some(_) if self.registry.seats().iter().any(|seat| seat.plaintext) => {
                TlsOffer::Optional
            }
            Some(_) => TlsOffer::Required,
        }
    }

    /// Carries one connection through its handshake and hands it over; under TLS, stays with it
    /// to its end. `preset` names what it gets when it asks for no name.
    pub(super) async fn welcome(&self, socket: OwnedFd, slot: Slot, preset: Option<String>) {
        let peer = peer_name(&socket);
        if let Err(error) = self.converse(socket, slot, preset.as_deref(), &peer).await {
            if is_hangup(&error) {
                tracing::debug!(peer, %error, "a connection ended before its first request");
            } else {
                // Whoever runs the server must see why somebody is not let in.
                self.registry.words.say(|| tracing::info!(peer, %error, "a client did not get in"));
            }
        }
    }

    async fn converse(
        &self,
        socket: OwnedFd,
        slot: Slot,
        preset: Option<&str>,
        peer: &str,
    ) -> io::Result<()> {
        prepare(&socket);
        let stream = Stream::new(socket)?;
        let mut sight = Sight::new(&self.registry, self.tls.is_some(), preset);
        let negotiated =
            tokio::time::timeout(self.limits.handshake_time, self.negotiate(stream, &mut sight));
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "its handshake took too long");
        let Some((session, wire)) = negotiated.await.map_err(late)?? else { return Ok(()) };
        let Some((seat, place)) = sight.chosen() else { return Ok(()) };
        let peer = match sight.peer() {
            Some(named) => format!("{peer} ({named})"),
            None => peer.to_owned(),
        };
        drop(sight);
        let stay = seat.disk.stay().await;
        let guard = Arc::new((slot, place));
        let guest = Guest { seat: &seat, peer, stay };
        match wire {
            Wire::Clear(stream) => self.hand_over(stream.into_fd(), &session, guest, guard),
            Wire::Secured(secured) => {
                let (inner, outer) = pair()?;
                self.hand_over(inner.into(), &session, guest, Arc::clone(&guard))?;
                // Its own reference, or the session would be kept for as long as the peer likes.
                drop(session);
                outer.set_nonblocking(true)?;
                let outer = tokio::net::UnixStream::from_std(outer)?;
                self.pump(async move {
                    match bridge(*secured, outer).await {
                        Ok(Ended::Closed) => {}
                        Ok(ended) => tracing::debug!(?ended, "a connection under TLS was cut"),
                        Err(TlsError::Io(error)) => {
                            tracing::debug!(%error, "a connection under TLS broke");
                        }
                        Err(error) => tracing::info!(%error, "a connection under TLS is ended"),
                    }
                    drop(guard);
                });
                Ok(())
            }
        }
    }

    /// Carries the bytes of a session under TLS; outlives its handshake and its listener.
    fn pump(&self, pump: impl Future<Output = ()> + Send + 'static) {
        let mut pumps = self.pumps.lock().unwrap_or_else(PoisonError::into_inner);
        while pumps.try_join_next().is_some() {}
        pumps.spawn(pump);
    }

    /// Runs a handshake on the runtime `crew`.
    fn begin(
        &self,
        handshake: impl Future<Output = ()> + Send + 'static,
        crew: &tokio::runtime::Handle,
    ) -> AbortHandle {
        let mut all = self.handshakes.lock().unwrap_or_else(PoisonError::into_inner);
        while all.try_join_next().is_some() {}
        all.spawn_on(handshake, crew)
    }

    /// Ends the handshakes, and waits until every session under TLS has said its last word, or
    /// took too long.
    pub(super) async fn farewell(&self) {
        self.handshakes.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        let mut pumps = {
            let mut pumps = self.pumps.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *pumps)
        };
        let all = async { while pumps.join_next().await.is_some() {} };
        if tokio::time::timeout(FAREWELL, all).await.is_err() {
            tracing::warn!("clients under TLS did not take their last replies in time");
        }
    }

    async fn negotiate(
        &self,
        stream: Stream,
        sight: &mut Sight<'_>,
    ) -> io::Result<Option<(Session, Wire)>> {
        // A client that lists asks twice of each export.
        let limits = self.limits.handshake.with_room_for(self.registry.seats().len());
        let mut handshake = Handshake::new(limits, self.offer());
        let mut stream = stream;
        match talk(&mut stream, &mut handshake, sight).await? {
            Turn::Over(None) => return Ok(None),
            Turn::Over(Some(session)) => return Ok(Some((session, Wire::Clear(stream)))),
            Turn::Tls => {}
        }
        let tls = self.tls.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let ears = stream.twin()?;
        let (mut secured, peer) = match tls.accept(stream).await {
            Ok(accepted) => accepted,
            Err(error) => {
                let _ = tokio::time::timeout(LINGER, hear_out(ears)).await;
                return Err(error.into());
            }
        };
        sight.secured(peer);
        handshake.secured();
        match talk(&mut secured, &mut handshake, sight).await? {
            Turn::Over(Some(session)) => Ok(Some((session, Wire::Secured(Box::new(secured))))),
            Turn::Over(None) | Turn::Tls => {
                // The peer hears why before the connection goes.
                secured.shutdown().await?;
                Ok(None)
            }
        }
    }

    fn hand_over(
        &self,
        socket: OwnedFd,
        session: &Session,
        guest: Guest<'_>,
        guard: Arc<(Slot, OwnedSemaphorePermit)>,
    ) -> io::Result<()> {
        let Guest { seat, peer, stay } = guest;
        let meter = Arc::new(Meter::new());
        let settings = ClientSettings {
            window: seat.extent(),
            whole: seat.window.is_none().then(|| seat.disk.size_bytes()),
            limits: self.limits.client,
            export_meter: seat.meter.of(stay.shard()),
            meter: Arc::clone(&meter),
            throttle: Arc::clone(&seat.throttle),
        };
        tracing::debug!(peer, export = seat.name, "a client connected");
        let ticket = seat.welcome(Connection {
            id: self.registry.number(),
            peer,
            shard: stay.shard(),
            since: Instant::now(),
            meter,
        });
        let mailbox = stay.mailbox().clone();
        let new = NewClient {
            disk: stay.tag(),
            export: seat.key,
            link: Link::Socket(socket),
            client: Box::new(NbdClient::new(session, settings)),
            guard: Box::new((stay, ticket, guard)),
        };
        let posted = self.registry.while_shown(seat, || mailbox.connect(new));
        match posted {
            Some(posted) => posted.map_err(io::Error::other),
            None => Err(io::Error::other("the export was removed during its handshake")),
        }
    }
}

/// Who comes in, to what, and where to.
struct Guest<'a> {
    seat: &'a Arc<Seat>,
    peer: String,
    stay: Stay,
}

/// A connection whose handshake is over.
enum Wire {
    Clear(Stream),
    Secured(Box<Secured<Stream>>),
}

/// How a stretch of a handshake ended.
enum Turn {
    /// There is a session, or none.
    Over(Option<Session>),
    /// It goes on under TLS.
    Tls,
}

/// Lets a peer go on until it hangs up. One that is refused in TLS 1.3 has begun to talk already;
/// closed at once, it would learn of a broken connection and not why.
async fn hear_out(socket: OwnedFd) -> io::Result<()> {
    let mut stream = Stream::new(socket)?;
    stream.shutdown().await?;
    let mut piece = [0; 4096];
    for _ in 0..LINGER_PIECES {
        if stream.read(&mut piece).await? == 0 {
            break;
        }
    }
    Ok(())
}

/// Feeds a handshake until it is over or changes its wire.
async fn talk(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    handshake: &mut Handshake,
    // Mutable, because a shared one could not move between threads.
    sight: &mut Sight<'_>,
) -> io::Result<Turn> {
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        stream.write_all(&handshake.take_output()).await?;
        stream.flush().await?;
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(Turn::Over(None));
        }
        let progress = handshake.receive(&buffer[..count], &*sight);
        stream.write_all(&handshake.take_output()).await?;
        stream.flush().await?;
        // Others come in between, however fast this one asks.
        tokio::task::yield_now().await;
        match progress {
            Ok(Progress::More) => {}
            Ok(Progress::Ready(session)) => return Ok(Turn::Over(Some(session))),
            Ok(Progress::StartTls) => return Ok(Turn::Tls),
            Ok(Progress::Closed) => return Ok(Turn::Over(None)),
            Err(violation) => {
                let words = &sight.registry().words;
                words.say(|| tracing::info!(%violation, "dropping a client in its handshake"));
                return Ok(Turn::Over(None));
            }
        }
    }
}

/// Accepts for as long as it is polled. Handshakes run on the runtime `crew`, and may outlive this.
pub(super) async fn accept_all(
    listener: Listener,
    door: Arc<Door>,
    crew: tokio::runtime::Handle,
) -> io::Result<()> {
    let (purpose, most_half_open) = (listener.purpose, door.limits.half_open);
    let socket = watched(listener.socket.as_fd())?;
    let mut half_open = VecDeque::new();
    loop {
        let mut ready = socket.readable().await?;
        // Only when somebody is there: a listener that holds a slot while nobody comes would keep
        // it from the others.
        if !is_awaited(&listener.socket) {
            // Whoever came was accepted already.
            ready.clear_ready();
            continue;
        }
        room_among(&mut half_open, most_half_open).await;
        let slot = door.slot_or_room(purpose, &mut half_open).await;
        let accepted = ready.try_io(|inner| {
            accept_with(inner.get_ref().as_fd(), SocketFlags::CLOEXEC).map_err(io::Error::from)
        });
        // Another process with the same listener may have been faster.
        let Ok(accepted) = accepted else { continue };
        let theirs = Arc::clone(&door);
        match (accepted, purpose) {
            (Ok(socket), Purpose::Speak) => {
                let task = async move { theirs.welcome(socket, slot, None).await };
                half_open.push_back((Instant::now(), door.begin(task, &crew)));
            }
            (Ok(socket), Purpose::Pass) => {
                let task = async move { passed::receive_all(theirs, socket, slot).await };
                door.begin(task, &crew);
            }
            (Err(error), _) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Waits until one more handshake may begin. Peers that say nothing must not keep out those who do:
/// the one that has had the most time makes room. But a crowd that comes at once must not end
/// handshakes that are going on, so it waits in the backlog until that one had enough of it.
async fn room_among(half_open: &mut HalfOpen, most: usize) {
    loop {
        half_open.retain(|(_, handshake)| !handshake.is_finished());
        let Some((since, oldest)) = half_open.front().filter(|_| half_open.len() >= most) else {
            return;
        };
        let patience = LEFT_ALONE.saturating_sub(since.elapsed());
        if patience.is_zero() {
            oldest.abort();
            half_open.pop_front();
            return;
        }
        tokio::time::sleep(patience.min(LOOK_AGAIN)).await;
    }
}

/// Whether somebody waits to be accepted.
fn is_awaited(listener: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(listener, PollFlags::IN)];
    // What cannot be told is found out by accepting.
    poll(&mut polled, Some(&Timespec::default())).map_or(true, |count| count > 0)
}

/// The two ends between a session under TLS and the shard.
fn pair() -> io::Result<(UnixStream, UnixStream)> {
    let (inner, outer) = UnixStream::pair()?;
    for end in [&inner, &outer] {
        // The system may grant less.
        sockopt::set_socket_send_buffer_size(end, PAIR_BYTES)?;
    }
    Ok((inner, outer))
}

/// Small replies leave at once, and a peer that is no more is noticed. Means nothing to a socket
/// that is not TCP.
fn prepare(socket: &OwnedFd) {
    let inet = [AddressFamily::INET, AddressFamily::INET6];
    if !sockopt::socket_domain(socket).is_ok_and(|family| inet.contains(&family)) {
        return;
    }
    let prepared = sockopt::set_tcp_nodelay(socket, true)
        .and_then(|()| sockopt::set_socket_keepalive(socket, true))
        .and_then(|()| sockopt::set_tcp_keepidle(socket, KEEPALIVE));
    if let Err(error) = prepared {
        tracing::debug!(%error, "a TCP connection could not be prepared");
    }
}

/// Whether it is what a peer that leaves looks like.
fn is_hangup(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof
    )
}

/// Who is at the other end, as far as the socket tells.
fn peer_name(socket: &OwnedFd) -> String {
    let address = rustix::net::getpeername(socket).ok().flatten();
    if let Some(address) = address.and_then(|any| std::net::SocketAddr::try_from(any).ok()) {
        return address.to_string();
    }
    if let Ok(vsock) = nix::sys::socket::getpeername::<VsockAddr>(socket.as_raw_fd()) {
        return format!("vsock {}:{}", vsock.cid(), vsock.port());
    }
    match sockopt::socket_peercred(socket) {
        Ok(credentials) => {
            format!("pid {} uid {}", credentials.pid.as_raw_nonzero(), credentials.uid.as_raw())
        }
        Err(_) => "unknown".to_owned(),
    }
}

//! One TLS session over byte buffers: ciphertext in, plaintext out, and back.
//!
//! It never touches a socket. What the peer sent is fed into a fixed buffer and turned into
//! plaintext at once; what is to be sent waits as ciphertext. Both are bounded: nothing is fed
//! while plaintext waits, and nothing is sealed while ciphertext waits.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};

use super::error::TlsError;

/// What a side may send at once. 8 full records, so that a system call carries many of them.
pub(super) const CHUNK_BYTES: usize = 128 << 10;
/// While hands are shaken: a record and the largest handshake message that rustls accepts.
const HANDSHAKE_BYTES: usize = 96 << 10;
/// What a record adds at most to the bytes in it (TLS 1.2 with explicit nonce and tag), with room.
const RECORD_EXTRA_BYTES: usize = 64;
const RECORD_BYTES: usize = 16 << 10;
/// What may wait to be sent without being data: alerts, key updates, a handshake's flights.
const MAX_WAITING_BYTES: usize = 256 << 10;

/// Bytes in a row, taken from the front and added at the back.
#[derive(Default)]
pub(super) struct Bytes {
    bytes: Vec<u8>,
    start: usize,
}

impl Bytes {
    pub(super) fn waiting(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    pub(super) fn take(&mut self, count: usize) {
        self.start = (self.start + count).min(self.bytes.len());
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
        }
    }

    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends what `fill` writes into `room` bytes; it says how many those are.
    fn add_with<E>(
        &mut self,
        room: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<(), E> {
        let end = self.bytes.len();
        self.bytes.resize(end + room, 0);
        let filled = fill(&mut self.bytes[end..]);
        self.bytes.truncate(end + filled.as_ref().map_or(0, |count| *count).min(room));
        filled.map(|_| ())
    }
}

/// The server's side of one connection.
pub(super) struct Session {
    connection: UnbufferedServerConnection,
    /// Ciphertext that is not processed yet: `received[start..end]`.
    received: Vec<u8>,
    start: usize,
    end: usize,
    /// Plaintext for whoever reads.
    pub(super) plain: Bytes,
    /// Ciphertext for the peer.
    pub(super) outgoing: Bytes,
    peer_closed: bool,
    said_goodbye: bool,
    /// There was an error. The connection must not be asked again: it would find it twice.
    broken: bool,
}

impl Session {
    pub(super) fn new(config: Arc<ServerConfig>) -> Result<Self, TlsError> {
        Ok(Self {
            connection: UnbufferedServerConnection::new(config).map_err(TlsError::from_rustls)?,
            received: vec![0; HANDSHAKE_BYTES],
            start: 0,
            end: 0,
            plain: Bytes::default(),
            outgoing: Bytes::default(),
            peer_closed: false,
            said_goodbye: false,
            broken: false,
        })
    }

    /// Makes room for whole chunks; a handshake needs less.
    pub(super) fn widen(&mut self) {
        if self.received.len() < CHUNK_BYTES {
            self.received.resize(CHUNK_BYTES, 0);
        }
    }

    pub(super) fn is_shaking_hands(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Whether the peer said that it sends nothing more.
    pub(super) fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    pub(super) fn peer_certificate(&self) -> Option<&CertificateDer<'static>> {
        self.connection.peer_certificates()?.first()
    }

    /// The names of protocol and cipher suite, for the log.
    pub(super) fn terms(&self) -> (&'static str, &'static str) {
        let version = self.connection.protocol_version().and_then(|version| version.as_str());
        let suite = self.connection.negotiated_cipher_suite();
        (version.unwrap_or("?"), suite.and_then(|suite| suite.suite().as_str()).unwrap_or("?"))
    }

    /// Where ciphertext may be received into; empty only if the peer sent a message that no
    /// honest peer sends.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.start > 0 {
            // What is left is less than a record, or the pieces of one handshake message.
            self.received.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.received[self.end..]
    }

    /// Takes over `count` bytes that were received into `room`, and processes them.
    pub(super) fn fed(&mut self, count: usize) -> Result<(), TlsError> {
        self.end = (self.end + count).min(self.received.len());
        self.process()
    }

    /// Processes all complete records. After an error, `outgoing` ends with the alert for it.
    pub(super) fn process(&mut self) -> Result<(), TlsError> {
        self.step(|_, _| Ok(()))
    }

    /// Encrypts `bytes` (at most a chunk) behind what waits to be sent.
    ///
    /// # Errors
    /// While hands are shaken, after the goodbye, and when the keys are used up.
    pub(super) fn seal(&mut self, bytes: &[u8]) -> Result<(), TlsError> {
        let room = bytes.len() + (bytes.len() / RECORD_BYTES + 2) * RECORD_EXTRA_BYTES;
        self.write(room, |traffic, into| traffic.encrypt(bytes, into))
    }

    /// Tells the peer that nothing more will come.
    pub(super) fn say_goodbye(&mut self) -> Result<(), TlsError> {
        if self.said_goodbye {
            return Ok(());
        }
        self.said_goodbye = true;
        self.write(2 * RECORD_EXTRA_BYTES, |traffic, into| traffic.queue_close_notify(into))
    }

    fn write(
        &mut self,
        room: usize,
        fill: impl Fn(&mut Traffic<'_>, &mut [u8]) -> Result<usize, EncryptError>,
    ) -> Result<(), TlsError> {
        let mut written = false;
        self.step(|traffic, outgoing| {
            let mut first = outgoing.add_with(room, |into| fill(traffic, into));
            // Not expected: a key update was queued, say. It then says what it needs.
            if let Err(EncryptError::InsufficientSize(needs)) = &first {
                first = outgoing.add_with(needs.required_size, |into| fill(traffic, into));
            }
            written = true;
            first.map_err(|_| TlsError::KeysUsedUp)
        })?;
        if written { Ok(()) } else { Err(TlsError::NotOpen) }
    }

    fn step(
        &mut self,
        idle: impl FnMut(&mut Traffic<'_>, &mut Bytes) -> Result<(), TlsError>,
    ) -> Result<(), TlsError> {
        if self.broken {
            return Err(TlsError::NotOpen);
        }
        let done = self.run(idle);
        if done.is_err() {
            self.broken = true;
            self.fetch_alerts();
        }
        done
    }

    /// After an error: moves the alert for it, and nothing else, to what waits to be sent.
    fn fetch_alerts(&mut self) {
        // While something waits inside, the connection gives that and looks at no input.
        while self.connection.wants_write() {
            let incoming = &mut self.received[self.start..self.end];
            let UnbufferedStatus { discard, state } = self.connection.process_tls_records(incoming);
            let Ok(ConnectionState::EncodeTlsData(mut data)) = state else { return };
            if encode(&mut data, &mut self.outgoing).is_err() {
                return;
            }
            self.start = (self.start + discard).min(self.end);
        }
    }

    /// Runs the connection until it wants bytes or has nothing to do, then lets `idle` write.
    fn run(
        &mut self,
        mut idle: impl FnMut(&mut Traffic<'_>, &mut Bytes) -> Result<(), TlsError>,
    ) -> Result<(), TlsError> {
        loop {
            let incoming = &mut self.received[self.start..self.end];
            let UnbufferedStatus { mut discard, state } =
                self.connection.process_tls_records(incoming);
            let go_on = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(TlsError::from_rustls)?;
                        discard += record.discard;
                        self.plain.add(record.payload);
                    }
                    Ok(true)
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(&mut data, &mut self.outgoing).map(|()| true)
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    // Whoever owns this session sends `outgoing` in order.
                    data.done();
                    Ok(true)
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.peer_closed = true;
                    Ok(true)
                }
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    idle(&mut traffic, &mut self.outgoing).map(|()| false)
                }
                // Early data is never offered.
                Ok(_) => Ok(false),
                Err(error) => Err(TlsError::from_rustls(error)),
            };
            self.start = (self.start + discard).min(self.end);
            if !go_on? {
                return Ok(());
            }
        }
    }
}

/// Moves an alert, a key update or a part of a handshake to what waits to be sent.
fn encode(data: &mut Record<'_>, outgoing: &mut Bytes) -> Result<(), TlsError> {
    // With no room it says how much it needs.
    let Err(EncodeError::InsufficientSize(needs)) = data.encode(&mut []) else { return Ok(()) };
    if outgoing.waiting().len() + needs.required_size > MAX_WAITING_BYTES {
        return Err(TlsError::Flood);
    }
    outgoing.add_with(needs.required_size, |into| data.encode(into)).map_err(|_| TlsError::Flood)
}

type Record<'c> = rustls::unbuffered::EncodeTlsData<'c, rustls::server::ServerConnectionData>;
type Traffic<'c> = rustls::unbuffered::WriteTraffic<'c, rustls::server::ServerConnectionData>;

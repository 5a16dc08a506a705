//! Pre-shared keys instead of certificates, by way of OpenSSL: rustls has no such mode.
//!
//! The file is the one that GnuTLS' `psktool` writes and QEMU's `tls-creds-psk` reads: lines of
//! `user:hexkey`. A user that is not in it is dealt with as one whose key is wrong, down to the
//! alert, so that nobody can ask for names. Only key exchanges with forward secrecy are offered.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use openssl::error::ErrorStack;
use openssl::ex_data::Index;
use openssl::rand::rand_bytes;
use openssl::ssl::{
    ErrorCode, Ssl, SslContext, SslContextBuilder, SslMethod, SslOptions, SslSessionCacheMode,
    SslVersion,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_openssl::SslStream;

use super::directory::{LoadError, Notice, contents, warn_if_exposed};
use super::error::TlsError;
use super::peer::Peer;
use super::secured::Secured;
use super::session::CHUNK_BYTES;

/// TLS 1.2 with elliptic curves and keys; TLS 1.3 needs no list.
const SUITES: &str = "ECDHE-PSK-CHACHA20-POLY1305:ECDHE-PSK-AES128-CBC-SHA256:\
                      ECDHE-PSK-AES256-CBC-SHA384";
/// The shortest key taken: 128 bits. `psktool` makes 256.
const MIN_KEY_BYTES: usize = 16;
/// OpenSSL's buffer has 256.
const MAX_KEY_BYTES: usize = 64;
/// As OpenSSL and GnuTLS bound it.
const MAX_USER_BYTES: usize = 128;
const MAX_USERS: usize = 4096;
/// What a record may carry.
const RECORD_BYTES: usize = 16 << 10;

/// Accepts clients that know one of the keys.
#[derive(Clone)]
pub(super) struct Acceptor {
    context: SslContext,
    user: Index<Ssl, Option<String>>,
}

/// A secret; never shown.
struct Key(Vec<u8>);

impl Acceptor {
    /// Reads a file of keys, or the `keys.psk` of a directory.
    pub(super) fn read(path: &Path) -> Result<(Self, Vec<Notice>), LoadError> {
        let path = if path.is_dir() { path.join("keys.psk") } else { path.to_owned() };
        let text = contents(&path, "it is the file of users and keys that `psktool` writes")?;
        let mut notices = Vec::new();
        warn_if_exposed(&path, &mut notices);
        let keys = parse(&path, &text)?;
        let acceptor = Self::new(keys).map_err(|error| LoadError::Library(error.to_string()))?;
        Ok((acceptor, notices))
    }

    fn new(keys: HashMap<String, Key>) -> Result<Self, ErrorStack> {
        let user: Index<Ssl, Option<String>> = Ssl::new_ex_index()?;
        let mut context = SslContextBuilder::new(SslMethod::tls_server())?;
        context.set_min_proto_version(Some(SslVersion::TLS1_2))?;
        context.set_cipher_list(SUITES)?;
        // A resumed session would not ask for the key, which may be withdrawn meanwhile.
        context.set_session_cache_mode(SslSessionCacheMode::OFF);
        context.set_options(
            SslOptions::NO_TICKET | SslOptions::NO_RENEGOTIATION | SslOptions::NO_COMPRESSION,
        );
        context.set_num_tickets(0)?;
        context.set_read_ahead(true);
        context.set_psk_server_callback(move |ssl, identity, into| {
            let name = identity.and_then(|name| std::str::from_utf8(name).ok());
            let known = name.and_then(|name| keys.get_key_value(name));
            ssl.set_ex_data(user, known.map(|(name, _)| name.clone()));
            // A stranger gets a key that nobody knows, and fails as one with a wrong key does.
            let mut stranger = [0; 32];
            rand_bytes(&mut stranger)?;
            let key = known.map_or(&stranger[..], |(_, key)| &key.0);
            let Some(room) = into.get_mut(..key.len()) else { return Ok(0) };
            room.copy_from_slice(key);
            Ok(key.len())
        });
        Ok(Self { context: context.build(), user })
    }

    pub(super) async fn accept<S>(&self, stream: S) -> Result<(Secured<S>, Peer), TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let broken = |error: ErrorStack| TlsError::Protocol(error.to_string());
        let ssl = Ssl::new(&self.context).map_err(broken)?;
        let mut stream = SslStream::new(ssl, stream).map_err(broken)?;
        Pin::new(&mut stream).accept().await.map_err(|error| of_handshake(&error))?;
        // Without a user there was no key either, though OpenSSL would not come this far then.
        let user = stream.ssl().ex_data(self.user).cloned().flatten().ok_or(TlsError::WrongKey)?;
        let peer = Peer::Key(user);
        tracing::debug!(%peer, version = stream.ssl().version_str(), "TLS is up");
        Ok((Secured::with_keys(PskStream::new(stream)), peer))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }
}

fn parse(path: &Path, text: &[u8]) -> Result<HashMap<String, Key>, LoadError> {
    let mut keys = HashMap::new();
    for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        let fail = |why| LoadError::Line { path: path.to_owned(), line: index + 1, why };
        let (user, key) = parse_line(line).map_err(fail)?;
        if keys.len() == MAX_USERS {
            return Err(fail("there are more than 4096 users"));
        }
        if keys.contains_key(&user) {
            return Err(LoadError::Twice { path: path.to_owned(), line: index + 1, user });
        }
        keys.insert(user, key);
    }
    if keys.is_empty() {
        let why = "there is no user in it; `psktool -u USER -p FILE` makes one";
        return Err(LoadError::Line { path: path.to_owned(), line: 1, why });
    }
    Ok(keys)
}

fn parse_line(line: &[u8]) -> Result<(String, Key), &'static str> {
    let line = std::str::from_utf8(line).map_err(|_| "it is not UTF-8")?;
    let (user, key) = line.rsplit_once(':').ok_or("it is not USER:HEXKEY")?;
    // GnuTLS writes a name that is no plain text in hexadecimal digits behind a #.
    let user = match user.strip_prefix('#') {
        Some(digits) => unhex(digits)
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or("behind # stands a user in hexadecimal digits; comments are not possible")?,
        None => user.to_owned(),
    };
    if user.is_empty() {
        return Err("the user before the colon is empty");
    }
    if user.len() > MAX_USER_BYTES {
        return Err("the user is longer than 128 bytes");
    }
    if user.contains(char::is_control) {
        return Err("the user has a control character");
    }
    let key = unhex(key).ok_or("the key behind the colon is not hexadecimal digits in pairs")?;
    if key.len() < MIN_KEY_BYTES {
        return Err("the key is shorter than 16 bytes (32 digits), and could be guessed");
    }
    if key.len() > MAX_KEY_BYTES {
        return Err("the key is longer than 64 bytes (128 digits)");
    }
    Ok((user, Key(key)))
}

fn unhex(digits: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pairs = digits.as_bytes().chunks(2);
    pairs
        .map(|pair| match pair {
            [high, low] => Some((digit(*high)? << 4 | digit(*low)?) as u8),
            _ => None,
        })
        .collect()
}

/// The stream and its buffers, with the steps that `Secured` is made of.
pub(super) struct PskStream<S> {
    stream: SslStream<S>,
    plain: Vec<u8>,
    plain_start: usize,
    plain_end: usize,
    outgoing: Vec<u8>,
    sent: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> PskStream<S> {
    fn new(stream: SslStream<S>) -> Self {
        Self {
            stream,
            plain: vec![0; CHUNK_BYTES],
            plain_start: 0,
            plain_end: 0,
            outgoing: Vec::new(),
            sent: 0,
        }
    }

    pub(super) fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<Result<&[u8], TlsError>> {
        if self.plain_start == self.plain_end {
            (self.plain_start, self.plain_end) = (0, 0);
            while self.plain_end + RECORD_BYTES <= self.plain.len() {
                let mut into = ReadBuf::new(&mut self.plain[self.plain_end..]);
                match Pin::new(&mut self.stream).poll_read(cx, &mut into) {
                    Poll::Ready(Ok(())) if !into.filled().is_empty() => {
                        self.plain_end += into.filled().len();
                    }
                    // What was read comes first; the next call meets this again.
                    _ if self.plain_end > 0 => break,
                    // A farewell; OpenSSL 3 reports an end without one as an error.
                    Poll::Ready(Ok(())) => break,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(of_stream(error))),
                    Poll::Pending => return Poll::Pending,
                }
            }
        }
        Poll::Ready(Ok(&self.plain[self.plain_start..self.plain_end]))
    }

    pub(super) fn take(&mut self, count: usize) {
        self.plain_start = (self.plain_start + count).min(self.plain_end);
    }

    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TlsError>> {
        while self.sent < self.outgoing.len() {
            let bytes = &self.outgoing[self.sent..];
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes));
            match count.map_err(of_stream)? {
                0 => return Poll::Ready(Err(io::Error::from(io::ErrorKind::WriteZero).into())),
                count => self.sent += count,
            }
        }
        self.outgoing.clear();
        self.sent = 0;
        Pin::new(&mut self.stream).poll_flush(cx).map_err(of_stream)
    }

    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<(), TlsError> {
        self.outgoing.extend_from_slice(bytes);
        Ok(())
    }

    pub(super) fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TlsError>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx).map_err(of_stream)
    }
}

/// OpenSSL's numbers for what went wrong (`SSL_R_...` of `sslerr.h`). Alerts have 1000 added.
mod reason {
    /// Unsupported protocol; version too low.
    pub(super) const TOO_OLD: [i32; 2] = [258, 396];
    /// A request of HTTP (by proxy or not); wrong version number; bad record type; unexpected
    /// record; packet too long.
    pub(super) const NOT_TLS: [i32; 6] = [155, 156, 267, 443, 245, 198];
    /// Binder does not verify; bad record; digest check failed; identity not found.
    pub(super) const WRONG_KEY: [i32; 4] = [253, 281, 149, 223];
    /// No suitable signature algorithm, cipher or key share: no certificate to fall back to.
    pub(super) const NO_KEY: [i32; 3] = [118, 193, 101];
    pub(super) const CUT_OFF: i32 = 294;
    pub(super) const ALERT: i32 = 1000;
}

fn of_handshake(error: &openssl::ssl::Error) -> TlsError {
    match of_ssl(error) {
        TlsError::Truncated => TlsError::CutOff,
        error => error,
    }
}

fn of_ssl(error: &openssl::ssl::Error) -> TlsError {
    if let Some(error) = error.io_error() {
        return io::Error::new(error.kind(), error.to_string()).into();
    }
    let reason = error.ssl_error().and_then(|stack| stack.errors().first());
    let reason = reason.map(openssl::error::Error::reason_code);
    match reason {
        Some(reason::CUT_OFF) => TlsError::Truncated,
        None if error.code() == ErrorCode::SYSCALL => TlsError::Truncated,
        Some(number) if reason::TOO_OLD.contains(&number) => TlsError::TooOld,
        Some(number) if reason::NOT_TLS.contains(&number) => TlsError::NotTls,
        Some(number) if reason::WRONG_KEY.contains(&number) => TlsError::WrongKey,
        Some(number) if reason::NO_KEY.contains(&number) => {
            TlsError::NothingInCommon("the client offers no pre-shared key".to_owned())
        }
        Some(number) if number >= reason::ALERT => TlsError::Alert(error.to_string()),
        _ => TlsError::Protocol(error.to_string()),
    }
}

fn of_stream(error: io::Error) -> TlsError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<openssl::ssl::Error>()) {
        Some(inner) => of_ssl(inner),
        None => error.into(),
    }
}

//! Test support: what a fuzz target feeds with arbitrary bytes, shared with the replay tests.
//!
//! Not part of the protocol. Each function takes any bytes at all and panics only if an invariant
//! of this crate is broken, so a crash here is a finding.

use crate::export::{BlockSize, Capabilities, Export, ExportEntry, Exports, Lookup};
use crate::handshake::{
    Context, ContextName, Handshake, HandshakeLimits, Progress, Session, TlsOffer,
};
use crate::transmission::{Command, PAYLOAD_MAX, Parsed, Transmission};
use crate::units::{Bytes, ContextId};
use crate::wire::HeaderFormat;

/// A small set of exports that answers the empty name and `disk`, for tests. It has `secret`, but
/// not without TLS, and `private`, but not for anybody.
#[derive(Clone, Debug)]
pub struct OneDisk(pub Export);

impl OneDisk {
    /// One MiB that can do everything.
    #[must_use]
    pub fn new() -> OneDisk {
        OneDisk(Export {
            name: "disk".to_owned(),
            description: "a disk for tests".to_owned(),
            size: Bytes(1 << 20),
            capabilities: Capabilities {
                read_only: false,
                flush: true,
                fua: true,
                trim: true,
                write_zeroes: true,
                fast_zero: true,
                cache: true,
                multi_conn: true,
                rotational: false,
                resize: true,
            },
            block_size: BlockSize::default(),
            contexts: vec![
                ContextName::Allocation,
                ContextName::AllocationDepth,
                ContextName::DirtyBitmap("leaf".to_owned()),
            ],
        })
    }
}

impl Default for OneDisk {
    fn default() -> OneDisk {
        OneDisk::new()
    }
}

impl Exports for OneDisk {
    fn list(&self) -> Vec<ExportEntry> {
        let Export { name, description, .. } = &self.0;
        vec![ExportEntry { name: name.clone(), description: description.clone() }]
    }

    fn find(&self, name: &str) -> Lookup {
        match name {
            "secret" => Lookup::TlsRequired,
            "private" => Lookup::Forbidden("not for you".to_owned()),
            _ if name.is_empty() || name == self.0.name => Lookup::Found(Box::new(self.0.clone())),
            _ => Lookup::Unknown,
        }
    }
}

/// What came of a handshake: everything said, how it ended, and how many bytes it took.
pub type Outcome = (Vec<u8>, String, usize);

/// Runs a handshake over `bytes` in pieces of `piece_len` and reports all that can be seen of it.
/// There is no TLS.
#[must_use]
pub fn converse(bytes: &[u8], piece_len: usize) -> Outcome {
    converse_in(&[bytes], piece_len, TlsOffer::None)
}

/// The same for a conversation in parts, with TLS started between them.
#[must_use]
pub fn converse_in(parts: &[&[u8]], piece_len: usize, tls: TlsOffer) -> Outcome {
    let exports = OneDisk::new();
    let limits = HandshakeLimits::default();
    let mut handshake = Handshake::new(limits, tls);
    let mut said = handshake.take_output();
    let mut taken = 0;
    let mut end = "more".to_owned();
    let pieces = parts.iter().enumerate().flat_map(|(part, bytes)| {
        let pieces = bytes.chunks(piece_len.max(1)).enumerate();
        pieces.map(move |(at, piece)| (part > 0 && at == 0, piece))
    });
    for (secured, piece) in pieces {
        if secured {
            handshake.secured();
            end = "more".to_owned();
        }
        let progress = handshake.receive(piece, &exports);
        said.extend(handshake.take_output());
        taken += piece.len();
        match progress {
            Ok(Progress::More) => continue,
            Ok(Progress::StartTls) => {
                end = "TLS".to_owned();
                continue;
            }
            Ok(Progress::Ready(mut session)) => {
                taken -= session.leftover.len();
                session.leftover.clear();
                end = format!("{session:?}");
            }
            // How much of the last piece went unread does not matter on a closed connection.
            Ok(Progress::Closed) => (end, taken) = ("closed".to_owned(), 0),
            Err(violation) => (end, taken) = (violation.to_string(), 0),
        }
        break;
    }
    assert!(said.len() <= limits.output_bytes_max, "output grew to {}", said.len());
    (said, end, taken)
}

/// Where a conversation starts TLS: the bytes up to and with the first STARTTLS that is granted.
#[must_use]
pub fn plain_part(bytes: &[u8], tls: TlsOffer) -> Option<usize> {
    let mut handshake = Handshake::new(HandshakeLimits::default(), tls);
    let exports = OneDisk::new();
    for (at, byte) in bytes.iter().enumerate() {
        match handshake.receive(std::slice::from_ref(byte), &exports) {
            Ok(Progress::More) => {}
            Ok(Progress::StartTls) => return Some(at + 1),
            _ => return None,
        }
    }
    None
}

/// Any bytes as a handshake, whatever is offered: whole, byte by byte, and in sevens must tell the
/// same story; what follows a finished handshake goes on as transmission.
pub fn handshake(bytes: &[u8]) {
    for tls in [TlsOffer::None, TlsOffer::Optional, TlsOffer::Required] {
        let whole = converse_in(&[bytes], usize::MAX, tls);
        let finished = whole.1.starts_with("Session");
        assert!(tls != TlsOffer::Required || !finished, "a session without the TLS it requires");
        for piece_len in [1, 7] {
            let pieces = converse_in(&[bytes], piece_len, tls);
            assert_eq!(pieces, whole, "in pieces of {piece_len}");
        }
        if let Some(plain_len) = plain_part(bytes, tls) {
            upgrade(bytes, plain_len, tls);
        }
    }
    let mut again = Handshake::new(HandshakeLimits::default(), TlsOffer::None);
    if let Ok(Progress::Ready(session)) = again.receive(bytes, &OneDisk::new()) {
        stream(Transmission::new(&session), &session, &session.leftover);
    }
}

/// A conversation that starts TLS where it may goes on as if its plain part had ended with the
/// client's flags.
fn upgrade(bytes: &[u8], plain_len: usize, tls: TlsOffer) {
    let (plain, rest) = bytes.split_at(plain_len);
    let whole = converse_in(&[plain, rest], usize::MAX, tls);
    for piece_len in [1, 7] {
        let pieces = converse_in(&[plain, rest], piece_len, tls);
        assert_eq!(pieces, whole, "under TLS in pieces of {piece_len}");
    }
    if whole.1.starts_with("Session") {
        let fresh = [plain.get(..4).unwrap_or_default(), rest].concat();
        assert_eq!(converse(&fresh, usize::MAX).1, whole.1, "something crossed STARTTLS");
    }
}

/// Any bytes as the stream of a session with simple replies, with structured ones and with
/// extended headers.
pub fn transmission(bytes: &[u8]) {
    let kinds = [
        (false, HeaderFormat::Compact),
        (true, HeaderFormat::Compact),
        (true, HeaderFormat::Extended),
    ];
    for (structured, headers) in kinds {
        let session = session(structured, headers);
        stream(Transmission::new(&session), &session, bytes);
    }
}

/// What an extended session makes of `bytes` that arrive in two parts, the first `cut` long.
#[must_use]
pub fn requests(bytes: &[u8], cut: usize) -> Vec<Parsed> {
    let gate = Transmission::new(&session(true, HeaderFormat::Extended));
    let (mut arrived, mut at, mut found) = (cut.min(bytes.len()), 0_usize, Vec::new());
    loop {
        let parsed = gate.parse(bytes.get(at..arrived).unwrap_or_default());
        let (consumed, payload) = match &parsed {
            Parsed::Incomplete if arrived < bytes.len() => {
                arrived = bytes.len();
                continue;
            }
            Parsed::Incomplete => return found,
            Parsed::Disconnect | Parsed::Violation(_) => {
                found.push(parsed);
                return found;
            }
            Parsed::Refused { consumed, payload, .. } => (*consumed, u64::from(*payload)),
            Parsed::Request { request, consumed } => (*consumed, request.payload().0),
        };
        let skip = usize::try_from(payload).unwrap_or(usize::MAX).saturating_add(consumed);
        at = at.saturating_add(skip);
        found.push(parsed);
    }
}

fn session(structured: bool, headers: HeaderFormat) -> Session {
    let export = OneDisk::new().0;
    let selected = export.contexts.iter().filter(|_| structured).cloned();
    let contexts = (1..).map(ContextId).zip(selected).map(|(id, name)| Context { id, name });
    let contexts = contexts.collect();
    Session { export, structured, contexts, no_zeroes: true, headers, leftover: Vec::new() }
}

/// Walks a stream as a server would and checks what the gate promises about each request.
fn stream(mut gate: Transmission, session: &Session, bytes: &[u8]) {
    let mut rest = bytes;
    let mut size = session.export.size;
    loop {
        let (consumed, payload) = match gate.parse(rest) {
            Parsed::Incomplete => {
                assert!(rest.len() < gate.question_len(), "a whole question is never incomplete");
                return;
            }
            Parsed::Disconnect | Parsed::Violation(_) => return,
            Parsed::Refused { consumed, payload, .. } => (consumed, u64::from(payload)),
            Parsed::Request { request, consumed } => {
                let end = request.offset.0.checked_add(request.length.0);
                let inside = end.is_some_and(|end| end <= size.0);
                assert!(inside, "{request:?} of {size}");
                if let Command::Resize { size: wanted } = request.command {
                    // From here on the disk has that size, as far as the gate can know.
                    assert!(request.length == Bytes(0) && wanted.0 > 0, "{request:?}");
                    gate.set_size(wanted);
                    size = wanted;
                }
                let payload = request.payload().0;
                assert!(payload <= PAYLOAD_MAX.into(), "{request:?}");
                if let Command::BlockStatus { contexts, .. } = request.command {
                    let known = |id: ContextId| id.0 as usize <= session.contexts.len();
                    assert!(contexts.last().is_some_and(known), "{request:?}");
                }
                (consumed, payload)
            }
        };
        assert!(consumed >= gate.header_len(), "a judged header is taken off whole");
        assert!(consumed <= gate.question_len().min(rest.len()), "nothing else is");
        let skip = usize::try_from(payload).unwrap_or(usize::MAX).saturating_add(consumed);
        rest = rest.get(skip..).unwrap_or_default();
    }
}

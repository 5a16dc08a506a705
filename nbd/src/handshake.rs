//! The handshake: fixed newstyle, from the greeting to the option that ends it.
//!
//! It refuses to guess: an option is answered only when all of its data is there, whatever pieces
//! the bytes came in, so every split of the input gives the same output. It holds no clock, so the
//! deadline for the whole handshake is the caller's, and it speaks no TLS: it only says when TLS
//! must begin and forgets what was before. All growth is bounded by [`HandshakeLimits`].

mod contexts;
mod limits;
mod lookup;
mod secure;

use std::borrow::Cow;
use std::fmt::Display;

use crate::export::{BlockSize, Export, Exports};
use crate::options::{self, Malformed, Wanted};
use crate::wire::{
    self, CLIENT_FLAGS_LEN, EXPORT_NAME_PADDING, Fields, HeaderFormat, OPTION_HEADER_LEN,
    OPTION_MAGIC, OPTION_REPLY_HEADER_LEN, OptionReply, STRING_MAX, handshake_flag, info, option,
    option_reply, transmission_flag,
};

pub use crate::options::{CONTEXTS_MAX, Context, ContextName};
pub use crate::violation::Violation;
pub use limits::{HandshakeLimits, LimitError};
pub use secure::TlsOffer;

/// The flags of our greeting. The protocol forbids any other bit.
const OFFERED: u16 = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;

/// The flags a client may answer with: the same bits, in 32.
const OFFERED_TO_CLIENT: u32 = OFFERED as u32;

/// Where a handshake stands after some bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// It needs more bytes.
    More,
    /// The client asked for TLS and gets it: send the output, carry out a TLS handshake as its
    /// server, and call [`Handshake::secured`]. Nothing may be received before that; if TLS fails,
    /// close.
    StartTls,
    /// It is over and transmission begins, after the output is sent.
    Ready(Session),
    /// The client said good-bye: send the output and close.
    Closed,
}

/// What the two sides agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The export the client chose.
    pub export: Export,
    /// Structured replies were asked for, or extended headers, which bring them.
    pub structured: bool,
    /// The metadata contexts selected for this very export, in the order of their ids.
    pub contexts: Vec<Context>,
    /// The padding behind EXPORT_NAME was waived.
    pub no_zeroes: bool,
    /// How request headers look.
    pub headers: HeaderFormat,
    /// Bytes that came behind the last option and already belong to transmission.
    pub leftover: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    ClientFlags,
    Header,
    Data {
        option: u32,
        length: u32,
    },
    Skip {
        option: u32,
        left: u32,
        then: Then,
    },
    /// STARTTLS was acknowledged, and TLS is not up yet.
    StartTls,
    Over,
}

/// What follows an option whose data we do not read.
#[derive(Clone, Copy, Debug)]
enum Then {
    /// An error reply, and its text.
    Refuse(u32, &'static str),
    Unsupported,
    TooBig,
    StartTls,
    Abort,
}

/// One client's handshake.
#[derive(Debug)]
pub struct Handshake {
    limits: HandshakeLimits,
    tls: TlsOffer,
    secure: bool,
    state: State,
    /// The piece in hand: client flags, a header or an option's data; never longer than
    /// `option_bytes_max`.
    buffer: Vec<u8>,
    output: Vec<u8>,
    /// Everything ever queued, taken or not, so that the bound does not depend on when it is taken.
    said_bytes: usize,
    options: u32,
    kept_bytes: u32,
    skipped_bytes: u32,
    fixed_newstyle: bool,
    no_zeroes: bool,
    structured: bool,
    headers: HeaderFormat,
    /// What SET_META_CONTEXT selected, and the canonical name of the export it was for.
    selected: Option<(String, Vec<Context>)>,
}

impl Handshake {
    /// Starts a handshake; the greeting is queued at once.
    #[must_use]
    pub fn new(limits: HandshakeLimits, tls: TlsOffer) -> Handshake {
        let output = wire::greeting(OFFERED).to_vec();
        Handshake {
            limits,
            tls,
            secure: false,
            state: State::ClientFlags,
            buffer: Vec::new(),
            said_bytes: output.len(),
            output,
            options: 0,
            kept_bytes: 0,
            skipped_bytes: 0,
            fixed_newstyle: false,
            no_zeroes: false,
            structured: false,
            headers: HeaderFormat::Compact,
            selected: None,
        }
    }

    /// Everything there is to send, in order; empty if there is nothing.
    #[must_use]
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// Takes bytes from the client, however they were split.
    ///
    /// # Errors
    /// The client broke the protocol beyond repair. Output queued before it is still good to send.
    pub fn receive(&mut self, bytes: &[u8], exports: &dyn Exports) -> Result<Progress, Violation> {
        let mut input = bytes;
        loop {
            let step = self.step(&mut input, exports);
            match step {
                Ok(Some(pause @ (Progress::More | Progress::StartTls))) => return Ok(pause),
                Ok(None) => {}
                Ok(Some(mut end)) => {
                    self.state = State::Over;
                    if let Progress::Ready(session) = &mut end {
                        session.leftover = input.to_vec();
                    }
                    return Ok(end);
                }
                Err(violation) => {
                    self.state = State::Over;
                    return Err(violation);
                }
            }
        }
    }

    /// One piece of the conversation: `Some` if the caller should hear of it.
    fn step(
        &mut self,
        input: &mut &[u8],
        exports: &dyn Exports,
    ) -> Result<Option<Progress>, Violation> {
        if let State::Skip { option, left, then } = self.state {
            let skipped = left.min(u32::try_from(input.len()).unwrap_or(u32::MAX));
            *input = &input[skipped as usize..];
            let left = left - skipped;
            if left > 0 {
                self.state = State::Skip { option, left, then };
                return Ok(Some(Progress::More));
            }
            self.state = State::Header;
            return self.skipped(option, then, input);
        }
        let wanted = match self.state {
            State::ClientFlags => CLIENT_FLAGS_LEN,
            State::Header => OPTION_HEADER_LEN,
            State::Data { length, .. } => length as usize,
            State::StartTls => return Err(Violation::PlainBehindStartTls),
            State::Skip { .. } | State::Over => return Err(Violation::Over),
        };
        let missing = wanted.saturating_sub(self.buffer.len());
        let (head, rest) = input.split_at(missing.min(input.len()));
        self.buffer.extend_from_slice(head);
        *input = rest;
        if self.buffer.len() < wanted {
            return Ok(Some(Progress::More));
        }
        let mut piece = std::mem::take(&mut self.buffer);
        let answer = match self.state {
            State::ClientFlags => self.client_flags(&piece).map(|()| None),
            State::Header => self.header(&piece).map(|()| None),
            State::Data { option, .. } => {
                self.state = State::Header;
                self.option(option, &piece, exports)
            }
            State::Skip { .. } | State::StartTls | State::Over => Err(Violation::Over),
        };
        piece.clear();
        self.buffer = piece;
        answer
    }

    fn client_flags(&mut self, piece: &[u8]) -> Result<(), Violation> {
        let found = Fields(piece).u32().unwrap_or(u32::MAX);
        if found & !OFFERED_TO_CLIENT != 0 {
            return Err(Violation::ClientFlags { found, offered: OFFERED_TO_CLIENT });
        }
        self.fixed_newstyle = found & u32::from(handshake_flag::FIXED_NEWSTYLE) != 0;
        self.no_zeroes = found & u32::from(handshake_flag::NO_ZEROES) != 0;
        // Such a client has no STARTTLS, so it could never say anything we would answer.
        if !self.fixed_newstyle && self.awaits_tls() {
            return Err(Violation::UnfixedTls);
        }
        self.state = State::Header;
        Ok(())
    }

    /// Judges an option by its header alone: what it costs us is settled before its data comes.
    fn header(&mut self, piece: &[u8]) -> Result<(), Violation> {
        let mut fields = Fields(piece);
        let found = fields.u64().unwrap_or_default();
        let option = fields.u32().unwrap_or_default();
        let length = fields.u32().unwrap_or_default();
        if found != OPTION_MAGIC {
            return Err(Violation::OptionMagic { found });
        }
        if !self.fixed_newstyle && option != option::EXPORT_NAME {
            return Err(Violation::UnfixedOption { option });
        }
        self.options += 1;
        if self.options > self.limits.options_max {
            return Err(Violation::TooManyOptions { limit: self.limits.options_max });
        }
        let then = self.judge_option(option, length)?;
        let (spent, limit) = match then {
            Some(_) => (&mut self.skipped_bytes, self.limits.skipped_bytes_max),
            None => (&mut self.kept_bytes, self.limits.kept_bytes_max),
        };
        match spent.checked_add(length) {
            Some(total) if total <= limit => *spent = total,
            _ => return Err(Violation::TooManyBytes { option, length }),
        }
        self.state = match then {
            Some(then) => State::Skip { option, left: length, then },
            None => State::Data { option, length },
        };
        Ok(())
    }

    /// What becomes of an option whose data is not read; `None` if it is.
    fn judge_option(&self, option: u32, length: u32) -> Result<Option<Then>, Violation> {
        Ok(match option {
            option::ABORT => Some(Then::Abort),
            option::STARTTLS => Some(self.judge_starttls(length)),
            option::EXPORT_NAME if self.awaits_tls() => return Err(Violation::PlainExportName),
            _ if self.awaits_tls() => {
                let text = "this server requires TLS: use STARTTLS first";
                Some(Then::Refuse(option_reply::ERR_TLS_REQD, text))
            }
            option::EXPORT_NAME if length as usize > STRING_MAX => {
                let reason = "longer than 4096 bytes";
                return Err(Violation::BadExportName { length, reason });
            }
            option::EXPORT_NAME
            | option::LIST
            | option::INFO
            | option::GO
            | option::STRUCTURED_REPLY
            | option::EXTENDED_HEADERS
            | option::LIST_META_CONTEXT
            | option::SET_META_CONTEXT => {
                (length > self.limits.option_bytes_max).then_some(Then::TooBig)
            }
            _ => Some(Then::Unsupported),
        })
    }

    fn skipped(
        &mut self,
        option: u32,
        then: Then,
        rest: &[u8],
    ) -> Result<Option<Progress>, Violation> {
        match then {
            Then::Refuse(kind, text) => self.refuse(option, kind, text)?,
            Then::Unsupported => {
                let text = format!("option {option} is not supported");
                self.refuse(option, option_reply::ERR_UNSUP, text)?;
            }
            Then::TooBig => {
                // A selection that fails still replaces the one before it.
                if option == option::SET_META_CONTEXT {
                    self.selected = None;
                }
                let limit = self.limits.option_bytes_max;
                let text = format!("an option may carry at most {limit} bytes");
                self.refuse(option, option_reply::ERR_TOO_BIG, text)?;
            }
            Then::StartTls => {
                self.start_tls(rest)?;
                return Ok(Some(Progress::StartTls));
            }
            Then::Abort => {
                self.acknowledge(option)?;
                return Ok(Some(Progress::Closed));
            }
        }
        Ok(None)
    }

    fn option(
        &mut self,
        option: u32,
        data: &[u8],
        exports: &dyn Exports,
    ) -> Result<Option<Progress>, Violation> {
        match option {
            option::EXPORT_NAME => return self.export_name(data, exports).map(Some),
            option::GO | option::INFO => return self.info(option, data, exports),
            option::LIST => self.list(data, exports)?,
            option::STRUCTURED_REPLY => self.structured_reply(data)?,
            option::EXTENDED_HEADERS => self.extended_headers(data)?,
            option::LIST_META_CONTEXT => self.list_contexts(data, exports)?,
            option::SET_META_CONTEXT => self.set_contexts(data, exports)?,
            // `header` keeps data only for the options above.
            _ => self.refuse(option, option_reply::ERR_UNSUP, "not supported")?,
        }
        Ok(None)
    }

    fn export_name(&mut self, data: &[u8], exports: &dyn Exports) -> Result<Progress, Violation> {
        if self.headers == HeaderFormat::Extended {
            return Err(Violation::ExtendedExportName);
        }
        let export = self.look_up_or_drop(data, exports)?;
        let mut answer = export.size.0.to_be_bytes().to_vec();
        let flags = self.transmission_flags(&export);
        answer.extend_from_slice(&flags.to_be_bytes());
        if !self.no_zeroes {
            answer.resize(answer.len() + EXPORT_NAME_PADDING, 0);
        }
        self.say(&answer)?;
        Ok(Progress::Ready(self.session(export)))
    }

    fn info(
        &mut self,
        option: u32,
        data: &[u8],
        exports: &dyn Exports,
    ) -> Result<Option<Progress>, Violation> {
        let (name, wanted) = match options::info_request(data) {
            Ok(request) => request,
            Err(malformed) => return self.malformed(option, malformed).map(|()| None),
        };
        let Some(export) = self.look_up(option, name, exports)? else { return Ok(None) };
        let mut answer = Vec::new();
        for item in self.information(&export, wanted) {
            append_reply(&mut answer, option, option_reply::INFO, &item);
        }
        append_reply(&mut answer, option, option_reply::ACK, &[]);
        if !self.fits(&answer) {
            self.refuse(option, option_reply::ERR_TOO_BIG, "the answer is too large")?;
            return Ok(None);
        }
        self.say(&answer)?;
        let over = option == option::GO;
        Ok(over.then(|| Progress::Ready(self.session(export))))
    }

    /// The same for INFO and GO, so that asking first and going later agree.
    fn information(&self, export: &Export, wanted: Wanted) -> Vec<Vec<u8>> {
        let flags = self.transmission_flags(export);
        let mut size = info::EXPORT.to_be_bytes().to_vec();
        size.extend_from_slice(&export.size.0.to_be_bytes());
        size.extend_from_slice(&flags.to_be_bytes());
        let mut items = vec![size];
        let text =
            |kind: u16, text: &str| [&kind.to_be_bytes()[..], plain(text).as_bytes()].concat();
        if wanted.name {
            items.push(text(info::NAME, &export.name));
        }
        if wanted.description && !export.description.is_empty() {
            items.push(text(info::DESCRIPTION, &export.description));
        }
        // A client that does not ask assumes the default, so anything else must be said.
        if wanted.block_size || export.block_size != BlockSize::default() {
            let sizes = export.block_size;
            let mut item = info::BLOCK_SIZE.to_be_bytes().to_vec();
            for size in [sizes.minimum(), sizes.preferred(), sizes.maximum()] {
                item.extend_from_slice(&size.to_be_bytes());
            }
            items.push(item);
        }
        items
    }

    fn transmission_flags(&self, export: &Export) -> u16 {
        let flags = export.capabilities.transmission_flags(self.structured);
        let filters = self.headers == HeaderFormat::Extended && self.has_contexts_for(export);
        if filters { flags | transmission_flag::BLOCK_STATUS_PAYLOAD } else { flags }
    }

    fn structured_reply(&mut self, data: &[u8]) -> Result<(), Violation> {
        if !data.is_empty() {
            let text = "STRUCTURED_REPLY carries no data";
            return self.refuse(option::STRUCTURED_REPLY, option_reply::ERR_INVALID, text);
        }
        // There is no way back from extended headers to replies that are merely structured.
        if self.headers == HeaderFormat::Extended {
            let (kind, text) = (option_reply::ERR_EXT_HEADER_REQD, "headers are extended already");
            return self.refuse(option::STRUCTURED_REPLY, kind, text);
        }
        self.structured = true;
        self.acknowledge(option::STRUCTURED_REPLY)
    }

    fn extended_headers(&mut self, data: &[u8]) -> Result<(), Violation> {
        if !data.is_empty() {
            let text = "EXTENDED_HEADERS carries no data";
            return self.refuse(option::EXTENDED_HEADERS, option_reply::ERR_INVALID, text);
        }
        self.structured = true;
        self.headers = HeaderFormat::Extended;
        self.acknowledge(option::EXTENDED_HEADERS)
    }

    /// Whether a filter of contexts would have any to choose from.
    fn has_contexts_for(&self, export: &Export) -> bool {
        let of_this = |(name, contexts): &(String, Vec<Context>)| {
            *name == export.name && !contexts.is_empty()
        };
        self.structured && self.selected.as_ref().is_some_and(of_this)
    }

    fn session(&mut self, export: Export) -> Session {
        // Contexts count only if they were selected for the export that is used in the end.
        let contexts = match self.selected.take() {
            Some((name, contexts)) if name == export.name && self.structured => contexts,
            _ => Vec::new(),
        };
        Session {
            export,
            structured: self.structured,
            contexts,
            no_zeroes: self.no_zeroes,
            headers: self.headers,
            leftover: Vec::new(),
        }
    }

    fn malformed(&mut self, option: u32, malformed: Malformed) -> Result<(), Violation> {
        match malformed {
            Malformed::Invalid(text) => self.refuse(option, option_reply::ERR_INVALID, text),
            Malformed::TooBig(text) => self.refuse(option, option_reply::ERR_TOO_BIG, text),
        }
    }

    fn acknowledge(&mut self, option: u32) -> Result<(), Violation> {
        self.refuse(option, option_reply::ACK, "")
    }

    fn refuse(&mut self, option: u32, kind: u32, text: impl Display) -> Result<(), Violation> {
        let mut answer = Vec::new();
        append_reply(&mut answer, option, kind, plain(&text.to_string()).as_bytes());
        self.say(&answer)
    }

    fn fits(&self, answer: &[u8]) -> bool {
        self.said_bytes.saturating_add(answer.len()) <= self.limits.output_bytes_max
    }

    fn say(&mut self, answer: &[u8]) -> Result<(), Violation> {
        if !self.fits(answer) {
            return Err(Violation::TooManyAnswers { limit: self.limits.output_bytes_max });
        }
        self.said_bytes += answer.len();
        self.output.extend_from_slice(answer);
        Ok(())
    }
}

fn append_reply(answer: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    let length = u32::try_from(data.len()).expect("our answers hold two strings at most");
    answer.reserve(OPTION_REPLY_HEADER_LEN + data.len());
    answer.extend_from_slice(&OptionReply { option, kind, length }.encode());
    answer.extend_from_slice(data);
}

/// Our own text as the wire allows it: without NUL, and at most 4096 bytes, cut between characters.
fn plain(text: &str) -> Cow<'_, str> {
    let cut = &text[..text.floor_char_boundary(STRING_MAX)];
    if cut.contains('\0') { Cow::Owned(cut.replace('\0', "?")) } else { Cow::Borrowed(cut) }
}

//! The transmission phase's one gate: a request header becomes a [`Request`] that cannot be wrong.
//!
//! Everything a client can say about a request is judged here and nowhere else: flags, bounds,
//! permission, alignment and size. Behind this gate nobody validates again. It never looks at a
//! payload and never allocates; payloads of refused requests are for the caller to skip.

use crate::export::Capabilities;
use crate::handshake::{Session, Violation};
use crate::reply::ReplyStyle;
use crate::units::{Bytes, Cookie, Offset};
use crate::wire::{Errno, HeaderFormat, RequestHeader, WireError, command, command_flag};

/// The longest payload of one request, in bytes, either way. Twice what is advertised by default,
/// because clients exist that send 50 MB whatever they were told.
pub const PAYLOAD_MAX: u32 = 64 << 20;

/// What a client wants done, with the flags that were valid for it.
///
/// FUA is legal on every command once offered; where it has no meaning it is dropped here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read the range.
    Read {
        /// Answer in one piece.
        df: bool,
    },
    /// Write the payload that follows the header.
    Write {
        /// Answer only when it is durable.
        fua: bool,
    },
    /// Make every answered write durable. Carries no range: offset and length are zero.
    Flush,
    /// The range is no longer needed.
    Trim {
        /// Answer only when it is durable.
        fua: bool,
    },
    /// The range shall read as zeroes.
    WriteZeroes {
        /// Answer only when it is durable.
        fua: bool,
        /// The range must be allocated afterwards.
        no_hole: bool,
        /// Fail with ENOTSUP at once unless this is faster than writing.
        fast: bool,
    },
    /// The range will be read soon.
    Cache,
    /// Tell the selected metadata contexts of the range.
    BlockStatus {
        /// One extent, not beyond the range.
        req_one: bool,
    },
}

/// A request that passed every check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The client's name for it.
    pub cookie: Cookie,
    /// What to do.
    pub command: Command,
    /// Where the range starts.
    pub offset: Offset,
    /// How long it is: at least 1, inside the export, whole minimum blocks, and at most
    /// [`PAYLOAD_MAX`] for READ and WRITE. Zero for FLUSH only.
    pub length: Bytes,
}

impl Request {
    /// Bytes of payload that follow the header in the stream: a WRITE's length, else none.
    #[must_use]
    pub const fn payload(&self) -> Bytes {
        match self.command {
            Command::Write { .. } => self.length,
            _ => Bytes(0),
        }
    }
}

/// What the bytes at the front of the stream are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Not yet a whole header.
    Incomplete,
    /// A request to carry out.
    Request {
        /// The request.
        request: Request,
        /// Header bytes to take off the stream. [`Request::payload`] says how many bytes of
        /// payload follow them.
        consumed: usize,
    },
    /// A request to answer with an error, now; the stream stays in step.
    Refused {
        /// The client's name for it.
        cookie: Cookie,
        /// The error to answer with.
        error: Errno,
        /// The reason, for a structured reply.
        text: &'static str,
        /// Header bytes to take off the stream.
        consumed: usize,
        /// Payload bytes behind the header, to be read and thrown away.
        payload: u32,
    },
    /// The client is done: finish what is in flight, then close.
    Disconnect,
    /// The stream makes no sense: drop the connection.
    Violation(Violation),
}

/// What one connection agreed on, as the gate needs it.
#[derive(Clone, Copy, Debug)]
pub struct Transmission {
    size: Bytes,
    able: Capabilities,
    alignment_bytes: u32,
    structured: bool,
    has_contexts: bool,
    headers: HeaderFormat,
}

/// Why a request is refused.
type Refusal = (Errno, &'static str);

impl Transmission {
    /// The gate for a session. Later changes to the session do not reach it.
    #[must_use]
    pub fn new(session: &Session) -> Transmission {
        Transmission {
            size: session.export.size,
            able: session.export.capabilities.effective(),
            alignment_bytes: session.export.block_size.minimum(),
            structured: session.structured,
            has_contexts: !session.contexts.is_empty(),
            headers: session.headers,
        }
    }

    /// How replies look in this session.
    #[must_use]
    pub fn reply_style(&self) -> ReplyStyle {
        if self.structured { ReplyStyle::Structured } else { ReplyStyle::Simple }
    }

    /// Length of this session's request headers, in bytes.
    #[must_use]
    pub fn header_len(&self) -> usize {
        self.headers.request_len()
    }

    /// Judges the header at the front of `bytes`. A wrong magic is noticed at four bytes.
    #[must_use]
    pub fn parse(&self, bytes: &[u8]) -> Parsed {
        let header = match RequestHeader::decode(bytes) {
            Ok(None) => return Parsed::Incomplete,
            Ok(Some(header)) => header,
            Err(WireError::Magic { found, .. }) => {
                let found = u32::try_from(found).unwrap_or(u32::MAX);
                return Parsed::Violation(Violation::RequestMagic { found });
            }
        };
        if header.command == command::DISC {
            return Parsed::Disconnect;
        }
        let consumed = self.header_len();
        match self.judge(&header) {
            Ok(request) => Parsed::Request { request, consumed },
            Err((error, text)) => {
                // Only WRITE has a payload, and it is there even if nothing else is right.
                let payload = if header.command == command::WRITE { header.length } else { 0 };
                Parsed::Refused { cookie: header.cookie, error, text, consumed, payload }
            }
        }
    }

    fn judge(&self, header: &RequestHeader) -> Result<Request, Refusal> {
        let command = self.command(header)?;
        self.check_permission(command)?;
        if command == Command::Flush {
            // Offset and length are reserved here; clients exist that leave something in them.
            let (offset, length) = (Offset(0), Bytes(0));
            return Ok(Request { cookie: header.cookie, command, offset, length });
        }
        self.check_range(command, header)?;
        Ok(Request {
            cookie: header.cookie,
            command,
            offset: header.offset,
            length: Bytes(header.length.into()),
        })
    }

    /// The command with its flags; a flag that is unknown, not offered or not for this command is
    /// an error, but FUA goes with everything.
    fn command(&self, header: &RequestHeader) -> Result<Command, Refusal> {
        let has = |flag: u16| header.flags & flag != 0;
        let fua = has(command_flag::FUA);
        let (command, mut legal) = match header.command {
            command::READ => {
                let legal = if self.structured { command_flag::DF } else { 0 };
                (Command::Read { df: has(command_flag::DF) }, legal)
            }
            command::WRITE => (Command::Write { fua }, 0),
            command::FLUSH => (Command::Flush, 0),
            command::TRIM => (Command::Trim { fua }, 0),
            command::CACHE => (Command::Cache, 0),
            command::WRITE_ZEROES => {
                let fast = if self.able.fast_zero { command_flag::FAST_ZERO } else { 0 };
                let no_hole = has(command_flag::NO_HOLE);
                let fast_asked = has(command_flag::FAST_ZERO);
                let command = Command::WriteZeroes { fua, no_hole, fast: fast_asked };
                (command, command_flag::NO_HOLE | fast)
            }
            command::BLOCK_STATUS => {
                let req_one = has(command_flag::REQ_ONE);
                (Command::BlockStatus { req_one }, command_flag::REQ_ONE)
            }
            _ => return Err((Errno::EINVAL, "unknown command")),
        };
        if self.able.fua {
            legal |= command_flag::FUA;
        }
        if header.flags & !legal != 0 {
            return Err((Errno::EINVAL, "a flag is not valid for this command"));
        }
        Ok(command)
    }

    fn check_permission(&self, command: Command) -> Result<(), Refusal> {
        let writes = matches!(
            command,
            Command::Write { .. } | Command::Trim { .. } | Command::WriteZeroes { .. }
        );
        if writes && self.able.read_only {
            return Err((Errno::EPERM, "the export is read-only"));
        }
        let offered = match command {
            Command::Read { .. } | Command::Write { .. } => true,
            Command::Flush => self.able.flush,
            Command::Trim { .. } => self.able.trim,
            Command::WriteZeroes { .. } => self.able.write_zeroes,
            Command::Cache => self.able.cache,
            Command::BlockStatus { .. } => self.has_contexts,
        };
        if offered { Ok(()) } else { Err((Errno::EINVAL, "the command was not offered")) }
    }

    fn check_range(&self, command: Command, header: &RequestHeader) -> Result<(), Refusal> {
        if header.length == 0 {
            return Err((Errno::EINVAL, "the request covers no bytes"));
        }
        // Commands without a payload may be as long as their length field can say.
        let carries = matches!(command, Command::Read { .. } | Command::Write { .. });
        if carries && header.length > PAYLOAD_MAX {
            return Err((Errno::EINVAL, "the request is larger than 64 MiB"));
        }
        let end = header.offset.0.checked_add(header.length.into());
        if end.is_none_or(|end| end > self.size.0) {
            let grows = matches!(command, Command::Write { .. } | Command::WriteZeroes { .. });
            let error = if grows { Errno::ENOSPC } else { Errno::EINVAL };
            return Err((error, "the request goes beyond the end of the export"));
        }
        let aligned = header.offset.0.is_multiple_of(self.alignment_bytes.into())
            && header.length.is_multiple_of(self.alignment_bytes);
        if !aligned {
            return Err((Errno::EINVAL, "the request is not aligned to the minimum block size"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Command, PAYLOAD_MAX, Parsed, Request, Transmission};
    use crate::export::{BlockSize, Capabilities};
    use crate::fuzz::OneDisk;
    use crate::handshake::{Context, ContextName, Session, Violation};
    use crate::units::{Bytes, ContextId, Cookie, Offset};
    use crate::wire::{Errno, HeaderFormat, RequestHeader, command, command_flag};

    const MIB: u64 = 1 << 20;
    const ALL: [u16; 7] = [
        command::READ,
        command::WRITE,
        command::FLUSH,
        command::TRIM,
        command::CACHE,
        command::WRITE_ZEROES,
        command::BLOCK_STATUS,
    ];

    fn session() -> Session {
        Session {
            export: OneDisk::new().0,
            structured: true,
            contexts: vec![Context { id: ContextId(1), name: ContextName::Allocation }],
            no_zeroes: true,
            headers: HeaderFormat::Compact,
            leftover: Vec::new(),
        }
    }

    fn ask(session: &Session, command: u16, flags: u16, offset: u64, length: u32) -> Parsed {
        let header =
            RequestHeader { flags, command, cookie: Cookie(7), offset: Offset(offset), length };
        Transmission::new(session).parse(&header.encode())
    }

    fn request(parsed: Parsed) -> Option<Request> {
        match parsed {
            Parsed::Request { request, consumed: 28 } => Some(request),
            _ => None,
        }
    }

    /// The error and the payload to skip; the cookie must have come back.
    fn refusal(parsed: Parsed) -> Option<(Errno, u32)> {
        match parsed {
            Parsed::Refused { cookie: Cookie(7), error, payload, consumed: 28, text } => {
                assert!(!text.is_empty());
                Some((error, payload))
            }
            _ => None,
        }
    }

    fn on_able(change: impl FnOnce(&mut Capabilities)) -> Session {
        let mut session = session();
        change(&mut session.export.capabilities);
        session
    }

    #[test]
    fn every_command_is_understood_with_its_own_flags() {
        use command_flag::{DF, FAST_ZERO, FUA, NO_HOLE, REQ_ONE};
        let zeroes = |fua, no_hole, fast| Command::WriteZeroes { fua, no_hole, fast };
        let cases = [
            (command::READ, 0, Command::Read { df: false }),
            (command::READ, DF, Command::Read { df: true }),
            (command::WRITE, FUA, Command::Write { fua: true }),
            (command::TRIM, FUA, Command::Trim { fua: true }),
            (command::CACHE, 0, Command::Cache),
            (command::WRITE_ZEROES, FUA | NO_HOLE | FAST_ZERO, zeroes(true, true, true)),
            (command::WRITE_ZEROES, 0, zeroes(false, false, false)),
            (command::BLOCK_STATUS, REQ_ONE, Command::BlockStatus { req_one: true }),
        ];
        for (number, flags, command) in cases {
            let expected =
                Request { cookie: Cookie(7), command, offset: Offset(512), length: Bytes(4096) };
            let found = request(ask(&session(), number, flags, 512, 4096));
            assert_eq!(found, Some(expected), "{number} {flags:#x}");
        }
    }

    #[test]
    fn a_flag_that_is_not_for_the_command_is_einval() {
        // A flag unknown, or known but meant for another command, is refused, never ignored.
        let legal = |command| match command {
            command::READ => command_flag::DF,
            command::WRITE_ZEROES => command_flag::NO_HOLE | command_flag::FAST_ZERO,
            command::BLOCK_STATUS => command_flag::REQ_ONE,
            _ => 0,
        };
        for command in ALL {
            for bit in 1..16 {
                let flag = 1 << bit;
                let parsed = ask(&session(), command, flag, 0, 512);
                if legal(command) & flag != 0 {
                    assert!(request(parsed).is_some(), "{command} {flag:#x}");
                } else {
                    let payload = if command == command::WRITE { 512 } else { 0 };
                    assert_eq!(refusal(parsed), Some((Errno::EINVAL, payload)));
                }
            }
        }
    }

    #[test]
    fn fua_goes_with_every_command_once_offered_and_with_none_before() {
        for command in ALL {
            let parsed = ask(&session(), command, command_flag::FUA, 0, 512);
            assert!(request(parsed).is_some(), "{command}");
            let without = on_able(|able| able.fua = false);
            let parsed = ask(&without, command, command_flag::FUA, 0, 512);
            assert_eq!(refusal(parsed).map(|(error, _)| error), Some(Errno::EINVAL), "{command}");
        }
    }

    #[test]
    fn df_belongs_to_structured_replies_and_fast_zero_to_those_who_were_offered_it() {
        let mut simple = session();
        simple.structured = false;
        let parsed = ask(&simple, command::READ, command_flag::DF, 0, 512);
        assert_eq!(refusal(parsed), Some((Errno::EINVAL, 0)));
        let slow = on_able(|able| able.fast_zero = false);
        let parsed = ask(&slow, command::WRITE_ZEROES, command_flag::FAST_ZERO, 0, 512);
        assert_eq!(refusal(parsed), Some((Errno::EINVAL, 0)));
    }

    #[test]
    fn commands_that_were_not_offered_are_einval() {
        type Change = fn(&mut Capabilities);
        let cases: [(u16, Change); 4] = [
            (command::FLUSH, |able| able.flush = false),
            (command::TRIM, |able| able.trim = false),
            (command::WRITE_ZEROES, |able| able.write_zeroes = false),
            (command::CACHE, |able| able.cache = false),
        ];
        for (command, change) in cases {
            let parsed = ask(&on_able(change), command, 0, 0, 512);
            assert_eq!(refusal(parsed), Some((Errno::EINVAL, 0)), "{command}");
        }
        // Block status is for those who selected a context.
        let mut blind = session();
        blind.contexts.clear();
        let parsed = ask(&blind, command::BLOCK_STATUS, 0, 0, 512);
        assert_eq!(refusal(parsed), Some((Errno::EINVAL, 0)));
    }

    #[test]
    fn unknown_commands_are_einval_and_leave_the_stream_in_step() {
        for command in [8, 9, 99, u16::MAX] {
            let parsed = ask(&session(), command, 0, 0, 512);
            assert_eq!(refusal(parsed), Some((Errno::EINVAL, 0)));
        }
    }

    #[test]
    fn a_read_only_export_answers_writers_with_eperm() {
        let read_only = on_able(|able| able.read_only = true);
        for command in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
            let payload = if command == command::WRITE { 4096 } else { 0 };
            let parsed = ask(&read_only, command, 0, 0, 4096);
            assert_eq!(refusal(parsed), Some((Errno::EPERM, payload)));
            // Even beyond the end: it is the permission that is missing.
            let parsed = ask(&read_only, command, 0, 2 * MIB, 4096);
            assert_eq!(refusal(parsed), Some((Errno::EPERM, payload)));
        }
        for command in [command::READ, command::FLUSH, command::CACHE, command::BLOCK_STATUS] {
            assert!(request(ask(&read_only, command, 0, 0, 4096)).is_some());
        }
    }

    #[test]
    fn beyond_the_end_writers_get_enospc_and_readers_einval() {
        for command in ALL.into_iter().filter(|&command| command != command::FLUSH) {
            let grows = matches!(command, command::WRITE | command::WRITE_ZEROES);
            let error = if grows { Errno::ENOSPC } else { Errno::EINVAL };
            for offset in [MIB - 511, MIB, u64::MAX - 511, u64::MAX, 1 << 63] {
                let found = refusal(ask(&session(), command, 0, offset, 512));
                assert_eq!(found.map(|(error, _)| error), Some(error), "{command} at {offset}");
            }
            assert!(request(ask(&session(), command, 0, MIB - 512, 512)).is_some());
        }
    }

    #[test]
    fn every_length_has_a_clean_answer_and_a_refused_write_says_what_to_skip() {
        for length in [0, 1, 4096, 4097, 1 << 31, u32::MAX] {
            for command in ALL {
                let parsed = ask(&session(), command, 0, 0, length);
                let fits = matches!(length, 1 | 4096 | 4097) || command == command::FLUSH;
                let payload = if command == command::WRITE { length } else { 0 };
                match refusal(parsed.clone()) {
                    None => assert!(fits && request(parsed).is_some()),
                    Some((_, skip)) => assert!(!fits && skip == payload, "{command} {length}"),
                }
            }
        }
    }

    #[test]
    fn payloads_up_to_64_mib_pass_whatever_was_advertised() {
        let mut large = session();
        large.export.size = Bytes(1 << 40);
        for command in [command::READ, command::WRITE] {
            assert!(request(ask(&large, command, 0, 0, PAYLOAD_MAX)).is_some());
            let payload = if command == command::WRITE { PAYLOAD_MAX + 1 } else { 0 };
            let parsed = ask(&large, command, 0, 0, PAYLOAD_MAX + 1);
            assert_eq!(refusal(parsed), Some((Errno::EINVAL, payload)));
        }
        // What carries no payload is bounded by its length field alone.
        for command in [command::TRIM, command::WRITE_ZEROES, command::CACHE, command::BLOCK_STATUS]
        {
            let found = request(ask(&large, command, 0, 0, u32::MAX));
            assert_eq!(found.map(|request| request.length), Some(Bytes(u32::MAX.into())));
        }
    }

    #[test]
    fn requests_keep_to_the_minimum_block_size() {
        let mut strict = session();
        strict.export.block_size =
            BlockSize::new(512, 4096, 32 << 20).expect("these sizes are legal");
        for command in ALL.into_iter().filter(|&command| command != command::FLUSH) {
            for (offset, length) in [(1, 512), (0, 511), (511, 513)] {
                let found = refusal(ask(&strict, command, 0, offset, length));
                assert_eq!(found.map(|(error, _)| error), Some(Errno::EINVAL));
            }
            assert!(request(ask(&strict, command, 0, 512, 1024)).is_some());
        }
    }

    #[test]
    fn a_flush_carries_no_range_even_if_the_client_left_one_in() {
        let found = request(ask(&session(), command::FLUSH, 0, u64::MAX, u32::MAX));
        let expected = Request {
            cookie: Cookie(7),
            command: Command::Flush,
            offset: Offset(0),
            length: Bytes(0),
        };
        assert_eq!(found, Some(expected));
    }

    #[test]
    fn disconnect_needs_nothing_but_its_number() {
        assert_eq!(ask(&session(), command::DISC, 0xffff, 1, 2), Parsed::Disconnect);
    }

    #[test]
    fn a_header_is_complete_at_28_bytes_and_its_magic_at_four() {
        let gate = Transmission::new(&session());
        let header = RequestHeader {
            flags: 0,
            command: command::READ,
            cookie: Cookie(1),
            offset: Offset(0),
            length: 1,
        };
        let bytes = header.encode();
        for end in 0..bytes.len() {
            assert_eq!(gate.parse(&bytes[..end]), Parsed::Incomplete);
        }
        assert!(request(gate.parse(&bytes)).is_some());
        let wrong = Parsed::Violation(Violation::RequestMagic { found: 0x2560_9514 });
        assert_eq!(gate.parse(&[0x25, 0x60, 0x95, 0x14]), wrong);
    }
}

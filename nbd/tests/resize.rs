//! RESIZE, of the protocol's branch extension-resize: the new size travels in the offset field, and
//! nothing in the length. Each test states the rule it holds the server to.

use orlop_nbd::fuzz::OneDisk;
use orlop_nbd::wire::{
    ExtendedRequestHeader, HeaderFormat, ReplyHeader, RequestHeader, chunk, command, command_flag,
    transmission_flag,
};
use orlop_nbd::{
    Bytes, Capabilities, Command, Cookie, Echo, Errno, Offset, Parsed, ReplyStyle, Session,
    Transmission,
};

const COOKIE: Cookie = Cookie(0x0102_0304_0506_0708);
const MIB: u64 = 1 << 20;
const FORMATS: [(bool, HeaderFormat); 3] =
    [(false, HeaderFormat::Compact), (true, HeaderFormat::Compact), (true, HeaderFormat::Extended)];

/// A session over 1 MiB that can be resized.
fn session((structured, headers): (bool, HeaderFormat)) -> Session {
    let (export, contexts, leftover) = (OneDisk::new().0, Vec::new(), Vec::new());
    assert!(export.capabilities.resize && export.size == Bytes(MIB));
    Session { export, structured, contexts, no_zeroes: true, headers, leftover }
}

fn ask(gate: &Transmission, command: u16, flags: u16, offset: u64, length: u32) -> Parsed {
    let (cookie, offset) = (COOKIE, Offset(offset));
    let compact = RequestHeader { flags, command, cookie, offset, length };
    if gate.header_len() == 28 {
        gate.parse(&compact.encode())
    } else {
        gate.parse(&ExtendedRequestHeader::from(compact).encode())
    }
}

fn resize(gate: &Transmission, flags: u16, size: u64, length: u32) -> Parsed {
    ask(gate, command::RESIZE, flags, size, length)
}

/// The error and the payload to skip; cookie and size must have come back, with a reason.
fn refusal(parsed: Parsed, size: u64) -> Option<(Errno, u32)> {
    match parsed {
        Parsed::Refused { echo, error, text, payload, .. } => {
            assert_eq!(echo, Echo { cookie: COOKIE, offset: Offset(size) });
            assert!(!text.is_empty());
            Some((error, payload))
        }
        _ => None,
    }
}

#[test]
fn a_resize_has_its_size_for_an_offset_and_no_range_in_every_format() {
    for format in FORMATS {
        let gate = Transmission::new(&session(format));
        for size in [1, 512, MIB - 1, MIB, MIB + 1, 8 << 40, i64::MAX as u64] {
            let Parsed::Request { request, consumed } = resize(&gate, 0, size, 0) else {
                unreachable!("{size} is a size")
            };
            assert_eq!(request.command, Command::Resize { size: Bytes(size) });
            assert_eq!((request.offset, request.length), (Offset(0), Bytes(0)));
            assert_eq!((request.payload(), consumed), (Bytes(0), gate.header_len()));
            // A reply repeats what stood in the request's offset field.
            assert_eq!(request.echo(), Echo { cookie: COOKIE, offset: Offset(size) });
        }
    }
}

#[test]
fn a_resize_is_answered_like_a_command_without_data() {
    let echo = Echo { cookie: COOKIE, offset: Offset(2 * MIB) };
    for format in FORMATS {
        let style = Transmission::new(&session(format)).reply_style();
        let (flags, kind, cookie, offset) = (chunk::FLAG_DONE, chunk::NONE, COOKIE, echo.offset);
        let expected = match style {
            ReplyStyle::Simple => ReplyHeader::Simple { cookie, error: None },
            ReplyStyle::Structured => ReplyHeader::Chunk { flags, kind, cookie, length: 0 },
            ReplyStyle::Extended => {
                ReplyHeader::Extended { flags, kind, cookie, offset, length: Bytes(0) }
            }
        };
        let done = style.done(echo);
        assert_eq!(ReplyHeader::decode(&done), Ok(Some((expected, done.len()))));
    }
}

#[test]
fn resizing_is_advertised_by_bit_nine_to_those_who_may_write() {
    assert_eq!(transmission_flag::SEND_RESIZE, 0x200);
    for (resize, read_only, shown) in
        [(false, false, false), (true, false, true), (true, true, false), (false, true, false)]
    {
        let able = Capabilities { resize, read_only, ..Capabilities::default() };
        for structured in [false, true] {
            let flags = able.transmission_flags(structured);
            assert_eq!(flags & transmission_flag::SEND_RESIZE != 0, shown);
        }
    }
    assert!(!Capabilities::default().resize, "an experimental extension must be wanted");
}

#[test]
fn a_resize_nobody_offered_is_einval_and_one_of_a_read_only_export_eperm() {
    for format in FORMATS {
        let gate = |resize, read_only| {
            let mut session = session(format);
            let able = session.export.capabilities;
            session.export.capabilities = Capabilities { resize, read_only, ..able };
            Transmission::new(&session)
        };
        let found = |gate: &Transmission, size| refusal(resize(gate, 0, size, 0), size);
        for size in [0, 1, MIB, u64::MAX] {
            assert_eq!(found(&gate(false, false), size), Some((Errno::EINVAL, 0)));
            assert_eq!(found(&gate(true, true), size), Some((Errno::EPERM, 0)));
            assert_eq!(found(&gate(false, true), size), Some((Errno::EPERM, 0)));
        }
    }
}

#[test]
fn a_size_that_cannot_be_is_refused_and_the_stream_stays_in_step() {
    for format in FORMATS {
        let gate = Transmission::new(&session(format));
        assert_eq!(refusal(resize(&gate, 0, 0, 0), 0), Some((Errno::EINVAL, 0)));
        for size in [1 << 63, u64::MAX] {
            assert_eq!(refusal(resize(&gate, 0, size, 0), size), Some((Errno::ENOSPC, 0)));
        }
        // The length is reserved.
        for length in [1, 512, u32::MAX] {
            let found = refusal(resize(&gate, 0, MIB, length), MIB);
            assert_eq!(found, Some((Errno::EINVAL, 0)));
        }
        // What the disk ends in must be reachable.
        let mut strict = session(format);
        let sizes = orlop_nbd::BlockSize::new(512, 4096, 32 << 20);
        strict.export.block_size = sizes.expect("these sizes are legal");
        let strict = Transmission::new(&strict);
        for size in [1, 511, 513, MIB + 1] {
            assert_eq!(refusal(resize(&strict, 0, size, 0), size), Some((Errno::EINVAL, 0)));
        }
        assert!(matches!(resize(&strict, 0, MIB + 512, 0), Parsed::Request { .. }));
    }
}

#[test]
fn fua_goes_with_a_resize_and_no_other_flag_does() {
    for format in FORMATS {
        let gate = Transmission::new(&session(format));
        for bit in 0..16 {
            let flag = 1_u16 << bit;
            let parsed = resize(&gate, flag, MIB, 0);
            if flag == command_flag::FUA {
                assert!(matches!(parsed, Parsed::Request { .. }));
            } else {
                assert_eq!(refusal(parsed, MIB), Some((Errno::EINVAL, 0)), "{flag:#x}");
            }
        }
    }
    // With extended headers a payload may be announced all the same, and must be skipped.
    let gate = Transmission::new(&session(FORMATS[2]));
    let found = refusal(resize(&gate, command_flag::PAYLOAD_LEN, MIB, 4096), MIB);
    assert_eq!(found, Some((Errno::EINVAL, 4096)));
}

#[test]
fn requests_are_held_against_the_size_that_was_set_last() {
    for format in FORMATS {
        let mut gate = Transmission::new(&session(format));
        let passes = |gate: &Transmission, command, offset| {
            matches!(ask(gate, command, 0, offset, 512), Parsed::Request { .. })
        };
        let every = [command::READ, command::WRITE, command::TRIM, command::WRITE_ZEROES];
        for size in [MIB, 4 * MIB, 512, 6 << 40, MIB] {
            gate.set_size(Bytes(size));
            for command in every {
                assert!(passes(&gate, command, size - 512), "{command} at the end of {size}");
                let grows = [command::WRITE, command::WRITE_ZEROES].contains(&command);
                let error = if grows { Errno::ENOSPC } else { Errno::EINVAL };
                let payload = if command == command::WRITE { 512 } else { 0 };
                for offset in [size - 511, size] {
                    let found = refusal(ask(&gate, command, 0, offset, 512), offset);
                    assert_eq!(found, Some((error, payload)), "{command} beyond {size}");
                }
            }
        }
        // Asking changes nothing: the size follows only what was done.
        assert!(matches!(resize(&gate, 0, 4 * MIB, 0), Parsed::Request { .. }));
        assert!(!passes(&gate, command::READ, MIB));
    }
}

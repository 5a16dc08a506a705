//! Cases of the greeting, the client's flags and the framing of options.

use crate::case::{Case, ensure, must, should};
use crate::peer::Peer;
use crate::session::{Session, Style};
use crate::wire::{EXTENDED_REQUEST, REQUEST, hello, info_request, opt, option, rep};

const NEWSTYLE: &str = "Newstyle negotiation";
const FIXED: &str = "Fixed newstyle negotiation";
const CLIENT: &str = "Client flags";
const SERVER: &str = "Handshake flags";
const ENDING: &str = "Termination of the session during option haggling";

/// All of them.
pub(crate) const CASES: &[Case] = &[
    must(
        "greeting.magic",
        NEWSTYLE,
        "The server speaks first: NBDMAGIC, IHAVEOPT, 16 bits of flags.",
        |world| Peer::greeted(&world.disk.connector).map(drop),
    ),
    must("greeting.fixed", SERVER, "A server of the fixed newstyle sets bit 0.", |world| {
        let peer = Peer::greeted(&world.disk.connector)?;
        ensure!(peer.greeting & 1 != 0, "flags {:#x}", peer.greeting);
        Ok(())
    }),
    should("greeting.no-zeroes", SERVER, "Bit 1 offers to leave out the 124 zeroes.", |world| {
        let peer = Peer::greeted(&world.disk.connector)?;
        ensure!(peer.greeting & 2 != 0, "flags {:#x}", peer.greeting);
        Ok(())
    }),
    must("greeting.no-other", SERVER, "No bit but 0 and 1 is set.", |world| {
        let peer = Peer::greeted(&world.disk.connector)?;
        ensure!(peer.greeting & !3 == 0, "flags {:#x}", peer.greeting);
        Ok(())
    }),
    must(
        "greeting.same",
        "TLS support, server-side requirements",
        "A server does not change its mode within a connection, nor its greeting for no reason.",
        |world| {
            let first = Peer::greeted(&world.disk.connector)?.greeting;
            let second = Peer::greeted(&world.disk.connector)?.greeting;
            ensure!(first == second, "flags {first:#x}, then {second:#x}");
            Ok(())
        },
    ),
    must(
        "client-flags.bit-2",
        CLIENT,
        "An unknown client flag makes the server drop the connection: bit 2.",
        |world| {
            let mut peer = Peer::greeted(&world.disk.connector)?;
            peer.send(&7_u32.to_be_bytes())?;
            peer.dropped().map(drop)
        },
    ),
    must(
        "client-flags.bit-31",
        CLIENT,
        "An unknown client flag makes the server drop the connection: bit 31.",
        |world| {
            let mut peer = Peer::greeted(&world.disk.connector)?;
            peer.send(&0x8000_0003_u32.to_be_bytes())?;
            peer.dropped().map(drop)
        },
    ),
    must(
        "client-flags.all",
        CLIENT,
        "An unknown client flag makes the server drop the connection: all 32 bits.",
        |world| {
            let mut peer = Peer::greeted(&world.disk.connector)?;
            peer.send(&u32::MAX.to_be_bytes())?;
            peer.dropped().map(drop)
        },
    ),
    must(
        "client-flags.unknown-alone",
        CLIENT,
        "An unknown client flag makes the server drop the connection, the known ones missing too.",
        |world| {
            let mut peer = Peer::greeted(&world.disk.connector)?;
            peer.send(&0x10_u32.to_be_bytes())?;
            peer.dropped().map(drop)
        },
    ),
    must(
        "client-flags.fixed-only",
        CLIENT,
        "A client may leave NO_ZEROES out and use any option.",
        |world| {
            let mut peer = Peer::with_flags(&world.disk.connector, hello::FIXED_NEWSTYLE)?;
            peer.in_step(&world.disk)
        },
    ),
    must(
        "client-flags.none",
        NEWSTYLE,
        "A client without FIXED_NEWSTYLE can use EXPORT_NAME: size, flags, 124 zeroes.",
        |world| {
            let mut peer = Peer::with_flags(&world.disk.connector, 0)?;
            peer.send(&option(opt::EXPORT_NAME, world.disk.name()))?;
            let told = peer.take(134)?;
            ensure!(told[..8] == world.disk.size.to_be_bytes(), "size {:x?}", &told[..8]);
            ensure!(told[10..].iter().all(|byte| *byte == 0), "the padding is not zero");
            Session::over(peer, Style::Simple, world.disk.size, 0).in_step()
        },
    )
    .plain(),
    must(
        "client-flags.no-zeroes-only",
        CLIENT,
        "NO_ZEROES holds for a client that is not of the fixed newstyle, too.",
        |world| {
            let mut peer = Peer::with_flags(&world.disk.connector, hello::NO_ZEROES)?;
            peer.send(&option(opt::EXPORT_NAME, world.disk.name()))?;
            peer.take(10)?;
            Session::over(peer, Style::Simple, world.disk.size, 0).in_step()
        },
    )
    .plain(),
    must(
        "option.magic",
        FIXED,
        "Each option starts with IHAVEOPT; what does not is a violation, and no option.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            let mut bytes = option(opt::LIST, &[]);
            bytes[7] ^= 1;
            peer.send(&bytes)?;
            peer.dropped().map(drop)
        },
    ),
    must(
        "option.reply-magic",
        FIXED,
        "A reply to an option has its own magic and repeats the option's number.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            for number in [opt::LIST, 77, opt::INFO, 0xdead_beef] {
                peer.option(number, &[])?;
            }
            Ok(())
        },
    ),
    must(
        "option.bytewise",
        FIXED,
        "The handshake is a stream: pieces of one byte are as good as one.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            for byte in option(opt::INFO, &info_request(world.disk.name(), &[3, 1])) {
                peer.send(&[byte])?;
            }
            peer.answer(opt::INFO)?.export()?;
            peer.in_step(&world.disk)
        },
    ),
    must(
        "option.flags-and-option-at-once",
        FIXED,
        "Flags and an option in one segment are told apart.",
        |world| {
            let mut peer = Peer::greeted(&world.disk.connector)?;
            peer.send(&[&3_u32.to_be_bytes()[..], &option(opt::ABORT, &[])].concat())?;
            peer.answer(opt::ABORT)?.acked()?;
            peer.dropped().map(drop)
        },
    ),
    must(
        "option.pipelined",
        FIXED,
        "Options that come in one segment are answered in order.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            let ask = option(opt::INFO, &info_request(world.disk.name(), &[]));
            peer.send(&[option(77, b"x"), ask, option(opt::STRUCTURED_REPLY, &[])].concat())?;
            peer.answer(77)?.refused(&[rep::ERR_UNSUP])?;
            peer.answer(opt::INFO)?.export()?;
            peer.answer(opt::STRUCTURED_REPLY)?;
            peer.in_step(&world.disk)
        },
    ),
    must(
        "option.go-and-request-at-once",
        FIXED,
        "Bytes behind a successful GO belong to transmission.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            let mut bytes = option(opt::GO, &info_request(world.disk.name(), &[]));
            bytes.extend_from_slice(&REQUEST.to_be_bytes());
            bytes.extend_from_slice(&[0, 0, 0, 0]);
            bytes.extend_from_slice(&7_u64.to_be_bytes());
            bytes.extend_from_slice(&0_u64.to_be_bytes());
            bytes.extend_from_slice(&512_u32.to_be_bytes());
            peer.send(&bytes)?;
            let (size, flags) = peer.answer(opt::GO)?.export()?;
            let mut session = Session::over(peer, Style::Simple, size, flags);
            let mut request = session.request(0, 0, 0, 512);
            request.cookie = 7;
            session.owe(request);
            session.reply()?.1.succeeded()?;
            session.in_step()
        },
    ),
    must(
        "option.request-too-early",
        FIXED,
        "A request where an option belongs is a violation.",
        |world| {
            for magic in [REQUEST, EXTENDED_REQUEST] {
                let mut peer = Peer::open(&world.disk.connector)?;
                peer.send(&[&magic.to_be_bytes()[..], &[0; 24]].concat())?;
                peer.dropped()?;
            }
            Ok(())
        },
    ),
    should(
        "option.thirty-two",
        ENDING,
        "A server answers options patiently; 32 of them are no attack.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            for round in 0..30 {
                peer.option(opt::INFO, &info_request(world.disk.name(), &[round]))?.export()?;
            }
            peer.in_step(&world.disk)
        },
    ),
    must(
        "option.ten-thousand",
        ENDING,
        "A server may hang up on what it takes for an attack: 10,000 options are answered or cut \
         off, in whole replies.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            for _ in 0..10_000 {
                if peer.send(&option(4242, &[])).is_err() {
                    break;
                }
                match peer.answer(4242) {
                    Ok(answer) => answer.refused(&[rep::ERR_UNSUP, rep::ERR_POLICY])?,
                    Err(_) => break,
                }
            }
            let mut peer = Peer::open(&world.disk.connector)?;
            peer.in_step(&world.disk)
        },
    ),
    should(
        "option.error-text",
        "Option reply types",
        "An error reply may carry words for a person, and clients show them.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            let mut mute = Vec::new();
            let bad = info_request(b"no-such-export", &[]);
            let asked: [(u32, &[u8]); 4] =
                [(77, &[]), (opt::LIST, b"x"), (opt::INFO, &bad), (opt::GO, &[0])];
            for (number, data) in asked {
                let answer = peer.option(number, data)?;
                ensure!(answer.verdict() & rep::ERROR != 0, "option {number} did not fail");
                if answer.text().is_empty() {
                    mute.push(number);
                }
            }
            ensure!(mute.is_empty(), "no words with the errors of options {mute:?}");
            Ok(())
        },
    ),
    must(
        "handshake.hang-up",
        ENDING,
        "A client that vanishes at any byte of the handshake harms nobody else.",
        |world| {
            let all =
                [&3_u32.to_be_bytes()[..], &option(opt::GO, &info_request(b"x", &[]))].concat();
            for end in 0..all.len() {
                let mut peer = Peer::greeted(&world.disk.connector)?;
                peer.send(&all[..end])?;
            }
            Peer::open(&world.disk.connector)?.in_step(&world.disk)
        },
    ),
    must(
        "abort.ack",
        "NBD_OPT_ABORT",
        "ABORT is answered with ACK; then the connection ends.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            let answer = peer.option(opt::ABORT, &[])?;
            ensure!(answer.acked()?.is_empty(), "replies before the ACK of ABORT");
            peer.dropped().map(drop)
        },
    ),
    should("abort.data", "NBD_OPT_ABORT", "Data with ABORT is ignored, not refused.", |world| {
        for length in [1, 16, 4096] {
            let mut peer = Peer::open(&world.disk.connector)?;
            peer.option(opt::ABORT, &vec![0xff; length])?.acked()?;
            peer.dropped()?;
        }
        Ok(())
    }),
    must(
        "abort.later",
        "NBD_OPT_ABORT",
        "A client may end the handshake this way at any time.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            peer.option(opt::STRUCTURED_REPLY, &[])?;
            peer.option(opt::LIST, &[])?;
            peer.ask(opt::GO, b"no-such-export", &[])?;
            peer.option(opt::ABORT, &[])?.acked()?;
            peer.dropped().map(drop)
        },
    ),
    should(
        "abort.unread",
        "NBD_OPT_ABORT",
        "A client that sends ABORT and closes without reading is taken gracefully.",
        |world| {
            for _ in 0..20 {
                let mut peer = Peer::open(&world.disk.connector)?;
                peer.send(&option(opt::ABORT, &[]))?;
            }
            Peer::open(&world.disk.connector)?.in_step(&world.disk)
        },
    ),
    must(
        "abort.leaves-nothing",
        "NBD_OPT_ABORT",
        "The end of one handshake does not touch another under way.",
        |world| {
            let mut other = Peer::open(&world.disk.connector)?;
            other.option(opt::STRUCTURED_REPLY, &[])?;
            let mut peer = Peer::open(&world.disk.connector)?;
            peer.option(opt::ABORT, &[])?.acked()?;
            other.in_step(&world.disk)
        },
    ),
];

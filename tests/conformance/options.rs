//! Cases of unknown options, LIST, STARTTLS in the clear, STRUCTURED_REPLY and EXTENDED_HEADERS.

use crate::case::{Case, Outcome, Stop, ensure, must, should};
use crate::peer::{Peer, a_string};
use crate::session::{Session, Style};
use crate::wire::{Fields, can, info_request, opt, option, option_header, rep};
use crate::world::World;

const BASELINE: &str = "Compatibility and interoperability, baseline";
const LIST: &str = "NBD_OPT_LIST";
const NOTLS: &str = "TLS support, NOTLS mode";
const STRUCTURED: &str = "NBD_OPT_STRUCTURED_REPLY";
const EXTENDED: &str = "NBD_OPT_EXTENDED_HEADERS";

/// An option nobody knows is refused, its data skipped, and the next option understood.
fn unknown(world: &World, number: u32, data: &[u8]) -> Outcome {
    let mut peer = Peer::open(&world.disk.connector)?;
    peer.option(number, data)?.refused(&[rep::ERR_UNSUP])?;
    peer.in_step(&world.disk)
}

/// Names and descriptions of a LIST that succeeded.
fn listed(peer: &mut Peer) -> Outcome<Vec<(String, String)>> {
    let answer = peer.option(opt::LIST, &[])?;
    let mut found = Vec::new();
    for item in answer.acked()? {
        ensure!(item.kind == rep::SERVER, "LIST gives a reply of type {:#x}", item.kind);
        let mut fields = Fields(&item.data);
        let length = fields.u32().ok_or("a REP_SERVER without a name length")?;
        let name = fields.bytes(length as usize).ok_or("a name longer than its reply")?;
        found.push((a_string(name)?.to_owned(), a_string(fields.0)?.to_owned()));
    }
    Ok(found)
}

/// The transmission flags INFO tells now.
fn flags_now(peer: &mut Peer, world: &World) -> Outcome<u16> {
    peer.ask(opt::INFO, world.disk.name(), &[])?.export().map(|(_, flags)| flags)
}

/// All of them.
pub(crate) const CASES: &[Case] = &[
    must(
        "unknown-option.peek",
        BASELINE,
        "An option that is not implemented gets ERR_UNSUP: the withdrawn PEEK_EXPORT.",
        |world| unknown(world, opt::PEEK_EXPORT, b"disk"),
    ),
    must(
        "unknown-option.zero",
        BASELINE,
        "An option that is not implemented gets ERR_UNSUP: number 0.",
        |world| unknown(world, 0, &[]),
    ),
    must(
        "unknown-option.next",
        BASELINE,
        "An option that is not implemented gets ERR_UNSUP: the first unassigned number.",
        |world| unknown(world, 12, &[]),
    ),
    must(
        "unknown-option.last",
        BASELINE,
        "An option that is not implemented gets ERR_UNSUP: 2^31 and 2^32-1.",
        |world| {
            unknown(world, 1 << 31, &[])?;
            unknown(world, u32::MAX, b"abc")
        },
    ),
    must(
        "unknown-option.one-byte",
        BASELINE,
        "The message behind an unknown one is parsed: one byte is skipped.",
        |world| unknown(world, 999, b"x"),
    ),
    must(
        "unknown-option.4096",
        BASELINE,
        "The message behind an unknown one is parsed: 4096 and 4097 bytes are skipped.",
        |world| {
            unknown(world, 999, &[1; 4096])?;
            unknown(world, 999, &[1; 4097])
        },
    ),
    must(
        "unknown-option.100k",
        BASELINE,
        "The message behind an unknown one is parsed: 100,000 bytes are skipped.",
        |world| unknown(world, 999, &[1; 100_000]),
    ),
    must(
        "unknown-option.like-an-option",
        BASELINE,
        "Skipped data is not read as options.",
        |world| unknown(world, 999, &option(opt::ABORT, &[]).repeat(20)),
    ),
    must(
        "unknown-option.in-pieces",
        BASELINE,
        "Skipping works however the data is cut.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            let bytes = option(999, &[7; 3000]);
            for piece in bytes.chunks(701) {
                peer.send(piece)?;
            }
            peer.answer(999)?.refused(&[rep::ERR_UNSUP])?;
            peer.in_step(&world.disk)
        },
    ),
    should(
        "unknown-option.too-long",
        "Termination of the session during option haggling",
        "An option of 2^32-1 bytes is refused or cut off, not waited for.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            peer.send(&option_header(999, u32::MAX))?;
            peer.dropped().map(drop)
        },
    ),
    should(
        "known-option.too-long",
        "Termination of the session during option haggling",
        "A known option of 2^31 bytes is refused or cut off, not waited for.",
        |world| {
            for number in [opt::INFO, opt::GO, opt::LIST, opt::SET_META_CONTEXT, opt::EXPORT_NAME] {
                let mut peer = Peer::open(&world.disk.connector)?;
                peer.send(&option_header(number, 1 << 31))?;
                match peer.answer(number) {
                    Ok(answer) => ensure!(answer.verdict() != rep::ACK, "{number} is acknowledged"),
                    Err(Stop::Broken(what)) if what.contains("timed out") => {
                        return Err(what.into());
                    }
                    Err(Stop::Broken(what)) if what.contains("unavailable") => {
                        return Err(what.into());
                    }
                    Err(_) => {}
                }
            }
            Peer::open(&world.disk.connector)?.in_step(&world.disk)
        },
    ),
    must("list.ack", LIST, "LIST gives a SERVER reply per export, then ACK.", |world| {
        let mut peer = Peer::open(&world.disk.connector)?;
        listed(&mut peer).map(drop)
    }),
    must("list.our-export", LIST, "The list has the export by the name that GO takes.", |world| {
        let mut peer = Peer::open(&world.disk.connector)?;
        let names = listed(&mut peer)?;
        let found = names.iter().any(|(name, _)| name.as_bytes() == world.disk.name());
        ensure!(found, "{names:?} has no {:?}", world.disk.export);
        for (name, _) in &names {
            peer.ask(opt::INFO, name.as_bytes(), &[])?.export()?;
        }
        Ok(())
    }),
    should("list.data", LIST, "LIST with data is ERR_INVALID.", |world| {
        let mut peer = Peer::open(&world.disk.connector)?;
        for length in [1, 4, 4096] {
            peer.option(opt::LIST, &vec![0; length])?.refused(&[rep::ERR_INVALID])?;
        }
        peer.in_step(&world.disk)
    }),
    must("list.again", LIST, "Asking twice gives the same list.", |world| {
        let mut peer = Peer::open(&world.disk.connector)?;
        let first = listed(&mut peer)?;
        let second = listed(&mut peer)?;
        ensure!(first == second, "{first:?}, then {second:?}");
        Ok(())
    }),
    must(
        "starttls.refused",
        NOTLS,
        "STARTTLS gets an error, UNSUP or POLICY best, and the handshake goes on in the clear.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            let errors = [rep::ERR_UNSUP, rep::ERR_POLICY, rep::ERR_PLATFORM];
            peer.option(opt::STARTTLS, &[])?.refused(&errors)?;
            peer.in_step(&world.disk)
        },
    )
    .plain(),
    must(
        "starttls.refused-data",
        NOTLS,
        "STARTTLS with data gets an error and its data is skipped.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            let errors = [rep::ERR_UNSUP, rep::ERR_POLICY, rep::ERR_PLATFORM, rep::ERR_INVALID];
            peer.option(opt::STARTTLS, b"data")?.refused(&errors)?;
            peer.in_step(&world.disk)
        },
    )
    .plain(),
    must("starttls.keeps-state", NOTLS, "A refused STARTTLS forgets nothing.", |world| {
        let mut peer = Peer::open(&world.disk.connector)?;
        peer.agree(opt::STRUCTURED_REPLY)?;
        peer.option(opt::STARTTLS, &[])?;
        let flags = flags_now(&mut peer, world)?;
        ensure!(flags & can::DF != 0, "flags {flags:#x} after structured replies were agreed on");
        Ok(())
    })
    .plain(),
    must(
        "starttls.never-required",
        NOTLS,
        "A server without TLS never says ERR_TLS_REQD.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            for number in [opt::LIST, opt::STARTTLS, opt::STRUCTURED_REPLY, 999, opt::INFO] {
                let verdict = peer.option(number, &[])?.verdict();
                ensure!(verdict != rep::ERR_TLS_REQD, "option {number} wants TLS");
            }
            let verdict = peer.ask(opt::GO, b"no-such-export", &[])?.verdict();
            ensure!(verdict != rep::ERR_TLS_REQD, "an unknown export wants TLS");
            Ok(())
        },
    )
    .plain(),
    must(
        "structured.ack",
        STRUCTURED,
        "STRUCTURED_REPLY is acknowledged, without any other reply.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            peer.agree(opt::STRUCTURED_REPLY)
        },
    ),
    should(
        "structured.data",
        STRUCTURED,
        "With data it is ERR_INVALID, and nothing is agreed on.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            peer.option(opt::STRUCTURED_REPLY, b"x")?.refused(&[rep::ERR_INVALID])?;
            let flags = flags_now(&mut peer, world)?;
            ensure!(flags & can::DF == 0, "flags {flags:#x} after a refusal");
            Ok(())
        },
    ),
    must(
        "structured.twice",
        "Fixed newstyle negotiation",
        "A repeated change of state is accepted or ERR_INVALID, and the first one stays.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            peer.agree(opt::STRUCTURED_REPLY)?;
            let verdict = peer.option(opt::STRUCTURED_REPLY, &[])?.verdict();
            ensure!([rep::ACK, rep::ERR_INVALID].contains(&verdict), "{verdict:#x}");
            let mut session = Session::go(peer, &world.disk, Style::Structured)?;
            session.in_step()
        },
    ),
    must(
        "structured.df",
        "Transmission flags",
        "SEND_DF is clear before structured replies are agreed on, and set behind if DF works.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            let before = flags_now(&mut peer, world)?;
            ensure!(before & can::DF == 0, "flags {before:#x} before");
            peer.agree(opt::STRUCTURED_REPLY)?;
            let after = flags_now(&mut peer, world)?;
            ensure!(after & can::DF != 0, "flags {after:#x} behind");
            ensure!(after & !can::DF == before, "other flags changed: {before:#x}, {after:#x}");
            Ok(())
        },
    ),
    must(
        "extended.ack",
        EXTENDED,
        "EXTENDED_HEADERS is acknowledged; structured replies need not come first.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            peer.agree(opt::EXTENDED_HEADERS)?;
            Session::go(peer, &world.disk, Style::Extended)?.in_step()
        },
    ),
    must(
        "extended.after-structured",
        EXTENDED,
        "It may follow structured replies, and takes precedence.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            peer.agree(opt::STRUCTURED_REPLY)?;
            peer.agree(opt::EXTENDED_HEADERS)?;
            Session::go(peer, &world.disk, Style::Extended)?.in_step()
        },
    ),
    should(
        "extended.data",
        EXTENDED,
        "With data it is ERR_INVALID, and nothing is agreed on.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            peer.agree(opt::EXTENDED_HEADERS)?;
            let mut peer = Peer::open(&world.disk.connector)?;
            peer.option(opt::EXTENDED_HEADERS, &[0; 4])?.refused(&[rep::ERR_INVALID])?;
            Session::go(peer, &world.disk, Style::Simple)?.in_step()
        },
    ),
    must(
        "extended.twice",
        "Fixed newstyle negotiation",
        "A repeated change of state is accepted or ERR_INVALID, and the first one stays.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            peer.agree(opt::EXTENDED_HEADERS)?;
            let verdict = peer.option(opt::EXTENDED_HEADERS, &[])?.verdict();
            ensure!([rep::ACK, rep::ERR_INVALID].contains(&verdict), "{verdict:#x}");
            Session::go(peer, &world.disk, Style::Extended)?.in_step()
        },
    ),
    must(
        "extended.no-way-back",
        STRUCTURED,
        "STRUCTURED_REPLY after extended headers is ERR_EXT_HEADER_REQD, and headers stay \
         extended.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            peer.agree(opt::EXTENDED_HEADERS)?;
            let answer = peer.option(opt::STRUCTURED_REPLY, &[])?;
            answer.refused(&[rep::ERR_EXT_HEADER_REQD])?;
            Session::go(peer, &world.disk, Style::Extended)?.in_step()
        },
    ),
    must(
        "extended.go",
        "NBD_OPT_INFO and NBD_OPT_GO",
        "With extended headers agreed on, GO is never ERR_UNSUP.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            peer.agree(opt::EXTENDED_HEADERS)?;
            let verdict = peer.option(opt::GO, &info_request(b"no-such-export", &[]))?.verdict();
            ensure!(verdict == rep::ERR_UNKNOWN, "{verdict:#x}");
            Ok(())
        },
    ),
    must(
        "extended.export-name",
        EXTENDED,
        "A client must not use EXPORT_NAME then; the server cannot answer it and hangs up.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            peer.agree(opt::EXTENDED_HEADERS)?;
            peer.send(&option(opt::EXPORT_NAME, world.disk.name()))?;
            peer.dropped().map(drop)
        },
    ),
    should(
        "extended.not-required",
        "Maximum interoperability",
        "A server with extended headers still serves clients that never heard of them.",
        |world| {
            for style in [Style::Simple, Style::Structured] {
                Session::start(&world.disk, style)?.in_step()?;
            }
            Ok(())
        },
    ),
    must(
        "extended.df",
        "Transmission flags",
        "SEND_DF comes with extended headers, too, and BLOCK_STATUS_PAYLOAD only with them.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            peer.agree(opt::STRUCTURED_REPLY)?;
            let before = flags_now(&mut peer, world)?;
            ensure!(
                before & can::BLOCK_STATUS_PAYLOAD == 0,
                "flags {before:#x} with compact headers"
            );
            peer.agree(opt::EXTENDED_HEADERS)?;
            let after = flags_now(&mut peer, world)?;
            ensure!(after & can::DF != 0, "flags {after:#x} with extended headers");
            Ok(())
        },
    ),
];

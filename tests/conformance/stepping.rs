//! Cases of the stream itself: unknown commands, cookies, order, the end of a connection; and of
//! read-only exports.

use crate::case::{Case, Outcome, ensure, must, should};
use crate::link::Ending;
use crate::session::{Session, Style};
use crate::wire::{EXTENDED_REQUEST, SIMPLE_REPLY, bit, can, cmd, err};
use crate::world::{MIB, World};

const TRANSMISSION: &str = "Transmission";
const REQUESTS: &str = "Request message";
const ERRORS: &str = "Error values";
const ENDING: &str = "Terminating the transmission phase";
const DISC: &str = "NBD_CMD_DISC";
const LOCKED: &str = "Transmission flags, READ_ONLY";

/// Where the cases of this file may write.
const AT: u64 = 140 * MIB;

/// A command nobody knows is EINVAL in all styles, and the stream stays in step.
fn unknown(world: &World, command: u16, flags: u16) -> Outcome {
    for style in Style::ALL {
        let mut session = Session::start(&world.disk, style)?;
        for (offset, length) in [(0, 0), (0, 512), (u64::MAX, u64::from(u32::MAX))] {
            session.fails(command, flags, (offset, length), &[err::EINVAL])?;
        }
    }
    Ok(())
}

/// A refusal of the read-only export, in all styles.
fn locked(world: &World, command: u16, flags: u16) -> Outcome {
    for style in Style::ALL {
        let mut session = Session::start(world.read_only()?, style)?;
        if command == cmd::WRITE {
            session.refuses_write(flags, 0, 70_000, &[err::EPERM])?;
        } else {
            session.fails(command, flags, (0, 4096), &[err::EPERM])?;
        }
    }
    Ok(())
}

/// Bytes that are no request end the connection.
fn nonsense(world: &World, style: Style, bytes: &[u8]) -> Outcome {
    let mut session = Session::start(&world.disk, style)?;
    session.send_unheard(bytes);
    session.gone()?;
    Session::start(&world.disk, style)?.in_step()
}

/// Writes that are under way when DISC comes are on the disk when the connection has ended.
fn finished(world: &World, style: Style, rounds: u8) -> Outcome {
    for round in 1..=rounds {
        let mut session = Session::start(&world.disk, style)?;
        let mut bytes = Vec::new();
        for place in 0..16 {
            let request = session.request(cmd::WRITE, 0, AT + place * 4096, 4096);
            bytes.extend_from_slice(&session.header(&request));
            bytes.resize(bytes.len() + 4096, round);
        }
        let last = session.request(cmd::DISC, 0, 0, 0);
        bytes.extend_from_slice(&session.header(&last));
        session.peer.send(&bytes)?;
        session.peer.link.drain()?;
        let data = Session::start(&world.disk, Style::Simple)?.read(AT, 65_536)?;
        ensure!(data == vec![round; 65_536], "round {round}: a write is lost");
    }
    Ok(())
}

/// All of the stream.
pub(crate) const CASES: &[Case] = &[
    should("command.next", ERRORS, "An unknown command is EINVAL: 9 and 10.", |world| {
        unknown(world, 9, 0)?;
        unknown(world, 10, 0)
    }),
    should("command.last", ERRORS, "An unknown command is EINVAL: 256, 2^15, 2^16-1.", |world| {
        unknown(world, 256, 0)?;
        unknown(world, 1 << 15, 0)?;
        unknown(world, u16::MAX, 0)
    }),
    should("command.flags", ERRORS, "An unknown command is EINVAL, whatever its flags.", |world| {
        for flags in [bit::FUA, bit::DF, bit::REQ_ONE | bit::FUA, 0xffdf] {
            unknown(world, 99, flags)?;
        }
        Ok(())
    }),
    must(
        "request.magic",
        REQUESTS,
        "A request starts with its magic; anything else is a violation.",
        |world| {
            nonsense(world, Style::Simple, &[0; 28])?;
            nonsense(world, Style::Structured, &[0xff; 28])?;
            nonsense(world, Style::Extended, &[0; 32])?;
            nonsense(
                world,
                Style::Structured,
                &[&SIMPLE_REPLY.to_be_bytes()[..], &[0; 24]].concat(),
            )
        },
    ),
    must(
        "request.extended-magic",
        REQUESTS,
        "Without extended headers an extended request is a violation.",
        |world| {
            for style in [Style::Simple, Style::Structured] {
                nonsense(world, style, &[&EXTENDED_REQUEST.to_be_bytes()[..], &[0; 28]].concat())?;
            }
            Ok(())
        },
    ),
    must(
        "request.swapped-magic",
        "Reserved Magic values",
        "The historic magic of the other byte order is no request.",
        |world| {
            nonsense(world, Style::Simple, &[&0x1256_0953_u32.to_be_bytes()[..], &[0; 24]].concat())
        },
    ),
    must("request.option", REQUESTS, "There is no way back to options.", |world| {
        nonsense(world, Style::Structured, &crate::wire::option(2, &[0; 64]))
    }),
    must("request.bytewise", REQUESTS, "A header in pieces is a header.", |world| {
        for style in Style::ALL {
            let mut session = Session::start(&world.disk, style)?;
            let request = session.request(cmd::READ, 0, 0, 512);
            for byte in session.header(&request) {
                session.peer.send(&[byte])?;
            }
            session.owe(request);
            session.reply()?.1.succeeded()?;
            session.in_step()?;
        }
        Ok(())
    }),
    must("request.cut", ENDING, "A client that vanishes within a request harms nobody.", |world| {
        for style in Style::ALL {
            for end in 1..28 {
                let mut session = Session::start(&world.disk, style)?;
                let request = session.request(cmd::WRITE, 0, AT, 4096);
                let header = session.header(&request);
                session.peer.send(&header[..end])?;
            }
        }
        Session::start(&world.disk, Style::Simple)?.in_step()
    }),
    must(
        "cookie.opaque",
        TRANSMISSION,
        "A reply has its request's cookie, whatever that is.",
        |world| {
            for style in Style::ALL {
                let mut session = Session::start(&world.disk, style)?;
                for cookie in [0, 1, u64::MAX, 1 << 63, 0x2560_9513_6744_6698] {
                    session.next_cookie = cookie;
                    let mut request = session.request(cmd::READ, 0, 0, 512);
                    request.cookie = cookie;
                    session.next_cookie = 5;
                    session.send(request, &[])?;
                    session.reply()?.1.succeeded()?;
                }
                for command in [cmd::FLUSH, 99] {
                    session.next_cookie = u64::MAX - 1;
                    session.ask(command, 0, 0, 0, &[])?;
                }
            }
            Ok(())
        },
    ),
    must(
        "cookie.reused",
        TRANSMISSION,
        "A cookie may be used again when its request was answered.",
        |world| {
            for style in Style::ALL {
                let mut session = Session::start(&world.disk, style)?;
                for round in 0..20 {
                    session.next_cookie = 42;
                    session.ok(cmd::READ, 0, round * 512, 512)?;
                }
            }
            Ok(())
        },
    ),
    should(
        "cookie.twice",
        TRANSMISSION,
        "A client should not use a cookie twice at a time; if it does, each request is answered \
         once.",
        |world| {
            for style in Style::ALL {
                let mut session = Session::start(&world.disk, style)?;
                for _ in 0..8 {
                    session.next_cookie = 7;
                    let request = session.request(cmd::READ, 0, 4096, 4096);
                    session.send(request, &[])?;
                }
                let count = session.replies()?.len();
                ensure!(count == 8, "{count} replies");
                session.in_step()?;
            }
            Ok(())
        },
    ),
    must(
        "order.pipelined",
        TRANSMISSION,
        "Many requests at once are each answered once, in any order.",
        |world| {
            for style in Style::ALL {
                let mut session = Session::start(&world.disk, style)?;
                session.write(AT, &vec![0x3c; 200 << 10])?;
                let mut bytes = Vec::new();
                for place in 0..200 {
                    let offset = AT + place * 1024;
                    let (command, payload): (u16, &[u8]) = match place % 5 {
                        0 => (cmd::WRITE, &[0x3c; 1024]),
                        1 => (cmd::FLUSH, &[]),
                        2 => (cmd::CACHE, &[]),
                        3 => (99, &[]),
                        _ => (cmd::READ, &[]),
                    };
                    let flush = command == cmd::FLUSH;
                    let (offset, length) = if flush { (0, 0) } else { (offset, 1024) };
                    let request = session.request(command, 0, offset, length);
                    bytes.extend_from_slice(&session.header(&request));
                    bytes.extend_from_slice(payload);
                    session.owe(request);
                }
                session.peer.send(&bytes)?;
                for (request, reply) in session.replies()? {
                    match request.command {
                        99 => reply.failed(&[err::EINVAL])?,
                        cmd::READ => ensure!(reply.data == [0x3c; 1024], "other bytes"),
                        _ => reply.succeeded()?,
                    }
                }
            }
            Ok(())
        },
    ),
    must(
        "order.reads-of-all-sizes",
        TRANSMISSION,
        "Replies and chunks of several reads may come interleaved, and each is whole.",
        |world| {
            for style in Style::ALL {
                let mut session = Session::start(&world.disk, style)?;
                for length in [4 * MIB, 1, 3 * MIB + 77, 512, 2 * MIB, 4096, 7] {
                    let request = session.request(cmd::READ, 0, AT - MIB + 3, length);
                    session.send(request, &[])?;
                }
                ensure!(session.replies()?.len() == 7, "not seven replies");
            }
            Ok(())
        },
    ),
    must(
        "order.flush-after-write",
        "Ordering of messages and writes",
        "A FLUSH covers what was answered before it; both are answered.",
        |world| {
            let mut session = Session::start(&world.disk, Style::Structured)?;
            for round in 0..8 {
                let request = session.request(cmd::WRITE, 0, AT + round * 512, 512);
                session.send(request, &[9; 512])?;
                let request = session.request(cmd::FLUSH, 0, 0, 0);
                session.send(request, &[])?;
            }
            for (_, reply) in session.replies()? {
                reply.succeeded()?;
            }
            Ok(())
        },
    ),
    must("disc.closes", DISC, "DISC has no reply; the server closes.", |world| {
        for style in Style::ALL {
            let mut session = Session::start(&world.disk, style)?;
            session.in_step()?;
            ensure!(session.leave()? == Ending::Clean, "{style:?}: not a clean end");
        }
        Ok(())
    }),
    must(
        "disc.finishes-writes",
        DISC,
        "Outstanding requests are handled first: no write is lost.",
        |world| {
            finished(world, Style::Simple, 40)?;
            finished(world, Style::Structured, 40)?;
            finished(world, Style::Extended, 40)
        },
    ),
    must(
        "disc.finishes-reads",
        DISC,
        "Outstanding requests are handled first: reads are answered, then the connection ends.",
        |world| {
            for style in Style::ALL {
                let mut session = Session::start(&world.disk, style)?;
                for place in 0..8 {
                    let request = session.request(cmd::READ, 0, AT + place, 65_536);
                    session.send(request, &[])?;
                }
                let last = session.request(cmd::DISC, 0, 0, 0);
                let bytes = session.header(&last);
                session.peer.send(&bytes)?;
                for (_, reply) in session.replies()? {
                    reply.succeeded()?;
                }
                session.dropped()?;
            }
            Ok(())
        },
    ),
    must(
        "disc.leaves-others",
        ENDING,
        "The end of one connection does not touch another.",
        |world| {
            let mut other = Session::start(&world.disk, Style::Structured)?;
            Session::start(&world.disk, Style::Structured)?.leave()?;
            drop(Session::start(&world.disk, Style::Extended)?);
            other.in_step()
        },
    ),
    must(
        "hang-up.unread-replies",
        ENDING,
        "A client that vanishes with replies pending harms nobody.",
        |world| {
            for style in Style::ALL {
                let mut session = Session::start(&world.disk, style)?;
                for _ in 0..8 {
                    let request = session.request(cmd::READ, 0, 1, 8 * MIB);
                    session.send(request, &[])?;
                }
            }
            Session::start(&world.disk, Style::Simple)?.in_step()
        },
    ),
    should(
        "error-text.everywhere",
        "Structured reply chunk message",
        "Errors come as chunks with words, for every command.",
        |world| {
            let mut session = Session::start(&world.disk, Style::Structured)?;
            let end = session.size;
            for command in [cmd::READ, cmd::TRIM, cmd::WRITE_ZEROES, cmd::CACHE, 7, 99] {
                let reply = session.ask(command, 0, end, 512, &[])?;
                ensure!(reply.error.is_some(), "command {command} succeeds beyond the end");
                ensure!(!reply.simple && !reply.text.is_empty(), "command {command} fails mutely");
            }
            let reply = session.ask(cmd::WRITE, 0, end, 512, &[0; 512])?;
            ensure!(!reply.simple && !reply.text.is_empty(), "WRITE fails mutely");
            Ok(())
        },
    ),
];

/// All of read-only exports.
pub(crate) const READ_ONLY: &[Case] = &[
    must("read-only.flag", LOCKED, "An export that refuses writes says so.", |world| {
        for style in Style::ALL {
            let session = Session::start(world.read_only()?, style)?;
            ensure!(session.flags & can::READ_ONLY != 0, "{:#x}", session.flags);
        }
        Ok(())
    }),
    must(
        "read-only.write",
        LOCKED,
        "WRITE is an error, EPERM best; its payload is skipped.",
        |world| {
            locked(world, cmd::WRITE, 0)?;
            locked(world, cmd::WRITE, bit::FUA)
        },
    ),
    must("read-only.trim", LOCKED, "TRIM is an error, EPERM best.", |world| {
        locked(world, cmd::TRIM, 0)
    }),
    must("read-only.zeroes", LOCKED, "WRITE_ZEROES is an error, EPERM best.", |world| {
        locked(world, cmd::WRITE_ZEROES, 0)?;
        locked(world, cmd::WRITE_ZEROES, bit::NO_HOLE | bit::FUA)
    }),
    must("read-only.others", LOCKED, "Commands that do not write work.", |world| {
        for style in Style::CHUNKED {
            let mut session = Session::with(world.read_only()?, style, &["base:allocation"])?;
            session.in_step()?;
            session.ok(cmd::BLOCK_STATUS, 0, 0, MIB)?;
            if session.flags & can::FLUSH != 0 {
                session.ok(cmd::FLUSH, 0, 0, 0)?;
            }
            if session.flags & can::CACHE != 0 {
                session.ok(cmd::CACHE, 0, 0, MIB)?;
            }
        }
        Ok(())
    }),
    must("read-only.unchanged", LOCKED, "After all refusals the disk is what it was.", |world| {
        let mut session = Session::start(world.read_only()?, Style::Simple)?;
        let before = session.read(0, 65_536)?;
        session.refuses_write(0, 0, 65_536, &err::ALL)?;
        session.ask(cmd::TRIM, 0, 0, 65_536, &[])?.failed(&err::ALL)?;
        session.ask(cmd::WRITE_ZEROES, 0, 0, 65_536, &[])?.failed(&err::ALL)?;
        ensure!(session.read(0, 65_536)? == before, "it changed");
        Ok(())
    }),
];

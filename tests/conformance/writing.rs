//! Cases of WRITE and FLUSH.

use crate::case::{Case, Outcome, Stop, ensure, must, should};
use crate::peer::Peer;
use crate::session::{Session, Style};
use crate::wire::{bit, cmd, err};
use crate::world::{KIB, MIB, World};

const WRITE: &str = "NBD_CMD_WRITE";
const FLUSH: &str = "NBD_CMD_FLUSH";
const ERRORS: &str = "Error values";
const FLAGS: &str = "Command flags";
const SIZES: &str = "Block size constraints";
const MULTI: &str = "Transmission flags, CAN_MULTI_CONN";

/// Where the cases of this file may write.
const AT: u64 = 70 * MIB;

/// A WRITE that is refused, in all styles: payload skipped, stream in step, bytes untouched.
fn refused(
    world: &World,
    flags: u16,
    errors: &[u32],
    range: impl Fn(u64) -> (u64, usize),
) -> Outcome {
    for style in Style::ALL {
        let mut session = Session::start(&world.disk, style)?;
        let before = session.read(session.size - 8192, 8192)?;
        let (offset, length) = range(session.size);
        session.refuses_write(flags, offset, length, errors)?;
        let after = session.read(session.size - 8192, 8192)?;
        ensure!(before == after, "{style:?}: a refused write changed the disk");
    }
    Ok(())
}

/// Writes in all styles and reads back with another connection.
fn lands(world: &World, flags: u16, offset: u64, length: usize) -> Outcome {
    for (style, byte) in Style::ALL.into_iter().zip([0x31, 0x32, 0x33]) {
        let mut session = Session::start(&world.disk, style)?;
        let data = vec![byte; length];
        session.ask(cmd::WRITE, flags, offset, length as u64, &data)?.succeeded()?;
        let read = session.read(offset, length as u64)?;
        ensure!(read == data, "{style:?}: other bytes than were written");
        session.leave()?;
        let read = Session::start(&world.disk, Style::Simple)?.read(offset, length as u64)?;
        ensure!(read == data, "{style:?}: other bytes on another connection");
    }
    Ok(())
}

/// A long write: served, or refused cleanly and skipped, or the connection ends.
fn clean(world: &World, style: Style, length: u64) -> Outcome {
    let mut session = Session::start(&world.disk, style)?;
    let request = session.request(cmd::WRITE, 0, 0, length);
    let header = session.header(&request);
    session.owe(request);
    session.send_unheard(&header);
    let piece = vec![0; 1 << 20];
    for _ in 0..length / MIB {
        session.send_unheard(&piece);
    }
    session.send_unheard(&piece[..(length % MIB) as usize]);
    if let Ok((_, reply)) = session.reply() {
        reply.failed(&[err::EINVAL, err::ENOSPC, err::EOVERFLOW, err::ENOMEM])?;
        // In step, or gone; but never something else.
        match session.in_step() {
            Err(Stop::Broken(what)) if what.contains("a frame of") => return Err(what.into()),
            _ => {}
        }
    }
    Session::start(&world.disk, style)?.in_step()
}

/// All of them.
pub(crate) const CASES: &[Case] = &[
    must("write.lands", WRITE, "Bytes are written before the reply is sent.", |world| {
        lands(world, 0, AT, 4096)
    }),
    must(
        "write.bytes",
        SIZES,
        "Any offset and length is served if the minimum is 1, and touches nothing else.",
        |world| {
            for style in Style::ALL {
                let mut session = Session::start(&world.disk, style)?;
                session.write(AT, &[0xee; 4096])?;
                for (offset, length) in [(1, 1), (511, 2), (1023, 514), (4095, 1)] {
                    session.write(AT + offset, &vec![0x11; length])?;
                }
                let mut expected = [0xee; 4096];
                for (offset, length) in [(1, 1), (511, 2), (1023, 514), (4095, 1)] {
                    expected[offset..offset + length].fill(0x11);
                }
                ensure!(session.read(AT, 4096)? == expected, "{style:?}: other bytes");
            }
            Ok(())
        },
    ),
    must("write.across", WRITE, "A write may cross any boundary inside the image.", |world| {
        lands(world, 0, 72 * MIB - 77, 3 << 20)
    }),
    must("write.last-bytes", WRITE, "The last bytes of the export can be written.", |world| {
        lands(world, 0, world.disk.size - 1000, 1000)?;
        lands(world, 0, world.disk.size - 1, 1)
    }),
    must("write.fua", FLAGS, "FUA with WRITE: written, durable, then answered.", |world| {
        lands(world, bit::FUA, AT + 1, 8191)
    }),
    must("write.32-mib", SIZES, "Lengths up to 2^25 are no attack: 32 MiB are written.", |world| {
        lands(world, 0, AT, 32 << 20)
    }),
    should(
        "write.64-mib",
        SIZES,
        "Clients exist that write up to 64 MiB at once; they are served.",
        |world| lands(world, 0, AT + 1, 64 << 20),
    ),
    must(
        "write.beyond-64-mib",
        SIZES,
        "What is too long is refused cleanly, or ends the connection; the server lives on.",
        |world| {
            clean(world, Style::Simple, 64 * MIB + 1)?;
            clean(world, Style::Structured, 64 * MIB + 512)?;
            clean(world, Style::Extended, 64 * MIB + 1)
        },
    ),
    must(
        "write.announced",
        SIZES,
        "A payload announced with 2^31 or 2^32-1 bytes that never comes harms nobody.",
        |world| {
            for length in [1 << 31, u64::from(u32::MAX)] {
                let mut session = Session::start(&world.disk, Style::Simple)?;
                let request = session.request(cmd::WRITE, 0, 0, length);
                let header = session.header(&request);
                session.send_unheard(&header);
                session.send_unheard(&[0; 1024]);
                Session::start(&world.disk, Style::Simple)?.in_step()?;
            }
            Ok(())
        },
    ),
    should(
        "write.past-end",
        ERRORS,
        "WRITE beyond the end is ENOSPC, its payload skipped, nothing written.",
        |world| refused(world, 0, &[err::ENOSPC], |size| (size - 511, 512)),
    ),
    should("write.at-end", ERRORS, "WRITE beyond the end is ENOSPC: starting at it.", |world| {
        refused(world, 0, &[err::ENOSPC], |size| (size, 1))
    }),
    should(
        "write.far",
        ERRORS,
        "WRITE beyond the end is ENOSPC: 2^63 and 2^64-1 as offset.",
        |world| {
            refused(world, 0, &[err::ENOSPC, err::EINVAL], |_| (1 << 63, 512))?;
            refused(world, 0, &[err::ENOSPC, err::EINVAL], |_| (u64::MAX, 700))
        },
    ),
    should(
        "write.long-past-end",
        ERRORS,
        "WRITE beyond the end is ENOSPC: 1 MiB of payload is skipped.",
        |world| refused(world, 0, &[err::ENOSPC], |size| (size - 4096, 1 << 20)),
    ),
    should(
        "write.foreign-flags",
        ERRORS,
        "A flag of another command is EINVAL: NO_HOLE, DF, REQ_ONE, FAST_ZERO with WRITE.",
        |world| {
            for flag in [bit::NO_HOLE, bit::DF, bit::REQ_ONE, bit::FAST_ZERO] {
                refused(world, flag, &[err::EINVAL], |size| (size - 4096, 4096))?;
            }
            Ok(())
        },
    ),
    should(
        "write.unknown-flags",
        ERRORS,
        "An unknown flag is EINVAL with WRITE; the payload is skipped.",
        |world| {
            for flag in [1 << 6, 1 << 15] {
                refused(world, flag, &[err::EINVAL], |size| (size - 4096, 4096))?;
            }
            Ok(())
        },
    ),
    should("write.nothing", WRITE, "A length of 0 does not end the connection.", |world| {
        for style in [Style::Simple, Style::Structured] {
            let mut session = Session::start(&world.disk, style)?;
            session.ask(cmd::WRITE, 0, AT, 0, &[])?;
            session.in_step()?;
        }
        Ok(())
    }),
    should(
        "write.payload-like-requests",
        WRITE,
        "Payload is not read as requests, also of a refused write.",
        |world| {
            for style in Style::ALL {
                let mut session = Session::start(&world.disk, style)?;
                let hidden = session.request(cmd::DISC, 0, 0, 0);
                let payload = session.header(&hidden).repeat(64);
                let length = payload.len() as u64;
                session.write(AT, &payload)?;
                let end = session.size;
                let reply = session.ask(cmd::WRITE, 0, end, length, &payload)?;
                reply.failed(&[err::ENOSPC])?;
                session.in_step()?;
            }
            Ok(())
        },
    ),
    should("write.torn", WRITE, "A write whose payload ends too early changes nothing.", |world| {
        for style in Style::ALL {
            let mut session = Session::start(&world.disk, style)?;
            session.write(AT, &vec![0xcc; 1 << 20])?;
            let request = session.request(cmd::WRITE, 0, AT, MIB);
            let mut bytes = session.header(&request);
            bytes.resize(bytes.len() + (1 << 20) - 1, 0xdd);
            session.peer.send(&bytes)?;
            session.half_close()?;
            session.dropped()?;
            let data = Session::start(&world.disk, style)?.read(AT, MIB)?;
            ensure!(data == vec![0xcc; 1 << 20], "{style:?}: half a write is on the disk");
        }
        Ok(())
    }),
    must("write.slow", WRITE, "A payload in many pieces is one payload.", |world| {
        let mut session = Session::start(&world.disk, Style::Structured)?;
        let request = session.request(cmd::WRITE, 0, AT, 10_000);
        let bytes = [session.header(&request), vec![0x6b; 10_000]].concat();
        session.owe(request);
        for piece in bytes.chunks(333) {
            session.peer.send(piece)?;
        }
        session.reply()?.1.succeeded()?;
        ensure!(session.read(AT, 10_000)? == vec![0x6b; 10_000], "other bytes");
        Ok(())
    }),
    must(
        "flush.succeeds",
        FLUSH,
        "FLUSH is answered when all answered writes are durable.",
        |world| {
            for style in Style::ALL {
                let mut session = Session::start(&world.disk, style)?;
                session.write(AT, &[1; 4096])?;
                session.ok(cmd::FLUSH, 0, 0, 0)?;
                session.ok(cmd::FLUSH, 0, 0, 0)?;
            }
            Ok(())
        },
    ),
    must(
        "flush.fua",
        FLAGS,
        "FUA is accepted with every command if it is offered: FLUSH.",
        |world| {
            for style in Style::ALL {
                Session::start(&world.disk, style)?.ok(cmd::FLUSH, bit::FUA, 0, 0)?;
            }
            Ok(())
        },
    ),
    must(
        "flush.reserved",
        FLUSH,
        "Offset and length are reserved: a FLUSH with them succeeds or is EINVAL, in step.",
        |world| {
            for style in Style::ALL {
                let mut session = Session::start(&world.disk, style)?;
                for (offset, length) in [(0, 512), (512, 0), (u64::MAX, 0xffff_ffff)] {
                    let reply = session.ask(cmd::FLUSH, 0, offset, length, &[])?;
                    ensure!([None, Some(err::EINVAL)].contains(&reply.error), "{:?}", reply.error);
                    session.in_step()?;
                }
            }
            Ok(())
        },
    ),
    should("flush.flags", ERRORS, "A flag of another command is EINVAL with FLUSH.", |world| {
        for style in Style::ALL {
            let mut session = Session::start(&world.disk, style)?;
            for flag in [bit::NO_HOLE, bit::DF, bit::REQ_ONE, bit::FAST_ZERO, 1 << 15] {
                session.fails(cmd::FLUSH, flag, (0, 0), &[err::EINVAL])?;
            }
        }
        Ok(())
    }),
    must(
        "flush.other-connection",
        MULTI,
        "A FLUSH covers writes answered on other connections, and its effect is visible on all.",
        |world| {
            let mut writer = Session::start(&world.disk, Style::Structured)?;
            let mut flusher = Session::start(&world.disk, Style::Simple)?;
            let mut reader = Session::start(&world.disk, Style::Extended)?;
            for round in 0..10_u8 {
                writer.write(AT + u64::from(round) * KIB, &[round | 0x80; 1024])?;
                flusher.ok(cmd::FLUSH, 0, 0, 0)?;
                let data = reader.read(AT + u64::from(round) * KIB, KIB)?;
                ensure!(data == [round | 0x80; 1024], "round {round}: old bytes");
            }
            Ok(())
        },
    ),
    must(
        "write.fua-other-connection",
        MULTI,
        "What was written with FUA is visible on all connections when it is answered.",
        |world| {
            let mut writer = Session::start(&world.disk, Style::Extended)?;
            let mut reader = Session::start(&world.disk, Style::Simple)?;
            for round in 0..10_u8 {
                writer.ask(cmd::WRITE, bit::FUA, AT, 512, &[round; 512])?.succeeded()?;
                ensure!(reader.read(AT, 512)? == [round; 512], "round {round}: old bytes");
            }
            Ok(())
        },
    ),
    must("multi-conn.many", MULTI, "Connections side by side see one disk.", |world| {
        let open = || Session::start(&world.disk, Style::Structured);
        let mut all = (0..16).map(|_| open()).collect::<Outcome<Vec<_>>>()?;
        for (number, session) in all.iter_mut().enumerate() {
            session.write(AT + number as u64 * 512, &[number as u8 + 1; 512])?;
        }
        for session in &mut all {
            let data = session.read(AT, 16 * 512)?;
            let right = data.chunks(512).zip(1..).all(|(piece, byte)| *piece == [byte; 512]);
            ensure!(right, "a connection sees other bytes");
        }
        Peer::open(&world.disk.connector)?.in_step(&world.disk)
    }),
];

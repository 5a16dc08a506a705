//! Cases of BLOCK_STATUS: the arithmetic of extents, and that what is told is true.

use crate::case::{Case, Outcome, ensure, must, should};
use crate::reply::{Reply, Status};
use crate::session::{Session, Style};
use crate::wire::{bit, cmd, err, state};
use crate::world::{GIB, IN_LEAF, IN_PARENT, KIB, MIB, World};

const STATUS: &str = "NBD_CMD_BLOCK_STATUS";
const CHUNK: &str = "Structured reply types, BLOCK_STATUS";
const ALLOCATION: &str = "base:allocation metadata context";
const ERRORS: &str = "Error values";
const QEMU: &str = "Metadata querying, the qemu: namespace";

const BASE: &str = "base:allocation";
const DEPTH: &str = "qemu:allocation-depth";
const LEAF: &str = "qemu:dirty-bitmap:leaf";

/// Where the cases of this file may write.
const AT: u64 = 100 * MIB;

/// A session with `base:allocation` on the main disk.
fn open(world: &World, style: Style) -> Outcome<Session> {
    Session::with(&world.disk, style, &[BASE])
}

/// The first status of a BLOCK_STATUS that must succeed.
fn status(session: &mut Session, flags: u16, offset: u64, length: u64) -> Outcome<Status> {
    let reply = session.ask(cmd::BLOCK_STATUS, flags, offset, length, &[])?;
    reply.succeeded()?;
    reply.statuses.into_iter().next().ok_or_else(|| "no status".into())
}

/// The flags of one byte in a context's answer about a range that starts at `from`.
fn flags_at(reply: &Reply, id: u32, from: u64, at: u64) -> Outcome<u32> {
    let mut place = from;
    for (length, flags) in &reply.status(id)?.extents {
        place += length;
        if at < place {
            return Ok(*flags);
        }
    }
    Err(format!("byte {at} is not told of").into())
}

/// The id of a selected context.
fn id_of(session: &Session, name: &str) -> Outcome<u32> {
    let found = session.contexts.iter().find(|(_, other)| other == name);
    found.map(|(id, _)| *id).ok_or_else(|| format!("{name} is not selected").into())
}

/// A query in all chunked styles that fails with EINVAL.
fn invalid(world: &World, flags: u16, range: impl Fn(u64) -> (u64, u64)) -> Outcome {
    for style in Style::CHUNKED {
        let mut session = open(world, style)?;
        let range = range(session.size);
        session.fails(cmd::BLOCK_STATUS, flags, range, &[err::EINVAL])?;
    }
    Ok(())
}

/// Data in the middle of zeroes.
fn island(session: &mut Session) -> Outcome {
    session.ok(cmd::WRITE_ZEROES, 0, AT, 8 * MIB)?;
    session.write(AT + 4 * MIB, &vec![0x99; 64 << 10])
}

/// All of them.
pub(crate) const CASES: &[Case] = &[
    must(
        "status.one-chunk",
        STATUS,
        "Success is exactly one status chunk per selected context.",
        |world| {
            for style in Style::CHUNKED {
                let mut session = Session::with(&world.disk, style, &[BASE, DEPTH, LEAF])?;
                session.ok(cmd::BLOCK_STATUS, 0, 0, MIB)?;
                session.ok(cmd::BLOCK_STATUS, 0, session.size - 512, 512)?;
            }
            Ok(())
        },
    ),
    must(
        "status.extents",
        CHUNK,
        "All extents but the last end inside the range, none is empty.",
        |world| {
            for style in Style::CHUNKED {
                let mut session = open(world, style)?;
                island(&mut session)?;
                for length in [1, 511, 512, MIB, 4 * MIB, 4 * MIB + 1, 8 * MIB, 16 * MIB] {
                    status(&mut session, 0, AT, length)?;
                }
            }
            Ok(())
        },
    ),
    must(
        "status.req-one",
        CHUNK,
        "REQ_ONE gets exactly one extent, not beyond the range.",
        |world| {
            for style in Style::CHUNKED {
                let mut session = Session::with(&world.disk, style, &[BASE, DEPTH, LEAF])?;
                island(&mut session)?;
                for (offset, length) in
                    [(0, 1), (0, 512), (0, 8 * MIB), (4 * MIB, 8 * MIB), (77, 3)]
                {
                    let range = (AT + offset, length);
                    session.ok(cmd::BLOCK_STATUS, bit::REQ_ONE, range.0, range.1)?;
                }
                session.ok(cmd::BLOCK_STATUS, bit::REQ_ONE, 0, session.size)?;
            }
            Ok(())
        },
    ),
    must("status.zero-is-zero", ALLOCATION, "What is told as ZERO reads as zeroes.", |world| {
        let mut session = open(world, Style::Structured)?;
        island(&mut session)?;
        let found = status(&mut session, 0, AT, 8 * MIB)?;
        let mut at = AT;
        for (length, flags) in &found.extents {
            let length = (*length).min(AT + 8 * MIB - at);
            let data = session.read(at, length)?;
            let zero = flags & state::ZERO == 0 || data.iter().all(|byte| *byte == 0);
            ensure!(zero, "{length} bytes at {at} are told as zero");
            at += length;
        }
        Ok(())
    }),
    must("status.data-is-data", ALLOCATION, "What was written is not told as ZERO.", |world| {
        for style in Style::CHUNKED {
            let mut session = open(world, style)?;
            island(&mut session)?;
            let reply = session.ask(cmd::BLOCK_STATUS, 0, AT, 8 * MIB, &[])?;
            let id = id_of(&session, BASE)?;
            let covered = reply.status(id)?.length();
            for at in [4 * MIB, 4 * MIB + 65_535] {
                if at < covered {
                    let flags = flags_at(&reply, id, AT, AT + at)?;
                    ensure!(flags & state::ZERO == 0, "data at {at} is told as zero");
                }
            }
        }
        Ok(())
    }),
    should(
        "status.zeroes-told",
        ALLOCATION,
        "Status beyond 0 is told where it is easily known: zeroed and untouched ranges are ZERO.",
        |world| {
            let own = world.own()?;
            let mut session = Session::with(&own.target, Style::Structured, &[BASE])?;
            let found = status(&mut session, 0, 0, 64 * MIB)?;
            let both = state::HOLE | state::ZERO;
            ensure!(found.extents.iter().all(|(_, flags)| *flags == both), "{:?}", found.extents);
            Ok(())
        },
    ),
    should(
        "status.reserved",
        ALLOCATION,
        "Bits but HOLE and ZERO are reserved, and zero.",
        |world| {
            for style in Style::CHUNKED {
                let mut session = open(world, style)?;
                island(&mut session)?;
                let size = session.size;
                let found = status(&mut session, 0, 0, size)?;
                ensure!(found.extents.iter().all(|(_, flags)| flags & !3 == 0), "{found:?}");
            }
            Ok(())
        },
    ),
    should("status.differs", STATUS, "Neighbouring extents differ in status.", |world| {
        for style in Style::CHUNKED {
            let mut session = Session::with(&world.disk, style, &[BASE, DEPTH, LEAF])?;
            island(&mut session)?;
            let size = session.size;
            let reply = session.ask(cmd::BLOCK_STATUS, 0, 0, size, &[])?;
            for found in &reply.statuses {
                let same = found.extents.windows(2).any(|two| two[0].1 == two[1].1);
                ensure!(!same, "{found:?}");
            }
        }
        Ok(())
    }),
    should(
        "status.alignment",
        STATUS,
        "Lengths are multiples of 512 if the request is.",
        |world| {
            for style in Style::CHUNKED {
                let mut session = open(world, style)?;
                session.write(AT + 100, &[1; 77])?;
                let size = session.size;
                let found = status(&mut session, 0, 0, size)?;
                let whole = found.extents.iter().all(|(length, _)| length % 512 == 0);
                ensure!(whole, "{found:?}");
            }
            Ok(())
        },
    ),
    must(
        "status.progress",
        STATUS,
        "At least one extent comes, so a client gets to the end of any disk.",
        |world| {
            for style in Style::CHUNKED {
                let mut session = open(world, style)?;
                island(&mut session)?;
                let mut at = 0;
                let mut rounds = 0;
                while at < session.size {
                    let left = session.size - at;
                    at += status(&mut session, 0, at, left)?.length();
                    rounds += 1;
                    ensure!(rounds < 10_000, "no end");
                }
                ensure!(at <= session.size.next_multiple_of(MIB), "extents go on to {at}");
            }
            Ok(())
        },
    ),
    must(
        "status.odd-ranges",
        STATUS,
        "Any offset and length is answered if the minimum is 1.",
        |world| {
            for style in Style::CHUNKED {
                let mut session = open(world, style)?;
                island(&mut session)?;
                for (offset, length) in [(1, 1), (511, 2), (4 * MIB - 1, 2), (4 * MIB + 5, 99_999)]
                {
                    status(&mut session, 0, AT + offset, length)?;
                }
                let end = session.size;
                status(&mut session, 0, end - 1, 1)?;
            }
            Ok(())
        },
    ),
    should("status.past-end", STATUS, "A range beyond the end is EINVAL.", |world| {
        invalid(world, 0, |size| (size - 511, 512))?;
        invalid(world, 0, |size| (size, 1))?;
        invalid(world, 0, |_| (u64::MAX, 1))?;
        invalid(world, bit::REQ_ONE, |_| (512, u64::from(u32::MAX)))
    }),
    should(
        "status.foreign-flags",
        ERRORS,
        "A flag of another command is EINVAL with BLOCK_STATUS.",
        |world| {
            for flag in [bit::NO_HOLE, bit::DF, bit::FAST_ZERO, 1 << 6, 1 << 15] {
                invalid(world, flag, |_| (0, 4096))?;
            }
            Ok(())
        },
    ),
    must(
        "status.fua",
        "Command flags",
        "FUA is accepted with every command if it is offered: BLOCK_STATUS.",
        |world| {
            for style in Style::CHUNKED {
                open(world, style)?.ok(cmd::BLOCK_STATUS, bit::FUA, 0, 65_536)?;
            }
            Ok(())
        },
    ),
    should("status.nothing", STATUS, "A length of 0 does not end the connection.", |world| {
        for style in Style::CHUNKED {
            let mut session = open(world, style)?;
            let request = session.request(cmd::BLOCK_STATUS, 0, 0, 0);
            session.send(request, &[])?;
            session.reply()?;
            session.in_step()?;
        }
        Ok(())
    }),
    should(
        "status.none-selected",
        "Metadata querying",
        "Without a selected context BLOCK_STATUS is EINVAL.",
        |world| {
            for style in Style::ALL {
                let mut session = Session::start(&world.disk, style)?;
                session.fails(cmd::BLOCK_STATUS, 0, (0, 4096), &[err::EINVAL])?;
                session.fails(cmd::BLOCK_STATUS, bit::REQ_ONE, (0, 4096), &[err::EINVAL])?;
            }
            Ok(())
        },
    ),
    must(
        "status.write-allocates",
        ALLOCATION,
        "HOLE tells of missing allocation: what was just written is none.",
        |world| {
            for style in Style::CHUNKED {
                let mut session = open(world, style)?;
                session.ok(cmd::TRIM, 0, AT, 2 * MIB)?;
                session.write(AT, &[3; 4096])?;
                let found = status(&mut session, bit::REQ_ONE, AT, 4096)?;
                ensure!(found.extents[0].1 == 0, "{found:?}");
            }
            Ok(())
        },
    ),
    must(
        "status.other-connection",
        "Transmission flags, CAN_MULTI_CONN",
        "What another connection wrote is told.",
        |world| {
            let mut writer = Session::start(&world.disk, Style::Simple)?;
            let mut asker = open(world, Style::Structured)?;
            writer.ok(cmd::TRIM, 0, AT, 2 * MIB)?;
            writer.write(AT + 8 * KIB, &[5; 4096])?;
            let found = status(&mut asker, bit::REQ_ONE, AT + 8 * KIB, 4096)?;
            ensure!(found.extents[0].1 == 0, "{found:?}");
            Ok(())
        },
    ),
    must(
        "status.narrow",
        CHUNK,
        "Compact headers get the chunk with 32-bit lengths, a multiple of 8 and 4 bytes.",
        |world| {
            let found = status(&mut open(world, Style::Structured)?, 0, 0, 4096)?;
            ensure!(!found.wide, "a 64-bit chunk");
            Ok(())
        },
    ),
    must(
        "status.wide",
        "Structured reply types, BLOCK_STATUS_EXT",
        "With extended headers an extent may be longer than 32 bits.",
        |world| {
            let mut session = Session::with(world.huge()?, Style::Extended, &[BASE])?;
            let found = status(&mut session, 0, 42 * GIB, 22 * GIB)?;
            ensure!(found.length() >= 22 * GIB, "{} bytes told", found.length());
            Ok(())
        },
    ),
    must(
        "status.long-compact",
        CHUNK,
        "A range of nearly 2^32 bytes is answered without a length overflowing.",
        |world| {
            let mut session = Session::with(world.huge()?, Style::Structured, &[BASE, DEPTH])?;
            for length in [1 << 31, u64::from(u32::MAX), u64::from(u32::MAX) - 511] {
                session.ok(cmd::BLOCK_STATUS, 0, 42 * GIB, length)?;
                session.ok(cmd::BLOCK_STATUS, bit::REQ_ONE, 42 * GIB, length)?;
            }
            Ok(())
        },
    ),
    should(
        "status.many-extents",
        STATUS,
        "At most 2^20 descriptors come in a chunk; a finely cut range is told in bounded replies.",
        |world| {
            let own = world.own()?;
            let mut session = Session::with(&own.target, Style::Structured, &[BASE])?;
            for place in 0..2000 {
                let request = session.request(cmd::WRITE, 0, place * 1024, 512);
                session.send(request, &[7; 512])?;
                if place % 50 == 49 {
                    session.replies()?;
                }
            }
            let found = status(&mut session, 0, 0, 2 * MIB)?;
            ensure!(found.extents.len() <= 1 << 20, "{} extents", found.extents.len());
            Ok(())
        },
    ),
    must(
        "status.depth",
        QEMU,
        "allocation-depth is 0 where no layer has data, 1 in the leaf, 2 in its parent.",
        |world| {
            for style in Style::CHUNKED {
                let mut session = Session::with(world.chain()?, style, &[DEPTH])?;
                for (at, depth) in [(IN_LEAF.0, 1), (IN_PARENT.0, 2), (0, 0)] {
                    let found = status(&mut session, bit::REQ_ONE, at, 4096)?;
                    ensure!(found.extents[0].1 == depth, "{found:?} at {at}, not {depth}");
                }
            }
            Ok(())
        },
    ),
    must(
        "status.dirty",
        QEMU,
        "The bitmap of the leaf is set where the leaf has data, clear elsewhere.",
        |world| {
            for style in Style::CHUNKED {
                let mut session = Session::with(world.chain()?, style, &[LEAF])?;
                for (at, dirty) in [(IN_LEAF.0, 1), (IN_PARENT.0, 0), (0, 0)] {
                    let found = status(&mut session, bit::REQ_ONE, at, 4096)?;
                    ensure!(found.extents[0].1 == dirty, "{found:?} at {at}, not {dirty}");
                }
            }
            Ok(())
        },
    ),
    must(
        "status.chain",
        ALLOCATION,
        "Allocation is told of the whole chain: a parent's data is no hole.",
        |world| {
            let mut session = Session::with(world.chain()?, Style::Structured, &[BASE])?;
            for (at, flags) in [(IN_LEAF.0, 0), (IN_PARENT.0, 0), (0, 3)] {
                let found = status(&mut session, bit::REQ_ONE, at, 4096)?;
                ensure!(found.extents[0].1 == flags, "{found:?} at {at}, not {flags}");
            }
            ensure!(session.read(IN_PARENT.0, 8192)? == IN_PARENT.1, "other bytes");
            Ok(())
        },
    ),
];

//! Cases of extended headers: 64-bit lengths, payloads that are announced, the filter of
//! BLOCK_STATUS.

use crate::case::{Case, Outcome, ensure, must, should};
use crate::reply::{Reply, check_extents};
use crate::session::{Session, Style};
use crate::wire::{REQUEST, bit, cmd, err};
use crate::world::{GIB, MIB, World};

const REQUESTS: &str = "Request message, extended";
const REPLIES: &str = "Extended reply chunk message";
const FLAG: &str = "Command flags, PAYLOAD_LEN";
const FILTER: &str = "NBD_CMD_BLOCK_STATUS, payload";
const SIZES: &str = "Block size constraints";

const BASE: &str = "base:allocation";
const DEPTH: &str = "qemu:allocation-depth";
const LEAF: &str = "qemu:dirty-bitmap:leaf";

/// Where the cases of this file may write.
const AT: u64 = 120 * MIB;

/// A session with extended headers.
fn open(world: &World) -> Outcome<Session> {
    Session::start(&world.disk, Style::Extended)
}

/// A session with extended headers and three contexts, on a server that filters.
fn filtering(world: &World) -> Outcome<Session> {
    let session = Session::with(&world.disk, Style::Extended, &[BASE, DEPTH, LEAF])?;
    session.filters()?;
    Ok(session)
}

/// The payload of a filtered BLOCK_STATUS.
fn filter(length: u64, ids: &[u32]) -> Vec<u8> {
    let mut payload = length.to_be_bytes().to_vec();
    payload.extend(ids.iter().flat_map(|id| id.to_be_bytes()));
    payload
}

/// A BLOCK_STATUS with this payload.
fn ask(session: &mut Session, offset: u64, flags: u16, payload: &[u8]) -> Outcome<Reply> {
    let flags = flags | bit::PAYLOAD_LEN;
    session.ask(cmd::BLOCK_STATUS, flags, offset, payload.len() as u64, payload)
}

/// A filter that is refused with EINVAL, its payload skipped.
fn refused(world: &World, payload: impl Fn(&[u32]) -> Vec<u8>) -> Outcome {
    let mut session = filtering(world)?;
    let ids: Vec<_> = session.contexts.iter().map(|(id, _)| *id).collect();
    ask(&mut session, 0, 0, &payload(&ids))?.failed(&[err::EINVAL])?;
    session.in_step()
}

/// A payload with a command that takes none: skipped, EINVAL.
fn needless(world: &World, command: u16) -> Outcome {
    for length in [1, 512, 4096, 100_000, 1 << 20] {
        let mut session = open(world)?;
        let before = session.read(AT, 4096)?;
        let payload = vec![0; length];
        let reply = session.ask(command, bit::PAYLOAD_LEN, AT, length as u64, &payload)?;
        reply.failed(&[err::EINVAL])?;
        ensure!(session.read(AT, 4096)? == before, "the disk changed");
        session.in_step()?;
    }
    Ok(())
}

/// Selected contexts by place.
fn only(world: &World, places: &[usize], flags: u16) -> Outcome {
    let mut session = filtering(world)?;
    let ids: Vec<_> = places.iter().map(|place| session.contexts[*place].0).collect();
    let mut request = session.request(cmd::BLOCK_STATUS, flags | bit::PAYLOAD_LEN, AT, 0);
    let payload = filter(4 * MIB, &ids);
    request.length = payload.len() as u64;
    session.send(request, &payload)?;
    let (_, reply) = session.reply()?;
    reply.succeeded()?;
    ensure!(reply.statuses.len() == ids.len(), "{} chunks", reply.statuses.len());
    for id in ids {
        request.length = 4 * MIB;
        check_extents(&request, reply.status(id)?)?;
    }
    session.in_step()
}

/// All of them.
pub(crate) const CASES: &[Case] = &[
    must(
        "extended.echo",
        REPLIES,
        "Every reply is an extended one and repeats the request's cookie and offset: success.",
        |world| {
            let mut session = Session::with(&world.disk, Style::Extended, &[BASE])?;
            session.write(AT, &[1; 512])?;
            for command in [cmd::READ, cmd::TRIM, cmd::CACHE, cmd::WRITE_ZEROES, cmd::BLOCK_STATUS]
            {
                session.ok(command, 0, AT + 512, 1024)?;
            }
            session.ok(cmd::FLUSH, 0, 0, 0)
        },
    ),
    must(
        "extended.echo-errors",
        REPLIES,
        "Every reply is an extended one and repeats the request's cookie and offset: errors.",
        |world| {
            let mut session = open(world)?;
            let end = session.size;
            for command in [cmd::READ, cmd::TRIM, cmd::CACHE, cmd::WRITE_ZEROES, 99, u16::MAX] {
                session.fails(command, 0, (end + 77, 512), &[err::EINVAL, err::ENOSPC])?;
                session.fails(command, 1 << 15, (u64::MAX - 3, 5), &[err::EINVAL, err::ENOSPC])?;
            }
            session.refuses_write(0, end + 1, 4096, &[err::ENOSPC, err::EINVAL])
        },
    ),
    must(
        "extended.compact-request",
        REQUESTS,
        "Only extended requests are valid then: a compact one is a violation.",
        |world| {
            let mut session = open(world)?;
            session.peer.send(&[&REQUEST.to_be_bytes()[..], &[0; 24]].concat())?;
            session.send_unheard(&[0; 4]);
            session.gone()
        },
    ),
    must("extended.bytewise", REQUESTS, "A header in pieces is a header.", |world| {
        let mut session = open(world)?;
        let request = session.request(cmd::READ, 0, 0, 512);
        for byte in session.header(&request) {
            session.peer.send(&[byte])?;
        }
        session.owe(request);
        session.reply()?.1.succeeded()?;
        session.in_step()
    }),
    must(
        "extended.zeroes-64-bit",
        REQUESTS,
        "WRITE_ZEROES takes a length beyond 32 bits.",
        |world| {
            let mut session = Session::start(world.huge()?, Style::Extended)?;
            session.write(9 * GIB, b"gone")?;
            session.ok(cmd::WRITE_ZEROES, 0, 5 * GIB, 5 * GIB)?;
            ensure!(session.read(9 * GIB, 4)? == [0; 4], "no zeroes");
            session.ok(cmd::WRITE_ZEROES, bit::FUA, 5 * GIB + 1, 5 * GIB).map(drop)
        },
    ),
    must("extended.trim-64-bit", REQUESTS, "TRIM takes a length beyond 32 bits.", |world| {
        let mut session = Session::start(world.huge()?, Style::Extended)?;
        session.write(20 * GIB - 4, b"kept")?;
        session.ok(cmd::TRIM, 0, 20 * GIB, 20 * GIB)?;
        ensure!(session.read(20 * GIB - 4, 4)? == b"kept", "bytes outside changed");
        Ok(())
    }),
    must(
        "extended.cache-64-bit",
        REQUESTS,
        "CACHE takes a length beyond 32 bits, or says EINVAL.",
        |world| {
            let mut session = Session::start(world.huge()?, Style::Extended)?;
            let reply = session.ask(cmd::CACHE, 0, 0, 33 * GIB, &[])?;
            ensure!([None, Some(err::EINVAL)].contains(&reply.error), "{:?}", reply.error);
            session.in_step()
        },
    ),
    must(
        "extended.status-64-bit",
        REQUESTS,
        "BLOCK_STATUS takes a length beyond 32 bits.",
        |world| {
            let mut session = Session::with(world.huge()?, Style::Extended, &[BASE, DEPTH, LEAF])?;
            let size = session.size;
            session.ok(cmd::BLOCK_STATUS, 0, 0, size)?;
            session.ok(cmd::BLOCK_STATUS, bit::REQ_ONE, 0, size)?;
            session.ok(cmd::BLOCK_STATUS, 0, 1, size - 1)
        },
    ),
    should(
        "extended.past-end",
        "Error values",
        "Lengths of 2^32, 2^63 and 2^64-1 beyond the end are clean errors.",
        |world| {
            let mut session = Session::with(&world.disk, Style::Extended, &[BASE])?;
            for length in [1 << 32, 1 << 63, u64::MAX, u64::MAX - 511] {
                for command in [cmd::READ, cmd::TRIM, cmd::CACHE, cmd::BLOCK_STATUS] {
                    session.fails(command, 0, (0, length), &[err::EINVAL])?;
                    session.fails(command, 0, (512, length), &[err::EINVAL])?;
                }
                session.fails(cmd::WRITE_ZEROES, 0, (512, length), &[err::ENOSPC, err::EINVAL])?;
            }
            Ok(())
        },
    ),
    must(
        "extended.read-beyond-32-bit",
        SIZES,
        "A READ no reply could hold is an error, not silence.",
        |world| {
            let mut session = Session::start(world.huge()?, Style::Extended)?;
            for length in [u64::from(u32::MAX), 1 << 32, 1 << 35] {
                let errors = [err::EINVAL, err::EOVERFLOW];
                session.fails(cmd::READ, 0, (0, length), &errors)?;
                session.fails(cmd::READ, bit::DF, (0, length), &errors)?;
            }
            Ok(())
        },
    ),
    should(
        "extended.payload-too-long",
        REQUESTS,
        "A payload above the maximum ends the connection rather than being waited for.",
        |world| {
            for length in [1 << 31, u64::from(u32::MAX), 1 << 32, 1 << 63, u64::MAX] {
                for command in [cmd::WRITE, cmd::READ, cmd::BLOCK_STATUS, 99] {
                    let mut session = open(world)?;
                    let flags = bit::PAYLOAD_LEN;
                    let request = session.request(command, flags, 0, length);
                    let header = session.header(&request);
                    session.send_unheard(&header);
                    session.gone()?;
                }
            }
            Session::start(&world.disk, Style::Extended)?.in_step()
        },
    ),
    must("payload.read", FLAG, "A payload with READ is skipped, and EINVAL.", |world| {
        needless(world, cmd::READ)
    }),
    must("payload.trim", FLAG, "A payload with TRIM is skipped, and EINVAL.", |world| {
        needless(world, cmd::TRIM)
    }),
    must("payload.zeroes", FLAG, "A payload with WRITE_ZEROES is skipped, and EINVAL.", |world| {
        needless(world, cmd::WRITE_ZEROES)
    }),
    must("payload.cache", FLAG, "A payload with CACHE is skipped, and EINVAL.", |world| {
        needless(world, cmd::CACHE)
    }),
    must("payload.flush", FLAG, "A payload with FLUSH is skipped, and EINVAL.", |world| {
        let mut session = open(world)?;
        let reply = session.ask(cmd::FLUSH, bit::PAYLOAD_LEN, 0, 4096, &[0; 4096])?;
        reply.failed(&[err::EINVAL])?;
        session.in_step()
    }),
    must(
        "payload.unknown-command",
        FLAG,
        "A payload with an unknown command is skipped, and EINVAL.",
        |world| needless(world, 77),
    ),
    must(
        "payload.status-unselected",
        FLAG,
        "A payload with BLOCK_STATUS without contexts is skipped, and EINVAL.",
        |world| {
            let mut session = open(world)?;
            ask(&mut session, 0, 0, &filter(4096, &[1]))?.failed(&[err::EINVAL])?;
            session.in_step()
        },
    ),
    must(
        "payload.empty",
        FLAG,
        "A payload of 0 bytes is none, and leaves the stream in step.",
        |world| {
            for command in [cmd::READ, cmd::WRITE, cmd::TRIM, cmd::BLOCK_STATUS] {
                let mut session = open(world)?;
                let request = session.request(command, bit::PAYLOAD_LEN, 0, 0);
                session.send(request, &[])?;
                session.reply()?;
                session.in_step()?;
            }
            Ok(())
        },
    ),
    must(
        "payload.compact",
        "Request message",
        "With compact headers PAYLOAD_LEN does not exist: EINVAL, and only WRITE has a payload.",
        |world| {
            let mut session = Session::start(&world.disk, Style::Structured)?;
            session.fails(cmd::READ, bit::PAYLOAD_LEN, (0, 512), &[err::EINVAL])?;
            session.fails(cmd::TRIM, bit::PAYLOAD_LEN, (AT, 512), &[err::EINVAL])?;
            session.refuses_write(bit::PAYLOAD_LEN, AT, 4096, &[err::EINVAL])
        },
    ),
    must("filter.one", FILTER, "The payload names the contexts to tell: each alone.", |world| {
        only(world, &[0], 0)?;
        only(world, &[1], 0)?;
        only(world, &[2], 0)
    }),
    must(
        "filter.some",
        FILTER,
        "The payload names the contexts to tell: two, in any order.",
        |world| {
            only(world, &[0, 2], 0)?;
            only(world, &[2, 1], 0)
        },
    ),
    must("filter.all", FILTER, "The payload names the contexts to tell: all.", |world| {
        only(world, &[2, 0, 1], 0)
    }),
    must("filter.req-one", FILTER, "REQ_ONE holds with a payload, too.", |world| {
        only(world, &[1], bit::REQ_ONE)?;
        only(world, &[0, 1, 2], bit::REQ_ONE | bit::FUA)
    }),
    must(
        "filter.unknown",
        FILTER,
        "An id that was not selected is EINVAL; the payload is skipped.",
        |world| {
            refused(world, |ids| filter(4096, &[ids[0] ^ 0x4000_0000]))?;
            refused(world, |ids| filter(4096, &[ids[0], u32::MAX]))?;
            refused(world, |ids| filter(4096, &[ids[0], ids[1], 0xffff]))
        },
    ),
    must("filter.twice", FILTER, "An id named twice is EINVAL; the payload is skipped.", |world| {
        refused(world, |ids| filter(4096, &[ids[0], ids[0]]))?;
        refused(world, |ids| filter(4096, &[ids[2], ids[1], ids[2]]))
    }),
    must(
        "filter.length",
        FILTER,
        "The payload has 8 bytes and 4 per id; anything else is EINVAL.",
        |world| {
            refused(world, |_| vec![0; 1])?;
            refused(world, |_| vec![0; 7])?;
            refused(world, |ids| filter(4096, &ids[..1])[..11].to_vec())?;
            refused(world, |ids| [filter(4096, ids), vec![0]].concat())
        },
    ),
    must(
        "filter.many",
        FILTER,
        "More ids than were selected are EINVAL; the payload is skipped.",
        |world| {
            refused(world, |ids| filter(4096, &ids.repeat(2)))?;
            refused(world, |ids| filter(4096, &ids.repeat(1000)))
        },
    ),
    must(
        "filter.range",
        FILTER,
        "The payload's length counts from the request's offset, and is judged as any.",
        |world| {
            let mut session = filtering(world)?;
            let id = session.contexts[0].0;
            let end = session.size;
            for (offset, length) in [(end - 512, 513), (0, u64::MAX), (u64::MAX, 1)] {
                let reply = ask(&mut session, offset, 0, &filter(length, &[id]))?;
                reply.failed(&[err::EINVAL])?;
                session.in_step()?;
            }
            ask(&mut session, end - 512, 0, &filter(512, &[id]))?.succeeded()?;
            ask(&mut session, 0, 0, &filter(end, &[id]))?.succeeded()
        },
    ),
];

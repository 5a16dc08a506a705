//! Cases of INFO and GO: what is told, in what form, and that the two agree.

use crate::case::{Case, Outcome, Stop, ensure, must, should};
use crate::peer::{Peer, a_string};
use crate::session::{Session, Style, agree_on};
use crate::wire::{Fields, can, cmd, err, info, opt, rep};
use crate::world::{MIB, World};

const ASKING: &str = "NBD_OPT_INFO and NBD_OPT_GO";
const REP_INFO: &str = "NBD_REP_INFO";
const SIZES: &str = "Block size constraints";
const FLAGS: &str = "Transmission flags";

/// What INFO tells of one kind, asked for it.
fn told(world: &World, kind: u16) -> Outcome<Option<Vec<u8>>> {
    let mut peer = Peer::open(&world.disk.connector)?;
    let all = peer.ask(opt::INFO, world.disk.name(), &[kind])?.information()?;
    Ok(all.into_iter().find(|(found, _)| *found == kind).map(|(_, data)| data))
}

/// The three block sizes: minimum, preferred, maximum.
fn sizes(world: &World) -> Outcome<[u32; 3]> {
    let data = told(world, info::BLOCK_SIZE)?;
    let data = data.ok_or_else(|| Stop::Lacking("INFO_BLOCK_SIZE".into()))?;
    ensure!(data.len() == 12, "INFO_BLOCK_SIZE with {} bytes behind its type", data.len());
    let mut fields = Fields(&data);
    Ok([(); 3].map(|()| fields.u32().unwrap_or_default()))
}

/// INFO, then GO with the same parameters, in a style: the same set of information.
fn agree(world: &World, style: Style, kinds: &[u16]) -> Outcome {
    let mut peer = Peer::open(&world.disk.connector)?;
    agree_on(&mut peer, style)?;
    let mut first = peer.ask(opt::INFO, world.disk.name(), kinds)?.information()?;
    let mut second = peer.ask(opt::GO, world.disk.name(), kinds)?.information()?;
    first.sort();
    second.sort();
    ensure!(first == second, "INFO tells {first:x?}, GO {second:x?}");
    Ok(())
}

/// Flags of the main disk in a style.
fn flags(world: &World, style: Style) -> Outcome<u16> {
    Session::start(&world.disk, style).map(|session| session.flags)
}

/// All of them.
pub(crate) const CASES: &[Case] = &[
    should(
        "flags.filter-unselected",
        "Transmission flags, BLOCK_STATUS_PAYLOAD",
        "It is not set by GO for a client that selected no metadata context.",
        |world| {
            let session = Session::start(&world.disk, Style::Extended)?;
            ensure!(session.flags & can::BLOCK_STATUS_PAYLOAD == 0, "{:#x}", session.flags);
            Ok(())
        },
    ),
    must(
        "info.export",
        REP_INFO,
        "Success means an INFO_EXPORT of 12 bytes: type, size, flags.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            let (size, _) = peer.ask(opt::INFO, world.disk.name(), &[])?.export()?;
            ensure!(size == world.disk.size, "{size} bytes, not {}", world.disk.size);
            Ok(())
        },
    ),
    must("info.stays", ASKING, "INFO does not end the handshake.", |world| {
        let mut peer = Peer::open(&world.disk.connector)?;
        peer.in_step(&world.disk)?;
        peer.option(opt::LIST, &[])?.acked()?;
        peer.in_step(&world.disk)
    }),
    must(
        "go.enters",
        ASKING,
        "A successful GO enters transmission, with no padding, whatever was said of zeroes.",
        |world| {
            let mut peer = Peer::with_flags(&world.disk.connector, 1)?;
            let (size, flags) = peer.ask(opt::GO, world.disk.name(), &[])?.export()?;
            Session::over(peer, Style::Simple, size, flags).in_step()
        },
    ),
    must(
        "go.after-failure",
        ASKING,
        "After a GO that failed the client may go on asking.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            for _ in 0..3 {
                peer.ask(opt::GO, b"no-such-export", &[])?.refused(&[rep::ERR_UNKNOWN])?;
            }
            Session::go(peer, &world.disk, Style::Simple)?.in_step()
        },
    ),
    must(
        "go.same-as-info",
        ASKING,
        "GO with the parameters of the INFO before it tells the same.",
        |world| agree(world, Style::Simple, &[]),
    ),
    must(
        "go.same-as-info-structured",
        ASKING,
        "GO with the parameters of the INFO before it tells the same: structured replies, every \
         kind.",
        |world| agree(world, Style::Structured, &[info::BLOCK_SIZE, info::NAME, info::DESCRIPTION]),
    ),
    must(
        "go.same-as-info-extended",
        ASKING,
        "GO with the parameters of the INFO before it tells the same: extended headers, every \
         kind.",
        |world| agree(world, Style::Extended, &[info::DESCRIPTION, info::NAME, info::BLOCK_SIZE]),
    ),
    must(
        "go.only-last-info",
        ASKING,
        "GO is free to differ from an INFO about something else.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            peer.ask(opt::INFO, b"no-such-export", &[])?;
            Session::go(peer, &world.disk, Style::Simple)?.in_step()
        },
    ),
    must(
        "info.unknown-kinds",
        ASKING,
        "Information requests that the server does not know are ignored.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            let kinds = [4, 100, 0x8000, u16::MAX];
            let all = peer.ask(opt::INFO, world.disk.name(), &kinds)?.information()?;
            let odd = all.iter().find(|(kind, _)| kinds.contains(kind));
            ensure!(odd.is_none(), "an answer to an unknown request: {odd:x?}");
            peer.ask(opt::GO, world.disk.name(), &kinds)?.export().map(drop)
        },
    ),
    should(
        "info.once",
        REP_INFO,
        "Each kind of information comes once, however often it was asked for.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            let kinds = [0, 0, 3, 3, 1, 1, 2, 2, 3];
            let all = peer.ask(opt::INFO, world.disk.name(), &kinds)?.information()?;
            let mut found: Vec<_> = all.iter().map(|(kind, _)| *kind).collect();
            found.sort_unstable();
            let count = found.len();
            found.dedup();
            ensure!(found.len() == count, "{all:x?}");
            Ok(())
        },
    ),
    must(
        "info.many",
        ASKING,
        "Very many requests are answered or too big, and the handshake goes on.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            let kinds: Vec<u16> = (0..20_000).collect();
            let verdict = peer.ask(opt::INFO, world.disk.name(), &kinds)?.verdict();
            let fine = [rep::ACK, rep::ERR_TOO_BIG, rep::ERR_INVALID].contains(&verdict);
            ensure!(fine, "{verdict:#x}");
            peer.in_step(&world.disk)
        },
    ),
    must(
        "info.block-size-not-required",
        ASKING,
        "A client that asks for block sizes is never told ERR_BLOCK_SIZE_REQD.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            let verdict = peer.ask(opt::GO, world.disk.name(), &[info::BLOCK_SIZE])?.verdict();
            ensure!(verdict != rep::ERR_BLOCK_SIZE_REQD, "it was");
            Ok(())
        },
    ),
    should(
        "info.block-size-optional",
        SIZES,
        "Clients that do not ask for block sizes are served, too.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            peer.ask(opt::GO, world.disk.name(), &[])?.acked().map(drop)
        },
    ),
    must(
        "info.block-size-form",
        REP_INFO,
        "INFO_BLOCK_SIZE has 14 bytes: type, minimum, preferred, maximum.",
        |world| sizes(world).map(drop),
    ),
    must("info.minimum", SIZES, "The minimum is a power of two, at most 65,536.", |world| {
        let [minimum, ..] = sizes(world)?;
        ensure!(minimum.is_power_of_two() && minimum <= 65_536, "{minimum}");
        Ok(())
    }),
    must(
        "info.preferred",
        SIZES,
        "The preferred size is a power of two, at least 512 and the minimum.",
        |world| {
            let [minimum, preferred, _] = sizes(world)?;
            let fine = preferred.is_power_of_two() && preferred >= minimum.max(512);
            ensure!(fine, "{preferred}");
            Ok(())
        },
    ),
    must(
        "info.maximum",
        SIZES,
        "The maximum is 2^32-1 or a multiple of the minimum, and not below the preferred size.",
        |world| {
            let [minimum, preferred, maximum] = sizes(world)?;
            ensure!(maximum == u32::MAX || maximum.is_multiple_of(minimum), "{maximum}");
            let least = u64::from(preferred).min(world.disk.size);
            ensure!(u64::from(maximum) >= least, "{maximum}, preferred {preferred}");
            Ok(())
        },
    ),
    should("info.maximum-size", SIZES, "The maximum is at least 2^20.", |world| {
        let [.., maximum] = sizes(world)?;
        ensure!(u64::from(maximum) >= MIB.min(world.disk.size), "{maximum}");
        Ok(())
    }),
    should(
        "info.size-aligned",
        SIZES,
        "The export's size is a multiple of the minimum, or its last bytes could not be reached.",
        |world| {
            let [minimum, ..] = sizes(world)?;
            ensure!(world.disk.size.is_multiple_of(minimum.into()), "minimum {minimum}");
            Ok(())
        },
    ),
    should(
        "info.default-sizes",
        SIZES,
        "Unless it was told otherwise, a minimum of 1 is supported.",
        |world| {
            let mut session = Session::start(&world.disk, Style::Simple)?;
            for (offset, length) in [(1, 1), (511, 2), (4095, 3), (world.disk.size - 1, 1)] {
                session.read(offset, length)?;
            }
            Ok(())
        },
    ),
    must("info.name", REP_INFO, "INFO_NAME is the canonical name, as LIST tells it.", |world| {
        let Some(data) = told(world, info::NAME)? else { return Ok(()) };
        let name = a_string(&data)?;
        let mut peer = Peer::open(&world.disk.connector)?;
        peer.ask(opt::INFO, name.as_bytes(), &[])?.export()?;
        let answer = peer.option(opt::LIST, &[])?;
        let item = [&(name.len() as u32).to_be_bytes()[..], name.as_bytes()].concat();
        let listed = answer.acked()?.iter().any(|reply| reply.data.starts_with(&item));
        ensure!(listed, "LIST does not have {name:?}");
        Ok(())
    }),
    must("info.description", REP_INFO, "INFO_DESCRIPTION is a string.", |world| {
        let data = told(world, info::DESCRIPTION)?.unwrap_or_default();
        a_string(&data).map(drop)
    }),
    must("flags.has-flags", FLAGS, "HAS_FLAGS is always set.", |world| {
        for style in Style::ALL {
            let found = flags(world, style)?;
            ensure!(found & can::HAS_FLAGS != 0, "{style:?}: {found:#x}");
        }
        Ok(())
    }),
    must(
        "flags.writable",
        FLAGS,
        "READ_ONLY is for exports that refuse writes; this one takes them.",
        |world| {
            let found = flags(world, Style::Simple)?;
            ensure!(found & can::READ_ONLY == 0, "{found:#x}");
            Ok(())
        },
    ),
    must(
        "flags.fast-zero",
        FLAGS,
        "SEND_FAST_ZERO is clear unless SEND_WRITE_ZEROES is set.",
        |world| {
            for style in Style::ALL {
                let found = flags(world, style)?;
                let fine = found & can::FAST_ZERO == 0 || found & can::WRITE_ZEROES != 0;
                ensure!(fine, "{style:?}: {found:#x}");
            }
            Ok(())
        },
    ),
    should(
        "flags.durable",
        "Maximum interoperability",
        "For the data's safety FLUSH and FUA are offered.",
        |world| {
            let found = flags(world, Style::Simple)?;
            ensure!(found & can::FLUSH != 0 && found & can::FUA != 0, "{found:#x}");
            Ok(())
        },
    ),
    should(
        "flags.everything",
        FLAGS,
        "A server sets the flag of each feature it has: orlop has TRIM, WRITE_ZEROES, CACHE, \
         FAST_ZERO and coherent connections.",
        |world| {
            let found = flags(world, Style::Simple)?;
            let all = can::TRIM | can::WRITE_ZEROES | can::CACHE | can::FAST_ZERO | can::MULTI_CONN;
            ensure!(found & all == all, "{found:#x}");
            Ok(())
        },
    ),
    must(
        "flags.no-resize",
        FLAGS,
        "No flag is set for what is not supported: RESIZE is off unless asked for.",
        |world| {
            let mut session = Session::start(&world.disk, Style::Structured)?;
            ensure!(session.flags & can::RESIZE == 0, "{:#x}", session.flags);
            session.fails(cmd::RESIZE, 0, (world.disk.size, 0), &[err::EINVAL])
        },
    ),
    must(
        "flags.same-for-all",
        FLAGS,
        "But for DF and BLOCK_STATUS_PAYLOAD, headers do not change what an export can do.",
        |world| {
            let depends = can::DF | can::BLOCK_STATUS_PAYLOAD;
            let simple = flags(world, Style::Simple)?;
            ensure!(simple & depends == 0, "simple: {simple:#x}");
            for style in Style::CHUNKED {
                let found = flags(world, style)?;
                ensure!(found & !depends == simple, "{style:?}: {found:#x}, simple: {simple:#x}");
            }
            Ok(())
        },
    ),
];

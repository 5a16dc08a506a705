//! Cases of WRITE_ZEROES, TRIM and CACHE.

use crate::case::{Case, Outcome, ensure, must, should};
use crate::session::{Session, Style};
use crate::wire::{bit, can, cmd, err, state};
use crate::world::{GIB, KIB, MIB, World};

const ZEROES: &str = "NBD_CMD_WRITE_ZEROES";
const TRIM: &str = "NBD_CMD_TRIM";
const CACHE: &str = "NBD_CMD_CACHE";
const ERRORS: &str = "Error values";
const FLAGS: &str = "Command flags";
const SIZES: &str = "Block size constraints";

/// Where the cases of this file may write.
const AT: u64 = 40 * MIB;

/// A command that fails with this error in all styles.
fn fails(
    world: &World,
    command: u16,
    flags: u16,
    errors: &[u32],
    range: impl Fn(u64) -> (u64, u64),
) -> Outcome {
    for style in Style::ALL {
        let mut session = Session::start(&world.disk, style)?;
        let range = range(session.size);
        session.fails(command, flags, range, errors)?;
    }
    Ok(())
}

/// Fills a range, runs a command inside it, and expects the bytes around it untouched; gives what
/// the command covered.
fn inside(session: &mut Session, command: u16, flags: u16, from: u64, to: u64) -> Outcome<Vec<u8>> {
    session.write(AT, &vec![0xb7; 256 << 10])?;
    session.ok(command, flags, AT + from, to - from)?;
    let data = session.read(AT, 256 * KIB)?;
    let (before, behind) = (&data[..from as usize], &data[to as usize..]);
    ensure!(before.iter().all(|byte| *byte == 0xb7), "bytes before the range changed");
    ensure!(behind.iter().all(|byte| *byte == 0xb7), "bytes behind the range changed");
    Ok(data[from as usize..to as usize].to_vec())
}

/// WRITE_ZEROES of a range in all styles: zeroes inside, nothing changed outside.
fn zeroes(world: &World, flags: u16, from: u64, to: u64) -> Outcome {
    for style in Style::ALL {
        let mut session = Session::start(&world.disk, style)?;
        let covered = inside(&mut session, cmd::WRITE_ZEROES, flags, from, to)?;
        ensure!(covered.iter().all(|byte| *byte == 0), "{style:?}: no zeroes");
    }
    Ok(())
}

/// FAST_ZERO: zeroes, or ENOTSUP and nothing changed.
fn fast(world: &World, flags: u16, from: u64, to: u64) -> Outcome {
    for style in Style::ALL {
        let mut session = Session::start(&world.disk, style)?;
        session.needs(can::FAST_ZERO, "FAST_ZERO")?;
        session.write(AT, &vec![0xb7; 256 << 10])?;
        let flags = flags | bit::FAST_ZERO;
        let reply = session.ask(cmd::WRITE_ZEROES, flags, AT + from, to - from, &[])?;
        let expected = match reply.error {
            None => 0,
            Some(err::ENOTSUP) => 0xb7,
            Some(error) => return Err(format!("{style:?}: error {error}").into()),
        };
        let data = session.read(AT + from, to - from)?;
        ensure!(data.iter().all(|byte| *byte == expected), "{style:?}: half done");
    }
    Ok(())
}

/// All of WRITE_ZEROES.
pub(crate) const CASES: &[Case] = &[
    must("zeroes.read-back", ZEROES, "What was zeroed reads as zeroes.", |world| {
        zeroes(world, 0, 0, 256 * KIB)
    }),
    must(
        "zeroes.bytes",
        SIZES,
        "Any offset and length is zeroed, and nothing beside it.",
        |world| {
            for (from, to) in [(1, 2), (511, 513), (4097, 70_001), (65_535, 131_073)] {
                zeroes(world, 0, from, to)?;
            }
            Ok(())
        },
    ),
    must("zeroes.fua", FLAGS, "FUA with WRITE_ZEROES: zeroed, durable, then answered.", |world| {
        zeroes(world, bit::FUA, 4096, 65_536)
    }),
    must("zeroes.no-hole", FLAGS, "NO_HOLE is supported wherever WRITE_ZEROES is.", |world| {
        zeroes(world, bit::NO_HOLE, 4096, 65_536)?;
        zeroes(world, bit::NO_HOLE | bit::FUA, 513, 1025)
    }),
    must("zeroes.no-hole-allocates", ZEROES, "NO_HOLE leaves no hole behind.", |world| {
        for style in Style::CHUNKED {
            let mut session = Session::with(&world.disk, style, &["base:allocation"])?;
            session.ok(cmd::TRIM, 0, AT, 4 * MIB)?;
            session.ok(cmd::WRITE_ZEROES, bit::NO_HOLE, AT, 4 * MIB)?;
            let reply = session.ask(cmd::BLOCK_STATUS, 0, AT, 4 * MIB, &[])?;
            reply.succeeded()?;
            let mut left = 4 * MIB;
            for (length, flags) in &reply.statuses[0].extents {
                ensure!(left == 0 || flags & state::HOLE == 0, "{style:?}: a hole is left");
                left = left.saturating_sub(*length);
            }
        }
        Ok(())
    }),
    must(
        "zeroes.fast",
        ZEROES,
        "FAST_ZERO either zeroes, or is ENOTSUP and changes nothing.",
        |world| fast(world, 0, 0, 256 * KIB),
    ),
    must(
        "zeroes.fast-unaligned",
        ZEROES,
        "FAST_ZERO either zeroes, or is ENOTSUP and changes nothing: odd bytes.",
        |world| fast(world, 0, 5, 7777),
    ),
    must(
        "zeroes.fast-no-hole",
        ZEROES,
        "FAST_ZERO with NO_HOLE either zeroes, or is ENOTSUP and changes nothing.",
        |world| {
            fast(world, bit::NO_HOLE, 0, 256 * KIB)?;
            fast(world, bit::NO_HOLE | bit::FUA, 4096, 8192)
        },
    ),
    should(
        "zeroes.fast-not-offered",
        ZEROES,
        "FAST_ZERO that was not offered is EINVAL, and ends nobody's server.",
        |world| {
            let mut session = Session::start(&world.disk, Style::Simple)?;
            if session.flags & can::FAST_ZERO == 0 {
                let range = (AT, 4096);
                session.fails(cmd::WRITE_ZEROES, bit::FAST_ZERO, range, &[err::EINVAL])?;
            }
            Session::start(&world.disk, Style::Simple)?.in_step()
        },
    ),
    must("zeroes.never-enotsup", ZEROES, "Without FAST_ZERO it is never ENOTSUP.", |world| {
        for (from, to) in [(0, 512), (1, 2), (0, 256 * KIB)] {
            zeroes(world, 0, from, to)?;
            zeroes(world, bit::NO_HOLE, from, to)?;
        }
        Ok(())
    }),
    should("zeroes.past-end", ERRORS, "WRITE_ZEROES beyond the end is ENOSPC.", |world| {
        let command = cmd::WRITE_ZEROES;
        fails(world, command, 0, &[err::ENOSPC], |size| (size - 511, 512))?;
        fails(world, command, bit::NO_HOLE, &[err::ENOSPC], |size| (size, 1))?;
        fails(world, command, 0, &[err::ENOSPC], |_| (0, u64::from(u32::MAX)))?;
        fails(world, command, 0, &[err::ENOSPC, err::EINVAL], |_| (u64::MAX, 1))
    }),
    should(
        "zeroes.foreign-flags",
        ERRORS,
        "A flag of another command is EINVAL with WRITE_ZEROES.",
        |world| {
            for flag in [bit::DF, bit::REQ_ONE, 1 << 6, 1 << 15] {
                fails(world, cmd::WRITE_ZEROES, flag, &[err::EINVAL], |_| (AT, 4096))?;
            }
            Ok(())
        },
    ),
    should("zeroes.nothing", ZEROES, "A length of 0 does not end the connection.", |world| {
        for style in Style::ALL {
            let mut session = Session::start(&world.disk, style)?;
            session.ask(cmd::WRITE_ZEROES, 0, AT, 0, &[])?;
            session.in_step()?;
        }
        Ok(())
    }),
    should(
        "zeroes.long",
        SIZES,
        "Without a payload a length above the maximum is no reason to hang up: 80 MiB and 3 GiB.",
        |world| {
            let mut session = Session::start(&world.disk, Style::Simple)?;
            session.ok(cmd::WRITE_ZEROES, 0, 0, 80 * MIB)?;
            let mut session = Session::start(world.huge()?, Style::Structured)?;
            session.write(2 * GIB + 5, b"gone")?;
            session.ok(cmd::WRITE_ZEROES, 0, 0, 3 * GIB)?;
            ensure!(session.read(2 * GIB, 512)? == [0; 512], "no zeroes");
            Ok(())
        },
    ),
];

/// All of TRIM and CACHE.
pub(crate) const HINTS: &[Case] = &[
    must(
        "trim.inside",
        TRIM,
        "TRIM succeeds, and leaves everything outside its range alone.",
        |world| {
            for style in Style::ALL {
                let mut session = Session::start(&world.disk, style)?;
                inside(&mut session, cmd::TRIM, 0, 64 * KIB, 128 * KIB)?;
                inside(&mut session, cmd::TRIM, 0, 1, 3)?;
                inside(&mut session, cmd::TRIM, 0, 4097, 200_001)?;
            }
            Ok(())
        },
    ),
    must("trim.fua", FLAGS, "FUA with TRIM is accepted.", |world| {
        let mut session = Session::start(&world.disk, Style::Structured)?;
        inside(&mut session, cmd::TRIM, bit::FUA, 4096, 65_536).map(drop)
    }),
    must("trim.then-write", TRIM, "After TRIM a write makes the contents known again.", |world| {
        for style in Style::ALL {
            let mut session = Session::start(&world.disk, style)?;
            session.ok(cmd::TRIM, 0, AT, 4 * MIB)?;
            session.write(AT + 7, &[0x29; 5000])?;
            ensure!(session.read(AT + 7, 5000)? == [0x29; 5000], "{style:?}: other bytes");
        }
        Ok(())
    }),
    should("trim.past-end", ERRORS, "TRIM beyond the end is EINVAL.", |world| {
        fails(world, cmd::TRIM, 0, &[err::EINVAL], |size| (size - 511, 512))?;
        fails(world, cmd::TRIM, 0, &[err::EINVAL], |size| (size, 1))?;
        fails(world, cmd::TRIM, 0, &[err::EINVAL], |_| (0, u64::from(u32::MAX)))?;
        fails(world, cmd::TRIM, bit::FUA, &[err::EINVAL], |_| (u64::MAX - 10, 512))
    }),
    should(
        "trim.foreign-flags",
        ERRORS,
        "A flag of another command is EINVAL with TRIM.",
        |world| {
            for flag in [bit::NO_HOLE, bit::DF, bit::REQ_ONE, bit::FAST_ZERO, 1 << 7, 1 << 15] {
                fails(world, cmd::TRIM, flag, &[err::EINVAL], |_| (AT, 4096))?;
            }
            Ok(())
        },
    ),
    should("trim.nothing", TRIM, "A length of 0 does not end the connection.", |world| {
        for style in Style::ALL {
            let mut session = Session::start(&world.disk, style)?;
            session.ask(cmd::TRIM, 0, AT, 0, &[])?;
            session.in_step()?;
        }
        Ok(())
    }),
    should(
        "trim.long",
        SIZES,
        "Without a payload a length above the maximum is no reason to hang up: 3 GiB.",
        |world| {
            let mut session = Session::start(world.huge()?, Style::Simple)?;
            session.write(5 * GIB, &[0x55; 4096])?;
            session.ok(cmd::TRIM, 0, GIB, 3 * GIB)?;
            ensure!(session.read(5 * GIB, 4096)? == [0x55; 4096], "bytes outside changed");
            Ok(())
        },
    ),
    must("cache.succeeds", CACHE, "CACHE changes nothing but speed.", |world| {
        for style in Style::ALL {
            let mut session = Session::start(&world.disk, style)?;
            session.needs(can::CACHE, "CACHE")?;
            let data = inside(&mut session, cmd::CACHE, 0, 1, 128 * KIB)?;
            ensure!(data.iter().all(|byte| *byte == 0xb7), "{style:?}: it changed the disk");
        }
        Ok(())
    }),
    must(
        "cache.fua",
        FLAGS,
        "FUA is accepted with every command if it is offered: CACHE.",
        |world| {
            for style in Style::ALL {
                let mut session = Session::start(&world.disk, style)?;
                session.needs(can::CACHE, "CACHE")?;
                session.ok(cmd::CACHE, bit::FUA, AT, 65_536)?;
            }
            Ok(())
        },
    ),
    must("cache.flags", CACHE, "Flags that CACHE does not know are refused.", |world| {
        for flag in [bit::NO_HOLE, bit::DF, bit::REQ_ONE, bit::FAST_ZERO, 1 << 6, 1 << 15] {
            fails(world, cmd::CACHE, flag, &[err::EINVAL], |_| (AT, 4096))?;
        }
        Ok(())
    }),
    should("cache.past-end", ERRORS, "CACHE beyond the end is EINVAL.", |world| {
        fails(world, cmd::CACHE, 0, &[err::EINVAL], |size| (size - 511, 512))?;
        fails(world, cmd::CACHE, 0, &[err::EINVAL], |size| (size, 1))?;
        fails(world, cmd::CACHE, 0, &[err::EINVAL], |_| (u64::MAX, 4096))
    }),
    should(
        "cache.long",
        SIZES,
        "CACHE of the whole disk succeeds or is EINVAL, in step.",
        |world| {
            for style in Style::ALL {
                let mut session = Session::start(&world.disk, style)?;
                let size = session.size;
                let reply = session.ask(cmd::CACHE, 0, 0, size, &[])?;
                ensure!([None, Some(err::EINVAL)].contains(&reply.error), "{:?}", reply.error);
                session.ask(cmd::CACHE, 0, 0, 0, &[])?;
                session.in_step()?;
            }
            Ok(())
        },
    ),
];

//! Cases of names and other strings: how long, of what bytes, and what a length may claim.

use crate::case::{Case, Outcome, ensure, must, should};
use crate::peer::Peer;
use crate::session::{Session, Style};
use crate::wire::{counted, info, info_request, opt, option, rep};
use crate::world::World;

const ASKING: &str = "NBD_OPT_INFO and NBD_OPT_GO";
const STRINGS: &str = "Protocol conventions, strings";
const EXPORT_NAME: &str = "NBD_OPT_EXPORT_NAME";

/// INFO and GO about a name no export has are ERR_UNKNOWN alone, and the handshake goes on.
fn unknown(world: &World, name: &[u8]) -> Outcome {
    let mut peer = Peer::open(&world.disk.connector)?;
    for number in [opt::INFO, opt::GO] {
        peer.ask(number, name, &[info::BLOCK_SIZE])?.refused(&[rep::ERR_UNKNOWN])?;
    }
    peer.in_step(&world.disk)
}

/// INFO and GO with this name fail in any way that suits it, and the handshake goes on.
fn unfit(world: &World, name: &[u8]) -> Outcome {
    let mut peer = Peer::open(&world.disk.connector)?;
    for number in [opt::INFO, opt::GO] {
        let errors = [rep::ERR_INVALID, rep::ERR_UNKNOWN, rep::ERR_TOO_BIG];
        peer.ask(number, name, &[])?.refused(&errors)?;
    }
    peer.in_step(&world.disk)
}

/// INFO and GO with this data are ERR_INVALID, and the handshake goes on.
fn malformed(world: &World, data: &[u8]) -> Outcome {
    let mut peer = Peer::open(&world.disk.connector)?;
    for number in [opt::INFO, opt::GO] {
        peer.option(number, data)?.refused(&[rep::ERR_INVALID])?;
    }
    peer.in_step(&world.disk)
}

/// The data of INFO whose name claims another length than it has.
fn claiming(world: &World, length: u32) -> Vec<u8> {
    let mut data = info_request(world.disk.name(), &[]);
    data[..4].copy_from_slice(&length.to_be_bytes());
    data
}

/// EXPORT_NAME with this name ends the connection without a byte.
fn not_exported(world: &World, name: &[u8]) -> Outcome {
    let mut peer = Peer::open(&world.disk.connector)?;
    peer.send(&option(opt::EXPORT_NAME, name))?;
    peer.dropped().map(drop)
}

/// EXPORT_NAME enters transmission with so many bytes behind the flags.
fn exported(world: &World, flags: u32, padding: usize, style: Style) -> Outcome {
    let mut peer = Peer::with_flags(&world.disk.connector, flags)?;
    if style == Style::Structured {
        peer.agree(opt::STRUCTURED_REPLY)?;
    }
    let (size, told) = peer.ask(opt::INFO, world.disk.name(), &[])?.export()?;
    peer.send(&option(opt::EXPORT_NAME, world.disk.name()))?;
    let answer = peer.take(10 + padding)?;
    ensure!(answer[..8] == size.to_be_bytes(), "size {:x?}, INFO said {size:x}", &answer[..8]);
    ensure!(answer[8..10] == told.to_be_bytes(), "flags {:x?}, not {told:x}", &answer[8..10]);
    ensure!(answer[10..].iter().all(|byte| *byte == 0), "the padding is not zero");
    Session::over(peer, style, size, told).in_step()
}

/// All of them.
pub(crate) const CASES: &[Case] = &[
    must(
        "name.unknown",
        ASKING,
        "A name no export has is ERR_UNKNOWN, without information.",
        |world| unknown(world, b"no-such-export"),
    ),
    must("name.one-byte", ASKING, "A name no export has is ERR_UNKNOWN: one byte.", |world| {
        unknown(world, b"x")
    }),
    must("name.255", ASKING, "A name no export has is ERR_UNKNOWN: 255 and 256 bytes.", |world| {
        unknown(world, &[b'x'; 255])?;
        unknown(world, &[b'x'; 256])
    }),
    must(
        "name.4096",
        STRINGS,
        "Strings of up to 4096 bytes are valid: such a name is looked up.",
        |world| unknown(world, &[b'x'; 4096]),
    ),
    must(
        "name.4097",
        STRINGS,
        "No string is longer than 4096 bytes: 4097 are an error, and skipped.",
        |world| unfit(world, &[b'x'; 4097]),
    ),
    must(
        "name.60000",
        STRINGS,
        "No string is longer than 4096 bytes: 60,000 are an error, and skipped.",
        |world| unfit(world, &vec![b'x'; 60_000]),
    ),
    must(
        "name.nul",
        STRINGS,
        "No string has a NUL: such a name is no export's, not even up to the NUL.",
        |world| {
            unfit(world, &[world.disk.name(), b"\0"].concat())?;
            unfit(world, b"\0")?;
            unfit(world, &[world.disk.name(), b"\0x"].concat())
        },
    ),
    must(
        "name.not-utf-8",
        STRINGS,
        "Strings are UTF-8: other bytes are an error, and never sent back.",
        |world| {
            unfit(world, b"\xff\xfe\xfd")?;
            unfit(world, b"\xc0\x80")?;
            unfit(world, b"\xed\xa0\x80")
        },
    ),
    must(
        "name.utf-8",
        STRINGS,
        "Any UTF-8 is a name: one that no export has is ERR_UNKNOWN.",
        |world| unknown(world, "\u{e9}\u{4e2d}\u{1f4be}".as_bytes()),
    ),
    must(
        "name.control",
        STRINGS,
        "Text meant for people: an error's words are a string, whatever the name was.",
        |world| unknown(world, b"a\x1b[31m\r\n%s%n'\"\\<b>"),
    ),
    must(
        "name.longer-than-ours",
        ASKING,
        "A name is compared whole: ours and a byte more is not ours.",
        |world| unfit(world, &[world.disk.name(), b"x"].concat()),
    ),
    must(
        "name.claims-more",
        ASKING,
        "The name is no longer than the data less 6: one byte too many is ERR_INVALID.",
        |world| {
            malformed(world, &claiming(world, world.disk.name().len() as u32 + 1))?;
            malformed(world, &claiming(world, world.disk.name().len() as u32 + 3))
        },
    ),
    must(
        "name.claims-4096",
        ASKING,
        "The name is no longer than the data less 6: 4096 and 4097 claimed are errors.",
        |world| {
            for length in [4096, 4097] {
                let mut peer = Peer::open(&world.disk.connector)?;
                let answer = peer.option(opt::INFO, &claiming(world, length))?;
                answer.refused(&[rep::ERR_INVALID, rep::ERR_TOO_BIG])?;
                peer.in_step(&world.disk)?;
            }
            Ok(())
        },
    ),
    must(
        "name.claims-2-31",
        ASKING,
        "The name is no longer than the data less 6: 2^31 and 2^32-1 claimed are errors.",
        |world| {
            for length in [1 << 31, u32::MAX, u32::MAX - 3, u32::MAX - 5] {
                let mut peer = Peer::open(&world.disk.connector)?;
                for number in [opt::INFO, opt::GO] {
                    let answer = peer.option(number, &claiming(world, length))?;
                    answer.refused(&[rep::ERR_INVALID, rep::ERR_TOO_BIG])?;
                }
                peer.in_step(&world.disk)?;
            }
            Ok(())
        },
    ),
    must(
        "name.claims-less",
        ASKING,
        "Lengths and data agree: bytes left over are ERR_INVALID.",
        |world| malformed(world, &[&info_request(b"", &[])[..], b"xyz"].concat()),
    ),
    must(
        "info-request.empty",
        ASKING,
        "Data too short for its fields is ERR_INVALID: 0 to 5 bytes.",
        |world| {
            for length in 0..6 {
                malformed(world, &vec![0; length])?;
            }
            Ok(())
        },
    ),
    must(
        "info-request.count",
        ASKING,
        "Data too short for its fields is ERR_INVALID: fewer requests than counted.",
        |world| {
            for count in [1_u16, 2, 4096, 4097, u16::MAX] {
                let data = [counted(world.disk.name()), count.to_be_bytes().to_vec()].concat();
                malformed(world, &data)?;
            }
            Ok(())
        },
    ),
    must(
        "info-request.half",
        ASKING,
        "Data too short for its fields is ERR_INVALID: half a request.",
        |world| {
            let mut data = info_request(world.disk.name(), &[info::NAME, info::BLOCK_SIZE]);
            data.pop();
            malformed(world, &data)
        },
    ),
    must(
        "info-request.surplus",
        ASKING,
        "Lengths and data agree: more requests than counted are ERR_INVALID.",
        |world| {
            let mut data = info_request(world.disk.name(), &[info::NAME]);
            data.extend_from_slice(&[0, 3]);
            malformed(world, &data)
        },
    ),
    must(
        "export-name.padding",
        EXPORT_NAME,
        "The answer is size, flags and 124 zeroes unless those were waived; it agrees with INFO.",
        |world| exported(world, 1, 124, Style::Simple),
    ),
    must(
        "export-name.no-zeroes",
        "Client flags",
        "With NO_ZEROES on both sides no zeroes are sent.",
        |world| exported(world, 3, 0, Style::Simple),
    ),
    must(
        "export-name.structured",
        "NBD_OPT_STRUCTURED_REPLY",
        "Structured replies hold for EXPORT_NAME as for GO.",
        |world| exported(world, 3, 0, Style::Structured),
    ),
    must(
        "export-name.unknown",
        EXPORT_NAME,
        "An export that does not exist ends the session.",
        |world| not_exported(world, b"no-such-export"),
    ),
    must(
        "export-name.4096",
        EXPORT_NAME,
        "An export that does not exist ends the session: 255, 256 and 4096 bytes.",
        |world| {
            for length in [255, 256, 4096] {
                not_exported(world, &vec![b'x'; length])?;
            }
            Ok(())
        },
    ),
    must(
        "export-name.4097",
        STRINGS,
        "No string is longer than 4096 bytes: a longer EXPORT_NAME ends the session.",
        |world| not_exported(world, &[b'x'; 4097]),
    ),
    must(
        "export-name.nul",
        STRINGS,
        "No string has a NUL: such an EXPORT_NAME ends the session.",
        |world| not_exported(world, &[world.disk.name(), b"\0"].concat()),
    ),
    must(
        "export-name.not-utf-8",
        STRINGS,
        "Strings are UTF-8: an EXPORT_NAME of other bytes ends the session.",
        |world| not_exported(world, b"\xff\xfe"),
    ),
    should(
        "export-name.default",
        EXPORT_NAME,
        "The empty name is for a default export: a server of one disk has it.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            let (size, _) = peer.ask(opt::INFO, b"", &[])?.export()?;
            ensure!(size == world.disk.size, "the default export has {size} bytes");
            peer.send(&option(opt::EXPORT_NAME, b""))?;
            let answer = peer.take(10)?;
            ensure!(answer[..8] == size.to_be_bytes(), "size {:x?}", &answer[..8]);
            Session::over(peer, Style::Simple, size, 0).in_step()
        },
    ),
];

//! Cases of READ, in every style of replies.

use crate::case::{Case, Outcome, ensure, must, should};
use crate::session::{Session, Style};
use crate::wire::{bit, cmd, err};
use crate::world::{GIB, KIB, MIB, World};

const READ: &str = "NBD_CMD_READ";
const CHUNKS: &str = "Structured reply types";
const ERRORS: &str = "Error values";
const FLAGS: &str = "Command flags";
const SIZES: &str = "Block size constraints";

/// Where the cases of this file may write.
const AT: u64 = 2 * MIB;

/// Runs a case in all styles, and says in which it stopped.
fn in_styles(world: &World, styles: &[Style], check: impl Fn(&mut Session) -> Outcome) -> Outcome {
    for style in styles {
        let mut session = Session::start(&world.disk, *style)?;
        check(&mut session)?;
        session.leave()?;
    }
    Ok(())
}

/// A READ that fails with EINVAL, in all styles, and leaves the stream in step.
fn invalid(world: &World, flags: u16, range: impl Fn(u64) -> (u64, u64)) -> Outcome {
    in_styles(world, &Style::ALL, |session| {
        let range = range(session.size);
        session.fails(cmd::READ, flags, range, &[err::EINVAL])
    })
}

/// Writes a pattern with holes around it, and reads what is there in one go.
fn patterned(session: &mut Session, at: u64, flags: u16) -> Outcome<crate::reply::Reply> {
    session.ok(cmd::WRITE_ZEROES, 0, at, 64 * KIB)?;
    session.write(at + 8 * KIB, &[0xa5; 4096])?;
    session.write(at + 20 * KIB + 17, &[0x5a; 700])?;
    let reply = session.ask(cmd::READ, flags, at, 64 * KIB, &[])?;
    reply.succeeded()?;
    let mut expected = vec![0; 64 << 10];
    expected[8 << 10..12 << 10].fill(0xa5);
    expected[(20 << 10) + 17..][..700].fill(0x5a);
    ensure!(reply.data == expected, "other bytes than were written");
    Ok(reply)
}

/// All of them.
pub(crate) const CASES: &[Case] = &[
    must(
        "read.simple",
        READ,
        "Without structured replies READ is answered with a simple reply and all its bytes.",
        |world| {
            let mut session = Session::start(&world.disk, Style::Simple)?;
            session.write(AT, &[0x77; 8192])?;
            let reply = session.ask(cmd::READ, 0, AT, 8192, &[])?;
            ensure!(reply.simple && reply.data == [0x77; 8192], "another reply");
            Ok(())
        },
    ),
    must(
        "read.structured",
        READ,
        "With structured replies READ is answered in chunks that cover the request, the last \
         marked DONE.",
        |world| {
            let mut session = Session::start(&world.disk, Style::Structured)?;
            session.write(AT, &[0x78; 8192])?;
            let reply = session.ask(cmd::READ, 0, AT, 8192, &[])?;
            ensure!(!reply.simple && reply.data == [0x78; 8192], "another reply");
            Ok(())
        },
    ),
    must(
        "read.extended",
        READ,
        "With extended headers READ is answered in extended chunks.",
        |world| {
            let mut session = Session::start(&world.disk, Style::Extended)?;
            session.write(AT, &[0x79; 8192])?;
            let data = session.read(AT, 8192)?;
            ensure!(data == [0x79; 8192], "other bytes");
            Ok(())
        },
    ),
    must(
        "read.pattern",
        CHUNKS,
        "Data and holes together are exactly what was written.",
        |world| in_styles(world, &Style::ALL, |session| patterned(session, AT, 0).map(drop)),
    ),
    must("read.bytes", SIZES, "Any offset and length is served if the minimum is 1.", |world| {
        in_styles(world, &Style::ALL, |session| {
            let bytes: Vec<u8> = (0..=255).cycle().take(5000).collect();
            session.write(AT, &bytes)?;
            for (from, to) in [(0, 1), (511, 513), (1, 4097), (4999, 5000), (255, 4999)] {
                let data = session.read(AT + from as u64, (to - from) as u64)?;
                ensure!(data == bytes[from..to], "bytes {from} to {to} differ");
            }
            Ok(())
        })
    }),
    must("read.last-byte", READ, "The last byte of the export can be read.", |world| {
        in_styles(world, &Style::ALL, |session| {
            session.read(session.size - 1, 1)?;
            session.read(session.size - 1000, 1000).map(drop)
        })
    }),
    must("read.32-mib", SIZES, "Lengths up to 2^25 are no attack: 32 MiB are read.", |world| {
        in_styles(world, &Style::ALL, |session| session.read(AT, 32 * MIB).map(drop))
    }),
    should(
        "read.32-mib-unaligned",
        SIZES,
        "Lengths up to 2^25 are no attack, wherever they start.",
        |world| in_styles(world, &Style::ALL, |session| session.read(AT + 1, 32 * MIB).map(drop)),
    ),
    should(
        "read.64-mib",
        SIZES,
        "Clients exist that read up to 64 MiB at once; they are served.",
        |world| in_styles(world, &Style::ALL, |session| session.read(1, 64 * MIB).map(drop)),
    ),
    should("read.beyond-64-mib", SIZES, "A length above the maximum is a clean EINVAL.", |world| {
        in_styles(world, &Style::ALL, |session| {
            session.fails(cmd::READ, 0, (0, 64 * MIB + 1), &[err::EINVAL])?;
            session.fails(cmd::READ, 0, (512, 128 * MIB), &[err::EINVAL])
        })
    }),
    should("read.past-end", ERRORS, "READ beyond the end is EINVAL: one byte too many.", |world| {
        invalid(world, 0, |size| (size - 511, 512))
    }),
    should("read.at-end", ERRORS, "READ beyond the end is EINVAL: starting at it.", |world| {
        invalid(world, 0, |size| (size, 1))
    }),
    should(
        "read.far",
        ERRORS,
        "READ beyond the end is EINVAL: 2^63 and 2^64-1 as offset.",
        |world| {
            invalid(world, 0, |_| (1 << 63, 512))?;
            invalid(world, 0, |_| (u64::MAX, 1))
        },
    ),
    should(
        "read.wraps",
        ERRORS,
        "READ beyond the end is EINVAL: offset and length overflow.",
        |world| invalid(world, 0, |_| (u64::MAX - 511, 4096)),
    ),
    should("read.2-31", ERRORS, "Lengths of 2^31 and 2^32-1 are a clean error.", |world| {
        invalid(world, 0, |_| (0, 1 << 31))?;
        invalid(world, 0, |_| (0, u64::from(u32::MAX)))
    }),
    must(
        "read.error-no-payload",
        READ,
        "A simple reply with an error has no payload; the next reply follows.",
        |world| {
            let mut session = Session::start(&world.disk, Style::Simple)?;
            for _ in 0..10 {
                session.fails(cmd::READ, 0, (session.size, 4096), &err::ALL)?;
            }
            Ok(())
        },
    ),
    should("read.nothing", READ, "A length of 0 does not end the connection.", |world| {
        in_styles(world, &Style::ALL, |session| {
            session.ask(cmd::READ, 0, 0, 0, &[])?;
            session.ask(cmd::READ, 0, session.size, 0, &[])?;
            session.in_step()
        })
    }),
    must(
        "read.fua",
        FLAGS,
        "FUA is accepted with every command if it is offered: READ.",
        |world| in_styles(world, &Style::ALL, |session| session.ok(cmd::READ, bit::FUA, 0, 4096)),
    ),
    should(
        "read.foreign-flags",
        ERRORS,
        "A flag of another command is EINVAL: NO_HOLE, REQ_ONE, FAST_ZERO with READ.",
        |world| {
            for flag in [bit::NO_HOLE, bit::REQ_ONE, bit::FAST_ZERO] {
                invalid(world, flag, |_| (0, 4096))?;
            }
            Ok(())
        },
    ),
    should(
        "read.unknown-flags",
        ERRORS,
        "An unknown flag is EINVAL with READ; the reply keeps its form.",
        |world| {
            for flag in [1 << 6, 1 << 10, 1 << 15] {
                invalid(world, flag, |_| (0, 4096))?;
            }
            Ok(())
        },
    ),
    should("read.df-not-offered", ERRORS, "DF without structured replies is EINVAL.", |world| {
        let mut session = Session::start(&world.disk, Style::Simple)?;
        session.fails(cmd::READ, bit::DF, (0, 4096), &[err::EINVAL])
    }),
    must(
        "read.df",
        READ,
        "DF means at most one content chunk, and 65,536 bytes must work.",
        |world| {
            in_styles(world, &Style::CHUNKED, |session| {
                session.write(AT, &vec![0x44; 65_536])?;
                let reply = session.ask(cmd::READ, bit::DF, AT, 65_536, &[])?;
                reply.succeeded()?;
                ensure!(reply.contents.len() == 1, "{:?}", reply.contents);
                ensure!(reply.data == vec![0x44; 65_536], "other bytes");
                Ok(())
            })
        },
    ),
    must(
        "read.df-mixed",
        READ,
        "Data and holes under DF come as data, with the zeroes.",
        |world| {
            in_styles(world, &Style::CHUNKED, |session| {
                let reply = patterned(session, AT, bit::DF)?;
                let [content] = reply.contents[..] else {
                    return Err(format!("{:?}", reply.contents).into());
                };
                ensure!(!content.hole, "one hole for what is no hole");
                Ok(())
            })
        },
    ),
    must("read.df-hole", READ, "A hole under DF is one chunk, too.", |world| {
        in_styles(world, &Style::CHUNKED, |session| {
            session.ok(cmd::WRITE_ZEROES, 0, AT, 64 * KIB)?;
            let reply = session.ask(cmd::READ, bit::DF, AT, 64 * KIB, &[])?;
            reply.succeeded()?;
            ensure!(reply.data.iter().all(|byte| *byte == 0), "no zeroes");
            Ok(())
        })
    }),
    must("read.df-unaligned", READ, "65,536 bytes under DF work at any offset.", |world| {
        in_styles(world, &Style::CHUNKED, |session| {
            for at in [AT - 65_535, 2 * AT - 1, AT + 513] {
                session.ok(cmd::READ, bit::DF, at, 65_536)?;
            }
            Ok(())
        })
    }),
    must(
        "read.df-long",
        READ,
        "A long read under DF is one chunk, or EOVERFLOW and none.",
        |world| {
            in_styles(world, &Style::CHUNKED, |session| {
                let reply = session.ask(cmd::READ, bit::DF, 0, 32 * MIB, &[])?;
                match reply.error {
                    None => ensure!(reply.contents.len() == 1, "{} chunks", reply.contents.len()),
                    Some(error) => {
                        ensure!(error == err::EOVERFLOW, "error {error}");
                        ensure!(reply.contents.is_empty(), "content beside EOVERFLOW");
                    }
                }
                session.in_step()
            })
        },
    ),
    must(
        "read.df-too-long",
        READ,
        "Too long for one chunk is EOVERFLOW or EINVAL, without content.",
        |world| {
            in_styles(world, &Style::CHUNKED, |session| {
                let reply = session.ask(cmd::READ, bit::DF, 0, 64 * MIB + 512, &[])?;
                ensure!(reply.contents.is_empty(), "content beside an error");
                reply.failed(&[err::EOVERFLOW, err::EINVAL])?;
                session.in_step()
            })
        },
    ),
    should(
        "read.chunk-alignment",
        READ,
        "Chunks have offsets and lengths of whole 512 bytes if the request has.",
        |world| {
            in_styles(world, &Style::CHUNKED, |session| {
                let reply = patterned(session, AT, 0)?;
                for content in &reply.contents {
                    let whole = content.offset % 512 == 0 && content.length % 512 == 0;
                    ensure!(whole, "{content:?}");
                }
                Ok(())
            })
        },
    ),
    should(
        "read.few-chunks",
        "Structured reply chunk message",
        "The number of chunks is kept low: neighbours of one kind are one chunk.",
        |world| {
            in_styles(world, &Style::CHUNKED, |session| {
                let mut reply = patterned(session, AT, 0)?;
                reply.contents.sort_by_key(|content| content.offset);
                let split = reply.contents.windows(2).any(|two| two[0].hole == two[1].hole);
                ensure!(!split, "{:?}", reply.contents);
                Ok(())
            })
        },
    ),
    should(
        "read.sparse",
        CHUNKS,
        "What was never written is told as a hole, without its zeroes.",
        |world| {
            let own = world.own()?;
            for style in Style::CHUNKED {
                let mut session = Session::start(&own.target, style)?;
                let reply = session.ask(cmd::READ, 0, 32 * MIB, 16 * MIB, &[])?;
                reply.succeeded()?;
                let holes = reply.contents.iter().all(|content| content.hole);
                ensure!(holes && reply.data.iter().all(|byte| *byte == 0), "{:?}", reply.contents);
            }
            Ok(())
        },
    ),
    must("read.far-out", READ, "Offsets beyond 32 bits are offsets like others.", |world| {
        let huge = world.huge()?;
        for style in Style::ALL {
            let mut session = Session::start(huge, style)?;
            session.write(41 * GIB + 5, b"far out")?;
            let data = session.read(41 * GIB + 3, 11)?;
            ensure!(data == b"\0\0far out\0\0", "{data:x?}");
        }
        Ok(())
    }),
    should(
        "read.error-text",
        "Structured reply chunk message",
        "Errors come as chunks, with words for a person.",
        |world| {
            in_styles(world, &Style::CHUNKED, |session| {
                for (flags, offset) in [(0, session.size), (bit::NO_HOLE, 0)] {
                    let reply = session.ask(cmd::READ, flags, offset, 512, &[])?;
                    reply.failed(&[err::EINVAL])?;
                    ensure!(!reply.simple && !reply.text.is_empty(), "no words");
                }
                Ok(())
            })
        },
    ),
];

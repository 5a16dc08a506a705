//! Cases of TLS, on a server that insists on it and on a client's certificate.

use std::io::Write;
use std::sync::Arc;

use rustls::ClientConfig;

use crate::case::{Case, Outcome, Stop, during, ensure, must, should};
use crate::link::{Connector, Ending, Link};
use crate::peer::Peer;
use crate::session::{Session, Style};
use crate::wire::{can, context_request, hello, info_request, opt, option, rep};
use crate::world::World;

const FORCED: &str = "TLS support, FORCEDTLS mode";
const STARTTLS: &str = "NBD_OPT_STARTTLS";
const CREDENTIALS: &str = "Certificates, authentication and authorisation";
const VERSIONS: &str = "TLS versions";

/// A peer in the clear on the server that wants TLS.
fn clear(world: &World) -> Outcome<Peer> {
    Peer::open(&world.disk.connector.in_the_clear())
}

/// The way a right client goes.
fn config(world: &World) -> Outcome<&Arc<ClientConfig>> {
    let config = world.disk.connector.tls.as_ref();
    config.ok_or_else(|| Stop::Lacking("TLS".into()))
}

/// The same server with other credentials.
fn as_somebody(world: &World, tls: Arc<ClientConfig>) -> Connector {
    Connector { address: world.disk.connector.address.clone(), tls: Some(tls) }
}

/// An option that is refused in the clear, and the handshake goes on to TLS.
fn required(world: &World, number: u32, data: &[u8]) -> Outcome {
    let mut peer = clear(world)?;
    peer.option(number, data)?.refused(&[rep::ERR_TLS_REQD])?;
    peer.option(number, data)?.refused(&[rep::ERR_TLS_REQD])?;
    peer.option(opt::STARTTLS, &[])?.acked()?;
    peer.secured(config(world)?)?.in_step(&world.disk)
}

/// A client that is refused somewhere between its certificate and its first answer.
fn turned_away(world: &World, tls: Arc<ClientConfig>) -> Outcome {
    let connector = as_somebody(world, tls);
    let entered = Peer::open(&connector).and_then(|mut peer| peer.option(opt::LIST, &[]));
    ensure!(entered.is_err(), "it was let in: {entered:?}");
    Peer::open(&world.disk.connector)?.in_step(&world.disk)
}

/// Plaintext in the segment of STARTTLS: the connection ends, nothing of it is answered.
fn injected(world: &World, behind: &[u8]) -> Outcome {
    let mut peer = clear(world)?;
    peer.send(&[&option(opt::STARTTLS, &[])[..], behind].concat())?;
    let (bytes, _) = during("waiting for the end", peer.link.drain())?;
    // The acknowledgement may have gone out before, and TLS may say why it stops.
    ensure!(bytes.len() <= 20 + 64, "{} bytes came: {bytes:x?}", bytes.len());
    Peer::open(&world.disk.connector)?.in_step(&world.disk)
}

/// All of them.
pub(crate) const CASES: &[Case] = &[
    must(
        "tls.list",
        FORCED,
        "Before TLS every option but STARTTLS and ABORT is ERR_TLS_REQD: LIST, which tells \
         nothing.",
        |world| required(world, opt::LIST, &[]),
    )
    .tls(),
    must(
        "tls.info",
        FORCED,
        "Before TLS every option is ERR_TLS_REQD: INFO and GO, without information.",
        |world| {
            let data = info_request(world.disk.name(), &[0, 1, 2, 3]);
            required(world, opt::INFO, &data)?;
            required(world, opt::GO, &data)
        },
    )
    .tls(),
    must(
        "tls.unknown-export",
        FORCED,
        "Before TLS every option is ERR_TLS_REQD: names cannot be tried out.",
        |world| {
            required(world, opt::INFO, &info_request(b"no-such-export", &[]))?;
            required(world, opt::GO, &info_request(b"no-such-export", &[]))
        },
    )
    .tls(),
    must(
        "tls.state",
        FORCED,
        "Before TLS every option is ERR_TLS_REQD: structured replies, extended headers.",
        |world| {
            required(world, opt::STRUCTURED_REPLY, &[])?;
            required(world, opt::EXTENDED_HEADERS, &[])
        },
    )
    .tls(),
    must(
        "tls.contexts",
        FORCED,
        "Before TLS every option is ERR_TLS_REQD: metadata contexts.",
        |world| {
            let data = context_request(world.disk.name(), &[b"base:allocation"]);
            required(world, opt::LIST_META_CONTEXT, &data)?;
            required(world, opt::SET_META_CONTEXT, &data)
        },
    )
    .tls(),
    must(
        "tls.unknown-option",
        FORCED,
        "Before TLS every option is ERR_TLS_REQD: unknown ones, their data skipped.",
        |world| {
            required(world, 999, &[])?;
            required(world, 999, &[7; 5000])
        },
    )
    .tls(),
    must(
        "tls.malformed",
        FORCED,
        "Before TLS every option is ERR_TLS_REQD: data is not looked at.",
        |world| {
            required(world, opt::INFO, &[0xff; 40])?;
            required(world, opt::LIST, b"data")
        },
    )
    .tls(),
    must("tls.abort", FORCED, "ABORT is acknowledged before TLS, too.", |world| {
        let mut peer = clear(world)?;
        peer.option(opt::ABORT, &[])?.acked()?;
        peer.dropped().map(drop)
    })
    .tls(),
    must(
        "tls.export-name",
        FORCED,
        "EXPORT_NAME before TLS ends the session, for it has no error.",
        |world| {
            for name in [world.disk.name(), b"", b"no-such-export"] {
                let mut peer = clear(world)?;
                peer.send(&option(opt::EXPORT_NAME, name))?;
                peer.dropped()?;
            }
            Ok(())
        },
    )
    .tls(),
    must(
        "tls.old-client",
        "TLS support, server-side requirements",
        "A client without FIXED_NEWSTYLE cannot have TLS; here it gets nothing.",
        |world| {
            for flags in [0, hello::NO_ZEROES] {
                let connector = world.disk.connector.in_the_clear();
                let mut peer = Peer::with_flags(&connector, flags)?;
                // It may be gone already.
                let _ = peer.send(&option(opt::EXPORT_NAME, world.disk.name()));
                peer.dropped()?;
            }
            Ok(())
        },
    )
    .tls(),
    must(
        "tls.starttls",
        FORCED,
        "STARTTLS is acknowledged, and everything works behind it.",
        |world| {
            let mut peer = clear(world)?;
            peer.option(opt::STARTTLS, &[])?.acked()?;
            let mut peer = peer.secured(config(world)?)?;
            peer.option(opt::LIST, &[])?.acked()?;
            Session::go(peer, &world.disk, Style::Simple)?.in_step()
        },
    )
    .tls(),
    must(
        "tls.starttls-data",
        STARTTLS,
        "STARTTLS with data is ERR_INVALID, and may be asked again without.",
        |world| {
            for length in [1, 16, 4096] {
                let mut peer = clear(world)?;
                peer.option(opt::STARTTLS, &vec![1; length])?.refused(&[rep::ERR_INVALID])?;
                peer.option(opt::STARTTLS, &[])?.acked()?;
                peer.secured(config(world)?)?.in_step(&world.disk)?;
            }
            Ok(())
        },
    )
    .tls(),
    must(
        "tls.starttls-twice",
        FORCED,
        "STARTTLS under TLS is ERR_INVALID, and TLS goes on.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            peer.option(opt::STARTTLS, &[])?.refused(&[rep::ERR_INVALID])?;
            peer.option(opt::STARTTLS, b"data")?.refused(&[rep::ERR_INVALID])?;
            peer.in_step(&world.disk)
        },
    )
    .tls(),
    must("tls.never-required", FORCED, "Under TLS nothing is ERR_TLS_REQD.", |world| {
        let mut peer = Peer::open(&world.disk.connector)?;
        for number in [opt::LIST, opt::STARTTLS, opt::INFO, opt::GO, 999, 4] {
            let verdict = peer.option(number, &[])?.verdict();
            ensure!(verdict != rep::ERR_TLS_REQD, "option {number} wants TLS");
        }
        peer.ask(opt::GO, b"no-such-export", &[])?.refused(&[rep::ERR_UNKNOWN])
    })
    .tls(),
    must("tls.forgets", STARTTLS, "Nothing that was negotiated before TLS is kept.", |world| {
        let mut peer = clear(world)?;
        peer.option(opt::STRUCTURED_REPLY, &[])?;
        peer.option(opt::EXTENDED_HEADERS, &[])?;
        let data = context_request(world.disk.name(), &[b"base:allocation"]);
        peer.option(opt::SET_META_CONTEXT, &data)?;
        peer.option(opt::STARTTLS, &[])?.acked()?;
        let mut peer = peer.secured(config(world)?)?;
        let (_, flags) = peer.ask(opt::INFO, world.disk.name(), &[])?.export()?;
        ensure!(flags & can::DF == 0, "structured replies are still on: {flags:#x}");
        Session::go(peer, &world.disk, Style::Simple)?.in_step()
    })
    .tls(),
    must(
        "tls.injected-option",
        STARTTLS,
        "Plaintext behind STARTTLS in one segment is never taken for something said under TLS: an \
         option.",
        |world| injected(world, &option(opt::LIST, &[])),
    )
    .tls(),
    must(
        "tls.injected-go",
        STARTTLS,
        "Plaintext behind STARTTLS in one segment is never taken for something said under TLS: GO.",
        |world| injected(world, &option(opt::GO, &info_request(world.disk.name(), &[]))),
    )
    .tls(),
    must(
        "tls.injected-byte",
        STARTTLS,
        "Plaintext behind STARTTLS in one segment is never taken for something said under TLS: \
         one byte.",
        |world| injected(world, b"I"),
    )
    .tls(),
    must(
        "tls.plaintext-instead",
        FORCED,
        "After the ACK everything is TLS: an option in the clear ends the session.",
        |world| {
            let mut peer = clear(world)?;
            peer.option(opt::STARTTLS, &[])?.acked()?;
            peer.send(&option(opt::LIST, &[]))?;
            let (bytes, _) = during("waiting for the end", peer.link.drain())?;
            ensure!(bytes.len() <= 64, "{} bytes came: {bytes:x?}", bytes.len());
            Ok(())
        },
    )
    .tls(),
    must(
        "tls.plaintext-within",
        FORCED,
        "There is no way back: plaintext within TLS ends the session.",
        |world| {
            let mut session = Session::start(&world.disk, Style::Structured)?;
            session.in_step()?;
            let request = session.request(0, 0, 0, 512);
            let bytes = session.header(&request);
            if let Link::Tls(stream) = &mut session.peer.link {
                during("sending", stream.sock.write_all(&bytes))?;
            }
            let mut rest = Vec::new();
            let ended = std::io::Read::read_to_end(&mut session.peer.link, &mut rest);
            let waits = ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
            ensure!(rest.is_empty() && !waits, "{} bytes came, or no end", rest.len());
            Ok(())
        },
    )
    .tls(),
    must(
        "tls.hang-up",
        FORCED,
        "A client that vanishes within the TLS handshake harms nobody.",
        |world| {
            for count in [0, 1, 5, 6, 50] {
                let mut peer = clear(world)?;
                peer.option(opt::STARTTLS, &[])?.acked()?;
                peer.send(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc].repeat(6)[..count])?;
            }
            Peer::open(&world.disk.connector)?.in_step(&world.disk)
        },
    )
    .tls(),
    must(
        "tls.nobody",
        CREDENTIALS,
        "Who must be known is: a client without a certificate is refused.",
        |world| turned_away(world, world.certificates()?.nobody()),
    )
    .tls(),
    must(
        "tls.stranger",
        CREDENTIALS,
        "Who must be known is: a certificate of another authority is refused.",
        |world| turned_away(world, world.certificates()?.stranger()),
    )
    .tls(),
    must("tls.version-1.2", VERSIONS, "TLS 1.2 is supported.", |world| {
        let tls = world.certificates()?.client_of(&rustls::version::TLS12);
        Peer::open(&as_somebody(world, tls))?.in_step(&world.disk)
    })
    .tls(),
    should("tls.version-1.3", VERSIONS, "Later versions are supported, too: TLS 1.3.", |world| {
        let tls = world.certificates()?.client_of(&rustls::version::TLS13);
        Peer::open(&as_somebody(world, tls))?.in_step(&world.disk)
    })
    .tls(),
    must("tls.disc", "NBD_CMD_DISC", "DISC shuts TLS down before the connection.", |world| {
        let mut session = Session::start(&world.disk, Style::Structured)?;
        session.in_step()?;
        ensure!(session.leave()? == Ending::Clean, "the end was not announced");
        Ok(())
    })
    .tls(),
    should(
        "tls.abort-within",
        "Termination of the session during option haggling",
        "Who ends a session shuts TLS down first: ABORT.",
        |world| {
            let mut peer = Peer::open(&world.disk.connector)?;
            peer.option(opt::ABORT, &[])?.acked()?;
            ensure!(peer.dropped()? == Ending::Clean, "the end was not announced");
            Ok(())
        },
    )
    .tls(),
];

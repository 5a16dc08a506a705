//! Cases of a server that is told to end while clients are connected.

use crate::case::{Case, Outcome, Stop, during, ensure, must, should};
use crate::peer::Peer;
use crate::session::{Request, Session, Style};
use crate::wire::{cmd, err, info_request, opt, option, rep};
use crate::world::{Own, World};

const ENDING: &str = "Terminating the transmission phase";
const HAGGLING: &str = "Termination of the session during option haggling";

/// A server that is ending, and a client that keeps it from it: half of a WRITE is sent.
struct Ending {
    own: Own,
    session: Session,
    write: Request,
    /// A client that had not finished its handshake.
    half_open: Peer,
}

/// Bytes of the WRITE, half of which are sent.
const LENGTH: usize = 8192;

impl Ending {
    fn begin(world: &World, style: Style) -> Outcome<Self> {
        let own = world.own()?;
        let mut session = Session::start(&own.target, style)?;
        let half_open = Peer::open(&own.target.connector)?;
        let write = session.request(cmd::WRITE, 0, 0, LENGTH as u64);
        session.owe(write);
        let mut bytes = session.header(&write);
        bytes.resize(bytes.len() + LENGTH / 2, 0x42);
        session.peer.send(&bytes)?;
        // An idle connection that came later is closed no sooner than the busy one is told.
        let mut idle = Session::start(&own.target, style)?;
        idle.in_step()?;
        own.stop();
        during("waiting for the server to begin its end", idle.peer.link.drain())?;
        Ok(Self { own, session, write, half_open })
    }

    /// Sends the rest of the payload, and more behind it.
    fn go_on(&mut self, more: &[Request]) -> Outcome {
        let mut bytes = vec![0x42; LENGTH / 2];
        for request in more {
            bytes.extend_from_slice(&self.session.header(request));
            self.session.owe(*request);
        }
        self.session.peer.send(&bytes)
    }
}

/// Requests behind the one that keeps the server from its end.
fn ask_later(world: &World, style: Style) -> Outcome {
    let mut ending = Ending::begin(world, style)?;
    let read = ending.session.request(cmd::READ, 0, 0, 4096);
    let trim = ending.session.request(cmd::TRIM, 0, 0, 4096);
    let flush = ending.session.request(cmd::FLUSH, 0, 0, 0);
    ending.go_on(&[read, trim, flush])?;
    for (request, reply) in ending.session.replies()? {
        if request.command != cmd::WRITE {
            reply.failed(&[err::ESHUTDOWN])?;
        }
    }
    ending.session.dropped()?;
    Ok(())
}

/// All of them.
pub(crate) const CASES: &[Case] = &[
    should(
        "drain.in-flight",
        ENDING,
        "A server that shuts down finishes requests in flight, or fails them with ESHUTDOWN, then \
         hangs up.",
        |world| {
            for style in Style::ALL {
                let mut ending = Ending::begin(world, style)?;
                ending.go_on(&[])?;
                let (request, reply) = ending.session.reply()?;
                ensure!(request == ending.write, "a reply to something else");
                ensure!([None, Some(err::ESHUTDOWN)].contains(&reply.error), "{:?}", reply.error);
                ending.session.dropped()?;
                ending.own.server.close();
            }
            Ok(())
        },
    ),
    should(
        "drain.later-requests",
        ENDING,
        "Requests that come while the server shuts down fail with ESHUTDOWN.",
        |world| {
            for style in Style::ALL {
                // The server may hang up behind the WRITE before the others have come to it, as
                // what is sent at once may arrive in pieces.
                let met = (1..3).any(|_| ask_later(world, style).is_ok());
                if !met {
                    ask_later(world, style)?;
                }
            }
            Ok(())
        },
    ),
    must(
        "drain.idle",
        ENDING,
        "A server that shuts down with nothing in flight hangs up without half a reply.",
        |world| {
            for style in Style::ALL {
                let own = world.own()?;
                let mut session = Session::start(&own.target, style)?;
                session.in_step()?;
                own.stop();
                session.dropped()?;
                own.server.close();
            }
            Ok(())
        },
    ),
    should(
        "drain.options",
        HAGGLING,
        "Options that come while the server shuts down fail with ERR_SHUTDOWN.",
        |world| {
            let mut ending = Ending::begin(world, Style::Structured)?;
            let peer = &mut ending.half_open;
            peer.option(opt::LIST, &[])?.refused(&[rep::ERR_SHUTDOWN])?;
            peer.ask(opt::INFO, ending.own.target.name(), &[])?.refused(&[rep::ERR_SHUTDOWN])?;
            peer.ask(opt::GO, ending.own.target.name(), &[])?.refused(&[rep::ERR_SHUTDOWN])
        },
    ),
    must(
        "drain.no-entry",
        HAGGLING,
        "Nobody enters transmission on a server that shuts down.",
        |world| {
            let mut ending = Ending::begin(world, Style::Simple)?;
            let bytes = option(opt::GO, &info_request(ending.own.target.name(), &[]));
            let peer = &mut ending.half_open;
            if peer.send(&bytes).is_ok() {
                let verdict = match peer.answer(opt::GO) {
                    Ok(answer) => answer.verdict(),
                    Err(Stop::Broken(what)) if what.contains("unavailable") => {
                        return Err("neither an answer nor an end".into());
                    }
                    Err(_) => rep::ERR_SHUTDOWN,
                };
                ensure!(verdict & rep::ERROR != 0, "GO ends with {verdict:#x}");
            }
            Ok(())
        },
    ),
];

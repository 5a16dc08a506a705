//! Whole handshakes, seen from the client's side of the wire. Each test states the protocol's rule
//! it holds the server to.

mod limits;
mod lookup;
mod options;
mod secure;

use orlop_nbd::fuzz::OneDisk;
use orlop_nbd::wire::{self, OptionReply, option, option_reply};
use orlop_nbd::{Exports, Handshake, HandshakeLimits, Progress, Session, TlsOffer, Violation};

const FIXED: u32 = 1;
const NO_ZEROES: u32 = 2;

/// A client's side of a handshake, under construction.
struct Client(Vec<u8>);

impl Client {
    fn new(flags: u32) -> Client {
        Client(flags.to_be_bytes().to_vec())
    }

    /// What comes behind STARTTLS: no flags again.
    fn secured() -> Client {
        Client(Vec::new())
    }

    fn option(mut self, number: u32, data: &[u8]) -> Client {
        let length = u32::try_from(data.len()).expect("test data is short");
        self.0.extend_from_slice(&wire::option_header(number, length));
        self.0.extend_from_slice(data);
        self
    }

    fn go(self, name: &str) -> Client {
        self.option(option::GO, &wire::info_request(name, &[]))
    }

    fn contexts(self, number: u32, name: &str, queries: &[&str]) -> Client {
        self.option(number, &wire::context_request(name, queries))
    }
}

/// What a server made of a client: its replies as (option, kind, data), and how it ended.
struct Talk {
    replies: Vec<(u32, u32, Vec<u8>)>,
    end: Result<Progress, Violation>,
}

impl Talk {
    fn kinds(&self) -> Vec<u32> {
        self.replies.iter().map(|(_, kind, _)| *kind).collect()
    }

    fn session(self) -> Session {
        match self.end {
            Ok(Progress::Ready(session)) => session,
            other => unreachable!("the handshake did not finish: {other:?}"),
        }
    }
}

/// A handshake whose greeting is checked and out of the way.
fn greeted(limits: HandshakeLimits, tls: TlsOffer) -> Handshake {
    let mut handshake = Handshake::new(limits, tls);
    let greeting = handshake.take_output();
    assert_eq!(wire::decode_greeting(&greeting), Ok(Some(3)), "fixed newstyle, no zeroes");
    handshake
}

fn talk_to(exports: &dyn Exports, limits: HandshakeLimits, client: &Client) -> Talk {
    hear(&mut greeted(limits, TlsOffer::None), exports, client)
}

/// What a handshake makes of all a client says next.
fn hear(handshake: &mut Handshake, exports: &dyn Exports, client: &Client) -> Talk {
    let end = handshake.receive(&client.0, exports);
    let output = handshake.take_output();
    let (mut rest, mut replies) = (&output[..], Vec::new());
    while let Ok(Some(OptionReply { option, kind, length })) = OptionReply::decode(rest) {
        let (data, behind) = rest[wire::OPTION_REPLY_HEADER_LEN..].split_at(length as usize);
        replies.push((option, kind, data.to_vec()));
        rest = behind;
        if kind & option_reply::ERROR_BIT != 0 {
            assert!(!data.is_empty(), "every error has a text");
            assert!(data.is_ascii() && !data.contains(&0), "client bytes go back escaped");
        }
    }
    assert!(rest.is_empty(), "{} bytes out of step", rest.len());
    Talk { replies, end }
}

fn talk(client: &Client) -> Talk {
    talk_to(&OneDisk::new(), HandshakeLimits::default(), client)
}

/// The answer to one option, after which the handshake must still work.
fn answer_to(number: u32, data: &[u8]) -> Vec<u32> {
    let client = Client::new(FIXED).option(number, data).option(option::LIST, b"");
    let talk = talk(&client);
    assert!(matches!(talk.end, Ok(Progress::More)), "{:?}", talk.end);
    let mut kinds = talk.kinds();
    let list = kinds.split_off(kinds.len() - 2);
    assert_eq!(list, [option_reply::SERVER, option_reply::ACK], "out of step after {number}");
    kinds
}

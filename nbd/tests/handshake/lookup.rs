//! What a client hears about an export it does not get, whichever option asks for it.

use orlop_nbd::fuzz::OneDisk;
use orlop_nbd::wire::{self, option, option_reply};
use orlop_nbd::{
    ExportEntry, Exports, Handshake, HandshakeLimits, Lookup, Progress, TlsOffer, Violation,
};

use crate::{Client, FIXED, Talk, greeted, hear};

const ASKING: [u32; 4] =
    [option::INFO, option::GO, option::LIST_META_CONTEXT, option::SET_META_CONTEXT];

/// Exports that answer every question the same way, but for `disk`.
struct Answer {
    lookup: Lookup,
    draining: bool,
}

impl Answer {
    fn of(lookup: Lookup) -> Answer {
        Answer { lookup, draining: false }
    }
}

impl Exports for Answer {
    fn list(&self) -> Vec<ExportEntry> {
        Vec::new()
    }

    fn find(&self, name: &str) -> Lookup {
        if name == "disk" { OneDisk::new().find(name) } else { self.lookup.clone() }
    }

    fn draining(&self) -> bool {
        self.draining
    }
}

fn question(number: u32, name: &str) -> Vec<u8> {
    if [option::INFO, option::GO].contains(&number) {
        wire::info_request(name, &[])
    } else {
        wire::context_request(name, &["base:allocation"])
    }
}

fn plain(tls: TlsOffer) -> Handshake {
    let mut handshake = greeted(HandshakeLimits::default(), tls);
    let greeted = handshake.receive(&FIXED.to_be_bytes(), &OneDisk::new());
    assert_eq!(greeted, Ok(Progress::More));
    handshake
}

fn secure(tls: TlsOffer) -> Handshake {
    let mut handshake = plain(tls);
    let client = Client::secured().option(option::STARTTLS, b"");
    let talk = hear(&mut handshake, &OneDisk::new(), &client);
    assert_eq!(talk.end, Ok(Progress::StartTls));
    handshake.secured();
    handshake
}

/// Selects a context of `disk`, asks the question, and goes to `disk`: the answer to the question
/// and the contexts that are left.
fn ask(mut handshake: Handshake, exports: &Answer, number: u32) -> (u32, Vec<u8>, usize) {
    let client = Client::secured()
        .option(option::STRUCTURED_REPLY, b"")
        .contexts(option::SET_META_CONTEXT, "disk", &["base:allocation"])
        .option(number, &question(number, "other"))
        .go("disk");
    let Talk { mut replies, end } = hear(&mut handshake, exports, &client);
    let Ok(Progress::Ready(session)) = end else { unreachable!("{end:?}") };
    let expected = [option::STRUCTURED_REPLY, option::SET_META_CONTEXT, option::SET_META_CONTEXT];
    let options: Vec<u32> = replies.iter().map(|reply| reply.0).collect();
    assert_eq!(options[..3], expected);
    assert_eq!(options[4..], [option::GO; 2], "one reply per question");
    let (asked, kind, text) = replies.remove(3);
    assert_eq!(asked, number);
    (kind, text, session.contexts.len())
}

/// The violation EXPORT_NAME ends in.
fn name_it(mut handshake: Handshake, exports: &Answer) -> Violation {
    let client = Client::secured().option(option::EXPORT_NAME, b"other");
    let talk = hear(&mut handshake, exports, &client);
    assert!(talk.replies.is_empty(), "EXPORT_NAME has no error reply");
    match talk.end {
        Err(violation) => violation,
        other => unreachable!("{other:?}"),
    }
}

#[test]
fn each_reason_has_its_own_error_for_every_option_that_names_an_export() {
    type Stage = fn() -> Handshake;
    let none: Stage = || plain(TlsOffer::None);
    let optional: Stage = || plain(TlsOffer::Optional);
    let upgraded: Stage = || secure(TlsOffer::Optional);
    let forced: Stage = || secure(TlsOffer::Required);
    let forbidden = || Lookup::Forbidden("ask the owner".to_owned());
    let quoted = "\"other\"".to_owned();
    let cases = [
        (none, Lookup::Unknown, option_reply::ERR_UNKNOWN),
        (forced, Lookup::Unknown, option_reply::ERR_UNKNOWN),
        (optional, Lookup::TlsRequired, option_reply::ERR_TLS_REQD),
        // TLS_REQD must not be said where there is no TLS to be had, nor under TLS.
        (none, Lookup::TlsRequired, option_reply::ERR_POLICY),
        (upgraded, Lookup::TlsRequired, option_reply::ERR_POLICY),
        (forced, Lookup::TlsRequired, option_reply::ERR_POLICY),
        (none, forbidden(), option_reply::ERR_POLICY),
        (optional, forbidden(), option_reply::ERR_POLICY),
        (forced, forbidden(), option_reply::ERR_POLICY),
    ];
    for (stage, lookup, kind) in cases {
        let exports = Answer::of(lookup.clone());
        for number in ASKING {
            let (found, text, contexts) = ask(stage(), &exports, number);
            assert_eq!(found, kind, "{lookup:?} {number}");
            let text = String::from_utf8(text).expect("texts are UTF-8");
            let telling = if lookup == forbidden() { "ask the owner" } else { "\"other\"" };
            assert!(text.contains(telling), "{text}");
            // A failed selection is a selection of nothing; other failures leave it alone.
            assert_eq!(contexts, usize::from(number != option::SET_META_CONTEXT), "{lookup:?}");
        }
        let expected = match lookup {
            Lookup::TlsRequired => Violation::TlsRequiredExport { quoted: quoted.clone() },
            Lookup::Forbidden(text) => Violation::ForbiddenExport { quoted: quoted.clone(), text },
            _ => Violation::UnknownExport { quoted: quoted.clone() },
        };
        assert_eq!(name_it(stage(), &exports), expected);
    }
}

#[test]
fn a_server_that_is_going_away_says_so_before_anything_else() {
    for lookup in [Lookup::Unknown, Lookup::TlsRequired, Lookup::Forbidden(String::new())] {
        let exports = Answer { lookup, draining: true };
        for number in ASKING.into_iter().chain([option::LIST]) {
            let data = if number == option::LIST { vec![] } else { question(number, "disk") };
            let client =
                Client::secured().option(option::STRUCTURED_REPLY, b"").option(number, &data);
            let talk = hear(&mut plain(TlsOffer::Optional), &exports, &client);
            assert_eq!(talk.kinds(), [option_reply::ACK, option_reply::ERR_SHUTDOWN], "{number}");
            assert_eq!(talk.end, Ok(Progress::More));
        }
        assert_eq!(name_it(plain(TlsOffer::None), &exports), Violation::Draining);
    }
}

#[test]
fn a_refusal_in_the_callers_words_is_cut_at_4096_bytes_and_has_no_nul() {
    // The last character would end at 4097 bytes, so it goes as a whole.
    let long = format!("{}\u{e9}\u{e9}", "x".repeat(4095));
    let cases = [
        (long, "x".repeat(4095)),
        ("y".repeat(4097), "y".repeat(4096)),
        ("z".repeat(4096), "z".repeat(4096)),
        ("a\0b".to_owned(), "a?b".to_owned()),
        (String::new(), "export \"other\" is not for this client".to_owned()),
    ];
    for (words, told) in cases {
        let exports = Answer::of(Lookup::Forbidden(words));
        let (kind, text, _) = ask(plain(TlsOffer::None), &exports, option::INFO);
        assert_eq!((kind, text), (option_reply::ERR_POLICY, told.into_bytes()));
    }
}

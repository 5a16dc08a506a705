//! STARTTLS in every order, and what a server that requires TLS says before it.

use orlop_nbd::fuzz::{OneDisk, converse_in};
use orlop_nbd::wire::{self, option, option_reply, transmission_flag};
use orlop_nbd::{
    ExportEntry, Exports, Handshake, HandshakeLimits, HeaderFormat, Lookup, Progress, TlsOffer,
    Violation,
};

use crate::{Client, FIXED, NO_ZEROES, Talk, greeted, hear, talk};

const OFFERS: [TlsOffer; 2] = [TlsOffer::Optional, TlsOffer::Required];

fn offering(tls: TlsOffer) -> Handshake {
    greeted(HandshakeLimits::default(), tls)
}

fn starttls() -> Client {
    Client::new(FIXED | NO_ZEROES).option(option::STARTTLS, b"")
}

/// What is said behind a STARTTLS that follows `before`, once TLS is up.
fn under_tls(tls: TlsOffer, before: Client, after: &Client) -> Talk {
    let mut handshake = offering(tls);
    let plain = hear(&mut handshake, &OneDisk::new(), &before.option(option::STARTTLS, b""));
    assert_eq!(plain.end, Ok(Progress::StartTls));
    assert_eq!(plain.replies.last(), Some(&(option::STARTTLS, option_reply::ACK, vec![])));
    handshake.secured();
    hear(&mut handshake, &OneDisk::new(), after)
}

#[test]
fn starttls_is_acknowledged_and_the_talk_goes_on_under_tls() {
    for tls in OFFERS {
        let talk = under_tls(tls, Client::new(FIXED), &Client::secured().go("disk"));
        assert_eq!(talk.kinds(), [option_reply::INFO, option_reply::ACK]);
        assert_eq!(talk.session().export.name, "disk");
    }
}

#[test]
fn starttls_may_arrive_in_any_pieces() {
    let plain = starttls().0;
    let rest = Client::secured().option(option::STRUCTURED_REPLY, b"").go("disk").0;
    for tls in OFFERS {
        let whole = converse_in(&[&plain, &rest], usize::MAX, tls);
        assert!(whole.1.starts_with("Session"), "{}", whole.1);
        for piece_len in 1..=plain.len().max(rest.len()) {
            assert_eq!(converse_in(&[&plain, &rest], piece_len, tls), whole);
        }
        // Every prefix of it waits, and none but the whole asks for TLS.
        for end in 0..=plain.len() {
            let mut handshake = offering(tls);
            let progress = handshake.receive(&plain[..end], &OneDisk::new());
            let expected = if end == plain.len() { Progress::StartTls } else { Progress::More };
            assert_eq!(progress, Ok(expected));
        }
    }
}

#[test]
fn plain_bytes_behind_starttls_drop_the_connection_however_they_come() {
    // An option slipped in by somebody on the way, the begin of a TLS record, and one byte.
    let list = Client::secured().option(option::LIST, b"").0;
    let injected: [&[u8]; 3] = [&list, b"\x16\x03\x01", b"\0"];
    for tls in OFFERS {
        for extra in injected {
            let bytes = [&starttls().0[..], extra].concat();
            for cut in 0..=bytes.len() {
                let mut handshake = offering(tls);
                let first = handshake.receive(&bytes[..cut], &OneDisk::new());
                let end = match first {
                    Ok(Progress::More | Progress::StartTls) => {
                        handshake.receive(&bytes[cut..], &OneDisk::new())
                    }
                    dropped => dropped,
                };
                assert_eq!(end, Err(Violation::PlainBehindStartTls), "cut at {cut}");
                // It is over, and a late TLS does not bring it back.
                handshake.secured();
                let end = handshake.receive(&list, &OneDisk::new());
                assert_eq!(end, Err(Violation::Over));
                let said = handshake.take_output();
                assert_eq!(said.len(), wire::OPTION_REPLY_HEADER_LEN, "the acknowledgement only");
            }
        }
    }
}

#[test]
fn everything_agreed_on_in_the_clear_is_forgotten() {
    let before = || {
        Client::new(FIXED | NO_ZEROES)
            .option(option::STRUCTURED_REPLY, b"")
            .contexts(option::SET_META_CONTEXT, "disk", &["base:allocation"])
            .option(option::EXTENDED_HEADERS, b"")
    };
    let optional = TlsOffer::Optional;
    let talk = under_tls(optional, before(), &Client::secured().go("disk"));
    let (_, flags) = wire::decode_export_info(&talk.replies[0].2).expect("size comes first");
    let gone = transmission_flag::SEND_DF | transmission_flag::BLOCK_STATUS_PAYLOAD;
    assert_eq!(flags & gone, 0);
    let session = talk.session();
    assert_eq!((session.structured, session.headers), (false, HeaderFormat::Compact));
    assert!(session.contexts.is_empty());
    // The selection does not come back with the headers it was made for.
    let again = Client::secured().option(option::EXTENDED_HEADERS, b"").go("disk");
    let session = under_tls(optional, before(), &again).session();
    assert_eq!((session.headers, session.contexts), (HeaderFormat::Extended, vec![]));
    // What extended headers forbid is allowed again, and what they bring must be asked for again.
    let query = wire::context_request("disk", &["base:allocation"]);
    let after = Client::secured()
        .option(option::SET_META_CONTEXT, &query)
        .option(option::STRUCTURED_REPLY, b"");
    let talk = under_tls(optional, before(), &after);
    assert_eq!(talk.kinds(), [option_reply::ERR_INVALID, option_reply::ACK]);
    // The client's flags are no option, so they stay: no padding behind EXPORT_NAME.
    let parts = [before().option(option::STARTTLS, b"").0, b"IHAVEOPT\0\0\0\x01\0\0\0\0".to_vec()];
    let (said, end, _) = converse_in(&[&parts[0], &parts[1]], usize::MAX, optional);
    assert!(end.starts_with("Session"), "{end}");
    assert_eq!(said[said.len() - 10..][..8], (1_u64 << 20).to_be_bytes());
}

#[test]
fn starttls_under_tls_is_invalid_and_the_talk_goes_on() {
    for tls in OFFERS {
        for data in [&b""[..], b"x", &[0x49; 70_000]] {
            let after = Client::secured().option(option::STARTTLS, data).go("disk");
            let talk = under_tls(tls, Client::new(FIXED), &after);
            let expected = [option_reply::ERR_INVALID, option_reply::INFO, option_reply::ACK];
            assert_eq!(talk.kinds(), expected);
        }
    }
}

#[test]
fn starttls_with_data_is_invalid_and_may_be_asked_for_again() {
    for tls in OFFERS {
        for data in [&b"x"[..], &[0x49; 70_000]] {
            let client = Client::new(FIXED).option(option::STARTTLS, data);
            let mut handshake = offering(tls);
            let talk = hear(&mut handshake, &OneDisk::new(), &client);
            assert_eq!(talk.kinds(), [option_reply::ERR_INVALID]);
            assert_eq!(talk.end, Ok(Progress::More));
            let again = Client::secured().option(option::STARTTLS, b"");
            let talk = hear(&mut handshake, &OneDisk::new(), &again);
            assert_eq!(talk.end, Ok(Progress::StartTls));
        }
    }
}

#[test]
fn without_tls_starttls_is_refused_as_a_matter_of_policy() {
    for data in [&b""[..], b"x", &[0x49; 70_000]] {
        let client = Client::new(FIXED).option(option::STARTTLS, data).go("disk");
        let talk = talk(&client);
        let expected = [option_reply::ERR_POLICY, option_reply::INFO, option_reply::ACK];
        assert_eq!(talk.kinds(), expected);
    }
}

#[test]
fn starttls_is_not_for_clients_without_fixed_newstyle() {
    let client = Client::new(NO_ZEROES).option(option::STARTTLS, b"");
    let talk = hear(&mut offering(TlsOffer::Optional), &OneDisk::new(), &client);
    assert_eq!(talk.end, Err(Violation::UnfixedOption { option: option::STARTTLS }));
    // Such a client is served without TLS, or not at all.
    let client = Client::new(NO_ZEROES).option(option::EXPORT_NAME, b"disk");
    let mut handshake = offering(TlsOffer::Optional);
    let progress = handshake.receive(&client.0, &OneDisk::new());
    assert!(matches!(progress, Ok(Progress::Ready(_))), "{progress:?}");
    for flags in [0, NO_ZEROES] {
        let talk = hear(&mut offering(TlsOffer::Required), &OneDisk::new(), &Client::new(flags));
        assert_eq!(talk.end, Err(Violation::UnfixedTls));
    }
}

/// Exports nobody may ask about yet.
struct Untouchable;

impl Exports for Untouchable {
    fn list(&self) -> Vec<ExportEntry> {
        unreachable!("listed before TLS")
    }

    fn find(&self, name: &str) -> Lookup {
        unreachable!("looked for {name:?} before TLS")
    }

    fn listable(&self) -> bool {
        unreachable!("asked for permission before TLS")
    }

    fn draining(&self) -> bool {
        unreachable!("asked for the end before TLS")
    }
}

#[test]
fn where_tls_is_required_every_other_option_is_told_so_and_skipped() {
    let info = wire::info_request("disk", &[3]);
    let contexts = wire::context_request("disk", &["base:allocation"]);
    let others = (0..16).chain([0x7777, u32::MAX]).filter(|number| ![1, 2, 5].contains(number));
    for number in others {
        for data in [&b""[..], b"x", &info, &contexts, &[0x49; 70_000]] {
            let client = Client::new(FIXED).option(number, data).option(option::STARTTLS, b"");
            let talk = hear(&mut offering(TlsOffer::Required), &Untouchable, &client);
            assert_eq!(talk.kinds(), [option_reply::ERR_TLS_REQD, option_reply::ACK], "{number}");
            assert_eq!(talk.end, Ok(Progress::StartTls));
        }
    }
    // EXPORT_NAME has no error reply, whatever it names.
    for name in [&b""[..], b"disk", b"\xff", &[b'x'; 5000]] {
        let client = Client::new(FIXED).option(option::EXPORT_NAME, name);
        let talk = hear(&mut offering(TlsOffer::Required), &Untouchable, &client);
        assert!(talk.replies.is_empty());
        assert_eq!(talk.end, Err(Violation::PlainExportName));
    }
    let client = Client::new(FIXED).option(option::ABORT, b"bye");
    let talk = hear(&mut offering(TlsOffer::Required), &Untouchable, &client);
    assert_eq!((talk.kinds(), talk.end), (vec![option_reply::ACK], Ok(Progress::Closed)));
}

#[test]
fn required_tls_changes_nothing_once_it_is_there() {
    let query = wire::context_request("disk", &["base:allocation"]);
    let after = Client::secured()
        .option(option::LIST, b"")
        .option(option::EXTENDED_HEADERS, b"")
        .option(option::SET_META_CONTEXT, &query)
        .option(0x7777, b"x")
        .go("disk");
    let talk = under_tls(TlsOffer::Required, Client::new(FIXED).option(0x7777, b"x"), &after);
    let expected = [
        option_reply::SERVER,
        option_reply::ACK,
        option_reply::ACK,
        option_reply::META_CONTEXT,
        option_reply::ACK,
        option_reply::ERR_UNSUP,
        option_reply::INFO,
        option_reply::ACK,
    ];
    assert_eq!(talk.kinds(), expected);
    assert_eq!(talk.session().contexts.len(), 1);
}

#[test]
fn what_was_spent_before_tls_stays_spent() {
    let mut before = Client::new(FIXED);
    for _ in 0..62 {
        before = before.option(0x7777, b"");
    }
    let after = Client::secured().option(option::LIST, b"").option(option::LIST, b"");
    let talk = under_tls(TlsOffer::Optional, before, &after);
    assert_eq!(talk.kinds(), [option_reply::SERVER, option_reply::ACK], "the 64th is answered");
    assert_eq!(talk.end, Err(Violation::TooManyOptions { limit: 64 }));

    let before = Client::new(FIXED).option(0x7777, &vec![0; 1 << 20]);
    let talk = under_tls(TlsOffer::Optional, before, &Client::secured().option(0x7777, b"x"));
    assert_eq!(talk.end, Err(Violation::TooManyBytes { option: 0x7777, length: 1 }));

    let before = Client::new(FIXED).option(option::LIST, &[0; 65_536]).option(option::LIST, b"x");
    let after = Client::secured().option(option::LIST, &[0; 65_535]).option(option::LIST, b"x");
    let talk = under_tls(TlsOffer::Optional, before, &after);
    assert_eq!(talk.end, Err(Violation::TooManyBytes { option: option::LIST, length: 1 }));
}

#[test]
fn tls_nobody_asked_for_does_not_count() {
    let list = Client::secured().option(option::LIST, b"");
    let mut handshake = offering(TlsOffer::Required);
    handshake.secured();
    assert_eq!(hear(&mut handshake, &OneDisk::new(), &Client::new(FIXED)).end, Ok(Progress::More));
    handshake.secured();
    let talk = hear(&mut handshake, &OneDisk::new(), &list);
    assert_eq!(talk.kinds(), [option_reply::ERR_TLS_REQD]);
}

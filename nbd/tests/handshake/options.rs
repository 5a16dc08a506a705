//! The options without TLS, one rule of the protocol each.

use orlop_nbd::fuzz::{OneDisk, converse};
use orlop_nbd::wire::{self, info, option, option_reply, transmission_flag};
use orlop_nbd::{
    BlockSize, Bytes, Context, ContextId, ContextName, Export, ExportEntry, Exports, Handshake,
    HandshakeLimits, HeaderFormat, Lookup, Progress, TlsOffer, Violation,
};

use crate::{Client, FIXED, NO_ZEROES, Talk, answer_to, talk, talk_to};

const LENGTHS: [u32; 6] = [0, 1, 4096, 4097, 1 << 31, u32::MAX];

#[test]
fn client_flags_that_were_not_offered_drop_the_connection() {
    for flags in [4, 1 << 16, 1 << 31, u32::MAX] {
        let end = talk(&Client::new(flags)).end;
        assert_eq!(end, Err(Violation::ClientFlags { found: flags, offered: 3 }));
    }
    for flags in 0..4 {
        assert_eq!(talk(&Client::new(flags)).end, Ok(Progress::More));
    }
}

#[test]
fn export_name_answers_size_and_flags_and_zeroes_unless_waived() {
    for (flags, length) in [(0, 134), (FIXED, 134), (FIXED | NO_ZEROES, 10), (NO_ZEROES, 10)] {
        let client = Client::new(flags).option(option::EXPORT_NAME, b"disk");
        let (said, end, _) = converse(&client.0, usize::MAX);
        let answer = &said[wire::GREETING_LEN..];
        assert_eq!(answer.len(), length);
        assert_eq!(answer[..8], (1_u64 << 20).to_be_bytes());
        assert!(answer[10..].iter().all(|byte| *byte == 0));
        assert!(end.starts_with("Session"), "{end}");
    }
}

#[test]
fn export_name_has_no_error_reply_so_failure_drops_the_connection() {
    let long = vec![b'x'; 4097];
    let cases: [&[u8]; 5] = [b"other", b"di\0sk", b"\xff", &long, b"disk\0"];
    for name in cases {
        let talk = talk(&Client::new(FIXED).option(option::EXPORT_NAME, name));
        assert!(talk.replies.is_empty() && talk.end.is_err(), "{name:?}");
    }
    // The longest legal name is looked up like any other.
    let talk = talk(&Client::new(FIXED).option(option::EXPORT_NAME, &long[1..]));
    assert!(matches!(talk.end, Err(Violation::UnknownExport { .. })));
}

#[test]
fn a_client_without_fixed_newstyle_has_export_name_only() {
    let talk = talk(&Client::new(0).go("disk"));
    assert_eq!(talk.end, Err(Violation::UnfixedOption { option: option::GO }));
}

#[test]
fn abort_is_acknowledged_whatever_it_carries_and_closes() {
    for data in [&b""[..], b"no more", &[0; 100_000]] {
        let talk = talk(&Client::new(FIXED).option(option::ABORT, data));
        assert_eq!(talk.kinds(), [option_reply::ACK]);
        assert_eq!(talk.end, Ok(Progress::Closed));
    }
}

#[test]
fn a_list_names_and_describes_every_export() {
    let talk = talk(&Client::new(FIXED).option(option::LIST, b""));
    let expected = b"\0\0\0\x04diska disk for tests".to_vec();
    assert_eq!(talk.replies[0], (option::LIST, option_reply::SERVER, expected));
    assert_eq!(talk.kinds(), [option_reply::SERVER, option_reply::ACK]);
}

#[test]
fn options_that_carry_no_data_are_invalid_with_some() {
    assert_eq!(answer_to(option::LIST, b"x"), [option_reply::ERR_INVALID]);
    assert_eq!(answer_to(option::STRUCTURED_REPLY, b"x"), [option_reply::ERR_INVALID]);
    assert_eq!(answer_to(option::EXTENDED_HEADERS, b"x"), [option_reply::ERR_INVALID]);
}

#[test]
fn unknown_options_are_unsupported_and_exactly_their_data_is_skipped() {
    let unknown = [option::PEEK_EXPORT, 0, 12, 0x7777, u32::MAX];
    for number in unknown {
        for data in [&b""[..], b"x", &[0x49; 70_000]] {
            assert_eq!(answer_to(number, data), [option_reply::ERR_UNSUP], "{number}");
        }
    }
}

#[test]
fn a_known_option_that_is_too_long_is_skipped_and_too_big() {
    let data = vec![0; (64 << 10) + 1];
    let known = [
        option::LIST,
        option::INFO,
        option::GO,
        option::STRUCTURED_REPLY,
        option::EXTENDED_HEADERS,
        option::LIST_META_CONTEXT,
        option::SET_META_CONTEXT,
    ];
    for number in known {
        assert_eq!(answer_to(number, &data), [option_reply::ERR_TOO_BIG], "{number}");
    }
}

#[test]
fn absurd_lengths_drop_the_connection_at_the_header() {
    for number in 0..13 {
        for length in [1 << 31, u32::MAX, (1 << 20) + 1] {
            let mut client = Client::new(FIXED);
            client.0.extend_from_slice(&wire::option_header(number, length));
            assert!(talk(&client).end.is_err(), "{number} {length}");
        }
    }
}

#[test]
fn malformed_info_and_context_requests_are_invalid_and_the_talk_goes_on() {
    let invalid = [option_reply::ERR_INVALID];
    for number in [option::INFO, option::GO, option::LIST_META_CONTEXT] {
        for claimed in LENGTHS {
            let mut data = claimed.to_be_bytes().to_vec();
            data.push(b'x');
            assert_eq!(answer_to(number, &data), invalid, "{number} {claimed}");
        }
        assert_eq!(answer_to(number, b""), invalid);
    }
    for number in [option::INFO, option::GO] {
        let nul = wire::info_request("di\0sk", &[]);
        assert_eq!(answer_to(number, &nul), invalid);
        let long = wire::info_request(&"x".repeat(4097), &[]);
        assert_eq!(answer_to(number, &long), invalid);
        let lies = [wire::info_request("disk", &[]), vec![9]].concat();
        assert_eq!(answer_to(number, &lies), invalid);
    }
}

#[test]
fn an_unknown_export_is_unknown_and_quoted_in_ascii() {
    let data = wire::info_request("d\u{e9}sk\n", &[]);
    for number in [option::INFO, option::GO] {
        assert_eq!(answer_to(number, &data), [option_reply::ERR_UNKNOWN]);
    }
    let data = wire::context_request("other", &[]);
    assert_eq!(answer_to(option::LIST_META_CONTEXT, &data), [option_reply::ERR_UNKNOWN]);
    let longest = wire::info_request(&"x".repeat(4096), &[]);
    assert_eq!(answer_to(option::INFO, &longest), [option_reply::ERR_UNKNOWN]);
}

#[test]
fn info_tells_what_go_tells_but_does_not_go() {
    let wanted = [info::NAME, info::DESCRIPTION, info::BLOCK_SIZE, 77];
    let data = wire::info_request("", &wanted);
    let asked = talk(&Client::new(FIXED).option(option::INFO, &data));
    assert_eq!(asked.end, Ok(Progress::More));
    let gone = talk(&Client::new(FIXED).option(option::GO, &data));
    let texts = |talk: &Talk| -> Vec<_> {
        talk.replies.iter().map(|(_, kind, data)| (*kind, data.clone())).collect()
    };
    assert_eq!(texts(&asked), texts(&gone));

    let (size, flags) = wire::decode_export_info(&gone.replies[0].2).expect("size comes first");
    assert_eq!(size, Bytes(1 << 20));
    assert_eq!(flags & transmission_flag::SEND_DF, 0, "DF needs structured replies");
    assert_eq!(gone.replies[1].2, b"\0\x01disk", "the canonical name, not the one asked for");
    assert_eq!(gone.replies[2].2, b"\0\x02a disk for tests");
    assert_eq!(gone.replies[3].2, b"\0\x03\0\0\0\x01\0\0\x10\0\x02\0\0\0");
    assert_eq!(gone.replies[4].1, option_reply::ACK);
    assert_eq!(gone.session().export.name, "disk");
}

#[test]
fn block_sizes_are_told_unasked_if_they_are_unusual() {
    let mut disk = OneDisk::new();
    let plain = talk_to(&disk, HandshakeLimits::default(), &Client::new(FIXED).go("disk"));
    assert_eq!(plain.replies.len(), 2, "size and acknowledgement");
    disk.0.block_size = BlockSize::new(512, 4096, 32 << 20).expect("these sizes are legal");
    let odd = talk_to(&disk, HandshakeLimits::default(), &Client::new(FIXED).go("disk"));
    assert_eq!(odd.replies[1].2, b"\0\x03\0\0\x02\0\0\0\x10\0\x02\0\0\0");
}

#[test]
fn structured_replies_bring_df_and_may_be_asked_for_twice() {
    let client = Client::new(FIXED)
        .option(option::STRUCTURED_REPLY, b"")
        .option(option::STRUCTURED_REPLY, b"")
        .go("disk");
    let talk = talk(&client);
    let (_, flags) = wire::decode_export_info(&talk.replies[2].2).expect("size comes first");
    assert_ne!(flags & transmission_flag::SEND_DF, 0);
    assert!(talk.session().structured);
}

#[test]
fn contexts_are_listed_with_id_zero_and_set_with_their_own() {
    let query = ["base:allocation", "base:allocation", "x-unknown:thing"];
    let client = Client::new(FIXED)
        .option(option::STRUCTURED_REPLY, b"")
        .contexts(option::LIST_META_CONTEXT, "", &["base:"])
        .contexts(option::SET_META_CONTEXT, "", &query)
        .go("disk");
    let talk = talk(&client);
    assert_eq!(talk.replies[1].2, b"\0\0\0\0base:allocation");
    assert_eq!(talk.replies[3].2, b"\0\0\0\x01base:allocation");
    assert_eq!(talk.replies[4].1, option_reply::ACK, "the second query adds nothing");
    // The empty name and "disk" are the same export, so the selection holds.
    let contexts = talk.session().contexts;
    assert_eq!(contexts.len(), 1);
    assert_eq!(contexts[0], Context { id: ContextId(1), name: ContextName::Allocation });
}

#[test]
fn several_contexts_are_selected_at_once_each_with_an_id_of_its_own() {
    let query = ["qemu:dirty-bitmap:leaf", "base:allocation", "qemu:dirty-bitmap:leaf"];
    let client = Client::new(FIXED)
        .option(option::STRUCTURED_REPLY, b"")
        .contexts(option::LIST_META_CONTEXT, "", &["qemu:"])
        .contexts(option::SET_META_CONTEXT, "disk", &query)
        .go("disk");
    let talk = talk(&client);
    assert_eq!(talk.replies[1].2, b"\0\0\0\0qemu:allocation-depth");
    assert_eq!(talk.replies[2].2, b"\0\0\0\0qemu:dirty-bitmap:leaf");
    assert_eq!(talk.replies[4].2, b"\0\0\0\x01base:allocation");
    assert_eq!(talk.replies[5].2, b"\0\0\0\x02qemu:dirty-bitmap:leaf");
    assert_eq!(talk.replies[6].1, option_reply::ACK);
    let ids: Vec<u32> = talk.session().contexts.iter().map(|context| context.id.0).collect();
    assert_eq!(ids, [1, 2]);
}

#[test]
fn extended_headers_bring_structured_replies_and_the_status_filter() {
    let client = Client::new(FIXED)
        .option(option::EXTENDED_HEADERS, b"")
        .option(option::EXTENDED_HEADERS, b"")
        .contexts(option::SET_META_CONTEXT, "disk", &["base:allocation"])
        .go("disk");
    let extended = talk(&client);
    assert_eq!(extended.kinds()[..2], [option_reply::ACK; 2], "twice does no harm");
    let (_, flags) = wire::decode_export_info(&extended.replies[4].2).expect("size comes next");
    let both = transmission_flag::SEND_DF | transmission_flag::BLOCK_STATUS_PAYLOAD;
    assert_eq!(flags & both, both);
    let session = extended.session();
    assert_eq!((session.structured, session.headers), (true, HeaderFormat::Extended));
    assert_eq!(session.contexts.len(), 1);

    // The filter is told with extended headers only, and INFO says what GO will say.
    let plain = talk(&Client::new(FIXED).option(option::STRUCTURED_REPLY, b"").go("disk"));
    let (_, flags) = wire::decode_export_info(&plain.replies[1].2).expect("size comes next");
    assert_eq!(flags & transmission_flag::BLOCK_STATUS_PAYLOAD, 0);
    assert_eq!(plain.session().headers, HeaderFormat::Compact);
    let asked = Client::new(FIXED)
        .option(option::EXTENDED_HEADERS, b"")
        .option(option::INFO, &wire::info_request("disk", &[]))
        .go("disk");
    let asked = talk(&asked);
    assert_eq!(asked.replies[1].2, asked.replies[3].2);
}

#[test]
fn an_export_without_contexts_has_nothing_to_filter() {
    let mut bare = OneDisk::new();
    bare.0.contexts.clear();
    let client = Client::new(FIXED)
        .option(option::EXTENDED_HEADERS, b"")
        .contexts(option::LIST_META_CONTEXT, "disk", &[])
        .contexts(option::SET_META_CONTEXT, "disk", &["base:allocation"])
        .go("disk");
    let talk = talk_to(&bare, HandshakeLimits::default(), &client);
    assert_eq!(talk.kinds()[..3], [option_reply::ACK; 3], "no context is listed or set");
    let (_, flags) = wire::decode_export_info(&talk.replies[3].2).expect("size comes next");
    assert_eq!(flags & transmission_flag::BLOCK_STATUS_PAYLOAD, 0);
    assert!(talk.session().contexts.is_empty());
}

#[test]
fn after_extended_headers_there_is_no_way_back() {
    // STRUCTURED_REPLY has an error of its own then, and the session stays extended.
    let client = Client::new(FIXED)
        .option(option::STRUCTURED_REPLY, b"")
        .option(option::EXTENDED_HEADERS, b"")
        .option(option::STRUCTURED_REPLY, b"")
        .option(option::STRUCTURED_REPLY, b"x")
        .option(option::EXTENDED_HEADERS, b"x")
        .go("disk");
    let talked = talk(&client);
    let expected = [
        option_reply::ACK,
        option_reply::ACK,
        option_reply::ERR_EXT_HEADER_REQD,
        option_reply::ERR_INVALID,
        option_reply::ERR_INVALID,
    ];
    assert_eq!(talked.kinds()[..5], expected);
    assert_eq!(talked.session().headers, HeaderFormat::Extended);
    // EXPORT_NAME must not be used any more, and has no error reply.
    let client = Client::new(FIXED)
        .option(option::EXTENDED_HEADERS, b"")
        .option(option::EXPORT_NAME, b"disk");
    let talked = talk(&client);
    assert_eq!(talked.kinds(), [option_reply::ACK]);
    assert_eq!(talked.end, Err(Violation::ExtendedExportName));
}

#[test]
fn a_refused_request_for_extended_headers_changes_nothing() {
    let client = Client::new(FIXED).option(option::EXTENDED_HEADERS, b"x").go("disk");
    let session = talk(&client).session();
    assert_eq!((session.structured, session.headers), (false, HeaderFormat::Compact));
}

#[test]
fn contexts_whose_names_do_not_fit_the_answer_are_too_big_and_not_selected() {
    let limits = HandshakeLimits { output_bytes_max: 200, ..HandshakeLimits::default() };
    let mut disk = OneDisk::new();
    disk.0.contexts = vec![ContextName::DirtyBitmap("x".repeat(150))];
    let name = disk.0.contexts[0].to_string();
    let client = Client::new(FIXED).option(option::STRUCTURED_REPLY, b"").contexts(
        option::SET_META_CONTEXT,
        "disk",
        &[&name],
    );
    let talk = talk_to(&disk, limits, &client);
    assert_eq!(talk.kinds(), [option_reply::ACK, option_reply::ERR_TOO_BIG]);
}

#[test]
fn setting_contexts_needs_structured_replies() {
    let data = wire::context_request("disk", &["base:allocation"]);
    assert_eq!(answer_to(option::SET_META_CONTEXT, &data), [option_reply::ERR_INVALID]);
}

#[test]
fn a_selection_is_replaced_even_by_one_that_fails_or_is_empty() {
    let too_big = vec![0; 65_537];
    let malformed = [0, 0, 0, 9];
    let after: [&dyn Fn(Client) -> Client; 5] = [
        &|client| client.contexts(option::SET_META_CONTEXT, "disk", &[]),
        &|client| client.contexts(option::SET_META_CONTEXT, "disk", &["base:"]),
        &|client| client.contexts(option::SET_META_CONTEXT, "other", &["base:allocation"]),
        &|client| client.option(option::SET_META_CONTEXT, &malformed),
        &|client| client.option(option::SET_META_CONTEXT, &too_big),
    ];
    for (at, then) in after.iter().enumerate() {
        let client = Client::new(FIXED).option(option::STRUCTURED_REPLY, b"").contexts(
            option::SET_META_CONTEXT,
            "disk",
            &["base:allocation"],
        );
        let talk = talk(&then(client).go("disk"));
        assert!(talk.session().contexts.is_empty(), "case {at}");
    }
}

/// Two exports, a policy, and an end: what one disk cannot show.
struct House {
    names: Vec<String>,
    listable: bool,
    draining: bool,
}

impl Exports for House {
    fn list(&self) -> Vec<ExportEntry> {
        let entry = |name: &String| ExportEntry { name: name.clone(), description: String::new() };
        self.names.iter().map(entry).collect()
    }

    fn find(&self, name: &str) -> Lookup {
        let Some(name) = self.names.iter().find(|known| *known == name) else {
            return Lookup::Unknown;
        };
        Lookup::Found(Box::new(Export { name: name.clone(), ..OneDisk::new().0 }))
    }

    fn listable(&self) -> bool {
        self.listable
    }

    fn draining(&self) -> bool {
        self.draining
    }
}

fn house() -> House {
    House { names: vec!["a".to_owned(), "b".to_owned()], listable: true, draining: false }
}

#[test]
fn a_selection_for_one_export_does_not_serve_another() {
    let select = |name| {
        Client::new(FIXED).option(option::STRUCTURED_REPLY, b"").contexts(
            option::SET_META_CONTEXT,
            name,
            &["base:allocation"],
        )
    };
    let limits = HandshakeLimits::default();
    let same = talk_to(&house(), limits, &select("a").go("a"));
    assert_eq!(same.session().contexts.len(), 1);
    let other = talk_to(&house(), limits, &select("a").go("b"));
    assert!(other.session().contexts.is_empty());
}

#[test]
fn policy_and_shutdown_have_errors_of_their_own() {
    let limits = HandshakeLimits::default();
    let list = Client::new(FIXED).option(option::LIST, b"");
    let secret = House { listable: false, ..house() };
    let refused = talk_to(&secret, limits, &list);
    assert_eq!(refused.kinds(), [option_reply::ERR_POLICY]);

    let leaving = House { draining: true, ..house() };
    let client = Client::new(FIXED).option(option::LIST, b"").go("a").contexts(
        option::LIST_META_CONTEXT,
        "a",
        &[],
    );
    let refused = talk_to(&leaving, limits, &client);
    assert_eq!(refused.kinds(), [option_reply::ERR_SHUTDOWN; 3]);
    let client = Client::new(FIXED).option(option::EXPORT_NAME, b"a");
    assert!(talk_to(&leaving, limits, &client).end.is_err());
}

#[test]
fn a_list_too_long_to_send_is_too_big_and_bad_names_are_left_out() {
    let mut many = house();
    many.names = (0..2000).map(|at| format!("{at}{}", "x".repeat(4000))).collect();
    let client = Client::new(FIXED).option(option::LIST, b"");
    let refused = talk_to(&many, HandshakeLimits::default(), &client);
    assert_eq!(refused.kinds(), [option_reply::ERR_TOO_BIG]);

    many.names = vec!["a\0".to_owned(), "b".repeat(4097), "c".repeat(4096)];
    let listed = talk_to(&many, HandshakeLimits::default(), &client);
    assert_eq!(listed.kinds(), [option_reply::SERVER, option_reply::ACK]);
}

#[test]
fn options_are_counted_and_the_65th_is_one_too_many() {
    let mut client = Client::new(FIXED);
    for _ in 0..64 {
        client = client.option(0x7777, b"");
    }
    assert_eq!(talk(&client).end, Ok(Progress::More));
    let end = talk(&client.option(0x7777, b"")).end;
    assert_eq!(end, Err(Violation::TooManyOptions { limit: 64 }));
}

#[test]
fn kept_skipped_and_spoken_bytes_are_bounded_over_the_whole_handshake() {
    let large = vec![0; 64 << 10];
    let mut client = Client::new(FIXED);
    for _ in 0..2 {
        client = client.option(option::LIST, &large);
    }
    assert_eq!(talk(&client).end, Ok(Progress::More));
    let end = talk(&client.option(option::LIST, b"x")).end;
    assert_eq!(end, Err(Violation::TooManyBytes { option: option::LIST, length: 1 }));

    let mut client = Client::new(FIXED);
    for _ in 0..16 {
        client = client.option(99, &large);
    }
    assert_eq!(talk(&client).end, Ok(Progress::More));
    assert!(talk(&client.option(99, b"x")).end.is_err());

    let limits = HandshakeLimits { output_bytes_max: 100, ..HandshakeLimits::default() };
    let client = Client::new(FIXED).option(99, b"").option(99, b"");
    let end = talk_to(&OneDisk::new(), limits, &client).end;
    assert_eq!(end, Err(Violation::TooManyAnswers { limit: 100 }));
}

#[test]
fn a_wrong_option_magic_drops_the_connection() {
    let mut client = Client::new(FIXED).option(option::LIST, b"");
    client.0[4] ^= 1;
    assert!(matches!(talk(&client).end, Err(Violation::OptionMagic { .. })));
}

#[test]
fn what_follows_go_in_the_same_bytes_belongs_to_transmission() {
    let mut client = Client::new(FIXED).go("disk");
    client.0.extend_from_slice(b"requests");
    assert_eq!(talk(&client).session().leftover, b"requests");
}

#[test]
fn a_finished_handshake_takes_no_more() {
    let exports = OneDisk::new();
    let mut handshake = Handshake::new(HandshakeLimits::default(), TlsOffer::None);
    let client = Client::new(FIXED).option(option::ABORT, b"");
    assert_eq!(handshake.receive(&client.0, &exports), Ok(Progress::Closed));
    assert_eq!(handshake.receive(b"x", &exports), Err(Violation::Over));
}

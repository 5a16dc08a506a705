//! Every limit of a handshake: what may be configured, and what happens at it and one past it.

use orlop_nbd::fuzz::OneDisk;
use orlop_nbd::wire::{self, OPTION_REPLY_HEADER_LEN, option, option_reply};
use orlop_nbd::{HandshakeLimits, LimitError, Progress, Violation};

use crate::{Client, FIXED, Talk, talk_to};

type Field = fn(&mut HandshakeLimits, u64);

const FIELDS: [(&str, Field, u64, u64); 5] = [
    ("options_max", |limits, to| limits.options_max = to as u32, 8, 65_536),
    ("option_bytes_max", |limits, to| limits.option_bytes_max = to as u32, 16 << 10, 1 << 20),
    ("kept_bytes_max", |limits, to| limits.kept_bytes_max = to as u32, 16 << 10, 16 << 20),
    ("skipped_bytes_max", |limits, to| limits.skipped_bytes_max = to as u32, 4 << 10, 64 << 20),
    ("output_bytes_max", |limits, to| limits.output_bytes_max = to as usize, 64 << 10, 64 << 20),
];

/// Limits that allow any single field its whole range.
fn roomy() -> HandshakeLimits {
    let kept_bytes_max = *HandshakeLimits::KEPT_BYTES.end();
    let option_bytes_max = *HandshakeLimits::OPTION_BYTES.start();
    HandshakeLimits { kept_bytes_max, option_bytes_max, ..HandshakeLimits::default() }
}

#[test]
fn each_limit_is_taken_inside_its_range_and_named_outside() {
    let usual = HandshakeLimits::default();
    assert_eq!(usual.checked(), Ok(usual));
    for (name, set, least, most) in FIELDS {
        for inside in [least, least + 1, most - 1, most] {
            let mut limits = roomy();
            set(&mut limits, inside);
            assert_eq!(limits.checked(), Ok(limits), "{name} = {inside}");
        }
        for found in [0, least - 1, most + 1, u64::from(u32::MAX)] {
            let mut limits = roomy();
            set(&mut limits, found);
            let refused = limits.checked();
            assert_eq!(refused, Err(LimitError::Range { name, found, least, most }));
            let text = refused.map(|_| ()).expect_err("just seen").to_string();
            assert!(text.contains(name) && text.contains(&found.to_string()), "{text}");
        }
    }
}

#[test]
fn one_option_cannot_be_longer_than_all_of_them() {
    let with = |kept_bytes_max, option_bytes_max| HandshakeLimits {
        kept_bytes_max,
        option_bytes_max,
        ..HandshakeLimits::default()
    };
    assert!(with(65_536, 65_536).checked().is_ok());
    let expected = LimitError::Kept { kept: 65_535, option: 65_536 };
    assert_eq!(with(65_535, 65_536).checked(), Err(expected));
}

fn under(limits: HandshakeLimits, client: &Client) -> Talk {
    talk_to(&OneDisk::new(), limits, client)
}

fn tight() -> HandshakeLimits {
    HandshakeLimits {
        options_max: 8,
        option_bytes_max: 16 << 10,
        kept_bytes_max: 16 << 10,
        skipped_bytes_max: 4 << 10,
        output_bytes_max: 64 << 10,
    }
}

#[test]
fn the_least_limits_still_serve_a_client_that_uses_everything_at_full_length() {
    assert_eq!(tight().checked(), Ok(tight()));
    let mut disk = OneDisk::new();
    disk.0.name = "n".repeat(4096);
    disk.0.description = "d".repeat(5000);
    let name = disk.0.name.clone();
    // Two long names fit; the others go by the default export's empty one.
    let client = Client::new(FIXED)
        .option(option::STARTTLS, b"")
        .option(option::EXTENDED_HEADERS, b"")
        .option(option::STRUCTURED_REPLY, b"")
        .option(option::LIST, b"")
        .contexts(option::LIST_META_CONTEXT, "", &[])
        .contexts(option::SET_META_CONTEXT, &name, &["base:allocation"])
        .option(option::INFO, &wire::info_request("", &[1, 2, 3]))
        .option(option::GO, &wire::info_request(&name, &[1, 2, 3]));
    let session = talk_to(&disk, tight(), &client).session();
    assert_eq!((session.export.name, session.contexts.len()), (name, 1));
}

#[test]
fn options_are_counted() {
    let times = |count| (0..count).fold(Client::new(FIXED), |client, _| client.option(99, b""));
    assert_eq!(under(tight(), &times(8)).end, Ok(Progress::More));
    let past = under(tight(), &times(9));
    assert_eq!(past.end, Err(Violation::TooManyOptions { limit: 8 }));
    assert_eq!(past.kinds(), [option_reply::ERR_UNSUP; 8], "what came before is answered");
}

#[test]
fn the_data_of_one_option_is_measured() {
    let limits = HandshakeLimits { skipped_bytes_max: 1 << 20, ..tight() };
    let list = |length| Client::new(FIXED).option(option::LIST, &vec![0; length]);
    assert_eq!(under(limits, &list(16 << 10)).kinds(), [option_reply::ERR_INVALID]);
    let past = under(limits, &list((16 << 10) + 1));
    assert_eq!((past.kinds(), past.end), (vec![option_reply::ERR_TOO_BIG], Ok(Progress::More)));
}

#[test]
fn the_data_of_all_options_is_measured() {
    let list = |length| {
        Client::new(FIXED).option(option::LIST, &[0; 16]).option(option::LIST, &vec![0; length])
    };
    assert_eq!(under(tight(), &list((16 << 10) - 16)).end, Ok(Progress::More));
    let length = (16 << 10) - 15;
    let past = under(tight(), &list(length as usize)).end;
    assert_eq!(past, Err(Violation::TooManyBytes { option: option::LIST, length }));
}

#[test]
fn the_data_that_is_skipped_is_measured() {
    // Unknown, refused and abandoned options alike.
    for number in [99, option::STARTTLS, option::ABORT] {
        let skip =
            |length| Client::new(FIXED).option(99, &[0; 16]).option(number, &vec![0; length]);
        assert!(under(tight(), &skip((4 << 10) - 16)).end.is_ok());
        let length = (4 << 10) - 15;
        let past = under(tight(), &skip(length as usize)).end;
        assert_eq!(past, Err(Violation::TooManyBytes { option: number, length }));
    }
}

#[test]
fn what_is_said_is_measured() {
    // A list of one export: its name, and a description that makes the answer as long as wanted.
    let greeting = wire::GREETING_LEN;
    let acknowledgement = OPTION_REPLY_HEADER_LEN;
    let list = Client::new(FIXED).option(option::LIST, b"");
    let mut disk = OneDisk::new();
    disk.0.description = "d".repeat(1000);
    let exact = greeting + OPTION_REPLY_HEADER_LEN + 4 + "disk".len() + 1000 + acknowledgement;
    let limits = HandshakeLimits { output_bytes_max: exact, ..tight() };
    let told = talk_to(&disk, limits, &list);
    assert_eq!(told.kinds(), [option_reply::SERVER, option_reply::ACK]);
    let limits = HandshakeLimits { output_bytes_max: exact - 1, ..tight() };
    let past = talk_to(&disk, limits, &list);
    assert_eq!((past.kinds(), past.end), (vec![option_reply::ERR_TOO_BIG], Ok(Progress::More)));
    // Not even a refusal fits: dropped, with nothing said.
    let limits = HandshakeLimits { output_bytes_max: greeting + acknowledgement, ..tight() };
    let past = talk_to(&disk, limits, &list);
    assert!(past.replies.is_empty());
    let limit = greeting + acknowledgement;
    assert_eq!(past.end, Err(Violation::TooManyAnswers { limit }));
}

/// What QEMU asks a server it lists: about every export, in one handshake.
fn listing(exports: usize) -> Client {
    let name = "n".repeat(250);
    let client = Client::new(FIXED)
        .option(option::STARTTLS, b"")
        .option(option::EXTENDED_HEADERS, b"")
        .option(option::LIST, b"");
    let all = (0..exports).fold(client, |client, _| {
        let asked = client.option(option::INFO, &wire::info_request(&name, &[1, 2, 3]));
        asked.contexts(option::LIST_META_CONTEXT, &name, &[])
    });
    all.option(option::ABORT, b"")
}

#[test]
fn a_server_of_many_exports_makes_room_to_be_listed() {
    let mut disk = OneDisk::new();
    disk.0.name = "n".repeat(250);
    let usual = HandshakeLimits::default();
    assert_eq!(usual.with_room_for(0), usual);
    for exports in [30, 40, 1000, 10_000] {
        let limits = usual.with_room_for(exports);
        assert_eq!(limits.checked(), Ok(limits));
        let talk = talk_to(&disk, limits, &listing(exports));
        assert_eq!(talk.end, Ok(Progress::Closed), "{exports}");
    }
    // However many there are, every limit stays in its range, and none falls.
    for exports in [100_000, u32::MAX as usize, usize::MAX] {
        let limits = usual.with_room_for(exports);
        assert_eq!(limits.checked(), Ok(limits));
        assert_eq!(limits.options_max, *HandshakeLimits::OPTIONS.end());
    }
    let refused = talk_to(&disk, usual, &listing(40)).end;
    assert_eq!(refused, Err(Violation::TooManyOptions { limit: 64 }));
}

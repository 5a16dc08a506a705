//! Anything at all may come from a peer: no bytes panic, and no split of them changes the story.

use orlop_nbd::fuzz;
use orlop_nbd::wire::{self, ExtendedRequestHeader, RequestHeader, option};
use orlop_nbd::{Bytes, ContextId, Cookie, Offset, TlsOffer};
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};

const OFFERS: [TlsOffer; 3] = [TlsOffer::None, TlsOffer::Optional, TlsOffer::Required];

fn option_bytes(number: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).expect("test data is short");
    [&wire::option_header(number, length)[..], data].concat()
}

/// What follows extended headers: reads, writes, a filter, a payload that does not belong, and a
/// disk that grows.
fn wide_requests() -> Vec<u8> {
    let at = |command: u16, flags: u16, offset: u64, length: u64| {
        let (cookie, offset, length) = (Cookie(1), Offset(offset), Bytes(length));
        ExtendedRequestHeader { flags, command, cookie, offset, length }.encode().to_vec()
    };
    let header = |command: u16, flags: u16, length: u64| at(command, flags, 0, length);
    let filter = wire::status_filter(Bytes(4096), &[ContextId(2), ContextId(1)]);
    [
        header(0, 0, 4096),
        header(1, 32, 8),
        vec![7; 8],
        header(7, 32, 16),
        filter,
        header(4, 32, 4),
        vec![7; 4],
        header(6, 0, 1 << 20),
        at(8, 0, 2 << 20, 0),
        at(6, 0, 1 << 20, 1 << 20),
        at(8, 0, 0, 1),
        header(7, 0, 1 << 40),
        header(2, 0, 0),
    ]
    .concat()
}

/// Conversations as real clients have them: XO's and the kernel's, QEMU's before and after it
/// learnt extended headers, and a rude one.
fn recorded() -> Vec<Vec<u8>> {
    let go = option_bytes(option::GO, &wire::info_request("disk", &[3]));
    let contexts = wire::context_request("disk", &["base:allocation", "qemu:dirty-bitmap:x"]);
    let read =
        RequestHeader { flags: 0, command: 0, cookie: Cookie(1), offset: Offset(0), length: 4096 };
    let several = ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:leaf"];
    let several = wire::context_request("disk", &several);
    let fixed = 3_u32.to_be_bytes().to_vec();
    vec![
        [fixed.clone(), option_bytes(option::EXPORT_NAME, b"disk"), read.encode().to_vec()]
            .concat(),
        [
            fixed.clone(),
            option_bytes(option::STARTTLS, b""),
            option_bytes(option::INFO, &wire::info_request("secret", &[])),
            option_bytes(option::INFO, &wire::info_request("private", &[])),
            option_bytes(option::EXTENDED_HEADERS, b""),
            option_bytes(option::STRUCTURED_REPLY, b""),
            option_bytes(option::LIST_META_CONTEXT, &contexts),
            option_bytes(option::SET_META_CONTEXT, &contexts),
            option_bytes(option::INFO, &wire::info_request("", &[1, 2, 3])),
            go.clone(),
            read.encode().to_vec(),
        ]
        .concat(),
        [
            fixed.clone(),
            option_bytes(option::EXTENDED_HEADERS, b""),
            option_bytes(option::STRUCTURED_REPLY, b""),
            option_bytes(option::LIST_META_CONTEXT, &wire::context_request("", &["qemu:"])),
            option_bytes(option::SET_META_CONTEXT, &several),
            option_bytes(option::GO, &wire::info_request("", &[3])),
            wide_requests(),
        ]
        .concat(),
        [fixed.clone(), option_bytes(option::LIST, b""), option_bytes(option::ABORT, b"bye")]
            .concat(),
        [
            fixed.clone(),
            option_bytes(option::STRUCTURED_REPLY, b""),
            option_bytes(option::SET_META_CONTEXT, &several),
            option_bytes(option::INFO, &wire::info_request("secret", &[])),
            option_bytes(option::STARTTLS, b"data"),
            option_bytes(option::STARTTLS, b""),
            option_bytes(option::STARTTLS, b""),
            option_bytes(option::INFO, &wire::info_request("secret", &[])),
            go.clone(),
        ]
        .concat(),
        [
            fixed,
            option_bytes(option::LIST, b"junk"),
            option_bytes(0x7777, &[0xff; 300]),
            option_bytes(option::GO, b"\xff\xff\xff\xff"),
            option_bytes(option::GO, &wire::info_request("nowhere", &[])),
            vec![0; 40],
        ]
        .concat(),
    ]
}

#[test]
fn no_split_of_a_recorded_conversation_changes_it() {
    for bytes in recorded() {
        for tls in OFFERS {
            let plain_len = fuzz::plain_part(&bytes, tls).unwrap_or(bytes.len());
            let (plain, rest) = bytes.split_at(plain_len);
            for parts in [&[&bytes[..]][..], &[plain, rest]] {
                let whole = fuzz::converse_in(parts, usize::MAX, tls);
                for piece_len in 1..=bytes.len() {
                    let pieces = fuzz::converse_in(parts, piece_len, tls);
                    assert_eq!(pieces, whole, "in pieces of {piece_len}");
                }
            }
        }
    }
}

/// The conversations above start TLS where they can, and two of them finish under it.
#[test]
fn recorded_conversations_reach_what_lies_behind_starttls() {
    for tls in [TlsOffer::Optional, TlsOffer::Required] {
        let finished = recorded().into_iter().filter(|bytes| {
            fuzz::plain_part(bytes, tls).is_some_and(|plain_len| {
                let (plain, rest) = bytes.split_at(plain_len);
                fuzz::converse_in(&[plain, rest], usize::MAX, tls).1.starts_with("Session")
            })
        });
        assert_eq!(finished.count(), 2, "{tls:?}");
    }
}

#[test]
fn every_damaged_byte_of_a_recorded_conversation_is_survived() {
    for bytes in recorded() {
        for at in 0..bytes.len() {
            for damage in [0x01, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] ^= damage;
                fuzz::handshake(&damaged);
            }
            fuzz::handshake(&bytes[..at]);
        }
    }
}

/// Exports that are there, that need TLS, that are for others, and that are not there.
fn any_name() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("disk"), Just(""), Just("secret"), Just("private"), Just("nowhere")]
}

/// An option that looks like one but may carry anything.
fn any_option() -> impl Strategy<Value = Vec<u8>> {
    let data = prop_oneof![
        vec(any::<u8>(), 0..64),
        vec(Just("base:allocation"), 0..4).prop_map(|all| wire::context_request("disk", &all)),
        (any_name(), vec(0..5_u16, 0..6))
            .prop_map(|(name, kinds)| wire::info_request(name, &kinds)),
        Just(Vec::new()),
    ];
    (0..14_u32, data).prop_map(|(number, data)| option_bytes(number, &data))
}

fn any_request() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![0..8192_u32, any::<u32>()];
    (0..10_u16, 0..64_u16, 0..(3_u64 << 19), length).prop_map(|(command, flags, offset, length)| {
        let (cookie, offset) = (Cookie(u64::from(flags)), Offset(offset));
        RequestHeader { flags, command, cookie, offset, length }.encode().to_vec()
    })
}

fn any_wide_request() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![0..64_u64, 0..(3_u64 << 19), any::<u64>()];
    let ids = vec(0..5_u32, 0..5);
    (0..10_u16, 0..64_u16, 0..(3_u64 << 19), length, ids).prop_map(
        |(command, flags, offset, length, ids)| {
            let ids: Vec<ContextId> = ids.into_iter().map(ContextId).collect();
            let filter = wire::status_filter(Bytes(length), &ids);
            let filtered = command == 7 && flags & 32 != 0;
            let behind = if filtered { filter } else { Vec::new() };
            let length = Bytes(if filtered { behind.len() as u64 } else { length });
            let (cookie, offset) = (Cookie(u64::from(flags)), Offset(offset));
            let header = ExtendedRequestHeader { flags, command, cookie, offset, length };
            [&header.encode()[..], &behind].concat()
        },
    )
}

/// Every cut of a stream either says that more is needed or decides, and what is decided before
/// the whole is there is what the whole says too.
#[test]
fn no_split_of_an_extended_stream_changes_what_its_requests_are() {
    let bytes = wide_requests();
    for end in 0..=bytes.len() {
        fuzz::transmission(&bytes[..end]);
        assert_eq!(
            fuzz::requests(&bytes, end),
            fuzz::requests(&bytes, bytes.len()),
            "cut at {end}"
        );
    }
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in vec(any::<u8>(), 0..512)) {
        fuzz::handshake(&bytes);
        fuzz::transmission(&bytes);
    }

    #[test]
    fn any_options_are_survived_and_tell_one_story(
        flags in 0..4_u32,
        options in vec(any_option(), 0..70),
        tail in vec(any::<u8>(), 0..64),
    ) {
        fuzz::handshake(&[&flags.to_be_bytes()[..], &options.concat(), &tail].concat());
    }

    #[test]
    fn any_options_around_starttls_are_survived_and_forgotten(
        flags in 1..4_u32,
        before in vec(any_option(), 0..6),
        after in vec(any_option(), 0..12),
    ) {
        let starttls = option_bytes(option::STARTTLS, b"");
        let go = option_bytes(option::GO, &wire::info_request("disk", &[]));
        let parts = [&flags.to_be_bytes()[..], &before.concat(), &starttls, &after.concat(), &go];
        fuzz::handshake(&parts.concat());
    }

    #[test]
    fn any_extended_requests_are_survived(
        requests in vec(any_wide_request(), 0..40),
        cut in 0..2048_usize,
    ) {
        let bytes = requests.concat();
        fuzz::transmission(&bytes);
        let cut = cut.min(bytes.len());
        assert_eq!(fuzz::requests(&bytes, cut), fuzz::requests(&bytes, bytes.len()));
    }

    #[test]
    fn any_requests_are_survived(requests in vec(any_request(), 0..40)) {
        fuzz::transmission(&requests.concat());
    }
}

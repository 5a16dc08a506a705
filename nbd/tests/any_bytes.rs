//! Anything at all may come from a peer: no bytes panic, and no split of them changes the story.

use orlop_nbd::fuzz;
use orlop_nbd::wire::{self, RequestHeader, option};
use orlop_nbd::{Cookie, Offset};
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};

fn option_bytes(number: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).expect("test data is short");
    [&wire::option_header(number, length)[..], data].concat()
}

/// Conversations as real clients have them: XO's and the kernel's, QEMU's, and a rude one.
fn recorded() -> Vec<Vec<u8>> {
    let go = option_bytes(option::GO, &wire::info_request("disk", &[3]));
    let contexts = wire::context_request("disk", &["base:allocation", "qemu:dirty-bitmap:x"]);
    let read =
        RequestHeader { flags: 0, command: 0, cookie: Cookie(1), offset: Offset(0), length: 4096 };
    let fixed = 3_u32.to_be_bytes().to_vec();
    vec![
        [fixed.clone(), option_bytes(option::EXPORT_NAME, b"disk"), read.encode().to_vec()]
            .concat(),
        [
            fixed.clone(),
            option_bytes(option::STARTTLS, b""),
            option_bytes(option::EXTENDED_HEADERS, b""),
            option_bytes(option::STRUCTURED_REPLY, b""),
            option_bytes(option::LIST_META_CONTEXT, &contexts),
            option_bytes(option::SET_META_CONTEXT, &contexts),
            option_bytes(option::INFO, &wire::info_request("", &[1, 2, 3])),
            go.clone(),
            read.encode().to_vec(),
        ]
        .concat(),
        [fixed.clone(), option_bytes(option::LIST, b""), option_bytes(option::ABORT, b"bye")]
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
        let whole = fuzz::converse(&bytes, usize::MAX);
        for piece_len in 1..=bytes.len() {
            assert_eq!(fuzz::converse(&bytes, piece_len), whole, "in pieces of {piece_len}");
        }
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

/// An option that looks like one but may carry anything.
fn any_option() -> impl Strategy<Value = Vec<u8>> {
    let data = prop_oneof![
        vec(any::<u8>(), 0..64),
        vec(Just("base:allocation"), 0..4).prop_map(|all| wire::context_request("disk", &all)),
        vec(0..5_u16, 0..6).prop_map(|kinds| wire::info_request("disk", &kinds)),
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
    fn any_requests_are_survived(requests in vec(any_request(), 0..40)) {
        fuzz::transmission(&requests.concat());
    }
}

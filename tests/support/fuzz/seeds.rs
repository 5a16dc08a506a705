//! The seeds of the corpus: small inputs from which mutation reaches far. Images come from the
//! tests' own builder, not from the code under test.

use nbd::wire::{self, ExtendedRequestHeader, RequestHeader, option};
use nbd::{Bytes, ContextId, Cookie, Offset};

use super::management::requests;
use super::sessions::sessions;
use super::vhd_open;
use builder::{Builder, Tail, with_batmap};

#[path = "../vhd_builder.rs"]
mod builder;

/// Names and bytes of a target's seeds.
pub fn seeds(target: &str) -> Vec<(&'static str, Vec<u8>)> {
    match target {
        "vhd_open" => images(),
        "nbd_receive" => conversations(),
        "nbd_session" => sessions(),
        "management" => requests(),
        _ => lives(),
    }
}

fn images() -> Vec<(&'static str, Vec<u8>)> {
    let small = || Builder::dynamic().sized(1024, 512, 2).table(&[7, 15]);
    let bytes = |builder: Builder, flags: u8| {
        let file = builder.build();
        let mut bytes = vec![flags];
        bytes.extend(file.read(0, file.len as usize));
        bytes
    };
    let mut empty = bytes(small().table(&[]), 31);
    vhd_open::seal(&mut empty, 1, 512, 64);
    vec![
        ("dynamic", bytes(small(), 31)),
        ("dynamic_as_it_is", bytes(small(), 16)),
        ("empty", empty),
        ("child", bytes(Builder::child("base.vhd").sized(1024, 512, 2).table(&[10, 15]), 31)),
        ("fixed", bytes(Builder::fixed().sized(1024, 512, 1), 24)),
        ("short_footer", bytes(small().with(|image| image.tail = Tail::Short), 0)),
        ("no_footer", bytes(small().with(|image| image.tail = Tail::Absent), 3)),
        ("batmap", bytes(with_batmap(2560, 0).sized(1024, 512, 2).table(&[7, 15]), 31)),
        ("wide_table", bytes(Builder::dynamic().sized(64 << 10, 512, 128).table(&[7, 15]), 31)),
        ("large_blocks", bytes(Builder::dynamic().sized(64 << 10, 8192, 8).table(&[8]), 31)),
    ]
}

fn option_bytes(number: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).expect("seeds are short");
    [&wire::option_header(number, length)[..], data].concat()
}

fn conversations() -> Vec<(&'static str, Vec<u8>)> {
    let flags = 3_u32.to_be_bytes().to_vec();
    let header = |command: u16, flags: u16, offset: u64, length: u32| {
        let (cookie, offset) = (Cookie(9), Offset(offset));
        RequestHeader { flags, command, cookie, offset, length }.encode().to_vec()
    };
    let stream = [
        vec![0],
        header(0, 0, 0, 4096),
        header(1, 1, 512, 512),
        vec![0xAB; 512],
        header(3, 0, 0, 0),
        header(4, 0, 4096, 4096),
        header(6, 2, 0, 8192),
        header(7, 8, 0, 1 << 20),
        header(2, 0, 0, 0),
    ];
    let contexts = wire::context_request("disk", &["base:allocation", "qemu:dirty-bitmap:x"]);
    let modern = [
        vec![1],
        flags.clone(),
        option_bytes(option::STARTTLS, b""),
        option_bytes(option::EXTENDED_HEADERS, b""),
        option_bytes(option::STRUCTURED_REPLY, b""),
        option_bytes(option::LIST_META_CONTEXT, &contexts),
        option_bytes(option::SET_META_CONTEXT, &contexts),
        option_bytes(option::INFO, &wire::info_request("", &[1, 2, 3])),
        option_bytes(option::GO, &wire::info_request("disk", &[3])),
        header(0, 0, 0, 4096),
    ];
    let wide = wide_stream();
    let wider = [
        vec![1],
        flags.clone(),
        option_bytes(option::EXTENDED_HEADERS, b""),
        option_bytes(option::STRUCTURED_REPLY, b""),
        option_bytes(option::LIST_META_CONTEXT, &wire::context_request("", &["qemu:"])),
        option_bytes(option::SET_META_CONTEXT, &every_context()),
        option_bytes(option::GO, &wire::info_request("disk", &[3])),
        wide.clone(),
    ];
    let old =
        [vec![1], flags.clone(), option_bytes(option::EXPORT_NAME, b"disk"), header(0, 0, 0, 512)];
    let curious =
        [vec![1], flags, option_bytes(option::LIST, b""), option_bytes(option::ABORT, b"bye")];
    vec![
        ("stream", stream.concat()),
        ("modern", modern.concat()),
        ("old", old.concat()),
        ("curious", curious.concat()),
        ("secure", secure()),
        ("resized", resized()),
        ("extended", wider.concat()),
        ("extended_stream", [vec![0], wide].concat()),
    ]
}

/// A talk that starts TLS in its middle, asks for it again, and for exports it does not get.
fn secure() -> Vec<u8> {
    let talk = [
        vec![1],
        3_u32.to_be_bytes().to_vec(),
        option_bytes(option::STRUCTURED_REPLY, b""),
        option_bytes(option::SET_META_CONTEXT, &every_context()),
        option_bytes(option::INFO, &wire::info_request("secret", &[])),
        option_bytes(option::STARTTLS, b""),
        option_bytes(option::STARTTLS, b""),
        option_bytes(option::INFO, &wire::info_request("private", &[])),
        option_bytes(option::EXTENDED_HEADERS, b""),
        option_bytes(option::GO, &wire::info_request("disk", &[])),
    ];
    talk.concat()
}

/// A disk that grows, is used where it grew, and shrinks.
fn resized() -> Vec<u8> {
    let header = |command: u16, flags: u16, offset: u64, length: u32| {
        let (cookie, offset) = (Cookie(9), Offset(offset));
        RequestHeader { flags, command, cookie, offset, length }.encode().to_vec()
    };
    let stream = [
        vec![0],
        header(8, 0, 2 << 20, 0),
        header(6, 0, 1 << 20, 1 << 20),
        header(8, 1, 512, 0),
        header(0, 0, 512, 512),
        header(8, 0, 0, 1),
        header(2, 0, 0, 0),
    ];
    stream.concat()
}

fn every_context() -> Vec<u8> {
    let all = ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:leaf"];
    wire::context_request("disk", &all)
}

/// Requests with extended headers: payloads that belong and one that does not, and two filters.
fn wide_stream() -> Vec<u8> {
    let header = |command: u16, flags: u16, offset: u64, length: u64| {
        let (cookie, offset, length) = (Cookie(9), Offset(offset), Bytes(length));
        ExtendedRequestHeader { flags, command, cookie, offset, length }.encode().to_vec()
    };
    let filter = |ids: &[u32]| {
        let ids: Vec<ContextId> = ids.iter().copied().map(ContextId).collect();
        wire::status_filter(Bytes(1 << 20), &ids)
    };
    let stream = [
        header(0, 0, 0, 4096),
        header(1, 33, 512, 512),
        vec![0xAB; 512],
        header(1, 0, 512, 8),
        vec![0xCD; 8],
        header(4, 32, 0, 16),
        vec![0; 16],
        header(7, 40, 0, 16),
        filter(&[3, 1]),
        header(7, 32, 0, 12),
        filter(&[9]),
        header(6, 2, 0, 1 << 20),
        header(4, 0, 0, u64::MAX),
        header(3, 0, 0, 0),
        header(2, 0, 0, 0),
    ];
    stream.concat()
}

fn lives() -> Vec<(&'static str, Vec<u8>)> {
    // See `engine_requests` for what each byte means. The first names the image and the faults.
    let busy = |first: u8| {
        let mut bytes = vec![first];
        let mut state = u32::from(first) + 1;
        for _ in 0..600 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            bytes.push((state >> 24) as u8);
        }
        bytes
    };
    vec![
        ("flat", busy(0)),
        ("dynamic", busy(1)),
        ("child", busy(2)),
        ("small_blocks", busy(3)),
        ("flat_faults", busy(128)),
        ("dynamic_faults", busy(129)),
        ("child_faults", busy(130)),
        ("small_blocks_faults", busy(131)),
    ]
}

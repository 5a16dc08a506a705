//! The seeds of `nbd_session`: whole connections, short ones, in every style.

use nbd::wire::{self, option};

use super::wire::{Header, STYLES, Style, command};

/// Names and bytes.
pub(super) fn sessions() -> Vec<(&'static str, Vec<u8>)> {
    let mut all = Vec::new();
    let names = [
        ["simple", "simple_closed", "simple_fault"],
        ["structured", "structured_closed", "structured_fault"],
        ["extended", "extended_closed", "extended_fault"],
    ];
    for (no, (style, names)) in (0..).zip(STYLES.into_iter().zip(names)) {
        // No handshake; half closed behind it, or closed, or with faults and narrow bounds.
        let choices = [4 | 64 | no << 3, 5 | 128 | no << 3, 7 | 32 | 64 | no << 3];
        for (name, choices) in names.into_iter().zip(choices) {
            all.push((name, input(choices, &script(choices), &requests(style))));
        }
    }
    let handshakes = [
        ("handshake_simple", vec![]),
        ("handshake_structured", vec![option::STRUCTURED_REPLY]),
        ("handshake_extended", vec![option::STRUCTURED_REPLY, option::EXTENDED_HEADERS]),
    ];
    for ((name, options), style) in handshakes.into_iter().zip(STYLES) {
        let stream = [handshake(&options), requests(style)].concat();
        all.push((name, input(65, &script(3), &stream)));
    }
    all
}

fn input(choices: u8, script: &[u8], stream: &[u8]) -> Vec<u8> {
    [&[choices, 9, script.len() as u8][..], script, stream].concat()
}

/// Bytes in small and large pieces, steps and turns between them, little room and much.
fn script(seed: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut state = u32::from(seed) + 1;
    for _ in 0..40 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let much = (state >> 24) as u8 & 0xF8;
        bytes.extend([much | 2, much | 3, 4, (state >> 16) as u8 & 0xFE, much | 3, 4]);
    }
    bytes.retain(|byte| byte & 7 != 7);
    bytes.push(0xF8 | 5);
    bytes
}

fn requests(style: Style) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut ask = |cookie, command, flags, offset, length: u64, payload: usize| {
        bytes.extend(Header { command, flags, cookie, offset, length }.bytes(style));
        bytes.extend(vec![cookie as u8; payload]);
    };
    let status = if style == Style::Simple { command::READ } else { command::BLOCK_STATUS };
    ask(1, command::WRITE, 0, 512, 700, 700);
    ask(2, command::READ, 0, 0, 8192, 0);
    ask(3, command::WRITE, 1, 4096, 512, 512);
    ask(4, command::FLUSH, 0, 0, 0, 0);
    ask(5, status, 0, 0, 65536, 0);
    ask(6, command::WRITE_ZEROES, 2, 4096, 4096, 0);
    ask(7, command::CACHE, 0, 0, 4096, 0);
    ask(8, command::TRIM, 0, 8192, 4096, 0);
    ask(9, command::WRITE, 0, 65536, 16, 16);
    ask(10, 99, 0, 0, 0, 0);
    ask(11, command::READ, 0, 512, 1024, 0);
    ask(12, command::DISC, 0, 0, 0, 0);
    bytes
}

fn handshake(options: &[u32]) -> Vec<u8> {
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    let mut ask = |number: u32, data: &[u8]| {
        bytes.extend(wire::option_header(number, data.len() as u32));
        bytes.extend(data);
    };
    options.iter().for_each(|number| ask(*number, &[]));
    if !options.is_empty() {
        let names = ["base:allocation", "qemu:dirty-bitmap:leaf"];
        ask(option::SET_META_CONTEXT, &wire::context_request("disk", &names));
    }
    ask(option::GO, &wire::info_request("disk", &[]));
    bytes
}

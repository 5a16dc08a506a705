//! An image laid out as Microsoft's tools do: data on 4 KiB, the end of the file on 4 KiB, and so
//! a gap between the last block and the footer. QEMU puts the next block over the old footer, whose
//! bytes then appear in sectors nobody wrote; here a write must change the sector it names and no
//! other, whoever looks afterwards.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/foreign.rs"]
mod foreign;
#[path = "support/odd_images.rs"]
mod odd_images;
#[path = "support/server.rs"]
mod server;

use std::path::Path;

use foreign::{PYTHON, assert_same, have, run, script, text};
use odd_images::Builder;
use server::Server;

const BLOCK: u64 = 2 << 20;
/// Sector of the first block's bitmap, so that its data starts on 4 KiB.
const FIRST: u32 = 15;
/// End of a block that starts there: bitmap and data.
const FIRST_END: u64 = FIRST as u64 * 512 + 512 + BLOCK;

/// What each kind of gap may hold: nothing, or whatever was in the file before.
const GAPS: [u8; 2] = [0, 0xEE];

/// Three blocks of disk of which one has a home (or none), with a gap before the footer that holds
/// `gap` bytes, ending on a multiple of 4 KiB.
fn microsoft(path: &Path, blocks: &[u32], gap: u8) {
    let end = if blocks.is_empty() { 8192 } else { FIRST_END };
    let body = (end + 512).next_multiple_of(4096) + 4096 - 512;
    let mut image = Builder::dynamic().sized(3 * BLOCK, BLOCK, 3).table(blocks);
    image.body = Some(body);
    let filler = vec![gap; (body - end) as usize];
    image = image.raw(end, &filler);
    image.build().write_to(path).unwrap();
    assert_eq!(std::fs::metadata(path).unwrap().len() % 4096, 0);
}

fn python_reads(path: &Path) -> Vec<u8> {
    let out = path.with_extension("content");
    run(PYTHON, &[&script("vhd_reader.py"), text(path), "--out", text(&out)]);
    std::fs::read(&out).unwrap()
}

#[test]
fn a_write_disturbs_no_other_sector() {
    if !have(&["qemu-io", "qemu-img", PYTHON]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (number, blocks) in [&[][..], &[FIRST]].into_iter().enumerate() {
        for gap in GAPS {
            // The first sector, one behind it, one where QEMU shows the old footer, one in the
            // last block: all in blocks without a home when there is one block.
            for sector in [0_u64, 1, 4096, 4096 + 7, 3 * 4096 - 1] {
                let path = folder.path().join(format!("ms-{number}-{gap}-{sector}.vhd"));
                microsoft(&path, blocks, gap);
                let mut wanted = python_reads(&path);
                let server = Server::start(&path, &[]);
                let write = format!("write -P 0x5a {} 512", sector * 512);
                run("qemu-io", &["-f", "raw", "-c", &write, "-c", "flush", server.uri()]);
                server.close();
                let at = sector as usize * 512;
                wanted[at..at + 512].fill(0x5a);
                let what = format!("blocks {blocks:?}, gap {gap:#x}, sector {sector}");
                assert_same(&python_reads(&path), &wanted, &what);
                // QEMU shows every byte of a block, whatever its bitmap says.
                let seen = path.with_extension("qemu");
                let convert = ["convert", "-f", "vpc", "-O", "raw", text(&path), text(&seen)];
                run("qemu-img", &convert);
                let seen = std::fs::read(&seen).unwrap();
                if blocks.is_empty() {
                    assert_same(&seen, &wanted, &format!("QEMU: {what}"));
                }
            }
        }
    }
}

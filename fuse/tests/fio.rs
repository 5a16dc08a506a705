//! fio over a mounted file: what it wrote is what it verifies, with every engine and depth.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;
mod ring;

use std::process::Command;

use common::{DISK, Fixture, Memory, can_mount, new_disk};
use orlop_fuse::{Layout, Options};

const MIB: usize = 1 << 20;

fn verify(fixture: &Fixture, engine: &str, depth: u32, direct: bool) {
    let file = fixture.path("disk");
    let output = Command::new("timeout")
        .args(["-s", "KILL", "60", "fio", "--name=v", "--rw=randwrite", "--bssplit=4k/40:8k/30"])
        .args([
            "--size=8m",
            "--verify=crc32c",
            "--do_verify=1",
            "--verify_fatal=1",
            "--verify_state_save=0",
        ])
        .args(["--overwrite=1", "--allow_file_create=0", "--randrepeat=1", "--fsync=64"])
        .arg(format!("--filename={}", file.display()))
        .arg(format!("--ioengine={engine}"))
        .arg(format!("--iodepth={depth}"))
        .arg(format!("--direct={}", u8::from(direct)))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{engine} {depth} {direct}: {said}\n{complained}");
}

#[test]
fn fio_verifies_what_it_wrote() {
    if !can_mount() {
        return;
    }
    if Command::new("fio").arg("--version").output().is_err() {
        eprintln!("skipped: needs fio");
        return;
    }
    let port = Memory::with_disk(8 * MIB);
    let options = Options { layout: Layout::Single, ..Options::default() };
    let fixture = Fixture::new(port, &options, &[new_disk(DISK, "x", 8 * MIB)]);
    for (engine, depths) in
        [("psync", &[1][..]), ("libaio", &[4, 16, 64]), ("io_uring", &[1, 4, 16, 64])]
    {
        for depth in depths {
            for direct in [true, false] {
                verify(&fixture, engine, *depth, direct);
            }
        }
    }
}

//! What a write and a flush cost in thinking, and how many operations they ask for. No bytes move.
//! `cargo bench --bench commit`

mod support;

use orlop::engine::Disk;
use orlop::engine::effect::FileId;
use orlop::engine::request::Request;
use orlop::format::vhd::{Backing, VhdLeaf};

use support::{Builder, SparseFile, four_kib, measure, opened, run, scatter};

const DISK_BYTES: u64 = 256 << 30;
const BLOCK_BYTES: u64 = 2 << 20;
const BLOCKS: u32 = (DISK_BYTES / BLOCK_BYTES) as u32;
const TABLE_END: u64 = 1536 + BLOCKS as u64 * 4;

/// A writable disk with no block allocated.
fn empty() -> (Disk, Vec<(SparseFile, u64)>) {
    let file = Builder::dynamic().sized(DISK_BYTES, BLOCK_BYTES, BLOCKS).table(&[]).build();
    let image = opened(&file);
    let sparse = image.sparse().expect("a dynamic image");
    let leaf = Box::new(VhdLeaf::new(&image, sparse, Backing::File));
    (Disk::writable(leaf, FileId(0), Vec::new()), vec![(file, TABLE_END)])
}

fn write(at: u64, fua: bool) -> Request {
    let (extent, from) = four_kib(at);
    Request::Write { extent, from, fua }
}

fn main() {
    let (mut disk, files) = empty();
    let effects = run(&mut disk, &files, write(0, false));
    println!("the first write into a block asks for {effects} operations");
    let effects = run(&mut disk, &files, Request::Flush);
    println!("the flush behind it asks for {effects}");
    measure("overwrite 4 KiB in one block", 100_000, |turn| {
        run(&mut disk, &files, write(scatter(turn) % 512 * 4096, false));
    });
    measure("overwrite 4 KiB and flush", 100_000, |turn| {
        run(&mut disk, &files, write(scatter(turn) % 512 * 4096, false));
        run(&mut disk, &files, Request::Flush);
    });

    let (mut disk, files) = empty();
    let blocks = u64::from(BLOCKS);
    measure("allocate a block and flush", 2_000, |turn| {
        run(&mut disk, &files, write(turn % blocks * BLOCK_BYTES, false));
        run(&mut disk, &files, Request::Flush);
    });

    let (mut disk, files) = empty();
    measure("allocate 128 blocks, then one flush", 100, |turn| {
        for block in 0..128 {
            run(&mut disk, &files, write((turn * 128 + block) % blocks * BLOCK_BYTES, false));
        }
        run(&mut disk, &files, Request::Flush);
    });
}

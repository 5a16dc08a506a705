//! How long it takes to find out where bytes live: one VHD layer, and chains of them. Pure
//! thinking over metadata that was learnt; reads nothing. `cargo bench --bench resolve`

mod support;

use orlop::engine::effect::FileId;
use orlop::engine::request::Request;
use orlop::engine::{Disk, FrozenLayer};
use orlop::format::vhd::VhdLayer;

use support::{Builder, SparseFile, four_kib, locate, measure, opened, run, scatter};

const DISK_BYTES: u64 = 1 << 30;
const BLOCK_BYTES: u64 = 2 << 20;
const BLOCKS: u32 = (DISK_BYTES / BLOCK_BYTES) as u32;
/// Sectors of a slot: bitmap and data.
const SLOT_SECTORS: u32 = 1 + (BLOCK_BYTES / 512) as u32;
const TABLE_AT: u64 = 1536;
const TABLE_END: u64 = TABLE_AT + BLOCKS as u64 * 4;

/// A 1 GiB image in which every `stride`-th block is allocated, from `first` on.
fn image(first: u32, stride: u32) -> SparseFile {
    let mut next = (TABLE_END / 512) as u32 + 8;
    let table: Vec<u32> = (0..BLOCKS)
        .map(|block| {
            if block % stride != first % stride {
                return u32::MAX;
            }
            next += SLOT_SECTORS;
            next - SLOT_SECTORS
        })
        .collect();
    // The builder lays a block's bytes down for each entry it knows, so the table comes raw.
    let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
    let builder = Builder::dynamic().sized(DISK_BYTES, BLOCK_BYTES, BLOCKS).table(&[]);
    let body = Some(u64::from(next) * 512);
    builder.raw(TABLE_AT, &bytes).with(|builder| builder.body = body).build()
}

fn chain(depth: u32) -> (Disk, Vec<(SparseFile, u64)>) {
    let files: Vec<_> = (0..depth).map(|layer| (image(layer, depth), TABLE_END)).collect();
    let layers = files.iter().enumerate().map(|(index, (file, _))| {
        let image = opened(file);
        let sparse = image.sparse().expect("a dynamic image");
        let layer = Box::new(VhdLayer::new(&image, sparse));
        FrozenLayer { layer, file: FileId(index as u16) }
    });
    (Disk::read_only(layers.collect()).expect("at least one layer"), files)
}

fn main() {
    let file = image(0, 1);
    let opened = opened(&file);
    let mut layer = VhdLayer::new(&opened, opened.sparse().expect("a dynamic image"));
    let pages = DISK_BYTES / 4096;
    measure("locate, full VHD, scattered", 1_000_000, |turn| {
        std::hint::black_box(locate(&mut layer, &file, TABLE_END, scatter(turn) % pages * 4096));
    });
    for depth in [1, 4, 30] {
        let (mut disk, files) = chain(depth);
        measure(&format!("read 4 KiB, {depth} deep, scattered"), 100_000, |turn| {
            let (extent, into) = four_kib(scatter(turn) % pages * 4096);
            run(&mut disk, &files, Request::Read { extent, into });
        });
        measure(&format!("read 4 KiB, {depth} deep, in order"), 100_000, |turn| {
            let (extent, into) = four_kib(turn % pages * 4096);
            run(&mut disk, &files, Request::Read { extent, into });
        });
    }
}

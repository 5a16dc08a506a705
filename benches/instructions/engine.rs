//! The thinking: where bytes live, what a write and a flush ask for, what is told of holes. Over a
//! host that has always just finished, so nothing waits and no bytes move.

use std::hint::black_box;

use orlop::engine::effect::FileId;
use orlop::engine::layer::{Layer, Located, MetaPage};
use orlop::engine::request::Request;
use orlop::engine::units::{ByteLen, DiskOffset, Extent};
use orlop::engine::{Disk, FrozenLayer};
use orlop::format::Flat;
use orlop::format::vhd::{Backing, VhdLayer, VhdLeaf};

use crate::PathUnderTest;
use crate::support::{Builder, SparseFile, four_kib, opened, run, scatter};

const DISK_BYTES: u64 = 1 << 30;
const PAGES: u64 = DISK_BYTES / 4096;
const BLOCK_BYTES: u64 = 2 << 20;
const BLOCKS: u32 = (DISK_BYTES / BLOCK_BYTES) as u32;
/// Sectors of a slot: bitmap and data.
const SLOT_SECTORS: u32 = 1 + (BLOCK_BYTES / 512) as u32;
const TABLE_AT: u64 = 1536;
const TABLE_END: u64 = TABLE_AT + BLOCKS as u64 * 4;
/// The images of the deepest chain that is served.
const DEEPEST: u32 = 30;

type Files = Vec<(SparseFile, u64)>;

/// Counts all of it.
pub(crate) fn count_all() {
    lookups();
    reads();
    writes();
    commits();
    erasures();
    maps();
}

/// An image in which every `stride`-th block is allocated, from `first` on.
fn image(first: u32, stride: u32) -> SparseFile {
    let mut next = (TABLE_END / 512) as u32 + 8;
    let entry = |block: u32| {
        if block % stride != first % stride {
            return u32::MAX;
        }
        next += SLOT_SECTORS;
        next - SLOT_SECTORS
    };
    let table: Vec<u8> = (0..BLOCKS).map(entry).flat_map(u32::to_be_bytes).collect();
    // The builder lays a block's bytes down for each entry it knows, so the table comes raw.
    let builder = Builder::dynamic().sized(DISK_BYTES, BLOCK_BYTES, BLOCKS).table(&[]);
    let body = Some(u64::from(next) * 512);
    builder.raw(TABLE_AT, &table).with(|builder| builder.body = body).build()
}

/// A dynamic image without a block.
fn empty_image() -> SparseFile {
    Builder::dynamic().sized(DISK_BYTES, BLOCK_BYTES, BLOCKS).table(&[]).build()
}

fn layer(file: &SparseFile) -> VhdLayer {
    let image = opened(file);
    VhdLayer::new(&image, image.sparse().expect("a dynamic image"))
}

/// A disk that is read, whose blocks lie in its layers by turns.
fn chain(depth: u32) -> (Disk, Files) {
    let files: Files = (0..depth).map(|index| (image(index, depth), TABLE_END)).collect();
    let layers = files.iter().zip(0..).map(|((file, _), index)| {
        let layer = Box::new(layer(file));
        FrozenLayer { layer, file: FileId(index) }
    });
    (Disk::read_only(layers.collect()).expect("at least one layer"), files)
}

fn writable(file: SparseFile) -> (Disk, Files) {
    let image = opened(&file);
    let sparse = image.sparse().expect("a dynamic image");
    let leaf = Box::new(VhdLeaf::new(&image, sparse, Backing::File));
    (Disk::writable(leaf, FileId(0), Vec::new()), vec![(file, TABLE_END)])
}

fn raw() -> (Disk, Files) {
    let leaf = Box::new(Flat::new(ByteLen::new(DISK_BYTES)));
    (Disk::writable(leaf, FileId(0), Vec::new()), Vec::new())
}

fn extent(at: u64, len: u64) -> Extent {
    Extent::new(DiskOffset::new(at), ByteLen::new(len))
}

fn read(at: u64) -> Request {
    let (extent, into) = four_kib(at);
    Request::Read { extent, into }
}

fn write(at: u64) -> Request {
    let (extent, from) = four_kib(at);
    Request::Write { extent, from, fua: false }
}

/// Counts a request to a disk: `of` says which, by the turn.
fn request(name: &str, (mut disk, files): (Disk, Files), of: impl Fn(u64) -> Request) {
    // Every block was met once by then.
    PathUnderTest { name, warm: 3000, turns: 1000, each: 1 }.take(|turn| {
        run(&mut disk, &files, of(turn));
    });
}

/// Finds the first byte of an extent, with a page of metadata made by `page` where one is asked.
fn find(layer: &mut VhdLayer, at: u64, page: &dyn Fn(MetaPage) -> Vec<u8>) {
    loop {
        match layer.locate(extent(at, 4096)) {
            Located::Ask(asked) => {
                layer.learn(asked, &page(asked)).expect("described pages are sound");
            }
            found => {
                black_box(found);
                return;
            }
        }
    }
}

fn lookups() {
    let file = image(0, 1);
    // All sectors but the last are present, so that bits must be looked at.
    let page = |asked: MetaPage| {
        if asked.at.get() < TABLE_END {
            return file.read(asked.at.get(), asked.len as usize);
        }
        let mut bits = vec![0xFF; asked.len as usize];
        bits[BLOCK_BYTES as usize / 512 / 8 - 1] = 0xFE;
        bits
    };
    let mut seen = layer(&file);
    let name = "VHD look-up of 4 KiB, table and bitmap known";
    PathUnderTest { name, warm: 3000, turns: 1000, each: 1 }.take(|turn| {
        find(&mut seen, scatter(turn) % PAGES * 4096, &page);
    });
    let mut fresh = layer(&file);
    let name = "VHD look-up of 4 KiB, bitmap learnt";
    PathUnderTest { name, warm: 8, turns: 400, each: 1 }.take(|turn| {
        find(&mut fresh, turn * BLOCK_BYTES, &page);
    });
}

fn reads() {
    let anywhere = |turn| read(scatter(turn) % PAGES * 4096);
    request("read 4 KiB, raw", raw(), anywhere);
    request("read 4 KiB, full VHD", chain(1), anywhere);
    request("read 4 KiB, chain of 30", chain(DEEPEST), anywhere);
    let (mut disk, files) = chain(DEEPEST);
    let name = "read 4 KiB, chain of 30, first touch of a block";
    PathUnderTest { name, warm: 8, turns: 400, each: 1 }.take(|turn| {
        run(&mut disk, &files, read(turn * BLOCK_BYTES));
    });
}

fn writes() {
    let anywhere = |turn| write(scatter(turn) % PAGES * 4096);
    request("write 4 KiB, raw", raw(), anywhere);
    request("write 4 KiB, full VHD", writable(image(0, 1)), anywhere);
    // Few enough blocks that all have a home when counting begins; their sectors are new.
    let (disk, files) = writable(empty_image());
    request("write 4 KiB, new sectors of a VHD's blocks", (disk, files), |turn| {
        write(turn % 8 * BLOCK_BYTES + turn / 8 * 4096)
    });
    let (mut disk, files) = writable(empty_image());
    let name = "write 4 KiB, new block of a VHD";
    PathUnderTest { name, warm: 8, turns: 400, each: 1 }.take(|turn| {
        run(&mut disk, &files, write(turn * BLOCK_BYTES));
    });
}

fn commits() {
    let (mut disk, files) = raw();
    let name = "write 4 KiB and flush, raw";
    PathUnderTest { name, warm: 100, turns: 1000, each: 1 }.take(|turn| {
        run(&mut disk, &files, write(scatter(turn) % PAGES * 4096));
        run(&mut disk, &files, Request::Flush);
    });
    let (mut disk, files) = writable(empty_image());
    let name = "write 4 KiB into a new block of a VHD and flush";
    PathUnderTest { name, warm: 8, turns: 400, each: 1 }.take(|turn| {
        run(&mut disk, &files, write(turn * BLOCK_BYTES));
        run(&mut disk, &files, Request::Flush);
    });
    let (mut disk, files) = writable(empty_image());
    let name = "write 4 KiB, new block of a VHD, a flush after 32";
    PathUnderTest { name, warm: 1, turns: 12, each: 32 }.take(|turn| {
        for block in turn * 32..turn * 32 + 32 {
            run(&mut disk, &files, write(block * BLOCK_BYTES));
        }
        run(&mut disk, &files, Request::Flush);
    });
}

fn erasures() {
    let trim = |at, len| Request::Discard { extent: extent(at, len), fua: false };
    request("trim 4 KiB, raw", raw(), |turn| trim(scatter(turn) % PAGES * 4096, 4096));
    request("trim 4 KiB, full VHD", writable(image(0, 1)), |turn| {
        trim(scatter(turn) % PAGES * 4096, 4096)
    });
    let (mut disk, files) = writable(image(0, 1));
    let name = "trim a block of a VHD and flush";
    PathUnderTest { name, warm: 8, turns: 400, each: 1 }.take(|turn| {
        run(&mut disk, &files, trim(turn * BLOCK_BYTES, BLOCK_BYTES));
        run(&mut disk, &files, Request::Flush);
    });
    let zero = |at| Request::Zero { extent: extent(at, 4096), may_unmap: true, fua: false };
    request("zero 4 KiB, full VHD", writable(image(0, 1)), |turn| {
        zero(scatter(turn) % PAGES * 4096)
    });
}

fn maps() {
    let all = |_| Request::Map { extent: extent(0, DISK_BYTES), limit: 1 << 16 };
    request("map of a disk, raw", raw(), all);
    for (name, depth) in [("map of a block, full VHD", 1), ("map of a block, chain of 30", DEEPEST)]
    {
        let (mut disk, files) = chain(depth);
        PathUnderTest { name, warm: 2, turns: 4, each: u64::from(BLOCKS) }.take(|turn| {
            run(&mut disk, &files, all(turn));
        });
    }
}

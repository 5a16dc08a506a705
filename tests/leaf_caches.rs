//! The bounded caches of a VHD layer under images that overrun them: nothing that must be written
//! is forgotten, and nothing is asked for without end. The images are built without the crate under
//! test; nothing here opens a file.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where its set-up fails")]

#[path = "support/vhd_builder.rs"]
mod builder;

use builder::{Builder, SparseFile};
use orlop::engine::effect::{Effect, FileId, Outcome, Target};
use orlop::engine::layer::{Blocked, Layer, Leaf, Located, MetaPage, WaveNo};
use orlop::engine::request::{Request, RequestId};
use orlop::engine::units::{ByteLen, DiskOffset, Extent, RegionId, Span};
use orlop::engine::{Disk, FrozenLayer};
use orlop::format::vhd::{Backing, VhdLayer, VhdLeaf};
use vhd::{Limits, Opening, Step};

const SECTOR: u64 = 512;
const TABLE_AT: u64 = 1536;
/// What one page of the table says.
const ENTRIES_OF_PAGE: u64 = 1024;

/// An image whose blocks are small and whose table is therefore long.
struct Image {
    file: SparseFile,
    opened: vhd::Image,
    table_end: u64,
}

/// Where the first block lies, in sectors: a little behind the table.
fn first_slot(blocks: u32) -> u32 {
    ((TABLE_AT + u64::from(blocks) * 4) / SECTOR) as u32 + 8
}

impl Image {
    /// An image with this table; its file ends behind the slot that begins at `last`.
    fn new(block_bytes: u64, table: &[u32], last: u32) -> Self {
        let blocks = table.len() as u32;
        let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        let table_end = TABLE_AT + bytes.len() as u64;
        let size = block_bytes * u64::from(blocks);
        let empty = Builder::dynamic().sized(size, block_bytes, blocks).table(&[]);
        let body = Some((u64::from(last) + 1) * SECTOR + block_bytes);
        let file = empty.raw(TABLE_AT, &bytes).with(|image| image.body = body).build();
        let opened = open(&file);
        Self { file, opened, table_end }
    }

    /// A page of the table, or an empty bitmap.
    fn page(&self, at: u64, len: usize) -> Vec<u8> {
        if at < self.table_end { self.file.read(at, len) } else { vec![0; len] }
    }

    fn teach(&self, leaf: &mut VhdLeaf, page: MetaPage) {
        leaf.learn(page, &self.page(page.at.get(), page.len as usize)).unwrap();
    }
}

fn open(file: &SparseFile) -> vhd::Image {
    let mut opening = Opening::new(vhd::ByteLen::new(file.len), Limits::default());
    let mut read: Option<Vec<u8>> = None;
    loop {
        match opening.step(read.as_deref()).unwrap() {
            Step::Done(image) => return image,
            Step::Read { at, len } => read = Some(file.read(at.get(), len)),
        }
    }
}

fn sector(at: u64) -> Extent {
    Extent::new(DiskOffset::new(at), ByteLen::new(SECTOR))
}

#[test]
fn dirty_bits_survive_the_eviction_of_their_table_page() {
    const BLOCK: u64 = 4096;
    const PAGES: u64 = 320;
    let blocks = (PAGES * ENTRIES_OF_PAGE) as u32;
    let first = first_slot(blocks);
    let mut table = vec![u32::MAX; blocks as usize];
    table[0] = first;
    let image = Image::new(BLOCK, &table, first);
    let mut leaf = VhdLeaf::new(&image.opened, image.opened.sparse().unwrap(), Backing::File);

    let placed = loop {
        match leaf.place(sector(0)) {
            Ok(placed) => break placed,
            Err(Blocked::Ask(page)) => image.teach(&mut leaf, page),
            Err(other) => panic!("{other:?}"),
        }
    };
    leaf.landed(&placed);
    assert!(leaf.dirty());

    // More pages than are kept, each so often that the first one surely goes.
    for page in (1..PAGES).cycle().take(3 * PAGES as usize) {
        while let Located::Ask(ask) = leaf.locate(sector(page * ENTRIES_OF_PAGE * BLOCK)) {
            image.teach(&mut leaf, ask);
        }
    }

    let waves = (0..).map_while(|number| leaf.wave(WaveNo(number)));
    let written: Vec<u64> = waves.flat_map(|wave| wave.writes).map(|(at, _)| at.get()).collect();
    leaf.settled();
    assert!(!leaf.dirty());
    let bitmap = u64::from(first) * SECTOR;
    assert!(written.contains(&bitmap), "the bitmap at {bitmap} is not among {written:?}");
}

#[test]
fn tiny_blocks_in_a_deep_chain_end() {
    const BLOCKS: u32 = 4096;
    const WANTED: u64 = 4096;
    /// Every page of both layers, and then some.
    const MAX_EFFECTS: usize = 12_000;
    // Each block has a bitmap of its own, so that a window needs thousands of pages.
    let first = first_slot(BLOCKS);
    let table: Vec<u32> = (0..BLOCKS).map(|block| first + 2 * block).collect();
    let image = Image::new(SECTOR, &table, first + 2 * (BLOCKS - 1));
    let layers = (0..2).map(|file| FrozenLayer {
        layer: Box::new(VhdLayer::new(&image.opened, image.opened.sparse().unwrap())),
        file: FileId(file),
    });
    let mut disk = Disk::read_only(layers.collect()).unwrap();

    let into = Span { region: RegionId(0), start: 0, len: WANTED as u32 };
    let end = u64::from(BLOCKS) * SECTOR;
    let extent = Extent::new(DiskOffset::new(end - WANTED), ByteLen::new(WANTED));
    disk.submit(RequestId(1), Request::Read { extent, into });
    let mut effects = 0;
    while let Some(effect) = disk.poll_effect() {
        effects += 1;
        assert!(effects < MAX_EFFECTS, "it asks for ever");
        let id = effect.id();
        let Effect::Read { at, into: Target::Owned(into), .. } = effect else {
            panic!("empty bitmaps lead to no data, but to {effect:?}");
        };
        disk.complete(id, Outcome::Bytes(image.page(at.get(), into.len())));
    }
    assert!(disk.poll_reply().unwrap().result.is_ok());
}

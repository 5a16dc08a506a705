//! Layouts as they are found in the field, and the corners of the format that no table row has.

#[path = "../../tests/support/odd_images.rs"]
mod odd_images;

use odd_images::{Builder, Locator, SLOTS, SparseFile, with_batmap};
use orlop_vhd::error::Region;
use orlop_vhd::{
    Backing, BatEntry, ByteLen, Check, CheckOptions, FileOffset, FooterError, Image, Limits,
    OpenError, Opening, Reason, Rule, SectorNo, Severity, Step, Warning, recovery_plan,
};

fn open_with(file: &SparseFile, limits: Limits) -> Result<Image, OpenError> {
    let mut opening = Opening::new(ByteLen::new(file.len), limits);
    let mut step = opening.step(None)?;
    loop {
        match step {
            Step::Done(image) => return Ok(image),
            Step::Read { at, len } => step = opening.step(Some(&file.read(at.get(), len)))?,
        }
    }
}

fn open(file: &SparseFile) -> Result<Image, OpenError> {
    open_with(file, Limits::default())
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// What Windows 10 writes: the table between two locators, 64 KiB of space for one of them, a
/// parent name that is a whole path, and a file that ends on 4 KiB.
fn windows_child() -> Builder {
    let name: Vec<u8> =
        "C:\\Projects\\fat-parent.vhd".encode_utf16().flat_map(u16::to_be_bytes).collect();
    let locator = |code: &[u8; 4], space, at, path: &str| {
        let data = utf16(path);
        Locator { code: *code, space, len: data.len() as u32, at, data }
    };
    let slot = 159u32;
    Builder::child("unused").table(&[slot]).with(|b| {
        b.table_at = 8192;
        b.header = vec![(64, name)];
        b.locators = vec![
            locator(b"W2ku", 4096, 4096, "C:\\Projects\\fat-parent.vhd"),
            locator(b"W2ru", 65_536, 12_288, ".\\fat-parent.vhd"),
        ];
        let blocks_end = (u64::from(slot) + 4097) * 512;
        b.body = Some(blocks_end.next_multiple_of(4096) + 4096 - 512);
    })
}

#[test]
fn a_child_made_by_windows_opens_and_needs_no_repair() {
    let image = open(&windows_child().build()).expect("opens");
    assert_eq!(image.warnings, []);
    let sparse = image.sparse().expect("sparse");
    assert_eq!(sparse.metadata_end, FileOffset::new(12_288 + 65_536));
    assert_eq!(recovery_plan(&image, Backing::File), []);
    let link = image.parent().expect("a child has a parent");
    assert_eq!(link.name, "C:\\Projects\\fat-parent.vhd");
    assert_eq!(link.candidates[0].relative.as_deref(), Some("fat-parent.vhd"));
    assert_eq!(link.candidates[1].relative, None);
    assert_eq!(link.candidates[1].file_name(), Some("fat-parent.vhd"));
}

#[test]
fn blocks_far_into_the_file_are_found_up_to_the_last_sector_there_is() {
    let last = u32::MAX - 4096;
    for sector in [(1 << 22) - 100, (1 << 23) - 100, (1 << 31) - 100, last] {
        let image = open(&Builder::dynamic().table(&[7, sector]).build()).expect("opens");
        let sparse = image.sparse().expect("sparse");
        let end = (u64::from(sector) + 4097) * 512;
        assert_eq!((sparse.allocated, sparse.blocks_end), (2, FileOffset::new(end)));
        assert_eq!(BatEntry::from_raw(sector), BatEntry::At(SectorNo::new(sector)));
    }
    let full = open(&Builder::dynamic().table(&[last]).build()).expect("opens");
    let sparse = full.sparse().expect("sparse");
    assert_eq!(sparse.geometry.next_slot(sparse.blocks_end), None);
}

#[test]
fn blocks_over_a_batmap_or_a_locator_are_refused() {
    let mut over = with_batmap(2560, 0).table(&[5, SLOTS[1]]);
    let region = |image: &Builder| match open(&image.build()) {
        Err(OpenError::EntryOverlaps { region, .. }) => Some(region),
        _ => None,
    };
    assert_eq!(region(&over), Some(Region::Batmap));
    over = over.table(&[4, SLOTS[1]]);
    assert_eq!(region(&over), Some(Region::BatmapHeader));
    let child = Builder::child("base.vhd").table(&[6, SLOTS[1]]);
    assert_eq!(region(&child), Some(Region::Locator(2)));
}

#[test]
fn a_batmap_elsewhere_is_not_believed_but_kept() {
    let image = open(&with_batmap(16 * 512, 0).build()).expect("opens");
    let sparse = image.sparse().expect("sparse");
    assert_eq!(sparse.batmap, None);
    assert!(matches!(image.warnings[..], [Warning::Batmap(_)]), "{:?}", image.warnings);
    assert!(sparse.metadata_end >= FileOffset::new(17 * 512));
    let good = open(&with_batmap(2560, 0).build()).expect("opens");
    assert!(good.sparse().is_some_and(|sparse| sparse.batmap.is_some()));
}

#[test]
fn images_that_only_others_understand_are_refused() {
    let encrypted = with_batmap(2560, 0).raw(2048 + 29, &[1]);
    assert!(matches!(open(&encrypted.build()), Err(OpenError::Encrypted { .. })));
    let first = Builder::dynamic().both(28, b"tap\0\x00\x00\x00\x01");
    assert_eq!(open(&first.build()), Err(OpenError::LittleEndianBitmaps));
    let later = Builder::dynamic().both(28, b"tap\0\x00\x01\x00\x04");
    let refusal = open(&later.build()).expect("opens for reading").write_refusal();
    assert_eq!(refusal, Some(Reason::LaterTapdisk(0x0001_0004)));
    for image in [Builder::dynamic().raw(0, b"v_poison"), Builder::dynamic().both(0, b"v_poison")] {
        let poisoned = open(&image.build());
        let cause = FooterError::Poisoned;
        assert!(matches!(poisoned, Err(OpenError::Footer { cause: c, .. }) if c == cause));
    }
}

#[test]
fn a_fixed_footer_at_the_start_alone_makes_no_disk() {
    let fixed = Builder::fixed();
    let tail_lost = fixed.clone().raw(fixed.size, b"X").raw(0, &fixed.footer(&[]));
    assert!(matches!(open(&tail_lost.build()), Err(OpenError::FixedWithoutTail { .. })));
}

#[test]
fn limits_are_the_callers() {
    let small = Limits { max_sparse_bytes: ByteLen::new(1 << 20), ..Limits::default() };
    let image = Builder::dynamic().build();
    assert!(matches!(open_with(&image, small), Err(OpenError::SizeTooLarge { .. })));
    let coarse = Limits { min_block_bytes: ByteLen::new(4 << 20), ..Limits::default() };
    assert!(matches!(open_with(&image, coarse), Err(OpenError::BlockSizeOutOfRange { .. })));
    let brief = Limits { max_locator_bytes: ByteLen::new(8), ..Limits::default() };
    let child = Builder::child("base.vhd").build();
    assert!(matches!(open_with(&child, brief), Err(OpenError::LocatorLength { .. })));
}

#[test]
fn lost_space_is_counted_and_lost_footers_are_errors() {
    let image = Builder::dynamic().table(&[7, 7 + 3 * 4104]).raw(0, b"X").build();
    let mut check = Check::new(ByteLen::new(image.len), CheckOptions::default());
    let mut step = check.step(None).expect("nothing was asked for");
    let report = loop {
        match step {
            Step::Done(report) => break report,
            Step::Read { at, len } => {
                step = check.step(Some(&image.read(at.get(), len))).expect("the bytes came");
            }
        }
    };
    assert_eq!(report.leaked, ByteLen::new((2 * 4104 + 7) * 512));
    let finding = report.findings.first().expect("the damaged copy is found");
    assert_eq!((finding.rule, finding.severity), (Rule::V1, Severity::Error));
    assert_eq!(finding.rule.to_string(), "V1");
    assert_eq!((report.blocks, report.allocated), (2, 2));
}

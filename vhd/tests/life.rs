//! An image's life: created, read by others, hit by crashes, repaired.

#[path = "../../tests/support/odd_images.rs"]
mod odd_images;

use std::path::{Path, PathBuf};
use std::process::Command;

use odd_images::{Builder, SparseFile, Tail};
use orlop_vhd::create::DEFAULT_BLOCK_BYTES;
use orlop_vhd::{
    Backing, ByteLen, Check, CheckOptions, CreateError, CreateOptions, FileOffset, Image, Limits,
    NewLayout, NewParent, Opening, Piece, Plan, RepairStep, Report, Step, TailState, create,
    recovered_len, recovery_plan,
};

fn open(file: &[u8]) -> Image {
    let mut opening = Opening::new(ByteLen::new(file.len() as u64), Limits::default());
    let mut step = opening.step(None).expect("opens");
    loop {
        match step {
            Step::Done(image) => return image,
            Step::Read { at, len } => {
                let at = at.get() as usize;
                step = opening.step(Some(&file[at..at + len])).expect("opens");
            }
        }
    }
}

fn check(file: &[u8]) -> Report {
    let options = CheckOptions { data: true, ..CheckOptions::default() };
    let mut check = Check::new(ByteLen::new(file.len() as u64), options);
    let mut step = check.step(None).expect("nothing was asked for");
    loop {
        match step {
            Step::Done(report) => return report,
            Step::Read { at, len } => {
                let at = at.get() as usize;
                step = check.step(Some(&file[at..at + len])).expect("the bytes came");
            }
        }
    }
}

fn rendered(plan: &Plan) -> Vec<u8> {
    let mut file = vec![0; plan.file_len.get() as usize];
    for piece in &plan.pieces {
        match piece {
            Piece::Bytes { at, bytes } => put(&mut file, *at, bytes),
            Piece::Fill { at, len, byte } => {
                let at = at.get() as usize;
                file[at..at + len.get() as usize].fill(*byte);
            }
        }
    }
    file
}

fn put(file: &mut [u8], at: FileOffset, bytes: &[u8]) {
    let at = at.get() as usize;
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

fn options(size: u64, layout: NewLayout) -> CreateOptions {
    CreateOptions { size: ByteLen::new(size), layout, uuid: [7; 16], timestamp: 1 }
}

fn dynamic(block_bytes: u64) -> NewLayout {
    NewLayout::Dynamic { block_bytes: ByteLen::new(block_bytes) }
}

fn child(path: &str) -> NewLayout {
    let parent =
        NewParent { uuid: [8; 16], raw: false, relative_path: path.to_owned(), timestamp: 3 };
    NewLayout::Differencing { block_bytes: DEFAULT_BLOCK_BYTES, parent }
}

#[test]
fn what_is_created_opens_without_a_word_and_checks_clean() {
    for (size, layout) in [
        (1 << 20, NewLayout::Fixed),
        (512, dynamic(2 << 20)),
        ((5 << 30) + 512, dynamic(2 << 20)),
        (2040 << 30, dynamic(2 << 20)),
        (64 << 30, dynamic(512 << 10)),
        (1 << 20, dynamic(512)),
        (1 << 30, child("base.vhd")),
        (1 << 30, child("../other/gr\u{FC}n.vhd")),
    ] {
        let plan = create(&options(size, layout)).expect("these can be created");
        let file = rendered(&plan);
        let image = open(&file);
        assert_eq!((image.disk_size().get(), &image.warnings), (size, &vec![]));
        assert_eq!(image.write_refusal(), None);
        let report = check(&file);
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        assert_eq!(recovery_plan(&image, Backing::File), []);
        assert_eq!(report.leaked, ByteLen::ZERO);
    }
    let file = rendered(&create(&options(1 << 30, child("./../p/b.vhd"))).expect("creates"));
    let image = open(&file);
    let link = image.parent().expect("a child has a parent");
    assert_eq!((link.uuid, &*link.name, link.raw), ([8; 16], "b.vhd", false));
    assert!(link.candidates.iter().all(|path| path.relative.as_deref() == Some("../p/b.vhd")));
}

#[test]
fn what_cannot_be_created_is_refused_by_name() {
    use CreateError as E;
    let error = |size, layout| create(&options(size, layout)).expect_err("refused");
    assert_eq!(error(0, NewLayout::Fixed), E::SizeZero);
    assert!(matches!(error(513, NewLayout::Fixed), E::SizeUnaligned { .. }));
    assert!(matches!(error(2041 << 30, dynamic(2 << 20)), E::SizeTooLarge { .. }));
    assert!(matches!(error(512, dynamic(3 << 20)), E::BlockSize { .. }));
    assert!(matches!(error(512, dynamic(256)), E::BlockSize { .. }));
    assert!(matches!(error(512, dynamic(512 << 20)), E::BlockSize { .. }));
    assert!(matches!(error(1 << 40, dynamic(512)), E::TooManyBlocks { .. }));
    assert!(matches!(error(2040 << 30, dynamic(512 << 10)), E::TooManyBlocks { .. }));
    for path in ["", "/etc/passwd", "C:b.vhd", "a\\b", "a//b", "a\0", "..", "a/", "././"] {
        assert!(matches!(error(512, child(path)), E::ParentPath { .. }), "{path:?}");
    }
    let long = "x".repeat(300);
    assert!(matches!(error(512, child(&long)), E::ParentPathTooLong { .. }));
    let nobody = CreateOptions { uuid: [0; 16], ..options(512, NewLayout::Fixed) };
    assert_eq!(create(&nobody), Err(E::UuidZero));
}

/// Runs a program; `None`, said aloud, when it is not installed.
fn run(program: &str, arguments: &[&str], file: &Path) -> Option<String> {
    let output = match Command::new(program).args(arguments).arg(file).output() {
        Ok(output) => output,
        Err(error) => {
            eprintln!("SKIPPED: {program}: {error}");
            return None;
        }
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {text}{complaint}", file.display());
    Some(text)
}

#[test]
fn other_programs_read_what_is_created() {
    let folder = Folder::new("created");
    for (name, size, layout) in [
        ("fixed", 4 << 20, NewLayout::Fixed),
        ("dynamic", (127 << 30) + 512, dynamic(2 << 20)),
        ("largest", 2040 << 30, dynamic(2 << 20)),
        ("small-blocks", 1 << 30, dynamic(512 << 10)),
        ("child", 1 << 30, child("base.vhd")),
    ] {
        let path = folder.0.join(format!("{name}.vhd"));
        let plan = create(&options(size, layout)).expect("these can be created");
        std::fs::write(&path, rendered(&plan)).expect("the image is written");
        if let Some(text) = run("qemu-img", &["info", "-f", "vpc"], &path) {
            assert!(text.contains(&format!("({size} bytes)")), "{text}");
        }
        // 7-Zip unpacks to test; a child has no parent here, and the largest would take hours.
        if matches!(name, "fixed" | "small-blocks") {
            run("7zz", &["t"], &path);
        } else if name != "child" {
            run("7zz", &["l"], &path);
        }
        if let Some(text) = run("vhdiinfo", &[], &path) {
            assert!(text.contains(&format!("({size} bytes)")), "{text}");
        }
    }
}

/// A folder of its own for a test, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("orlop-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder for the images");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_parent_and_its_child_are_one_disk_to_7_zip() {
    let folder = Folder::new("chain");
    let parent = CreateOptions { uuid: [8; 16], ..options(1 << 30, dynamic(2 << 20)) };
    for (name, options) in
        [("base.vhd", parent), ("child.vhd", options(1 << 30, child("base.vhd")))]
    {
        let plan = create(&options).expect("these can be created");
        std::fs::write(folder.0.join(name), rendered(&plan)).expect("the image is written");
    }
    run("7zz", &["t"], &folder.0.join("child.vhd"));
}

#[test]
fn images_of_qemu_open_and_check_clean() {
    let folder = Folder::new("qemu");
    let raw = folder.0.join("disk.raw");
    let mut content = vec![0; 9 << 20];
    content[5 << 20..][..70_000].fill(0x5A);
    std::fs::write(&raw, &content).expect("the raw disk is written");
    for kind in ["dynamic", "fixed"] {
        let image = folder.0.join(format!("{kind}.vhd"));
        let subformat = format!("subformat={kind},force_size=on");
        let from = raw.display().to_string();
        let arguments = ["convert", "-f", "raw", "-O", "vpc", "-o", &subformat, &from];
        if run("qemu-img", &arguments, &image).is_none() {
            return;
        }
        let bytes = std::fs::read(&image).expect("the image is there");
        let opened = open(&bytes);
        assert_eq!(opened.disk_size().get(), content.len() as u64);
        assert_eq!(opened.sparse().map_or(1, |sparse| sparse.allocated), 1);
        assert!(check(&bytes).is_sound(), "{:?}", check(&bytes).findings);
        assert_eq!(recovery_plan(&opened, Backing::File), []);
    }
}

/// Images whose footers are in every state, some with the leftovers of a lost allocation.
fn broken() -> Vec<SparseFile> {
    let base = || Builder::dynamic().sized(1024, 512, 4).table(&[7, 15]);
    let grown = |b: &mut Builder| b.tail_edits.push((48, 1536u64.to_be_bytes().to_vec()));
    let bad_front = |b: &mut Builder| b.raw.push((0, b"X".to_vec()));
    let left = |b: &mut Builder| {
        b.body = Some(64 * 512);
        b.raw.push((20 * 512, vec![0xAA; 40 * 512]));
    };
    let lost = |b: &mut Builder| b.tail = Tail::Absent;
    let short = |b: &mut Builder| b.tail = Tail::Short;
    vec![
        base().build(),
        base().with(lost).build(),
        base().with(short).build(),
        base().with(bad_front).build(),
        base().with(grown).build(),
        base().with(left).build(),
        base().with(left).with(lost).build(),
        base().with(left).with(bad_front).build(),
        base().with(left).with(grown).build(),
        base().with(left).with(short).with(bad_front).build(),
        base().with(short).with(grown).build(),
        base().with(left).with(lost).with(|b| b.cut = Some(64 * 512 - 13)).build(),
    ]
}

fn apply(file: &mut Vec<u8>, step: &RepairStep) {
    match step {
        RepairStep::Write { at, bytes } => {
            let end = at.get() as usize + bytes.len();
            file.resize(file.len().max(end), 0);
            put(file, *at, bytes);
        }
        RepairStep::Truncate { len } => file.truncate(len.get() as usize),
        RepairStep::Sync => {}
    }
}

/// Every file that a crash during the steps can leave: what was synced is there, of the rest any
/// part may be, and a write that grows the file may leave its length without its bytes.
fn crash_states(file: &[u8], steps: &[RepairStep]) -> Vec<Vec<u8>> {
    let mut durable = file.to_vec();
    let mut states = vec![durable.clone()];
    let mut pending: Vec<&RepairStep> = Vec::new();
    for step in steps {
        pending.push(step);
        for kept in 0..1u32 << pending.len() {
            let mut state = durable.clone();
            for (index, step) in pending.iter().enumerate() {
                if kept & 1 << index != 0 {
                    apply(&mut state, step);
                } else if let RepairStep::Write { at, bytes } = step {
                    let end = at.get() as usize + bytes.len();
                    states.push(state.clone());
                    state.resize(state.len().max(end), 0);
                }
            }
            states.push(state);
        }
        if *step == RepairStep::Sync {
            pending.iter().for_each(|step| apply(&mut durable, step));
            pending.clear();
        }
    }
    states
}

fn repaired(mut file: Vec<u8>, size: ByteLen, depth: u32) {
    let image = open(&file);
    assert_eq!(image.disk_size(), size, "the newer footer was lost");
    let steps = recovery_plan(&image, Backing::File);
    if depth > 0 {
        for state in crash_states(&file, &steps) {
            repaired(state, size, depth - 1);
        }
    }
    steps.iter().for_each(|step| apply(&mut file, step));
    assert_eq!(ByteLen::new(file.len() as u64), recovered_len(&image, Backing::File));
    let image = open(&file);
    let sparse = image.sparse().expect("sparse");
    assert_eq!((sparse.tail, sparse.allocated), (TailState::Good, 2));
    assert_eq!(recovery_plan(&image, Backing::File), []);
    let report = check(&file);
    assert!(report.is_sound() && report.leaked == ByteLen::ZERO, "{report:?}");
    assert!(!file[sparse.blocks_end.get() as usize..].contains(&0xAA), "leftovers stayed");
}

#[test]
fn a_repair_survives_crashes_inside_itself() {
    for file in broken() {
        let bytes = file.read(0, file.len as usize);
        let size = open(&bytes).disk_size();
        repaired(bytes, size, 2);
    }
}

#[test]
fn the_gap_that_microsoft_leaves_is_left() {
    let image = Builder::dynamic().table(&[7, 7 + 4104]).with(|b| {
        b.body = Some(((7 + 4104 + 4097) * 512u64).next_multiple_of(4096) + 4096 - 512);
    });
    let file = image.build();
    let image = open(&file.read(0, file.len as usize));
    assert_eq!(recovery_plan(&image, Backing::File), []);
    assert_eq!(recovered_len(&image, Backing::File), image.file_len);
}

#[test]
fn a_device_is_never_cut_and_keeps_its_footer_at_its_end() {
    let len = 1 << 20;
    let backing = Backing::Device { len: ByteLen::new(len) };
    let mut device = Builder::dynamic().sized(1024, 512, 2).table(&[7, 15]).build();
    device.len = len;
    let mut bytes = device.read(0, len as usize);
    let steps = recovery_plan(&open(&bytes), backing);
    assert!(steps.iter().all(|step| !matches!(step, RepairStep::Truncate { .. })));
    steps.iter().for_each(|step| apply(&mut bytes, step));
    assert_eq!(bytes.len() as u64, len);
    let image = open(&bytes);
    assert_eq!(image.sparse().map(|sparse| sparse.tail), Some(TailState::Good));
    assert_eq!(recovery_plan(&image, backing), []);
}

//! Any bytes as a VHD: opening, checking, repairing and reading come to an end, ask for nothing
//! that is not there, and agree with each other.

use orlop::engine::effect::FileId;
use orlop::engine::request::{Answer, Request, RequestId};
use orlop::engine::units::{ByteLen, DiskOffset, Extent, RegionId, Span};
use orlop::engine::{Disk, FrozenLayer};
use orlop::format::Flat;
use orlop::format::vhd::VhdLayer;
use vhd::image::MAX_READ_BYTES;
use vhd::{
    Backing, Check, CheckOptions, Image, Limits, Opening, RepairStep, Report, Step, recovered_len,
    recovery_plan,
};

use super::ram::{Fate, Ram};

/// Steps after which an opener must have come to a verdict.
const STEPS_MAX: usize = 20_000;
/// Bytes read of a disk.
const READ_BYTES: u32 = 64 << 10;

/// The first byte says which checksums are made right, so that edits behind them are reached.
pub fn vhd_open(bytes: &[u8]) {
    let Some((flags, rest)) = bytes.split_first() else { return };
    let mut file = rest.to_vec();
    let tail = file.len().saturating_sub(512);
    if flags & 1 != 0 {
        seal(&mut file, 0, 512, 64);
    }
    if flags & 2 != 0 {
        seal(&mut file, 512, 1024, 36);
    }
    if flags & 4 != 0 && tail > 0 {
        file.copy_within(0..512, tail);
    }
    if flags & 8 != 0 {
        seal(&mut file, tail, 512, 64);
    }
    let image = open(&file);
    let report = check(&file, flags & 16 != 0);
    match image {
        Some(image) => {
            read(&image, &file);
            let _repaired = repair(&image, &file);
        }
        None => assert!(
            report.is_none_or(|report| !report.is_sound()),
            "an image that is sound does not open"
        ),
    }
}

/// Renews the checksum of a structure, a one's complement of the sum of its bytes.
pub fn seal(bytes: &mut [u8], at: usize, len: usize, field: usize) {
    let Some(part) = bytes.get_mut(at..at + len) else { return };
    part[field..field + 4].fill(0);
    let sum = part.iter().fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    part[field..field + 4].copy_from_slice(&(!sum).to_be_bytes());
}

fn len_of(file: &[u8]) -> vhd::ByteLen {
    vhd::ByteLen::new(file.len() as u64)
}

/// Drives one of the step machines over a file.
fn drive<T, E>(
    file: &[u8],
    mut step: impl FnMut(Option<&[u8]>) -> Result<Step<T>, E>,
) -> Option<T> {
    let mut bytes = None;
    for _ in 0..STEPS_MAX {
        match step(bytes).ok()? {
            Step::Done(done) => return Some(done),
            Step::Read { at, len } => {
                assert!(len > 0 && len <= MAX_READ_BYTES, "asks for {len} bytes at once");
                let start = usize::try_from(at.get()).expect("64 bits");
                let end = start.checked_add(len).expect("inside the address space");
                assert!(end <= file.len(), "asks for {start}..{end} of {}", file.len());
                bytes = Some(&file[start..end]);
            }
        }
    }
    unreachable!("no verdict after {STEPS_MAX} steps");
}

/// Opens the image, if it opens.
pub fn open(file: &[u8]) -> Option<Image> {
    let mut opening = Opening::new(len_of(file), Limits::default());
    drive(file, |bytes| opening.step(bytes))
}

/// Checks the image.
pub fn check(file: &[u8], data: bool) -> Option<Report> {
    let options = CheckOptions { data, ..CheckOptions::default() };
    let mut check = Check::new(len_of(file), options);
    drive(file, |bytes| check.step(bytes))
}

/// The file after its repair: one that needs no repair and still is the same disk.
pub fn repair(image: &Image, file: &[u8]) -> Vec<u8> {
    let mut file = file.to_vec();
    for step in recovery_plan(image, Backing::File) {
        match step {
            RepairStep::Write { at, bytes } => {
                let start = usize::try_from(at.get()).expect("64 bits");
                let end = start + bytes.len();
                assert!(end <= file.len() + bytes.len() + 512, "a repair far outside: {start}");
                file.resize(file.len().max(end), 0);
                file[start..end].copy_from_slice(&bytes);
            }
            RepairStep::Truncate { len } => {
                assert!(len < len_of(&file), "a repair never cuts to more");
                file.truncate(usize::try_from(len.get()).expect("64 bits"));
            }
            RepairStep::Sync => {}
        }
    }
    assert_eq!(len_of(&file), recovered_len(image, Backing::File), "the length foretold");
    let again = open(&file).expect("a repaired image opens");
    assert_eq!(again.disk_size(), image.disk_size());
    assert_eq!(recovery_plan(&again, Backing::File), [], "a repaired image needs no repair");
    file
}

/// Reads the start, the middle and the end, and maps all of it, as far as it goes.
fn read(image: &Image, file: &[u8]) {
    let layer: Box<dyn orlop::engine::layer::Layer> = match image.sparse() {
        Some(sparse) => Box::new(VhdLayer::new(image, sparse)),
        None => Box::new(Flat::new(ByteLen::new(image.disk_size().get()))),
    };
    let Some(mut disk) = Disk::read_only(vec![FrozenLayer { layer, file: FileId(0) }]) else {
        unreachable!("one layer is a disk")
    };
    let mut ram = Ram { files: vec![file.to_vec()], arena: vec![0; READ_BYTES as usize] };
    let size = disk.size().get();
    for at in [0, size / 2, size.saturating_sub(u64::from(READ_BYTES))] {
        let len = (size - at).min(u64::from(READ_BYTES));
        let extent = Extent::new(DiskOffset::new(at), ByteLen::new(len));
        let into = Span { region: RegionId(0), start: 0, len: len as u32 };
        let _whatever_it_says = ask(&mut disk, &mut ram, Request::Read { extent, into });
        let map = ask(&mut disk, &mut ram, Request::Map { extent, limit: 64 });
        if let Some(Answer::Map(runs)) = map {
            let covered: u64 = runs.iter().map(|run| run.len.get()).sum();
            assert!(covered > 0 && covered <= len, "a map of {len} bytes covers {covered}");
            assert!(runs.len() <= 64, "{} runs where 64 were wanted", runs.len());
        }
    }
}

fn ask(disk: &mut Disk, ram: &mut Ram, request: Request) -> Option<Answer> {
    disk.submit(RequestId(1), request);
    while let Some(effect) = disk.poll_effect() {
        let (id, outcome) = ram.carry_out(effect, Fate::Done);
        disk.complete(id, outcome);
    }
    let reply = disk.poll_reply().expect("a disk without effects has replied");
    reply.result.ok()
}

//! Bytes of hostile or broken images: opening and checking never panic, never ask for bytes that
//! are not there or for too many at once, and come to an end.

#[path = "../../tests/support/odd_images.rs"]
mod odd_images;

use odd_images::{Builder, SparseFile, Tail, with_batmap};
use orlop_vhd::{ByteLen, Check, CheckError, CheckOptions, Limits, OpenError, Opening, Step};
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
use proptest::test_runner::Config;

const MOST_STEPS: usize = 20_000;

/// Where edits go: anything in the first sectors or in the last one.
#[derive(Clone, Debug)]
struct Edit {
    from_end: bool,
    at: u64,
    value: Vec<u8>,
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let number = prop_oneof![
        any::<u32>(),
        Just(0),
        Just(u32::MAX),
        Just(u32::MAX - 1),
        (0u32..10_000),
        (0u32..32).prop_map(|bit| 1 << bit),
    ];
    let value = prop_oneof![
        number.clone().prop_map(|n| n.to_be_bytes().to_vec()),
        number.prop_map(|n| u64::from(n).to_be_bytes().to_vec()),
        any::<u8>().prop_map(|byte| vec![byte]),
        any::<u64>().prop_map(|n| n.to_be_bytes().to_vec()),
    ];
    // Most edits hit fields: multiples of four in what holds structure.
    let at = prop_oneof![
        (0u64..24).prop_map(|field| field * 4),
        (128u64..146).prop_map(|field| field * 4),
        (272u64..320).prop_map(|field| field * 4),
        (384u64..392).prop_map(|field| field * 4),
        (512u64..528).prop_map(|field| field * 4),
        0u64..4096,
    ];
    let edit = (any::<bool>(), at, value);
    let edit = edit.prop_map(|(from_end, at, value)| Edit { from_end, at, value });
    proptest::collection::vec(edit, 0..5)
}

fn bases() -> Vec<SparseFile> {
    let small = || Builder::dynamic().sized(1024, 512, 2).table(&[7, 15]);
    vec![
        small().build(),
        Builder::child("base.vhd").sized(1024, 512, 2).table(&[7, 15]).build(),
        Builder::fixed().sized(4096, 512, 1).build(),
        small().with(|b| b.tail = Tail::Short).build(),
        small().with(|b| b.tail = Tail::Absent).build(),
        with_batmap(2560, 0).sized(1024, 512, 2).table(&[7, 15]).build(),
        Builder::child("a/b.vhd").build(),
    ]
}

/// Renews the checksum of a footer or header, so that an edit is not stopped by it.
fn seal(bytes: &mut [u8], at: usize, len: usize, field: usize) {
    let Some(part) = bytes.get_mut(at..at + len) else { return };
    part[field..field + 4].fill(0);
    let sum = part.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    part[field..field + 4].copy_from_slice(&(!sum).to_be_bytes());
}

fn edited(base: &SparseFile, edits: &[Edit], sealed: bool, mirror: bool) -> Vec<u8> {
    let mut bytes = base.read(0, base.len as usize);
    let len = bytes.len();
    for edit in edits {
        let offset = edit.at as usize;
        let at = if edit.from_end { len.saturating_sub(512) + offset % 512 } else { offset };
        let places = [Some(at), (mirror && at < 512).then(|| len.saturating_sub(512) + at)];
        for at in places.into_iter().flatten() {
            for (target, value) in bytes.iter_mut().skip(at).zip(&edit.value) {
                *target = *value;
            }
        }
    }
    if sealed {
        seal(&mut bytes, 0, 512, 64);
        seal(&mut bytes, 512, 1024, 36);
        seal(&mut bytes, len.saturating_sub(512), 512, 64);
    }
    bytes
}

fn bring(file: &[u8], at: u64, len: usize) -> &[u8] {
    assert!((1..=1 << 20).contains(&len), "asked for {len} bytes at once");
    let at = usize::try_from(at).expect("inside the file");
    file.get(at..at + len).expect("asked for bytes inside the file")
}

fn drive(file: &[u8]) {
    let file_len = ByteLen::new(file.len() as u64);
    let mut opening = Opening::new(file_len, Limits::default());
    let mut step = opening.step(None);
    let mut steps = 0;
    while let Ok(Step::Read { at, len }) = step {
        step = opening.step(Some(bring(file, at.get(), len)));
        steps += 1;
        assert!(steps < MOST_STEPS);
    }
    let mut check = Check::new(file_len, CheckOptions { data: true, ..CheckOptions::default() });
    let mut next = check.step(None);
    while let Ok(Step::Read { at, len }) = next {
        next = check.step(Some(bring(file, at.get(), len)));
        steps += 1;
        assert!(steps < MOST_STEPS);
    }
    let Ok(Step::Done(report)) = next else { unreachable!("every byte came") };
    assert!(step.is_ok() || !report.is_sound(), "refused, but the check is silent");
}

proptest! {
    #![proptest_config(Config { cases: 20_000, failure_persistence: None, ..Config::default() })]

    #[test]
    fn edited_images_are_judged_and_never_followed_out_of_the_file(
        base in 0usize..7, edits in edits(), sealed: bool, mirror: bool,
    ) {
        drive(&edited(&bases()[base], &edits, sealed, mirror));
    }

    #[test]
    fn noise_is_refused_quietly(noise in proptest::collection::vec(any::<u8>(), 0..3000)) {
        drive(&noise);
    }
}

#[test]
fn every_truncation_of_a_small_image_comes_to_an_end() {
    for base in bases().iter().filter(|base| base.len < 100_000) {
        let bytes = base.read(0, base.len as usize);
        for len in (0..=bytes.len()).rev().step_by(37) {
            drive(&bytes[..len]);
        }
    }
}

#[test]
fn a_short_read_is_an_error_and_not_a_verdict() {
    let file_len = ByteLen::new(4096);
    let mut opening = Opening::new(file_len, Limits::default());
    assert!(matches!(opening.step(None), Ok(Step::Read { len: 512, .. })));
    let wrong = OpenError::WrongLength { expected: 512, found: 3 };
    assert_eq!(opening.step(Some(&[0; 3])).err(), Some(wrong));
    let mut check = Check::new(file_len, CheckOptions::default());
    assert!(matches!(check.step(None), Ok(Step::Read { len: 512, .. })));
    let wrong = CheckError::WrongLength { expected: 512, found: 0 };
    assert_eq!(check.step(None).err(), Some(wrong));
}

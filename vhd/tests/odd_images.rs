//! Every odd image of the format notes goes through opening and checking: the verdict is the
//! table's, the error is the precise one, and no read leaves the file.

#[path = "../../tests/support/odd_images.rs"]
mod odd_images;

use odd_images::{Case, SparseFile, Verdict, cases};
use orlop_vhd::error::Region;
use orlop_vhd::footer::FooterError;
use orlop_vhd::header::HeaderError;
use orlop_vhd::{
    ByteLen, Check, CheckOptions, Image, Limits, LocatorError, OpenError, Opening, Reason, Report,
    Rule, Severity, Step, TailState, Warning,
};

fn bring(file: &SparseFile, at: u64, len: usize) -> Vec<u8> {
    assert!(len <= 1 << 20, "asked for {len} bytes at once");
    assert!(at + len as u64 <= file.len, "asked for {len} bytes at {at} of {}", file.len);
    file.read(at, len)
}

fn open(file: &SparseFile) -> Result<Image, OpenError> {
    let mut opening = Opening::new(ByteLen::new(file.len), Limits::default());
    let mut step = opening.step(None)?;
    for _ in 0..100 {
        match step {
            Step::Done(image) => return Ok(image),
            Step::Read { at, len } => step = opening.step(Some(&bring(file, at.get(), len)))?,
        }
    }
    unreachable!("opening does not come to an end");
}

fn check(file: &SparseFile, data: bool) -> Report {
    let options = CheckOptions { data, ..CheckOptions::default() };
    let mut check = Check::new(ByteLen::new(file.len), options);
    let mut step = check.step(None).expect("nothing was asked for");
    for _ in 0..1000 {
        match step {
            Step::Done(report) => return report,
            Step::Read { at, len } => {
                let bytes = bring(file, at.get(), len);
                step = check.step(Some(&bytes)).expect("the bytes asked for came");
            }
        }
    }
    unreachable!("checking does not come to an end");
}

fn case(number: u32) -> Case {
    cases().into_iter().find(|case| case.number == number).expect("the table has this row")
}

/// The error each refused row must give.
fn is_expected(number: u32, error: &OpenError) -> bool {
    use OpenError as E;
    match number {
        1 => matches!(error, E::BlockShared { .. }),
        2 => matches!(error, E::BlocksOverlap { .. }),
        3 | 4 | 9 | 14 => matches!(error, E::EntryBeyondFile { .. }),
        5 => matches!(error, E::EntryOverlaps { region: Region::FooterCopy, .. }),
        6 => matches!(error, E::EntryOverlaps { region: Region::Header, .. }),
        7 => matches!(error, E::EntryOverlaps { region: Region::Table, .. }),
        8 => matches!(error, E::EntryOverlaps { region: Region::TailFooter, .. }),
        10 => matches!(error, E::NoFooter { tail: FooterError::Checksum { .. }, .. }),
        16 => matches!(error, E::CopiesDifferInIdentity { .. }),
        17 => matches!(error, E::Header { cause: HeaderError::Checksum { .. }, .. }),
        18 => matches!(error, E::Header { cause: HeaderError::Cookie { .. }, .. }),
        19 => matches!(error, E::Header { cause: HeaderError::Version { found: 0x2_0000 }, .. }),
        20 => matches!(error, E::Footer { cause: FooterError::Version { found: 0x2_0000 }, .. }),
        21 | 23 | 24 => matches!(error, E::BlockSizeOutOfRange { .. }),
        22 => matches!(error, E::BlockSizeNotPowerOfTwo { .. }),
        28 => matches!(error, E::TableEmpty),
        29 => matches!(error, E::TableTooSmall { found: 1, needed: 2 }),
        30 | 31 => matches!(error, E::TableTooLarge { .. }),
        33 | 36 => matches!(error, E::TableBeyondFile { .. }),
        34 => matches!(error, E::TableOverlaps { region: Region::Header, .. }),
        37 | 63 => matches!(error, E::HeaderBeyondFile { .. }),
        38 => matches!(error, E::HeaderOverlapsFooterCopy { .. }),
        39 => matches!(error, E::NoHeaderOffset),
        40 | 64 => matches!(error, E::SizeZero),
        41 => matches!(error, E::SizeUnaligned { .. }),
        42 | 43 => matches!(error, E::SizeTooLarge { .. }),
        48 => matches!(error, E::Footer { cause: FooterError::Kind { found: 0 }, .. }),
        49 => matches!(error, E::Footer { cause: FooterError::Kind { found: 7 }, .. }),
        50 => matches!(error, E::Footer { cause: FooterError::Kind { found: 5 }, .. }),
        56 => matches!(error, E::SizeBeyondFile { .. }),
        61 | 62 => matches!(error, E::TooSmall { .. }),
        77 => matches!(error, E::LocatorLength { index: 2, .. }),
        79 => matches!(error, E::LocatorBeyondFile { index: 2, .. }),
        80 => matches!(error, E::Locator { cause: LocatorError::OddLength { .. }, .. }),
        82 => matches!(error, E::Locator { cause: LocatorError::EmbeddedNul { at: 4 }, .. }),
        83 => matches!(error, E::LocatorPlatform { index: 2, code: [b'Z', b'z', b'z', b'z'] }),
        84 => matches!(error, E::EntryOverlaps { region: Region::Locator(2), .. }),
        85 => matches!(error, E::NoLocators),
        _ => false,
    }
}

#[test]
fn every_row_of_the_table_has_its_verdict_and_its_own_error() {
    let all = cases();
    assert_eq!(
        all.iter().map(|case| case.number).collect::<Vec<_>>(),
        (0..=89).collect::<Vec<_>>()
    );
    for case in &all {
        let what = format!("{:02} {}", case.number, case.name);
        let opened = open(case.file());
        match (&opened, case.verdict) {
            // Whether the parent will do is decided by whoever opens it.
            (Ok(_), _) if case.needs_directory => {}
            (Ok(image), Verdict::Open) => {
                assert!(image.write_refusal().is_none(), "{what}");
            }
            (Ok(_), Verdict::Handle) => {}
            (Ok(image), Verdict::ReadOnlyRepair) => {
                let sparse = image.sparse().expect("only sparse images are repaired");
                assert_ne!(sparse.tail, TailState::Good, "{what}");
            }
            (Err(error), Verdict::Reject | Verdict::Handle) => {
                assert!(is_expected(case.number, error), "{what}: {error:?}");
            }
            _ => unreachable!("{what}: {opened:?}"),
        }
        let refused = opened.is_err();
        let report = check(case.file(), true);
        let errors = report.findings.iter().filter(|f| f.severity == Severity::Error).count();
        assert!(!refused || errors > 0, "{what}: refused, but the check is silent");
        if matches!(case.verdict, Verdict::Open) {
            assert_eq!(errors, 0, "{what}: {:?}", report.findings);
        }
    }
}

#[test]
fn handled_rows_are_handled_the_way_the_policy_says() {
    let opened = |number| open(case(number).file()).expect("the row opens");
    let warns = |number, wanted: fn(&Warning) -> bool| {
        assert!(opened(number).warnings.iter().any(wanted), "{number}: {:?}", opened(number));
    };
    assert_eq!(opened(0).warnings, []);
    assert!(matches!(opened(35).write_refusal(), Some(Reason::TableUnaligned(_))));
    assert_eq!(opened(52).write_refusal(), Some(Reason::ReservedFeatureClear(0)));
    assert_eq!(opened(53).write_refusal(), None);
    assert_eq!(opened(15).disk_size(), ByteLen::new(8 << 20));
    assert_eq!(opened(46).disk_size(), ByteLen::new(4 << 20));
    assert!(opened(54).sparse().is_none() && opened(58).sparse().is_none());
    assert_eq!(opened(25).sparse().expect("sparse").geometry.block_sectors(), 1);
    warns(46, |w| matches!(w, Warning::Geometry { .. }));
    warns(51, |w| matches!(w, Warning::SavedState(1)));
    warns(53, |w| matches!(w, Warning::UnknownFeatures(0x40)));
    warns(54, |w| matches!(w, Warning::FixedHasHeader(_)));
    warns(57, |w| matches!(w, Warning::FixedFileLonger(_)));
    warns(59, |w| matches!(w, Warning::ShortTail));
    warns(60, |w| matches!(w, Warning::ShortTail));
    warns(78, |w| matches!(w, Warning::LocatorSpace(2)));
    warns(81, |w| matches!(w, Warning::LocatorLossy(2)));
    warns(86, |w| matches!(w, Warning::ParentNameUnterminated));
    warns(88, |w| matches!(w, Warning::Batmap(_)));
    let states = [11, 12, 13, 15, 60].map(|n| opened(n).sparse().expect("sparse").tail);
    let (missing, short) = (TailState::Missing, TailState::Short511);
    assert_eq!(states, [missing, TailState::FrontBad, missing, TailState::Differ, short]);
}

#[test]
fn a_child_names_its_parent_in_the_order_of_trust() {
    let image = open(case(65).file()).expect("the row opens");
    let link = image.parent().expect("a child has a parent");
    assert!(!link.raw && link.uuid == odd_images::BASE_UUID && link.name == "base.vhd");
    let codes: Vec<_> = link.candidates.iter().map(|path| path.platform.to_string()).collect();
    assert_eq!(codes, ["W2ru", "MacX", "W2ku"]);
    assert!(link.candidates.iter().all(|path| path.relative.as_deref() == Some("base.vhd")));
    let raw = open(case(72).file()).expect("the row opens");
    let link = raw.parent().expect("a child has a parent");
    assert!(link.raw);
    assert_eq!(link.candidates[0].relative.as_deref(), Some("../secret"));
    let absolute = open(case(73).file()).expect("the row opens");
    let link = absolute.parent().expect("a child has a parent");
    assert!(link.candidates.iter().all(|path| path.relative.is_none()));
}

#[test]
fn a_check_says_more_than_the_first_problem() {
    let rules = |report: &Report| report.findings.iter().map(|f| f.rule).collect::<Vec<_>>();
    let mut image = odd_images::Builder::dynamic().sized(8 << 20, 2 << 20, 4);
    image.body = Some(20 << 20);
    let report = check(&image.table(&[7, 7, 0, 1 << 24]).build(), false);
    for rule in [Rule::V4, Rule::V5] {
        assert!(rules(&report).contains(&rule), "{:?}", report.findings);
    }
    let lies = check(case(89).file(), false);
    assert_eq!(rules(&lies).iter().filter(|rule| **rule == Rule::V11).count(), 2);
    // Bits 0 to 3 of the blocks are set: a byte in sector 4 is one that no reader may see.
    let stale = odd_images::Builder::dynamic().raw(4096 + 4 * 512 + 9, b"!").build();
    assert!(check(&stale, false).is_sound());
    let report = check(&stale, true);
    let finding = report.findings.first().expect("the stale byte is found");
    assert_eq!((finding.rule, finding.at.get()), (Rule::V9, 4096 + 4 * 512 + 9));
    let beyond = odd_images::Builder::dynamic().both(48, &((4u64 << 20) - 512).to_be_bytes());
    let report =
        check(&beyond.raw(u64::from(odd_images::SLOTS[1]) * 512 + 511, &[1]).build(), false);
    assert!(rules(&report).contains(&Rule::V10), "{:?}", report.findings);
}

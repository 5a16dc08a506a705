//! Every row of the table in section 2 of the format notes, with its number and its verdict, as
//! files to open. Decides nothing: what a reader must say about each is in the tests.
#![allow(dead_code, unreachable_pub)]

use std::collections::BTreeMap;

use Verdict::{Handle, Open, ReadOnlyRepair, Reject};
use builder::put;
pub use builder::{
    BASE_UUID, Builder, CHILD_UUID, GIB, Locator, MIB, SLOTS, SparseFile, Tail, with_batmap,
};

#[path = "vhd_builder.rs"]
mod builder;

/// What the notes say should happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Opens without a word.
    Open,
    /// Opens or is refused as the policy below the table says.
    Handle,
    /// Opens for reading, and is repaired before the first write.
    ReadOnlyRepair,
    /// Is refused.
    Reject,
}

/// Something in the directory of a case.
#[derive(Clone, Debug)]
pub enum Node {
    File(SparseFile),
    Symlink(&'static str),
    Fifo,
}

/// One row of the table.
#[derive(Clone, Debug)]
pub struct Case {
    pub number: u32,
    pub name: &'static str,
    pub verdict: Verdict,
    /// Which of the files to open.
    pub open: &'static str,
    /// Whether the verdict depends on other files than that one.
    pub needs_directory: bool,
    pub files: BTreeMap<String, Node>,
}

impl Case {
    /// The file to open.
    pub fn file(&self) -> &SparseFile {
        match &self.files[self.open] {
            Node::File(file) => file,
            other => unreachable!("every case opens a regular file, not {other:?}"),
        }
    }
}

fn case(number: u32, name: &'static str, verdict: Verdict, image: Builder) -> Case {
    let files = BTreeMap::from([("image.vhd".to_owned(), Node::File(image.build()))]);
    Case { number, name, verdict, open: "image.vhd", needs_directory: false, files }
}

fn directory<const N: usize>(
    number: u32,
    name: &'static str,
    verdict: Verdict,
    nodes: [(&str, Node); N],
) -> Case {
    let files = nodes.into_iter().map(|(name, node)| (name.to_owned(), node)).collect();
    Case { number, name, verdict, open: "child.vhd", needs_directory: true, files }
}

fn node(image: Builder) -> Node {
    Node::File(image.build())
}

/// Every row of the table.
pub fn cases() -> Vec<Case> {
    let mut all = tables();
    all.extend(footers());
    all.extend(headers());
    all.extend(offsets());
    all.extend(sizes());
    all.extend(kinds());
    all.extend(chains());
    all.extend(locators());
    all.extend(batmaps());
    all.sort_by_key(|case| case.number);
    all
}

/// Two footers' worth of bytes behind block 1 keep the tail where case 00 has it.
const CASE_00_BODY: u64 = (SLOTS[1] as u64 + 4097) * 512;

fn tables() -> Vec<Case> {
    let base = Builder::dynamic;
    let entry = |number, name, second: u32| {
        let image = base().table(&[SLOTS[0], second]).with(|b| b.body = Some(CASE_00_BODY));
        case(number, name, Reject, image)
    };
    vec![
        case(0, "good dynamic", Open, base()),
        entry(1, "bat two blocks same offset", SLOTS[0]),
        entry(2, "bat blocks partly overlap", SLOTS[0] + 100),
        entry(3, "bat entry beyond eof", 100_000),
        entry(4, "bat entry partly beyond eof", SLOTS[1] + 2000),
        entry(5, "bat entry 0 overlaps footer copy", 0),
        entry(6, "bat entry overlaps header", 1),
        entry(7, "bat entry overlaps bat", 3),
        entry(8, "block overlaps tail footer", SLOTS[1] + 1),
        entry(9, "bat entry max 0xFFFFFFFE", 0xFFFF_FFFE),
    ]
}

fn footers() -> Vec<Case> {
    let base = Builder::dynamic;
    let front = |at, value: &[u8]| base().with(|b| b.front.push((at, value.to_vec())));
    let no_tail = || base().with(|b| b.tail = Tail::Absent);
    let other_size = (8 * MIB).to_be_bytes();
    let grown = base().sized(4 * MIB, 2 * MIB, 4).table(&SLOTS).with(|b| {
        b.tail_edits.push((48, other_size.to_vec()));
    });
    vec![
        case(
            10,
            "footer bad checksum both",
            Reject,
            base().raw(100, b"x").raw(CASE_00_BODY + 100, b"x"),
        ),
        case(11, "tail footer bad front good", ReadOnlyRepair, base().raw(CASE_00_BODY, b"X")),
        case(12, "front bad tail good", ReadOnlyRepair, base().raw(0, b"X")),
        case(13, "truncated no tail footer", ReadOnlyRepair, no_tail()),
        case(
            14,
            "truncated mid block",
            Reject,
            no_tail().with(|b| b.cut = Some(CASE_00_BODY - MIB)),
        ),
        case(15, "front and tail valid but different size", ReadOnlyRepair, grown),
        case(16, "front and tail valid but different uuid", Reject, front(68, b"other")),
    ]
}

fn headers() -> Vec<Case> {
    let base = Builder::dynamic;
    let block = |number, name, bytes: u32| {
        case(number, name, Reject, base().header(32, &bytes.to_be_bytes()))
    };
    let entries = |number, name, entries: u32| {
        case(number, name, Reject, base().header(28, &entries.to_be_bytes()))
    };
    vec![
        case(17, "header bad checksum", Reject, base().raw(512 + 900, b"x")),
        case(18, "header bad cookie", Reject, base().header(0, b"X")),
        case(19, "header version 2", Reject, base().header(24, &[0, 2, 0, 0])),
        case(20, "footer version 2", Reject, base().both(12, &[0, 2, 0, 0])),
        block(21, "block size 0", 0),
        block(22, "block size not pow2", 3 << 19),
        block(23, "block size 2^31", 1 << 31),
        block(24, "block size 256 lt sector", 256),
        case(25, "block size 512", Handle, base().sized(1024, 512, 2).table(&[7, 15])),
        case(
            26,
            "block size 512K",
            Open,
            base().sized(4 * MIB, 512 << 10, 8).table(&[7, 2048 + 7]),
        ),
        case(
            27,
            "block size 4M",
            Handle,
            base().sized(8 * MIB, 4 * MIB, 2).table(&[6, 16_384 + 6]),
        ),
        entries(28, "max entries 0", 0),
        entries(29, "max entries too small for size", 1),
        entries(30, "max entries 0xFFFFFFFF", u32::MAX),
        case(
            31,
            "max entries 0x40000000",
            Reject,
            base().header(28, &0x4000_0000u32.to_be_bytes()).with(|b| b.body = Some(17 * GIB)),
        ),
        case(
            32,
            "max entries bigger than needed",
            Open,
            base().sized(4 * MIB, 2 * MIB, 512).table(&SLOTS),
        ),
    ]
}

fn offsets() -> Vec<Case> {
    let base = Builder::dynamic;
    let table =
        |number, name, at: u64| case(number, name, Reject, base().header(16, &at.to_be_bytes()));
    let data =
        |number, name, at: u64| case(number, name, Reject, base().both(16, &at.to_be_bytes()));
    vec![
        table(33, "bat offset beyond eof", GIB),
        table(34, "bat offset overlaps header", 1024),
        case(
            35,
            "bat offset unaligned",
            Handle,
            base().table(&[15, 15 + 4104]).with(|b| b.table_at = 1544),
        ),
        table(36, "bat offset 0xFFFFFFFFFFFFFFFF", u64::MAX),
        data(37, "data offset beyond eof", GIB),
        data(38, "data offset 0", 0),
        data(39, "data offset FFFF on dynamic", u64::MAX),
    ]
}

fn sizes() -> Vec<Case> {
    let base = Builder::dynamic;
    let size = |number, name, verdict, size: u64| {
        case(number, name, verdict, base().both(48, &size.to_be_bytes()))
    };
    let huge = base().sized(2040 * GIB, 2 * MIB, 1_044_480);
    vec![
        size(40, "cur size 0", Handle, 0),
        size(41, "cur size not multiple of 512", Reject, 4 * MIB - 100),
        size(42, "cur size 2^63", Reject, 1 << 63),
        size(43, "cur size gt 2040GiB", Reject, 2064 * GIB),
        case(
            44,
            "cur size 2040GiB max",
            Open,
            huge.table(&[10_007]).both(56, &[0xFF, 0xFF, 16, 255]),
        ),
        case(45, "chs zero but size good", Open, base().both(56, &[0; 4])),
        case(
            46,
            "chs bigger than size",
            Handle,
            base().both(56, &[0xFF, 0xFF, 16, 255]).both(28, b"qemu"),
        ),
        case(47, "orig size differs", Open, base().both(40, &(2 * MIB).to_be_bytes())),
    ]
}

fn kinds() -> Vec<Case> {
    let base = Builder::dynamic;
    let fixed = Builder::fixed;
    let kind =
        |number, name, kind: u8| case(number, name, Reject, base().both(60, &[0, 0, 0, kind]));
    let features =
        |number, name, bits: u8| case(number, name, Handle, base().both(8, &[0, 0, 0, bits]));
    let nested = Builder::dynamic().build().read(0, 4096);
    let empty = |kind| Builder { kind, size: 0, body: Some(0), ..fixed() };
    let lone = SparseFile { len: 512, pieces: vec![(0, base().footer(&[]))] };
    let mut alone = case(63, "only 512 byte footer dynamic", Reject, base());
    alone.files.insert("image.vhd".to_owned(), Node::File(lone));
    vec![
        kind(48, "disk type 0", 0),
        kind(49, "disk type 7", 7),
        kind(50, "disk type 5 reserved", 5),
        case(51, "saved state 1", Handle, base().both(84, &[1])),
        features(52, "features 0", 0),
        features(53, "features unknown bits", 0x42),
        case(
            54,
            "type fixed with dynamic header",
            Handle,
            base().with(|b| {
                b.tail_edits.push((60, vec![0, 0, 0, 2]));
                b.body = Some(CASE_00_BODY);
            }),
        ),
        case(55, "fixed good", Open, fixed()),
        case(56, "fixed size larger than file", Reject, fixed().with(|b| b.body = Some(MIB / 2))),
        case(57, "fixed file larger than size", Handle, fixed().with(|b| b.body = Some(2 * MIB))),
        case(58, "fixed whose guest sector0 is conectix", Open, fixed().raw(0, &nested)),
        case(59, "fixed 511 byte footer", Handle, fixed().with(|b| b.tail = Tail::Short)),
        case(60, "dynamic 511 byte footer", Handle, base().with(|b| b.tail = Tail::Short)),
        case(61, "empty file", Reject, fixed().with(|b| b.cut = Some(0))),
        case(62, "511 bytes", Reject, empty(2).with(|b| b.tail = Tail::Short)),
        alone,
        case(64, "only 512 byte footer fixed size0", Handle, empty(2)),
    ]
}

fn chains() -> Vec<Case> {
    let child = || Builder::child("base.vhd");
    let parent = Builder::dynamic;
    let raw_child = |path: &str| Builder::child(path).with(|b| b.parent = [0; 16]);
    let absolute = raw_child("x").with(|b| {
        b.locators.truncate(1);
        let url = b"file:///etc/passwd".to_vec();
        (b.locators[0].len, b.locators[0].data) = (url.len() as u32, url);
    });
    let own = Builder::child("child.vhd").with(|b| b.parent = CHILD_UUID);
    let back = Builder::child("child.vhd").with(|b| {
        (b.uuid, b.parent) = (BASE_UUID, CHILD_UUID);
    });
    let stranger = parent().with(|b| b.uuid = *b"some other image");
    let small = parent().sized(2 * MIB, 2 * MIB, 1).table(&[7]);
    let large = parent().sized(8 * MIB, 2 * MIB, 4);
    let secret = SparseFile { len: 4 * MIB, pieces: vec![(0, b"secret".to_vec())] };
    let mut deep = directory(87, "chain depth 64", Handle, [("level-0.vhd", node(parent()))]);
    for level in 1..65u8 {
        let image = Builder::child(&format!("level-{}.vhd", level - 1)).with(|b| {
            b.uuid = [level; 16];
            b.parent = if level == 1 { BASE_UUID } else { [level - 1; 16] };
        });
        let name = if level == 64 { "child.vhd".to_owned() } else { format!("level-{level}.vhd") };
        deep.files.insert(name, node(image));
    }
    let with = |number, name, verdict, child: Builder, base: Node| {
        directory(number, name, verdict, [("child.vhd", node(child)), ("base.vhd", base)])
    };
    let alone = |number, name, child: Builder| {
        directory(number, name, Reject, [("child.vhd", node(child))])
    };
    vec![
        with(65, "diff good", Open, child(), node(parent())),
        alone(66, "diff parent missing", child()),
        with(67, "diff parent uuid mismatch", Reject, child(), node(stranger)),
        alone(68, "diff parent is itself", own),
        with(69, "diff two node cycle", Reject, child(), node(back)),
        with(70, "diff parent smaller", Handle, child(), node(small)),
        with(71, "diff parent larger", Handle, child(), node(large)),
        alone(72, "diff null parent uuid raw parent path traversal", raw_child("../secret")),
        alone(73, "diff absolute parent macx", absolute),
        directory(
            74,
            "diff parent symlink to secret",
            Reject,
            [
                ("child.vhd", node(raw_child("base.vhd"))),
                ("base.vhd", Node::Symlink("secret")),
                ("secret", Node::File(secret)),
            ],
        ),
        with(
            75,
            "diff parent device file",
            Reject,
            raw_child("base.vhd"),
            Node::Symlink("/dev/zero"),
        ),
        with(76, "diff parent fifo", Reject, raw_child("base.vhd"), Node::Fifo),
        deep,
    ]
}

fn locators() -> Vec<Case> {
    let child = || Builder::child("base.vhd");
    let second = |number, name, verdict, change: fn(&mut Locator)| {
        case(number, name, verdict, child().with(|b| change(&mut b.locators[2])))
    };
    vec![
        second(77, "locator length huge", Reject, |l| l.len = 0xFFFF_FFF0),
        second(78, "locator space huge", Handle, |l| l.space = 0xFFFF_FE00),
        second(79, "locator offset beyond eof", Reject, |l| l.at = GIB),
        second(80, "locator odd length utf16", Reject, |l| l.len = 5),
        second(81, "locator unpaired surrogate", Handle, |l| put(&mut l.data, 4, &[0, 0xD8])),
        second(82, "locator embedded NUL", Reject, |l| put(&mut l.data, 4, &[0, 0])),
        second(83, "locator unknown platform", Reject, |l| l.code = *b"Zzzz"),
        second(84, "locator overlaps block", Reject, |l| l.at = 4096),
        case(85, "diff all locators none", Reject, child().with(|b| b.locators.clear())),
        case(86, "parent name not terminated 512", Handle, child().header(64, &[b'x'; 512])),
    ]
}

fn batmaps() -> Vec<Case> {
    vec![
        case(88, "batmap offset garbage", Handle, with_batmap(0xDEAD_BEEF_DEAD_BEEF, 0)),
        case(89, "batmap lies full", Handle, with_batmap(2560, 0xC0)),
    ]
}

//! Tables made by hand after UEFI 2.10 (chapter 5) and what the kernel makes of an MBR; any bytes
//! at all. What other programs make is in tests/partitions.rs.

use proptest::prelude::{ProptestConfig, any, prop, proptest};

use super::{GptFault, Notice, PartitionError, PartitionKind, Scan, Scheme, Table};
use crate::engine::units::{ByteLen, DiskOffset, Extent};

/// Reads that no table may need more of: records of a chain, and four times a header and entries.
const STEPS_MAX: usize = 256 + 1 + 4 * 9;

fn scan(disk: &[u8]) -> Result<Table, PartitionError> {
    scan_of(disk.len() as u64, |extent| {
        let at = extent.at.get() as usize;
        disk[at..at + extent.len.get() as usize].to_vec()
    })
}

/// Scans a disk of any size whose bytes come from a function.
fn scan_of(size: u64, mut read: impl FnMut(Extent) -> Vec<u8>) -> Result<Table, PartitionError> {
    let mut scan = Scan::new(ByteLen::new(size));
    for _ in 0..STEPS_MAX {
        let Some(extent) = scan.wants() else { return scan.finish() };
        assert!(extent.end().get() <= size, "wants bytes beyond the disk: {extent:?}");
        assert!((1..=65536).contains(&extent.len.get()), "{extent:?}");
        scan.feed(&read(extent));
    }
    unreachable!("the scan has no end");
}

/// Puts an MBR entry: slot from 0, boot indicator, system byte, start, sectors.
fn entry(sector: &mut [u8], slot: usize, (boot, kind, start, count): (u8, u8, u32, u32)) {
    let at = 446 + slot * 16;
    sector[at] = boot;
    sector[at + 4] = kind;
    sector[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
    sector[at + 12..at + 16].copy_from_slice(&count.to_le_bytes());
    sector[510..512].copy_from_slice(&[0x55, 0xAA]);
}

fn numbers(table: &Table) -> Vec<(u32, u64, u64)> {
    let of = |p: &super::Partition| (p.number, p.start.get() / 512, p.len.get() / 512);
    table.partitions.iter().map(of).collect()
}

/// A GPT of 128 entries of 128 bytes with the given partitions (first and last sector).
fn gpt(sectors: u64, sector: u64, parts: &[(u64, u64)]) -> Vec<u8> {
    let mut disk = vec![0; (sectors * sector) as usize];
    entry(&mut disk, 0, (0, 0xEE, 1, (sectors - 1) as u32));
    let mut entries = vec![0; 128 * 128];
    for (index, (first, last)) in parts.iter().enumerate() {
        let at = &mut entries[index * 128..][..128];
        at[..16].fill(0x11);
        at[16..32].fill(0x22);
        at[32..40].copy_from_slice(&first.to_le_bytes());
        at[40..48].copy_from_slice(&last.to_le_bytes());
        at[48..56].copy_from_slice(&4_u64.to_le_bytes());
        at[56..60].copy_from_slice(&[b'p', 0, 0x1B, 0]);
    }
    let array = 16384_u64.div_ceil(sector);
    let last = sectors - 1;
    for (lba, other, array_at) in [(1, last, 2), (last, 1, last - array)] {
        let mut header = vec![0; 92];
        header[..8].copy_from_slice(b"EFI PART");
        header[8..12].copy_from_slice(&0x0001_0000_u32.to_le_bytes());
        header[12..16].copy_from_slice(&92_u32.to_le_bytes());
        header[24..32].copy_from_slice(&u64::to_le_bytes(lba));
        header[32..40].copy_from_slice(&u64::to_le_bytes(other));
        header[40..48].copy_from_slice(&(2 + array).to_le_bytes());
        header[48..56].copy_from_slice(&(last - array - 1).to_le_bytes());
        header[72..80].copy_from_slice(&u64::to_le_bytes(array_at));
        header[80..84].copy_from_slice(&128_u32.to_le_bytes());
        header[84..88].copy_from_slice(&128_u32.to_le_bytes());
        header[88..92].copy_from_slice(&crc32fast::hash(&entries).to_le_bytes());
        seal(&mut header);
        let at = (lba * sector) as usize;
        disk[at..at + 92].copy_from_slice(&header);
        let at = (array_at * sector) as usize;
        disk[at..at + entries.len()].copy_from_slice(&entries);
    }
    disk
}

/// Makes the checksum of a header right.
fn seal(header: &mut [u8]) {
    header[16..20].fill(0);
    let sum = crc32fast::hash(&header[..92]);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn a_disk_without_a_table_has_none() {
    for disk in [vec![], vec![0; 511], vec![0; 512], vec![0xFF; 4096]] {
        let table = scan(&disk).unwrap();
        assert_eq!((table.scheme, table.partitions.len()), (Scheme::None, 0));
        let error = table.partition(1).unwrap_err();
        assert_eq!(error.to_string(), "there is no partition 1: the disk has no partition table");
    }
}

#[test]
fn primary_partitions_have_the_numbers_of_their_slots() {
    let mut disk = vec![0; 1000 * 512];
    entry(&mut disk, 1, (0x80, 0x83, 1, 99));
    entry(&mut disk, 3, (0, 7, 100, 900));
    let table = scan(&disk).unwrap();
    assert_eq!(table.scheme, Scheme::Mbr);
    assert_eq!(numbers(&table), [(2, 1, 99), (4, 100, 900)]);
    let boot = table.partition(2).unwrap();
    assert_eq!((boot.kind, boot.flags), (PartitionKind::Mbr(0x83), 0x80));
    let error = table.partition(3).unwrap_err().to_string();
    assert_eq!(error, "there is no partition 3: the disk's MBR has 2, 4");
}

#[test]
fn boot_code_with_a_signature_is_no_table() {
    let mut disk = vec![0; 1000 * 512];
    entry(&mut disk, 0, (0, 0x83, 1, 99));
    entry(&mut disk, 2, (0x41, 0x83, 100, 99));
    assert_eq!(scan(&disk).unwrap(), scan(&[0; 512]).unwrap());
}

#[test]
fn what_does_not_lie_on_the_disk_is_left_out_and_nothing_else() {
    let mut disk = vec![0; 1000 * 512];
    entry(&mut disk, 0, (0, 0x83, 1, 999));
    entry(&mut disk, 1, (0, 0x83, 999, 2));
    entry(&mut disk, 2, (0, 0x83, u32::MAX, u32::MAX));
    let table = scan(&disk).unwrap();
    assert_eq!(numbers(&table), [(1, 1, 999)]);
    assert_eq!(table.notices, [2, 3].map(|number| Notice::Outside { number }));
}

#[test]
fn partitions_that_share_bytes_are_told() {
    let mut disk = vec![0; 1000 * 512];
    entry(&mut disk, 0, (0, 0x83, 500, 100));
    entry(&mut disk, 1, (0, 0x83, 1, 900));
    entry(&mut disk, 2, (0, 0x83, 901, 50));
    let table = scan(&disk).unwrap();
    assert_eq!(table.notices, [Notice::Overlap { number: 2, with: 1 }]);
}

/// A disk with an extended partition in slot 2, sectors 100 to 899.
fn extended() -> Vec<u8> {
    let mut disk = vec![0; 1000 * 512];
    entry(&mut disk, 0, (0, 0x83, 1, 99));
    entry(&mut disk, 1, (0, 0x05, 100, 800));
    disk
}

#[test]
fn logical_partitions_count_from_five_and_links_from_the_container() {
    let mut disk = extended();
    entry(&mut disk[100 * 512..], 0, (0, 0x83, 1, 49));
    entry(&mut disk[100 * 512..], 1, (0, 0x05, 200, 100));
    entry(&mut disk[300 * 512..], 0, (0, 0x82, 2, 98));
    let table = scan(&disk).unwrap();
    assert_eq!(numbers(&table), [(1, 1, 99), (5, 101, 49), (6, 302, 98)]);
    assert_eq!(table.notices, []);
    let error = table.partition(2).unwrap_err().to_string();
    let says =
        "partition 2 is an extended one, which only holds others: the disk's MBR has 1, 5, 6";
    assert_eq!(error, says);
}

#[test]
fn garbage_in_the_last_slots_of_a_record_is_no_partition() {
    let mut disk = extended();
    let record = &mut disk[100 * 512..];
    entry(record, 0, (0, 0x83, 1, 49));
    // Beyond its container, though on the disk; then one that makes sense.
    entry(record, 2, (0, 0x83, 790, 50));
    entry(record, 3, (0, 0x83, 60, 10));
    let table = scan(&disk).unwrap();
    assert_eq!(numbers(&table), [(1, 1, 99), (5, 101, 49), (6, 160, 10)]);
}

#[test]
fn a_logical_partition_that_is_left_out_keeps_its_number() {
    let mut disk = extended();
    entry(&mut disk[100 * 512..], 0, (0, 0x83, 1, 5000));
    entry(&mut disk[100 * 512..], 1, (0, 0x05, 200, 100));
    entry(&mut disk[300 * 512..], 0, (0, 0x83, 1, 9));
    let table = scan(&disk).unwrap();
    assert_eq!(numbers(&table), [(1, 1, 99), (6, 301, 9)]);
    assert_eq!(table.notices, [Notice::Outside { number: 5 }]);
}

#[test]
fn a_chain_that_is_a_circle_ends() {
    let mut disk = extended();
    entry(&mut disk[100 * 512..], 0, (0, 0x83, 1, 49));
    entry(&mut disk[100 * 512..], 1, (0, 0x05, 200, 100));
    entry(&mut disk[300 * 512..], 0, (0, 0x83, 1, 9));
    entry(&mut disk[300 * 512..], 1, (0, 0x05, 0, 100));
    let table = scan(&disk).unwrap();
    assert_eq!(numbers(&table), [(1, 1, 99), (5, 101, 49), (6, 301, 9)]);
    assert_eq!(table.notices, [Notice::ChainLoops { at: DiskOffset::new(51200) }]);
}

#[test]
fn a_chain_that_breaks_off_keeps_what_was_before() {
    for (start, notice) in [
        (400, Notice::ChainUnsigned { at: DiskOffset::new(500 * 512) }),
        (900, Notice::ChainOutside),
        (u32::MAX, Notice::ChainOutside),
    ] {
        let mut disk = extended();
        entry(&mut disk[100 * 512..], 0, (0, 0x83, 1, 49));
        entry(&mut disk[100 * 512..], 1, (0, 0x05, start, 100));
        let table = scan(&disk).unwrap();
        assert_eq!(numbers(&table), [(1, 1, 99), (5, 101, 49)]);
        assert_eq!(table.notices, [notice]);
    }
}

#[test]
fn a_chain_without_end_is_cut() {
    for with_partition in [true, false] {
        let mut reads = 0_u32;
        let table = scan_of(u64::from(u32::MAX) * 512, |extent| {
            let mut sector = vec![0; 512];
            if extent.at.get() == 0 {
                entry(&mut sector, 0, (0, 0x0F, 1000, u32::MAX - 1000));
            } else {
                reads += 1;
                entry(&mut sector, 1, (0, 0x05, reads * 10, 10));
                if with_partition {
                    entry(&mut sector, 0, (0, 0x83, 1, 1));
                }
            }
            sector
        });
        let table = table.unwrap();
        assert_eq!(table.partitions.len(), if with_partition { 128 } else { 0 });
        assert_eq!(table.notices, [Notice::ChainTooLong]);
        assert!(reads <= 256, "{reads} reads");
    }
}

#[test]
fn a_gpt_is_read_with_both_sizes_of_sectors() {
    for sector in [512, 4096] {
        let table = scan(&gpt(1000, sector, &[(100, 199), (200, 200)])).unwrap();
        assert_eq!((table.scheme, table.sector.get()), (Scheme::Gpt, sector));
        assert_eq!(table.notices, []);
        let first = table.partition(1).unwrap();
        assert_eq!((first.start.get(), first.len.get()), (100 * sector, 100 * sector));
        assert_eq!(first.unique.unwrap().as_bytes(), &[0x22; 16]);
        assert_eq!((first.name.as_str(), first.flags), ("p\u{FFFD}", 4));
        assert_eq!(table.partition(2).unwrap().len.get(), sector);
        let error = table.partition(3).unwrap_err().to_string();
        assert_eq!(error, "there is no partition 3: the disk's GPT has 1, 2");
    }
}

#[test]
fn a_name_neither_ends_the_line_nor_turns_it() {
    let told = |name: &str| {
        let units = name.encode_utf16().chain([0xD800, 0]).flat_map(u16::to_le_bytes);
        super::gpt::name(&units.collect::<Vec<_>>())
    };
    assert_eq!(told("boot \u{E9}"), "boot \u{E9}\u{FFFD}");
    for bad in ['\n', '\u{1B}', '\u{9B}', '\u{202E}', '\u{2066}', '\u{2028}', '\u{FEFF}'] {
        assert_eq!(told(&format!("a{bad}b")), "a\u{FFFD}b\u{FFFD}");
    }
    assert_eq!(super::gpt::name(&[b'x', 0, 0, 0, b'y', 0]), "x");
}

#[test]
fn entries_that_are_backwards_or_outside_are_left_out_alone() {
    let parts = [(100, 98), (100, 1000), (0, u64::MAX), (u64::MAX, u64::MAX), (300, 999)];
    let table = scan(&gpt(1000, 512, &parts)).unwrap();
    assert_eq!(numbers(&table), [(5, 300, 700)]);
    let [left_out @ .., _, _, _] = table.notices.as_slice() else { unreachable!() };
    assert_eq!(left_out, [Notice::Backwards { number: 1 }]);
}

#[test]
fn a_broken_primary_is_replaced_by_its_backup_and_that_is_told() {
    for sector in [512, 4096] {
        let sound = gpt(1000, sector, &[(100, 199)]);
        let wanted = scan(&sound).unwrap().partitions;
        for spoilt_at in [0, 8, 50, 91, sector as usize, sector as usize + 40] {
            let mut disk = sound.clone();
            disk[sector as usize + spoilt_at] ^= 1;
            let table = scan(&disk).unwrap();
            assert_eq!(table.partitions, wanted, "byte {spoilt_at}");
            assert!(matches!(table.notices[..], [Notice::BackupUsed { .. }]), "{table:?}");
        }
    }
}

#[test]
fn two_broken_tables_are_an_error_that_says_what_is_wrong_with_each() {
    let mut disk = gpt(1000, 512, &[(100, 199)]);
    disk[512 + 60] ^= 1;
    disk[998 * 512] ^= 1;
    let error = scan(&disk).unwrap_err();
    let PartitionError::GptBroken { primary, backup } = error else { unreachable!("{error}") };
    assert!(matches!(primary, GptFault::HeaderChecksum { .. }));
    assert!(matches!(backup, GptFault::EntriesChecksum { .. }));
}

#[test]
fn a_gpt_without_its_protection_is_not_looked_for() {
    let mut disk = gpt(1000, 512, &[(100, 199)]);
    disk[510] = 0;
    assert_eq!(scan(&disk).unwrap().scheme, Scheme::None);
}

#[test]
fn a_hybrid_mbr_is_told_and_the_gpt_counts() {
    let mut disk = gpt(1000, 512, &[(100, 199)]);
    entry(&mut disk, 0, (0x80, 0x83, 100, 100));
    entry(&mut disk, 2, (0, 0xEE, 1, 99));
    let table = scan(&disk).unwrap();
    assert_eq!(numbers(&table), [(1, 100, 100)]);
    assert_eq!(table.notices, [Notice::Hybrid]);
}

/// A header that is sealed, but asks for the impossible.
fn refused(change: impl Fn(&mut [u8])) -> GptFault {
    let mut disk = gpt(1000, 512, &[(100, 199)]);
    for lba in [1, 999] {
        let header = &mut disk[lba * 512..][..92];
        change(header);
        seal(header);
    }
    let error = scan(&disk).unwrap_err();
    let PartitionError::GptBroken { primary, .. } = error else { unreachable!("{error}") };
    primary
}

#[test]
fn a_sealed_header_is_not_believed_either() {
    let put = |at: usize, value: u64, bytes: usize| {
        move |header: &mut [u8]| {
            header[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        }
    };
    assert!(matches!(refused(put(24, 7, 8)), GptFault::Misplaced { found: 7, expected: 1 }));
    for array in [990, u64::MAX, u64::MAX / 512] {
        let fault = refused(put(72, array, 8));
        assert_eq!(fault, GptFault::EntriesOutside { sector: array });
    }
    for (entries, bytes) in [(0, 128), (1025, 128), (u32::MAX, 512), (128, 0), (1, 129), (1, 1024)]
    {
        let fault = refused(|header| {
            put(80, entries.into(), 4)(header);
            put(84, bytes.into(), 4)(header);
        });
        assert_eq!(fault, GptFault::Entries { entries, entry_bytes: bytes });
    }
    let mut disk = gpt(1000, 512, &[]);
    for lba in [1, 999] {
        disk[lba * 512 + 12..][..4].copy_from_slice(&513_u32.to_le_bytes());
    }
    let error = scan(&disk).unwrap_err();
    assert!(error.to_string().contains("a header of 513 bytes"), "{error}");
}

/// What holds of any table of any bytes.
fn is_sane(disk: &[u8]) {
    let Ok(table) = scan(disk) else { return };
    assert!(table.partitions.len() <= 1024);
    for partition in &table.partitions {
        assert!(partition.number >= 1 && !partition.len.is_zero());
        assert!(partition.extent().end().get() <= disk.len() as u64);
        assert!(partition.name.chars().all(|c| !c.is_control()));
        assert_eq!(table.partition(partition.number), Ok(partition));
    }
    assert!(table.partitions.is_sorted_by(|a, b| a.number < b.number));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes_are_a_table_or_none(mut disk in prop::collection::vec(any::<u8>(), 0..20_000)) {
        is_sane(&disk);
        if let Some(sector) = disk.get_mut(..512) {
            for slot in 0..4 {
                sector[446 + slot * 16] &= 0x80;
            }
            sector[510..512].copy_from_slice(&[0x55, 0xAA]);
            is_sane(&disk);
        }
    }

    #[test]
    fn any_records_are_a_chain_or_none(
        records in prop::collection::vec(
            (0_u8..24, 0_usize..4, 0_u8..4, 0_u32..40, 0_u32..40), 1..40
        )
    ) {
        let mut disk = vec![0; 24 * 512];
        entry(&mut disk, 1, (0, 0x0F, 1, 23));
        for (at, slot, kind, start, count) in records {
            let kind = [0x05, 0x83, 0x85, 0x0F][usize::from(kind)];
            entry(&mut disk[usize::from(at) * 512..], slot, (0, kind, start, count));
        }
        is_sane(&disk);
    }

    #[test]
    fn a_spoilt_gpt_is_a_table_or_an_error(
        large in any::<bool>(),
        spoilt in prop::collection::vec((0_usize..60_000, any::<u8>()), 0..8),
        fields in prop::collection::vec((0_usize..92, any::<u8>()), 0..4),
        cut in 0_usize..3,
    ) {
        let sector = if large { 4096 } else { 512 };
        let mut disk = gpt(120, sector, &[(40, 50), (51, 60), (100, 119)]);
        for (at, byte) in spoilt {
            if let Some(old) = disk.get_mut(at) {
                *old = byte;
            }
        }
        // Sealed again, so that what is behind the checksum is reached.
        for lba in [1, 119] {
            let header = &mut disk[lba * sector as usize..][..92];
            for (at, byte) in &fields {
                header[*at] = *byte;
            }
            seal(header);
        }
        disk.truncate(disk.len() - cut * 1000);
        is_sane(&disk);
    }
}

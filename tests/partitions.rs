//! Tables that sfdisk, sgdisk and parted make, and what sfdisk and partx read in them, against what
//! our scan finds in the same file.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/foreign.rs"]
mod foreign;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use foreign::{have, run, text};
use orlop::engine::units::ByteLen;
use orlop::partition::{Notice, PartitionError, PartitionKind, Scan, Scheme, Table};

const MIB: u64 = 1 << 20;

/// A disk in a file.
struct Paper {
    _folder: TempDir,
    path: PathBuf,
    file: File,
}

impl Paper {
    fn new(size: u64) -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("disk.raw");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(size).unwrap();
        Self { _folder: folder, path, file }
    }

    /// Feeds a script to sfdisk or fdisk.
    fn feed(&self, program: &str, options: &[&str], script: &str) {
        let mut command = Command::new("timeout");
        command.args(["-k", "5", "60", program]).args(options).arg(&self.path);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), script.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn sfdisk(&self, script: &str) {
        self.feed("/usr/sbin/sfdisk", &["-q", "--wipe=never"], script);
    }

    fn scan(&self) -> Result<Table, PartitionError> {
        let mut scan = Scan::new(ByteLen::new(self.file.metadata().unwrap().len()));
        while let Some(extent) = scan.wants() {
            let mut bytes = vec![0; extent.len.get() as usize];
            self.file.read_exact_at(&mut bytes, extent.at.get()).unwrap();
            scan.feed(&bytes);
        }
        scan.finish()
    }

    /// What sfdisk reads, in the form of [`ours`].
    fn by_sfdisk(&self) -> Vec<Line> {
        let told = run("/usr/sbin/sfdisk", &["--json", text(&self.path)]);
        let json: Value = serde_json::from_str(&told).unwrap();
        let table = &json["partitiontable"];
        let lower = |value: &Value| value.as_str().unwrap_or_default().to_lowercase();
        let prefix = text(&self.path);
        let partitions = table["partitions"].as_array().unwrap().iter();
        let lines = partitions.map(|partition| Line {
            number: partition["node"].as_str().unwrap()[prefix.len()..].parse().unwrap(),
            start: partition["start"].as_u64().unwrap(),
            sectors: partition["size"].as_u64().unwrap(),
            kind: lower(&partition["type"]),
            unique: lower(&partition["uuid"]),
            name: partition["name"].as_str().unwrap_or_default().to_owned(),
        });
        // A container is no partition of ours.
        let mut lines: Vec<_> =
            lines.filter(|line| !["5", "f", "85"].contains(&&*line.kind)).collect();
        lines.sort();
        lines
    }

    /// Numbers, starts and sectors (of 512 bytes) that partx reads; it uses libblkid.
    fn by_partx(&self) -> Vec<(u32, u64, u64)> {
        let columns = ["--raw", "--noheadings", "-o", "NR,START,SECTORS,TYPE"];
        let told = run("partx", &[&columns[..], &[text(&self.path)]].concat());
        let lines = told.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let lines = lines.filter(|line| !["0x5", "0xf", "0x85"].contains(&line[3]));
        let number = |text: &str| text.parse::<u64>().unwrap();
        lines.map(|line| (number(line[0]) as u32, number(line[1]), number(line[2]))).collect()
    }

    /// What fdisk reads when told to take sectors for larger than they are.
    fn by_fdisk(&self, sector: u64) -> Vec<Line> {
        let sector = sector.to_string();
        let columns = "Device,Start,Sectors,Type-UUID,UUID,Name";
        let options = ["-b", &sector, "-l", "-o", columns, text(&self.path)];
        let told = run("/usr/sbin/fdisk", &options);
        let rows = told.lines().filter_map(|row| row.strip_prefix(text(&self.path)));
        let rows = rows.map(|row| row.split_whitespace().collect::<Vec<_>>());
        let rows = rows.filter(|row| row.len() >= 5).map(|row| Line {
            number: row[0].parse().unwrap(),
            start: row[1].parse().unwrap(),
            sectors: row[2].parse().unwrap(),
            kind: row[3].to_lowercase(),
            unique: row[4].to_lowercase(),
            name: row[5..].join(" "),
        });
        rows.collect()
    }

    /// Compares with sfdisk and partx, and gives the table.
    fn agrees(&self, scheme: Scheme) -> Table {
        let table = self.scan().unwrap();
        assert_eq!((table.scheme, table.sector.get()), (scheme, 512), "{table:?}");
        let lines = ours(&table);
        assert_eq!(lines, self.by_sfdisk());
        assert!(!lines.is_empty());
        let lines = lines.iter().map(|line| (line.number, line.start, line.sectors));
        assert_eq!(lines.collect::<Vec<_>>(), self.by_partx());
        table
    }

    /// Compares with fdisk for sectors of 4096 bytes.
    fn agrees_on_4k(&self) {
        let table = self.scan().unwrap();
        assert_eq!((table.scheme, table.sector.get()), (Scheme::Gpt, 4096), "{table:?}");
        let lines = ours(&table);
        assert_eq!((lines.len(), &table.notices[..]), (2, &[][..]));
        assert_eq!(lines, self.by_fdisk(4096));
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    number: u32,
    start: u64,
    sectors: u64,
    kind: String,
    unique: String,
    name: String,
}

fn ours(table: &Table) -> Vec<Line> {
    let sector = table.sector.get();
    let lines = table.partitions.iter().map(|partition| Line {
        number: partition.number,
        start: partition.start.get() / sector,
        sectors: partition.len.get() / sector,
        kind: match partition.kind {
            PartitionKind::Mbr(byte) => format!("{byte:x}"),
            PartitionKind::Gpt(guid) => guid.to_string(),
        },
        unique: partition.unique.map(|guid| guid.to_string()).unwrap_or_default(),
        name: partition.name.clone(),
    });
    lines.collect()
}

fn sit(programs: &[&str]) -> bool {
    have(&[programs, &["sfdisk", "partx"]].concat())
}

#[test]
fn an_mbr_with_logical_partitions_is_what_sfdisk_and_partx_see() {
    if !sit(&[]) {
        return;
    }
    for extended in ["5", "f", "85"] {
        let disk = Paper::new(100 * MIB);
        let script = format!(
            "label: dos\nsize=10M, type=83, bootable\nsize=70M, type={extended}\nsize=5M, type=c\n\
             size=8M, type=82\nsize=4M, type=83\nsize=20M, type=7\nsize=1M, type=8e\n"
        );
        // The third line fills the third slot; what follows it is logical.
        disk.sfdisk(&script);
        let table = disk.agrees(Scheme::Mbr);
        assert_eq!(table.notices, []);
        assert!(table.partitions.iter().any(|partition| partition.number >= 5));
        assert_eq!(table.partition(1).unwrap().flags, 0x80);
    }
}

#[test]
fn many_logical_partitions_made_by_parted_have_the_kernels_numbers() {
    if !sit(&["parted"]) {
        return;
    }
    let disk = Paper::new(200 * MIB);
    let mut words: Vec<String> =
        ["-s", text(&disk.path), "mklabel", "msdos"].map(String::from).into();
    words.extend("mkpart extended 1MiB 199MiB".split(' ').map(String::from));
    for index in 0..50 {
        let (start, end) = (2 + index * 3, 4 + index * 3);
        words.extend(format!("mkpart logical {start}MiB {end}MiB").split(' ').map(String::from));
    }
    // Links that were taken out of the middle of the chain.
    words.extend("rm 20 rm 7".split(' ').map(String::from));
    run("/usr/sbin/parted", &words);
    let table = disk.agrees(Scheme::Mbr);
    assert_eq!((table.partitions.len(), table.partitions[47].number), (48, 52));
}

#[test]
fn a_gpt_made_by_sgdisk_is_what_sfdisk_and_partx_see() {
    if !sit(&["sgdisk"]) {
        return;
    }
    let disk = Paper::new(64 * MIB);
    let path = text(&disk.path);
    let words =
        "-n 1:0:+5M -c 1:root -t 1:8300 -n 7:0:+1M -t 7:ef00 -c 7:EFI -n 128:0:0 -t 128:8200";
    run("/usr/sbin/sgdisk", &[&words.split(' ').collect::<Vec<_>>()[..], &[path]].concat());
    // A letter and a sign of two UTF-16 units.
    run("/usr/sbin/sgdisk", &["-c", "128:gr\u{F6}\u{DF}e \u{1F4BE}", "-A", "7:set:2", path]);
    let table = disk.agrees(Scheme::Gpt);
    assert_eq!(table.notices, []);
    assert_eq!(table.partition(7).unwrap().flags, 4);
    assert_eq!(table.partition(128).unwrap().name, "gr\u{F6}\u{DF}e \u{1F4BE}");
}

#[test]
fn a_gpt_for_sectors_of_4096_bytes_is_found_and_of_two_tables_the_later_counts() {
    if !sit(&["fdisk"]) {
        return;
    }
    let disk = Paper::new(64 * MIB);
    let large = |script: &str| {
        let options = ["-b", "4096", "-w", "never", "-W", "never"];
        disk.feed("/usr/sbin/fdisk", &options, script);
        disk.agrees_on_4k();
    };
    large("g\nn\n1\n\n+8M\nn\n2\n\n+4M\nx\nn\n1\none\nr\nw\n");
    disk.sfdisk("label: gpt\nsize=3M, name=small\n");
    assert_eq!(disk.agrees(Scheme::Gpt).notices, []);
    large("g\nn\n1\n\n+9M\nn\n2\n\n+5M\nw\n");
}

#[test]
fn a_gpt_with_more_entries_than_usual_is_read() {
    if !sit(&["sgdisk"]) {
        return;
    }
    let disk = Paper::new(64 * MIB);
    let path = text(&disk.path);
    run("/usr/sbin/sgdisk", &["-S", "1024", path]);
    run("/usr/sbin/sgdisk", &["-n", "1000:0:+1M", "-n", "3:0:+1M", path]);
    let table = disk.agrees(Scheme::Gpt);
    assert_eq!(table.partitions[1].number, 1000);
}

#[test]
fn a_gpt_whose_primary_is_lost_is_read_from_its_backup_as_sfdisk_does() {
    if !sit(&[]) {
        return;
    }
    for (at, len) in [(512, 512), (600, 1), (1024, 16), (1024, 16384)] {
        let disk = Paper::new(64 * MIB);
        disk.sfdisk("label: gpt\nsize=8M, name=one\nsize=4M, name=two\n");
        disk.file.write_all_at(&vec![0x5A; len], at).unwrap();
        let table = disk.scan().unwrap();
        assert!(matches!(table.notices[..], [Notice::BackupUsed { .. }]), "{table:?}");
        assert_eq!(ours(&table), disk.by_sfdisk());
        assert_eq!(table.partitions.len(), 2);
    }
}

#[test]
fn a_hybrid_mbr_made_by_sgdisk_does_not_hide_the_gpt() {
    if !sit(&["sgdisk"]) {
        return;
    }
    let disk = Paper::new(64 * MIB);
    let path = text(&disk.path);
    run("/usr/sbin/sgdisk", &["-n", "1:0:+5M", "-n", "2:0:+5M", path]);
    run("/usr/sbin/sgdisk", &["-h", "1:2", path]);
    let table = disk.scan().unwrap();
    assert_eq!((table.scheme, table.partitions.len()), (Scheme::Gpt, 2));
    assert_eq!(table.notices, [Notice::Hybrid]);
    let lines = run("/usr/sbin/sgdisk", &["-p", path]);
    for partition in &table.partitions {
        let (first, last) = (partition.start.get() / 512, partition.extent().end().get() / 512 - 1);
        let row = [partition.number.into(), first, last].map(|number| number.to_string());
        let told = lines.lines().any(|line| line.split_whitespace().take(3).eq(row.iter()));
        assert!(told, "{row:?} is not in\n{lines}");
    }
}

#[test]
fn file_systems_without_a_table_have_no_partitions() {
    for (program, options) in [
        ("mkfs.vfat", &["-F", "16"][..]),
        ("mkfs.vfat", &["-F", "32"]),
        ("mkfs.ntfs", &["-F", "-Q", "-q"]),
        ("mkfs.ext4", &["-q", "-F"]),
    ] {
        if !have(&[program]) {
            continue;
        }
        let disk = Paper::new(64 * MIB);
        run(program, &[options, &[text(&disk.path)]].concat());
        let table = disk.scan().unwrap();
        assert_eq!((table.scheme, table.partitions.len()), (Scheme::None, 0), "{program}");
    }
}

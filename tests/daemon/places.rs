//! SRs in file systems of their own, a full one among them; and very many disks.

use std::path::PathBuf;

use crate::foreign;
use crate::house::House;

/// A loop device over a file, gone when dropped.
struct Loop {
    node: PathBuf,
    _file: tempfile::NamedTempFile,
}

impl Loop {
    /// `None`, said aloud, where loop devices or e2fsprogs are not to be had.
    fn new(bytes: u64) -> Option<Self> {
        if !foreign::have(&["losetup", "mkfs.ext4", "e2fsck"]) {
            return None;
        }
        let file = tempfile::Builder::new().prefix("orlop-daemon-ext").tempfile().unwrap();
        file.as_file().set_len(bytes).unwrap();
        let made = foreign::run_any("losetup", &["--find", "--show", foreign::text(file.path())]);
        if !made.status.success() {
            println!("SKIPPED: no loop device: {}", String::from_utf8_lossy(&made.stderr));
            return None;
        }
        let node = PathBuf::from(String::from_utf8_lossy(&made.stdout).trim());
        Some(Self { node, _file: file })
    }

    fn text(&self) -> &str {
        foreign::text(&self.node)
    }

    fn fsck(&self) {
        foreign::run("e2fsck", &["-fn", self.text()]);
    }

    fn option(&self) -> String {
        format!("device={}", self.text())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // A test that failed may have left it mounted.
        if std::thread::panicking() {
            foreign::run_any("umount", &["-l", self.text()]);
        }
        foreign::run_any("losetup", &["-d", self.text()]);
    }
}

#[test]
fn an_sr_on_a_device_lives_through_snapshots_detaches_and_restarts() {
    let Some(device) = Loop::new(96 << 20) else { return };
    if !foreign::have(&["nbdcopy", "nbdinfo"]) {
        return;
    }
    let house = House::new();
    let daemon = house.start(&[]);
    let place = ["--type", "ext", "-o", &device.option()];
    let sr = house.done(&[&["sr", "create", "--label", "dev", "--no-attach"], &place[..]].concat());
    device.fsck();
    let probed = house.json(0, &[&["sr", "probe"], &place[..]].concat());
    assert_eq!((&probed["holds"], &probed["sr"]), (&"file-system".into(), &(*sr).into()));
    house.done(&[&["sr", "attach"], &place[..]].concat());
    house.fails(1, &[&["sr", "create"], &place[..]].concat());
    house.done(&["vdi", "create", "-s", "8M", "--label", "root"]);
    let (file, uri) = house.attached("root");
    let old = foreign::content(8 << 20, 3);
    let source = house.path("source");
    std::fs::write(&source, &old).unwrap();
    foreign::run("nbdcopy", &["--flush", foreign::text(&source), &uri]);
    // While it is in use.
    house.done(&["vdi", "snapshot", "root", "--label", "snap"]);
    let new = foreign::content(8 << 20, 4);
    std::fs::write(&source, &new).unwrap();
    foreign::run("nbdcopy", &["--flush", foreign::text(&source), &uri]);
    let (below, _) = house.attached("snap");
    foreign::assert_same(&std::fs::read(&below).unwrap(), &old, "the snapshot");
    foreign::assert_same(&std::fs::read(&file).unwrap(), &new, "the disk");
    // The end of a daemon lets go of the device, and its start takes it again.
    daemon.stop();
    assert_eq!(house.mounts(), Vec::<String>::new());
    device.fsck();
    let daemon = house.start(&[]);
    foreign::assert_same(&std::fs::read(&below).unwrap(), &old, "the snapshot, again");
    foreign::assert_same(&std::fs::read(&file).unwrap(), &new, "the disk, again");
    house.fails(4, &["sr", "detach", "dev"]);
    for vdi in ["root", "snap"] {
        house.done(&["vdi", "detach", vdi]);
    }
    house.done(&["sr", "detach", "dev"]);
    device.fsck();
    house.done(&[&["sr", "attach", &sr], &place[..]].concat());
    assert_eq!(house.attached("root").0, file);
    foreign::assert_same(&std::fs::read(&file).unwrap(), &new, "the disk, attached again");
    house.done(&["vdi", "detach", "root"]);
    house.done(&["vdi", "delete", "root", "--yes"]);
    house.done(&["vdi", "delete", "snap", "--yes"]);
    house.done(&["sr", "delete", "dev", "--yes"]);
    let mut head = [1; 4096];
    use std::io::Read;
    std::fs::File::open(&device.node).unwrap().read_exact(&mut head).unwrap();
    assert_eq!(head, [0; 4096], "the head of the device was not wiped");
    daemon.stop();
}

/// Takes all the space that is left.
fn stuff(path: &std::path::Path) {
    use std::io::Write;
    let mut file = std::fs::File::options().append(true).create(true).open(path).unwrap();
    for size in [1 << 20, 4096, 512] {
        while file.write_all(&vec![1; size]).and_then(|()| file.sync_all()).is_ok() {}
    }
}

#[test]
fn a_full_device_is_told_and_every_verb_leaves_what_was_there() {
    let Some(device) = Loop::new(24 << 20) else { return };
    let house = House::new();
    let daemon = house.start(&["--no-fuse"]);
    let sr = house.done(&["sr", "create", "--type", "ext", "-o", &device.option()]);
    for name in ["plain", "base"] {
        house.done(&["vdi", "create", "-s", "8M", "--label", name]);
    }
    house.done(&["vdi", "create", "-s", "64K", "--format", "raw", "--label", "raw"]);
    house.done(&["vdi", "snapshot", "base", "--label", "snap"]);
    let scan = || {
        let mut scan = house.json(0, &["sr", "scan", &sr]);
        scan["physical_utilisation"] = 0.into();
        for vdi in scan["vdis"].as_array_mut().unwrap() {
            vdi["utilisation"] = 0.into();
        }
        scan
    };
    let place = house.state().join("mounts").join(&sr);
    let stuffing = place.join("stuffing");
    let long = "x".repeat(12_000);
    let before = scan();
    for verb in [
        &["vdi", "create", "-s", "8M"][..],
        &["vdi", "create", "-s", "8M", "--format", "raw"],
        &["vdi", "snapshot", "plain"],
        &["vdi", "clone", "plain"],
        &["vdi", "clone", "snap"],
        &["vdi", "snapshot", "raw"],
        &["vdi", "resize", "plain", "900G"],
        &["vdi", "set", "plain", "--label", &long],
        &["vdi", "lock", "plain", "--user", &long],
    ] {
        stuff(&stuffing);
        let (code, out, err) = house.orlop(&[verb, &["--json"]].concat());
        assert_eq!(code, 1, "{verb:?}: {out}{err}");
        let told: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(told["error"]["code"], "ENOSPC", "{verb:?}: {told}");
        std::fs::remove_file(&stuffing).unwrap();
        assert_eq!(scan(), before, "{verb:?}");
        for entry in std::fs::read_dir(&place).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(!name.contains("tmp") && !name.contains("intent"), "{verb:?} left {name}");
        }
    }
    // Deleting is how one gets out of this.
    stuff(&stuffing);
    house.done(&["vdi", "delete", "plain", "--yes"]);
    std::fs::remove_file(&stuffing).unwrap();
    daemon.stop();
    device.fsck();
    let daemon = house.start(&["--no-fuse"]);
    assert_eq!(scan()["vdis"].as_array().unwrap().len(), 3);
    house.done(&["sr", "detach", &sr]);
    daemon.stop();
}

#[test]
fn five_hundred_attached_disks_take_less_than_300_mib() {
    const VDIS: usize = 500;
    const MOST_BYTES: u64 = 300 << 20;
    let house = House::new();
    let daemon = house.start(&[]);
    let sr = house.sr("sr");
    let call = |method: &str, params: serde_json::Value| {
        orlop::api::client::call(&house.socket(), method, params)
            .unwrap_or_else(|error| panic!("{method}: {error}"))
    };
    let idle = daemon.resident_bytes();
    for number in 0..VDIS {
        let label = format!("disk {number}");
        let made =
            call("vdi_create", serde_json::json!({"sr": sr, "size": 1 << 30, "label": label}));
        call("vdi_attach", serde_json::json!({"sr": sr, "vdi": made["vdi"]}));
    }
    assert_eq!(
        call("sr_list", serde_json::json!({}))["srs"][0]["vdis"].as_array().unwrap().len(),
        VDIS
    );
    let bytes = daemon.resident_bytes();
    println!("{VDIS} VDIs attached: {} MiB resident, {} MiB without", bytes >> 20, idle >> 20);
    assert!(bytes < MOST_BYTES, "{bytes} bytes");
    // And again after a restart.
    daemon.stop();
    let daemon = house.start(&[]);
    assert_eq!(
        call("sr_list", serde_json::json!({}))["srs"][0]["vdis"].as_array().unwrap().len(),
        VDIS
    );
    let bytes = daemon.resident_bytes();
    println!("after a restart: {} MiB", bytes >> 20);
    assert!(bytes < MOST_BYTES, "{bytes} bytes after a restart");
    daemon.stop();
}

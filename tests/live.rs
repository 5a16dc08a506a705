//! Attached VDIs, served: through the verbs, with other programs as clients and judges.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where its set-up fails")]

#[path = "live/crowd.rs"]
mod crowd;
#[path = "live/cuts.rs"]
mod cuts;
#[path = "support/foreign.rs"]
mod foreign;
#[path = "live/kills.rs"]
mod kills;
#[path = "live/peer.rs"]
mod peer;
#[path = "live/rig.rs"]
mod rig;

use std::fs::File;
use std::path::Path;
use std::process::{Command as Process, Stdio};

use orlop::control::{Code, Command};
use orlop::host::Aio;
use orlop::sr::DataFormat;

use rig::{MIB, Rig, Shape, attribute, may_mount, nbdcopy, vdi};

#[test]
fn a_vdi_is_attached_and_detached_again_and_again() {
    if !may_mount() || !foreign::have(&["nbdinfo"]) {
        return;
    }
    let rig = Rig::new(Shape::default());
    rig.create(1, 8 * MIB, DataFormat::Vhd);
    rig.create(2, 4 * MIB, DataFormat::Raw);
    for _ in 0..3 {
        let access = rig.attach(1);
        assert_eq!(rig.attach(1), access);
        let raw = rig.attach(2);
        assert_eq!(access.path, rig.tree().join(vdi(1).to_string()).join("disk").to_str().unwrap());
        assert_eq!(std::fs::metadata(&access.path).unwrap().len(), 8 * MIB);
        assert_eq!(std::fs::metadata(&raw.path).unwrap().len(), 4 * MIB);
        let info = foreign::run("nbdinfo", &["--size", &access.nbd_uri]);
        assert_eq!(info.trim(), (8 * MIB).to_string());
        let status = std::fs::read_to_string(Path::new(&access.path).with_file_name("status"));
        assert_eq!(status.unwrap(), "ok, read-write\n");
        assert_eq!(attribute(Path::new(&access.path), "vdi"), vdi(1).to_string());
        rig.done(rig.detach(1));
        rig.done(rig.detach(1));
        assert!(!Path::new(&access.path).exists());
        assert!(!foreign::run_any("nbdinfo", &[&access.nbd_uri]).status.success());
        rig.done(rig.detach(2));
    }
    rig.attach(1);
    rig.stop();
}

#[test]
fn what_one_way_writes_the_other_reads() {
    if !may_mount() || !foreign::have(&["nbdcopy", "qemu-img", "cmp", "dd"]) {
        return;
    }
    for aio in [Aio::Auto, Aio::Threads] {
        let rig = Rig::new(Shape { aio, ..Shape::default() });
        let files = tempfile::tempdir().unwrap();
        for (number, format) in [(1, DataFormat::Vhd), (2, DataFormat::Raw)] {
            rig.create(number, 8 * MIB, format);
            let access = rig.attach(number);
            let (first, second) = (files.path().join("first"), files.path().join("second"));
            std::fs::write(&first, foreign::content(8 * MIB, 3)).unwrap();
            std::fs::write(&second, foreign::content(8 * MIB, 4)).unwrap();
            nbdcopy(foreign::text(&first), &access.nbd_uri);
            foreign::run("cmp", &[foreign::text(&first), &access.path]);
            let (from, to) = (format!("if={}", second.display()), format!("of={}", access.path));
            let dd = ["bs=300K", "conv=notrunc,fsync", &from, &to];
            foreign::run("dd", &dd);
            let compare =
                ["compare", "-f", "raw", "-F", "raw", &access.nbd_uri, foreign::text(&second)];
            foreign::run("qemu-img", &compare);
            rig.done(rig.detach(number));
            assert!(rig.bytes(number, 8 * MIB) == std::fs::read(&second).unwrap());
        }
        rig.stop();
    }
}

#[test]
fn a_vdi_in_use_is_not_detached_and_its_users_are_named() {
    if !may_mount() || !foreign::have(&["sleep", "libnbd for Python"]) {
        return;
    }
    let rig = Rig::new(Shape::default());
    rig.create(1, MIB, DataFormat::Vhd);
    let access = rig.attach(1);
    let held = File::open(&access.path).unwrap();
    let mut reader = Process::new("sleep").arg("100").stdin(held).spawn().unwrap();
    let error = rig.fails(rig.detach(1), Code::Ebusy);
    let pid = format!("pid {}", reader.id());
    reader.kill().unwrap();
    reader.wait().unwrap();
    assert!(error.to_string().contains(&pid), "{error} does not name {pid}");
    rig.done(rig.detach(1));
    let access = rig.attach(1);
    let script = "import nbd,sys; h=nbd.NBD(); h.connect_uri(sys.argv[1]); print('in',flush=True); \
                  sys.stdin.read()";
    let mut client = Process::new(foreign::PYTHON)
        .args(["-c", script, &access.nbd_uri])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 2];
    std::io::Read::read_exact(client.stdout.as_mut().unwrap(), &mut said).unwrap();
    let error = rig.fails(rig.detach(1), Code::Ebusy);
    let pid = format!("pid {}", client.id());
    let again = foreign::run_any("nbdinfo", &[&access.nbd_uri]);
    client.kill().unwrap();
    client.wait().unwrap();
    assert!(error.to_string().contains(&pid), "{error} does not name {pid}");
    assert!(again.status.success(), "it is served on");
    rig.done(rig.detach(1));
    rig.stop();
}

#[test]
fn a_broken_chain_is_shown_until_it_is_mended() {
    if !may_mount() {
        return;
    }
    let rig = Rig::new(Shape::default());
    rig.create(1, MIB, DataFormat::Vhd);
    rig.call(rig.snapshot(1, 2));
    let parent = rig.place().join(format!("{}.vhd", vdi(2)));
    let copy = std::fs::read(&parent).unwrap();
    let mut other = copy.clone();
    // The identity in both footers, and their checksums with it: one byte up, the sum down.
    for footer in [0, other.len() - 512] {
        let was = other[footer + 68];
        other[footer + 68] = was.wrapping_add(1);
        let sum = u32::from_be_bytes(other[footer + 64..footer + 68].try_into().unwrap());
        let change = i64::from(was) - i64::from(was.wrapping_add(1));
        let sum = u32::try_from(i64::from(sum) + change).unwrap();
        other[footer + 64..footer + 68].copy_from_slice(&sum.to_be_bytes());
    }
    std::fs::write(&parent, &other).unwrap();
    let error = rig.control.call(rig.vdi_attach(1)).unwrap_err();
    let place = rig.tree().join(vdi(1).to_string());
    println!("{error}");
    let told = std::fs::read_to_string(place.join("status")).unwrap();
    assert!(told.starts_with("broken: "), "{told}");
    assert!(!place.join("disk").exists());
    let chain = std::fs::read_to_string(place.join("chain.txt")).unwrap();
    assert!(chain.contains(parent.to_str().unwrap()), "{chain}");
    assert_eq!(attribute(&place, "error.code"), "parent-identity");
    assert_eq!(attribute(&place, "error.path"), parent.to_str().unwrap());
    let uuid = |bytes: &[u8]| uuid::Uuid::from_slice(&bytes[68..84]).unwrap().to_string();
    assert_eq!(attribute(&place, "error.expected"), uuid(&copy));
    assert_eq!(attribute(&place, "error.found"), uuid(&other));
    rig.done(rig.detach(1));
    assert!(!place.exists());
    rig.control.call(rig.vdi_attach(1)).unwrap_err();
    assert!(place.exists());
    rig.done(Command::SrDetach { sr: rig.sr });
    assert!(!place.exists());
    rig.done(rig.sr_attach());
    rig.control.call(rig.vdi_attach(1)).unwrap_err();
    assert!(place.exists());
    std::fs::write(&parent, &copy).unwrap();
    let access = rig.attach(1);
    assert!(Path::new(&access.path).exists());
    rig.stop();
}

#[test]
fn without_a_tree_there_is_nbd_all_the_same() {
    if !foreign::have(&["nbdinfo"]) {
        return;
    }
    let rig = Rig::new(Shape { mount: false, shards: 2, ..Shape::default() });
    for number in 1..5 {
        rig.create(number, MIB, DataFormat::Vhd);
        let access = rig.attach(number);
        assert_eq!(access.path, "");
        assert_eq!(foreign::run("nbdinfo", &["--size", &access.nbd_uri]).trim(), "1048576");
    }
    rig.stop();
}

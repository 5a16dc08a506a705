//! Directories that somebody else has written to, with or without a purpose.

use std::os::unix::fs::symlink;

use orlop::control::{AttachMode, Code, Command};

use super::lot::{self, Lot, image, vdi, write_plan};

#[test]
fn path_tricks_are_findings_and_harm_nobody() {
    let lot = Lot::new();
    lot.attach_new();
    lot.create(1, 8);
    let dir = lot.location();
    let secret = lot.dir.path().join("secret");
    std::fs::write(&secret, [7; 4096]).unwrap();
    let name = |number, ending: &str| dir.join(format!("{}.{ending}", vdi(number)));
    symlink(&secret, name(10, "raw")).unwrap();
    symlink(lot.data(1), name(11, "vhd")).unwrap();
    std::fs::create_dir(name(12, "vhd")).unwrap();
    let mode = rustix::fs::Mode::RUSR;
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, name(13, "vhd"), fifo, mode, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(name(14, "raw")).unwrap();
    for (number, parent) in
        [(20, "../secret"), (21, "/etc/passwd"), (22, "secret"), (23, "..\\secret.raw")]
    {
        write_plan(&dir, vdi(number), &image(8, b"tap\0", false, Some(([0; 16], parent))));
    }
    write_plan(&dir, vdi(24), &image(8, b"tap\0", false, Some(([9; 16], "gone.vhd"))));
    let itself = lot::identity(25);
    let own = format!("{}.vhd", vdi(25));
    write_plan(&dir, vdi(25), &lot::image_of(25, 8, Some((itself, &own))));
    for (number, other) in [(26, 27), (27, 26)] {
        let name = format!("{}.vhd", vdi(other));
        write_plan(
            &dir,
            vdi(number),
            &lot::image_of(number, 8, Some((lot::identity(other), &name))),
        );
    }
    std::fs::write(name(28, "vhd"), vec![0; 2048]).unwrap();
    std::fs::write(name(29, "raw"), [1; 100]).unwrap();
    let listing = lot.scan();
    assert_eq!(listing.vdis.iter().map(|v| v.uuid).collect::<Vec<_>>(), [vdi(1)]);
    let broken = [10, 11, 12, 13, 14, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29];
    for number in broken {
        let found = listing.findings.iter().find(|f| f.broken == Some(vdi(number)));
        assert!(found.is_some(), "{number} is not among {:#?}", listing.findings);
        lot.fails(lot.attach(number, AttachMode::ReadOnly), Code::Eio);
        lot.fails(lot.vdi_create(number, 8), Code::Eexist);
    }
    assert_eq!(listing.findings.len(), broken.len());
    // Nobody opens what a link or a device leads to, not even to tell what is wrong with it.
    let told = lot.told_broken();
    assert!((10..=14).all(|number| !told.contains(&vdi(number))), "{told:?}");
    assert!(told.contains(&vdi(28)));
    assert_eq!(std::fs::read(&secret).unwrap(), [7; 4096]);
}

#[test]
fn what_cannot_be_read_may_be_anybodys_child() {
    let lot = Lot::new();
    lot.attach_new();
    lot.create(1, 8);
    lot.call(lot.snapshot(1, 2));
    let whole = std::fs::read(lot.data(1)).unwrap();
    std::fs::write(lot.data(1), &whole[..700]).unwrap();
    lot.done(lot.delete(2));
    lot.call(Command::SrGc { sr: lot.sr });
    assert!(lot.data(2).exists(), "the parent of a damaged child is gone");
    std::fs::write(lot.data(1), whole).unwrap();
    assert_eq!(lot.scan().vdis.len(), 1);
    lot.call(Command::SrGc { sr: lot.sr });
    assert!(!lot.data(2).exists());
    assert_eq!(lot.scan().vdis[0].parent, None);
}

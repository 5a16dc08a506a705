//! SRs on devices: made only on blank ones, and wiped.

use orlop::control::{Code, Command};

use crate::foreign;
use crate::lot::{Loop, Lot};

#[test]
fn an_ext_sr_is_made_filled_and_wiped() {
    let Some(device) = Loop::new("orlop-sr-ext", 64 << 20) else { return };
    let lot = Lot::on_device(&device);
    lot.done(lot.sr_create());
    lot.fails(lot.sr_create(), Code::Eexist);
    device.fsck();
    lot.done(lot.sr_attach());
    lot.create(1, 9001);
    lot.write(1, 9000, b"kept");
    lot.call(lot.snapshot(1, 2));
    lot.fails(lot.sr_delete(), Code::Ebusy);
    lot.done(Command::SrDetach { sr: lot.sr });
    device.fsck();
    lot.fails(lot.sr_delete(), Code::Ebusy);
    lot.done(lot.sr_attach());
    assert!(lot.read(1, 9000).starts_with(b"kept"));
    lot.done(lot.delete(1));
    lot.done(lot.delete(2));
    let other = lot.location().join("somebody else's.vhd");
    std::fs::write(&other, "not ours").unwrap();
    lot.done(Command::SrDetach { sr: lot.sr });
    lot.fails(lot.sr_delete(), Code::Ebusy);
    lot.done(lot.sr_attach());
    assert_eq!(std::fs::read(&other).unwrap(), b"not ours");
    std::fs::remove_file(other).unwrap();
    lot.done(Command::SrDetach { sr: lot.sr });
    lot.done(lot.sr_delete());
    assert!(device.is_zero(), "the head of the device was not wiped");
    lot.done(lot.sr_delete());
    lot.fails(lot.sr_attach(), Code::Enodev);
}

#[test]
fn a_device_that_holds_anything_is_left_alone() {
    // XFS wants that much.
    let Some(device) = Loop::new("orlop-sr-taken", 320 << 20) else { return };
    let lot = Lot::on_device(&device);
    for (tool, args) in [
        ("mkfs.ext4", &["-qF"][..]),
        ("mkfs.xfs", &["-qf"]),
        ("mkfs.btrfs", &["-qf"]),
        ("mkswap", &[]),
        ("sgdisk", &["-o"]),
    ] {
        if !foreign::have(&[tool]) {
            continue;
        }
        device.given_to(tool, args);
        let before = device.head();
        lot.fails(lot.sr_create(), Code::Eexist);
        lot.fails(lot.sr_attach(), Code::Enodev);
        assert_eq!(device.mounts(), Vec::<String>::new(), "{tool}: it stays mounted");
        assert!(device.head() == before, "{tool}: the device was written");
        device.blank();
    }
    lot.done(lot.sr_create());
    device.fsck();
}

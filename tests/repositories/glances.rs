//! What a verb sees of an SR in which other programs are at work.

use std::path::Path;

use orlop::control::{AttachMode, Code, Command, Outcome};
use orlop::image::{NewImage, NewKind, OpenOptions, create};

use super::lot::{Lot, vdi};

/// What another program would make.
pub(crate) fn child_of(parent: &Path, path: &Path) {
    let parent = Some(OpenOptions { read_only: true, ..OpenOptions::new(parent) });
    let (path, kind) = (path.to_owned(), NewKind::dynamic());
    create(&NewImage { path, size: None, kind, parent, uuid: None, replace: false }).unwrap();
}

#[test]
fn a_verb_sees_what_others_put_beside_or_in_place_of_a_vdi() {
    let lot = Lot::new();
    lot.attach_new();
    for n in 1..=4 {
        lot.create(n, 8);
    }
    // Everything is known from here on.
    lot.scan();
    let write =
        |n| Command::VdiAttach { sr: lot.sr, vdi: vdi(n), mode: AttachMode::ReadWrite, user: None };
    // A file of another name, and another file of the same name.
    child_of(&lot.data(1), &lot.data(9));
    lot.fails(write(1), Code::Eperm);
    let aside = lot.data(3).with_extension("aside");
    child_of(&lot.data(2), &aside);
    std::fs::rename(&aside, lot.data(3)).unwrap();
    lot.fails(write(2), Code::Eperm);
    let chained = lot.call(write(3));
    assert!(matches!(chained, Outcome::Attached(_)), "{chained:?}");
    // In place: the VDI that is asked for, and its parent.
    let whole = std::fs::read(lot.data(4)).unwrap();
    std::fs::write(lot.data(4), &whole[..100]).unwrap();
    lot.fails(write(4), Code::Eio);
    std::fs::write(lot.data(4), whole).unwrap();
    lot.call(write(4));
    let parent = std::fs::read(lot.data(1)).unwrap();
    std::fs::remove_file(lot.data(1)).unwrap();
    lot.fails(write(9), Code::Eio);
    // The parent of what is broken is known by nobody, and comes back without another name or file.
    std::fs::write(lot.data(1), vec![0; parent.len()]).unwrap();
    lot.fails(write(9), Code::Eio);
    std::fs::write(lot.data(1), parent).unwrap();
    lot.call(write(9));
    std::fs::remove_file(lot.data(1)).unwrap();
    assert_eq!(lot.scan().findings.iter().filter(|found| found.broken.is_some()).count(), 1);
}

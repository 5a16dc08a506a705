//! Images under names that are no VDI's: copies, what was moved aside, what another program made.
//!
//! Nobody asked for them to be VDIs, so they are none; but one may be a child of a VDI, and whoever
//! changes or removes a parent harms its children whatever they are called. So they are looked at
//! like data files, told, and count as children. What looks like a VHD and cannot be read may be
//! anybody's child. Refuses to change, rename or remove them, and to follow links.
//!
//! A file whose name says that it is raw holds what its guest likes: it counts only if it names an
//! identity, which no guest of another disk knows.

use std::io::ErrorKind;
use std::path::Path;

use vhd::footer::FOOTER_BYTES;
use vhd::{DiskKind, Footer, FooterError};

use super::catalogue::Finding;
use super::facts::{self, Facts, FactsError};
use super::names::{DataFormat, Named, VdiUuid};
use super::store::{Stamp, Store};
use crate::engine::units::FileOffset;
use crate::image::Format;

/// Files of other names that are looked at, those first whose names say that they are VHDs. With
/// more of them nothing is removed or merged: any of the others may be a child.
pub(super) const STRAYS_MAX: usize = 4096;

/// What becomes of an image that is no VDI.
const WAYS: &str =
    "to make it a VDI rename it to a fresh uuid and .vhd, else move it out of the SR";

/// What a file under a name that is no VDI's holds.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// No image.
    Else,
    /// A VHD.
    Image(Facts),
}

/// An image that is no VDI.
#[derive(Clone, Debug)]
pub(super) struct Stray {
    pub(super) name: String,
    pub(super) facts: Facts,
}

/// Whether a name says that it is a VHD's.
pub(super) fn is_called_vhd(name: &str) -> bool {
    Format::of_name(Path::new(name)) == Some(Format::Vhd)
}

/// Whether it is what NFS makes of a file that was removed while somebody had it open: it is gone.
pub(super) fn is_removed(name: &str) -> bool {
    let rest = name.strip_prefix(".nfs");
    rest.is_some_and(|rest| rest.len() >= 8 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn is_called_raw(name: &str) -> bool {
    Format::of_name(Path::new(name)) == Some(Format::Raw)
}

/// Looks at such a file: at its two ends, and closer if it is a VHD or is called one.
///
/// # Errors
/// When it may be a VHD and cannot be read.
pub(super) fn read(store: &dyn Store, name: &str, stamp: &Stamp) -> Result<Content, FactsError> {
    if !is_called_vhd(name) && !has_footer(store, name, stamp.len.get())? {
        return Ok(Content::Else);
    }
    match facts::read(store, name, DataFormat::Vhd, stamp) {
        // What a guest wrote may lead beyond the file's end.
        Err(FactsError::Io(error))
            if is_called_raw(name)
                && matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::InvalidInput) =>
        {
            Ok(Content::Else)
        }
        Err(FactsError::Io(error)) => Err(error.into()),
        Err(_) if is_called_raw(name) => Ok(Content::Else),
        Ok(mut facts) => {
            let forged = |claim: &facts::ParentClaim| claim.identity.is_none();
            if is_called_raw(name) && facts.parent.as_ref().is_some_and(forged) {
                facts.parent = None;
            }
            Ok(Content::Image(facts))
        }
        Err(error) => Err(error),
    }
}

/// Whether there is a footer at either end, sound or not.
fn has_footer(store: &dyn Store, name: &str, len: u64) -> Result<bool, FactsError> {
    let most = FOOTER_BYTES.min(usize::try_from(len).unwrap_or(FOOTER_BYTES));
    // The end first: that one counts.
    for at in [len - most as u64, 0] {
        let mut bytes = [0; FOOTER_BYTES];
        store.read(name, FileOffset::new(at), &mut bytes[..most])?;
        let is_one =
            |bytes: &[u8]| !matches!(Footer::parse(bytes), Err(FooterError::Cookie { .. }));
        // Old ones have 511 bytes.
        if is_one(&bytes) || is_one(&bytes[1..]) {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Stray {
    /// What a scan tells of it, when those are its parents among the SR's data files.
    pub(super) fn finding(&self, parents: &[VdiUuid]) -> Finding {
        let kind = match self.facts.kind {
            Some(DiskKind::Differencing) => "a differencing VHD",
            Some(DiskKind::Fixed) => "a fixed VHD",
            _ => "a VHD",
        };
        let mut problem = format!("it is {kind} under a name that is no VDI's");
        match (parents, &self.facts.parent) {
            ([], None) => {}
            ([], Some(claim)) => {
                let shown: String = claim.name.chars().take(128).collect();
                problem.push_str(&format!("; its parent {shown:?} is not in this SR"));
            }
            ([one], _) => problem.push_str(&format!(
                ", and a child of the VDI {one}, which for its sake is neither removed, merged \
                 nor written"
            )),
            (several, _) => {
                let list: Vec<_> = several.iter().take(8).map(VdiUuid::to_string).collect();
                problem.push_str(&format!(
                    ", and a child of one of the VDIs {}, none of which for its sake is removed, \
                     merged or written",
                    list.join(", ")
                ));
            }
        }
        problem.push_str("; ");
        match almost(&self.name) {
            Some(name) => problem.push_str(&format!(
                "it is called almost like a VDI: rename it to {name} if there is no such file, \
                 else move it out of the SR"
            )),
            None => problem.push_str(WAYS),
        }
        Finding { name: self.name.clone(), broken: None, problem }
    }
}

/// What a scan tells of a file that may be an image, and cannot be read.
pub(super) fn unreadable(name: String, why: &str) -> Finding {
    let problem = format!(
        "it may be an image, and cannot be read: {why}; it may be a child of any VDI, so nothing \
         is removed or merged in this SR: if nobody is writing it just now, mend it ('orlop \
         check'), or move it out of the SR"
    );
    Finding { name, broken: None, problem }
}

/// What a scan tells of a file whose name is no text.
pub(super) fn nameless(name: String) -> Finding {
    unreadable(name, "its name is no UTF-8, so it is not opened")
}

/// What a scan tells of something that is called a VHD and is no file.
pub(super) fn no_file(name: String, words: &str) -> Finding {
    let problem = format!("it is called a VHD and is {words}, which is not looked at");
    Finding { name, broken: None, problem }
}

/// What a scan tells of those that were not looked at: so many, of which this is the first.
pub(super) fn too_many(first: String, count: usize) -> Finding {
    let problem = format!(
        "it and {} more are not looked at, because more than {STRAYS_MAX} files are no VDIs' here; \
         any of them may be a child of a VDI, so nothing is removed or merged in this SR: move out \
         what is not the SR's",
        count - 1
    );
    Finding { name: first, broken: None, problem }
}

/// The name of a data file that differs from this only in its spelling.
fn almost(name: &str) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    matches!(Named::of(&lower), Named::Data(_, DataFormat::Vhd)).then_some(lower)
}

#[cfg(test)]
mod tests {
    use super::{almost, is_called_vhd};

    #[test]
    fn only_another_spelling_is_almost_a_vdis_name() {
        let uuid = "98de866e-b035-4b1a-a571-613bff542b89";
        let upper = format!("{}.VHD", uuid.to_uppercase());
        assert_eq!(almost(&upper), Some(format!("{uuid}.vhd")));
        for other in ["golden.vhd", &format!("{uuid}.vhd.bak"), &format!("copy of {uuid}.vhd")] {
            assert_eq!(almost(other), None, "{other}");
        }
    }

    #[test]
    fn names_say_that_they_are_vhds_whatever_their_case() {
        assert!(is_called_vhd("a.VHD") && is_called_vhd("b c.avhd"));
        assert!(!is_called_vhd("a.vhd.bak") && !is_called_vhd("vhd") && !is_called_vhd("a.vhdx"));
    }
}

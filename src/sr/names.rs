//! Identities, and the names under which an SR keeps what belongs to them.
//!
//! Refuses names it did not make: whatever else lies in an SR's directory is somebody else's, is
//! never opened and never removed.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use uuid::Uuid;

/// Text that is no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is no uuid such as 87b8646b-b800-9500-cb7b-af3b74e02f5c")]
pub struct NotAUuid {
    /// The text.
    pub found: String,
}

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// A fresh identity, drawn at random.
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }

            /// The identity of these 16 bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// Its 16 bytes.
            pub const fn bytes(self) -> [u8; 16] {
                *self.0.as_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = NotAUuid;

            /// Only the form with hyphens: other spellings would be other names of files.
            fn from_str(text: &str) -> Result<Self, NotAUuid> {
                const HYPHENATED: usize = 36;
                let found = || NotAUuid { found: text.chars().take(64).collect() };
                if text.len() != HYPHENATED {
                    return Err(found());
                }
                let uuid = Uuid::try_parse(text).map_err(|_| found())?;
                if uuid.is_nil() { Err(found()) } else { Ok(Self(uuid)) }
            }
        }
    };
}

identity!(
    /// A storage repository.
    SrUuid
);
identity!(
    /// A virtual disk image.
    VdiUuid
);

/// The format of a data file, by its name; never by its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DataFormat {
    /// `<uuid>.vhd`.
    Vhd,
    /// `<uuid>.raw`.
    Raw,
}

impl DataFormat {
    /// The ending of its name, without the dot.
    pub const fn ending(self) -> &'static str {
        match self {
            Self::Vhd => "vhd",
            Self::Raw => "raw",
        }
    }

    /// The format of such an ending.
    pub fn of_ending(ending: &str) -> Option<Self> {
        [Self::Vhd, Self::Raw].into_iter().find(|format| format.ending() == ending)
    }
}

impl fmt::Display for DataFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.ending())
    }
}

/// The record of the SR itself.
pub const SR_RECORD: &str = "orlop-sr";

const TEMPORARY: &str = ".orlop-tmp";
const ASIDE: &str = "-aside";

/// What a name in an SR stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// The bytes of a VDI.
    Data(VdiUuid, DataFormat),
    /// Label, description and the like of a VDI.
    Record(VdiUuid),
    /// The persistent lock of a VDI.
    Lease(VdiUuid),
    /// An operation on a VDI that is not over.
    Intent(VdiUuid),
    /// [`SR_RECORD`].
    Sr,
    /// A file in the making.
    Temporary,
    /// Not ours.
    Foreign,
}

impl Named {
    /// What this name stands for.
    pub fn of(name: &str) -> Self {
        if name == SR_RECORD {
            return Self::Sr;
        }
        if name.ends_with(TEMPORARY) {
            return Self::Temporary;
        }
        let Some((stem, ending)) = name.split_once('.') else { return Self::Foreign };
        let Ok(vdi) = stem.parse::<VdiUuid>() else { return Self::Foreign };
        // Another spelling of the same identity would be a second file for it.
        if vdi.to_string() != stem {
            return Self::Foreign;
        }
        match ending {
            "orlop" => Self::Record(vdi),
            "orlop-lease" => Self::Lease(vdi),
            "orlop-intent" => Self::Intent(vdi),
            _ => DataFormat::of_ending(ending).map_or(Self::Foreign, |f| Self::Data(vdi, f)),
        }
    }
}

/// The VDIs whose uuids stand somewhere in a name that is not ours, however spelt: it may be that
/// of their data, moved aside.
pub(super) fn mentioned_in(name: &str) -> impl Iterator<Item = VdiUuid> {
    const UUID_LEN: usize = 36;
    let foreign = Named::of(name) == Named::Foreign && name.len() > UUID_LEN;
    let starts = if foreign { 0..name.len() - UUID_LEN + 1 } else { 0..0 };
    starts.filter_map(|at| name.get(at..at + UUID_LEN)?.parse().ok())
}

/// The name of a VDI's data.
pub fn data_name(vdi: VdiUuid, format: DataFormat) -> String {
    format!("{vdi}.{}", format.ending())
}

/// The name of a VDI's record.
pub fn record_name(vdi: VdiUuid) -> String {
    format!("{vdi}.orlop")
}

/// The name of a VDI's lock.
pub fn lease_name(vdi: VdiUuid) -> String {
    format!("{vdi}.orlop-lease")
}

/// The name of the intent that concerns a VDI.
pub fn intent_name(vdi: VdiUuid) -> String {
    format!("{vdi}.orlop-intent")
}

/// The name of a lock that this host has moved aside, to look whether it is the one it means.
pub(super) fn aside_name(vdi: VdiUuid, host: &str) -> String {
    temporary_name(&format!("{}{ASIDE}", lease_name(vdi)), host)
}

/// Whose lock some host has moved aside under this name.
pub(super) fn aside_of(name: &str) -> Option<VdiUuid> {
    let vdi = name.split_once('.')?.0.parse().ok()?;
    let is_one = name.starts_with(&format!("{}{ASIDE}.", lease_name(vdi)));
    (is_one && name.ends_with(TEMPORARY)).then_some(vdi)
}

/// The name of a file in the making. `host` keeps two hosts that share an SR apart.
pub fn temporary_name(target: &str, host: &str) -> String {
    let host = crc32fast::hash(host.as_bytes());
    format!("{target}.{host:08x}{TEMPORARY}")
}

/// The same, of which no other call has the like.
pub(super) fn fresh_temporary(target: &str, host: &str) -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let (process, number) = (std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    temporary_name(&format!("{target}.{process}-{number}"), host)
}

/// Whether a temporary was made by this host.
pub(super) fn is_temporary_of(name: &str, host: &str) -> bool {
    let host = crc32fast::hash(host.as_bytes());
    name.ends_with(&format!(".{host:08x}{TEMPORARY}"))
}

#[cfg(test)]
mod tests {
    use super::{
        DataFormat, Named, SrUuid, VdiUuid, data_name, is_temporary_of, mentioned_in,
        temporary_name,
    };

    const TEXT: &str = "98de866e-b035-4b1a-a571-613bff542b89";

    #[test]
    fn only_one_spelling_names_a_file() {
        let vdi: VdiUuid = TEXT.parse().unwrap();
        assert_eq!(Named::of(&data_name(vdi, DataFormat::Vhd)), Named::Data(vdi, DataFormat::Vhd));
        assert_eq!(Named::of(&format!("{TEXT}.orlop")), Named::Record(vdi));
        let upper = TEXT.to_uppercase();
        assert_eq!(upper.parse(), Ok(vdi));
        for odd in [&*upper, "OLD_98de866e", TEXT, "filelog.txt"] {
            assert_eq!(Named::of(odd), Named::Foreign, "{odd}");
        }
        assert_eq!(Named::of(&format!("{TEXT}.vhd.new")), Named::Foreign);
        assert_eq!(Named::of(&format!("{upper}.vhd")), Named::Foreign);
    }

    #[test]
    fn other_spellings_and_the_nil_identity_are_no_identities() {
        for text in ["", "x", &TEXT.replace('-', ""), "00000000-0000-0000-0000-000000000000"] {
            assert!(text.parse::<SrUuid>().is_err(), "{text}");
        }
        assert!(format!("{{{TEXT}}}").parse::<SrUuid>().is_err());
    }

    #[test]
    fn what_was_moved_aside_tells_whose_data_it_is() {
        let vdi: VdiUuid = TEXT.parse().unwrap();
        let upper = format!("{}.VHD", TEXT.to_uppercase());
        for name in [&*format!("{TEXT}.vhd.bak"), &*format!("copy \u{e9} of {TEXT}"), &*upper] {
            assert_eq!(mentioned_in(name).collect::<Vec<_>>(), [vdi], "{name}");
        }
        for name in [&*format!("{TEXT}.orlop"), "golden.vhd", &*TEXT.replace('-', "")] {
            assert_eq!(mentioned_in(name).count(), 0, "{name}");
        }
    }

    #[test]
    fn hosts_know_their_own_temporaries() {
        let name = temporary_name("a.vhd", "one");
        assert_eq!(Named::of(&name), Named::Temporary);
        assert!(is_temporary_of(&name, "one") && !is_temporary_of(&name, "two"));
    }
}

//! What we know of an SR, a VDI and a lock beyond what their data say, and its way to small files.
//!
//! Bounded: a record is read whole, so nobody may make it large.

use std::collections::BTreeMap;

use super::failure::{Failure, Kind};
use super::fields::{FIELDS_MAX_BYTES, Fields, FieldsError};
use super::names::{SrUuid, VdiUuid};

/// Bytes of the longest label, description, user string, or name or value of a property.
pub(super) const TEXT_MAX_BYTES: usize = 16 << 10;
/// Properties of a VDI.
pub(super) const PROPERTIES_MAX: usize = 64;

/// What we know of a VDI beyond its data. The default is what is known of a VDI that another
/// program made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VdiRecord {
    /// A name for people.
    pub label: String,
    /// More for people.
    pub description: String,
    /// Whether it may never be written.
    pub read_only: bool,
    /// Whether several hosts may use it at once.
    pub shareable: bool,
    /// Whether it was deleted, or never was anybody's, and lives for its children only.
    pub hidden: bool,
    /// The VDI whose content this was.
    pub snapshot_of: Option<VdiUuid>,
    /// When that was, seconds since 1970.
    pub snapshot_time: Option<u64>,
    /// When it was made, seconds since 1970.
    pub created: Option<u64>,
    /// The user's own strings, by name.
    pub properties: BTreeMap<String, String>,
}

impl VdiRecord {
    /// Refuses what would make the record too large.
    ///
    /// # Errors
    /// What is too large.
    pub fn check(&self) -> Result<(), Failure> {
        let long = |text: &str| text.len() > TEXT_MAX_BYTES;
        let refused = |why: String| Err(Failure::new(Kind::Invalid, "the arguments", why));
        if long(&self.label) || long(&self.description) {
            return refused(format!("a label or description is at most {TEXT_MAX_BYTES} bytes"));
        }
        if self.properties.len() > PROPERTIES_MAX {
            return refused(format!("a VDI has at most {PROPERTIES_MAX} user strings"));
        }
        if self.properties.iter().any(|(name, value)| long(name) || long(value)) {
            return refused(format!("a user string is at most {TEXT_MAX_BYTES} bytes"));
        }
        let bytes = self.to_bytes().len();
        if bytes > FIELDS_MAX_BYTES {
            return refused(format!("all user strings together are {bytes} bytes, too many"));
        }
        Ok(())
    }

    /// The bytes of its file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut fields = Fields::default();
        fields.add("kind", "vdi");
        fields.add("label", &self.label);
        fields.add("description", &self.description);
        fields.add("read-only", self.read_only);
        fields.add("shareable", self.shareable);
        fields.add("hidden", self.hidden);
        fields.add_some("snapshot-of", self.snapshot_of);
        fields.add_some("snapshot-time", self.snapshot_time);
        fields.add_some("created", self.created);
        for (name, value) in &self.properties {
            fields.add(&format!("user.{name}"), value);
        }
        fields.to_bytes()
    }

    /// The record in a file.
    ///
    /// # Errors
    /// When the file is not whole or makes no sense.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FieldsError> {
        let fields = Fields::from_bytes(bytes)?;
        let text = |name| fields.value(name).unwrap_or_default().to_owned();
        let flag = |name| fields.parse_some(name).map(|flag| flag.unwrap_or(false));
        let properties = fields.with_prefix("user.");
        Ok(Self {
            label: text("label"),
            description: text("description"),
            read_only: flag("read-only")?,
            shareable: flag("shareable")?,
            hidden: flag("hidden")?,
            snapshot_of: fields.parse_some("snapshot-of")?,
            snapshot_time: fields.parse_some("snapshot-time")?,
            created: fields.parse_some("created")?,
            properties: properties.map(|(name, value)| (name.into(), value.into())).collect(),
        })
    }
}

/// What we know of an SR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SrRecord {
    /// Its identity.
    pub uuid: SrUuid,
    /// The type of driver that made it.
    pub driver: String,
    /// A name for people.
    pub label: String,
    /// More for people.
    pub description: String,
    /// Whether its directory was made for it, and goes with it.
    pub made_directory: bool,
    /// When it was made, seconds since 1970.
    pub created: Option<u64>,
}

impl SrRecord {
    /// The bytes of its file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut fields = Fields::default();
        fields.add("kind", "sr");
        fields.add("uuid", self.uuid);
        fields.add("driver", &self.driver);
        fields.add("label", &self.label);
        fields.add("description", &self.description);
        fields.add("made-directory", self.made_directory);
        fields.add_some("created", self.created);
        fields.to_bytes()
    }

    /// The record in a file.
    ///
    /// # Errors
    /// When the file is not whole or makes no sense.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FieldsError> {
        let fields = Fields::from_bytes(bytes)?;
        let text = |name| fields.value(name).unwrap_or_default().to_owned();
        Ok(Self {
            uuid: fields.parse("uuid")?,
            driver: text("driver"),
            label: text("label"),
            description: text("description"),
            made_directory: fields.parse_some("made-directory")?.unwrap_or(false),
            created: fields.parse_some("created")?,
        })
    }
}

/// A persistent lock of a VDI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The user string that took it, and alone gives it back.
    pub user: String,
    /// The host that took it.
    pub host: String,
    /// How long it holds after it was last renewed; for ever when `None`.
    pub seconds: Option<u64>,
    /// When it was renewed last, seconds since 1970 by the holder's clock; for people.
    pub renewed: u64,
}

impl Lease {
    /// Who holds the lock, for people.
    pub(super) fn in_words(&self) -> String {
        let user: String = self.user.chars().take(64).collect();
        format!("it is locked by {user:?} on host {}", self.host)
    }

    /// The bytes of its file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut fields = Fields::default();
        fields.add("kind", "lease");
        fields.add("user", &self.user);
        fields.add("host", &self.host);
        fields.add_some("seconds", self.seconds);
        fields.add("renewed", self.renewed);
        fields.to_bytes()
    }

    /// The lock in a file.
    ///
    /// # Errors
    /// When the file is not whole or makes no sense.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FieldsError> {
        let fields = Fields::from_bytes(bytes)?;
        Ok(Self {
            user: fields.parse("user")?,
            host: fields.parse("host")?,
            seconds: fields.parse_some("seconds")?,
            renewed: fields.parse("renewed")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Lease, SrRecord, TEXT_MAX_BYTES, VdiRecord};
    use crate::sr::names::{SrUuid, VdiUuid};

    #[test]
    fn records_survive_the_way_to_bytes_and_back() {
        let vdi = VdiRecord {
            label: "root disk".to_owned(),
            read_only: true,
            snapshot_of: Some(VdiUuid::random()),
            snapshot_time: Some(7),
            properties: [("a b".to_owned(), "c\nd".to_owned())].into(),
            ..VdiRecord::default()
        };
        assert_eq!(VdiRecord::from_bytes(&vdi.to_bytes()), Ok(vdi));
        let sr = SrRecord {
            uuid: SrUuid::random(),
            driver: "file".to_owned(),
            label: String::new(),
            description: "d".to_owned(),
            made_directory: true,
            created: None,
        };
        assert_eq!(SrRecord::from_bytes(&sr.to_bytes()), Ok(sr));
        let lease =
            Lease { user: "u".to_owned(), host: "h".to_owned(), seconds: Some(30), renewed: 1 };
        assert_eq!(Lease::from_bytes(&lease.to_bytes()), Ok(lease));
    }

    #[test]
    fn a_record_has_bounds() {
        let label = "x".repeat(TEXT_MAX_BYTES);
        assert!(VdiRecord { label: label.clone(), ..VdiRecord::default() }.check().is_ok());
        let label = label + "x";
        assert!(VdiRecord { label, ..VdiRecord::default() }.check().is_err());
        let many = (0..65).map(|n| (n.to_string(), String::new())).collect();
        assert!(VdiRecord { properties: many, ..VdiRecord::default() }.check().is_err());
    }
}

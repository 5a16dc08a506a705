//! What an operation is about to do, on disk before its first effect (I7), so that whoever comes
//! after a crash can finish or undo it without help. How that is done is `recover`'s.

use super::fields::{Fields, FieldsError};
use super::names::{DataFormat, VdiUuid, data_name};
use crate::engine::units::ByteLen;

/// An operation of several steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Intent {
    /// A new data file and its record. Done once the data file has its name.
    Create {
        /// The new VDI.
        vdi: VdiUuid,
        /// Its format.
        format: DataFormat,
    },
    /// A data file, its record and its lock go. Done once the data file is gone.
    Delete {
        /// The VDI.
        vdi: VdiUuid,
        /// Its format.
        format: DataFormat,
    },
    /// A VDI with children becomes one that nobody sees.
    Hide {
        /// The VDI.
        vdi: VdiUuid,
        /// Its format.
        format: DataFormat,
    },
    /// The data of `source` becomes `base`; `source` and `copy` become children of it.
    Fork {
        /// The VDI that is cut.
        source: VdiUuid,
        /// The identity its data gets.
        base: VdiUuid,
        /// A second child.
        copy: Option<VdiUuid>,
        /// The format of the data.
        format: DataFormat,
        /// Whether the base is to be hidden.
        hide: bool,
    },
    /// A disk grows. The image itself is sound with the old or the new size at every moment.
    Resize {
        /// The VDI.
        vdi: VdiUuid,
        /// Its format.
        format: DataFormat,
        /// The size it is to have.
        size: ByteLen,
    },
    /// The data of `child` goes into its hidden parent, which shows it to nobody but that child:
    /// no prefix of that changes what anybody reads.
    Merge {
        /// The only child.
        child: VdiUuid,
        /// Its hidden parent.
        parent: VdiUuid,
        /// The parent's format.
        format: DataFormat,
    },
    /// The parent, which now holds all of the child's data, takes its place. Always finished.
    Succeed {
        /// The child that goes.
        child: VdiUuid,
        /// The parent that takes its name.
        parent: VdiUuid,
        /// The parent's format.
        format: DataFormat,
        /// The child's format.
        child_format: DataFormat,
        /// Whether the child was hidden, and so whether the parent stays so.
        hidden: bool,
        /// The child's children, which must name the parent from then on.
        heirs: Vec<VdiUuid>,
    },
}

impl Intent {
    /// The VDI that the intent's file is named after. No other operation on it can run meanwhile.
    pub fn subject(&self) -> VdiUuid {
        match self {
            Self::Create { vdi, .. }
            | Self::Delete { vdi, .. }
            | Self::Hide { vdi, .. }
            | Self::Resize { vdi, .. } => *vdi,
            Self::Fork { source, .. } => *source,
            Self::Merge { child, .. } | Self::Succeed { child, .. } => *child,
        }
    }

    /// Every VDI whose files it may change, or whose place in the SR.
    pub fn vdis(&self) -> Vec<VdiUuid> {
        match self {
            Self::Create { vdi, .. }
            | Self::Delete { vdi, .. }
            | Self::Hide { vdi, .. }
            | Self::Resize { vdi, .. } => vec![*vdi],
            Self::Fork { source, base, copy, .. } => {
                [Some(*source), Some(*base), *copy].into_iter().flatten().collect()
            }
            Self::Merge { child, parent, .. } => vec![*child, *parent],
            Self::Succeed { child, parent, heirs, .. } => {
                [*child, *parent].into_iter().chain(heirs.iter().copied()).collect()
            }
        }
    }

    /// The data files that settling it may change where they lie, or rename. Not that of a VDI that
    /// is only hidden: its flag is nobody's who reads.
    pub(super) fn files(&self) -> Vec<String> {
        let either = |vdi| [DataFormat::Vhd, DataFormat::Raw].map(|format| data_name(vdi, format));
        match self {
            Self::Create { .. } | Self::Delete { .. } | Self::Hide { .. } => Vec::new(),
            Self::Resize { vdi, format, .. } => vec![data_name(*vdi, *format)],
            Self::Fork { .. } | Self::Merge { .. } | Self::Succeed { .. } => {
                self.vdis().into_iter().flat_map(either).collect()
            }
        }
    }

    /// A word for people.
    pub const fn verb(&self) -> &'static str {
        match self {
            Self::Create { .. } => "create",
            Self::Delete { .. } => "delete",
            Self::Hide { .. } => "hide",
            Self::Fork { .. } => "fork",
            Self::Resize { .. } => "resize",
            Self::Merge { .. } => "merge",
            Self::Succeed { .. } => "succeed",
        }
    }

    /// The bytes of its file. `host` is who carries it out.
    pub fn to_bytes(&self, host: &str) -> Vec<u8> {
        let mut fields = Fields::default();
        fields.add("kind", "intent");
        fields.add("verb", self.verb());
        fields.add("host", host);
        match self {
            Self::Create { vdi, format }
            | Self::Delete { vdi, format }
            | Self::Hide { vdi, format } => {
                fields.add("vdi", vdi);
                fields.add("format", format);
            }
            Self::Resize { vdi, format, size } => {
                fields.add("vdi", vdi);
                fields.add("format", format);
                fields.add("size", size);
            }
            Self::Fork { source, base, copy, format, hide } => {
                fields.add("source", source);
                fields.add("base", base);
                fields.add_some("copy", *copy);
                fields.add("format", format);
                fields.add("hide", hide);
            }
            Self::Merge { child, parent, format } => {
                fields.add("child", child);
                fields.add("parent", parent);
                fields.add("format", format);
            }
            Self::Succeed { child, parent, format, child_format, hidden, heirs } => {
                fields.add("child", child);
                fields.add("parent", parent);
                fields.add("format", format);
                fields.add("child-format", child_format);
                fields.add("hidden", hidden);
                heirs.iter().for_each(|heir| fields.add("heir", heir));
            }
        }
        fields.to_bytes()
    }

    /// The intent in a file, and the host it is of.
    ///
    /// # Errors
    /// When the file is not whole or makes no sense.
    pub fn from_bytes(bytes: &[u8]) -> Result<(Self, String), FieldsError> {
        let fields = Fields::from_bytes(bytes)?;
        let format = |name: &str| {
            let format = fields.value(name).and_then(DataFormat::of_ending);
            format.ok_or_else(|| FieldsError::Field { name: name.to_owned() })
        };
        let (vdi, child) = (|| fields.parse("vdi"), || fields.parse("child"));
        let intent = match fields.value("verb").unwrap_or_default() {
            "create" => Self::Create { vdi: vdi()?, format: format("format")? },
            "delete" => Self::Delete { vdi: vdi()?, format: format("format")? },
            "hide" => Self::Hide { vdi: vdi()?, format: format("format")? },
            "resize" => {
                let size = ByteLen::new(fields.parse("size")?);
                Self::Resize { vdi: vdi()?, format: format("format")?, size }
            }
            "fork" => Self::Fork {
                source: fields.parse("source")?,
                base: fields.parse("base")?,
                copy: fields.parse_some("copy")?,
                format: format("format")?,
                hide: fields.parse("hide")?,
            },
            "merge" => {
                let parent = fields.parse("parent")?;
                Self::Merge { child: child()?, parent, format: format("format")? }
            }
            "succeed" => Self::Succeed {
                child: child()?,
                parent: fields.parse("parent")?,
                format: format("format")?,
                child_format: format("child-format")?,
                hidden: fields.parse("hidden")?,
                heirs: heirs(&fields)?,
            },
            _ => return Err(FieldsError::Field { name: "verb".to_owned() }),
        };
        Ok((intent, fields.value("host").unwrap_or_default().to_owned()))
    }
}

fn heirs(fields: &Fields) -> Result<Vec<VdiUuid>, FieldsError> {
    let wrong = |_| FieldsError::Field { name: "heir".to_owned() };
    fields.values("heir").map(|heir| heir.parse().map_err(wrong)).collect()
}

#[cfg(test)]
mod tests {
    use super::Intent;
    use crate::engine::units::ByteLen;
    use crate::sr::names::{DataFormat, VdiUuid};

    #[test]
    fn intents_survive_the_way_to_bytes_and_back() {
        let [vdi, other, third] = [(); 3].map(|()| VdiUuid::random());
        let (format, raw) = (DataFormat::Vhd, DataFormat::Raw);
        let size = ByteLen::new(512);
        let heirs = vec![vdi, other];
        for intent in [
            Intent::Create { vdi, format },
            Intent::Delete { vdi, format: raw },
            Intent::Hide { vdi, format },
            Intent::Resize { vdi, format, size },
            Intent::Fork { source: vdi, base: other, copy: Some(third), format, hide: true },
            Intent::Fork { source: vdi, base: other, copy: None, format, hide: false },
            Intent::Merge { child: vdi, parent: other, format },
            Intent::Succeed {
                child: third,
                parent: other,
                format,
                child_format: format,
                hidden: true,
                heirs,
            },
        ] {
            let bytes = intent.to_bytes("host 1");
            assert_eq!(Intent::from_bytes(&bytes), Ok((intent, "host 1".to_owned())));
        }
    }
}

//! Small files of ours: lines of a name and a value, and a checksum over them.
//!
//! Readable by people and by `grep`; a file that was cut, changed or never finished is refused
//! whole, so nobody ever sees half of one. Knows nothing of what the fields mean.

use std::fmt::Write as _;

/// The longest file that is read or written.
pub(super) const FIELDS_MAX_BYTES: usize = 256 << 10;

const HEAD: &str = "orlop-record 1\n";
const SUM: &str = "crc32 ";

/// Why a file is none of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldsError {
    /// No text that starts as ours do.
    #[error("it is no record of orlop's")]
    Foreign,
    /// It ends early, or its bytes changed.
    #[error("its checksum is wrong: it says {stored}, its bytes give {computed:08x}")]
    Checksum {
        /// What it says.
        stored: String,
        /// What its bytes give.
        computed: u32,
    },
    /// A line that is no field.
    #[error("line {line} is no field")]
    Line {
        /// Counted from 1.
        line: usize,
    },
    /// A field that is missing or makes no sense.
    #[error("the field {name} is missing or makes no sense")]
    Field {
        /// Its name.
        name: String,
    },
}

/// Fields in their order. A name may come more than once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(Vec<(String, String)>);

impl Fields {
    /// Adds a field. Names are single words of ours.
    pub fn add(&mut self, name: &str, value: impl ToString) {
        self.0.push((name.to_owned(), value.to_string()));
    }

    /// Adds a field if there is a value.
    pub fn add_some(&mut self, name: &str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.add(name, value);
        }
    }

    /// The first value of that name.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// All values of that name.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// All fields whose name starts so, with the rest of their names.
    pub fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let rest = move |(name, value): &'a (String, String)| {
            Some((name.strip_prefix(prefix)?, value.as_str()))
        };
        self.0.iter().filter_map(rest)
    }

    /// The first value of that name, understood.
    ///
    /// # Errors
    /// When it is missing or not understood.
    pub fn parse<T: std::str::FromStr>(&self, name: &str) -> Result<T, FieldsError> {
        let parsed = self.value(name).and_then(|value| value.parse().ok());
        parsed.ok_or_else(|| FieldsError::Field { name: name.to_owned() })
    }

    /// As [`Fields::parse`]; `None` when it is missing.
    ///
    /// # Errors
    /// When it is there and not understood.
    pub fn parse_some<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, FieldsError> {
        self.value(name).map(|_| self.parse(name)).transpose()
    }

    /// The bytes of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut text = HEAD.to_owned();
        for (name, value) in &self.0 {
            escape(&mut text, name, true);
            text.push(' ');
            escape(&mut text, value, false);
            text.push('\n');
        }
        let sum = crc32fast::hash(text.as_bytes());
        // A string takes everything.
        let _never = writeln!(text, "{SUM}{sum:08x}");
        text.into_bytes()
    }

    /// The fields of a file.
    ///
    /// # Errors
    /// When the file is not whole or not ours.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FieldsError> {
        let text = str::from_utf8(bytes).map_err(|_| FieldsError::Foreign)?;
        if !text.starts_with(HEAD) {
            return Err(FieldsError::Foreign);
        }
        let body = text.trim_end_matches('\n');
        let at = body.rfind('\n').map_or(0, |at| at + 1);
        let (covered, last) = (&text[..at], &body[at..]);
        let computed = crc32fast::hash(covered.as_bytes());
        let stored = last.strip_prefix(SUM).unwrap_or_default();
        if stored != format!("{computed:08x}") {
            let stored = last.chars().take(32).collect();
            return Err(FieldsError::Checksum { stored, computed });
        }
        let mut fields = Self::default();
        for (index, line) in covered.lines().enumerate().skip(1) {
            let wrong = FieldsError::Line { line: index + 1 };
            let (name, value) = line.split_once(' ').ok_or_else(|| wrong.clone())?;
            let (name, value) = (unescape(name), unescape(value));
            fields.0.push((name.ok_or_else(|| wrong.clone())?, value.ok_or(wrong)?));
        }
        Ok(fields)
    }
}

/// Everything that would end a line (or a word), and the sign itself, as `%` and two digits.
fn escape(text: &mut String, value: &str, word: bool) {
    for c in value.chars() {
        match c {
            '%' | '\0'..='\x1F' | '\x7F' | ' ' if c != ' ' || word => {
                let _never = write!(text, "%{:02x}", u32::from(c));
            }
            other => text.push(other),
        }
    }
}

fn unescape(value: &str) -> Option<String> {
    let mut parts = value.split('%');
    let mut text = parts.next()?.to_owned();
    for part in parts {
        let (code, rest) = (part.get(..2)?, part.get(2..)?);
        text.push(char::from(u8::from_str_radix(code, 16).ok()?));
        text.push_str(rest);
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::{Fields, FieldsError};

    fn sample() -> Fields {
        let mut fields = Fields::default();
        fields.add("label", "a disk, 100 %\nof two lines\u{e9}");
        fields.add("empty", "");
        fields.add("user.two words", "a b");
        fields.add("number", 7);
        fields
    }

    #[test]
    fn fields_survive_the_way_to_bytes_and_back() {
        let fields = Fields::from_bytes(&sample().to_bytes()).unwrap();
        assert_eq!(fields, sample());
        assert_eq!(fields.parse::<u32>("number"), Ok(7));
        assert!(fields.parse::<u32>("label").is_err());
        assert_eq!(fields.parse_some::<u32>("none"), Ok(None));
    }

    #[test]
    fn a_file_that_is_cut_or_changed_is_refused_whole() {
        let bytes = sample().to_bytes();
        for len in 0..bytes.len() - 1 {
            assert!(Fields::from_bytes(&bytes[..len]).is_err(), "{len} bytes");
        }
        for at in 0..bytes.len() - 1 {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(Fields::from_bytes(&changed).is_err(), "byte {at}");
        }
        assert_eq!(Fields::from_bytes(b"PK"), Err(FieldsError::Foreign));
    }
}

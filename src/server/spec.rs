//! What an export is to be: the image behind it, which part of it, and who may do what with it.
//!
//! One line of text says all of it, on the command line and on the admin socket:
//! `name=root,image=disk.vhd,partition=1,read-only`. Refuses words it does not know, and two
//! answers to one question.

use std::num::NonZeroU64;
use std::path::PathBuf;

use crate::engine::units::{ByteLen, DiskOffset};
use crate::image::{Format, OpenOptions};
use crate::meter::Rates;
use crate::tls::Rule;

/// Which bytes of a disk an export shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// From here on, so many; `None` for all that follow.
    Window {
        /// The first byte.
        at: DiskOffset,
        /// How many.
        size: Option<ByteLen>,
    },
    /// The partition of this number, as the kernel counts.
    Partition(u32),
}

impl Part {
    /// The whole disk.
    pub const WHOLE: Self = Self::Window { at: DiskOffset::new(0), size: None };
}

/// An export that is asked for.
#[derive(Clone, Debug)]
pub struct ExportSpec {
    /// The name clients ask for.
    pub name: String,
    /// The image, and how it is opened.
    pub image: OpenOptions,
    /// Text for people; the image's file name when `None`.
    pub description: Option<String>,
    /// Which part of the disk.
    pub part: Part,
    /// Where the throwaway layer over the image lives, if there is to be one.
    pub overlay: Option<PathBuf>,
    /// Whether it may be used without TLS although the server has credentials.
    pub plaintext: bool,
    /// Whose certificates (or keys) may use it; empty for everyone's.
    pub allow: Vec<Rule>,
    /// What its clients may do in a second, together.
    pub rates: Rates,
    /// Its connections; the server's number when `None`.
    pub max_connections: Option<usize>,
    /// Whether clients may change its size (the protocol's experimental RESIZE).
    pub resize: bool,
}

impl ExportSpec {
    /// An export of a whole image with nothing special about it.
    #[must_use]
    pub fn new(name: String, image: OpenOptions) -> Self {
        Self {
            name,
            image,
            description: None,
            part: Part::WHOLE,
            overlay: None,
            plaintext: false,
            allow: Vec::new(),
            rates: Rates::default(),
            max_connections: None,
            resize: false,
        }
    }

    /// Reads a line. What it does not say is taken from `usual`, whose name and image are not used.
    ///
    /// # Errors
    /// The word that makes no sense, why, and what would.
    pub fn parse(text: &str, usual: &Self) -> Result<Self, String> {
        let mut spec = usual.clone();
        let mut name = None;
        let mut image = None;
        let mut said: Vec<String> = Vec::new();
        for word in split(text) {
            let (key, value) = match word.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (word.as_str(), None),
            };
            // Several rules are one list; anything else has one answer.
            if key != "allow" && said.iter().any(|other| other == key) {
                return Err(format!("{key:?} is said twice"));
            }
            said.push(key.to_owned());
            match (key, value) {
                ("name", Some(value)) => name = Some(value.to_owned()),
                ("image", Some(value)) => image = Some(PathBuf::from(value)),
                _ => spec.word(key, value)?,
            }
        }
        let windowed = said.iter().any(|key| key == "offset" || key == "size");
        if windowed && said.iter().any(|key| key == "partition") {
            return Err("a partition has its own offset and size: say one or the other".to_owned());
        }
        spec.image.path = image.ok_or("no image: say image=PATH")?;
        let file_name = || spec.image.path.file_name().map(|n| n.to_string_lossy().into_owned());
        spec.name = name.or_else(file_name).unwrap_or_default();
        Ok(spec)
    }

    fn word(&mut self, key: &str, value: Option<&str>) -> Result<(), String> {
        let missing = || format!("{key:?} needs a value: {key}=...");
        let needed = || value.ok_or_else(missing);
        match (key, value) {
            ("description", _) => self.description = Some(needed()?.to_owned()),
            ("format", _) => self.image.format = Some(format_of(needed()?)?),
            ("read-only" | "ro", None) => self.image.read_only = true,
            ("offset", _) => {
                let at = DiskOffset::new(bytes(key, needed()?)?);
                self.part = Part::Window { at, size: self.window().1 };
            }
            ("size", _) => {
                let size = Some(ByteLen::new(bytes(key, needed()?)?));
                self.part = Part::Window { at: self.window().0, size };
            }
            ("partition", _) => self.part = Part::Partition(number(key, needed()?)?),
            ("overlay", _) => {
                self.overlay = Some(value.map_or_else(crate::image::default_place, PathBuf::from));
            }
            ("tls", Some("required")) => self.plaintext = false,
            ("tls", Some("optional")) => self.plaintext = true,
            ("allow", _) => {
                let rule: Rule = needed()?.parse().map_err(|why| format!("allow: {why}"))?;
                self.allow.push(rule);
            }
            ("bps", _) => self.rates.bytes_per_s = NonZeroU64::new(bytes(key, needed()?)?),
            ("iops", _) => self.rates.ops_per_s = NonZeroU64::new(bytes(key, needed()?)?),
            ("max-connections", _) => {
                let count: u32 = number(key, needed()?)?;
                if count == 0 {
                    return Err("max-connections=0 would let nobody in".to_owned());
                }
                self.max_connections = Some(count as usize);
            }
            ("resize", None) => self.resize = true,
            _ => return Err(unknown(key, value)),
        }
        Ok(())
    }

    fn window(&self) -> (DiskOffset, Option<ByteLen>) {
        match self.part {
            Part::Window { at, size } => (at, size),
            Part::Partition(_) => (DiskOffset::new(0), None),
        }
    }
}

/// What can be said of an export, for the text of errors and help.
pub const WORDS: &str = "name=, image=, description=, format=raw|vhd, read-only, offset=, size=, \
    partition=, overlay[=DIR], tls=required|optional, allow=WHO (repeatable), bps=, iops=, \
    max-connections=, resize";

fn unknown(key: &str, value: Option<&str>) -> String {
    match value {
        Some(value) => format!("{key}={value} means nothing here; possible are: {WORDS}"),
        None => format!("{key:?} means nothing here; possible are: {WORDS}"),
    }
}

/// Splits at commas; two commas stand for one that is meant (as QEMU's options do).
fn split(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(letter) = rest.next() {
        let last = words.last_mut().expect("there is always one");
        if letter != ',' {
            last.push(letter);
        } else if rest.next_if_eq(&',').is_some() {
            last.push(',');
        } else {
            words.push(String::new());
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

fn format_of(value: &str) -> Result<Format, String> {
    match value {
        "raw" => Ok(Format::Raw),
        "vhd" => Ok(Format::Vhd),
        _ => Err(format!("format={value}: the formats are raw and vhd")),
    }
}

fn number(key: &str, value: &str) -> Result<u32, String> {
    value.parse().map_err(|_| format!("{key}={value} is no whole number"))
}

/// A number of bytes (or operations), with an optional unit of 1024 or 1000.
fn bytes(key: &str, value: &str) -> Result<u64, String> {
    let size = crate::size::parse_bytes(value).map_err(|why| format!("{key}: {why}"))?;
    Ok(size.get())
}

#[cfg(test)]
mod tests {
    use super::{ExportSpec, Part, split};
    use crate::engine::units::{ByteLen, DiskOffset};
    use crate::image::OpenOptions;

    fn parse(text: &str) -> Result<ExportSpec, String> {
        ExportSpec::parse(text, &ExportSpec::new(String::new(), OpenOptions::new("")))
    }

    #[test]
    fn a_comma_in_a_name_is_said_twice() {
        assert_eq!(split("a,b=c"), ["a", "b=c"]);
        assert_eq!(split("image=a,,b.vhd,read-only"), ["image=a,b.vhd", "read-only"]);
        assert_eq!(split(""), Vec::<String>::new());
    }

    #[test]
    fn a_line_says_all_of_an_export() {
        let text = "name=root,image=/x/disk.vhd,description=the root,read-only,offset=1M,size=512";
        let spec = parse(text).expect("it is right");
        assert_eq!(spec.name, "root");
        assert_eq!(spec.image.path.to_str(), Some("/x/disk.vhd"));
        assert!(spec.image.read_only);
        let (at, size) = (DiskOffset::new(1 << 20), Some(ByteLen::new(512)));
        assert_eq!(spec.part, Part::Window { at, size });
        let spec = parse("image=b.raw,partition=2,bps=10M,iops=100,max-connections=3,tls=optional");
        let spec = spec.expect("it is right");
        assert_eq!((spec.name.as_str(), spec.part), ("b.raw", Part::Partition(2)));
        assert_eq!(spec.rates.bytes_per_s.map(u64::from), Some(10 << 20));
        assert_eq!((spec.max_connections, spec.plaintext), (Some(3), true));
    }

    #[test]
    fn errors_name_the_word_and_what_would_do() {
        for (text, about) in [
            ("name=x", "no image"),
            ("image=a,image=b", "said twice"),
            ("image=a,partition=1,offset=5", "say one or the other"),
            ("image=a,colour=red", "colour=red means nothing"),
            ("image=a,offset", "needs a value"),
            ("image=a,format=qcow2", "raw and vhd"),
            ("image=a,partition=x", "no whole number"),
            ("image=a,bps=fast", "bps"),
            ("image=a,max-connections=0", "nobody"),
        ] {
            let told = parse(text).expect_err(text);
            assert!(told.contains(about), "{text}: {told}");
        }
    }
}

//! What the small files and extended attributes of an attached VDI say: those of any mounted image,
//! and which VDI it is; or, where it could not be attached, what is wrong with which image.

use std::fmt::Write as _;
use std::sync::Arc;

use orlop_fuse::{Errno, Fact, Text};
use serde_json::{Value, json};

use crate::image::ImageError;
use crate::mount::{ImageAbout, facts_of_failure};
use crate::sr::{DataFile, DataPlace, Failure, SrUuid, VdiUuid};
use crate::transport::files::About;

/// Version of the JSON of a broken VDI. A key may be added without raising it.
const SCHEMA_VERSION: u32 = 1;

/// Which VDI it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) sr: SrUuid,
    pub(super) vdi: VdiUuid,
}

impl Key {
    fn facts(self) -> [Fact; 2] {
        let fact = |key: &str, value: String| Fact { key: key.to_owned(), value: value.into() };
        [fact("sr", self.sr.to_string()), fact("vdi", self.vdi.to_string())]
    }

    fn tell(self, info: &mut Value) {
        info["sr"] = json!(self.sr.to_string());
        info["vdi"] = json!(self.vdi.to_string());
    }
}

/// A VDI that is served.
pub(super) struct ServedAbout {
    pub(super) key: Key,
    pub(super) image: Arc<ImageAbout>,
}

impl About for ServedAbout {
    fn text(&self, which: Text) -> Result<Vec<u8>, Errno> {
        if which != Text::Info {
            return self.image.text(which);
        }
        let mut info = self.image.info();
        self.key.tell(&mut info);
        Ok(format!("{info:#}\n").into_bytes())
    }

    fn facts(&self) -> Vec<Fact> {
        self.key.facts().into_iter().chain(self.image.facts()).collect()
    }
}

/// A VDI that could not be attached.
pub(super) struct BrokenAbout {
    key: Key,
    error: String,
    hint: String,
    facts: Vec<Fact>,
    /// The images it should be made of, its own first.
    images: Vec<String>,
}

impl BrokenAbout {
    /// Of a VDI that should be made of these images, its own first.
    pub(super) fn new(key: Key, files: &[DataFile], error: &ImageError) -> Self {
        let (facts, hint) = (facts_of_failure(error), error.hint());
        Self { key, error: error.to_string(), hint, facts, images: images(files) }
    }

    /// Of a VDI whose images open, and make no disk all the same.
    pub(super) fn of_failure(key: Key, files: &[DataFile], failure: &Failure) -> Self {
        let fact = |key: &str, value: &str| Fact { key: key.to_owned(), value: value.into() };
        let images = images(files);
        let layer = images.first().map(|layer| fact("error.layer", layer));
        let facts = [fact("error", &failure.why), fact("error.code", "unusable")];
        let facts = facts.into_iter().chain(layer).collect();
        let (error, hint) = (failure.why.clone(), failure.remedy.clone());
        Self { key, error, hint, facts, images }
    }

    /// What its attributes say of the failure.
    fn fact(&self, key: &str) -> Option<String> {
        let fact = self.facts.iter().find(|fact| fact.key == key)?;
        Some(String::from_utf8_lossy(&fact.value).into_owned())
    }

    fn chain(&self) -> String {
        let (layer, path) = (self.fact("error.layer"), self.fact("error.path"));
        let mut text = String::new();
        for image in &self.images {
            let here = if Some(image) == layer.as_ref() {
                format!("  <- {}", self.error)
            } else if Some(image) == path.as_ref() {
                "  <- this one".to_owned()
            } else {
                String::new()
            };
            // Memory takes all that is written.
            let _ = writeln!(text, "{image}{here}");
        }
        if let Some(path) = path.filter(|path| !self.images.contains(path)) {
            let _ = writeln!(text, "{path}  <- this one");
        }
        for (name, key) in [("expected", "error.expected"), ("found", "error.found")] {
            if let Some(uuid) = self.fact(key) {
                let _ = writeln!(text, "{name}: {uuid}");
            }
        }
        text
    }

    fn info(&self) -> Value {
        let mut info = json!({
            "schema_version": SCHEMA_VERSION,
            "error": self.error,
            "hint": self.hint,
            "images": self.images,
        });
        for key in ["code", "layer", "path", "expected", "found"] {
            if let Some(value) = self.fact(&format!("error.{key}")) {
                info[format!("error_{key}")] = json!(value);
            }
        }
        self.key.tell(&mut info);
        info
    }
}

fn images(files: &[DataFile]) -> Vec<String> {
    let place = |file: &DataFile| match &file.place {
        DataPlace::Path(path) => path.to_string_lossy().into_owned(),
        _ => format!("VDI {}", file.vdi),
    };
    files.iter().map(place).collect()
}

impl About for BrokenAbout {
    fn text(&self, which: Text) -> Result<Vec<u8>, Errno> {
        let text = match which {
            Text::Info => format!("{:#}\n", self.info()),
            Text::Stats => format!("{:#}\n", json!({ "schema_version": SCHEMA_VERSION })),
            Text::Chain => self.chain(),
            Text::Status => format!("broken: {}\n", self.error.replace('\n', " ")),
        };
        Ok(text.into_bytes())
    }

    fn facts(&self) -> Vec<Fact> {
        self.key.facts().into_iter().chain(self.facts.iter().cloned()).collect()
    }
}

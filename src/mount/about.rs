//! What the small files and the extended attributes of a mounted image say.
//!
//! All of it is known when the image is opened, or counted in memory: no answer waits for anything.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use orlop_fuse::{Errno, Fact, Text};
use serde_json::{Value, json};
use uuid::Uuid;
use vhd::DiskKind;

use crate::admin;
use crate::image::{Cause, GateError, ImageError, OpenedLayer};
use crate::meter::{Meter, Op, Snapshot};
use crate::server::Seat;
use crate::transport::files::About;

/// Version of the JSON here. A key may be added without raising it.
const SCHEMA_VERSION: u32 = 1;

/// One image of a chain.
#[derive(Clone, Debug)]
struct LayerFacts {
    path: PathBuf,
    format: &'static str,
    uuid: Option<Uuid>,
    parent: Option<String>,
    size_bytes: u64,
}

impl LayerFacts {
    fn of(layer: &OpenedLayer) -> Self {
        let image = layer.content.vhd();
        let format = match image.map(|image| image.footer.kind) {
            None => "raw",
            Some(DiskKind::Fixed) => "vhd (fixed)",
            Some(DiskKind::Dynamic) => "vhd (dynamic)",
            Some(DiskKind::Differencing) => "vhd (differencing)",
        };
        let parent = image.and_then(vhd::Image::sparse).and_then(|sparse| sparse.parent.as_ref());
        Self {
            path: layer.path.clone(),
            format,
            uuid: image.map(|image| Uuid::from_bytes(image.footer.uuid)),
            parent: parent.map(|parent| parent.name.clone()),
            size_bytes: layer.content.size().get(),
        }
    }

    fn line(&self) -> String {
        let Self { path, format, size_bytes, .. } = self;
        let uuid = self.uuid.map(|uuid| format!(", uuid {uuid}")).unwrap_or_default();
        let parent = self.parent.as_ref().map(|name| format!(", parent {name:?}"));
        let parent = parent.unwrap_or_default();
        format!("{}: {format}, {size_bytes} bytes{uuid}{parent}\n", path.display())
    }

    fn as_json(&self) -> Value {
        json!({
            "path": self.path.to_string_lossy(),
            "format": self.format,
            "uuid": self.uuid.map(|uuid| uuid.to_string()),
            "parent": self.parent,
            "size": self.size_bytes,
        })
    }
}

/// What is known of an image once it is open.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    /// The image that was named, and its parents.
    layers: Vec<LayerFacts>,
    /// For people.
    text: String,
}

impl Chain {
    /// Of the opened layers, an overlay not counted.
    pub(super) fn of(layers: &[OpenedLayer], describe: fn(&OpenedLayer) -> String) -> Self {
        let texts: Vec<String> = layers.iter().map(describe).collect();
        Self { layers: layers.iter().map(LayerFacts::of).collect(), text: texts.join("\n") }
    }

    /// The same, a line for each layer.
    pub(crate) fn in_lines(layers: &[OpenedLayer]) -> Self {
        Self::of_facts(layers.iter().map(LayerFacts::of).collect())
    }

    fn of_facts(layers: Vec<LayerFacts>) -> Self {
        let text = layers.iter().map(LayerFacts::line).collect();
        Self { layers, text }
    }

    /// The chain once this leaf lies over it, and its old top is called `path`.
    pub(crate) fn under(&self, leaf: &OpenedLayer, path: PathBuf) -> Self {
        let mut layers = self.layers.clone();
        if let Some(old) = layers.first_mut() {
            old.path = path;
        }
        layers.insert(0, LayerFacts::of(leaf));
        Self::of_facts(layers)
    }
}

/// How the bytes come and go, and why so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) name: &'static str,
    pub(crate) why: String,
}

/// What was made with the mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Made {
    pub(crate) loop_device: Option<PathBuf>,
    pub(crate) file_system: Option<PathBuf>,
}

/// A mounted image, as its files tell it.
pub(crate) struct ImageAbout {
    pub(crate) chain: Chain,
    pub(crate) seat: Arc<Seat>,
    /// What came through the mount alone.
    pub(crate) meter: Arc<Meter>,
    pub(crate) overlay: Option<PathBuf>,
    pub(crate) partition: Option<u32>,
    /// Why it is read-only although nobody asked for that.
    pub(crate) read_only_because: Option<String>,
    pub(crate) nbd: Option<String>,
    pub(crate) way: OnceLock<Way>,
    pub(crate) made: OnceLock<Made>,
    pub(crate) since: Instant,
}

impl ImageAbout {
    /// The same, counting on where this one counts.
    pub(crate) fn again(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            seat: Arc::clone(&self.seat),
            meter: Arc::clone(&self.meter),
            overlay: self.overlay.clone(),
            partition: self.partition,
            read_only_because: self.read_only_because.clone(),
            nbd: self.nbd.clone(),
            way: self.way.clone(),
            made: self.made.clone(),
            since: self.since,
        }
    }

    pub(crate) fn info(&self) -> Value {
        let top = self.chain.layers.first();
        let made = self.made.get();
        let shown = |path: Option<&PathBuf>| path.map(|path| path.to_string_lossy().into_owned());
        json!({
            "schema_version": SCHEMA_VERSION,
            "path": top.map(|top| top.path.to_string_lossy()),
            "format": top.map(|top| top.format),
            "uuid": top.and_then(|top| top.uuid).map(|uuid| uuid.to_string()),
            "size": self.seat.extent().len.get(),
            "offset": self.seat.extent().at.get(),
            "partition": self.partition,
            "read_only": self.seat.read_only,
            "read_only_because": self.read_only_because,
            "overlay": shown(self.overlay.as_ref()),
            "layers": self.chain.layers.iter().map(LayerFacts::as_json).collect::<Value>(),
            "transport": self.way.get().map(|way| way.name),
            "transport_because": self.way.get().map(|way| way.why.as_str()),
            "nbd": self.nbd,
            "loop_device": shown(made.and_then(|made| made.loop_device.as_ref())),
            "file_system": shown(made.and_then(|made| made.file_system.as_ref())),
            "pid": std::process::id(),
            "pid_started": started(std::process::id()),
        })
    }

    pub(crate) fn stats(&self) -> Value {
        json!({
            "schema_version": SCHEMA_VERSION,
            "seconds": self.since.elapsed().as_secs(),
            "mount": admin::counters(&self.meter.snapshot()),
            "nbd": admin::counters(&self.seat.meter.snapshot()),
            "nbd_connections": self.seat.connections().len(),
        })
    }

    /// One line: whether it is well.
    pub(crate) fn status(&self) -> String {
        let failed = failures(&self.seat.meter.snapshot()) + failures(&self.meter.snapshot());
        let mode = match (self.seat.read_only, &self.overlay) {
            (true, _) => "read-only",
            (false, None) => "read-write",
            (false, Some(_)) => "read-write (in an overlay)",
        };
        match (failed, &self.read_only_because) {
            (0, None) => format!("ok, {mode}\n"),
            (0, Some(why)) => format!("ok, {mode}: {why}\n"),
            (failed, _) => format!("{failed} requests failed, {mode}; see stats.json\n"),
        }
    }
}

fn failures(snapshot: &Snapshot) -> u64 {
    Op::ALL.into_iter().map(|op| snapshot.op(op).errors).fold(0, u64::saturating_add)
}

impl About for ImageAbout {
    fn text(&self, which: Text) -> Result<Vec<u8>, Errno> {
        Ok(match which {
            Text::Info => format!("{:#}\n", self.info()),
            Text::Stats => format!("{:#}\n", self.stats()),
            Text::Chain => self.chain.text.clone(),
            Text::Status => self.status(),
        }
        .into_bytes())
    }

    fn facts(&self) -> Vec<Fact> {
        let mut facts = Vec::new();
        let Some(top) = self.chain.layers.first() else { return facts };
        facts.push(fact("path", &top.path));
        facts.push(fact("format", top.format));
        facts.extend(top.uuid.map(|uuid| fact("uuid", uuid.to_string())));
        facts.extend(top.parent.as_ref().map(|parent| fact("parent", parent)));
        facts.push(fact("layers", self.chain.layers.len().to_string()));
        facts.push(fact("read_only", self.seat.read_only.to_string()));
        facts.extend(self.way.get().map(|way| fact("transport", way.name)));
        facts
    }
}

fn fact(key: &str, value: impl AsRef<std::ffi::OsStr>) -> Fact {
    Fact { key: key.to_owned(), value: value.as_ref().as_encoded_bytes().to_vec() }
}

/// What extended attributes say of an image that does not open: which layer, where, and for a
/// parent that is another image the two identities.
#[must_use]
pub fn facts_of_failure(error: &ImageError) -> Vec<Fact> {
    let mut facts = vec![fact("error", error.to_string()), fact("error.code", error.code())];
    facts.push(fact("error.layer", &error.path));
    let Cause::Parent(gate) = &error.cause else { return facts };
    let path: Option<&Path> = match gate {
        GateError::Missing { tried, .. } => tried.first().map(PathBuf::as_path),
        GateError::Identity { path, expected, found } => {
            let text = |uuid: &[u8; 16]| Uuid::from_bytes(*uuid).to_string();
            facts.push(fact("error.expected", text(expected)));
            facts.push(fact("error.found", text(found)));
            Some(path)
        }
        GateError::Outside { path }
        | GateError::Symlink { path }
        | GateError::NotRegular { path, .. }
        | GateError::Cycle { path }
        | GateError::RawRefused { path }
        | GateError::Io { path, .. } => Some(path),
        GateError::Absolute { .. } | GateError::Itself | GateError::TooDeep { .. } => None,
    };
    facts.extend(path.map(|path| fact("error.path", path)));
    facts
}

/// When a process was started, in clock ticks since the machine was; with its number it names a
/// process for ever. `None` where there is no such process.
pub(super) fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the 20th field behind it is the time (proc(5)).
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{facts_of_failure, started};
    use crate::image::{Cause, GateError, ImageError};

    #[test]
    fn a_wrong_parent_is_told_with_both_identities() {
        let cause = Cause::Parent(GateError::Identity {
            path: PathBuf::from("/x/base.vhd"),
            expected: [0x11; 16],
            found: [0x22; 16],
        });
        let error = ImageError { path: PathBuf::from("/x/child.vhd"), needed_by: None, cause };
        let facts = facts_of_failure(&error);
        let value = |key: &str| {
            let fact = facts.iter().find(|fact| fact.key == key).expect(key);
            String::from_utf8(fact.value.clone()).unwrap()
        };
        assert_eq!(value("error.code"), "parent-identity");
        assert_eq!(value("error.layer"), "/x/child.vhd");
        assert_eq!(value("error.path"), "/x/base.vhd");
        assert_eq!(value("error.expected"), "11111111-1111-1111-1111-111111111111");
        assert_eq!(value("error.found"), "22222222-2222-2222-2222-222222222222");
    }

    #[test]
    fn a_process_has_one_start() {
        assert!(started(std::process::id()).is_some());
        assert_eq!(started(u32::MAX), None);
    }
}

//! What a repository and its daemon are like, so that two of them can be compared.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use orlop::api::client::{CallError, call};
use orlop::engine::units::DiskOffset;
use orlop::sr::{DataFormat, Directory, Named, OfflineDisk, Store, VdiUuid};
use serde_json::{Value, json};

/// An SR as a caller sees it, with what every disk begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) vdis: BTreeMap<String, BTreeMap<&'static str, String>>,
    hidden: usize,
    attached: BTreeSet<String>,
}

pub(crate) fn vdi(number: u8) -> VdiUuid {
    VdiUuid::from_bytes([number; 16])
}

/// Calls a verb that must succeed.
pub(crate) fn done(socket: &Path, method: &str, params: Value) -> Value {
    let shown = format!("{method} {params}");
    call(socket, method, params).unwrap_or_else(|error| panic!("{shown}: {error}"))
}

/// Whether a call failed because nobody is there any more.
pub(crate) fn is_gone(error: &CallError) -> bool {
    matches!(error, CallError::Client(_))
}

/// Opens a disk of a directory that nobody changes now.
pub(crate) fn disk(place: &Path, scan: &Value, uuid: &str, write: bool) -> OfflineDisk {
    let all: Vec<&Value> =
        ["vdis", "hidden"].into_iter().flat_map(|key| scan[key].as_array().unwrap()).collect();
    let mut chain = Vec::new();
    let mut next = Some(uuid.to_owned());
    while let Some(uuid) = next {
        let link = all.iter().find(|vdi| vdi["uuid"] == json!(uuid)).unwrap();
        let format = DataFormat::of_ending(link["format"].as_str().unwrap()).unwrap();
        chain.push((format!("{uuid}.{format}"), format));
        next = link["parent"].as_str().map(str::to_owned);
    }
    let store: Arc<dyn Store> = Arc::new(Directory::open(place).unwrap());
    OfflineDisk::open(store, &chain, !write).unwrap()
}

pub(crate) fn first_sector(place: &Path, scan: &Value, uuid: &str) -> Vec<u8> {
    disk(place, scan, uuid, false).read(DiskOffset::new(0), 512).unwrap()
}

/// Files of a directory that belong to nothing.
pub(crate) fn orphans(place: &Path, scan: &Value) -> Vec<String> {
    let known: BTreeSet<&str> = ["vdis", "hidden"]
        .into_iter()
        .flat_map(|key| scan[key].as_array().unwrap())
        .map(|vdi| vdi["uuid"].as_str().unwrap())
        .collect();
    let names = std::fs::read_dir(place).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let belongs = |name: &String| match Named::of(name) {
        Named::Sr => true,
        Named::Data(uuid, _) | Named::Record(uuid) | Named::Lease(uuid) => {
            known.contains(uuid.to_string().as_str())
        }
        _ => false,
    };
    names.filter(|name| !belongs(name)).collect()
}

impl Seen {
    /// Looks at a daemon that nobody else asks now.
    pub(crate) fn at(socket: &Path, sr: &str, place: &Path) -> Self {
        let srs = done(socket, "sr_list", json!({}));
        let attached = srs["srs"].as_array().unwrap();
        let attached = attached
            .iter()
            .flat_map(|sr| std::iter::once(&sr["sr"]).chain(sr["vdis"].as_array().unwrap()))
            .map(|uuid| uuid.as_str().unwrap().to_owned())
            .collect();
        if !srs["srs"].as_array().unwrap().iter().any(|found| found["sr"] == json!(sr)) {
            return Self { vdis: BTreeMap::new(), hidden: 0, attached };
        }
        let scan = done(socket, "sr_scan", json!({ "sr": sr }));
        assert_eq!(scan["findings"], json!([]));
        assert_eq!(orphans(place, &scan), Vec::<String>::new());
        let visible: BTreeSet<&str> = scan["vdis"]
            .as_array()
            .unwrap()
            .iter()
            .map(|vdi| vdi["uuid"].as_str().unwrap())
            .collect();
        let mut vdis = BTreeMap::new();
        for vdi in scan["vdis"].as_array().unwrap() {
            let uuid = vdi["uuid"].as_str().unwrap();
            let mut facts: BTreeMap<&str, String> =
                ["size", "label", "read_only", "format", "locked", "snapshot_of"]
                    .map(|key| (key, vdi[key].to_string()))
                    .into();
            // A base has a fresh identity each time.
            let parent = vdi["parent"].as_str().map(|parent| {
                if visible.contains(parent) { parent.to_owned() } else { "hidden".to_owned() }
            });
            facts.insert("parent", parent.unwrap_or_default());
            let bytes = first_sector(place, &scan, uuid);
            assert!(bytes.iter().all(|byte| *byte == bytes[0]), "{uuid} begins with a torn sector");
            facts.insert("mark", bytes[0].to_string());
            vdis.insert(uuid.to_owned(), facts);
        }
        Self { vdis, hidden: scan["hidden"].as_array().unwrap().len(), attached }
    }
}

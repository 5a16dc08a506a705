//! What `orlop sr` and `orlop vdi` have in common: where the daemon answers, what its errors mean
//! to a shell, and which SR or VDI a word stands for.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::output::{Exit, Failure, SCHEMA_VERSION};
use super::table::printable;
use crate::api::client::{self, CallError, ClientError};
use crate::sr::VdiUuid;

/// Where the daemon answers when nobody says.
const USUAL_SOCKET: &str = "/run/orlop/api.sock";
/// Says it for a whole shell.
const SOCKET_VARIABLE: &str = "ORLOP_SOCKET";
/// Characters of a whole uuid.
const UUID_LEN: usize = 36;
/// Most names of others that an error lists.
const LISTED_MAX: usize = 8;

/// How the daemon is asked, and how its answers are shown.
#[derive(Args, Clone, Debug)]
pub(super) struct AskOptions {
    /// The daemon's socket [default: $ORLOP_SOCKET, or /run/orlop/api.sock]
    #[arg(long, value_name = "PATH", global = true)]
    socket: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Print exact sizes, in bytes
    #[arg(long, global = true)]
    pub(super) bytes: bool,
}

/// Where the daemon answers: what was said, or what the environment says, or the usual place.
pub(super) fn socket(said: Option<&Path>) -> PathBuf {
    let set = || std::env::var_os(SOCKET_VARIABLE).filter(|set| !set.is_empty());
    let chosen = said.map(Path::to_owned).or_else(|| set().map(PathBuf::from));
    chosen.unwrap_or_else(|| USUAL_SOCKET.into())
}

impl AskOptions {
    /// Has the daemon do something.
    pub(super) fn call(&self, method: &str, params: Value) -> Result<Value, Failure> {
        let place = socket(self.socket.as_deref());
        client::call(&place, method, params).map_err(|error| failure(&place, error))
    }

    /// Has the daemon do something, and understands the answer.
    pub(super) fn ask<T: DeserializeOwned>(
        &self,
        method: &str,
        params: Value,
    ) -> Result<T, Failure> {
        let answer = self.call(method, params)?;
        serde_json::from_value(answer).map_err(|error| {
            let text = format!("the daemon's answer to {method} makes no sense: {error}");
            let hint = "is it the daemon of another version?".to_owned();
            Failure::new(Exit::Failed, "strange-answer", text, hint)
        })
    }

    /// The SRs that are attached.
    pub(super) fn srs(&self) -> Result<Vec<Sr>, Failure> {
        Ok(self.ask::<Srs>("sr_list", json!({}))?.srs)
    }

    /// What an SR holds.
    pub(super) fn scan(&self, sr: &str) -> Result<Scan, Failure> {
        self.ask("sr_scan", json!({ "sr": sr }))
    }

    /// The SR that a word stands for, which is attached.
    pub(super) fn sr(&self, word: &str) -> Result<Sr, Failure> {
        let srs = self.srs()?;
        let named =
            srs.iter().map(|sr| Named { uuid: &sr.sr, label: &sr.label, is_snapshot: false });
        let found = choose("SR", word, &named.collect::<Vec<_>>())?;
        match srs.into_iter().nth(found.unwrap_or(usize::MAX)) {
            Some(sr) => Ok(sr),
            None => Err(unknown("SR", word, "'orlop sr list' shows those that are attached")),
        }
    }

    /// The SR that a word stands for, or the only one there is.
    pub(super) fn sr_or_only(&self, word: Option<&str>) -> Result<Sr, Failure> {
        if let Some(word) = word {
            return self.sr(word);
        }
        let mut srs = self.srs()?;
        match (srs.pop(), srs.is_empty()) {
            (Some(only), true) => Ok(only),
            (None, _) => {
                let hint = "attach one: orlop sr attach, or make one: orlop sr create".to_owned();
                let text = "no SR is attached".to_owned();
                Err(Failure::new(Exit::NotFound, "not-found", text, hint))
            }
            (Some(_), false) => {
                Err(Failure::usage("several SRs are attached", "say which one with --sr"))
            }
        }
    }

    /// The SR and the uuid of the VDI that a word stands for. A whole uuid needs no scan where it
    /// can only be of one SR.
    pub(super) fn place_of(&self, sr: Option<&str>, word: &str) -> Result<(Sr, String), Failure> {
        if let Ok(uuid) = word.parse::<VdiUuid>() {
            let uuid = uuid.to_string();
            let mut srs = match sr {
                Some(sr) => vec![self.sr(sr)?],
                None => self.srs()?,
            };
            let only = srs.len() == 1;
            let at = srs.iter().position(|sr| only || sr.vdis.contains(&uuid));
            if let Some(at) = at {
                return Ok((srs.swap_remove(at), uuid));
            }
            // One that is broken is in its SR all the same, which says more about it.
            for sr in srs {
                let scan = self.scan(&sr.sr)?;
                if scan.vdis.iter().any(|vdi| vdi.uuid == uuid) || scan.broken(&uuid).is_some() {
                    return Ok((sr, uuid));
                }
            }
        }
        self.vdi(sr, word).map(|found| (found.sr, found.vdi.uuid))
    }

    /// The VDI that a word stands for, in this SR or in any that is attached.
    pub(super) fn vdi(&self, sr: Option<&str>, word: &str) -> Result<Found, Failure> {
        let srs = match sr {
            Some(sr) => vec![self.sr(sr)?],
            None => self.srs()?,
        };
        let (mut all, mut broken) = (Vec::new(), None);
        for sr in srs {
            let scan = self.scan(&sr.sr)?;
            broken = broken.or_else(|| scan.broken(word).cloned());
            all.extend(scan.vdis.iter().cloned().map(|vdi| {
                let children = scan.children_of(&vdi.uuid);
                Found { sr: sr.clone(), vdi, children }
            }));
        }
        let named = all.iter().map(|Found { vdi, .. }| Named {
            uuid: &vdi.uuid,
            label: &vdi.label,
            is_snapshot: vdi.snapshot_of.is_some(),
        });
        let found = choose("VDI", word, &named.collect::<Vec<_>>())?;
        match (all.into_iter().nth(found.unwrap_or(usize::MAX)), broken) {
            (Some(found), _) => Ok(found),
            (None, Some(Finding { name, problem })) => {
                let hint = "mend it, or restore it from a backup; 'orlop sr scan' lists what is \
                            broken";
                let text = format!("{name} cannot be used: {problem}");
                Err(Failure::new(Exit::Failed, "broken", text, hint.to_owned()))
            }
            (None, None) => {
                Err(unknown("VDI", word, "'orlop vdi list' shows those of attached SRs"))
            }
        }
    }
}

/// Tells people what is wrong in an SR, beside what is asked.
pub(super) fn tell_findings(scan: &Scan) {
    let mut stderr = std::io::stderr().lock();
    for Finding { name, problem } in &scan.findings {
        let (name, problem) = (printable(name), printable(problem));
        // A note nobody can read is no reason to fail.
        let _unread = writeln!(stderr, "orlop: note: SR {}: {name}: {problem}", scan.sr);
    }
}

/// An answer of ours for programs.
pub(super) fn versioned(mut answer: Value) -> Value {
    if !answer.is_object() {
        answer = json!({ "answer": answer });
    }
    answer["schema_version"] = json!(SCHEMA_VERSION);
    answer
}

/// The attached SRs.
#[derive(Debug, Deserialize)]
struct Srs {
    srs: Vec<Sr>,
}

/// An attached SR.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Sr {
    /// Its uuid.
    pub(super) sr: String,
    /// Its type.
    pub(super) driver: String,
    /// Its parameters.
    #[serde(default)]
    pub(super) config: Value,
    /// Its label.
    #[serde(default)]
    pub(super) label: String,
    /// Where it lies.
    #[serde(default)]
    pub(super) place: String,
    /// Its VDIs that are attached.
    #[serde(default)]
    pub(super) vdis: Vec<String>,
}

/// What an SR holds.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Scan {
    /// The SR.
    pub(super) sr: String,
    #[serde(default)]
    pub(super) label: String,
    #[serde(default)]
    pub(super) description: String,
    pub(super) physical_utilisation: u64,
    pub(super) virtual_allocation: u64,
    pub(super) physical_size: u64,
    pub(super) vdis: Vec<Vdi>,
    #[serde(default)]
    pub(super) hidden: Vec<Vdi>,
    #[serde(default)]
    pub(super) findings: Vec<Finding>,
}

impl Scan {
    /// What is wrong with the data file of a VDI whose uuid begins so.
    fn broken(&self, word: &str) -> Option<&Finding> {
        let lower = word.to_ascii_lowercase();
        let is_data = |name: &str| {
            let stem = name.strip_suffix(".vhd").or(name.strip_suffix(".raw"));
            stem.is_some_and(|stem| stem.parse::<VdiUuid>().is_ok())
        };
        self.findings.iter().find(|finding| {
            !lower.is_empty() && finding.name.starts_with(&lower) && is_data(&finding.name)
        })
    }

    /// Those that need the data of a VDI.
    pub(super) fn children_of(&self, vdi: &str) -> Vec<String> {
        let all = self.vdis.iter().chain(&self.hidden);
        let of_it = all.filter(|other| other.parent.as_deref() == Some(vdi));
        of_it.map(|child| child.uuid.clone()).collect()
    }
}

/// A VDI.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Vdi {
    pub(super) uuid: String,
    pub(super) size: u64,
    #[serde(default)]
    pub(super) utilisation: u64,
    #[serde(default)]
    pub(super) locked: bool,
    #[serde(default)]
    pub(super) shareable: bool,
    #[serde(default)]
    pub(super) read_only: bool,
    #[serde(default)]
    pub(super) parent: Option<String>,
    /// Files that are no VDIs and need its data.
    #[serde(default)]
    pub(super) strays: Vec<String>,
    #[serde(default)]
    pub(super) format: String,
    #[serde(default)]
    pub(super) label: String,
    #[serde(default)]
    pub(super) description: String,
    #[serde(default)]
    pub(super) snapshot_of: Option<String>,
    #[serde(default)]
    pub(super) properties: serde_json::Map<String, Value>,
}

/// Something that is wrong in an SR.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Finding {
    pub(super) name: String,
    pub(super) problem: String,
}

/// A VDI, and where it is.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) sr: Sr,
    pub(super) vdi: Vdi,
    /// Those that need its data.
    pub(super) children: Vec<String>,
}

impl Found {
    /// Whether it is attached.
    pub(super) fn attached(&self) -> bool {
        self.sr.vdis.contains(&self.vdi.uuid)
    }

    /// It and its SR, for people.
    pub(super) fn told(&self) -> String {
        if self.vdi.label.is_empty() {
            return format!("VDI {}", self.vdi.uuid);
        }
        format!("VDI {} ({:?})", self.vdi.uuid, self.vdi.label)
    }
}

/// What a word may stand for.
#[derive(Clone, Copy)]
struct Named<'a> {
    uuid: &'a str,
    label: &'a str,
    /// It was made from another, perhaps with its label.
    is_snapshot: bool,
}

/// Which of these a word stands for: a whole uuid, else the only one whose uuid begins with it or
/// whose label it is; of a VDI and its snapshots that share a label, the VDI.
fn choose(what: &str, word: &str, all: &[Named<'_>]) -> Result<Option<usize>, Failure> {
    let lower = word.to_ascii_lowercase();
    if lower.len() == UUID_LEN
        && let Some(exact) = all.iter().position(|one| one.uuid == lower)
    {
        return Ok(Some(exact));
    }
    let fits =
        |one: &Named<'_>| !word.is_empty() && (one.uuid.starts_with(&lower) || one.label == word);
    let fitting: Vec<usize> =
        all.iter().enumerate().filter(|(_, one)| fits(one)).map(|(at, _)| at).collect();
    let is_original = |at: &&usize| !all[**at].is_snapshot;
    let mut originals = fitting.iter().filter(is_original);
    let original = originals.next().filter(|_| originals.next().is_none());
    let all_labels = fitting.iter().all(|at| all[*at].label == word);
    match (fitting.as_slice(), original) {
        ([], _) => Ok(None),
        ([only], _) => Ok(Some(*only)),
        (_, Some(original)) if all_labels => Ok(Some(*original)),
        (several, _) => {
            let listed = several.iter().take(LISTED_MAX).map(|at| {
                let Named { uuid, label, .. } = all[*at];
                if label.is_empty() { uuid.to_owned() } else { format!("{uuid} ({label:?})") }
            });
            let listed = listed.collect::<Vec<_>>().join(", ");
            let more = several.len().saturating_sub(LISTED_MAX);
            let more = if more > 0 { format!(", and {more} more") } else { String::new() };
            let text = format!("{word:?} may be one of several {what}s: {listed}{more}");
            let hint = "write more of the uuid".to_owned();
            Err(Failure::new(Exit::Usage, "ambiguous", text, hint))
        }
    }
}

fn unknown(what: &str, word: &str, hint: &str) -> Failure {
    let text = format!("there is no {what} whose uuid begins with {word:?} or that has this label");
    Failure::new(Exit::NotFound, "not-found", text, hint.to_owned())
}

fn failure(socket: &Path, error: CallError) -> Failure {
    match error {
        CallError::Client(ClientError::Unreachable { error, .. }) => {
            let text = format!("no orlop daemon answers at {}: {error}", socket.display());
            let hint = match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    "become root or a member of the socket's group".to_owned()
                }
                _ => format!(
                    "start it ('systemctl start orlop', or 'orlop daemon'), or name the socket of \
                     one that runs with --socket or {SOCKET_VARIABLE}"
                ),
            };
            Failure::new(Exit::Unreachable, "unreachable", text, hint)
        }
        CallError::Client(error) => {
            Failure::new(Exit::Failed, "strange-answer", error.to_string(), String::new())
        }
        CallError::Failed { name, message, hint, .. } => {
            let (code, exit) = meaning(&name);
            let hint = hint.unwrap_or_default();
            // What to do has a line of its own here.
            let bare = message.strip_suffix(hint.as_str()).and_then(|bare| bare.strip_suffix("; "));
            let bare = bare.map(str::to_owned);
            Failure::new(exit, code, bare.unwrap_or(message), hint)
        }
    }
}

/// What the specification's error codes mean to a shell.
fn meaning(name: &str) -> (&'static str, Exit) {
    const CODES: [(&str, Exit); 9] = [
        ("EPERM", Exit::Failed),
        ("EIO", Exit::Failed),
        ("EBUSY", Exit::Busy),
        ("EEXIST", Exit::Failed),
        ("ENODEV", Exit::NotFound),
        ("EINVAL", Exit::Usage),
        ("ENOSPC", Exit::Failed),
        ("ENOLCK", Exit::Busy),
        ("ENOSYS", Exit::Unsupported),
    ];
    CODES.into_iter().find(|(code, _)| *code == name).unwrap_or(("failed", Exit::Failed))
}

#[cfg(test)]
mod tests {
    use super::{Named, choose};

    const ALL: [Named<'static>; 5] = [
        named("98de866e-b035-4b1a-a571-613bff542b89", "root", false),
        named("98de866e-b035-4b1a-a571-613bff542b8a", "data", false),
        named("1b2e6fd4-8d53-4d2c-9d5c-2c8b83eb0a11", "data", false),
        named("2c2e6fd4-8d53-4d2c-9d5c-2c8b83eb0a11", "root", true),
        named("3d2e6fd4-8d53-4d2c-9d5c-2c8b83eb0a11", "root", true),
    ];

    const fn named(uuid: &'static str, label: &'static str, is_snapshot: bool) -> Named<'static> {
        Named { uuid, label, is_snapshot }
    }

    #[test]
    fn a_word_stands_for_one_or_for_none() {
        let found = |word: &str| choose("VDI", word, &ALL).map_err(|_| ());
        assert_eq!(found(ALL[1].uuid), Ok(Some(1)));
        assert_eq!(found(&ALL[1].uuid.to_uppercase()), Ok(Some(1)));
        assert_eq!(found("1b"), Ok(Some(2)));
        // Not its snapshots, which bear its label.
        assert_eq!(found("root"), Ok(Some(0)));
        assert_eq!((found("x"), found("")), (Ok(None), Ok(None)));
        assert_eq!((found("98de"), found("data")), (Err(()), Err(())));
    }
}

//! `orlop vdi`: the disks in the repositories of a running daemon.

mod show;
mod tree;

use std::io::Write;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::ask::{AskOptions, Found, Sr, Vdi, tell_findings, versioned};
use super::output::{Exit, Failure, SCHEMA_VERSION};
use super::sr::named_value;
use super::table::{Look, Table, printable};
use crate::engine::units::ByteLen;
use crate::size::parse_sectors;
use crate::sr::VdiUuid;

/// Make, attach and look at virtual disks.
#[derive(Args, Clone, Debug)]
#[command(after_help = "A VDI is named by its uuid, the beginning of it, or its label.

Examples:
  orlop vdi create -s 20G --label root
  orlop vdi attach root                    prints the file and the NBD URI
  orlop vdi show root --libvirt            a <disk> element to paste
  orlop vdi snapshot root --label before-upgrade
  orlop vdi tree")]
pub(super) struct VdiOptions {
    #[command(flatten)]
    ask: AskOptions,
    /// The SR (all that are attached; for a new VDI the only one)
    #[arg(long, global = true, value_name = "SR")]
    sr: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Clone, Debug, Subcommand)]
enum Verb {
    /// Make an empty VDI; prints its uuid
    Create(Create),
    /// Delete a VDI; what its children need of it stays until `orlop sr gc`
    #[command(visible_alias = "rm")]
    Delete {
        /// The VDI
        vdi: String,
        /// Do it; without, say what would go
        #[arg(long, short = 'y')]
        yes: bool,
    },
    /// Serve a VDI; prints its file and its NBD URI
    Attach(Attach),
    /// Serve it no longer
    Detach {
        /// The VDI
        vdi: String,
    },
    /// Make a writable VDI of the same content; prints its uuid
    Clone(Derive),
    /// Keep the content of a VDI as one that can only be read; prints its uuid
    Snapshot(Derive),
    /// Let a VDI grow
    Resize {
        /// The VDI
        vdi: String,
        /// Its new size: bytes, or K, M, G, T
        #[arg(value_parser = parse_sectors)]
        size: ByteLen,
    },
    /// Take a VDI's lock, which hosts that share the SR see
    Lock {
        /// The VDI
        vdi: String,
        /// Who locks it: needed again to unlock it
        #[arg(long)]
        user: String,
        /// Break the lock of another
        #[arg(long)]
        force: bool,
        /// Seconds after which others may take it, unless it is renewed
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
        lease: Option<u64>,
    },
    /// Give a VDI's lock back
    Unlock {
        /// The VDI
        vdi: String,
        /// Who locked it
        #[arg(long)]
        user: String,
    },
    /// Change the label or the description of a VDI
    Set {
        /// The VDI
        vdi: String,
        /// A name for people
        #[arg(long)]
        label: Option<String>,
        /// More for people
        #[arg(long)]
        description: Option<String>,
    },
    /// List VDIs
    #[command(visible_alias = "ls")]
    List,
    /// Tell all about a VDI, or how to use it when it is attached
    Show(show::Show),
    /// Show who depends on whom
    Tree,
}

#[derive(Args, Clone, Debug)]
struct Create {
    /// Size of the disk: bytes, or K, M, G, T (multiples of 1024)
    #[arg(long, short = 's', value_name = "SIZE", value_parser = parse_sectors)]
    size: ByteLen,
    /// Its uuid (a fresh one when not given)
    #[arg(long)]
    uuid: Option<VdiUuid>,
    /// The format of its data
    #[arg(long, short = 'f', value_enum, default_value_t = Format::Vhd)]
    format: Format,
    /// A name for people
    #[arg(long, default_value = "")]
    label: String,
    /// More for people
    #[arg(long, default_value = "")]
    description: String,
    /// A string of your own (may be repeated)
    #[arg(long, short = 'p', value_name = "NAME=VALUE", value_parser = named_value)]
    property: Vec<(String, String)>,
    /// Several hosts may use it at once
    #[arg(long)]
    shareable: bool,
    /// It may never be written
    #[arg(long)]
    read_only: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// Blocks on demand; children and snapshots
    Vhd,
    /// The bytes of the disk and nothing else
    Raw,
}

impl Format {
    const fn word(self) -> &'static str {
        match self {
            Self::Vhd => "vhd",
            Self::Raw => "raw",
        }
    }
}

#[derive(Args, Clone, Debug)]
#[command(group = ArgGroup::new("mode").args(["read_only", "read_write"]))]
struct Attach {
    /// The VDI
    vdi: String,
    /// To be read
    #[arg(long, short = 'r')]
    read_only: bool,
    /// To be written, or not at all (else: to be written if it may be)
    #[arg(long, short = 'w')]
    read_write: bool,
    /// Who locked it, where another host did
    #[arg(long)]
    user: Option<String>,
}

#[derive(Args, Clone, Debug)]
struct Derive {
    /// The VDI whose content it is
    vdi: String,
    /// The new one's uuid (a fresh one when not given)
    #[arg(long)]
    uuid: Option<VdiUuid>,
    /// A name for people (that of the other when neither is given)
    #[arg(long)]
    label: Option<String>,
    /// More for people
    #[arg(long)]
    description: Option<String>,
}

impl VdiOptions {
    /// Whether answers and errors are JSON.
    pub(super) fn json(&self) -> bool {
        self.ask.json
    }

    fn find(&self, word: &str) -> Result<Found, Failure> {
        self.ask.vdi(self.sr.as_deref(), word)
    }

    /// Finds a VDI and has something done to it: its uuid, and the answer.
    fn act(&self, word: &str, method: &str, more: Value) -> Result<(String, Value), Failure> {
        let (sr, vdi) = self.ask.place_of(self.sr.as_deref(), word)?;
        let mut params = json!({ "sr": sr.sr, "vdi": vdi });
        if let (Some(all), Some(more)) = (params.as_object_mut(), more.as_object()) {
            all.extend(more.clone());
        }
        let answer = self.ask.call(method, params)?;
        Ok((vdi, answer))
    }
}

/// Runs the command.
pub(super) fn run(options: &VdiOptions, out: &mut dyn Write) -> Result<Exit, Failure> {
    let ask = &options.ask;
    match &options.verb {
        Verb::Create(create) => made(ask, &self::create(options, create)?, out)?,
        Verb::Delete { vdi, yes } => delete(options, vdi, *yes, out)?,
        Verb::Attach(attach) => self::attach(options, attach, out)?,
        Verb::Detach { vdi } => quietly(ask, options.act(vdi, "vdi_detach", json!({}))?, out)?,
        Verb::Clone(clone) => made(ask, &derive(options, "vdi_clone", clone)?, out)?,
        Verb::Snapshot(snapshot) => made(ask, &derive(options, "vdi_snapshot", snapshot)?, out)?,
        Verb::Resize { vdi, size } => {
            quietly(ask, options.act(vdi, "vdi_resize", json!({ "size": size.get() }))?, out)?;
        }
        Verb::Lock { vdi, user, force, lease } => {
            let more = json!({ "user": user, "force": force, "lease_seconds": lease });
            quietly(ask, options.act(vdi, "vdi_lock", more)?, out)?;
        }
        Verb::Unlock { vdi, user } => {
            quietly(ask, options.act(vdi, "vdi_unlock", json!({ "user": user }))?, out)?;
        }
        Verb::Set { label: None, description: None, .. } => {
            let hint = "add --label or --description";
            return Err(Failure::usage("nothing is said that is to change", hint));
        }
        Verb::Set { vdi, label, description } => {
            let more = json!({ "label": label, "description": description });
            quietly(ask, options.act(vdi, "vdi_describe", more)?, out)?;
        }
        Verb::List => list(options, out)?,
        Verb::Show(show) => show::run(ask, &options.find(show.word())?, show, out)?,
        Verb::Tree => tree::run(ask, options.sr.as_deref(), out)?,
    }
    Ok(Exit::Ok)
}

/// A VDI that was made.
fn made(ask: &AskOptions, vdi: &str, out: &mut dyn Write) -> Result<(), Failure> {
    if ask.json {
        writeln!(out, "{}", json!({ "schema_version": SCHEMA_VERSION, "vdi": vdi }))?;
    } else {
        writeln!(out, "{vdi}")?;
    }
    Ok(())
}

/// Something was done, which is no news to people.
fn quietly(
    ask: &AskOptions,
    (vdi, _): (String, Value),
    out: &mut dyn Write,
) -> Result<(), Failure> {
    if ask.json { made(ask, &vdi, out) } else { Ok(()) }
}

/// The VDI that the daemon says it made.
fn new_one(answer: &Value) -> Result<String, Failure> {
    answer["vdi"].as_str().map(str::to_owned).ok_or_else(|| {
        let text = "the daemon does not say which VDI it made".to_owned();
        Failure::new(Exit::Failed, "strange-answer", text, "see 'orlop vdi list'".to_owned())
    })
}

fn create(options: &VdiOptions, create: &Create) -> Result<String, Failure> {
    let sr = options.ask.sr_or_only(options.sr.as_deref())?;
    let properties: serde_json::Map<String, Value> =
        create.property.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let mut params = json!({
        "sr": sr.sr, "size": create.size.get(), "format": create.format.word(),
        "label": create.label, "description": create.description, "properties": properties,
        "shareable": create.shareable, "read_only": create.read_only,
    });
    if let Some(uuid) = create.uuid {
        params["vdi"] = json!(uuid.to_string());
    }
    new_one(&options.ask.call("vdi_create", params)?)
}

fn derive(options: &VdiOptions, method: &str, derive: &Derive) -> Result<String, Failure> {
    // What is said of the new one is said whole: what the user leaves out is the source's.
    let said = derive.label.is_some() || derive.description.is_some();
    let mut params = if said {
        let Found { sr, vdi, .. } = options.find(&derive.vdi)?;
        json!({
            "sr": sr.sr, "source": vdi.uuid, "properties": vdi.properties,
            "label": derive.label.as_ref().unwrap_or(&vdi.label),
            "description": derive.description.as_ref().unwrap_or(&vdi.description),
        })
    } else {
        let (sr, vdi) = options.ask.place_of(options.sr.as_deref(), &derive.vdi)?;
        json!({ "sr": sr.sr, "source": vdi })
    };
    if let Some(uuid) = derive.uuid {
        params["dest"] = json!(uuid.to_string());
    }
    new_one(&options.ask.call(method, params)?)
}

fn delete(options: &VdiOptions, word: &str, yes: bool, out: &mut dyn Write) -> Result<(), Failure> {
    if !yes {
        let found = options.find(word)?;
        let size = Look { people: true, bytes: options.ask.bytes }.size(found.vdi.size);
        let mut text = format!("{} of {size} would be deleted", found.told());
        if found.attached() {
            text.push_str("; it is attached, and must be detached before");
        }
        if !found.children.is_empty() {
            let (count, list) = (found.children.len(), found.children.join(", "));
            text.push_str(&format!("; {count} others keep what they need of it: {list}"));
        }
        if !found.vdi.strays.is_empty() {
            let list = found.vdi.strays.join(", ");
            text.push_str(&format!("; its data stay for files that are no VDIs: {list}"));
        }
        let hint = "add --yes to do it".to_owned();
        return Err(Failure::new(Exit::Usage, "needs-yes", printable(&text), hint));
    }
    quietly(&options.ask, options.act(word, "vdi_delete", json!({}))?, out)
}

fn attach(options: &VdiOptions, attach: &Attach, out: &mut dyn Write) -> Result<(), Failure> {
    let mode = match (attach.read_only, attach.read_write) {
        (true, _) => "read_only",
        (_, true) => "read_write",
        _ => "auto",
    };
    let mut more = json!({ "mode": mode });
    if let Some(user) = &attach.user {
        more["user"] = json!(user);
    }
    let (vdi, answer) = options.act(&attach.vdi, "vdi_attach", more)?;
    if options.ask.json {
        let mut object = versioned(answer);
        object["vdi"] = json!(vdi);
        writeln!(out, "{object}")?;
        return Ok(());
    }
    for key in ["path", "nbd_uri"] {
        if let Some(text) = answer[key].as_str().filter(|text| !text.is_empty()) {
            writeln!(out, "{}", printable(text))?;
        }
    }
    Ok(())
}

fn list(options: &VdiOptions, out: &mut dyn Write) -> Result<(), Failure> {
    let ask = &options.ask;
    let srs = match &options.sr {
        Some(sr) => vec![ask.sr(sr)?],
        None => ask.srs()?,
    };
    let look = Look::of_output(ask.bytes);
    let mut table = table(look);
    let (mut all, mut findings) = (Vec::new(), Vec::new());
    for sr in srs {
        if ask.json {
            let mut answer = ask.call("sr_scan", json!({ "sr": sr.sr }))?;
            for finding in answer["findings"].as_array_mut().into_iter().flatten() {
                finding["sr"] = json!(sr.sr);
                findings.push(finding.take());
            }
            for vdi in answer["vdis"].as_array_mut().into_iter().flatten() {
                vdi["sr"] = json!(sr.sr);
                vdi["attached"] = json!(
                    vdi["uuid"]
                        .as_str()
                        .is_some_and(|uuid| { sr.vdis.iter().any(|attached| attached == uuid) })
                );
                all.push(vdi.take());
            }
            continue;
        }
        let scan = ask.scan(&sr.sr)?;
        tell_findings(&scan);
        for vdi in &scan.vdis {
            row(&mut table, look, &sr, vdi, "");
        }
    }
    if ask.json {
        let answer = json!({ "schema_version": SCHEMA_VERSION, "vdis": all, "findings": findings });
        writeln!(out, "{answer}")?;
        return Ok(());
    }
    Ok(table.write(out)?)
}

/// A table of VDIs.
pub(super) fn table(look: Look) -> Table {
    Table::new(look, &["UUID", "LABEL", "SIZE", "USED", "STATE", "PARENT", "SR"])
}

/// A VDI in it.
pub(super) fn row(table: &mut Table, look: Look, sr: &Sr, vdi: &Vdi, more: &str) {
    let short = |uuid: &str| -> String {
        if look.people { uuid.chars().take(8).collect() } else { uuid.to_owned() }
    };
    table.row([
        vdi.uuid.clone(),
        vdi.label.clone(),
        look.size(vdi.size),
        look.size(vdi.utilisation),
        state(sr, vdi, more),
        vdi.parent.as_deref().map(short).unwrap_or_default(),
        short(&sr.sr),
    ]);
}

/// What a VDI is in, in words.
fn state(sr: &Sr, vdi: &Vdi, more: &str) -> String {
    let mut words = vec![if vdi.read_only { "read-only" } else { "read-write" }];
    for (holds, word) in [
        (sr.vdis.contains(&vdi.uuid), "attached"),
        (vdi.locked, "locked"),
        (vdi.shareable, "shareable"),
        (!more.is_empty(), more),
    ] {
        if holds {
            words.push(word);
        }
    }
    words.join(",")
}

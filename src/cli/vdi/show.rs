//! `orlop vdi show`: all about a VDI; or, of one that is attached, what to paste into others'
//! configurations to use it.

use std::io::Write;

use clap::{ArgGroup, Args};
use serde_json::json;

use super::state;
use crate::cli::ask::{AskOptions, Found};
use crate::cli::output::{Exit, Failure, SCHEMA_VERSION};
use crate::cli::table::{Look, facts, printable};

/// What to tell.
#[derive(Args, Clone, Debug)]
#[command(group = ArgGroup::new("form").args(["qemu", "libvirt", "nbd_uri", "path"]))]
pub(super) struct Show {
    /// The VDI
    vdi: String,
    /// Print options for QEMU's command line
    #[arg(long)]
    qemu: bool,
    /// Print a <disk> element for libvirt
    #[arg(long)]
    libvirt: bool,
    /// Print the NBD URI
    #[arg(long)]
    nbd_uri: bool,
    /// Print the path of the file
    #[arg(long)]
    path: bool,
}

/// How an attached VDI is reached.
struct Reached {
    path: String,
    nbd_uri: String,
    /// The socket of that URI.
    socket: String,
    read_only: bool,
}

impl Show {
    /// Which VDI.
    pub(super) fn word(&self) -> &str {
        &self.vdi
    }

    fn wants_reached(&self) -> bool {
        self.qemu || self.libvirt || self.nbd_uri || self.path
    }
}

/// Tells it.
pub(super) fn run(
    ask: &AskOptions,
    found: &Found,
    show: &Show,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    if show.wants_reached() && !found.attached() {
        let text = format!("{} is not attached, so nobody can use it", printable(&found.told()));
        let hint = format!("attach it first: orlop vdi attach {}", found.vdi.uuid);
        return Err(Failure::new(Exit::Failed, "not-attached", text, hint));
    }
    let reached = if found.attached() { Some(self::reached(ask, found)?) } else { None };
    let Some(reached) = reached else { return all(ask, found, None, out) };
    let name = &found.vdi.uuid;
    let text = if show.qemu {
        qemu(name, &reached)
    } else if show.libvirt {
        libvirt(name, &reached)
    } else if show.nbd_uri {
        reached.nbd_uri.clone()
    } else if show.path {
        path_of(&reached)?.to_owned()
    } else {
        return all(ask, found, Some(&reached), out);
    };
    if ask.json {
        let object = json!({ "schema_version": SCHEMA_VERSION, "vdi": name, "text": text });
        writeln!(out, "{object}")?;
    } else {
        writeln!(out, "{text}")?;
    }
    Ok(())
}

fn path_of(reached: &Reached) -> Result<&str, Failure> {
    if !reached.path.is_empty() {
        return Ok(&reached.path);
    }
    let text = "the daemon serves no files, only NBD".to_owned();
    let hint = "see its log for why; --nbd-uri tells where it is".to_owned();
    Err(Failure::new(Exit::Unsupported, "no-files", text, hint))
}

/// The attach of an attached VDI changes nothing and tells how it is reached.
fn reached(ask: &AskOptions, found: &Found) -> Result<Reached, Failure> {
    let answer = ask.call("vdi_attach", json!({ "sr": found.sr.sr, "vdi": found.vdi.uuid }))?;
    let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
    let (path, nbd_uri) = (text("path"), text("nbd_uri"));
    let socket = nbd_uri.split_once("?socket=").map(|(_, socket)| decoded(socket));
    Ok(Reached {
        path,
        nbd_uri,
        socket: socket.unwrap_or_default(),
        read_only: answer["read_only"].as_bool().unwrap_or(true),
    })
}

/// Text of a URI without its escapes.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = after.get(..2).filter(|_| first == b'%');
        let value = escaped
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match value {
            Some(value) => {
                bytes.push(value);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A node's name in QEMU: short, and not beginning with a digit.
fn node(name: &str) -> String {
    let short: String = name.chars().filter(char::is_ascii_hexdigit).take(12).collect();
    format!("orlop-{short}")
}

fn qemu(name: &str, reached: &Reached) -> String {
    let node = node(name);
    // QEMU splits at commas, and takes two of them for one.
    let socket = reached.socket.replace(',', ",,");
    let mode = if reached.read_only { "read-only=on" } else { "discard=unmap" };
    format!(
        "-blockdev 'driver=nbd,node-name={node},server.type=unix,server.path={socket},\
         export={name},reconnect-delay=30,{mode}' -device virtio-blk-pci,drive={node}"
    )
}

fn libvirt(name: &str, reached: &Reached) -> String {
    let socket = xml(&reached.socket);
    let (unmap, end) = match reached.read_only {
        true => ("", "\n  <readonly/>\n</disk>"),
        false => (" discard='unmap'", "\n</disk>"),
    };
    format!(
        "<disk type='network' device='disk'>\n  \
           <driver name='qemu' type='raw' cache='none'{unmap}/>\n  \
           <source protocol='nbd' name='{name}'>\n    \
             <host transport='unix' socket='{socket}'/>\n  \
           </source>\n  \
           <target dev='vda' bus='virtio'/>{end}"
    )
}

fn xml(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&apos;")
}

fn all(
    ask: &AskOptions,
    found: &Found,
    reached: Option<&Reached>,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let Found { sr, vdi, children } = found;
    let (path, nbd_uri) = match reached {
        Some(reached) => (reached.path.clone(), reached.nbd_uri.clone()),
        None => Default::default(),
    };
    if ask.json {
        let object = json!({
            "schema_version": SCHEMA_VERSION,
            "vdi": vdi.uuid, "sr": sr.sr, "label": vdi.label, "description": vdi.description,
            "size": vdi.size, "utilisation": vdi.utilisation, "format": vdi.format,
            "read_only": vdi.read_only, "shareable": vdi.shareable, "locked": vdi.locked,
            "parent": vdi.parent, "children": children, "snapshot_of": vdi.snapshot_of,
            "properties": vdi.properties, "attached": found.attached(),
            "path": reached.map(|_| path), "nbd_uri": reached.map(|_| nbd_uri),
        });
        writeln!(out, "{object}")?;
        return Ok(());
    }
    let look = Look::of_output(ask.bytes);
    let properties = vdi.properties.iter().map(|(name, value)| {
        format!("{name}={}", value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    });
    facts(
        out,
        &[
            ("uuid", vdi.uuid.clone()),
            ("label", vdi.label.clone()),
            ("description", vdi.description.clone()),
            ("sr", sr.sr.clone()),
            ("size", look.size(vdi.size)),
            ("used", look.size(vdi.utilisation)),
            ("format", vdi.format.clone()),
            ("state", state(sr, vdi, "")),
            ("parent", vdi.parent.clone().unwrap_or_default()),
            ("children", children.join(" ")),
            ("snapshot of", vdi.snapshot_of.clone().unwrap_or_default()),
            ("properties", properties.collect::<Vec<_>>().join(" ")),
            ("file", path),
            ("nbd", nbd_uri),
        ],
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Reached, decoded, libvirt, qemu};

    fn reached(socket: &str) -> Reached {
        let (path, nbd_uri) = (String::new(), String::new());
        Reached { path, nbd_uri, socket: socket.to_owned(), read_only: false }
    }

    #[test]
    fn odd_paths_survive_each_program_s_quoting() {
        assert_eq!(decoded("/run/a%20b%2c"), "/run/a b,");
        assert_eq!(decoded("/run/100%"), "/run/100%");
        let name = "98de866e-b035-4b1a-a571-613bff542b89";
        assert!(qemu(name, &reached("/a,b")).contains("server.path=/a,,b,export=98de866e-"));
        assert!(libvirt(name, &reached("/a'&b")).contains("socket='/a&apos;&amp;b'"));
    }
}

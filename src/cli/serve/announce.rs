//! What `serve` says once clients can connect: where, and what to try.

use std::io::Write;

use anyhow::Result;
use serde_json::json;

use super::ServeOptions;
use super::listening::ListenOptions;
use crate::cli::output::SCHEMA_VERSION;
use crate::server::{Bound, Registry};

/// The URIs of every export on every listener; those of the default export first.
fn uris(bound: &Bound, registry: &Registry, secure: bool) -> Vec<String> {
    let default = registry.default_name();
    let mut names: Vec<String> = registry.seats().iter().map(|seat| seat.name.clone()).collect();
    names.sort_by_key(|name| Some(name) != default.as_ref());
    let of_listener = |name: &str| -> Vec<String> {
        bound.addresses().filter_map(|at| at.uri(name, secure)).collect()
    };
    names.iter().flat_map(|name| of_listener(name)).collect()
}

/// Where the captive command finds the default export.
pub(super) fn first_uri(bound: &Bound, registry: &Registry, secure: bool) -> String {
    uris(bound, registry, secure).into_iter().next().unwrap_or_default()
}

/// Tells where the disks are to be found.
pub(super) fn announce(
    options: &ServeOptions,
    bound: &Bound,
    registry: &Registry,
    secure: bool,
    out: &mut dyn Write,
) -> Result<()> {
    // Standard output belongs to the client then.
    if options.listen.stdio {
        return Ok(());
    }
    // Whoever passed the sockets knows where they are, and its own output may be what it copies.
    if ListenOptions::is_activated() && !options.process.json {
        return Ok(());
    }
    let uris = uris(bound, registry, secure);
    if options.process.json {
        let ready = ready(&uris, registry);
        writeln!(out, "{ready}")?;
    } else {
        for (index, uri) in uris.iter().enumerate() {
            writeln!(out, "{uri}")?;
            if index == 0 && options.process.run.is_none() && !secure {
                writeln!(out, "  nbdinfo '{uri}'")?;
                writeln!(out, "  qemu-img convert -p '{uri}' copy.raw")?;
                writeln!(out, "  fio --name=x --ioengine=nbd --uri='{uri}' --rw=randread --bs=4k")?;
            }
        }
    }
    out.flush()?;
    Ok(())
}

fn ready(uris: &[String], registry: &Registry) -> serde_json::Value {
    let seats = registry.seats();
    let each = seats.iter().map(|seat| {
        json!({
            "name": seat.name,
            "size": seat.extent().len.get(),
            "read_only": seat.read_only,
        })
    });
    let mut ready = json!({
        "schema_version": SCHEMA_VERSION,
        "uris": uris,
        "exports": each.collect::<Vec<_>>(),
        "pid": std::process::id(),
    });
    // One export is told the short way too.
    if let [only] = seats.as_slice()
        && let Some(ready) = ready.as_object_mut()
    {
        ready.insert("export".to_owned(), json!(only.name));
        ready.insert("size".to_owned(), json!(only.extent().len.get()));
        ready.insert("read_only".to_owned(), json!(only.read_only));
    }
    ready
}

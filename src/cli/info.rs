//! `orlop info`: what an image says about itself. Opens no parent unless asked for the chain, so
//! that looking at an image from anywhere is safe.

use std::io::{self, Write};

use clap::Args;
use serde_json::{Value, json};
use uuid::Uuid;
use vhd::{DiskKind, Image, TailState};

use super::options::ImageOptions;
use super::output::{self, Exit, Failure, SCHEMA_VERSION};
use crate::engine::units::ByteLen;
use crate::image::{Content, OpenedLayer, open, open_alone};
use crate::size::human;

/// What to tell about.
#[derive(Args, Clone, Debug)]
pub(super) struct InfoOptions {
    #[command(flatten)]
    image: ImageOptions,

    /// Open the parents too and tell about each
    #[arg(long)]
    chain: bool,

    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

/// Tells about the image.
pub(super) fn run(options: &InfoOptions, out: &mut dyn Write) -> Result<Exit, Failure> {
    let reading = options.image.reading();
    let (layers, notices) = if options.chain {
        let chain = open(&reading)?;
        (chain.layers, chain.notices)
    } else {
        let (layer, notices) = open_alone(&reading)?;
        (vec![layer], notices)
    };
    if !options.json {
        for (depth, layer) in layers.iter().enumerate() {
            if depth > 0 {
                writeln!(out)?;
            }
            show(layer, out)?;
        }
        out.flush()?;
        output::tell(&notices);
        return Ok(Exit::Ok);
    }
    let object = if options.chain {
        json!({
            "schema_version": SCHEMA_VERSION,
            "size": layers[0].content.size().get(),
            "layers": layers.iter().map(as_json).collect::<Value>(),
            "notices": output::as_json(&notices),
        })
    } else {
        let mut object = as_json(&layers[0]);
        object["schema_version"] = json!(SCHEMA_VERSION);
        object["notices"] = output::as_json(&notices);
        object
    };
    writeln!(out, "{object}")?;
    Ok(Exit::Ok)
}

fn kind_name(content: &Content) -> &'static str {
    match content.vhd().map(|image| image.footer.kind) {
        None if matches!(content, Content::Null { .. }) => "null",
        None => "raw",
        Some(DiskKind::Fixed) => "fixed",
        Some(DiskKind::Dynamic) => "dynamic",
        Some(DiskKind::Differencing) => "differencing",
    }
}

fn tail_name(image: &Image) -> &'static str {
    match image.sparse().map(|sparse| sparse.tail) {
        None | Some(TailState::Good) => "good",
        Some(TailState::Missing) => "lost at the end",
        Some(TailState::Short511) => "511 bytes",
        Some(TailState::FrontBad) => "copy damaged",
        Some(TailState::Differ) => "copy outdated",
    }
}

fn size_line(size: ByteLen) -> String {
    format!("{} ({size} bytes)", human(size))
}

pub(super) fn show(layer: &OpenedLayer, out: &mut dyn Write) -> io::Result<()> {
    let mut line = |name: &str, value: &str| writeln!(out, "{name:<12} {value}");
    line("image", &layer.path.display().to_string())?;
    let kind = kind_name(&layer.content);
    let format = match &layer.content {
        Content::Vhd(_) => format!("vhd ({kind})"),
        Content::Null { .. } => "null (it keeps nothing)".to_owned(),
        Content::Raw { .. } => kind.to_owned(),
    };
    line("format", &format)?;
    line("disk size", &size_line(layer.content.size()))?;
    line("file size", &size_line(layer.file_bytes))?;
    if !layer.mode.device {
        line("space used", &size_line(layer.allocated_bytes))?;
    }
    let Some(image) = layer.content.vhd() else { return Ok(()) };
    line("identity", &Uuid::from_bytes(image.footer.uuid).to_string())?;
    let creator = &image.footer.creator;
    let (major, minor) = (creator.version >> 16, creator.version & 0xFFFF);
    let (app, os) = (creator.app.escape_ascii(), creator.os.escape_ascii());
    line("made by", &format!("\"{app}\" {major}.{minor} on \"{os}\""))?;
    line("footer", tail_name(image))?;
    if image.footer.hidden != 0 {
        line("hidden", "yes: other images depend on it")?;
    }
    if let Some(reason) = image.write_refusal() {
        line("read-only", &reason.to_string())?;
    }
    let Some(sparse) = image.sparse() else { return Ok(()) };
    let block = human(ByteLen::new(sparse.geometry.block_bytes().get()));
    let (used, all) = (sparse.allocated, sparse.geometry.blocks());
    line("blocks", &format!("{used} of {all} allocated, {block} each"))?;
    if let Some(parent) = &sparse.parent {
        let uuid = Uuid::from_bytes(parent.uuid).to_string();
        let identity = if parent.raw { "raw" } else { uuid.as_str() };
        line("parent", &format!("{:?} ({identity})", parent.name))?;
        for path in &parent.candidates {
            line("", &format!("{} {:?}", path.platform, path.text))?;
        }
    }
    Ok(())
}

fn as_json(layer: &OpenedLayer) -> Value {
    let kind = kind_name(&layer.content);
    let mut object = json!({
        "path": layer.path.display().to_string(),
        "format": if layer.content.vhd().is_some() { "vhd" } else { kind },
        "kind": kind,
        "size": layer.content.size().get(),
        "file_bytes": layer.file_bytes.get(),
        "allocated_bytes": layer.allocated_bytes.get(),
        "device": layer.mode.device,
    });
    let Some(image) = layer.content.vhd() else { return object };
    object["uuid"] = json!(Uuid::from_bytes(image.footer.uuid).to_string());
    object["creator"] = json!({
        "app": image.footer.creator.app.escape_ascii().to_string(),
        "version": image.footer.creator.version,
        "os": image.footer.creator.os.escape_ascii().to_string(),
    });
    // Seconds since 1970, as every other program counts.
    object["created_unix"] = json!(946_684_800 + u64::from(image.footer.timestamp));
    object["footer"] = json!(tail_name(image));
    object["hidden"] = json!(image.footer.hidden != 0);
    object["write_refusal"] = json!(image.write_refusal().map(|reason| reason.to_string()));
    let Some(sparse) = image.sparse() else { return object };
    object["block_bytes"] = json!(sparse.geometry.block_bytes().get());
    object["blocks"] = json!(sparse.geometry.blocks());
    object["allocated_blocks"] = json!(sparse.allocated);
    object["parent"] = sparse.parent.as_ref().map_or(Value::Null, |parent| {
        let uuid = (!parent.raw).then(|| Uuid::from_bytes(parent.uuid).to_string());
        let paths = parent
            .candidates
            .iter()
            .map(|path| json!({ "platform": path.platform.to_string(), "path": path.text }));
        json!({
            "uuid": uuid,
            "raw": parent.raw,
            "name": parent.name,
            "paths": paths.collect::<Value>(),
        })
    });
    object
}

//! `orlop create`: makes an image and says what it made.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;
use uuid::Uuid;

use super::options::ParentOptions;
use super::output::{self, Exit, Failure, SCHEMA_VERSION};
use crate::engine::units::ByteLen;
use crate::image::{Format, NewImage, NewKind, OpenOptions, create};
use crate::size::{human, parse_bytes, parse_sectors};

/// What to make.
#[derive(Args, Clone, Debug)]
pub(super) struct CreateOptions {
    /// The new image
    path: PathBuf,

    /// Size of the disk: bytes, or K, M, G, T (multiples of 1024); the parent's when not given
    #[arg(long, short = 's', value_name = "SIZE", value_parser = parse_sectors)]
    size: Option<ByteLen>,

    /// Kind of image, where the name does not tell: .vhd is a VHD, .raw and .img are raw
    #[arg(long, short = 'f', value_name = "KIND")]
    format: Option<Kind>,

    /// Make a child of this image: it holds only what differs
    #[arg(long, value_name = "PATH")]
    parent: Option<PathBuf>,

    /// The parent's format: raw or vhd (by its name when not given)
    #[arg(long, value_name = "FORMAT", requires = "parent")]
    parent_format: Option<Format>,

    /// Bytes of a block of a VHD: a power of two
    #[arg(long, default_value = "2M", value_name = "SIZE", value_parser = parse_bytes)]
    block_size: ByteLen,

    /// Identity of a VHD (a fresh one when not given)
    #[arg(long)]
    uuid: Option<Uuid>,

    /// Replace a file of that name, unless it is in use
    #[arg(long)]
    force: bool,

    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,

    #[command(flatten)]
    parents: ParentOptions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// VHD with blocks on demand: dynamic, or differencing with a parent
    Vhd,
    /// VHD of its full size from the start
    VhdFixed,
    /// The bytes of the disk and nothing else
    Raw,
}

impl Kind {
    const fn of(format: Format) -> Self {
        match format {
            Format::Raw => Self::Raw,
            Format::Vhd => Self::Vhd,
        }
    }
}

/// Makes the image.
pub(super) fn run(options: &CreateOptions, out: &mut dyn Write) -> Result<Exit, Failure> {
    let kind = match options.format {
        Some(kind) => kind,
        None => Kind::of(Format::of_new(&options.path)?),
    };
    if options.parent.is_some() && kind != Kind::Vhd {
        return Err(Failure::usage(
            "only a VHD with blocks on demand can have a parent",
            "leave out --parent, or give the new image a name that ends in .vhd",
        ));
    }
    let parent = options
        .parent
        .as_deref()
        .map(|path| OpenOptions { format: options.parent_format, ..options.parents.open(path) });
    let new = NewImage {
        path: options.path.clone(),
        size: options.size,
        kind: match kind {
            Kind::Vhd => NewKind::Vhd { block_bytes: options.block_size },
            Kind::VhdFixed => NewKind::VhdFixed,
            Kind::Raw => NewKind::Raw,
        },
        parent,
        uuid: options.uuid.map(Uuid::into_bytes),
        replace: options.force,
    };
    let made = create(&new)?;
    let name = match (kind, &made.parent) {
        (Kind::Raw, _) => "raw",
        (Kind::VhdFixed, _) => "fixed",
        (Kind::Vhd, None) => "dynamic",
        (Kind::Vhd, Some(_)) => "differencing",
    };
    let uuid = made.uuid.map(|uuid| Uuid::from_bytes(uuid).hyphenated().to_string());
    if options.json {
        let object = json!({
            "schema_version": SCHEMA_VERSION,
            "path": options.path.display().to_string(),
            "format": new.kind.format().to_string(),
            "kind": name,
            "size": made.size.get(),
            "file_bytes": made.file_bytes.get(),
            "uuid": uuid,
            "parent": made.parent,
            "notices": output::as_json(&made.notices),
        });
        writeln!(out, "{object}")?;
        return Ok(Exit::Ok);
    }
    output::tell(&made.notices);
    let format = if kind == Kind::Raw { "raw".to_owned() } else { format!("vhd ({name})") };
    write!(out, "{}: {format}, {}", options.path.display(), human(made.size))?;
    if let Some(parent) = &made.parent {
        write!(out, ", child of {parent}")?;
    }
    if let Some(uuid) = uuid {
        write!(out, ", {uuid}")?;
    }
    writeln!(out)?;
    Ok(Exit::Ok)
}

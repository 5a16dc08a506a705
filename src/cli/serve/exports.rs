//! What `serve` exports: images named one by one, or specs that say all.
//!
//! Refuses options of one image where there are several: which one would be meant?

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use crate::cli::options::ParentOptions;
use crate::engine::units::{ByteLen, DiskOffset};
use crate::image::{self, CacheMode, Format, NewImage, NewKind, OpenOptions};
use crate::meter::Rates;
use crate::server::{ExportSpec, Part};
use crate::tls::Rule;

/// Block size of a VHD made with `--create`.
const DEFAULT_BLOCK: ByteLen = ByteLen::new(2 << 20);

/// What the image's bytes pass through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum CacheArg {
    /// The kernel's page cache.
    Writeback,
    /// Nothing: O_DIRECT.
    None,
}

/// Which disks, and which parts of them.
#[derive(Debug, Args)]
#[command(next_help_heading = "What to export")]
pub(super) struct ExportOptions {
    /// The images: .vhd, .raw, .img or a block device (or say --format). Several are called by
    /// their file names. null:SIZE is a disk that KEEPS NOTHING: zeroes, to measure with
    #[arg(value_name = "IMAGE", required_unless_present_any = ["add", "admin"])]
    pub(super) images: Vec<PathBuf>,
    /// Export this too (may be repeated): comma-separated words such as
    /// name=root,image=disk.vhd,partition=1,read-only
    #[arg(long, value_name = "SPEC", long_help = long_help())]
    add: Vec<String>,
    /// The export that clients get who ask for none (with one export: that one)
    #[arg(long, value_name = "NAME")]
    pub(super) default: Option<String>,
    /// Name of the image's export; clients that ask for no name get it as well
    #[arg(short, long, value_name = "NAME")]
    export: Option<String>,
    /// Text for people about the export
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Create a dynamic VHD (or raw image) of this size if the file does not exist
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse_sectors)]
    create: Option<ByteLen>,
    /// Refuse writes
    #[arg(short, long)]
    read_only: bool,
    /// Export from this byte of the disk on
    #[arg(long, value_name = "BYTES", value_parser = crate::size::parse_bytes)]
    offset: Option<ByteLen>,
    /// Export only so many bytes
    #[arg(long, value_name = "BYTES", value_parser = crate::size::parse_bytes)]
    size: Option<ByteLen>,
    /// Export one partition of the disk (MBR or GPT), numbered as the kernel does
    #[arg(long, value_name = "NUMBER", conflicts_with_all = ["offset", "size"])]
    partition: Option<u32>,
    /// Keep what is written in a throwaway layer, in this directory, and never change the image
    #[arg(long, value_name = "DIR", num_args = 0..=1, require_equals = true,
        default_missing_value = "", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    overlay: Option<PathBuf>,
    /// Let clients change the disk's size (the protocol's experimental RESIZE)
    #[arg(long)]
    allow_resize: bool,
    /// The image's format, if its name does not tell
    #[arg(short, long)]
    format: Option<Format>,
    /// What the image's bytes pass through
    #[arg(long, value_enum, default_value_t = CacheArg::Writeback)]
    cache: CacheArg,
    /// Open a parent's image for writing although children depend on it
    #[arg(long)]
    force_rw_parent: bool,
    /// Bytes per second for the clients of an export together (10M, 1G)
    #[arg(long, value_name = "BYTES", value_parser = crate::size::parse_bytes)]
    bps: Option<ByteLen>,
    /// Requests per second for the clients of an export together
    #[arg(long, value_name = "N")]
    iops: Option<NonZeroU64>,
    /// Who may use the exports (may be repeated): a certificate's distinguished name, san:NAME,
    /// psk:USER, or * for anyone with a certificate
    #[arg(long, value_name = "WHO")]
    allow: Vec<String>,
    /// Serve clients without TLS too, although there are credentials
    #[arg(long)]
    tls_optional: bool,
    #[command(flatten)]
    parents: ParentOptions,
}

fn long_help() -> String {
    format!(
        "Export this too (may be repeated). Comma-separated words: {}.\nA comma in a value is \
         written twice. What is not said is as for the other exports.",
        crate::server::WORDS
    )
}

impl ExportOptions {
    /// Everything that was asked for. Writable exports come first: an image two exports show is
    /// opened for the one that needs more.
    pub(super) fn specs(&self) -> Result<Vec<ExportSpec>> {
        let single = self.images.len() == 1;
        let alone = [
            ("--export", self.export.is_some()),
            ("--description", self.description.is_some()),
            ("--partition", self.partition.is_some()),
            ("--offset", self.offset.is_some()),
            ("--size", self.size.is_some()),
            ("--create", self.create.is_some()),
        ];
        if let Some((option, _)) = alone.iter().find(|(_, said)| *said && !single) {
            bail!("{option} is for one IMAGE; say it in --add for each of several");
        }
        let usual = self.usual()?;
        let mut specs = Vec::new();
        for path in &self.images {
            specs.push(self.of_image(&usual, path, single)?);
        }
        for line in &self.add {
            let spec = ExportSpec::parse(line, &usual);
            specs.push(spec.map_err(|why| anyhow!("--add {line:?}: {why}"))?);
        }
        specs.sort_by_key(|spec| spec.image.read_only);
        Ok(specs)
    }

    /// What is the same for all of them.
    pub(super) fn usual(&self) -> Result<ExportSpec> {
        let mut options = self.parents.open(Path::new(""));
        options.format = self.format;
        options.read_only = self.read_only;
        options.cache = match self.cache {
            CacheArg::Writeback => CacheMode::Writeback,
            CacheArg::None => CacheMode::None,
        };
        options.force_rw_parent = self.force_rw_parent;
        let mut usual = ExportSpec::new(String::new(), options);
        usual.overlay = self.overlay.as_ref().map(|place| match place.as_os_str().is_empty() {
            true => image::default_place(),
            false => place.clone(),
        });
        usual.plaintext = self.tls_optional;
        for text in &self.allow {
            let rule: Result<Rule, _> = text.parse();
            usual.allow.push(rule.map_err(|why| anyhow!("--allow {text:?}: {why}"))?);
        }
        usual.rates = Rates {
            bytes_per_s: self.bps.and_then(|bps| NonZeroU64::new(bps.get())),
            ops_per_s: self.iops,
        };
        usual.resize = self.allow_resize;
        Ok(usual)
    }

    fn of_image(&self, usual: &ExportSpec, path: &Path, single: bool) -> Result<ExportSpec> {
        let image = OpenOptions { path: path.to_owned(), ..usual.image.clone() };
        let name = match (&self.export, single) {
            (Some(name), _) => name.clone(),
            (None, true) => String::new(),
            (None, false) => file_name(path)?,
        };
        let mut spec = ExportSpec { name, image, ..usual.clone() };
        spec.description.clone_from(&self.description);
        if self.offset.is_some() || self.size.is_some() {
            let at = DiskOffset::new(self.offset.map_or(0, ByteLen::get));
            spec.part = Part::Window { at, size: self.size };
        }
        if let Some(number) = self.partition {
            spec.part = Part::Partition(number);
        }
        Ok(spec)
    }

    /// Makes the image if it was asked for and is not there.
    pub(super) fn create_if_absent(&self) -> Result<()> {
        let (Some(size), [path]) = (self.create, self.images.as_slice()) else { return Ok(()) };
        if path.try_exists()? {
            let path = path.display();
            tracing::info!("{path}: it is there already, so --create changes nothing");
            return Ok(());
        }
        let format = self.format.map_or_else(|| Format::of_new(path), Ok)?;
        image::create(&NewImage {
            path: path.clone(),
            size: Some(size),
            kind: match format {
                Format::Raw => NewKind::Raw,
                Format::Vhd => NewKind::Vhd { block_bytes: DEFAULT_BLOCK },
            },
            parent: None,
            uuid: None,
            replace: false,
        })?;
        Ok(())
    }
}

fn file_name(path: &Path) -> Result<String> {
    let name = path.file_name().ok_or_else(|| anyhow!("{} has no file name", path.display()))?;
    Ok(name.to_string_lossy().into_owned())
}

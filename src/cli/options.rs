//! Options that several commands share: which image, and how far its child is to be believed about
//! its parents.

use std::path::PathBuf;

use clap::Args;

use crate::image::{DEPTH_MAX, Format, OpenOptions};

/// Which image to open for reading.
#[derive(Args, Clone, Debug)]
pub(super) struct ImageOptions {
    /// The image
    pub(super) path: PathBuf,

    /// Its format: raw or vhd (by its name when not given; never by its content)
    #[arg(long, short = 'f', value_name = "FORMAT")]
    format: Option<Format>,

    /// Take no locks: look at an image that another program writes; the answer may be stale
    #[arg(long, short = 'U')]
    force_share: bool,

    #[command(flatten)]
    parents: ParentOptions,
}

/// Where parents may be.
#[derive(Args, Clone, Debug)]
pub(super) struct ParentOptions {
    /// Open parents in this directory too, not only beside their child (may be repeated)
    #[arg(long, value_name = "DIR")]
    allow_parent: Vec<PathBuf>,

    /// Open a raw parent whatever its name: the child's guest reads that file's bytes
    #[arg(long)]
    allow_raw_parent: bool,

    /// Most images of a chain
    #[arg(long, default_value_t = DEPTH_MAX, value_name = "N")]
    max_depth: usize,
}

impl ImageOptions {
    /// How to open it for reading.
    pub(super) fn reading(&self) -> OpenOptions {
        OpenOptions {
            format: self.format,
            read_only: true,
            share: self.force_share,
            ..self.parents.open(&self.path)
        }
    }
}

impl ParentOptions {
    /// Opens parents in this directory too.
    pub(super) fn allow(&mut self, dir: PathBuf) {
        self.allow_parent.push(dir);
    }

    /// Opens raw parents whatever their names.
    pub(super) fn allow_raw_parents(&mut self) {
        self.allow_raw_parent = true;
    }

    /// How to open an image with these parents.
    pub(super) fn open(&self, path: &std::path::Path) -> OpenOptions {
        OpenOptions {
            allow_parents: self.allow_parent.clone(),
            allow_raw_parent: self.allow_raw_parent,
            max_depth: self.max_depth,
            ..OpenOptions::new(path)
        }
    }
}

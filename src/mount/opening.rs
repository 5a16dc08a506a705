//! Opening the image for a mount: to write if that harms nobody, else to read, saying why; or under
//! a layer that takes what is written.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::Wish;
use super::about::Chain;
use super::failure::MountFailure;
use super::passing::Passed;
use crate::image::{
    Cause, Format, ImageError, NewImage, NewKind, OpenOptions, OpenedChain, create,
};
use crate::server::{ExportSpec, Prepared};

/// An image that is open, and what is known of it.
pub(super) struct Opened {
    pub(super) prepared: Prepared,
    pub(super) spec: ExportSpec,
    pub(super) chain: Chain,
    /// Why it is read-only although nobody asked for that.
    pub(super) read_only_because: Option<String>,
    /// A layer that was made for this mount.
    pub(super) fresh: Option<Fresh>,
    /// The file for the kernel, or why it gets none; `None` when nobody asked.
    pub(super) passed: Option<Result<Passed, String>>,
}

/// A file that goes again unless it is kept.
pub(super) struct Fresh(Option<PathBuf>);

impl Fresh {
    pub(super) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if let Some(path) = self.0.take()
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::warn!(%error, "{} is left behind", path.display());
        }
    }
}

/// Opens what the wish names.
pub(super) fn open(wish: &Wish) -> Result<Opened, MountFailure> {
    if let Some(layer) = &wish.kept_overlay {
        return open_under(wish, layer);
    }
    let mut spec = wish.spec.clone();
    let mut prepared = Prepared::default();
    let mut read_only_because = None;
    if let Err(error) = prepared.open(&spec) {
        // Under an overlay, and where reading was asked for, it is not writing that failed.
        let writes = spec.overlay.is_none() && !spec.image.read_only;
        let why = only_to_read(&error.cause).filter(|_| writes).ok_or(error)?;
        spec.image.read_only = true;
        prepared = Prepared::default();
        prepared.open(&spec)?;
        read_only_because = Some(why);
    }
    let named = usize::from(spec.overlay.is_some());
    let opened = opened_in(&prepared);
    let chain = Chain::of(&opened.layers[named..], wish.describe);
    let passed = wish.passthrough.then(|| Passed::of(opened, wish));
    Ok(Opened { prepared, spec, chain, read_only_because, fresh: None, passed })
}

fn opened_in(prepared: &Prepared) -> &OpenedChain {
    prepared.chains().next().expect("it was opened a moment ago")
}

/// Why an image that cannot be written may be read all the same.
fn only_to_read(cause: &Cause) -> Option<String> {
    match cause {
        Cause::HasChildren { .. } | Cause::Hidden | Cause::WriteRefused(_) => {
            Some(cause.to_string())
        }
        Cause::Io { error, .. } => match error.kind() {
            ErrorKind::PermissionDenied => Some("its file may not be written".to_owned()),
            ErrorKind::ReadOnlyFilesystem => Some("its file system is read-only".to_owned()),
            _ => None,
        },
        _ => None,
    }
}

/// Opens a layer in a file of its own that takes what is written; makes it if it is not there.
fn open_under(wish: &Wish, layer: &Path) -> Result<Opened, MountFailure> {
    let base = &wish.spec.image;
    let there = layer.try_exists().unwrap_or(true);
    let fresh = if there { None } else { Some(make_layer(base, layer)?) };
    let whole = fs::canonicalize(&base.path);
    let mut image = OpenOptions {
        path: layer.to_owned(),
        format: Some(Format::Vhd),
        read_only: false,
        // The user has named the base, whatever it is called.
        allow_raw_parent: true,
        ..base.clone()
    };
    let place = whole.as_deref().ok().and_then(Path::parent);
    image.allow_parents.extend(place.map(Path::to_owned));
    let spec = ExportSpec { image, overlay: None, ..wish.spec.clone() };
    let mut prepared = Prepared::default();
    prepared.open(&spec)?;
    let opened = opened_in(&prepared);
    let below = opened.layers.get(1).map(|layer| layer.path.clone());
    if below.is_none() || whole.is_ok_and(|whole| below.as_deref() != Some(&whole)) {
        let (layer, base) = (layer.to_owned(), base.path.clone());
        return Err(MountFailure::OtherBase { layer, base, found: below });
    }
    let chain = Chain::of(&opened.layers[1..], wish.describe);
    let passed = wish.passthrough.then(|| Passed::of(opened, wish));
    Ok(Opened { prepared, spec, chain, read_only_because: None, fresh, passed })
}

fn make_layer(base: &OpenOptions, layer: &Path) -> Result<Fresh, ImageError> {
    create(&NewImage {
        path: layer.to_owned(),
        size: None,
        kind: NewKind::dynamic(),
        parent: Some(OpenOptions { read_only: true, ..base.clone() }),
        uuid: None,
        replace: false,
    })?;
    // By its whole path: the process will work elsewhere.
    let whole = fs::canonicalize(layer);
    let gone = |error: io::Error| ImageError {
        path: layer.to_owned(),
        needed_by: None,
        cause: Cause::Io { doing: "find what was made", error },
    };
    Ok(Fresh(Some(whole.map_err(gone)?)))
}

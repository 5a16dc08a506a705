//! A mount point made ready: what a dead server left is gone, and nothing else is in the way.

use std::path::{Path, PathBuf};

use orlop_fuse::{Mount, MountError};

use super::failure::MountFailure;
use super::leave::{clear_dead, place_of};

/// The mount point that is meant, without links, free to be mounted on.
///
/// # Errors
/// What is in the way.
pub(crate) fn make_ready(at: &Path) -> Result<PathBuf, MountFailure> {
    let at = place_of(at);
    let left =
        |why: super::LeaveFailure| MountFailure::Left { at: at.clone(), why: why.to_string() };
    if clear_dead(&at).map_err(left)? {
        tracing::warn!("{}: cleared away what a dead server had left", at.display());
    }
    // Before anything touches it: it may hang.
    if let Some(Mount { kind, source: from, .. }) = orlop_fuse::mounted_at(&at) {
        return Err(MountError::Occupied { at, kind, from }.into());
    }
    Ok(orlop_fuse::check_place(&at)?)
}

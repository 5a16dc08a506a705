//! Checking and repairing one image, without its parents. What to repair is the format's decision;
//! here it is carried out, under a lock.

use std::os::fd::AsFd;

use vhd::{RepairStep, Report};

use super::error::{Cause, ImageError};
use super::file::{self, FoundFile, ImageFile};
use super::layer::{Format, OpenedLayer};
use super::lock::Claim;
use super::open::{OpenOptions, format_of};

/// What a check found, and what a repair would do.
#[derive(Debug)]
pub struct Inspection {
    /// The findings.
    pub report: Report,
    /// The steps of a repair; empty when there is none to be made, or none that is known.
    pub plan: Vec<RepairStep>,
}

/// What a repair did.
#[derive(Debug)]
pub struct Repaired {
    /// The findings before.
    pub before: Report,
    /// The steps carried out.
    pub steps: Vec<RepairStep>,
    /// The findings after, and what is still to be done.
    pub after: Inspection,
}

/// Checks the VHD of `options`, reading only. With `data` also what its bitmaps call absent.
///
/// # Errors
/// When it cannot be read. What is wrong with the image is in the report.
pub fn inspect(options: &OpenOptions, data: bool) -> Result<Inspection, ImageError> {
    let claim = (!options.share).then_some(Claim::Read);
    let file = vhd_file(options, false, claim)?;
    look(&file, data).map_err(|cause| ImageError::new(&options.path, cause))
}

/// Checks an image of an open chain; `None` when it is raw, so that there is nothing to check.
///
/// # Errors
/// When it cannot be read. The chain must not have been opened past the page cache.
pub fn inspect_layer(layer: &OpenedLayer, data: bool) -> Result<Option<Report>, ImageError> {
    if layer.content.vhd().is_none() {
        return Ok(None);
    }
    let len = vhd::ByteLen::new(layer.file_bytes.get());
    let report = file::check(layer.fd.as_fd(), len, data);
    report.map(Some).map_err(|cause| ImageError::new(&layer.path, cause))
}

/// Checks the VHD of `options` and carries out the repair that its metadata calls for.
///
/// # Errors
/// When it cannot be read or written. An image that cannot be repaired is left as it is, and the
/// report says what is wrong with it.
pub fn repair(options: &OpenOptions, data: bool) -> Result<Repaired, ImageError> {
    let failed = |cause| ImageError::new(&options.path, cause);
    let mut file = vhd_file(options, true, Some(Claim::Write))?;
    let first = look(&file, data).map_err(failed)?;
    if first.plan.is_empty() {
        return Ok(Repaired { before: first.report.clone(), steps: Vec::new(), after: first });
    }
    file.carry_out(&first.plan).map_err(failed)?;
    let after = look(&file, data).map_err(failed)?;
    Ok(Repaired { before: first.report, steps: first.plan, after })
}

fn vhd_file(
    options: &OpenOptions,
    write: bool,
    claim: Option<Claim>,
) -> Result<ImageFile, ImageError> {
    let failed = |cause| ImageError::new(&options.path, cause);
    let found = FoundFile::named(&options.path)?;
    match format_of(options.format, &found, &options.path).map_err(failed)? {
        Format::Vhd => found.open(write, claim).map_err(failed),
        Format::Raw => Err(failed(Cause::NothingToCheck)),
    }
}

fn look(file: &ImageFile, data: bool) -> Result<Inspection, Cause> {
    let report = file.check(data)?;
    // The opener is stricter than the check is patient: only what opens has a plan.
    let plan = match file.survey() {
        Ok(image) => vhd::recovery_plan(&image, file.backing()),
        Err(Cause::Vhd(_)) => Vec::new(),
        Err(cause) => return Err(cause),
    };
    Ok(Inspection { report, plan })
}

//! From one process of this host to the next: what was attached is attached again.
//!
//! What cannot be stays remembered, until somebody detaches it.

use std::sync::Arc;

use super::command::AttachMode;
use super::error::Error;
use super::manager::{Attached, Control, locked};
use super::memory::RememberedVdi;
use crate::sr::{Failure, Kind, SrUuid, driver};

impl Control {
    /// Attaches again what was attached when this host's last process ended. What cannot be is
    /// told, and tried again next time; so is what is left when `goes_on` says no, which is asked
    /// before each SR and each VDI.
    ///
    /// # Errors
    /// When nobody knows what was attached.
    pub fn restore(&self, goes_on: impl Fn() -> bool) -> Result<Vec<Error>, Error> {
        let mut failures = Vec::new();
        for (sr, remembered) in self.memory.recall()? {
            if !goes_on() {
                break;
            }
            let place = format!("SR {sr}");
            let attached = self.sr_attach(sr, &remembered.driver, &remembered.config);
            if let Err(failure) = attached {
                failures.push(failure.during(format!("attach {place} again")).into());
                continue;
            }
            for (vdi, remembered) in remembered.vdis {
                if !goes_on() {
                    break;
                }
                let RememberedVdi { read_only, user } = &remembered;
                let mode = if *read_only { AttachMode::ReadOnly } else { AttachMode::ReadWrite };
                if let Err(failure) = self.vdi_attach(sr, vdi, mode, user.as_deref()) {
                    // An attach that fails forgets the VDI, and this one is to be tried again.
                    let _at_worst_not = self.memory.keep_vdi(sr, vdi, &remembered);
                    failures.push(failure.during(format!("attach VDI {vdi} again")).into());
                }
            }
        }
        Ok(failures)
    }

    /// Lets go of every SR without forgetting it, so that the next process attaches it again. To
    /// be called at the end, when nothing is served and no call is under way. Tells what could not
    /// be let go.
    pub fn release(&self) -> Vec<Error> {
        let srs = std::mem::take(&mut *locked(&self.srs));
        let released = srs.into_iter().map(|(sr, attached)| {
            let Ok(Attached { driver, repository, .. }) = Arc::try_unwrap(attached) else {
                let why = "an operation in the SR is running";
                return Err(Failure::new(Kind::Busy, format!("SR {sr}"), why));
            };
            // It holds the substrate open.
            drop(repository);
            driver.detach(sr)
        });
        released.filter_map(Result::err).map(|failure| failure.during("let go").into()).collect()
    }

    /// Takes back that an SR is to be attached again, and whatever a process that was killed left
    /// of it on this host.
    pub(super) fn forget_sr(&self, sr: SrUuid) -> Result<(), Failure> {
        let remembered = self.memory.recall_sr(sr)?;
        self.memory.drop_sr(sr)?;
        let Some(remembered) = remembered else { return Ok(()) };
        let left = driver(&remembered.driver, &remembered.config, &self.around)
            .and_then(|driver| driver.detach(sr));
        match left {
            // Storage that is gone has nothing of it left.
            Err(failure) if !matches!(failure.kind, Kind::NoDevice | Kind::NoSr) => Err(failure),
            _ => Ok(()),
        }
    }
}

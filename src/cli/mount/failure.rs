//! How a mount that did not come about is told: code, words, and what to do.

use std::io::ErrorKind;

use orlop_fuse::MountError;

use super::super::output::{Exit, Failure};
use crate::mount::{MountFailure, ToolError};
use crate::server::{ControlError, DiskError};

/// The failure as the user sees it.
pub(super) fn of(failure: MountFailure) -> Failure {
    let text = failure.to_string();
    let told = |exit, code, hint: &str| Failure::new(exit, code, text.clone(), hint.to_owned());
    match failure {
        MountFailure::Image(error)
        | MountFailure::Control(ControlError::Disk(DiskError::Image(error))) => error.into(),
        MountFailure::Control(ControlError::Partition { .. }) => {
            told(Exit::NotFound, "no-partition", "leave --partition away to see which there are")
        }
        MountFailure::Fuse(error) => {
            let (exit, code, hint) = of_fuse(&error);
            told(exit, code, hint)
        }
        MountFailure::Left { .. } => told(Exit::Busy, "left-over", "run 'orlop umount' on it"),
        MountFailure::OtherBase { .. } => told(Exit::Usage, "other-base", "name another file"),
        MountFailure::Transport { .. } => {
            told(Exit::Unsupported, "transport", "use --transport auto")
        }
        MountFailure::Inside { error, .. } => {
            let missing = matches!(error, ToolError::Missing { .. });
            let exit = if missing { Exit::Unsupported } else { Exit::Failed };
            told(exit, "loop", "nothing is left behind; without the option, the files are there")
        }
        MountFailure::InsidePlace { absent: true, .. } => {
            told(Exit::NotFound, "no-mount-point", "make the directory first")
        }
        MountFailure::InsidePlace { .. } => told(Exit::Usage, "mount-point", ""),
        MountFailure::WhichFileSystem(_) => told(Exit::Usage, "which-file-system", ""),
        MountFailure::Nbd(error) => {
            let busy = error.kind() == ErrorKind::AddrInUse;
            told(if busy { Exit::Busy } else { Exit::Failed }, "nbd", "")
        }
        MountFailure::Silent { .. }
        | MountFailure::System { .. }
        | MountFailure::NotDurable(_)
        | MountFailure::Control(_) => told(Exit::Failed, "failed", ""),
    }
}

fn of_fuse(error: &MountError) -> (Exit, &'static str, &'static str) {
    match error {
        MountError::Place { cause, .. } if cause.kind() == ErrorKind::NotFound => {
            (Exit::NotFound, "no-mount-point", "make the directory first")
        }
        MountError::Place { .. } => (Exit::Failed, "mount-point", "name another directory"),
        MountError::NotDirectory(_) => (Exit::Usage, "mount-point", "name a directory"),
        MountError::Occupied { .. } => {
            (Exit::Busy, "mounted", "'orlop umount' it, or name another directory")
        }
        MountError::Stale(_) => (Exit::Busy, "left-over", "run 'orlop umount' on it"),
        MountError::NoDevice { .. } => (Exit::Unsupported, "no-fuse", ""),
        MountError::NotPermitted { .. } => (
            Exit::Failed,
            "not-permitted",
            "install fusermount3 (package fuse3), own the directory, and for --allow-other write \
             user_allow_other into /etc/fuse.conf; or run it as root",
        ),
        MountError::Mount { .. } | MountError::Session { .. } | MountError::Disk(_) => {
            (Exit::Failed, "failed", "see the kernel's log")
        }
    }
}

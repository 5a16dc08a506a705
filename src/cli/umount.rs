//! `orlop umount`: takes a mount away, in the order that loses nothing, and says who is in the way.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::output::{Exit, Failure, SCHEMA_VERSION};
use crate::mount::{InsideError, LeaveFailure, Left, leave};

/// What to take away.
#[derive(Args, Clone, Debug)]
#[command(after_help = "What is done, in this order: the file system that --mount-fs mounted is \
    flushed and unmounted, loop devices over the mount's files are let go, everything is made \
    durable, the mount is taken away, and its server has committed and ended when the command \
    returns. A mount whose server is dead is cleared away.")]
pub(super) struct UmountOptions {
    /// The mount point
    dir: PathBuf,

    /// Take it out of sight although it is in use; whoever has files open keeps them
    #[arg(long, short)]
    lazy: bool,

    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

/// Takes it away.
pub(super) fn run(options: &UmountOptions, out: &mut dyn Write) -> Result<Exit, Failure> {
    let dir = std::path::absolute(&options.dir).unwrap_or_else(|_| options.dir.clone());
    // This process may work in what it is to take away.
    if dir.is_absolute()
        && let Err(error) = std::env::set_current_dir("/")
    {
        tracing::debug!(%error, "the working directory stays");
    }
    let left = leave(&dir, options.lazy).map_err(failure)?;
    let (word, said) = match left {
        Left::Done => ("done", ""),
        Left::Stale => ("stale", "its server was dead; what it left was cleared away"),
        Left::Lazily => ("lazy", "it is out of sight; its server ends after its last user"),
        Left::Unwatched => ("unwatched", "its server cannot be seen from here; it ends by itself"),
    };
    if options.json {
        let object = json!({ "schema_version": SCHEMA_VERSION, "unmounted": word });
        writeln!(out, "{object}")?;
    } else if !said.is_empty() {
        writeln!(out, "{}: {said}", options.dir.display())?;
    }
    Ok(Exit::Ok)
}

fn failure(error: LeaveFailure) -> Failure {
    use orlop_fuse::UnmountError;
    let busy = "close what is open there; --lazy takes it out of sight all the same";
    let (exit, code, hint) = match &error {
        LeaveFailure::NotMounted { .. } => (Exit::NotFound, "not-mounted", ""),
        LeaveFailure::Busy { .. } => (Exit::Busy, "busy", busy),
        LeaveFailure::Inside(InsideError::Busy(_)) => (Exit::Busy, "busy", busy),
        LeaveFailure::Fuse(UnmountError::Busy(_)) => (Exit::Busy, "busy", busy),
        LeaveFailure::Flush { .. } => {
            (Exit::Failed, "not-durable", "see 'status' in the mount; free space and try again")
        }
        LeaveFailure::Silent { .. } => (Exit::Unreachable, "silent", ""),
        LeaveFailure::Denied(_) => (Exit::Failed, "not-permitted", "ask that user, or root"),
        LeaveFailure::Lingering { .. } => (Exit::Failed, "lingering", "see what it waits for"),
        LeaveFailure::Inside(_) | LeaveFailure::Loop(_) | LeaveFailure::Fuse(_) => {
            (Exit::Failed, "failed", "")
        }
    };
    let hint = match &error {
        LeaveFailure::Silent { connection, .. } => format!(
            "let it go on, or end it; --lazy does not ask it; \
             'echo 1 >/sys/fs/fuse/connections/{connection}/abort' ends every wait for it"
        ),
        _ => hint.to_owned(),
    };
    Failure::new(exit, code, error.to_string(), hint)
}

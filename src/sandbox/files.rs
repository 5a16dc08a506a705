//! Which files, ports and processes are still within reach, by Landlock. Descriptors that are open
//! already keep working, whatever this says.
//!
//! Refuses to allow running a program, creating a file, or any new TCP connection or listener.

use std::io;
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::fs::FileType;

use super::{Mode, Report, SandboxError, refuse_company};

/// The newest interface whose every restriction was tried with this program. Later ones (7) only
/// add logging, or (9) restrict what is not asked for here.
const TRIED: ABI = ABI::V6;

const ANY_FILE: &str = "any file the user may open can be opened";

/// What every step of the interface added: without it, this stays possible.
const STEPS: [(ABI, &str); 5] = [
    (ABI::V2, "files can be moved between permitted directories"),
    (ABI::V3, "any file the user may write can be truncated"),
    (ABI::V4, "TCP connections can be made"),
    (ABI::V5, "devices can be controlled"),
    (ABI::V6, "signals can be sent to other programs"),
];

/// What stays within reach of a confined process, beside its open descriptors.
#[derive(Clone, Debug, Default)]
pub struct Allowed {
    read: Vec<PathBuf>,
    write: Vec<PathBuf>,
    remove: Vec<PathBuf>,
}

impl Allowed {
    /// Nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A file, or a directory and everything beneath it, may be read.
    #[must_use]
    pub fn read(mut self, path: impl Into<PathBuf>) -> Self {
        self.read.push(path.into());
        self
    }

    /// A file, or every file beneath a directory, may be read, written and cut; none created.
    ///
    #[must_use]
    pub fn write(mut self, path: impl Into<PathBuf>) -> Self {
        self.write.push(path.into());
        self
    }

    /// A socket that is to be removed at the end. Landlock knows no finer right than removing any
    /// file of its directory, so a socket had better have a directory of its own.
    #[must_use]
    pub fn remove(mut self, socket: impl Into<PathBuf>) -> Self {
        self.remove.push(socket.into());
        self
    }

    fn rules(&self) -> Result<Vec<Rule>, SandboxError> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let write = read | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev;
        let directory = |socket: &PathBuf| match socket.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let reads = self.read.iter().map(|path| (path.clone(), read));
        let writes = self.write.iter().map(|path| (path.clone(), write));
        let removes =
            self.remove.iter().map(|socket| (directory(socket), AccessFs::RemoveFile.into()));
        reads.chain(writes).chain(removes).map(|(path, rights)| rule(path, rights)).collect()
    }
}

type Rule = PathBeneath<PathFd>;

fn rule(path: PathBuf, rights: BitFlags<AccessFs>) -> Result<Rule, SandboxError> {
    let opened = || -> io::Result<(PathFd, bool)> {
        let fd = PathFd::new(&path).map_err(io::Error::other)?;
        let mode = rustix::fs::fstat(&fd)?.st_mode;
        Ok((fd, FileType::from_raw_mode(mode) == FileType::Directory))
    };
    match opened() {
        // The kernel takes rights of directories for directories only.
        Ok((fd, true)) => Ok(PathBeneath::new(fd, rights)),
        Ok((fd, false)) => Ok(PathBeneath::new(fd, rights & AccessFs::from_file(TRIED))),
        Err(source) => Err(SandboxError::Path { path, source }),
    }
}

/// Leaves the calling thread, and the threads and programs it will start, nothing but `allowed`:
/// no other file, no TCP connection or listener, no signal to and no abstract socket of others.
///
/// # Errors
/// A path of `allowed` that cannot be opened; other threads that run already; with
/// [`Mode::Required`], what the kernel lacks.
pub fn confine_files(allowed: &Allowed, mode: Mode) -> Result<Report, SandboxError> {
    let mut report = Report::default();
    if mode == Mode::Off {
        return Ok(report);
    }
    refuse_company("confining files")?;
    let rules = allowed.rules()?;
    match restrict(rules) {
        Err(error) => report.lack(ANY_FILE, format!("Landlock: {error}")),
        Ok((RulesetStatus::NotEnforced, status)) => report.lack(ANY_FILE, absence(status)),
        Ok((_, status)) => {
            let abi = ABI::from(status);
            report.hold(format!("files by Landlock {abi}"));
            for (_, possible) in STEPS.iter().filter(|(since, _)| abi < *since) {
                report.lack(possible, format!("the kernel's Landlock is version {abi}"));
            }
        }
    }
    report.judged(mode)
}

fn restrict(rules: Vec<Rule>) -> Result<(RulesetStatus, LandlockStatus), RulesetError> {
    // Unasked, the crate leaves out what the kernel does not know; the report says what that is.
    let status = landlock::Ruleset::default()
        .handle_access(AccessFs::from_all(TRIED))?
        .handle_access(AccessNet::from_all(TRIED))?
        .scope(Scope::from_all(TRIED))?
        .create()?
        .add_rules(rules.into_iter().map(Ok::<_, RulesetError>))?
        .restrict_self()?;
    Ok((status.ruleset, status.landlock))
}

fn absence(status: LandlockStatus) -> &'static str {
    match status {
        LandlockStatus::NotEnabled => {
            "Landlock is switched off; it must be named in the kernel's lsm= parameter"
        }
        LandlockStatus::NotImplemented => {
            "the kernel has no Landlock, or forbids it here; Linux 5.13 and later have it"
        }
        LandlockStatus::Available { .. } => "the kernel did not enforce Landlock",
    }
}

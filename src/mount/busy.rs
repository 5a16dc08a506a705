//! Who keeps a mount busy: processes with files open below it, or working there, loop devices, and
//! mounts below it.
//!
//! Only links and lists of the kernel are read, never the mount itself, which may be dead. A name
//! is a hint for people: processes of other users or other mount namespaces may stay unseen.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use super::loops::{self, LoopDevice};

/// Users that are named.
const USERS_MAX: usize = 16;
/// Processes looked at, and descriptors of each.
const PROCESSES_MAX: usize = 100_000;
const DESCRIPTORS_MAX: usize = 100_000;

/// One who keeps a mount busy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// A process.
    Process {
        /// Its number.
        pid: u32,
        /// Its name.
        name: String,
        /// What it does there.
        with: String,
    },
    /// A loop device.
    Loop {
        /// Its node.
        node: PathBuf,
        /// The file it is over.
        over: PathBuf,
        /// Where a file system on it is mounted.
        mounted: Option<PathBuf>,
    },
    /// A device that lies on a loop device.
    Above {
        /// Its node.
        node: PathBuf,
        /// What it lies on.
        over: PathBuf,
    },
    /// Something mounted below it.
    Mount {
        /// Where.
        at: PathBuf,
    },
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { pid, name, with } => write!(f, "{name} (pid {pid}) {with}"),
            Self::Loop { node, over, mounted: None } => {
                write!(f, "{} over {}", node.display(), over.display())
            }
            Self::Loop { node, over, mounted: Some(at) } => {
                write!(f, "{} over {}, mounted on {}", node.display(), over.display(), at.display())
            }
            Self::Above { node, over } => write!(f, "{} over {}", node.display(), over.display()),
            Self::Mount { at } => write!(f, "something mounted on {}", at.display()),
        }
    }
}

/// Several as one phrase.
#[must_use]
pub fn listed(users: &[User]) -> String {
    if users.is_empty() {
        return "nobody that can be seen from here".to_owned();
    }
    let names: Vec<String> = users.iter().map(User::to_string).collect();
    names.join(", ")
}

/// Who uses the mount at this place, a path without links: all but this process, `USERS_MAX` at
/// most.
#[must_use]
pub fn users(at: &Path) -> Vec<User> {
    // Devices by their paths alone: this is for people, and asks no server.
    let mut found: Vec<User> = loops::below(at).iter().flat_map(loop_users).collect();
    found.extend(mounts_below(at));
    found.extend(process_users(at));
    found.truncate(USERS_MAX);
    found
}

/// What is mounted below a directory, and not beneath what is mounted on it.
pub(super) fn mounts_below(at: &Path) -> impl Iterator<Item = User> {
    let mounts = orlop_fuse::mounts();
    // Later ones lie over earlier ones.
    let covered = mounts.iter().rposition(|mount| mount.point == at).unwrap_or(0);
    let below = move |mount: &orlop_fuse::Mount| mount.point.starts_with(at) && mount.point != at;
    let mounts = mounts.into_iter().skip(covered).filter(below);
    mounts.map(|mount| User::Mount { at: mount.point })
}

/// A loop device as a user, once for each place where what it holds is mounted.
#[must_use]
pub(super) fn loop_users(device: &LoopDevice) -> Vec<User> {
    let user = |mounted: Option<PathBuf>| User::Loop {
        node: device.node(),
        over: device.backing.clone(),
        mounted,
    };
    let mounts = orlop_fuse::mounts().into_iter().filter(|mount| device.holds(mount));
    let places: Vec<User> = mounts.map(|mount| user(Some(mount.point))).collect();
    if places.is_empty() { vec![user(None)] } else { places }
}

/// Who has the nodes of a loop device open, or lies on it.
pub(super) fn node_users(device: &LoopDevice) -> Vec<User> {
    let (nodes, over) = (device.nodes(), device.node());
    let above = device.holders().map(|node| User::Above { node, over: over.clone() });
    above.chain(nodes.iter().flat_map(|node| process_users(node))).take(USERS_MAX).collect()
}

/// The processes that use files below a directory, this one not counted.
#[must_use]
pub fn process_users(at: &Path) -> Vec<User> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let others = pids.filter(|pid| *pid != std::process::id()).take(PROCESSES_MAX);
    others.filter_map(|pid| process_user(pid, at)).take(USERS_MAX).collect()
}

fn process_user(pid: u32, at: &Path) -> Option<User> {
    let place = PathBuf::from(format!("/proc/{pid}"));
    let with = use_of(&place, at)?;
    let name = fs::read_to_string(place.join("comm")).unwrap_or_default();
    Some(User::Process { pid, name: name.trim().to_owned(), with })
}

/// What a process does below the directory.
fn use_of(process: &Path, at: &Path) -> Option<String> {
    let leads_there = |link: &Path| fs::read_link(link).ok().filter(|path| path.starts_with(at));
    for (link, what) in [("cwd", "works in"), ("root", "has its root in"), ("exe", "runs")] {
        if let Some(path) = leads_there(&process.join(link)) {
            return Some(format!("{what} {}", path.display()));
        }
    }
    let open = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    if let Some(path) = open.take(DESCRIPTORS_MAX).find_map(|entry| leads_there(&entry.path())) {
        return Some(format!("has {} open", path.display()));
    }
    let maps = fs::read_to_string(process.join("maps")).ok()?;
    // The path is the rest of the line behind five fields.
    let mapped = maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
    let path = mapped.into_iter().find(|path| path.starts_with(at))?;
    Some(format!("has {} mapped", path.display()))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::{User, process_users, users};

    #[test]
    fn who_works_in_a_directory_or_has_a_file_open_is_found() {
        let folder = tempfile::TempDir::new().unwrap();
        let at = folder.path().canonicalize().unwrap();
        assert_eq!(users(&at), []);
        let file = std::fs::File::create(at.join("x")).unwrap();
        let sleep =
            |command: &mut Command| command.arg("60").stdout(Stdio::null()).spawn().unwrap();
        let mut holder = sleep(Command::new("sleep").stdin(file));
        let mut worker = sleep(Command::new("sleep").current_dir(&at));
        let mut said: Vec<String> = process_users(&at).iter().map(User::to_string).collect();
        for child in [&mut holder, &mut worker] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let mut expected = vec![
            format!("sleep (pid {}) has {} open", holder.id(), at.join("x").display()),
            format!("sleep (pid {}) works in {}", worker.id(), at.display()),
        ];
        said.sort();
        expected.sort();
        assert_eq!(said, expected);
    }
}

//! Loop devices over files of a mount: made, found and let go.
//!
//! What there is, is asked of the kernel each time and remembered nowhere, so nothing can be out of
//! date after a crash. A path alone proves nothing: a file beneath the mount point, or one of
//! another mount namespace, has the same. Refuses to touch devices over any other file.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_fuse::Mount;

use super::ask;
use super::tool::{self, ToolError};

/// Where the kernel lists block devices.
const BLOCK: &str = "/sys/block";
/// And where their nodes are.
const NODES: &str = "/dev";
/// The sector size of every disk here.
const SECTOR: &str = "512";
/// How long it may take to say what file a device is over: the file's server is asked.
const ANSWER: Duration = Duration::from_secs(10);

/// A loop device over a file of a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoopDevice {
    /// Its name: `loop3`.
    name: String,
    /// The file behind it.
    pub backing: PathBuf,
    /// Names of its partitions: `loop3p1`.
    partitions: Vec<String>,
    /// Device numbers of it and its partitions, `major:minor`.
    numbers: Vec<String>,
    /// Names of devices that lie on it or on its partitions.
    holders: Vec<String>,
}

impl LoopDevice {
    /// Its device node.
    #[must_use]
    pub fn node(&self) -> PathBuf {
        Path::new(NODES).join(&self.name)
    }

    /// The device nodes of it and of its partitions.
    pub(super) fn nodes(&self) -> Vec<PathBuf> {
        let names = std::iter::once(&self.name).chain(&self.partitions);
        names.map(|name| Path::new(NODES).join(name)).collect()
    }

    /// Devices that lie on it: mapped ones, arrays.
    pub(super) fn holders(&self) -> impl Iterator<Item = PathBuf> {
        self.holders.iter().map(|name| Path::new(NODES).join(name))
    }

    /// Whether this mount's file system lies on it or on one of its partitions.
    #[must_use]
    pub fn holds(&self, mount: &Mount) -> bool {
        let source = mount.source.strip_prefix("/dev/").and_then(|s| s.strip_prefix(&*self.name));
        // Some file systems have numbers of their own and only name the device.
        let named = source.is_some_and(|rest| rest.is_empty() || rest.starts_with('p'));
        named || self.numbers.contains(&mount.device)
    }

    /// The number of the file system that its file is in; `None` if that file system cannot be
    /// asked any more.
    fn lies_in(&self) -> Result<Option<String>, ToolError> {
        let node = self.node();
        let words = ["--noheadings", "--output", "BACK-MAJ:MIN"].map(OsStr::new);
        let words = [&words[..], &[node.as_os_str()]].concat();
        let number = tool::run_for(ANSWER, "losetup", &words)?;
        Ok(Some(number).filter(|number| !number.is_empty()))
    }
}

/// The loop devices over files of the mount at this place.
#[must_use]
pub(super) fn over(mount: &Mount) -> Vec<LoopDevice> {
    of(mount, false)
}

/// The same of a mount whose server is dead, for which a device of its can only be told to be over
/// files of a dead server, with a path there. Whatever else has such a path is as dead.
#[must_use]
pub(super) fn over_dead(mount: &Mount) -> Vec<LoopDevice> {
    of(mount, true)
}

fn of(mount: &Mount, is_dead: bool) -> Vec<LoopDevice> {
    let mut found = below(&mount.point);
    found.retain(|device| match device.lies_in() {
        Ok(Some(number)) => number == mount.device,
        Ok(None) => is_dead,
        Err(error) => {
            let node = device.node();
            tracing::warn!(
                "{} is let be: whose file it is over is not known: {error}",
                node.display()
            );
            false
        }
    });
    found
}

/// The loop devices over files with paths below this directory, whatever lies over it.
#[must_use]
pub(super) fn below(at: &Path) -> Vec<LoopDevice> {
    let Ok(entries) = fs::read_dir(BLOCK) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let found = names.filter(|name| name.starts_with("loop")).filter_map(look);
    found.filter(|device| device.backing.starts_with(at)).collect()
}

fn look(name: String) -> Option<LoopDevice> {
    let place = Path::new(BLOCK).join(&name);
    let backing = backing_of(&place)?;
    let inside = |of: &Path| fs::read_dir(of).into_iter().flatten().flatten();
    let names = inside(&place).filter_map(|entry| entry.file_name().into_string().ok());
    let partitions: Vec<String> = names.filter(|part| part.starts_with(&name)).collect();
    let (mut numbers, mut holders) = (Vec::new(), Vec::new());
    let parts = partitions.iter().map(|part| place.join(part));
    for device in std::iter::once(place.clone()).chain(parts) {
        numbers.extend(fs::read_to_string(device.join("dev")).map(|text| text.trim().to_owned()));
        let above = inside(&device.join("holders"));
        holders.extend(above.filter_map(|entry| entry.file_name().into_string().ok()));
    }
    Some(LoopDevice { name, backing, partitions, numbers, holders })
}

/// The path of the file behind a device, as bytes; `None` where it is over nothing.
fn backing_of(place: &Path) -> Option<PathBuf> {
    let mut path = fs::read(place.join("loop/backing_file")).ok()?;
    // Of newlines, only the last is the kernel's.
    path.pop_if(|last| *last == b'\n');
    Some(PathBuf::from(OsString::from_vec(path)))
}

/// Makes a loop device over a file, without a cache of its own.
///
/// # Errors
/// What losetup says.
pub(super) fn attach(file: &Path, read_only: bool) -> Result<PathBuf, ToolError> {
    let mut arguments = ["--find", "--show", "--partscan", "--direct-io=on", "--sector-size"]
        .map(OsStr::new)
        .to_vec();
    arguments.push(OsStr::new(SECTOR));
    if read_only {
        arguments.push(OsStr::new("--read-only"));
    }
    arguments.push(file.as_os_str());
    let node = tool::run("losetup", &arguments).map(PathBuf::from)?;
    // The kernel keeps the failures of those who had the device before, for whoever asks next.
    if let Err(error) = ask::flush(&node) {
        tracing::debug!(%error, "{} had another file before", node.display());
    }
    Ok(node)
}

/// Lets a loop device go; one that is in use goes with its last user, and one that went by itself
/// is gone.
///
/// # Errors
/// What losetup says.
pub(super) fn detach(device: &LoopDevice) -> Result<(), ToolError> {
    let node = device.node();
    match tool::run("losetup", &[OsStr::new("--detach"), node.as_os_str()]) {
        Err(_) if backing_of(&Path::new(BLOCK).join(&device.name)).is_none() => Ok(()),
        result => result.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use orlop_fuse::Mount;

    use super::LoopDevice;

    #[test]
    fn a_file_system_is_told_by_number_or_by_name() {
        let numbers = vec!["7:1".to_owned(), "259:0".to_owned()];
        let device = LoopDevice {
            name: "loop1".to_owned(),
            backing: PathBuf::new(),
            partitions: vec!["loop1p1".to_owned()],
            numbers,
            holders: Vec::new(),
        };
        assert_eq!(device.nodes(), ["/dev/loop1", "/dev/loop1p1"].map(PathBuf::from));
        let mount = |device: &str, source: &str| Mount {
            device: device.to_owned(),
            point: PathBuf::from("/mnt"),
            kind: "ext4".to_owned(),
            source: source.to_owned(),
        };
        assert!(device.holds(&mount("7:1", "/dev/root")));
        assert!(device.holds(&mount("259:0", "/dev/loop1p1")));
        assert!(device.holds(&mount("0:44", "/dev/loop1p2")), "btrfs has a number of its own");
        assert!(!device.holds(&mount("7:10", "/dev/loop10")));
        assert!(!device.holds(&mount("8:1", "/dev/sda1")));
    }
}
